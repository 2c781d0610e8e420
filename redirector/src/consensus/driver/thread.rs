//! The thread that owns the desk and its disk, and knows the time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use crossbeam::channel::{Receiver, TryRecvError};
use tokio::sync::{broadcast, oneshot, watch};

use super::desk::{Desk, Errand};
use super::{Committed, Genesis, Overview, ProposeError, ROUND, TICK};
use crate::consensus::disk::Guarded;
use crate::consensus::machine::{BootstrapError, Event, Machine, RecoverError};
use crate::consensus::planner::{Patience, Report, Times};
use crate::consensus::redb::File;
use crate::consensus::state::{Command, State};
use crate::doorbell::Doorbell;
use crate::transport::{Channel, Transport};

/// Ticks that are made up for after a pause; the others never were.
const MADE_UP: u32 = 5;

/// What the thread is told.
pub(super) enum Input {
    Message { from: u8, payload: Vec<u8> },
    Propose { command: Command, answer: Answer },
    Report(Report),
    Welcome(BTreeSet<u8>),
    Vips(BTreeMap<String, Vec<u8>>),
    Times(Times),
    Bootstrap { genesis: Genesis, answer: oneshot::Sender<Result<(), BootstrapError>> },
    Greet,
    Survey,
    Recover { lost: BTreeSet<u8>, answer: oneshot::Sender<Result<(), RecoverError>> },
    Refetch(u8),
    Resign,
    End(oneshot::Sender<()>),
}

type Answer = oneshot::Sender<Result<Committed, ProposeError>>;

/// Where the thread tells what it knows.
pub(super) struct Published {
    pub(super) state: watch::Sender<Arc<State>>,
    pub(super) overview: watch::Sender<Overview>,
    pub(super) events: broadcast::Sender<Event>,
}

pub(super) struct Thread {
    desk: Desk<Guarded<File>, Answer>,
    transport: Transport,
    published: Published,
    started: Instant,
}

impl Thread {
    pub(super) fn new(
        machine: Machine<Guarded<File>>,
        patience: Patience,
        welcome: BTreeSet<u8>,
        transport: Transport,
        published: Published,
    ) -> Self {
        Self { desk: Desk::new(machine, patience, welcome), transport, published, started: Instant::now() }
    }

    /// Runs until its end is asked for, or nobody is left to ask anything.
    pub(super) fn run(mut self, inputs: &Receiver<Input>, bell: &Doorbell) {
        bell.answer();
        let (mut next_tick, mut next_round) = (Instant::now() + TICK, Instant::now());
        self.act();
        loop {
            match inputs.try_recv() {
                Ok(Input::End(ended)) => {
                    drop(self);
                    // Whoever asked may have gone away.
                    let _ = ended.send(());
                    return;
                }
                Ok(input) => self.handle(input),
                Err(TryRecvError::Empty) => bell.wait(next_tick),
                Err(TryRecvError::Disconnected) => return,
            }
            let now = Instant::now();
            next_tick = next_tick.max(now.checked_sub(MADE_UP * TICK).unwrap_or(now));
            while next_tick <= now {
                next_tick += TICK;
                self.desk.tick();
                self.act();
            }
            if now >= next_round {
                next_round = now + ROUND;
                self.desk.round(self.now());
                self.act();
            }
        }
    }

    fn handle(&mut self, input: Input) {
        let now = self.now();
        match input {
            Input::Message { from, payload } => self.desk.handle_message(from, &payload, now),
            Input::Propose { command, answer } => self.desk.propose(&command, answer),
            Input::Report(report) => self.desk.handle_report(report, now),
            Input::Welcome(nodes) => self.desk.handle_welcome(nodes),
            Input::Vips(vips) => self.desk.handle_vips(vips),
            Input::Times(times) => self.desk.handle_times(times),
            Input::Bootstrap { genesis, answer } => {
                let done = self.desk.bootstrap(genesis);
                self.act();
                // Whoever asked may have gone away.
                let _ = answer.send(done);
            }
            Input::Greet => self.desk.greet(),
            Input::Survey => self.desk.survey(),
            Input::Recover { lost, answer } => {
                let done = self.desk.recover(&lost);
                self.act();
                // Whoever asked may have gone away.
                let _ = answer.send(done);
            }
            Input::Refetch(from) => self.desk.refetch(from),
            Input::Resign => self.desk.resign(),
            Input::End(_) => {}
        }
        self.act();
    }

    /// Does what the desk wants done.
    fn act(&mut self) {
        while let Some(errand) = self.desk.poll() {
            match errand {
                Errand::Send { to, bytes } => self.transport.tell(to, Channel::Consensus, bytes),
                Errand::Answer(waiting, answer) => {
                    // Whoever asked may have gone away.
                    let _ = waiting.send(answer);
                }
                Errand::Tell(event) => {
                    match &event {
                        Event::Role { .. } | Event::Repaired { .. } | Event::Refetched { .. } | Event::DiskWorks => {
                            tracing::info!("{event}")
                        }
                        Event::Newer { .. } => tracing::warn!("{event}"),
                        _ => tracing::error!("{event}"),
                    }
                    // There may be no journal.
                    let _ = self.published.events.send(event);
                }
                Errand::Publish => self.publish(),
            }
        }
    }

    fn publish(&mut self) {
        let state = self.desk.state();
        self.published.state.send_if_modified(|published| {
            let is_other = !Arc::ptr_eq(published, state);
            if is_other {
                *published = Arc::clone(state);
            }
            is_other
        });
        let overview = self.desk.overview();
        self.published.overview.send_if_modified(|published| {
            let is_other = *published != overview;
            *published = overview;
            is_other
        });
    }

    /// Milliseconds of a clock that never goes back.
    fn now(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }
}
