//! Pool changes: no flow loses its backend, also when a second change comes while the first is not settled.

use std::collections::BTreeMap;

use redirector::pool::{Member, build, stable_hash, transition};
use redirector_ebpf::hash::FlowHash;
use redirector_ebpf::reason::Reason;
use redirector_ebpf::tables::Row;
use suite::cluster::{Between, Cluster};
use suite::node;
use suite::packet::{Packet, tcp, udp};
use suite::random::Random;

const NODES: u8 = 3;

/// A cluster, and the flows in it with the backend that each first had.
struct World {
    cluster: Cluster,
    random: Random,
    flows: BTreeMap<u16, (Packet, u16)>,
    next: u16,
    pool: u16,
}

impl World {
    fn new(seed: u64) -> Self {
        let cluster = Cluster::new(NODES, Between::Mac);
        let pool = node::pool(&cluster.nodes[0], "pool");
        Self { cluster, random: Random::new(seed), flows: BTreeMap::new(), next: 1_024, pool }
    }

    fn enter(&mut self, frame: &[u8]) -> u16 {
        let entry = 1 + self.random.below(usize::from(NODES)) as u8;
        let way = self.cluster.send(entry, frame);
        assert_eq!(way.done.verdict.reason, Reason::Served, "{way:?}");
        way.done.journey.backend
    }

    /// A new flow, of either affinity and protocol.
    fn open(&mut self) {
        let client = format!("192.0.2.1:{}", self.next);
        let port = self.random.pick(&[80, 443, 53, 5060]);
        let vip = format!("198.51.100.1:{port}");
        let (first, flow) = match port {
            80 | 443 => (tcp(&client, &vip).syn(), tcp(&client, &vip)),
            _ => (udp(&client, &vip), udp(&client, &vip)),
        };
        let backend = self.enter(&first.bytes());
        self.flows.insert(self.next, (flow, backend));
        self.next += 1;
    }

    /// A packet of a flow that is there.
    fn talk(&mut self, client: u16) {
        let (flow, backend) = self.flows[&client].clone();
        assert_eq!(self.enter(&flow.bytes()), backend, "{:?} of {} lost its backend", flow.layer, flow.src);
    }

    fn some_traffic(&mut self) {
        for _ in 0..self.random.below(12) {
            if self.flows.is_empty() || self.random.once_in(3) {
                self.open();
            } else {
                let clients: Vec<u16> = self.flows.keys().copied().collect();
                let client = clients[self.random.below(clients.len())];
                self.talk(client);
            }
            self.pass(1);
        }
    }

    /// New flows whose next packets enter at once, at any node: one may be a step behind the node that took the first.
    fn young_flows(&mut self) {
        for _ in 0..4 {
            self.open();
            (0..2).for_each(|_| self.talk(self.next - 1));
        }
    }

    /// Each flow sends a packet: none is idle for longer than a dispute takes to settle.
    fn all_talk(&mut self) {
        let clients: Vec<u16> = self.flows.keys().copied().collect();
        clients.into_iter().for_each(|client| self.talk(client));
    }

    fn pass(&self, milliseconds: u64) {
        self.cluster.nodes.iter().for_each(|tables| tables.now.set(tables.now.get() + milliseconds * 1_000_000));
    }

    /// One step of a change, node after node in any order, with traffic in between.
    fn everywhere(&mut self, step: impl Fn(&[Row]) -> Vec<Row>, until: Option<u64>) {
        let mut order: Vec<usize> = (0..usize::from(NODES)).collect();
        order.rotate_left(self.random.below(usize::from(NODES)));
        for at in order {
            let tables = &mut self.cluster.nodes[at];
            let pool = tables.pools.get_mut(&self.pool).expect("the pool");
            let rows = step(&tables.tables[&pool.table]);
            pool.rows = rows.len() as u32;
            pool.old_until = until.unwrap_or(pool.old_until);
            let table = pool.table;
            tables.tables.insert(table, rows);
            self.some_traffic();
            self.young_flows();
        }
    }

    /// Rows on which a flow lives that is not on the row's current backend, whichever node has it.
    fn busy(&self) -> Vec<bool> {
        let tables = &self.cluster.nodes[0];
        let rows = &tables.tables[&tables.pools[&self.pool].table];
        let mut busy = vec![false; rows.len()];
        for (client, (flow, backend)) in &self.flows {
            let (port, protocol) = match flow.layer {
                suite::packet::Layer::Tcp(ref tcp) => (tcp.destination_port, 6),
                suite::packet::Layer::Udp(_, port) => (port, 17),
                _ => unreachable!("flows are TCP or UDP"),
            };
            let tuple = node::tuple((flow.src, *client), (flow.dst, port), protocol);
            let row = FlowHash::of(&tables.image.node.hash_key, &tuple, false).row(rows.len() as u32) as usize;
            busy[row] |= rows[row].current() != *backend;
        }
        busy
    }

    /// A change to a table of these backends, which may come before the last one has settled.
    fn change(&mut self, size: usize) {
        let chosen: Vec<&str> = ["a", "b", "c", "d"].into_iter().filter(|_| !self.random.once_in(3)).collect();
        let member = |name: &&str| {
            let id = node::backend(&self.cluster.nodes[0], &format!("pool/{name}"));
            Member { hash: stable_hash(name), weight: 1, id }
        };
        let members: Vec<Member> = chosen.iter().map(member).collect();
        if members.is_empty() {
            return;
        }
        let table = build(&members, size);
        let until = self.cluster.nodes[0].now.get() + 1_000_000_000_000;
        self.everywhere(|rows| transition::announce(rows, &table), Some(until));
        self.some_traffic();
        self.everywhere(|rows| transition::switch(rows, &table), None);
        self.some_traffic();
    }

    /// The end of disputes, node after node. One without a dispute serves new flows without a record, which one that is
    /// still in it would take for old ones: so first all agree on whose those are.
    fn settle(&mut self) {
        self.all_talk();
        self.pass(1_000_001);
        self.some_traffic();
        let busy = self.busy();
        self.everywhere(|rows| transition::agree(rows, |row| !busy[row]), None);
        self.some_traffic();
        self.everywhere(|rows| transition::settle(rows, |row| !busy[row]), None);
        self.some_traffic();
    }
}

#[test]
fn every_flow_keeps_its_backend_through_all_changes() {
    for seed in 0..60 {
        println!("seed {seed}");
        let mut world = World::new(seed);
        for _ in 0..20 {
            world.some_traffic();
        }
        let mut size = 1 << 10;
        for _ in 0..6 {
            if world.random.once_in(4) {
                size = transition::size(size, size * 2);
            }
            world.change(size);
            if world.random.once_in(2) {
                world.settle();
            }
        }
        world.settle();
        world.all_talk();
    }
}
