//! Echo requests and ICMP errors.

use etherparse::{Icmpv4Type, Icmpv6Type};
use redirector::dataplane::memory::MemoryTables;
use redirector_ebpf::reason::Reason;
use redirector_ebpf::tables::{Node, service};
use suite::decode::Body;
use suite::node::{self, mac, mac_of};
use suite::packet::{Layer, Packet, ROUTER, echo, tcp, too_big, udp};

use super::{case, only, ranks};

#[test]
fn echo_is_answered_dropped_passed_or_served() {
    let input = echo("192.0.2.7", "198.51.100.1", 77).options(8).tags(&[3]).ttl(1);
    case("answered", &input).leaves(Reason::EchoAnswered, 0, &[], |out| {
        assert_eq!((out.to, out.from, &out.tags[..]), (ROUTER, mac(1, 0), &[3][..]));
        assert_eq!((out.outer().src, out.outer().dst, out.outer().ttl), (input.dst, input.src, 64));
        let Body::Icmp4(icmp, payload) = &out.outer().body else { panic!() };
        let Icmpv4Type::EchoReply(header) = &icmp.icmp_type else { panic!() };
        assert_eq!((header.id, header.seq, payload), (77, 1, &input.payload));
    });
    // The standard cluster has an ICMP service at its IPv6 address: take it away.
    let bare = |tables: &mut MemoryTables| tables.image.services.retain(|key, _| key.protocol != 1);
    let input6 = echo("2001:db8:7::7", "2001:db8:100::1", 77);
    case("answered, IPv6", &input6).with(bare).leaves(Reason::EchoAnswered, 0, &[], |out| {
        let Body::Icmp6(icmp, _) = &out.outer().body else { panic!() };
        assert!(matches!(icmp.icmp_type, Icmpv6Type::EchoReply(_)));
        assert_eq!((out.outer().src, out.outer().dst, out.outer().ttl), (input6.dst, input6.src, 64));
    });
    case("dropped", &echo("192.0.2.7", "198.51.100.2", 7)).ends(Reason::EchoDrop, &[]);
    case("passed", &echo("192.0.2.7", "198.51.100.4", 7)).ends(Reason::EchoPass, &[]);
    for input in [echo("192.0.2.7", "198.51.100.3", 7), input6] {
        case("served", &input).with(only("l2/a")).leaves(Reason::Served, 0, &[], |out| {
            assert_eq!((out.to, out.outer().dst), (mac_of("10.0.1.1".parse().unwrap()), input.dst));
        });
    }
    let reply = echo("192.0.2.7", "198.51.100.1", 7).answer();
    let reply = Packet { src: reply.dst, dst: reply.src, ..reply };
    case("a reply to a VIP", &reply).ends(Reason::IcmpUnsupported, &[]);
    let drop = |tables: &mut MemoryTables| {
        tables.image.vips.values_mut().for_each(|vip| vip.echo = service::echo::DROP);
    };
    case("a changed policy", &echo("192.0.2.7", "198.51.100.1", 7)).with(drop).ends(Reason::EchoDrop, &[]);
}

/// An error about what the backend sent lands at the flow's backend, from whatever router it comes.
#[test]
fn errors_reach_the_flow_s_backend() {
    for (says, flow, router) in [
        ("TCP", tcp("192.0.2.7:40000", "198.51.100.1:80"), "203.0.113.200"),
        ("a range's TCP", tcp("192.0.2.9:40000", "198.51.100.1:8003"), "203.0.113.200"),
        ("TCP with options in the quote", tcp("192.0.2.7:40000", "198.51.100.1:80").options(16), "203.0.113.200"),
        ("TCP over IPv6", tcp("[2001:db8:7::7]:40000", "[2001:db8:100::1]:80"), "2001:db8:66::1"),
        ("echo", echo("192.0.2.7", "198.51.100.3", 99), "203.0.113.200"),
        ("echo over IPv6", echo("2001:db8:7::7", "2001:db8:100::1", 99), "2001:db8:66::1"),
    ] {
        let tables = node::node(1);
        let served = node::send(&tables, &flow.bytes());
        assert_eq!(served.verdict.reason, Reason::Served, "{says}");
        let error = too_big(router, &flow.answer());
        case(says, &error).leaves(Reason::Served, served.verdict.port, &[], |out| {
            assert_eq!(out.to, node::backend_mac(&tables, served.journey.backend), "{says}");
            assert_eq!((out.outer().src, out.outer().dst), (error.src, error.dst));
        });
    }
}

#[test]
fn errors_reach_the_backend_of_a_recorded_flow_and_record_nothing() {
    let mut tables = node::node(1);
    ranks([1, 0, 0, 0])(&mut tables);
    let flow = udp("192.0.2.7:40000", "198.51.100.1:5060");
    let first = node::send(&tables, &flow.bytes());
    assert_eq!(first.notes, [Reason::NoteRecorded]);
    // New flows go elsewhere from now on.
    let other =
        node::backend(&tables, if first.journey.backend == node::backend(&tables, "l2/a") { "l2/b" } else { "l2/a" });
    node::set_rows(&mut tables, "l2", redirector_ebpf::tables::Row::new(other, other, false));
    let error = node::send(&tables, &too_big("203.0.113.200", &flow.answer()).bytes());
    assert_eq!(
        (error.verdict.reason, error.journey.backend, error.notes.len()),
        (Reason::Served, first.journey.backend, 0)
    );
    let stray = too_big("203.0.113.200", &udp("192.0.2.8:40000", "198.51.100.1:5060").answer());
    let stray = node::send(&tables, &stray.bytes());
    assert_eq!((stray.verdict.reason, stray.journey.backend, stray.notes.len()), (Reason::Served, other, 0));
}

/// They open no flow, so that floods of new ones do not keep path MTUs from being found.
#[test]
fn errors_need_no_room_for_new_flows_and_take_none() {
    let error = |client: u16| {
        too_big("203.0.113.200", &udp(&format!("192.0.2.7:{client}"), "198.51.100.1:5060").answer()).bytes()
    };
    let flow = |client: u16| udp(&format!("192.0.2.7:{client}"), "198.51.100.1:5060").bytes();
    for (says, limit, refused) in [
        ("per CPU", (|node| node.new_flows = 10) as fn(&mut Node), Reason::NewFlowBudget),
        ("per source", |node| node.new_flows_per_source = 10, Reason::SourceBudget),
        ("the class is shed", |node| node.shed_level = 3, Reason::Shed),
    ] {
        let mut tables = node::node(1);
        ranks([1, 0, 0, 0])(&mut tables);
        limit(&mut tables.image.node);
        if refused == Reason::Shed {
            // The only class that is never shed is the service's own.
            tables.image.ranges.values_mut().for_each(|service| service.class = 1);
        } else {
            for client in 0..50 {
                assert_eq!(node::send(&tables, &error(client)).verdict.reason, Reason::Served, "{says}");
            }
            assert_eq!(node::send(&tables, &flow(100)).verdict.reason, Reason::Served, "{says}: errors took of it");
        }
        assert_eq!(node::send(&tables, &flow(101)).verdict.reason, refused, "{says}");
        assert_eq!(node::send(&tables, &error(102)).verdict.reason, Reason::Served, "{says}");
    }
}

#[test]
fn errors_that_quote_nothing_of_ours_are_dropped() {
    let answer = tcp("192.0.2.7:40000", "198.51.100.1:80").answer();
    let error = too_big("203.0.113.200", &answer);
    let stranger = too_big("203.0.113.200", &Packet { src: "198.51.100.9".parse().unwrap(), ..answer.clone() });
    case("about a packet of someone else", &Packet { dst: error.dst, ..stranger }).ends(Reason::IcmpQuote, &[]);
    let mut short = error.clone();
    short.payload.truncate(27);
    case("a quote cut off", &short).ends(Reason::IcmpQuote, &[]);
    let optioned = too_big("203.0.113.200", &answer.clone().options(40));
    let cut = Packet { payload: optioned.payload[..40].to_vec(), ..optioned };
    case("a quote cut off within its options", &cut).ends(Reason::IcmpQuote, &[]);
    let mut later = error.clone();
    later.payload[7] = 9;
    case("a quote of a later fragment", &later).ends(Reason::IcmpQuote, &[]);
    let mut gre = error.clone();
    gre.payload[9] = 47;
    case("a quote of another protocol", &gre).ends(Reason::IcmpQuote, &[]);
    let layer = Layer::Icmp4(Icmpv4Type::Unknown { type_u8: 13, code_u8: 0, bytes5to8: [0; 4] });
    case("a timestamp request", &Packet { layer, ..error }).ends(Reason::IcmpUnsupported, &[]);
    let v6 = too_big("2001:db8:66::1", &tcp("[2001:db8:7::7]:40000", "[2001:db8:100::1]:80").answer());
    let v6_stranger = Packet { dst: "2001:db8:100::10".parse().unwrap(), ..v6 };
    case("about a packet of someone else, IPv6", &v6_stranger).ends(Reason::IcmpQuote, &[]);
}
