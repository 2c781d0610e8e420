//! What machines send to each other, and the forms of raft's types in it and in the log.
//!
//! raft-rs has protobuf forms of its own; these are instead of them, so that everything stored or sent goes through one
//! codec, whose input is bounded by the frame that it comes in.

use raft::eraftpb::{self, EntryType, MessageType};
use serde::{Deserialize, Serialize};

use super::frame::{self, FrameError, Kind};
use super::state::State;

/// A message's sender and what it says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Letter {
    /// The sender's disk.
    pub disk: u128,
    /// What it says.
    pub body: Body,
}

/// What a message says. On the wire its variants go by number: new ones come last.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Body {
    /// A step of raft's.
    Raft(Step),
    /// A disk without a seat is there.
    Hello {
        /// The node's incarnation.
        incarnation: u64,
        /// Where its agent is reached.
        address: String,
        /// The share of the slots that it would like.
        weight: u32,
    },
    /// Records are damaged: who has them?
    Fetch {
        /// The entries' indexes.
        entries: Vec<u64>,
        /// A snapshot not older than this, where the own one is damaged.
        snapshot: Option<u64>,
    },
    /// The answer: what of it is there.
    Fetched {
        /// Entries.
        entries: Vec<Entry>,
        /// Up to which index they are committed.
        commit: u64,
        /// A snapshot, where it was asked for or entries are no longer kept.
        snapshot: Option<Vec<u8>>,
    },
    /// The node is part of a cluster that has begun: said to disks without a seat, and to nodes that should be members and
    /// are not.
    Begun,
    /// As [`Body::Hello`], of a witness's disk.
    Witness {
        /// Where the agent is reached.
        address: String,
    },
    /// Who is there, and how far is its log?
    Survey,
    /// The answer.
    Surveyed {
        /// Term of the log's last entry.
        term: u64,
        /// Its index.
        last: u64,
    },
    /// This disk, which the receiver has, has lost its seat by a recovery.
    GivenUp(
        /// The disk's UUID.
        u128,
    ),
}

/// A log entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its term.
    pub term: u64,
    /// Its index.
    pub index: u64,
    /// Whether it changes who has a seat: then the command is the context, and the data is raft's own.
    pub seats: bool,
    /// The data.
    pub data: Vec<u8>,
    /// The context.
    pub context: Vec<u8>,
}

/// A message of raft's. Fields are those of raft-rs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "raft-rs and the Raft thesis say what they mean")]
pub struct Step {
    pub kind: u8,
    pub to: u64,
    pub from: u64,
    pub term: u64,
    pub log_term: u64,
    pub index: u64,
    pub entries: Vec<Entry>,
    pub commit: u64,
    pub commit_term: u64,
    pub snapshot: Option<Vec<u8>>,
    pub reject: bool,
    pub reject_hint: u64,
    pub context: Vec<u8>,
}

/// A state with its place in the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Term of the last entry that is in it; its index is the state's version.
    pub term: u64,
    /// Who votes, as raft numbers them.
    pub voters: Vec<u64>,
    /// Who learns.
    pub learners: Vec<u64>,
    /// The state.
    pub state: State,
}

/// What of raft's messages goes between machines. The others are a machine's own business: a peer that sends one is
/// refused.
const KINDS: [(u8, MessageType); 10] = [
    (1, MessageType::MsgAppend),
    (2, MessageType::MsgAppendResponse),
    (3, MessageType::MsgRequestVote),
    (4, MessageType::MsgRequestVoteResponse),
    (5, MessageType::MsgSnapshot),
    (6, MessageType::MsgHeartbeat),
    (7, MessageType::MsgHeartbeatResponse),
    (8, MessageType::MsgTimeoutNow),
    (9, MessageType::MsgRequestPreVote),
    (10, MessageType::MsgRequestPreVoteResponse),
];

/// How raft numbers a node's disk: the node's id and 56 bits of the disk's UUID.
pub fn number(node: u8, disk: u128) -> u64 {
    u64::from(node) << 56 | (disk as u64 & ((1 << 56) - 1))
}

/// The node of a number.
pub fn node_of(number: u64) -> u8 {
    (number >> 56) as u8
}

impl Letter {
    /// Its form on the wire.
    pub fn seal(&self, cluster: u32) -> Vec<u8> {
        use Body::{GivenUp, Survey, Surveyed, Witness};
        let is_new = matches!(self.body, Witness { .. } | Survey | Surveyed { .. } | GivenUp(_));
        frame::seal_as(Kind::Message, 1 + u8::from(is_new), cluster.into(), self)
    }

    /// Reads the wire's form.
    ///
    /// # Errors
    /// [`FrameError`]; foreign is also what another cluster sends.
    pub fn open(cluster: u32, bytes: &[u8]) -> Result<Self, FrameError> {
        frame::open(Kind::Message, cluster.into(), bytes)
    }
}

impl Snapshot {
    /// Index of the last entry that is in it.
    pub fn index(&self) -> u64 {
        self.state.version
    }

    /// Whether a disk has a seat in it, as raft numbers disks.
    pub fn seats(&self, number: u64) -> bool {
        self.voters.contains(&number) || self.learners.contains(&number)
    }

    /// Its form on the wire and on disk.
    pub fn seal(&self) -> Vec<u8> {
        let version = match &self.state {
            state if !state.panicking.is_empty() => 5,
            state if !state.drains.is_empty() => 4,
            state if !state.warming.is_empty() => 3,
            state if !state.given_up.is_empty() || state.has_witness() => 2,
            _ => 1,
        };
        frame::seal_as(Kind::Snapshot, version, self.index(), self)
    }

    /// Reads that form.
    ///
    /// # Errors
    /// [`FrameError`].
    pub fn open(index: u64, bytes: &[u8]) -> Result<Self, FrameError> {
        let snapshot: Self = frame::open(Kind::Snapshot, index, bytes)?;
        if snapshot.index() == index && snapshot.is_sound() { Ok(snapshot) } else { Err(FrameError::Foreign) }
    }

    /// Whether raft can take it: somebody votes, and nobody is named twice.
    fn is_sound(&self) -> bool {
        let mut seats: Vec<u64> = self.voters.iter().chain(&self.learners).copied().collect();
        let count = seats.len();
        seats.sort_unstable();
        seats.dedup();
        !self.voters.is_empty() && seats.len() == count && !seats.contains(&0) && self.index() > 0 && self.term > 0
    }

    /// Its form for raft.
    pub fn to_raft(&self, sealed: &[u8]) -> eraftpb::Snapshot {
        let mut snapshot = eraftpb::Snapshot { data: sealed.to_vec().into(), ..Default::default() };
        let metadata = snapshot.mut_metadata();
        (metadata.index, metadata.term) = (self.index(), self.term);
        *metadata.mut_conf_state() = (self.voters.clone(), self.learners.clone()).into();
        snapshot
    }
}

impl From<&eraftpb::Entry> for Entry {
    fn from(entry: &eraftpb::Entry) -> Self {
        Self {
            term: entry.term,
            index: entry.index,
            seats: entry.entry_type != EntryType::EntryNormal,
            data: entry.data.to_vec(),
            context: entry.context.to_vec(),
        }
    }
}

impl From<Entry> for eraftpb::Entry {
    fn from(entry: Entry) -> Self {
        Self {
            term: entry.term,
            index: entry.index,
            entry_type: if entry.seats { EntryType::EntryConfChangeV2 } else { EntryType::EntryNormal },
            data: entry.data.into(),
            context: entry.context.into(),
            ..Self::default()
        }
    }
}

impl Step {
    /// The form of a message of raft's; none if it is not meant for others.
    pub fn of(message: &eraftpb::Message) -> Option<Self> {
        let (kind, _) = *KINDS.iter().find(|(_, kind)| *kind == message.msg_type)?;
        Some(Self {
            kind,
            to: message.to,
            from: message.from,
            term: message.term,
            log_term: message.log_term,
            index: message.index,
            entries: message.entries.iter().map(Entry::from).collect(),
            commit: message.commit,
            commit_term: message.commit_term,
            snapshot: message.snapshot.as_ref().map(|snapshot| snapshot.data.to_vec()),
            reject: message.reject,
            reject_hint: message.reject_hint,
            context: message.context.to_vec(),
        })
    }

    /// The message; none if a machine must not be told so by another: a kind that is not known or a snapshot that is
    /// damaged.
    pub fn into_raft(self) -> Option<eraftpb::Message> {
        let (_, msg_type) = *KINDS.iter().find(|(kind, _)| *kind == self.kind)?;
        let snapshot = match &self.snapshot {
            Some(sealed) => {
                let snapshot: Snapshot = frame::open(Kind::Snapshot, frame::key(sealed)?, sealed).ok()?;
                Some(snapshot.is_sound().then(|| snapshot.to_raft(sealed))?)
            }
            None => None,
        };
        if (msg_type == MessageType::MsgSnapshot) != snapshot.is_some() {
            return None;
        }
        Some(eraftpb::Message {
            msg_type,
            to: self.to,
            from: self.from,
            term: self.term,
            log_term: self.log_term,
            index: self.index,
            entries: self.entries.into_iter().map(eraftpb::Entry::from).collect::<Vec<_>>().into(),
            commit: self.commit,
            commit_term: self.commit_term,
            snapshot: snapshot.into(),
            reject: self.reject,
            reject_hint: self.reject_hint,
            context: self.context.into(),
            ..eraftpb::Message::default()
        })
    }
}
