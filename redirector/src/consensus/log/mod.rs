//! The log as raft reads it: in memory, and every change of it on disk before anyone is told.
//!
//! What is read from the disk at the start is checked record by record. An entry and the mark beside it, which repeats
//! its term and its checksum, are records of their own, so that when one of the two is damaged the other still says what
//! was there: a damaged mark is written anew, and a damaged entry can be fetched from a peer and told from any other. A
//! damaged vote cannot be made good: then the disk is [`Opening::Lost`], and whoever owned it comes back as someone else.

mod opening;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io;

use raft::eraftpb::{self, ConfState, HardState};
use raft::{GetEntriesContext, RaftState, StorageError};
use serde::{Deserialize, Serialize};

use super::disk::{Batch, Disk, Key, key};
use super::frame::{self, Kind};
use super::wire::{Entry, Snapshot};

pub use opening::{OpenError, Opening};

/// Entries that are kept behind a snapshot, so that a peer that is a little late needs no snapshot.
const TAIL: u64 = 256;

/// Whose disk it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The cluster.
    pub cluster: u32,
    /// The node.
    pub node: u8,
    /// The disk.
    pub disk: u128,
}

/// Term, vote, and what of the log is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Position {
    term: u64,
    vote: u64,
    commit: u64,
    /// The entry before the first that is kept.
    base: (u64, u64),
    /// Index and term of the snapshot.
    snapshot: (u64, u64),
    /// Index of the last entry.
    last: u64,
}

impl Position {
    fn is_sound(&self) -> bool {
        let Self { commit, base, snapshot, last, .. } = self;
        base.0 <= snapshot.0 && snapshot.0 <= *commit && commit <= last
    }
}

/// What is known of an entry beside the entry itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// Its term.
    pub term: u64,
    /// The checksum of its record.
    pub checksum: u32,
}

impl Mark {
    /// The mark of an entry.
    pub fn of(entry: &Entry) -> Self {
        Self { term: entry.term, checksum: crc32c::crc32c(&frame::seal(Kind::Entry, entry.index, entry)) }
    }
}

/// What is damaged and can be fetched.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Damage {
    /// Entries that are missing, and what is known of them.
    pub entries: BTreeMap<u64, Mark>,
    /// Index of the snapshot that is missing.
    pub snapshot: Option<u64>,
}

impl Damage {
    /// Whether nothing is.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.snapshot.is_none()
    }
}

/// The log on a disk.
pub struct Log<D> {
    disk: D,
    identity: Identity,
    position: Position,
    /// Sealed; empty while there is none.
    sealed: Vec<u8>,
    snapshot: Option<Snapshot>,
    entries: BTreeMap<u64, eraftpb::Entry>,
    /// Whether raft would send a snapshot to someone who has no seat in the one that is kept.
    needs_newer: Cell<bool>,
}

impl<D: Disk> Log<D> {
    /// Makes a disk that nothing is on a log's.
    ///
    /// # Errors
    /// Where the disk fails; it is given back.
    pub fn create(disk: D, identity: Identity) -> Result<Self, (D, io::Error)> {
        let position = Position::default();
        let mut log = Self {
            disk,
            identity,
            position,
            sealed: Vec::new(),
            snapshot: None,
            entries: BTreeMap::new(),
            needs_newer: Cell::new(false),
        };
        let mut batch = Batch::default();
        batch.puts.push((key(Kind::Identity, 0), frame::seal(Kind::Identity, 0, &identity)));
        match log.write(batch, position) {
            Ok(()) => Ok(log),
            Err(error) => Err((log.disk, error)),
        }
    }

    /// Whether an entry may still be replaced by another: it is not known to be committed.
    pub fn is_open(&self, index: u64) -> bool {
        index > self.position.commit
    }

    /// Up to which index it is known to be committed.
    pub fn commit(&self) -> u64 {
        self.position.commit
    }

    /// Whose it is.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// The snapshot, and its sealed form.
    pub fn snapshot(&self) -> Option<(&Snapshot, &[u8])> {
        self.snapshot.as_ref().map(|snapshot| (snapshot, self.sealed.as_slice()))
    }

    /// Whether a newer snapshot is needed than the one that is kept.
    pub fn needs_newer_snapshot(&self) -> bool {
        self.needs_newer.get()
    }

    /// An entry that is kept.
    pub fn entry(&self, index: u64) -> Option<&eraftpb::Entry> {
        self.entries.get(&index)
    }

    /// The disk.
    pub fn disk_mut(&mut self) -> &mut D {
        &mut self.disk
    }

    /// Gives the disk back.
    pub fn into_disk(self) -> D {
        self.disk
    }

    /// Writes what raft wants written before it goes on.
    ///
    /// # Errors
    /// Where the disk fails; then nothing has changed here, and the same may be asked again.
    pub fn persist(
        &mut self,
        snapshot: Option<Snapshot>,
        entries: &[eraftpb::Entry],
        hard_state: Option<&HardState>,
    ) -> io::Result<()> {
        let mut position = self.position;
        let mut batch = Batch::default();
        if let Some(hard_state) = hard_state {
            (position.term, position.vote, position.commit) = (hard_state.term, hard_state.vote, hard_state.commit);
        }
        if let Some(snapshot) = &snapshot {
            position = replaced_by(snapshot, position, &mut batch);
        }
        if let Some(first) = entries.first() {
            position.last = first.index + entries.len() as u64 - 1;
            batch.puts.extend(entries.iter().flat_map(records_of));
            drop_entries(&mut batch, position.last + 1, u64::MAX);
        }
        self.write(batch, position)?;
        if let Some(snapshot) = snapshot {
            self.entries.clear();
            self.sealed = snapshot.seal();
            self.snapshot = Some(snapshot);
        }
        if let Some(first) = entries.first() {
            self.entries.split_off(&first.index);
            self.entries.extend(entries.iter().map(|entry| (entry.index, entry.clone())));
        }
        Ok(())
    }

    /// Notes how far it is committed; written with whatever is written next.
    pub fn set_commit(&mut self, commit: u64) {
        self.position.commit = self.position.commit.max(commit);
    }

    /// Keeps a snapshot, and drops entries that are well before it.
    ///
    /// # Errors
    /// Where the disk fails; then the old snapshot and all entries are still there.
    pub fn compact(&mut self, snapshot: Snapshot) -> io::Result<()> {
        let mut position = self.position;
        let base = snapshot.index().saturating_sub(TAIL).max(position.base.0);
        position.base = (base, self.entries.get(&base).map_or(position.base.1, |entry| entry.term));
        position.snapshot = (snapshot.index(), snapshot.term);
        position.commit = position.commit.max(snapshot.index());
        let mut batch = Batch::default();
        batch.drops.push(key(Kind::Snapshot, 0)..=key(Kind::Snapshot, u64::MAX));
        drop_entries(&mut batch, 0, base);
        let sealed = snapshot.seal();
        batch.puts.push((key(Kind::Snapshot, snapshot.index()), sealed.clone()));
        self.write(batch, position)?;
        self.entries = self.entries.split_off(&(base + 1));
        (self.sealed, self.snapshot) = (sealed, Some(snapshot));
        self.needs_newer.set(false);
        Ok(())
    }

    /// Puts a damaged entry back.
    ///
    /// # Errors
    /// Where the disk fails.
    pub fn restore(&mut self, entry: Entry) -> io::Result<()> {
        let entry = eraftpb::Entry::from(entry);
        self.write(Batch { puts: records_of(&entry).into(), ..Batch::default() }, self.position)?;
        self.entries.insert(entry.index, entry);
        Ok(())
    }

    /// Drops all entries from an index on: a committed entry has another term there.
    ///
    /// # Errors
    /// Where the disk fails.
    pub fn truncate(&mut self, from: u64) -> io::Result<()> {
        let mut batch = Batch::default();
        drop_entries(&mut batch, from, u64::MAX);
        self.write(batch, Position { last: from - 1, ..self.position })?;
        self.entries.split_off(&from);
        Ok(())
    }

    /// Takes a peer's snapshot in place of a damaged one or of damaged entries. What of the log follows it is kept, as
    /// far as it does follow: it may have been promised to a leader.
    ///
    /// # Errors
    /// Where the disk fails.
    pub fn adopt(&mut self, snapshot: Snapshot, damage: &mut Damage) -> io::Result<()> {
        let index = snapshot.index();
        let own = raft::Storage::term(self, index).ok().or(damage.entries.get(&index).map(|mark| mark.term));
        let follows = own == Some(snapshot.term);
        let rest = |at: &u64| follows && *at > index;
        let mut batch = Batch::default();
        let position = replaced_by(&snapshot, self.position, &mut batch);
        let last = if follows { self.position.last } else { index };
        batch.puts.extend(self.entries.iter().filter(|(at, _)| rest(at)).flat_map(|(_, entry)| records_of(entry)));
        let still = damage.entries.iter().filter(|(at, _)| rest(at));
        batch.puts.extend(still.map(|(&at, mark)| mark_record(at, mark)));
        self.write(batch, Position { last, ..position })?;
        self.entries.retain(|at, _| rest(at));
        damage.entries.retain(|at, _| rest(at));
        (self.sealed, self.snapshot, damage.snapshot) = (snapshot.seal(), Some(snapshot), None);
        Ok(())
    }

    /// Becomes the log of another disk, which begins with a snapshot: nothing of what was promised before is left.
    ///
    /// # Errors
    /// Where the disk fails; then nothing has changed.
    pub fn begin_anew(&mut self, identity: Identity, snapshot: Snapshot) -> io::Result<()> {
        let mut batch = Batch::default();
        let position = replaced_by(&snapshot, self.position, &mut batch);
        batch.puts.push((key(Kind::Identity, 0), frame::seal(Kind::Identity, 0, &identity)));
        self.write(batch, position)?;
        self.identity = identity;
        self.entries.clear();
        (self.sealed, self.snapshot) = (snapshot.seal(), Some(snapshot));
        Ok(())
    }

    fn write(&mut self, mut batch: Batch, position: Position) -> io::Result<()> {
        batch.puts.push((key(Kind::Position, 0), frame::seal(Kind::Position, 0, &position)));
        self.disk.write(&batch)?;
        self.position = position;
        Ok(())
    }
}

/// Where a log stands when a snapshot has taken the place of all of it.
fn replaced_by(snapshot: &Snapshot, position: Position, batch: &mut Batch) -> Position {
    let at = (snapshot.index(), snapshot.term);
    drop_entries(batch, 0, u64::MAX);
    batch.drops.push(key(Kind::Snapshot, 0)..=key(Kind::Snapshot, u64::MAX));
    batch.puts.push((key(Kind::Snapshot, at.0), snapshot.seal()));
    let (term, commit) = (position.term.max(at.1), position.commit.max(at.0));
    let vote = if term == position.term { position.vote } else { 0 };
    Position { term, vote, commit, base: at, snapshot: at, last: at.0 }
}

fn drop_entries(batch: &mut Batch, from: u64, to: u64) {
    for kind in [Kind::Entry, Kind::Mark] {
        batch.drops.push(key(kind, from)..=key(kind, to));
    }
}

fn records_of(entry: &eraftpb::Entry) -> [(Key, Vec<u8>); 2] {
    let entry = Entry::from(entry);
    let sealed = frame::seal(Kind::Entry, entry.index, &entry);
    let mark = Mark { term: entry.term, checksum: crc32c::crc32c(&sealed) };
    [(key(Kind::Entry, entry.index), sealed), mark_record(entry.index, &mark)]
}

fn mark_record(index: u64, mark: &Mark) -> (Key, Vec<u8>) {
    (key(Kind::Mark, index), frame::seal(Kind::Mark, index, mark))
}

impl<D: Disk> raft::Storage for Log<D> {
    fn initial_state(&self) -> raft::Result<RaftState> {
        let mut hard_state = HardState::default();
        let Position { term, vote, commit, .. } = self.position;
        (hard_state.term, hard_state.vote, hard_state.commit) = (term, vote, commit);
        let seats = |snapshot: &Snapshot| ConfState::from((snapshot.voters.clone(), snapshot.learners.clone()));
        Ok(RaftState::new(hard_state, self.snapshot.as_ref().map(seats).unwrap_or_default()))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _: GetEntriesContext,
    ) -> raft::Result<Vec<eraftpb::Entry>> {
        if low <= self.position.base.0 {
            return Err(StorageError::Compacted.into());
        }
        let mut entries: Vec<_> = self.entries.range(low..high).map(|(_, entry)| entry.clone()).collect();
        raft::util::limit_size(&mut entries, max_size.into());
        Ok(entries)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index == self.position.base.0 {
            return Ok(self.position.base.1);
        }
        match self.entries.get(&index) {
            Some(entry) => Ok(entry.term),
            None if index < self.position.base.0 => Err(StorageError::Compacted.into()),
            None => Err(StorageError::Unavailable.into()),
        }
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.position.base.0 + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.position.last)
    }

    fn snapshot(&self, request_index: u64, to: u64) -> raft::Result<eraftpb::Snapshot> {
        match &self.snapshot {
            Some(snapshot) if snapshot.index() >= request_index && snapshot.seats(to) => {
                Ok(snapshot.to_raft(&self.sealed))
            }
            _ => {
                self.needs_newer.set(true);
                Err(StorageError::SnapshotTemporarilyUnavailable.into())
            }
        }
    }
}

#[cfg(test)]
#[path = "../tests/log.rs"]
mod tests;
