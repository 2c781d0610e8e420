//! Station 10: the packet leaves by its path. Nothing is written before all that can be known beforehand is: next hop,
//! port, TTL and length. A frame that cannot be grown is dropped, never sent half-rewritten.

use crate::hash::FlowHash;
use crate::hop;
use crate::packet::headers::{DONT_FRAGMENT, Ethernet, Gue, Ipv4, Ipv6, Mac, Ports, Udp, Vlan, ethertype};
use crate::packet::{Address, Frame, Packet, checksum, protocol};
use crate::reason::{Reason, Station};
use crate::tables::path::{FINAL_BIT, RESOLVED, kind};
use crate::tables::{Mark, Node, Path, Tables};

/// TTL of outer headers.
pub(super) const OUTER_TTL: u8 = 64;

/// Bytes that a path puts before the IP packet, link-layer header not counted.
#[inline(always)]
pub(super) fn overhead(path: &Path) -> usize {
    let ip = if path.outer_v6 != 0 { 40 } else { 20 };
    match path.kind {
        kind::IPIP => ip,
        kind::GUE => ip + 12,
        kind::HOP => ip + hop::OVERHEAD,
        _ => 0,
    }
}

/// Longest IP packet that fits into a path: the MTU that its sender is told.
#[inline(always)]
pub fn room(path: &Path) -> u16 {
    path.mtu.saturating_sub(overhead(path) as u16)
}

/// Rewrites the packet for its path, and says by which port it leaves.
///
/// # Errors
/// [`Reason::NoNeighbour`], [`Reason::NoPort`], [`Reason::TtlExceeded`], [`Reason::TooBig`], [`Reason::NoRoom`].
#[inline(always)]
pub fn send<F: Frame, T: Tables>(
    frame: &mut F,
    tables: &T,
    node: &Node,
    packet: &Packet,
    path: &Path,
    mark: Mark,
    version: u64,
) -> Station<u8> {
    let neighbour = tables.neighbour(path.neighbour);
    if neighbour & RESOLVED == 0 {
        return Err(Reason::NoNeighbour);
    }
    let port = tables.port(path.port).ok_or(Reason::NoPort)?;
    if port.ifindex == 0 {
        return Err(Reason::NoPort);
    }
    if packet.ttl <= 1 {
        return Err(Reason::TtlExceeded);
    }
    if usize::from(packet.l3_len) + overhead(path) > usize::from(path.mtu) {
        return Err(Reason::TooBig);
    }
    let mut source = port.mac;
    if path.kind == kind::L2 && mark.is_final() {
        source ^= FINAL_BIT;
    }
    let link = Link { dst: Mac::from_word(neighbour), src: Mac::from_word(source), vlan: path.vlan };
    decrement_ttl(frame, packet)?;
    if path.kind == kind::L2 {
        reframe(frame, packet, &link, 0, packet.v6)?;
    } else {
        encapsulate(frame, node, packet, path, mark, version, &link)?;
    }
    Ok(path.port)
}

struct Link {
    dst: Mac,
    src: Mac,
    vlan: u16,
}

#[inline(always)]
fn decrement_ttl<F: Frame>(frame: &mut F, packet: &Packet) -> Station<()> {
    let l3 = usize::from(packet.l3);
    if packet.v6 {
        return frame.write(l3 + 7, packet.ttl - 1).ok_or(Reason::NoRoom);
    }
    let ip: Ipv4 = frame.read(l3).ok_or(Reason::NoRoom)?;
    frame.write(l3 + 8, ip.ttl - 1).ok_or(Reason::NoRoom)?;
    frame.write(l3 + 10, checksum::after_hop(ip.checksum)).ok_or(Reason::NoRoom)
}

/// Makes room for `overhead` bytes before the IP packet and writes the link-layer header; returns where it ends.
#[inline(always)]
fn reframe<F: Frame>(frame: &mut F, packet: &Packet, link: &Link, overhead: usize, v6: bool) -> Station<usize> {
    let l2 = if link.vlan != 0 { 18 } else { 14 };
    let by = i32::from(packet.l3) - (l2 + overhead) as i32;
    if by != 0 {
        frame.move_head(by).ok_or(Reason::NoRoom)?;
    }
    let inner = if v6 { ethertype::IPV6 } else { ethertype::IPV4 }.to_be();
    let outer = if link.vlan != 0 { ethertype::VLAN.to_be() } else { inner };
    frame.write(0, Ethernet { dst: link.dst, src: link.src, ethertype: outer }).ok_or(Reason::NoRoom)?;
    if link.vlan != 0 {
        frame.write(14, Vlan { tci: link.vlan.to_be(), ethertype: inner }).ok_or(Reason::NoRoom)?;
    }
    Ok(l2)
}

/// Puts the packet into its path's tunnel.
#[inline(always)]
fn encapsulate<F: Frame>(
    frame: &mut F,
    node: &Node,
    packet: &Packet,
    path: &Path,
    mark: Mark,
    version: u64,
    link: &Link,
) -> Station<()> {
    let inner_protocol = if packet.v6 { protocol::IPV6 } else { protocol::IPIP };
    let hash = if packet.is_fragment() {
        FlowHash::of_fragment(&node.hash_key, &packet.tuple, packet.v6)
    } else {
        FlowHash::of(&node.hash_key, &packet.tuple, packet.v6)
    };
    let over = overhead(path);
    let outer_v6 = path.outer_v6 != 0;
    let at = reframe(frame, packet, link, over, outer_v6)?;
    let len = usize::from(packet.l3_len) + over;
    let outer_protocol = if path.kind == kind::IPIP { inner_protocol } else { protocol::UDP };
    let local = vary(path, hash.entropy());
    let after_ip = if outer_v6 {
        let label = u32::from(hash.entropy());
        let header = Ipv6 {
            version_class_label: (6 << 28 | u32::from(packet.tos) << 20 | label).to_be(),
            payload_len: ((len - 40) as u16).to_be(),
            next: outer_protocol,
            hop_limit: OUTER_TTL,
            src: local.words,
            dst: path.remote.words,
        };
        frame.write(at, header).ok_or(Reason::NoRoom)?;
        40
    } else {
        let mut header = Ipv4 {
            version_ihl: 0x45,
            tos: packet.tos,
            total_len: (len as u16).to_be(),
            id: 0,
            fragment: DONT_FRAGMENT,
            ttl: OUTER_TTL,
            protocol: outer_protocol,
            checksum: 0,
            src: local.words[0],
            dst: path.remote.words[0],
        };
        header.checksum = checksum::ipv4(&header);
        frame.write(at, header).ok_or(Reason::NoRoom)?;
        20
    };
    if path.kind == kind::IPIP {
        return Ok(());
    }
    let udp = Udp {
        ports: Ports { src: (0xc000 | hash.entropy() & 0x3fff).to_be(), dst: path.remote_port },
        len: ((len - after_ip) as u16).to_be(),
        // Zero, as RFC 6935 and RFC 6936 allow for tunnels over IPv6 too: the inner packet has its own.
        checksum: 0,
    };
    frame.write(at + after_ip, udp).ok_or(Reason::NoRoom)?;
    let at = at + after_ip + 8;
    if path.kind == kind::HOP {
        frame.write(at, hop::header(node, mark, version, hash)).ok_or(Reason::NoRoom)
    } else {
        frame.write(at, Gue { variant: 0, protocol: inner_protocol, flags: 0 }).ok_or(Reason::NoRoom)
    }
}

/// The tunnel's source address, with the bits that vary by flow.
#[inline(always)]
pub(super) fn vary(path: &Path, entropy: u16) -> Address {
    let mut local = path.local;
    if path.source_bits != 0 {
        let mask = (1u32 << (path.source_bits & 31)) - 1;
        let last = if path.outer_v6 != 0 { 3 } else { 0 };
        local.words[last] = (u32::from_be(local.words[last]) & !mask | u32::from(entropy) & mask).to_be();
    }
    local
}
