//! What a frame says, by etherparse. Every checksum on the way is verified; a frame that does not decode fails the
//! test.

use std::net::IpAddr;

use etherparse::{
    EtherType, Ethernet2Header, Icmpv4Header, Icmpv6Header, IpHeaders, IpNumber, SingleVlanHeader, TcpHeader, UdpHeader,
};

use super::packet::Mac;

/// UDP port of GUE.
const GUE: u16 = 6080;

/// UDP port of the header between nodes, and that header's length.
const HOP: (u16, usize) = (4199, 24);

/// A frame.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Destination MAC address.
    pub to: Mac,
    /// Source MAC address.
    pub from: Mac,
    /// VLAN ids.
    pub tags: Vec<u16>,
    /// Its IP packets, tunnels first.
    pub ips: Vec<Ip>,
}

/// An IP packet.
#[derive(Clone, Debug)]
pub struct Ip {
    /// Source.
    pub src: IpAddr,
    /// Destination.
    pub dst: IpAddr,
    /// TTL or hop limit.
    pub ttl: u8,
    /// Type of service or traffic class.
    pub tos: u8,
    /// IPv4's flag; IPv6 is never fragmented on the way.
    pub dont_fragment: bool,
    /// Whether it is a fragment.
    pub fragment: bool,
    /// Whole length.
    pub len: usize,
    /// IPv6 flow label; 0 for IPv4.
    pub label: u32,
    /// What stands in it.
    pub body: Body,
}

/// What stands in an IP packet.
#[derive(Clone, Debug)]
pub enum Body {
    /// A TCP segment.
    Tcp(TcpHeader, Vec<u8>),
    /// A UDP datagram.
    Udp(UdpHeader, Vec<u8>),
    /// An ICMP message.
    Icmp4(Icmpv4Header, Vec<u8>),
    /// An ICMPv6 message.
    Icmp6(Icmpv6Header, Vec<u8>),
    /// Another IP packet, behind UDP if there is a header.
    Tunnel(Option<UdpHeader>),
    /// Anything else, fragments too.
    Other(u8, Vec<u8>),
}

impl Seen {
    /// The outermost IP packet.
    pub fn outer(&self) -> &Ip {
        &self.ips[0]
    }

    /// The innermost IP packet.
    pub fn inner(&self) -> &Ip {
        self.ips.last().expect("decoding ends with a packet")
    }
}

/// Decodes a frame.
pub fn decode(frame: &[u8]) -> Seen {
    let (ethernet, mut rest) = Ethernet2Header::from_slice(frame).expect("an Ethernet header");
    let (mut kind, mut tags) = (ethernet.ether_type, Vec::new());
    while matches!(kind, EtherType::VLAN_TAGGED_FRAME | EtherType::PROVIDER_BRIDGING) {
        let (tag, behind) = SingleVlanHeader::from_slice(rest).expect("a VLAN tag");
        tags.push(tag.vlan_id.value());
        (kind, rest) = (tag.ether_type, behind);
    }
    let mut ips = Vec::new();
    ip(rest, kind == EtherType::IPV6, &mut ips);
    Seen { to: ethernet.destination, from: ethernet.source, tags, ips }
}

/// Decodes an IP packet and those in it.
pub fn ip(bytes: &[u8], v6: bool, ips: &mut Vec<Ip>) {
    let (headers, payload) = IpHeaders::from_slice(bytes).unwrap_or_else(|error| panic!("{error}: {bytes:02x?}"));
    let mut packet = match &headers {
        IpHeaders::Ipv4(header, _) => {
            assert_eq!(header.header_checksum, header.calc_header_checksum(), "the IPv4 header's checksum");
            Ip {
                src: header.source.into(),
                dst: header.destination.into(),
                ttl: header.time_to_live,
                tos: header.dscp.value() << 2 | header.ecn.value(),
                dont_fragment: header.dont_fragment,
                fragment: payload.fragmented,
                len: usize::from(header.total_len),
                label: 0,
                body: Body::Tunnel(None),
            }
        }
        IpHeaders::Ipv6(header, _) => Ip {
            src: header.source.into(),
            dst: header.destination.into(),
            ttl: header.hop_limit,
            tos: header.traffic_class,
            dont_fragment: true,
            fragment: payload.fragmented,
            len: 40 + usize::from(header.payload_length),
            label: header.flow_label.value(),
            body: Body::Tunnel(None),
        },
    };
    assert_eq!(packet.src.is_ipv6(), v6, "the family that the header before it tells");
    let number = payload.ip_number;
    if packet.fragment {
        packet.body = Body::Other(number.0, payload.payload.to_vec());
        return ips.push(packet);
    }
    match number {
        IpNumber::IPV4 | IpNumber::IPV6 => {
            ips.push(packet);
            ip(payload.payload, number == IpNumber::IPV6, ips);
        }
        IpNumber::UDP => udp(packet, payload.payload, ips),
        _ => {
            packet.body = body(&packet, number, payload.payload);
            ips.push(packet);
        }
    }
}

fn udp(mut packet: Ip, bytes: &[u8], ips: &mut Vec<Ip>) {
    let (header, rest) = UdpHeader::from_slice(bytes).expect("a UDP header");
    assert_eq!(usize::from(header.length), bytes.len(), "the length that UDP tells");
    if header.checksum != 0 {
        let expected = match (packet.src, packet.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => header.calc_checksum_ipv4_raw(src.octets(), dst.octets(), rest),
            (IpAddr::V6(src), IpAddr::V6(dst)) => header.calc_checksum_ipv6_raw(src.octets(), dst.octets(), rest),
            _ => unreachable!("one header has one family"),
        };
        assert_eq!(header.checksum, expected.expect("a short payload"), "the UDP checksum");
    }
    if header.destination_port == GUE {
        // Variant 0, no control message, no options; then the payload's protocol; then flags: none.
        assert_eq!((rest[0], rest[2], rest[3]), (0, 0, 0), "the GUE header");
        packet.body = Body::Tunnel(Some(header));
        ips.push(packet);
        ip(&rest[4..], rest[1] == IpNumber::IPV6.0, ips);
    } else if header.destination_port == HOP.0 && rest.starts_with(b"RD") {
        packet.body = Body::Tunnel(Some(header));
        ips.push(packet);
        ip(&rest[HOP.1..], rest[HOP.1] >> 4 == 6, ips);
    } else {
        packet.body = Body::Udp(header, rest.to_vec());
        ips.push(packet);
    }
}

fn body(packet: &Ip, number: IpNumber, bytes: &[u8]) -> Body {
    match (number, packet.src, packet.dst) {
        (IpNumber::TCP, src, dst) => {
            let (header, rest) = TcpHeader::from_slice(bytes).expect("a TCP header");
            let expected = match (src, dst) {
                (IpAddr::V4(src), IpAddr::V4(dst)) => header.calc_checksum_ipv4_raw(src.octets(), dst.octets(), rest),
                (IpAddr::V6(src), IpAddr::V6(dst)) => header.calc_checksum_ipv6_raw(src.octets(), dst.octets(), rest),
                _ => unreachable!("one header has one family"),
            };
            assert_eq!(header.checksum, expected.expect("a short payload"), "the TCP checksum");
            Body::Tcp(header, rest.to_vec())
        }
        (IpNumber::ICMP, ..) => {
            let (header, rest) = Icmpv4Header::from_slice(bytes).expect("an ICMP header");
            assert_eq!(header.checksum, header.icmp_type.calc_checksum(rest), "the ICMP checksum");
            Body::Icmp4(header, rest.to_vec())
        }
        (IpNumber::IPV6_ICMP, IpAddr::V6(src), IpAddr::V6(dst)) => {
            let (header, rest) = Icmpv6Header::from_slice(bytes).expect("an ICMPv6 header");
            let expected = header.icmp_type.calc_checksum(src.octets(), dst.octets(), rest).expect("a short payload");
            assert_eq!(header.checksum, expected, "the ICMPv6 checksum");
            Body::Icmp6(header, rest.to_vec())
        }
        _ => Body::Other(number.0, bytes.to_vec()),
    }
}
