//! The backend's side: takes tunnel packets from committed sources apart, for configured VIPs only.

use crate::packet::headers::{Ethernet, Gue, Ipv4, Ipv6, Udp, ethertype};
use crate::packet::{Address, Frame, protocol, unwrap_to};
use crate::reason::{Reason, Station};

/// What the decap program asks.
pub trait Sources {
    /// Whether tunnel packets from this address are taken.
    fn is_source(&self, address: &Address, v6: bool) -> bool;
    /// Whether this host serves the VIP.
    fn is_vip(&self, address: &Address, v6: bool) -> bool;
    /// UDP port of GUE, in network order.
    fn gue_port(&self) -> u16;
    /// The MAC address of the interface, as a word.
    fn mac(&self) -> u64;
}

/// Takes one packet apart if it is a tunnel's; all others pass untouched.
#[inline(always)]
pub fn run<F: Frame, S: Sources>(frame: &mut F, sources: &S) -> Reason {
    match unwrap(frame, sources) {
        Ok(()) => Reason::Unwrapped,
        Err(reason) => reason,
    }
}

#[inline(always)]
fn unwrap<F: Frame, S: Sources>(frame: &mut F, sources: &S) -> Station<()> {
    let ethernet: Ethernet = frame.read(0).ok_or(Reason::MalformedEthernet)?;
    if ethernet.dst.word() != sources.mac() {
        return Err(Reason::NotForMe);
    }
    if ethernet.ethertype == ethertype::IPV4.to_be() {
        let ip: Ipv4 = frame.read(14).ok_or(Reason::MalformedIpv4)?;
        let header = usize::from(ip.version_ihl & 0xf) * 4;
        // Fragments of a tunnel packet are left to the kernel, which has no tunnel for them.
        if ip.version_ihl >> 4 != 4 || header < 20 || u16::from_be(ip.fragment) & 0x3fff != 0 {
            return Err(Reason::NotOurs);
        }
        payload(frame, sources, &Address::v4(ip.src), false, ip.protocol, 14 + header, ip.tos)
    } else if ethernet.ethertype == ethertype::IPV6.to_be() {
        let ip: Ipv6 = frame.read(14).ok_or(Reason::MalformedIpv6)?;
        payload(frame, sources, &Address { words: ip.src }, true, ip.next, 54, ip.class())
    } else {
        Err(Reason::NotIp)
    }
}

#[inline(always)]
fn payload<F: Frame, S: Sources>(
    frame: &mut F,
    sources: &S,
    source: &Address,
    v6: bool,
    next: u8,
    at: usize,
    outer_tos: u8,
) -> Station<()> {
    let (inner, carried) = match next {
        protocol::IPIP | protocol::IPV6 => (at, next),
        protocol::UDP => {
            let udp: Udp = frame.read(at).ok_or(Reason::NotOurs)?;
            if udp.ports.dst != sources.gue_port() {
                return Err(Reason::NotOurs);
            }
            let gue: Gue = frame.read(at + 8).ok_or(Reason::TunnelMalformed)?;
            if gue.variant != 0 || gue.flags != 0 {
                return Err(Reason::TunnelMalformed);
            }
            (at + 12, gue.protocol)
        }
        _ => return Err(Reason::NotOurs),
    };
    if !sources.is_source(source, v6) {
        return Err(Reason::TunnelUnknownSource);
    }
    let inner_v6 = carried == protocol::IPV6;
    let vip = if inner_v6 {
        let ip: Ipv6 = frame.read(inner).ok_or(Reason::TunnelMalformed)?;
        if u32::from_be(ip.version_class_label) >> 28 != 6 {
            return Err(Reason::TunnelMalformed);
        }
        Address { words: ip.dst }
    } else if carried == protocol::IPIP {
        let ip: Ipv4 = frame.read(inner).ok_or(Reason::TunnelMalformed)?;
        if ip.version_ihl >> 4 != 4 {
            return Err(Reason::TunnelMalformed);
        }
        Address::v4(ip.dst)
    } else {
        return Err(Reason::TunnelMalformed);
    };
    if !sources.is_vip(&vip, inner_v6) {
        return Err(Reason::TunnelNotVip);
    }
    congestion(frame, inner, inner_v6, outer_tos)?;
    unwrap_to(frame, inner, inner_v6).ok_or(Reason::NoRoom)
}

/// The inner header's ECN field when the tunnel ends: RFC 6040, figure 4.
#[inline(always)]
fn merged(inner: u8, outer: u8) -> Station<u8> {
    const ECT1: u8 = 1;
    const ECT0: u8 = 2;
    const CE: u8 = 3;
    match (inner & CE, outer & CE) {
        // The inner sender does not speak ECN: the mark can only be carried by a loss.
        (0, CE) => Err(Reason::TunnelCongestion),
        (0, _) => Ok(0),
        (_, CE) => Ok(CE),
        (ECT0, ECT1) => Ok(ECT1),
        (inner, _) => Ok(inner),
    }
}

/// Carries a congestion mark of the outer header over to the inner one.
#[inline(always)]
fn congestion<F: Frame>(frame: &mut F, inner: usize, v6: bool, outer_tos: u8) -> Station<()> {
    use crate::packet::checksum;
    if v6 {
        let first: u32 = frame.read(inner).ok_or(Reason::TunnelMalformed)?;
        let class = (u32::from_be(first) >> 20) as u8;
        let ecn = merged(class, outer_tos)?;
        let first = first & !(3u32 << 20).to_be() | (u32::from(ecn) << 20).to_be();
        frame.write(inner, first).ok_or(Reason::NoRoom)
    } else {
        let ip: Ipv4 = frame.read(inner).ok_or(Reason::TunnelMalformed)?;
        let tos = ip.tos & !3 | merged(ip.tos, outer_tos)?;
        if tos == ip.tos {
            return Ok(());
        }
        let old = u16::from_ne_bytes([ip.version_ihl, ip.tos]);
        let new = u16::from_ne_bytes([ip.version_ihl, tos]);
        frame.write(inner, new).ok_or(Reason::NoRoom)?;
        frame.write(inner + 10, checksum::update(ip.checksum, old, new)).ok_or(Reason::NoRoom)
    }
}
