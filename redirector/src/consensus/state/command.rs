//! The commands of the log.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::pool::{Definition, Rows};
use crate::consensus::frame::{self, FrameError, Kind};
use crate::ownership::Ranks;

/// A change that is proposed. In the log and on the wire its variants go by number: new ones come last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// Another configuration.
    Apply {
        /// TOML.
        text: String,
        /// The version that it is meant to follow.
        expect: Option<u64>,
        /// The pools of the text.
        pools: BTreeMap<String, Definition>,
    },
    /// Who holds each VIP, and who after it.
    PlanVips(BTreeMap<String, Vec<u8>>),
    /// A node is dead: those behind it in its slots' ranks move up.
    NodeDown {
        /// Which one.
        id: u8,
        /// The incarnation that is dead.
        incarnation: u64,
    },
    /// A node is back, or has lost its maps: it owns nothing until its flows are there.
    NodeReturning {
        /// Which one.
        id: u8,
        /// Its incarnation now.
        incarnation: u64,
    },
    /// The flows of a node's slots are there.
    NodeUp {
        /// Which one.
        id: u8,
        /// The incarnation that has them.
        incarnation: u64,
    },
    /// A node shall give its slots away.
    Drain(
        /// Which one.
        u8,
    ),
    /// It may have slots again.
    Undrain(
        /// Which one.
        u8,
    ),
    /// Other shares of the slots.
    SetWeights(BTreeMap<u8, u32>),
    /// Other owners of neighbouring slots.
    Move {
        /// The first slot.
        first: u32,
        /// Its ranks, those of the next slot, and so on.
        ranks: Vec<Ranks>,
    },
    /// The previous owners of slots that have not changed since this index are asked no more.
    Forget {
        /// The index.
        unchanged_since: u64,
    },
    /// A pool's change goes on by one step.
    PoolStep {
        /// The pool.
        pool: String,
        /// Index of the step that this one follows.
        since: u64,
        /// The step.
        advance: Advance,
    },
    /// A disk gets a learner's seat, and its node becomes a member if it is none.
    Join {
        /// The node.
        id: u8,
        /// The disk's UUID.
        disk: u128,
        /// Where its agent is reached.
        address: String,
        /// Its share of the slots against the others', if it is new.
        weight: u32,
        /// Its incarnation.
        incarnation: u64,
    },
    /// A learner votes from now on.
    Promote {
        /// The node.
        id: u8,
        /// The disk's UUID.
        disk: u128,
    },
    /// A disk that was lost has no seat any more; its node stays a member.
    Retire {
        /// The node.
        id: u8,
        /// The disk's UUID.
        disk: u128,
    },
    /// A node is a member no more.
    Leave(
        /// Which one.
        u8,
    ),
    /// A node that drains owns nothing any more: it is asked as previous owner no more, and is drained.
    Relieve(
        /// Which one.
        u8,
    ),
    /// By pool, the backends that get no new flows, since most nodes find them dead; all others of these pools that are
    /// configured do.
    SetOut(BTreeMap<String, BTreeSet<String>>),
    /// A disk gets a learner's seat, and becomes a witness if it is no member: it is to vote, and has no data plane.
    Witness {
        /// The member.
        id: u8,
        /// The disk's UUID.
        disk: u128,
        /// Where its agent is reached.
        address: String,
    },
    /// In this pool these backends have part of their weight, by steps of [`WARMTH`](super::WARMTH), and all others all of
    /// it.
    Warm {
        /// The pool.
        pool: String,
        /// How many steps they have got.
        steps: BTreeMap<String, u8>,
    },
    /// Of the time that backends of this pool have to drain so many of [`DRAIN_PARTS`](super::DRAIN_PARTS) have gone, and none of all others'.
    Elapse {
        /// The pool.
        pool: String,
        /// The version of the configuration by which they drain.
        version: u64,
        /// How many parts have gone.
        parts: BTreeMap<String, u8>,
    },
    /// In these pools and no others so little is healthy that all is used; with how much, in per cent.
    Panic(BTreeMap<String, u8>),
}

/// How a pool's change goes on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Advance {
    /// The new backends become current.
    Switch,
    /// No flow of these rows is off current.
    Agree(Rows),
    /// The dispute of the rows that were agreed on ends.
    Settle,
}

/// Why a command changes nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// Someone else has changed the configuration meanwhile.
    #[error("version {present} is in force, not {expected}: look at `diff` again")]
    Version {
        /// The version in force.
        present: u64,
        /// The version that was expected.
        expected: u64,
    },
    /// The node is no member.
    #[error("node {0} is not a member of the cluster")]
    Unknown(u8),
    /// The command is about another incarnation or disk of the node, or about a state that it has left.
    #[error("node {0} has moved on: this was meant for what it was before")]
    Stale(u8),
    /// It would leave nobody to vote.
    #[error("node {0} is the last voter: the cluster would end with it")]
    LastVoter(u8),
    /// It would leave nobody to own slots.
    #[error("node {0} is the last one that owns slots: undrain or join another one first")]
    LastOwner(u8),
    /// Ranks or slots that cannot be.
    #[error("slots from {first} cannot be ranked so")]
    Ranks {
        /// The first slot.
        first: u32,
    },
    /// The pool's change does not stand there any more.
    #[error("the pool's change does not stand where this step begins")]
    OutOfTurn,
    /// Too many changes of a pool are unsettled.
    #[error("pool `{0}` has too many changes that are not settled: wait until old flows have ended")]
    Unsettled(String),
    /// The seat is taken by another disk.
    #[error("node {0} has a seat with another disk: it must be retired first")]
    Seated(u8),
    /// A witness should be a node, or a node a witness.
    #[error("node {0} is a member of another kind, node or witness: let it `redirector leave` first")]
    OtherKind(u8),
    /// A witness should do what takes a data plane.
    #[error("node {0} is a witness: it owns nothing")]
    Witness(u8),
}

impl Command {
    /// Its form in the log.
    pub fn seal(&self) -> Vec<u8> {
        let version = match self {
            Self::Panic(_) => 5,
            Self::Elapse { .. } => 4,
            Self::Warm { .. } => 3,
            Self::SetOut(_) | Self::Witness { .. } => 2,
            _ => 1,
        };
        frame::seal_as(Kind::Command, version, 0, self)
    }

    /// Reads the log's form.
    ///
    /// # Errors
    /// [`FrameError`].
    pub fn open(bytes: &[u8]) -> Result<Self, FrameError> {
        frame::open(Kind::Command, 0, bytes)
    }

    /// Whether it changes who has a seat.
    pub fn changes_seats(&self) -> bool {
        use Command::{Join, Leave, Promote, Retire, Witness};
        matches!(self, Join { .. } | Witness { .. } | Promote { .. } | Retire { .. } | Leave(_))
    }
}
