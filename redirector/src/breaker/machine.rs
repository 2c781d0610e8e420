//! The breaker without clock and lock. Times are durations since any moment that stays the same.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Transitions that are remembered.
const HISTORY: usize = 16;

/// Calls whose time is watched while it is closed. Of more at a time the others are let through unwatched: a dependency
/// that stalls keeps these, and so is noticed all the same.
const WATCHED: usize = 64;

/// When a breaker opens, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// So many failures open it, 1 at least.
    pub failures: u32,
    /// Failures that are older do not count.
    pub window: Duration,
    /// How long it stays open before a trial is let through.
    pub timeout: Duration,
    /// A call that does not come back within this time has failed, and has so once more with each further such time that
    /// it takes: who waits for it may be the only caller, and would never reach the threshold otherwise. So `failures` of
    /// these times should fit into the window.
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
pub struct Leave {
    /// In which life it was given.
    life: u64,
    number: u64,
    /// A result that comes no sooner is late.
    due: Duration,
}

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
    /// Failures within the window, the oldest first; fewer than the threshold. And calls under way, by the numbers of their
    /// leaves: when each fails, or fails once more, unless it comes back.
    Closed { failures: VecDeque<Duration>, calls: BTreeMap<u64, Duration> },
    /// Until when.
    Open { until: Duration },
    /// When the trial must be back, if one is under way.
    HalfOpen { trial: Option<Duration> },
}

impl Position {
    fn closed() -> Self {
        Self::Closed { failures: VecDeque::new(), calls: BTreeMap::new() }
    }
}

/// A breaker's state and what it has counted.
///
/// A result counts if it comes within the policy's patience and before the next transition. One that is late changes
/// nothing, whatever it is: a call that took too long has failed already, and a success that began before a failure does not
/// tell that the failure has passed. The next trial does.
///
/// Whatever is told or asked of the machine, it first finds out which calls have taken too long meanwhile; where nobody asks,
/// [`Machine::look`] does.
#[derive(Clone, Debug)]
pub struct Machine {
    policy: Policy,
    position: Position,
    /// Leaves of this life count; each transition and each trial begins another.
    life: u64,
    /// Leaves that were given.
    given: u64,
    since: Duration,
    history: VecDeque<Transition>,
    /// Transitions that there were, remembered or not.
    pub transitions: u64,
    /// Calls that were refused.
    pub refused: u64,
    /// Calls that succeeded.
    pub succeeded: u64,
    /// Failures: of calls that failed, and of those that did not come back in time.
    pub failed: u64,
    /// Results that came too late to count.
    pub late: u64,
    /// Trials that were let through.
    pub trials: u64,
    /// How often it opened.
    pub opened: u64,
    /// The last failure, in words.
    pub last_failure: Option<String>,
}

impl Machine {
    /// A closed one.
    pub fn new(policy: Policy, now: Duration) -> Self {
        Self {
            policy,
            position: Position::closed(),
            life: 0,
            given: 0,
            since: now,
            history: VecDeque::new(),
            transitions: 0,
            refused: 0,
            succeeded: 0,
            failed: 0,
            late: 0,
            trials: 0,
            opened: 0,
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
            Position::Closed { failures, .. } => failures.len(),
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
    pub fn history(&self) -> impl DoubleEndedIterator<Item = &Transition> {
        self.history.iter()
    }

    /// Time has passed: calls that have not come back in time have failed.
    pub fn look(&mut self, now: Duration) {
        let patience = self.policy.patience;
        let overdue = match &mut self.position {
            Position::Closed { calls, .. } => {
                let overdue = calls.values_mut().filter(|due| now >= **due);
                overdue.map(|due| *due = now + patience).count()
            }
            Position::HalfOpen { trial } => usize::from(trial.is_some_and(|due| now >= due)),
            Position::Open { .. } => 0,
        };
        for _ in 0..overdue {
            self.failure(now, &format!("a call has not come back within {patience:?}"));
        }
    }

    /// Asks for leave to make a call.
    ///
    /// # Errors
    /// [`Refused`]: the call must not be made.
    pub fn ask(&mut self, now: Duration) -> Result<Leave, Refused> {
        self.look(now);
        if matches!(self.position, Position::Open { until } if now >= until) {
            self.turn(Position::HalfOpen { trial: None }, now, "the timeout is over: one trial is let through");
        }
        let (number, due) = (self.given, now + self.policy.patience);
        match &mut self.position {
            Position::Closed { calls, .. } => {
                if calls.len() < WATCHED {
                    calls.insert(number, due);
                }
            }
            Position::HalfOpen { trial: trial @ None } => {
                *trial = Some(due);
                self.life += 1;
                self.trials += 1;
            }
            Position::Open { until: again } | Position::HalfOpen { trial: Some(again) } => {
                self.refused += 1;
                return Err(Refused { again: *again });
            }
        }
        self.given += 1;
        Ok(Leave { life: self.life, number, due })
    }

    /// A call has succeeded.
    pub fn succeeded(&mut self, leave: Leave, now: Duration) {
        if self.is_back(leave, now) {
            self.succeeded += 1;
            if self.state() == State::HalfOpen {
                self.close(now, "the trial succeeded");
            }
        }
    }

    /// A call has failed.
    pub fn failed(&mut self, leave: Leave, now: Duration, why: &str) {
        if self.is_back(leave, now) {
            self.failure(now, why);
        }
    }

    /// Nothing is known of a call, and nothing will be. If it was the trial, the next who asks makes another.
    pub fn abandoned(&mut self, leave: Leave, now: Duration) {
        self.look(now);
        if leave.life != self.life {
            return;
        }
        match &mut self.position {
            Position::Closed { calls, .. } => drop(calls.remove(&leave.number)),
            Position::HalfOpen { trial } => {
                self.life += 1;
                *trial = None;
            }
            Position::Open { .. } => {}
        }
    }

    /// What the breaker stands before was seen to work by other means than a call.
    pub fn recovered(&mut self, now: Duration) {
        self.look(now);
        match &mut self.position {
            Position::Closed { failures, .. } => failures.clear(),
            Position::Open { .. } | Position::HalfOpen { .. } => self.close(now, "it was seen to work"),
        }
    }

    /// A call has come back; whether its result counts.
    fn is_back(&mut self, leave: Leave, now: Duration) -> bool {
        self.look(now);
        if leave.life == self.life
            && let Position::Closed { calls, .. } = &mut self.position
        {
            calls.remove(&leave.number);
        }
        let counts = leave.life == self.life && now < leave.due;
        self.late += u64::from(!counts);
        counts
    }

    fn failure(&mut self, now: Duration, why: &str) {
        self.failed += 1;
        self.last_failure = Some(why.to_owned());
        let Policy { failures: most, window, .. } = self.policy;
        match &mut self.position {
            Position::Closed { failures, .. } => {
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
        self.turn(Position::Open { until: now + self.policy.timeout }, now, why);
    }

    fn close(&mut self, now: Duration, why: &str) {
        self.turn(Position::closed(), now, why);
    }

    fn turn(&mut self, position: Position, now: Duration, why: &str) {
        let from = self.state();
        self.position = position;
        self.life += 1;
        self.transitions += 1;
        self.since = now;
        if self.history.len() == HISTORY {
            self.history.pop_front();
        }
        self.history.push_back(Transition { at: now, from, to: self.state(), why: why.to_owned() });
    }
}
