//! Beats between two nodes: what is answered, what is believed, and what is refused and leaves nothing behind.

use redirector::dataplane::memory::MemoryTables;
use redirector_ebpf::abi::BEAT_PORT;
use redirector_ebpf::beat::{BYTES, Beat};
use redirector_ebpf::reason::Reason;
use redirector_ebpf::tables::liveness::{REMEMBERED, Vitals, Watch, link, slot, state};
use suite::beat::{self, all_heard, ask, beat_of, frame, heard, packet, watch};
use suite::decode::{Body, decode};
use suite::node::{Done, Family, mac, send};

/// Two nodes that ask each other.
fn pair(family: Family) -> (MemoryTables, MemoryTables) {
    (beat::node(family, 1, &[2]), beat::node(family, 2, &[1]))
}

/// Two nodes that have answered each other.
fn acquainted() -> (MemoryTables, MemoryTables) {
    let (one, two) = pair(Family::V4);
    exchange(&one, &two);
    exchange(&two, &one);
    (one, two)
}

/// A node asks another, and takes the answer.
fn exchange(asker: &MemoryTables, answerer: &MemoryTables) {
    let (from, to) = (asker.image.node.id, answerer.image.node.id);
    let answered = deliver(answerer, &ask(asker, to));
    assert_eq!(answered.verdict.reason, Reason::BeatAnswered);
    let answer = beat_of(&answered.bytes);
    let answer = frame(Family::V4, to, from, &answer);
    assert_eq!(send(asker, &answer).verdict.reason, Reason::BeatTaken);
}

/// Brings a beat from whom it says it is to this node.
fn deliver(to: &MemoryTables, beat: &Beat) -> Done {
    send(to, &frame(Family::V4, beat.source(), to.image.node.id, beat))
}

/// A beat is refused for this reason, and nothing of it is kept.
fn refused(says: &str, by: &MemoryTables, frame: &[u8], reason: Reason) {
    let before = all_heard(by);
    assert_eq!(send(by, frame).verdict.reason, reason, "{says}");
    assert_eq!(all_heard(by), before, "{says}: what was heard");
}

fn says_much(tables: &mut MemoryTables) {
    let vitals = Vitals { state: state::DRAINING, health: 90, load: 100, shed: 3, agent_age: 0 };
    let said = &tables.condition;
    said.vitals.store(vitals.word());
    said.agent.store(tables.now.get() - 42_900_000);
    said.applied.store(5);
    said.slots.store(6 << 40);
    said.pools.store(u64::MAX);
    [3, 64, 200, 254].into_iter().for_each(|node| tables.image.alive.set(node, true));
    tables.image.alive.set(4, false);
}

#[test]
fn a_request_comes_back_as_its_answer() {
    for (family, tags) in [(Family::V4, &[][..]), (Family::V6, &[]), (Family::V4, &[12]), (Family::V6, &[12])] {
        let (one, mut two) = pair(family);
        says_much(&mut two);
        let request = ask(&one, 2);
        let mut asked = packet(family, 1, 2, beat::bytes(&request)).tags(tags).ttl(9).tos(0xc0);
        asked.layer = suite::packet::Layer::Udp(5_555, BEAT_PORT);
        let done = send(&two, &asked.bytes());
        assert_eq!((done.verdict.reason, done.verdict.port), (Reason::BeatAnswered, 0), "{family:?} {tags:?}");
        assert!(all_heard(&two).iter().all(|word| *word == 0), "a stranger is answered, and not believed");

        let seen = decode(&done.bytes);
        assert_eq!((seen.to, seen.from, &seen.tags[..]), (mac(1, 0), mac(2, 0), tags));
        let ip = seen.outer();
        assert_eq!((ip.src, ip.dst), (beat::address(family, 2), beat::address(family, 1)));
        assert_eq!((ip.ttl, ip.tos, ip.dont_fragment), (64, 0xc0, true));
        let Body::Udp(udp, _) = &ip.body else { panic!("{ip:?}") };
        assert_eq!((udp.source_port, udp.destination_port), (BEAT_PORT, 5_555));

        let answer = beat_of(&done.bytes);
        assert_eq!(answer.check(&one.watch, 7, 1), Ok(()));
        assert!(answer.is_answer());
        assert_eq!((answer.source(), answer.target()), (2, 1));
        assert_eq!((answer.nonce(), answer.asker()), (request.nonce(), one.watch.boot_id));
        assert_eq!((answer.incarnation(), answer.boot_id()), (two.watch.incarnation, two.watch.boot_id));
        assert_eq!(answer.sequence(), 20, "the number of its own last request");
        assert_eq!(answer.words[6], two.now.get(), "the time");
    }
}

#[test]
fn an_answer_says_how_the_sender_is() {
    let (one, mut two) = pair(Family::V4);
    says_much(&mut two);
    let request = ask(&one, 2);
    let answer = deliver(&two, &request).bytes;
    one.now.set(one.now.get() + 700_000);
    assert_eq!(send(&one, &answer).verdict.reason, Reason::BeatTaken);
    let heard = heard(&one, 2);
    let vitals = Vitals { state: state::DRAINING, health: 90, load: 100, shed: 3, agent_age: 42 };
    assert_eq!(Vitals::of(heard.vitals.load()), vitals);
    assert_eq!([heard.applied.load(), heard.slots.load(), heard.pools.load()], [5, 6 << 40, u64::MAX]);
    assert_eq!([0, 1, 2, 3].map(|word| heard.view[word].load()), two.image.alive.words);
    assert_eq!(heard.incarnation.load(), u64::from(two.watch.incarnation));
    assert_eq!(heard.boot_id.load(), two.watch.boot_id);
    assert_eq!((heard.answered.load(), heard.asked.load()), (21, 20));
    assert_eq!((heard.at.load(), slot(&heard.times, 21).load()), (one.now.get(), one.now.get()));
    let others = one.heard.iter().enumerate().filter(|(at, _)| *at != link(2, 0) as usize);
    assert!(others.flat_map(|(_, heard)| beat::words(heard)).all(|word| word == 0), "another link heard of it");
}

#[test]
fn requests_of_a_peer_that_is_known_are_believed() {
    let (mut one, two) = acquainted();
    let answered = heard(&two, 1).answered.load();
    says_much(&mut one);
    two.now.set(two.now.get() + 5_000);
    assert_eq!(deliver(&two, &ask(&one, 2)).verdict.reason, Reason::BeatAnswered);
    let heard = heard(&two, 1);
    assert_eq!((heard.asked.load(), heard.at.load(), heard.applied.load()), (22, two.now.get(), 5));
    assert_eq!(Vitals::of(heard.vitals.load()).health, 90);
    assert_eq!(heard.answered.load(), answered, "a request answers nothing");
}

#[test]
fn what_no_beat_can_be_is_refused() {
    let (one, two) = acquainted();
    let good = ask(&one, 2);
    // Which byte becomes what.
    for (says, at, value, reason) in [
        ("another version", 2, 2, Reason::BeatVersion),
        ("neither request nor answer", 3, 0, Reason::BeatMalformed),
        ("another kind", 3, 3, Reason::BeatMalformed),
        ("from a node that is not asked", 4, 3, Reason::BeatForeign),
        ("from the receiver itself", 4, 2, Reason::BeatForeign),
        ("from node 0", 4, 0, Reason::BeatForeign),
        ("from node 255", 4, 255, Reason::BeatForeign),
        ("for another node", 5, 3, Reason::BeatForeign),
        ("an unknown key", 6, 77, Reason::BeatTag),
        ("no key", 6, 0, Reason::BeatTag),
        ("state 4", 7, 4, Reason::BeatMalformed),
        ("another cluster", 8, 8, Reason::BeatForeign),
        ("no incarnation", 12, 0, Reason::BeatMalformed),
        ("no number", 24, 0, Reason::BeatMalformed),
        ("a request that answers", 40, 1, Reason::BeatMalformed),
        ("health 101", 80, 101, Reason::BeatMalformed),
        ("load 101", 81, 101, Reason::BeatMalformed),
        ("shed level 4", 82, 4, Reason::BeatMalformed),
        ("a reserved byte", 83, 1, Reason::BeatMalformed),
    ] {
        let (mut bad, shift) = (good, at % 8 * 8);
        bad.words[at / 8] = bad.words[at / 8] & !(0xff << shift) | value << shift;
        bad.seal(&one.watch);
        refused(says, &two, &frame(Family::V4, 1, 2, &bad), reason);
    }
    for bit in 0..BYTES * 8 {
        let mut bad = good;
        bad.words[bit / 64] ^= 1 << (bit % 64);
        let before = all_heard(&two);
        let reason = deliver(&two, &bad).verdict.reason;
        assert!(!matches!(reason, Reason::BeatAnswered | Reason::BeatTaken), "bit {bit} is of no account");
        assert_eq!(all_heard(&two), before, "bit {bit}");
    }
    assert_eq!(deliver(&two, &good).verdict.reason, Reason::BeatAnswered, "the good one is still good");
}

/// Nodes that have sent no request know no node yet, and perhaps no key: nobody is taken for a forger.
#[test]
fn before_the_first_request_all_beats_are_foreign() {
    let (one, mut two) = pair(Family::V4);
    two.watch = Watch::default();
    two.sent[link(1, 0) as usize].sequence.store(0);
    refused("no keys yet", &two, &frame(Family::V4, 1, 2, &ask(&one, 2)), Reason::BeatForeign);
    let mut zero = ask(&one, 2);
    two.sent[link(1, 0) as usize].sequence.store(1);
    zero.seal(&Watch { keys: [[0; 2]; 2], ..one.watch });
    refused("a key of zeros", &two, &frame(Family::V4, 1, 2, &zero), Reason::BeatTag);
}

#[test]
fn either_of_two_keys_is_accepted() {
    let (old, new) = ((7, watch(1).keys[0]), (9, watch(1).keys[1]));
    let keys = |first: (u8, [u64; 2]), second: (u8, [u64; 2])| (vec![first.0, second.0], vec![first.1, second.1]);
    let none = (0, [0; 2]);
    // Node by node from the old key by way of both to the new one; neighbouring steps understand each other.
    let steps = [keys(old, none), keys(old, new), keys(new, old), keys(new, none)];
    for (at, mine) in steps.iter().enumerate() {
        for (other, theirs) in steps.iter().enumerate() {
            let (mut one, mut two) = pair(Family::V4);
            for (tables, (ids, keys)) in [(&mut one, mine), (&mut two, theirs)] {
                tables.watch.key_ids.copy_from_slice(ids);
                tables.watch.keys.copy_from_slice(keys);
            }
            let understood = theirs.0.contains(&mine.0[0]);
            assert!(understood || at.abs_diff(other) > 1, "steps {at} and {other}");
            match understood {
                true if mine.0.contains(&theirs.0[0]) => exchange(&one, &two),
                true => assert_eq!(deliver(&two, &ask(&one, 2)).verdict.reason, Reason::BeatAnswered),
                false => refused("the other key", &two, &frame(Family::V4, 1, 2, &ask(&one, 2)), Reason::BeatTag),
            }
        }
    }
    let (one, two) = acquainted();
    let mut forged = ask(&one, 2);
    forged.seal(&Watch { keys: [new.1, old.1], ..one.watch });
    refused("the number of the other key", &two, &frame(Family::V4, 1, 2, &forged), Reason::BeatTag);
}

#[test]
fn a_request_counts_once() {
    let (one, two) = acquainted();
    let (first, second) = (ask(&one, 2), ask(&one, 2));
    assert_eq!(deliver(&two, &second).verdict.reason, Reason::BeatAnswered);
    refused("again", &two, &frame(Family::V4, 1, 2, &second), Reason::BeatReplayed);
    refused("an older one", &two, &frame(Family::V4, 1, 2, &first), Reason::BeatReplayed);
}

#[test]
fn an_answer_counts_once_and_only_to_a_recent_request() {
    let (one, two) = acquainted();
    let answers: Vec<Vec<u8>> = (0..=REMEMBERED).map(|_| deliver(&two, &ask(&one, 2)).bytes).collect();
    refused("to a request that is too old", &one, &answers[0], Reason::BeatReplayed);
    for (age, answer) in answers.iter().enumerate().skip(1) {
        assert_eq!(send(&one, answer).verdict.reason, Reason::BeatTaken, "the {age}th");
        refused("again", &one, answer, Reason::BeatReplayed);
    }
    refused("overtaken by a later one", &one, &answers[REMEMBERED / 2], Reason::BeatReplayed);

    let last = beat_of(&deliver(&two, &ask(&one, 2)).bytes);
    for (says, at, value) in [
        ("to a nonce that was never used", 4, last.nonce() + 1),
        ("to another agent's nonce", 4, last.nonce() ^ 1 << 40),
        ("to this host before it booted", 5, last.asker() + 1),
        ("to nobody", 5, 0),
    ] {
        let mut bad = last;
        bad.words[at] = value;
        bad.seal(&two.watch);
        refused(says, &one, &frame(Family::V4, 2, 1, &bad), Reason::BeatReplayed);
    }
    // The agent starts anew, with other nonces.
    one.sent[link(2, 0) as usize].nonce_base.store(99);
    refused("to an agent that is no more", &one, &frame(Family::V4, 2, 1, &last), Reason::BeatReplayed);
}

#[test]
fn a_new_incarnation_is_learnt_from_an_answer_alone() {
    let (one, mut two) = acquainted();
    let old_answer = deliver(&two, &ask(&one, 2)).bytes;
    let old_request = ask(&two, 1);
    two = beat::node(Family::V4, 2, &[1]);
    two.watch.incarnation += 1;
    let before = all_heard(&one);
    let done = deliver(&one, &ask(&two, 1));
    assert_eq!(done.verdict.reason, Reason::BeatAnswered, "so that it learns of this node");
    assert_eq!(all_heard(&one), before, "it is not believed");
    assert_eq!(heard(&one, 2).incarnation.load(), 102);

    exchange(&one, &two);
    assert_eq!((heard(&one, 2).incarnation.load(), heard(&one, 2).asked.load()), (103, 21));
    refused("an answer of its former life", &one, &old_answer, Reason::BeatReplayed);
    let learnt = all_heard(&one);
    refused("a request of its former life", &one, &frame(Family::V4, 2, 1, &old_request), Reason::BeatReplayed);
    assert_eq!(all_heard(&one), learnt, "a request of its former life");
    let next = ask(&two, 1);
    assert_eq!(deliver(&one, &next).verdict.reason, Reason::BeatAnswered);
    assert_eq!(heard(&one, 2).asked.load(), next.sequence(), "now it is");
}

/// A host may lose its disk and its clock.
#[test]
fn an_incarnation_that_went_back_is_learnt_from_an_answer_too() {
    let (one, _) = acquainted();
    let mut two = beat::node(Family::V4, 2, &[1]);
    two.watch.incarnation -= 1;
    refused("its request", &one, &frame(Family::V4, 2, 1, &ask(&two, 1)), Reason::BeatReplayed);
    exchange(&one, &two);
    assert_eq!(heard(&one, 2).incarnation.load(), 101);
    assert_eq!(deliver(&one, &ask(&two, 1)).verdict.reason, Reason::BeatAnswered);
}

#[test]
fn a_beat_has_its_length() {
    let (one, two) = acquainted();
    let whole = beat::bytes(&ask(&one, 2));
    for family in [Family::V4, Family::V6] {
        for len in 0..whole.len() {
            let datagram = packet(family, 1, 2, whole[..len].to_vec()).bytes();
            // Two bytes would do for the magic, but who says less than a word is no beat.
            let reason = if len < 8 { Reason::NotOurs } else { Reason::BeatMalformed };
            refused("a shorter datagram", &two, &datagram, reason);
            // The rest of the beat stands behind the packet.
            refused("in the padding", &two, &[&datagram[..], &whole[len..]].concat(), Reason::BeatMalformed);
        }
        let long = packet(family, 1, 2, [&whole[..], &[0]].concat()).bytes();
        refused("a longer datagram", &two, &long, Reason::BeatMalformed);
        let frame = packet(family, 1, 2, whole.clone()).bytes();
        let udp = frame.len() - BYTES - 8;
        for len in [0, 8, 135, 137, 255] {
            let mut lies = frame.clone();
            lies[udp + 5] = len;
            refused("UDP that lies", &two, &lies, Reason::BeatMalformed);
        }
        // The low byte of IP's length, which bytes behind the packet make good.
        let at = if family == Family::V4 { 14 + 3 } else { 14 + 5 };
        for by in [-8, -1, 1, 8] {
            let mut lies = [&frame[..], &[0; 8]].concat();
            lies[at] = lies[at].checked_add_signed(by).expect("far from its ends");
            refused("IP that lies", &two, &lies, Reason::BeatMalformed);
        }
        for len in 14..frame.len() {
            let cut = if family == Family::V4 { Reason::MalformedIpv4 } else { Reason::MalformedIpv6 };
            refused("a frame that is cut off", &two, &frame[..len], cut);
        }
    }
    let options = packet(Family::V4, 1, 2, whole).options(8).bytes();
    let done = send(&two, &options);
    assert_eq!(done.verdict.reason, Reason::BeatAnswered);
    assert!(beat_of(&done.bytes).is_answer(), "behind options too");
}

#[test]
fn what_only_looks_like_a_beat_passes_untouched() {
    let (one, two) = acquainted();
    let whole = beat::bytes(&ask(&one, 2));
    let mut frames = vec![packet(Family::V4, 1, 2, vec![0; BYTES]).bytes()];
    for family in [Family::V4, Family::V6] {
        let mut other = whole.clone();
        other[1] = b'b';
        frames.push(packet(family, 1, 2, other).bytes());
        let mut elsewhere = packet(family, 1, 2, whole.clone());
        elsewhere.layer = suite::packet::Layer::Udp(BEAT_PORT, BEAT_PORT + 1);
        frames.push(elsewhere.bytes());
        frames.extend(packet(family, 1, 2, whole.clone()).fragments(9, 64));
    }
    for frame in frames {
        let done = send(&two, &frame);
        assert_eq!((done.verdict.reason, done.bytes == frame), (Reason::NotOurs, true), "{frame:02x?}");
    }
}
