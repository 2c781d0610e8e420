//! The thread that owns the machine, its disk and the planner.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, RecvTimeoutError};
use tokio::sync::{broadcast, oneshot, watch};

use super::{Committed, Genesis, Overview, ProposeError};
use crate::consensus::disk::Guarded;
use crate::consensus::frame::{self, Kind};
use crate::consensus::machine::{Action, BootstrapError, Event, Machine, ProposalId, Role};
use crate::consensus::planner::{Concern, Patience, Planner, Report, View};
use crate::consensus::redb::File;
use crate::consensus::state::{Command, State};
use crate::transport::{Channel, Transport};

/// A tick.
const TICK: Duration = Duration::from_millis(20);

/// Ticks that are made up for after a pause; the others never were.
const MADE_UP: u32 = 5;

/// How often reports are sent and plans are made.
const ROUND: Duration = Duration::from_millis(100);

/// What the thread is told.
pub(super) enum Input {
    Message { from: u8, payload: Vec<u8> },
    Propose { command: Command, answer: Answer },
    Report(Report),
    Welcome(BTreeSet<u8>),
    Bootstrap { genesis: Genesis, answer: oneshot::Sender<Result<(), BootstrapError>> },
    Resign,
    End(oneshot::Sender<()>),
}

type Answer = oneshot::Sender<Result<Committed, ProposeError>>;

/// Who waits for a proposal.
enum Waiting {
    Someone(Answer),
    Planner(Concern),
}

/// Where the thread tells what it knows.
pub(super) struct Published {
    pub(super) state: watch::Sender<Arc<State>>,
    pub(super) overview: watch::Sender<Overview>,
    pub(super) events: broadcast::Sender<Event>,
}

pub(super) struct Thread {
    machine: Machine<Guarded<File>>,
    planner: Planner,
    transport: Transport,
    published: Published,
    waiting: BTreeMap<ProposalId, Waiting>,
    welcome: BTreeSet<u8>,
    report: Report,
    started: Instant,
    own: u8,
    cluster: u32,
}

impl Thread {
    pub(super) fn new(
        machine: Machine<Guarded<File>>,
        patience: Patience,
        welcome: BTreeSet<u8>,
        transport: Transport,
        published: Published,
    ) -> Self {
        let (own, cluster) = (machine.config().node, machine.config().cluster);
        let report = Report { incarnation: machine.config().incarnation, ..Report::default() };
        let planner = Planner::new(patience);
        let (waiting, started) = (BTreeMap::new(), Instant::now());
        Self { machine, planner, transport, published, waiting, welcome, report, started, own, cluster }
    }

    pub(super) fn run(mut self, inputs: &Receiver<Input>) {
        let (mut next_tick, mut next_round) = (Instant::now() + TICK, Instant::now());
        self.act();
        loop {
            match inputs.recv_deadline(next_tick) {
                Ok(Input::End(ended)) => {
                    drop(self);
                    // Whoever asked may have gone away.
                    let _ = ended.send(());
                    return;
                }
                Ok(input) => self.handle(input),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            let now = Instant::now();
            next_tick = next_tick.max(now.checked_sub(MADE_UP * TICK).unwrap_or(now));
            while next_tick <= now {
                next_tick += TICK;
                self.machine.tick();
                self.act();
            }
            if now >= next_round {
                next_round = now + ROUND;
                self.round();
            }
        }
    }

    fn handle(&mut self, input: Input) {
        match input {
            Input::Message { from, payload } if frame::says(&payload, Kind::Report) => {
                match Report::open(self.cluster, &payload) {
                    Ok(report) => self.planner.handle_report(from, report, self.now()),
                    Err(error) => tracing::warn!(from, %error, "a node's report is refused"),
                }
            }
            Input::Message { from, payload } => self.machine.handle_message(from, &payload),
            Input::Propose { command, answer } => {
                let proposal = self.machine.propose(&command);
                self.waiting.insert(proposal, Waiting::Someone(answer));
            }
            Input::Report(report) if report == self.report => {}
            Input::Report(report) => {
                self.report = report;
                self.send_report();
            }
            Input::Welcome(nodes) => self.welcome = nodes,
            Input::Bootstrap { genesis, answer } => {
                // Whoever asked may have gone away.
                let _ = answer.send(self.machine.bootstrap(genesis));
            }
            Input::Resign => self.machine.resign(),
            Input::End(_) => {}
        }
        self.act();
    }

    /// Does what the machine wants done.
    fn act(&mut self) {
        let mut is_other = false;
        for action in self.machine.poll() {
            match action {
                Action::Send { to, bytes } => self.transport.tell(to, Channel::Consensus, bytes),
                Action::Applied { index, outcome, .. } => tracing::debug!(index, ?outcome, "committed"),
                Action::Committed { proposal, index, outcome, durable_on, of } => {
                    let version = self.machine.state().specification.version;
                    let done = outcome.map(|()| Committed { version, index, durable_on, of });
                    self.answer(proposal, done.map_err(ProposeError::Refused));
                }
                Action::Refused { proposal, why } => self.answer(proposal, Err(ProposeError::NotTaken(why))),
                Action::Unknown { proposal } => self.answer(proposal, Err(ProposeError::Unknown)),
                Action::StateChanged => is_other = true,
                Action::Told(event) => {
                    match &event {
                        Event::Role { .. } | Event::Repaired { .. } | Event::DiskWorks => tracing::info!("{event}"),
                        _ => tracing::error!("{event}"),
                    }
                    // There may be no journal.
                    let _ = self.published.events.send(event);
                }
            }
        }
        if is_other {
            self.publish();
        }
    }

    fn answer(&mut self, proposal: ProposalId, answer: Result<Committed, ProposeError>) {
        match self.waiting.remove(&proposal) {
            Some(Waiting::Someone(waiting)) => {
                // Whoever asked may have gone away.
                let _ = waiting.send(answer);
            }
            Some(Waiting::Planner(concern)) => {
                if let Err(error) = answer {
                    tracing::debug!(?concern, %error, "a planned step was not taken");
                }
                self.planner.finished(concern);
            }
            None => {}
        }
    }

    fn publish(&mut self) {
        let state = self.machine.state();
        self.published.state.send_if_modified(|published| {
            let is_other = !Arc::ptr_eq(published, state);
            if is_other {
                *published = Arc::clone(state);
            }
            is_other
        });
        let overview = Overview { status: self.machine.status(), counters: self.machine.counters().clone() };
        self.published.overview.send_if_modified(|published| {
            let is_other = *published != overview;
            *published = overview;
            is_other
        });
    }

    fn round(&mut self) {
        self.send_report();
        let status = self.machine.status();
        let view = View {
            state: self.machine.state(),
            status: &status,
            strangers: self.machine.strangers().collect(),
            welcome: &self.welcome,
        };
        let now = self.now();
        for (concern, command) in self.planner.plan(&view, now) {
            let proposal = self.machine.propose(&command);
            self.waiting.insert(proposal, Waiting::Planner(concern));
        }
        self.act();
        self.publish();
    }

    /// Tells the leader, who may be this node, what this node reports.
    fn send_report(&mut self) {
        let status = self.machine.status();
        match status.leader {
            Some(leader) if leader == self.own && status.role == Role::Leader => {
                self.planner.handle_report(self.own, self.report.clone(), self.now());
            }
            Some(leader) => self.transport.tell(leader, Channel::Consensus, self.report.seal(self.cluster)),
            None => {}
        }
    }

    /// Milliseconds of a clock that never goes back.
    fn now(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }
}
