//! What is tidied up behind changes, and when.

use std::time::Duration;

use redirector::dataplane::image::compile;
use redirector_ebpf::reason::Reason;
use redirector_ebpf::tables::Row;
use redirector_ebpf::tables::names::kind;
use suite::node;
use suite::packet::tcp;

use super::NOT_ROOT;
use super::kernel::Kernel;

/// In a cluster another owner may still have old flows of the same row, of which this node's maps say nothing.
#[test]
fn only_a_node_without_other_members_ends_disputes_by_itself() {
    assert!(xtask::step::is_root(), "{NOT_ROOT}");
    let config = node::configuration(1);
    for alone in [true, false] {
        let mut host = node::tables(&config);
        if alone {
            host.image.peers.clear();
        }
        host.image.pools.values_mut().for_each(|pool| pool.settle = Duration::ZERO);
        for row in host.tables.values_mut().flatten() {
            *row = Row::new(row.current(), row.previous(), true);
        }
        let mut kernel = Kernel::load(&config, &host);
        let disputed: usize = host.tables.values().map(Vec::len).sum();
        let ended = kernel.settle(&mut host.image);
        assert_eq!(ended.rows, if alone { disputed } else { 0 }, "alone: {alone}");
        assert_eq!(ended.released, 0, "nothing is given back that rows name");
        assert_eq!(kernel.settle(&mut host.image).rows, 0, "what has ended has");
    }
}

/// Packets are sent to a node that is configured no more until its alive bit is off, which comes last.
#[test]
fn the_next_hop_of_a_node_that_leaves_is_known_until_its_packets_go_elsewhere() {
    assert!(xtask::step::is_root(), "{NOT_ROOT}");
    let mut config = node::configuration(1);
    let mut host = node::tables(&config);
    host.image.slots.iter_mut().for_each(|slot| slot.ranks = [2, 1, 0, 0]);
    let mut kernel = Kernel::load(&config, &host);
    let frame = tcp("192.0.2.7:40000", "198.51.100.1:443").bytes();
    let sent_to_it = |kernel: &Kernel| kernel.run(&frame).1[..6] == node::mac(2, 0);
    assert!(sent_to_it(&kernel));

    config.members.retain(|member| member.id != 2);
    let key = config.cluster.key.expect("the configuration has a key").0;
    let named = kernel.registry();
    let hops = named.of(kind::NEIGHBOUR).len();
    let mut left = compile(&config, key, &node::links(&config), named).expect("the configuration compiles");
    // Both are not the configuration's to say.
    left.slots.clone_from(&host.image.slots);
    left.alive.set(2, true);
    kernel.install(&left);
    assert!(sent_to_it(&kernel), "{:?}", kernel.counted(Reason::NoNeighbour));
    assert_eq!(kernel.registry().of(kind::NEIGHBOUR).len(), hops);

    left.alive.set(2, false);
    kernel.install(&left);
    kernel.settle(&mut left);
    assert!(!sent_to_it(&kernel));
    assert_eq!(kernel.counted(Reason::NoNeighbour), 0);
    assert_eq!(kernel.registry().of(kind::NEIGHBOUR).len(), hops - 1, "its number is given back");
    assert_eq!(left.registry.of(kind::NEIGHBOUR).len(), hops - 1);
}
