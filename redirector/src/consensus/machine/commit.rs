//! What becomes of entries that are committed, and of the log behind them.

use std::sync::Arc;

use raft::Storage as _;
use raft::eraftpb::{self, ConfChangeSingle, ConfChangeType, ConfChangeV2, EntryType};

use super::running::{Pending, Running};
use super::{Action, Event, NotTaken, Own};
use crate::consensus::disk::Disk;
use crate::consensus::frame::{self, FrameError};
use crate::consensus::state::{Command, Refusal, State};
use crate::consensus::wire::{Body, Snapshot, node_of, number};

impl<D: Disk> Running<D> {
    /// Applies what is committed.
    pub(super) fn apply(&mut self, own: &mut Own, entries: Vec<eraftpb::Entry>) {
        for entry in entries {
            if self.stopped.is_some() {
                return;
            }
            let outcome = self.apply_one(own, &entry);
            if let Some(Pending { term, proposal, .. }) = self.pending.remove(&entry.index) {
                own.out.push(match outcome {
                    Some(outcome) if term == entry.term => {
                        let of = self.voters.len();
                        let durable_on = self.copies(entry.index);
                        let version = own.state.specification.version;
                        Action::Committed { proposal, index: entry.index, version, outcome, durable_on, of }
                    }
                    _ => Action::Refused { proposal, why: NotTaken::Dropped },
                });
            }
        }
    }

    /// Applies an entry; none if it has no command.
    fn apply_one(&mut self, own: &mut Own, entry: &eraftpb::Entry) -> Option<Result<(), Refusal>> {
        let changes_seats = entry.get_entry_type() != EntryType::EntryNormal;
        let bytes = if changes_seats { &entry.context } else { &entry.data };
        if bytes.is_empty() {
            Arc::make_mut(&mut own.state).skip(entry.index);
            return None;
        }
        let command = match Command::open(bytes) {
            Ok(command) => command,
            Err(error) => {
                self.stopped = Some(format!("log entry {} cannot be applied: {}", entry.index, explain(error)));
                return None;
            }
        };
        let change = change_of_seats(&own.state, &command);
        let outcome = replay(Arc::make_mut(&mut own.state), entry.index, &command, changes_seats);
        if let (Ok(()), Some(change)) = (&outcome, change) {
            match self.raw.apply_conf_change(&change) {
                Ok(seats) => {
                    (self.voters, self.learners) = (seats.voters, seats.learners);
                    self.voters.sort_unstable();
                    self.learners.sort_unstable();
                }
                Err(error) => self.stopped = Some(format!("log entry {}: {error}", entry.index)),
            }
        }
        own.out.push(Action::Applied { index: entry.index, command, outcome: outcome.clone() });
        own.out.push(Action::StateChanged);
        Some(outcome)
    }

    /// Asks for the agreed state of a node that has it right.
    pub(super) fn ask_for_state(&mut self, own: &mut Own) {
        if let Some((from, left)) = own.doubt {
            own.doubt = left.checked_sub(1).map(|left| (from, left));
            let body = Body::Fetch { entries: Vec::new(), snapshot: Some(own.state.version) };
            own.send(from, self.log().identity().disk, body);
        }
    }

    /// Takes another node's agreed state, brought to this node's index by its own log, in place of this node's. Seats are
    /// raft's and stay.
    pub(super) fn take_state(&mut self, own: &mut Own, from: u8, sealed: &[u8]) {
        let opened = frame::key(sealed).and_then(|index| Snapshot::open(index, sealed).ok());
        let Some(Snapshot { mut state, .. }) = opened.filter(|theirs| theirs.index() <= own.state.version) else {
            return;
        };
        for index in state.version + 1..=own.state.version {
            match self.log().entry(index).map(|entry| replay_entry(&mut state, entry)) {
                Some(Ok(())) => {}
                _ => return,
            }
        }
        own.doubt = None;
        if state == *own.state {
            return;
        }
        own.state = Arc::new(state);
        if let Some(snapshot) = self.snapshot(&own.state)
            && let Err(error) = self.raw.mut_store().compact(snapshot)
        {
            own.disk_fails(&error);
        }
        own.out.push(Action::Told(Event::Refetched { from, index: own.state.version }));
        own.out.push(Action::StateChanged);
    }

    /// On how many voters' disks a committed entry is known to be.
    fn copies(&self, index: u64) -> usize {
        let has = |seat: &&u64| self.raft().prs().get(**seat).is_some_and(|progress| progress.matched >= index);
        let known = self.voters.iter().filter(has).count();
        known.max(self.voters.len() / 2 + 1)
    }

    /// A snapshot of what is applied.
    pub(super) fn snapshot(&self, state: &Arc<State>) -> Option<Snapshot> {
        let term = self.log().term(state.version).ok().filter(|&term| term > 0)?;
        let (voters, learners) = (self.voters.clone(), self.learners.clone());
        (!voters.is_empty()).then(|| Snapshot { term, voters, learners, state: State::clone(state) })
    }

    /// Takes a snapshot when one is due, and drops what is well before it.
    pub(super) fn compact(&mut self, own: &mut Own) {
        let kept = self.log().snapshot().map_or(0, |(snapshot, _)| snapshot.index());
        let is_due = own.state.version >= kept + own.config.snapshot_every
            || self.log().needs_newer_snapshot() && own.state.version > kept;
        if self.held.is_some() || self.stopped.is_some() || !is_due {
            return;
        }
        if let Some(snapshot) = self.snapshot(&own.state)
            && let Err(error) = self.raw.mut_store().compact(snapshot)
        {
            own.disk_fails(&error);
        }
    }
}

/// Does what an entry says.
pub(super) fn replay_entry(state: &mut State, entry: &eraftpb::Entry) -> Result<(), FrameError> {
    let changes_seats = entry.get_entry_type() != EntryType::EntryNormal;
    let bytes = if changes_seats { &entry.context } else { &entry.data };
    if bytes.is_empty() {
        state.skip(entry.index);
    } else {
        // What is refused here is refused by all.
        drop(replay(state, entry.index, &Command::open(bytes)?, changes_seats));
    }
    Ok(())
}

/// Does what an entry's command says.
fn replay(state: &mut State, index: u64, command: &Command, changes_seats: bool) -> Result<(), Refusal> {
    match (change_of_seats(state, command), changes_seats) {
        // Between proposal and now the node got a seat, which raft was not told to take away.
        (Some(change), false) => {
            state.skip(index);
            Err(Refusal::Stale(node_of(change.changes[0].node_id)))
        }
        _ => state.apply(index, command),
    }
}

/// What a command means for raft, in a state.
pub(super) fn change_of_seats(state: &State, command: &Command) -> Option<ConfChangeV2> {
    let seat = |id: &u8| state.members.get(id).and_then(|member| member.seat);
    let (kind, seat) = match command {
        Command::Join { id, disk, .. } | Command::Witness { id, disk, .. } => {
            (ConfChangeType::AddLearnerNode, number(*id, *disk))
        }
        Command::Promote { id, disk } => (ConfChangeType::AddNode, number(*id, *disk)),
        Command::Retire { id, disk } => (ConfChangeType::RemoveNode, number(*id, *disk)),
        Command::Leave(id) => (ConfChangeType::RemoveNode, number(*id, seat(id)?.disk)),
        _ => return None,
    };
    let mut single = ConfChangeSingle::default();
    single.set_change_type(kind);
    single.node_id = seat;
    let mut change = ConfChangeV2::default();
    change.set_changes(vec![single].into());
    Some(change)
}

/// Whether a change takes a disk's seat away.
pub(super) fn unseats(change: &ConfChangeV2, seat: u64) -> bool {
    change.changes.iter().any(|single| single.node_id == seat && single.get_change_type() == ConfChangeType::RemoveNode)
}

fn explain(error: FrameError) -> String {
    match error {
        FrameError::Damaged => "it is damaged; restart this node to fetch it from its peers".to_owned(),
        error => error.to_string(),
    }
}
