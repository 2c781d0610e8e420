//! The detector: a table of all that can happen to a peer, and what takes time.

use std::time::Duration;

use redirector_ebpf::tables::liveness::{Vitals, state};

use super::detector::{Action, Detector, Observation, Own, Peer, State};
use Event::*;
use State::*;

mod frame;

/// What there is to see of a peer, in kinds.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Event {
    /// It may not be used.
    Forbidden,
    /// It does not answer, and its time is not over.
    Quiet,
    /// The timer turned it off.
    Off,
    /// The timer turned it off, and it answers: as another, or again.
    OffAnswering,
    /// It answers, but says not who it is.
    Nameless,
    /// It says that it may not serve.
    Unready,
    /// It has not been given all its flows.
    Owed,
    Ready,
    Draining,
    /// It serves, and its agent is silent.
    NoAgent,
    /// It is ready, and the cluster does not agree that it serves.
    Unagreed,
}

const EVENTS: [Event; 11] =
    [Forbidden, Quiet, Off, OffAnswering, Nameless, Unready, Owed, Ready, Draining, NoAgent, Unagreed];

/// What a peer has been through, which makes it what it is.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Past {
    New,
    Forbidden,
    Unready,
    LetIn,
    LostItsAgent,
    Fell,
    /// And answered before it might be let in.
    FellAndAnswered,
    /// And the time has passed before which it is not let in.
    FellLongAgo,
    /// And it has not answered in all that time.
    FellSilent,
}

const IN: Option<Action> = Some(Action::Admit(7));
const OUT: Option<Action> = Some(Action::Dismiss);

/// What a peer is then, and what is done about it.
type Outcome = (State, Option<Action>);

/// For each past, by event.
#[rustfmt::skip]
const TABLE: [(Past, [Outcome; 11]); 9] = [
    (Past::New, [(Away, None), (Unknown, None), (Unknown, None), (Alive, IN), (Unknown, None),
        (Returning, None), (Returning, None), (Alive, IN), (Alive, IN), (Alive, IN), (Returning, None)]),
    (Past::Forbidden, [(Away, None), (Unknown, None), (Unknown, None), (Alive, IN), (Unknown, None),
        (Returning, None), (Returning, None), (Alive, IN), (Alive, IN), (Alive, IN), (Returning, None)]),
    (Past::Unready, [(Away, None), (Unknown, None), (Unknown, None), (Alive, IN), (Unknown, None),
        (Returning, None), (Returning, None), (Alive, IN), (Alive, IN), (Alive, IN), (Returning, None)]),
    (Past::LetIn, [(Away, OUT), (Alive, None), (Suspect, None), (Returning, None), (Alive, None),
        (Alive, None), (Alive, None), (Alive, None), (Alive, None), (AgentSilent, None), (Returning, OUT)]),
    (Past::LostItsAgent, [(Away, OUT), (Alive, None), (Suspect, None), (Returning, None), (Alive, None),
        (Alive, None), (Alive, None), (Alive, None), (Alive, None), (AgentSilent, None), (Returning, OUT)]),
    (Past::Fell, [(Away, None), (Suspect, None), (Suspect, None), (Returning, None), (Suspect, None),
        (Returning, None), (Returning, None), (Returning, None), (Returning, None), (Returning, None), (Returning, None)]),
    (Past::FellAndAnswered, [(Away, None), (Suspect, None), (Suspect, None), (Returning, None), (Suspect, None),
        (Returning, None), (Returning, None), (Returning, None), (Returning, None), (Returning, None), (Returning, None)]),
    (Past::FellLongAgo, [(Away, None), (Suspect, None), (Suspect, None), (Alive, IN), (Suspect, None),
        (Returning, None), (Returning, None), (Alive, IN), (Alive, IN), (Alive, IN), (Returning, None)]),
    (Past::FellSilent, [(Away, None), (Suspect, None), (Suspect, None), (Returning, None), (Suspect, None),
        (Returning, None), (Returning, None), (Returning, None), (Returning, None), (Returning, None), (Returning, None)]),
];

const T0: Duration = Duration::from_secs(1_000);
const MS: Duration = Duration::from_millis(1);

/// What is seen of a peer that is let in or not.
fn seen(event: Event, admitted: bool) -> Observation {
    let said = |state| Vitals { state, health: 100, ..Vitals::default() };
    let ready = Observation {
        allowed: true,
        answers: true,
        incarnation: 7,
        vitals: said(state::ACTIVE),
        on: admitted,
        delivered: true,
        agreed: true,
    };
    match event {
        Forbidden => Observation { allowed: false, ..ready },
        Quiet => Observation { answers: false, ..ready },
        Off => Observation { answers: false, on: false, ..ready },
        OffAnswering => Observation { on: false, ..ready },
        Nameless => Observation { incarnation: 0, ..ready },
        Unready => Observation { vitals: said(state::RETURNING), ..ready },
        Owed => Observation { delivered: false, ..ready },
        Ready => ready,
        Draining => Observation { vitals: said(state::DRAINING), ..ready },
        Unagreed => Observation { agreed: false, ..ready },
        NoAgent => Observation { vitals: Vitals { agent_age: 1_000, ..ready.vitals }, ..ready },
    }
}

/// A detector with one peer, 2.
fn detector() -> Detector {
    let mut detector = Detector::default();
    detector.set_peers(&[2], T0);
    detector
}

fn peer(detector: &mut Detector) -> &mut Peer {
    detector.peer_mut(2).expect("it was set")
}

fn happens(detector: &mut Detector, now: Duration, event: Event) -> Option<Action> {
    let peer = peer(detector);
    peer.observe(now, &seen(event, peer.admitted))
}

fn with(past: Past) -> (Detector, Duration) {
    let mut detector = detector();
    let events: &[Event] = match past {
        Past::New => &[],
        Past::Forbidden => &[Forbidden],
        Past::Unready => &[Unready],
        Past::LetIn => &[Ready],
        Past::LostItsAgent => &[Ready, NoAgent],
        Past::Fell | Past::FellSilent => &[Ready, Off],
        Past::FellAndAnswered | Past::FellLongAgo => &[Ready, Off, Ready],
    };
    for event in events {
        happens(&mut detector, T0, *event);
    }
    (detector, if matches!(past, Past::FellLongAgo | Past::FellSilent) { T0 + 250 * MS } else { T0 + MS })
}

#[test]
fn every_past_meets_every_event() {
    for (past, row) in TABLE {
        for (event, (state, action)) in EVENTS.into_iter().zip(row) {
            let (mut detector, now) = with(past);
            let (before, since) = (peer(&mut detector).state, peer(&mut detector).since);
            assert_eq!(happens(&mut detector, now, event), action, "{past:?} on {event:?}");
            let peer = peer(&mut detector);
            assert_eq!(peer.state, state, "{past:?} on {event:?}");
            assert_eq!(peer.admitted, matches!(state, Alive | AgentSilent), "{past:?} on {event:?}");
            let passed_by = before == AgentSilent && event == OffAnswering;
            assert_eq!(peer.since, if state == before && !passed_by { since } else { now }, "{past:?} on {event:?}");
        }
    }
}

/// Turned off at `now`, a peer answers from then on; says how long it is kept out.
fn kept_out(detector: &mut Detector, now: Duration) -> Duration {
    assert_eq!(happens(detector, now, Off), None);
    let mut waited = Duration::ZERO;
    while happens(detector, now + waited, Ready).is_none() {
        assert_eq!(peer(detector).state, Returning);
        waited += MS;
    }
    waited
}

#[test]
fn who_falls_again_and_again_is_kept_out_longer_and_forgiven_in_time() {
    let mut detector = detector();
    happens(&mut detector, T0, Ready);
    let mut now = T0;
    for times in [250, 500, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000] {
        assert_eq!(kept_out(&mut detector, now), times * MS);
        now += times * MS + MS;
    }
    assert_eq!((peer(&mut detector).suspicions, peer(&mut detector).false_suspicions), (9, 9));
    // One is forgiven a minute; the ninth was half a minute ago.
    for minute in 1..=9 {
        now += Duration::from_secs(60);
        happens(&mut detector, now, Ready);
        assert_eq!(peer(&mut detector).suspicions, 9, "after {minute} minutes");
    }
    assert_eq!(kept_out(&mut detector, now), 250 * MS);
}

#[test]
fn only_who_comes_back_as_the_same_was_suspected_falsely() {
    let (mut detector, _) = with(Past::FellAndAnswered);
    let now = T0 + 250 * MS;
    let reborn = Observation { incarnation: 8, ..seen(Ready, false) };
    assert_eq!(peer(&mut detector).observe(now, &reborn), Some(Action::Admit(8)));
    assert_eq!((peer(&mut detector).suspicions, peer(&mut detector).false_suspicions), (1, 0));
    // Taken out and let in again by its operator.
    happens(&mut detector, now, Forbidden);
    assert_eq!(peer(&mut detector).observe(now, &reborn), Some(Action::Admit(8)));
    assert_eq!((peer(&mut detector).suspicions, peer(&mut detector).false_suspicions), (1, 0));
}

#[test]
fn an_agent_that_starts_takes_over_what_it_finds() {
    let mut detector = detector();
    peer(&mut detector).adopt(7, false);
    assert_eq!(happens(&mut detector, T0, Quiet), None);
    assert_eq!((peer(&mut detector).state, detector.own(true)), (Alive, Own::Active));
    let mut detector = self::detector();
    peer(&mut detector).adopt(7, true);
    assert_eq!(happens(&mut detector, T0, Quiet), None);
    assert_eq!((peer(&mut detector).state, detector.own(true)), (Suspect, Own::CutOff));
    assert_eq!(happens(&mut detector, T0, Ready), None);
    assert_eq!(happens(&mut detector, T0 + 99 * MS, Ready), None, "others may owe it flows");
    assert_eq!(happens(&mut detector, T0 + 100 * MS, Ready), IN);
    assert_eq!(peer(&mut detector).false_suspicions, 1, "whoever suspected it");
}

#[test]
fn a_node_is_cut_off_when_nobody_is_left_of_those_that_were() {
    let mut detector = Detector::default();
    assert_eq!((detector.own(true), detector.own(false)), (Own::Active, Own::Returning), "alone");
    detector.set_peers(&[2, 3, 4], T0);
    assert_eq!(detector.own(true), Own::Active, "nobody was there yet");
    let mut observe = |node: u8, event| {
        let peer = detector.peer_mut(node).expect("it was set");
        peer.observe(T0, &seen(event, peer.admitted));
        (detector.own(true), detector.own(false))
    };
    assert_eq!(observe(2, Ready), (Own::Active, Own::Returning));
    assert_eq!(observe(3, Ready), (Own::Active, Own::Returning));
    assert_eq!(observe(2, Off), (Own::Active, Own::Returning), "one is left");
    assert_eq!(observe(3, Off), (Own::CutOff, Own::CutOff), "the third was never there");
    assert_eq!(observe(2, Ready), (Own::Active, Own::Returning), "one answers, and may not serve yet");
    assert_eq!(observe(4, Ready), (Own::Active, Own::Returning));
}

#[test]
fn who_is_no_member_any_more_is_forgotten() {
    let (mut detector, _) = with(Past::LetIn);
    detector.set_peers(&[2, 3], T0 + MS);
    assert_eq!(peer(&mut detector).since, T0, "who stays keeps what is known of it");
    detector.set_peers(&[3], T0);
    assert_eq!(detector.peers().keys().collect::<Vec<_>>(), [&3]);
    assert!(detector.peer_mut(2).is_none());
}
