//! The tables that the stations ask, answered from the maps.

use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::helpers::generated::bpf_ktime_get_coarse_ns;
use aya_ebpf::programs::XdpContext;
use redirector_ebpf::decap::{Settings, Sources};
use redirector_ebpf::packet::{Address, Frame, Packet, Tuple};
use redirector_ebpf::reason::Reason;
use redirector_ebpf::stations::Journey;
use redirector_ebpf::stations::neighbour::Question;
use redirector_ebpf::sync::Word;
use redirector_ebpf::tables::flow::{Entry, Instant, Record, Record4, Record6};
use redirector_ebpf::tables::liveness::{Pulse, link};
use redirector_ebpf::tables::path::{RESOLVED, alive};
use redirector_ebpf::tables::trace::switch;
use redirector_ebpf::tables::{
    AliveNodes, Backend, Bucket, Budget, Cells, Condition, FragmentKey, Heard, LegHeard, LegRules, LegSent, Mark,
    NeighbourKey, Node, Path, Pool, Port, RefusedKey, Row, Sent, Service, ServiceKey, Signals, Slot, Tables, Traffic,
    Vip, Watch,
};

use super::{calls, event, maps, trace};

/// A node's maps.
pub(crate) struct MapTables<'a> {
    ctx: &'a XdpContext,
}

impl<'a> MapTables<'a> {
    #[inline(always)]
    pub(crate) fn new(ctx: &'a XdpContext) -> Self {
        Self { ctx }
    }
}

/// Counts a reason on this CPU.
#[inline(always)]
pub(crate) fn count(reason: Reason) {
    if let Some(counter) = maps::REASONS.get_ptr_mut(reason as u32) {
        // SAFETY: a per-CPU value; the program is not preempted by itself.
        unsafe { *counter += 1 }
    }
}

#[inline(always)]
fn add(traffic: *mut Traffic, bytes: u64) {
    // SAFETY: a pointer into a per-CPU value, checked for null by the caller.
    unsafe {
        (*traffic).packets += 1;
        (*traffic).bytes += bytes;
    }
}

/// A map's word as one that is shared.
#[inline(always)]
fn word<'a>(value: *mut u64) -> &'a Word {
    // SAFETY: `Word` is a transparent `u64`, and array values live as long as the program runs.
    unsafe { &*value.cast::<Word>() }
}

impl Tables for MapTables<'_> {
    #[inline(always)]
    fn node(&self) -> Option<&Node> {
        maps::NODE.get(0)
    }

    #[inline(always)]
    fn ingress(&self) -> Option<(u8, &Port)> {
        let number = maps::PORT.load();
        maps::PORTS.get(number).map(|port| (number as u8, port))
    }

    #[inline(always)]
    fn port(&self, number: u8) -> Option<&Port> {
        maps::PORTS.get(u32::from(number))
    }

    #[inline(always)]
    fn cells(&self, set: u32) -> Option<&Cells> {
        maps::CELLS.get_value(0, &set)
    }

    #[inline(always)]
    fn listed(&self, word: u32) -> Option<u64> {
        maps::LISTED.get(word).copied()
    }

    #[inline(always)]
    fn vip(&self, address: &Address, v6: bool) -> Option<Vip> {
        // SAFETY: a copy is taken at once; an entry that is replaced meanwhile gives the old or the new value.
        let exact =
            unsafe { if v6 { maps::VIPS6.get(address).copied() } else { maps::VIPS4.get(&address.words[0]).copied() } };
        if exact.is_some() || self.node()?.prefixes == 0 {
            return exact;
        }
        if v6 {
            maps::PREFIXES6.get(&Key::new(128, address.words)).copied()
        } else {
            maps::PREFIXES4.get(&Key::new(32, address.words[0])).copied()
        }
    }

    #[inline(always)]
    fn service(&self, key: &ServiceKey) -> Option<Service> {
        // SAFETY: as in `vip`.
        unsafe { maps::SERVICES.get(key).copied() }
    }

    #[inline(always)]
    fn service_range(&self, key: &ServiceKey) -> Option<Service> {
        maps::RANGES.get(&Key::new(64, key.words())).copied()
    }

    #[inline(always)]
    fn pool(&self, id: u16) -> Option<&Pool> {
        maps::POOLS.get(u32::from(id))
    }

    #[inline(always)]
    fn row(&self, table: u32, row: u32) -> Option<Row> {
        maps::POOL_TABLES.get_value(table, &row).copied()
    }

    #[inline(always)]
    fn slot(&self, slot: u32) -> Option<&Slot> {
        maps::SLOTS.get_value(0, &slot)
    }

    #[inline(always)]
    fn alive(&self) -> Option<&AliveNodes> {
        maps::ALIVE.get(0)
    }

    #[inline(always)]
    fn peer(&self, node: u8) -> Option<&Path> {
        let port = maps::WAYS.get(u32::from(node))?.load();
        maps::PEERS.get(link(node, port as u8))
    }

    #[inline(always)]
    fn peer_of_mac(&self, mac: u64) -> Option<Mark> {
        // SAFETY: as in `vip`.
        unsafe { maps::PEER_MACS.get(mac) }.map(|mark| Mark(*mark))
    }

    #[inline(always)]
    fn backend(&self, id: u16) -> Option<Backend> {
        maps::BACKENDS.get(u32::from(id)).copied()
    }

    #[inline(always)]
    fn path(&self, id: u16) -> Option<&Path> {
        maps::PATHS.get(u32::from(id))
    }

    #[inline(always)]
    fn path_alive(&self, id: u16) -> u64 {
        maps::PATH_ALIVE.get(u32::from(id)).map_or(alive::OFF, |alive| alive.load())
    }

    #[inline(always)]
    fn least_bad(&self, paths: u64) -> u8 {
        calls::least_bad(self.ctx, paths) as u8
    }

    #[inline(always)]
    fn instead(&self, _: &Journey) -> u64 {
        calls::instead(self.ctx)
    }

    #[inline(always)]
    fn turn(&self, _: &Journey, backend: u16) -> bool {
        calls::turn(self.ctx, backend.into()) != 0
    }

    #[inline(always)]
    fn neighbour(&self, id: u32) -> u64 {
        maps::NEIGHBOURS.get(id).copied().unwrap_or(0)
    }

    #[inline(always)]
    fn neighbour_id(&self, key: &NeighbourKey) -> Option<u32> {
        // SAFETY: as in `vip`.
        unsafe { maps::NEIGHBOUR_IDS.get(key).copied() }
    }

    #[inline(always)]
    fn learn(&self, id: u32, mac: u64) {
        if let Some(value) = maps::NEIGHBOURS.get_ptr_mut(id) {
            word(value).store(mac);
        }
    }

    #[inline(always)]
    fn holds(&self, vip: &Address, v6: bool, ifindex: u32) -> bool {
        // SAFETY: as in `vip`.
        let held = unsafe { if v6 { maps::HELD6.get(vip).copied() } else { maps::HELD4.get(&vip.words[0]).copied() } };
        held == Some(ifindex)
    }

    #[inline(always)]
    fn hear<F: Frame>(&self, _: &mut F, _: &Port) -> Question {
        match calls::hear(self.ctx) {
            calls::REQUEST => Question::Request,
            calls::SOLICITATION => Question::Solicitation,
            _ => Question::Nothing,
        }
    }

    #[inline(always)]
    fn advertise<F: Frame>(&self, _: &mut F, _: &Port) -> bool {
        calls::advertise(self.ctx)
    }

    #[inline(always)]
    fn route(&self, address: &Address, v6: bool) -> Option<(u8, u64)> {
        match calls::kernel_route(self.ctx, address, v6, self.ingress()?.1.ifindex) {
            0 => None,
            route => Some(((route >> 56) as u8, route & (RESOLVED | (RESOLVED - 1)))),
        }
    }

    #[inline(always)]
    fn bucket(&self, v6: bool, index: u32) -> Option<&Bucket> {
        if v6 { maps::FLOWS6.get(index) } else { maps::FLOWS4.get(index) }
    }

    #[inline(always)]
    fn bucket_mask(&self, v6: bool) -> u32 {
        if v6 { maps::BUCKET_MASK6.load() } else { maps::BUCKET_MASK4.load() }
    }

    #[inline(always)]
    fn keep_tuple(&self, v6: bool, index: u32, record: &Record) {
        if v6 {
            if let Some(place) = maps::TUPLES6.get_ptr_mut(index) {
                // SAFETY: an array value; readers check a tuple against its entry's tag.
                unsafe { *place = Record6::of(record) }
            }
        } else if let Some(place) = maps::TUPLES4.get_ptr_mut(index) {
            // SAFETY: as above.
            unsafe { *place = Record4::of(record) }
        }
    }

    #[inline(always)]
    fn tell_flow(&self, packet: &Packet, service: u16, index: u32, entry: Entry) {
        let Some(journey) = maps::JOURNEY.get_ptr_mut(0) else { return };
        // A copy in a map: the packet itself, which is in registers mostly, should not have to be in memory for this.
        // SAFETY: a per-CPU value that no other program uses.
        let kept = unsafe { &mut (*journey).packet };
        packet.keep(kept);
        event::tell(kept, service, index, entry);
    }

    #[inline(always)]
    fn touch_tuple(&self, v6: bool, index: u32) {
        let place = if v6 {
            maps::TUPLES6.get(index).map(|record| &raw const record.dst.words[0])
        } else {
            maps::TUPLES4.get(index).map(|record| &raw const record.dst)
        };
        // SAFETY: a word of an array's value, which the other side of the map does not take away.
        place.map(|word| unsafe { word.read_volatile() });
    }

    #[inline(always)]
    fn is_tuple(&self, v6: bool, index: u32, tuple: &Tuple) -> bool {
        if v6 {
            maps::TUPLES6.get(index).is_some_and(|record| record.is_of(tuple))
        } else {
            maps::TUPLES4.get(index).is_some_and(|record| record.is_of(tuple))
        }
    }

    #[inline(always)]
    fn fragment(&self, key: &FragmentKey) -> u64 {
        // SAFETY: a copy is taken at once.
        unsafe { maps::FRAGMENTS.get(key).copied() }.unwrap_or(0)
    }

    #[inline(always)]
    fn keep_fragment(&self, key: &FragmentKey, decision: u64) {
        // A full table evicts its least recently used entry; there is no other failure to speak of.
        let _ = maps::FRAGMENTS.insert(key, decision, 0);
    }

    #[inline(always)]
    fn budget(&self, budget: Budget) -> Option<&Word> {
        maps::BUDGETS.get_ptr_mut(budget as u32).map(word)
    }

    #[inline(always)]
    fn source_budget(&self, cell: u32) -> Option<&Word> {
        maps::SOURCES.get_ptr_mut(cell).map(word)
    }

    #[inline(always)]
    fn now(&self) -> u64 {
        // SAFETY: takes nothing.
        unsafe { bpf_ktime_get_coarse_ns() }
    }

    #[inline(always)]
    fn instant(&self) -> Instant {
        match maps::PULSE.get(0).and_then(Pulse::instant) {
            Some(instant) => instant,
            None => Instant::at(self.now()),
        }
    }

    #[inline(always)]
    fn watch(&self) -> Option<&Watch> {
        maps::WATCH.get(0)
    }

    #[inline(always)]
    fn condition(&self) -> Option<&Condition> {
        maps::CONDITION.get(0)
    }

    #[inline(always)]
    fn sent(&self, link: u32) -> Option<&Sent> {
        maps::SENT.get(link)
    }

    #[inline(always)]
    fn heard(&self, link: u32) -> Option<&Heard> {
        maps::HEARD.get(link)
    }

    #[inline(always)]
    fn leg_rules(&self) -> Option<&LegRules> {
        maps::LEG_RULES.get(0)
    }

    #[inline(always)]
    fn leg_sent(&self, leg: u32) -> Option<&LegSent> {
        maps::LEG_SENT.get(leg)
    }

    #[inline(always)]
    fn leg_heard(&self, leg: u32) -> Option<&LegHeard> {
        maps::LEG_HEARD.get(leg)
    }

    #[inline(always)]
    fn signals(&self, backend: u16, rank: u8) -> Option<&Signals> {
        maps::SIGNALS.get(u32::from(backend)).map(|ranks| &ranks[usize::from(rank & 3)])
    }

    #[inline(always)]
    fn sighting(&self, cell: u32) -> Option<&Word> {
        maps::SIGHTINGS.get(cell)
    }

    #[inline(always)]
    fn note(&self, bits: u64, backend: u16, rank: u8, tcp_flags: u8) {
        calls::note(self.ctx, bits, u32::from(backend) << 2 | u32::from(rank), u32::from(tcp_flags));
    }

    #[inline(always)]
    fn note_journey(&self, _: &Journey) {
        calls::note_journey(self.ctx);
    }

    #[inline(always)]
    fn fine_now(&self) -> u64 {
        // SAFETY: takes nothing.
        unsafe { bpf_ktime_get_ns() }
    }

    #[inline(always)]
    fn trace(&self, journey: &Journey) {
        let switch = self.node().map_or(switch::OFF, |node| node.trace);
        if trace::log(self.ctx, journey) && switch == switch::CAPTURE {
            trace::capture(self.ctx);
        }
    }

    #[inline(always)]
    fn count(&self, reason: Reason) {
        count(reason);
    }

    #[inline(always)]
    fn count_refused(&self, key: RefusedKey) {
        calls::count_refused(key.0);
    }

    #[inline(always)]
    fn count_service(&self, service: u16, bytes: u64) {
        if let Some(traffic) = maps::SERVICE_TRAFFIC.get_ptr_mut(u32::from(service)) {
            add(traffic, bytes);
        }
    }

    #[inline(always)]
    fn count_backend(&self, backend: u16, rank: u8, bytes: u64) {
        if let Some(ranks) = maps::BACKEND_TRAFFIC.get_ptr_mut(u32::from(backend)) {
            // SAFETY: the rank is masked to the array's four.
            add(unsafe { ranks.cast::<Traffic>().add(usize::from(rank & 3)) }, bytes);
        }
    }
}

/// The maps of the decap program.
pub(crate) struct BackendTables;

/// An address as the decap program's tries hold it.
#[inline(always)]
fn mapped(address: &Address, v6: bool) -> Key<[u32; 4]> {
    Key::new(128, if v6 { address.words } else { Address::mapped(address.words[0]).words })
}

impl Sources for BackendTables {
    #[inline(always)]
    fn is_source(&self, address: &Address, v6: bool) -> bool {
        maps::DECAP_SOURCES.get(&mapped(address, v6)).is_some()
    }

    #[inline(always)]
    fn is_vip(&self, address: &Address, v6: bool) -> bool {
        maps::DECAP_VIPS.get(&mapped(address, v6)).is_some()
    }

    #[inline(always)]
    fn settings(&self) -> Option<&Settings> {
        maps::DECAP.get(0)
    }

    #[inline(always)]
    fn now(&self) -> u64 {
        // SAFETY: takes nothing.
        unsafe { bpf_ktime_get_ns() }
    }
}
