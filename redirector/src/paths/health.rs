//! What becomes of a path, as far as the agent decides it: a state machine without clocks, sockets and maps.
//!
//! ```text
//! assumed ──something answers──► alive ──bit turned off, or a bad sign──► suspect
//!    │ bad sign                    ▲                                        │ no sign is bad
//!    └────────► suspect            └── risen, and held down long enough ── returning
//! ```
//!
//! A path about which nothing is known is used: a fleet whose probes say nothing yet must serve. One that was off is used
//! again when no sign is bad, its beats have risen, and a time has passed that doubles with each fall, so that a path which
//! flaps is damped. Where all of a backend's paths are off, that time does not double: packets leave anyway.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::liveness::Damping;

/// The longest that a path is held down, in times of what is configured.
const HELD_DOWN_MAX: u32 = 128;

/// What a path is in this node's eyes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// It is used, and nothing has ever answered there.
    Assumed,
    /// It is used, and answers.
    Alive,
    /// It is not used while others are alive.
    Suspect,
    /// It answers again, and is not used yet.
    Returning,
}

/// What one source of knowledge says of a path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sign {
    /// Nothing.
    #[default]
    None,
    /// It works.
    Good,
    /// It does not.
    Bad,
}

/// What there is to see of a path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Observation {
    /// Whether nothing has turned it off since it was let in.
    pub on: bool,
    /// Whether its port has a carrier.
    pub carrier: bool,
    /// Of its last requests, answered in a row up to the last whose answer is due; none where nothing ever answered.
    pub streak: Option<u32>,
    /// What probes say.
    pub probes: Sign,
    /// What a routing neighbour's session says.
    pub session: Sign,
    /// What the flows themselves say.
    pub flows: Sign,
    /// Whether its backend has other paths and none of them is used.
    pub is_needed: bool,
}

/// When a path is used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Answers in a row.
    pub rise: u32,
    /// How long at least after its first fall.
    pub hold_down: Duration,
}

/// What is to be done about a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Let it be alive.
    Admit,
    /// Do not let it be alive.
    Dismiss,
}

/// One path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path {
    /// What it is.
    pub state: State,
    /// Since when, on the agent's clock.
    pub since: Duration,
    /// Why it is not used, or was not last.
    pub why: Option<&'static str>,
    /// Whether it was let in and nothing has turned it off since.
    pub admitted: bool,
    /// How often it fell.
    pub falls: u64,
    damping: Damping,
}

impl Path {
    /// A path of which nothing is known; it is to be let in.
    pub fn new(now: Duration) -> Self {
        Self { state: State::Assumed, since: now, why: None, admitted: true, falls: 0, damping: Damping::new(now) }
    }

    /// An agent that starts finds a path that was turned off, or was not let in: for this reason, where it is known.
    pub fn adopt_fallen(&mut self, now: Duration, rules: &Rules, why: Option<&'static str>) {
        (self.admitted, self.state) = (false, State::Suspect);
        self.why = why.or(Some("it was off before the agent started"));
        self.damping.fall(now, rules.hold_down, rules.hold_down.saturating_mul(HELD_DOWN_MAX));
    }

    /// Whether it is off for this reason, and nothing has been learnt since that would speak for it: what says nothing is
    /// no reason to use it again.
    pub fn is_out_for(&self, why: &str) -> bool {
        !self.admitted && self.why == Some(why)
    }

    /// Takes in what there is to see at a time; says what is to be done.
    pub fn observe(&mut self, now: Duration, rules: &Rules, seen: &Observation) -> Option<Action> {
        self.damping.pass(now);
        let bad = bad(seen);
        if self.admitted {
            // Where nothing ever answered, nothing but its carrier can have turned it off.
            let off = (!seen.on).then_some(if seen.carrier && seen.streak.is_some() { SILENT } else { NO_CARRIER });
            let Some(why) = off.or(bad) else {
                self.enter(if answers(seen) { State::Alive } else { State::Assumed }, now);
                return None;
            };
            self.fall(now, rules, why);
            return Some(Action::Dismiss);
        }
        if bad.is_some() {
            self.why = bad;
            self.enter(State::Suspect, now);
            return None;
        }
        if seen.streak == Some(0) {
            self.enter(State::Suspect, now);
            return None;
        }
        if seen.streak.is_some_and(|streak| streak < rules.rise) || self.is_held(now, rules, seen) {
            self.enter(State::Returning, now);
            return None;
        }
        self.admitted = true;
        self.enter(if answers(seen) { State::Alive } else { State::Assumed }, now);
        Some(Action::Admit)
    }

    /// Whether it stays out for its falls. Where no other one is used, those before the last do not count.
    fn is_held(&self, now: Duration, rules: &Rules, seen: &Observation) -> bool {
        self.damping.holds(now) && !(seen.is_needed && self.damping.has_rested(now, rules.hold_down))
    }

    fn fall(&mut self, now: Duration, rules: &Rules, why: &'static str) {
        (self.admitted, self.why) = (false, Some(why));
        self.falls += 1;
        self.damping.fall(now, rules.hold_down, rules.hold_down.saturating_mul(HELD_DOWN_MAX));
        self.enter(State::Suspect, now);
    }

    fn enter(&mut self, state: State, now: Duration) {
        if self.state != state {
            self.state = state;
            self.since = now;
        }
    }
}

/// Why a path is not used whose far end fell silent.
pub const SILENT: &str = "its beats went unanswered";

/// Why a path is not used whose probes say that it is bad.
pub const PROBES_FAIL: &str = "its probes fail";

/// Why a path is not used whose flows say that it is bad.
pub const FLOWS_DIE: &str = "its flows die";

/// Why a path is not used whose BFD session went down.
pub const SESSION_DOWN: &str = "its BFD session is down";

const NO_CARRIER: &str = "its port has no carrier";

/// What agents leave behind for their successors, by number from 1 on.
const REASONS: [&str; 5] = [SILENT, NO_CARRIER, PROBES_FAIL, SESSION_DOWN, FLOWS_DIE];

/// The number of a reason; 0: none of those that are left behind.
pub fn number(why: &str) -> u64 {
    REASONS.iter().position(|reason| *reason == why).map_or(0, |at| at as u64 + 1)
}

/// The reason of a number.
pub fn reason(number: u64) -> Option<&'static str> {
    REASONS.get(usize::try_from(number).ok()?.checked_sub(1)?).copied()
}

/// Whether anything answers there.
fn answers(seen: &Observation) -> bool {
    seen.streak.is_some() || [seen.probes, seen.session].contains(&Sign::Good)
}

/// The first sign that is bad.
fn bad(seen: &Observation) -> Option<&'static str> {
    let signs = [
        (!seen.carrier, NO_CARRIER),
        (seen.probes == Sign::Bad, PROBES_FAIL),
        (seen.session == Sign::Bad, SESSION_DOWN),
        (seen.flows == Sign::Bad, FLOWS_DIE),
    ];
    signs.into_iter().find(|(is_bad, _)| *is_bad).map(|(_, why)| why)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::liveness::FORGIVEN;

    /// What there is to see, in kinds.
    const GOOD: Observation = Observation {
        on: true,
        carrier: true,
        streak: Some(9),
        probes: Sign::None,
        session: Sign::None,
        flows: Sign::None,
        is_needed: false,
    };
    const KINDS: [(&str, Observation); 10] = [
        ("nothing known", Observation { streak: None, ..GOOD }),
        ("answers", GOOD),
        ("answers not yet in a row", Observation { streak: Some(2), ..GOOD }),
        ("silent, not off yet", Observation { streak: Some(0), ..GOOD }),
        ("off", Observation { on: false, streak: Some(0), ..GOOD }),
        ("off, and answers", Observation { on: false, ..GOOD }),
        ("no carrier", Observation { on: false, carrier: false, ..GOOD }),
        ("probes fail", Observation { probes: Sign::Bad, ..GOOD }),
        ("session down", Observation { session: Sign::Bad, ..GOOD }),
        ("flows die", Observation { flows: Sign::Bad, ..GOOD }),
    ];

    const RULES: Rules = Rules { rise: 3, hold_down: Duration::from_millis(250) };
    const T: Duration = Duration::from_secs(100);

    /// A path in each of its states.
    fn in_state(state: State) -> Path {
        let mut path = Path::new(T);
        match state {
            State::Assumed => {}
            State::Alive => assert_eq!(path.observe(T, &RULES, &GOOD), None),
            State::Suspect => {
                assert_eq!(path.observe(T, &RULES, &KINDS[4].1), Some(Action::Dismiss));
            }
            State::Returning => {
                path.observe(T, &RULES, &KINDS[4].1);
                assert_eq!(path.observe(T, &RULES, &Observation { on: false, ..GOOD }), None);
            }
        }
        assert_eq!(path.state, state);
        path
    }

    #[test]
    fn every_state_meets_every_sight() {
        use Action::{Admit, Dismiss};
        use State::{Alive, Assumed, Returning, Suspect};
        const STAYS: Option<Action> = None;
        let used = |seen| match seen {
            "nothing known" => (Assumed, STAYS),
            "answers" | "answers not yet in a row" | "silent, not off yet" => (Alive, STAYS),
            _ => (Suspect, Some(Dismiss)),
        };
        // Long after the fall, so that nothing holds it down.
        let unused = |seen| match seen {
            "nothing known" => (Assumed, Some(Admit)),
            "answers" | "off, and answers" => (Alive, Some(Admit)),
            "answers not yet in a row" => (Returning, STAYS),
            _ => (Suspect, STAYS),
        };
        for state in [Assumed, Alive, Suspect, Returning] {
            for (name, seen) in KINDS {
                let mut path = in_state(state);
                let action = path.observe(T + Duration::from_secs(1), &RULES, &seen);
                let expected = if matches!(state, Assumed | Alive) { used(name) } else { unused(name) };
                assert_eq!((path.state, action), expected, "{state:?} on {name}");
                assert_eq!(path.admitted, matches!(path.state, Assumed | Alive), "{state:?} on {name}");
            }
        }
    }

    #[test]
    fn a_path_that_was_off_before_the_agent_started_waits_and_knows_why() {
        for why in REASONS {
            assert_eq!(reason(number(why)), Some(why));
        }
        assert_eq!([reason(0), reason(REASONS.len() as u64 + 1)], [None; 2]);
        for why in [None, Some(SESSION_DOWN)] {
            let mut path = Path::new(T);
            path.adopt_fallen(T, &RULES, why);
            assert!(!path.admitted && path.state == State::Suspect && path.why.is_some());
            assert_eq!(path.is_out_for(SESSION_DOWN), why.is_some());
            assert_eq!(path.observe(T, &RULES, &GOOD), None, "it is held down as after any fall");
            assert_eq!(path.observe(T + RULES.hold_down, &RULES, &KINDS[3].1), None, "it must answer");
            assert_eq!(path.observe(T + RULES.hold_down, &RULES, &GOOD), Some(Action::Admit));
            assert!(!path.is_out_for(SESSION_DOWN));
        }
    }

    #[test]
    fn where_all_paths_are_off_one_that_has_fallen_often_is_held_down_as_after_one_fall() {
        let needed = Observation { is_needed: true, ..GOOD };
        let (soon, rested) = (T + RULES.hold_down / 2, T + RULES.hold_down);
        for (name, now, seen, action) in [
            ("it answers", rested, needed, Some(Action::Admit)),
            ("it has just fallen", soon, needed, None),
            ("it has not risen yet", rested, Observation { streak: Some(2), ..needed }, None),
            ("its probes fail", rested, Observation { probes: Sign::Bad, ..needed }, None),
            ("another one is used", rested, GOOD, None),
        ] {
            let mut path = Path::new(T);
            for _ in 0..5 {
                path.admitted = true;
                assert_eq!(path.observe(T, &RULES, &KINDS[4].1), Some(Action::Dismiss));
            }
            assert_eq!(path.observe(now, &RULES, &seen), action, "{name}");
        }
    }

    #[test]
    fn a_path_that_flaps_is_held_down_ever_longer_and_forgiven() {
        let mut path = Path::new(T);
        let mut now = T;
        let mut waits = Vec::new();
        for _ in 0..10 {
            assert_eq!(path.observe(now, &RULES, &Observation { on: false, ..GOOD }), Some(Action::Dismiss));
            let fell = now;
            while path.observe(now, &RULES, &GOOD) != Some(Action::Admit) {
                now += Duration::from_millis(10);
            }
            waits.push(now - fell);
        }
        assert_eq!(waits[..3], [250, 500, 1000].map(Duration::from_millis));
        assert!(waits.iter().all(|wait| *wait <= RULES.hold_down * 128), "{waits:?}");
        assert_eq!(path.falls, 10);
        for minute in 1..=20 {
            assert_eq!(path.observe(now + FORGIVEN * minute, &RULES, &GOOD), None);
        }
        let later = now + FORGIVEN * 21;
        path.observe(later, &RULES, &KINDS[4].1);
        assert_eq!(path.observe(later + RULES.hold_down, &RULES, &GOOD), Some(Action::Admit));
    }
}
