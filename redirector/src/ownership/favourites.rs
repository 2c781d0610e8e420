//! A slot's favourites: the few nodes that are the cheapest for it, found without working out what each node costs.
//!
//! Of many nodes only those are looked at whose hash alone makes them cheap; their costs are taken roughly, since a
//! logarithm takes longer than all the rest, and put in order with the node in the lowest byte, without branches. Where
//! that cannot tell for certain who is the cheapest, it says so, and the exact costs are asked.
//!
//! A node that comes is put in order among the favourites of before; only slots that had a node that goes among theirs
//! look at all nodes anew.

use super::target::{cost_of, mixed};

/// Favourites that are kept of a slot. Four are ranked; the others stand in for those that are full.
const KEPT: usize = 6;

/// Nodes that have a cheap hash for a slot, on average. More take longer, with fewer the exact costs are asked more often.
const WANTED: f64 = 10.0;

/// How far two entries are apart at least for their order to be the one of the exact costs. As numbers with an exponent
/// on top and 52 bits of fraction under it, their values are then apart by the 2^-15th part at least, more than twice
/// what rough costs may be wrong by.
const CLEAR: u64 = 1 << 38;

/// The place of a node that is none: what is not among the favourites starts here.
const NOBODY: u8 = u8::MAX;

/// The nodes, as slots look for favourites among them.
pub(super) struct Field {
    nodes: Vec<Candidate>,
    /// Whether all have the same weight.
    is_even: bool,
    /// No node that is left out for its hash comes before this entry.
    limit: u64,
    /// The cheap hashes of the slot that is looked at, each with the place of its node in the lowest byte, which costs do not
    /// depend on. Clearing them would take as long as finding them does.
    found: [u64; 256],
}

struct Candidate {
    /// The id, where the hash takes it.
    id: u64,
    /// Hashes from here on are cheap.
    from: u64,
    weight: u32,
    per_weight: f64,
}

/// The favourites of one slot, the cheapest first: costs, each with the place of its node in the lowest byte. No node that
/// is left out comes before the last entry.
pub(super) struct Favourites([u64; KEPT]);

/// How the nodes of a field are placed in another one.
pub(super) struct Succession {
    /// By former place; [`NOBODY`] for those that are gone.
    places: Vec<u8>,
    /// Places of those that have come.
    come: Vec<u8>,
}

impl Field {
    /// `nodes` are (id, weight), at most 255, none without weight.
    pub(super) fn new(nodes: &[(u8, u32)]) -> Self {
        // A node costs less than `cost` with the probability that is 1 minus this.
        let spared = |cost: f64, weight: u32| libm::exp(-cost * f64::from(weight));
        let cheap = |cost: f64| nodes.iter().map(|&(_, weight)| 1.0 - spared(cost, weight)).sum::<f64>();
        let weights: f64 = nodes.iter().map(|&(_, weight)| f64::from(weight)).sum();
        let is_even = nodes.iter().all(|node| node.1 == nodes[0].1);
        let is_crowd = nodes.len() as f64 > 1.5 * WANTED;
        let mut below = if is_crowd { WANTED / weights } else { f64::INFINITY };
        while is_crowd && cheap(below) < WANTED {
            below *= 1.1;
        }
        let mut limit = f64::INFINITY;
        let candidate = |&(id, weight): &(u8, u32)| {
            let from = ((spared(below, weight) * (1u64 << 53) as f64) as u64) << 11;
            if let Some(dearer) = from.checked_sub(1) {
                limit = limit.min(match is_even {
                    true => short_of_one(dearer),
                    false => cost_of(dearer, weight),
                });
            }
            Candidate { id: u64::from(id) << 56, from, weight, per_weight: 1.0 / f64::from(weight) }
        };
        let nodes = nodes.iter().map(candidate).collect();
        Self { nodes, is_even, limit: entry(limit, NOBODY), found: [0; 256] }
    }

    /// Which nodes have come and gone since another field, where most have stayed and costs are still taken alike.
    pub(super) fn succeeds(&self, former: &Self) -> Option<Succession> {
        let stays = |a: &Candidate, b: &Candidate| a.id == b.id && (self.is_even || a.weight == b.weight);
        let place = |of: &Candidate| self.nodes.iter().position(|node| stays(node, of)).map_or(NOBODY, |at| at as u8);
        let places: Vec<u8> = former.nodes.iter().map(place).collect();
        let come: Vec<u8> = (0..self.nodes.len() as u8).filter(|at| !places.contains(at)).collect();
        let gone = places.iter().filter(|place| **place == NOBODY).count();
        let is_near = self.is_even == former.is_even && (come.len() + gone) * 4 <= self.nodes.len();
        is_near.then_some(Succession { places, come })
    }

    /// The favourites of a slot that had these among the nodes of before.
    pub(super) fn succeed(&mut self, slot: u64, former: &Favourites, succession: &Succession) -> Favourites {
        let Some(mut favourites) = former.placed(&succession.places) else { return self.favourites(slot) };
        let slot = mixed(slot);
        for &place in &succession.come {
            let node = &self.nodes[usize::from(place)];
            let hash = mixed(slot ^ node.id);
            let cost = if self.is_even { short_of_one(hash) } else { rough(hash) * node.per_weight };
            favourites.insert(entry(cost, place));
        }
        favourites
    }

    /// The favourites of a slot.
    pub(super) fn favourites(&mut self, slot: u64) -> Favourites {
        let Self { nodes, is_even, limit, found } = self;
        let slot = mixed(slot);
        let mut count = 0u8;
        for (node, place) in nodes.iter().zip(0u64..) {
            let hash = mixed(slot ^ node.id);
            found[usize::from(count)] = hash & !0xff | place;
            count += u8::from(hash >= node.from);
        }
        let found = &found[..usize::from(count)];
        match is_even {
            true => sorted(*limit, found, |hash, _| short_of_one(hash)),
            false => sorted(*limit, found, |hash, place| rough(hash) * nodes[usize::from(place)].per_weight),
        }
    }

    /// The cheapest for a slot of the nodes that are allowed, by their exact costs; of equals the first.
    pub(super) fn cheapest(&self, slot: u64, allowed: impl Fn(usize) -> bool) -> usize {
        let slot = mixed(slot);
        let mut best = (f64::INFINITY, 0);
        for (place, node) in self.nodes.iter().enumerate().filter(|(place, _)| allowed(*place)) {
            let hash = mixed(slot ^ node.id);
            // What is short of 1 is less than the logarithm, but for what was rounded off.
            let at_least = short_of_one(hash) * node.per_weight * ((1.0 - 1e-9) / (1u64 << 53) as f64);
            if at_least < best.0 {
                let cost = cost_of(hash, node.weight);
                if cost < best.0 {
                    best = (cost, place);
                }
            }
        }
        best.1
    }
}

/// Puts those that have cheap hashes in order.
fn sorted(limit: u64, found: &[u64], cost: impl Fn(u64, u8) -> f64) -> Favourites {
    let mut favourites = Favourites([limit; KEPT]);
    for &hash in found {
        favourites.insert(entry(cost(hash, hash as u8), hash as u8));
    }
    favourites
}

impl Favourites {
    /// Puts an entry in its place; the dearest is one no more.
    #[inline(always)]
    fn insert(&mut self, mut entry: u64) {
        for favourite in &mut self.0 {
            (*favourite, entry) = (entry.min(*favourite), entry.max(*favourite));
        }
    }

    /// The same nodes in other places; none where one of them is gone.
    fn placed(&self, places: &[u8]) -> Option<Self> {
        let mut favourites = self.0;
        for favourite in favourites.iter_mut().filter(|favourite| **favourite as u8 != NOBODY) {
            let place = places[usize::from(*favourite as u8)];
            if place == NOBODY {
                return None;
            }
            *favourite = *favourite & !0xff | u64::from(place);
        }
        Some(Self(favourites))
    }

    /// The place of the cheapest node that is allowed, unless it is not certain which that is.
    pub(super) fn cheapest(&self, allowed: impl Fn(usize) -> bool) -> Option<usize> {
        for pair in self.0.windows(2) {
            let place = pair[0] as u8;
            if place == NOBODY {
                return None;
            }
            if allowed(place.into()) {
                // Equal costs are in the order of the places that nodes once had.
                return (pair[1].saturating_sub(pair[0]) > CLEAR).then_some(place.into());
            }
        }
        None
    }
}

/// Costs are positive, and in the order of their bits.
fn entry(cost: f64, place: u8) -> u64 {
    cost.to_bits() & !0xff | u64::from(place)
}

/// How much a hash, as a number from 0 to 1, is short of 1. Costs at one weight are in the same order, and at least as far
/// apart in proportion: the logarithm's slope is 1 there, and grows from there on.
fn short_of_one(hash: u64) -> f64 {
    (!hash >> 11) as i64 as f64
}

/// What a hash costs at weight 1, to the 2^-17th part: the logarithm by its series around 1, the exponent apart.
fn rough(hash: u64) -> f64 {
    let uniform = ((hash >> 11) + 1) as i64 as f64 / (1u64 << 53) as f64;
    // Halves from the root of a half up to the root of two.
    const ROOT: u64 = std::f64::consts::FRAC_1_SQRT_2.to_bits();
    let above = uniform.to_bits() + (1.0f64.to_bits() - ROOT);
    let halvings = 1023 - (above >> 52) as i64;
    let fraction = f64::from_bits((above & ((1 << 52) - 1)) + ROOT);
    let s = (fraction - 1.0) / (fraction + 1.0);
    let square = s * s;
    halvings as f64 * std::f64::consts::LN_2 - s * (2.0 + square * (2.0 / 3.0 + square * (2.0 / 5.0)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn is_near(hash: u64) -> bool {
        let exact = cost_of(hash, 1);
        let wrong = (rough(hash) - exact).abs();
        rough(hash).is_sign_positive() && wrong <= exact / f64::from(1 << 17)
    }

    #[test]
    fn rough_costs_are_near_at_the_ends_and_where_the_exponent_changes() {
        let halves = (0..64).map(|halvings| u64::MAX >> halvings);
        let roots = (0..53).map(|halvings| ((std::f64::consts::FRAC_1_SQRT_2 * 2f64.powi(64)) as u64) >> halvings);
        for around in halves.chain(roots) {
            for hash in (0..5000u64).map(|step| around.wrapping_add(step << 11).wrapping_sub(2500 << 11)) {
                assert!(is_near(hash), "{hash:x}");
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]

        #[test]
        fn rough_costs_are_near(hash: u64) {
            prop_assert!(is_near(hash), "{} is not {}", rough(hash), cost_of(hash, 1));
        }
    }
}
