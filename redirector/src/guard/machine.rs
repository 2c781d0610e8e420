//! The guard without IO. Times are durations since any moment that stays the same.

use std::time::Duration;

/// How patient a guard is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Silence that is too long.
    pub timeout: Duration,
    /// The pause before the first start anew; it doubles with each failure.
    pub first_pause: Duration,
    /// The longest pause.
    pub longest_pause: Duration,
    /// After so many failures in a row what depends on the application is taken out.
    pub failures: u32,
    /// An application that was alive for so long is well again.
    pub steady: Duration,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Start the application.
    Start,
    /// Kill it and whatever it has started.
    Kill(String),
    /// Take out what depends on it.
    TakeOut(String),
    /// It is well: take in again what was taken out.
    PutBack,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Not running until then.
    Waiting(Duration),
    /// Running: since when, and when it was heard last.
    Running { since: Duration, heard: Duration },
    /// Killed, and not gone yet.
    Dying(Duration),
}

/// A killed application that is not gone is killed again after this time.
const AGAIN: Duration = Duration::from_secs(5);

/// An application under guard.
#[derive(Clone, Debug)]
pub struct Machine {
    policy: Policy,
    state: State,
    failures: u32,
    is_out: bool,
}

impl Machine {
    /// One that is to be started at once.
    pub fn new(policy: Policy, now: Duration) -> Self {
        Self { policy, state: State::Waiting(now), failures: 0, is_out: false }
    }

    /// One that is to be started at once, and whose dependants are out until it is well.
    pub fn with_all_out(policy: Policy, now: Duration) -> Self {
        Self { is_out: true, ..Self::new(policy, now) }
    }

    /// Whether what depends on it is out.
    pub fn is_out(&self) -> bool {
        self.is_out
    }

    /// Failures in a row.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// A sign of life has come. One of an application that does not run is of no meaning.
    pub fn handle_beat(&mut self, now: Duration) -> Vec<Action> {
        let State::Running { since, heard } = &mut self.state else { return Vec::new() };
        *heard = now;
        if now.saturating_sub(*since) < self.policy.steady {
            return Vec::new();
        }
        self.failures = 0;
        if std::mem::take(&mut self.is_out) { vec![Action::PutBack] } else { Vec::new() }
    }

    /// The application has exited, or could not be started.
    pub fn handle_exit(&mut self, why: &str, now: Duration) -> Vec<Action> {
        if matches!(self.state, State::Waiting(_)) {
            return Vec::new();
        }
        let Policy { first_pause, longest_pause, failures, .. } = self.policy;
        let pause = first_pause.saturating_mul(1 << self.failures.min(16)).min(longest_pause);
        self.failures = self.failures.saturating_add(1);
        self.state = State::Waiting(now + pause);
        if self.failures < failures || std::mem::replace(&mut self.is_out, true) {
            return Vec::new();
        }
        vec![Action::TakeOut(format!("{} failures in a row, the last: {why}", self.failures))]
    }

    /// Time has passed.
    pub fn handle_time(&mut self, now: Duration) -> Vec<Action> {
        match self.state {
            State::Waiting(until) if now >= until => {
                self.state = State::Running { since: now, heard: now };
                vec![Action::Start]
            }
            State::Running { heard, .. } if now.saturating_sub(heard) > self.policy.timeout => {
                self.state = State::Dying(now);
                vec![Action::Kill(format!("no sign of life for {:?}", now.saturating_sub(heard)))]
            }
            State::Dying(since) if now.saturating_sub(since) > AGAIN => {
                self.state = State::Dying(now);
                vec![Action::Kill("it is killed and does not go".to_owned())]
            }
            State::Waiting(_) | State::Running { .. } | State::Dying(_) => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    const POLICY: Policy = Policy { timeout: s(2), first_pause: s(1), longest_pause: s(8), failures: 3, steady: s(10) };
    const NOW: Duration = s(100);

    const WAITING: State = State::Waiting(s(101));
    const DUE: State = State::Waiting(s(100));
    const RUNNING: State = State::Running { since: s(95), heard: s(99) };
    const STEADY: State = State::Running { since: s(90), heard: s(99) };
    const SILENT: State = State::Running { since: s(90), heard: s(97) };
    const DYING: State = State::Dying(s(97));
    const STUCK: State = State::Dying(s(94));

    #[test]
    fn every_state_meets_every_event() {
        let again = State::Running { since: s(95), heard: NOW };
        let steady = State::Running { since: s(90), heard: NOW };
        let paused = State::Waiting(s(101));
        // State; then after a sign of life, an exit, and time: the next state, and what is done.
        for (state, beat, exit, time) in [
            (WAITING, (WAITING, ""), (WAITING, ""), (WAITING, "")),
            (DUE, (DUE, ""), (DUE, ""), (State::Running { since: NOW, heard: NOW }, "Start")),
            (RUNNING, (again, ""), (paused, ""), (RUNNING, "")),
            (STEADY, (steady, ""), (paused, ""), (STEADY, "")),
            (SILENT, (steady, ""), (paused, ""), (State::Dying(NOW), "Kill")),
            (DYING, (DYING, ""), (paused, ""), (DYING, "")),
            (STUCK, (STUCK, ""), (paused, ""), (State::Dying(NOW), "Kill")),
        ] {
            let check = |event: &str, expected: (State, &str), act: &dyn Fn(&mut Machine) -> Vec<Action>| {
                let mut machine = Machine { state, ..Machine::new(POLICY, NOW) };
                let done = format!("{:?}", act(&mut machine));
                assert_eq!(machine.state, expected.0, "{state:?} on {event}");
                assert!(done.starts_with(&format!("[{}", expected.1)), "{state:?} on {event}: {done}");
                assert_eq!(done == "[]", expected.1.is_empty(), "{state:?} on {event}: {done}");
            };
            check("a sign of life", beat, &|machine| machine.handle_beat(NOW));
            check("an exit", exit, &|machine| machine.handle_exit("status 1", NOW));
            check("time", time, &|machine| machine.handle_time(NOW));
        }
    }

    #[test]
    fn who_begins_out_is_put_back_when_it_has_been_well_for_long_enough_and_taken_out_no_second_time() {
        let mut machine = Machine::with_all_out(POLICY, s(0));
        for second in 0..4 {
            machine.handle_time(s(second * 10));
            assert_eq!(machine.handle_exit("at once", s(second * 10)), [], "it is out already");
        }
        machine.handle_time(s(50));
        let told: Vec<(u64, Action)> =
            (50..80).flat_map(|now| machine.handle_beat(s(now)).into_iter().map(move |one| (now, one))).collect();
        assert_eq!(told, [(60, Action::PutBack)]);
        let out = (0..3).flat_map(|round| {
            machine.handle_time(s(80 + round * 10));
            machine.handle_exit("at once", s(80 + round * 10))
        });
        assert!(matches!(out.collect::<Vec<_>>()[..], [Action::TakeOut(_)]));
    }

    #[test]
    fn starts_are_spaced_and_who_stays_silent_is_taken_out_once() {
        let (mut machine, mut now, mut starts, mut out) = (Machine::new(POLICY, s(0)), s(0), Vec::new(), 0);
        while now < s(60) {
            for action in machine.handle_time(now) {
                match action {
                    Action::Start => {
                        starts.push(now.as_secs());
                        out += machine.handle_exit("at once", now).len();
                    }
                    other => panic!("{other:?}"),
                }
            }
            now += Duration::from_millis(100);
        }
        assert_eq!(starts, [0, 1, 3, 7, 15, 23, 31, 39, 47, 55], "pauses of 1, 2, 4, 8, 8 … seconds");
        assert_eq!(out, 1, "taken out once");
        // It lives at last.
        let mut back = Vec::new();
        for _ in 0..300 {
            now += Duration::from_millis(100);
            machine.handle_time(now);
            back.extend(machine.handle_beat(now));
        }
        assert_eq!((back, machine.failures()), (vec![Action::PutBack], 0));
    }
}
