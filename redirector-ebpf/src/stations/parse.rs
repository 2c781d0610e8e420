//! Station 1: what packet is it? In two steps, so that packets for others cost as little as can be: [`network`] finds
//! the addresses; once they say that the packet is for a VIP, [`transport`] finds the flow.

use crate::abi::EXTENSION_HEADERS_MAX;
use crate::packet::headers::{Ethernet, Extension, Icmp, Ipv4, Ipv6, Ports, Tcp, Udp, Vlan, ethertype, icmp, icmpv6};
use crate::packet::{Address, Frame, Kind, Packet, Tuple, protocol};
use crate::reason::{Reason, Station};
use crate::tables::Port;

/// Link and network layer: fills all of the packet but ports, sort and TCP flags.
///
/// # Errors
/// Frames for other MAC addresses, for other protocols, and those whose IP header contradicts itself or the frame.
#[inline(always)]
pub fn network<F: Frame>(frame: &F, port: &Port) -> Station<Packet> {
    let ethernet: Ethernet = frame.read(0).ok_or(Reason::MalformedEthernet)?;
    if ethernet.dst.word() != port.mac {
        return Err(Reason::NotForMe);
    }
    let source_mac = ethernet.src.word();
    let (kind, l3) = skip_tags(frame, ethernet.ethertype)?;
    if kind == ethertype::IPV4.to_be() {
        ipv4(frame, l3, source_mac)
    } else if kind == ethertype::IPV6.to_be() {
        ipv6(frame, l3, source_mac)
    } else {
        Err(Reason::NotIp)
    }
}

/// The ethertype behind up to two VLAN tags, and where its header starts.
#[inline(always)]
fn skip_tags<F: Frame>(frame: &F, first: u16) -> Station<(u16, usize)> {
    if !is_tag(first) {
        return Ok((first, 14));
    }
    let outer: Vlan = frame.read(14).ok_or(Reason::MalformedEthernet)?;
    if !is_tag(outer.ethertype) {
        return Ok((outer.ethertype, 18));
    }
    let inner: Vlan = frame.read(18).ok_or(Reason::MalformedEthernet)?;
    Ok((inner.ethertype, 22))
}

#[inline(always)]
fn is_tag(kind: u16) -> bool {
    kind == ethertype::VLAN.to_be() || kind == ethertype::SERVICE_VLAN.to_be()
}

#[inline(always)]
fn ipv4<F: Frame>(frame: &F, l3: usize, source_mac: u64) -> Station<Packet> {
    let ip: Ipv4 = frame.read(l3).ok_or(Reason::MalformedIpv4)?;
    let header = usize::from(ip.version_ihl & 0xf) * 4;
    let total = usize::from(u16::from_be(ip.total_len));
    if ip.version_ihl >> 4 != 4 || header < 20 || total < header || !frame.holds(l3 + total) {
        return Err(Reason::MalformedIpv4);
    }
    let (kind, fragment_id) = fragment_kind(u16::from_be(ip.fragment) & 0x1fff, 0x2000u16.to_be() & ip.fragment != 0);
    Ok(Packet {
        v6: false,
        kind,
        tcp_flags: 0,
        ttl: ip.ttl,
        tos: ip.tos,
        l3: l3 as u16,
        l4: (l3 + header) as u16,
        l3_len: total as u16,
        fragment_id: if fragment_id { u32::from(ip.id) } else { 0 },
        sequence: 0,
        source_mac,
        tuple: Tuple { src: Address::v4(ip.src), dst: Address::v4(ip.dst), sport: 0, dport: 0, protocol: ip.protocol },
    })
}

/// The sort of a packet by its fragment offset (any unit) and whether more follow, and whether it is a fragment at all.
#[inline(always)]
fn fragment_kind(offset: u16, more: bool) -> (Kind, bool) {
    match (offset, more) {
        (0, false) => (Kind::Whole, false),
        (0, true) => (Kind::FirstFragment, true),
        _ => (Kind::LaterFragment, true),
    }
}

#[inline(always)]
fn ipv6<F: Frame>(frame: &F, l3: usize, source_mac: u64) -> Station<Packet> {
    let ip: Ipv6 = frame.read(l3).ok_or(Reason::MalformedIpv6)?;
    let total = 40 + usize::from(u16::from_be(ip.payload_len));
    if (u32::from_be(ip.version_class_label) >> 28) != 6 || !frame.holds(l3 + total) || total > 0xffff {
        return Err(Reason::MalformedIpv6);
    }
    Ok(Packet {
        v6: true,
        kind: Kind::Whole,
        tcp_flags: 0,
        ttl: ip.hop_limit,
        tos: ip.class(),
        l3: l3 as u16,
        l4: (l3 + 40) as u16,
        l3_len: total as u16,
        fragment_id: 0,
        sequence: 0,
        source_mac,
        tuple: Tuple {
            src: Address { words: ip.src },
            dst: Address { words: ip.dst },
            sport: 0,
            dport: 0,
            protocol: ip.next,
        },
    })
}

/// Transport layer: walks IPv6 extension headers, then fills sort, ports and TCP flags. For an ICMP error the tuple
/// becomes that of the quoted packet, turned round.
///
/// # Errors
/// Headers that are cut off, contradict themselves, or are not walked. Offsets are bounded by the packet's own length.
#[inline(always)]
pub fn transport<F: Frame>(frame: &F, packet: &mut Packet) -> Station<()> {
    if packet.v6 {
        walk_extensions(frame, packet)?;
    }
    if matches!(packet.kind, Kind::LaterFragment) {
        return Ok(());
    }
    let l4 = usize::from(packet.l4);
    let left = (usize::from(packet.l3) + usize::from(packet.l3_len)).saturating_sub(l4);
    match packet.tuple.protocol {
        protocol::TCP => {
            let tcp: Tcp = frame.read(l4).ok_or(Reason::MalformedTransport)?;
            if left < 20 || tcp.data_offset >> 4 < 5 {
                return Err(Reason::MalformedTransport);
            }
            packet.tuple.sport = tcp.ports.src;
            packet.tuple.dport = tcp.ports.dst;
            packet.tcp_flags = tcp.flags;
            packet.sequence = tcp.seq;
            Ok(())
        }
        protocol::UDP => {
            let udp: Udp = frame.read(l4).ok_or(Reason::MalformedTransport)?;
            let len = usize::from(u16::from_be(udp.len));
            if left < 8 || len < 8 || (len > left && matches!(packet.kind, Kind::Whole)) {
                return Err(Reason::MalformedTransport);
            }
            packet.tuple.sport = udp.ports.src;
            packet.tuple.dport = udp.ports.dst;
            Ok(())
        }
        protocol::ICMP if !packet.v6 => icmp4(frame, packet, l4, left),
        protocol::ICMPV6 if packet.v6 => icmp6(frame, packet, l4, left),
        _ => Ok(()),
    }
}

#[inline(always)]
fn walk_extensions<F: Frame>(frame: &F, packet: &mut Packet) -> Station<()> {
    let end = usize::from(packet.l3) + usize::from(packet.l3_len);
    let mut at = usize::from(packet.l4);
    let mut next = packet.tuple.protocol;
    let mut walked = 0;
    while walked < EXTENSION_HEADERS_MAX {
        let extension = match next {
            protocol::HOP_BY_HOP
            | protocol::ROUTING
            | protocol::FRAGMENT
            | protocol::DESTINATION
            | protocol::AUTHENTICATION => read_within::<F, Extension>(frame, at, end)?,
            _ => break,
        };
        let mut len = 8;
        match next {
            protocol::FRAGMENT => {
                let detail = u16::from_be(extension.detail);
                let (kind, fragment) = fragment_kind(detail >> 3, detail & 1 == 1);
                packet.kind = kind;
                packet.fragment_id = if fragment { extension.id } else { 0 };
            }
            protocol::AUTHENTICATION => len = (usize::from(extension.len) + 2) * 4,
            protocol::ROUTING if u16::from_be(extension.detail) & 0xff != 0 => return Err(Reason::RoutingHeader),
            _ => len = (usize::from(extension.len) + 1) * 8,
        }
        next = extension.next;
        at += len;
        walked += 1;
        if matches!(packet.kind, Kind::LaterFragment) {
            break;
        }
    }
    packet.l4 = at as u16;
    packet.tuple.protocol = next;
    let unfinished = matches!(
        next,
        protocol::HOP_BY_HOP
            | protocol::ROUTING
            | protocol::FRAGMENT
            | protocol::DESTINATION
            | protocol::AUTHENTICATION
    );
    if at > end {
        Err(Reason::MalformedTransport)
    } else if unfinished && !matches!(packet.kind, Kind::LaterFragment) {
        Err(Reason::ExtensionHeaders)
    } else {
        Ok(())
    }
}

/// A header that ends within the IP packet, at an offset that stays small enough for the verifier.
#[inline(always)]
fn read_within<F: Frame, T: crate::packet::Wire>(frame: &F, at: usize, end: usize) -> Station<T> {
    if at > OFFSET_MAX || at + core::mem::size_of::<T>() > end {
        return Err(Reason::MalformedTransport);
    }
    frame.read(at).ok_or(Reason::MalformedTransport)
}

/// Deepest offset at which a header is looked for: two tags, IPv6, and six extension headers of the greatest length.
const OFFSET_MAX: usize = 22 + 40 + EXTENSION_HEADERS_MAX * 2048;

#[inline(always)]
fn icmp4<F: Frame>(frame: &F, packet: &mut Packet, l4: usize, left: usize) -> Station<()> {
    let header: Icmp = frame.read(l4).ok_or(Reason::MalformedTransport)?;
    if left < 8 {
        return Err(Reason::MalformedTransport);
    }
    match header.kind {
        icmp::ECHO => {
            if matches!(packet.kind, Kind::Whole) {
                packet.kind = Kind::Echo;
            }
            packet.tuple.sport = header.id;
            Ok(())
        }
        icmp::UNREACHABLE | icmp::TIME_EXCEEDED | icmp::PARAMETER => {
            if left < 8 + 20 + 8 || !matches!(packet.kind, Kind::Whole) {
                return Err(Reason::IcmpQuote);
            }
            quoted4(frame, packet, l4 + 8, left - 8)
        }
        _ => Err(Reason::IcmpUnsupported),
    }
}

#[inline(always)]
fn quoted4<F: Frame>(frame: &F, packet: &mut Packet, at: usize, left: usize) -> Station<()> {
    let ip: Ipv4 = frame.read(at).ok_or(Reason::IcmpQuote)?;
    let header = usize::from(ip.version_ihl & 0xf) * 4;
    let from_vip = ip.src == packet.tuple.dst.words[0];
    let whole = header >= 20 && header + 8 <= left && u16::from_be(ip.fragment) & 0x1fff == 0;
    if ip.version_ihl >> 4 != 4 || !whole || !from_vip {
        return Err(Reason::IcmpQuote);
    }
    let quoted = Tuple { src: Address::v4(ip.dst), dst: packet.tuple.dst, sport: 0, dport: 0, protocol: ip.protocol };
    quoted_ports(frame, packet, at + header, quoted)
}

#[inline(always)]
fn icmp6<F: Frame>(frame: &F, packet: &mut Packet, l4: usize, left: usize) -> Station<()> {
    if l4 > OFFSET_MAX {
        return Err(Reason::MalformedTransport);
    }
    let header: Icmp = frame.read(l4).ok_or(Reason::MalformedTransport)?;
    if left < 8 {
        return Err(Reason::MalformedTransport);
    }
    match header.kind {
        icmpv6::ECHO => {
            if matches!(packet.kind, Kind::Whole) {
                packet.kind = Kind::Echo;
            }
            packet.tuple.sport = header.id;
            Ok(())
        }
        icmpv6::UNREACHABLE..=icmpv6::PARAMETER => {
            if left < 8 + 40 + 8 || !matches!(packet.kind, Kind::Whole) {
                return Err(Reason::IcmpQuote);
            }
            quoted6(frame, packet, l4 + 8)
        }
        // No router has touched it: a neighbour asks whether the VIP is still here, or says that it is elsewhere.
        icmpv6::SOLICITATION | icmpv6::ADVERTISEMENT if packet.ttl == 255 => Err(Reason::NeighbourDiscovery),
        _ => Err(Reason::IcmpUnsupported),
    }
}

#[inline(always)]
fn quoted6<F: Frame>(frame: &F, packet: &mut Packet, at: usize) -> Station<()> {
    let ip: Ipv6 = frame.read(at).ok_or(Reason::IcmpQuote)?;
    let src = Address { words: ip.src };
    if u32::from_be(ip.version_class_label) >> 28 != 6 || !src.same(&packet.tuple.dst) {
        return Err(Reason::IcmpQuote);
    }
    let client = Address { words: ip.dst };
    let quoted = Tuple { src: client, dst: packet.tuple.dst, sport: 0, dport: 0, protocol: ip.next };
    quoted_ports(frame, packet, at + 40, quoted)
}

/// Ends the tuple of a quoted packet, whose transport header is at `at`: what the backend sent from is the service's port.
#[inline(always)]
fn quoted_ports<F: Frame>(frame: &F, packet: &mut Packet, at: usize, mut tuple: Tuple) -> Station<()> {
    match tuple.protocol {
        protocol::TCP | protocol::UDP => {
            let ports: Ports = frame.read(at).ok_or(Reason::IcmpQuote)?;
            tuple.sport = ports.dst;
            tuple.dport = ports.src;
        }
        protocol::ICMP | protocol::ICMPV6 => {
            let echo: Icmp = frame.read(at).ok_or(Reason::IcmpQuote)?;
            tuple.sport = echo.id;
        }
        _ => return Err(Reason::IcmpQuote),
    }
    packet.kind = Kind::Error;
    packet.tuple = tuple;
    Ok(())
}
