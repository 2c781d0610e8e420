//! The rule by which peers are turned off, in ordinary memory and on a clock of the test's own.

use proptest::prelude::*;
use redirector_ebpf::liveness::{ABANDONED, LATE, ROUND, round, shed_level};
use redirector_ebpf::tables::liveness::{
    Admission, Condition, Heard, MULTIPLIER_MAX, REMEMBERED, Sent, Watch, link, slot,
};
use redirector_ebpf::tables::{AliveNodes, Node};
use suite::watching::Maps;

const MS: u64 = 1_000_000;
const INTERVAL: u64 = 10 * MS;
const GRACE: u64 = INTERVAL / 4;

/// A node that asks its peers 2, 3 and so on over two ports each.
struct Watcher {
    maps: Maps,
    now: u64,
    alive: AliveNodes,
    /// Whether requests are sent.
    asks: bool,
    /// Time between two rounds of the timer.
    pace: u64,
    next: u64,
    peers: Vec<u8>,
    /// Links that answer.
    answering: Vec<(u8, u8)>,
}

const INCARNATION: u64 = 7;
/// The port that packets to all peers prefer.
const FIRST: u8 = 1;

impl Watcher {
    /// All peers answer, and have been let in.
    fn new(peers: u8, multiplier: u32) -> Self {
        let maps = Maps::new(Watch {
            interval: INTERVAL,
            grace: GRACE,
            multiplier,
            peers: u32::from(peers),
            ..Watch::default()
        });
        let peers: Vec<u8> = (2..2 + peers).collect();
        let answering = peers.iter().flat_map(|peer| [(*peer, 0), (*peer, 1)]).collect();
        let now = 1_000 * MS;
        let (alive, asks, pace) = (AliveNodes::default(), true, ROUND);
        let mut watcher = Self { maps, now, alive, asks, pace, next: now, peers, answering };
        watcher.pass(2 * INTERVAL);
        for peer in watcher.peers.clone() {
            watcher.admit(peer, 1);
        }
        watcher.pass(3 * INTERVAL);
        watcher
    }

    fn sent(&self, (peer, port): (u8, u8)) -> &Sent {
        &self.maps.sent[link(peer, port) as usize]
    }

    fn heard(&self, (peer, port): (u8, u8)) -> &Heard {
        &self.maps.heard[link(peer, port) as usize]
    }

    fn links(&self) -> Vec<(u8, u8)> {
        self.peers.iter().flat_map(|peer| [(*peer, 0), (*peer, 1)]).collect()
    }

    fn admit(&mut self, peer: u8, term: u32) {
        let row = &self.maps.watched[usize::from(peer) - 2];
        row.incarnation.store(INCARNATION);
        row.word.store(Admission { node: peer, ports: 0b11, first: FIRST, term }.word());
    }

    fn ask(&mut self, link: (u8, u8)) -> u64 {
        let sent = self.sent(link);
        let number = sent.sequence.load() + 1;
        slot(&sent.times, number).store(self.now);
        sent.sequence.store(number);
        self.maps.condition.sender.store(self.now);
        number
    }

    fn answer(&self, link: (u8, u8), number: u64) {
        let heard = self.heard(link);
        heard.answered.raise(number);
        heard.incarnation.store(INCARNATION);
    }

    /// A round of the timer.
    fn round(&mut self) {
        self.alive = AliveNodes { words: round(&self.maps, self.now).expect("all maps are there") };
    }

    /// Lets time pass, with requests and rounds as they are due.
    fn pass(&mut self, time: u64) {
        let until = self.now + time;
        while self.now < until {
            self.now += self.pace;
            if self.asks && self.now >= self.next {
                self.next = self.now + INTERVAL;
                for link in self.links() {
                    let number = self.ask(link);
                    if self.answering.contains(&link) {
                        self.answer(link, number);
                    }
                }
            }
            self.round();
        }
    }

    fn is_on(&self, peer: u8) -> bool {
        self.alive.is_alive(peer)
    }

    fn silence(&mut self, peer: u8) {
        self.answering.retain(|(silent, _)| *silent != peer);
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Before {
    Out,
    On,
    Latched,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Event {
    Nothing,
    SilentOnOneLink,
    Silent,
    OneCarrierLost,
    CarriersLost,
    Reborn,
    NewTerm,
    SameTerm,
    Dismissed,
}

const STATES: [Before; 3] = [Before::Out, Before::On, Before::Latched];

/// For each event: whether a peer is on afterwards, that was out, on, and latched; whether it stays on without verdicts.
const TABLE: [(Event, [bool; 3], bool); 9] = [
    (Event::Nothing, [false, true, false], true),
    (Event::SilentOnOneLink, [false, true, false], true),
    (Event::Silent, [false, false, false], true),
    (Event::OneCarrierLost, [false, true, false], true),
    (Event::CarriersLost, [false, false, false], true),
    (Event::Reborn, [false, false, false], true),
    (Event::NewTerm, [true, true, true], true),
    (Event::SameTerm, [false, true, false], true),
    (Event::Dismissed, [false, false, false], false),
];

fn in_state(before: Before) -> Watcher {
    let mut watcher = Watcher::new(1, 3);
    match before {
        Before::Out => watcher.admit(2, 0),
        Before::On => {}
        Before::Latched => {
            let answering = std::mem::take(&mut watcher.answering);
            watcher.pass(5 * INTERVAL);
            watcher.answering = answering;
        }
    }
    watcher.pass(2 * INTERVAL);
    assert_eq!(watcher.is_on(2), before == Before::On);
    assert_eq!(watcher.maps.latches[2].term.load(), u64::from(before == Before::Latched));
    watcher
}

fn happens(watcher: &mut Watcher, before: Before, event: Event) {
    let term = if before == Before::Out { 0 } else { 1 };
    match event {
        Event::Nothing => {}
        Event::SilentOnOneLink => watcher.answering.retain(|link| *link != (2, 1)),
        Event::Silent => watcher.silence(2),
        Event::OneCarrierLost => watcher.sent((2, 0)).down.store(1),
        Event::CarriersLost => [0, 1].into_iter().for_each(|port| watcher.sent((2, port)).down.store(1)),
        Event::Reborn => {
            watcher.answering.retain(|link| *link != (2, 1));
            watcher.heard((2, 1)).incarnation.store(INCARNATION + 1);
        }
        Event::NewTerm => watcher.admit(2, 2),
        Event::SameTerm => watcher.admit(2, term),
        Event::Dismissed => watcher.admit(2, 0),
    }
}

#[test]
fn every_state_meets_every_event() {
    for (event, expected, without) in TABLE {
        for (before, on) in STATES.into_iter().zip(expected) {
            let mut watcher = in_state(before);
            happens(&mut watcher, before, event);
            watcher.pass(5 * INTERVAL);
            assert_eq!(watcher.is_on(2), on, "{before:?} on {event:?}");
            let latched = watcher.maps.latches[2].term.load();
            assert_eq!(latched != 0, before == Before::Latched || before == Before::On && !on && without, "{event:?}");
        }
        // Each round comes late.
        let mut late = in_state(Before::On);
        late.pace = LATE + 1;
        late.pass(2 * late.pace);
        happens(&mut late, Before::On, event);
        late.pass(5 * INTERVAL);
        assert_eq!(late.is_on(2), without, "late rounds, {event:?}");
        // Nothing is asked any more, though more than was asked is unanswered.
        let mut stalled = in_state(Before::On);
        stalled.asks = false;
        stalled.pass(4 * INTERVAL);
        happens(&mut stalled, Before::On, event);
        if event == Event::Silent {
            stalled.heard((2, 0)).answered.store(0);
            stalled.heard((2, 1)).answered.store(0);
        }
        let frozen = stalled.maps.pulse.frozen.load();
        stalled.pass(5 * INTERVAL);
        assert_eq!(stalled.is_on(2), without, "an own sender that stalls, {event:?}");
        assert!(stalled.maps.pulse.frozen.load() > frozen);
    }
}

#[test]
fn a_latched_peer_comes_back_by_a_new_term_alone() {
    let mut watcher = in_state(Before::Latched);
    watcher.pass(100 * INTERVAL);
    assert!(!watcher.is_on(2), "it answered, and nobody let it in");
    watcher.admit(2, 1);
    watcher.pass(INTERVAL);
    assert!(!watcher.is_on(2), "the term in which it fell");
    watcher.admit(2, 2);
    watcher.pass(ROUND);
    assert!(watcher.is_on(2));
    let times = [watcher.maps.latches[2].at.load(), watcher.now];
    watcher.silence(2);
    watcher.pass(5 * INTERVAL);
    assert!(!watcher.is_on(2) && watcher.maps.latches[2].term.load() == 2);
    assert!(watcher.maps.latches[2].at.load() > times[1], "when it fell: {times:?}");
}

#[test]
fn a_lost_carrier_is_silence_at_once() {
    for (peers, gone) in (1..=6u8).flat_map(|peers| (1..=peers).map(move |gone| (peers, gone))) {
        let mut watcher = Watcher::new(peers, 3);
        let unplugged: Vec<u8> = watcher.peers[..usize::from(gone)].to_vec();
        for link in unplugged.iter().flat_map(|peer| [(*peer, 0), (*peer, 1)]) {
            watcher.sent(link).down.store(1);
        }
        watcher.pass(ROUND);
        for peer in watcher.peers.clone() {
            assert_eq!(watcher.is_on(peer), !unplugged.contains(&peer), "peer {peer} of {peers}, {gone} unplugged");
        }
    }
}

/// Packets leave by the port that comes first, while it answers or nobody does, and else by the other one.
#[test]
fn packets_turn_to_the_link_that_answers() {
    let all = Watcher::new(2, 3).answering;
    let all_but = |gone: &[(u8, u8)]| all.iter().copied().filter(|link| !gone.contains(link)).collect();
    let other = 1 - FIRST;
    let mut watcher = Watcher::new(2, 3);
    for (gone, way) in [
        (vec![], FIRST),
        (vec![(2, other)], FIRST),
        (vec![(2, FIRST)], other),
        (vec![], FIRST),
        (vec![(2, FIRST)], other),
        // Nobody answers: what was right last stays.
        (vec![(2, FIRST), (2, other)], other),
    ] {
        watcher.answering = all_but(&gone);
        watcher.pass(5 * INTERVAL);
        assert_eq!(watcher.maps.ways[2].load(), u64::from(way), "without {gone:?}");
        assert_eq!(watcher.maps.ways[3].load(), u64::from(FIRST), "its peer's links are its own");
        assert_eq!(watcher.is_on(2), gone.len() < 2, "without {gone:?}");
    }
    let mut carrier = Watcher::new(1, 3);
    carrier.sent((2, FIRST)).down.store(1);
    carrier.pass(ROUND);
    assert_eq!(carrier.maps.ways[2].load(), u64::from(other), "at once");
}

#[test]
fn most_peers_at_once_are_given_another_timeout() {
    for peers in 1..=6u8 {
        for silent in 1..=peers {
            let mut watcher = Watcher::new(peers, 3);
            // The next request goes out with the next round.
            watcher.next = watcher.now;
            (2..2 + silent).for_each(|peer| watcher.silence(peer));
            let timeout = 3 * INTERVAL;
            let most = peers >= 2 && silent * 2 > peers;
            let fall = 2 * INTERVAL + GRACE + if most { timeout } else { 0 };
            watcher.pass(fall - MS);
            assert!((2..2 + peers).all(|peer| watcher.is_on(peer)), "{silent} of {peers}, before their time");
            watcher.pass(3 * MS);
            for peer in 2..2 + peers {
                assert_eq!(watcher.is_on(peer), peer >= 2 + silent, "{silent} of {peers}: node {peer}");
            }
        }
    }
}

#[test]
fn most_peers_that_answer_again_in_time_stay() {
    let mut watcher = Watcher::new(4, 3);
    let answering = std::mem::take(&mut watcher.answering);
    watcher.pass(5 * INTERVAL);
    assert!(watcher.maps.pulse.frozen.load() > 0);
    watcher.answering = answering;
    watcher.pass(20 * INTERVAL);
    assert!((2..6).all(|peer| watcher.is_on(peer)));
    assert_eq!(watcher.maps.pulse.alone_since.load(), 0, "the next time begins anew");
}

#[test]
fn requests_in_a_burst_count_no_more_than_the_first() {
    let mut watcher = Watcher::new(1, 3);
    watcher.asks = false;
    watcher.silence(2);
    for _ in 0..REMEMBERED - 1 {
        watcher.ask((2, 0));
        watcher.ask((2, 1));
    }
    let asked = watcher.now;
    while watcher.is_on(2) {
        watcher.maps.condition.sender.store(watcher.now);
        watcher.pass(ROUND);
    }
    let took = watcher.now - asked;
    assert!((2 * INTERVAL + GRACE..2 * INTERVAL + GRACE + 2 * ROUND).contains(&took), "{took} ns");
}

/// A thing that happens on the only link of the only peer.
#[derive(Clone, Copy, Debug)]
enum Act {
    Ask,
    /// The answer to the request that was sent so many before the last.
    Answer(u64),
    /// So many rounds, so far apart.
    Rounds(u8, u64),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        3 => Just(Act::Ask),
        1 => (0..4u64).prop_map(Act::Answer),
        4 => (1..12u8).prop_map(|rounds| Act::Rounds(rounds, ROUND)),
        1 => (1..3u8, ROUND..3 * INTERVAL).prop_map(|(rounds, gap)| Act::Rounds(rounds, gap)),
    ];
    prop::collection::vec(act, 1..120)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Against all requests and their times, which the maps do not remember.
    #[test]
    fn a_peer_falls_when_its_time_is_over_and_not_before(acts in acts(), multiplier in 2..=MULTIPLIER_MAX) {
        let mut watcher = Watcher::new(1, multiplier);
        watcher.asks = false;
        // The second link never answers: all that counts is the first.
        watcher.sent((2, 1)).down.store(1);
        let first = watcher.sent((2, 0)).sequence.load();
        let (mut times, mut answered, mut last, mut hold) = (Vec::new(), 0, watcher.now, 0);
        for act in acts {
            let unanswered = times.len() - answered;
            match act {
                // The sender asks no peer more often than this that does not answer.
                Act::Ask if unanswered < REMEMBERED => {
                    watcher.ask((2, 0));
                    times.push(watcher.now);
                }
                Act::Ask => {}
                Act::Answer(before) => {
                    let number = (times.len() as u64).saturating_sub(before) as usize;
                    if number > answered {
                        answered = number;
                        watcher.answer((2, 0), first + number as u64);
                    }
                }
                Act::Rounds(rounds, gap) => for _ in 0..rounds {
                    watcher.now += gap;
                    // Its sender sends, if not to this peer.
                    watcher.maps.condition.sender.store(watcher.now);
                    watcher.round();
                    if watcher.now - last > LATE {
                        hold = watcher.now + INTERVAL;
                    }
                    last = watcher.now;
                    let due = multiplier as usize;
                    let waiting = &times[answered..];
                    let over = waiting.len() >= due
                        && watcher.now - waiting[0] >= (due as u64 - 1) * INTERVAL + GRACE
                        && watcher.now - waiting[due - 1] >= GRACE;
                    prop_assert_eq!(watcher.is_on(2), !over || watcher.now < hold, "{} ms", watcher.now / MS);
                    if !watcher.is_on(2) {
                        return Ok(());
                    }
                },
            }
        }
    }
}

proptest! {
    /// While its agent lives its level holds; then the configured one, and never a higher one than was there.
    #[test]
    fn a_shed_level_does_not_outlive_its_agent(level in 0..=3u8, least in 0..=3u8, age in 0..4 * ABANDONED) {
        let (node, condition) = (Node { shed_level: level, shed_least: least, ..Node::default() }, Condition::default());
        let now = 100 * ABANDONED;
        condition.agent.store(now - age);
        let holds = if age > ABANDONED { level.min(least) } else { level };
        prop_assert_eq!(shed_level(&node, &condition, now), holds);
        condition.agent.store(now + 1);
        prop_assert_eq!(shed_level(&node, &condition, now), level, "a sign that came after the time was read");
    }
}
