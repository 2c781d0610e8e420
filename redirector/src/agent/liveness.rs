//! Liveness within the agent: keeps the kernel's rules and lists in step with the configuration, feeds the detector with
//! what the maps say, and lets peers be alive where it says so.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use redirector_ebpf::tables::liveness::{Vitals, Watch, state};
use redirector_ebpf::tables::{AliveNodes, Slot};
use serde::{Deserialize, Serialize};
use siphasher::sip::SipHasher24;
use siphasher::sip128::SipHasher24 as SipHasher128;
use tokio::sync::watch;

use super::committed;
use super::talk::Delivered;
use crate::config::{Config, Key};
use crate::consensus::state::{Standing, State as Agreed};
use crate::dataplane::flows::now;
use crate::dataplane::image::Image;
use crate::dataplane::liveness::LivenessMaps;
use crate::liveness::{AGENT_SILENT, Action, Detector, LinkPlan, Observation, Own, Plan, Sender, Spread, State};
use crate::vip::{self, View};

/// What answers may take, as a share of the interval.
const GRACE_DIVISOR: u32 = 4;
/// The least that answers may take.
const GRACE_MIN: Duration = Duration::from_micros(500);

/// How long a node that returns waits at most for flows that others have, before it serves without them.
const FLOWS: Duration = Duration::from_secs(10);

/// Liveness of a node.
pub(super) struct Liveness {
    maps: LivenessMaps,
    sender: Sender,
    detector: Detector,
    allowed: BTreeMap<u8, bool>,
    links: Vec<(u8, u8)>,
    timeout: u64,
    me: u8,
    lacking_since: Option<u64>,
    own: Own,
}

/// What is measured of a link to a peer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LinkStatus {
    /// The peer.
    pub node: u8,
    /// The port.
    pub port: u8,
    /// Requests sent since the agent started.
    pub sent: u64,
    /// Of these, answered.
    pub answered: u64,
    /// Round trips, microseconds.
    pub round_trip_us: Spread,
    /// Times between two answers, microseconds.
    pub gap_us: Spread,
}

/// What the agent knows of a peer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PeerStatus {
    /// The peer.
    pub node: u8,
    /// Its state, in words.
    pub state: String,
    /// How long it has been in it, milliseconds.
    pub for_ms: u64,
    /// How often it was suspected since the agent started.
    pub suspicions: u64,
    /// Of these, how often it came back without having died.
    pub false_suspicions: u64,
}

/// Liveness, as the agent tells it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LivenessStatus {
    /// What this node is itself.
    pub own: String,
    /// The peers.
    pub peers: Vec<PeerStatus>,
    /// The links.
    pub links: Vec<LinkStatus>,
    /// How late the sender woke, microseconds.
    pub lateness_us: Spread,
    /// Rounds that it left out since it was late.
    pub skipped: u64,
    /// Whether it has real-time priority.
    pub real_time: bool,
    /// Hours since the agent started.
    pub hours: f64,
}

fn clock() -> Duration {
    Duration::from_nanos(now())
}

/// A word that changes when the host boots.
fn boot_id() -> u64 {
    let text = fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    SipHasher24::new().hash(&text) | 1
}

/// The keys of beats, and their numbers.
fn keys(config: &Config, key: [u8; 16]) -> ([[u64; 2]; 2], [u8; 2]) {
    let own = SipHasher128::new_with_key(&key).hash(&8u64.to_le_bytes()).as_bytes();
    let given = match config.cluster.beat_keys.as_slice() {
        [] => vec![Key(own)],
        given => given.to_vec(),
    };
    let words = |key: &Key| {
        let [low, high] = [&key.0[..8], &key.0[8..]];
        [low, high].map(|half| half.iter().rev().fold(0u64, |word, byte| word << 8 | u64::from(*byte)))
    };
    let mut keys = ([[0; 2]; 2], [0; 2]);
    for (place, key) in given.iter().take(2).enumerate() {
        keys.0[place] = words(key);
        keys.1[place] = key.number();
    }
    keys
}

impl Liveness {
    /// Starts asking; peers that were alive stay so, and those that were suspected.
    pub(super) fn start(directory: &Path, config: &Config, key: [u8; 16], image: &Image) -> Result<Self> {
        let maps = LivenessMaps::open(directory)?;
        let sender = Sender::start(directory)?;
        let mut liveness = Self {
            maps,
            sender,
            detector: Detector::default(),
            allowed: BTreeMap::new(),
            links: Vec::new(),
            timeout: 0,
            me: config.node.id,
            lacking_since: None,
            own: Own::Returning,
        };
        liveness.configure(config, key, image)?;
        for &node in liveness.allowed.keys() {
            let (Some((row, admission)), Some(peer)) =
                (liveness.maps.admission(node), liveness.detector.peer_mut(node))
            else {
                continue;
            };
            if admission.term != 0 {
                let incarnation = liveness.maps.watched(row).incarnation.load() as u32;
                peer.adopt(incarnation, !liveness.maps.is_admitted(node));
            }
        }
        liveness.sign();
        Ok(liveness)
    }

    /// Takes over a configuration.
    pub(super) fn configure(&mut self, config: &Config, key: [u8; 16], image: &Image) -> Result<()> {
        let before = self.maps.watch().context("liveness")?;
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
        let nodes: Vec<u8> = ports.keys().copied().collect();
        let interval = config.cluster.beats.interval;
        let (keys, key_ids) = keys(config, key);
        let watch = Watch {
            keys,
            boot_id: boot_id(),
            interval: interval.as_nanos() as u64,
            grace: (interval / GRACE_DIVISOR).max(GRACE_MIN).as_nanos() as u64,
            incarnation: match before.incarnation {
                0 => committed::next_incarnation(&config.node.data).context("no incarnation can be kept")?,
                there => there,
            },
            multiplier: config.cluster.beats.multiplier,
            key_ids,
            pad: 0,
            peers: self.maps.list(&ports.into_iter().collect::<Vec<_>>()),
        };
        self.maps.set_watch(&watch).context("liveness")?;
        self.timeout = config.cluster.beats.timeout().as_nanos() as u64 + watch.grace;
        self.detector.set_peers(&nodes, clock());
        self.links = image.links.keys().copied().collect();
        self.set_slots(&image.slots);
        let link = |((node, port), path): (&(u8, u8), &redirector_ebpf::tables::Path)| LinkPlan {
            node: *node,
            path: *path,
            interface: image.ports[usize::from(*port)].ifindex,
            mac: image.ports[usize::from(*port)].mac,
        };
        self.sender.set_plan(Plan {
            node: config.node.id,
            cluster: config.cluster.id,
            watch,
            links: image.links.iter().map(link).collect(),
        });
        Ok(())
    }

    /// Says in beats which slots are in force.
    pub(super) fn set_slots(&self, slots: &[Slot]) {
        self.maps.condition().slots.store(digest(slots));
    }

    /// Says in beats, and to the next agent, by which version of what is agreed on the maps go; 0: by none.
    pub(super) fn set_applied(&self, version: u64) {
        self.maps.condition().applied.store(version);
    }

    /// The version of what is agreed on that the maps go by.
    pub(super) fn applied(&self) -> u64 {
        self.maps.condition().applied.load()
    }

    /// Which life of this node's maps this is.
    pub(super) fn incarnation(&self) -> Result<u64> {
        Ok(self.maps.watch()?.incarnation.into())
    }

    /// The peers in one of these states.
    pub(super) fn peers_in<'a>(&'a self, states: &'a [State]) -> impl Iterator<Item = u8> + 'a {
        let those = self.detector.peers().iter().filter(|(_, peer)| states.contains(&peer.state));
        those.map(|(&node, _)| node)
    }

    /// Changes whenever alive bits do, or what peers say of them.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.sender.changes()
    }

    /// The agent lives.
    pub(super) fn sign(&self) {
        self.maps.condition().agent.store(now());
    }

    /// A port lost its carrier, or has it again.
    pub(super) fn carrier(&self, port: u8, carrier: bool) {
        for (node, _) in self.links.iter().filter(|(_, link)| *link == port) {
            self.maps.sent(*node, port).down.store(u64::from(!carrier));
        }
    }

    /// Looks at all peers, and lets in who may be. `delivered` is none where flows are not replicated, `agreed` where nothing
    /// is agreed on.
    pub(super) fn step(&mut self, delivered: Option<&Delivered>, agreed: Option<&Agreed>) {
        let time = now();
        for (&node, &allowed) in &self.allowed {
            let mut seen = self.observe(node, allowed, time, delivered);
            if let Some(agreed) = agreed {
                let member = agreed.members.get(&node).filter(|member| member.standing == Standing::Up);
                let is_that = |incarnation| seen.incarnation == 0 || incarnation == u64::from(seen.incarnation);
                seen.agreed = member.is_some_and(|member| is_that(member.incarnation));
            }
            let Some(peer) = self.detector.peer_mut(node) else { continue };
            let before = peer.state;
            match peer.observe(Duration::from_nanos(time), &seen) {
                Some(Action::Admit(incarnation)) => self.maps.admit(node, Some(incarnation)),
                Some(Action::Dismiss) => self.maps.admit(node, None),
                None => {}
            }
            if peer.state != before {
                tracing::info!(node, from = ?before, to = ?peer.state, "a peer's state changed");
            }
        }
        let lacks = match agreed {
            Some(agreed) => !agreed.is_up(self.me),
            None => self.lacks(delivered, time),
        };
        let own = self.detector.own(!lacks);
        if own != self.own {
            tracing::info!(from = ?self.own, to = ?own, "this node's state changed");
            self.own = own;
        }
        let said = if lacks { state::RETURNING } else { state::ACTIVE };
        let vitals = Vitals { state: said, health: 100, load: 0, shed: 0, agent_age: 0 };
        self.maps.condition().vitals.store(vitals.word());
    }

    /// Whether this node must not serve yet: others that live do not count it alive, and it has not got all their flows.
    /// A node that the others go on counting alive lost nothing, even if its agent is new.
    fn lacks(&mut self, delivered: Option<&Delivered>, time: u64) -> bool {
        let voices: Vec<(u8, bool)> = self
            .links
            .iter()
            .map(|(node, port)| (*node, self.maps.heard(*node, *port)))
            .filter(|(_, heard)| time.saturating_sub(heard.at.load()) <= self.timeout)
            .filter(|(_, heard)| u128::from(Vitals::of(heard.vitals.load()).agent_age) < AGENT_SILENT.as_millis())
            .map(|(node, heard)| {
                let view = AliveNodes { words: std::array::from_fn(|word| heard.view[word].load()) };
                (node, view.is_alive(self.me))
            })
            .collect();
        let is_out = voices.iter().any(|(_, counted)| !counted);
        let missing = |delivered: &Delivered| voices.iter().any(|(node, _)| !delivered.from.contains(node));
        if !is_out || !delivered.is_some_and(missing) {
            self.lacking_since = None;
            return false;
        }
        let since = *self.lacking_since.get_or_insert(time);
        if time.saturating_sub(since) < FLOWS.as_nanos() as u64 {
            return true;
        }
        if self.own == Own::Returning {
            tracing::warn!("peers have not delivered all their flows in {FLOWS:?}: this node serves without them");
        }
        false
    }

    /// Who is alive in whose eyes.
    pub(super) fn view(&self) -> View {
        voices(&self.maps, &self.links, self.timeout)
    }

    /// Has whoever holds VIPs told of changes without a detour over the agent. `base` is what else a view says.
    pub(super) fn tell_at_once(&self, vips: vip::Handle, base: View) {
        let (links, timeout) = (self.links.clone(), self.timeout);
        self.sender.set_watcher(Box::new(move |maps| {
            let seen = voices(maps, &links, timeout);
            let (me, mut view) = (base.alive, base.clone());
            (view.alive, view.peers, view.unwilling) = (seen.alive, seen.peers, seen.unwilling);
            view.alive.words.iter_mut().zip(me.words).for_each(|(word, own)| *word |= own);
            vips.view(view);
        }));
    }

    fn observe(&self, node: u8, allowed: bool, time: u64, delivered: Option<&Delivered>) -> Observation {
        let mut seen = Observation {
            allowed,
            answers: false,
            incarnation: 0,
            vitals: Vitals::default(),
            agreed: true,
            on: self.maps.is_admitted(node),
            delivered: delivered.is_none_or(|delivered| delivered.to.contains(&node)) || self.waited(node, time),
        };
        let mut latest = 0;
        for (_, port) in self.links.iter().filter(|(link, _)| *link == node) {
            let heard = self.maps.heard(node, *port);
            let answered = heard.answered.load();
            if answered == 0 {
                continue;
            }
            let came = redirector_ebpf::tables::liveness::slot(&heard.times, answered).load();
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
        let peer = self.detector.peers().get(&node).filter(|peer| peer.state == State::Returning);
        peer.is_some_and(|peer| Duration::from_nanos(time).saturating_sub(peer.since) > FLOWS)
    }

    /// Whether this node serves all that it should.
    pub(super) fn is_active(&self) -> bool {
        self.own != Own::Returning
    }

    /// Alive bits, and the digest of the slot table.
    pub(super) fn alive(&self) -> (AliveNodes, u64) {
        (self.maps.alive(), self.maps.condition().slots.load())
    }

    /// What there is to tell.
    pub(super) fn status(&self, began: Duration) -> LivenessStatus {
        let (figures, time) = (self.sender.figures(), clock());
        let peers = self.detector.peers().iter().map(|(&node, peer)| PeerStatus {
            node,
            state: words(&peer.state),
            for_ms: time.saturating_sub(peer.since).as_millis() as u64,
            suspicions: peer.suspicions,
            false_suspicions: peer.false_suspicions,
        });
        let links = figures.links.iter().map(|((node, port), link)| LinkStatus {
            node: *node,
            port: *port,
            sent: link.sent,
            answered: link.answered,
            round_trip_us: Spread::of(&link.round_trip),
            gap_us: Spread::of(&link.gap),
        });
        LivenessStatus {
            own: words(&self.own),
            peers: peers.collect(),
            links: links.collect(),
            lateness_us: Spread::of(&figures.sender.lateness),
            skipped: figures.sender.skipped,
            real_time: figures.sender.real_time,
            hours: time.saturating_sub(began).as_secs_f64() / 3600.0,
        }
    }
}

/// Who is alive in whose eyes. Peers that have not been heard of within the timeout have no voice.
fn voices(maps: &LivenessMaps, links: &[(u8, u8)], timeout: u64) -> View {
    let (time, mut view) = (now(), View { alive: maps.alive(), ..View::default() });
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

/// A state's name, as it is serialised.
fn words(state: &impl Serialize) -> String {
    match serde_json::to_value(state) {
        Ok(serde_json::Value::String(text)) => text,
        _ => String::new(),
    }
}

/// A digest of the slot table, by which nodes see that theirs are the same.
fn digest(slots: &[Slot]) -> u64 {
    let mut bytes = Vec::with_capacity(slots.len() * 16);
    for slot in slots {
        bytes.extend(slot.ranks);
        bytes.push(slot.previous);
        bytes.extend(slot.version.to_le_bytes());
    }
    SipHasher24::new().hash(&bytes)
}
