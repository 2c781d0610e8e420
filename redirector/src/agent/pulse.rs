//! What an agent does over and over, in an order that matters: a node's flows are asked for by the slot table in force,
//! before anybody asks whether they are there.

use redirector_ebpf::tables::Slot;

use super::copies::Copies;
use super::follower::Follower;
use super::lookout::{Agreed, Lookout};
use crate::consensus::planner::Report;
use crate::dataplane::liveness::LivenessTables;

/// Gives a sign of life, says who is to have copies of flows, and lets peers be alive that may be. Gives what is to be
/// reported to the leader, where nodes agree.
pub fn pulse(
    lookout: &mut Lookout,
    maps: &impl LivenessTables,
    slots: &[Slot],
    mut copies: Option<&mut impl Copies>,
    follower: Option<&mut Follower>,
    time: u64,
) -> Option<Report> {
    let agreed = follower.as_ref().map_or(Agreed::Nothing, |follower| follower.agreed());
    if let Some(copies) = &mut copies {
        let awaited = follower.as_ref().and_then(|follower| follower.awaited());
        let (slots, digest, agreed) = awaited.unwrap_or_else(|| (slots, maps.condition().slots.load(), agreed));
        copies.set_slots(slots, maps.alive(), digest, agreed);
    }
    maps.condition().agent.store(time);
    let mut delivered = copies.and_then(|copies| copies.delivered());
    if let (Some(delivered), Some(follower)) = (&mut delivered, &follower) {
        let ahead = lookout.ahead(maps, follower.known());
        delivered.to.retain(|peer| !follower.keeps_out() && !ahead.contains(peer));
    }
    lookout.step(maps, delivered.as_ref(), agreed, time);
    follower.map(|follower| follower.report(lookout, delivered.as_ref()))
}
