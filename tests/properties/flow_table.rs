//! Floods do not reach flows that are proven.

use proptest::prelude::*;
use redirector::dataplane::flows::is_over;
use redirector::dataplane::memory::MemoryTables;
use redirector_ebpf::reason::Reason;
use redirector_ebpf::tables::Row;
use redirector_ebpf::tables::flow::{Entry, LASTING, State, WAYS};
use suite::node;
use suite::packet::{Packet, tcp_between, udp_between};
use suite::random::Random;

/// Node 1 alone, with two buckets.
fn small() -> MemoryTables {
    let config = node::configuration(1);
    let mut tables = MemoryTables::new(node::image(&config), 2);
    let known = node::node(1).neighbours;
    tables.neighbours = known;
    tables.image.slots.iter_mut().for_each(|slot| slot.ranks = [1, 0, 0, 0]);
    let backend = node::backend(&tables, "l2/a");
    node::set_rows(&mut tables, "l2", Row::new(backend, backend, false));
    tables
}

fn flow(random: &mut Random, datagrams: bool) -> Packet {
    let client = (std::net::Ipv4Addr::from(random.number() as u32), random.number() as u16 | 1).into();
    if datagrams {
        udp_between(client, "198.51.100.1:5060".parse().unwrap())
    } else {
        tcp_between(client, "198.51.100.1:443".parse().unwrap())
    }
}

fn pass_time(tables: &MemoryTables, milliseconds: u64) {
    tables.now.set(tables.now.get() + milliseconds * 1_000_000);
}

#[test]
fn floods_never_evict_proven_flows() {
    for (says, datagrams, shape) in [
        ("SYN", false, Packet::syn as fn(Packet) -> Packet),
        ("ACK", false, |packet| packet),
        ("UDP", true, |packet| packet),
    ] {
        let (mut tables, mut random) = (small(), Random::new(4));
        let proven: Vec<Packet> = (0..12)
            .map(|_| flow(&mut random, datagrams))
            .filter(|packet| {
                let opening = if datagrams { packet.clone() } else { packet.clone().syn() };
                let first = node::send(&tables, &opening.bytes());
                pass_time(&tables, 2);
                let second = node::send(&tables, &packet.bytes());
                first.notes == [Reason::NoteRecorded] && second.journey.known
            })
            .collect();
        assert!(proven.len() > 6, "{} flows found a place", proven.len());
        // New flows would go elsewhere, so a lost entry shows.
        let kept = node::backend(&tables, "l2/a");
        let other = node::backend(&tables, "l2/b");
        node::set_rows(&mut tables, "l2", Row::new(other, other, false));
        for round in 0..20_000 {
            node::send(&tables, &shape(flow(&mut random, datagrams)).bytes());
            if round % 100 == 0 {
                pass_time(&tables, 1);
            }
        }
        for packet in &proven {
            let done = node::send(&tables, &packet.bytes());
            assert!(done.journey.known && done.journey.backend == kept, "{says}: a proven flow was evicted");
        }
    }
}

/// Whatever a flood of ACKs repeats and for how long: half of each bucket is left to flows that were seen to open.
#[test]
fn floods_of_acks_prove_half_of_each_bucket_at_most() {
    let (tables, mut random) = (small(), Random::new(8));
    let proven = || {
        let all = tables.entries(false);
        let is_proven = |bucket: usize| {
            move |(place, word): &&(u32, u64)| *place as usize / WAYS == bucket && Entry(*word).proven()
        };
        [0, 1].map(|bucket| all.iter().filter(is_proven(bucket)).count())
    };
    let flood: Vec<Packet> = (0..12).map(|_| flow(&mut random, false)).collect();
    let mut began = None;
    for round in 0..600 {
        for packet in &flood {
            let done = node::send(&tables, &packet.bytes());
            assert_eq!(done.verdict.reason, Reason::Served, "an unknown connection is refused nothing");
        }
        let so_far = proven();
        assert!(so_far.iter().all(|proven| *proven <= WAYS / 2), "{so_far:?} are proven");
        if so_far != [0, 0] && began.is_none() {
            began = Some(round * 100);
        }
        pass_time(&tables, 100);
    }
    let began = began.expect("what lasts is proven in the end");
    assert!(began >= LASTING as usize, "proven after {began} ms");
    assert_eq!(proven(), [WAYS / 2; 2], "the flood took all that it may");
    for _ in 0..WAYS {
        let ours = flow(&mut random, false);
        let before: usize = proven().iter().sum();
        node::send(&tables, &ours.clone().syn().bytes());
        pass_time(&tables, 2);
        node::send(&tables, &ours.bytes());
        let now = proven();
        assert!(
            now.iter().sum::<usize>() == before + 1 || now.contains(&WAYS),
            "a new connection was kept out: {now:?}"
        );
    }
}

/// In a flood, too, a new flow has time to be proven: the oldest of the unproven goes first.
#[test]
fn the_newest_of_the_unproven_stays_longest() {
    let (tables, mut random) = (small(), Random::new(5));
    for _ in 0..64 {
        node::send(&tables, &flow(&mut random, false).syn().bytes());
        pass_time(&tables, 1);
    }
    for _ in 0..100 {
        let ours = flow(&mut random, false);
        node::send(&tables, &ours.clone().syn().bytes());
        for _ in 0..3 {
            pass_time(&tables, 1);
            node::send(&tables, &flow(&mut random, false).syn().bytes());
        }
        assert!(node::send(&tables, &ours.clone().syn().bytes()).journey.known, "evicted by three others");
    }
}

#[test]
fn expired_entries_make_room_and_full_buckets_serve_all_the_same() {
    let (tables, mut random) = (small(), Random::new(6));
    for _ in 0..100 {
        let packet = flow(&mut random, true);
        node::send(&tables, &packet.bytes());
        pass_time(&tables, 2);
        node::send(&tables, &packet.bytes());
    }
    assert_eq!(tables.entries(false).len(), 16, "two buckets of proven flows");
    let full = node::send(&tables, &flow(&mut random, true).bytes());
    assert_eq!((full.verdict.reason, &full.notes[..]), (Reason::Served, &[Reason::NoteBucketFull][..]));
    let timeout = u64::from(tables.image.node.idle[4]);
    pass_time(&tables, (timeout + 2) * 1_000);
    let late = node::send(&tables, &flow(&mut random, true).bytes());
    assert_eq!((late.verdict.reason, &late.notes[..]), (Reason::Served, &[Reason::NoteEvicted][..]));
}

/// Whoever looks at all entries reads the time once, and packets come while it looks.
#[test]
fn flows_that_a_packet_touches_during_a_sweep_stay() {
    const SECOND: u64 = 1_000_000_000;
    let mut random = Random::new(7);
    for _ in 0..200 {
        let (tables, packet) = (small(), flow(&mut random, false));
        tables.now.set((random.number() % 20_000 + 1) * SECOND - 3_000_000);
        node::send(&tables, &packet.clone().syn().bytes());
        pass_time(&tables, 2);
        node::send(&tables, &packet.bytes());
        let began = tables.now.get();
        pass_time(&tables, 1 + random.number() % 30_000);
        node::send(&tables, &packet.bytes());
        let (key, idle) = (tables.image.node.hash_key, tables.image.node.idle);
        let swept = tables.flows.sweep((0, 1), &key, |entry, record| is_over(entry, record, &idle, began), |_| {});
        assert_eq!(swept, 0, "a flow was swept that had a packet just now");
        assert!(node::send(&tables, &packet.bytes()).journey.known);
    }
}

proptest! {
    #[test]
    fn what_was_not_seen_to_open_must_last(
        (now, passed) in (10_000_000..20_000_000u64, 0..8_128u64), state in proptest::sample::select(vec![1, 2, 3, 4, 5, 6, 7]),
    ) {
        let state = State::from_bits(state);
        let entry = Entry::first(1, 1, state, false, (now - passed) * 1_000_000);
        let must_last = matches!(state, State::TakenUp | State::Closing);
        prop_assert_eq!(entry.must_last(), must_last);
        prop_assert_eq!(entry.proves(now * 1_000_000), passed >= if must_last { LASTING } else { 1 });
        prop_assert!(!Entry::first(1, 1, state, false, now * 1_000_000 + 3_000_000).proves(now * 1_000_000), "another CPU's");
        prop_assert!(!entry.touched(state, true, now * 1_000_000).must_last());
    }

    #[test]
    fn entries_expire_once_their_state_allows_no_more_idle_time(
        (now, passed, ahead) in (10_000_000..20_000_000u64, 0..8_000u64, 0..64u64), limit in 1..7_200u16,
    ) {
        const MILLISECOND: u64 = 1_000_000;
        let (second, idle) = (1_000 * MILLISECOND, [limit; 8]);
        let first = |at| Entry::first(1, 1, State::Established, false, at);
        let proven = |at| first(at).touched(State::Established, true, at);
        let (seconds, milliseconds) = (now * second, now * MILLISECOND);
        prop_assert_eq!(proven(seconds - passed * second).expired(&idle, seconds), passed > u64::from(limit));
        prop_assert_eq!(proven(seconds - passed * second).idle(seconds), passed);
        let unproven = first(milliseconds - passed * MILLISECOND);
        prop_assert_eq!(unproven.expired(&idle, milliseconds), passed >= (u64::from(limit) + 1) * 1_000);
        for (entry, now) in [(proven(seconds + ahead * second), seconds), (first(milliseconds + ahead * MILLISECOND), milliseconds)] {
            prop_assert!(entry.idle(now) == 0 && !entry.expired(&idle, now));
        }
    }
}
