//! What follows from a probe's tries: a state machine without sockets, clocks and randomness.
//!
//! ```text
//!             rise successes in a row            fall failures in a row
//! undecided ──────────────────────────► good ◄─────────────────────────► bad
//!     └───────────────── fall failures in a row ──────────────────────────┘
//! ```

use std::time::Duration;

use crate::paths::health::Sign;

/// When tries are made, and how many count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Time from one try to the next.
    pub interval: Duration,
    /// By how much of it a try is moved, in per cent.
    pub jitter: u8,
    /// Successes in a row after which it is good.
    pub rise: u32,
    /// Failures in a row after which it is bad.
    pub fall: u32,
}

/// A probe's verdict, and what it is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    rules: Rules,
    /// What it says; none before it has decided.
    pub sign: Sign,
    /// Since when.
    pub since: Duration,
    /// When the next try is due.
    pub due: Duration,
    /// Why the last try that failed did.
    pub why: Option<String>,
    /// How long the last try that succeeded took.
    pub took: Option<Duration>,
    /// Tries that succeeded.
    pub succeeded: u64,
    /// Tries that failed.
    pub failed: u64,
    streak: u32,
    last: Option<bool>,
}

impl Machine {
    /// One whose first try is due at a moment of the first interval: `random` says which, so that probes do not go together.
    pub fn new(rules: Rules, now: Duration, random: u64) -> Self {
        let spread = rules.interval.min(Duration::from_secs(1)).as_nanos() as u64;
        Self {
            rules,
            sign: Sign::None,
            since: now,
            due: now + Duration::from_nanos(random % spread.max(1)),
            why: None,
            took: None,
            succeeded: 0,
            failed: 0,
            streak: 0,
            last: None,
        }
    }

    /// A try begins. The next is due an interval from now, moved at random.
    pub fn begins(&mut self, now: Duration, random: u64) {
        let interval = self.rules.interval.as_nanos() as u64;
        let most = interval / 100 * u64::from(self.rules.jitter);
        let moved = interval - most + random % (2 * most + 1);
        self.due = now + Duration::from_nanos(moved);
    }

    /// A try has ended: it took so long, or why it failed.
    pub fn ended(&mut self, now: Duration, result: Result<Duration, String>) {
        let is_good = result.is_ok();
        match result {
            Ok(took) => {
                self.took = Some(took);
                self.succeeded += 1;
            }
            Err(why) => {
                self.why = Some(why);
                self.failed += 1;
            }
        }
        self.streak = if self.last == Some(is_good) { self.streak.saturating_add(1) } else { 1 };
        self.last = Some(is_good);
        let (sign, needed) = if is_good { (Sign::Good, self.rules.rise) } else { (Sign::Bad, self.rules.fall) };
        if self.streak >= needed && self.sign != sign {
            (self.sign, self.since) = (sign, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: Rules = Rules { interval: Duration::from_secs(2), jitter: 10, rise: 2, fall: 3 };

    /// Feeds `+` and `-`; gives the sign after each.
    fn fed(machine: &mut Machine, tries: &str) -> Vec<Sign> {
        let ends = |c: char| if c == '+' { Ok(Duration::from_millis(3)) } else { Err("no".to_owned()) };
        tries
            .chars()
            .map(|c| {
                machine.ended(Duration::from_secs(1), ends(c));
                machine.sign
            })
            .collect()
    }

    #[test]
    fn every_state_meets_every_row_of_tries() {
        use Sign::{Bad, Good, None};
        let to = |sign| match sign {
            None => "",
            Good => "++",
            Bad => "---",
        };
        for (from, tries, expected) in [
            (None, "+", None),
            (None, "++", Good),
            (None, "+-+", None),
            (None, "--", None),
            (None, "---", Bad),
            (None, "--+--", None),
            (Good, "--", Good),
            (Good, "---", Bad),
            (Good, "--+--", Good),
            (Bad, "+", Bad),
            (Bad, "++", Good),
            (Bad, "+-+", Bad),
        ] {
            let mut machine = Machine::new(RULES, Duration::ZERO, 0);
            fed(&mut machine, to(from));
            assert_eq!(machine.sign, from);
            assert_eq!(fed(&mut machine, tries).last(), Some(&expected), "{from:?} on {tries}");
        }
    }

    #[test]
    fn tries_are_spread_within_the_jitter() {
        let now = Duration::from_secs(100);
        for random in [0, 1, u64::MAX / 2, u64::MAX, 199_999_999, 400_000_000] {
            let mut machine = Machine::new(RULES, now, random);
            assert!((now..now + Duration::from_secs(1)).contains(&machine.due));
            machine.begins(now, random);
            let wait = machine.due - now;
            assert!((Duration::from_millis(1800)..=Duration::from_millis(2200)).contains(&wait), "{random}: {wait:?}");
        }
    }
}
