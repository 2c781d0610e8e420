//! The header that carries a packet from node to node across routers: within UDP, before the whole inner IP packet.
//!
//! | bytes | field |
//! |---|---|
//! | 0..2 | magic `RD` |
//! | 2 | version, 1 |
//! | 3 | mark: 1 forwarded, 2 final |
//! | 4 | id of the node that sends |
//! | 5..8 | zero |
//! | 8..12 | cluster id, big endian |
//! | 12..16 | low half of the slot's version at the sender, big endian |
//! | 16..24 | tag: SipHash-2-4 of bytes 0..16 and of the inner flow's hash, little endian |
//!
//! Inside a segment there is no header: the source MAC address is the mark (see [`crate::tables::path::FINAL_BIT`]).

use crate::abi::HOP_PORT;
use crate::hash::FlowHash;
use crate::packet::headers::{Ipv4, Udp, Wire};
use crate::packet::{Frame, Packet, protocol};
use crate::reason::{Reason, Station};
use crate::siphash;
use crate::tables::{Mark, Node, Tables};

/// The header's bytes as integers.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Header {
    /// Magic, version, mark, sender and zeros.
    pub start: u64,
    /// Cluster and version.
    pub middle: u64,
    /// The tag.
    pub tag: u64,
}

// SAFETY: three integers, 24 bytes, no padding.
unsafe impl Wire for Header {}

const MAGIC: u64 = u16::from_ne_bytes(*b"RD") as u64;
const VERSION: u64 = 1;

/// Length of UDP header and hop header.
pub const OVERHEAD: usize = 8 + core::mem::size_of::<Header>();

/// The header for a packet that leaves `node` with this mark.
#[inline(always)]
pub fn header(node: &Node, mark: Mark, version: u64, hash: FlowHash) -> Header {
    let kind = 1 + u64::from(mark.is_final());
    let start = (MAGIC | VERSION << 16 | kind << 24 | u64::from(node.id) << 32).to_le();
    let middle = (u64::from(node.cluster) << 32 | version & 0xffff_ffff).to_be();
    Header { start, middle, tag: siphash::tag(&node.tag_key, &[start, middle, hash.whole()]).to_le() }
}

/// A hop header that was taken off, whose tag is still to be checked against the inner flow.
#[derive(Clone, Copy, Debug)]
pub struct Arrived {
    mark: Mark,
    header: Header,
}

impl Arrived {
    /// The packet's mark, if the tag belongs to the flow within.
    #[inline(always)]
    pub fn verify(&self, node: &Node, hash: FlowHash) -> Station<Mark> {
        let expected = siphash::tag(&node.tag_key, &[self.header.start, self.header.middle, hash.whole()]);
        if u64::from_le(self.header.tag) == expected { Ok(self.mark) } else { Err(Reason::HopTag) }
    }
}

/// Whether the packet is UDP to the address and port at which this node takes others' packets.
#[inline(always)]
pub fn is_hop<F: Frame>(frame: &F, packet: &Packet, node: &Node) -> bool {
    let mine = if packet.v6 { &node.hop6 } else { &node.hop4 };
    packet.tuple.protocol == protocol::UDP
        && !packet.is_fragment()
        && packet.tuple.dst.same(mine)
        && match frame.read::<Udp>(usize::from(packet.l4)) {
            Some(udp) => udp.ports.dst == HOP_PORT.to_be(),
            None => false,
        }
}

/// Takes the outer headers off a packet for which [`is_hop`] holds. The frame then starts with a link-layer header whose
/// addresses are the outer frame's.
///
/// # Errors
/// The frame is dropped where the header is malformed, of another version or cluster, or from no member.
#[inline(always)]
pub fn unwrap<F: Frame, T: Tables>(frame: &mut F, packet: &Packet, node: &Node, tables: &T) -> Station<Arrived> {
    let at = usize::from(packet.l4) + 8;
    let header: Header = frame.read(at).ok_or(Reason::HopMalformed)?;
    let (start, middle) = (u64::from_le(header.start), u64::from_be(header.middle));
    let sender = (start >> 32) as u8;
    let mark = match start >> 24 & 0xff {
        1 => Mark::forwarded(sender),
        2 => Mark::kept(sender),
        _ => return Err(Reason::HopMalformed),
    };
    if start & 0xff_ffff != MAGIC | VERSION << 16 || start >> 40 != 0 || (middle >> 32) as u32 != node.cluster {
        return Err(Reason::HopMalformed);
    }
    let known = match tables.peer(sender) {
        // Numbers of neighbours count from 1: 0 is the row of a node that is no member.
        Some(path) => path.neighbour != 0 && path.remote.same(&packet.tuple.src) && sender != node.id && sender != 0,
        None => false,
    };
    if !known {
        return Err(Reason::HopUnknownSender);
    }
    let inner = at + core::mem::size_of::<Header>();
    let first: Ipv4 = frame.read(inner).ok_or(Reason::HopMalformed)?;
    let v6 = match first.version_ihl >> 4 {
        4 => false,
        6 => true,
        _ => return Err(Reason::HopMalformed),
    };
    crate::packet::unwrap_to(frame, inner, v6).ok_or(Reason::NoRoom)?;
    Ok(Arrived { mark, header })
}
