//! The filter of `trace`, and how a decision is told in words.

use super::{Mark, no_padding};
use crate::packet::{Address, Packet, Tuple};
use crate::reason::Reason;
use crate::stations::Journey;

/// Which packets `trace` wants. Zero fields match everything.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TraceFilter {
    /// Client address.
    pub src: Address,
    /// Bits of it that count.
    pub src_mask: Address,
    /// VIP.
    pub dst: Address,
    /// Bits of it that count.
    pub dst_mask: Address,
    /// Client port, network order; 0: any.
    pub sport: u16,
    /// VIP's port, network order; 0: any.
    pub dport: u16,
    /// IP protocol; 0: any.
    pub protocol: u8,
    /// 4 or 6; 0: both.
    pub version: u8,
    /// Zero.
    pub pad: u16,
}

impl TraceFilter {
    /// Whether the packet is wanted.
    #[inline(always)]
    pub fn takes(&self, packet: &Packet) -> bool {
        let tuple = &packet.tuple;
        let mut i = 0;
        while i < 4 {
            if (tuple.src.words[i] ^ self.src.words[i]) & self.src_mask.words[i] != 0
                || (tuple.dst.words[i] ^ self.dst.words[i]) & self.dst_mask.words[i] != 0
            {
                return false;
            }
            i += 1;
        }
        (self.sport == 0 || self.sport == tuple.sport)
            && (self.dport == 0 || self.dport == tuple.dport)
            && (self.protocol == 0 || self.protocol == tuple.protocol)
            && (self.version == 0 || (self.version == 6) == packet.v6)
    }
}

no_padding! { TraceFilter = 72, Captured = 16 + CAPTURE_BYTES }

/// Values of [`super::Node::trace`].
pub mod switch {
    /// Nobody looks.
    pub const OFF: u8 = 0;
    /// Decisions are logged.
    pub const LOG: u8 = 1;
    /// Decisions are logged, and their packets are kept.
    pub const CAPTURE: u8 = 2;
}

/// Bytes that are kept of a packet; a power of two.
pub const CAPTURE_BYTES: usize = 512;

/// A packet as it left, or its first bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Captured {
    /// Monotonic time in nanoseconds.
    pub time: u64,
    /// The packet's length.
    pub length: u32,
    /// How many of the bytes are the packet's.
    pub kept: u32,
    /// The bytes.
    pub bytes: [u8; CAPTURE_BYTES],
}

/// A decision as it is logged.
///
/// | word | bits from the least significant on |
/// |---|---|
/// | 0 | client port 16, VIP's port 16, protocol 8, IPv6 8, reason 16 |
/// | 1, 2 | client address, in network order |
/// | 3, 4 | VIP, in network order |
/// | 5 | service 16 (all ones: none), slot 16, owner 8, known 8, mark 16 |
/// | 6 | backend 16, rank 8, port 8, length 16, avoided backend 16 |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Traced {
    /// The words.
    pub words: [u64; 7],
}

impl Traced {
    /// Packs a decision.
    #[inline(always)]
    pub fn of(journey: &Journey) -> Self {
        let packet = &journey.packet;
        let tuple = &packet.tuple;
        let service = match journey.service {
            Some(service) => service.id,
            None => u16::MAX,
        };
        let words = [
            u64::from(u16::from_be(tuple.sport))
                | u64::from(u16::from_be(tuple.dport)) << 16
                | u64::from(tuple.protocol) << 32
                | u64::from(packet.v6) << 40
                | (journey.verdict.reason as u64) << 48,
            tuple.src.pair(0),
            tuple.src.pair(1),
            tuple.dst.pair(0),
            tuple.dst.pair(1),
            u64::from(service)
                | u64::from(journey.slot & 0xffff) << 16
                | u64::from(journey.owner) << 32
                | u64::from(journey.known) << 40
                | u64::from(journey.mark.0 & 0xffff) << 48,
            u64::from(journey.backend)
                | u64::from(journey.rank) << 16
                | u64::from(journey.verdict.port) << 24
                | u64::from(packet.l3_len) << 32
                | u64::from(journey.avoided) << 48,
        ];
        Self { words }
    }
}

/// How whoever reads the log takes the words apart again.
impl Traced {
    /// The flow.
    pub fn tuple(&self) -> Tuple {
        let address =
            |low: u64, high: u64| Address { words: [low as u32, (low >> 32) as u32, high as u32, (high >> 32) as u32] };
        let [first, src_low, src_high, dst_low, dst_high, ..] = self.words;
        Tuple {
            src: address(src_low, src_high),
            dst: address(dst_low, dst_high),
            sport: (first as u16).to_be(),
            dport: ((first >> 16) as u16).to_be(),
            protocol: (first >> 32) as u8,
        }
    }

    /// Whether it is IPv6.
    pub fn v6(&self) -> bool {
        self.words[0] >> 40 & 1 == 1
    }

    /// What became of the packet; none where another version of the program logged it.
    pub fn reason(&self) -> Option<Reason> {
        Reason::ALL.get((self.words[0] >> 48) as usize).copied()
    }

    /// Its service.
    pub fn service(&self) -> Option<u16> {
        let id = self.words[5] as u16;
        (id != u16::MAX).then_some(id)
    }

    /// Its slot.
    pub fn slot(&self) -> u32 {
        (self.words[5] >> 16) as u32 & 0xffff
    }

    /// The node that serves it; 0: not asked.
    pub fn owner(&self) -> u8 {
        (self.words[5] >> 32) as u8
    }

    /// Whether the flow table knew the flow.
    pub fn known(&self) -> bool {
        self.words[5] >> 40 & 1 == 1
    }

    /// Its mark.
    pub fn mark(&self) -> Mark {
        Mark((self.words[5] >> 48) as u32)
    }

    /// Its backend; 0: not decided here.
    pub fn backend(&self) -> u16 {
        self.words[6] as u16
    }

    /// Rank of the path to the backend.
    pub fn rank(&self) -> u8 {
        (self.words[6] >> 16) as u8
    }

    /// The backend that it did not go to, since no path of that one is alive; 0: it goes where it was to go.
    pub fn avoided(&self) -> u16 {
        (self.words[6] >> 48) as u16
    }

    /// The port that it leaves by, if it does.
    pub fn port(&self) -> u8 {
        (self.words[6] >> 24) as u8
    }

    /// Length of the IP packet.
    pub fn length(&self) -> u16 {
        (self.words[6] >> 32) as u16
    }
}
