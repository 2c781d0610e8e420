//! Copies of flows: replication as the agent's threads carry it.

use std::collections::{BTreeMap, BTreeSet};

use redirector::agent::copies::{Copies, Copyholders, Delivered};
use redirector::agent::lookout::Agreed;
use redirector::dataplane::flows::{Flow, Put};
use redirector::replication::key::FlowKey;
use redirector::replication::machine as copying;
use redirector::replication::receive::Receiver;
use redirector::replication::store::{Flows, Mapped};
use redirector::replication::wire::Answer;
use redirector::replication::{self, PeerCounters};
use redirector_ebpf::tables::flow::{Entry, Record};
use redirector_ebpf::tables::{AliveNodes, Slot};

use super::super::flaw::Flaw;
use super::super::plane::Plane;
use super::{Act, Agent, LOOK, TIMEOUT};

/// What goes over the connections to other agents, and what is known of it.
pub(super) struct Talk {
    pub(super) machine: copying::Machine,
    pub(super) receiver: Receiver,
    pub(super) copyholders: Copyholders,
    pub(super) next_view: Option<replication::View>,
    pub(super) view_version: u64,
    pub(super) peers: BTreeMap<u8, PeerCounters>,
    pub(super) connected: Vec<u8>,
    pub(super) flights: BTreeMap<(u8, u64), u64>,
    pub(super) flaw: Flaw,
}

impl Copies for Talk {
    fn set_slots(&mut self, slots: &[Slot], alive: AliveNodes, digest: u64, agreed: Agreed<'_>) {
        if let Some(view) = self.copyholders.view(slots, alive, digest, agreed) {
            self.view_version = view.version();
            replication::outdate(&mut self.peers);
            self.next_view = Some(view);
        }
    }

    fn delivered(&self) -> Option<Delivered> {
        if self.flaw == Flaw::EarlyDelivery {
            return Some(Delivered { to: (1..=254).collect(), from: (1..=254).collect() });
        }
        let connected = |id: &u8| self.connected.contains(id);
        let complete_from: BTreeSet<u8> =
            self.receiver.complete_from(self.view_version).into_iter().filter(connected).collect();
        Some(Delivered::of(self.peers.iter().map(|(&id, peer)| (id, peer.into())), complete_from))
    }
}

/// Flow tables that keep nothing of others.
struct Forgetful(Mapped);

impl Flows for Forgetful {
    fn places(&self) -> u64 {
        self.0.places()
    }

    fn at(&self, place: u64) -> Option<Flow> {
        self.0.at(place)
    }

    fn find(&self, key: &FlowKey) -> Option<Flow> {
        self.0.find(key)
    }

    fn put(&self, _: &Record, _: bool, _: u64, _: &dyn Fn(u32) -> Entry, _: &dyn Fn(&Flow) -> bool) -> Put {
        Put::Inserted
    }

    fn idle(&self) -> &[u16; 8] {
        self.0.idle()
    }
}

impl Agent {
    pub(super) fn copy(&mut self, plane: &mut Plane, connected: &[u8], now: u64) {
        if self.talk.connected != connected {
            self.talk.connected = connected.to_vec();
            self.talk.receiver.handle_connected(connected);
        }
        let machine = &mut self.talk.machine;
        if let Some(view) = self.talk.next_view.take() {
            self.talk.receiver.handle_view(view.clone());
            machine.handle_view(view);
        }
        for event in plane.tables.memory.told.borrow_mut().drain(..) {
            machine.handle_event(FlowKey::new(&event.tuple(), event.v6 != 0), event.backend, event.time, now);
        }
        if now >= self.due.look {
            self.due.look = now + LOOK;
            machine.handle_connected(connected);
            self.talk.peers = machine.counters(now);
        }
        let late: Vec<(u8, u64)> =
            self.talk.flights.iter().filter(|(_, until)| **until <= now).map(|(flight, _)| *flight).collect();
        for (from, sequence) in late {
            self.talk.flights.remove(&(from, sequence));
            machine.handle_answer(from, sequence, None, now);
        }
        machine.handle_tick(&Self::flows(plane), now);
        self.send_copies(plane, now);
    }

    fn send_copies(&mut self, plane: &Plane, now: u64) {
        let names = &plane.tables.memory.image.registry;
        for batch in self.talk.machine.poll_batches(&Self::flows(plane), names, now) {
            self.talk.flights.insert((batch.to, batch.sequence), now + TIMEOUT);
            self.acts.push(Act::Copy { to: batch.to, sequence: batch.sequence, bytes: batch.bytes });
        }
    }

    /// Takes another node's batch; gives the answer.
    pub fn take_copies(&mut self, plane: &Plane, from: u8, bytes: &[u8], now: u64) -> Vec<u8> {
        let (names, flows) = (&plane.tables.memory.image.registry, Self::flows(plane));
        let receiver = &mut self.talk.receiver;
        let taken = match self.talk.flaw {
            Flaw::LostCopies => receiver.handle_batch(from, bytes, &Forgetful(flows), names, now),
            _ => receiver.handle_batch(from, bytes, &flows, names, now),
        };
        for decided in taken.decided {
            self.talk.machine.handle_decided(decided, now);
        }
        taken.answer
    }

    /// Takes the answer to a batch.
    pub fn take_answer(&mut self, plane: &Plane, from: u8, sequence: u64, bytes: &[u8], now: u64) {
        if self.talk.flights.remove(&(from, sequence)).is_some() {
            let answer = Answer::read(bytes, self.config.cluster.id).ok();
            self.talk.machine.handle_answer(from, sequence, answer, now);
            self.send_copies(plane, now);
        }
    }
}
