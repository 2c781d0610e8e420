//! How packets leave: ranked paths, tunnels, TTL, and what is too long.

use std::collections::HashSet;
use std::net::IpAddr;

use etherparse::{Icmpv4Type, Icmpv6Type};
use redirector::dataplane::memory::MemoryTables;
use redirector_ebpf::reason::Reason;
use redirector_ebpf::tables::path::alive;
use suite::decode::{Body, decode};
use suite::node::{self, mac, mac_of};
use suite::packet::{Packet, ROUTER, tcp, too_big};

use super::case;

fn v4(port: u16) -> Packet {
    tcp("192.0.2.7:40000", &format!("198.51.100.10:{port}")).tos(0xb9)
}

fn v6(port: u16) -> Packet {
    tcp("[2001:db8:7::7]:40000", &format!("[2001:db8:100::10]:{port}")).tos(0xb9)
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn tunnels_of_all_kinds_and_families() {
    let router4 = (0, mac_of(ip("10.0.0.254")));
    let router6 = (1, mac_of(ip("2001:db8::ffff")));
    let (far4, far6) = (("10.0.0.1", "10.9.0.1"), ("2001:db8:1::1", "2001:db8:9::1"));
    let (gue4, gue6) = (("10.0.0.1", "10.9.0.2"), ("2001:db8:1::1", "2001:db8:9::2"));
    for (says, input, (port, next), (local, remote), tags, over_udp) in [
        ("IPv4 in IPv4", v4(1), router4, far4, &[][..], false),
        ("IPv6 in IPv4", v6(1), router4, far4, &[], false),
        ("IPv4 in IPv6, tagged", v4(2), router6, far6, &[12], false),
        ("IPv6 in IPv6, tagged", v6(2), router6, far6, &[12], false),
        ("IPv4 in GUE over IPv4", v4(3), router4, gue4, &[], true),
        ("IPv6 in GUE over IPv4", v6(3), router4, gue4, &[], true),
        ("IPv4 in GUE over IPv6", v4(4), router6, gue6, &[], true),
        ("IPv6 in GUE over IPv6", v6(4), router6, gue6, &[], true),
        ("two tags in", v4(1).tags(&[1, 2]), router4, far4, &[], false),
        ("options within", v4(3).options(40), router4, gue4, &[], true),
    ] {
        case(says, &input).leaves(Reason::Served, port, &[], |out| {
            assert_eq!((out.to, out.from, &out.tags[..]), (next, mac(1, port), tags));
            let [outer, inner] = &out.ips[..] else { panic!("{out:?}") };
            assert_eq!((outer.src, outer.dst, outer.ttl), (ip(local), ip(remote), 64));
            assert_eq!((outer.tos, outer.dont_fragment), (0xb9, true), "DSCP and ECN are carried, no fragments");
            let Body::Tunnel(udp) = &outer.body else { panic!("{outer:?}") };
            assert_eq!(udp.is_some(), over_udp);
            if let Some(udp) = udp {
                assert_eq!((udp.destination_port, udp.checksum), (6080, 0));
                assert!(udp.source_port >= 49_152, "a port of the dynamic range (RFC 6335)");
            }
            assert_eq!((inner.src, inner.dst, inner.ttl, inner.tos), (input.src, input.dst, 62, 0xb9));
            assert_eq!(inner.len, input.ip_bytes().len());
            let Body::Tcp(_, payload) = &inner.body else { panic!("{inner:?}") };
            assert_eq!(payload, &input.payload);
        });
    }
}

/// What a flow varies is the same for all its packets, and differs between flows.
#[test]
fn outer_headers_vary_by_flow() {
    let tables = node::node(1);
    let seen = |port: u16, client: u16| {
        let done = node::send(&tables, &tcp(&format!("192.0.2.7:{client}"), &format!("198.51.100.10:{port}")).bytes());
        decode(&done.bytes)
    };
    let (mut ports, mut sources, mut labels) = (HashSet::new(), HashSet::new(), HashSet::new());
    for client in 1_000..1_256 {
        let source_port = || {
            let seen = seen(3, client);
            let Body::Tunnel(Some(udp)) = &seen.outer().body else { panic!("no GUE") };
            udp.source_port
        };
        assert_eq!(source_port(), source_port());
        ports.insert(source_port());
        let IpAddr::V4(source) = seen(5, client).outer().src else { panic!() };
        assert_eq!(source.octets()[..3], [10, 8, 0], "within the source prefix");
        sources.insert(source);
        labels.insert(seen(2, client).outer().label);
    }
    assert!(ports.len() > 240 && labels.len() > 240, "{} ports, {} labels", ports.len(), labels.len());
    assert!(sources.len() > 128, "{} source addresses of 256", sources.len());
}

#[test]
fn the_best_path_that_is_alive_or_the_least_bad() {
    const OFF: u64 = alive::OFF;
    const UNPLUGGED: u64 = alive::UNPLUGGED;
    let dead = |ranks: &'static [(usize, u64)]| {
        move |tables: &mut MemoryTables| {
            let paths = tables.image.backends[&node::backend(tables, "ranked/a")].paths;
            tables.paths_off = ranks.iter().map(|(rank, word)| (paths[*rank], *word)).collect();
        }
    };
    let [first, second, third] = ["10.0.2.1", "10.0.2.252", "10.0.2.253"].map(|hop| mac_of(ip(hop)));
    for (says, ranks, port, to, tags, notes) in [
        ("all alive", &[][..], 0, first, &[][..], &[][..]),
        ("the first is dead", &[(0, OFF)], 1, second, &[12], &[]),
        ("the second is dead", &[(1, OFF)], 0, first, &[], &[]),
        ("two are dead", &[(0, UNPLUGGED), (1, OFF)], 1, third, &[], &[]),
        ("all are dead", &[(0, OFF), (1, OFF), (2, OFF)], 0, first, &[], &[Reason::NoteLeastBad]),
        (
            "all are dead, and nothing can leave by the first",
            &[(0, UNPLUGGED), (1, OFF), (2, OFF)],
            1,
            second,
            &[12],
            &[Reason::NoteLeastBad],
        ),
        (
            "all are dead, and something can leave by the last alone",
            &[(0, UNPLUGGED), (1, UNPLUGGED), (2, OFF)],
            1,
            third,
            &[],
            &[Reason::NoteLeastBad],
        ),
        (
            "all are dead, and nothing can leave by any",
            &[(0, UNPLUGGED), (1, UNPLUGGED), (2, UNPLUGGED)],
            0,
            first,
            &[],
            &[Reason::NoteLeastBad],
        ),
    ] {
        case(says, &v4(6)).with(dead(ranks)).leaves(Reason::Served, port, notes, |out| {
            assert_eq!((out.to, out.from, &out.tags[..]), (to, mac(1, port), tags));
        });
    }
    let unknown = |tables: &mut MemoryTables| tables.neighbours.borrow_mut().clear();
    case("the next hop is unknown", &v4(6)).with(unknown).ends(Reason::NoNeighbour, &[]);
    let detached = |tables: &mut MemoryTables| tables.image.ports[0].ifindex = 0;
    case("the port is not attached", &v4(6)).with(detached).ends(Reason::NoPort, &[]);
    let pathless = |tables: &mut MemoryTables| {
        let id = node::backend(tables, "ranked/a");
        tables.image.backends.get_mut(&id).unwrap().paths = [0; 3];
    };
    case("no path at all", &v4(6)).with(pathless).ends(Reason::NoPath, &[]);
}

#[test]
fn the_ttl_counts_this_hop() {
    for port in [1, 3, 6] {
        case("TTL 2", &v4(port).ttl(2)).leaves(Reason::Served, 0, &[], |out| assert_eq!(out.inner().ttl, 1));
        case("TTL 1", &v4(port).ttl(1)).ends(Reason::TtlExceeded, &[]);
        case("TTL 0", &v4(port).ttl(0)).ends(Reason::TtlExceeded, &[]);
        case("hop limit 1", &v6(port).ttl(1)).ends(Reason::TtlExceeded, &[]);
    }
}

/// A packet of so many bytes, IP header included.
fn long(packet: Packet, len: usize) -> Packet {
    let headers = packet.ip_bytes().len() - packet.payload.len();
    packet.sized(len - headers)
}

#[test]
fn what_is_too_long_is_told_the_mtu() {
    for (says, port, room) in [
        ("L2", 7, 1_280),
        ("IP in IPv4", 1, 1_480),
        ("IP in IPv6", 2, 1_460),
        ("GUE over IPv4", 3, 1_468),
        ("GUE over IPv6", 4, 1_448),
    ] {
        for input in [v4(port), v6(port), v4(port).options(20)] {
            let fits = long(input.clone(), room);
            let egress = if matches!(port, 2 | 4) { 1 } else { 0 };
            case(says, &fits).leaves(Reason::Served, egress, &[], |_| {});
            let input = long(input, room + 1).tags(&[8]);
            case(says, &input).leaves(Reason::TooBigSent, 0, &[], |out| {
                assert_eq!((out.to, out.from, &out.tags[..]), (ROUTER, mac(1, 0), &[8][..]));
                let ip = out.outer();
                assert_eq!((ip.src, ip.dst, ip.ttl), (input.dst, input.src, 64));
                let (mtu, quote) = match &ip.body {
                    Body::Icmp4(icmp, quote) => match &icmp.icmp_type {
                        Icmpv4Type::DestinationUnreachable(
                            etherparse::icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu },
                        ) => (usize::from(*next_hop_mtu), quote),
                        other => panic!("{other:?}"),
                    },
                    Body::Icmp6(icmp, quote) => match &icmp.icmp_type {
                        Icmpv6Type::PacketTooBig { mtu } => (*mtu as usize, quote),
                        other => panic!("{other:?}"),
                    },
                    other => panic!("{other:?}"),
                };
                assert_eq!(mtu, room, "{says}");
                assert_eq!(quote[..], input.ip_bytes()[..quote.len()]);
                assert!(quote.len() >= if input.src.is_ipv4() { 28 } else { 48 });
            });
        }
    }
}

#[test]
fn not_everybody_is_told_the_mtu() {
    let input = long(v4(1), 1_481);
    let spent = |tables: &mut MemoryTables| {
        tables.image.node.replies = 10;
        assert_eq!(node::send(tables, &input.bytes()).verdict.reason, Reason::TooBigSent);
    };
    case("the budget is spent", &input).with(spent).ends(Reason::TooBig, &[]);
    let mut error = too_big("203.0.113.200", &v4(1).answer());
    error.payload.resize(1_481 - 28, 0);
    case("no error message about an error message", &error).ends(Reason::TooBig, &[]);
}
