//! Whole nodes in virtual time, with a network between them that loses, damages and delays.

mod refusal;
mod world;

use proptest::prelude::*;
use redirector_ebpf::tables::flow::State as FlowState;

use super::State;
use world::{MILLISECOND, SECOND, World};

#[test]
fn a_change_is_with_the_other_owner_within_a_hundred_milliseconds() {
    let mut world = World::new(2);
    world.run(500 * MILLISECOND);
    for port in 0..300 {
        world.record(1, port, 3, FlowState::Established);
        world.run(7 * MILLISECOND);
    }
    world.close(1, 5);
    world.run(100 * MILLISECOND);
    world.assert_same();
    let counters = world.counters(1, 2);
    assert_eq!((counters.state, counters.acknowledged), (State::Current, 301));
    assert!((1_000..=100_000).contains(&counters.lag.max), "{:?}", counters.lag);
}

#[test]
fn a_peer_that_was_away_is_complete_only_once_it_has_everything() {
    let mut world = World::new(2);
    world.connect(1, 2, false);
    for port in 0..4_000 {
        world.record(1, port, 1, FlowState::Established);
    }
    world.run(SECOND);
    assert!(world.node(2).flows.is_empty());
    world.connect(1, 2, true);
    world.run(200 * MILLISECOND);
    let some = world.node(2).flows.len();
    assert!(some > 0 && some <= 400, "{some} flows at 1,000 a second");
    assert_eq!(world.counters(1, 2).state, State::Resynchronising);
    assert!(!world.complete(2).contains(&1));
    world.run(5 * SECOND);
    assert!(world.complete(2).contains(&1));
    assert_eq!(world.counters(1, 2).state, State::Current);
    world.assert_same();
    // Gone, it may miss something again.
    world.connect(1, 2, false);
    world.run(10 * MILLISECOND);
    assert!(!world.complete(2).contains(&1));
}

#[test]
fn a_peer_that_lost_everything_is_given_everything() {
    let mut world = World::new(2);
    (0..200).for_each(|port| world.record(1, port, 1, FlowState::Established));
    world.run(2 * SECOND);
    // Its agent is another one before anybody sees the connection break.
    world.restart(2, true);
    assert!(world.complete(2).is_empty());
    world.run(4 * SECOND);
    world.assert_same();
    assert_eq!((world.node(2).flows.len(), world.counters(1, 2).resynchronisations), (200, 2));
    assert!(world.complete(2).contains(&1));
}

#[test]
fn more_than_can_wait_is_found_again() {
    let mut world = World::new(2);
    world.run(SECOND);
    world.deaf(2, true);
    (0..3_000).for_each(|port| world.record(1, port, 1, FlowState::Established));
    world.run(SECOND);
    assert!(world.counters(1, 2).overflows > 0 && world.counters(1, 2).backlog <= world::PENDING as u64);
    world.deaf(2, false);
    world.run(8 * SECOND);
    world.assert_same();
    assert!(world.complete(2).contains(&1));
}

#[test]
fn lost_events_are_made_up_for() {
    let mut world = World::new(2);
    world.run(SECOND);
    (0..100).for_each(|port| world.record_unheard(1, port, 1));
    world.run(200 * MILLISECOND);
    assert!(world.node(2).flows.is_empty());
    world.nodes.get_mut(&1).unwrap().machine.handle_loss();
    world.run(SECOND);
    world.assert_same();
    assert_eq!(world.node(2).flows.len(), 100);
}

#[test]
fn long_lived_flows_are_refreshed_and_ended_ones_forgotten() {
    let mut world = World::new(2);
    world.run(SECOND);
    world.record(1, 1, 1, FlowState::Closing);
    world.record(1, 2, 1, FlowState::Closing);
    // Three times the idle time of 40 s; the first flow goes on all the while, at node 1 only.
    for _ in 0..120 {
        world.touch(1, 1);
        world.run(SECOND);
        world.sweep();
        let [here, there] = [1, 2].map(|id| world.node(id).flow(1));
        assert!(here.is_some() && there.is_some());
    }
    assert!(world.node(1).flow(2).is_none() && world.node(2).flow(2).is_none());
    assert!(world.counters(1, 2).sent < 20, "{:?}", world.counters(1, 2));
    assert_eq!([1, 2].map(|id| world.node(id).live.len()), [1, 1]);
    // Nothing that goes to and fro keeps a flow alive that has ended.
    world.run(200 * SECOND);
    world.sweep();
    assert!(world.node(1).flow(1).is_none() && world.node(2).flow(1).is_none());
}

#[test]
fn after_a_cut_both_sides_have_one_backend() {
    let mut world = World::new(2);
    world.connect(1, 2, false);
    (0..20).for_each(|port| world.record(1, port, 1, FlowState::Established));
    (0..20).for_each(|port| world.record(2, port, 2, FlowState::Established));
    // The connections go on at node 2, all but the first three.
    world.run(20 * SECOND);
    (3..20).for_each(|port| world.touch(2, port));
    world.connect(1, 2, true);
    world.run(4 * SECOND);
    world.assert_same();
    for port in 0..20 {
        let backend = world.backend(1, port);
        assert_eq!(backend, Some(if port < 3 { "pool/b1" } else { "pool/b2" }), "{port}");
    }
    let lost = [1, 2].map(|id| world.node(id).receiver.counters.conflicts_lost);
    assert_eq!(lost, [17, 3]);
}

/// Copies do not know of a flow's last packets, and must not speak for it: neither for one that goes on, nor against.
#[test]
fn after_a_cut_copies_follow_whoever_serves() {
    for served in [1, 3] {
        let mut world = World::new(4);
        world.copy_to_all();
        [(1, 3), (1, 4), (2, 3), (2, 4)].into_iter().for_each(|(a, b)| world.connect(a, b, false));
        (0..20).for_each(|port| world.record(1, port, 1, FlowState::Established));
        (0..20).for_each(|port| world.record(3, port, 2, FlowState::Established));
        for _ in 0..20 {
            world.run(SECOND);
            (0..20).for_each(|port| world.touch(served, port));
        }
        // The copies meet first.
        for (a, b) in [(2, 4), (2, 3), (1, 4), (1, 3)] {
            world.connect(a, b, true);
            world.run(2 * SECOND);
            (0..20).for_each(|port| world.touch(served, port));
        }
        world.run(12 * SECOND);
        let backend = if served == 1 { "pool/b1" } else { "pool/b2" };
        for (node, port) in (1..=4).flat_map(|node| (0..20).map(move |port| (node, port))) {
            assert_eq!(world.backend(node, port), Some(backend), "{port} at node {node}");
        }
    }
}

#[test]
fn a_damaged_batch_is_sent_again_and_nothing_of_it_counts() {
    let mut world = World::new(2);
    world.run(SECOND);
    world.damage(1);
    (0..50).for_each(|port| world.record(1, port, 1, FlowState::Established));
    while world.node(2).receiver.counters.damaged == 0 {
        world.run(MILLISECOND);
    }
    assert!(world.node(2).flows.is_empty());
    world.run(SECOND);
    world.assert_same();
    assert_eq!((world.counters(1, 2).damaged, world.node(2).receiver.counters.damaged), (1, 1));
}

#[test]
fn flows_whose_names_are_unknown_are_asked_for_until_they_are_known() {
    let mut world = World::new(2);
    world.run(SECOND);
    world.forget_names(2);
    world.record(1, 1, 1, FlowState::Established);
    world.run(2 * SECOND);
    assert!(world.node(2).flows.is_empty());
    assert!(world.node(2).receiver.counters.unknown_names > 0);
    world.learn_names(2);
    world.run(12 * SECOND);
    world.assert_same();
    assert_eq!(world.backend(2, 1), Some("pool/b1"));
}

#[test]
fn a_dead_owners_slots_get_a_second_copy_elsewhere() {
    let mut world = World::new(3);
    (0..600).for_each(|port| world.record(1, port, 1, FlowState::Established));
    world.run(3 * SECOND);
    world.assert_same();
    let before = world.node(3).flows.len();
    world.kill(2);
    world.run(3 * SECOND);
    world.assert_same();
    assert!(before < 600 && world.node(3).flows.len() > before);
    assert!(world.complete(3).contains(&1));
}

#[derive(Clone, Debug)]
enum Fault {
    Record(u8, u16, u8),
    Close(u8, u16),
    Unheard(u8, u16),
    Cut(u8, u8),
    Heal(u8, u8),
    Restart(u8, bool),
    Deaf(u8, bool),
    Damage(u8),
    Lose(u8),
    Wait(u16),
}

fn fault() -> impl Strategy<Value = Fault> {
    let (node, port) = (1..=3u8, 0..400u16);
    prop_oneof![
        30 => (node.clone(), port.clone(), 1..=3u8).prop_map(|(n, p, b)| Fault::Record(n, p, b)),
        10 => (node.clone(), port.clone()).prop_map(|(n, p)| Fault::Close(n, p)),
        3 => (node.clone(), port).prop_map(|(n, p)| Fault::Unheard(n, p)),
        2 => (node.clone(), node.clone()).prop_map(|(a, b)| Fault::Cut(a, b)),
        4 => (node.clone(), node.clone()).prop_map(|(a, b)| Fault::Heal(a, b)),
        1 => (node.clone(), any::<bool>()).prop_map(|(n, all)| Fault::Restart(n, all)),
        2 => (node.clone(), any::<bool>()).prop_map(|(n, deaf)| Fault::Deaf(n, deaf)),
        3 => node.clone().prop_map(Fault::Damage),
        4 => node.prop_map(Fault::Lose),
        20 => (1..800u16).prop_map(Fault::Wait),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Whatever is lost, cut, damaged or restarted: once that is over, every flow is with all that are to have it.
    #[test]
    fn nothing_is_lost_silently(faults in prop::collection::vec(fault(), 1..120)) {
        let mut world = World::new(3);
        for fault in faults {
            match fault {
                Fault::Record(node, port, backend) => world.record(node, port, backend, FlowState::Established),
                Fault::Close(node, port) => world.close(node, port),
                Fault::Unheard(node, port) => {
                    world.record_unheard(node, port, 1);
                    world.nodes.get_mut(&node).unwrap().machine.handle_loss();
                }
                Fault::Cut(a, b) => world.connect(a, b, false),
                Fault::Heal(a, b) => world.connect(a, b, true),
                Fault::Restart(node, everything) => world.restart(node, everything),
                Fault::Deaf(node, deaf) => world.deaf(node, deaf),
                Fault::Damage(node) => world.damage(node),
                Fault::Lose(node) => world.lose_answer(node),
                Fault::Wait(time) => world.run(u64::from(time) * MILLISECOND),
            }
        }
        for node in 1..=3 {
            world.deaf(node, false);
            (1..=3).for_each(|other| world.connect(node, other, true));
        }
        world.run(25 * SECOND);
        world.assert_same();
        for node in 1..=3 {
            prop_assert_eq!(world.complete(node).len(), 2);
        }
    }
}
