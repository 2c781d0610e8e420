//! A request as a whole frame: link layer, IP and UDP before the beat; to the far end of a path within the path's tunnel.

use std::net::IpAddr;

use redirector_ebpf::abi::BEAT_PORT;
use redirector_ebpf::beat::{BYTES, Beat};
use redirector_ebpf::packet::headers::ethertype;
use redirector_ebpf::packet::protocol;
use redirector_ebpf::stations::beat::udp_checksum;

/// Between which hosts a frame goes.
#[derive(Clone, Copy, Debug)]
pub struct Way {
    /// The sender's MAC address.
    pub source_mac: [u8; 6],
    /// The next hop's.
    pub target_mac: [u8; 6],
    /// 0 is untagged.
    pub vlan: u16,
    /// The sender's address.
    pub source: IpAddr,
    /// The receiver's.
    pub target: IpAddr,
    /// The tunnel that it goes through.
    pub tunnel: Option<Tunnel>,
}

/// The tunnel that a beat goes through.
#[derive(Clone, Copy, Debug)]
pub struct Tunnel {
    /// Its near end.
    pub source: IpAddr,
    /// Its far end.
    pub target: IpAddr,
    /// UDP port of GUE, in network order; none where the tunnel is IP in IP.
    pub gue: Option<u16>,
}

const TTL: u8 = 64;
/// DSCP CS6, for network control (RFC 4594).
const TRAFFIC_CLASS: u8 = 0xc0;
const UDP_BYTES: u16 = 8 + BYTES as u16;
/// UDP and GUE before the inner packet.
const GUE_BYTES: u16 = 12;
/// The source port of all beats through GUE: one flow to whatever spreads flows on the way.
const GUE_SOURCE: u16 = 0xc000;

/// Writes the frame into `frame`, whatever was in it. Addresses of two families are refused.
pub fn write(frame: &mut Vec<u8>, way: &Way, beat: &Beat) -> bool {
    frame.clear();
    frame.extend(way.target_mac);
    frame.extend(way.source_mac);
    if way.vlan != 0 {
        frame.extend(ethertype::VLAN.to_be_bytes());
        frame.extend(way.vlan.to_be_bytes());
    }
    let v4 = way.tunnel.map_or(way.source, |tunnel| tunnel.source).is_ipv4();
    frame.extend(if v4 { ethertype::IPV4 } else { ethertype::IPV6 }.to_be_bytes());
    if let Some(tunnel) = &way.tunnel
        && !enter(frame, tunnel, way.source.is_ipv4())
    {
        return false;
    }
    if !ip(frame, way.source, way.target, protocol::UDP, UDP_BYTES) {
        return false;
    }
    let addresses = frame.len() - if way.source.is_ipv4() { 8 } else { 32 };
    let udp = frame.len();
    frame.extend(BEAT_PORT.to_be_bytes());
    frame.extend(BEAT_PORT.to_be_bytes());
    frame.extend(UDP_BYTES.to_be_bytes());
    frame.extend([0, 0]);
    beat.words.iter().for_each(|word| frame.extend(word.to_le_bytes()));
    let pseudo = u64::from(u16::from_ne_bytes([0, protocol::UDP])) + u64::from(UDP_BYTES.to_be());
    let sum: u64 = frame[addresses..].chunks(2).map(word).sum::<u64>() + pseudo;
    frame[udp + 6..udp + 8].copy_from_slice(&udp_checksum(sum).to_ne_bytes());
    true
}

/// Writes what stands before the inner packet, as the data plane does for clients' packets.
fn enter(frame: &mut Vec<u8>, tunnel: &Tunnel, inner_v4: bool) -> bool {
    let (inner, header) = if inner_v4 { (protocol::IPIP, 20) } else { (protocol::IPV6, 40) };
    let length = header + UDP_BYTES;
    let Some(port) = tunnel.gue else {
        return ip(frame, tunnel.source, tunnel.target, inner, length);
    };
    if !ip(frame, tunnel.source, tunnel.target, protocol::UDP, length + GUE_BYTES) {
        return false;
    }
    frame.extend(GUE_SOURCE.to_be_bytes());
    frame.extend(port.to_ne_bytes());
    frame.extend((length + GUE_BYTES).to_be_bytes());
    // No checksum, which the inner packet has; then GUE's variant, protocol and flags.
    frame.extend([0, 0, 0, inner, 0, 0]);
    true
}

/// Writes an IP header before so many bytes.
fn ip(frame: &mut Vec<u8>, source: IpAddr, target: IpAddr, protocol: u8, length: u16) -> bool {
    match (source, target) {
        (IpAddr::V4(source), IpAddr::V4(target)) => {
            let start = frame.len();
            frame.extend([0x45, TRAFFIC_CLASS]);
            frame.extend((20 + length).to_be_bytes());
            // Identification, and "don't fragment".
            frame.extend([0, 0, 0x40, 0, TTL, protocol, 0, 0]);
            frame.extend(source.octets());
            frame.extend(target.octets());
            let checksum = !fold(&frame[start..]);
            frame[start + 10..start + 12].copy_from_slice(&checksum.to_be_bytes());
            true
        }
        (IpAddr::V6(source), IpAddr::V6(target)) => {
            frame.extend((6 << 28 | u32::from(TRAFFIC_CLASS) << 20).to_be_bytes());
            frame.extend(length.to_be_bytes());
            frame.extend([protocol, TTL]);
            frame.extend(source.octets());
            frame.extend(target.octets());
            true
        }
        _ => false,
    }
}

fn word(pair: &[u8]) -> u64 {
    u64::from(u16::from_ne_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]))
}

/// The sum of big-endian words with the carries folded in.
fn fold(bytes: &[u8]) -> u16 {
    let sum: u32 = bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    (sum + (sum >> 16)) as u16
}
