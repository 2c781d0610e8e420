//! Nodes: who they are, whether they live, and the way to them. From the maps, so that it is told without the agent too;
//! what the agent has measured stands beside it where it answers.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, bail};
use redirector_ebpf::abi::PORTS;
use redirector_ebpf::packet::Address;
use redirector_ebpf::tables::liveness::{Admission, Vitals, slot, state};
use redirector_ebpf::tables::path::kind;
use redirector_ebpf::tables::{AliveNodes, Path};
use serde::Serialize;

use super::{ANSWER, View};
use crate::agent::control::{self, Answer, Request};
use crate::agent::{AgreementStatus, LinkStatus, LivenessStatus, MemberStatus, PeerStatus};
use crate::cli::output::{Format, Output, Row, cell, yes};
use crate::cli::target::Target;
use crate::config::Config;
use crate::dataplane::address::ip;
use crate::dataplane::flows::now;
use crate::dataplane::liveness::LivenessTables as _;
use crate::dataplane::maps::{MapsError, read};
use crate::liveness::{AGENT_SILENT, Spread};

#[derive(Serialize)]
pub(super) struct Node {
    id: u8,
    name: String,
    #[serde(rename = "self")]
    is_self: bool,
    /// What it is in this node's eyes.
    state: &'static str,
    alive: bool,
    /// Its health score, 0 to 100.
    health: Option<u8>,
    /// Its load, in per cent.
    load: Option<u8>,
    /// Its shed level.
    shed: Option<u8>,
    /// Milliseconds since its agent's last sign of life.
    agent_age_ms: Option<u64>,
    /// Where it takes packets from other nodes.
    address: Option<IpAddr>,
    /// How packets are forwarded to it.
    forward: Option<&'static str>,
    interface: Option<String>,
    next_hop: Option<String>,
    mac: Option<String>,
    primary_slots: usize,
    /// Whom it sees alive, itself included.
    sees: Vec<String>,
    /// Of its last answers, by interface.
    links: Vec<Link>,
    /// What the cluster agrees on; absent where the agent does not answer, or agrees with nobody.
    #[serde(skip_serializing_if = "Option::is_none")]
    agreed: Option<MemberStatus>,
    /// Whether it leads.
    leads: bool,
    /// How agreement stands as this node sees it; only of the node itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    agreement: Option<AgreementStatus>,
    /// What this node's agent has measured; absent where it does not answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    measured: Option<Measured>,
    /// How its sender of beats keeps time; only of the node itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    sender: Option<Sender>,
}

#[derive(Serialize)]
struct Link {
    interface: String,
    requests: u64,
    answered: u64,
    /// Microseconds from the last answered request to its answer.
    round_trip_us: Option<u64>,
    /// Milliseconds since the last answer.
    silent_ms: Option<u64>,
}

#[derive(Serialize)]
struct Measured {
    #[serde(flatten)]
    peer: PeerStatus,
    false_suspicions_per_hour: f64,
    links: Vec<LinkStatus>,
}

/// How a node's own sender of beats keeps time.
#[derive(Serialize)]
struct Sender {
    /// How late it woke, microseconds.
    lateness_us: Spread,
    /// Rounds that it left out since it was late by more than an interval.
    skipped: u64,
    /// Whether it runs with real-time priority.
    real_time: bool,
}

impl Sender {
    fn of(status: &LivenessStatus) -> Self {
        Self { lateness_us: status.lateness_us, skipped: status.skipped, real_time: status.real_time }
    }

    fn in_words(&self) -> String {
        let Self { lateness_us: Spread { p50, p99, max, .. }, skipped, real_time } = self;
        let priority = if *real_time { "with" } else { "without" };
        format!(
            "sender of beats, {priority} real-time priority: wakes {p50} us late (p50; p99 {p99} us, max {max} us), left \
             {skipped} rounds out"
        )
    }
}

impl Row for &Node {
    fn header() -> &'static [&'static str] {
        &[
            "ID",
            "NAME",
            "SELF",
            "STATE",
            "AGREED",
            "ROLE",
            "AGENT",
            "RTT",
            "HEALTH",
            "LOAD",
            "SHED",
            "ADDRESS",
            "FORWARD",
            "INTERFACE",
            "MAC",
            "PRIMARY-SLOTS",
            "SEES",
        ]
    }

    fn cells(&self) -> Vec<String> {
        let mac = match (&self.mac, self.forward.is_some()) {
            (None, true) => "unresolved".to_owned(),
            (mac, _) => cell(mac.as_ref()),
        };
        let round_trip = self.links.iter().filter_map(|link| link.round_trip_us).min();
        vec![
            self.id.to_string(),
            self.name.clone(),
            yes(self.is_self),
            self.state.to_owned(),
            cell(self.agreed.as_ref().map(|agreed| agreed.standing.as_str())),
            match self.leads {
                true => "leader".to_owned(),
                false => cell(self.agreed.as_ref().and_then(|agreed| agreed.seat.as_deref())),
            },
            cell(self.agent_age_ms.map(|age| format!("{age} ms"))),
            cell(round_trip.map(|time| format!("{time} us"))),
            cell(self.health),
            cell(self.load.map(|load| format!("{load}%"))),
            cell(self.shed),
            cell(self.address),
            cell(self.forward),
            cell(self.interface.as_ref()),
            mac,
            self.primary_slots.to_string(),
            self.sees.join(","),
        ]
    }
}

/// One link of a peer, as measured.
#[derive(Serialize)]
struct MeasuredLink<'a> {
    peer: &'a str,
    interface: String,
    link: &'a LinkStatus,
    false_suspicions_per_hour: f64,
}

impl Row for MeasuredLink<'_> {
    fn header() -> &'static [&'static str] {
        &["PEER", "INTERFACE", "ANSWERED", "RTT-MIN", "P50", "P99", "GAP-P99.99", "MAX", "FALSE-SUSPICIONS"]
    }

    fn cells(&self) -> Vec<String> {
        let LinkStatus { sent, answered, round_trip_us: trip, gap_us: gap, .. } = self.link;
        let mut cells = vec![self.peer.to_owned(), self.interface.clone(), format!("{answered} of {sent}")];
        cells.extend([trip.min, trip.p50, trip.p99].map(|us| format!("{us} us")));
        cells.extend([gap.p9999, gap.max].map(|us| format!("{:.1} ms", us as f64 / 1000.0)));
        cells.push(format!("{:.1}/h", self.false_suspicions_per_hour));
        cells
    }
}

/// Shows this node and its peers; also those that only the slots still name. A witness has no maps, and knows whose agents it
/// reaches.
pub(super) fn show(target: &Target, output: Output) -> Result<()> {
    let own = target.config()?;
    let is_witness = own.as_ref().is_some_and(Config::is_witness);
    let view = if is_witness { None } else { Some(View::open(target)?) };
    let mut nodes = view.as_ref().map_or_else(|| Ok(Vec::new()), list)?;
    let (liveness, agreement) = ask(target).unwrap_or_default();
    if is_witness && agreement.is_none() {
        bail!("the witness does not answer: `redirector witness` runs it");
    }
    let members = agreement.iter().flat_map(|agreement| &agreement.members);
    let me = own.map_or(0, |own| own.node.id);
    nodes.extend(members.filter(|one| is_witness || one.standing == "witness").map(|one| Node::of(one, me)));
    nodes.sort_by_key(|node| node.id);
    for node in &mut nodes {
        if let Some(agreement) = &agreement {
            node.leads = agreement.leader == Some(node.id);
            node.agreed = agreement.members.iter().find(|member| member.node == node.id).cloned();
        }
        if node.is_self {
            node.agreement = agreement.clone();
            node.sender = liveness.as_ref().map(Sender::of);
        }
        node.measured = liveness.as_ref().and_then(|status| measured(status, node.id));
    }
    output.list(&nodes)?;
    if matches!(output.format(), Format::Table) {
        if let Some(view) = view.filter(|_| liveness.is_some()) {
            output.remark("")?;
            output.list(nodes.iter().flat_map(|node| node.measured_links(&view)))?;
        }
        if let Some(sender) = nodes.iter().find_map(|node| node.sender.as_ref()) {
            output.remark(&sender.in_words())?;
        }
        if let Some(agreement) = agreement {
            output.remark(&log_in_words(&agreement))?;
            if let Some(refused) = agreement.refused.in_words() {
                output.remark(&refused)?;
            }
            output.remark(in_words(&agreement))?;
        }
    }
    Ok(())
}

impl Node {
    fn measured_links(&self, view: &View) -> impl Iterator<Item = MeasuredLink<'_>> {
        self.measured.iter().flat_map(move |measured| {
            measured.links.iter().map(|link| MeasuredLink {
                peer: &self.name,
                interface: view.names.port(link.port),
                link,
                false_suspicions_per_hour: measured.false_suspicions_per_hour,
            })
        })
    }

    /// A member of which only its agent is known here.
    fn of(member: &MemberStatus, me: u8) -> Self {
        let is_self = member.node == me;
        let address = member.address.parse::<SocketAddr>().map(|address| address.ip()).ok();
        Self {
            id: member.node,
            name: format!("n{}", member.node),
            is_self,
            state: if member.reached { "reached" } else { "away" },
            alive: member.reached,
            health: None,
            load: None,
            shed: None,
            agent_age_ms: None,
            address,
            forward: None,
            interface: None,
            next_hop: None,
            mac: None,
            primary_slots: 0,
            sees: Vec::new(),
            links: Vec::new(),
            agreed: None,
            leads: false,
            agreement: None,
            measured: None,
            sender: None,
        }
    }
}

/// How far the cluster is from an outage.
fn in_words(agreement: &AgreementStatus) -> &'static str {
    match agreement {
        AgreementStatus { version: 0, .. } => {
            "nothing is agreed on: `redirector bootstrap` on one node begins the cluster"
        }
        AgreementStatus { quorum: false, .. } => "no majority: packets are served, and nothing can be changed",
        AgreementStatus { redundant: true, spare: true, .. } => "redundant: any one node may fail",
        AgreementStatus { redundant: true, .. } => {
            "redundant: any one node may fail; without one more voter nothing could be changed meanwhile"
        }
        AgreementStatus { copied: false, .. } => {
            "not redundant: not all nodes have this one's flows, and connections would break if it failed"
        }
        _ => "not redundant: another fault may break connections or keep changes from being made",
    }
}

/// How far the log is.
fn log_in_words(AgreementStatus { term, last, commit, applied, .. }: &AgreementStatus) -> String {
    format!("term {term}, log {last}, committed {commit}, applied {applied}")
}

/// What the agent has to say, if there is one.
fn ask(target: &Target) -> Option<(Option<LivenessStatus>, Option<AgreementStatus>)> {
    let config = target.config().ok()??;
    match control::ask_within(ANSWER, &control::path(&config), &Request::Nodes) {
        Ok(Answer::Nodes { liveness, agreement }) => Some((liveness, agreement)),
        _ => None,
    }
}

fn measured(status: &LivenessStatus, id: u8) -> Option<Measured> {
    let peer = status.peers.iter().find(|peer| peer.node == id)?.clone();
    let links = status.links.iter().filter(|link| link.node == id).cloned().collect();
    let false_suspicions_per_hour = peer.false_suspicions as f64 / status.hours.max(f64::MIN_POSITIVE);
    Some(Measured { peer, false_suspicions_per_hour, links })
}

fn list(view: &View) -> Result<Vec<Node>, MapsError> {
    let slots = view.maps.slots()?;
    let alive = view.maps.alive.get(&0, 0).map_err(read("ALIVE"))?;
    let mut nodes = Vec::new();
    for id in 1..=254u8 {
        let path = view.maps.peer(id)?;
        let is_self = id == view.node.id;
        let is_peer = path != Path::default();
        if !is_self && !is_peer && !slots.iter().any(|slot| slot.ranks.contains(&id)) {
            continue;
        }
        let own = [(view.node.hop4, false), (view.node.hop6, true)];
        let own = own.into_iter().find(|(address, _)| *address != Address::default());
        let seen = seen(view, id);
        let sees = if is_self { alive } else { seen.view };
        let agent_age_ms = if is_self { own_agent_age(view) } else { seen.agent_age_ms };
        let own_vitals = || Vitals::of(view.maps.liveness.condition().vitals.load());
        let vitals = if is_self { agent_age_ms.map(|_| own_vitals()) } else { seen.vitals };
        nodes.push(Node {
            id,
            name: view.names.node(id),
            is_self,
            state: state_of(view, id, is_self, &alive, &seen, agent_age_ms),
            alive: alive.is_alive(id),
            health: vitals.map(|vitals| vitals.health),
            load: vitals.map(|vitals| vitals.load),
            shed: vitals.map(|vitals| vitals.shed),
            agent_age_ms,
            address: match is_self {
                true => own.map(|(address, v6)| ip(&address, v6)),
                false => is_peer.then(|| ip(&path.remote, path.outer_v6 != 0)),
            },
            forward: is_peer.then_some(if path.kind == kind::HOP { "udp" } else { "mac" }),
            interface: is_peer.then(|| view.names.port(path.port)),
            next_hop: is_peer.then(|| view.names.neighbour(path.neighbour)),
            mac: if is_peer { view.mac(path.neighbour)? } else { None },
            primary_slots: slots.iter().filter(|slot| slot.ranks[0] == id).count(),
            sees: (1..=254).filter(|node| sees.is_alive(*node)).map(|node| view.names.node(node)).collect(),
            links: seen.links,
            agreed: None,
            leads: false,
            agreement: None,
            measured: None,
            sender: None,
        });
    }
    Ok(nodes)
}

/// What the last beats of a node say.
#[derive(Default)]
struct Seen {
    links: Vec<Link>,
    view: AliveNodes,
    state: u8,
    vitals: Option<Vitals>,
    agent_age_ms: Option<u64>,
    answers: bool,
}

fn seen(view: &View, id: u8) -> Seen {
    let (maps, time) = (&view.maps.liveness, now());
    let timeout = maps.watch().map_or(0, |watch| u64::from(watch.multiplier) * watch.interval + watch.grace);
    let mut seen = Seen::default();
    let mut latest = 0;
    for port in (0..PORTS as u8).filter(|port| maps.sent(id, *port).sequence.load() != 0) {
        let (sent, heard) = (maps.sent(id, port), maps.heard(id, port));
        let answered = heard.answered.load();
        let came = (answered != 0).then(|| slot(&heard.times, answered).load());
        let asked = sent.time(answered);
        seen.links.push(Link {
            interface: view.names.port(port),
            requests: sent.sequence.load(),
            answered,
            round_trip_us: came.filter(|came| asked != 0 && *came >= asked).map(|came| (came - asked) / 1000),
            silent_ms: came.map(|came| time.saturating_sub(came) / 1_000_000),
        });
        seen.answers |= came.is_some_and(|came| time.saturating_sub(came) <= timeout);
        let at = heard.at.load();
        if at > latest {
            latest = at;
            let vitals = Vitals::of(heard.vitals.load());
            seen.state = vitals.state;
            seen.vitals = Some(vitals);
            seen.agent_age_ms = Some(u64::from(vitals.agent_age) + time.saturating_sub(at) / 1_000_000);
            seen.view = AliveNodes { words: std::array::from_fn(|word| heard.view[word].load()) };
        }
    }
    seen
}

/// Milliseconds since this node's own agent gave a sign of life; none if it never did.
fn own_agent_age(view: &View) -> Option<u64> {
    let last = view.maps.liveness.condition().agent.load();
    (last != 0).then(|| now().saturating_sub(last) / 1_000_000)
}

fn state_of(view: &View, id: u8, me: bool, alive: &AliveNodes, seen: &Seen, agent_age: Option<u64>) -> &'static str {
    let maps = &view.maps.liveness;
    let agent_is_silent = agent_age.is_some_and(|age| u128::from(age) >= AGENT_SILENT.as_millis());
    if me {
        let admitted = |id: &u8| maps.admission(*id).is_some_and(|(_, peer)| peer.term != 0);
        let peers: Vec<u8> = (1..=254).filter(admitted).collect();
        let cut_off = !peers.is_empty() && peers.iter().all(|peer| !alive.is_alive(*peer));
        return match Vitals::of(maps.condition().vitals.load()).state {
            _ if cut_off => "cut-off",
            _ if agent_is_silent => "agent-silent",
            state::RETURNING => "returning",
            state::DRAINING => "draining",
            _ => "alive",
        };
    }
    let Admission { term, .. } = maps.admission(id).map_or_else(Admission::default, |(_, admission)| admission);
    if alive.is_alive(id) {
        return match seen.state {
            state::DRAINING => "draining",
            _ if agent_is_silent => "agent-silent",
            _ => "alive",
        };
    }
    match (seen.answers, term != 0 && maps.latch(id).term.load() == u64::from(term)) {
        (true, _) => "returning",
        (false, true) => "suspect",
        (false, false) => "unknown",
    }
}
