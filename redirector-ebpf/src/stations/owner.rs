//! Station 7: who serves the flow? The hop rule, as two pure functions.
//!
//! A packet from outside goes to its slot's first rank that is alive. A packet that another node forwarded stays where it
//! is, with one exception: a flow that its receiver does not know, and that no packet opens here, goes on to the slot's
//! previous owner, or to the owner if that is not the receiver by its own table, marked final. So a packet is forwarded twice at most, and since the second hop never goes to the
//! sender of the first nor to the node itself, it visits no node twice, however much the nodes' tables differ.

use crate::abi::RANKS;
use crate::tables::{AliveNodes, Mark, Slot};

/// What becomes of a packet at this station.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Served here.
    Here,
    /// Sent to this node, which may hand it on.
    Forward(u8),
    /// Sent to this node, which keeps it.
    HandBack(u8),
}

/// The first rank of the slot that is alive; 0: none.
#[inline(always)]
pub fn first_alive(slot: &Slot, alive: &AliveNodes) -> u8 {
    let mut rank = 0;
    while rank < RANKS {
        let node = slot.ranks[rank];
        if node != 0 && alive.is_alive(node) {
            return node;
        }
        rank += 1;
    }
    0
}

/// Before the flow table is asked: here, or at once to another node?
#[inline(always)]
pub fn before_flow(slot: &Slot, alive: &AliveNodes, me: u8, mark: Mark) -> Decision {
    if !mark.is_none() {
        return Decision::Here;
    }
    match first_alive(slot, alive) {
        0 => Decision::Here,
        owner if owner == me => Decision::Here,
        owner => Decision::Forward(owner),
    }
}

/// For a flow that the flow table does not know and that this packet does not open: here, or on to whom may know it?
///
/// That is the slot's previous owner, or, where whoever forwarded the packet goes by a newer table than this node or has
/// another node for dead, the owner by what this node goes by.
#[inline(always)]
pub fn unknown_flow(slot: &Slot, alive: &AliveNodes, me: u8, mark: Mark) -> Decision {
    let may_go_to = |node: u8| node != 0 && node != me && node != mark.sender() && alive.is_alive(node);
    let owner = if mark.is_none() { me } else { first_alive(slot, alive) };
    if mark.is_final() {
        Decision::Here
    } else if may_go_to(owner) {
        Decision::HandBack(owner)
    } else if may_go_to(slot.previous) {
        Decision::HandBack(slot.previous)
    } else {
        Decision::Here
    }
}
