//! Paths within the agent: keeps the kernel's list of paths and legs in step with the configuration, feeds the machines with
//! what the maps say, and lets paths be alive where they say so.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path as FilePath;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use redirector_ebpf::tables::leg::{LEGS, LegRules, NO_LEG, PathAdmission};
use redirector_ebpf::tables::liveness::{REMEMBERED, slot};
use serde::{Deserialize, Serialize};

use super::liveness::boot_id;
use super::lookout::{GRACE_DIVISOR, GRACE_MIN};
use super::signals::{self, FlowSigns, Flows};
use crate::breaker::Breakers;
use crate::config::Config;
use crate::dataplane::flows::now;
use crate::dataplane::image::{Image, Leg};
use crate::dataplane::paths::PathMaps;
use crate::liveness::{FarEnd, FarPlan, LegFigures};
use crate::paths::health::{
    self, Action, FLOWS_DIE, Observation, PROBES_FAIL, Path, Rules, SESSION_DOWN, SILENT, Sign, State,
};
use crate::paths::legs;
use crate::paths::probes::{ProbeStatus, Probed, Prober};
use crate::paths::signals::TICK;

/// Beats that all legs together get in a second at most; more of them are asked less often.
const BEATS_A_SECOND: u64 = 50_000;

/// The paths of a node.
pub(super) struct Paths {
    maps: PathMaps,
    paths: BTreeMap<u16, Watch>,
    /// What the predecessor left behind of each path, until there is a configuration: its row in the kernel's list.
    left: BTreeMap<u16, (usize, PathAdmission)>,
    /// Numbers of legs, kept as long as a leg is used.
    legs: HashMap<Leg, u16>,
    /// Ports without a carrier.
    down: Vec<u8>,
    /// How often a path was let in or dismissed.
    changes: u64,
    prober: Prober,
    breakers: Breakers,
    /// What BFD sessions say, in the order of the configuration.
    sessions: Vec<Sign>,
    rules: LegRules,
    /// When flows were asked last.
    asked: Duration,
}

/// One path.
struct Watch {
    row: usize,
    term: u32,
    leg: Option<u16>,
    port: u8,
    session: Option<usize>,
    /// Whether the session has said anything since the agent started.
    session_spoke: bool,
    rules: Rules,
    health: Path,
    probed: Option<Arc<Probed>>,
    flows: Flows,
}

impl Watch {
    /// What probes say. A path that is off stays so until they have said anything.
    fn probes(&self) -> Sign {
        match self.probed.as_ref().map(|probed| probed.sign()) {
            Some(Sign::None) if !self.health.admitted => Sign::Bad,
            sign => sign.unwrap_or_default(),
        }
    }

    /// What the BFD session says. A path that it took out under an earlier agent stays so until it says anything.
    fn session(&self, signs: &[Sign]) -> Sign {
        let sign = self.session.and_then(|at| signs.get(at).copied()).unwrap_or_default();
        let waits = sign == Sign::None && !self.session_spoke && self.session.is_some();
        if waits && self.health.is_out_for(SESSION_DOWN) { Sign::Bad } else { sign }
    }

    /// How many requests in a row were answered. A path that fell silent stays off until some are.
    fn streak(&self, maps: &PathMaps, time: u64) -> Option<u32> {
        let streak = streak(maps, self.leg?, time);
        streak.or_else(|| self.health.is_out_for(SILENT).then_some(0))
    }

    /// Why it is not used, or was not last.
    fn why(&self) -> Option<String> {
        let why = self.health.why?;
        let detail = match why {
            PROBES_FAIL => self.probed.as_ref().and_then(|probed| probed.why()),
            FLOWS_DIE => self.flows.fault(),
            _ => None,
        };
        Some(detail.map_or_else(|| why.to_owned(), |detail| format!("{why}: {detail}")))
    }
}

/// What the agent knows of a path.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PathStatus {
    /// Its id.
    pub path: u16,
    /// What it is.
    pub state: State,
    /// How long it has been that, milliseconds.
    pub for_ms: u64,
    /// Why it is not used, or was not last.
    pub why: Option<String>,
    /// How often it fell since the agent started.
    pub falls: u64,
    /// What is measured of its leg; none where no beats go.
    pub beats: Option<LegFigures>,
    /// What its probe says; none where there is none.
    #[serde(default)]
    pub probe: Option<ProbeStatus>,
    /// What its flows say; none where they are not asked.
    #[serde(default)]
    pub flows: Option<FlowSigns>,
}

impl Paths {
    pub(super) fn open(directory: &FilePath, breakers: &Breakers) -> Result<Self> {
        let maps = PathMaps::open(directory)?;
        let rows = (0..maps.rows()).map(|row| (row, maps.admission(row)));
        let left = rows.filter(|(_, left)| left.path != 0).map(|(row, left)| (left.path, (row, left))).collect();
        Ok(Self {
            maps,
            paths: BTreeMap::new(),
            left,
            legs: HashMap::new(),
            down: Vec::new(),
            changes: 0,
            prober: Prober::new(),
            breakers: breakers.clone(),
            sessions: Vec::new(),
            rules: LegRules::default(),
            asked: Duration::ZERO,
        })
    }

    /// Takes over a configuration; says which far ends to ask from now on.
    pub(super) fn configure(&mut self, config: &Config, image: &Image) -> Result<FarPlan> {
        let clock = Duration::from_nanos(now());
        let left = std::mem::take(&mut self.left);
        left.iter().filter(|(id, _)| !image.watched.contains_key(id)).for_each(|(_, (row, _))| {
            self.maps.set_admission(*row, PathAdmission::default());
        });
        self.number_legs(image, &left);
        let paces = legs::paces(image.watched.values());
        let key = config.cluster.path_key.map_or(([0; 2], 0), |key| (key.words(), key.number()));
        let least = 1_000_000_000 * self.legs.len() as u64 / BEATS_A_SECOND;
        let mut ends: BTreeMap<u16, FarEnd> = BTreeMap::new();
        let targets = image.watched.iter().filter_map(|(&id, watched)| Some((id, watched.probe.clone()?)));
        let probed = self.prober.configure(targets.collect(), &self.breakers).context("probes")?;
        let before = self.paths.keys().copied().collect::<Vec<_>>();
        for id in before.into_iter().filter(|id| !image.watched.contains_key(id)) {
            if let Some(watch) = self.paths.remove(&id) {
                self.maps.set_admission(watch.row, PathAdmission::default());
            }
        }
        let places = signals::places(image);
        for (&id, watched) in &image.watched {
            let Some(place) = places.get(&id) else { continue };
            let flows = Flows::new(&self.maps, id, *place, watched.passive, clock);
            let leg = watched.leg.as_ref().and_then(|leg| self.legs.get(leg).copied());
            let Some(row) = image.paths.get(&id) else { continue };
            let rules = Rules { rise: watched.rise, hold_down: watched.hold_down };
            if let (Some(number), Some(leg)) = (leg, &watched.leg) {
                let port = image.ports[usize::from(row.port)];
                let pace = paces.get(leg).copied().unwrap_or(watched.beats);
                let interval = (pace.interval.as_nanos() as u64).max(least);
                let sent = self.maps.sent(number);
                ends.entry(number).or_insert_with(|| FarEnd {
                    number,
                    leg: leg.clone(),
                    interface: port.ifindex,
                    mac: port.mac,
                    interval,
                });
                sent.interval.store(interval);
                let grace = Duration::from_nanos(interval / u64::from(GRACE_DIVISOR)).max(GRACE_MIN);
                sent.grace.store(grace.as_nanos() as u64);
                sent.multiplier.store(pace.multiplier.into());
            }
            match self.paths.get_mut(&id) {
                Some(watch) => {
                    (watch.leg, watch.rules) = (leg, rules);
                    watch.flows.configure(flows);
                }
                None => {
                    let watch = self.adopt(id, leg, row.port, rules, flows, clock)?;
                    self.paths.insert(id, watch);
                }
            }
            if let Some(watch) = self.paths.get_mut(&id) {
                watch.probed = probed.get(&id).cloned();
                watch.session = watched.session;
            }
            let watch = &self.paths[&id];
            self.maps.set_admission(watch.row, admission(id, watch, &self.down));
        }
        let rows = self.paths.values().map(|watch| watch.row as u32 + 1).max().unwrap_or(0);
        let noted = signals::pace(self.rules.noted, self.paths.values().map(|watch| &watch.flows));
        self.rules = LegRules { key: key.0, paths: rows, key_id: key.1, noted, pad: [0; 2] };
        self.maps.set_rules(&self.rules).context("paths")?;
        let ends = ends.into_values().collect();
        Ok(FarPlan { node: config.node.id, cluster: config.cluster.id, boot_id: boot_id(), key, ends })
    }

    /// Gives legs numbers. A number that goes to another leg forgets what was answered under it; a predecessor's leg keeps
    /// its number, so that whoever answered it and is silent now is seen to be.
    fn number_legs(&mut self, image: &Image, left: &BTreeMap<u16, (usize, PathAdmission)>) {
        let mut given = BTreeSet::new();
        for (id, (_, left)) in left.iter().filter(|(_, (_, left))| usize::from(left.leg) < LEGS) {
            let leg = image.watched.get(id).and_then(|watched| watched.leg.as_ref());
            if let Some(leg) = leg.filter(|leg| !self.legs.contains_key(leg))
                && given.insert(left.leg)
            {
                self.legs.insert(leg.clone(), left.leg);
            }
        }
        let used = image.watched.values().filter_map(|watched| watched.leg.as_ref());
        let numbers = legs::numbers(&self.legs, used);
        numbers.new.into_iter().for_each(|number| self.maps.heard(number).answered.store(0));
        self.legs = numbers.of;
        if numbers.without != 0 {
            tracing::warn!(
                next_hops_and_tunnels = numbers.without,
                "no beats go there, since they go to {LEGS} at most: give these pools a [pool.probe]"
            );
        }
    }

    /// A path that this agent does not know yet: as its predecessor left it, or a new one.
    fn adopt(&self, id: u16, leg: Option<u16>, port: u8, rules: Rules, flows: Flows, clock: Duration) -> Result<Watch> {
        let rows = self.maps.rows();
        let own: Vec<usize> = self.paths.values().map(|watch| watch.row).collect();
        let there = (0..rows).find(|row| self.maps.admission(*row).path == id);
        let free = || (0..rows).find(|row| self.maps.admission(*row).path == 0 && !own.contains(row));
        let row = there.or_else(free).context("no row is left for another path")?;
        let mut health = Path::new(clock);
        let term = match there.map(|row| self.maps.admission(row).term) {
            None => {
                self.maps.latch(id).why.store(0);
                self.maps.next_term(id, 0)
            }
            Some(term) => {
                let latch = self.maps.latch(id);
                if term == 0 || latch.term.load() == u64::from(term) {
                    let answered = leg.is_some_and(|leg| self.maps.heard(leg).answered.load() != 0);
                    let why = health::reason(latch.why.load()).or(answered.then_some(SILENT));
                    health.adopt_fallen(clock, &rules, why);
                }
                term
            }
        };
        Ok(Watch { row, term, leg, port, session: None, session_spoke: false, rules, health, probed: None, flows })
    }

    /// A port lost its carrier, or has it again.
    pub(super) fn carrier(&mut self, port: u8, carrier: bool) {
        self.down.retain(|down| *down != port);
        if !carrier {
            self.down.push(port);
        }
        for (&id, watch) in self.paths.iter().filter(|(_, watch)| watch.port == port) {
            self.maps.set_admission(watch.row, admission(id, watch, &self.down));
        }
    }

    /// BFD sessions say something else: paths follow at once.
    pub(super) fn set_sessions(&mut self, signs: Vec<Sign>) {
        self.sessions = signs;
        for watch in self.paths.values_mut() {
            let sign = watch.session.and_then(|at| self.sessions.get(at));
            watch.session_spoke |= sign.is_some_and(|sign| *sign != Sign::None);
        }
        self.step();
    }

    /// Looks at all paths, and lets those be alive that may.
    pub(super) fn step(&mut self) {
        let time = now();
        let clock = Duration::from_nanos(time);
        self.ask_flows(clock);
        let kept_out = self.kept_out(clock);
        let mut used = self.used();
        for (&id, watch) in &mut self.paths {
            let seen = Observation {
                on: watch.term != 0 && self.maps.latch(id).term.load() != u64::from(watch.term),
                carrier: !self.down.contains(&watch.port),
                streak: watch.streak(&self.maps, time),
                probes: watch.probes(),
                session: watch.session(&self.sessions),
                flows: if kept_out.contains(&id) { Sign::Bad } else { Sign::None },
                is_needed: watch.flows.lack_a_way(|other| used.contains(&other)),
            };
            let (before, why) = (watch.health.state, watch.health.why);
            let action = watch.health.observe(clock, &watch.rules, &seen);
            match action {
                Some(Action::Admit) => {
                    used.insert(id);
                    watch.term = self.maps.next_term(id, watch.term);
                }
                Some(Action::Dismiss) => watch.term = 0,
                None => {}
            }
            self.changes += u64::from(action.is_some());
            if action.is_some() || watch.health.why != why {
                let why = watch.health.why.filter(|_| !watch.health.admitted);
                self.maps.latch(id).why.store(why.map_or(0, health::number));
            }
            if watch.health.state != before {
                self.maps.set_admission(watch.row, admission(id, watch, &self.down));
                let why = watch.why();
                tracing::info!(path = id, from = ?before, to = ?watch.health.state, why, "a path changed");
            }
        }
    }

    /// Hears what flows say of paths, once in a while.
    fn ask_flows(&mut self, clock: Duration) {
        if clock.saturating_sub(self.asked) < TICK {
            return;
        }
        self.asked = clock;
        signals::judge(&self.maps, self.paths.iter_mut().map(|(&id, watch)| (id, &mut watch.flows)));
        let is_fit = |watch: &Watch| watch.health.admitted && watch.flows.complaint().is_none();
        let fit: BTreeSet<u16> = self.paths.iter().filter(|(_, watch)| is_fit(watch)).map(|(&id, _)| id).collect();
        for watch in self.paths.values_mut().filter(|watch| watch.health.admitted) {
            watch.flows.take_out(clock, |other| fit.contains(&other));
        }
        let noted = signals::pace(self.rules.noted, self.paths.values().map(|watch| &watch.flows));
        if noted != self.rules.noted {
            self.rules.noted = noted;
            if let Err(error) = self.maps.set_rules(&self.rules) {
                tracing::error!("how many flows are asked cannot be changed: {:#}", anyhow::Error::new(error));
            }
        }
    }

    fn used(&self) -> BTreeSet<u16> {
        self.paths.iter().filter(|(_, watch)| watch.health.admitted).map(|(&id, _)| id).collect()
    }

    /// Paths that stay out since their flows died: never a backend's last.
    fn kept_out(&self, clock: Duration) -> Vec<u16> {
        let admitted = |path: u16| self.paths.get(&path).is_some_and(|watch| watch.health.admitted);
        let out = self.paths.iter().filter(|(_, watch)| watch.flows.keep_out(clock, admitted));
        out.map(|(&id, _)| id).collect()
    }

    /// Whether there are paths among these, and none of them is used.
    pub(super) fn are_down(&self, paths: &[u16]) -> bool {
        let mut watched = paths.iter().filter_map(|path| self.paths.get(path)).peekable();
        watched.peek().is_some() && watched.all(|watch| !watch.health.admitted)
    }

    /// How often paths were let in or dismissed.
    pub(super) fn changes(&self) -> u64 {
        self.changes
    }

    /// Why the first of these paths that is not used is not.
    pub(super) fn why_down(&self, paths: &[u16]) -> Option<String> {
        let down = paths.iter().filter_map(|path| self.paths.get(path)).find(|watch| !watch.health.admitted)?;
        down.why().map(|why| format!("no path to it is used; the first: {why}"))
    }

    /// What there is to tell.
    pub(super) fn status(&self, figures: &BTreeMap<u16, LegFigures>) -> Vec<PathStatus> {
        let clock = Duration::from_nanos(now());
        let told = self.paths.iter().map(|(&path, watch @ Watch { leg, health, probed, .. })| PathStatus {
            path,
            state: health.state,
            for_ms: clock.saturating_sub(health.since).as_millis() as u64,
            why: watch.why(),
            falls: health.falls,
            beats: leg.and_then(|leg| figures.get(&leg).copied()),
            probe: probed.as_ref().map(|probed| probed.status()),
            flows: watch.flows.status(self.rules.noted),
        });
        told.collect()
    }
}

fn admission(path: u16, watch: &Watch, down: &[u8]) -> PathAdmission {
    let unplugged = down.contains(&watch.port);
    PathAdmission { path, leg: watch.leg.unwrap_or(NO_LEG), unplugged, term: watch.term }
}

/// How many requests in a row were answered, up to the last whose answer is due; none where nothing ever was.
fn streak(maps: &PathMaps, leg: u16, now: u64) -> Option<u32> {
    let (sent, heard) = (maps.sent(leg), maps.heard(leg));
    let (last, answered) = (sent.sequence.load(), heard.answered.load());
    if answered == 0 {
        return None;
    }
    let is_due = |number: &u64| now.saturating_sub(sent.time(*number)) >= sent.grace.load();
    let is_answered = |number: &u64| {
        let went = sent.time(*number);
        went != 0 && slot(&heard.times, *number).load() >= went
    };
    let oldest = last.saturating_sub(REMEMBERED as u64 - 1).max(1);
    let counted = (oldest..=last).rev().skip_while(|number| !is_due(number) && !is_answered(number));
    Some(counted.take_while(is_answered).count() as u32)
}
