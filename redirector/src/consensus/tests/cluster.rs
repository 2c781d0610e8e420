//! Clusters of machines under loss, cuts, restarts and lost disks.

use proptest::prelude::*;

use super::net::{Fate, Net, genesis, text};
use crate::consensus::frame::{self, Kind};
use crate::consensus::machine::{BootstrapError, Event, NotTaken, Role};
use crate::consensus::state::{Command, Refusal};
use crate::consensus::wire::{Body, Entry, Letter, Step, number};

#[test]
fn a_cluster_of_one_works_at_once() {
    let mut net = Net::empty(1, 1);
    let machine = net.machines.get_mut(&1).unwrap();
    machine.bootstrap(|disk| genesis(1, disk)).unwrap();
    assert_eq!(machine.status().role, Role::Leader);
    assert!(matches!(machine.bootstrap(|disk| genesis(1, disk)), Err(BootstrapError::Begun)));
    let fate = net.propose(1, &text("a"));
    assert!(matches!(fate, Some(Fate::Committed { outcome: Ok(()), durable_on: 1, of: 1, .. })), "{fate:?}");

    net.kill(1);
    net.start(1);
    assert_eq!(net.machines[&1].status().role, Role::Leader);
    assert_eq!(net.state(1).specification.text, "a");
}

#[test]
fn a_node_with_peers_never_begins_a_cluster_by_itself() {
    let mut net = Net::empty(3, 2);
    net.run(1000);
    for machine in net.machines.values() {
        assert_eq!((machine.status().role, machine.state().version), (Role::Learner, 0));
    }
    assert_eq!(net.propose(1, &text("a")), Some(Fate::Refused(NotTaken::NoSeat)));
}

#[test]
fn three_nodes_agree() {
    let mut net = Net::of(3, 3);
    let leader = net.leader();
    let fate = net.propose(leader, &text("a"));
    let Some(Fate::Committed { outcome: Ok(()), durable_on: 2..=3, of: 3, .. }) = fate else { panic!("{fate:?}") };
    net.until_agreed();
    assert!(net.machines.values().all(|machine| machine.state().specification.text == "a"));
    let follower = (1..=3).find(|&id| id != leader).unwrap();
    assert_eq!(net.propose(follower, &text("b")), Some(Fate::Refused(NotTaken::NotLeader(leader))));
    let stale = Command::Apply { text: "b".to_owned(), expect: Some(1), pools: Default::default() };
    let refused = Refusal::Version { present: 2, expected: 1 };
    assert!(matches!(net.propose(leader, &stale), Some(Fate::Committed { outcome: Err(why), .. }) if why == refused));
    assert!(net.machines[&leader].status().is_redundant);
}

#[test]
fn without_a_majority_nothing_changes_and_the_answer_says_so() {
    let mut net = Net::of(3, 4);
    let leader = net.leader();
    net.cut_off(&[leader]);
    net.run(100);
    assert_eq!(net.propose(leader, &text("minority")), Some(Fate::Refused(NotTaken::NoQuorum)));
    assert!(!net.machines[&leader].status().is_redundant);
    let index = net.commit(&text("majority"));
    net.heal();
    net.until_agreed();
    assert!(net.state(leader).version >= index);
    assert_eq!(net.state(leader).specification.text, "majority");
}

#[test]
fn a_proposal_in_a_cut_is_unknown_or_replaced_but_never_reported_done() {
    let mut net = Net::of(3, 5);
    let leader = net.leader();
    net.cut_off(&[leader]);
    let fate = net.propose(leader, &text("lost"));
    assert!(matches!(fate, Some(Fate::Unknown | Fate::Refused(_))), "{fate:?}");
    net.commit(&text("kept"));
    net.heal();
    net.until_agreed();
    assert_eq!(net.state(leader).specification.text, "kept");
}

#[test]
fn a_lost_disk_comes_back_as_a_learner_under_a_new_uuid() {
    let mut net = Net::of(3, 6);
    let old = net.state(1).members[&2].seat.unwrap();
    *net.kill(2) = Default::default();
    net.start(2);
    net.run(200);
    assert_eq!(net.machines[&2].status().role, Role::Learner);
    assert_eq!(net.state(2).version, 0, "nobody counts on it before it has a seat");
    net.seat(2);
    assert_ne!(net.state(2).members[&2].seat.unwrap().disk, old.disk);
    net.until_agreed();
}

#[test]
fn a_damaged_vote_is_a_lost_disk() {
    for kind in [Kind::Position, Kind::Identity] {
        let mut net = Net::of(3, 7);
        let disk = net.kill(3);
        disk.records.get_mut(&(kind as u8, 0)).unwrap()[18] ^= 1;
        net.start(3);
        net.run(1);
        assert!(matches!(net.events.last(), Some((3, Event::Role { .. }))));
        assert!(net.events.iter().any(|(id, event)| *id == 3 && matches!(event, Event::Reborn { .. })));
        assert_eq!((net.machines[&3].status().role, net.state(3).version), (Role::Learner, 0));
        net.seat(3);
        net.until_agreed();
    }
}

#[test]
fn a_damaged_entry_or_snapshot_is_fetched_from_a_peer() {
    let mut net = Net::of(3, 8);
    for round in 0..70 {
        net.commit(&text(&round.to_string()));
    }
    net.until_agreed();
    let digest = net.state(1).digest();
    for kind in [Kind::Entry, Kind::Mark, Kind::Snapshot] {
        let seat = net.state(3).members[&3].seat;
        let disk = net.kill(3);
        let (_, record) = disk.records.range_mut((kind as u8, 0)..=(kind as u8, u64::MAX)).next_back().unwrap();
        let middle = record.len() / 2;
        record[middle] ^= 0x10;
        net.start(3);
        net.until("the repair", |net| net.machines[&3].status().role == Role::Follower);
        net.until_agreed();
        assert_eq!(net.state(3).members[&3].seat, seat, "the node is still who it was");
        assert_eq!(net.state(3).digest(), digest);
        let counters = net.machines[&3].counters();
        let found = usize::from(kind != Kind::Mark);
        assert_eq!((counters.damaged, counters.repaired, counters.reborn), (found, found, 0), "{kind:?}");
    }
}

#[test]
fn nodes_that_are_all_damaged_make_each_other_whole() {
    let mut net = Net::of(3, 14);
    for round in 0..20 {
        net.commit(&text(&round.to_string()));
    }
    net.until_agreed();
    let digest = net.state(1).digest();
    for id in 1..=3u8 {
        let disk = net.kill(id);
        let entries = (Kind::Entry as u8, 0)..=(Kind::Entry as u8, u64::MAX);
        let (_, record) = disk.records.range_mut(entries).rev().nth(usize::from(id)).unwrap();
        record[20] ^= 1;
    }
    (1..=3).for_each(|id| net.start(id));
    net.until_agreed();
    assert!(net.machines.values().all(|machine| machine.counters().repaired == 1 && machine.counters().reborn == 0));
    assert_eq!(net.state(1).specification.text, "19");
    assert_eq!(net.state(1).slots_digest(), net.state(3).slots_digest());
    assert_ne!(net.state(1).digest(), digest, "a new leader has begun its term");
}

#[test]
fn a_command_that_only_newer_versions_know_stops_this_one() {
    let mut net = Net::empty(1, 15);
    net.machines.get_mut(&1).unwrap().bootstrap(|disk| genesis(1, disk)).unwrap();
    net.commit(&text("a"));
    let disk = net.kill(1);
    let (&(kind, index), record) = disk
        .records
        .range((Kind::Entry as u8, 0)..)
        .find(|(key, record)| {
            frame::open::<Entry>(Kind::Entry, key.1, record).is_ok_and(|entry| !entry.data.is_empty())
        })
        .unwrap();
    let mut entry: Entry = frame::open(Kind::Entry, index, record).unwrap();
    entry.data[1] = 9;
    let body = entry.data.len() - 4;
    let checksum = crc32c::crc32c(&entry.data[..body]).to_le_bytes();
    entry.data[body..].copy_from_slice(&checksum);
    disk.records.insert((kind, index), frame::seal(Kind::Entry, index, &entry));
    net.start(1);
    assert_eq!(net.machines[&1].status().role, Role::Stopped);
    net.run(1);
    let (_, Event::Stopped(why)) = net.events.last().unwrap() else { panic!("{:?}", net.events) };
    assert!(why.contains("format 9") && why.contains("upgrade this node"), "{why}");
    assert_eq!(net.state(1).specification.text, "genesis", "nothing after it is applied either");
}

#[test]
fn a_full_disk_neither_votes_nor_stops_anybody_and_recovers() {
    let mut net = Net::of(3, 9);
    let leader = net.leader();
    net.machines.get_mut(&leader).unwrap().disk_mut().unwrap().is_full = true;
    let fate = net.propose(leader, &text("full"));
    assert!(!matches!(fate, Some(Fate::Committed { .. })), "{fate:?}");
    assert_eq!(net.propose(leader, &text("again")), Some(Fate::Refused(NotTaken::Disk)));
    net.commit(&text("without it"));
    net.machines.get_mut(&leader).unwrap().disk_mut().unwrap().is_full = false;
    net.until_agreed();
    assert_eq!(net.state(leader).specification.text, "without it");
    let told: Vec<&Event> = net.events.iter().filter(|(id, _)| *id == leader).map(|(_, event)| event).collect();
    assert!(told.iter().any(|event| matches!(event, Event::DiskFails(_))));
    assert!(told.contains(&&Event::DiskWorks));
}

#[test]
fn a_late_node_catches_up_by_snapshot() {
    let mut net = Net::of(3, 10);
    net.cut_off(&[3]);
    for round in 0..400 {
        net.commit(&text(&round.to_string()));
    }
    net.heal();
    net.loss = 20;
    net.until_agreed();
    assert_eq!(net.state(3).specification.text, "399");
}

#[test]
fn a_leader_that_leaves_hands_over_first() {
    let mut net = Net::of(3, 11);
    let leader = net.leader();
    assert_eq!(net.propose(leader, &Command::Leave(leader)), Some(Fate::Refused(NotTaken::Leads)));
    net.until("another leader", |net| net.machines[&leader].status().role == Role::Follower);
    net.commit(&Command::Leave(leader));
    net.run(20);
    let left = (1..=3).find(|&id| id != leader).unwrap();
    assert!(!net.state(left).members.contains_key(&leader));
    net.run(500);
    assert!(!net.state(left).members.contains_key(&leader), "who has left does not come back by itself");
    net.commit(&text("the two others go on"));
}

#[test]
fn what_peers_must_not_say_is_refused_and_counted() {
    let mut net = Net::of(3, 12);
    let leader = net.leader();
    let follower = (1..=3).find(|&id| id != leader).unwrap();
    let machine = net.machines.get_mut(&follower).unwrap();
    machine.handle_message(leader, b"short");
    machine.handle_message(leader, &[0; 100]);
    assert_eq!(machine.counters().bad_checksums, 2);
    let seat = |id: u8| (machine.state().members[&id].seat.unwrap().disk, machine.state().members[&id].seat.unwrap());
    let ((disk, _), (own, _)) = (seat(leader), seat(follower));
    let status = machine.status();
    let step = Step { to: number(follower, own), from: number(leader, disk), term: status.term, ..Step::default() };
    let heartbeat = Step { kind: 6, commit: status.last + 5, ..step.clone() };
    let snapshot = Step { kind: 5, snapshot: Some(vec![1; 50]), ..step.clone() };
    let entry = Entry { term: status.term, index: status.last + 1, seats: false, data: vec![7; 40], context: vec![] };
    let damaged =
        Step { kind: 1, index: status.last, log_term: status.term, entries: vec![entry.clone()], ..step.clone() };
    let rewritten = Entry { index: status.commit, term: 0, data: vec![], ..entry };
    let lie = Step { kind: 1, index: status.commit - 1, log_term: 0, entries: vec![rewritten], ..step.clone() };
    let unknown = Step { kind: 77, ..step.clone() };
    for step in [heartbeat, snapshot, damaged, lie, unknown] {
        machine.handle_message(leader, &Letter { disk, body: Body::Raft(step) }.seal(7));
    }
    assert_eq!(machine.counters().implausible, 5);
    machine.handle_message(leader, &Letter { disk: 5, body: Body::Raft(step.clone()) }.seal(7));
    machine.handle_message(leader, &Letter { disk, body: Body::Raft(Step { to: 5, ..step.clone() }) }.seal(7));
    assert_eq!(machine.counters().wrong_seat, 2);
    machine.handle_message(leader, &Letter { disk, body: Body::Raft(step) }.seal(8));
    assert_eq!(machine.counters().foreign, 1);
    let mut newer = Letter { disk, body: Body::Begun }.seal(7);
    newer[1] = 9;
    let body = newer.len() - 4;
    let checksum = crc32c::crc32c(&newer[..body]);
    newer[body..].copy_from_slice(&checksum.to_le_bytes());
    (0..3).for_each(|_| machine.handle_message(leader, &newer));
    assert_eq!(machine.counters().newer_formats, 3);
    net.commit(&text("nothing lost"));
    net.until_agreed();
    let told: Vec<String> =
        net.events.iter().filter(|(id, _)| *id == follower).map(|(_, event)| event.to_string()).collect();
    let newer: Vec<&String> =
        told.iter().filter(|told| told.contains("in format 9, and this version knows formats up to 2")).collect();
    assert!(newer.len() == 1 && newer[0].starts_with(&format!("node {leader} ")), "{told:?}");
    assert!(newer[0].contains("upgrade this node"), "{newer:?}");
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let run = || {
        let mut net = Net::of(5, 13);
        net.loss = 30;
        net.run(500);
        net.heal();
        net.commit(&text("a"));
        net.until_agreed();
        net.machines.values().map(|machine| machine.status()).collect::<Vec<_>>()
    };
    assert_eq!(run(), run());
}

/// What happens to a cluster.
#[derive(Clone, Debug)]
enum Blow {
    Cut(Vec<u8>),
    OneWay(u8, u8),
    Loss(u64),
    Kill(u8),
    Damage(u8, prop::sample::Index),
    Full(u8),
    Heal,
    Wait(u64),
    Apply(u8),
}

fn blows() -> impl Strategy<Value = Vec<Blow>> {
    let blow = prop_oneof![
        1 => prop::collection::vec(1u8..=5, 1..3).prop_map(Blow::Cut),
        1 => (1u8..=5, 1u8..=5).prop_map(|(from, to)| Blow::OneWay(from, to)),
        1 => (0u64..60).prop_map(Blow::Loss),
        2 => (1u8..=5).prop_map(Blow::Kill),
        1 => (1u8..=5, any::<prop::sample::Index>()).prop_map(|(id, at)| Blow::Damage(id, at)),
        1 => (1u8..=5).prop_map(Blow::Full),
        1 => Just(Blow::Heal),
        2 => (1u64..150).prop_map(Blow::Wait),
        6 => (1u8..=5).prop_map(Blow::Apply),
    ];
    prop::collection::vec(blow, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn what_was_acknowledged_survives(seed: u64, blows in blows()) {
        let mut net = Net::of(5, seed);
        let mut acknowledged = 0;
        for (number, blow) in blows.into_iter().enumerate() {
            match blow {
                Blow::Cut(ids) => net.cut_off(&ids),
                Blow::OneWay(from, to) => drop(net.cut.insert((from, to))),
                Blow::Loss(loss) => net.loss = loss,
                Blow::Kill(id) => {
                    net.kill(id);
                    net.run(20);
                    net.start(id);
                }
                Blow::Damage(id, at) => {
                    let disk = net.kill(id);
                    let entries = disk.records.range_mut((Kind::Entry as u8, 0)..=(Kind::Entry as u8, u64::MAX));
                    let mut records: Vec<_> = entries.map(|(_, record)| record).collect();
                    if !records.is_empty() {
                        let which = at.index(records.len());
                        let record = &mut records[which];
                        let byte = at.index(record.len());
                        record[byte] ^= 0x20;
                    }
                    net.start(id);
                }
                Blow::Full(id) => {
                    let disk = net.machines.get_mut(&id).and_then(|machine| machine.disk_mut());
                    disk.into_iter().for_each(|disk| disk.is_full = !disk.is_full);
                }
                Blow::Heal => net.heal(),
                Blow::Wait(ticks) => net.run(ticks),
                Blow::Apply(id) => {
                    let fate = net.propose(id, &text(&format!("{number}")));
                    if let Some(Fate::Committed { index, .. }) = fate {
                        prop_assert!(index > acknowledged);
                        acknowledged = index;
                    }
                }
            }
        }
        net.heal();
        for machine in net.machines.values_mut() {
            machine.disk_mut().into_iter().for_each(|disk| disk.is_full = false);
        }
        net.until_agreed();
        net.commit(&text("after all"));
        net.until_agreed();
        prop_assert!(net.state(1).version > acknowledged);
        prop_assert!(net.machines.values().all(|machine| machine.counters().reborn == 0));
    }
}

#[test]
fn an_agreed_state_that_differs_is_fetched_anew_and_stays_right_over_a_restart() {
    let mut net = Net::of(3, 21);
    (0..20).for_each(|round| assert!(net.commit(&text(&round.to_string())) > 0));
    net.until_agreed();
    let leader = net.leader();
    let victim = (1..=3).find(|&id| id != leader).unwrap();
    let right = net.state(leader).digest();
    net.machines.get_mut(&victim).unwrap().corrupt(|state| state.slots[3].ranks.swap(0, 1));
    assert_ne!(net.state(victim).digest(), right);
    net.machines.get_mut(&victim).unwrap().refetch(leader);
    net.run(60);
    assert!(net.events.iter().any(|(id, event)| *id == victim && matches!(event, Event::Refetched { .. })));
    net.until_agreed();
    net.kill(victim);
    net.start(victim);
    net.commit(&text("later"));
    net.until_agreed();

    net.events.clear();
    net.machines.get_mut(&victim).unwrap().refetch(leader);
    net.run(600);
    assert!(net.events.is_empty(), "what is right is left alone: {:?}", net.events);
}

#[test]
fn a_second_cluster_is_refused_and_two_that_began_apart_are_told_of() {
    let mut net = Net::empty(3, 22);
    net.machines.get_mut(&1).unwrap().bootstrap(|disk| genesis(1, disk)).unwrap();
    net.machines.get_mut(&2).unwrap().greet();
    net.run(10);
    let second = net.machines.get_mut(&2).unwrap().bootstrap(|disk| genesis(2, disk));
    assert!(matches!(second, Err(BootstrapError::Elsewhere(1))), "{second:?}");
    assert_eq!(net.state(2).version, 0);

    let mut net = Net::empty(3, 23);
    net.is_divided = true;
    net.cut_off(&[2]);
    for id in [1, 2] {
        net.machines.get_mut(&id).unwrap().bootstrap(|disk| genesis(id, disk)).unwrap();
    }
    net.run(200);
    assert!(!net.events.iter().any(|(_, event)| matches!(event, Event::Rival(_))));
    net.heal();
    net.run(200);
    for (id, rival) in [(1, 2), (2, 1)] {
        let told = net.events.iter().filter(|told| **told == (id, Event::Rival(rival))).count();
        assert_eq!(told, 1, "node {id} told so often of node {rival}'s cluster");
    }
}
