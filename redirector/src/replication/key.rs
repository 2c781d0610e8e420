//! What tells flows apart here: the 5-tuple and its family, in 40 bytes.

use std::hash::{Hash, Hasher};

use redirector_ebpf::hash::{FlowHash, HashKey};
use redirector_ebpf::packet::{Address, Tuple};

/// A flow's key. Addresses and ports stand as in the packet; of an IPv4 address only the first word counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowKey {
    src: Address,
    dst: Address,
    sport: u16,
    dport: u16,
    protocol: u8,
    v6: bool,
}

/// By whole words, since maps of a million flows are asked for them several times a flow.
impl Hash for FlowKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        for [one, two, three, four] in [self.src.words, self.dst.words].map(|words| words.map(u64::from)) {
            state.write_u64(one | two << 32);
            state.write_u64(three | four << 32);
        }
        let [sport, dport] = [self.sport, self.dport].map(u64::from);
        state.write_u64(sport | dport << 16 | u64::from(self.protocol) << 32 | u64::from(self.v6) << 40);
    }
}

impl FlowKey {
    /// The key of a tuple.
    pub fn new(tuple: &Tuple, v6: bool) -> Self {
        let Tuple { src, dst, sport, dport, protocol } = *tuple;
        Self { src, dst, sport, dport, protocol, v6 }
    }

    /// The tuple.
    pub fn tuple(&self) -> Tuple {
        let Self { src, dst, sport, dport, protocol, .. } = *self;
        Tuple { src, dst, sport, dport, protocol }
    }

    /// Whether it is IPv6.
    pub fn v6(&self) -> bool {
        self.v6
    }

    /// The slot that the flow belongs to, of `mask + 1` slots.
    pub fn slot(&self, key: &HashKey, mask: u32) -> u32 {
        FlowHash::of(key, &self.tuple(), self.v6).slot(mask)
    }
}
