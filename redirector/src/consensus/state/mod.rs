//! What the nodes agree on, and how each committed command changes it.
//!
//! A state is a pure function of the log: the same commands at the same indexes give the same bytes on every node. What
//! would need a clock, a configuration's parser or an algorithm is therefore worked out by whoever proposes a command,
//! and stands in the command.

mod apply;
mod command;
mod pool;
mod recovery;
mod slots;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use siphasher::sip::SipHasher24;

pub use command::{Advance, Command, Refusal};
pub use pool::{DRAIN_PARTS, Definition, Phase, Pool, RowSet, Rows, Step, WARMTH};
pub use slots::Slot;

use crate::ownership::Ranks;

/// What is agreed on, as of one log index.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Index of the last log entry that is in here.
    pub version: u64,
    /// The cluster's nodes, by id.
    pub members: BTreeMap<u8, Member>,
    /// The configuration that all nodes have in common.
    pub specification: Specification,
    /// Who owns each slot.
    pub slots: Vec<Slot>,
    /// What the rows of each pool are made of, by the pool's name.
    pub pools: BTreeMap<String, Pool>,
    /// Who holds each VIP, and who after it.
    pub vips: BTreeMap<String, Vec<u8>>,
    /// Disks that lost their seats when the cluster was recovered without them. The oldest versions lack it.
    pub given_up: BTreeSet<u128>,
    /// By pool, backends that have only part of their weight since they come back from death, and how many of the
    /// [`WARMTH`] steps towards all of it they have got. Older versions lack it.
    pub warming: BTreeMap<String, BTreeMap<String, u8>>,
    /// By pool, backends that drain until a deadline, and how many of [`DRAIN_PARTS`] of their time have gone. Older versions
    /// lack it.
    pub drains: BTreeMap<String, BTreeMap<String, u8>>,
    /// Pools of which most nodes find so much dead that all is used, and how much was healthy when that began, in per cent.
    /// The last field: older versions lack it.
    pub panicking: BTreeMap<String, u8>,
}

/// The configuration that all nodes have in common.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Specification {
    /// Goes up by one with each change.
    pub version: u64,
    /// TOML.
    pub text: String,
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Where its agent is reached.
    pub address: String,
    /// Its share of the slots against the others'.
    pub weight: u32,
    /// Its part in agreement.
    pub seat: Option<Seat>,
    /// Whether its data plane serves.
    pub standing: Standing,
    /// Whether an operator wants it to own nothing.
    pub draining: bool,
    /// Whether it has got there: it owns nothing, is asked for nothing, and nothing is sent to it on its own account.
    pub drained: bool,
    /// Changes when its maps are lost.
    pub incarnation: u64,
}

/// A node's part in agreement. It is bound to a disk: without its log and its vote a node is someone else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seat {
    /// The disk's UUID.
    pub disk: u128,
    /// Learners get the log and do not count for majorities.
    pub votes: bool,
}

/// Whether a node's data plane serves, as committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Standing {
    /// It serves.
    Up,
    /// It is back, or new, and its flows are not there yet.
    Returning,
    /// It does not.
    Down,
    /// It has none: a witness votes, and that is all.
    Witness,
}

/// A node's state as it is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MemberState {
    /// It serves and may own slots.
    Up,
    /// It serves, and gives its slots away.
    Draining,
    /// It has given all away: nobody would miss it.
    Drained,
    /// It is back, or new, and its flows are not there yet.
    Returning,
    /// It does not serve.
    Down,
    /// It votes, and has no data plane.
    Witness,
}

impl Member {
    /// The state in one word.
    pub fn state(&self) -> MemberState {
        match self.standing {
            Standing::Up if self.drained => MemberState::Drained,
            Standing::Up if self.draining => MemberState::Draining,
            Standing::Up => MemberState::Up,
            Standing::Returning => MemberState::Returning,
            Standing::Down => MemberState::Down,
            Standing::Witness => MemberState::Witness,
        }
    }

    /// Whether it is there to forward packets to.
    pub fn is_present(&self) -> bool {
        matches!(self.standing, Standing::Up | Standing::Returning)
    }

    /// Whether it only votes.
    pub fn is_witness(&self) -> bool {
        self.standing == Standing::Witness
    }

    /// The share of the slots that it should have.
    pub fn due(&self) -> u32 {
        if self.is_present() && !self.draining { self.weight } else { 0 }
    }
}

impl State {
    /// The state that a cluster begins with: one node, which owns every slot.
    pub fn genesis(id: u8, member: Member, slots: u32, text: String, pools: BTreeMap<String, Definition>) -> Self {
        let ranks: Ranks = [id, 0, 0, 0];
        Self {
            version: 1,
            members: BTreeMap::from([(id, member)]),
            specification: Specification { version: 1, text },
            slots: vec![Slot { ranks, previous: 0, version: 1 }; slots as usize],
            pools: pools.into_iter().map(|(name, definition)| (name, Pool::settled(definition, 1))).collect(),
            vips: BTreeMap::new(),
            given_up: BTreeSet::new(),
            warming: BTreeMap::new(),
            drains: BTreeMap::new(),
            panicking: BTreeMap::new(),
        }
    }

    /// Takes a log entry without a command.
    pub fn skip(&mut self, index: u64) {
        self.version = index;
    }

    /// Takes a command at its log index: all of it or, where it is refused, nothing.
    ///
    /// # Errors
    /// [`Refusal`]; every node refuses alike.
    pub fn apply(&mut self, index: u64, command: &Command) -> Result<(), Refusal> {
        self.version = index;
        apply::apply(self, index, command)
    }

    /// Nodes and the shares of the slots that they should have.
    pub fn weights(&self) -> Vec<(u8, u32)> {
        self.members.iter().map(|(&id, member)| (id, member.due())).filter(|&(_, weight)| weight > 0).collect()
    }

    /// Whether a node is there to forward packets to.
    pub fn is_present(&self, id: u8) -> bool {
        self.members.get(&id).is_some_and(Member::is_present)
    }

    /// Whether a node serves, its flows with it.
    pub fn is_up(&self, id: u8) -> bool {
        self.members.get(&id).is_some_and(|member| member.standing == Standing::Up)
    }

    /// Whether any member only votes.
    pub fn has_witness(&self) -> bool {
        self.members.values().any(Member::is_witness)
    }

    /// Whether a node has a data plane, as far as is known.
    pub fn is_node(&self, id: u8) -> bool {
        self.members.get(&id).is_some_and(|member| !member.is_witness())
    }

    /// The backends of a pool whose time to drain is over, and that no row names for new flows.
    pub fn drained(&self, pool: &str) -> impl Iterator<Item = &String> {
        let over = self.drains.get(pool).into_iter().flatten().filter(|(_, parts)| **parts >= DRAIN_PARTS);
        let pool = self.pools.get(pool);
        pool.into_iter().flat_map(move |pool| pool.unnamed(over.clone().map(|(backend, _)| backend)))
    }

    /// Whether a node is ranked nowhere.
    pub fn owns_nothing(&self, id: u8) -> bool {
        !self.slots.iter().any(|slot| slot.ranks.contains(&id))
    }

    /// Whether every slot has two owners that serve.
    pub fn has_two_owners_each(&self) -> bool {
        self.has_two_owners_of(|_| true)
    }

    /// Whether every slot has two owners that serve, of those that count.
    pub fn has_two_owners_of(&self, counts: impl Fn(u8) -> bool) -> bool {
        let mut up = [false; 256];
        self.members.keys().for_each(|&id| up[usize::from(id)] = self.is_up(id) && counts(id));
        self.slots.iter().all(|slot| slot.ranks.iter().filter(|&&id| up[usize::from(id)]).count() >= 2)
    }

    /// A digest of all of it.
    pub fn digest(&self) -> u64 {
        digest(self)
    }

    /// A digest of the slot table.
    pub fn slots_digest(&self) -> u64 {
        digest(&self.slots)
    }
}

fn digest(of: &impl Serialize) -> u64 {
    let bytes = postcard::to_stdvec(of).expect("a state's parts have known lengths");
    SipHasher24::new_with_keys(0x7265_6469, 0x7374_6174).hash(&bytes)
}

#[cfg(test)]
mod tests;
