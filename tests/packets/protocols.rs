//! What is read: families, VLAN tags, options, extension headers; and what is none of ours.

use redirector_ebpf::reason::Reason;
use suite::decode::Body;
use suite::node::{mac, mac_of};
use suite::packet::Extension::{Authentication, Destination, HopByHop, Routing};
use suite::packet::{Packet, raw, tcp, udp};

use super::{case, case_of, only};

const V4: (&str, &str) = ("192.0.2.7:40000", "198.51.100.1:80");
const V6: (&str, &str) = ("[2001:db8:7::7]:40000", "[2001:db8:100::1]:80");

/// Served by the first backend, with the inner packet as it was but for its TTL.
fn served(says: &'static str, input: &Packet) {
    case(says, input).with(only("l2/a")).leaves(Reason::Served, 0, &[], |out| {
        assert_eq!((out.to, out.from), (mac_of("10.0.1.1".parse().unwrap()), mac(1, 0)));
        assert!(out.tags.is_empty(), "tags of the way in stay behind");
        let ip = out.outer();
        assert_eq!((ip.src, ip.dst, ip.ttl, ip.tos), (input.src, input.dst, input.ttl - 1, input.tos));
        assert_eq!(ip.len, input.ip_bytes().len());
        let (Body::Tcp(_, payload) | Body::Other(_, payload)) = &ip.body else { panic!("{:?}", ip.body) };
        assert!(payload.ends_with(&input.payload));
    });
}

#[test]
fn whole_packets_of_both_families() {
    served("TCP over IPv4", &tcp(V4.0, V4.1));
    served("TCP over IPv6", &tcp(V6.0, V6.1));
    served("one VLAN tag in, none out", &tcp(V4.0, V4.1).tags(&[100]));
    served("two VLAN tags in, none out", &tcp(V4.0, V4.1).tags(&[100, 200]));
    served("two VLAN tags before IPv6", &tcp(V6.0, V6.1).tags(&[100, 200]));
    served("four bytes of IPv4 options", &tcp(V4.0, V4.1).options(4));
    served("the most IPv4 options", &tcp(V4.0, V4.1).options(40));
    served("DSCP and ECN stay", &tcp(V4.0, V4.1).tos(0xb9));
    served("traffic class stays", &tcp(V6.0, V6.1).tos(0xb9));
    served("no payload", &tcp(V4.0, V4.1).syn());
}

#[test]
fn extension_headers_are_walked_up_to_a_bound() {
    served("hop-by-hop options", &tcp(V6.0, V6.1).extensions(&[HopByHop]));
    served("a routing header that is done with", &tcp(V6.0, V6.1).extensions(&[Routing(0)]));
    served("long destination options", &tcp(V6.0, V6.1).extensions(&[Destination(30)]));
    served("an authentication header", &tcp(V6.0, V6.1).extensions(&[Authentication]));
    let packet = tcp(V6.0, V6.1);
    let six = [Destination(0); 6];
    let input = packet.clone().extensions(&six).bytes();
    // The decoder knows each extension header once, so it cannot judge what becomes of this one.
    let done = suite::node::send(&suite::node::node(1), &input);
    assert_eq!(done.verdict.reason, Reason::Served, "six extension headers");
    assert_eq!((&done.bytes[14..21], &done.bytes[22..]), (&input[14..21], &input[22..]));

    case("seven extension headers", &packet.clone().extensions(&[Destination(0); 7]))
        .ends(Reason::ExtensionHeaders, &[]);
    case("a routing header with segments left", &packet.extensions(&[Routing(1)])).ends(Reason::RoutingHeader, &[]);
}

#[test]
fn what_is_not_ours_passes_untouched() {
    let ours = tcp(V4.0, V4.1);
    case("another's MAC address", &ours.clone().to([2, 9, 9, 9, 9, 9])).ends(Reason::NotForMe, &[]);
    case("broadcast", &ours.clone().to([0xff; 6])).ends(Reason::NotForMe, &[]);
    case("multicast", &ours.clone().to([0x33, 0x33, 0, 0, 0, 1])).ends(Reason::NotForMe, &[]);
    case("no VIP", &tcp(V4.0, "198.51.100.77:80")).ends(Reason::NotOurs, &[]);
    case("no VIP, IPv6", &tcp(V6.0, "[2001:db8:100::77]:80")).ends(Reason::NotOurs, &[]);
    case("no VIP, tagged, with options", &udp(V4.0, "198.51.100.77:80").tags(&[1, 2]).options(8))
        .ends(Reason::NotOurs, &[]);
    case("no VIP, extension headers", &tcp(V6.0, "[2001:db8:100::77]:80").extensions(&[Routing(3)]))
        .ends(Reason::NotOurs, &[]);
    let (src, dst) = ("10.0.0.9".parse().unwrap(), "10.0.0.1".parse().unwrap());
    case("OSPF to this host", &raw(src, dst, 89, vec![7; 40])).ends(Reason::NotOurs, &[]);
    let mut arp = ours.bytes();
    arp[12..14].copy_from_slice(&[0x08, 0x06]);
    case_of("ARP", arp).ends(Reason::NotIp, &[]);
    let mut three_tags = ours.tags(&[1, 2]).bytes();
    three_tags[20..22].copy_from_slice(&[0x81, 0x00]);
    case_of("a third VLAN tag", three_tags).ends(Reason::NotIp, &[]);
}
