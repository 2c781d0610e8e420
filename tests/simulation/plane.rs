//! A node's data plane in memory: the tables, the timer of the alive bits, and the stations.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::Arc;

use redirector::config::Config;
use redirector::dataplane::image::Image;
use redirector::dataplane::liveness::LivenessTables;
use redirector::dataplane::maps::MapsError;
use redirector::dataplane::memory::{MemoryFrame, MemoryTables};
use redirector::dataplane::registry::Registry;
use redirector::dataplane::rows;
use redirector_ebpf::abi::NODES;
use redirector_ebpf::hash::HashKey;
use redirector_ebpf::liveness::{Watching, round};
use redirector_ebpf::reason::Reason;
use redirector_ebpf::stations::{self, Journey};
use redirector_ebpf::sync::Word;
use redirector_ebpf::tables::liveness::{Condition, Heard, Latch, Pulse, Sent, Watch, Watched, link};
use redirector_ebpf::tables::names::kind;
use redirector_ebpf::tables::{AliveNodes, Pool, Row, Slot};
use suite::node;

use super::flaw::Flaw;

/// What the timer and the agent go by.
pub struct Board {
    watch: Cell<Watch>,
    alive: Cell<AliveNodes>,
    condition: Arc<Condition>,
    sent: Arc<[Sent]>,
    heard: Arc<[Heard]>,
    watched: Vec<Watched>,
    latches: Vec<Latch>,
    ways: Vec<Word>,
    pulse: Pulse,
}

impl LivenessTables for Board {
    fn watch(&self) -> Result<Watch, MapsError> {
        Ok(self.watch.get())
    }

    fn set_watch(&mut self, watch: &Watch) -> Result<(), MapsError> {
        self.watch.set(*watch);
        Ok(())
    }

    fn condition(&self) -> &Condition {
        &self.condition
    }

    fn sent(&self, node: u8, port: u8) -> &Sent {
        &self.sent[link(node, port) as usize]
    }

    fn heard(&self, node: u8, port: u8) -> &Heard {
        &self.heard[link(node, port) as usize]
    }

    fn latch(&self, node: u8) -> &Latch {
        &self.latches[usize::from(node)]
    }

    fn alive(&self) -> AliveNodes {
        self.alive.get()
    }

    fn watched(&self, row: usize) -> &Watched {
        &self.watched[row]
    }
}

/// The timer's look at the board, by the rules as they are.
struct Timer<'a>(&'a Board, Watch);

impl Watching for Timer<'_> {
    fn watch(&self) -> Option<&Watch> {
        Some(&self.1)
    }

    fn condition(&self) -> Option<&Condition> {
        Some(&self.0.condition)
    }

    fn pulse(&self) -> Option<&Pulse> {
        Some(&self.0.pulse)
    }

    fn watched(&self, index: u32) -> Option<&Watched> {
        self.0.watched.get(index as usize)
    }

    fn sent(&self, link: u32) -> Option<&Sent> {
        self.0.sent.get(link as usize)
    }

    fn heard(&self, link: u32) -> Option<&Heard> {
        self.0.heard.get(link as usize)
    }

    fn latch(&self, node: u8) -> Option<&Latch> {
        self.0.latches.get(usize::from(node))
    }

    fn way(&self, node: u8) -> Option<&Word> {
        self.0.ways.get(usize::from(node))
    }
}

/// A data plane.
pub struct Plane {
    /// The tables.
    pub tables: Steered,
    /// What liveness goes by.
    pub board: Board,
    me: u8,
}

/// The tables, as the agent writes slots and rows.
pub struct Steered {
    /// The tables that the stations ask.
    pub memory: MemoryTables,
    flaw: Flaw,
}

/// What a data plane made of a frame.
#[derive(Debug)]
pub struct Done {
    /// Why it left where it did.
    pub reason: Reason,
    /// What was found on the way.
    pub journey: Journey,
    /// The frame afterwards.
    pub bytes: Vec<u8>,
}

impl Plane {
    /// A data plane with empty tables, for a configuration.
    pub fn new(config: &Config, flaw: Flaw) -> Self {
        let mut memory = node::tables(config);
        memory.image = Image { node: memory.image.node, ports: memory.image.ports.clone(), ..Image::default() };
        memory.pools.clear();
        memory.tables.clear();
        if flaw == Flaw::Unmarked {
            memory.peer_macs.clear();
        }
        let board = Board {
            watch: Cell::default(),
            alive: Cell::default(),
            condition: memory.condition.clone(),
            sent: memory.sent.clone(),
            heard: memory.heard.clone(),
            watched: (0..NODES).map(|_| Watched::default()).collect(),
            latches: (0..NODES).map(|_| Latch::default()).collect(),
            ways: (0..NODES).map(|_| Word::default()).collect(),
            pulse: Pulse::default(),
        };
        Self { tables: Steered { memory, flaw }, board, me: config.node.id }
    }

    /// Takes a frame through the stations.
    pub fn run(&mut self, frame: &[u8], now: u64) -> Done {
        let tables = &self.tables.memory;
        tables.now.set(now);
        let (mut frame, mut journey) = (MemoryFrame::new(frame), Journey::default());
        let verdict = stations::run(&mut frame, tables, &mut journey);
        tables.counted.borrow_mut().clear();
        Done { reason: verdict.reason, journey, bytes: frame.bytes().to_vec() }
    }

    /// A round of the timer; gives the peers that it has turned off.
    pub fn tick(&mut self, now: u64) -> Vec<u8> {
        self.tables.memory.now.set(now);
        let watch = self.board.watch.get();
        self.tables.memory.watch = watch;
        let before = self.board.alive.get();
        let Some(words) = round(&Timer(&self.board, watch), now) else { return Vec::new() };
        let mut alive = AliveNodes { words };
        alive.set(self.me, true);
        if alive == before {
            return Vec::new();
        }
        self.board.alive.set(alive);
        self.tables.memory.image.alive = alive;
        let latched = |node: &u8| {
            let term = self.board.admission(*node).map_or(0, |(_, admission)| admission.term);
            term != 0 && self.board.latch(*node).term.load() == u64::from(term)
        };
        (1..=254).filter(|node| before.is_alive(*node) && !alive.is_alive(*node)).filter(latched).collect()
    }

    /// What the tables hold by name.
    pub fn registry(&self) -> Registry {
        self.tables.memory.image.registry.clone()
    }

    /// Puts an image into the tables.
    pub fn install(&mut self, image: &Image) {
        let memory = &mut self.tables.memory;
        let (slots, alive) = (std::mem::take(&mut memory.image.slots), memory.image.alive);
        memory.image = Image { slots, alive, ..image.clone() };
        rows::follow(&mut self.tables, image).expect("memory takes every write");
    }

    /// What this node calls a backend.
    pub fn backend(&self, id: u16) -> Option<&str> {
        self.tables.memory.image.registry.name(kind::BACKEND, u32::from(id))
    }

    /// The slots in force.
    pub fn slots(&self) -> &[Slot] {
        &self.tables.memory.image.slots
    }

    /// The rows in force, by names of pools and backends.
    pub fn rows(&self) -> BTreeMap<&str, Vec<(&str, &str, bool)>> {
        let memory = &self.tables.memory;
        let name = |id| self.backend(id).unwrap_or_default();
        let named = |row: &Row| (name(row.current()), name(row.previous()), row.disputed());
        let pool = |(&id, pool): (&u16, &Pool)| {
            let rows = memory.tables.get(&pool.table)?.iter().map(named).collect();
            Some((memory.image.registry.name(kind::POOL, u32::from(id))?, rows))
        };
        memory.pools.iter().filter_map(pool).collect()
    }

    /// Key of the flow hash.
    pub fn hash_key(&self) -> HashKey {
        self.tables.memory.image.node.hash_key
    }
}

impl rows::RowTables for Steered {
    fn slots(&self) -> Result<Vec<Slot>, MapsError> {
        self.memory.slots()
    }

    fn set_slots(&mut self, slots: &[Slot]) -> Result<(), MapsError> {
        if self.flaw == Flaw::StaleSlots && !self.memory.image.slots.is_empty() {
            return Ok(());
        }
        self.memory.set_slots(slots)
    }

    fn pool(&self, id: u16) -> Result<Pool, MapsError> {
        self.memory.pool(id)
    }

    fn rows(&self, pool: &Pool) -> Result<Vec<Row>, MapsError> {
        rows::RowTables::rows(&self.memory, pool)
    }

    fn set_rows(&mut self, id: u16, pool: Pool, rows: &[Row]) -> Result<(), MapsError> {
        self.memory.set_rows(id, pool, rows)
    }

    fn flows<'a>(&'a self, key: &'a HashKey) -> impl Iterator<Item = redirector::dataplane::flows::Flow> + 'a {
        rows::RowTables::flows(&self.memory, key)
    }

    fn now(&self) -> u64 {
        self.memory.now.get()
    }
}
