//! The maps of paths' health, mapped into memory: the sender writes them every few milliseconds without a call.

use std::path::Path as FilePath;

use aya::maps::{Array, MapData};
use redirector_ebpf::sync::Word;
use redirector_ebpf::tables::leg::{LEGS, LegHeard, LegRules, LegSent, PathAdmission};
use redirector_ebpf::tables::liveness::Latch;
use redirector_ebpf::tables::path::alive;
use redirector_ebpf::tables::signal::{Sighting, Signals};

use super::mapped::Mapped;
use super::maps::{MapsError, open_array, read, written};
use crate::paths::signals::Counts;

/// What beats to far ends and the timer go by, and what they leave behind.
pub struct PathMaps {
    rules: Array<MapData, LegRules>,
    sent: Mapped<LegSent>,
    heard: Mapped<LegHeard>,
    watched: Mapped<Word>,
    latches: Mapped<Latch>,
    bits: Mapped<Word>,
    signals: Mapped<[Signals; 4]>,
    sightings: Array<MapData, u64>,
}

impl PathMaps {
    /// Maps what is pinned in `directory`.
    ///
    /// # Errors
    /// [`MapsError`], also where a map is smaller than this version's.
    pub fn open(directory: &FilePath) -> Result<Self, MapsError> {
        Ok(Self {
            rules: open_array(directory, "LEG_RULES")?,
            sent: Mapped::of_size(directory, "LEG_SENT", LEGS)?,
            heard: Mapped::of_size(directory, "LEG_HEARD", LEGS)?,
            watched: Mapped::open(directory, "WATCHED_PATHS")?,
            latches: Mapped::open(directory, "PATH_LATCHES")?,
            bits: Mapped::open(directory, "PATH_ALIVE")?,
            signals: Mapped::open(directory, "SIGNALS")?,
            sightings: open_array(directory, "SIGHTINGS")?,
        })
    }

    /// The rules.
    ///
    /// # Errors
    /// [`MapsError::Use`].
    pub fn rules(&self) -> Result<LegRules, MapsError> {
        self.rules.get(&0, 0).map_err(read("LEG_RULES"))
    }

    /// Changes the rules.
    ///
    /// # Errors
    /// [`MapsError::Use`].
    pub fn set_rules(&mut self, rules: &LegRules) -> Result<(), MapsError> {
        self.rules.set(0, rules, 0).map_err(written("LEG_RULES"))
    }

    /// What was sent over a leg.
    pub fn sent(&self, leg: u16) -> &LegSent {
        self.sent.shared(usize::from(leg))
    }

    /// What was heard over a leg.
    pub fn heard(&self, leg: u16) -> &LegHeard {
        self.heard.shared(usize::from(leg))
    }

    /// The verdict on a path.
    pub fn latch(&self, path: u16) -> &Latch {
        self.latches.shared(usize::from(path))
    }

    /// Whether a path's alive bit is set.
    pub fn is_alive(&self, path: u16) -> bool {
        self.bits.shared(usize::from(path)).load() == alive::ON
    }

    /// What the flows of the path of this rank to a backend have said since the data plane was loaded.
    pub fn signals(&self, backend: u16, rank: u8) -> Counts {
        let of_rank = &self.signals.shared(usize::from(backend))[usize::from(rank & 3)];
        Counts { opened: of_rank.opened.load(), again: of_rank.again.load(), resets: of_rank.resets.load() }
    }

    /// SYNs that are remembered, by cell.
    pub fn sightings(&self) -> impl Iterator<Item = Result<(u32, Sighting), MapsError>> + '_ {
        let sightings = (0..).zip(self.sightings.iter());
        sightings.map(|(cell, word)| Ok((cell, Sighting::from(word.map_err(read("SIGHTINGS"))?))))
    }

    /// Rows that the list of paths has room for.
    pub fn rows(&self) -> usize {
        self.watched.count
    }

    /// A row of the list of paths.
    pub fn admission(&self, row: usize) -> PathAdmission {
        PathAdmission::of(self.watched.shared(row).load())
    }

    /// Puts a row of the list in place.
    pub fn set_admission(&self, row: usize, admission: PathAdmission) {
        self.watched.shared(row).store(admission.word());
    }

    /// A term that was not latched, and is none of the path's former ones.
    pub fn next_term(&self, path: u16, last: u32) -> u32 {
        (self.latch(path).term.load() as u32).max(last).wrapping_add(1).max(1)
    }
}
