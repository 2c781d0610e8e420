//! The answer: what the stations did with the packet, and what made them do so.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};

use redirector_ebpf::abi::PATHS;
use redirector_ebpf::hash::FlowHash;
use redirector_ebpf::packet::protocol;
use redirector_ebpf::reason::Reason;
use redirector_ebpf::stations::admit::{self, is_shed};
use redirector_ebpf::stations::path::Choice;
use redirector_ebpf::stations::{self, Journey, owner, path, row};
use redirector_ebpf::tables::flow::{Entry, WAYS};
use redirector_ebpf::tables::names::kind;
use redirector_ebpf::tables::path::kind as carriage;
use redirector_ebpf::tables::{Backend, Path, Refusal, Slot, Tables};
use serde::Serialize;

use super::question::Question;
use crate::agent::{BackendStatus, PathStatus};
use crate::cli::get::Refused;
use crate::cli::output::{self, Names, class, mac, mode, state};
use crate::dataplane::address::ip;
use crate::dataplane::memory::MemoryTables;
use crate::paths::health::State as Health;

/// Where a flow goes, and why.
#[derive(Debug, Serialize)]
pub(super) struct Answer {
    pub(super) source: SocketAddr,
    pub(super) destination: SocketAddr,
    pub(super) protocol: &'static str,
    /// `new` or `established`; `any` where packets do not tell.
    pub(super) asked_as: &'static str,
    /// The node that was asked.
    pub(super) asked_at: String,
    pub(super) service: Option<String>,
    /// The packet's class: its service's, or what its DSCP says.
    pub(super) class: Option<&'static str>,
    /// The class that its service has by itself.
    pub(super) service_class: Option<&'static str>,
    /// The packet's mark.
    pub(super) dscp: u8,
    pub(super) affinity: Option<&'static str>,
    pub(super) pool: Option<String>,
    pub(super) row: Option<Row>,
    pub(super) slot: u32,
    pub(super) version: Option<u64>,
    pub(super) ranks: Vec<Rank>,
    /// The slot's owner before its last change.
    pub(super) previous_owner: Option<String>,
    /// The node that serves the flow; none where any node does.
    pub(super) owner: Option<String>,
    pub(super) owner_why: Option<String>,
    /// What this node's flow table holds about it.
    pub(super) flow: Option<Known>,
    pub(super) backend: Option<String>,
    /// `flow` where the flow table decided, `row` where the pool's row did, `other` where another row did, since no path is
    /// alive of the backend that was avoided.
    pub(super) backend_from: Option<&'static str>,
    pub(super) avoided: Option<String>,
    /// Rank of the path to the backend.
    pub(super) path: Option<u8>,
    pub(super) path_why: Option<String>,
    /// Where this node sends the packet.
    pub(super) next_hop: Option<NextHop>,
    pub(super) verdict: &'static str,
    pub(super) meaning: &'static str,
    /// Why the packet is refused, if it is: the verdict is then what its sender is told.
    pub(super) refused_for: Option<&'static str>,
    /// What was refused of the service so far, since load was shed or a budget was spent.
    pub(super) refused: Vec<Refused>,
    pub(super) notes: Vec<String>,
}

/// A row of the pool's table.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    pub(super) index: u32,
    pub(super) current: Option<String>,
    pub(super) previous: Option<String>,
    pub(super) disputed: bool,
    /// Whether TCP flows of the previous backend, which is dead, are reset.
    pub(super) severed: bool,
}

/// A node in its slot's order.
#[derive(Debug, Serialize)]
pub(super) struct Rank {
    pub(super) node: String,
    pub(super) alive: bool,
}

/// A flow's entry.
#[derive(Debug, Serialize)]
pub(super) struct Known {
    pub(super) state: &'static str,
    pub(super) proven: bool,
    /// Not told of unproven ones, whose stamp wraps after eight seconds.
    pub(super) idle_s: Option<u64>,
    pub(super) backend: Option<String>,
}

/// Where a packet leaves to.
#[derive(Debug, Serialize)]
pub(super) struct NextHop {
    pub(super) mode: &'static str,
    pub(super) interface: String,
    pub(super) vlan: Option<u16>,
    pub(super) address: String,
    pub(super) mac: Option<String>,
    pub(super) remote: Option<IpAddr>,
}

impl Answer {
    /// Takes a packet of the flow through the stations and tells what they found.
    pub(super) fn new(tables: &MemoryTables, names: &Names, question: &Question) -> Self {
        let node = &tables.image.node;
        let hash = FlowHash::of(&node.hash_key, &question.tuple(), question.v6());
        let slot_number = hash.slot(node.slot_mask);
        let slot = tables.slot(slot_number).copied().unwrap_or_default();
        // The stations bring the entry up to date, as they do in the kernel: it is read before.
        let entry = entry(tables, question, hash);
        let mac = tables.port(tables.ingress).map_or(0, |port| port.mac);
        let mut journey = Journey::default();
        let verdict = stations::run(&mut question.frame(mac), tables, &mut journey);

        let service = journey.service;
        let place = service.and_then(|service| row::find(tables, &service, hash).ok());
        let rows = service.and_then(|service| tables.pool(service.pool)).map_or(0, |pool| pool.rows);
        let elsewhere = matches!(verdict.reason, Reason::Forwarded | Reason::HandedBack)
            || journey.owner != 0 && journey.owner != node.id;
        let backend = match (journey.backend, place) {
            (0, Some(place)) if elsewhere => place.row.current(),
            (backend, _) => backend,
        };
        let row = tables.backend(backend).filter(|_| backend != 0);
        let choice = row.and_then(|row| path::choose(tables, &row).ok());
        let way = match elsewhere {
            true => tables.peer(journey.owner),
            false => choice.and_then(|choice| tables.path(choice.path)),
        };
        let known = entry.map(|entry| Known {
            state: state(entry.state()),
            proven: entry.proven(),
            idle_s: entry.proven().then(|| entry.idle(tables.now())),
            backend: names.backend_if(entry.backend()),
        });
        let rank = |node: u8| Rank { node: names.node(node), alive: tables.image.alive.is_alive(node) };
        let mut answer = Self {
            source: question.source,
            destination: question.destination,
            protocol: output::protocol(question.protocol),
            asked_as: match question.protocol {
                protocol::TCP if question.opens => "new",
                protocol::TCP => "established",
                _ => "any",
            },
            asked_at: names.node(node.id),
            service: service.map(|service| names.service(service.id)),
            class: service.map(|service| class(admit::class(&service, &journey.packet))),
            service_class: service.map(|service| class(service.class)),
            dscp: question.dscp,
            affinity: service.map(|service| if service.owned != 0 { "owned" } else { "shared" }),
            pool: service.map(|service| names.pool(service.pool)),
            row: place.map(|place| Row {
                index: hash.row(rows),
                current: names.backend_if(place.row.current()),
                previous: names.backend_if(place.row.previous()),
                disputed: place.row.disputed(),
                severed: place.row.is_severed(0),
            }),
            slot: slot_number,
            version: (slot != Slot::default()).then_some(slot.version),
            ranks: slot.ranks.into_iter().filter(|node| *node != 0).map(rank).collect(),
            previous_owner: names.node_if(slot.previous),
            owner: names.node_if(journey.owner),
            owner_why: place.map(|place| owner_why(tables, &slot, &journey, &place)),
            flow: known,
            backend: row.map(|_| names.backend(backend).1),
            backend_from: row.map(|_| match journey {
                Journey { avoided: 1.., .. } => "other",
                Journey { known: true, .. } => "flow",
                _ => "row",
            }),
            avoided: names.backend_if(journey.avoided),
            path: choice.map(|choice| choice.rank + 1),
            path_why: row.map(|row| path_why(tables, &row)),
            next_hop: way.map(|way| next_hop(tables, names, way)),
            verdict: verdict.reason.name(),
            meaning: verdict.reason.meaning(),
            refused_for: usize::from(journey.refused)
                .checked_sub(1)
                .and_then(|why| Refusal::ALL.get(why))
                .map(|why| why.reason().name()),
            refused: Vec::new(),
            notes: Vec::new(),
        };
        answer.notes = notes(tables, &answer, elsewhere);
        if service.is_some_and(|service| service.dscp == 0 && question.dscp != 0) {
            answer.notes.push("the service does not go by the DSCP: `dscp = true` in it would say so".to_owned());
        }
        answer
    }

    /// Adds what was refused of the service so far.
    pub(super) fn count(&mut self, refused: Vec<Refused>) {
        self.refused = refused;
        self.refused.retain(|one| self.service.as_ref() == Some(&one.service) && one.packets > 0);
    }

    /// Adds why backends of the row, and their paths, are out, as the agent says.
    pub(super) fn explain(
        &mut self,
        names: &Names,
        paths: &HashMap<u16, PathStatus>,
        backends: &HashMap<u16, BackendStatus>,
    ) {
        let row = self.row.iter().flat_map(|row| [&row.current, &row.previous]);
        let known = self.flow.iter().map(|known| &known.backend);
        let concerned: BTreeSet<&String> = row.chain(known).flatten().collect();
        let mut notes = Vec::new();
        for name in concerned {
            let Some(id) = names.registry.id(kind::BACKEND, name).map(|id| id as u16) else { continue };
            if let Some(told) = backends.get(&id).filter(|told| told.state != "alive") {
                let why = told.why.as_deref().unwrap_or("the agent does not say why");
                notes.push(format!("{name} is {}: {why}", told.state));
            }
            let ways = names.registry.backends.get(&id).map_or([0; PATHS], |row| row.paths);
            for (rank, told) in (1..).zip(ways).filter_map(|(rank, way)| Some((rank, paths.get(&way)?))) {
                if let (false, Some(why)) = (matches!(told.state, Health::Alive | Health::Assumed), &told.why) {
                    notes.push(format!("path {rank} of {name} is out: {why}"));
                } else if let Some(complaint) = told.flows.as_ref().and_then(|flows| flows.complaint.as_ref()) {
                    notes.push(format!("path {rank} of {name} is doubted: {complaint}"));
                }
            }
        }
        self.notes.append(&mut notes);
    }
}

/// The flow's entry, if this node has one.
fn entry(tables: &MemoryTables, question: &Question, hash: FlowHash) -> Option<Entry> {
    let v6 = question.v6();
    let (index, tag) = hash.entry(tables.bucket_mask(v6));
    let bucket = tables.bucket(v6, index)?;
    let at = |way: usize| Entry(bucket.word(way).load());
    let is_it = |way: &usize| {
        let entry = at(*way);
        !entry.is_empty()
            && entry.tag() == tag
            && tables.is_tuple(v6, index * WAYS as u32 + *way as u32, &question.tuple())
    };
    (0..WAYS).find(is_it).map(at)
}

fn owner_why(tables: &MemoryTables, slot: &Slot, journey: &Journey, place: &row::Place) -> String {
    let (me, alive) = (tables.image.node.id, &tables.image.alive);
    let first = owner::first_alive(slot, alive);
    let needed = if place.row.disputed() { "the row is disputed" } else { "the service is owned" };
    if !place.needs_owner {
        return "not asked: the service is shared and the row undisputed, so any node serves it".to_owned();
    }
    if journey.owner == 0 {
        return format!("{needed}, but the packet did not get so far");
    }
    if journey.verdict.reason == Reason::HandedBack {
        return format!("{needed}; it is the slot's previous owner, which may know the flow");
    }
    if first == 0 {
        return format!("{needed}; no rank of the slot is alive, so this node serves it");
    }
    if journey.owner != first {
        let whose = if slot.previous == me { ", whose owner this node was before" } else { "" };
        return format!("{needed}; this node knows the flow from an earlier state of the slot{whose}");
    }
    match slot.ranks.iter().position(|node| *node == first) {
        Some(0) => format!("{needed}; it is the slot's primary"),
        rank => format!(
            "{needed}; it is the slot's rank {}, those before it are not alive",
            rank.map_or(0, |rank| rank + 1)
        ),
    }
}

fn path_why(tables: &MemoryTables, backend: &Backend) -> String {
    match path::choose(tables, backend) {
        Ok(Choice { alive: false, rank: 0, .. }) => "none is alive: the first is the least bad".to_owned(),
        Ok(choice) if !choice.alive => {
            format!("none is alive: rank {} is the first whose port has a carrier", choice.rank + 1)
        }
        Ok(choice) if choice.rank == 0 => "the first, and alive".to_owned(),
        Ok(choice) => format!("rank {} is the first that is alive", choice.rank + 1),
        Err(reason) => reason.meaning().to_owned(),
    }
}

fn next_hop(tables: &MemoryTables, names: &Names, way: &Path) -> NextHop {
    NextHop {
        mode: mode(way.kind),
        interface: names.port(way.port),
        vlan: (way.vlan != 0).then_some(way.vlan),
        address: names.neighbour(way.neighbour),
        mac: mac(tables.neighbour(way.neighbour)),
        remote: (way.kind != carriage::L2).then(|| ip(&way.remote, way.outer_v6 != 0)),
    }
}

fn notes(tables: &MemoryTables, answer: &Answer, elsewhere: bool) -> Vec<String> {
    let mut notes = Vec::new();
    let disputed = answer.row.as_ref().is_some_and(|row| row.disputed);
    if let (true, Some(owner), Some(backend)) = (elsewhere, &answer.owner, &answer.backend) {
        let old = match &answer.row {
            Some(Row { previous: Some(previous), severed: true, .. }) => {
                format!("; a TCP flow from before is reset, since {previous} is dead")
            }
            Some(Row { previous: Some(previous), .. }) if disputed => {
                format!("; a flow from before the pool's change stays on {previous}")
            }
            _ => String::new(),
        };
        notes.push(format!("{owner} decides by its flow table: ask there. The row says {backend}{old}"));
    }
    if let (Some(known), "row") = (&answer.flow, answer.backend_from.unwrap_or_default()) {
        let backend = known.backend.as_deref().unwrap_or("none");
        notes.push(format!("this node has a record of the flow on {backend}, which did not decide"));
    }
    let level = tables.image.node.shed_level;
    if level != 0 {
        let refused = [3, 2, 1].into_iter().filter(|kind| is_shed(*kind, level)).map(class);
        let refused = refused.collect::<Vec<_>>().join(", ");
        // No owner is asked, so that nobody knows which datagram begins a flow.
        let is_anyones = answer.owner.is_none() && answer.service.is_some() && answer.protocol != "tcp";
        let but = if is_anyones { "; of this service's datagrams those of class low at level 3 alone" } else { "" };
        notes.push(format!("load is shed at level {level}: new flows of class {refused} are refused{but}"));
    }
    let budgets = [tables.image.node.new_flows, tables.image.node.new_flows_per_source];
    if budgets != [0, 0] {
        notes.push("new flows have budgets here, which this answer takes for unspent".to_owned());
    }
    notes
}
