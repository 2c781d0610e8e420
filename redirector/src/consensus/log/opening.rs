//! What is found on a disk at the start.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io;

use super::{Damage, Identity, Log, Mark, Position};
use crate::consensus::disk::{Batch, Disk, Key, key};
use crate::consensus::frame::{self, FrameError, Kind};
use crate::consensus::wire::Entry;

/// What a disk turns out to be.
pub enum Opening<D> {
    /// It cannot be read just now, such as where it is full and needs mending first.
    Unread(D, io::Error),
    /// Nothing is on it.
    Fresh(D),
    /// A log, whole but for what is damaged. Raft must not be given it before that is made good.
    There(Box<Log<D>>, Damage),
    /// A log was there, and what it promised to others is not known any more.
    Lost(D, String),
}

/// Why a disk is not used, and is left as it is.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// What works on it cannot be started.
    #[error("agreement cannot be started")]
    Io(#[from] io::Error),
    /// A newer version wrote it.
    #[error("the log's {what} cannot be read: {error}")]
    Newer {
        /// Which record.
        what: &'static str,
        /// Found and known.
        error: FrameError,
    },
    /// It is someone else's.
    #[error("the log is that of node {} in cluster {}: give this node its own `data` directory", .0.node, .0.cluster)]
    Foreign(Identity),
}

impl<D: Disk> Opening<D> {
    /// Looks at a disk.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn of(mut disk: D, cluster: u32, node: u8) -> Result<Self, OpenError> {
        let records = match disk.read() {
            Ok(records) => records,
            Err(error) if error.kind() == io::ErrorKind::InvalidData => return Ok(Self::Lost(disk, error.to_string())),
            Err(error) => return Ok(Self::Unread(disk, error)),
        };
        if records.is_empty() {
            return Ok(Self::Fresh(disk));
        }
        let lost = |what: &str| format!("its {what} is missing or damaged");
        let Some(identity) = record::<Identity>(&records, Kind::Identity, 0, "identity")? else {
            return Ok(Self::Lost(disk, lost("identity")));
        };
        if (identity.cluster, identity.node) != (cluster, node) {
            return Err(OpenError::Foreign(identity));
        }
        let Some(position) = record::<Position>(&records, Kind::Position, 0, "vote")? else {
            return Ok(Self::Lost(disk, lost("vote")));
        };
        if !position.is_sound() {
            return Ok(Self::Lost(disk, lost("vote")));
        }
        let mut log = Log {
            disk,
            identity,
            position,
            sealed: Vec::new(),
            snapshot: None,
            entries: BTreeMap::new(),
            needs_newer: Cell::new(false),
        };
        let mut damage = Damage::default();
        if position.snapshot.0 > 0 {
            log.snapshot = record(&records, Kind::Snapshot, position.snapshot.0, "snapshot")?;
            match &log.snapshot {
                Some(snapshot) => log.sealed = snapshot.seal(),
                None => damage.snapshot = Some(position.snapshot.0),
            }
        }
        let mut repair = Batch::default();
        for index in position.base.0 + 1..=position.last {
            let entry = record::<Entry>(&records, Kind::Entry, index, "entry")?;
            match (entry, record::<Mark>(&records, Kind::Mark, index, "mark")?) {
                (Some(entry), mark) => {
                    let own = Mark::of(&entry);
                    if mark != Some(own) {
                        repair.puts.push((key(Kind::Mark, index), frame::seal(Kind::Mark, index, &own)));
                    }
                    log.entries.insert(index, entry.into());
                }
                (None, Some(mark)) => drop(damage.entries.insert(index, mark)),
                (None, None) => return Ok(Self::Lost(log.disk, lost(&format!("entry {index}")))),
            }
        }
        if !repair.puts.is_empty() {
            // A disk that takes no writes just now has them damaged at the next start too.
            let written = log.disk.write(&repair).is_ok();
            tracing::warn!(
                marks = repair.puts.len(),
                written,
                "damaged marks in the log were drawn anew from the entries"
            );
        }
        log.forgo_old(&mut damage);
        Ok(Self::There(Box::new(log), damage))
    }
}

/// A record; none where it is missing or damaged.
fn record<T: serde::de::DeserializeOwned>(
    records: &BTreeMap<Key, Vec<u8>>,
    kind: Kind,
    index: u64,
    what: &'static str,
) -> Result<Option<T>, OpenError> {
    match records.get(&key(kind, index)).map(|bytes| frame::open(kind, index, bytes)) {
        Some(Ok(record)) => Ok(Some(record)),
        Some(Err(error @ FrameError::Newer { .. })) => Err(OpenError::Newer { what, error }),
        Some(Err(FrameError::Damaged | FrameError::Foreign)) | None => Ok(None),
    }
}

impl<D> Log<D> {
    /// Damaged entries that the snapshot makes needless are given up, with what was before them. That is written with
    /// whatever is written next.
    fn forgo_old(&mut self, damage: &mut Damage) {
        let Some(snapshot) = &self.snapshot else { return };
        let Some((&base, &mark)) = damage.entries.range(..=snapshot.index()).next_back() else { return };
        self.position.base = (base, mark.term);
        self.entries = self.entries.split_off(&(base + 1));
        damage.entries = damage.entries.split_off(&(base + 1));
        tracing::warn!(index = base, "damaged entries of the log were given up: the snapshot holds what they did");
    }
}
