//! The nodes and what is between them.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use redirector_ebpf::hash::HashKey;
use redirector_ebpf::packet::{Address, Tuple, protocol};
use redirector_ebpf::tables::flow::{Entry, Record, State as FlowState};
use redirector_ebpf::tables::names::{NameKey, kind};
use redirector_ebpf::tables::{AliveNodes, Slot};

use crate::dataplane::flows::{Flow, Put};
use crate::dataplane::registry::Registry;
use crate::replication::PeerCounters;
use crate::replication::key::FlowKey;
use crate::replication::live::Live;
use crate::replication::machine::{Identity, Machine, Outgoing, Pace};
use crate::replication::plan::{View, wants};
use crate::replication::receive::Receiver;
use crate::replication::store::Flows;
use crate::replication::wire::Answer;

pub(super) const MILLISECOND: u64 = 1_000_000;
pub(super) const SECOND: u64 = 1_000 * MILLISECOND;
/// Flows that wait for a peer at most.
pub(super) const PENDING: usize = 1_000;
const TICK: u64 = 5 * MILLISECOND;
const DELAY: u64 = 2 * MILLISECOND;
const TIMEOUT: u64 = 300 * MILLISECOND;
pub(super) const CLUSTER: u32 = 7;
const SLOTS: usize = 64;
const HASH_KEY: HashKey = [3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41];
const IDLE: [u16; 8] = [0, 40, 7_200, 40, 40, 40, 40, 0];

/// A flow table without buckets.
#[derive(Default)]
pub(super) struct Table {
    places: RefCell<Vec<Flow>>,
    by_key: RefCell<HashMap<FlowKey, usize>>,
}

impl Table {
    pub(super) fn len(&self) -> usize {
        self.places.borrow().iter().filter(|flow| !flow.entry.is_empty()).count()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn set(&self, key: FlowKey, record: Record, entry: Entry) {
        let mut places = self.places.borrow_mut();
        let place = *self.by_key.borrow_mut().entry(key).or_insert(places.len());
        let flow = Flow { v6: false, place: (place as u32, 0), entry, record };
        if place < places.len() { places[place] = flow } else { places.push(flow) }
    }
}

impl Flows for Table {
    fn places(&self) -> u64 {
        // As many as there might be, so that a walk takes as long as it does over a real table.
        8_192
    }

    fn at(&self, place: u64) -> Option<Flow> {
        self.places.borrow().get(place as usize).copied().filter(|flow| !flow.entry.is_empty())
    }

    fn find(&self, key: &FlowKey) -> Option<Flow> {
        let place = *self.by_key.borrow().get(key)?;
        self.at(place as u64)
    }

    fn put(
        &self,
        record: &Record,
        _: bool,
        _: u64,
        entry: &dyn Fn(u32) -> Entry,
        takes: &dyn Fn(&Flow) -> bool,
    ) -> Put {
        let key = FlowKey::new(&record.tuple, false);
        let put = match self.find(&key) {
            Some(flow) if !takes(&flow) => return Put::Kept,
            Some(_) => Put::Updated,
            None => Put::Inserted,
        };
        self.set(key, *record, entry(1));
        put
    }

    fn idle(&self) -> &[u16; 8] {
        &IDLE
    }
}

pub(super) struct Node {
    pub(super) machine: Machine,
    pub(super) receiver: Receiver,
    pub(super) live: Arc<Live>,
    pub(super) flows: Table,
    pub(super) names: Registry,
    alive: bool,
    deaf: bool,
    damage: bool,
    lose_answer: bool,
}

impl Node {
    fn new(id: u8, incarnation: u64, view: View) -> Self {
        let live = Arc::new(Live::new(id));
        let own = Identity { node: id, cluster: CLUSTER, incarnation, hash_key: HASH_KEY };
        let flush = Duration::from_millis(50);
        let pace = Pace { flush, flows_per_second: 1_000, pending: PENDING, batch_bytes: 2_000 };
        let (mut machine, mut receiver) = (Machine::new(own, pace, live.clone()), Receiver::new(own, live.clone()));
        machine.handle_view(view.clone());
        receiver.handle_view(view);
        Self {
            machine,
            receiver,
            live,
            flows: Table::default(),
            names: names(id),
            alive: true,
            deaf: false,
            damage: false,
            lose_answer: false,
        }
    }

    pub(super) fn flow(&self, port: u16) -> Option<Flow> {
        self.flows.find(&key(port))
    }
}

/// Every node calls things by numbers of its own.
fn names(id: u8) -> Registry {
    let id = u32::from(id);
    let backend = |number: u32| (NameKey { kind: kind::BACKEND, id: 10 * id + number }, format!("pool/b{number}"));
    Registry::new((1..=3).map(backend).chain([(NameKey { kind: kind::SERVICE, id: 100 + id }, "web".to_owned())]))
}

fn tuple(port: u16) -> Tuple {
    let address = |last: u8| Address::v4(u32::from_ne_bytes([10, 0, 0, last]));
    Tuple { src: address(1), dst: address(2), sport: port, dport: 443, protocol: protocol::TCP }
}

pub(super) fn key(port: u16) -> FlowKey {
    FlowKey::new(&tuple(port), false)
}

/// A datagram on its way: a batch, or the answer to one.
enum Message {
    Batch { from: u8, batch: Outgoing },
    Answer { from: u8, to: u8, sequence: u64, answer: Option<Answer> },
}

pub(super) struct World {
    pub(super) nodes: BTreeMap<u8, Node>,
    pub(super) now: u64,
    view: View,
    cuts: BTreeSet<(u8, u8)>,
    messages: Vec<(u64, Message)>,
    incarnations: u64,
}

impl World {
    /// Nodes that all see each other; the slots rank them by turns.
    pub(super) fn new(count: u8) -> Self {
        let mut alive = AliveNodes::default();
        (1..=count).for_each(|id| alive.set(id, true));
        let ranks = |slot: u8| {
            std::array::from_fn(|rank| if rank < usize::from(count) { (slot + rank as u8) % count + 1 } else { 0 })
        };
        let slots = (0..SLOTS as u8).map(|slot| Slot { ranks: ranks(slot), version: 1, ..Slot::default() }).collect();
        let view = View { slots, alive, ..View::default() };
        let nodes = (1..=count).map(|id| (id, Node::new(id, u64::from(id), view.clone()))).collect();
        Self { nodes, now: 10_000 * SECOND, view, cuts: BTreeSet::new(), messages: Vec::new(), incarnations: 1_000 }
    }

    pub(super) fn node(&self, id: u8) -> &Node {
        &self.nodes[&id]
    }

    pub(super) fn node_mut(&mut self, id: u8) -> &mut Node {
        self.nodes.get_mut(&id).expect("a node")
    }

    fn connected(&self, a: u8, b: u8) -> bool {
        a != b && self.nodes[&a].alive && self.nodes[&b].alive && !self.cuts.contains(&(a.min(b), a.max(b)))
    }

    pub(super) fn run(&mut self, time: u64) {
        let end = self.now + time;
        while self.now < end {
            self.now += TICK.min(end - self.now);
            self.deliver();
            self.tick();
        }
    }

    fn tick(&mut self) {
        let now = self.now;
        let connected: Vec<(u8, Vec<u8>)> = self
            .nodes
            .keys()
            .map(|&a| (a, self.nodes.keys().copied().filter(|b| self.connected(a, *b)).collect()))
            .collect();
        for (id, connected) in connected {
            let node = self.node_mut(id);
            if !node.alive {
                continue;
            }
            node.machine.handle_connected(&connected);
            node.receiver.handle_connected(&connected);
            node.machine.handle_tick(&node.flows, now);
            let damage = node.damage;
            for mut batch in node.machine.poll_batches(&node.flows, &node.names, now) {
                if damage && batch.bytes.len() > 100 {
                    batch.bytes[60] ^= 4;
                    self.node_mut(id).damage = false;
                }
                self.messages.push((now + DELAY, Message::Batch { from: id, batch }));
            }
        }
    }

    fn deliver(&mut self) {
        let now = self.now;
        let (due, later): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.messages).into_iter().partition(|(at, _)| *at <= now);
        self.messages = later;
        for (_, message) in due {
            match message {
                Message::Batch { from, batch } => self.deliver_batch(from, batch),
                Message::Answer { from, to, sequence, answer } => {
                    self.node_mut(to).machine.handle_answer(from, sequence, answer, now);
                }
            }
        }
    }

    fn deliver_batch(&mut self, from: u8, batch: Outgoing) {
        let (now, sequence, connected) = (self.now, batch.sequence, self.connected(from, batch.to));
        let node = self.node_mut(batch.to);
        let answer = if connected && !node.deaf {
            let taken = node.receiver.handle_batch(from, &batch.bytes, &node.flows, &node.names, now);
            taken.decided.iter().for_each(|decided| node.machine.handle_decided(*decided, now));
            let answer = Answer::read(&taken.answer, CLUSTER).expect("an answer that can be read");
            Some(answer).filter(|_| !std::mem::take(&mut node.lose_answer))
        } else {
            None
        };
        let at = now + if answer.is_some() { DELAY } else { TIMEOUT };
        self.messages.push((at, Message::Answer { from: batch.to, to: from, sequence, answer }));
    }

    /// A flow is proven at a node, on a backend.
    pub(super) fn record(&mut self, id: u8, port: u16, backend: u8, state: FlowState) {
        self.record_unheard(id, port, backend);
        let flow = self.node(id).flow(port).expect("it was just recorded");
        self.node(id).flows.set(key(port), flow.record, flow.entry.touched(state, true, self.now));
        self.tell(id, port);
    }

    /// The same, with the event lost.
    pub(super) fn record_unheard(&mut self, id: u8, port: u16, backend: u8) {
        let (now, state) = (self.now, FlowState::Established);
        let backend = u16::from(10 * id + backend);
        let entry = Entry::first(1, backend, state, false, now).touched(state, true, now);
        let record = Record { tuple: tuple(port), service: 100 + u16::from(id), since: now, version: 1 };
        self.node(id).flows.set(key(port), record, entry);
    }

    fn tell(&mut self, id: u8, port: u16) {
        let now = self.now;
        let node = self.node_mut(id);
        let backend = node.flow(port).expect("a flow").entry.backend();
        node.machine.handle_event(key(port), backend, now, now);
    }

    /// A packet of a flow is seen.
    pub(super) fn touch(&mut self, id: u8, port: u16) {
        let flow = self.node(id).flow(port).expect("a flow");
        self.node(id).flows.set(key(port), flow.record, flow.entry.touched(flow.state(), true, self.now));
    }

    /// A flow ends, if it is there.
    pub(super) fn close(&mut self, id: u8, port: u16) {
        if let Some(flow) = self.node(id).flow(port) {
            let entry = flow.entry.touched(FlowState::Closing, true, self.now);
            self.node(id).flows.set(key(port), flow.record, entry);
            self.tell(id, port);
        }
    }

    /// Takes flows out of the tables that are over.
    pub(super) fn sweep(&mut self) {
        for node in self.nodes.values() {
            for flow in node.flows.places.borrow_mut().iter_mut() {
                if flow.entry.expired(&IDLE, self.now) {
                    flow.entry = Entry(0);
                }
            }
        }
    }

    pub(super) fn connect(&mut self, a: u8, b: u8, up: bool) {
        let pair = (a.min(b), a.max(b));
        if up {
            self.cuts.remove(&pair)
        } else {
            a != b && self.cuts.insert(pair)
        };
    }

    /// Batches to the node are lost.
    pub(super) fn deaf(&mut self, id: u8, deaf: bool) {
        self.node_mut(id).deaf = deaf;
    }

    /// The node's next batch with flows in it is damaged on the way.
    pub(super) fn damage(&mut self, id: u8) {
        self.node_mut(id).damage = true;
    }

    /// The node's next answer is lost.
    pub(super) fn lose_answer(&mut self, id: u8) {
        self.node_mut(id).lose_answer = true;
    }

    /// A new agent, at a data plane that lost everything or nothing.
    pub(super) fn restart(&mut self, id: u8, everything: bool) {
        self.incarnations += 1;
        let mut node = Node::new(id, self.incarnations, self.view.clone());
        let old = self.nodes.remove(&id).expect("a node");
        if !everything {
            node.flows = old.flows;
        }
        self.nodes.insert(id, node);
    }

    /// All ranks of a slot are to have its flows, not the first two alone.
    pub(super) fn copy_to_all(&mut self) {
        self.view.to_all_ranks = true;
        self.set_view();
    }

    /// The node dies, and everybody sees it.
    pub(super) fn kill(&mut self, id: u8) {
        self.node_mut(id).alive = false;
        self.view.alive.set(id, false);
        self.set_view();
    }

    fn set_view(&mut self) {
        for node in self.nodes.values_mut() {
            node.machine.handle_view(self.view.clone());
            node.receiver.handle_view(self.view.clone());
        }
    }

    pub(super) fn forget_names(&mut self, id: u8) {
        self.node_mut(id).names = Registry::default();
    }

    pub(super) fn learn_names(&mut self, id: u8) {
        self.node_mut(id).names = names(id);
    }

    pub(super) fn counters(&mut self, id: u8, peer: u8) -> PeerCounters {
        let now = self.now;
        self.node_mut(id).machine.counters(now)[&peer].clone()
    }

    pub(super) fn complete(&self, id: u8) -> BTreeSet<u8> {
        self.node(id).receiver.complete_from(self.view.version())
    }

    /// What a node calls the backend of a flow.
    pub(super) fn backend(&self, id: u8, port: u16) -> Option<&str> {
        let node = self.node(id);
        node.names.name(kind::BACKEND, u32::from(node.flow(port)?.entry.backend()))
    }

    /// Each live node's flows are with those that are to have them. Owners agree on backend and state; another node's
    /// copy may be older, since nobody tells it and it is not asked.
    pub(super) fn assert_same(&self) {
        for (&id, node) in self.nodes.iter().filter(|(_, node)| node.alive) {
            for place in 0..node.flows.places.borrow().len() as u64 {
                let Some(flow) = node.flows.at(place).filter(|flow| !flow.entry.expired(&IDLE, self.now)) else {
                    continue;
                };
                let port = flow.record.tuple.sport;
                let slot = &self.view.slots[key(port).slot(&HASH_KEY, SLOTS as u32 - 1) as usize];
                for &other in self.nodes.keys() {
                    if self.nodes[&other].alive && wants(slot, &self.view.alive, 2, id, other) {
                        let theirs = self.node(other).flow(port).map(|flow| flow.state());
                        if !wants(slot, &self.view.alive, 2, other, id) {
                            assert!(theirs.is_some(), "flow {port} of node {id} at node {other}");
                            continue;
                        }
                        assert_eq!(theirs, Some(flow.state()), "flow {port} of node {id} at node {other}");
                        assert_eq!(self.backend(id, port), self.backend(other, port), "flow {port}");
                    }
                }
            }
        }
    }
}
