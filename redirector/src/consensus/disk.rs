//! Where records are kept. A disk knows keys and bytes; what they mean, and whether they are whole, is the log's matter.

use std::collections::BTreeMap;
use std::io;
use std::ops::RangeInclusive;
use std::sync::Arc;

use super::frame::Kind;
use crate::breaker::Breaker;

/// What a record is filed under: its kind, and its log index where it has one.
pub type Key = (u8, u64);

/// The key of a record.
pub fn key(kind: Kind, index: u64) -> Key {
    (kind as u8, index)
}

/// Records to write and to drop, all or nothing.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// Records that go.
    pub drops: Vec<RangeInclusive<Key>>,
    /// Records that come, after the others have gone.
    pub puts: Vec<(Key, Vec<u8>)>,
}

/// A place for records.
pub trait Disk {
    /// All records.
    ///
    /// # Errors
    /// Where the disk fails, or what is on it cannot be read as records.
    fn read(&mut self) -> io::Result<BTreeMap<Key, Vec<u8>>>;

    /// Changes records. When it returns without an error they outlive a power cut; with one, either all has changed or
    /// nothing, and the same batch may be written again.
    ///
    /// # Errors
    /// Where the disk fails or is full.
    fn write(&mut self, batch: &Batch) -> io::Result<()>;

    /// Puts what is there out of the way, for whoever wants to look at it, and begins empty.
    ///
    /// # Errors
    /// Where the disk fails.
    fn set_aside(&mut self) -> io::Result<()>;
}

/// A disk behind a breaker: one that takes no writes is asked now and then, and not with each tick. Who waits for one that
/// answers no more goes on waiting, and the breaker tells.
pub struct Guarded<D> {
    disk: D,
    breaker: Arc<Breaker>,
}

impl<D: Disk> Guarded<D> {
    /// Puts a breaker before a disk.
    pub fn new(disk: D, breaker: Arc<Breaker>) -> Self {
        Self { disk, breaker }
    }
}

impl<D: Disk> Disk for Guarded<D> {
    fn read(&mut self) -> io::Result<BTreeMap<Key, Vec<u8>>> {
        let permit = self.breaker.ask().map_err(io::Error::other)?;
        let read = self.disk.read();
        match &read {
            // Time does not mend damage.
            Err(error) if error.kind() == io::ErrorKind::InvalidData => permit.told(&Ok::<(), io::Error>(())),
            read => permit.told(read),
        }
        read
    }

    fn write(&mut self, batch: &Batch) -> io::Result<()> {
        self.breaker.call(|| self.disk.write(batch))
    }

    fn set_aside(&mut self) -> io::Result<()> {
        self.disk.set_aside()
    }
}

/// A disk in memory.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    /// The records; they may be damaged from outside.
    pub records: BTreeMap<Key, Vec<u8>>,
    /// Whether writes fail as on a full disk.
    pub is_full: bool,
    /// Whether it cannot be read either, as where a full disk's file needs mending first.
    pub is_unreadable: bool,
}

impl Disk for Memory {
    fn read(&mut self) -> io::Result<BTreeMap<Key, Vec<u8>>> {
        if self.is_unreadable {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(self.records.clone())
    }

    fn write(&mut self, batch: &Batch) -> io::Result<()> {
        if self.is_full {
            return Err(io::ErrorKind::StorageFull.into());
        }
        for range in &batch.drops {
            self.records.retain(|key, _| !range.contains(key));
        }
        self.records.extend(batch.puts.iter().cloned());
        Ok(())
    }

    fn set_aside(&mut self) -> io::Result<()> {
        self.records.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, channel};
    use std::thread;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::breaker::{Policy, State};

    /// A disk that answers when it is told to.
    struct Stalling(Receiver<()>);

    impl Disk for Stalling {
        fn read(&mut self) -> io::Result<BTreeMap<Key, Vec<u8>>> {
            Ok(BTreeMap::new())
        }

        fn write(&mut self, _: &Batch) -> io::Result<()> {
            self.0.recv().map_err(io::Error::other)
        }

        fn set_aside(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn until(what: &str, mut holds: impl FnMut() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !holds() {
            assert!(Instant::now() < deadline, "{what}");
            thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn a_disk_that_answers_no_more_opens_its_breaker_and_closes_it_when_it_does() {
        let (minute, patience) = (Duration::from_secs(60), Duration::from_millis(50));
        let policy = Policy { failures: 3, window: minute, timeout: Duration::ZERO, patience };
        let breaker = Arc::new(Breaker::new("disk", policy));
        let (answer, answers) = channel();
        let mut disk = Guarded::new(Stalling(answers), breaker.clone());
        let writer = thread::spawn(move || {
            let stalled = disk.write(&Batch::default());
            (disk, stalled)
        });
        until("it never opens", || breaker.state() == State::Open);
        let status = breaker.status();
        assert_eq!((status.failed, status.last_failure.as_deref()), (3, Some("a call has not come back within 50ms")));
        assert!(!writer.is_finished());
        answer.send(()).unwrap();
        let (mut disk, stalled) = writer.join().unwrap();
        assert!(stalled.is_ok(), "it was written in the end");
        until("it never closes", || {
            answer.send(()).unwrap();
            disk.write(&Batch::default()).is_ok() && breaker.state() == State::Closed
        });
    }
}
