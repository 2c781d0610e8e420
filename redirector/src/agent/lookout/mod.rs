//! What a node makes of its peers and of itself, without IO: the detector is fed with what the maps say, and peers are let
//! be alive where it says so.

mod readiness;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context as _, Result};
use redirector_ebpf::tables::liveness::{Heard, Vitals, Watch, slot, state};
use redirector_ebpf::tables::{AliveNodes, Slot};
use siphasher::sip::SipHasher24;
use siphasher::sip128::SipHasher24 as SipHasher128;

use self::readiness::{FLOWS, Readiness, is_up_as};
use super::copies::Delivered;
use crate::config::{Config, Key};
use crate::consensus::state::State;
use crate::dataplane::image::Image;
use crate::dataplane::liveness::LivenessTables;
use crate::health::FULL_SHARE;
use crate::liveness::{Action, Detector, LinkPlan, Observation, Own, Plan, State as Peer};
use crate::vip::{Fitness, View};

/// What answers may take, as a share of the interval.
pub(super) const GRACE_DIVISOR: u32 = 4;
/// The least that answers may take.
pub(super) const GRACE_MIN: Duration = Duration::from_micros(500);

/// What nodes agree on, as far as this one knows.
#[derive(Clone, Copy, Debug)]
pub enum Agreed<'a> {
    /// They agree on nothing.
    Nothing,
    /// They do if the cluster has begun, and this node has not heard yet on what.
    Unknown,
    /// On this.
    On(&'a State),
}

/// A node's view of its peers and of itself. Times are monotonic nanoseconds.
pub struct Lookout {
    detector: Detector,
    allowed: BTreeMap<u8, bool>,
    links: Vec<(u8, u8)>,
    /// The port that packets to each peer leave by while it answers there.
    first: BTreeMap<u8, u8>,
    timeout: u64,
    me: u8,
    incarnation: u32,
    readiness: Readiness,
    own: Own,
    drains: bool,
    condition: Condition,
    /// Whether it hands everything over for its health.
    hands_over: bool,
    /// What peers that answer say of themselves.
    vitals: BTreeMap<u8, Vitals>,
}

/// How a node is, as it says in beats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Condition {
    /// Health score, 0 to 100.
    pub health: u8,
    /// Load in per cent.
    pub load: u8,
    /// Shed level.
    pub shed: u8,
    /// The share of its work that it takes, in quarters; 0: it wants to be relieved of all, since its health is critical.
    pub share: u8,
}

impl Default for Condition {
    fn default() -> Self {
        Self { health: 100, load: 0, shed: 0, share: FULL_SHARE }
    }
}

/// What a lookout asks the host for.
pub struct Host<F> {
    /// Changes when the host boots.
    pub boot_id: u64,
    /// Gives an incarnation greater than all before. It is asked where the maps have none: they are new, and what this node
    /// knew is lost.
    pub next_incarnation: F,
    /// The time.
    pub time: u64,
}

/// The keys of beats, and their numbers.
fn keys(config: &Config, key: [u8; 16]) -> ([[u64; 2]; 2], [u8; 2]) {
    let own = SipHasher128::new_with_key(&key).hash(&8u64.to_le_bytes()).as_bytes();
    let given = match config.cluster.beat_keys.as_slice() {
        [] => vec![Key(own)],
        given => given.to_vec(),
    };
    let mut keys = ([[0; 2]; 2], [0; 2]);
    for (place, key) in given.iter().take(2).enumerate() {
        keys.0[place] = key.words();
        keys.1[place] = key.number();
    }
    keys
}

impl Lookout {
    /// A lookout of node `me` that knows nobody.
    pub fn new(me: u8) -> Self {
        Self {
            detector: Detector::default(),
            allowed: BTreeMap::new(),
            links: Vec::new(),
            first: BTreeMap::new(),
            timeout: 0,
            me,
            incarnation: 0,
            readiness: Readiness::default(),
            own: Own::Returning,
            drains: false,
            condition: Condition::default(),
            hands_over: false,
            vitals: BTreeMap::new(),
        }
    }

    /// Takes over a configuration; says whom to ask, and how.
    ///
    /// # Errors
    /// Where the maps cannot be read or written, or no incarnation can be had.
    pub fn configure(
        &mut self,
        maps: &mut impl LivenessTables,
        config: &Config,
        key: [u8; 16],
        image: &Image,
        host: Host<impl FnOnce() -> Result<u32>>,
    ) -> Result<Plan> {
        let before = maps.watch().context("liveness")?;
        self.allowed = config
            .members
            .iter()
            .filter(|member| member.id != config.node.id)
            .map(|member| (member.id, member.alive))
            .collect();
        let mut ports: BTreeMap<u8, u16> = BTreeMap::new();
        for (node, port) in image.links.keys() {
            *ports.entry(*node).or_default() |= 1 << port;
        }
        let first = |node: &u8| image.peers.get(node).map_or(0, |path| path.port);
        let listed: Vec<_> = ports.iter().map(|(node, ports)| (*node, *ports, first(node))).collect();
        let nodes: Vec<u8> = ports.keys().copied().collect();
        let interval = config.cluster.beats.interval;
        let (keys, key_ids) = keys(config, key);
        let watch = Watch {
            keys,
            boot_id: host.boot_id,
            interval: interval.as_nanos() as u64,
            grace: (interval / GRACE_DIVISOR).max(GRACE_MIN).as_nanos() as u64,
            incarnation: match before.incarnation {
                0 => (host.next_incarnation)()?,
                there => there,
            },
            multiplier: config.cluster.beats.multiplier,
            key_ids,
            pad: 0,
            peers: maps.list(&listed),
        };
        maps.set_watch(&watch).context("liveness")?;
        if before.incarnation == 0 {
            self.readiness.starting_since = Some(host.time);
        }
        self.incarnation = watch.incarnation;
        self.timeout = config.cluster.beats.timeout().as_nanos() as u64 + watch.grace;
        self.detector.set_peers(&nodes, Duration::from_nanos(host.time));
        self.links = image.links.keys().copied().collect();
        self.first = image.peers.iter().map(|(node, path)| (*node, path.port)).collect();
        maps.condition().slots.store(digest(&image.slots));
        let link = |((node, port), path): (&(u8, u8), &redirector_ebpf::tables::Path)| LinkPlan {
            node: *node,
            path: *path,
            interface: image.ports[usize::from(*port)].ifindex,
            mac: image.ports[usize::from(*port)].mac,
        };
        let links = image.links.iter().map(link).collect();
        Ok(Plan { node: config.node.id, cluster: config.cluster.id, watch, links })
    }

    /// Takes over what an earlier agent has left: peers that were alive stay so, and those that were suspected.
    pub fn adopt(&mut self, maps: &impl LivenessTables) {
        self.readiness.served =
            matches!(Vitals::of(maps.condition().vitals.load()).state, state::ACTIVE | state::DRAINING);
        for &node in self.allowed.keys() {
            let (Some((row, admission)), Some(peer)) = (maps.admission(node), self.detector.peer_mut(node)) else {
                continue;
            };
            if admission.term != 0 {
                let incarnation = maps.watched(row).incarnation.load() as u32;
                peer.adopt(incarnation, !maps.is_admitted(node));
            }
        }
    }

    /// The peers in one of these states.
    pub fn peers_in<'a>(&'a self, states: &'a [Peer]) -> impl Iterator<Item = u8> + 'a {
        let those = self.detector.peers().iter().filter(|(_, peer)| states.contains(&peer.state));
        those.map(|(&node, _)| node)
    }

    /// What is known of each peer.
    pub fn detector(&self) -> &Detector {
        &self.detector
    }

    /// What this node is itself.
    pub fn own(&self) -> Own {
        self.own
    }

    /// Whether it is agreed that this node gives its slots and VIPs away.
    pub fn drains(&self) -> bool {
        self.drains
    }

    /// Links to peers: node and port.
    pub fn links(&self) -> &[(u8, u8)] {
        &self.links
    }

    /// Nanoseconds after which who has not been heard of has no voice.
    pub fn timeout(&self) -> u64 {
        self.timeout
    }

    /// Whether this node hands everything over for its health.
    pub fn hands_over(&self) -> bool {
        self.hands_over
    }

    /// The share of its work that this node takes, in quarters. Who is the last healthy one keeps some.
    pub fn share(&self) -> u8 {
        if self.hands_over { 0 } else { self.condition.share.max(1) }
    }

    /// Peers that say that they drain, or hand everything over for their health.
    pub fn ailing(&self) -> BTreeSet<u8> {
        let ails = |(_, vitals): &(&u8, &Vitals)| vitals.state == state::DRAINING;
        self.vitals.iter().filter(ails).map(|(&node, _)| node).collect()
    }

    /// Whether a peer that serves is in better health, or as good and of a lower id: the best node of all never hands over.
    fn has_better_peer(&self, maps: &impl LivenessTables) -> bool {
        let own = (self.condition.health, Reverse(self.me));
        self.serving(maps).any(|(node, health)| (health, Reverse(node)) > own)
    }

    /// Peers that are alive and neither drain, return nor hand everything over, and their health.
    pub fn serving(&self, maps: &impl LivenessTables) -> impl Iterator<Item = (u8, u8)> {
        let (alive, vitals) = (maps.alive(), self.vitals.iter());
        let serve = vitals.filter(move |(node, vitals)| alive.is_alive(**node) && vitals.state == state::ACTIVE);
        serve.map(|(&node, vitals)| (node, vitals.health))
    }

    /// Says how this node is, from the next step on.
    pub fn set_condition(&mut self, condition: Condition) {
        self.condition = condition;
    }

    /// A port lost its carrier, or has it again.
    pub fn carrier(&self, maps: &impl LivenessTables, port: u8, carrier: bool) {
        for (node, _) in self.links.iter().filter(|(_, link)| *link == port) {
            maps.sent(*node, port).down.store(u64::from(!carrier));
        }
    }

    /// Of the peers that answer, and that have several links, how many do so on the first.
    pub fn heard_first(&self, maps: &impl LivenessTables, time: u64) -> (usize, usize) {
        let ports = |node: u8| self.links.iter().filter(move |(link, _)| *link == node).map(|(_, port)| *port);
        let is_heard =
            |node, port| answered(maps, node, port).is_some_and(|at| time.saturating_sub(at) <= self.timeout);
        let several = self.first.iter().filter(|(node, _)| ports(**node).count() > 1);
        let heard = several.filter(|(node, _)| ports(**node).any(|port| is_heard(**node, port)));
        heard.fold((0, 0), |(first, all), (&node, &port)| (first + usize::from(is_heard(node, port)), all + 1))
    }

    /// Looks at all peers, and lets in who may be. `delivered` is none where flows are not replicated.
    pub fn step(&mut self, maps: &impl LivenessTables, delivered: Option<&Delivered>, agreed: Agreed<'_>, time: u64) {
        let has_begun = self.has_begun(maps, time);
        self.vitals.clear();
        for (&node, &allowed) in &self.allowed {
            let mut seen = self.observe(maps, node, allowed, time, delivered);
            if seen.answers {
                self.vitals.insert(node, seen.vitals);
            }
            let Some(peer) = self.detector.peer_mut(node) else { continue };
            seen.agreed = match agreed {
                Agreed::On(state) if seen.incarnation == 0 => state.is_up(node),
                Agreed::On(state) => is_up_as(state, node, seen.incarnation),
                // Who was let in stays; whether anybody else may is not known.
                Agreed::Unknown => peer.admitted || !has_begun,
                Agreed::Nothing => true,
            };
            let before = peer.state;
            match peer.observe(Duration::from_nanos(time), &seen) {
                Some(Action::Admit(incarnation)) => {
                    if !delivered.is_none_or(|delivered| delivered.to.contains(&node)) {
                        tracing::warn!(
                            node,
                            "a peer is let in without all flows: they have not got there in {FLOWS:?}"
                        );
                    }
                    maps.admit(node, Some(incarnation));
                }
                Some(Action::Dismiss) => maps.admit(node, None),
                None => {}
            }
            if peer.state != before {
                tracing::info!(node, from = ?before, to = ?peer.state, "a peer's state changed");
            }
        }
        let (lacks, owed) = self.lacks(maps, delivered, agreed, time);
        let own = self.detector.own(!lacks);
        if own != self.own {
            tracing::info!(from = ?self.own, to = ?own, "this node's state changed");
            self.own = own;
        }
        let drains = |state: &State| state.members.get(&self.me).is_some_and(|member| member.draining);
        self.drains = matches!(agreed, Agreed::On(state) if drains(state));
        let Condition { health, load, shed, share } = self.condition;
        self.hands_over = share == 0 && self.has_better_peer(maps);
        let said = match (lacks || owed, self.drains || self.hands_over) {
            (true, _) => state::RETURNING,
            (false, true) => state::DRAINING,
            (false, false) => state::ACTIVE,
        };
        let vitals = Vitals { state: said, health, load, shed, agent_age: 0 };
        maps.condition().vitals.store(vitals.word());
    }

    /// Peers that are alive, and the incarnations that they say.
    pub fn alive(&self, maps: &impl LivenessTables, time: u64) -> Vec<(u8, u64)> {
        let alive = maps.alive();
        let mut peers: BTreeMap<u8, u64> = BTreeMap::new();
        for (node, heard) in self.heard(maps, time).into_iter().filter(|(node, _)| alive.is_alive(*node)) {
            let incarnation = peers.entry(node).or_default();
            *incarnation = (*incarnation).max(heard.incarnation.load() & u64::from(u32::MAX));
        }
        peers.into_iter().filter(|(_, incarnation)| *incarnation != 0).collect()
    }

    /// Peers that were heard of within the timeout, and what was heard.
    fn heard<'a>(&self, maps: &'a impl LivenessTables, time: u64) -> Vec<(u8, &'a Heard)> {
        let heard = self.links.iter().map(|(node, port)| (*node, maps.heard(*node, *port)));
        heard.filter(|(_, heard)| time.saturating_sub(heard.at.load()) <= self.timeout).collect()
    }

    /// Peers that go by something later than this node knows of, such as that it was cut off and is down.
    pub(super) fn ahead(&self, maps: &impl LivenessTables, known: Option<u64>) -> BTreeSet<u8> {
        let Some(known) = known else { return BTreeSet::new() };
        let ahead = |(node, port): &(u8, u8)| (maps.heard(*node, *port).applied.load() > known).then_some(*node);
        self.links.iter().filter_map(ahead).collect()
    }

    fn observe(
        &self,
        maps: &impl LivenessTables,
        node: u8,
        allowed: bool,
        time: u64,
        delivered: Option<&Delivered>,
    ) -> Observation {
        let mut seen = Observation {
            allowed,
            answers: false,
            incarnation: 0,
            vitals: Vitals::default(),
            agreed: true,
            on: maps.is_admitted(node),
            delivered: delivered.is_none_or(|delivered| delivered.to.contains(&node)) || self.waited(node, time),
        };
        let mut latest = 0;
        for (_, port) in self.links.iter().filter(|(link, _)| *link == node) {
            let Some(came) = answered(maps, node, *port) else { continue };
            let heard = maps.heard(node, *port);
            seen.answers |= time.saturating_sub(came) <= self.timeout;
            if heard.at.load() >= latest {
                latest = heard.at.load();
                seen.incarnation = heard.incarnation.load() as u32;
                seen.vitals = Vitals::of(heard.vitals.load());
            }
        }
        seen
    }

    /// Whether a peer that returns has waited for flows long enough.
    fn waited(&self, node: u8, time: u64) -> bool {
        let peer = self.detector.peers().get(&node).filter(|peer| peer.state == Peer::Returning);
        peer.is_some_and(|peer| Duration::from_nanos(time).saturating_sub(peer.since) > FLOWS)
    }

    /// What this node knows of the cluster, as far as VIPs depend on it. `attached` says whether packets come to the data
    /// plane at all.
    pub fn view(&self, maps: &impl LivenessTables, config: &Config, attached: bool, time: u64) -> View {
        let mut view = voices(maps, &self.links, self.timeout, time);
        view.members.extend(config.members.iter().map(|member| member.id).chain([self.me]));
        view.alive.set(self.me, true);
        let drains =
            self.drains || self.hands_over || config.members.iter().any(|member| member.id == self.me && !member.alive);
        view.fitness = match (attached && self.own != Own::Returning, drains) {
            (false, _) => Fitness::Unfit,
            (true, true) => Fitness::Draining,
            (true, false) => Fitness::Ready,
        };
        view
    }
}

/// When a peer answered last on a link; none if it never did.
fn answered(maps: &impl LivenessTables, node: u8, port: u8) -> Option<u64> {
    let heard = maps.heard(node, port);
    let number = heard.answered.load();
    (number != 0).then(|| slot(&heard.times, number).load())
}

/// Who is alive in whose eyes. Peers that have not been heard of within the timeout have no voice.
pub(super) fn voices(maps: &impl LivenessTables, links: &[(u8, u8)], timeout: u64, time: u64) -> View {
    let mut view = View { alive: maps.alive(), ..View::default() };
    for (node, port) in links {
        let heard = maps.heard(*node, *port);
        if time.saturating_sub(heard.at.load()) > timeout {
            continue;
        }
        let told = AliveNodes { words: std::array::from_fn(|word| heard.view[word].load()) };
        view.peers.insert(*node, told);
        let said = Vitals::of(heard.vitals.load()).state;
        view.unwilling.set(*node, said == state::DRAINING);
    }
    view
}

/// A digest of the slot table, by which nodes see that theirs are the same.
pub fn digest(slots: &[Slot]) -> u64 {
    let mut bytes = Vec::with_capacity(slots.len() * 16);
    for slot in slots {
        bytes.extend(slot.ranks);
        bytes.push(slot.previous);
        bytes.extend(slot.version.to_le_bytes());
    }
    SipHasher24::new().hash(&bytes)
}
