//! Fetching what is damaged from peers, before raft sees any of the log. Until it is whole the node is as good as down:
//! it neither votes nor acknowledges, so whatever it promised before stays true.

use std::collections::BTreeMap;

use super::{AGAIN, Action, Event, Own};
use crate::consensus::disk::Disk;
use crate::consensus::frame;
use crate::consensus::log::{Damage, Log, Mark};
use crate::consensus::wire::{Body, Entry, Snapshot};

/// Entries that are asked for at a time.
const AT_A_TIME: usize = 256;

/// Bytes of entries in an answer: beside a snapshot they fit a message.
const ANSWER_BYTES: usize = 8 << 20;

/// Fruitless answers of a peer after which it is taken to have nothing. When that holds for more than half of the peers
/// nobody has what is damaged.
const FRUITLESS: u32 = 8;

/// A log that is being made whole.
pub(super) struct Repair<D> {
    log: Log<D>,
    damage: Damage,
    fruitless: BTreeMap<u8, u32>,
}

/// Where a repair stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Done {
    NotYet,
    Whole,
    GaveUp,
}

impl<D: Disk> Repair<D> {
    pub(super) fn new(log: Log<D>, damage: Damage) -> Self {
        Self { log, damage, fruitless: BTreeMap::new() }
    }

    pub(super) fn log(&self) -> &Log<D> {
        &self.log
    }

    pub(super) fn log_mut(&mut self) -> &mut Log<D> {
        &mut self.log
    }

    pub(super) fn into_parts(self) -> (Log<D>, Damage) {
        (self.log, self.damage)
    }

    pub(super) fn tick(&mut self, own: &mut Own) -> Done {
        if own.tick.is_multiple_of(AGAIN) {
            let entries: Vec<u64> = self.damage.entries.keys().take(AT_A_TIME).copied().collect();
            for peer in own.peers() {
                let body = Body::Fetch { entries: entries.clone(), snapshot: self.damage.snapshot };
                own.send(peer, self.log.identity().disk, body);
            }
        }
        Done::NotYet
    }

    /// Takes a peer's answer.
    pub(super) fn take(
        &mut self,
        own: &mut Own,
        from: u8,
        entries: Vec<Entry>,
        commit: u64,
        snapshot: Option<Vec<u8>>,
    ) -> Done {
        let before = self.damage.clone();
        let opened = snapshot.and_then(|sealed| Snapshot::open(frame::key(&sealed)?, &sealed).ok());
        let written = match opened.filter(|snapshot| self.wants(snapshot)) {
            Some(snapshot) => self.log.adopt(snapshot, &mut self.damage),
            None => Ok(()),
        };
        let written = written.and_then(|()| entries.into_iter().try_for_each(|entry| self.put(entry, commit)));
        if let Err(error) = written {
            own.disk_fails(&error);
            return Done::NotYet;
        }
        own.disk_works();
        if self.damage.is_empty() {
            own.counters.repaired += 1;
            own.out.push(Action::Told(Event::Repaired { from }));
            return Done::Whole;
        }
        if self.damage == before {
            *self.fruitless.entry(from).or_default() += 1;
        }
        let without = self.fruitless.values().filter(|&&count| count >= FRUITLESS).count();
        if without * 2 > own.peers().len() { Done::GaveUp } else { Done::NotYet }
    }

    /// What there is of what a peer asks for, which may be whole here and damaged there.
    pub(super) fn answer(&self, wanted: &[u64], snapshot: Option<u64>) -> (u128, Body) {
        let kept = || self.log.snapshot().map(|(snapshot, _)| snapshot.clone());
        (self.log.identity().disk, answer(&self.log, self.log.commit(), wanted, snapshot, kept))
    }

    /// Whether a snapshot makes something good.
    fn wants(&self, snapshot: &Snapshot) -> bool {
        let oldest = self.damage.snapshot.or(self.log.snapshot().map(|(own, _)| own.index())).unwrap_or(0);
        let holds_a_damaged_entry = self.damage.entries.keys().next().is_some_and(|&index| index <= snapshot.index());
        snapshot.index() >= oldest && (self.damage.snapshot.is_some() || holds_a_damaged_entry)
    }

    /// Takes an entry that is just the damaged one. One of another term that is committed says that the damaged one never
    /// was, nor any after it.
    fn put(&mut self, entry: Entry, commit: u64) -> std::io::Result<()> {
        let index = entry.index;
        match self.damage.entries.get(&index) {
            Some(&mark) if mark == Mark::of(&entry) => {
                self.log.restore(entry)?;
                self.damage.entries.remove(&index);
            }
            Some(mark) if mark.term != entry.term && index <= commit && self.log.is_open(index) => {
                self.log.truncate(index)?;
                self.damage.entries.split_off(&index);
            }
            _ => {}
        }
        Ok(())
    }
}

/// What there is of what a peer asks for. `now` makes a snapshot of the present.
pub(super) fn answer<D: Disk>(
    log: &Log<D>,
    commit: u64,
    wanted: &[u64],
    snapshot: Option<u64>,
    now: impl FnOnce() -> Option<Snapshot>,
) -> Body {
    let mut bytes = 0;
    let fits = |entry: &&raft::eraftpb::Entry| {
        bytes += entry.data.len() + entry.context.len();
        bytes <= ANSWER_BYTES
    };
    let entries = wanted.iter().take(AT_A_TIME).filter_map(|&index| log.entry(index)).take_while(fits);
    let entries: Vec<Entry> = entries.map(Entry::from).collect();
    let kept_from = raft::Storage::first_index(log).unwrap_or(0);
    let needs_snapshot = snapshot.is_some() || wanted.iter().any(|&index| index < kept_from);
    let snapshot = needs_snapshot.then(now).flatten().map(|snapshot| snapshot.seal());
    Body::Fetched { entries, commit, snapshot }
}
