//! The breaker as its callers have it, and the list of all.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::machine::{Leave, Machine, Policy, State, Transition};

/// A breaker in front of one dependency, shared by all its callers.
#[derive(Debug)]
pub struct Breaker {
    name: String,
    policy: Policy,
    began: Instant,
    machine: Mutex<Machine>,
}

/// A call that must not be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the breaker `{name}` is open: it is tried again in {again:?}, see `redirector get breakers`")]
pub struct Open {
    /// The breaker.
    pub name: String,
    /// How long to wait until it is worth asking again.
    pub again: Duration,
}

/// The leave to make one call. Dropped without a result, nothing is known of the call.
#[derive(Debug)]
#[must_use = "the breaker waits for the call's result"]
pub struct Permit<'a> {
    breaker: &'a Breaker,
    leave: Option<Leave>,
}

impl Permit<'_> {
    /// The call has succeeded.
    pub fn succeeded(mut self) {
        if let Some(leave) = self.leave.take() {
            self.breaker.change(|machine, now| machine.succeeded(leave, now));
        }
    }

    /// The call has failed.
    pub fn failed(mut self, why: impl Display) {
        if let Some(leave) = self.leave.take() {
            self.breaker.change(|machine, now| machine.failed(leave, now, &why.to_string()));
        }
    }

    /// Tells a call's result.
    pub fn told<T, E: Display>(self, result: &Result<T, E>) {
        match result {
            Ok(_) => self.succeeded(),
            Err(error) => self.failed(error),
        }
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        if let Some(leave) = self.leave.take() {
            self.breaker.change(|machine, now| machine.abandoned(leave, now));
        }
    }
}

impl Breaker {
    /// A closed one, of no list.
    pub fn new(name: impl Into<String>, policy: Policy) -> Self {
        let machine = Mutex::new(Machine::new(policy, Duration::ZERO));
        Self { name: name.into(), policy, began: Instant::now(), machine }
    }

    /// Asks for leave to make a call.
    ///
    /// # Errors
    /// [`Open`]: the call must not be made.
    pub fn ask(&self) -> Result<Permit<'_>, Open> {
        let mut answer = None;
        let now = self.change(|machine, now| {
            answer = Some(machine.ask(now));
            now
        });
        match answer {
            Some(Ok(leave)) => Ok(Permit { breaker: self, leave: Some(leave) }),
            Some(Err(refused)) => Err(Open { name: self.name.clone(), again: refused.again.saturating_sub(now) }),
            None => Err(Open { name: self.name.clone(), again: self.policy.timeout }),
        }
    }

    /// Makes a call, if it may be made, and tells its result.
    ///
    /// # Errors
    /// The call's, or [`Open`].
    pub fn call<T>(&self, call: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let permit = self.ask().map_err(io::Error::other)?;
        let result = call();
        permit.told(&result);
        result
    }

    /// What the breaker stands before was seen to work by other means than a call.
    pub fn recovered(&self) {
        self.change(Machine::recovered);
    }

    /// Finds out whether calls have taken too long, where nobody asks.
    pub fn look(&self) {
        self.change(Machine::look);
    }

    /// What it is.
    pub fn state(&self) -> State {
        self.look();
        self.lock().state()
    }

    /// What there is to tell.
    pub fn status(&self) -> Status {
        self.look();
        let (machine, now) = (self.lock(), self.began.elapsed());
        let ago = |at: Duration| now.saturating_sub(at).as_millis() as u64;
        let past = machine.history().map(|transition| Past {
            ago_ms: ago(transition.at),
            from: transition.from,
            to: transition.to,
            why: transition.why.clone(),
        });
        Status {
            name: self.name.clone(),
            state: machine.state(),
            for_ms: ago(machine.since()),
            again_ms: machine.again().map(|at| at.saturating_sub(now).as_millis() as u64),
            failures: machine.failures(),
            threshold: self.policy.failures,
            window_ms: self.policy.window.as_millis() as u64,
            succeeded: machine.succeeded,
            failed: machine.failed,
            late: machine.late,
            refused: machine.refused,
            trials: machine.trials,
            opened: machine.opened,
            last_failure: machine.last_failure.clone(),
            history: past.collect(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Machine> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the machine, and tells of what it has come to.
    fn change<T>(&self, change: impl FnOnce(&mut Machine, Duration) -> T) -> T {
        let mut machine = self.lock();
        // Read under the lock, so that times do not go back from caller to caller.
        let now = self.began.elapsed();
        let before = machine.transitions;
        let done = change(&mut machine, now);
        let new = (machine.transitions - before) as usize;
        let told: Vec<Transition> = machine.history().rev().take(new).cloned().collect();
        drop(machine);
        told.iter().rev().for_each(|transition| self.tell(transition));
        done
    }

    fn tell(&self, Transition { from, to, why, .. }: &Transition) {
        let (breaker, timeout) = (&self.name, self.policy.timeout);
        match (from, to) {
            // Said once: a dependency that stays away would fill the log with its trials.
            (State::HalfOpen, State::Open) => tracing::debug!(breaker, "left alone again for {timeout:?}: {why}"),
            (_, State::Open) => tracing::warn!(breaker, "left alone for {timeout:?}: {why}"),
            (_, State::Closed) => tracing::info!(breaker, "works again: {why}"),
            (_, State::HalfOpen) => tracing::debug!(breaker, "{why}"),
        }
    }
}

/// A past transition, as it is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Past {
    /// How long ago.
    pub ago_ms: u64,
    /// From what.
    pub from: State,
    /// To what.
    pub to: State,
    /// Why.
    pub why: String,
}

/// A breaker, as it is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// What it stands before.
    pub name: String,
    /// What it is.
    pub state: State,
    /// How long it has been so.
    pub for_ms: u64,
    /// When a call is let through again, or the trial must be back; none if calls are let through.
    pub again_ms: Option<u64>,
    /// Failures that count at present.
    pub failures: usize,
    /// So many open it.
    pub threshold: u32,
    /// Within this time.
    pub window_ms: u64,
    /// Calls that succeeded.
    pub succeeded: u64,
    /// Failures: of calls that failed, and of those that did not come back in time.
    pub failed: u64,
    /// Results that came too late to count.
    #[serde(default)]
    pub late: u64,
    /// Calls that were refused.
    pub refused: u64,
    /// Trials that were let through.
    pub trials: u64,
    /// How often it opened.
    pub opened: u64,
    /// The last failure, in words.
    pub last_failure: Option<String>,
    /// The last transitions, the oldest first.
    pub history: Vec<Past>,
}

/// The breakers that there are. A clone is the same list; a breaker that nobody holds any more leaves it.
#[derive(Clone, Debug, Default)]
pub struct Breakers {
    listed: Arc<Mutex<BTreeMap<String, Weak<Breaker>>>>,
}

impl Breakers {
    /// A new breaker of this list. A name that is there already is taken over by the newer one.
    pub fn breaker(&self, name: impl Into<String>, policy: Policy) -> Arc<Breaker> {
        let breaker = Arc::new(Breaker::new(name, policy));
        self.lock().insert(breaker.name.clone(), Arc::downgrade(&breaker));
        breaker
    }

    /// All, by name.
    pub fn statuses(&self) -> Vec<Status> {
        self.all().iter().map(|breaker| breaker.status()).collect()
    }

    /// Finds out which calls have taken too long, so that the log tells of it though nobody asks. To be called now and then.
    pub fn look(&self) {
        self.all().iter().for_each(|breaker| breaker.look());
    }

    fn all(&self) -> Vec<Arc<Breaker>> {
        let mut listed = self.lock();
        listed.retain(|_, breaker| breaker.strong_count() > 0);
        listed.values().filter_map(Weak::upgrade).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Weak<Breaker>>> {
        self.listed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
