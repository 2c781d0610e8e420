//! Station 5: is the new flow let in? By its service's class against the shed level, and by budgets of new flows.
//!
//! Established flows are not touched here. Where only the flow's state tells whether it is new (UDP of an `owned`
//! service), its owner asks the same questions at the flow station.

use crate::hash::mix;
use crate::packet::Packet;
use crate::reason::{Reason, Station};
use crate::sync::Word;
use crate::tables::{Budget, Node, Service, Tables};

/// Whether new flows of this class are refused at this level: 1 refuses low, 2 normal too, 3 all but critical.
#[inline(always)]
pub fn is_shed(class: u8, level: u8) -> bool {
    class != 0 && class + level > 3
}

/// Lets a new flow in, and takes it from the budgets.
///
/// # Errors
/// [`Reason::Shed`], [`Reason::NewFlowBudget`], [`Reason::SourceBudget`].
#[inline(always)]
pub fn new_flow<T: Tables>(tables: &T, node: &Node, service: &Service, packet: &Packet) -> Station<()> {
    if is_shed(service.class, node.shed_level) {
        return Err(Reason::Shed);
    }
    if node.new_flows != 0 && !spend(tables.budget(Budget::NewFlows), node.new_flows, tables.now()) {
        return Err(Reason::NewFlowBudget);
    }
    if node.new_flows_per_source != 0 {
        let cell = tables.source_budget(source_cell(node, packet));
        if !spend(cell, node.new_flows_per_source, tables.now()) {
            return Err(Reason::SourceBudget);
        }
    }
    Ok(())
}

/// The budget cell of the packet's source prefix: /24 of IPv4, /56 of IPv6.
#[inline(always)]
fn source_cell(node: &Node, packet: &Packet) -> u32 {
    let src = &packet.tuple.src;
    let prefix =
        if packet.v6 { u64::from_be(src.pair(0)) & !0xff } else { u64::from(u32::from_be(src.words[0]) & !0xff) };
    mix(prefix.wrapping_mul(node.hash_key[0] | 1), node.hash_key[1] | 1, node.hash_key[2] | 1) as u32
        & (crate::abi::SOURCE_CELLS as u32 - 1)
}

/// Takes one from a budget of `rate` a second with a burst of a tenth of a second, or of one; says whether it was there.
///
/// The word holds the virtual time, in nanoseconds, at which the budget is full again (the generic cell rate algorithm,
/// ITU-T I.371): one word, no refill. A race between CPUs loses one count at most.
#[inline(always)]
pub fn spend(budget: Option<&Word>, rate: u32, now: u64) -> bool {
    let Some(word) = budget else { return true };
    if rate == 0 {
        return true;
    }
    let cost = 1_000_000_000 / u64::from(rate);
    let burst = if cost > 100_000_000 { cost } else { 100_000_000 };
    let full_at = word.load();
    let from = if full_at > now { full_at } else { now };
    if from - now + cost > burst {
        return false;
    }
    word.store(from + cost);
    true
}
