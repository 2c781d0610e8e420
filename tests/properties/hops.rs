//! The hop rule: whatever the nodes' tables say, no packet is forwarded more than twice or visits a node twice.

use redirector_ebpf::reason::{Action, Reason};
use redirector_ebpf::tables::Row;
use suite::cluster::{Between, Cluster};
use suite::node;
use suite::packet::{Packet, tcp, too_big, udp};
use suite::random::Random;

/// Tables of every node as chance has it, each its own.
fn skew(cluster: &mut Cluster, random: &mut Random) {
    let count = cluster.nodes.len();
    for tables in &mut cluster.nodes {
        let node = |random: &mut Random| random.below(count + 1) as u8;
        for slot in &mut tables.image.slots {
            slot.ranks = [node(random), node(random), node(random), node(random)];
            slot.previous = node(random);
            slot.version = random.number();
        }
        for id in 1..=count {
            tables.image.alive.set(id as u8, !random.once_in(4));
        }
        let backends: Vec<u16> = tables.image.backends.keys().copied().collect();
        for rows in tables.tables.values_mut() {
            for row in rows {
                *row = Row::new(random.pick(&backends), random.pick(&backends), random.once_in(2));
            }
        }
    }
}

fn packets(random: &mut Random) -> Vec<Vec<u8>> {
    let client = |random: &mut Random| format!("192.0.2.{}:{}", random.below(4), 40_000 + random.below(8));
    let http = tcp(&client(random), random.pick(&["198.51.100.1:80", "198.51.100.1:443"]));
    let dns = udp(&client(random), random.pick(&["198.51.100.1:53", "198.51.100.1:5060"]));
    let mut packets = vec![
        http.bytes(),
        http.clone().syn().bytes(),
        dns.bytes(),
        too_big("203.0.113.9", &http.clone().answer()).bytes(),
    ];
    // Few ids, so that decisions of earlier packets with the same one are still about.
    let id = random.below(2) as u32;
    packets.extend(dns.sized(300).fragments(id, 128));
    packets.extend(http.sized(300).fragments(id, 128));
    packets
}

fn hold(between: Between) {
    for seed in 0..150 {
        let mut random = Random::new(seed);
        let mut cluster = Cluster::new(2 + random.below(7) as u8, between);
        for round in 0..60 {
            if round % 20 == 0 {
                // Flow tables and fragments' decisions stay, so that they are skewed as well.
                skew(&mut cluster, &mut random);
            }
            let packets = packets(&mut random);
            for _ in 0..packets.len() {
                let (packet, entry) = (random.below(packets.len()), 1 + random.below(cluster.nodes.len()) as u8);
                let way = cluster.send(entry, &packets[packet]);
                let visited = &way.visited;
                let again = (1..visited.len()).any(|at| visited[..at].contains(&visited[at]));
                assert!(visited.len() <= 3 && !again, "{between:?}, seed {seed}, round {round}: {way:?}");
                assert!(way.done.verdict.reason != Reason::HopTag, "{between:?}, seed {seed}: {way:?}");
            }
        }
    }
}

#[test]
fn no_packet_is_forwarded_more_than_twice_or_visits_a_node_twice_within_a_segment() {
    hold(Between::Mac);
}

#[test]
fn no_packet_is_forwarded_more_than_twice_or_visits_a_node_twice_across_routers() {
    hold(Between::Udp);
}

/// With tables that agree, every packet of a flow is served, and by one backend, wherever it enters.
#[test]
fn agreeing_nodes_serve_a_flow_by_one_backend() {
    for between in [Between::Mac, Between::Udp] {
        let cluster = Cluster::new(5, between);
        let mut random = Random::new(9);
        for client in 0..200 {
            let flow: Packet = tcp(&format!("192.0.2.1:{}", 1_024 + client), "198.51.100.1:443");
            let opened = cluster.send(1 + random.below(5) as u8, &flow.clone().syn().bytes());
            for _ in 0..4 {
                let way = cluster.send(1 + random.below(5) as u8, &flow.bytes());
                assert_eq!(way.done.verdict.reason, Reason::Served);
                assert_eq!(way.done.journey.backend, opened.done.journey.backend);
                assert_eq!(way.visited.last(), opened.visited.last(), "the owner serves");
            }
            let error =
                cluster.send(1 + random.below(5) as u8, &too_big("203.0.113.9", &flow.clone().answer()).bytes());
            assert_eq!(error.done.journey.backend, opened.done.journey.backend);
            let first_entry = 1 + random.below(5) as u8;
            let fragments = flow.sized(300).fragments(client, 128);
            let first = cluster.send(first_entry, &fragments[0]);
            assert_eq!(first.done.journey.backend, opened.done.journey.backend, "the first fragment");
            for later in &fragments[1..] {
                let way = cluster.send(1 + random.below(5) as u8, later);
                assert_eq!(way.done.verdict.reason.action(), Action::Transmit, "{way:?}");
                assert_eq!(
                    way.done.journey.service.map(|service| service.id),
                    first.done.journey.service.map(|service| service.id)
                );
                assert_eq!(way.visited.last(), first.visited.last(), "all fragments end at one node");
            }
        }
        assert_eq!(node::backend(&cluster.nodes[0], "pool/a"), 1);
    }
}

/// Owned flows that have begun on backend `a`, and their slots, while unknown ones are given to another backend: so it shows
/// when the wrong node is asked.
fn young_flows(cluster: &mut Cluster, random: &mut Random) -> Vec<(Packet, u32)> {
    let flows: Vec<Packet> =
        (0..20).map(|client| tcp(&format!("192.0.2.1:{}", 2_000 + client), "198.51.100.1:443")).collect();
    let set_rows = |cluster: &mut Cluster, current: &str, previous: &str| {
        for tables in &mut cluster.nodes {
            let [current, previous] = [current, previous].map(|name| node::backend(tables, &format!("pool/{name}")));
            node::set_rows(tables, "pool", Row::new(current, previous, false));
        }
    };
    set_rows(cluster, "a", "a");
    let open = |flow: Packet| {
        let way = cluster.send(1 + random.below(cluster.nodes.len()) as u8, &flow.clone().syn().bytes());
        (flow, way.done.journey.slot)
    };
    let flows = flows.into_iter().map(open).collect();
    set_rows(cluster, "b", "c");
    flows
}

fn stay(cluster: &Cluster, flows: &[(Packet, u32)], entries: impl Fn(u32) -> Vec<u8>, why: &str) {
    for (flow, slot) in flows {
        for entry in entries(*slot) {
            let way = cluster.send(entry, &flow.bytes());
            assert_eq!(way.done.journey.backend, node::backend(&cluster.nodes[0], "pool/a"), "{why}: {way:?}");
        }
    }
}

/// Nodes switch to a new slot table a moment apart, and flows of few packets have no copies: they stay all the same.
#[test]
fn young_flows_stay_while_nodes_switch_to_another_owner_one_by_one() {
    for between in [Between::Mac, Between::Udp] {
        for seed in 0..40 {
            let (mut random, count) = (Random::new(seed), 3 + seed as usize % 3);
            let mut cluster = Cluster::new(count as u8, between);
            let flows = young_flows(&mut cluster, &mut random);
            let mut order: Vec<usize> = (0..count).collect();
            (0..count).for_each(|at| order.swap(at, random.below(count)));
            for (switched, node) in order.into_iter().enumerate() {
                stay(&cluster, &flows, |_| (1..=count as u8).collect(), &format!("seed {seed}, {switched} switched"));
                for slot in &mut cluster.nodes[node].image.slots {
                    let old = slot.ranks;
                    (slot.ranks[0], slot.ranks[1], slot.previous) = (old[1], old[0], old[0]);
                    slot.version += 1;
                }
            }
            stay(&cluster, &flows, |_| (1..=count as u8).collect(), &format!("seed {seed}, all switched"));
        }
    }
}

/// A node that has an owner for dead, while it lives, sends its packets to the next rank: that one knows better.
#[test]
fn young_flows_stay_where_one_node_has_their_owner_for_dead() {
    for between in [Between::Mac, Between::Udp] {
        for seed in 0..40 {
            let (mut random, count) = (Random::new(seed), 4);
            let mut cluster = Cluster::new(count, between);
            let flows = young_flows(&mut cluster, &mut random);
            let slots = cluster.nodes[0].image.slots.clone();
            for mistaken in 1..=count {
                for owner in (1..=count).filter(|owner| *owner != mistaken) {
                    cluster.nodes[usize::from(mistaken) - 1].image.alive.set(owner, false);
                    // The next rank itself cannot ask anybody whom it has for dead.
                    let asks =
                        |slot: u32| if slots[slot as usize].ranks[1] == mistaken { Vec::new() } else { vec![mistaken] };
                    stay(&cluster, &flows, asks, &format!("seed {seed}, node {mistaken} has {owner} for dead"));
                    cluster.nodes[usize::from(mistaken) - 1].image.alive.set(owner, true);
                }
            }
        }
    }
}
