//! Slots on their way to the owners that they should have.
//!
//! A slot is never given to a node before its flows are there: a node that should be first or second is ranked behind the
//! present owners first, so that it gets copies of their flows, and takes its place when it reports that it has them.

use std::collections::VecDeque;

use super::{Planner, Report};
use crate::consensus::state::{Command, Slot, Standing, State};
use crate::health::FULL_SHARE;
use crate::ownership::{Ranking, Ranks};

/// The algorithm of the target ranking.
const ALGORITHM: u32 = 1;

/// Slots that one step moves are this part of all.
const PARTS: usize = 16;

/// The ranks that all slots should have; kept since it takes a while to compute.
#[derive(Default)]
pub(super) struct Target {
    weights: Vec<(u8, u32)>,
    ranks: Vec<Ranks>,
    ranking: Ranking,
}

/// Which slots changed when, as far as previous owners are asked for them.
#[derive(Default)]
pub(super) struct Forwarding {
    changed: VecDeque<(u64, u64)>,
}

impl Planner {
    /// The next step of slots towards their target.
    pub(super) fn slots(&mut self, state: &State, now: u64) -> Option<Command> {
        self.set_target(state, now);
        let wanted = |at: usize| self.next_ranks(state, &state.slots[at], self.target.ranks[at], now);
        let count = state.slots.len();
        // Those that are ranked as they should be stay as they are: nearly all of them, nearly always.
        let is_wrong = |at: usize| state.slots[at].ranks != self.target.ranks[at];
        let first = (0..count).find(|&at| is_wrong(at) && wanted(at) != state.slots[at].ranks)?;
        let ranks: Vec<Ranks> = (first..count.min(first + count.div_ceil(PARTS))).map(wanted).collect();
        Some(Command::Move { first: first as u32, ranks })
    }

    /// Whether a node is ranked wherever it should be first or second, with the flows of all its slots.
    pub(super) fn has_its_flows(&self, state: &State, id: u8, report: &Report) -> bool {
        state.slots.iter().zip(&self.target.ranks).all(|(slot, target)| {
            let is_ranked = slot.ranks.contains(&id);
            (is_ranked || !target[..2].contains(&id)) && (!is_ranked || report.resynced >= slot.version)
        })
    }

    /// Nodes whose agents have been silent for long should own nothing, unless all have; nor those that ail, and those whose
    /// health is poor less than others.
    pub(super) fn set_target(&mut self, state: &State, now: u64) {
        let mut weights = state.weights();
        let is_silent = |id: &u8| self.silent_since.get(id).is_some_and(|&at| now - at >= self.patience.silent);
        weights.retain(|(id, _)| !is_silent(id));
        if weights.is_empty() {
            weights = state.weights();
        }
        let shares: Vec<u8> = weights.iter().map(|&(id, _)| self.share(state, id, now)).collect();
        if shares.iter().any(|share| *share != 0) && shares.iter().any(|share| *share != FULL_SHARE) {
            weights.iter_mut().zip(shares).for_each(|((_, weight), share)| *weight *= u32::from(share));
            weights.retain(|&(_, weight)| weight != 0);
        }
        if (&self.target.weights, self.target.ranks.len()) != (&weights, state.slots.len()) {
            let Target { ranking, .. } = &mut self.target;
            self.target.ranks = ranking.target(&weights, state.slots.len(), ALGORITHM).unwrap_or_default();
            self.target.weights = weights;
        }
    }

    /// The share of its work that a node takes for its health, in quarters. One whose disk holds up its reports is known by
    /// what its beats say to others.
    fn share(&self, state: &State, id: u8, now: u64) -> u8 {
        if self.most_say(state, id, now, |report| &report.ailing) {
            return 0;
        }
        self.report(id, now).map_or(FULL_SHARE, |report| report.share.min(FULL_SHARE))
    }

    /// What a slot's ranks should be next.
    fn next_ranks(&self, state: &State, slot: &Slot, target: Ranks, now: u64) -> Ranks {
        let [primary, secondary, ..] = slot.ranks;
        let has_flows = |id: u8| {
            let confirmed = || self.report(id, now).is_some_and(|report| report.resynced >= slot.version);
            let ranked =
                slot.ranks.contains(&id) && state.members.get(&id).is_some_and(|one| one.standing == Standing::Up);
            id == 0 || id == primary || ranked && confirmed()
        };
        if target[0] == 0 {
            return slot.ranks;
        }
        if primary == 0 || has_flows(target[0]) && has_flows(target[1]) {
            return target;
        }
        let mut ranks = [0; 4];
        let mut rank = 0;
        for id in [primary, secondary].into_iter().chain(target) {
            if id != 0 && rank < ranks.len() && !ranks.contains(&id) {
                ranks[rank] = id;
                rank += 1;
            }
        }
        // Where only the order behind the second differs there is nothing to wait for, and nothing to gain.
        if target[..2].iter().all(|id| slot.ranks.contains(id)) { slot.ranks } else { ranks }
    }
}

impl Forwarding {
    /// Ends the forwarding to previous owners of slots that changed long enough ago.
    pub(super) fn step(&mut self, state: &State, now: u64, long: u64) -> Option<Command> {
        let newest = state.slots.iter().filter(|slot| slot.previous != 0).map(|slot| slot.version).max();
        let Some(newest) = newest else {
            self.changed.clear();
            return None;
        };
        if self.changed.back().is_none_or(|&(version, _)| version < newest) {
            self.changed.push_back((newest, now));
        }
        let (unchanged_since, _) = *self.changed.front().filter(|(_, at)| now - at >= long)?;
        self.changed.pop_front();
        let is_asked = |slot: &Slot| slot.previous != 0 && slot.version <= unchanged_since;
        state.slots.iter().any(is_asked).then_some(Command::Forget { unchanged_since })
    }
}
