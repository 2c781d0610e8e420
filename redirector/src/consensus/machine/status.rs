//! What a machine tells of itself.

use std::sync::Arc;

use super::{ELECTION, Machine, Phase};
use crate::consensus::disk::Disk;
use crate::consensus::frame::FrameError;

/// A machine's role.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Its disk cannot be read yet.
    Unread,
    /// It has no log that can be written yet.
    Blank,
    /// It fetches damaged records.
    Repairing,
    /// It follows and does not vote.
    Learner,
    /// It follows.
    Follower,
    /// It stands for election.
    Candidate,
    /// It leads.
    Leader,
    /// It takes no part any more.
    Stopped,
}

/// What was refused or went wrong, since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Messages whose checksum does not hold.
    pub bad_checksums: u64,
    /// Messages of a newer format.
    pub newer_formats: u64,
    /// Messages of another cluster, or that make no sense.
    pub foreign: u64,
    /// Messages meant for, or sent by, a disk that has no such seat.
    pub wrong_seat: u64,
    /// Messages that raft must not be told.
    pub implausible: u64,
    /// Messages that came when there was no use for them.
    pub out_of_turn: u64,
    /// Damaged records that were found.
    pub damaged: usize,
    /// Times that all damaged records were fetched.
    pub repaired: usize,
    /// Times that the disk was set aside.
    pub reborn: usize,
    /// Times that the disk had lost its seat by a recovery.
    pub given_up: usize,
    /// Writes that failed.
    pub disk_failures: u64,
    /// Why the machine has stopped, if it has.
    pub stopped: Option<String>,
}

impl Counters {
    pub(super) fn refuse(&mut self, error: FrameError) {
        match error {
            FrameError::Damaged => self.bad_checksums += 1,
            FrameError::Newer { .. } => self.newer_formats += 1,
            FrameError::Foreign => self.foreign += 1,
        }
    }
}

/// A disk with a seat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its node.
    pub id: u8,
    /// Whether it votes.
    pub votes: bool,
    /// Up to which index it is known to have the log; only a leader knows.
    pub matched: Option<u64>,
    /// Whether it was heard within the least election timeout.
    pub is_heard: bool,
}

/// A machine at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Its role.
    pub role: Role,
    /// Raft's term.
    pub term: u64,
    /// The node that leads.
    pub leader: Option<u8>,
    /// Up to which index the log is known to be committed.
    pub commit: u64,
    /// Index of the last entry that the state holds.
    pub applied: u64,
    /// Index of the log's last entry.
    pub last: u64,
    /// Who has a seat, this node too.
    pub peers: Vec<Peer>,
    /// Whether a majority of the voters is reached, as far as can be known here.
    pub has_quorum: bool,
    /// Whether any one node may fail and no flow is lost: every slot has two owners that serve, as a majority agrees.
    pub is_redundant: bool,
}

impl<D: Disk> Machine<D> {
    /// How it stands.
    pub fn status(&self) -> Status {
        let applied = self.own.state.version;
        let still = |role| Status {
            role,
            term: 0,
            leader: None,
            commit: applied,
            applied,
            last: applied,
            peers: Vec::new(),
            has_quorum: false,
            is_redundant: false,
        };
        let running = match &self.phase {
            Phase::Unread(_) => return still(Role::Unread),
            Phase::Blank { .. } => return still(Role::Blank),
            Phase::Repairing(_) => return still(Role::Repairing),
            Phase::Stopped => return still(Role::Stopped),
            Phase::Running(running) => running,
        };
        let raft = running.raft();
        let has_quorum = running.has_quorum(&self.own);
        Status {
            role: running.role(),
            term: raft.term,
            leader: running.leader(),
            commit: raft.raft_log.committed,
            applied,
            last: raft.raft_log.last_index(),
            has_quorum,
            is_redundant: has_quorum && self.own.has_two_owners_each(),
            peers: running.peers(&self.own),
        }
    }

    /// What was refused or went wrong.
    pub fn counters(&self) -> &Counters {
        &self.own.counters
    }
}

impl super::Own {
    /// Whether every slot has two owners that serve, by the state as it is.
    fn has_two_owners_each(&self) -> bool {
        let mut known = self.two_owners_each.borrow_mut();
        if !Arc::ptr_eq(&known.0, &self.state) {
            *known = (self.state.clone(), self.state.has_two_owners_each());
        }
        known.1
    }

    /// Whether a node was heard within the least election timeout.
    pub(super) fn hears(&self, node: u8) -> bool {
        node == self.config.node || self.heard.get(&node).is_some_and(|&at| self.tick - at <= ELECTION as u64)
    }
}
