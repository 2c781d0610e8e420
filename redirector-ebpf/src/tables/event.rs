//! What the data plane tells of a flow: that it is proven, that it closes, that it has another backend.

use super::flow::{Entry, Record};
use super::no_padding;
use crate::packet::{Address, Packet, Tuple};
use crate::verifier::put;

/// Version of [`FlowEvent`].
pub const EVENT_VERSION: u8 = 1;

/// A change of a flow that other nodes are to know of.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowEvent {
    /// When the packet came, monotonic nanoseconds.
    pub time: u64,
    /// When the flow was recorded, likewise.
    pub since: u64,
    /// The client.
    pub src: Address,
    /// The VIP.
    pub dst: Address,
    /// The client's port, network order.
    pub sport: u16,
    /// The service's port, network order.
    pub dport: u16,
    /// Number of its service.
    pub service: u16,
    /// Number of its backend.
    pub backend: u16,
    /// Lower half of its slot's version when it was recorded.
    pub slot_version: u32,
    /// [`EVENT_VERSION`].
    pub version: u8,
    /// IP protocol number.
    pub protocol: u8,
    /// [`super::flow::State`].
    pub state: u8,
    /// 1: IPv6; 0: IPv4.
    pub v6: u8,
}

impl FlowEvent {
    /// Fills in the event of a packet after which the flow's entry is this one; `since` and `slot_version` are those of
    /// the flow's record. Field by field and in place: in the kernel there is no stack left for a whole one.
    #[inline(always)]
    pub fn fill(&mut self, packet: &Packet, service: u16, entry: Entry, (since, slot_version): (u64, u32), now: u64) {
        let tuple = &packet.tuple;
        put(&mut self.time, now);
        put(&mut self.since, since);
        let mut word = 0;
        while word < 4 {
            put(&mut self.src.words[word], tuple.src.words[word]);
            put(&mut self.dst.words[word], tuple.dst.words[word]);
            word += 1;
        }
        put(&mut self.sport, tuple.sport);
        put(&mut self.dport, tuple.dport);
        put(&mut self.service, service);
        put(&mut self.backend, entry.backend());
        put(&mut self.slot_version, slot_version);
        put(&mut self.version, EVENT_VERSION);
        put(&mut self.protocol, tuple.protocol);
        put(&mut self.state, entry.state_bits());
        put(&mut self.v6, packet.v6 as u8);
    }

    /// The event of a packet, as [`FlowEvent::fill`] makes it.
    pub fn of(packet: &Packet, service: u16, entry: Entry, record: &Record, now: u64) -> Self {
        let mut event = Self::default();
        event.fill(packet, service, entry, (record.since, record.version), now);
        event
    }

    /// The flow.
    pub fn tuple(&self) -> Tuple {
        let Self { src, dst, sport, dport, protocol, .. } = *self;
        Tuple { src, dst, sport, dport, protocol }
    }
}

no_padding! { FlowEvent = 64 }
