//! What is noted of packets that speak of their path: SYNs, once more or not, and resets.

use redirector::dataplane::memory::MemoryTables;
use redirector_ebpf::tables::path::alive;
use suite::node::{self, backend, send};
use suite::packet::{Packet, tcp};

use super::ranks;

const MS: u64 = 1_000_000;

/// Node 1 owns every slot, and asks all flows.
fn asking() -> MemoryTables {
    let mut tables = node::node(1);
    ranks([1, 2, 0, 0])(&mut tables);
    tables.leg_rules.noted = 1;
    tables
}

/// New SYNs, SYNs that came again, and resets, of the path of this rank to a backend.
fn noted(tables: &MemoryTables, name: &str, rank: usize) -> [u64; 3] {
    let signals = &tables.signals[usize::from(backend(tables, name))][rank];
    [&signals.opened, &signals.again, &signals.resets].map(|count| count.load())
}

/// The same of all paths together.
fn all(tables: &MemoryTables) -> [u64; 3] {
    let mut sum = [0; 3];
    for signals in tables.signals.iter().flatten() {
        let counts = [&signals.opened, &signals.again, &signals.resets];
        sum.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count.load());
    }
    sum
}

fn pass(tables: &MemoryTables, milliseconds: u64) {
    tables.now.set(tables.now.get() + milliseconds * MS);
}

fn reset(packet: Packet) -> Packet {
    packet.flags(|tcp| tcp.rst = true)
}

fn sequence(packet: Packet, number: u32) -> Packet {
    packet.flags(|tcp| tcp.sequence_number = number)
}

#[test]
fn a_syn_that_comes_again_is_told_from_one_that_was_doubled() {
    for (vip, port) in [("198.51.100.1", 80), ("198.51.100.1", 443), ("[2001:db8:100::1]", 80)] {
        let tables = asking();
        let source = if vip.starts_with('[') { "[2001:db8::7]" } else { "192.0.2.7" };
        let packet = |client: u16| tcp(&format!("{source}:{client}"), &format!("{vip}:{port}"));
        let says = format!("{vip}:{port}");
        send(&tables, &packet(1).syn().bytes());
        send(&tables, &packet(1).syn().bytes());
        assert_eq!(all(&tables), [1, 0, 0], "{says}: doubled on its way");
        pass(&tables, 1000);
        send(&tables, &packet(1).syn().bytes());
        assert_eq!(all(&tables), [1, 1, 0], "{says}: after a second");
        send(&tables, &packet(2).syn().bytes());
        pass(&tables, 2000);
        send(&tables, &packet(1).syn().bytes());
        assert_eq!(all(&tables), [2, 2, 0], "{says}: another flow, and once more");
        send(&tables, &packet(2).bytes());
        assert_eq!(all(&tables), [2, 2, 0], "{says}: an established flow says nothing");
        send(&tables, &reset(packet(2)).bytes());
        assert_eq!(all(&tables), [2, 2, 1], "{says}: a reset");
        pass(&tables, 1000);
        send(&tables, &sequence(packet(1).syn(), 9).bytes());
        assert_eq!(all(&tables), [3, 2, 1], "{says}: the port is used anew, with another sequence number");
        pass(&tables, 1000);
        send(&tables, &sequence(packet(1).syn(), 9).bytes());
        assert_eq!(all(&tables), [3, 3, 1], "{says}: and that one comes again");
    }
}

#[test]
fn each_path_has_its_own() {
    let mut tables = asking();
    let packet = tcp("192.0.2.7:1", "198.51.100.10:6").syn();
    send(&tables, &packet.bytes());
    assert_eq!(noted(&tables, "ranked/a", 0), [1, 0, 0]);
    let first = tables.image.backends[&backend(&tables, "ranked/a")].paths[0];
    tables.paths_off.insert(first, alive::OFF);
    pass(&tables, 1000);
    send(&tables, &packet.bytes());
    assert_eq!(noted(&tables, "ranked/a", 0), [1, 0, 0], "it did not go there again");
    assert_eq!(noted(&tables, "ranked/a", 1), [1, 0, 0], "and was new here");
    pass(&tables, 2000);
    send(&tables, &packet.bytes());
    assert_eq!(noted(&tables, "ranked/a", 1), [1, 1, 0]);
}

#[test]
fn few_flows_are_asked_where_few_are_to_be() {
    let mut tables = asking();
    let syns = |tables: &MemoryTables| {
        for client in 1..=2000 {
            send(tables, &tcp(&format!("192.0.2.9:{client}"), "198.51.100.1:80").syn().bytes());
        }
    };
    tables.leg_rules.noted = 0;
    syns(&tables);
    assert_eq!(all(&tables), [0; 3], "none is to be");
    tables.leg_rules.noted = 4;
    syns(&tables);
    let [eighth, again, _] = all(&tables);
    assert!((150..350).contains(&eighth) && again == 0, "one in eight: {eighth}");
    pass(&tables, 1000);
    syns(&tables);
    let [new, again, _] = all(&tables);
    assert!(new - eighth <= eighth / 8 && again >= eighth * 7 / 8, "the same ones again: {new}, {again} of {eighth}");
}

#[test]
fn what_goes_to_another_node_speaks_of_no_path_of_this_one() {
    let mut tables = asking();
    ranks([2, 1, 0, 0])(&mut tables);
    send(&tables, &tcp("192.0.2.7:1", "198.51.100.1:443").syn().bytes());
    assert_eq!(all(&tables), [0; 3]);
}
