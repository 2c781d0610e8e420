//! Who ends disputes.

use std::time::Duration;

use redirector_ebpf::tables::Row;
use suite::node;

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
