//! The one keyed hash of a flow, and the disjoint bits that slot, row, entropy, bucket and tag take from it.
//!
//! The tuple's words are multiplied by secret words and summed: multilinear hashing, which is universal, so that nobody
//! who does not know the key can aim flows at one slot or bucket (Lemire and Kaser, "Strongly universal string hashing is
//! fast", 2014). The sum is then mixed by multiplications and shifts, so that each bit depends on all of it. This is no
//! message authentication; that is [`crate::siphash`].
//!
//! Tried before: folded 128-bit products, as in wyhash. BPF has no such product, and putting it together from halves took
//! 60 instructions a packet where this takes 20.

use crate::packet::{Address, Tuple};

/// The secret words, the same on every node of a cluster so that their tables agree: one for each word of the addresses,
/// one for each port, one for the protocol, and one that all sums start from.
pub type HashKey = [u64; 12];

/// Mixes a sum so that each bit of the result depends on all of it. The constants are those of SplitMix64 and MurmurHash3.
#[inline(always)]
pub fn mix(sum: u64, first: u64, second: u64) -> u64 {
    let x = (sum ^ sum >> 32).wrapping_mul(first);
    let x = (x ^ x >> 29).wrapping_mul(second);
    x ^ x >> 32
}

const PLACE: (u64, u64) = (0xbf58_476d_1ce4_e5b9, 0x94d0_49bb_1331_11eb);
const FLOW: (u64, u64) = (0xff51_afd7_ed55_8ccd, 0xc4ce_b9fe_1a85_ec53);

/// The hash of a flow, from which everything else is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowHash {
    sum: u64,
    place: u64,
}

/// The part of a flow's sum that all flows toward one service have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Toward {
    address: u64,
    service: u64,
}

impl Toward {
    /// Of the flow's destination, its port there and its protocol.
    #[inline(always)]
    pub fn of(key: &HashKey, tuple: &Tuple, v6: bool) -> Self {
        Self::new(key, &tuple.dst, v6, tuple.dport, tuple.protocol)
    }

    #[inline(always)]
    fn new(key: &HashKey, dst: &Address, v6: bool, dport: u16, protocol: u8) -> Self {
        let address = key[11].wrapping_add(words(key, dst, 4, v6));
        let service =
            address.wrapping_add(term(key, u32::from(dport), 9)).wrapping_add(term(key, u32::from(protocol), 10));
        Self { address, service }
    }

    /// The set of [`crate::tables::cell::Cells`] of the service: the sum's upper bits, which are its best.
    #[inline(always)]
    pub fn cells(self) -> u32 {
        (self.service >> (64 - crate::tables::cell::SETS.trailing_zeros())) as u32
    }

    /// What stands for the address alone in [`crate::tables::cell::listed`]: 16 bits.
    #[inline(always)]
    pub fn address_bits(self) -> u32 {
        (self.address >> 48) as u32
    }
}

#[inline(always)]
fn term(key: &HashKey, word: u32, index: usize) -> u64 {
    u64::from(word).wrapping_mul(key[index])
}

#[inline(always)]
fn words(key: &HashKey, address: &Address, first: usize, v6: bool) -> u64 {
    let rest =
        if v6 {
            term(key, address.words[1], first + 1)
                .wrapping_add(term(key, address.words[2], first + 2))
                .wrapping_add(term(key, address.words[3], first + 3))
        } else {
            0
        };
    term(key, address.words[0], first).wrapping_add(rest)
}

impl FlowHash {
    /// The hash of a 5-tuple; `v6` says how much of the addresses counts.
    #[inline(always)]
    pub fn of(key: &HashKey, tuple: &Tuple, v6: bool) -> Self {
        Self::from(key, Toward::of(key, tuple, v6), &tuple.src, tuple.sport, v6)
    }

    /// The hash that all fragments of a packet share: source, destination and, for IPv4, protocol only. Of IPv6 only the
    /// first fragment tells the transport, where options stand before it.
    #[inline(always)]
    pub fn of_fragment(key: &HashKey, tuple: &Tuple, v6: bool) -> Self {
        let toward = Toward::new(key, &tuple.dst, v6, 0, if v6 { 0 } else { tuple.protocol });
        Self::from(key, toward, &tuple.src, 0, v6)
    }

    /// The hash of the flow from this source toward where `toward` says.
    #[inline(always)]
    pub fn from(key: &HashKey, toward: Toward, src: &Address, sport: u16, v6: bool) -> Self {
        let sum = toward.service.wrapping_add(words(key, src, 0, v6)).wrapping_add(term(key, u32::from(sport), 8));
        Self { sum, place: mix(sum, PLACE.0, PLACE.1) }
    }

    /// All 64 bits, for tags that bind a header to its flow.
    #[inline(always)]
    pub fn whole(self) -> u64 {
        self.place
    }

    /// The flow's slot: bits 0..16 of the place, below a mask of `slots - 1`.
    #[inline(always)]
    pub fn slot(self, mask: u32) -> u32 {
        self.place as u32 & 0xffff & mask
    }

    /// The flow's row in a table of `rows`: bits 16..48 of the place, scaled without a division.
    #[inline(always)]
    pub fn row(self, rows: u32) -> u32 {
        let bits = self.place >> 16 & 0xffff_ffff;
        (bits.wrapping_mul(u64::from(rows)) >> 32) as u32
    }

    /// What varies per flow in a tunnel's outer header: bits 48..64 of the place.
    #[inline(always)]
    pub fn entropy(self) -> u16 {
        (self.place >> 48) as u16
    }

    /// Where the flow's entry lives: its bucket (bits 0..32, below a mask of `buckets - 1`) and its 31-bit tag (bits 32..63).
    #[inline(always)]
    pub fn entry(self, mask: u32) -> (u32, u32) {
        let flow = self.own();
        (flow as u32 & mask, (flow >> 32) as u32 & crate::tables::flow::TAG_MAX)
    }

    /// 64 bits that have nothing to do with the flow's place.
    #[inline(always)]
    pub fn own(self) -> u64 {
        mix(self.sum, FLOW.0, FLOW.1)
    }
}
