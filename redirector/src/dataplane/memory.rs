//! The tables in ordinary memory: what `why` asks, and what tests hold the compiled program against.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use redirector_ebpf::abi::SOURCE_CELLS;
use redirector_ebpf::hash::HashKey;
use redirector_ebpf::packet::{Address, Frame, Head, HeadMut, Packet, Tuple, Wire};
use redirector_ebpf::reason::Reason;
use redirector_ebpf::stations::Journey;
use redirector_ebpf::sync::Word;
use redirector_ebpf::tables::event::FlowEvent;
use redirector_ebpf::tables::flow::{Entry, Record, WAYS};
use redirector_ebpf::tables::leg::{LegHeard, LegRules, LegSent};
use redirector_ebpf::tables::liveness::{Condition, Heard, LINKS, Sent, Watch};
use redirector_ebpf::tables::path::{RESOLVED, alive};
use redirector_ebpf::tables::signal::SIGHTINGS;
use redirector_ebpf::tables::{
    AliveNodes, BUDGETS, Backend, Bucket, Budget, Cells, FragmentKey, Mark, NeighbourKey, Node, Path, Pool, Port,
    RefusedKey, Row, Service, ServiceKey, Signals, Slot, Tables, Vip,
};

use super::address::ip;
use super::flows::{Flow, FlowTables};
use super::image::Image;
use super::maps::MapsError;
use super::rows::RowTables;
use super::shortcuts::Shortcuts;

/// A packet in a vector, with room before it as a driver leaves it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryFrame {
    bytes: Vec<u8>,
    start: usize,
}

/// Legs of tables in memory: nobody has more there.
const LEGS_HERE: usize = 16;

/// Backends of tables in memory, likewise.
const BACKENDS_HERE: usize = 64;

/// Room before a packet (the kernel's `XDP_PACKET_HEADROOM`).
const HEADROOM: usize = 256;

impl MemoryFrame {
    /// A frame of these bytes.
    pub fn new(packet: &[u8]) -> Self {
        let mut bytes = vec![0; HEADROOM];
        bytes.extend_from_slice(packet);
        Self { bytes, start: HEADROOM }
    }

    /// The packet's bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[self.start..]
    }
}

impl Frame for MemoryFrame {
    fn length(&self) -> usize {
        self.bytes().len()
    }

    fn holds(&self, len: usize) -> bool {
        self.length() >= len
    }

    fn read<T: Wire>(&self, offset: usize) -> Option<T> {
        let bytes = self.bytes().get(offset..offset.checked_add(size_of::<T>())?)?;
        // SAFETY: the slice is as long as a `T`, and any bytes are a `T`.
        Some(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
    }

    fn write<T: Wire>(&mut self, offset: usize, header: T) -> Option<()> {
        let start = self.start;
        let bytes = self.bytes[start..].get_mut(offset..offset.checked_add(size_of::<T>())?)?;
        // SAFETY: the slice is as long as a `T`, which has no padding.
        unsafe { bytes.as_mut_ptr().cast::<T>().write_unaligned(header) };
        Some(())
    }

    fn head<const N: usize>(&self) -> Option<Head<'_, N>> {
        // SAFETY: the slice is as long as that.
        self.bytes().get(..N).map(|bytes| unsafe { Head::new(bytes.as_ptr()) })
    }

    fn head_mut<const N: usize>(&mut self) -> Option<HeadMut<'_, N>> {
        // SAFETY: likewise.
        self.bytes[self.start..].get_mut(..N).map(|bytes| unsafe { HeadMut::new(bytes.as_mut_ptr()) })
    }

    fn move_head(&mut self, by: i32) -> Option<()> {
        let start = self.start.checked_add_signed(by as isize)?;
        // The kernel keeps 40 bytes of headroom for itself and wants an Ethernet header to be left.
        if start < 40 || start + 14 > self.bytes.len() {
            return None;
        }
        self.start = start;
        Some(())
    }

    fn cut(&mut self, len: usize) -> Option<()> {
        if len < 14 || len > self.length() {
            return None;
        }
        self.bytes.truncate(self.start + len);
        Some(())
    }
}

/// A node's tables.
pub struct MemoryTables {
    /// What the agent would write.
    pub image: Image,
    /// The port that packets come in by.
    pub ingress: u8,
    /// Pools by number.
    pub pools: HashMap<u16, Pool>,
    /// Maglev tables by number.
    pub tables: HashMap<u16, Vec<Row>>,
    /// MAC addresses of neighbours by number.
    pub neighbours: RefCell<HashMap<u32, u64>>,
    /// What the words of paths say that are not alive, as one of [`alive`].
    pub paths_off: BTreeMap<u16, u64>,
    /// Marks by source MAC address.
    pub peer_macs: HashMap<u64, Mark>,
    /// VIPs that are held, with the index of the interface on which they are.
    pub held: HashMap<IpAddr, u32>,
    /// Where the kernel would send answers.
    pub routes: HashMap<Address, (u8, u64)>,
    /// Time in nanoseconds.
    pub now: Cell<u64>,
    /// The short ways to the image's services, as it was when these tables were made.
    pub shortcuts: Shortcuts,
    /// What was told of flows.
    pub told: RefCell<Vec<FlowEvent>>,
    /// What was counted.
    pub counted: RefCell<Vec<Reason>>,
    /// Refused packets.
    pub refused: RefCell<HashMap<RefusedKey, u64>>,
    /// By what rules peers are watched.
    pub watch: Watch,
    /// What this node says of itself.
    pub condition: Arc<Condition>,
    /// Requests that were sent, by link.
    pub sent: Arc<[Sent]>,
    /// What was heard, by link.
    pub heard: Arc<[Heard]>,
    /// Both flow tables.
    pub flows: Arc<FlowTables>,
    /// By what rules paths are watched.
    pub leg_rules: LegRules,
    /// Requests that were sent, by leg.
    pub leg_sent: Vec<LegSent>,
    /// What was heard, by leg.
    pub leg_heard: Vec<LegHeard>,
    /// What flows have said, by backend and rank.
    pub signals: Vec<[Signals; 4]>,
    sightings: Vec<Word>,
    fragments: RefCell<HashMap<FragmentKey, u64>>,
    budgets: [Word; BUDGETS as usize],
    sources: Vec<Word>,
}

impl MemoryTables {
    /// Tables of an image, with flow tables of so many buckets, a power of two, for each family. Pools get fresh rows and
    /// all neighbours are unknown.
    pub fn new(image: Image, buckets: usize) -> Self {
        let mut tables = Self {
            shortcuts: image.shortcuts(),
            ingress: 0,
            pools: HashMap::new(),
            tables: HashMap::new(),
            neighbours: RefCell::default(),
            paths_off: BTreeMap::new(),
            peer_macs: HashMap::new(),
            held: HashMap::new(),
            routes: HashMap::new(),
            now: Cell::new(1_000_000_000_000),
            told: RefCell::default(),
            counted: RefCell::default(),
            refused: RefCell::default(),
            watch: Watch::default(),
            condition: Arc::default(),
            sent: (0..LINKS).map(|_| Sent::default()).collect(),
            heard: (0..LINKS).map(|_| Heard::default()).collect(),
            flows: Arc::new(FlowTables::in_memory(buckets)),
            leg_rules: LegRules::default(),
            leg_sent: (0..LEGS_HERE).map(|_| LegSent::default()).collect(),
            leg_heard: (0..LEGS_HERE).map(|_| LegHeard::default()).collect(),
            signals: (0..BACKENDS_HERE).map(|_| Default::default()).collect(),
            sightings: (0..SIGHTINGS).map(|_| Word::new(0)).collect(),
            fragments: RefCell::default(),
            budgets: [const { Word::new(0) }; BUDGETS as usize],
            sources: (0..SOURCE_CELLS).map(|_| Word::new(0)).collect(),
            image,
        };
        for (&id, pool) in &tables.image.pools {
            let rows = crate::pool::transition::fresh(&crate::pool::build(&pool.members, pool.rows));
            tables.pools.insert(id, Pool { table: id * 2, rows: rows.len() as u32, ..Pool::default() });
            tables.tables.insert(id * 2, rows);
        }
        tables
    }

    /// Puts a flow table's bucket in place, as it was read from a map.
    pub fn set_bucket(&mut self, v6: bool, index: u32, entries: [u64; WAYS]) {
        if let Some(bucket) = self.flows.shared_bucket(v6, index) {
            for (word, entry) in bucket.entries.iter().zip(entries) {
                word.store(entry);
            }
        }
    }

    /// Puts a tuple beside an entry.
    pub fn set_tuple(&self, v6: bool, index: u32, record: Record) {
        self.flows.set_record(v6, index, &record);
    }

    /// All entries of a family's flow table that are not empty, with their places.
    pub fn entries(&self, v6: bool) -> Vec<(u32, u64)> {
        let buckets = (0..=self.bucket_mask(v6)).filter_map(|index| self.flows.shared_bucket(v6, index));
        let entries = buckets.flat_map(|bucket| &bucket.entries);
        entries.enumerate().map(|(at, word)| (at as u32, word.load())).filter(|(_, entry)| *entry != 0).collect()
    }
}

impl Tables for MemoryTables {
    fn node(&self) -> Option<&Node> {
        Some(&self.image.node)
    }

    fn ingress(&self) -> Option<(u8, &Port)> {
        Some((self.ingress, self.port(self.ingress)?))
    }

    fn port(&self, number: u8) -> Option<&Port> {
        self.image.ports.get(usize::from(number))
    }

    fn cells(&self, set: u32) -> Option<&Cells> {
        self.shortcuts.cells.get(set as usize)
    }

    fn listed(&self, word: u32) -> Option<u64> {
        self.shortcuts.listed.get(word as usize).copied()
    }

    fn vip(&self, address: &Address, v6: bool) -> Option<Vip> {
        let ip = ip(address, v6);
        let holding = self.image.vips.iter().filter(|(prefix, _)| prefix.contains(ip));
        holding.max_by_key(|(prefix, _)| prefix.length()).map(|(_, vip)| *vip)
    }

    fn service(&self, key: &ServiceKey) -> Option<Service> {
        self.image.services.get(key).copied()
    }

    fn service_range(&self, key: &ServiceKey) -> Option<Service> {
        let port = u16::from_be(key.port);
        let masked = |bits: u32| {
            let mask = if bits == 48 { 0 } else { u16::MAX << (64 - bits) };
            ServiceKey { port: (port & mask).to_be(), ..*key }
        };
        (48..=64).rev().find_map(|bits| self.image.ranges.get(&(masked(bits), bits)).copied())
    }

    fn pool(&self, id: u16) -> Option<&Pool> {
        self.pools.get(&id)
    }

    fn row(&self, table: u32, row: u32) -> Option<Row> {
        self.tables.get(&u16::try_from(table).ok()?)?.get(row as usize).copied()
    }

    fn slot(&self, slot: u32) -> Option<&Slot> {
        self.image.slots.get(slot as usize)
    }

    fn alive(&self) -> Option<&AliveNodes> {
        Some(&self.image.alive)
    }

    fn peer(&self, node: u8) -> Option<&Path> {
        // The map is an array: a node that is no member has a row of zeros.
        static NONE: std::sync::LazyLock<Path> = std::sync::LazyLock::new(Path::default);
        Some(self.image.peers.get(&node).unwrap_or(&NONE))
    }

    fn peer_of_mac(&self, mac: u64) -> Option<Mark> {
        self.peer_macs.get(&mac).copied()
    }

    fn backend(&self, id: u16) -> Option<Backend> {
        Some(self.image.backends.get(&id).copied().unwrap_or_default())
    }

    fn path(&self, id: u16) -> Option<&Path> {
        self.image.paths.get(&id)
    }

    fn path_alive(&self, id: u16) -> u64 {
        self.paths_off.get(&id).copied().unwrap_or(alive::ON)
    }

    fn neighbour(&self, id: u32) -> u64 {
        self.neighbours.borrow().get(&id).copied().unwrap_or(0)
    }

    fn neighbour_id(&self, key: &NeighbourKey) -> Option<u32> {
        self.image.neighbours.iter().find(|(_, hop)| hop.key() == *key).map(|(id, _)| *id)
    }

    fn learn(&self, id: u32, mac: u64) {
        self.neighbours.borrow_mut().insert(id, mac | RESOLVED);
    }

    fn holds(&self, vip: &Address, v6: bool, ifindex: u32) -> bool {
        self.held.get(&ip(vip, v6)) == Some(&ifindex)
    }

    fn route(&self, address: &Address, _v6: bool) -> Option<(u8, u64)> {
        self.routes.get(address).copied()
    }

    fn bucket(&self, v6: bool, index: u32) -> Option<&Bucket> {
        self.flows.shared_bucket(v6, index)
    }

    fn bucket_mask(&self, v6: bool) -> u32 {
        let (v4, v6_places) = self.flows.capacity();
        (if v6 { v6_places } else { v4 } / WAYS) as u32 - 1
    }

    fn keep_tuple(&self, v6: bool, index: u32, record: &Record) {
        self.set_tuple(v6, index, *record);
    }

    fn tell_flow(&self, packet: &Packet, service: u16, index: u32, entry: Entry) {
        if let Some(record) = self.flows.record(packet.v6, index) {
            self.told.borrow_mut().push(FlowEvent::of(packet, service, entry, &record, self.now.get()));
        }
    }

    fn is_tuple(&self, v6: bool, index: u32, tuple: &Tuple) -> bool {
        self.flows.record(v6, index).is_some_and(|record| record.tuple == *tuple)
    }

    fn fragment(&self, key: &FragmentKey) -> u64 {
        self.fragments.borrow().get(key).copied().unwrap_or(0)
    }

    fn keep_fragment(&self, key: &FragmentKey, decision: u64) {
        self.fragments.borrow_mut().insert(*key, decision);
    }

    fn budget(&self, budget: Budget) -> Option<&Word> {
        self.budgets.get(budget as usize)
    }

    fn source_budget(&self, cell: u32) -> Option<&Word> {
        self.sources.get(cell as usize)
    }

    fn now(&self) -> u64 {
        self.now.get()
    }

    fn watch(&self) -> Option<&Watch> {
        Some(&self.watch)
    }

    fn condition(&self) -> Option<&Condition> {
        Some(&self.condition)
    }

    fn sent(&self, link: u32) -> Option<&Sent> {
        self.sent.get(link as usize)
    }

    fn heard(&self, link: u32) -> Option<&Heard> {
        self.heard.get(link as usize)
    }

    fn leg_rules(&self) -> Option<&LegRules> {
        Some(&self.leg_rules)
    }

    fn leg_sent(&self, leg: u32) -> Option<&LegSent> {
        self.leg_sent.get(leg as usize)
    }

    fn leg_heard(&self, leg: u32) -> Option<&LegHeard> {
        self.leg_heard.get(leg as usize)
    }

    fn signals(&self, backend: u16, rank: u8) -> Option<&Signals> {
        self.signals.get(usize::from(backend)).map(|ranks| &ranks[usize::from(rank & 3)])
    }

    fn sighting(&self, cell: u32) -> Option<&Word> {
        self.sightings.get(cell as usize)
    }

    fn fine_now(&self) -> u64 {
        self.now.get()
    }

    fn trace(&self, _journey: &Journey) {}

    fn count(&self, reason: Reason) {
        self.counted.borrow_mut().push(reason);
    }

    fn count_refused(&self, key: RefusedKey) {
        *self.refused.borrow_mut().entry(key).or_default() += 1;
    }

    fn count_service(&self, _service: u16, _bytes: u64) {}

    fn count_backend(&self, _backend: u16, _rank: u8, _bytes: u64) {}
}

impl RowTables for MemoryTables {
    fn slots(&self) -> Result<Vec<Slot>, MapsError> {
        Ok(self.image.slots.clone())
    }

    fn set_slots(&mut self, slots: &[Slot]) -> Result<(), MapsError> {
        self.image.slots = slots.to_vec();
        Ok(())
    }

    fn pool(&self, id: u16) -> Result<Pool, MapsError> {
        Ok(self.pools.get(&id).copied().unwrap_or_default())
    }

    fn rows(&self, pool: &Pool) -> Result<Vec<Row>, MapsError> {
        Ok(if pool.rows == 0 { Vec::new() } else { self.tables.get(&pool.table).cloned().unwrap_or_default() })
    }

    fn set_rows(&mut self, id: u16, pool: Pool, rows: &[Row]) -> Result<(), MapsError> {
        self.tables.insert(pool.table, rows.to_vec());
        self.pools.insert(id, pool);
        Ok(())
    }

    fn flows<'a>(&'a self, key: &'a HashKey) -> impl Iterator<Item = Flow> + 'a {
        self.flows.iter(key)
    }

    fn now(&self) -> u64 {
        self.now.get()
    }
}
