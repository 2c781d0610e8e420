//! Fragments, a turning before station 6: all fragments of a packet, the first included, go to the owner of the slot of
//! (source, destination, protocol). There the first fragment's decision serves the rest.
//!
//! If the flow that the first fragment belongs to needs another owner, that fragment and all after it go on to that
//! owner as the second and last hop; only if that is the node that they came from, they are served where they are.

use super::owner::{self, Decision};
use super::{Journey, Next};
use crate::hash::FlowHash;
use crate::packet::Kind;
use crate::reason::{Reason, Station};
use crate::tables::{AliveNodes, FragmentKey, Mark, Node, Service, Slot, Tables};

/// Sends a fragment to its fragment slot's owner, or a later one the way of its first. `None`: a first fragment that is
/// at the right node and goes on like a whole packet.
#[inline(always)]
pub(super) fn steer<T: Tables>(
    tables: &T,
    node: &Node,
    journey: &mut Journey,
    hash: FlowHash,
) -> Station<Option<Next>> {
    let first = match journey.packet.kind {
        Kind::LaterFragment => FirstDecision::from_word(tables.fragment(&key(journey))),
        _ => None,
    };
    if let Some(decision) = &first
        && decision.node == 0
    {
        // Decided here, as the slot's owner or as the node to which that owner sent the first fragment.
        let service = Service { id: decision.service, pool: decision.pool, ..Service::default() };
        journey.service = Some(service);
        return super::toward_backend(tables, journey, &service, decision.backend).map(Some);
    }
    let slot = tables.slot(hash.slot(node.slot_mask)).ok_or(Reason::NoTables)?;
    let alive = tables.alive().ok_or(Reason::NoTables)?;
    if let Decision::Forward(to) = owner::before_flow(slot, alive, node.id, journey.mark) {
        journey.version = slot.version;
        journey.owner = to;
        return Ok(Some(Next::Node(Mark::forwarded(node.id), Reason::Forwarded)));
    }
    if matches!(journey.packet.kind, Kind::FirstFragment) {
        return Ok(None);
    }
    let to = first.ok_or(Reason::FragmentUnknown)?.node;
    if journey.mark.is_final() || to == journey.mark.sender() {
        return Err(Reason::FragmentUnknown);
    }
    journey.owner = to;
    Ok(Some(Next::Node(Mark::kept(node.id), Reason::Forwarded)))
}

/// Whether a first fragment, at its fragment slot's owner, goes on to its flow's owner.
#[inline(always)]
pub(super) fn owner(slot: &Slot, alive: &AliveNodes, me: u8, mark: Mark) -> Decision {
    if mark.is_final() {
        return Decision::Here;
    }
    match owner::first_alive(slot, alive) {
        to if to == 0 || to == me || to == mark.sender() => Decision::Here,
        to => Decision::HandBack(to),
    }
}

/// Keeps what was decided for a first fragment: the node that it went to, or its backend.
#[inline(always)]
pub(super) fn remember<T: Tables>(tables: &T, journey: &Journey, node: u8, backend: u16) {
    let service = journey.service.unwrap_or_default();
    let decision = FirstDecision { node, backend, service: service.id, pool: service.pool };
    tables.keep_fragment(&key(journey), decision.to_word());
}

#[inline(always)]
fn key(journey: &Journey) -> FragmentKey {
    let packet = &journey.packet;
    FragmentKey {
        src: packet.tuple.src,
        dst: packet.tuple.dst,
        id: packet.fragment_id,
        // IPv6 goes without (RFC 8200, section 4.5): options behind the fragment header stand in the first one only.
        protocol: if packet.v6 { 0 } else { packet.tuple.protocol },
        pad: [0; 3],
    }
}

/// The decision for a fragmented packet, kept in one word: pool (16 bits), service (16), backend (15), one bit set, node (8).
struct FirstDecision {
    node: u8,
    backend: u16,
    service: u16,
    pool: u16,
}

impl FirstDecision {
    #[inline(always)]
    fn to_word(&self) -> u64 {
        u64::from(self.pool)
            | u64::from(self.service) << 16
            | u64::from(self.backend) << 32
            | 1 << 47
            | u64::from(self.node) << 48
    }

    #[inline(always)]
    fn from_word(word: u64) -> Option<Self> {
        if word >> 47 & 1 == 0 {
            return None;
        }
        Some(Self {
            pool: word as u16,
            service: (word >> 16) as u16,
            backend: (word >> 32) as u16 & 0x7fff,
            node: (word >> 48) as u8,
        })
    }
}
