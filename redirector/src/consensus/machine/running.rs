//! Raft at work: what it is told, what it wants written and sent, and what it commits.

use std::collections::BTreeMap;
use std::sync::Arc;

use raft::eraftpb::{self, MessageType};
use raft::{ProgressState, Raft, RawNode, Ready, SnapshotStatus, StateRole};

use super::commit::{change_of_seats, unseats};
use super::guard;
use super::status::{Peer, Role};
use super::{AGAIN, Action, COMMAND_BYTES, ELECTION, Event, HEARTBEAT, NotTaken, Own, PATIENCE, ProposalId};
use crate::consensus::disk::Disk;
use crate::consensus::log::Log;
use crate::consensus::state::Command;
use crate::consensus::wire::{Body, Snapshot, Step, node_of, number};

/// Bytes of entries that go in one message.
const MESSAGE_BYTES: u64 = 1 << 20;

/// Ticks after which a snapshot that was not acknowledged is sent again.
const SNAPSHOT_AGAIN: u64 = 4 * AGAIN;

/// Raft, and what goes with it.
pub(super) struct Running<D: Disk> {
    pub(super) raw: RawNode<Log<D>>,
    /// What raft wants written and the disk does not take. Until it does, raft is told nothing.
    pub(super) held: Option<Box<Ready>>,
    pub(super) voters: Vec<u64>,
    pub(super) learners: Vec<u64>,
    timeout: usize,
    timeout_drawn_for: (u64, StateRole, usize),
    pub(super) pending: BTreeMap<u64, Pending>,
    snapshots_sent: BTreeMap<u64, u64>,
    pub(super) stopped: Option<String>,
    told: (Role, u64, Option<u8>),
}

/// A proposal in the log.
pub(super) struct Pending {
    pub(super) term: u64,
    pub(super) proposal: ProposalId,
    since: u64,
}

impl<D: Disk> Running<D> {
    pub(super) fn start(own: &mut Own, log: Log<D>) -> Result<Self, String> {
        let identity = log.identity();
        let (applied, voters, learners) = match log.snapshot() {
            Some((snapshot, _)) => (snapshot.index(), snapshot.voters.clone(), snapshot.learners.clone()),
            None => (0, Vec::new(), Vec::new()),
        };
        let config = raft::Config {
            id: number(identity.node, identity.disk),
            election_tick: ELECTION,
            heartbeat_tick: HEARTBEAT,
            applied,
            max_size_per_msg: MESSAGE_BYTES,
            check_quorum: true,
            pre_vote: true,
            ..raft::Config::default()
        };
        // Raft's own log is for those who debug raft; what it does is told by events.
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let raw = RawNode::new(&config, log, &logger).map_err(|error| error.to_string())?;
        let mut running = Self {
            raw,
            held: None,
            voters,
            learners,
            timeout: ELECTION + own.draws.below(ELECTION),
            timeout_drawn_for: (0, StateRole::Follower, 0),
            pending: BTreeMap::new(),
            snapshots_sent: BTreeMap::new(),
            stopped: None,
            told: (Role::Blank, 0, None),
        };
        running.settle_timeout(own);
        running.pump(own);
        if running.voters == [config.id] && running.held.is_none() {
            // Nobody else could lead. A failure leaves it to the next timeout.
            let _ = running.raw.campaign();
            running.settle_timeout(own);
            running.pump(own);
        }
        Ok(running)
    }

    pub(super) fn raft(&self) -> &Raft<Log<D>> {
        &self.raw.raft
    }

    pub(super) fn log(&self) -> &Log<D> {
        self.raw.store()
    }

    pub(super) fn log_mut(&mut self) -> &mut Log<D> {
        self.raw.mut_store()
    }

    pub(super) fn into_log(self) -> Log<D> {
        self.raw.raft.r.raft_log.store
    }

    /// Term and index of the last entry.
    pub(super) fn end_of_log(&self) -> (u64, u64) {
        (self.raft().raft_log.last_term(), self.raft().raft_log.last_index())
    }

    pub(super) fn why_stopped(&mut self) -> Option<String> {
        self.stopped.take()
    }

    pub(super) fn has_heard_a_leader(&self) -> bool {
        self.raft().term > 0
    }

    pub(super) fn leader(&self) -> Option<u8> {
        Some(node_of(self.raft().leader_id)).filter(|&node| node != 0)
    }

    pub(super) fn role(&self) -> Role {
        match self.raft().state {
            StateRole::Leader => Role::Leader,
            StateRole::Candidate | StateRole::PreCandidate => Role::Candidate,
            StateRole::Follower if self.voters.contains(&self.raft().id) => Role::Follower,
            StateRole::Follower => Role::Learner,
        }
    }

    pub(super) fn peers(&self, own: &Own) -> Vec<Peer> {
        let leads = self.raft().state == StateRole::Leader;
        let peer = |&seat: &u64, votes| Peer {
            id: node_of(seat),
            votes,
            matched: self.raft().prs().get(seat).filter(|_| leads).map(|progress| progress.matched),
            is_heard: own.hears(node_of(seat)),
        };
        let voters = self.voters.iter().map(|seat| peer(seat, true));
        voters.chain(self.learners.iter().map(|seat| peer(seat, false))).collect()
    }

    /// A leader knows whom it hears; who follows one takes its word, which check-quorum keeps it to.
    pub(super) fn has_quorum(&self, own: &Own) -> bool {
        let heard = self.voters.iter().filter(|&&seat| own.hears(node_of(seat))).count();
        match self.raft().state {
            StateRole::Leader => heard * 2 > self.voters.len(),
            _ => self.leader().is_some(),
        }
    }

    pub(super) fn handle(&mut self, own: &mut Own, from: u8, disk: u128, step: Step) {
        if step.from != number(from, disk) || step.to != self.raft().id {
            own.counters.wrong_seat += 1;
            return;
        }
        let message = step.into_raft().filter(|message| guard::is_plausible(self.raft(), message));
        match message {
            None => own.counters.implausible += 1,
            Some(_) if self.held.is_some() => own.counters.out_of_turn += 1,
            Some(message) => {
                // What raft does not take it has no use for, such as an answer from someone who has no seat any more.
                let _ = self.raw.step(message);
                self.settle_timeout(own);
                self.pump(own);
            }
        }
    }

    pub(super) fn tick(&mut self, own: &mut Own) {
        self.give_up_on_proposals(own, PATIENCE);
        if self.held.is_some() {
            if own.tick.is_multiple_of(AGAIN) {
                self.pump(own);
            }
            return;
        }
        self.raw.tick();
        self.settle_timeout(own);
        self.resend_snapshots(own.tick);
        if own.tick.is_multiple_of(2 * AGAIN) {
            self.greet(own);
            self.say_begun(own);
        }
        if own.tick.is_multiple_of(AGAIN) {
            self.ask_for_state(own);
        }
        self.pump(own);
    }

    pub(super) fn propose(&mut self, own: &mut Own, proposal: ProposalId, command: &Command) {
        if let Err(why) = self.try_propose(own, proposal, command) {
            own.out.push(Action::Refused { proposal, why });
        }
    }

    fn try_propose(&mut self, own: &mut Own, proposal: ProposalId, command: &Command) -> Result<(), NotTaken> {
        if self.held.is_some() {
            return Err(NotTaken::Disk);
        }
        if self.voters.is_empty() || self.has_left(own) {
            return Err(NotTaken::NoSeat);
        }
        if self.raft().state != StateRole::Leader {
            return Err(self.leader().map_or(NotTaken::NoQuorum, NotTaken::NotLeader));
        }
        if !self.has_quorum(own) {
            return Err(NotTaken::NoQuorum);
        }
        let sealed = command.seal();
        if sealed.len() > COMMAND_BYTES {
            return Err(NotTaken::TooLong);
        }
        let proposed = match change_of_seats(&own.state, command) {
            Some(change) if unseats(&change, self.raft().id) && self.voters.len() > 1 => {
                self.resign(own);
                return Err(NotTaken::Leads);
            }
            Some(_) if self.raft().has_pending_conf() => return Err(NotTaken::Busy),
            Some(change) => self.raw.propose_conf_change(sealed, change),
            None => self.raw.propose(Vec::new(), sealed),
        };
        proposed.map_err(|_| NotTaken::Dropped)?;
        let (index, term) = (self.raft().raft_log.last_index(), self.raft().term);
        self.pending.insert(index, Pending { term, proposal, since: own.tick });
        self.pump(own);
        Ok(())
    }

    /// Asks the voter to lead that has most of the log: a node, if one is there.
    pub(super) fn resign(&mut self, own: &mut Own) {
        let others = self.voters.iter().filter(|&&seat| seat != self.raft().id && own.hears(node_of(seat)));
        let matched = |seat: u64| self.raft().prs().get(seat).map_or(0, |progress| progress.matched);
        if self.raft().state == StateRole::Leader
            && self.held.is_none()
            && let Some(&heir) = others.max_by_key(|&&seat| (own.state.is_node(node_of(seat)), matched(seat), seat))
        {
            self.raw.transfer_leader(heir);
            self.pump(own);
        }
    }

    /// Raft draws its election timeouts by its own chance. They are set here after each step, so that a seed decides.
    fn settle_timeout(&mut self, own: &mut Own) {
        let raft = &mut self.raw.raft;
        let (term, role, elapsed) = (raft.term, raft.state, raft.election_elapsed);
        let (old_term, old_role, old_elapsed) = self.timeout_drawn_for;
        if (term, role) != (old_term, old_role) || elapsed < old_elapsed {
            self.timeout = ELECTION + own.draws.below(ELECTION);
        }
        self.timeout_drawn_for = (term, role, elapsed);
        raft.set_randomized_election_timeout(self.timeout);
    }

    /// Does what raft wants done, as long as there is anything and the disk takes it.
    fn pump(&mut self, own: &mut Own) {
        while self.stopped.is_none() {
            let ready = match self.held.take() {
                Some(ready) => ready,
                None if self.raw.has_ready() => {
                    let mut ready = self.raw.ready();
                    // A leader's messages need not wait for its own disk.
                    self.send(own, ready.take_messages());
                    Box::new(ready)
                }
                None => break,
            };
            if let Err(ready) = self.complete(own, ready) {
                self.held = Some(ready);
                break;
            }
        }
        self.compact(own);
        let now = (self.role(), self.raft().term, self.leader());
        if self.told != now {
            if (self.told.0, self.told.1) != (now.0, now.1) {
                own.out.push(Action::Told(Event::Role { role: now.0, term: now.1 }));
            }
            self.told = now;
            own.out.push(Action::StateChanged);
        }
    }

    /// Writes, then applies and sends. Gives back what could not be written.
    fn complete(&mut self, own: &mut Own, mut ready: Box<Ready>) -> Result<(), Box<Ready>> {
        let mut snapshot = None;
        if !ready.snapshot().is_empty() {
            let index = ready.snapshot().get_metadata().index;
            match Snapshot::open(index, ready.snapshot().get_data()) {
                Ok(opened) => snapshot = Some(opened),
                Err(error) => {
                    self.stopped = Some(format!("the leader's snapshot at {index} cannot be taken: {error}"));
                    return Ok(());
                }
            }
        }
        if ready.must_sync() {
            if let Err(error) = self.raw.mut_store().persist(snapshot.clone(), ready.entries(), ready.hs()) {
                own.disk_fails(&error);
                return Err(ready);
            }
            own.disk_works();
        } else if let Some(hard_state) = ready.hs() {
            self.raw.mut_store().set_commit(hard_state.commit);
        }
        if let Some(snapshot) = snapshot {
            (self.voters, self.learners) = (snapshot.voters, snapshot.learners);
            own.state = Arc::new(snapshot.state);
            own.out.push(Action::StateChanged);
        }
        let messages = ready.take_persisted_messages();
        self.apply(own, ready.take_committed_entries());
        self.send(own, messages);
        let mut light = self.raw.advance_append(*ready);
        if let Some(commit) = light.commit_index() {
            self.raw.mut_store().set_commit(commit);
        }
        self.send(own, light.take_messages());
        self.apply(own, light.take_committed_entries());
        self.raw.advance_apply();
        Ok(())
    }

    fn send(&mut self, own: &mut Own, messages: Vec<eraftpb::Message>) {
        let disk = self.log().identity().disk;
        for message in messages {
            if message.get_msg_type() == MessageType::MsgSnapshot {
                self.snapshots_sent.insert(message.to, own.tick);
            }
            if let Some(step) = Step::of(&message) {
                own.send(node_of(message.to), disk, Body::Raft(step));
            }
        }
    }

    /// Raft waits for a snapshot's fate for ever.
    fn resend_snapshots(&mut self, tick: u64) {
        let old: Vec<u64> =
            self.snapshots_sent.iter().filter(|&(_, &at)| tick - at >= SNAPSHOT_AGAIN).map(|(&to, _)| to).collect();
        for to in old {
            self.snapshots_sent.remove(&to);
            if self.raft().prs().get(to).is_some_and(|progress| progress.state == ProgressState::Snapshot) {
                self.raw.report_snapshot(to, SnapshotStatus::Failure);
            }
        }
    }

    /// Whether this node was a member and is one no more.
    fn has_left(&self, own: &Own) -> bool {
        own.state.version > 0 && !own.state.members.contains_key(&own.config.node)
    }

    /// Tells nodes that should be members and are not that there is a cluster.
    fn say_begun(&self, own: &mut Own) {
        if own.state.version == 0 || self.has_left(own) {
            return;
        }
        let is_missing = |peer: &u8| !own.state.members.contains_key(peer);
        for peer in own.config.peers.clone().into_iter().filter(is_missing).collect::<Vec<_>>() {
            own.send(peer, self.log().identity().disk, Body::Begun);
        }
    }

    /// Tells peers of this disk while it has no seat.
    pub(super) fn greet(&self, own: &mut Own) {
        let id = self.raft().id;
        if self.voters.contains(&id) || self.learners.contains(&id) || self.has_left(own) {
            return;
        }
        let (incarnation, weight) = (own.config.incarnation, own.config.weight);
        for peer in own.peers() {
            let address = own.config.address.clone();
            let body = match own.config.witness {
                true => Body::Witness { address },
                false => Body::Hello { incarnation, address, weight },
            };
            own.send(peer, self.log().identity().disk, body);
        }
    }

    /// Calls proposals unknown that have waited for so many ticks.
    pub(super) fn give_up_on_proposals(&mut self, own: &mut Own, patience: u64) {
        let tick = own.tick;
        let out = &mut own.out;
        self.pending.retain(|_, pending| {
            let keeps = tick - pending.since < patience;
            if !keeps {
                out.push(Action::Unknown { proposal: pending.proposal });
            }
            keeps
        });
    }
}
