use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

use proptest::prelude::*;

use super::{Breaker, Breakers, Leave, Machine, Policy, State};

const POLICY: Policy = Policy { failures: 3, window: s(10), timeout: s(5), patience: s(2) };
/// When every machine of the table is looked at.
const NOW: Duration = s(100);

const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// The situations that a breaker can be in; each state in all its kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Situation {
    Closed,
    /// One failure more opens it.
    ClosedOnTheEdge,
    /// As many failures, but out of the window.
    ClosedAfterOldFailures,
    /// A call has taken too long, and nobody has found out yet.
    ClosedStalled,
    /// That is one failure more.
    ClosedStalledOnTheEdge,
    Open,
    OpenAndOver,
    HalfOpenTrying,
    HalfOpenTryingTooLong,
    HalfOpenFree,
}
use Situation::*;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    Look,
    Ask,
    /// Of a call that was let through in this life.
    Succeeded,
    Failed,
    Abandoned,
    /// Of a call that was let through before the last transition.
    LateSuccess,
    LateFailure,
    LateAbandoned,
    Recovered,
}
use Event::*;

/// A machine in a situation, the leave of a call of the present life if there is one, and one of a life before.
fn machine(situation: Situation) -> (Machine, Option<Leave>, Leave) {
    let mut machine = Machine::new(POLICY, s(0));
    let stale = machine.ask(s(0)).unwrap();
    let fail = |machine: &mut Machine, times: usize, at: Duration| {
        for _ in 0..times {
            let leave = machine.ask(at).unwrap();
            machine.failed(leave, at, "no");
        }
    };
    fail(&mut machine, 3, s(0));
    machine.recovered(s(1));
    let half_open = |machine: &mut Machine, at: Duration| {
        fail(machine, 3, at - s(5));
        machine.ask(at).unwrap()
    };
    let present = match situation {
        Closed => {
            half_open(&mut machine, s(50));
            machine.recovered(s(60));
            machine.ask(NOW).ok()
        }
        ClosedOnTheEdge | ClosedAfterOldFailures => {
            half_open(&mut machine, s(50));
            machine.recovered(s(60));
            fail(&mut machine, 2, if situation == ClosedOnTheEdge { s(91) } else { s(89) });
            machine.ask(NOW).ok()
        }
        ClosedStalled | ClosedStalledOnTheEdge => {
            half_open(&mut machine, s(50));
            machine.recovered(s(60));
            fail(&mut machine, if situation == ClosedStalled { 1 } else { 2 }, s(95));
            machine.ask(s(98)).ok()
        }
        Open => {
            fail(&mut machine, 3, s(96));
            None
        }
        OpenAndOver => {
            fail(&mut machine, 3, s(95));
            None
        }
        HalfOpenTrying => Some(half_open(&mut machine, s(99))),
        HalfOpenTryingTooLong => Some(half_open(&mut machine, s(98))),
        HalfOpenFree => {
            let leave = half_open(&mut machine, s(99));
            machine.abandoned(leave, s(99));
            None
        }
    };
    (machine, present, stale)
}

/// What becomes of each situation with each event, and whether a call is let through where one is asked for. An event of a
/// call that cannot be under way in the situation is no row: `is_possible` says which, and the test counts.
const TABLE: &[(Situation, Event, State, Option<bool>)] = &[
    (Closed, Look, State::Closed, None),
    (Closed, Ask, State::Closed, Some(true)),
    (Closed, Succeeded, State::Closed, None),
    (Closed, Failed, State::Closed, None),
    (Closed, Abandoned, State::Closed, None),
    (Closed, LateSuccess, State::Closed, None),
    (Closed, LateFailure, State::Closed, None),
    (Closed, LateAbandoned, State::Closed, None),
    (Closed, Recovered, State::Closed, None),
    (ClosedOnTheEdge, Look, State::Closed, None),
    (ClosedOnTheEdge, Ask, State::Closed, Some(true)),
    (ClosedOnTheEdge, Succeeded, State::Closed, None),
    (ClosedOnTheEdge, Failed, State::Open, None),
    (ClosedOnTheEdge, Abandoned, State::Closed, None),
    (ClosedOnTheEdge, LateSuccess, State::Closed, None),
    (ClosedOnTheEdge, LateFailure, State::Closed, None),
    (ClosedOnTheEdge, LateAbandoned, State::Closed, None),
    (ClosedOnTheEdge, Recovered, State::Closed, None),
    (ClosedAfterOldFailures, Look, State::Closed, None),
    (ClosedAfterOldFailures, Ask, State::Closed, Some(true)),
    (ClosedAfterOldFailures, Succeeded, State::Closed, None),
    (ClosedAfterOldFailures, Failed, State::Closed, None),
    (ClosedAfterOldFailures, Abandoned, State::Closed, None),
    (ClosedAfterOldFailures, LateSuccess, State::Closed, None),
    (ClosedAfterOldFailures, LateFailure, State::Closed, None),
    (ClosedAfterOldFailures, LateAbandoned, State::Closed, None),
    (ClosedAfterOldFailures, Recovered, State::Closed, None),
    (ClosedStalled, Look, State::Closed, None),
    (ClosedStalled, Ask, State::Closed, Some(true)),
    (ClosedStalled, Succeeded, State::Closed, None),
    (ClosedStalled, Failed, State::Closed, None),
    (ClosedStalled, Abandoned, State::Closed, None),
    (ClosedStalled, LateSuccess, State::Closed, None),
    (ClosedStalled, LateFailure, State::Closed, None),
    (ClosedStalled, LateAbandoned, State::Closed, None),
    (ClosedStalled, Recovered, State::Closed, None),
    (ClosedStalledOnTheEdge, Look, State::Open, None),
    (ClosedStalledOnTheEdge, Ask, State::Open, Some(false)),
    (ClosedStalledOnTheEdge, Succeeded, State::Open, None),
    (ClosedStalledOnTheEdge, Failed, State::Open, None),
    (ClosedStalledOnTheEdge, Abandoned, State::Open, None),
    (ClosedStalledOnTheEdge, LateSuccess, State::Open, None),
    (ClosedStalledOnTheEdge, LateFailure, State::Open, None),
    (ClosedStalledOnTheEdge, LateAbandoned, State::Open, None),
    (ClosedStalledOnTheEdge, Recovered, State::Closed, None),
    (Open, Look, State::Open, None),
    (Open, Ask, State::Open, Some(false)),
    (Open, LateSuccess, State::Open, None),
    (Open, LateFailure, State::Open, None),
    (Open, LateAbandoned, State::Open, None),
    (Open, Recovered, State::Closed, None),
    (OpenAndOver, Look, State::Open, None),
    (OpenAndOver, Ask, State::HalfOpen, Some(true)),
    (OpenAndOver, LateSuccess, State::Open, None),
    (OpenAndOver, LateFailure, State::Open, None),
    (OpenAndOver, LateAbandoned, State::Open, None),
    (OpenAndOver, Recovered, State::Closed, None),
    (HalfOpenTrying, Look, State::HalfOpen, None),
    (HalfOpenTrying, Ask, State::HalfOpen, Some(false)),
    (HalfOpenTrying, Succeeded, State::Closed, None),
    (HalfOpenTrying, Failed, State::Open, None),
    (HalfOpenTrying, Abandoned, State::HalfOpen, None),
    (HalfOpenTrying, LateSuccess, State::HalfOpen, None),
    (HalfOpenTrying, LateFailure, State::HalfOpen, None),
    (HalfOpenTrying, LateAbandoned, State::HalfOpen, None),
    (HalfOpenTrying, Recovered, State::Closed, None),
    (HalfOpenTryingTooLong, Look, State::Open, None),
    (HalfOpenTryingTooLong, Ask, State::Open, Some(false)),
    (HalfOpenTryingTooLong, Succeeded, State::Open, None),
    (HalfOpenTryingTooLong, Failed, State::Open, None),
    (HalfOpenTryingTooLong, Abandoned, State::Open, None),
    (HalfOpenTryingTooLong, LateSuccess, State::Open, None),
    (HalfOpenTryingTooLong, LateFailure, State::Open, None),
    (HalfOpenTryingTooLong, LateAbandoned, State::Open, None),
    (HalfOpenTryingTooLong, Recovered, State::Closed, None),
    (HalfOpenFree, Look, State::HalfOpen, None),
    (HalfOpenFree, Ask, State::HalfOpen, Some(true)),
    (HalfOpenFree, LateSuccess, State::HalfOpen, None),
    (HalfOpenFree, LateFailure, State::HalfOpen, None),
    (HalfOpenFree, LateAbandoned, State::HalfOpen, None),
    (HalfOpenFree, Recovered, State::Closed, None),
];

const SITUATIONS: [Situation; 10] = [
    Closed,
    ClosedOnTheEdge,
    ClosedAfterOldFailures,
    ClosedStalled,
    ClosedStalledOnTheEdge,
    Open,
    OpenAndOver,
    HalfOpenTrying,
    HalfOpenTryingTooLong,
    HalfOpenFree,
];
const EVENTS: [Event; 9] =
    [Look, Ask, Succeeded, Failed, Abandoned, LateSuccess, LateFailure, LateAbandoned, Recovered];

fn is_possible(situation: Situation, event: Event) -> bool {
    let has_call = !matches!(situation, Open | OpenAndOver | HalfOpenFree);
    has_call || !matches!(event, Succeeded | Failed | Abandoned)
}

#[test]
fn every_state_meets_every_event() {
    for situation in SITUATIONS {
        for event in EVENTS {
            let rows: Vec<_> = TABLE.iter().filter(|row| (row.0, row.1) == (situation, event)).collect();
            assert_eq!(rows.len(), usize::from(is_possible(situation, event)), "{situation:?} on {event:?}");
            for &&(_, _, state, is_let) in &rows {
                let (mut machine, present, stale) = machine(situation);
                let own = || present.expect("a call is under way");
                let mut asked = None;
                match event {
                    Look => machine.look(NOW),
                    Ask => asked = Some(machine.ask(NOW).is_ok()),
                    Succeeded => machine.succeeded(own(), NOW),
                    Failed => machine.failed(own(), NOW, "no"),
                    Abandoned => machine.abandoned(own(), NOW),
                    LateSuccess => machine.succeeded(stale, NOW),
                    LateFailure => machine.failed(stale, NOW, "no"),
                    LateAbandoned => machine.abandoned(stale, NOW),
                    Recovered => machine.recovered(NOW),
                }
                assert_eq!((machine.state(), asked), (state, is_let), "{situation:?} on {event:?}");
            }
        }
    }
}

#[test]
fn a_half_open_failure_reopens_for_the_whole_timeout() {
    let (mut machine, trial, _) = machine(HalfOpenTrying);
    machine.failed(trial.unwrap(), NOW, "still no");
    assert_eq!(machine.ask(NOW + s(5) - Duration::from_nanos(1)).unwrap_err().again, NOW + s(5));
    let trial = machine.ask(NOW + s(5)).unwrap();
    assert!(machine.ask(NOW + s(5)).is_err(), "two trials at a time");
    machine.succeeded(trial, NOW + s(6));
    assert_eq!(machine.state(), State::Closed);
    let told: Vec<_> = machine.history().rev().take(5).collect();
    let told: Vec<_> = told.iter().rev().map(|transition| (transition.from, transition.to)).collect();
    let (closed, open, half) = (State::Closed, State::Open, State::HalfOpen);
    assert_eq!(told, [(closed, open), (open, half), (half, open), (open, half), (half, closed)]);
    assert!(machine.history().rev().nth(2).unwrap().why.contains("still no"));
}

#[test]
fn a_thousand_callers_at_once_make_one_trial() {
    let policy = Policy { failures: 1, timeout: Duration::from_millis(1), patience: s(3600), ..POLICY };
    let breaker = Arc::new(Breaker::new("backend", policy));
    // Each round: it opens, the timeout passes, and a thousand callers ask in the same moment.
    for round in 0..5 {
        breaker.ask().unwrap().failed("no");
        thread::sleep(Duration::from_millis(2));
        let (barrier, let_through) = (Arc::new(Barrier::new(1000)), Arc::new(AtomicUsize::new(0)));
        let ask = || {
            let (breaker, barrier, let_through) = (breaker.clone(), barrier.clone(), let_through.clone());
            let caller = move || {
                barrier.wait();
                let permit = breaker.ask();
                if permit.is_ok() {
                    let_through.fetch_add(1, SeqCst);
                }
                // The trial is under way until every caller has asked.
                barrier.wait();
                if let Ok(permit) = permit {
                    permit.succeeded();
                }
            };
            thread::Builder::new().stack_size(64 << 10).spawn(caller).unwrap()
        };
        let callers: Vec<_> = (0..1000).map(|_| ask()).collect();
        callers.into_iter().for_each(|caller| caller.join().unwrap());
        assert_eq!(let_through.load(SeqCst), 1, "round {round}");
        assert_eq!((breaker.state(), breaker.status().trials), (State::Closed, round + 1));
    }
    assert_eq!(breaker.status().refused, 5 * 999);
}

#[test]
fn an_only_caller_that_waits_for_ever_opens_it() {
    let mut machine = Machine::new(POLICY, s(0));
    let stalled = machine.ask(s(0)).unwrap();
    machine.look(s(2) - Duration::from_nanos(1));
    assert_eq!(machine.failures(), 0);
    for (at, failures) in [(2, 1), (3, 1), (4, 2), (5, 2)] {
        machine.look(s(at));
        assert_eq!((machine.failures(), machine.state()), (failures, State::Closed), "after {at} s");
    }
    machine.look(s(6));
    assert_eq!((machine.failed, machine.state()), (3, State::Open));
    assert!(machine.history().last().unwrap().why.contains("a call has not come back within 2s"));
    // It comes back at last, and the next call finds out how things are.
    machine.succeeded(stalled, s(20));
    assert_eq!((machine.succeeded, machine.late, machine.state()), (0, 1, State::Open));
    let trial = machine.ask(s(20)).unwrap();
    machine.succeeded(trial, s(21));
    assert_eq!((machine.succeeded, machine.state()), (1, State::Closed));
}

#[test]
fn calls_that_come_back_in_time_are_no_failures_and_those_that_do_not_are_counted_once_in_a_while() {
    let policy = Policy { failures: 1_000_000, ..POLICY };
    let mut machine = Machine::new(policy, s(0));
    for at in 0..100 {
        let (one, other) = (machine.ask(s(at)).unwrap(), machine.ask(s(at)).unwrap());
        machine.succeeded(one, s(at + 1));
        machine.abandoned(other, s(at + 1));
    }
    machine.look(s(200));
    assert_eq!((machine.failed, machine.succeeded, machine.late), (0, 100, 0));
    // Many more than are watched.
    let leaves: Vec<_> = (0..10_000).map(|_| machine.ask(s(200)).unwrap()).collect();
    machine.look(s(202));
    let watched = machine.failed;
    assert!((1..1000).contains(&watched), "{watched}");
    machine.look(s(203));
    assert_eq!(machine.failed, watched);
    machine.look(s(204));
    assert_eq!(machine.failed, 2 * watched);
    leaves.into_iter().for_each(|leave| machine.failed(leave, s(205), "no"));
    machine.look(s(300));
    assert_eq!((machine.failed, machine.late, machine.state()), (2 * watched, 10_000, State::Closed));
}

#[test]
fn a_caller_that_gives_up_leaves_the_trial_to_the_next() {
    let breaker = Breaker::new("x", Policy { failures: 1, timeout: Duration::ZERO, ..POLICY });
    breaker.ask().unwrap().failed("no");
    drop(breaker.ask().unwrap());
    assert_eq!(breaker.state(), State::HalfOpen);
    breaker.ask().unwrap().succeeded();
    assert_eq!(breaker.state(), State::Closed);
}

#[test]
fn who_looks_at_the_list_finds_a_stall() {
    let breakers = Breakers::default();
    let disk = breakers.breaker("disk", Policy { failures: 1, patience: Duration::ZERO, ..POLICY });
    let permit = disk.ask().unwrap();
    assert_eq!(breakers.statuses()[0].state, State::Open);
    permit.succeeded();
    assert_eq!((breakers.statuses()[0].late, disk.state()), (1, State::Open));
}

#[test]
fn the_list_has_those_that_are_held() {
    let breakers = Breakers::default();
    let (disk, peer) = (breakers.breaker("disk", POLICY), breakers.breaker("peer 2", POLICY));
    peer.ask().unwrap().failed("no route to host");
    let told = breakers.statuses();
    assert_eq!(told.iter().map(|one| one.name.as_str()).collect::<Vec<_>>(), ["disk", "peer 2"]);
    assert_eq!((told[1].failures, told[1].last_failure.as_deref()), (1, Some("no route to host")));
    drop(disk);
    assert_eq!(breakers.statuses().len(), 1);
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Look,
    Ask,
    Tell { call: usize, ok: bool },
    Abandon(usize),
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        1 => Just(Step::Look),
        3 => Just(Step::Ask),
        3 => (any::<usize>(), any::<bool>()).prop_map(|(call, ok)| Step::Tell { call, ok }),
        1 => any::<usize>().prop_map(Step::Abandon),
        2 => (0u64..7000).prop_map(Step::Wait),
    ]
}

proptest! {
    /// Whatever callers do: while it is not closed, never more than one call that it let through in that state is both
    /// unanswered and within its patience; and it is never stuck.
    #[test]
    fn one_trial_at_a_time_and_never_stuck(steps in proptest::collection::vec(step(), 1..200)) {
        let mut machine = Machine::new(POLICY, s(0));
        let mut now = s(0);
        let mut calls: Vec<(Leave, Option<Duration>)> = Vec::new();
        for step in steps {
            match step {
                Step::Look => machine.look(now),
                Step::Ask => {
                    let was_closed = machine.state() == State::Closed;
                    if let Ok(leave) = machine.ask(now) {
                        if !was_closed {
                            let under_way = calls.iter().filter(|(_, trial)| trial.is_some_and(|due| due > now));
                            prop_assert_eq!(under_way.count(), 0);
                        }
                        calls.push((leave, (!was_closed).then_some(now + POLICY.patience)));
                    }
                }
                Step::Tell { call, ok } if !calls.is_empty() => {
                    let (leave, _) = calls.swap_remove(call % calls.len());
                    if ok { machine.succeeded(leave, now) } else { machine.failed(leave, now, "no") }
                }
                Step::Abandon(call) if !calls.is_empty() => {
                    let (leave, _) = calls.swap_remove(call % calls.len());
                    machine.abandoned(leave, now);
                }
                Step::Wait(ms) => now += Duration::from_millis(ms),
                Step::Tell { .. } | Step::Abandon(_) => {}
            }
            if machine.state() == State::Closed {
                calls.iter_mut().for_each(|(_, trial)| *trial = None);
            }
        }
        // The trial that may be under way runs out of patience, the timeout passes, and somebody is let through.
        let later = now + POLICY.patience;
        if machine.ask(later).is_err() {
            prop_assert!(machine.ask(later + POLICY.timeout).is_ok());
        }
    }
}
