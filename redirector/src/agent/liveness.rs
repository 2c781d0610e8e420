//! Liveness within the agent: the kernel's maps, the sender's thread, and what there is to tell of both. What is decided is
//! decided by the [`Lookout`].

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use redirector_ebpf::tables::Slot;
use serde::{Deserialize, Serialize};
use siphasher::sip::SipHasher24;
use tokio::sync::watch;

use super::committed;
use super::follower::Follower;
use super::lookout::{self, Host, Lookout};
use super::paths::{PathStatus, Paths};
use super::pulse;
use super::talk::Talk;
use crate::breaker::Breakers;
use crate::config::Config;
use crate::consensus::planner::Report;
use crate::dataplane::flows::now;
use crate::dataplane::image::Image;
use crate::dataplane::liveness::{LivenessMaps, LivenessTables};
use crate::journal::Journal;
use crate::liveness::{Detector, Own, Sender, Spread};
use crate::paths::health::Sign;
use crate::vip::{self, View};

/// Liveness of a node.
pub(super) struct Liveness {
    maps: LivenessMaps,
    sender: Sender,
    lookout: Lookout,
    paths: Paths,
    journal: Journal,
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

/// A word that changes when the host boots.
pub(crate) fn boot_id() -> u64 {
    let text = fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    SipHasher24::new().hash(&text) | 1
}

impl Liveness {
    /// Starts asking; peers that were alive stay so, and those that were suspected.
    pub(super) fn start(
        directory: &Path,
        config: &Config,
        key: [u8; 16],
        image: &Image,
        breakers: &Breakers,
        journal: &Journal,
    ) -> Result<Self> {
        let maps = LivenessMaps::open(directory)?;
        let sender = Sender::start(directory)?;
        let paths = Paths::open(directory, breakers)?;
        let mut liveness =
            Self { maps, sender, lookout: Lookout::new(config.node.id), paths, journal: journal.clone() };
        liveness.configure(config, key, image)?;
        liveness.lookout.adopt(&liveness.maps);
        liveness.maps.condition().agent.store(now());
        Ok(liveness)
    }

    /// Takes over a configuration.
    pub(super) fn configure(&mut self, config: &Config, key: [u8; 16], image: &Image) -> Result<()> {
        let next_incarnation =
            || committed::next_incarnation(&config.node.data, &self.journal).context("no incarnation can be kept");
        let host = Host { boot_id: boot_id(), next_incarnation, time: now() };
        let plan = self.lookout.configure(&mut self.maps, config, key, image, host)?;
        self.sender.set_plan(plan);
        self.sender.set_far(self.paths.configure(config, image)?);
        Ok(())
    }

    /// The maps.
    pub(super) fn maps(&self) -> &LivenessMaps {
        &self.maps
    }

    /// The version of what is agreed on that the maps go by.
    pub(super) fn applied(&self) -> u64 {
        self.maps.condition().applied.load()
    }

    /// Which life of this node's maps this is.
    pub(super) fn incarnation(&self) -> Result<u64> {
        Ok(self.maps.watch()?.incarnation.into())
    }

    /// Changes whenever alive bits do, or what peers say of them.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.sender.changes()
    }

    /// Links to peers: node and port.
    pub(super) fn links(&self) -> &[(u8, u8)] {
        self.lookout.links()
    }

    /// Whether who was heard at a time has a voice.
    pub(super) fn hears(&self, at: u64) -> bool {
        now().saturating_sub(at) <= self.lookout.timeout()
    }

    /// How peers and this node itself live.
    pub(super) fn lives(&self) -> (&Detector, Own) {
        (self.lookout.detector(), self.lookout.own())
    }

    /// Peers that are alive, and their incarnations.
    pub(super) fn alive(&self) -> Vec<(u8, u64)> {
        self.lookout.alive(&self.maps, now())
    }

    /// Whether this node is to give its slots and VIPs away.
    pub(super) fn drains(&self) -> bool {
        self.lookout.drains()
    }

    /// Of the peers that answer, and that have several links, how many do so on the first.
    pub(super) fn heard_first(&self) -> (usize, usize) {
        self.lookout.heard_first(&self.maps, now())
    }

    /// Whether a peer is alive that serves.
    pub(super) fn others_serve(&self) -> bool {
        self.lookout.serving(&self.maps).next().is_some()
    }

    /// Whether this node hands everything over for its health.
    pub(super) fn hands_over(&self) -> bool {
        self.lookout.hands_over()
    }

    /// Says how this node is, from the next pulse on.
    pub(super) fn set_condition(&mut self, condition: lookout::Condition) {
        self.lookout.set_condition(condition);
    }

    /// A port lost its carrier, or has it again.
    pub(super) fn carrier(&mut self, port: u8, carrier: bool) {
        self.paths.carrier(port, carrier);
        self.lookout.carrier(&self.maps, port, carrier);
    }

    /// BFD sessions say something else.
    pub(super) fn set_sessions(&mut self, signs: Vec<Sign>) {
        self.paths.set_sessions(signs);
    }

    /// Gives a sign of life, lets peers be alive that may be, and says who is to have copies of flows.
    pub(super) fn pulse(
        &mut self,
        slots: &[Slot],
        copies: Option<&mut Talk>,
        follower: Option<&mut Follower>,
    ) -> Option<Report> {
        self.paths.step();
        pulse::pulse(&mut self.lookout, &self.maps, slots, copies, follower, now())
    }

    /// What this node knows of the cluster, as far as VIPs depend on it.
    pub(super) fn view(&self, config: &Config, attached: bool) -> View {
        self.lookout.view(&self.maps, config, attached, now())
    }

    /// Has whoever holds VIPs told of changes without a detour over the agent. `base` is what else a view says.
    pub(super) fn tell_at_once(&self, vips: vip::Handle, base: View) {
        let (links, timeout) = (self.lookout.links().to_vec(), self.lookout.timeout());
        self.sender.set_watcher(Box::new(move |maps| {
            let seen = lookout::voices(maps, &links, timeout, now());
            let (me, mut view) = (base.alive, base.clone());
            (view.alive, view.peers, view.unwilling) = (seen.alive, seen.peers, seen.unwilling);
            view.alive.words.iter_mut().zip(me.words).for_each(|(word, own)| *word |= own);
            vips.view(view);
        }));
    }

    /// The paths.
    pub(super) fn paths(&self) -> &Paths {
        &self.paths
    }

    /// What there is to tell of paths.
    pub(super) fn path_status(&self) -> Vec<PathStatus> {
        self.paths.status(&self.sender.figures().legs)
    }

    /// What there is to tell.
    pub(super) fn status(&self, began: Duration) -> LivenessStatus {
        let (figures, time) = (self.sender.figures(), Duration::from_nanos(now()));
        let peers = self.lookout.detector().peers().iter().map(|(&node, peer)| PeerStatus {
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
            own: words(&self.lookout.own()),
            peers: peers.collect(),
            links: links.collect(),
            lateness_us: Spread::of(&figures.sender.lateness),
            skipped: figures.sender.skipped,
            real_time: figures.sender.real_time,
            hours: time.saturating_sub(began).as_secs_f64() / 3600.0,
        }
    }
}

/// A state's name, as it is serialised.
fn words(state: &impl Serialize) -> String {
    match serde_json::to_value(state) {
        Ok(serde_json::Value::String(text)) => text,
        _ => String::new(),
    }
}
