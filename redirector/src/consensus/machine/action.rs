//! What goes into a machine and what comes out of it.

use serde::{Deserialize, Serialize};

use super::{COMMAND_BYTES, Role};
use crate::consensus::state::{Command, Refusal};

/// Who a machine is.
#[derive(Clone, Debug)]
pub struct Config {
    /// The cluster.
    pub cluster: u32,
    /// This node.
    pub node: u8,
    /// The other nodes that it was told of.
    pub peers: Vec<u8>,
    /// Where its agent is reached.
    pub address: String,
    /// The share of the slots that it would like as a new member.
    pub weight: u32,
    /// Whether it is a witness: it votes, and has no data plane.
    pub witness: bool,
    /// Its incarnation.
    pub incarnation: u64,
    /// Where chance comes from; another one with every start.
    pub seed: u128,
    /// Entries after which a snapshot is taken.
    pub snapshot_every: u64,
}

/// Names a proposal towards whoever proposed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProposalId(pub u64);

/// What a machine wants done or known.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Send this to a node, if it can be reached.
    Send {
        /// The node.
        to: u8,
        /// A letter.
        bytes: Vec<u8>,
    },
    /// A command was committed and has been applied to the state.
    Applied {
        /// Its index.
        index: u64,
        /// What it was.
        command: Command,
        /// Whether it changed anything.
        outcome: Result<(), Refusal>,
    },
    /// A proposal of this machine was committed.
    Committed {
        /// Which one.
        proposal: ProposalId,
        /// Its index.
        index: u64,
        /// The configuration's version after it.
        version: u64,
        /// Whether it changed anything.
        outcome: Result<(), Refusal>,
        /// On how many voters' disks it is known to be.
        durable_on: usize,
        /// Of how many.
        of: usize,
    },
    /// A proposal of this machine changes nothing, now or later.
    Refused {
        /// Which one.
        proposal: ProposalId,
        /// Why.
        why: NotTaken,
    },
    /// A proposal of this machine may be committed later, or not: it may be repeated.
    Unknown {
        /// Which one.
        proposal: ProposalId,
    },
    /// The state, the role or the seats are others now.
    StateChanged,
    /// Something for the journal.
    Told(Event),
}

/// Why a proposal is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum NotTaken {
    /// Another node leads.
    #[error("node {0} leads")]
    NotLeader(u8),
    /// Too few voters are reached.
    #[error("no majority of the voters is reached: nothing can be changed until more nodes are back")]
    NoQuorum,
    /// The node is not part of the cluster yet, or not any more.
    #[error("this node has no seat in the cluster: `redirector bootstrap` begins one, a member lets it join")]
    NoSeat,
    /// Its disk takes no writes.
    #[error("this node's disk takes no writes")]
    Disk,
    /// Another change of seats comes first.
    #[error("another change of who has a seat is under way: try again")]
    Busy,
    /// A leader does not unseat itself: it has asked another one to lead.
    #[error("this node leads; it has asked another one to take over: try again")]
    Leads,
    /// It was replaced by what another leader proposed.
    #[error("another leader has replaced it: try again")]
    Dropped,
    /// It is longer than a message may be.
    #[error("it is longer than {COMMAND_BYTES} bytes")]
    TooLong,
}

impl NotTaken {
    /// Whether the same proposal may be taken in a moment.
    pub fn may_pass(self) -> bool {
        matches!(self, Self::NotLeader(_) | Self::NoQuorum | Self::Busy | Self::Leads | Self::Dropped)
    }
}

/// What happened, for the journal.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Event {
    /// Another role.
    #[error("{role:?} in term {term}")]
    Role {
        /// The role.
        role: Role,
        /// The term.
        term: u64,
    },
    /// Records were found to be damaged.
    #[error(
        "damaged records of the log were found: {entries} entries, {snapshots} snapshots; peers are asked for them"
    )]
    Damaged {
        /// How many entries.
        entries: usize,
        /// How many snapshots.
        snapshots: usize,
    },
    /// All of them have been fetched.
    #[error("the damaged records of the log have been fetched from node {from}")]
    Repaired {
        /// The peer that had the last of them.
        from: u8,
    },
    /// The agreed state was not what others have, and has been fetched.
    #[error("the agreed state at {index} was another than that of node {from}, and is that one now")]
    Refetched {
        /// The node.
        from: u8,
        /// As of which index.
        index: u64,
    },
    /// Another node, which should be a member, is part of a cluster of its own.
    #[error(
        "node {0} has begun a cluster of its own: end its agent, `redirector unload` it, remove its data directory and start \
         it again; then it joins this one"
    )]
    Rival(u8),
    /// A peer's messages are of a newer format.
    #[error(
        "node {from} says something of agreement in format {found}, and this version knows formats up to {known}: upgrade this \
         node; what it does not understand it refuses"
    )]
    Newer {
        /// The peer.
        from: u8,
        /// The format that it is of.
        found: u8,
        /// The newest that is known here.
        known: u8,
    },
    /// The cluster goes on with this node alone to vote.
    #[error(
        "recovered by an operator: this node goes on as the only voter, without node(s) {}; all other disks have lost their \
         seats",
        list(.0)
    )]
    Recovered(
        /// The nodes that were given up.
        Vec<u8>,
    ),
    /// Another node says that the cluster was recovered without this disk.
    #[error(
        "an operator has recovered the cluster on node {0}, and this node's disk has lost its seat by that: its log is set \
         aside, and this node joins as somebody new"
    )]
    GivenUp(
        /// The node that says so.
        u8,
    ),
    /// The disk has been set aside.
    #[error("the log is lost ({why}); it is set aside, and this node comes back as a learner")]
    Reborn {
        /// What was lost.
        why: String,
    },
    /// The disk takes no writes.
    #[error("the log's disk takes no writes: {0}")]
    DiskFails(String),
    /// It does again.
    #[error("the log's disk takes writes again")]
    DiskWorks,
    /// The machine has stopped.
    #[error("agreement has stopped on this node: {0}")]
    Stopped(String),
}

/// Why a cluster is not begun.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// The node has a log already.
    #[error(
        "this node is part of a cluster already: a cluster begins once. To begin anew, end the agents of all its nodes, \
         `redirector unload` them and remove their data directories"
    )]
    Begun,
    /// Another node has one.
    #[error(
        "node {0} is part of a cluster already, and a cluster begins once: this node joins it by itself, if the configuration \
         in force there names it; `redirector join` waits for that"
    )]
    Elsewhere(u8),
    /// The disk fails.
    #[error("the log cannot be written")]
    Io(#[from] std::io::Error),
}

/// Why a cluster is not recovered.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// There is none.
    #[error(
        "this node is part of no cluster: `redirector bootstrap` begins one, `redirector restore` one from a backup"
    )]
    NotBegun,
    /// It needs no recovery.
    #[error(
        "nothing was changed: a majority of the voters answers ({}), and there is nothing to recover; `redirector leave` takes \
         a node out",
        list(.0)
    )]
    Majority(
        /// Who answers, this node too.
        Vec<u8>,
    ),
    /// A node that is to be given up is there.
    #[error(
        "nothing was changed: node {0} is to be given up, and answers: end its agent for good first, or do not name it"
    )]
    Answers(u8),
    /// A node is not there and not given up.
    #[error(
        "nothing was changed: node {0} is a member, does not answer and is not given up: bring it back, or name it by \
         `--give-up {0}` if it is lost"
    )]
    Silent(u8),
    /// Another node knows more.
    #[error("nothing was changed: node {0} has a longer log, and so knows of more changes: recover there")]
    Ahead(u8),
    /// This node is to be given up itself.
    #[error("nothing was changed: node {0} is this one: name those that are lost")]
    Oneself(u8),
    /// No such member.
    #[error("nothing was changed: node {0} is no member: `redirector get nodes` lists them")]
    Unknown(u8),
    /// A witness cannot be the last one.
    #[error("nothing was changed: this is a witness, which has no data plane: recover on a node")]
    Witness,
    /// The node is not ready for it.
    #[error("nothing was changed: this node's log is not whole, or its disk takes no writes")]
    NotReady,
    /// The log holds what this version does not know.
    #[error("nothing was changed: log entry {0} is not understood: upgrade this node")]
    Newer(u64),
    /// The disk fails.
    #[error("nothing was changed: the log cannot be written")]
    Io(#[from] std::io::Error),
}

fn list(nodes: &[u8]) -> String {
    nodes.iter().map(u8::to_string).collect::<Vec<_>>().join(", ")
}

/// A disk without a seat, as its node tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stranger {
    /// The disk.
    pub disk: u128,
    /// The node's incarnation.
    pub incarnation: u64,
    /// Where its agent is reached.
    pub address: String,
    /// The share of the slots that it would like.
    pub weight: u32,
    /// Whether it is a witness's.
    pub witness: bool,
    /// When it was last heard.
    pub(super) tick: u64,
}
