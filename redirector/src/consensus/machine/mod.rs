//! A node's part in agreement, without sockets, clocks or threads.
//!
//! ```text
//! handle_message(from, bytes) ─┐              ┌─► Send: a message to a node
//! propose(command) ────────────┼─► Machine ───┼─► Applied: a command was committed, on every node alike
//! tick() ──────────────────────┘    │  ▲      ├─► Committed, Refused, Unknown: what became of a proposal
//!                                   ▼  │      └─► Told: for the journal
//!                                   disk
//! ```
//!
//! A machine begins in one of three ways. With an empty disk it greets its peers, until one of them gives it a learner's
//! seat; only [`Machine::bootstrap`] begins a cluster. With a whole log it goes on where it was. With damaged entries or a
//! damaged snapshot it fetches them from its peers first, and is as good as down until it has them. Where the vote is lost,
//! or nobody has what is damaged, the disk is set aside and the machine begins with an empty one, as someone else. A disk
//! that cannot be read at all just now, such as a full one, is read again and again until it can be.
//!
//! Where a majority of the voters is lost for good, [`Machine::recover`] has one of those that are left go on alone.
//!
//! While the disk fails or is full the machine neither votes nor acknowledges, and goes on when the disk does.
//!
//! The same inputs give the same outputs: time is counted in ticks, and chance comes from the seed.

mod action;
mod commit;
mod draws;
mod guard;
mod own;
mod recover;
mod repair;
mod running;
mod status;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

pub use action::{Action, BootstrapError, Config, Event, NotTaken, ProposalId, RecoverError, Stranger};
pub use status::{Counters, Peer, Role, Status};

use super::disk::Disk;
use super::frame::FrameError;
use super::log::{Damage, Identity, Log, OpenError};
use super::state::{Command, State};
use super::wire::{Body, Letter, Snapshot, number};
use draws::Draws;
use repair::{Done, Repair};
use running::Running;

/// Ticks between a leader's heartbeats.
pub const HEARTBEAT: usize = 5;

/// Ticks without a leader after which a node may stand for election; drawn from here to twice as many.
pub const ELECTION: usize = 25;

/// Ticks between attempts at what may fail: a full disk, a peer that is not there yet.
const AGAIN: u64 = 25;

/// Ticks after which a proposal that is neither committed nor replaced is called unknown.
const PATIENCE: u64 = 250;

/// How often a node is asked for the agreed state. Its answer must not be of another time than what is here.
const DOUBTS: u32 = 20;

/// Ticks until it is told again that a peer sends a newer format: a minute.
const NEWER: u64 = 3000;

/// The longest command, so that it fits a message with room to spare.
const COMMAND_BYTES: usize = 8 << 20;

/// A node's part in agreement.
pub struct Machine<D: Disk> {
    own: Own,
    phase: Phase<D>,
}

/// What a machine has in every phase.
struct Own {
    config: Config,
    draws: Draws,
    tick: u64,
    state: Arc<State>,
    /// Whether every slot has two owners by a state, as it was last worked out: all slots are looked at for it.
    two_owners_each: RefCell<(Arc<State>, bool)>,
    out: Vec<Action>,
    counters: Counters,
    proposals: u64,
    heard: BTreeMap<u8, u64>,
    strangers: BTreeMap<u8, Stranger>,
    disk_fails: bool,
    /// Nodes of which each has said that it is part of a cluster, and when.
    begun: BTreeMap<u8, u64>,
    /// Nodes with clusters of their own that have been told of.
    rivals: BTreeSet<u8>,
    /// The node that the agreed state is fetched from, and how often it will still be asked.
    doubt: Option<(u8, u32)>,
    /// Term and index of the last entry of those that answered a survey, and when.
    surveyed: BTreeMap<u8, ((u64, u64), u64)>,
    /// Peers of which it was told that they send a newer format, which, and when.
    newer: BTreeMap<u8, (u8, u64)>,
}

enum Phase<D: Disk> {
    /// A disk that cannot be read yet.
    Unread(D),
    /// A disk that shall become an empty log.
    Blank {
        disk: D,
        /// Whether what is on it is to be set aside before.
        has_remains: bool,
    },
    Repairing(Box<Repair<D>>),
    Running(Box<Running<D>>),
    Stopped,
}

impl<D: Disk> Machine<D> {
    /// A machine on its disk.
    ///
    /// # Errors
    /// [`OpenError`], where the disk must be left as it is.
    pub fn new(config: Config, disk: D) -> Result<Self, OpenError> {
        let mut own = Own {
            draws: Draws::new(config.seed),
            config,
            tick: 0,
            state: Arc::default(),
            two_owners_each: RefCell::new((Arc::default(), false)),
            out: Vec::new(),
            counters: Counters::default(),
            proposals: 0,
            heard: BTreeMap::new(),
            strangers: BTreeMap::new(),
            disk_fails: false,
            begun: BTreeMap::new(),
            rivals: BTreeSet::new(),
            doubt: None,
            surveyed: BTreeMap::new(),
            newer: BTreeMap::new(),
        };
        let phase = own.open(disk)?;
        let mut machine = Self { own, phase };
        machine.try_blank();
        machine.look_for_stop();
        Ok(machine)
    }

    /// Begins a cluster of this node alone, with the state that `genesis` gives for its disk's UUID.
    ///
    /// # Errors
    /// [`BootstrapError`].
    pub fn bootstrap(&mut self, genesis: impl FnOnce(u128) -> State) -> Result<(), BootstrapError> {
        self.try_blank();
        if self.own.state.version == 0
            && let Some(node) = self.own.begun_elsewhere()
        {
            return Err(BootstrapError::Elsewhere(node));
        }
        match std::mem::replace(&mut self.phase, Phase::Stopped) {
            Phase::Running(running) if running.log().snapshot().is_none() && !running.has_heard_a_leader() => {
                let mut log = running.into_log();
                let identity = log.identity();
                let voters = vec![number(identity.node, identity.disk)];
                let snapshot = Snapshot { term: 1, voters, learners: Vec::new(), state: genesis(identity.disk) };
                let written = log.persist(Some(snapshot), &[], None);
                self.phase = self.own.begin(log, Damage::default());
                Ok(written?)
            }
            blank @ (Phase::Blank { .. } | Phase::Unread(_)) => {
                self.phase = blank;
                Err(BootstrapError::Io(std::io::ErrorKind::StorageFull.into()))
            }
            phase => {
                self.phase = phase;
                Err(BootstrapError::Begun)
            }
        }
    }

    /// Counts a message that is not taken, and tells of newer formats now and then: a peer says the same again and again.
    pub fn refuse(&mut self, from: u8, error: FrameError) {
        let Self { own, .. } = self;
        own.counters.refuse(error);
        if let FrameError::Newer { found, known } = error {
            let told = own.newer.get(&from).is_some_and(|&(of, at)| of == found && own.tick - at < NEWER);
            if !told {
                own.newer.insert(from, (found, own.tick));
                own.out.push(Action::Told(Event::Newer { from, found, known }));
            }
        }
    }

    /// Takes a message that the transport says is from this node.
    pub fn handle_message(&mut self, from: u8, bytes: &[u8]) {
        let letter = match Letter::open(self.own.config.cluster, bytes) {
            Ok(letter) if from != self.own.config.node => letter,
            refused => return self.refuse(from, refused.err().unwrap_or(FrameError::Foreign)),
        };
        self.own.heard.insert(from, self.own.tick);
        if self.own.state.given_up.contains(&letter.disk) {
            let disk = self.log().map_or(0, |log| log.identity().disk);
            self.own.send(from, disk, Body::GivenUp(letter.disk));
            return;
        }
        let tick = self.own.tick;
        let disk = self.log().map(|log| log.identity().disk);
        match (letter.body, &mut self.phase) {
            (Body::Hello { incarnation, address, weight }, _) => {
                let disk = letter.disk;
                self.meet(from, Stranger { disk, incarnation, address, weight, witness: false, tick });
            }
            (Body::Witness { address }, _) => {
                let disk = letter.disk;
                self.meet(from, Stranger { disk, incarnation: 0, address, weight: 0, witness: true, tick });
            }
            (Body::Survey, Phase::Running(running)) => {
                let (disk, (term, last)) = (running.log().identity().disk, running.end_of_log());
                self.own.send(from, disk, Body::Surveyed { term, last });
            }
            (Body::Surveyed { term, last }, _) => drop(self.own.surveyed.insert(from, ((term, last), tick))),
            (Body::GivenUp(lost), _) if disk == Some(lost) => self.give_way(from),
            (Body::Begun, _) => self.own.hears_of_a_cluster(from),
            (Body::Raft(step), Phase::Running(running)) => running.handle(&mut self.own, from, letter.disk, step),
            (Body::Fetch { entries, snapshot }, Phase::Running(running)) => {
                let commit = running.raft().raft_log.committed;
                let now = || running.snapshot(&self.own.state);
                let body = repair::answer(running.log(), commit, &entries, snapshot, now);
                self.own.send(from, running.log().identity().disk, body);
            }
            (Body::Fetch { entries, snapshot }, Phase::Repairing(repair)) => {
                let (disk, body) = repair.answer(&entries, snapshot);
                self.own.send(from, disk, body);
            }
            (Body::Fetched { snapshot: Some(snapshot), .. }, Phase::Running(running))
                if self.own.doubt.is_some_and(|(doubted, _)| doubted == from) =>
            {
                running.take_state(&mut self.own, from, &snapshot);
            }
            (Body::Fetched { entries, commit, snapshot }, Phase::Repairing(repair)) => {
                let done = repair.take(&mut self.own, from, entries, commit, snapshot);
                self.end_repair(done);
            }
            _ => self.own.counters.out_of_turn += 1,
        }
        self.look_for_stop();
    }

    /// Proposes a command. What becomes of it is told by an action, once.
    pub fn propose(&mut self, command: &Command) -> ProposalId {
        self.own.proposals += 1;
        let proposal = ProposalId(self.own.proposals);
        match &mut self.phase {
            Phase::Running(running) => running.propose(&mut self.own, proposal, command),
            _ => self.own.out.push(Action::Refused { proposal, why: NotTaken::NoSeat }),
        }
        self.look_for_stop();
        proposal
    }

    /// Takes note of a disk without a seat, and tells it whether there is a cluster.
    fn meet(&mut self, from: u8, stranger: Stranger) {
        self.own.strangers.insert(from, stranger);
        if let (Phase::Running(running), 1..) = (&self.phase, self.own.state.version) {
            let disk = running.log().identity().disk;
            self.own.send(from, disk, Body::Begun);
        }
    }

    /// Asks all peers at once whether they are part of a cluster.
    pub fn greet(&mut self) {
        if let Phase::Running(running) = &self.phase {
            running.greet(&mut self.own);
        }
    }

    /// Fetches the agreed state anew from a node: whoever calls knows that most others have another.
    pub fn refetch(&mut self, from: u8) {
        if let Phase::Running(running) = &mut self.phase {
            self.own.doubt = Some((from, DOUBTS));
            running.ask_for_state(&mut self.own);
        }
    }

    /// Changes the agreed state behind the log's back; for tests of what finds that.
    #[cfg(test)]
    pub(in crate::consensus) fn corrupt(&mut self, change: impl FnOnce(&mut State)) {
        change(Arc::make_mut(&mut self.own.state));
    }

    /// Asks another voter to lead, if this node does.
    pub fn resign(&mut self) {
        if let Phase::Running(running) = &mut self.phase {
            running.resign(&mut self.own);
        }
    }

    /// Lets one tick pass.
    pub fn tick(&mut self) {
        self.own.tick += 1;
        match &mut self.phase {
            Phase::Unread(_) if self.own.tick.is_multiple_of(AGAIN) => self.read_again(),
            Phase::Blank { .. } if self.own.tick.is_multiple_of(AGAIN) => self.try_blank(),
            Phase::Running(running) => running.tick(&mut self.own),
            Phase::Repairing(repair) => {
                let done = repair.tick(&mut self.own);
                self.end_repair(done);
            }
            Phase::Unread(_) | Phase::Blank { .. } | Phase::Stopped => {}
        }
        self.look_for_stop();
    }

    /// Tries once more to read what could not be read.
    fn read_again(&mut self) {
        let Phase::Unread(disk) = std::mem::replace(&mut self.phase, Phase::Stopped) else { return };
        match self.own.open(disk) {
            Ok(phase) => self.phase = phase,
            Err(error) => {
                self.own.out.push(Action::Told(Event::Stopped(error.to_string())));
                self.own.counters.stopped = Some(error.to_string());
            }
        }
        self.try_blank();
    }

    /// What is to be done or known since the last call.
    pub fn poll(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.own.out)
    }

    /// Who it is.
    pub fn config(&self) -> &Config {
        &self.own.config
    }

    /// What is agreed on, as far as this node knows.
    pub fn state(&self) -> &Arc<State> {
        &self.own.state
    }

    /// Disks without a seat that were heard of lately, by node.
    pub fn strangers(&self) -> impl Iterator<Item = (u8, &Stranger)> {
        let is_one = |(id, stranger): &(&u8, &Stranger)| {
            let seat = self.own.state.members.get(id).and_then(|member| member.seat);
            seat.is_none_or(|seat| seat.disk != stranger.disk) && self.own.tick - stranger.tick <= 4 * AGAIN
        };
        self.own.strangers.iter().filter(is_one).map(|(&id, stranger)| (id, stranger))
    }

    /// The disk, while there is one to speak of; for tests that damage it.
    pub fn disk_mut(&mut self) -> Option<&mut D> {
        match &mut self.phase {
            Phase::Unread(disk) | Phase::Blank { disk, .. } => Some(disk),
            Phase::Repairing(repair) => Some(repair.log_mut().disk_mut()),
            Phase::Running(running) => Some(running.log_mut().disk_mut()),
            Phase::Stopped => None,
        }
    }

    /// The log, where there is one that can be read.
    fn log(&self) -> Option<&Log<D>> {
        match &self.phase {
            Phase::Running(running) => Some(running.log()),
            Phase::Repairing(repair) => Some(repair.log()),
            Phase::Unread(_) | Phase::Blank { .. } | Phase::Stopped => None,
        }
    }

    /// Makes an empty log of a disk that has none.
    fn try_blank(&mut self) {
        match std::mem::replace(&mut self.phase, Phase::Stopped) {
            Phase::Blank { disk, has_remains } => self.phase = self.own.blank(disk, has_remains),
            phase => self.phase = phase,
        }
    }

    fn end_repair(&mut self, done: Done) {
        if done == Done::NotYet {
            return;
        }
        match std::mem::replace(&mut self.phase, Phase::Stopped) {
            Phase::Repairing(repair) => {
                let (log, damage) = repair.into_parts();
                self.phase = match done {
                    Done::GaveUp => self.own.reborn(log.into_disk(), "no peer has what is damaged".to_owned()),
                    _ => self.own.begin(log, damage),
                };
                self.try_blank();
            }
            phase => self.phase = phase,
        }
    }

    fn look_for_stop(&mut self) {
        if let Phase::Running(running) = &mut self.phase
            && let Some(why) = running.why_stopped()
        {
            running.give_up_on_proposals(&mut self.own, 0);
            self.own.out.push(Action::Told(Event::Stopped(why.clone())));
            self.own.counters.stopped = Some(why);
            self.phase = Phase::Stopped;
        }
    }
}
