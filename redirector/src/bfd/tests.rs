//! The wire form, the state machine, authentication, and two sessions that talk to each other.

use std::time::Duration;

use proptest::prelude::*;

use super::auth::{Key, Kind, Numbers};
use super::packet::{Discard, LENGTH, Packet, State, diagnostic};
use super::session::{Session, Timers, USEFUL};
use crate::paths::health::Sign;

const T: Duration = Duration::from_secs(1000);
const TIMERS: Timers = Timers { min_tx: Duration::from_millis(50), min_rx: Duration::from_millis(100), multiplier: 3 };
const PEER: Packet = Packet {
    diagnostic: 0,
    state: State::Down,
    poll: false,
    last: false,
    independent: false,
    authenticated: false,
    demand: false,
    multiplier: 4,
    mine: 77,
    yours: 0,
    min_tx: 200_000,
    min_rx: 20_000,
    min_echo: 0,
};

fn says(state: State) -> Packet {
    Packet { state, yours: 9, ..PEER }
}

fn session() -> Session {
    Session::new(TIMERS, 9, 1, T)
}

/// Everything that is to be sent at a time.
fn sent(session: &mut Session, now: Duration) -> Vec<Packet> {
    std::iter::from_fn(|| session.poll_packet(now)).collect()
}

fn in_state(state: State) -> Session {
    let mut session = session();
    match state {
        State::AdminDown => session.end(T),
        State::Down => {}
        State::Init => session.handle_packet(&says(State::Down), T).unwrap(),
        State::Up => session.handle_packet(&says(State::Init), T).unwrap(),
    }
    assert_eq!(session.state(), state);
    sent(&mut session, T);
    while session.poll_change().is_some() {}
    session
}

/// RFC 5880, sections 6.2 and 6.8.6.
#[test]
fn every_state_meets_every_state_of_the_peer_and_its_silence() {
    use State::{AdminDown, Down, Init, Up};
    use diagnostic::{ADMIN_DOWN, EXPIRED, NEIGHBOR_DOWN, NONE};
    let table = [
        (AdminDown, [AdminDown, AdminDown, AdminDown, AdminDown], AdminDown, [ADMIN_DOWN; 5]),
        (Down, [Down, Init, Up, Down], Down, [NONE; 5]),
        (Init, [Down, Init, Up, Up], Down, [NEIGHBOR_DOWN, NONE, NONE, NONE, EXPIRED]),
        (Up, [Down, Down, Up, Up], Down, [NEIGHBOR_DOWN, NEIGHBOR_DOWN, NONE, NONE, EXPIRED]),
    ];
    for (state, heard, silent, why) in table {
        for (at, told) in State::ALL.into_iter().enumerate() {
            let mut session = in_state(state);
            let taken = session.handle_packet(&says(told), T);
            assert_eq!(taken.err(), (state == AdminDown).then_some(Discard::Held));
            assert_eq!((session.state(), session.diagnostic()), (heard[at], why[at]), "{state:?} hears {told:?}");
            let change = session.poll_change();
            assert_eq!(
                change.map(|change| (change.from, change.to)),
                (state != heard[at]).then_some((state, heard[at]))
            );
            // A change is told at once.
            let news = sent(&mut session, T);
            assert_eq!(!news.is_empty(), state != heard[at], "{state:?} hears {told:?}");
            assert!(news.iter().all(|packet| packet.state == heard[at] && packet.yours == 77));
        }
        let mut session = in_state(state);
        session.handle_timeout(T + Duration::from_secs(10));
        assert_eq!((session.state(), session.diagnostic()), (silent, why[4]), "{state:?}, silence");
    }
}

#[test]
fn packets_that_are_worth_nothing_by_themselves_are_thrown_away() {
    let good = says(State::Up).write();
    assert_eq!(Packet::read(&good), Ok((says(State::Up), LENGTH)));
    let with = |at: usize, value: u8| {
        let mut bytes = good;
        bytes[at] = value;
        bytes
    };
    let zero = |from: usize| {
        let mut bytes = good;
        bytes[from..from + 4].fill(0);
        bytes
    };
    let table = [
        (with(0, 0x00), Discard::Version),
        (with(0, 0x40), Discard::Version),
        (with(3, 23), Discard::Length),
        (with(3, 25), Discard::Length),
        (with(3, 255), Discard::Length),
        // Authentication takes two bytes at least.
        (with(1, 0xc4), Discard::Length),
        (with(2, 0), Discard::Multiplier),
        (with(1, 0xc1), Discard::Multipoint),
        (zero(4), Discard::Discriminator),
        (zero(8), Discard::State),
    ];
    for (bytes, why) in table {
        assert_eq!(Packet::read(&bytes), Err(why), "{bytes:?}");
    }
    for length in 0..LENGTH {
        assert_eq!(Packet::read(&good[..length]), Err(Discard::Short));
    }
    for (state, fits) in [(State::AdminDown, true), (State::Down, true), (State::Init, false), (State::Up, false)] {
        assert_eq!(Packet::read(&Packet { yours: 0, ..says(state) }.write()).is_ok(), fits, "{state:?}");
    }
    // What follows the packet in its datagram is none of it.
    assert_eq!(Packet::read(&[&good[..], &[1, 2, 3]].concat()), Ok((says(State::Up), LENGTH)));
}

#[test]
fn it_sends_once_a_second_until_it_is_up_and_then_as_negotiated() {
    let mut session = session();
    assert_eq!(sent(&mut session, T).len(), 1);
    assert_eq!(session.interval(), Some(Duration::from_secs(1)));
    assert!(sent(&mut session, T + Duration::from_millis(740)).is_empty());
    let first = sent(&mut session, T + Duration::from_secs(1));
    assert_eq!((first.len(), first[0].min_tx, first[0].poll), (1, 1_000_000, false));
    let up = T + Duration::from_secs(2);
    session.handle_packet(&says(State::Init), up).unwrap();
    let poll = sent(&mut session, up);
    assert_eq!((poll.len(), poll[0].min_tx, poll[0].min_rx, poll[0].poll), (1, 50_000, 100_000, true));
    // The peer takes one each 20 ms, this side sends none faster than each 50.
    assert_eq!(session.interval(), Some(Duration::from_millis(50)));
    // The peer sends one each 200 ms, and says that four may be missed.
    assert_eq!(session.detection(), Some(Duration::from_millis(800)));
    // It polls until it is answered.
    assert!(sent(&mut session, up + Duration::from_millis(50))[0].poll);
    session.handle_packet(&Packet { last: true, ..says(State::Up) }, up).unwrap();
    assert!(!sent(&mut session, up + Duration::from_millis(100))[0].poll);
    // Down again, it is slow again.
    session.handle_timeout(up + Duration::from_millis(799));
    assert_eq!(session.state(), State::Up);
    session.handle_timeout(up + Duration::from_millis(800));
    assert_eq!((session.state(), session.interval()), (State::Down, Some(Duration::from_secs(1))));
    let down = sent(&mut session, up + Duration::from_millis(800));
    assert_eq!((down.len(), down[0].min_tx, down[0].yours, down[0].poll), (1, 1_000_000, 0, false));
}

#[test]
fn a_poll_is_answered_at_once_and_never_polls_itself() {
    let mut session = in_state(State::Up);
    let now = T + Duration::from_millis(1);
    session.handle_packet(&Packet { poll: true, min_rx: 70_000, ..says(State::Up) }, now).unwrap();
    let answers = sent(&mut session, now);
    assert_eq!(answers.len(), 1);
    assert!(answers[0].last && !answers[0].poll && answers[0].min_tx == 50_000);
    assert_eq!(session.interval(), Some(Duration::from_millis(70)));
}

#[test]
fn a_peer_that_takes_more_is_sent_more_at_once() {
    let mut session = in_state(State::Up);
    session.handle_packet(&Packet { min_rx: 900_000, ..says(State::Up) }, T).unwrap();
    assert!(sent(&mut session, T + Duration::from_millis(600)).is_empty());
    session.handle_packet(&says(State::Up), T + Duration::from_millis(600)).unwrap();
    assert_eq!(sent(&mut session, T + Duration::from_millis(600)).len(), 1);
}

#[test]
fn a_peer_that_wants_none_gets_none() {
    let later = T + Duration::from_millis(500);
    for quiet in [Packet { min_rx: 0, ..says(State::Up) }, Packet { demand: true, last: true, ..says(State::Up) }] {
        let mut session = in_state(State::Up);
        session.handle_packet(&quiet, T).unwrap();
        assert_eq!((sent(&mut session, later).len(), session.interval()), (0, None), "{quiet:?}");
        // It is answered nevertheless, and its death found out.
        session.handle_packet(&Packet { poll: true, ..quiet }, later).unwrap();
        assert_eq!(sent(&mut session, later).len(), 1);
        session.handle_timeout(later + Duration::from_secs(1));
        assert_eq!((session.state(), session.interval()), (State::Down, Some(Duration::from_secs(1))));
    }
}

#[test]
fn absurd_timers_are_survived() {
    for (min_tx, min_rx, multiplier) in [(u32::MAX, u32::MAX, 255), (0, 1, 1), (1, 0, 255), (u32::MAX, 0, 1)] {
        let mut session = in_state(State::Init);
        let absurd = Packet { min_tx, min_rx, multiplier, ..says(State::Up) };
        session.handle_packet(&absurd, T).unwrap();
        sent(&mut session, T);
        assert_eq!(session.state(), State::Up);
        // Nothing is sent faster than is configured here, whatever the peer takes.
        let second = (1..=1000).map(|ms| sent(&mut session, T + Duration::from_millis(ms)).len()).sum::<usize>();
        assert!(second <= 27, "{second} packets in a second");
        let detection = session.detection().unwrap();
        assert!(detection >= TIMERS.min_rx * u32::from(multiplier));
        // A peer that would be missed after days says nothing about a path.
        assert_eq!(session.sign() == Sign::Good, detection <= USEFUL);
        session.handle_timeout(T + detection);
        assert_eq!(session.state(), State::Down);
    }
}

#[test]
fn a_session_says_of_a_path_what_it_knows() {
    assert_eq!([State::AdminDown, State::Down, State::Init].map(|state| in_state(state).sign()), [Sign::None; 3]);
    let mut session = in_state(State::Up);
    assert_eq!(session.sign(), Sign::Good);
    session.handle_timeout(T + Duration::from_secs(1));
    assert_eq!(session.sign(), Sign::Bad);
    session.handle_packet(&says(State::Down), T + Duration::from_secs(2)).unwrap();
    assert_eq!((session.state(), session.sign()), (State::Init, Sign::Bad));
    session.handle_packet(&says(State::Up), T + Duration::from_secs(2)).unwrap();
    assert_eq!(session.sign(), Sign::Good);
    // An administrator's word is not a failure.
    session.handle_packet(&says(State::AdminDown), T + Duration::from_secs(2)).unwrap();
    assert_eq!((session.state(), session.sign()), (State::Down, Sign::None));
}

/// Lets two sessions talk for a while over a network that takes a millisecond; `lost` says which packets it loses.
fn talk(a: &mut Session, b: &mut Session, from: u64, until: u64, lost: impl Fn(u64) -> bool) -> u64 {
    let (mut flying, mut count) = (Vec::<(u64, bool, Packet)>::new(), 0);
    for ms in from..until {
        let now = T + Duration::from_millis(ms);
        for (_, to_b, packet) in flying.extract_if(.., |(at, ..)| *at <= ms) {
            let (packet, _) = Packet::read(&packet.write()).unwrap();
            if to_b { b.handle_packet(&packet, now) } else { a.handle_packet(&packet, now) }.unwrap();
        }
        for (session, to_b) in [(&mut *a, true), (&mut *b, false)] {
            session.handle_timeout(now);
            for packet in sent(session, now) {
                count += 1;
                if !lost(ms) {
                    flying.push((ms + 1, to_b, packet));
                }
            }
        }
    }
    count
}

#[test]
fn two_sessions_come_up_stay_up_and_see_silence_in_time() {
    let fast = Timers { min_tx: Duration::from_millis(20), min_rx: Duration::from_millis(30), multiplier: 3 };
    let (mut a, mut b) = (Session::new(TIMERS, 1, 5, T), Session::new(fast, 2, 6, T));
    let states = |a: &Session, b: &Session| [a.state(), b.state()];
    talk(&mut a, &mut b, 0, 3000, |_| false);
    assert_eq!(states(&a, &b), [State::Up; 2]);
    assert_eq!([&a, &b].map(|s| s.interval().unwrap().as_millis()), [50, 100]);
    assert_eq!([&a, &b].map(|s| s.detection().unwrap().as_millis()), [300, 150]);
    // Ten seconds: each sends at its interval, at most a quarter sooner.
    let count = talk(&mut a, &mut b, 3000, 13_000, |_| false);
    assert!((300..=410).contains(&count), "{count}");
    assert_eq!((states(&a, &b), a.since() < T + Duration::from_secs(3)), ([State::Up; 2], true));
    // Silence: both down, each after its own detection time.
    talk(&mut a, &mut b, 13_000, 13_310, |_| true);
    assert_eq!(states(&a, &b), [State::Down; 2]);
    let took = [&a, &b].map(|s| (s.since() - T).as_millis() as i64 - 13_000);
    assert!((175..=301).contains(&took[0]) && (90..=151).contains(&took[1]), "{took:?}");
    talk(&mut a, &mut b, 13_310, 18_000, |_| false);
    assert_eq!(states(&a, &b), [State::Up; 2]);
}

fn key(kind: Kind) -> Key {
    Key { kind, id: 3, secret: b"tell nobody".to_vec() }
}

#[test]
fn packets_prove_who_sent_them() {
    for kind in [Kind::Simple, Kind::Sha1, Kind::MeticulousSha1] {
        let packet = |number| {
            let mut bytes = Packet { authenticated: true, ..says(State::Up) }.write().to_vec();
            key(kind).append(&mut bytes, number);
            bytes
        };
        let good = packet(u32::MAX);
        assert_eq!(Packet::read(&good).unwrap().1, good.len());
        let admitted = |bytes: &[u8], numbers: &mut Numbers| key(kind).admits(bytes, 3, numbers);
        let mut numbers = Numbers::default();
        assert!(admitted(&good, &mut numbers), "{kind:?}");
        // The same again: a password says nothing about it, a number may stay, a meticulous one may not.
        assert_eq!(admitted(&good, &mut numbers), kind != Kind::MeticulousSha1, "{kind:?}");
        assert!(admitted(&packet(2), &mut numbers), "{kind:?}: numbers go round");
        if kind != Kind::Simple {
            assert!(!admitted(&packet(1), &mut numbers.clone()), "{kind:?}: an old one");
            assert!(!admitted(&packet(12), &mut numbers.clone()), "{kind:?}: from far ahead");
        }
        for at in LENGTH..good.len() {
            let mut bytes = good.clone();
            bytes[at] ^= 1;
            // The reserved byte is covered by the sum as well.
            assert!(!admitted(&bytes, &mut Numbers::default()), "{kind:?}: byte {at}");
        }
        for length in 0..good.len() {
            assert!(!admitted(&good[..length], &mut Numbers::default()), "{kind:?}: {length} bytes");
        }
        let other = Key { secret: b"tell anybody".to_vec(), ..key(kind) };
        assert!(!other.admits(&good, 3, &mut Numbers::default()), "{kind:?}");
    }
}

#[test]
fn a_number_is_known_for_twice_the_detection_time_and_no_shorter() {
    let packet = |number| {
        let mut bytes = Packet { authenticated: true, ..says(State::Up) }.write().to_vec();
        key(Kind::MeticulousSha1).append(&mut bytes, number);
        bytes
    };
    let admitted = |number, mut numbers: Numbers| key(Kind::MeticulousSha1).admits(&packet(number), 3, &mut numbers);
    let (heard, detection) = (Duration::from_secs(100), Duration::from_millis(300));
    let mut numbers = Numbers::default();
    assert!(key(Kind::MeticulousSha1).admits(&packet(1000), 3, &mut numbers));
    numbers.heard(heard, detection);
    for (after_ms, forgotten) in [(0, false), (300, false), (599, false), (600, true), (10_000, true)] {
        numbers.pass(heard + Duration::from_millis(after_ms));
        assert!(admitted(1001, numbers), "the next one, after {after_ms} ms");
        assert_eq!(admitted(1000, numbers), forgotten, "the same again, after {after_ms} ms");
        assert_eq!(admitted(7, numbers), forgotten, "of one that started anew, after {after_ms} ms");
    }
}

fn any_packet() -> impl Strategy<Value = Packet> {
    let flags = prop::array::uniform5(any::<bool>());
    let words = prop::array::uniform5(any::<u32>());
    (0u8..32, prop::sample::select(State::ALL.to_vec()), flags, 1u8.., words).prop_map(
        |(diagnostic, state, [poll, last, independent, authenticated, demand], multiplier, words)| {
            let [mine, yours, min_tx, min_rx, min_echo] = words;
            Packet {
                diagnostic,
                state,
                poll,
                last,
                independent,
                authenticated,
                demand,
                multiplier,
                mine: mine.max(1),
                yours: yours.max(1),
                min_tx,
                min_rx,
                min_echo,
            }
        },
    )
}

proptest! {
    #[test]
    fn what_is_written_is_read(packet in any_packet()) {
        let mut bytes = packet.write().to_vec();
        if packet.authenticated {
            key(Kind::Sha1).append(&mut bytes, 1);
        }
        prop_assert_eq!(Packet::read(&bytes), Ok((packet, bytes.len())));
    }

    #[test]
    fn any_bytes_are_read_or_thrown_away(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        if let Ok((packet, length)) = Packet::read(&bytes) {
            prop_assert!(length <= bytes.len() && packet.mine != 0 && packet.multiplier != 0);
            key(Kind::Sha1).admits(&bytes[..length], packet.multiplier, &mut Numbers::default());
        }
    }

    /// Whatever a peer sends whenever: no state is entered that the table does not have, nothing is sent faster than is
    /// configured but answers and news, and silence ends all.
    #[test]
    fn no_peer_breaks_a_session(packets in prop::collection::vec((any_packet(), 0u64..400), 0..40)) {
        let mut session = session();
        let mut now = T;
        let mut periodic = 0u64;
        for (packet, wait) in &packets {
            now += Duration::from_millis(*wait);
            session.handle_timeout(now);
            let before = session.state();
            session.handle_packet(packet, now).unwrap();
            let news = u64::from(before != session.state());
            let out = sent(&mut session, now);
            prop_assert!(out.iter().filter(|packet| packet.last).count() <= usize::from(packet.poll));
            prop_assert!(out.iter().all(|packet| !(packet.poll && packet.last) && packet.mine == 9));
            periodic += (out.iter().filter(|packet| !packet.last).count() as u64).saturating_sub(news);
        }
        prop_assert!(periodic <= (now - T).as_millis() as u64 * 4 / 3 / 50 + 2);
        session.handle_timeout(now + Duration::from_secs(u64::from(u32::MAX)));
        prop_assert_eq!(session.state(), State::Down);
    }
}
