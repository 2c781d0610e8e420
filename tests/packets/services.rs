//! Which service takes a packet, and what becomes of those that none takes.

use etherparse::{Icmpv4Type, Icmpv6Type};
use redirector::dataplane::memory::MemoryTables;
use redirector_ebpf::reason::Reason;
use redirector_ebpf::tables::{Row, service};
use suite::decode::{Body, Ip, Seen};
use suite::node::{self, mac, mac_of};
use suite::packet::{ROUTER, raw, tcp, udp};

use super::{case, only};

const CLIENT: &str = "192.0.2.7:40000";
const CLIENT6: &str = "[2001:db8:7::7]:40000";

#[test]
fn the_port_or_its_range_or_every_port() {
    let web = |says, port: u16| {
        case(says, &tcp(CLIENT, &format!("198.51.100.1:{port}"))).with(only("l2/a")).leaves(
            Reason::Served,
            0,
            &[],
            |_| {},
        );
    };
    web("an exact port", 80);
    web("the first port of a range", 8_000);
    web("within a range", 8_005);
    web("the last port of a range", 8_010);
    for (says, port) in [("before a range", 7_999), ("behind a range", 8_011), ("no such port", 81)] {
        case(says, &tcp(CLIENT, &format!("198.51.100.1:{port}"))).ends(Reason::UnmatchedDrop, &[]);
    }
    case("the port, but of another protocol", &udp(CLIENT, "198.51.100.1:80")).ends(Reason::UnmatchedDrop, &[]);
    for port in [0, 1, 53, 65_535] {
        let input = udp(CLIENT, &format!("198.51.100.4:{port}"));
        case("every port", &input).leaves(Reason::Served, 0, &[], |out| assert_eq!(out.ips.len(), 2));
    }
}

#[test]
fn the_longest_prefix_of_addresses() {
    let input = tcp(CLIENT, "203.0.113.9:80");
    case("within a prefix", &input)
        .with(only("l2/a"))
        .leaves(Reason::Served, 0, &[], |out| assert_eq!(out.ips.len(), 1));
    let input = tcp(CLIENT, "203.0.113.5:80");
    case("an address within it goes first", &input).leaves(Reason::Served, 0, &[], |out| assert_eq!(out.ips.len(), 2));
    case("just outside of it", &tcp(CLIENT, "203.0.113.16:80")).ends(Reason::NotOurs, &[]);
    let input = tcp(CLIENT6, "[2001:db8:200::abcd]:1");
    case("within an IPv6 prefix", &input).leaves(Reason::Served, 0, &[], |out| assert_eq!(out.ips.len(), 2));
    case("outside of it", &tcp(CLIENT6, "[2001:db8:201::]:1")).ends(Reason::NotOurs, &[]);
}

#[test]
fn unmatched_packets_are_dropped_or_passed_as_the_vip_says() {
    case("drop", &tcp(CLIENT, "198.51.100.1:22")).ends(Reason::UnmatchedDrop, &[]);
    case("pass", &tcp(CLIENT, "198.51.100.3:22")).ends(Reason::UnmatchedPass, &[]);
    let (src, dst) = ("192.0.2.7".parse().unwrap(), "198.51.100.2".parse().unwrap());
    case("no answer to GRE", &raw(src, dst, 47, vec![0; 20])).ends(Reason::UnmatchedDrop, &[]);
    let reset = tcp(CLIENT, "198.51.100.2:22").flags(|tcp| tcp.rst = true);
    case("no reset answers a reset", &reset).ends(Reason::UnmatchedDrop, &[]);
    let spent = |tables: &mut MemoryTables| {
        tables.image.node.replies = 1;
        let first = node::send(tables, &tcp(CLIENT, "198.51.100.2:22").bytes());
        assert_eq!(first.verdict.reason, Reason::ResetSent);
    };
    case("the budget is spent", &tcp(CLIENT, "198.51.100.2:22")).with(spent).ends(Reason::ReplyBudget, &[]);
}

/// It goes back the way that it came, from this node, tags and all.
fn goes_back<'a>(out: &'a Seen, dst: &str, tags: &[u16]) -> &'a Ip {
    assert_eq!((out.to, out.from, &out.tags[..]), (ROUTER, mac(1, 0), tags));
    assert_eq!(out.outer().dst, dst.parse::<std::net::SocketAddr>().unwrap().ip());
    out.outer()
}

#[test]
fn a_reset_answers_as_rfc_9293_says() {
    for (client, vip) in [(CLIENT, "198.51.100.2:22"), (CLIENT6, "[2001:db8:100::1]:22")] {
        let answer = |says, input: &suite::packet::Packet, seq, ack, with_ack| {
            case(says, input).leaves(Reason::ResetSent, 0, &[], |out| {
                let Body::Tcp(tcp, rest) = &goes_back(out, client, &input.tags).body else { panic!() };
                assert_eq!((tcp.rst, tcp.ack, tcp.syn), (true, with_ack, false));
                assert_eq!((tcp.sequence_number, tcp.acknowledgment_number), (seq, ack));
                assert_eq!((tcp.source_port, tcp.destination_port, rest.len()), (22, 40_000, 0));
            });
        };
        answer("to a SYN: it and its byte are acknowledged", &tcp(client, vip).syn(), 0, 1_001, true);
        answer("to an ACK: from where it says", &tcp(client, vip), 2_000, 0, false);
        let data = tcp(client, vip).tags(&[5, 6]).flags(|tcp| (tcp.ack, tcp.fin) = (false, true));
        answer("to data and FIN without ACK", &data, 0, 1_000 + 15 + 1, true);
    }
    let input = tcp(CLIENT, "198.51.100.2:22").options(8).syn();
    case("IPv4 options stay behind", &input).leaves(Reason::ResetSent, 0, &[], |out| assert_eq!(out.outer().len, 40));
}

#[test]
fn port_unreachable_quotes_the_packet() {
    let input = udp(CLIENT, "198.51.100.2:53").sized(400).options(8).tags(&[9]);
    case("UDP over IPv4", &input).leaves(Reason::UnreachableSent, 0, &[], |out| {
        let Body::Icmp4(icmp, quote) = &goes_back(out, CLIENT, &[9]).body else { panic!() };
        use etherparse::icmpv4::DestUnreachableHeader::Port;
        assert_eq!(icmp.icmp_type, Icmpv4Type::DestinationUnreachable(Port));
        assert_eq!(quote[..], input.ip_bytes()[..28 + 8]);
    });
    let input = udp(CLIENT6, "[2001:db8:100::1]:53").sized(400);
    case("UDP over IPv6", &input).leaves(Reason::UnreachableSent, 0, &[], |out| {
        let Body::Icmp6(icmp, quote) = &goes_back(out, CLIENT6, &[]).body else { panic!() };
        use etherparse::icmpv6::DestUnreachableCode::Port;
        assert_eq!(icmp.icmp_type, Icmpv6Type::DestinationUnreachable(Port));
        assert_eq!(quote[..], input.ip_bytes()[..48]);
    });
}

#[test]
fn a_pool_without_backends_or_of_another_service_serves_nobody() {
    let input = tcp(CLIENT, "198.51.100.1:80");
    case("no backend", &input).with(|tables| node::set_rows(tables, "l2", Row::default())).ends(Reason::NoBackend, &[]);
    let foreign = |tables: &mut MemoryTables| {
        let id = node::backend(tables, "in4/a");
        node::set_rows(tables, "l2", Row::new(id, id, false));
    };
    case("a backend of another pool", &input).with(foreign).ends(Reason::NoBackend, &[]);
    let dropping = |tables: &mut MemoryTables| {
        tables.image.vips.values_mut().for_each(|vip| vip.unmatched = service::unmatched::DROP);
    };
    case("a changed policy", &tcp(CLIENT, "198.51.100.3:22")).with(dropping).ends(Reason::UnmatchedDrop, &[]);
}

#[test]
fn new_flows_are_shed_by_class_and_budget() {
    let level = |level| {
        move |tables: &mut MemoryTables| {
            tables.image.node.shed_level = level;
            only("l2/a")(tables);
            super::ranks([1, 0, 0, 0])(tables);
        }
    };
    let normal = tcp(CLIENT, "198.51.100.1:80");
    let low = tcp(CLIENT, "198.51.100.1:443");
    let critical = udp(CLIENT, "198.51.100.1:5060");
    let recorded = &[Reason::NoteRecorded];
    case("low at level 1", &low.clone().syn()).with(level(1)).ends(Reason::Shed, &[]);
    case("normal at level 1", &normal.clone().syn()).with(level(1)).leaves(Reason::Served, 0, &[], |_| {});
    case("normal at level 2", &normal.clone().syn()).with(level(2)).ends(Reason::Shed, &[]);
    case("no new flow, level 3", &normal).with(level(3)).leaves(Reason::Served, 0, &[], |_| {});
    case("critical at level 3", &critical).with(level(3)).leaves(Reason::Served, 0, recorded, |out| {
        assert_eq!(out.to, mac_of("10.0.1.1".parse().unwrap()));
    });
    let budget = |tables: &mut MemoryTables| {
        tables.image.node.new_flows = 1;
        node::send(tables, &normal.clone().syn().bytes());
    };
    case("the node's budget", &normal.clone().syn()).with(budget).ends(Reason::NewFlowBudget, &[]);
    let by_source = |tables: &mut MemoryTables| {
        only("l2/a")(tables);
        tables.image.node.new_flows_per_source = 1;
        node::send(tables, &normal.clone().syn().bytes());
    };
    let neighbour = tcp("192.0.2.200:1", "198.51.100.1:80").syn();
    case("the source prefix's budget", &neighbour).with(by_source).ends(Reason::SourceBudget, &[]);
    let other = tcp("192.0.3.200:1", "198.51.100.1:80").syn();
    case("another prefix's", &other).with(by_source).leaves(Reason::Served, 0, &[], |_| {});
}
