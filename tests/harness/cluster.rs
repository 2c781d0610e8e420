//! Several nodes and the network between them.

use redirector::config::Config;
use redirector::dataplane::memory::MemoryTables;
use redirector_ebpf::reason::{Action, Reason};

use super::node::{self, Done, mac};
use super::packet::{Mac, ROUTER};

/// How packets go from node to node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Between {
    /// By MAC address, within a segment.
    Mac,
    /// Behind a header, across routers.
    Udp,
}

/// The configuration of a node in a cluster of so many: one pool of four backends, an owned and a shared service.
pub fn configuration(me: u8, nodes: u8, between: Between) -> Config {
    let mut text = format!(
        "[node]\nid = {me}\n[cluster]\nid = 7\nkey = \"000102030405060708090a0b0c0d0e0f\"\nslots = 256\n\
         [limits]\nicmp_per_second = 0\n[tables]\nflows4 = 8192\nflows6 = 1024\n\
         [[interface]]\nname = \"eth0\"\n[[interface]]\nname = \"eth1\"\n\
         [[vip]]\naddress = \"198.51.100.1\"\n[[pool]]\nname = \"pool\"\nmode = \"l2\"\n"
    );
    for (name, protocol, port, affinity) in [
        ("tcp", "tcp", 80, "shared"),
        ("udp", "udp", 53, "shared"),
        ("owned", "tcp", 443, "owned"),
        ("owned-udp", "udp", 5060, "owned"),
    ] {
        text += &format!(
            "[[service]]\nname = \"{name}\"\nvip = \"198.51.100.1\"\nprotocol = \"{protocol}\"\nports = {port}\n\
             affinity = \"{affinity}\"\npool = \"pool\"\n"
        );
    }
    for backend in ["a", "b", "c", "d"] {
        let address = 1 + backend.as_bytes()[0] - b'a';
        text += &format!(
            "[[pool.backend]]\nname = \"{backend}\"\naddress = \"10.0.1.{address}\"\n\
             [[pool.backend.path]]\ninterface = \"eth0\"\n"
        );
    }
    for id in 1..=nodes {
        text += &match between {
            Between::Mac => format!("[[member]]\nid = {id}\naddress = \"10.0.0.{id}\"\ninterface = \"eth0\"\n"),
            Between::Udp => format!(
                "[[member]]\nid = {id}\naddress = \"10.{id}.0.1\"\ninterface = \"eth0\"\n\
                 next_hop = \"10.0.0.254\"\nforward = \"udp\"\n"
            ),
        };
    }
    node::parse(&text)
}

/// A cluster.
pub struct Cluster {
    /// Its nodes; the first has the id 1.
    pub nodes: Vec<MemoryTables>,
    between: Between,
}

/// A packet's way.
#[derive(Debug)]
pub struct Way {
    /// Ids of the nodes that it visited.
    pub visited: Vec<u8>,
    /// What the last of them did.
    pub done: Done,
}

impl Cluster {
    /// A cluster of so many nodes whose tables agree.
    pub fn new(nodes: u8, between: Between) -> Self {
        let nodes = (1..=nodes).map(|me| node::tables(&configuration(me, nodes, between))).collect();
        Self { nodes, between }
    }

    /// Sends a frame into the cluster at this node, and on as long as nodes forward it, but no farther than 10 nodes.
    pub fn send(&self, entry: u8, frame: &[u8]) -> Way {
        let (mut at, mut frame, mut from, mut visited) = (entry, frame.to_vec(), ROUTER, Vec::new());
        loop {
            frame[..6].copy_from_slice(&mac(at, 0));
            frame[6..12].copy_from_slice(&from);
            visited.push(at);
            let done = node::send(&self.nodes[usize::from(at) - 1], &frame);
            let onward = matches!(done.verdict.reason, Reason::Forwarded | Reason::HandedBack);
            if !onward || visited.len() == 10 {
                return Way { visited, done };
            }
            assert_eq!(done.verdict.reason.action(), Action::Transmit);
            frame = done.bytes;
            (at, from) = self.next(&frame);
        }
    }

    /// The node that a forwarded frame reaches, and the MAC address that it then comes from.
    fn next(&self, frame: &[u8]) -> (u8, Mac) {
        let from = frame[6..12].try_into().expect("six bytes");
        match self.between {
            // The last byte but one of a node's MAC address is its id.
            Between::Mac => (frame[4], from),
            // The second byte of a node's address is; its destination stands at 16 of the IPv4 header.
            Between::Udp => (frame[14 + 17], ROUTER),
        }
    }
}
