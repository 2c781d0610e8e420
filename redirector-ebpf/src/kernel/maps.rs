//! The maps. Each says who writes it. Sizes are overridden when the maps are made; the numbers here are the defaults.

use aya_ebpf::Global;
use aya_ebpf::bindings::bpf_fib_lookup;
use aya_ebpf::btf_maps::{
    Array, ArrayOfMaps, DevMap, HashMap, LpmTrie, LruHashMap, PerCpuArray, PerCpuHashMap, ProgramArray, RingBuf,
};
use aya_ebpf::macros::btf_map;
use redirector_ebpf::abi::{NODES, PORTS as PORT_COUNT, SOURCE_CELLS};
use redirector_ebpf::decap::Settings;
use redirector_ebpf::packet::Address;
use redirector_ebpf::stations::Journey;
use redirector_ebpf::sync::Word;
use redirector_ebpf::tables::cell::{Cells, LISTED_WORDS, SETS};
use redirector_ebpf::tables::event::FlowEvent;
use redirector_ebpf::tables::leg::{LEGS, LegHeard, LegRules, LegSent};
use redirector_ebpf::tables::liveness::{Condition, Heard, LINKS, Latch, Pulse, Sent, Watch, Watched};
use redirector_ebpf::tables::names::{Name, NameKey};
use redirector_ebpf::tables::signal::SIGHTINGS as CELLS_OF_SYNS;
use redirector_ebpf::tables::trace::{Captured, TraceFilter, Traced};
use redirector_ebpf::tables::{
    AliveNodes, BUDGETS as BUDGET_COUNT, Backend, Bucket, FragmentKey, NeighbourKey, Node, Path, Pool, Port, Record4,
    Record6, Row, Service, ServiceKey, Signals, Slot, Traffic, Vip,
};

use super::timer::Clock;

const NO_PREALLOC: usize = 1;
const INNER_MAP: usize = 1 << 12;
const MMAPABLE: usize = 1 << 10;
/// Of tables that are replaced whole: of any length, and read and written by mapping them, which takes thousands of entries
/// a fiftieth of the time that calls take.
const WHOLE: usize = INNER_MAP | MMAPABLE;

/// The number of the port that this instance of the program is attached to; set when it is loaded.
#[unsafe(no_mangle)]
pub(crate) static PORT: Global<u32> = Global::new(0);

/// Buckets of the IPv4 flow table less one; set when the program is loaded.
#[unsafe(no_mangle)]
pub(crate) static BUCKET_MASK4: Global<u32> = Global::new((1 << 17) - 1);

/// Buckets of the IPv6 flow table less one; set when the program is loaded.
#[unsafe(no_mangle)]
pub(crate) static BUCKET_MASK6: Global<u32> = Global::new((1 << 15) - 1);

/// This node. Agent.
#[btf_map]
pub(crate) static NODE: Array<Node, 1> = Array::new();

/// The programs that take over the packets that do not go the short way, by port. Whoever loads.
#[btf_map]
pub(crate) static PROGRAMS: ProgramArray<PORT_COUNT> = ProgramArray::new();

/// Attached interfaces. Agent.
#[btf_map]
pub(crate) static PORTS: Array<Port, PORT_COUNT> = Array::new();

/// The same interfaces, for redirects. Agent.
#[btf_map]
pub(crate) static DEVICES: DevMap<PORT_COUNT> = DevMap::new();

/// Numbers of ports by interface index. Agent.
#[btf_map]
pub(crate) static PORT_NUMBERS: HashMap<u32, u32, PORT_COUNT, NO_PREALLOC> = HashMap::new();

/// IPv4 VIPs. Agent.
#[btf_map]
pub(crate) static VIPS4: HashMap<u32, Vip, 4096, NO_PREALLOC> = HashMap::new();

/// IPv6 VIPs. Agent.
#[btf_map]
pub(crate) static VIPS6: HashMap<Address, Vip, 4096, NO_PREALLOC> = HashMap::new();

/// IPv4 VIP prefixes. Agent.
#[btf_map]
pub(crate) static PREFIXES4: LpmTrie<u32, Vip, 1024> = LpmTrie::new();

/// IPv6 VIP prefixes. Agent.
#[btf_map]
pub(crate) static PREFIXES6: LpmTrie<[u32; 4], Vip, 1024> = LpmTrie::new();

/// The short way to services on one port of one address, replaced whole. Agent.
#[btf_map]
pub(crate) static CELLS: ArrayOfMaps<Array<Cells, SETS>, 1> = ArrayOfMaps::new();

/// Bits of the addresses that are VIPs, by a hash of them. Agent.
#[btf_map]
pub(crate) static LISTED: Array<u64, LISTED_WORDS> = Array::new();

/// Services on one port. Agent.
#[btf_map]
pub(crate) static SERVICES: HashMap<ServiceKey, Service, 16384, NO_PREALLOC> = HashMap::new();

/// Services on ranges of ports, as prefixes of keys. Agent.
#[btf_map]
pub(crate) static RANGES: LpmTrie<[u32; 2], Service, 65536> = LpmTrie::new();

/// Pools. Agent.
#[btf_map]
pub(crate) static POOLS: Array<Pool, 1024> = Array::new();

/// Maglev tables, replaced whole. Agent.
#[btf_map]
pub(crate) static POOL_TABLES: ArrayOfMaps<Array<Row, 1, WHOLE>, 2048> = ArrayOfMaps::new();

/// The slot table in force, replaced whole. Agent.
#[btf_map]
pub(crate) static SLOTS: ArrayOfMaps<Array<Slot, 1, WHOLE>, 1> = ArrayOfMaps::new();

/// Alive bits of nodes. The timer; the agent before it is started.
#[btf_map]
pub(crate) static ALIVE: Array<AliveNodes, 1, MMAPABLE> = Array::new();

/// By what rules peers are watched. Agent.
#[btf_map]
pub(crate) static WATCH: Array<Watch, 1> = Array::new();

/// What this node says of itself in beats. Agent.
#[btf_map]
pub(crate) static CONDITION: Array<Condition, 1, MMAPABLE> = Array::new();

/// Requests sent, by link. Agent.
#[btf_map]
pub(crate) static SENT: Array<Sent, LINKS, MMAPABLE> = Array::new();

/// What was heard, by link. XDP.
#[btf_map]
pub(crate) static HEARD: Array<Heard, LINKS, MMAPABLE> = Array::new();

/// The peers that are watched, in a list. Agent.
#[btf_map]
pub(crate) static WATCHED: Array<Watched, NODES, MMAPABLE> = Array::new();

/// Verdicts on nodes, by id. The timer.
#[btf_map]
pub(crate) static LATCHES: Array<Latch, NODES, MMAPABLE> = Array::new();

/// The timer's state. The timer.
#[btf_map]
pub(crate) static PULSE: Array<Pulse, 1, MMAPABLE> = Array::new();

/// The timer. It stops when this map goes.
#[btf_map]
pub(crate) static CLOCK: Array<Clock, 1> = Array::new();

/// Ways to the other nodes, by link. Agent.
#[btf_map]
pub(crate) static PEERS: Array<Path, LINKS> = Array::new();

/// The port of the way that is taken to a node, by its id. The timer; the agent, where it names no way.
#[btf_map]
pub(crate) static WAYS: Array<Word, NODES, MMAPABLE> = Array::new();

/// Marks that source MAC addresses are. Agent.
#[btf_map]
pub(crate) static PEER_MACS: HashMap<u64, u32, 1024, NO_PREALLOC> = HashMap::new();

/// Backends, by id. Agent.
#[btf_map]
pub(crate) static BACKENDS: Array<Backend, 8192> = Array::new();

/// Paths, by id. Immutable rows. Agent.
#[btf_map]
pub(crate) static PATHS: Array<Path, 16384> = Array::new();

/// Alive bits of paths, a word each. The timer, where paths are watched; the agent for paths that are new.
#[btf_map]
pub(crate) static PATH_ALIVE: Array<Word, 16384, MMAPABLE> = Array::new();

/// By what rules paths are watched. Agent.
#[btf_map]
pub(crate) static LEG_RULES: Array<LegRules, 1> = Array::new();

/// Requests sent to far ends, by leg. Agent.
#[btf_map]
pub(crate) static LEG_SENT: Array<LegSent, LEGS, MMAPABLE> = Array::new();

/// What was heard from far ends, by leg. XDP.
#[btf_map]
pub(crate) static LEG_HEARD: Array<LegHeard, LEGS, MMAPABLE> = Array::new();

/// The paths that are watched, in a list. Agent.
#[btf_map]
pub(crate) static WATCHED_PATHS: Array<Word, 16384, MMAPABLE> = Array::new();

/// Verdicts on paths, by id. The timer.
#[btf_map]
pub(crate) static PATH_LATCHES: Array<Latch, 16384, MMAPABLE> = Array::new();

/// What flows say of paths, by backend and rank; the fourth is unused. XDP.
#[btf_map]
pub(crate) static SIGNALS: Array<[Signals; 4], 8192, MMAPABLE> = Array::new();

/// SYNs that were seen: [`redirector_ebpf::tables::signal::Sighting`]. XDP.
#[btf_map]
pub(crate) static SIGHTINGS: Array<Word, CELLS_OF_SYNS> = Array::new();

/// MAC addresses of neighbours, whole words. Agent, and XDP from the answers that it sees: the last one counts.
#[btf_map]
pub(crate) static NEIGHBOURS: Array<u64, 4096> = Array::new();

/// Numbers of neighbours by address and interface. Agent.
#[btf_map]
pub(crate) static NEIGHBOUR_IDS: HashMap<NeighbourKey, u32, 4096, NO_PREALLOC> = HashMap::new();

/// IPv4 VIPs that this node holds, with the index of the interface on which it answers ARP for them. Agent.
#[btf_map]
pub(crate) static HELD4: HashMap<u32, u32, 4096, NO_PREALLOC> = HashMap::new();

/// Likewise IPv6 and neighbour discovery. Agent.
#[btf_map]
pub(crate) static HELD6: HashMap<Address, u32, 4096, NO_PREALLOC> = HashMap::new();

/// The IPv4 flow table. XDP, and the agent for flows of other nodes and expired ones.
#[btf_map]
pub(crate) static FLOWS4: Array<Bucket, { 1 << 17 }, MMAPABLE> = Array::new();

/// The IPv6 flow table, likewise.
#[btf_map]
pub(crate) static FLOWS6: Array<Bucket, { 1 << 15 }, MMAPABLE> = Array::new();

/// Whole tuples beside the entries of `FLOWS4`.
#[btf_map]
pub(crate) static TUPLES4: Array<Record4, { 1 << 20 }, MMAPABLE> = Array::new();

/// Whole tuples beside the entries of `FLOWS6`.
#[btf_map]
pub(crate) static TUPLES6: Array<Record6, { 1 << 18 }, MMAPABLE> = Array::new();

/// Changes of flows, on their way to the agent that tells other nodes. XDP.
#[btf_map]
pub(crate) static FLOW_EVENTS: RingBuf<FlowEvent, { 1 << 21 }> = RingBuf::new();

/// Decisions for fragmented packets. XDP.
#[btf_map]
pub(crate) static FRAGMENTS: LruHashMap<FragmentKey, u64, 8192> = LruHashMap::new();

/// Budgets of each CPU. XDP.
#[btf_map]
pub(crate) static BUDGETS: PerCpuArray<u64, { BUDGET_COUNT as usize }> = PerCpuArray::new();

/// Budgets of new flows by a hash of the source prefix. XDP.
#[btf_map]
pub(crate) static SOURCES: Array<u64, SOURCE_CELLS> = Array::new();

/// What is being found about the packet in hand. XDP; of no meaning between packets.
#[btf_map]
pub(crate) static JOURNEY: PerCpuArray<Journey, 1> = PerCpuArray::new();

/// A decision on its way into the log. XDP; of no meaning between packets.
#[btf_map]
pub(crate) static TRACED: PerCpuArray<Traced, 1> = PerCpuArray::new();

/// Packets on their way to `trace --pcap`. XDP.
#[btf_map]
pub(crate) static CAPTURED: RingBuf<Captured, { 1 << 20 }> = RingBuf::new();

/// Parameters of a look-up in the kernel's routes. XDP; of no meaning between packets.
#[btf_map]
pub(crate) static ROUTE: PerCpuArray<bpf_fib_lookup, 1> = PerCpuArray::new();

/// Packets by reason. XDP.
#[btf_map]
pub(crate) static REASONS: PerCpuArray<u64, 128> = PerCpuArray::new();

/// Refused packets by service, class, and why: [`redirector_ebpf::tables::RefusedKey`]. XDP.
#[btf_map]
pub(crate) static REFUSED: PerCpuHashMap<u32, u64, 16384, NO_PREALLOC> = PerCpuHashMap::new();

/// Packets and bytes by service. XDP.
#[btf_map]
pub(crate) static SERVICE_TRAFFIC: PerCpuArray<Traffic, 16384> = PerCpuArray::new();

/// Packets and bytes by backend and rank of the path; the fourth is unused. XDP.
#[btf_map]
pub(crate) static BACKEND_TRAFFIC: PerCpuArray<[Traffic; 4], 8192> = PerCpuArray::new();

/// What numbers are called, so that whoever reads the maps needs no agent. Agent.
#[btf_map]
pub(crate) static NAMES: HashMap<NameKey, Name, 65536, NO_PREALLOC> = HashMap::new();

/// What `trace` asks for. `trace`.
#[btf_map]
pub(crate) static TRACE: Array<TraceFilter, 1> = Array::new();

/// Of the decap program: sources whose tunnels are taken, as IPv6 or IPv4-mapped prefixes. `decap`.
#[btf_map]
pub(crate) static DECAP_SOURCES: LpmTrie<[u32; 4], u32, 4096> = LpmTrie::new();

/// Of the decap program: VIPs and prefixes of VIPs of this host, likewise. `decap`.
#[btf_map]
pub(crate) static DECAP_VIPS: LpmTrie<[u32; 4], u32, 4096> = LpmTrie::new();

/// Of the decap program: who the backend is. `decap`.
#[btf_map]
pub(crate) static DECAP: Array<Settings, 1> = Array::new();
