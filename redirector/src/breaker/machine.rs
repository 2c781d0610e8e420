//! The breaker without clock and lock. Times are durations since any moment that stays the same.

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Transitions that are remembered.
const HISTORY: usize = 16;

/// When a breaker opens, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// So many failures open it, 1 at least.
    pub failures: u32,
    /// Failures that are older do not count.
    pub window: Duration,
    /// How long it stays open before a trial is let through.
    pub timeout: Duration,
    /// A trial that does not come back within this time has failed.
    pub patience: Duration,
}

/// What a breaker is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Everybody is let through.
    Closed,
    /// Nobody is.
    Open,
    /// One caller at a time is: the trial.
    HalfOpen,
}

/// The leave to make one call. Its result is owed to the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leave(u64);

/// The call must not be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// When it is worth asking again.
    pub again: Duration,
}

/// A change of state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transition {
    /// When.
    pub at: Duration,
    /// From what.
    pub from: State,
    /// To what.
    pub to: State,
    /// Why.
    pub why: String,
}

#[derive(Clone, Debug)]
enum Position {
    /// Failures within the window, the oldest first; fewer than the threshold.
    Closed { failures: VecDeque<Duration> },
    /// Until when.
    Open { until: Duration },
    /// When the trial must be back, if one is under way.
    HalfOpen { trial: Option<Duration> },
}

/// A breaker's state and what it has counted.
#[derive(Clone, Debug)]
pub struct Machine {
    policy: Policy,
    position: Position,
    /// Leaves of this life count; each transition and each trial begins another.
    life: u64,
    since: Duration,
    history: VecDeque<Transition>,
    /// Calls that were refused.
    pub refused: u64,
    /// Calls that succeeded.
    pub succeeded: u64,
    /// Calls that failed.
    pub failed: u64,
    /// Trials that were let through.
    pub trials: u64,
    /// How often it opened.
    pub opened: u64,
    /// How often of that since it was last closed: more than once where trials failed.
    pub in_a_row: u64,
    /// The last failure, in words.
    pub last_failure: Option<String>,
}

impl Machine {
    /// A closed one.
    pub fn new(policy: Policy, now: Duration) -> Self {
        Self {
            policy,
            position: Position::Closed { failures: VecDeque::new() },
            life: 0,
            since: now,
            history: VecDeque::new(),
            refused: 0,
            succeeded: 0,
            failed: 0,
            trials: 0,
            opened: 0,
            in_a_row: 0,
            last_failure: None,
        }
    }

    /// What it is.
    pub fn state(&self) -> State {
        match self.position {
            Position::Closed { .. } => State::Closed,
            Position::Open { .. } => State::Open,
            Position::HalfOpen { .. } => State::HalfOpen,
        }
    }

    /// Since when.
    pub fn since(&self) -> Duration {
        self.since
    }

    /// Failures that count at present.
    pub fn failures(&self) -> usize {
        match &self.position {
            Position::Closed { failures } => failures.len(),
            Position::Open { .. } | Position::HalfOpen { .. } => 0,
        }
    }

    /// When it is worth asking; none if it is now.
    pub fn again(&self) -> Option<Duration> {
        match self.position {
            Position::Open { until } => Some(until),
            Position::HalfOpen { trial } => trial,
            Position::Closed { .. } => None,
        }
    }

    /// The last transitions, the oldest first.
    pub fn history(&self) -> impl Iterator<Item = &Transition> {
        self.history.iter()
    }

    /// Asks for leave to make a call.
    ///
    /// # Errors
    /// [`Refused`]: the call must not be made.
    pub fn ask(&mut self, now: Duration) -> Result<Leave, Refused> {
        match self.position {
            Position::Closed { .. } => return Ok(Leave(self.life)),
            Position::Open { until } if now >= until => {
                self.turn(Position::HalfOpen { trial: None }, now, "the timeout is over: one trial is let through");
            }
            Position::HalfOpen { trial: Some(due) } if now >= due => {
                let patience = self.policy.patience;
                self.failure(now, &format!("the trial has not come back within {patience:?}"));
            }
            Position::Open { .. } | Position::HalfOpen { .. } => {}
        }
        if matches!(self.position, Position::HalfOpen { trial: None }) {
            self.life += 1;
            self.trials += 1;
            self.position = Position::HalfOpen { trial: Some(now + self.policy.patience) };
            return Ok(Leave(self.life));
        }
        self.refused += 1;
        Err(Refused { again: self.again().unwrap_or(now) })
    }

    /// A call has succeeded. One that was allowed in an earlier life says nothing about the present.
    pub fn succeeded(&mut self, leave: Leave, now: Duration) {
        self.succeeded += 1;
        if leave.0 == self.life && self.state() == State::HalfOpen {
            self.close(now, "the trial succeeded");
        }
    }

    /// A call has failed, likewise.
    pub fn failed(&mut self, leave: Leave, now: Duration, why: &str) {
        if leave.0 == self.life {
            self.failure(now, why);
        } else {
            self.failed += 1;
        }
    }

    /// Nothing is known of a call, and nothing will be. If it was the trial, the next who asks makes another.
    pub fn abandoned(&mut self, leave: Leave) {
        if leave.0 == self.life
            && let Position::HalfOpen { trial } = &mut self.position
        {
            self.life += 1;
            *trial = None;
        }
    }

    /// What the breaker stands before was seen to work by other means than a call.
    pub fn recovered(&mut self, now: Duration) {
        match &mut self.position {
            Position::Closed { failures } => failures.clear(),
            Position::Open { .. } | Position::HalfOpen { .. } => self.close(now, "it was seen to work"),
        }
    }

    fn failure(&mut self, now: Duration, why: &str) {
        self.failed += 1;
        self.last_failure = Some(why.to_owned());
        let Policy { failures: most, window, .. } = self.policy;
        match &mut self.position {
            Position::Closed { failures } => {
                failures.push_back(now);
                while failures.front().is_some_and(|&at| now.saturating_sub(at) > window) {
                    failures.pop_front();
                }
                if failures.len() >= most.max(1) as usize {
                    let count = failures.len();
                    self.open(now, &format!("{count} failures within {window:?}, the last: {why}"));
                }
            }
            Position::HalfOpen { .. } => self.open(now, &format!("the trial failed: {why}")),
            Position::Open { .. } => {}
        }
    }

    fn open(&mut self, now: Duration, why: &str) {
        self.opened += 1;
        self.in_a_row += 1;
        self.turn(Position::Open { until: now + self.policy.timeout }, now, why);
    }

    fn close(&mut self, now: Duration, why: &str) {
        self.in_a_row = 0;
        self.turn(Position::Closed { failures: VecDeque::new() }, now, why);
    }

    fn turn(&mut self, position: Position, now: Duration, why: &str) {
        let from = self.state();
        self.position = position;
        self.life += 1;
        self.since = now;
        if self.history.len() == HISTORY {
            self.history.pop_front();
        }
        self.history.push_back(Transition { at: now, from, to: self.state(), why: why.to_owned() });
    }
}
