//! Station 10 on the short way: untagged frames, by few wide stores.

use crate::hash::FlowHash;
use crate::packet::headers::{DONT_FRAGMENT, Gue, ethertype};
use crate::packet::{Frame, Packet, checksum, protocol};
use crate::stations::transmit;
use crate::tables::path::{RESOLVED, kind};
use crate::tables::{Path, Tables};

const MAC: u64 = 0xffff_ffff_ffff;

/// The addresses of the frame as it leaves, in their lower 48 bits.
pub(super) struct Link {
    dst: u64,
    src: u64,
}

impl Link {
    /// The link-layer header for a path, if the packet can take it.
    #[inline(always)]
    pub(super) fn of<T: Tables>(tables: &T, packet: &Packet, path: &Path) -> Option<Self> {
        let neighbour = tables.neighbour(path.neighbour);
        let port = tables.port(path.port)?;
        let fits = usize::from(packet.l3_len) + transmit::overhead(path) <= usize::from(path.mtu);
        let plain = path.vlan == 0 && path.kind != kind::HOP;
        if neighbour & RESOLVED == 0 || port.ifindex == 0 || !fits || !plain {
            return None;
        }
        Some(Self { dst: neighbour & MAC, src: port.mac })
    }

    /// The header's first and last eight bytes, which have two in common.
    #[inline(always)]
    fn words(&self, kind: u16) -> (u64, u64) {
        ((self.dst | self.src << 48).to_le(), (self.src | u64::from(kind.to_be().to_le()) << 48).to_le())
    }
}

/// Rewrites the packet for its path; `None` where the frame cannot be grown.
#[inline(always)]
pub(super) fn send<F: Frame>(
    frame: &mut F,
    packet: &Packet,
    path: &Path,
    link: &Link,
    hash: FlowHash,
    v6: bool,
) -> Option<()> {
    decrement_ttl(frame, packet, v6)?;
    if path.kind == kind::L2 {
        let mut head = frame.head_mut::<14>()?;
        let (first, last) = link.words(if v6 { ethertype::IPV6 } else { ethertype::IPV4 });
        head.put::<0, _>(first);
        head.put::<6, _>(last);
        return Some(());
    }
    let inner = if v6 { protocol::IPV6 } else { protocol::IPIP };
    match (path.kind, path.outer_v6) {
        (kind::IPIP, 0) => {
            frame.move_head(-20)?;
            outer4::<F, 34>(frame, packet, path, link, hash, inner)
        }
        (kind::IPIP, _) => {
            frame.move_head(-40)?;
            outer6::<F, 54>(frame, packet, path, link, hash, inner)
        }
        (_, 0) => {
            frame.move_head(-32)?;
            outer4::<F, 46>(frame, packet, path, link, hash, protocol::UDP)?;
            gue::<F, 34, 42, 46>(frame, packet, path, hash, inner)
        }
        _ => {
            frame.move_head(-52)?;
            outer6::<F, 66>(frame, packet, path, link, hash, protocol::UDP)?;
            gue::<F, 54, 62, 66>(frame, packet, path, hash, inner)
        }
    }
}

#[inline(always)]
fn decrement_ttl<F: Frame>(frame: &mut F, packet: &Packet, v6: bool) -> Option<()> {
    if v6 {
        frame.head_mut::<54>()?.put::<21, u8>(packet.ttl - 1);
        return Some(());
    }
    let sum = frame.head::<34>()?.get::<24, u16>();
    let mut head = frame.head_mut::<34>()?;
    head.put::<22, u8>(packet.ttl - 1);
    head.put::<24, _>(checksum::after_hop(sum));
    Some(())
}

/// Ethernet and IPv4 in front of a packet; the head is `N` bytes more than it was.
#[inline(always)]
fn outer4<F: Frame, const N: usize>(
    frame: &mut F,
    packet: &Packet,
    path: &Path,
    link: &Link,
    hash: FlowHash,
    protocol: u8,
) -> Option<()> {
    const VERSION: u8 = 0x45;
    let len = packet.l3_len + (N as u16 - 14);
    let (src, dst) = (transmit::vary(path, hash.entropy()).words[0], path.remote.words[0]);
    let start = u16::from_ne_bytes([VERSION, packet.tos]);
    let life = u16::from_ne_bytes([transmit::OUTER_TTL, protocol]);
    let sum = u32::from(start)
        + u32::from(len.to_be())
        + u32::from(DONT_FRAGMENT)
        + u32::from(life)
        + checksum::halves(src)
        + checksum::halves(dst);
    let sum = !checksum::fold(sum);
    let mut head = frame.head_mut::<N>()?;
    let (first, last) = link.words(ethertype::IPV4);
    head.put::<0, _>(first);
    head.put::<6, _>(last);
    head.put::<14, _>(words16([start, len.to_be(), 0, DONT_FRAGMENT]));
    head.put::<22, _>(words32([u32_of([life, sum]), src]));
    head.put::<30, _>(dst);
    Some(())
}

#[inline(always)]
fn outer6<F: Frame, const N: usize>(
    frame: &mut F,
    packet: &Packet,
    path: &Path,
    link: &Link,
    hash: FlowHash,
    protocol: u8,
) -> Option<()> {
    let label = u32::from(hash.entropy());
    let start = (6 << 28 | u32::from(packet.tos) << 20 | label).to_be();
    let len = packet.l3_len + (N as u16 - 54);
    let rest = u32_of([len.to_be(), u16::from_ne_bytes([protocol, transmit::OUTER_TTL])]);
    let local = transmit::vary(path, hash.entropy());
    let mut head = frame.head_mut::<N>()?;
    let (first, last) = link.words(ethertype::IPV6);
    head.put::<0, _>(first);
    head.put::<6, _>(last);
    head.put::<14, _>(words32([start, rest]));
    head.put::<22, _>(words32([local.words[0], local.words[1]]));
    head.put::<30, _>(words32([local.words[2], local.words[3]]));
    head.put::<38, _>(words32([path.remote.words[0], path.remote.words[1]]));
    head.put::<46, _>(words32([path.remote.words[2], path.remote.words[3]]));
    Some(())
}

/// UDP at offset `AT` and GUE behind it, before the packet.
#[inline(always)]
fn gue<F: Frame, const AT: usize, const GUE: usize, const N: usize>(
    frame: &mut F,
    packet: &Packet,
    path: &Path,
    hash: FlowHash,
    inner: u8,
) -> Option<()> {
    let source = (0xc000 | hash.entropy() & 0x3fff).to_be();
    let mut head = frame.head_mut::<N>()?;
    // No checksum, as in `transmit`.
    head.put::<AT, _>(words16([source, path.remote_port, (packet.l3_len + 12).to_be(), 0]));
    head.put::<GUE, _>(Gue { variant: 0, protocol: inner, flags: 0 });
    Some(())
}

/// Four halfwords of a packet as one word, in the order in which they stand there.
#[inline(always)]
const fn words16(halves: [u16; 4]) -> u64 {
    words32([u32_of([halves[0], halves[1]]), u32_of([halves[2], halves[3]])])
}

#[inline(always)]
const fn u32_of(halves: [u16; 2]) -> u32 {
    let (low, high) = if cfg!(target_endian = "little") { (0, 1) } else { (1, 0) };
    halves[low] as u32 | (halves[high] as u32) << 16
}

#[inline(always)]
const fn words32(words: [u32; 2]) -> u64 {
    let (low, high) = if cfg!(target_endian = "little") { (0, 1) } else { (1, 0) };
    words[low] as u64 | (words[high] as u64) << 32
}
