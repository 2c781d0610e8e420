//! Station 5: is the packet let in? A new flow by its class against the shed level, and by budgets of new flows; at the
//! highest level the lowest class not at all.
//!
//! | level | refused |
//! |---|---|
//! | 1 | new flows of class low |
//! | 2 | new flows of low and normal |
//! | 3 | new flows of low, normal and high; every packet of low |
//!
//! Class critical is never refused. Where only the flow's state tells whether it is new (UDP of an `owned` service), its
//! owner asks at the flow station. Packets of `shared` services that do not say whether they open a flow (UDP, ICMP) are
//! nobody's new flows: they are refused at level 3 alone.

use crate::hash::mix;
use crate::packet::Packet;
use crate::sync::Word;
use crate::tables::{Budget, Node, Refusal, Service, Tables};

/// Classes by number.
pub mod class {
    /// Never refused.
    pub const CRITICAL: u8 = 0;
    /// Refused last.
    pub const HIGH: u8 = 1;
    /// What most is.
    pub const NORMAL: u8 = 2;
    /// Refused first.
    pub const LOW: u8 = 3;
}

/// The highest shed level.
pub const LEVEL_MAX: u8 = 3;

/// Whether new flows of this class are refused at this level: 1 refuses low, 2 normal too, 3 all but critical.
#[inline(always)]
pub fn is_shed(class: u8, level: u8) -> bool {
    class != class::CRITICAL && class + level > 3
}

/// A packet's class: its service's, or what its DSCP says where the service goes by it. Of the DSCP the class selector
/// counts (RFC 2474): 1 is low, 2 normal, 3 and 4 high, 5 to 7 critical; 0 says nothing, but for lower effort (RFC 8622),
/// which is low.
#[inline(always)]
pub fn class(service: &Service, packet: &Packet) -> u8 {
    if service.dscp == 0 {
        return service.class;
    }
    let dscp = packet.tos >> 2;
    match dscp >> 3 {
        0 if dscp == 1 => class::LOW,
        0 => service.class,
        1 => class::LOW,
        2 => class::NORMAL,
        3 | 4 => class::HIGH,
        _ => class::CRITICAL,
    }
}

/// Lets a new flow in, and takes it from the budgets.
///
/// # Errors
/// [`Refusal::Level`], [`Refusal::NewFlows`], [`Refusal::Source`].
#[inline(always)]
pub fn new_flow<T: Tables>(tables: &T, node: &Node, service: &Service, packet: &Packet) -> Result<(), Refusal> {
    if is_shed(class(service, packet), node.shed_level) {
        Err(Refusal::Level)
    } else if node.new_flows_per_source != 0
        && !spend(tables.source_budget(source_cell(node, packet)), node.new_flows_per_source, tables.now())
    {
        // Before the budget of all, so that one source cannot spend it.
        Err(Refusal::Source)
    } else if node.new_flows != 0 && !spend(tables.budget(Budget::NewFlows), node.new_flows, tables.now()) {
        Err(Refusal::NewFlows)
    } else {
        Ok(())
    }
}

/// Lets any packet pass, unless it is of the lowest class at the highest level. Established flows come here.
///
/// # Errors
/// [`Refusal::Established`].
#[inline(always)]
pub fn any(node: &Node, service: &Service, packet: &Packet) -> Result<(), Refusal> {
    if node.shed_level >= LEVEL_MAX && class(service, packet) >= class::LOW {
        Err(Refusal::Established)
    } else {
        Ok(())
    }
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
/// ITU-T I.371): one word, no refill.
///
/// A source's budget is one word for all CPUs, written whatever another has written since it was read: those that meet take one
/// together, so that *n* CPUs may let in *n* times the rate at worst. Two that asked ten million times a second in all, at rates
/// from 100 to 1,000,000 a second, let in up to 12 % more than the rate and one burst. A compare-and-swap would need 32 bytes more
/// of the program's stack.
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
