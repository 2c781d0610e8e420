//! Backends that most nodes find dead are taken out of their pools, and put in again when most do not.

use std::collections::{BTreeMap, BTreeSet};

use super::{Planner, Report, note};
use crate::consensus::state::{Command, Pool, State};

impl Planner {
    /// The pools whose backends that are out should be others.
    pub(super) fn backends(&mut self, state: &State, now: u64) -> Option<Command> {
        let present: Vec<u8> =
            state.members.iter().filter(|(_, member)| member.is_present()).map(|(&id, _)| id).collect();
        let fresh: Vec<u8> = present.iter().copied().filter(|&id| self.report(id, now).is_some()).collect();
        if fresh.len() * 2 <= present.len() {
            return None;
        }
        let mut next = BTreeMap::new();
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
                let stays = pool.out.contains(backend) && !for_long(self.alive_since.get(&key), self.patience.back);
                if stays || for_long(self.dead_since.get(&key), self.patience.backend) {
                    out.insert(backend.clone());
                }
            }
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
        (!next.is_empty()).then_some(Command::SetOut(next))
    }
}
