//! Who is to have a copy of a flow, and which of two nodes' copies counts. Pure functions.

use redirector_ebpf::abi::RANKS;
use redirector_ebpf::tables::{AliveNodes, Slot};

/// Seconds by which the times of a flow's last packet may differ from node to node, whose clocks are cut to seconds.
const SKEW: u64 = 3;

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

    /// How many of a slot's ranks that are alive are to have its flows.
    pub fn copies(&self) -> usize {
        if self.to_all_ranks { RANKS } else { 2 }
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
        let is_wanted = |slot: &Slot| wants(slot, &view.alive, view.copies(), me, peer);
        for (index, _) in view.slots.iter().enumerate().filter(|(_, slot)| is_wanted(slot)) {
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
    /// Version of its slot when it was recorded; 0: by a node that does not own the slot and reached nobody who does.
    pub version: u32,
    /// The node that chose the backend.
    pub origin: u8,
    /// Whether this is a copy at another node than `origin`, which can be asked itself. A copy may not know of the flow's
    /// last packets.
    pub is_copy: bool,
    /// Whether its connection has been closed.
    pub is_over: bool,
}

/// What becomes of another node's copy of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Merge {
    /// It is the newer word on the same connection.
    Update,
    /// This node knows better already.
    Keep,
    /// Which is the newer word will show: it is to be said again.
    Unclear,
    /// Both nodes chose a backend while they could not hear each other; the other's choice holds.
    GiveWay,
    /// Likewise, and this node's holds.
    Prevail,
}

/// Weighs what another node says of a flow against what this node has. Of two choices of a backend, the one that serves a
/// connection now holds; then the one under the later slot table; then the lower node's. Both sides come to the same.
///
/// What is only a copy decides nothing, unless it is known that its connection is served now: whoever made the choice
/// decides, and then tells those that have copies. It gives way to what is served now, since this node may be the owner.
pub fn merge(mine: &Claim, theirs: &Claim, from: u8) -> Merge {
    // A node that chose alone did not know what it had chosen before, in an earlier life.
    let is_one_choosers = mine.origin == theirs.origin && (mine.version == 0) == (theirs.version == 0);
    if mine.backend == theirs.backend || is_one_choosers {
        return match (mine.is_over, theirs.is_over) {
            // Connections end once; what comes after that is another one.
            (false, true) if theirs.idle <= mine.idle + SKEW => Merge::Update,
            (true, false) if theirs.idle + SKEW >= mine.idle => Merge::Unclear,
            _ if theirs.idle <= mine.idle => Merge::Update,
            _ => Merge::Keep,
        };
    }
    let decides = |claim: &Claim| !claim.is_copy || claim.idle <= RECENT;
    match (decides(mine), decides(theirs)) {
        (false, _) if from == mine.origin => return Merge::Update,
        // Should the choice that this is a copy of be in use, whoever made it hears of the other, and tells of it again.
        (false, true) if theirs.idle <= RECENT => return Merge::GiveWay,
        (true, true) => {}
        _ => return Merge::Keep,
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

    fn claim(backend: u16, idle: u64, version: u32, origin: u8) -> Claim {
        Claim { backend, idle, version, origin, is_copy: false, is_over: false }
    }

    #[test]
    fn activity_then_version_then_node_decides() {
        let mine = claim(1, 6, 10, 2);
        for (theirs, becomes) in [
            (claim(1, 6, 0, 3), Merge::Update),
            (claim(1, 7, 99, 3), Merge::Keep),
            (claim(2, 0, 11, 2), Merge::Update),
            (claim(2, 6, 0, 2), Merge::Prevail),
            (claim(2, 5, 0, 9), Merge::GiveWay),
            (claim(2, 6, 11, 9), Merge::GiveWay),
            (claim(2, 6, 10, 1), Merge::GiveWay),
            (claim(2, 6, 10, 3), Merge::Prevail),
            (claim(2, 6, 9, 1), Merge::Prevail),
        ] {
            assert_eq!(merge(&mine, &theirs, theirs.origin), becomes, "{theirs:?}");
        }
    }

    #[test]
    fn what_has_ended_does_not_go_on_by_an_older_word() {
        let over = |claim| Claim { is_over: true, ..claim };
        let at = |idle| claim(1, idle, 1, 2);
        for (mine, theirs, becomes) in [
            (at(1), over(at(3)), Merge::Update),
            (at(1), over(at(5)), Merge::Keep),
            (over(at(1)), at(1), Merge::Unclear),
            (over(at(3)), at(0), Merge::Unclear),
            (over(at(4)), at(0), Merge::Update),
            (over(at(2)), over(at(2)), Merge::Update),
            (over(at(2)), over(at(3)), Merge::Keep),
        ] {
            assert_eq!(merge(&mine, &theirs, 2), becomes, "{mine:?} {theirs:?}");
        }
    }

    #[test]
    fn copies_leave_it_to_whoever_chose() {
        let copy = |claim| Claim { is_copy: true, ..claim };
        let (mine, theirs) = (claim(1, 30, 10, 2), claim(2, 30, 11, 9));
        for (mine, theirs, from, becomes) in [
            (mine, copy(theirs), 8, Merge::Keep),
            (copy(mine), theirs, 9, Merge::Keep),
            (copy(mine), copy(theirs), 8, Merge::Keep),
            // Whoever chose has given way to another.
            (copy(mine), copy(theirs), 2, Merge::Update),
            // A connection that is served now is known to be, whoever tells of it.
            (mine, copy(claim(2, 1, 0, 9)), 8, Merge::GiveWay),
            (copy(mine), claim(2, 1, 0, 9), 9, Merge::GiveWay),
            (copy(mine), copy(claim(2, 1, 0, 9)), 8, Merge::GiveWay),
            (copy(claim(1, 1, 0, 2)), theirs, 9, Merge::Prevail),
            (copy(claim(1, 1, 0, 2)), copy(theirs), 2, Merge::Keep),
        ] {
            assert_eq!(merge(&mine, &theirs, from), becomes, "{mine:?}, {theirs:?} from {from}");
        }
    }

    proptest! {
        #[test]
        fn both_sides_of_a_conflict_agree(
            mine in (0..20u64, 0..3u32, 1..=9u8),
            theirs in (0..20u64, 0..3u32, 1..=9u8),
        ) {
            prop_assume!(mine.2 != theirs.2);
            let (mine, theirs) = (claim(1, mine.0, mine.1, mine.2), claim(2, theirs.0, theirs.1, theirs.2));
            let here = merge(&mine, &theirs, theirs.origin) == Merge::Prevail;
            let there = merge(&theirs, &mine, mine.origin) == Merge::Prevail;
            prop_assert!(here != there);
        }
    }
}
