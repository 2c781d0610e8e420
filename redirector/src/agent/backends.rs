//! Backends within the agent: which of them this node finds dead. Where nodes agree that is reported, and a majority decides;
//! elsewhere it counts at once.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use redirector_ebpf::tables::Pool;
use redirector_ebpf::tables::names::kind;
use serde::{Deserialize, Serialize};

use super::drains::{DrainStatus, Drains};
use super::incidents::Incidents;
use super::node::Node;
use super::paths::Paths;
use crate::config::{BackendState, Config, OnDeath};
use crate::consensus::state::{State, WARMTH};
use crate::dataplane::flows::now;
use crate::dataplane::image::{Image, PoolImage};
use crate::dataplane::maps::{Maps, MapsError, written};
use crate::dataplane::rows::{self, RowTables};
use crate::journal::Kind;
use crate::paths::backends::{Backend, Verdict, judge};
use crate::pool::warmup::{self, Warmup};

/// By pool, the backends that are out.
pub(super) type Out = BTreeMap<String, BTreeSet<String>>;

/// Pools of which too little is healthy, and how much is, in per cent.
type Panics = BTreeMap<String, u8>;

/// By pool, the backends that have only part of their weight, and how many steps of it.
type Warming = BTreeMap<String, BTreeMap<String, u8>>;

/// What a node has found, and what follows from it.
#[derive(Debug, Default)]
pub(super) struct Backends {
    /// Dead in this node's eyes.
    found: Out,
    /// To be taken out, where this node decides alone.
    out: Out,
    /// Pools that are in a panic in this node's eyes.
    panicking: Panics,
    /// Pools all of which the tables use since they are in a panic.
    panics_in_force: Panics,
    /// Backends without a path that is used, and since when.
    dead: BTreeMap<u16, Duration>,
    /// What the tables go by.
    in_force: Out,
    /// How often paths had changed when they were last looked at.
    looked: Option<u64>,
    /// By pool, backends that have only part of their weight yet, and how many steps of it.
    warming: Warming,
    /// The same, where this node decides alone, as it is next.
    warmup: Warmup,
    /// The version of what was agreed on that was last looked at.
    version: u64,
}

/// What the agent knows of a backend.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BackendStatus {
    /// Its id.
    pub backend: u16,
    /// `alive`; `starting`: it is back and gets part of its share yet; `draining`: it gets no new flows and has some left;
    /// `drained`: it has none left, or keeps none; `suspect`: this node finds it dead; `dead`: it gets no new flows;
    /// `panic`: it is dead and gets some anyway.
    pub state: String,
    /// Why it is not alive, or how far it has started or drained.
    pub why: Option<String>,
    /// How it drains, if it does.
    #[serde(default)]
    pub drain: Option<DrainStatus>,
    /// How long it has been dead, milliseconds.
    pub for_ms: Option<u64>,
}

impl Backends {
    /// The backends that this node finds dead, by pool.
    pub(super) fn found(&self) -> &Out {
        &self.found
    }

    /// There is another configuration.
    pub(super) fn forget(&mut self) {
        self.looked = None;
    }

    /// Judges all pools, where paths have changed; tells of what is new. Says whether it has.
    fn look(&mut self, config: &Config, image: &Image, paths: &Paths) -> bool {
        if self.looked.replace(paths.changes()) == Some(paths.changes()) {
            return false;
        }
        let (mut found, mut out, mut panicking, mut dead) = (Out::new(), Out::new(), Panics::new(), BTreeMap::new());
        let time = Duration::from_nanos(now());
        for pool in &config.pools {
            let backends = pool.backends.iter().map(|backend| {
                let id = number(image, &pool.name, &backend.name);
                let row = id.and_then(|id| image.backends.get(&id));
                let is_dead = row.is_some_and(|row| paths.are_down(&row.paths));
                if let Some(id) = id.filter(|_| is_dead) {
                    dead.insert(id, self.dead.get(&id).copied().unwrap_or(time));
                }
                let weight = if backend.state == BackendState::Active { backend.weight } else { 0 };
                Backend { name: &backend.name, weight, is_dead }
            });
            let backends: Vec<Backend<'_>> = backends.collect();
            let those = backends.iter().filter(|backend| backend.is_dead).map(|backend| backend.name.to_owned());
            found.insert(pool.name.clone(), those.collect());
            match judge(backends, pool.health.panic) {
                Verdict::Out(those) if those.is_empty() => {}
                Verdict::Out(those) => drop(out.insert(pool.name.clone(), those)),
                Verdict::Panic(healthy) => drop(panicking.insert(pool.name.clone(), healthy)),
            }
        }
        found.retain(|_, those| !those.is_empty());
        if found != self.found {
            tracing::warn!(before = ?self.found, now = ?found, "backends that are dead in this node's eyes");
        }
        if panicking != self.panicking {
            tracing::warn!(?panicking, "pools of which too little is healthy in this node's eyes");
        }
        (self.found, self.out, self.panicking, self.dead) = (found, out, panicking, dead);
        true
    }

    /// All of these pools is used from now on, and of no others; says so loudly.
    fn put_panics_in_force(&mut self, panics: Panics, incidents: &Incidents) {
        for (pool, healthy) in panics.iter().filter(|(pool, _)| !self.panics_in_force.contains_key(*pool)) {
            tracing::error!(pool, healthy, "PANIC: too little of the pool is healthy, all of it is used");
            let what = format!("PANIC: {healthy} % of pool {pool} is healthy, too little: all of it is used");
            incidents.journal().note(Kind::Backend, None, what);
        }
        for pool in self.panics_in_force.keys().filter(|pool| !panics.contains_key(*pool)) {
            tracing::warn!(pool, "enough of the pool is healthy again");
            incidents.journal().note(Kind::Backend, None, format!("enough of pool {pool} is healthy again"));
        }
        self.panics_in_force = panics;
    }

    /// Has packets see which pools are in a panic: their new flows do not avoid the dead.
    fn mark_panics(&self, maps: &mut Maps, image: &Image) -> Result<(), MapsError> {
        for id in image.pools.keys().copied() {
            let name = image.registry.name(kind::POOL, u32::from(id));
            let panics = u16::from(name.is_some_and(|name| self.panics_in_force.contains_key(name)));
            let pool = RowTables::pool(maps, id)?;
            if pool.panics != panics {
                maps.pools.set(u32::from(id), Pool { panics, ..pool }, 0).map_err(written("POOLS"))?;
            }
        }
        Ok(())
    }

    /// Gives backends that are back their next steps, where it is time to.
    fn warm(&mut self, config: &Config) {
        let (time, none) = (Duration::from_nanos(now()), BTreeSet::new());
        for pool in &config.pools {
            let out = self.out.get(&pool.name).unwrap_or(&none);
            let dead = self.found.get(&pool.name).unwrap_or(&none);
            let backends = pool.backends.iter().map(|backend| (backend.name.as_str(), dead.contains(&backend.name)));
            self.warmup.observe(&pool.name, out, backends, pool.health.slow_start, time);
        }
        self.warmup.keep(|name| config.pools.iter().any(|pool| pool.name == name));
    }

    /// Whether the tables go by what this node finds.
    fn is_in_force(&self) -> bool {
        self.in_force == self.out && self.warming == self.warmup.steps()
    }

    /// The tables go by this from now on; notes what is new.
    fn put_in_force(&mut self, out: Out, incidents: &Incidents) {
        let names = |out: &Out| -> BTreeSet<String> {
            out.iter().flat_map(|(pool, names)| names.iter().map(move |name| format!("{pool}/{name}"))).collect()
        };
        let (before, after) = (names(&self.in_force), names(&out));
        for name in after.difference(&before) {
            incidents.journal().note(Kind::Backend, None, format!("{name} is dead: it gets no new flows"));
        }
        for name in before.difference(&after) {
            incidents.journal().note(Kind::Backend, None, format!("{name} gets new flows again"));
        }
        self.in_force = out;
    }

    /// What there is to tell.
    fn status(&self, image: &Image, paths: &Paths, drains: &Drains) -> Vec<BackendStatus> {
        let time = Duration::from_nanos(now());
        let told = image.backends.iter().map(|(&id, row)| {
            let name = image.registry.name(kind::BACKEND, u32::from(id)).unwrap_or_default();
            let (pool, backend) = name.split_once('/').unwrap_or_default();
            let since = self.dead.get(&id);
            let is_out = self.in_force.get(pool).is_some_and(|out| out.contains(backend));
            let step =
                self.warming.get(pool).and_then(|steps| steps.get(backend)).filter(|_| !is_out && since.is_none());
            let drain = drains.status(id);
            let drains = drain.as_ref().filter(|_| !is_out && since.is_none());
            let state = match since {
                Some(_) if self.panics_in_force.contains_key(pool) => "panic",
                _ if is_out => "dead",
                Some(_) => "suspect",
                None if step.is_some() => "starting",
                None => drains.map_or("alive", DrainStatus::state),
            };
            BackendStatus {
                backend: id,
                state: state.to_owned(),
                why: match step {
                    Some(step) => Some(format!("slow start: it has {step} of {WARMTH} parts of its weight")),
                    None if drains.is_some() => drains.map(DrainStatus::why),
                    None => since.and_then(|_| paths.why_down(&row.paths)),
                },
                drain,
                for_ms: since.map(|since| time.saturating_sub(*since).as_millis() as u64),
            }
        });
        told.collect()
    }
}

pub(super) fn number(image: &Image, pool: &str, backend: &str) -> Option<u16> {
    image.registry.id(kind::BACKEND, &format!("{pool}/{backend}")).map(|id| id as u16)
}

/// Has pools give new flows to those alone that are not out, and to those that start slowly their part.
fn take_out(image: &mut Image, out: &Out, warming: &Warming) {
    for (id, pool) in &mut image.pools {
        let Some(name) = image.registry.name(kind::POOL, u32::from(*id)) else { continue };
        let number = |backend: &String| image.registry.id(kind::BACKEND, &format!("{name}/{backend}"));
        let out: Vec<u32> = out.get(name).into_iter().flatten().filter_map(number).collect();
        pool.members = pool.configured.clone();
        pool.members.retain(|member| !out.contains(&u32::from(member.id)));
        if pool.members.is_empty() {
            pool.members.clone_from(&pool.configured);
        }
        let Some(steps) = warming.get(name) else { continue };
        let registry = &image.registry;
        let id = |backend: &String| registry.id(kind::BACKEND, &format!("{name}/{backend}"));
        let steps: BTreeMap<u32, u8> = steps.iter().filter_map(|(backend, step)| Some((id(backend)?, *step))).collect();
        warmup::weigh(&mut pool.members, |member| steps.get(&u32::from(member.id)).copied());
    }
}

/// The backends whose flows do not stay with them, and those of them that have drained.
#[derive(Default)]
struct Lost {
    fallen: BTreeSet<u16>,
    drained: BTreeSet<u16>,
}

impl Lost {
    /// As a state has it.
    fn agreed(image: &Image, state: &State) -> Self {
        let mut lost = Self::default();
        for (name, pool) in &state.pools {
            let id = image.registry.id(kind::POOL, name).map(|id| id as u16);
            let Some(target) = id.and_then(|id| image.pools.get(&id)) else { continue };
            let dead = pool.fallen().filter(|_| target.parts());
            lost.fallen.extend(dead.filter_map(|backend| number(image, name, backend)));
            let drained = state.drained(name).filter(|_| target.at_deadline != OnDeath::Hold);
            lost.drained.extend(drained.filter_map(|backend| number(image, name, backend)));
        }
        lost.fallen.extend(&lost.drained);
        lost
    }

    /// As this node alone has it.
    fn found(image: &Image) -> Self {
        let drained: BTreeSet<u16> = image.pools.values().flat_map(|pool| &pool.drained).copied().collect();
        let dead = image.pools.values().filter(|pool| pool.parts()).flat_map(PoolImage::dead);
        Self { fallen: dead.chain(drained.iter().copied()).collect(), drained }
    }
}

/// Of those that were agreed to be out.
fn agreed(state: &State) -> Out {
    let out = state.pools.iter().filter(|(_, pool)| !pool.out.is_empty());
    out.map(|(name, pool)| (name.clone(), pool.out.clone())).collect()
}

impl Node {
    /// Looks which backends are dead. Where this node decides alone, its pools go by that from now on.
    pub(super) fn look_at_backends(&mut self) {
        let Some(liveness) = &self.liveness else { return };
        let looked = self.backends.look(&self.config, &self.image, liveness.paths());
        let panics = self.backends.panics_in_force.clone();
        self.go_by_backends();
        if (looked || panics != self.backends.panics_in_force)
            && let Err(error) = self.backends.mark_panics(&mut self.maps, &self.image)
        {
            tracing::error!("packets do not see yet which pools are in a panic: {:#}", anyhow::Error::new(error));
            self.backends.forget();
        }
    }

    /// Goes by what was agreed on; alone, by what was found.
    fn go_by_backends(&mut self) {
        if let Some(state) = self.agreement.as_ref().and_then(|agreement| agreement.state()) {
            if state.version != self.backends.version {
                self.backends.version = state.version;
                self.backends.warming.clone_from(&state.warming);
                self.backends.put_panics_in_force(state.panicking.clone(), &self.incidents);
                self.backends.put_in_force(agreed(&state), &self.incidents);
            }
            return;
        }
        if self.is_in_agreement() {
            return;
        }
        self.backends.warm(&self.config);
        self.backends.put_panics_in_force(self.backends.panicking.clone(), &self.incidents);
        if !self.backends.is_in_force() {
            self.take_backends_out();
        }
    }

    /// Has pools go by what this node finds alone.
    pub(super) fn take_backends_out(&mut self) {
        let warming = self.backends.warmup.steps();
        take_out(&mut self.image, &self.backends.out, &warming);
        self.drains.mark(&mut self.image);
        self.set_lost(Lost::found(&self.image));
        match rows::follow(&mut self.maps, &self.image) {
            Ok(()) => {
                self.backends.warming = warming;
                self.backends.put_in_force(self.backends.out.clone(), &self.incidents);
            }
            Err(error) => tracing::error!("pools could not be changed, and soon are: {:#}", anyhow::Error::new(error)),
        }
    }

    /// Has packets see which backends' flows do not stay with them, by what was agreed on.
    pub(super) fn mark_fallen(&mut self, state: &State) {
        self.set_lost(Lost::agreed(&self.image, state));
    }

    fn set_lost(&mut self, lost: Lost) {
        let before = std::mem::replace(&mut self.image.fallen, lost.fallen);
        self.image.drained = lost.drained;
        for id in before.symmetric_difference(&self.image.fallen) {
            let Some(backend) = self.image.backends.get(id) else { continue };
            if let Err(error) = self.maps.backends.set(u32::from(*id), self.image.seen(*id, backend), 0) {
                tracing::error!(backend = id, %error, "the backend's row could not be written");
            }
        }
    }

    /// What a new image is to leave out, where this node decides alone.
    pub(super) fn keep_out(&self, image: &mut Image) {
        let lost = if image.agreed.is_none() {
            take_out(image, &self.backends.in_force, &self.backends.warming);
            self.drains.mark(image);
            Lost::found(image)
        } else if let Some(state) = self.agreement.as_ref().and_then(|agreement| agreement.state()) {
            Lost::agreed(image, &state)
        } else {
            return;
        };
        (image.fallen, image.drained) = (lost.fallen, lost.drained);
    }

    /// What is known of backends.
    pub(super) fn backends(&self) -> Option<Vec<BackendStatus>> {
        self.liveness.as_ref().map(|liveness| self.backends.status(&self.image, liveness.paths(), &self.drains))
    }
}
