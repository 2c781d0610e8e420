//! The sending side, without IO: events, answers and the time go in, batches come out.
//!
//! A flow that changes waits for each peer that is to have it, until a batch takes it along; what the batch says of it is
//! read from the flow table at that moment. What a peer has acknowledged is kept in [`Live`]; all that it lacks is found
//! by walking the flow table, so that whatever was lost on the way is only late.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use redirector_ebpf::hash::HashKey;
use redirector_ebpf::tables::names::kind;

use super::counters::{PeerCounters, State};
use super::key::FlowKey;
use super::live::{Held, Live};
use super::plan::{SlotSet, View};
use super::receive::Decided;
use super::store::Flows;
use super::stream::{Flight, Peer, Pending};
use super::wire::{Answer, BatchWriter, FlowCopy, Header, NotWritten, Verdict};
use crate::dataplane::flows::Flow;
use crate::dataplane::registry::Registry;

/// Places that one tick walks at most for one peer.
const PLACES_A_TICK: u64 = 1 << 14;
/// Part of a state's idle time after which a flow that goes on is told of again.
const REFRESH_PART: u64 = 4;

/// How fast it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// How long a change waits at most until it is sent.
    pub flush: Duration,
    /// Flows a second that a peer is resynchronised with.
    pub flows_per_second: u32,
    /// Flows that wait for a peer at most.
    pub pending: usize,
    /// Bytes of a batch at most.
    pub batch_bytes: usize,
}

/// Who this node is.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// Its id.
    pub node: u8,
    /// Its cluster.
    pub cluster: u32,
    /// Which life of its this is: drawn anew whenever it may have lost what others told it.
    pub incarnation: u64,
    /// Keys of the flow hash, the same on every node.
    pub hash_key: HashKey,
}

/// A batch for a peer.
#[derive(Clone, Debug)]
pub struct Outgoing {
    /// The peer.
    pub to: u8,
    /// Its place among this node's batches.
    pub sequence: u64,
    /// The batch.
    pub bytes: Vec<u8>,
}

/// The sending side.
pub struct Machine {
    own: Identity,
    pace: Pace,
    view: View,
    as_of: u64,
    live: Arc<Live>,
    peers: BTreeMap<u8, Peer>,
    /// The next place of the round in which every flow is looked at.
    place: u64,
    /// Parts of a place that the round is ahead of.
    rest: u64,
    /// Parts of what is known of flows that were tidied in this round.
    tidied: usize,
    ticked: Option<u64>,
}

impl Machine {
    /// Knows nobody yet.
    pub fn new(own: Identity, pace: Pace, live: Arc<Live>) -> Self {
        let view = View::default();
        Self { own, pace, view, as_of: 0, live, peers: BTreeMap::new(), place: 0, rest: 0, tidied: 0, ticked: None }
    }

    fn mask(&self) -> u32 {
        (self.view.slots.len() as u32).saturating_sub(1)
    }

    fn slot(&self, key: &FlowKey) -> u32 {
        key.slot(&self.own.hash_key, self.mask())
    }

    /// Another slot table is in force, or others are alive: who is to have more than before is given it.
    pub fn handle_view(&mut self, view: View) {
        self.as_of = view.version();
        for (&id, peer) in &mut self.peers {
            let wanted = SlotSet::wanted(&view, self.own.node, id);
            let before = std::mem::replace(&mut peer.wanted, wanted);
            if peer.wanted.exceeds(&before) {
                peer.resynchronise();
            }
        }
        self.view = view;
    }

    /// Who is connected at present.
    pub fn handle_connected(&mut self, connected: &[u8]) {
        for (_, peer) in self.peers.iter_mut().filter(|(id, peer)| peer.is_here() && !connected.contains(id)) {
            peer.disconnect();
        }
        for &id in connected.iter().filter(|id| **id != self.own.node) {
            let wanted = || Peer::new(SlotSet::wanted(&self.view, self.own.node, id));
            let peer = self.peers.entry(id).or_insert_with(wanted);
            if !peer.is_here() {
                self.live.renew(id);
                peer.epoch = self.live.epoch(id);
                peer.connect();
            }
        }
    }

    /// A flow changed at this time.
    pub fn handle_event(&mut self, key: FlowKey, backend: u16, changed: u64, now: u64) {
        let slot = self.slot(&key);
        self.live.seen(key, backend);
        for peer in self.peers.values_mut().filter(|peer| peer.is_here() && peer.wanted.holds(slot)) {
            peer.push(Pending { key, changed: Some(changed), queued: now, owed: false }, self.pace.pending);
        }
    }

    /// Two nodes had chosen a backend for a flow, and this one has decided: those that are to have it are told how it is
    /// here, and so is whoever told of the other choice, which it would go by for ever.
    pub fn handle_decided(&mut self, decided: Decided, now: u64) {
        let Decided { key, teller } = decided;
        let slot = self.slot(&key);
        let hears = |id: u8, peer: &Peer| peer.is_here() && (id == teller || peer.wanted.holds(slot));
        for (&id, peer) in self.peers.iter_mut().filter(|(id, peer)| hears(**id, peer)) {
            peer.push(Pending { key, changed: None, queued: now, owed: id == teller }, self.pace.pending);
        }
    }

    /// Whether no flow waits, and no peer is being walked for.
    pub fn is_idle(&self) -> bool {
        self.peers.values().all(|peer| peer.pending.is_empty() && peer.walk.is_none())
    }

    /// Events were lost: which ones is not known.
    pub fn handle_loss(&mut self) {
        self.peers.values_mut().for_each(Peer::resynchronise);
    }

    /// A batch was answered, or (`None`) not.
    pub fn handle_answer(&mut self, from: u8, sequence: u64, answer: Option<Answer>, now: u64) {
        let Some(peer) = self.peers.get_mut(&from) else { return };
        let Some(flight) = peer.land(sequence) else { return };
        let Some(answer) = answer.filter(|answer| answer.node == from) else {
            peer.put_back(flight);
            // Until what waited has reached it, it has not got everything.
            peer.resynchronise();
            peer.back_off(now);
            return;
        };
        peer.incarnation = answer.incarnation;
        self.live.meets(from, answer.incarnation);
        self.begin_anew();
        let Some(peer) = self.peers.get_mut(&from) else { return };
        match answer.verdict {
            Verdict::Taken if answer.sequence == sequence => {
                peer.delivered(flight.said, now);
                let missed: HashSet<u16> = answer.missed.into_iter().collect();
                for (place, (flow, held)) in flight.flows.iter().enumerate() {
                    if missed.contains(&(place as u16)) {
                        peer.counters.missed += 1;
                    } else {
                        self.live.holds(&flow.key, from, *held, now);
                        peer.acknowledge(flow, now);
                    }
                }
                peer.settle();
            }
            Verdict::Taken => {
                peer.put_back(flight);
                peer.back_off(now);
            }
            Verdict::Damaged => {
                peer.counters.damaged += 1;
                peer.put_back(flight);
                peer.back_off(now);
            }
            Verdict::Stale => {
                peer.sequence = peer.sequence.max(answer.sequence);
                peer.put_back(flight);
                peer.back_off(now);
            }
            Verdict::Refused => {
                peer.put_back(flight);
                peer.rest(now);
            }
        }
    }

    /// Has the flow table walked anew for peers of which it was forgotten what they have.
    fn begin_anew(&mut self) {
        for (&id, peer) in self.peers.iter_mut().filter(|(_, peer)| peer.is_here()) {
            let epoch = self.live.epoch(id);
            if std::mem::replace(&mut peer.epoch, epoch) != epoch {
                peer.restart();
            }
        }
    }

    /// Changes how many flows a second a peer that lacks many is given.
    pub fn set_pace(&mut self, flows_per_second: u32) {
        self.pace.flows_per_second = flows_per_second;
    }

    /// Walks on as far as the time allows.
    pub fn handle_tick(&mut self, flows: &impl Flows, now: u64) {
        self.begin_anew();
        self.look_round(flows, now);
        let (own, pace, live, mask) = (self.own, self.pace, &self.live, self.mask());
        for (&id, peer) in &mut self.peers {
            let Some(mut walk) = peer.walk.filter(|walk| walk.goes_on()) else { continue };
            walk.earn(now);
            let end = (walk.place + PLACES_A_TICK).min(flows.places());
            while walk.place < end && peer.pending.len() < pace.pending / 2 {
                if let Some((key, flow)) = proven(flows, walk.place, now)
                    && peer.wanted.holds(key.slot(&own.hash_key, mask))
                {
                    live.seen(key, flow.entry.backend());
                    if is_due(flows, &flow, live.held(&key, id), now) {
                        if !walk.spend(pace.flows_per_second) {
                            break;
                        }
                        peer.push(Pending { key, changed: None, queued: now, owed: false }, pace.pending);
                    }
                }
                walk.place += 1;
            }
            peer.walk = Some(walk);
            if walk.place >= flows.places() {
                peer.end_walk();
            }
        }
    }

    /// Looks at a part of all flows, so that each is looked at a few times within the shortest idle time: what goes on is
    /// told of again before others forget it, and what is over is forgotten.
    fn look_round(&mut self, flows: &impl Flows, now: u64) {
        let passed = now.saturating_sub(self.ticked.replace(now).unwrap_or(now));
        let shortest = flows.idle().iter().copied().filter(|idle| *idle > 0).min().unwrap_or(30);
        let round = (u64::from(shortest) * 1_000_000_000 / REFRESH_PART).max(1_000_000_000);
        let steps = u128::from(passed) * u128::from(flows.places()) + u128::from(self.rest);
        self.rest = (steps % u128::from(round)) as u64;
        let steps = (steps / u128::from(round)).min(u128::from(flows.places())) as u64;
        for _ in 0..steps {
            if let Some((key, flow)) = proven(flows, self.place, now) {
                let slot = self.slot(&key);
                let wants = |peer: &Peer| peer.state() == State::Current && peer.wanted.holds(slot);
                let live = &self.live;
                if self.peers.values().any(|peer| peer.wanted.holds(slot)) {
                    live.seen(key, flow.entry.backend());
                }
                for (&id, peer) in self.peers.iter_mut().filter(|(_, peer)| wants(peer)) {
                    if is_due(flows, &flow, live.held(&key, id), now) {
                        peer.push(Pending { key, changed: None, queued: now, owed: false }, self.pace.pending);
                    }
                }
            }
            self.place += 1;
            if self.place >= flows.places() {
                self.tidy_until(Live::PARTS);
                (self.place, self.tidied) = (0, 0);
                self.live.end_round();
            }
        }
        // As far through what is known of flows as through the flows.
        self.tidy_until((u128::from(self.place) * Live::PARTS as u128 / u128::from(flows.places().max(1))) as usize);
    }

    fn tidy_until(&mut self, part: usize) {
        (self.tidied..part).for_each(|part| self.live.tidy(part));
        self.tidied = self.tidied.max(part);
    }

    /// The batches that are to go out now.
    pub fn poll_batches(&mut self, flows: &impl Flows, names: &Registry, now: u64) -> Vec<Outgoing> {
        let free: Vec<u8> = self.peers.iter().filter(|(_, peer)| peer.is_free(now)).map(|(id, _)| *id).collect();
        free.into_iter().filter_map(|to| self.batch(to, flows, names, now)).collect()
    }

    /// The batch for a peer, if one is due.
    fn batch(&mut self, to: u8, flows: &impl Flows, names: &Registry, now: u64) -> Option<Outgoing> {
        // A flow of IPv4 takes a little less than this.
        let full = self.pace.batch_bytes / 24;
        let (sequence, receiver) = {
            let said = self.said(to)?;
            let peer = self.peers.get_mut(&to)?;
            if !peer.is_news(said, now) && !peer.is_ripe(now, self.pace.flush, full) {
                return None;
            }
            // A peer that lies about what it has taken last harms itself alone.
            peer.sequence = peer.sequence.saturating_add(1);
            (peer.sequence, peer.incarnation)
        };
        let Identity { cluster, node: sender, incarnation, .. } = self.own;
        let header = Header { cluster, sender, incarnation, sequence, receiver, complete: false, as_of: self.as_of };
        let mut writer = BatchWriter::new(header, self.pace.batch_bytes);
        let sent = self.fill(to, &mut writer, flows, names, now)?;
        // Only now, since nothing may be left of what waited.
        let said = self.said(to)?;
        let peer = self.peers.get_mut(&to)?;
        if sent.is_empty() && !peer.is_news(said, now) {
            return None;
        }
        writer.complete(said.0);
        let bytes = writer.finish();
        peer.counters.sent += sent.len() as u64;
        peer.counters.batches += 1;
        peer.counters.bytes += bytes.len() as u64;
        peer.flight = Some(Flight { sequence, flows: sent, said });
        Some(Outgoing { to, sequence, bytes })
    }

    /// What is to be said of a peer: whether it is complete, and as of which slot table.
    fn said(&self, to: u8) -> Option<(bool, u64)> {
        let current = self.peers.get(&to)?.state() == State::Current;
        Some((current && !self.view.slots.is_empty(), self.as_of))
    }

    /// Fills a batch with what waits for a peer, and returns what went in.
    fn fill(
        &mut self,
        to: u8,
        writer: &mut BatchWriter,
        flows: &impl Flows,
        names: &Registry,
        now: u64,
    ) -> Option<Vec<(Pending, Held)>> {
        let mask = self.mask();
        let peer = self.peers.get_mut(&to)?;
        let mut sent = Vec::new();
        while let Some(waiting) = peer.pending.pop_front() {
            let key = waiting.key;
            let Some(flow) = flows.find(&key).filter(|flow| counts(flows, flow, now)) else { continue };
            let wanted = waiting.owed || peer.wanted.holds(key.slot(&self.own.hash_key, mask));
            let (held, origin) = self.live.known(&key, to);
            if !wanted || !is_due(flows, &flow, held, now) {
                continue;
            }
            let service = names.name(kind::SERVICE, u32::from(flow.record.service)).unwrap_or_default();
            let backend = names.name(kind::BACKEND, u32::from(flow.entry.backend())).unwrap_or_default();
            match writer.push(&copy_of(key, &flow, origin, now), service, backend) {
                Ok(()) => sent.push((waiting, Held::of(flow.entry, now))),
                // What has no name yet is found again by the next round.
                Err(NotWritten::Name | NotWritten::State) => peer.counters.missed += 1,
                Err(NotWritten::Full) => {
                    peer.pending.push_front(waiting);
                    break;
                }
            }
        }
        if sent.is_empty() {
            peer.settle();
        }
        Some(sent)
    }

    /// What is counted of each peer.
    pub fn counters(&mut self, now: u64) -> BTreeMap<u8, PeerCounters> {
        self.peers.iter_mut().map(|(&id, peer)| (id, peer.counted(now))).collect()
    }
}

/// The flow at a place, if others are to hear of it.
fn proven(flows: &impl Flows, place: u64, now: u64) -> Option<(FlowKey, Flow)> {
    let flow = flows.at(place).filter(|flow| counts(flows, flow, now))?;
    Some((FlowKey::new(&flow.record.tuple, flow.v6), flow))
}

/// Whether others are to hear of a flow: it is proven and not over.
fn counts(flows: &impl Flows, flow: &Flow, now: u64) -> bool {
    flow.entry.proven() && !flow.entry.expired(flows.idle(), now)
}

/// Whether a peer that has this of a flow is to be told how it is.
fn is_due(flows: &impl Flows, flow: &Flow, held: Option<Held>, now: u64) -> bool {
    let Some(held) = held else { return true };
    let limit = u64::from(flows.idle()[usize::from(flow.entry.state_bits() & 7)]);
    let behind = held.idle(now).saturating_sub(flow.entry.idle(now));
    (held.backend, held.state) != (flow.entry.backend(), flow.entry.state_bits())
        || behind >= (limit / REFRESH_PART).max(1)
}

fn copy_of(key: FlowKey, flow: &Flow, origin: u8, now: u64) -> FlowCopy {
    FlowCopy {
        key,
        state: flow.state(),
        service: flow.record.service,
        backend: flow.entry.backend(),
        idle: flow.entry.idle(now) as u16,
        age: (now.saturating_sub(flow.record.since) / 1_000_000_000).min(u64::from(u32::MAX)) as u32,
        version: flow.record.version,
        origin,
    }
}
