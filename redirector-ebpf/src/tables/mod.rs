//! What a node knows: the keys and values of its maps, and [`Tables`], the way in which the stations ask for them.
//!
//! Who writes what: everything here is written by the agent and only read by XDP, except flow entries, fragment decisions
//! and budgets (both sides, one whole word at a time) and counters (XDP). Values that are read without a lock are one word,
//! or immutable rows that a word points to, so that a reader never sees half of a change.

pub mod cell;
pub mod event;
pub mod flow;
pub mod leg;
pub mod liveness;
pub mod names;
pub mod path;
pub mod service;
pub mod signal;
pub mod trace;

use crate::abi::{NODES, RANKS};
use crate::hash::HashKey;
use crate::packet::{Address, Frame};
use crate::reason::Reason;
use crate::stations::neighbour::{self, Question};
use crate::stations::path::{least_bad, note, note_journey};
use crate::stations::suspect;
use crate::sync::Word;

pub use cell::Cells;
pub use flow::{Bucket, FragmentKey, Record4, Record6};
pub use leg::{LegHeard, LegRules, LegSent};
pub use liveness::{Condition, Heard, Sent, Watch};
pub use path::{Backend, NeighbourKey, Path, Port};
pub use service::{Pool, Row, Service, ServiceKey, Vip};
pub use signal::Signals;

/// What the stations ask. The XDP programs answer from maps, tests and `why` from memory.
pub trait Tables {
    /// This node.
    fn node(&self) -> Option<&Node>;
    /// The port that the packet came in by, and its number.
    fn ingress(&self) -> Option<(u8, &Port)>;
    /// A port by number.
    fn port(&self, number: u8) -> Option<&Port>;
    /// The services whose keys hash to this set of cells; see [`crate::hash::Toward::cells`].
    fn cells(&self, set: u32) -> Option<&Cells>;
    /// A word of the map of addresses that are listed: VIPs; see [`cell::listed`].
    fn listed(&self, word: u32) -> Option<u64>;
    /// The VIP that an address is, or the prefix that it is in.
    fn vip(&self, address: &Address, v6: bool) -> Option<Vip>;
    /// The service on an exact port.
    fn service(&self, key: &ServiceKey) -> Option<Service>;
    /// The service on the narrowest range of ports that holds `key.port`.
    fn service_range(&self, key: &ServiceKey) -> Option<Service>;
    /// A pool.
    fn pool(&self, id: u16) -> Option<&Pool>;
    /// A row of a pool's Maglev table.
    fn row(&self, table: u32, row: u32) -> Option<Row>;
    /// A slot of the slot table in force.
    fn slot(&self, slot: u32) -> Option<&Slot>;
    /// Who is alive.
    fn alive(&self) -> Option<&AliveNodes>;
    /// The way to another node.
    fn peer(&self, node: u8) -> Option<&Path>;
    /// The node that sends from this MAC address, if it is one's.
    fn peer_of_mac(&self, mac: u64) -> Option<Mark>;
    /// A backend.
    fn backend(&self, id: u16) -> Option<Backend>;
    /// A path.
    fn path(&self, id: u16) -> Option<&Path>;
    /// Whether a path is alive, as one of [`path::alive`].
    fn path_alive(&self, id: u16) -> u64;
    /// [`path::least_bad`](crate::stations::path::least_bad). A method, as [`Tables::hear`] is.
    fn least_bad(&self, paths: u64) -> u8
    where
        Self: Sized,
    {
        least_bad(self, paths)
    }
    /// The word of [`suspect::instead`], likewise.
    fn instead(&self, journey: &crate::stations::Journey) -> u64
    where
        Self: Sized,
    {
        suspect::instead(self, journey).word()
    }
    /// [`suspect::turn`], likewise.
    fn turn(&self, journey: &crate::stations::Journey, backend: u16) -> bool
    where
        Self: Sized,
    {
        suspect::turn(self, journey, backend)
    }
    /// The MAC address of a neighbour, as [`crate::packet::headers::Mac::word`] with [`path::RESOLVED`] set; 0: unknown.
    fn neighbour(&self, id: u32) -> u64;
    /// The number of the neighbour of this address on this interface, if it is one.
    fn neighbour_id(&self, key: &NeighbourKey) -> Option<u32>;
    /// Puts a neighbour's word in place.
    fn learn(&self, id: u32, mac: u64);
    /// Whether this node holds a VIP on the interface of this index, so that it answers for it there.
    fn holds(&self, vip: &Address, v6: bool, ifindex: u32) -> bool;
    /// [`neighbour::hear`]. A method, so that the programs can give it a function and a stack of its own.
    fn hear<F: Frame>(&self, frame: &mut F, port: &Port) -> Question
    where
        Self: Sized,
    {
        neighbour::hear(frame, self, port)
    }
    /// [`neighbour::advertise`], likewise.
    fn advertise<F: Frame>(&self, frame: &mut F, port: &Port) -> bool
    where
        Self: Sized,
    {
        neighbour::advertise(frame, port).is_some()
    }
    /// The MAC address over which the kernel would send to `address`, and the port: for answers to packets that came
    /// from another node, where the frame's own source leads back to that node.
    fn route(&self, address: &Address, v6: bool) -> Option<(u8, u64)>;
    /// A bucket of the flow table.
    fn bucket(&self, v6: bool, index: u32) -> Option<&Bucket>;
    /// Buckets of the flow table less one; their number is a power of two.
    fn bucket_mask(&self, v6: bool) -> u32;
    /// Keeps the whole tuple of a flow at the place that its entry has.
    fn keep_tuple(&self, v6: bool, index: u32, record: &flow::Record);
    /// Tells of a flow of this service, whose entry at that place this packet has made this one.
    fn tell_flow(&self, packet: &crate::packet::Packet, service: u16, index: u32, entry: flow::Entry);
    /// Has the memory of the whole tuple at that place brought near, for one that will be compared or kept there.
    fn touch_tuple(&self, _v6: bool, _index: u32) {}
    /// Whether the whole tuple at that place is this one.
    fn is_tuple(&self, v6: bool, index: u32, tuple: &crate::packet::Tuple) -> bool;
    /// The decision of a fragmented packet's first fragment; 0: unknown.
    fn fragment(&self, key: &FragmentKey) -> u64;
    /// Keeps the decision of a first fragment for the later ones.
    fn keep_fragment(&self, key: &FragmentKey, decision: u64);
    /// A budget of this CPU.
    fn budget(&self, budget: Budget) -> Option<&Word>;
    /// The new-flow budget of a source prefix, by a hash of it.
    fn source_budget(&self, cell: u32) -> Option<&Word>;
    /// Monotonic time in nanoseconds, as fine as a timer tick.
    fn now(&self) -> u64;
    /// The same time, with what entries of the flow table are stamped with; it may be a millisecond old.
    fn instant(&self) -> flow::Instant {
        flow::Instant::at(self.now())
    }
    /// By what rules peers are watched.
    fn watch(&self) -> Option<&Watch>;
    /// What this node says of itself.
    fn condition(&self) -> Option<&Condition>;
    /// What was sent on a link; see [`liveness::link`].
    fn sent(&self, link: u32) -> Option<&Sent>;
    /// What was heard on a link.
    fn heard(&self, link: u32) -> Option<&Heard>;
    /// By what rules paths are watched.
    fn leg_rules(&self) -> Option<&LegRules>;
    /// What was sent over a leg.
    fn leg_sent(&self, leg: u32) -> Option<&LegSent>;
    /// What was heard over a leg.
    fn leg_heard(&self, leg: u32) -> Option<&LegHeard>;
    /// What flows say of the path of this rank to a backend.
    fn signals(&self, backend: u16, rank: u8) -> Option<&Signals>;
    /// The cell in which a SYN is remembered.
    fn sighting(&self, cell: u32) -> Option<&Word>;
    /// [`path::note`](crate::stations::path::note). A method, as [`Tables::hear`] is.
    fn note(&self, bits: u64, backend: u16, rank: u8, tcp_flags: u8)
    where
        Self: Sized,
    {
        note(self, bits, backend, rank, tcp_flags);
    }
    /// [`path::note_journey`](crate::stations::path::note_journey), likewise.
    fn note_journey(&self, journey: &crate::stations::Journey)
    where
        Self: Sized,
    {
        note_journey(self, journey);
    }
    /// Monotonic time in nanoseconds, as fine as the clock is: for beats alone.
    fn fine_now(&self) -> u64;
    /// Tells what was decided, where `trace` asks for it.
    fn trace(&self, journey: &crate::stations::Journey);
    /// Counts a verdict.
    fn count(&self, reason: Reason);
    /// Counts a packet that was refused, by [`RefusedKey`].
    fn count_refused(&self, key: RefusedKey);
    /// Counts a packet and its bytes for a service.
    fn count_service(&self, service: u16, bytes: u64);
    /// Counts a packet and its bytes for a backend and the rank of the path taken.
    fn count_backend(&self, backend: u16, rank: u8, bytes: u64);
}

/// Budgets that each CPU keeps for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Budget {
    /// New flows that are admitted.
    NewFlows = 0,
    /// Entries put into the flow table.
    Inserts = 1,
    /// ICMP errors and resets sent from here.
    Replies = 2,
}

/// Why a packet of a service is refused that would be served else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Refusal {
    /// The shed level refuses new flows of its class.
    Level = 0,
    /// The shed level refuses all of its class, established flows too.
    Established = 1,
    /// More new flows on this CPU than its budget.
    NewFlows = 2,
    /// More new flows from its source prefix than its budget.
    Source = 3,
}

impl Refusal {
    /// All, by number.
    pub const ALL: [Self; 4] = [Self::Level, Self::Established, Self::NewFlows, Self::Source];

    /// The reason of the packet's verdict, where nobody is told.
    #[inline(always)]
    pub const fn reason(self) -> Reason {
        match self {
            Self::Level => Reason::Shed,
            Self::Established => Reason::ShedEstablished,
            Self::NewFlows => Reason::NewFlowBudget,
            Self::Source => Reason::SourceBudget,
        }
    }
}

/// By what refused packets are counted: service, class, and why, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct RefusedKey(pub u32);

impl RefusedKey {
    /// The key of these.
    #[inline(always)]
    pub const fn new(service: u16, class: u8, why: Refusal) -> Self {
        Self(service as u32 | (class as u32) << 16 | (why as u32) << 24)
    }

    /// The key of a packet that was refused.
    #[inline(always)]
    pub fn of(journey: &crate::stations::Journey) -> Self {
        let (service, class) = match &journey.service {
            Some(service) => (service.id, crate::stations::admit::class(service, &journey.packet)),
            None => (0, 0),
        };
        Self(service as u32 | (class as u32) << 16 | (journey.refused as u32).wrapping_sub(1) << 24)
    }

    /// Service, class, and why.
    pub const fn parts(self) -> (u16, u8, Refusal) {
        (self.0 as u16, (self.0 >> 16) as u8, Refusal::ALL[(self.0 >> 24) as usize & 3])
    }
}

/// Number of [`Budget`]s.
pub const BUDGETS: u32 = 3;

/// What this node is. Written when the data plane is loaded and when limits or `trace` change.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// Keys of the flow hash.
    pub hash_key: HashKey,
    /// Key of the tags between nodes.
    pub tag_key: [u64; 2],
    /// The IPv4 address at which this node takes packets from other nodes; zero: none.
    pub hop4: Address,
    /// Likewise IPv6.
    pub hop6: Address,
    /// The cluster.
    pub cluster: u32,
    /// Slots less one.
    pub slot_mask: u32,
    /// New flows a second admitted on each CPU; 0: no limit.
    pub new_flows: u32,
    /// New flows a second admitted from each source prefix on each node; 0: no limit.
    pub new_flows_per_source: u32,
    /// Entries a second put into the flow table by each CPU; 0: no limit.
    pub inserts: u32,
    /// ICMP errors and resets a second sent by each CPU.
    pub replies: u32,
    /// Idle seconds after which an entry may go, by [`flow::State`].
    pub idle: [u16; 8],
    /// This node's id.
    pub id: u8,
    /// Present shed level, 0..=3. The timer lowers it, too: see [`crate::liveness::shed_level`].
    pub shed_level: u8,
    /// What is told of packets that match the trace filter: one of the constants of [`trace::switch`].
    pub trace: u8,
    /// Whether any VIP is a prefix; if not, the prefix look-up is spared.
    pub prefixes: u8,
    /// 1: changes of flows are told of, since other nodes are to have copies of them.
    pub tells_flows: u8,
    /// 1: who is refused is told so by a reset or port unreachable.
    pub tells_refused: u8,
    /// The shed level that holds at least, whatever the load.
    pub shed_least: u8,
    /// Zero.
    pub pad: u8,
}

impl Node {
    /// Whether new flows are asked anything at all.
    #[inline(always)]
    pub fn limits_new_flows(&self) -> bool {
        self.shed_level != 0 || self.new_flows != 0 || self.new_flows_per_source != 0
    }
}

/// One slot: who owns the flows that hash into it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slot {
    /// Nodes by rank: primary, secondary, two more; 0: none.
    pub ranks: [u8; RANKS],
    /// The owner before the last change, while flows of its may still be unknown to the new one; 0: none.
    pub previous: u8,
    /// Zero.
    pub pad: [u8; 3],
    /// Log index of the last change.
    pub version: u64,
}

/// The alive bits of all nodes, by id.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AliveNodes {
    /// 64 nodes a word.
    pub words: [u64; NODES / 64],
}

impl AliveNodes {
    /// Whether a node's bit is set.
    #[inline(always)]
    pub fn is_alive(&self, node: u8) -> bool {
        let word = match node >> 6 {
            0 => self.words[0],
            1 => self.words[1],
            2 => self.words[2],
            _ => self.words[3],
        };
        word >> (node & 63) & 1 == 1
    }

    /// Sets or clears a node's bit.
    pub fn set(&mut self, node: u8, alive: bool) {
        let (word, bit) = (usize::from(node) / 64, 1u64 << (node % 64));
        if alive { self.words[word] |= bit } else { self.words[word] &= !bit }
    }
}

/// Where a packet comes from within the cluster, as the packet itself says it: a node id, and bit 8 for final; 0: from
/// outside. The receiver of a final packet keeps it, whatever its tables say; another forwarded one it may hand on once,
/// to the slot's previous owner.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Mark(pub u32);

impl Mark {
    /// From outside.
    pub const NONE: Self = Self(0);
    const FINAL: u32 = 0x100;

    /// Forwarded by this node.
    #[inline(always)]
    pub const fn forwarded(node: u8) -> Self {
        Self(node as u32)
    }

    /// Forwarded by this node, to be kept.
    #[inline(always)]
    pub const fn kept(node: u8) -> Self {
        Self(node as u32 | Self::FINAL)
    }

    /// The node that sent it; 0: none.
    #[inline(always)]
    pub const fn sender(self) -> u8 {
        self.0 as u8
    }

    /// Whether it comes from outside.
    #[inline(always)]
    pub const fn is_none(self) -> bool {
        self.0 == 0
    }

    /// Whether its receiver must keep it.
    #[inline(always)]
    pub const fn is_final(self) -> bool {
        self.0 & Self::FINAL != 0
    }
}

/// A packet and byte count.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Packets.
    pub packets: u64,
    /// Bytes of IP, without link-layer headers.
    pub bytes: u64,
}

macro_rules! no_padding {
    ($($name:ty = $size:expr),* $(,)?) => {$(
        const _: () = assert!(core::mem::size_of::<$name>() == $size, "implicit padding would leak into map keys");
        // SAFETY: `repr(C)` integers whose sizes sum up to the whole, asserted above.
        #[cfg(feature = "user")]
        unsafe impl aya::Pod for $name {}
    )*};
}
pub(crate) use no_padding;

no_padding! {
    Node = 96 + 16 + 32 + 4 * 6 + 16 + 4 + 4,
    Slot = 16,
    AliveNodes = 32,
    Traffic = 16,
    Address = 16,
}
