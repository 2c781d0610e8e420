//! How the owners of slots change.

use serde::{Deserialize, Serialize};

use super::State;
use crate::ownership::{Ranks, promote};

/// Who owns the flows of one slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slot {
    /// Nodes by rank; 0: none.
    pub ranks: Ranks,
    /// The owner before the last change of the primary, while it may know flows that the primary does not; 0: none.
    pub previous: u8,
    /// Log index of the last change.
    pub version: u64,
}

impl From<Slot> for redirector_ebpf::tables::Slot {
    fn from(slot: Slot) -> Self {
        Self { ranks: slot.ranks, previous: slot.previous, pad: [0; 3], version: slot.version }
    }
}

impl Slot {
    /// Ranks the nodes anew. The old primary becomes the previous owner where it lives on; else whoever was that stays
    /// it, since what it knows may still be unknown to the others.
    fn rank(&mut self, ranks: Ranks, index: u64, lives: impl Fn(u8) -> bool) {
        let old = self.ranks[0];
        if old != ranks[0] && old != 0 && lives(old) {
            self.previous = old;
        }
        if self.previous == ranks[0] || !lives(self.previous) {
            self.previous = 0;
        }
        (self.ranks, self.version) = (ranks, index);
    }
}

/// Which nodes are there to forward packets to, by id: asked of every rank of every slot.
pub(super) fn present(state: &State) -> [bool; 256] {
    let mut present = [false; 256];
    state.members.iter().for_each(|(&id, member)| present[usize::from(id)] = member.is_present());
    present
}

/// Takes a dead node out of every slot that names it; those behind it move up.
pub(super) fn take_out(state: &mut State, id: u8, index: u64) {
    let State { members, slots, .. } = state;
    let lives = |node: u8| node != id && members.get(&node).is_some_and(super::Member::is_present);
    for slot in slots.iter_mut().filter(|slot| slot.ranks.contains(&id) || slot.previous == id) {
        slot.rank(promote(slot.ranks, id), index, lives);
    }
}

/// Ranks the nodes of neighbouring slots anew.
pub(super) fn rank(state: &mut State, first: usize, ranks: &[Ranks], index: u64) {
    let present = present(state);
    let lives = |node: u8| present[usize::from(node)];
    for (slot, &ranks) in state.slots[first..].iter_mut().zip(ranks) {
        if slot.ranks != ranks {
            slot.rank(ranks, index, lives);
        }
    }
}

/// Ends the forwarding to previous owners of such slots.
pub(super) fn forget(state: &mut State, such: impl Fn(&Slot) -> bool, index: u64) {
    for slot in state.slots.iter_mut().filter(|slot| slot.previous != 0 && such(slot)) {
        (slot.previous, slot.version) = (0, index);
    }
}

/// Whether these can be a slot's ranks: at least one node, each once, none behind an empty rank.
pub(super) fn are_ranks(ranks: Ranks) -> bool {
    let count = ranks.iter().take_while(|&&id| id != 0).count();
    count > 0
        && ranks[count..].iter().all(|&id| id == 0)
        && (1..count).all(|rank| !ranks[..rank].contains(&ranks[rank]))
}
