//! Clusters whose majority is lost, witnesses, and disks that cannot be read yet.

use std::collections::BTreeSet;

use super::net::{Fate, Net, text};
use crate::consensus::frame::{self, FrameError, Kind};
use crate::consensus::machine::{Event, NotTaken, RecoverError, Role};
use crate::consensus::state::{Command, MemberState, Refusal};
use crate::consensus::wire::Snapshot;

/// Surveys, waits for answers and recovers, as the driver does.
fn recover(net: &mut Net, on: u8, lost: &[u8]) -> Result<(), RecoverError> {
    net.machines.get_mut(&on).unwrap().survey();
    net.run(50);
    let lost: BTreeSet<u8> = lost.iter().copied().collect();
    let done = net.machines.get_mut(&on).unwrap().recover(&lost);
    net.run(1);
    done
}

/// Lets strangers in as a leader's planner does, until all of these vote.
fn let_in(net: &mut Net, ids: &[u8]) {
    for &id in ids {
        net.seat(id);
    }
}

#[test]
fn a_lost_majority_is_given_up_and_changes_are_possible_again() {
    let mut net = Net::of(3, 71);
    net.commit(&text("kept"));
    net.until_agreed();
    let slots = net.state(1).slots.clone();
    for id in [2, 3] {
        net.kill(id);
    }
    net.run(200);
    assert_eq!(net.propose(1, &text("no")), Some(Fate::Refused(NotTaken::NoQuorum)));
    let before = net.state(1).clone();
    recover(&mut net, 1, &[2, 3]).unwrap();
    let state = net.state(1).clone();
    assert!(state.version > before.version);
    assert_eq!(state.specification.text, before.specification.text);
    // Those who were given up may not be dead, and agree on configurations of their own until they hear of it.
    assert!(state.specification.version > before.specification.version + 100, "{:?}", state.specification);
    assert_eq!(state.members.keys().collect::<Vec<_>>(), [&1]);
    for (now, then) in state.slots.iter().zip(&slots) {
        assert!(now.version >= then.version && now.ranks == [1, 0, 0, 0], "{now:?}");
    }
    assert!(matches!(net.propose(1, &text("again")), Some(Fate::Committed { outcome: Ok(()), of: 1, .. })));

    // It is on the disk.
    net.kill(1);
    net.start(1);
    net.run(100);
    assert_eq!(net.leader(), 1);
    assert_eq!(net.state(1).specification.text, "again");

    // Who comes back, a majority of before, gives way and joins as somebody new.
    net.is_divided = true;
    for id in [2, 3] {
        net.start(id);
    }
    net.until("both set their logs aside", |net| [2, 3].iter().all(|id| net.state(*id).version == 0));
    for id in [2, 3] {
        assert!(net.events.contains(&(id, Event::GivenUp(1))), "{:?}", net.events);
        assert_eq!(net.machines[&id].counters().given_up, 1);
    }
    net.is_divided = false;
    let_in(&mut net, &[2, 3]);
    net.until_agreed();
    assert_eq!(net.state(2).specification.text, "again");
    assert_eq!(net.state(3).members[&3].state(), MemberState::Returning);
}

#[test]
fn what_a_lost_majority_may_have_reported_as_done_is_kept() {
    let mut net = Net::of(3, 72);
    let leader = net.leader();
    let left = (1..=3).find(|id| *id != leader).unwrap();
    let other = (1..=3).find(|id| ![leader, left].contains(id)).unwrap();
    net.until_agreed();
    // The entry reaches the node that is left, and word that it is committed does not.
    let proposal = net.machines.get_mut(&leader).unwrap().propose(&text("acknowledged"));
    for _ in 0..200 {
        net.run(1);
        let committed = net.fates.contains_key(&(leader, proposal));
        let status = net.machines[&left].status();
        if status.last > status.commit || committed {
            break;
        }
    }
    net.kill(leader);
    net.kill(other);
    recover(&mut net, left, &[leader, other]).unwrap();
    assert_eq!(net.state(left).specification.text, "acknowledged");
}

#[test]
fn other_survivors_keep_their_slots_and_get_new_seats() {
    let mut net = Net::of(5, 73);
    net.until_agreed();
    for id in [3, 4, 5] {
        net.kill(id);
    }
    net.run(200);
    let old = net.state(2).members[&2].seat;
    recover(&mut net, 1, &[3, 4, 5]).unwrap();
    assert_eq!(net.state(1).members[&2].state(), MemberState::Up, "its data plane serves on");
    assert!(net.state(1).slots.iter().all(|slot| slot.ranks.iter().all(|rank| [0, 1, 2].contains(rank))));
    assert!(net.state(1).slots.iter().any(|slot| slot.ranks[0] == 2));
    let_in(&mut net, &[2]);
    net.until_agreed();
    let seat = net.state(1).members[&2].seat;
    assert!(seat.unwrap().votes && seat != old);
}

#[test]
fn who_answers_is_not_given_up_and_who_does_not_must_be_named() {
    let mut net = Net::of(3, 74);
    let majority = recover(&mut net, 1, &[2]);
    assert!(matches!(&majority, Err(RecoverError::Majority(there)) if there.len() == 3), "{majority:?}");
    net.until_agreed();

    let mut net = Net::of(5, 75);
    net.until_agreed();
    for id in [4, 5, 3] {
        net.kill(id);
    }
    net.run(200);
    let before = net.state(1).clone();
    for (lost, expected) in [
        (&[2u8, 3, 4, 5][..], "node 2 is to be given up, and answers"),
        (&[4, 5], "node 3 is a member, does not answer"),
        (&[1, 3, 4, 5], "node 1 is this one"),
        (&[3, 4, 5, 9], "node 9 is no member"),
    ] {
        let refused = recover(&mut net, 1, lost).unwrap_err().to_string();
        assert!(refused.contains(expected) && refused.contains("nothing was changed"), "{lost:?}: {refused}");
    }
    assert_eq!(*net.state(1), before);
    let mut empty = Net::empty(2, 76);
    assert!(matches!(recover(&mut empty, 1, &[2]), Err(RecoverError::NotBegun)));
}

#[test]
fn a_full_disk_keeps_the_cluster_as_it_was() {
    let mut net = Net::of(3, 77);
    net.until_agreed();
    net.kill(2);
    net.kill(3);
    net.run(200);
    net.machines.get_mut(&1).unwrap().disk_mut().unwrap().is_full = true;
    let before = net.state(1).clone();
    let refused = recover(&mut net, 1, &[2, 3]).unwrap_err();
    assert!(matches!(refused, RecoverError::Io(_) | RecoverError::NotReady), "{refused}");
    assert_eq!(net.state(1).members, before.members);
    net.machines.get_mut(&1).unwrap().disk_mut().unwrap().is_full = false;
    net.run(100);
    recover(&mut net, 1, &[2, 3]).unwrap();
    net.commit(&text("after"));
}

fn with_witness(seed: u64) -> Net {
    let mut net = Net::empty(3, seed);
    net.kill(3);
    net.witnesses.insert(3);
    net.start(3);
    net.machines.get_mut(&1).unwrap().bootstrap(|disk| super::net::genesis(1, disk)).unwrap();
    let_in(&mut net, &[2, 3]);
    net.commit(&Command::Move { first: 0, ranks: vec![[1, 2, 0, 0]; super::net::SLOTS as usize] });
    net.commit(&Command::NodeUp { id: 2, incarnation: 1 });
    net.until_agreed();
    net
}

#[test]
fn a_witness_votes_and_is_no_node() {
    let mut net = with_witness(78);
    let state = net.state(1).clone();
    assert_eq!(state.members[&3].state(), MemberState::Witness);
    assert!(state.voters().eq([1, 2, 3]) && state.weights().iter().all(|(id, _)| *id != 3));
    assert!(!state.is_node(3) && !state.is_present(3));
    for (command, refusal) in [
        (Command::Drain(3), Refusal::Witness(3)),
        (Command::NodeReturning { id: 3, incarnation: 9 }, Refusal::Witness(3)),
        (Command::NodeDown { id: 3, incarnation: 0 }, Refusal::Stale(3)),
        (Command::Move { first: 0, ranks: vec![[3, 1, 0, 0]] }, Refusal::Ranks { first: 0 }),
        (Command::PlanVips([("10.0.0.1".to_owned(), vec![3])].into()), Refusal::Unknown(3)),
    ] {
        let leader = net.leader();
        let fate = net.propose(leader, &command);
        assert!(matches!(&fate, Some(Fate::Committed { outcome: Err(why), .. }) if *why == refusal), "{fate:?}");
    }
    // Either node may die, and the witness.
    for victim in 1..=3 {
        net.kill(victim);
        net.commit(&text(&format!("without {victim}")));
        net.start(victim);
        net.until_agreed();
    }
    // A witness that leads has a node lead in its place.
    for _ in 0..20 {
        if net.leader() == 3 {
            break;
        }
        let leader = net.leader();
        net.cut_off(&[leader]);
        net.run(200);
        net.heal();
        net.until_agreed();
    }
    if net.leader() == 3 {
        net.machines.get_mut(&3).unwrap().resign();
        net.until("a node leads", |net| net.machines[&3].status().role == Role::Follower);
        assert_ne!(net.leader(), 3);
    }
    let refused = {
        net.kill(1);
        net.kill(2);
        net.run(100);
        recover(&mut net, 3, &[1, 2])
    };
    assert!(matches!(refused, Err(RecoverError::Witness)), "{refused:?}");
}

#[test]
fn what_older_versions_know_is_written_as_they_read_it() {
    let net = Net::of(3, 79);
    let state = net.state(1).clone();
    let snapshot = Snapshot { term: 2, voters: vec![1], learners: Vec::new(), state };
    let sealed = snapshot.seal();
    assert_eq!(sealed[1], 1, "nobody needs a newer version for it");
    assert_eq!(Snapshot::open(snapshot.index(), &sealed), Ok(snapshot.clone()));
    let mut given_up = snapshot.clone();
    given_up.state.given_up.insert(77);
    let newer = given_up.seal();
    assert_eq!((newer[1], Snapshot::open(given_up.index(), &newer)), (2, Ok(given_up)));
    assert_eq!(text("a").seal()[1], 1);
    let witness = Command::Witness { id: 3, disk: 1, address: String::new() };
    assert_eq!((witness.seal()[1], Command::open(&witness.seal())), (2, Ok(witness)));
    let warm = Command::Warm { pool: "web".to_owned(), steps: [("one".to_owned(), 3)].into() };
    assert_eq!((warm.seal()[1], Command::open(&warm.seal())), (3, Ok(warm)));
    let mut warming = snapshot.clone();
    warming.state.warming.insert("web".to_owned(), [("one".to_owned(), 3)].into());
    let newest = warming.seal();
    assert_eq!((newest[1], Snapshot::open(warming.index(), &newest)), (3, Ok(warming)));
    let elapse = Command::Elapse { pool: "web".to_owned(), version: 3, parts: [("one".to_owned(), 3)].into() };
    assert_eq!((elapse.seal()[1], Command::open(&elapse.seal())), (4, Ok(elapse)));
    let mut drains = snapshot.clone();
    drains.state.drains.insert("web".to_owned(), [("one".to_owned(), 3)].into());
    let newest = drains.seal();
    assert_eq!((newest[1], Snapshot::open(drains.index(), &newest)), (4, Ok(drains)));
    let panic = Command::Panic([("web".to_owned(), 33)].into());
    assert_eq!((panic.seal()[1], Command::open(&panic.seal())), (5, Ok(panic)));
    let mut panicking = snapshot.clone();
    panicking.state.panicking.insert("web".to_owned(), 33);
    let newest = panicking.seal();
    assert_eq!((newest[1], Snapshot::open(panicking.index(), &newest)), (5, Ok(panicking)));
    // An unknown format is told from damage, whatever it holds.
    let future = frame::seal_as(Kind::Snapshot, 6, snapshot.index(), &snapshot);
    let refused = Snapshot::open(snapshot.index(), &future).unwrap_err();
    assert!(matches!(refused, FrameError::Newer { found: 6, known: 5 }) && refused.to_string().contains("upgrade"));
}

#[test]
fn a_disk_that_cannot_be_read_yet_is_read_when_it_can_be() {
    let mut net = Net::of(3, 80);
    net.until_agreed();
    let seat = net.state(1).members[&3].seat;
    let disk = net.kill(3);
    (disk.is_full, disk.is_unreadable) = (true, true);
    net.start(3);
    net.run(300);
    assert_eq!((net.machines[&3].status().role, net.state(3).version), (Role::Unread, 0));
    assert!(net.events.iter().any(|(id, event)| *id == 3 && matches!(event, Event::DiskFails(_))));
    net.commit(&text("meanwhile"));
    let disk = net.machines.get_mut(&3).unwrap().disk_mut().unwrap();
    (disk.is_full, disk.is_unreadable) = (false, false);
    net.until("it follows", |net| net.machines[&3].status().role == Role::Follower);
    net.until_agreed();
    assert_eq!(net.state(1).members[&3].seat, seat, "it is still who it was");
    assert!(net.events.contains(&(3, Event::DiskWorks)));
    assert_eq!(net.machines[&3].counters().reborn, 0);
}
