//! The receiving side, without IO: batches and the time go in, flows go into the tables, answers come out.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use redirector_ebpf::tables::flow::{Entry, Record, State};
use redirector_ebpf::tables::names::kind;

use super::counters::Received;
use super::key::FlowKey;
use super::live::{Held, Live};
use super::machine::Identity;
use super::plan::{Claim, Merge, View, merge, wants};
use super::store::Flows;
use super::wire::{Answer, Batch, FlowCopy, Refused, Verdict};
use crate::dataplane::flows::{Flow, Put};
use crate::dataplane::registry::Registry;

const SECOND: u64 = 1_000_000_000;
/// Stamps of entries are seconds modulo this.
const STAMPS: u64 = 8192;

/// A flow of which this node had one choice of a backend and was told of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decided {
    /// The flow.
    pub key: FlowKey,
    /// Who told of the other choice.
    pub teller: u8,
}

/// What became of a batch.
#[derive(Clone, Debug)]
pub struct Taken {
    /// The answer for its sender.
    pub answer: Vec<u8>,
    /// Flows for which two nodes had chosen a backend, and this one has decided: the others are to hear of it.
    pub decided: Vec<Decided>,
    /// Why it was refused, if it was.
    pub refused: Option<Refused>,
}

/// What is known of a sender.
#[derive(Clone, Copy, Debug)]
struct Sender {
    incarnation: u64,
    sequence: u64,
    /// The slot table by which it has given this node everything.
    complete: Option<u64>,
}

/// The receiving side.
pub struct Receiver {
    own: Identity,
    live: Arc<Live>,
    senders: BTreeMap<u8, Sender>,
    connected: BTreeSet<u8>,
    view: View,
    /// What is counted.
    pub counters: Received,
}

/// What becomes of one flow.
enum Fate {
    Known,
    Decided,
    Missed,
}

impl Receiver {
    /// Has heard of nobody yet.
    pub fn new(own: Identity, live: Arc<Live>) -> Self {
        let (senders, connected, view, counters) = Default::default();
        Self { own, live, senders, connected, view, counters }
    }

    /// The nodes that have given this one every flow it is to have from them, by a slot table that is not older than
    /// `version`, and have not had to begin anew since.
    pub fn complete_from(&self, version: u64) -> BTreeSet<u8> {
        let complete = |sender: &Sender| sender.complete.is_some_and(|as_of| as_of >= version);
        self.senders.iter().filter(|(_, sender)| complete(sender)).map(|(id, _)| *id).collect()
    }

    /// Another slot table is in force, or others are alive.
    pub fn handle_view(&mut self, view: View) {
        self.view = view;
    }

    /// Who is connected at present: from the others this node may be missing something.
    pub fn handle_connected(&mut self, connected: &[u8]) {
        self.connected = connected.iter().copied().collect();
        for (_, sender) in self.senders.iter_mut().filter(|(id, _)| !connected.contains(id)) {
            sender.complete = None;
        }
    }

    /// Takes the flows of a batch into the tables, or nothing of it.
    pub fn handle_batch(&mut self, from: u8, bytes: &[u8], flows: &impl Flows, names: &Registry, now: u64) -> Taken {
        let batch = match Batch::read(bytes, self.own.cluster) {
            Ok(batch) if batch.header.sender == from => batch,
            Ok(_) => return self.refuse(Refused::Absurd("sender")),
            Err(refused) => return self.refuse(refused),
        };
        let header = batch.header;
        let before = self.senders.get(&from).filter(|sender| sender.incarnation == header.incarnation);
        if let Some(sequence) = before.map(|sender| sender.sequence).filter(|last| header.sequence <= *last) {
            self.counters.stale += 1;
            let answer = self.answer(Verdict::Stale, sequence, Vec::new());
            return Taken { answer, decided: Vec::new(), refused: None };
        }
        self.live.meets(from, header.incarnation);
        let id = |kind, name: &String| names.id(kind, name).map(|id| id as u16);
        let services: Vec<_> = batch.services.iter().map(|name| id(kind::SERVICE, name)).collect();
        let backends: Vec<_> = batch.backends.iter().map(|name| id(kind::BACKEND, name)).collect();
        let (mut missed, mut decided) = (Vec::new(), Vec::new());
        for (place, copy) in batch.flows.iter().enumerate() {
            let names = (services[usize::from(copy.service)], backends[usize::from(copy.backend)]);
            let fate = match names {
                (Some(service), Some(backend)) => self.take(from, copy, service, backend, flows, now),
                _ => {
                    self.counters.unknown_names += 1;
                    Fate::Missed
                }
            };
            match fate {
                Fate::Known => {}
                Fate::Decided => decided.push(Decided { key: copy.key, teller: from }),
                Fate::Missed => missed.push(place as u16),
            }
        }
        self.counters.batches += 1;
        let complete = (header.complete && header.receiver == self.own.incarnation).then_some(header.as_of);
        self.senders.insert(from, Sender { incarnation: header.incarnation, sequence: header.sequence, complete });
        Taken { answer: self.answer(Verdict::Taken, header.sequence, missed), decided, refused: None }
    }

    fn refuse(&mut self, refused: Refused) -> Taken {
        let verdict = match refused {
            Refused::Damaged => {
                self.counters.damaged += 1;
                Verdict::Damaged
            }
            Refused::Version(_) | Refused::Cluster(_) | Refused::Absurd(_) => {
                self.counters.refused += 1;
                Verdict::Refused
            }
        };
        Taken { answer: self.answer(verdict, 0, Vec::new()), decided: Vec::new(), refused: Some(refused) }
    }

    fn answer(&self, verdict: Verdict, sequence: u64, missed: Vec<u16>) -> Vec<u8> {
        let Identity { node, cluster, incarnation, .. } = self.own;
        Answer { verdict, node, cluster, incarnation, sequence, missed }.write()
    }

    /// Takes one flow, with service and backend as this node numbers them.
    fn take(&mut self, from: u8, copy: &FlowCopy, service: u16, backend: u16, flows: &impl Flows, now: u64) -> Fate {
        // Whole seconds by two clocks: one is added, so that a flow that goes to and fro never looks younger than it is.
        let idle = u64::from(copy.idle) + 1;
        if idle > u64::from(flows.idle()[copy.state as usize & 7]) {
            self.counters.kept += 1;
            return Fate::Known;
        }
        let since = now.saturating_sub(u64::from(copy.age) * SECOND);
        let record = Record { tuple: copy.key.tuple(), service, since, version: copy.version };
        // A multiple of what stamps wrap at is added, so that the time is one also shortly after the start.
        let last = now + STAMPS * SECOND - idle * SECOND;
        let entry = |tag| Entry::first(tag, backend, copy.state, false, now).touched(copy.state, true, last);
        let (idle, version, origin) = (u64::from(copy.idle), copy.version, copy.origin);
        let (is_copy, is_over) = (self.speaks(origin, from, self.own.node, copy), copy.state == State::Closing);
        let theirs = Claim { backend, idle, version, origin, is_copy, is_over };
        let origin = self.live.origin(&copy.key);
        let is_copy = self.speaks(origin, self.own.node, from, copy);
        let merged = Cell::new(Merge::Update);
        let takes = |flow: &Flow| {
            merged.set(weigh(&Claim { origin, is_copy, ..claim_of(flow, now) }, flow, &theirs, from));
            matches!(merged.get(), Merge::Update | Merge::GiveWay)
        };
        match flows.put(&record, copy.key.v6(), now, &entry, &takes) {
            Put::Full => {
                self.counters.full += 1;
                return Fate::Missed;
            }
            Put::Inserted | Put::Updated => {
                self.counters.applied += 1;
                self.live.learned(copy.key, backend, copy.origin);
                if merged.get() == Merge::GiveWay {
                    self.counters.conflicts += 1;
                    self.counters.conflicts_lost += 1;
                }
            }
            Put::Kept => {
                self.counters.kept += 1;
                self.counters.conflicts += u64::from(merged.get() == Merge::Prevail);
                if merged.get() == Merge::Unclear {
                    return Fate::Missed;
                }
            }
        }
        let held = Held { backend, state: copy.state as u8, stamp: (last / SECOND % STAMPS) as u16 };
        self.live.holds(&copy.key, from, held, now);
        if matches!(merged.get(), Merge::Prevail | Merge::GiveWay) { Fate::Decided } else { Fate::Known }
    }
}

impl Receiver {
    /// Whether whoever chose a flow's backend speaks for itself, so that what the node `at` has of it is a copy: it is
    /// there, and hears of the flow from the `other` one that claims it.
    fn speaks(&self, origin: u8, at: u8, other: u8, copy: &FlowCopy) -> bool {
        let is_there = origin == self.own.node || self.connected.contains(&origin);
        let Some(mask) = self.view.slots.len().checked_sub(1).filter(|_| origin != at && is_there) else {
            return false;
        };
        let slot = &self.view.slots[copy.key.slot(&self.own.hash_key, mask as u32) as usize];
        origin == other || wants(slot, &self.view.alive, self.view.copies(), other, origin)
    }
}

/// What the table says of a flow.
fn claim_of(flow: &Flow, now: u64) -> Claim {
    let entry = flow.entry;
    let idle = if entry.proven() { entry.idle(now) } else { entry.idle(now) / 1000 };
    let is_over = entry.state() == State::Closing;
    Claim { backend: entry.backend(), idle, version: flow.record.version, origin: 0, is_copy: false, is_over }
}

/// Weighs another node's word against the flow as it is in the table.
fn weigh(mine: &Claim, flow: &Flow, theirs: &Claim, from: u8) -> Merge {
    if !flow.entry.proven() && mine.backend == theirs.backend { Merge::Update } else { merge(mine, theirs, from) }
}
