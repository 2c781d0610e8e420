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
