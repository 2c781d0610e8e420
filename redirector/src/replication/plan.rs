//! Who is to have a copy of a flow, and which of two nodes' copies counts. Pure functions.

use redirector_ebpf::abi::RANKS;
use redirector_ebpf::tables::{AliveNodes, Slot};

/// A node that saw a packet of a flow within these seconds serves the connection, whatever else is said of it.
pub const RECENT: u64 = 5;

/// The slot table and who is alive, as the agent last put both in force.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// The slots; their number is a power of two, or none.
    pub slots: Vec<Slot>,
    /// Who is alive. A node that is left out has its flows copied to the next rank, where they stay until they are over,
    /// so this should not follow every suspicion.
    pub alive: AliveNodes,
    /// Whether all ranks are to have a slot's flows, not the first two alone: where slots move, a later rank may be given
    /// its flows in order to become the owner.
    pub to_all_ranks: bool,
}

impl View {
    /// The log index of the slot table's last change.
    pub fn version(&self) -> u64 {
        self.slots.iter().map(|slot| slot.version).max().unwrap_or(0)
    }
}

/// Whether `peer` is to have this node's flows of a slot: it is one of the first `copies` ranks that are alive. The peer
/// and this node count as alive. For one that just returned, whose alive bit is off until it has its flows, this is the
/// question that matters.
pub fn wants(slot: &Slot, alive: &AliveNodes, copies: usize, me: u8, peer: u8) -> bool {
    let serves = |node: u8| node != 0 && (node == me || node == peer || alive.is_alive(node));
    let mut owners = slot.ranks[..RANKS].iter().copied().filter(|node| serves(*node)).take(copies);
    peer != me && owners.any(|node| node == peer)
}

/// A set of slots.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SlotSet(Vec<u64>);

impl SlotSet {
    /// The slots of which `peer` is to have this node's flows.
    pub fn wanted(view: &View, me: u8, peer: u8) -> Self {
        let mut words = vec![0; view.slots.len().div_ceil(64)];
        let copies = if view.to_all_ranks { RANKS } else { 2 };
        for (index, _) in view.slots.iter().enumerate().filter(|(_, slot)| wants(slot, &view.alive, copies, me, peer)) {
            words[index / 64] |= 1 << (index % 64);
        }
        Self(words)
    }

    /// Whether it holds a slot.
    pub fn holds(&self, slot: u32) -> bool {
        self.0.get(slot as usize / 64).is_some_and(|word| word >> (slot % 64) & 1 == 1)
    }

    /// Whether it holds a slot that `other` does not.
    pub fn exceeds(&self, other: &Self) -> bool {
        self.0.iter().enumerate().any(|(at, word)| word & !other.0.get(at).copied().unwrap_or(0) != 0)
    }
}

/// What a node says of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Its backend, as this node numbers it.
    pub backend: u16,
    /// Seconds since its last packet.
    pub idle: u64,
    /// Version of its slot when it was recorded.
    pub version: u32,
    /// The node that chose the backend.
    pub origin: u8,
}

/// What becomes of another node's copy of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Merge {
    /// It is the newer word on the same connection.
    Update,
    /// This node knows better already.
    Keep,
    /// Both nodes chose a backend while they could not hear each other; the other's choice holds.
    GiveWay,
    /// Likewise, and this node's holds.
    Prevail,
}

/// Weighs another node's copy of a flow against this node's own. Of two choices of a backend, the one that serves a
/// connection now holds; then the one under the later slot table; then the lower node's. Both sides come to the same.
pub fn merge(mine: &Claim, theirs: &Claim) -> Merge {
    if mine.backend == theirs.backend || mine.origin == theirs.origin {
        return if theirs.idle <= mine.idle { Merge::Update } else { Merge::Keep };
    }
    let strength = |claim: &Claim| (claim.idle <= RECENT, claim.version, u8::MAX - claim.origin);
    if strength(theirs) > strength(mine) { Merge::GiveWay } else { Merge::Prevail }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn slot(ranks: [u8; 4]) -> Slot {
        Slot { ranks, ..Slot::default() }
    }

    fn alive(nodes: &[u8]) -> AliveNodes {
        let mut alive = AliveNodes::default();
        nodes.iter().for_each(|node| alive.set(*node, true));
        alive
    }

    #[test]
    fn copies_go_to_the_first_two_that_are_alive() {
        let everyone = [1, 2, 3, 4, 5];
        // Ranks, who is alive, who sends, and who is to have a copy.
        for (ranks, living, me, copies) in [
            ([1, 2, 3, 4], &everyone[..], 1, &[2][..]),
            ([1, 2, 3, 4], &everyone, 2, &[1]),
            ([1, 2, 3, 4], &everyone, 3, &[1, 2]),
            ([1, 2, 3, 4], &everyone, 5, &[1, 2]),
            ([1, 2, 0, 0], &everyone, 5, &[1, 2]),
            ([1, 0, 0, 0], &everyone, 1, &[]),
            // Whoever is not alive is asked for all the same, in case it is there and has yet to be given its flows.
            ([1, 2, 3, 4], &[1, 3, 4], 1, &[2, 3]),
            ([1, 2, 3, 4], &[3, 4], 3, &[1, 2, 4]),
            ([1, 2, 3, 4], &[1, 2], 1, &[2]),
        ] {
            let of = |peer: &u8| wants(&slot(ranks), &alive(living), 2, me, *peer);
            let got: Vec<u8> = everyone.iter().copied().filter(of).collect();
            assert_eq!(got, copies, "{ranks:?}, alive {living:?}, from {me}");
        }
    }

    #[test]
    fn a_set_of_slots_is_what_was_wanted_of_each() {
        let ranks = |at: u8| if at.is_multiple_of(3) { [1, 2, 3, 0] } else { [3, 1, 2, 0] };
        let mut view =
            View { slots: (0..200).map(|at| slot(ranks(at))).collect(), alive: alive(&[1, 2, 3]), ..View::default() };
        let before = SlotSet::wanted(&view, 1, 2);
        assert!((0..200).all(|at| before.holds(at) == at.is_multiple_of(3)) && !before.holds(200));
        view.alive.set(3, false);
        let after = SlotSet::wanted(&view, 1, 2);
        assert!(after.exceeds(&before) && !before.exceeds(&after) && !after.exceeds(&after));
        assert!(after.holds(199));
    }

    #[test]
    fn activity_then_version_then_node_decides() {
        let claim = |backend, idle, version, origin| Claim { backend, idle, version, origin };
        let mine = claim(1, 6, 10, 2);
        for (theirs, becomes) in [
            (claim(1, 6, 0, 3), Merge::Update),
            (claim(1, 7, 99, 3), Merge::Keep),
            (claim(2, 0, 0, 2), Merge::Update),
            (claim(2, 5, 0, 9), Merge::GiveWay),
            (claim(2, 6, 11, 9), Merge::GiveWay),
            (claim(2, 6, 10, 1), Merge::GiveWay),
            (claim(2, 6, 10, 3), Merge::Prevail),
            (claim(2, 6, 9, 1), Merge::Prevail),
        ] {
            assert_eq!(merge(&mine, &theirs), becomes, "{theirs:?}");
        }
    }

    proptest! {
        #[test]
        fn both_sides_of_a_conflict_agree(
            mine in (0..20u64, 0..3u32, 1..=9u8),
            theirs in (0..20u64, 0..3u32, 1..=9u8),
        ) {
            prop_assume!(mine.2 != theirs.2);
            let claim = |backend, (idle, version, origin)| Claim { backend, idle, version, origin };
            let (mine, theirs) = (claim(1, mine), claim(2, theirs));
            let here = merge(&mine, &theirs) == Merge::Prevail;
            let there = merge(&theirs, &mine) == Merge::Prevail;
            prop_assert!(here != there);
        }
    }
}
