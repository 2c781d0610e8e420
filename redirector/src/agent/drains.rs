//! Backends that drain, within the agent: how many flows they have left, on this node and on all, when the last of them will
//! have ended, and when their time is over. Where nodes agree they do on that too; elsewhere each goes by its own clock.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use redirector_ebpf::hash::FlowHash;
use redirector_ebpf::stations::owner::first_alive;
use redirector_ebpf::tables::AliveNodes;
use redirector_ebpf::tables::flow::State as FlowState;
use serde::{Deserialize, Serialize};

use super::backends::number;
use super::node::Node;
use super::tally::{Tallies, Tally};
use crate::config::{BackendState, Config, OnDeath};
use crate::consensus::state::{DRAIN_PARTS, State};
use crate::dataplane::flows::{Flow, is_over, now};
use crate::dataplane::image::Image;
use crate::dataplane::liveness::LivenessTables as _;
use crate::journal::{Journal, Kind};
use crate::pool::ebb::Ebb;

/// How often flows are counted, while a backend drains.
const COUNT: Duration = Duration::from_secs(1);

/// How a backend that drains stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainStatus {
    /// Flows that it has left, on all nodes that tell how many they serve.
    pub flows: u64,
    /// Those of them that this node serves.
    pub here: u64,
    /// Nodes that serve some perhaps and do not tell.
    pub untold: Vec<u8>,
    /// Milliseconds until the last of them has ended, if they go on ending as they did over the last minutes; none where
    /// none has, or not long enough was looked at.
    pub ends_in_ms: Option<u64>,
    /// Milliseconds until its time is over; none where it has no deadline.
    pub deadline_in_ms: Option<u64>,
    /// How many flows are left then, by the same estimate.
    pub left_then: Option<u64>,
    /// What becomes of those: `reset` or `rehash`.
    pub fate: Option<String>,
    /// Whether its time is over.
    pub is_over: bool,
}

/// A backend that drains.
#[derive(Debug)]
struct Drain {
    pool: String,
    name: String,
    /// Since when this node has known of it.
    since: Duration,
    /// Parts of its time that have gone, as was agreed on, and since when this node has known that.
    parts: (u8, Duration),
    deadline: Option<Duration>,
    fate: OnDeath,
    is_over: bool,
    here: u64,
    ebb: Ebb,
    untold: Vec<u8>,
    /// What the journal was told last.
    noted: Stage,
}

/// How far a backend has drained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Draining,
    Empty,
    Over,
}

/// Those that drain, by number.
#[derive(Debug, Default)]
pub(super) struct Drains {
    all: BTreeMap<u16, Drain>,
    counted: Option<Duration>,
}

impl Drain {
    fn status(&self, time: Duration) -> DrainStatus {
        let left = self.deadline.filter(|_| !self.is_over).map(|deadline| self.left(deadline, time));
        let estimate = |of: Option<Duration>| of.map(|time| time.as_millis() as u64);
        DrainStatus {
            flows: self.ebb.flows().unwrap_or(self.here),
            here: self.here,
            untold: self.untold.clone(),
            ends_in_ms: estimate(self.ebb.lasts()).filter(|_| self.untold.is_empty()),
            deadline_in_ms: estimate(left),
            left_then: left.and_then(|left| self.ebb.left_after(left)).filter(|_| self.untold.is_empty()),
            fate: self.deadline.map(|_| if self.fate == OnDeath::Reset { "reset" } else { "rehash" }.to_owned()),
            is_over: self.is_over,
        }
    }

    /// How much of its time is left.
    fn left(&self, deadline: Duration, time: Duration) -> Duration {
        let (parts, since) = self.parts;
        let gone = deadline / u32::from(DRAIN_PARTS) * u32::from(parts);
        // The next part may be late, and is not known to have gone before it is agreed on.
        let more = time.saturating_sub(since).min(deadline / u32::from(DRAIN_PARTS));
        let gone = if parts == 0 { time.saturating_sub(self.since) } else { gone + more };
        deadline.saturating_sub(gone)
    }

    fn stage(&self) -> Stage {
        match self.ebb.flows() {
            _ if self.is_over => Stage::Over,
            Some(0) if self.untold.is_empty() => Stage::Empty,
            _ => Stage::Draining,
        }
    }
}

impl DrainStatus {
    /// It in one word.
    pub fn state(&self) -> &'static str {
        let is_empty = self.flows == 0 && self.untold.is_empty();
        if self.is_over || is_empty { "drained" } else { "draining" }
    }

    /// It in a sentence.
    pub fn why(&self) -> String {
        let about = |ms: u64| humantime::format_duration(Duration::from_secs(ms.div_ceil(1000))).to_string();
        let fate = if self.fate.as_deref() == Some("reset") { "reset" } else { "moved" };
        if self.is_over {
            return format!("its time to drain is over: what it had left was {fate}");
        }
        let mut says = match self.flows {
            0 => "no flow left".to_owned(),
            1 => "1 flow left".to_owned(),
            many => format!("{many} flows left"),
        };
        if !self.untold.is_empty() {
            let nodes: Vec<String> = self.untold.iter().map(u8::to_string).collect();
            says += &format!(", without those of node {}", nodes.join(", "));
        }
        if let Some(ms) = self.ends_in_ms.filter(|_| self.flows > 0) {
            says += &format!(", the last for about {}", about(ms));
        }
        if let Some(ms) = self.deadline_in_ms.filter(|_| self.flows > 0 || !self.untold.is_empty()) {
            let left = self.left_then.map_or_else(|| "what is left".to_owned(), |left| format!("about {left}"));
            says += &format!("; {left} will be {fate} in {}", about(ms));
        }
        says
    }
}

impl Drains {
    /// How a backend stands, if it drains.
    pub(super) fn status(&self, backend: u16) -> Option<DrainStatus> {
        self.all.get(&backend).map(|drain| drain.status(Duration::from_nanos(now())))
    }

    /// Has an image say whose time is over, where this node decides alone.
    pub(super) fn mark(&self, image: &mut Image) {
        let over = self.over();
        for (id, pool) in &mut image.pools {
            // One that is active by the image's configuration drains no more.
            let drains = |backend: &&u16| {
                let is_active = pool.configured.iter().any(|member| member.id == **backend);
                !is_active && image.backends.get(*backend).is_some_and(|row| row.pool == *id)
            };
            pool.drained = over.iter().filter(drains).copied().collect();
        }
    }

    /// Those whose time is over.
    fn over(&self) -> BTreeSet<u16> {
        self.all.iter().filter(|(_, drain)| drain.is_over).map(|(id, _)| *id).collect()
    }

    /// Takes over which backends drain and how much of their time has gone. `agreed` is what nodes agree on, if they do.
    fn configure(&mut self, config: &Config, image: &Image, agreed: Option<&State>, time: Duration) {
        let mut all = BTreeMap::new();
        for pool in &config.pools {
            for backend in pool.backends.iter().filter(|backend| backend.state == BackendState::Draining) {
                let Some(id) = number(image, &pool.name, &backend.name) else { continue };
                let mut drain = self.all.remove(&id).unwrap_or_else(|| Drain {
                    pool: pool.name.clone(),
                    name: backend.name.clone(),
                    since: time,
                    parts: (0, time),
                    deadline: None,
                    fate: OnDeath::Hold,
                    is_over: false,
                    here: 0,
                    ebb: Ebb::default(),
                    untold: Vec::new(),
                    noted: Stage::Draining,
                });
                drain.deadline = pool.health.drain.map(|deadline| deadline.after);
                drain.fate = pool.health.drain.map_or(OnDeath::Hold, |deadline| deadline.fate);
                drain.is_over = match agreed {
                    Some(state) => {
                        let parts = state.drains.get(&pool.name).and_then(|parts| parts.get(&backend.name));
                        let parts = parts.copied().unwrap_or(0);
                        if parts != drain.parts.0 {
                            drain.parts = (parts, time);
                        }
                        state.drained(&pool.name).any(|name| *name == backend.name)
                    }
                    None => drain.deadline.is_some_and(|deadline| time.saturating_sub(drain.since) >= deadline),
                };
                all.insert(id, drain);
            }
        }
        self.all = all;
    }

    /// Takes over how many flows are left: of this node, by number, and of its peers.
    fn count(&mut self, here: &BTreeMap<u16, u64>, peers: &[u8], tallies: Option<&Tallies>, time: Duration) {
        let instant = Instant::now();
        for (id, drain) in &mut self.all {
            drain.here = here.get(id).copied().unwrap_or(0);
            let of = |node: &u8| tallies.and_then(|told| told.of(*node, &drain.pool, &drain.name, instant));
            drain.untold = peers.iter().copied().filter(|node| of(node).is_none()).collect();
            let sum = peers.iter().filter_map(of).fold(drain.here, u64::saturating_add);
            // What some do not tell, and then tell, would look as if flows came and went.
            if !drain.untold.is_empty() {
                drain.ebb = Ebb::default();
            }
            drain.ebb.note(sum, time);
        }
    }

    fn tally(&self) -> Tally {
        let mut tally = Tally::default();
        for drain in self.all.values() {
            tally.0.entry(drain.pool.clone()).or_default().insert(drain.name.clone(), drain.here);
        }
        tally
    }

    /// Notes what is new.
    fn tell(&mut self, journal: &Journal) {
        for drain in self.all.values_mut() {
            let stage = drain.stage();
            if std::mem::replace(&mut drain.noted, stage) == stage {
                continue;
            }
            let (name, fate) = (format!("{}/{}", drain.pool, drain.name), drain.fate);
            let what = match stage {
                Stage::Draining => format!("{name} has flows again that it drains of"),
                Stage::Empty => format!("{name} has drained: it has no flow left"),
                Stage::Over if fate == OnDeath::Reset => format!("{name}'s time to drain is over: its flows are reset"),
                Stage::Over => format!("{name}'s time to drain is over: its flows go to others"),
            };
            tracing::info!("{what}");
            journal.note(Kind::Backend, None, what);
        }
    }
}

/// The flows that this node serves of each backend that drains: those that it knows, that have not ended, and whose slot it
/// is the first to serve.
fn served(image: &Image, flows: impl Iterator<Item = Flow>, alive: &AliveNodes, time: u64) -> BTreeMap<u16, u64> {
    let mut served = BTreeMap::new();
    let (me, mask) = (image.node.id, image.node.slot_mask);
    for flow in flows {
        let has_ended =
            flow.state() == FlowState::Closing || is_over(flow.entry, Some(&flow.record), &image.node.idle, time);
        let slot = FlowHash::of(&image.node.hash_key, &flow.record.tuple, flow.v6).slot(mask);
        let is_mine = image.slots.get(slot as usize).is_some_and(|slot| [0, me].contains(&first_alive(slot, alive)));
        if is_mine && !has_ended {
            *served.entry(flow.entry.backend()).or_default() += 1;
        }
    }
    served
}

impl Node {
    /// Looks how backends that drain stand, and ends it where this node decides alone.
    pub(super) fn look_at_drains(&mut self) {
        let time = Duration::from_nanos(now());
        if self.drains.counted.is_some_and(|at| time.saturating_sub(at) < COUNT) {
            return;
        }
        self.drains.counted = Some(time);
        let agreed = self.agreement.as_ref().and_then(|agreement| agreement.state());
        let before = self.drains.over();
        self.drains.configure(&self.config, &self.image, agreed.as_deref(), time);
        if !self.is_in_agreement() && self.drains.over() != before {
            self.take_backends_out();
        }
        if self.drains.all.is_empty() {
            return;
        }
        let Some(liveness) = &self.liveness else { return };
        let (alive, me) = (liveness.maps().alive(), self.config.node.id);
        let drains: BTreeSet<u16> = self.drains.all.iter().filter(|(_, one)| !one.is_over).map(|(id, _)| *id).collect();
        let flows = self.maps.flows.on(&self.image.node.hash_key, |backend| drains.contains(&backend));
        let here = served(&self.image, flows, &alive, now());
        let members = self.config.members.iter().map(|member| member.id);
        let peers: Vec<u8> = members.filter(|id| *id != me && alive.is_alive(*id)).collect();
        self.drains.count(&here, &peers, self.talk.as_ref().map(|talk| talk.tallies()), time);
        if let Some(talk) = &self.talk {
            talk.tell_tally(&self.config, &self.drains.tally());
        }
        self.drains.tell(self.incidents.journal());
    }
}
