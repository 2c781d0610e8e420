//! What flows say of the path that they take, judged: a state machine without clocks and maps.
//!
//! A path may answer beats and probes and yet let connections die: a firewall behind it, a port that nobody serves any more,
//! a host that took over an address. Then SYNs come again on it, or its flows end by resets more than those of other paths.
//!
//! SYNs that come again speak against a path by themselves. Resets do so only in comparison with the pool's other paths:
//! many clients end all of their connections that way.
//!
//! Without flows nothing is known, so a path that was taken out for this comes back on trial after a while; if its flows
//! die again, it stays out for twice as long.

use std::collections::VecDeque;
use std::fmt;
use std::ops::{Add, Sub};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::liveness::Damping;

/// How often counts are taken in.
pub const TICK: Duration = Duration::from_secs(1);

/// Over how many ticks they are judged: soon where there are many, and with patience where there are few.
const WINDOWS: [usize; 2] = [4, 16];

/// Fewer SYNs than this say nothing, nor do fewer resets.
const LEAST: u64 = 10;

/// Of a path's SYNs, in per cent, that have come before if connections die on it. One that is lost comes again twice within
/// four seconds.
const AGAIN: u64 = 30;

/// Resets for each hundred flows, where a path's are looked at.
const RESETS: u64 = 50;

/// How many times more there must be than on the other paths.
const TIMES: u64 = 4;

/// How long a path stays out at first until it is tried again, and at most.
const TRIAL: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(80));

/// What was counted of the flows of one path or more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// SYNs that were seen for the first time.
    pub opened: u64,
    /// SYNs that came again.
    pub again: u64,
    /// Resets by clients.
    pub resets: u64,
}

impl Add for Counts {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { opened: self.opened + other.opened, again: self.again + other.again, resets: self.resets + other.resets }
    }
}

impl Sub for Counts {
    type Output = Self;

    /// Counters that were set back have counted nothing.
    fn sub(self, other: Self) -> Self {
        Self {
            opened: self.opened.saturating_sub(other.opened),
            again: self.again.saturating_sub(other.again),
            resets: self.resets.saturating_sub(other.resets),
        }
    }
}

impl std::iter::Sum for Counts {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), Add::add)
    }
}

/// What speaks against a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Complaint {
    /// So many of a hundred SYNs had come before.
    Unanswered(u64),
    /// So many resets for each hundred flows, and so many on the pool's other paths.
    Reset(u64, u64),
}

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unanswered(share) => write!(f, "its flows get no answers: {share} % of the SYNs on it come again"),
            Self::Reset(here, there) => {
                write!(f, "its flows end by resets: {here} for 100 new ones, on the pool's other paths {there}")
            }
        }
    }
}

/// What the flows of one path have said.
#[derive(Clone, Debug)]
pub struct Signals {
    counted: Counts,
    /// What each tick has brought, the last first.
    ticks: VecDeque<Counts>,
    complaint: Option<Complaint>,
    /// Why it was taken out last.
    fault: Option<Complaint>,
    trial: Damping,
}

impl Signals {
    /// Of a path whose counters stand at this.
    pub fn new(now: Duration, counted: Counts) -> Self {
        Self { counted, ticks: VecDeque::new(), complaint: None, fault: None, trial: Damping::new(now) }
    }

    /// A tick has passed, and the counters stand at this.
    pub fn tick(&mut self, counted: Counts) {
        self.ticks.push_front(counted - self.counted);
        self.ticks.truncate(WINDOWS[1]);
        self.counted = counted;
    }

    /// What the last tick has brought.
    pub fn last(&self) -> Counts {
        self.within(1)
    }

    /// What was counted within a window.
    fn within(&self, ticks: usize) -> Counts {
        self.ticks.iter().take(ticks).copied().sum()
    }

    /// What was counted in the longest of the times that are judged.
    pub fn recent(&self) -> Counts {
        self.within(WINDOWS[1])
    }

    /// Judges the path beside the `recent` counts of the pool's other paths.
    pub fn judge(&mut self, others: Counts) {
        self.complaint = WINDOWS.iter().find_map(|ticks| complaint(self.within(*ticks), others));
    }

    /// What speaks against the path.
    pub fn complaint(&self) -> Option<Complaint> {
        self.complaint
    }

    /// Why it was taken out last.
    pub fn fault(&self) -> Option<Complaint> {
        self.fault
    }

    /// The path is taken out for its flows, until it is tried again. What was counted counts no more.
    pub fn take_out(&mut self, now: Duration) {
        self.trial.pass(now);
        self.trial.fall(now, TRIAL.0, TRIAL.1);
        self.fault = self.complaint.take();
        self.ticks.clear();
    }

    /// Whether it has to stay out.
    pub fn is_out(&self, now: Duration) -> bool {
        self.trial.holds(now)
    }
}

fn complaint(here: Counts, others: Counts) -> Option<Complaint> {
    let syns = here.opened + here.again;
    let again = (here.again * 100).checked_div(syns).unwrap_or(0);
    if syns >= LEAST && again >= AGAIN {
        return Some(Complaint::Unanswered(again));
    }
    if here.resets < LEAST || others.opened < LEAST {
        return None;
    }
    let rate = |counts: Counts| counts.resets * 100 / counts.opened.max(1);
    let (here, there) = (rate(here), rate(others));
    (here >= RESETS && here >= there * TIMES).then_some(Complaint::Reset(here, there))
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: Duration = Duration::from_secs(1000);

    fn counts(opened: u64, again: u64, resets: u64) -> Counts {
        Counts { opened, again, resets }
    }

    /// What is complained of after ticks of these counts.
    fn judged(ticks: &[Counts], others: Counts) -> Option<Complaint> {
        let mut signals = Signals::new(T, Counts::default());
        let mut counted = Counts::default();
        for tick in ticks {
            counted = counted + *tick;
            signals.tick(counted);
        }
        signals.judge(others);
        signals.complaint()
    }

    #[test]
    fn syns_that_come_again_and_uncommon_resets_speak_against_a_path() {
        let none = Counts::default();
        let quiet = counts(400, 0, 8);
        for (says, ticks, others, complaint) in [
            ("nothing was seen", vec![], quiet, None),
            ("all are answered", vec![counts(100, 0, 0)], quiet, None),
            ("now and then one is lost", vec![counts(100, 5, 0)], quiet, None),
            ("too few to say anything", vec![counts(3, 6, 0)], none, None),
            ("nobody is answered", vec![counts(10, 10, 0)], none, Some(Complaint::Unanswered(50))),
            ("resets as on all paths", vec![counts(100, 0, 90)], counts(400, 0, 380), None),
            ("resets here alone", vec![counts(100, 0, 90)], quiet, Some(Complaint::Reset(90, 2))),
            ("resets and nothing to compare with", vec![counts(100, 0, 90)], none, None),
            ("resets of flows that are older", vec![counts(0, 0, 30)], quiet, Some(Complaint::Reset(3000, 2))),
            ("a few resets", vec![counts(100, 0, 9)], quiet, None),
        ] {
            assert_eq!(judged(&ticks, others), complaint, "{says}");
        }
    }

    #[test]
    fn what_dies_is_seen_soon_and_few_flows_are_enough() {
        let good = vec![counts(50, 0, 0); 16];
        let dying = [counts(50, 0, 0), counts(50, 50, 0), counts(50, 50, 0)];
        let soon = [good.clone(), dying.to_vec()].concat();
        assert!(matches!(judged(&soon, Counts::default()), Some(Complaint::Unanswered(_))));
        // One connection in four seconds, each tried again after one and three more.
        let few = [counts(1, 0, 0), counts(0, 1, 0), counts(0, 0, 0), counts(0, 1, 0)].repeat(4);
        assert!(matches!(judged(&few, Counts::default()), Some(Complaint::Unanswered(_))));
        let long_ago = [vec![counts(10, 30, 0)], vec![counts(50, 0, 0); 16]].concat();
        assert_eq!(judged(&long_ago, Counts::default()), None);
    }

    #[test]
    fn counters_that_were_set_back_say_nothing() {
        let mut signals = Signals::new(T, counts(1000, 1000, 1000));
        signals.tick(counts(5, 5, 5));
        assert_eq!(signals.recent(), Counts::default());
    }

    #[test]
    fn what_fails_its_trial_stays_out_for_longer() {
        let mut signals = Signals::new(T, Counts::default());
        let mut now = T;
        let mut times = Vec::new();
        for _ in 0..3 {
            signals.tick(counts(0, 100, 0));
            signals.take_out(now);
            assert_eq!(signals.recent(), Counts::default());
            let from = now;
            while signals.is_out(now) {
                now += TICK;
            }
            times.push((now - from).as_secs());
        }
        assert_eq!(times, [10, 20, 40]);
    }
}
