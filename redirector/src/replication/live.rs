//! The flows of this node that others have copies of or are to have, and which copy each of them has: what spares a flow
//! from being sent twice, back to where it came from, or not at all.
//!
//! Whoever sends and whoever receives work on it at the same time, so it is a map in parts that are locked one by one.

use std::array;
use std::hash::BuildHasher as _;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU64, Ordering};

use dashmap::DashMap;
use foldhash::fast::RandomState;
use redirector_ebpf::tables::flow::{Entry, stamps_between};

use super::key::FlowKey;

/// Other nodes of which it is kept what they have of a flow. Two are owners besides this node, and a third may return.
const HOLDERS: usize = 3;

/// Parts of each of [`Live::PARTS`]. One that grows is moved while it is locked, so each is to hold few flows: with the
/// library's few a million flows came late by the time that took.
const SHARDS: usize = 16;

/// What a node has of a flow: of the entry what is the same on all nodes of a cluster, once numbers are translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// Backend, as this node numbers it.
    pub backend: u16,
    /// The state's number.
    pub state: u8,
    /// Second of the flow's last packet by this node's clock, modulo 8192.
    pub stamp: u16,
}

impl Held {
    /// What a node has that has this proven entry.
    pub fn of(entry: Entry, now: u64) -> Self {
        let stamp = (now / 1_000_000_000).wrapping_sub(entry.idle(now)) & 0x1fff;
        Self { backend: entry.backend(), state: entry.state_bits(), stamp: stamp as u16 }
    }

    /// Seconds since the flow's last packet.
    pub fn idle(&self, now: u64) -> u64 {
        stamps_between(u64::from(self.stamp), now / 1_000_000_000)
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Holder {
    node: u8,
    state: u8,
    backend: u16,
    stamp: u16,
    /// Of the node, see [`Live::renew`].
    epoch: u16,
}

#[derive(Clone, Copy, Debug)]
struct Flow {
    holders: [Holder; HOLDERS],
    /// The backend that `origin` chose.
    backend: u16,
    /// The node that chose the backend.
    origin: u8,
    /// The round in which the flow was last seen in the flow table.
    round: u8,
}

/// Bytes of a flow's part of this map: key, value and a control byte, in a table that doubles when seven eighths are used,
/// so at the worst filled to seven sixteenths.
pub const FLOW_BYTES: usize = (size_of::<(FlowKey, Flow)>() + 1) * 16 / 7;

/// The live flows. Every flow is looked up several times on its way, so keys are hashed by something faster than the standard
/// library's hash, by a seed that each process draws.
pub struct Live {
    me: u8,
    parts: [DashMap<FlowKey, Flow, RandomState>; Self::PARTS],
    /// Says of which part a flow is.
    hash: RandomState,
    epochs: [AtomicU16; 256],
    incarnations: [AtomicU64; 256],
    round: AtomicU8,
}

impl Live {
    /// In how many parts [`Live::tidy`] does its work. Those who send and receive copies wait while what is over is taken out
    /// of one, so each is to be soon through.
    pub const PARTS: usize = 64;

    /// No flows yet, at node `me`.
    pub fn new(me: u8) -> Self {
        Self {
            me,
            parts: array::from_fn(|_| DashMap::with_hasher_and_shard_amount(RandomState::default(), SHARDS)),
            hash: RandomState::default(),
            epochs: [const { AtomicU16::new(0) }; 256],
            incarnations: [const { AtomicU64::new(0) }; 256],
            round: AtomicU8::new(0),
        }
    }

    /// How many flows there are.
    pub fn len(&self) -> usize {
        self.parts.iter().map(DashMap::len).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.parts.iter().all(DashMap::is_empty)
    }

    fn part(&self, key: &FlowKey) -> &DashMap<FlowKey, Flow, RandomState> {
        &self.parts[self.hash.hash_one(key) as usize % Self::PARTS]
    }

    fn fresh(&self, backend: u16, origin: u8) -> Flow {
        Flow { holders: [Holder::default(); HOLDERS], backend, origin, round: self.round.load(Ordering::Relaxed) }
    }

    /// Notes that the flow is in this node's table on this backend; another one than is known was chosen here.
    pub fn seen(&self, key: FlowKey, backend: u16) {
        let mut flow = self.part(&key).entry(key).or_insert_with(|| self.fresh(backend, self.me));
        if flow.backend != backend {
            (flow.backend, flow.origin) = (backend, self.me);
        }
        flow.round = self.round.load(Ordering::Relaxed);
    }

    /// Notes that the flow was put into this node's table on a backend that `origin` chose.
    pub fn learned(&self, key: FlowKey, backend: u16, origin: u8) {
        let mut flow = self.part(&key).entry(key).or_insert_with(|| self.fresh(backend, origin));
        (flow.backend, flow.origin) = (backend, origin);
        flow.round = self.round.load(Ordering::Relaxed);
    }

    /// The node that chose the flow's backend: this one, unless another told of it.
    pub fn origin(&self, key: &FlowKey) -> u8 {
        self.part(key).get(key).map_or(self.me, |flow| flow.origin)
    }

    /// What `node` has of a flow, as far as is known since it was last renewed.
    pub fn held(&self, key: &FlowKey, node: u8) -> Option<Held> {
        self.known(key, node).0
    }

    /// Both [`Live::held`] and [`Live::origin`].
    pub fn known(&self, key: &FlowKey, node: u8) -> (Option<Held>, u8) {
        let epoch = self.epoch(node);
        let Some(flow) = self.part(key).get(key) else { return (None, self.me) };
        let holder = flow.holders.iter().find(|holder| holder.node == node && holder.epoch == epoch);
        let held = holder.map(|holder| Held { backend: holder.backend, state: holder.state, stamp: holder.stamp });
        (held, flow.origin)
    }

    /// Notes what `node` has of a flow. Where too many nodes have it, the one longest without news is forgotten; at worst
    /// it is sent the flow once more.
    pub fn holds(&self, key: &FlowKey, node: u8, held: Held, now: u64) {
        let epoch = self.epoch(node);
        let Some(mut flow) = self.part(key).get_mut(key) else { return };
        let age = |holder: &Holder| match holder {
            holder if holder.node == node => u64::MAX,
            holder if holder.node == 0 || holder.epoch != self.epoch(holder.node) => u64::MAX - 1,
            Holder { backend, state, stamp, .. } => Held { backend: *backend, state: *state, stamp: *stamp }.idle(now),
        };
        if let Some(place) = flow.holders.iter_mut().max_by_key(|holder| age(holder)) {
            *place = Holder { node, state: held.state, backend: held.backend, stamp: held.stamp, epoch };
        }
    }

    /// Counts how often it was forgotten what `node` has. Who walks the flow table for it begins anew when this changes.
    pub fn epoch(&self, node: u8) -> u16 {
        self.epochs[usize::from(node)].load(Ordering::Relaxed)
    }

    /// Forgets what `node` has: it may have lost everything.
    pub fn renew(&self, node: u8) {
        self.epochs[usize::from(node)].fetch_add(1, Ordering::Relaxed);
    }

    /// Notes which life of `node` spoke; with another than before, it is forgotten what the node has.
    pub fn meets(&self, node: u8, incarnation: u64) {
        let before = self.incarnations[usize::from(node)].swap(incarnation, Ordering::Relaxed);
        if before != 0 && before != incarnation {
            self.renew(node);
        }
    }

    /// Ends a round through the flow table: what was not seen in it is over.
    pub fn end_round(&self) {
        self.round.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes out of a part what is over; `part` counts modulo [`Live::PARTS`]. Each is to have its turn in every round.
    pub fn tidy(&self, part: usize) {
        let round = self.round.load(Ordering::Relaxed);
        self.parts[part % Self::PARTS].retain(|_, flow| round.wrapping_sub(flow.round) <= 1);
    }
}

#[cfg(test)]
mod tests {
    use redirector_ebpf::packet::Tuple;
    use redirector_ebpf::tables::flow::{Record4, Record6};

    use super::*;

    fn key(port: u16) -> FlowKey {
        FlowKey::new(&Tuple { sport: port, protocol: 6, ..Tuple::default() }, false)
    }

    const HELD: Held = Held { backend: 4, state: 2, stamp: 100 };

    #[test]
    fn a_replicated_flow_takes_less_than_256_bytes() {
        let tables = |record: usize| size_of::<u64>() + record;
        for record in [size_of::<Record4>(), size_of::<Record6>()] {
            let bytes = tables(record) + FLOW_BYTES;
            println!("{} bytes in the tables, {bytes} in all", tables(record));
            assert!(bytes < 256, "{bytes} bytes");
        }
    }

    #[test]
    fn what_a_node_has_is_forgotten_when_it_is_renewed() {
        let live = Live::new(1);
        live.seen(key(1), 4);
        live.holds(&key(1), 2, HELD, 0);
        live.holds(&key(1), 3, HELD, 0);
        assert_eq!((live.held(&key(1), 2), live.held(&key(1), 3)), (Some(HELD), Some(HELD)));
        live.renew(2);
        assert_eq!((live.held(&key(1), 2), live.held(&key(1), 3)), (None, Some(HELD)));
        assert_eq!(live.held(&key(2), 3), None);
    }

    #[test]
    fn the_holder_without_news_makes_room() {
        let live = Live::new(1);
        live.seen(key(1), 4);
        let second = 1_000_000_000;
        for (node, stamp) in [(2, 100), (3, 50), (4, 90), (5, 101)] {
            live.holds(&key(1), node, Held { stamp, ..HELD }, 110 * second);
        }
        let known = |node| live.held(&key(1), node).is_some();
        assert_eq!([2, 3, 4, 5].map(known), [true, false, true, true]);
        live.holds(&key(1), 5, Held { stamp: 105, ..HELD }, 110 * second);
        assert_eq!([2, 3, 4, 5].map(known), [true, false, true, true]);
    }

    #[test]
    fn flows_that_a_round_does_not_see_are_over() {
        let live = Live::new(1);
        (0..10).for_each(|port| live.seen(key(port), 4));
        let round = || {
            live.end_round();
            (0..Live::PARTS).for_each(|part| live.tidy(part));
        };
        round();
        assert_eq!(live.len(), 10, "they were seen in the round that has ended");
        (0..5).for_each(|port| live.seen(key(port), 4));
        live.learned(key(20), 7, 3);
        round();
        assert_eq!(live.len(), 6);
        assert_eq!((live.origin(&key(0)), live.origin(&key(20))), (1, 3));
        live.seen(key(20), 7);
        assert_eq!(live.origin(&key(20)), 3);
        live.seen(key(20), 8);
        assert_eq!(live.origin(&key(20)), 1);
    }

    #[test]
    fn stamps_are_seconds_that_wrap() {
        let now = 9_000 * 1_000_000_000;
        let entry = Entry::first(1, 4, redirector_ebpf::tables::flow::State::Datagrams, false, 0).touched(
            redirector_ebpf::tables::flow::State::Datagrams,
            true,
            now - 7_000_000_000,
        );
        let held = Held::of(entry, now);
        assert_eq!((held.idle(now), held.idle(now + 3_000_000_000)), (7, 10));
    }
}
