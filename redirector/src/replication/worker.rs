//! The sender's thread: feeds the machine, and hands its batches to the transport.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, bounded};
use tokio::runtime::Handle;

use super::events::Changed;
use super::machine::{Machine, Outgoing, Pace};
use super::receive::Decided;
use super::shell::{Shared, lock};
use super::wire::Answer;
use crate::dataplane::flows::now;
use crate::doorbell::{Doorbell, Letterbox};
use crate::shedding::work::{self, Work};
use crate::transport::Channel;

/// How long a peer may take to answer.
const TIMEOUT: Duration = Duration::from_secs(1);
/// Answers that wait at most: each peer owes one.
const ANSWERS: usize = 256;
/// How often it is looked who is connected, and counters are put down.
const LOOK: Duration = Duration::from_millis(50);
/// How often it is looked around while no flow waits.
const IDLE: Duration = Duration::from_millis(25);
/// Events that are taken in before anything else is looked at.
const EVENTS_AT_ONCE: usize = 255;
/// How often names and idle times are read without anybody saying that they changed.
const NAMES: Duration = Duration::from_secs(10);

/// At the highest shed level, peers that lack many flows are given so many times fewer a second.
const SHED_PACE: u32 = 8;

/// How often it is told of one and the same trouble.
const WARNING: Duration = Duration::from_secs(10);

/// What came of a batch.
struct Answered {
    from: u8,
    sequence: u64,
    answer: Option<Answer>,
}

pub(super) struct Worker {
    shared: Arc<Shared>,
    machine: Machine,
    runtime: Handle,
    changed: Receiver<Changed>,
    decided: Receiver<Decided>,
    answers: Letterbox<Answered>,
    answered: Receiver<Answered>,
    bell: Doorbell,
    looked: Instant,
    named: Instant,
    warned: Option<Instant>,
}

impl Worker {
    pub(super) fn new(
        shared: Arc<Shared>,
        pace: Pace,
        runtime: Handle,
        changed: Receiver<Changed>,
        decided: Receiver<Decided>,
        bell: Doorbell,
    ) -> Self {
        let (answers, answered) = bounded(ANSWERS);
        let machine = Machine::new(shared.own, pace, shared.live.clone());
        let now = Instant::now();
        Self {
            shared,
            machine,
            runtime,
            changed,
            decided,
            answers: Letterbox::new(answers, bell.clone()),
            answered,
            bell,
            looked: now,
            named: now,
            warned: None,
        }
    }

    /// Runs until replication ends.
    pub(super) fn run(mut self) {
        let tick = self.shared.settings.tick();
        let mut next = Instant::now();
        self.bell.answer();
        while !self.shared.is_stopping() {
            let (event, answered) = (self.changed.try_recv(), self.answered.try_recv());
            let is_idle = event.is_err() && answered.is_err();
            if let Ok(event) = event {
                self.handle(event);
                next = next.min(Instant::now() + tick);
            }
            if let Ok(Answered { from, sequence, answer }) = answered {
                self.machine.handle_answer(from, sequence, answer, now());
                self.send();
            }
            if is_idle {
                self.bell.wait(next);
            }
            if Instant::now() >= next {
                self.tick();
                next = Instant::now() + if self.machine.is_idle() { IDLE } else { tick };
            }
        }
    }

    /// Takes an event in, and those that wait behind it: where many come, choosing between queues costs more than they do.
    fn handle(&mut self, event: Changed) {
        let now = now();
        let behind = self.changed.try_iter().take(EVENTS_AT_ONCE);
        for Changed { key, backend, time } in std::iter::once(event).chain(behind) {
            self.machine.handle_event(key, backend, time, now);
        }
    }

    fn tick(&mut self) {
        if let Some(view) = lock(&self.shared.next_view).take() {
            lock(&self.shared.receiver).handle_view(view.clone());
            self.machine.handle_view(view);
        }
        if self.looked.elapsed() >= LOOK {
            self.look();
        }
        self.decided.try_iter().for_each(|decided| self.machine.handle_decided(decided, now()));
        if self.shared.heard.loss.swap(false, Relaxed) {
            if self.warned.is_none_or(|at| at.elapsed() > WARNING) {
                self.warned = Some(Instant::now());
                tracing::warn!("changes of flows were lost between data plane and agent: the flow tables are walked");
            }
            self.machine.handle_loss();
        }
        let known = self.shared.known();
        self.machine.set_pace(match work::is_due(Work::Resynchronisation) {
            true => self.shared.settings.pace,
            false => self.shared.settings.pace / SHED_PACE,
        });
        self.machine.handle_tick(&self.shared.flows(&known), now());
        self.send();
    }

    /// Looks at what changes more slowly.
    fn look(&mut self) {
        self.looked = Instant::now();
        let connected = self.shared.transport.connected();
        self.machine.handle_connected(&connected);
        lock(&self.shared.receiver).handle_connected(&connected);
        // Of a view that is not in force yet nothing can be said.
        let next = lock(&self.shared.next_view);
        if next.is_none() {
            lock(&self.shared.counters).peers = self.machine.counters(now());
        }
        drop(next);
        if self.named.elapsed() >= NAMES || self.shared.renamed.swap(false, Relaxed) {
            self.named = Instant::now();
            self.shared.look_up();
        }
    }

    fn send(&mut self) {
        let known = self.shared.known();
        let flows = self.shared.flows(&known);
        for Outgoing { to, sequence, bytes } in self.machine.poll_batches(&flows, &known.names, now()) {
            let (transport, cluster) = (self.shared.transport.clone(), self.shared.own.cluster);
            let answers = self.answers.clone();
            drop(self.runtime.spawn(async move {
                let answer = match transport.request(to, Channel::Flows, bytes, TIMEOUT).await {
                    Ok(answer) => match Answer::read(&answer, cluster) {
                        Ok(answer) => Some(answer),
                        Err(error) => {
                            tracing::warn!(to, %error, "the answer to a batch of flows cannot be read");
                            None
                        }
                    },
                    Err(error) => {
                        tracing::debug!(to, %error, "a batch of flows was in vain");
                        None
                    }
                };
                // There is room, since each peer owes one answer at most.
                let _ = answers.try_send(Answered { from: to, sequence, answer });
            }));
        }
    }
}
