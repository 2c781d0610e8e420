//! Truncated and contradicting packets: dropped or passed, never forwarded.

use redirector_ebpf::reason::{Action, Reason};
use suite::node;
use suite::packet::Extension::{Authentication, Destination, HopByHop};
use suite::packet::{Packet, echo, tcp, too_big, udp};

use super::case_of;

fn kinds() -> Vec<(&'static str, Packet)> {
    let (v4, v6) = (("192.0.2.7:40000", "198.51.100.1:80"), ("[2001:db8:7::7]:40000", "[2001:db8:100::1]:80"));
    vec![
        ("TCP", tcp(v4.0, v4.1)),
        ("TCP, two tags, options", tcp(v4.0, v4.1).tags(&[1, 2]).options(12)),
        ("UDP", udp(v4.0, "198.51.100.1:5060")),
        ("UDP, IPv6", udp(v6.0, "[2001:db8:100::1]:5060")),
        ("TCP, IPv6", tcp(v6.0, v6.1)),
        ("TCP, extension headers", tcp(v6.0, v6.1).extensions(&[HopByHop, Destination(2), Authentication])),
        ("echo", echo("192.0.2.7", "198.51.100.1", 7)),
        ("echo, IPv6", echo("2001:db8:7::7", "2001:db8:100::1", 7)),
        ("ICMP error", too_big("192.0.2.1", &tcp(v4.0, v4.1).answer())),
        ("ICMPv6 error", too_big("2001:db8:7::1", &tcp(v6.0, v6.1).answer())),
    ]
}

#[test]
fn a_packet_that_is_cut_off_anywhere_is_never_forwarded() {
    let tables = node::node(1);
    for (says, packet) in kinds() {
        let whole = packet.bytes();
        assert_eq!(node::send(&tables, &whole).verdict.reason.action(), Action::Transmit, "{says}, whole");
        for len in 14..whole.len() {
            let done = node::send(&tables, &whole[..len]);
            assert_ne!(done.verdict.reason.action(), Action::Transmit, "{says}, {len} of {} bytes", whole.len());
        }
    }
}

#[test]
fn an_ip_length_too_short_for_its_headers_is_never_forwarded() {
    let tables = node::node(1);
    for (says, packet) in kinds() {
        let whole = packet.bytes();
        let l3 = 14 + 4 * packet.tags.len();
        let (field, least) = if packet.src.is_ipv4() { (l3 + 2, 0) } else { (l3 + 4, 0) };
        let headers = whole.len() - l3 - packet.payload.len() - if packet.src.is_ipv4() { 0 } else { 40 };
        for len in least..headers {
            let mut bytes = whole.clone();
            bytes[field..field + 2].copy_from_slice(&(len as u16).to_be_bytes());
            let done = node::send(&tables, &bytes);
            assert_ne!(done.verdict.reason.action(), Action::Transmit, "{says}, length {len}");
        }
    }
}

#[test]
fn contradictions_are_dropped_with_their_reason() {
    let v4 = tcp("192.0.2.7:40000", "198.51.100.1:80").bytes();
    let v6 = tcp("[2001:db8:7::7]:40000", "[2001:db8:100::1]:80").bytes();
    let udp = udp("192.0.2.7:40000", "198.51.100.1:5060").bytes();
    let changed = |bytes: &[u8], at: usize, value: u8| {
        let mut bytes = bytes.to_vec();
        bytes[at] = value;
        bytes
    };
    for (says, bytes, reason) in [
        ("an Ethernet header cut off", v4[..13].to_vec(), Reason::MalformedEthernet),
        ("a VLAN tag cut off", [&v4[..12], &[0x81, 0, 0, 1][..]].concat(), Reason::MalformedEthernet),
        ("IPv4 that says version 5", changed(&v4, 14, 0x55), Reason::MalformedIpv4),
        ("IPv4 with a header of 16 bytes", changed(&v4, 14, 0x44), Reason::MalformedIpv4),
        ("IPv4 longer than the frame", changed(&v4, 17, 0xff), Reason::MalformedIpv4),
        ("IPv6 that says version 4", changed(&v6, 14, 0x40), Reason::MalformedIpv6),
        ("IPv6 longer than the frame", changed(&v6, 18, 0x01), Reason::MalformedIpv6),
        ("TCP with a header of 16 bytes", changed(&v4, 46, 0x40), Reason::MalformedTransport),
        ("UDP longer than the packet", changed(&udp, 39, 0xff), Reason::MalformedTransport),
        ("UDP shorter than its header", changed(&udp, 39, 7), Reason::MalformedTransport),
    ] {
        case_of(says, bytes).ends(reason, &[]);
    }
}

#[test]
fn padding_behind_the_packet_does_not_count() {
    let mut bytes = tcp("192.0.2.7:40000", "198.51.100.1:80").syn().bytes();
    bytes.resize(60, 0xee);
    case_of("a padded frame", bytes).leaves(Reason::Served, 0, &[], |out| assert_eq!(out.outer().len, 40));
}
