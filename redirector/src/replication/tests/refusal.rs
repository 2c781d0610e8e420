//! Batches that are refused, and flows that are not taken.

use redirector_ebpf::tables::flow::State as FlowState;

use super::world::{CLUSTER, Node, SECOND, World, key};
use crate::replication::Received;
use crate::replication::receive::Taken;
use crate::replication::wire::{Answer, BatchWriter, FlowCopy, Header, Refused, Verdict};

const HEADER: Header =
    Header { cluster: CLUSTER, sender: 1, incarnation: 9, sequence: 5, receiver: 2, complete: true, as_of: 1 };

fn flow(port: u16) -> FlowCopy {
    FlowCopy {
        key: key(port),
        state: FlowState::Established,
        service: 0,
        backend: 0,
        idle: 3,
        age: 60,
        version: 4,
        origin: 1,
    }
}

fn batch(header: Header, flows: &[FlowCopy], backend: &str) -> Vec<u8> {
    let mut writer = BatchWriter::new(header, 10_000);
    flows.iter().for_each(|flow| writer.push(flow, "web", backend).expect("there is room"));
    writer.finish()
}

/// Node 2, which nobody has told anything.
fn receive(world: &mut World, from: u8, bytes: &[u8]) -> Taken {
    let now = world.now;
    let Node { receiver, flows, names, .. } = world.node_mut(2);
    receiver.handle_batch(from, bytes, flows, names, now)
}

fn verdict(taken: &Taken) -> (Verdict, u64) {
    let answer = Answer::read(&taken.answer, CLUSTER).expect("an answer that can be read");
    (answer.verdict, answer.sequence)
}

#[test]
fn nothing_of_a_refused_batch_counts() {
    let mut world = World::new(2);
    let sound = batch(HEADER, &[flow(1)], "pool/b1");
    let mut damaged = sound.clone();
    damaged[60] ^= 1;
    for (bytes, from, refused, answered) in [
        (damaged, 1, Refused::Damaged, Verdict::Damaged),
        (sound[..50].to_vec(), 1, Refused::Damaged, Verdict::Damaged),
        (sound.clone(), 3, Refused::Absurd("sender"), Verdict::Refused),
        (batch(Header { cluster: 8, ..HEADER }, &[], ""), 1, Refused::Cluster(8), Verdict::Refused),
        (vec![0; 300 << 10], 1, Refused::Absurd("length"), Verdict::Refused),
    ] {
        let taken = receive(&mut world, from, &bytes);
        assert_eq!((taken.refused, verdict(&taken).0), (Some(refused), answered));
    }
    let node = world.node(2);
    assert!(node.flows.is_empty() && node.live.is_empty() && world.complete(2).is_empty());
    assert_eq!(node.receiver.counters, Received { damaged: 2, refused: 3, ..Received::default() });
    assert_eq!(verdict(&receive(&mut world, 1, &sound)), (Verdict::Taken, 5));
    assert_eq!(world.node(2).flows.len(), 1);
    assert!(world.complete(2).contains(&1));
}

#[test]
fn a_batch_that_was_overtaken_changes_nothing() {
    let mut world = World::new(2);
    let closing = FlowCopy { state: FlowState::Closing, ..flow(1) };
    receive(&mut world, 1, &batch(Header { sequence: 6, ..HEADER }, &[closing], "pool/b1"));
    let late = batch(HEADER, &[flow(1), flow(2)], "pool/b1");
    assert_eq!(verdict(&receive(&mut world, 1, &late)), (Verdict::Stale, 6));
    assert_eq!(world.node(2).flow(1).map(|flow| flow.state()), Some(FlowState::Closing));
    assert!(world.node(2).flow(2).is_none());
    // Another life of the sender's counts from the beginning.
    let reborn = batch(Header { incarnation: 10, ..HEADER }, &[flow(2)], "pool/b1");
    assert_eq!(verdict(&receive(&mut world, 1, &reborn)), (Verdict::Taken, 5));
}

#[test]
fn who_speaks_to_an_earlier_life_makes_nobody_complete() {
    let mut world = World::new(2);
    receive(&mut world, 1, &batch(Header { receiver: 3, ..HEADER }, &[], ""));
    assert!(world.complete(2).is_empty());
    receive(&mut world, 1, &batch(Header { sequence: 6, as_of: 0, ..HEADER }, &[], ""));
    assert!(world.complete(2).is_empty(), "by an older slot table");
    receive(&mut world, 1, &batch(Header { sequence: 7, ..HEADER }, &[], ""));
    assert!(world.complete(2).contains(&1));
}

#[test]
fn unknown_names_and_flows_that_are_over_are_not_taken() {
    let mut world = World::new(2);
    let unknown = receive(&mut world, 1, &batch(HEADER, &[flow(1), flow(2)], "pool/nobody"));
    assert_eq!(Answer::read(&unknown.answer, CLUSTER).unwrap().missed, [0, 1]);
    let over = FlowCopy { state: FlowState::Closing, idle: 40, ..flow(3) };
    let taken = receive(&mut world, 1, &batch(Header { sequence: 6, ..HEADER }, &[over], "pool/b1"));
    assert!(Answer::read(&taken.answer, CLUSTER).unwrap().missed.is_empty());
    assert!(world.node(2).flows.is_empty());
    let counters = world.node(2).receiver.counters;
    assert_eq!((counters.unknown_names, counters.kept, counters.applied), (2, 1, 0));
}

/// Whatever a peer answers, its flows wait and are sent again, and nobody else's are touched.
#[test]
fn answers_that_lie_move_nothing() {
    let mut world = World::new(2);
    world.record(1, 1, 1, FlowState::Established);
    let now = world.now + SECOND;
    let Node { machine, flows, names, .. } = world.node_mut(1);
    machine.handle_connected(&[2]);
    machine.handle_tick(flows, now);
    machine.handle_tick(flows, now + SECOND);
    let mut at = now + SECOND;
    let sound =
        Answer { verdict: Verdict::Taken, node: 2, cluster: CLUSTER, incarnation: 7, sequence: 0, missed: Vec::new() };
    for lie in [
        Answer { sequence: 4_711, ..sound.clone() },
        Answer { node: 3, ..sound.clone() },
        Answer { verdict: Verdict::Stale, sequence: u64::MAX, ..sound.clone() },
        Answer { verdict: Verdict::Stale, sequence: 0, ..sound.clone() },
        Answer { verdict: Verdict::Refused, ..sound.clone() },
        Answer { incarnation: 8, missed: (0..=u16::MAX).collect(), ..sound },
    ] {
        at += 10 * SECOND;
        machine.handle_tick(flows, at);
        let batches = machine.poll_batches(flows, names, at);
        assert_eq!(batches.len(), 1);
        machine.handle_answer(2, batches[0].sequence, Some(lie), at);
        assert_eq!(machine.counters(at)[&2].acknowledged, 0);
    }
}

#[test]
fn stamps_and_ages_are_as_they_were_elsewhere() {
    let mut world = World::new(2);
    receive(&mut world, 1, &batch(HEADER, &[flow(1)], "pool/b2"));
    let flow = world.node(2).flow(1).expect("it was taken");
    assert!(flow.entry.proven() && flow.entry.idle(world.now) == 4, "a second more, since clocks are cut to seconds");
    assert_eq!((flow.record.since, flow.record.version), (world.now - 60 * SECOND, 4));
    assert_eq!((world.backend(2, 1), flow.record.service), (Some("pool/b2"), 102));
}
