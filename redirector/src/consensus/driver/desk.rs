//! What a node's part in agreement does with what it is told, without threads, channels and clocks: it feeds machine and
//! planner, reports to whoever leads, and knows who waits for which proposal. The thread carries things to it and from it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use super::{Committed, Genesis, Overview, ProposeError};
use crate::consensus::disk::Disk;
use crate::consensus::frame::{self, Kind};
use crate::consensus::machine::{Action, BootstrapError, Event, Machine, ProposalId, RecoverError, Role, Status};
use crate::consensus::planner::{Concern, Patience, Planner, Report, Times, View};
use crate::consensus::state::{Command, State};

/// What is to be done for a desk. `A` is whoever waits for an answer.
pub enum Errand<A> {
    /// Tell a node this, if it can be reached.
    Send {
        /// The node.
        to: u8,
        /// What it is told.
        bytes: Vec<u8>,
    },
    /// Tell whoever proposed something what became of it.
    Answer(A, Result<Committed, ProposeError>),
    /// Something for the journal.
    Tell(Event),
    /// State or standing may be others now: give them out.
    Publish,
}

/// Milliseconds between attempts of a witness to have a node lead in its place.
const YIELD: u64 = 10_000;

/// Milliseconds between reports to one leader that say the same: well below the time that reports count for.
const REPORT: u64 = 200;

/// Who waits for a proposal.
enum Waiting<A> {
    Someone(A),
    Planner(Concern),
}

/// Machine, planner, and what goes between them, the other nodes and this one.
pub struct Desk<D: Disk, A> {
    machine: Machine<D>,
    planner: Planner,
    waiting: BTreeMap<ProposalId, Waiting<A>>,
    welcome: BTreeSet<u8>,
    vips: BTreeMap<String, Vec<u8>>,
    times: Times,
    report: Report,
    /// Which leader was told that last, and when.
    reported: Option<(u8, u64)>,
    own: u8,
    cluster: u32,
    /// When a witness that leads has asked a node to lead.
    yielded: Option<u64>,
    out: VecDeque<Errand<A>>,
}

impl<D: Disk, A> Desk<D, A> {
    /// A desk that has reported nothing yet. Times are milliseconds of any clock that never goes back.
    pub fn new(machine: Machine<D>, patience: Patience, welcome: BTreeSet<u8>) -> Self {
        let (own, cluster) = (machine.config().node, machine.config().cluster);
        let report = Report { incarnation: machine.config().incarnation, ..Report::default() };
        let mut desk = Self {
            machine,
            planner: Planner::new(patience),
            waiting: BTreeMap::new(),
            welcome,
            vips: BTreeMap::new(),
            times: Times::default(),
            report,
            reported: None,
            own,
            cluster,
            yielded: None,
            out: VecDeque::new(),
        };
        desk.act();
        desk
    }

    /// What another node's desk says.
    pub fn handle_message(&mut self, from: u8, payload: &[u8], now: u64) {
        if frame::says(payload, Kind::Report) {
            match Report::open(self.cluster, payload) {
                Ok(report) => self.planner.handle_report(from, report, now),
                Err(error) => self.machine.refuse(from, error),
            }
            return self.act();
        }
        self.machine.handle_message(from, payload);
        self.act();
    }

    /// Proposes a command for someone, who is answered once.
    pub fn propose(&mut self, command: &Command, someone: A) {
        let proposal = self.machine.propose(command);
        self.waiting.insert(proposal, Waiting::Someone(someone));
        self.act();
    }

    /// What this node sees and has done; it holds until there is another.
    pub fn handle_report(&mut self, report: Report, now: u64) {
        if report != self.report {
            self.report = report;
            self.reported = None;
            self.send_report(&self.machine.status(), now);
        }
    }

    /// Who may become a member.
    pub fn handle_welcome(&mut self, nodes: BTreeSet<u8>) {
        self.welcome = nodes;
    }

    /// Who should hold each VIP, and who after it.
    pub fn handle_vips(&mut self, vips: BTreeMap<String, Vec<u8>>) {
        self.vips = vips;
    }

    /// How long backends of pools take to start, and to drain.
    pub fn handle_times(&mut self, times: Times) {
        self.times = times;
    }

    /// Begins a cluster of this node alone.
    ///
    /// # Errors
    /// [`BootstrapError`].
    pub fn bootstrap(&mut self, genesis: Genesis) -> Result<(), BootstrapError> {
        let done = self.machine.bootstrap(genesis);
        self.act();
        done
    }

    /// Asks all peers whether they are part of a cluster.
    pub fn greet(&mut self) {
        self.machine.greet();
        self.act();
    }

    /// Asks all members whether they are there.
    pub fn survey(&mut self) {
        self.machine.survey();
        self.act();
    }

    /// Has the cluster go on with this node as its only voter, without those that are lost.
    ///
    /// # Errors
    /// [`RecoverError`].
    pub fn recover(&mut self, lost: &BTreeSet<u8>) -> Result<(), RecoverError> {
        let done = self.machine.recover(lost);
        self.act();
        done
    }

    /// Fetches the agreed state anew from a node.
    pub fn refetch(&mut self, from: u8) {
        self.machine.refetch(from);
        self.act();
    }

    /// Asks another node to lead, if this one does.
    pub fn resign(&mut self) {
        self.machine.resign();
        self.act();
    }

    /// Lets one tick pass.
    pub fn tick(&mut self) {
        self.machine.tick();
        self.act();
    }

    /// Reports to whoever leads, and makes plans if this node does; to be called again and again.
    pub fn round(&mut self, now: u64) {
        let status = self.machine.status();
        self.send_report(&status, now);
        self.give_way(&status, now);
        let view = View {
            state: self.machine.state(),
            status: &status,
            strangers: self.machine.strangers().collect(),
            welcome: &self.welcome,
            vips: &self.vips,
            times: &self.times,
        };
        for (concern, command) in self.planner.plan(&view, now) {
            let proposal = self.machine.propose(&command);
            self.waiting.insert(proposal, Waiting::Planner(concern));
        }
        self.act();
        self.out.push_back(Errand::Publish);
    }

    /// The next thing to do, if there is any.
    pub fn poll(&mut self) -> Option<Errand<A>> {
        self.out.pop_front()
    }

    /// What is agreed on, as far as this node knows.
    pub fn state(&self) -> &Arc<State> {
        self.machine.state()
    }

    /// How agreement stands here.
    pub fn overview(&self) -> Overview {
        Overview { me: self.own, status: self.machine.status(), counters: self.machine.counters().clone() }
    }

    /// The disk, while there is one to speak of; for tests that damage it.
    pub fn disk_mut(&mut self) -> Option<&mut D> {
        self.machine.disk_mut()
    }

    /// Sees to what the machine wants done.
    fn act(&mut self) {
        let actions: Vec<_> = self.machine.poll().into_iter().collect();
        // First, so that whoever is answered sees what was done for them.
        if actions.iter().any(|action| matches!(action, Action::StateChanged)) {
            self.out.push_back(Errand::Publish);
        }
        for action in actions {
            match action {
                Action::Send { to, bytes } => self.out.push_back(Errand::Send { to, bytes }),
                Action::Applied { index, outcome, .. } => tracing::debug!(index, ?outcome, "committed"),
                Action::Committed { proposal, index, version, outcome, durable_on, of } => {
                    let done = outcome.map(|()| Committed { version, index, durable_on, of });
                    self.answer(proposal, done.map_err(ProposeError::Refused));
                }
                Action::Refused { proposal, why } => self.answer(proposal, Err(ProposeError::NotTaken(why))),
                Action::Unknown { proposal } => self.answer(proposal, Err(ProposeError::Unknown)),
                Action::StateChanged => {}
                Action::Told(event) => self.out.push_back(Errand::Tell(event)),
            }
        }
    }

    fn answer(&mut self, proposal: ProposalId, answer: Result<Committed, ProposeError>) {
        match self.waiting.remove(&proposal) {
            Some(Waiting::Someone(someone)) => self.out.push_back(Errand::Answer(someone, answer)),
            Some(Waiting::Planner(concern)) => {
                if let Err(error) = answer {
                    tracing::debug!(?concern, %error, "a planned step was not taken");
                }
                self.planner.finished(concern);
            }
            None => {}
        }
    }

    /// A witness leads only as long as no node can: nodes know what is to be planned.
    fn give_way(&mut self, status: &Status, now: u64) {
        if !self.machine.config().witness || status.role != Role::Leader {
            self.yielded = None;
        } else if self.yielded.is_none_or(|at| now - at >= YIELD) {
            self.yielded = Some(now);
            self.machine.resign();
        }
    }

    /// Tells the leader, who may be this node, what this node reports, where it has not been told lately.
    fn send_report(&mut self, status: &Status, now: u64) {
        if self.reported.is_some_and(|(to, at)| Some(to) == status.leader && now - at < REPORT) {
            return;
        }
        self.reported = status.leader.map(|leader| (leader, now));
        match status.leader {
            Some(leader) if leader == self.own && status.role == Role::Leader => {
                self.planner.handle_report(self.own, self.report.clone(), now);
            }
            Some(leader) => {
                let bytes = self.report.seal(self.cluster);
                self.out.push_back(Errand::Send { to: leader, bytes });
            }
            None => {}
        }
    }
}
