//! The backend's side: takes tunnel packets from committed sources apart, for configured VIPs only, and answers beats: those
//! that came through a tunnel, as packets do, and those that came without one, where packets do too.

use crate::abi::BEAT_PORT;
use crate::beat::{Beat, Kind};
use crate::packet::headers::{Ethernet, Gue, Ipv4, Ipv6, Udp, ethertype};
use crate::packet::{Address, Frame, Packet, protocol, unwrap_to};
use crate::reason::{Reason, Station};
use crate::stations::beat;

/// Who a backend is, and who may ask it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// The MAC address of the interface, as a word.
    pub mac: u64,
    /// The key of beats.
    pub key: [u64; 2],
    /// Drawn anew when the host boots.
    pub boot_id: u64,
    /// The cluster whose beats are answered.
    pub cluster: u32,
    /// UDP port of GUE, in network order.
    pub gue_port: u16,
    /// Number of the key; 0: no beats are answered.
    pub key_id: u8,
    /// Zero.
    pub pad: u8,
}

crate::tables::no_padding! { Settings = 8 + 16 + 8 + 4 + 2 + 1 + 1 }

/// What the decap program asks.
pub trait Sources {
    /// Whether tunnel packets from this address are taken.
    fn is_source(&self, address: &Address, v6: bool) -> bool;
    /// Whether this host serves the VIP.
    fn is_vip(&self, address: &Address, v6: bool) -> bool;
    /// Who this host is.
    fn settings(&self) -> Option<&Settings>;
    /// Monotonic time in nanoseconds.
    fn now(&self) -> u64;
}

/// Takes one packet apart if it is a tunnel's, and sends a beat's answer back; all others pass untouched. `beat` is a place
/// to work in.
#[inline(always)]
pub fn run<F: Frame, S: Sources>(frame: &mut F, sources: &S, beat: &mut Beat) -> Reason {
    let Some(settings) = sources.settings() else { return Reason::NoTables };
    match unwrap(frame, sources, settings) {
        Ok(Found::Packet) => Reason::Unwrapped,
        Ok(Found::Beat { v6 }) => answer(frame, settings, sources.now(), beat, v6),
        Err(reason) => reason,
    }
}

/// What was found.
enum Found {
    /// A client's packet, which has been taken out of its tunnel.
    Packet,
    /// What claims to be a beat, and is not in a tunnel any more.
    Beat { v6: bool },
}

#[inline(always)]
fn unwrap<F: Frame, S: Sources>(frame: &mut F, sources: &S, settings: &Settings) -> Station<Found> {
    let ethernet: Ethernet = frame.read(0).ok_or(Reason::MalformedEthernet)?;
    if ethernet.dst.word() != settings.mac {
        return Err(Reason::NotForMe);
    }
    if ethernet.ethertype == ethertype::IPV4.to_be() {
        let ip: Ipv4 = frame.read(14).ok_or(Reason::MalformedIpv4)?;
        let header = usize::from(ip.version_ihl & 0xf) * 4;
        // Fragments of a tunnel packet are left to the kernel, which has no tunnel for them.
        if ip.version_ihl >> 4 != 4 || header < 20 || u16::from_be(ip.fragment) & 0x3fff != 0 {
            return Err(Reason::NotOurs);
        }
        let source = Outer { address: Address::v4(ip.src), v6: false, tos: ip.tos };
        payload(frame, sources, settings, &source, ip.protocol, 14 + header)
    } else if ethernet.ethertype == ethertype::IPV6.to_be() {
        let ip: Ipv6 = frame.read(14).ok_or(Reason::MalformedIpv6)?;
        let source = Outer { address: Address { words: ip.src }, v6: true, tos: ip.class() };
        payload(frame, sources, settings, &source, ip.next, 54)
    } else {
        Err(Reason::NotIp)
    }
}

/// What the outer header says.
struct Outer {
    address: Address,
    v6: bool,
    tos: u8,
}

#[inline(always)]
fn payload<F: Frame, S: Sources>(
    frame: &mut F,
    sources: &S,
    settings: &Settings,
    outer: &Outer,
    next: u8,
    at: usize,
) -> Station<Found> {
    let (inner, carried) = match next {
        protocol::IPIP | protocol::IPV6 => (at, next),
        protocol::UDP => {
            let udp: Udp = frame.read(at).ok_or(Reason::NotOurs)?;
            let plain = if outer.v6 { 54 } else { 34 };
            if settings.key_id != 0 && at == plain && is_beat(frame, at) {
                return match sources.is_source(&outer.address, outer.v6) {
                    true => Ok(Found::Beat { v6: outer.v6 }),
                    false => Err(Reason::TunnelUnknownSource),
                };
            }
            if udp.ports.dst != settings.gue_port {
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
    if !sources.is_source(&outer.address, outer.v6) {
        return Err(Reason::TunnelUnknownSource);
    }
    let inner_v6 = carried == protocol::IPV6;
    let mut transport = 0;
    let vip = if inner_v6 {
        let ip: Ipv6 = frame.read(inner).ok_or(Reason::TunnelMalformed)?;
        if u32::from_be(ip.version_class_label) >> 28 != 6 {
            return Err(Reason::TunnelMalformed);
        }
        if ip.next == protocol::UDP {
            transport = inner + 40;
        }
        Address { words: ip.dst }
    } else if carried == protocol::IPIP {
        let ip: Ipv4 = frame.read(inner).ok_or(Reason::TunnelMalformed)?;
        if ip.version_ihl >> 4 != 4 {
            return Err(Reason::TunnelMalformed);
        }
        if ip.version_ihl == 0x45 && ip.protocol == protocol::UDP {
            transport = inner + 20;
        }
        Address::v4(ip.dst)
    } else {
        return Err(Reason::TunnelMalformed);
    };
    if !sources.is_vip(&vip, inner_v6) {
        if settings.key_id == 0 || transport == 0 || !is_beat(frame, transport) {
            return Err(Reason::TunnelNotVip);
        }
        unwrap_to(frame, inner, inner_v6).ok_or(Reason::NoRoom)?;
        return Ok(Found::Beat { v6: inner_v6 });
    }
    congestion(frame, inner, inner_v6, outer.tos)?;
    unwrap_to(frame, inner, inner_v6).ok_or(Reason::NoRoom)?;
    Ok(Found::Packet)
}

/// Whether a UDP datagram claims to be a beat.
#[inline(always)]
fn is_beat<F: Frame>(frame: &F, at: usize) -> bool {
    frame.read::<Udp>(at).is_some_and(|udp| udp.ports.dst == BEAT_PORT.to_be())
        && frame.read::<u64>(at + 8).is_some_and(|word| Beat::is_magic(u64::from_le(word)))
}

/// Sends a beat's answer back to whoever asked, by the way it came: in no tunnel, since nobody's packets come back in one.
#[inline(always)]
fn answer<F: Frame>(frame: &mut F, settings: &Settings, now: u64, beat: &mut Beat, v6: bool) -> Reason {
    let (l4, l3_len) = if v6 {
        let Some(ip) = frame.read::<Ipv6>(14) else { return Reason::BeatMalformed };
        (54, u16::from_be(ip.payload_len).wrapping_add(40))
    } else {
        let Some(ip) = frame.read::<Ipv4>(14) else { return Reason::BeatMalformed };
        (34, u16::from_be(ip.total_len))
    };
    let packet = Packet { v6, l3: 14, l4, l3_len, ..Packet::default() };
    if !beat::is_whole(frame, &packet) || !beat::read(frame, usize::from(l4) + 8, beat) {
        return Reason::BeatMalformed;
    }
    if let Err(reason) = beat.check_path(&settings.key, settings.key_id, settings.cluster, Kind::PathRequest) {
        return reason;
    }
    beat.answer_path(settings.boot_id, now);
    beat.seal_with(&settings.key);
    match beat::turn_round(frame, &packet, settings.mac, beat) {
        Some(()) => Reason::BeatAnswered,
        None => Reason::BeatMalformed,
    }
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
