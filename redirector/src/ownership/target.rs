//! The target ranking, and promotion.
//!
//! Weighted rendezvous hashing: every node has a score for every slot, and a slot ranks the nodes by score. Chance alone
//! would leave the shares of 16 nodes at 16,384 slots some 3 % off (one standard deviation), and the shares of a dead
//! node's slots some 12 %. So loads are bounded: a node takes slots up to its exact share and no further, and a slot
//! whose favourite is full goes to its next. The same again for second ranks, within the slots of each primary.
//!
//! What holds, with `W` the sum of weights (tests prove it):
//! - ranks of a slot are distinct; there are as many as nodes, up to four;
//! - a node of weight `w` is primary of `slots × w / W` slots, rounded up or down;
//! - of a node's slots, another node of weight `v` is second in `share × v / (W - w)`, rounded up or down, so that after
//!   a death no survivor gets more than its even share, rounded up;
//! - third and fourth ranks are by score alone, even by chance;
//! - the order of members does not matter, and no platform's floating point does either.
//!
//! A recomputation after one of 16 equal nodes left moves some 1 % of the primaries and 4 % of the secondaries beyond
//! need (measured in the tests).

use super::favourites::{Favourites, Field};

/// The nodes of a slot: primary, secondary and two more; 0 where there are fewer nodes.
pub type Ranks = [u8; 4];

/// An algorithm number that this version does not know: it must not guess, since all nodes must compute the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("ownership algorithm {0} is unknown to this version; it knows 1")]
pub struct UnknownAlgorithm(
    /// The number.
    pub u32,
);

/// Ranks the nodes for each slot. `members` are (node id, weight); without weight a node owns nothing.
///
/// What [`rank`] gives for the numbers of the slots as keys, sooner, since a cluster waits for it.
pub fn target(members: &[(u8, u32)], slots: usize, algorithm: u32) -> Result<Vec<Ranks>, UnknownAlgorithm> {
    Ranking::default().target(members, slots, algorithm)
}

/// Ranks nodes again and again, sooner where few have come or gone since the last time.
#[derive(Default)]
pub struct Ranking {
    field: Option<Field>,
    /// Of each slot, as its place.
    favourites: Vec<Favourites>,
}

impl Ranking {
    /// What [`target`] gives.
    pub fn target(
        &mut self,
        members: &[(u8, u32)],
        slots: usize,
        algorithm: u32,
    ) -> Result<Vec<Ranks>, UnknownAlgorithm> {
        if algorithm != 1 {
            return Err(UnknownAlgorithm(algorithm));
        }
        let nodes = weighted(members);
        if nodes.is_empty() {
            return Ok(vec![Ranks::default(); slots]);
        }
        let field = self.look_at(&nodes, slots);
        let (mut first, mut second) = rooms(slots, &nodes);
        let ranked = self.favourites.iter().zip(0u64..).map(|(favourites, slot)| {
            let mut ranks = Ranks::default();
            let mut primary = 0;
            for rank in 0..ranks.len().min(nodes.len()) {
                let mut room = match rank {
                    0 => Some(&mut first),
                    1 => Some(&mut second[primary]),
                    _ => None,
                };
                let allowed = |node: usize| {
                    !ranks[..rank].contains(&nodes[node].0) && room.as_ref().is_none_or(|room| room[node] > 0)
                };
                let node = favourites.cheapest(allowed).unwrap_or_else(|| field.cheapest(slot, allowed));
                if let Some(room) = &mut room {
                    room[node] -= 1;
                }
                if rank == 0 {
                    primary = node;
                }
                ranks[rank] = nodes[node].0;
            }
            ranks
        });
        let ranked = ranked.collect();
        self.field = Some(field);
        Ok(ranked)
    }

    /// Finds the favourites of every slot among these nodes.
    fn look_at(&mut self, nodes: &[(u8, u32)], slots: usize) -> Field {
        let mut field = Field::new(nodes);
        let former = self.field.take().filter(|_| self.favourites.len() == slots);
        let all = 0..slots as u64;
        match former.and_then(|former| field.succeeds(&former)) {
            Some(succession) => {
                for (favourites, slot) in self.favourites.iter_mut().zip(all) {
                    *favourites = field.succeed(slot, favourites, &succession);
                }
            }
            None => self.favourites = all.map(|slot| field.favourites(slot)).collect(),
        }
        field
    }
}

/// Ranks the nodes for each of these keys, up to `ranks` of them. The order of the keys counts: those that come first find
/// more room.
pub(crate) fn rank(members: &[(u8, u32)], keys: &[u64], ranks: usize) -> Vec<Vec<u8>> {
    let nodes = weighted(members);
    if nodes.is_empty() {
        return vec![Vec::new(); keys.len()];
    }
    let (mut first, mut second) = rooms(keys.len(), &nodes);
    let mut scores = vec![0.0; nodes.len()];
    let ranked = keys.iter().map(|&key| {
        for (score, &node) in scores.iter_mut().zip(&nodes) {
            *score = cost(key, node);
        }
        let mut primary = 0;
        let mut of_key = Vec::with_capacity(ranks.min(nodes.len()));
        for rank in 0..ranks.min(nodes.len()) {
            let node = match rank {
                0 => with_room(&scores, &mut first),
                1 => with_room(&scores, &mut second[primary]),
                _ => cheapest(&scores, |_| true),
            };
            if rank == 0 {
                primary = node;
            }
            of_key.push(nodes[node].0);
            scores[node] = f64::INFINITY;
        }
        of_key
    });
    ranked.collect()
}

/// Takes a dead node out of a slot's ranks; those behind it move up.
pub fn promote(ranks: Ranks, dead: u8) -> Ranks {
    let mut promoted = [0; 4];
    let survivors = ranks.into_iter().filter(|&id| id != dead && id != 0);
    promoted.iter_mut().zip(survivors).for_each(|(rank, id)| *rank = id);
    promoted
}

/// The nodes that may own anything, by id.
fn weighted(members: &[(u8, u32)]) -> Vec<(u8, u32)> {
    let mut nodes: Vec<(u8, u32)> = members.iter().copied().filter(|&(id, weight)| id > 0 && weight > 0).collect();
    nodes.sort();
    nodes.dedup_by_key(|node| node.0);
    nodes
}

/// How many keys each node may be the first of, and for each of these, how many of its keys each may be the second of.
fn rooms(keys: usize, nodes: &[(u8, u32)]) -> (Vec<usize>, Vec<Vec<usize>>) {
    let first = shares(keys, nodes, None);
    let second = (0..nodes.len()).map(|node| shares(first[node], nodes, Some(node))).collect();
    (first, second)
}

/// Deals `places` out by weight, without a node that is excepted: everyone's share rounded down, and one more for
/// those with the greatest remainders, the lower index first.
fn shares(places: usize, nodes: &[(u8, u32)], except: Option<usize>) -> Vec<usize> {
    let weight = |node: usize| if Some(node) == except { 0 } else { u64::from(nodes[node].1) };
    let total: u64 = (0..nodes.len()).map(weight).sum();
    if total == 0 {
        return vec![0; nodes.len()];
    }
    // There are fewer places than 2^32.
    let due: Vec<u64> = (0..nodes.len()).map(|node| places as u64 * weight(node)).collect();
    let mut shares: Vec<usize> = due.iter().map(|due| (due / total) as usize).collect();
    let mut by_remainder: Vec<(u64, usize)> =
        due.iter().zip(0..).map(|(due, node)| (total - due % total, node)).collect();
    by_remainder.sort_unstable();
    let left = places - shares.iter().sum::<usize>();
    by_remainder.into_iter().take(left).for_each(|(_, node)| shares[node] += 1);
    shares
}

/// The cheapest node that has room, which it loses one place of.
fn with_room(scores: &[f64], room: &mut [usize]) -> usize {
    let node = cheapest(scores, |node| room[node] > 0);
    room[node] -= 1;
    node
}

fn cheapest(scores: &[f64], allowed: impl Fn(usize) -> bool) -> usize {
    let mut best = (f64::INFINITY, 0);
    for (node, &score) in scores.iter().enumerate() {
        if score < best.0 && allowed(node) {
            best = (score, node);
        }
    }
    best.1
}

/// What a slot or another key pays for a node: an exponential variable with the weight as its rate, so that a node is the
/// cheapest with a probability in proportion to its weight. The logarithm is `libm`'s, which is the same on every platform.
fn cost(key: u64, (id, weight): (u8, u32)) -> f64 {
    cost_of(mixed(mixed(key) ^ u64::from(id) << 56), weight)
}

/// The cost by the hash of key and node.
#[inline(always)]
pub(super) fn cost_of(hash: u64, weight: u32) -> f64 {
    let uniform = ((hash >> 11) + 1) as i64 as f64 / (1u64 << 53) as f64;
    -libm::log(uniform) / f64::from(weight)
}

/// SplitMix64's finaliser: every bit of the input changes half of the output's.
pub(super) fn mixed(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ value >> 31
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
