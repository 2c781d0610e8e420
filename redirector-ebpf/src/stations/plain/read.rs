//! Parsing on the short way: one check of the length, then fields.

use crate::packet::headers::{Ipv4, Ipv6, Tcp, Udp, ethertype};
use crate::packet::{Address, Frame, Head, Kind, Packet, Tuple, protocol};

/// Ethernet, IPv4 and TCP without options.
const HEAD4: usize = 14 + 20 + 20;
/// Ethernet, IPv6 and TCP without options.
const HEAD6: usize = 14 + 40 + 20;

const MAC: u64 = 0xffff_ffff_ffff;

/// The source MAC address of a frame for this node, by the family of its packet.
pub(super) enum Family {
    V4(u64),
    V6(u64),
}

#[inline(always)]
pub(super) fn family<F: Frame>(frame: &F, own: u64) -> Option<Family> {
    let head = frame.head::<HEAD4>()?;
    // As words whose lower 48 bits are an address: destination, and source with what follows.
    let (to, from) = (head.get::<0, u64>().to_le(), head.get::<6, u64>().to_le());
    if to & MAC != own {
        return None;
    }
    match (from >> 48) as u16 {
        kind if kind == ethertype::IPV4.to_be() => Some(Family::V4(from & MAC)),
        kind if kind == ethertype::IPV6.to_be() => Some(Family::V6(from & MAC)),
        _ => None,
    }
}

#[inline(always)]
pub(super) fn ipv4<F: Frame>(frame: &F, source_mac: u64) -> Option<Packet> {
    let head = frame.head::<HEAD4>()?;
    let ip: Ipv4 = head.get::<14, _>();
    let total = u16::from_be(ip.total_len);
    // Neither options nor a fragment, and a TTL that lasts.
    if ip.version_ihl != 0x45 || ip.fragment & 0x3fffu16.to_be() != 0 || ip.ttl <= 1 || total < 28 {
        return None;
    }
    if !frame.holds(14 + usize::from(total)) {
        return None;
    }
    let (sport, dport, tcp_flags, sequence) = transport::<34, HEAD4>(&head, ip.protocol, total - 20)?;
    let (src, dst) = (Address::v4(ip.src), Address::v4(head.word::<30>()));
    Some(Packet {
        v6: false,
        kind: Kind::Whole,
        tcp_flags,
        ttl: ip.ttl,
        tos: ip.tos,
        l3: 14,
        l4: 34,
        l3_len: total,
        fragment_id: 0,
        sequence,
        source_mac,
        tuple: Tuple { src, dst, sport, dport, protocol: ip.protocol },
    })
}

#[inline(always)]
pub(super) fn ipv6<F: Frame>(frame: &F, source_mac: u64) -> Option<Packet> {
    let head = frame.head::<HEAD6>()?;
    let ip: Ipv6 = head.get::<14, _>();
    let payload = u16::from_be(ip.payload_len);
    if u32::from_be(ip.version_class_label) >> 28 != 6 || ip.hop_limit <= 1 || !(8..=0xffff - 40).contains(&payload) {
        return None;
    }
    if !frame.holds(14 + 40 + usize::from(payload)) {
        return None;
    }
    let (sport, dport, tcp_flags, sequence) = transport::<54, HEAD6>(&head, ip.next, payload)?;
    Some(Packet {
        v6: true,
        kind: Kind::Whole,
        tcp_flags,
        ttl: ip.hop_limit,
        tos: ip.class(),
        l3: 14,
        l4: 54,
        l3_len: 40 + payload,
        fragment_id: 0,
        sequence,
        source_mac,
        tuple: Tuple {
            src: Address { words: ip.src },
            dst: Address { words: [head.word::<38>(), ip.dst[1], head.word::<46>(), ip.dst[3]] },
            sport,
            dport,
            protocol: ip.next,
        },
    })
}

/// Ports, TCP flags and sequence number of a transport header, of which `left` bytes are told.
#[inline(always)]
fn transport<const AT: usize, const N: usize>(
    head: &Head<'_, N>,
    protocol: u8,
    left: u16,
) -> Option<(u16, u16, u8, u32)> {
    match protocol {
        protocol::TCP => {
            let tcp: Tcp = head.get::<AT, _>();
            let sound = left >= 20 && tcp.data_offset >> 4 >= 5;
            sound.then_some((tcp.ports.src, tcp.ports.dst, tcp.flags, tcp.seq))
        }
        protocol::UDP => {
            let udp: Udp = head.get::<AT, _>();
            let len = u16::from_be(udp.len);
            (len >= 8 && len <= left).then_some((udp.ports.src, udp.ports.dst, 0, 0))
        }
        _ => None,
    }
}
