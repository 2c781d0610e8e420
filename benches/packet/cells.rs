//! What is measured: packets, and what they should meet.

use etherparse::PacketBuilder;
use redirector_ebpf::bench::TEMPLATE;
use redirector_ebpf::reason::Reason;

use crate::node::{CLIENT_MAC, NODE_MAC};

/// XDP's action for packets that go back out.
pub(crate) const XDP_TX: u32 = 3;
/// XDP's action for packets that are not ours.
pub(crate) const XDP_PASS: u32 = 2;

/// One line of the table.
#[derive(Clone, Copy)]
pub(crate) struct Cell {
    /// Its name.
    pub(crate) name: &'static str,
    /// The service's port.
    pub(crate) port: u16,
    pub(crate) v6: bool,
    /// What tells its packets apart.
    pub(crate) varies: Varies,
    /// Whether the packet opens a connection.
    pub(crate) opens: bool,
    /// What its flows need of the flow table beforehand.
    pub(crate) table: Table,
    /// Ratios aimed at with 1, 10,000 and 1,000,000 flows.
    pub(crate) targets: [f64; 3],
    /// What should become of each packet.
    pub(crate) reason: Reason,
}

/// What tells a cell's packets apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Varies {
    /// The client's address, for as many flows of one service.
    Source,
    /// The service's port, from the cell's on, for a flow of each of as many services.
    Port,
}

/// What a cell wants of the flow table and the slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Table {
    /// Nothing.
    Empty,
    /// All its flows are known.
    Known,
    /// As many other flows are known; each packet is a new one.
    Others,
    /// The slots belong to another node.
    Elsewhere,
    /// The slots belong to all nodes.
    Shared,
}

/// A cell of an IPv4 service without anything special.
pub(crate) const fn cell(name: &'static str, port: u16, table: Table, targets: [f64; 3]) -> Cell {
    Cell { name, port, v6: false, varies: Varies::Source, opens: false, table, targets, reason: Reason::Served }
}

/// The cells, in the order in which they are shown.
pub(crate) const ALL: &[Cell] = &[
    cell("shared-l2", 80, Table::Empty, [3.0; 3]),
    cell("shared-ipip", 81, Table::Empty, [3.5; 3]),
    cell("shared-gue", 82, Table::Empty, [4.0; 3]),
    Cell { v6: true, ..cell("shared-ip6ip6", 83, Table::Empty, [3.5; 3]) },
    Cell { opens: true, ..cell("shared-syn", 80, Table::Empty, [3.5; 3]) },
    cell("owned-l2", 84, Table::Known, [3.5, 5.0, 10.0]),
    cell("owned-ipip", 85, Table::Known, [4.0, 6.0, 11.0]),
    Cell { opens: true, ..cell("owned-new", 84, Table::Others, [6.0, 10.0, 15.0]) },
    Cell { reason: Reason::Forwarded, ..cell("owned-forward", 84, Table::Elsewhere, [3.5; 3]) },
    Cell { reason: Reason::NotOurs, ..cell("pass", 0, Table::Empty, [2.2; 3]) },
];

impl Cell {
    /// Numbers of flows, with the target of each.
    pub(crate) fn flows(&self) -> Vec<(u64, Option<f64>)> {
        let all = [1, 10_000, 1_000_000].into_iter().zip(self.targets.map(Some));
        if self.reason == Reason::NotOurs { all.take(1).collect() } else { all.collect() }
    }

    /// The same cell with packets that open its connections, or with those of open ones.
    pub(crate) fn with(&self, opens: bool) -> Self {
        Self { opens, ..*self }
    }

    /// The first bytes of its packets.
    pub(crate) fn packet(&self) -> Vec<u8> {
        let link = PacketBuilder::ethernet2(CLIENT_MAC, NODE_MAC);
        let vip4 = if self.port == 0 { [192, 0, 2, 1] } else { [198, 51, 100, 1] };
        let (builder, headers) = if self.v6 {
            let (client, vip) = ([0x20, 1, 0xd, 0xb8, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], "2001:db8:100::1");
            let vip: std::net::Ipv6Addr = vip.parse().unwrap_or(std::net::Ipv6Addr::LOCALHOST);
            (link.ipv6(client, vip.octets(), 64), 14 + 40 + 20)
        } else {
            (link.ipv4([10, 0, 0, 0], vip4, 64), 14 + 20 + 20)
        };
        let tcp = builder.tcp(40_000, self.port.max(1), 1, 1000);
        let tcp = if self.opens { tcp.syn() } else { tcp.ack(1) };
        let payload = vec![0; TEMPLATE - headers];
        let mut packet = Vec::new();
        // Writing to a vector fails never.
        let _ = tcp.write(&mut packet, &payload);
        packet
    }

    /// Where the four bytes are that tell its packets apart.
    pub(crate) fn source_at(&self) -> u32 {
        match (self.varies, self.v6) {
            (Varies::Source, true) => 14 + 8 + 12,
            (Varies::Source, false) => 14 + 12,
            (Varies::Port, true) => 14 + 40,
            (Varies::Port, false) => 14 + 20,
        }
    }

    /// What stands there in the first of them.
    pub(crate) fn first(&self) -> u64 {
        match self.varies {
            Varies::Source => 0x0a80_0000,
            Varies::Port => 40_000 << 16 | u64::from(self.port),
        }
    }

    /// XDP's action for its packets.
    pub(crate) fn action(&self) -> u32 {
        if self.reason == Reason::NotOurs { XDP_PASS } else { XDP_TX }
    }
}
