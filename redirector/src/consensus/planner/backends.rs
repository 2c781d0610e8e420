//! Backends that most nodes find dead are taken out of their pools, and put in again when most do not; those that drain
//! keep their flows until their time is over. Where too little of a pool would be left, none of it is taken out: the share is
//! judged here, over all that would be out, since nodes that each find few dead may find many dead together.

use std::collections::{BTreeMap, BTreeSet};

use super::{Planner, Report, View, note};
use crate::consensus::state::{Command, DRAIN_PARTS, Phase, Pool, WARMTH};
use crate::paths::backends::{Backend, Verdict, judge};

impl Planner {
    /// The pools that are in a panic or no more; else those whose backends that are out should be others.
    pub(super) fn backends(&mut self, view: &View<'_>, now: u64) -> Option<Command> {
        let state = view.state;
        let present: Vec<u8> =
            state.members.iter().filter(|(_, member)| member.is_present()).map(|(&id, _)| id).collect();
        let fresh: Vec<u8> = present.iter().copied().filter(|&id| self.report(id, now).is_some()).collect();
        if fresh.len() * 2 <= present.len() {
            return None;
        }
        let (mut next, mut panicking) = (BTreeMap::new(), BTreeMap::new());
        for (name, pool) in &state.pools {
            let mut out = BTreeSet::new();
            for backend in pool.configured.0.keys() {
                let says = |report: &Report| report.dead.get(name).is_some_and(|dead| dead.contains(backend));
                let those = fresh.iter().filter(|&&id| self.report(id, now).is_some_and(says)).count();
                let is_dead = those * 2 > present.len();
                let key = (name.clone(), backend.clone());
                note(&mut self.dead_since, key.clone(), is_dead, now);
                note(&mut self.alive_since, key.clone(), !is_dead, now);
                let for_long = |since: Option<&u64>, long| since.is_some_and(|&at| now - at >= long);
                // Who starts slowly comes back with the first part of its weight, which has to be agreed on before.
                let is_prepared = !pool.has_room()
                    || !view.times.slow_starts.contains_key(name)
                    || state.warming.get(name).is_some_and(|steps| steps.contains_key(backend));
                let is_back = is_prepared && for_long(self.alive_since.get(&key), self.patience.back);
                // In a panic nobody is out: who was dead has to be back for as long all the same.
                let is_well = for_long(self.alive_since.get(&key), self.patience.back);
                let stays = pool.out.contains(backend) && !is_back || state.panicking.contains_key(name) && !is_well;
                if stays || for_long(self.dead_since.get(&key), self.patience.backend) {
                    out.insert(backend.clone());
                }
            }
            let panic = view.times.panics.get(name).copied().unwrap_or(0);
            let judged = pool.configured.0.iter().map(|(backend, &weight)| {
                let is_dead = out.contains(backend);
                Backend { name: backend, weight, is_dead }
            });
            let out = match judge(judged, panic) {
                Verdict::Out(out) => out,
                Verdict::Panic(healthy) => {
                    // As it was when that began: what changes meanwhile is no news to agree on.
                    panicking.insert(name.clone(), state.panicking.get(name).copied().unwrap_or(healthy));
                    BTreeSet::new()
                }
            };
            if out != pool.out && pool.takes_change() {
                next.insert(name.clone(), out);
            }
        }
        let is_there = |(name, backend): &(String, String)| {
            let has = |pool: &Pool| pool.configured.0.contains_key(backend);
            state.pools.get(name).is_some_and(has)
        };
        self.dead_since.retain(|key, _| is_there(key));
        self.alive_since.retain(|key, _| is_there(key));
        if panicking != state.panicking {
            return Some(Command::Panic(panicking));
        }
        (!next.is_empty()).then_some(Command::SetOut(next))
    }

    /// A pool of which a backend that is out is to begin with the first part of its weight, or one that is back is to have
    /// the next. A part is given only after the one before is in force.
    pub(super) fn warmth(&mut self, view: &View<'_>, now: u64) -> Option<Command> {
        let state = view.state;
        let is_warming = |(pool, backend): &(String, String)| {
            state.warming.get(pool).is_some_and(|steps| steps.contains_key(backend))
        };
        self.warm_since.retain(|key, _| is_warming(key));
        for (name, pool) in state.pools.iter().filter(|(_, pool)| pool.takes_change()) {
            let before = state.warming.get(name).cloned().unwrap_or_default();
            // A pool that long flows keep from settling is short of room for parts: deaths matter more.
            let Some(whole) = view.times.slow_starts.get(name).filter(|_| pool.has_room()) else {
                if before.is_empty() {
                    continue;
                }
                return Some(Command::Warm { pool: name.clone(), steps: BTreeMap::new() });
            };
            let mut steps = before.clone();
            for (backend, &step) in &before {
                let since = self.warm_since.entry((name.clone(), backend.clone())).or_insert((step, now));
                // In a panic one that is dead is not out, and no part of its time goes by either.
                let is_dead = self.dead_since.contains_key(&(name.clone(), backend.clone()));
                if is_dead || pool.out.contains(backend) || since.0 != step {
                    *since = (step, now);
                } else if pool.phase() != Phase::Announced && now - since.1 >= whole / u64::from(WARMTH) {
                    steps.insert(backend.clone(), step + 1);
                }
            }
            steps.extend(pool.out.iter().map(|backend| (backend.clone(), 1)));
            steps.retain(|_, step| *step < WARMTH);
            if steps != before {
                return Some(Command::Warm { pool: name.clone(), steps });
            }
        }
        None
    }

    /// A pool of which a backend that drains has had another part of its time.
    pub(super) fn deadlines(&mut self, view: &View<'_>, now: u64) -> Option<Command> {
        let state = view.state;
        let drains = |(pool, backend): &(String, String)| {
            view.times.drains.contains_key(pool) && state.pools.get(pool).is_some_and(|pool| pool.drains(backend))
        };
        self.drained_since.retain(|key, _| drains(key));
        for (name, pool) in &state.pools {
            let before = state.drains.get(name).cloned().unwrap_or_default();
            let mut parts = BTreeMap::new();
            if let Some(whole) = view.times.drains.get(name) {
                let part = (whole / u64::from(DRAIN_PARTS)).max(1);
                for backend in pool.configured.0.keys().filter(|backend| pool.drains(backend)) {
                    let gone = before.get(backend).copied().unwrap_or(0);
                    let since = self.drained_since.entry((name.clone(), backend.clone())).or_insert((gone, now));
                    *since = match gone.checked_sub(since.0) {
                        Some(parts) => (gone, since.1 + u64::from(parts) * part),
                        None => (gone, now),
                    };
                    let more = now.saturating_sub(since.1) / part;
                    let gone = gone.saturating_add(u8::try_from(more).unwrap_or(DRAIN_PARTS)).min(DRAIN_PARTS);
                    parts.insert(backend.clone(), gone);
                }
            }
            parts.retain(|_, gone| *gone > 0);
            if parts != before {
                let version = state.specification.version;
                return Some(Command::Elapse { pool: name.clone(), version, parts });
            }
        }
        None
    }
}
