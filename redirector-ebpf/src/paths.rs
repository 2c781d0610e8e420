//! Which paths are alive? The rule by which the kernel's timer turns their alive bits off, as functions of what was sent to
//! their far ends and heard from them.
//!
//! A path falls when as many requests over its leg as count are unanswered, or its port has no carrier. No verdict is passed
//! in a round that comes late, nor while this node's own sender makes no progress. That many fall at once is no reason to
//! doubt it, other than with nodes: a fabric that fails takes all its paths along.
//!
//! Off is latched: the agent alone lets a path be alive again, by a new term. A leg on which nothing was ever answered is
//! not judged: nobody says that its far end can answer.

use crate::sync::Word;
use crate::tables::leg::{LegHeard, LegSent, NO_LEG, PathAdmission};
use crate::tables::liveness::Latch;
use crate::tables::path::alive;

/// What the rule looks at.
pub trait Judging {
    /// A path that is watched, by its place in the list: a [`PathAdmission`].
    fn admission(&self, row: u32) -> Option<&Word>;
    /// The verdict on a path.
    fn path_latch(&self, path: u16) -> Option<&Latch>;
    /// A path's alive bit.
    fn path_bit(&self, path: u16) -> Option<&Word>;
    /// What was sent over a leg.
    fn leg_sent(&self, leg: u16) -> Option<&LegSent>;
    /// What was heard over a leg.
    fn leg_heard(&self, leg: u16) -> Option<&LegHeard>;
}

/// Whether as many requests as count are unanswered over a leg, and for as long as it takes.
#[inline(always)]
pub fn is_silent(sent: &LegSent, heard: &LegHeard, now: u64) -> bool {
    let (sequence, answered, due) = (sent.sequence.load(), heard.answered.load(), sent.multiplier.load());
    if answered == 0 || due == 0 || sequence < answered || sequence - answered < due {
        return false;
    }
    let (first, last) = (sent.time(answered + 1), sent.time(answered + due));
    let (interval, grace) = (sent.interval.load(), sent.grace.load());
    now.saturating_sub(first) >= (due - 1) * interval + grace && now.saturating_sub(last) >= grace
}

/// Settles the bit of a path: off while it is not admitted, latched off if its leg is silent and verdicts `may` be passed.
#[inline(always)]
pub fn settle<J: Judging>(judging: &J, row: u32, now: u64, may: bool) -> Option<()> {
    let PathAdmission { path, leg, unplugged, term } = PathAdmission::of(judging.admission(row)?.load());
    if path == 0 {
        return Some(());
    }
    let (latch, bit) = (judging.path_latch(path)?, judging.path_bit(path)?);
    let mut on = term != 0 && latch.term.load() != u64::from(term);
    if on && may {
        let falls = unplugged || leg != NO_LEG && is_silent(judging.leg_sent(leg)?, judging.leg_heard(leg)?, now);
        if falls {
            latch.at.store(now);
            latch.term.store(u64::from(term));
            on = false;
        }
    }
    let says = match (on, unplugged) {
        (true, _) => alive::ON,
        (false, false) => alive::OFF,
        (false, true) => alive::UNPLUGGED,
    };
    // What is right already is not touched, under packets that read it.
    if bit.load() != says {
        bit.store(says);
    }
    Some(())
}
