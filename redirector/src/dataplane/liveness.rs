//! What beats and the timer go by, as the agent reads and writes it, and the maps that it is kept in. They are mapped into
//! memory: the sender writes them every few milliseconds without a call.

use std::path::Path as FilePath;

use aya::maps::{Array, MapData};
use redirector_ebpf::abi::NODES;
use redirector_ebpf::sync::Word;
use redirector_ebpf::tables::AliveNodes;
use redirector_ebpf::tables::liveness::{Admission, Condition, Heard, LINKS, Latch, Pulse, Sent, Watch, Watched, link};

use super::mapped::Mapped;
use super::maps::{MapsError, open_array, read, written};

/// What beats and the timer go by, and what they leave behind, wherever it is kept.
pub trait LivenessTables {
    /// The rules.
    ///
    /// # Errors
    /// [`MapsError::Use`].
    fn watch(&self) -> Result<Watch, MapsError>;

    /// Changes the rules.
    ///
    /// # Errors
    /// [`MapsError::Use`].
    fn set_watch(&mut self, watch: &Watch) -> Result<(), MapsError>;

    /// What this node says of itself.
    fn condition(&self) -> &Condition;

    /// What was sent to a node over a port.
    fn sent(&self, node: u8, port: u8) -> &Sent;

    /// What was heard of a node over a port.
    fn heard(&self, node: u8, port: u8) -> &Heard;

    /// The verdict on a node.
    fn latch(&self, node: u8) -> &Latch;

    /// The alive bits.
    fn alive(&self) -> AliveNodes;

    /// A row of the list of peers.
    fn watched(&self, row: usize) -> &Watched;

    /// What stands in the list for a node.
    fn admission(&self, node: u8) -> Option<(usize, Admission)> {
        let rows = (0..NODES).map(|row| (row, Admission::of(self.watched(row).word.load())));
        rows.take_while(|(row, _)| *row < NODES).find(|(_, row)| row.node == node && node != 0)
    }

    /// Whether a node was let in, and the timer has not turned it off since. The alive bit follows with the next round.
    fn is_admitted(&self, node: u8) -> bool {
        let term = self.admission(node).map_or(0, |(_, admission)| u64::from(admission.term));
        term != 0 && self.latch(node).term.load() != term
    }

    /// Makes the list hold these nodes, each reached over its ports, of which packets prefer the one that is named. Who is in
    /// it already keeps row and term. Says how many rows count.
    fn list(&self, nodes: &[(u8, u16, u8)]) -> u32 {
        for row in 0..NODES {
            let present = Admission::of(self.watched(row).word.load());
            if present.node != 0 && !nodes.iter().any(|(node, ..)| *node == present.node) {
                self.watched(row).word.store(0);
            }
        }
        for &(node, ports, first) in nodes {
            let free = || (0..NODES).find(|row| self.watched(*row).word.load() == 0);
            let present = self.admission(node);
            let Some(row) = present.map(|(row, _)| row).or_else(free) else { continue };
            let term = present.map_or(0, |(_, admission)| admission.term);
            self.watched(row).word.store(Admission { node, ports, first, term }.word());
        }
        (0..NODES).rev().find(|row| self.watched(*row).word.load() != 0).map_or(0, |row| row as u32 + 1)
    }

    /// Lets a node be alive, by a new term, as this incarnation; or, without one, not.
    fn admit(&self, node: u8, incarnation: Option<u32>) {
        let Some((row, admission)) = self.admission(node) else { return };
        let place = self.watched(row);
        let term = match incarnation {
            None => 0,
            Some(incarnation) => {
                place.incarnation.store(u64::from(incarnation));
                // A term that was latched before must not come again, nor 0.
                (self.latch(node).term.load() as u32).max(admission.term).wrapping_add(1).max(1)
            }
        };
        place.word.store(Admission { term, ..admission }.word());
    }
}

/// The maps.
pub struct LivenessMaps {
    watch: Array<MapData, Watch>,
    condition: Mapped<Condition>,
    sent: Mapped<Sent>,
    heard: Mapped<Heard>,
    watched: Mapped<Watched>,
    latches: Mapped<Latch>,
    pulse: Mapped<Pulse>,
    alive: Mapped<[Word; 4]>,
}

impl LivenessMaps {
    /// Maps what is pinned in `directory`.
    ///
    /// # Errors
    /// [`MapsError`], also where a map is smaller than this version's.
    pub fn open(directory: &FilePath) -> Result<Self, MapsError> {
        Ok(Self {
            watch: open_array(directory, "WATCH")?,
            condition: Mapped::of_size(directory, "CONDITION", 1)?,
            sent: Mapped::of_size(directory, "SENT", LINKS)?,
            heard: Mapped::of_size(directory, "HEARD", LINKS)?,
            watched: Mapped::of_size(directory, "WATCHED", NODES)?,
            latches: Mapped::of_size(directory, "LATCHES", NODES)?,
            pulse: Mapped::of_size(directory, "PULSE", 1)?,
            alive: Mapped::of_size(directory, "ALIVE", 1)?,
        })
    }

    /// The timer's account of itself.
    pub fn pulse(&self) -> &Pulse {
        self.pulse.shared(0)
    }
}

impl LivenessTables for LivenessMaps {
    fn watch(&self) -> Result<Watch, MapsError> {
        self.watch.get(&0, 0).map_err(read("WATCH"))
    }

    fn set_watch(&mut self, watch: &Watch) -> Result<(), MapsError> {
        self.watch.set(0, watch, 0).map_err(written("WATCH"))
    }

    fn condition(&self) -> &Condition {
        self.condition.shared(0)
    }

    fn sent(&self, node: u8, port: u8) -> &Sent {
        self.sent.shared(link(node, port) as usize)
    }

    fn heard(&self, node: u8, port: u8) -> &Heard {
        self.heard.shared(link(node, port) as usize)
    }

    fn latch(&self, node: u8) -> &Latch {
        self.latches.shared(usize::from(node))
    }

    fn alive(&self) -> AliveNodes {
        AliveNodes { words: std::array::from_fn(|at| self.alive.shared(0)[at].load()) }
    }

    fn watched(&self, row: usize) -> &Watched {
        self.watched.shared(row)
    }
}
