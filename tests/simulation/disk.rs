//! What of a host outlives its processes: the log's records, the configuration that was committed, the last incarnation.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;

use redirector::consensus::disk::{Batch, Disk, Key, Memory};
use suite::random::Random;

/// The configuration in force, as it was committed.
#[derive(Clone, Debug)]
pub struct Committed {
    /// The cluster's version of it.
    pub version: u64,
    /// Its text.
    pub text: String,
}

/// A host's disk. Clones are the same disk.
#[derive(Clone, Default)]
pub struct Platter {
    log: Rc<RefCell<Memory>>,
    /// What a power cut leaves where writes are acknowledged before they are durable.
    durable: Rc<RefCell<BTreeMap<Key, Vec<u8>>>>,
    rest: Rc<RefCell<Rest>>,
}

#[derive(Default)]
struct Rest {
    committed: Option<Committed>,
    incarnation: u32,
    lies: bool,
    writes: u64,
}

impl Disk for Platter {
    fn read(&mut self) -> io::Result<BTreeMap<Key, Vec<u8>>> {
        self.log.borrow_mut().read()
    }

    fn write(&mut self, batch: &Batch) -> io::Result<()> {
        self.log.borrow_mut().write(batch)?;
        let mut rest = self.rest.borrow_mut();
        rest.writes += 1;
        // A disk that lies keeps one write in sixteen.
        if rest.lies && rest.writes.is_multiple_of(16) {
            self.durable.borrow_mut().clone_from(&self.log.borrow().records);
        }
        Ok(())
    }

    fn set_aside(&mut self) -> io::Result<()> {
        self.log.borrow_mut().set_aside()
    }
}

impl Platter {
    /// Has writes acknowledged that a power cut undoes.
    pub fn lie(&self) {
        self.rest.borrow_mut().lies = true;
    }

    /// The power is cut.
    pub fn cut_power(&self) {
        if self.rest.borrow().lies {
            self.log.borrow_mut().records.clone_from(&self.durable.borrow());
        }
    }

    /// Everything on it is lost.
    pub fn lose(&self) {
        self.log.borrow_mut().records.clear();
        let mut rest = self.rest.borrow_mut();
        (rest.committed, rest.incarnation) = (None, 0);
    }

    /// A bit of one record flips.
    pub fn tear(&self, random: &mut Random) {
        let records = &mut self.log.borrow_mut().records;
        let count = records.len().max(1);
        if let Some(record) = records.values_mut().nth(random.below(count)) {
            let at = random.below(record.len());
            record[at] ^= 1 << random.below(8);
        }
    }

    /// It takes no writes, or takes them again.
    pub fn set_full(&self, full: bool) {
        self.log.borrow_mut().is_full = full;
    }

    /// Whether it takes no writes.
    pub fn is_full(&self) -> bool {
        self.log.borrow().is_full
    }

    /// The bytes of a record.
    pub fn record(&self, key: Key) -> Option<Vec<u8>> {
        self.log.borrow().records.get(&key).cloned()
    }

    /// The configuration that was committed last.
    pub fn committed(&self) -> Option<Committed> {
        self.rest.borrow().committed.clone()
    }

    /// Commits a configuration; says whether there was room.
    pub fn commit(&self, committed: Committed) -> bool {
        let fits = !self.is_full();
        if fits {
            self.rest.borrow_mut().committed = Some(committed);
        }
        fits
    }

    /// A number greater than all that were given before; a clock in seconds stands in where they are lost.
    pub fn next_incarnation(&self, seconds: u64) -> u32 {
        let mut rest = self.rest.borrow_mut();
        rest.incarnation = (seconds as u32).max(rest.incarnation + 1);
        rest.incarnation
    }
}
