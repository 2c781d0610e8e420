//! What the timer of the alive bits looks at, in ordinary memory.

use redirector_ebpf::abi::NODES;
use redirector_ebpf::liveness::Watching;
use redirector_ebpf::sync::Word;
use redirector_ebpf::tables::liveness::{Condition, Heard, LINKS, Latch, Pulse, Sent, Watch, Watched};

/// What the timer has in its maps, for every node.
pub struct Maps {
    /// The rules.
    pub watch: Watch,
    /// This node's own condition.
    pub condition: Condition,
    /// The timer's state.
    pub pulse: Pulse,
    /// The peers.
    pub watched: Vec<Watched>,
    /// What was sent, by link.
    pub sent: Vec<Sent>,
    /// What was heard, by link.
    pub heard: Vec<Heard>,
    /// The verdicts, by node.
    pub latches: Vec<Latch>,
    /// The ports that packets leave by, by node.
    pub ways: Vec<Word>,
}

impl Maps {
    /// Maps in which nothing stands but these rules.
    pub fn new(watch: Watch) -> Self {
        Self {
            watch,
            condition: Condition::default(),
            pulse: Pulse::default(),
            watched: (0..NODES).map(|_| Watched::default()).collect(),
            sent: (0..LINKS).map(|_| Sent::default()).collect(),
            heard: (0..LINKS).map(|_| Heard::default()).collect(),
            latches: (0..NODES).map(|_| Latch::default()).collect(),
            ways: (0..NODES).map(|_| Word::default()).collect(),
        }
    }
}

impl Watching for Maps {
    fn watch(&self) -> Option<&Watch> {
        Some(&self.watch)
    }

    fn condition(&self) -> Option<&Condition> {
        Some(&self.condition)
    }

    fn pulse(&self) -> Option<&Pulse> {
        Some(&self.pulse)
    }

    fn watched(&self, index: u32) -> Option<&Watched> {
        self.watched.get(index as usize)
    }

    fn sent(&self, link: u32) -> Option<&Sent> {
        self.sent.get(link as usize)
    }

    fn heard(&self, link: u32) -> Option<&Heard> {
        self.heard.get(link as usize)
    }

    fn latch(&self, node: u8) -> Option<&Latch> {
        self.latches.get(usize::from(node))
    }

    fn way(&self, node: u8) -> Option<&Word> {
        self.ways.get(usize::from(node))
    }
}
