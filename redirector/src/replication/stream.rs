//! What is on its way to one peer: flows that wait, the one batch that is under way, and how far the peer is.
//!
//! ```text
//!           connected                 walked, all delivered
//!   away ─────────────► resynchronising ─────────────► current
//!    ▲                     ▲   │ flows lost,               │
//!    │                     └───┘ more slots                │
//!    └──── disconnected ───────┴───────────────────────────┘
//! ```

use std::collections::VecDeque;
use std::time::Duration;

use hdrhistogram::Histogram;

use super::counters::{Lag, PeerCounters, State};
use super::key::FlowKey;
use super::live::Held;
use super::plan::SlotSet;

/// How often a peer hears from this node when there is nothing to tell.
const KEEPALIVE: Duration = Duration::from_secs(1);
/// Longest wait after failures.
const BACKOFF_MAX: Duration = Duration::from_secs(2);
/// Wait after the second failure in a row; after the first there is none.
const BACKOFF: Duration = Duration::from_millis(50);
/// Wait after a batch that sending again does not help.
const REFUSED: Duration = Duration::from_secs(5);
/// Credit that a walk gathers at most while it cannot go on.
const CREDIT_MAX: Duration = Duration::from_millis(100);
/// Longest lag that is told apart, in microseconds.
const LAG_MAX: u64 = 3_600_000_000;

/// A flow that is to be sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pending {
    pub(super) key: FlowKey,
    /// When it changed, where an event told of it.
    pub(super) changed: Option<u64>,
    /// Since when it waits.
    pub(super) queued: u64,
    /// Whether the peer is to hear of it though it is to have no copy: it has chosen otherwise.
    pub(super) owed: bool,
}

impl Pending {
    /// Since when a peer should know of it.
    fn since(&self) -> u64 {
        self.changed.map_or(self.queued, |changed| changed.min(self.queued))
    }
}

/// A batch that is under way.
pub(super) struct Flight {
    pub(super) sequence: u64,
    pub(super) flows: Vec<(Pending, Held)>,
    /// Whether it calls the peer complete, and as of which slot table.
    pub(super) said: (bool, u64),
}

/// A walk over the flow table for a peer.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Walk {
    /// The next place.
    pub(super) place: u64,
    /// Nanoseconds that flows may take out of.
    credit: u64,
    /// When credit was last given.
    credited: Option<u64>,
    /// Once it is at its end: when so many of the peer's flows are delivered, the peer is current.
    until: Option<u64>,
}

impl Walk {
    /// Gives credit for the time that has passed.
    pub(super) fn earn(&mut self, now: u64) {
        let passed = now.saturating_sub(self.credited.replace(now).unwrap_or(now));
        self.credit = (self.credit + passed).min(CREDIT_MAX.as_nanos() as u64);
    }

    /// Takes one flow's credit, at `pace` flows a second; says whether there was any.
    pub(super) fn spend(&mut self, pace: u32) -> bool {
        let cost = 1_000_000_000 / u64::from(pace.max(1));
        let enough = self.credit >= cost;
        self.credit -= if enough { cost } else { 0 };
        enough
    }

    /// Whether it has places before it.
    pub(super) fn goes_on(&self) -> bool {
        self.until.is_none()
    }
}

/// A peer.
pub(super) struct Peer {
    /// The slots of which it is to have this node's flows.
    pub(super) wanted: SlotSet,
    here: bool,
    /// Which life of the peer's answered last; 0: none yet.
    pub(super) incarnation: u64,
    /// [`super::live::Live::epoch`] of the peer when its walk began.
    pub(super) epoch: u16,
    pub(super) pending: VecDeque<Pending>,
    /// Flows that were ever put among the pending.
    queued: u64,
    pub(super) flight: Option<Flight>,
    pub(super) sequence: u64,
    /// When it was last told whether it is complete, and what.
    told: Option<(u64, (bool, u64))>,
    not_before: u64,
    failures: u32,
    pub(super) walk: Option<Walk>,
    walk_again: bool,
    lag: Histogram<u64>,
    /// Its quantiles, and of how many flows they are: they are asked for more often than they change.
    told_lag: (u64, Lag),
    pub(super) counters: PeerCounters,
}

impl Peer {
    /// A peer that is away.
    pub(super) fn new(wanted: SlotSet) -> Self {
        Self {
            wanted,
            here: false,
            incarnation: 0,
            epoch: 0,
            pending: VecDeque::new(),
            queued: 0,
            flight: None,
            sequence: 0,
            told: None,
            not_before: 0,
            failures: 0,
            walk: None,
            walk_again: false,
            lag: Histogram::new_with_bounds(1, LAG_MAX, 2).expect("the bounds are constants that fit"),
            told_lag: (0, Lag::default()),
            counters: PeerCounters::default(),
        }
    }

    pub(super) fn is_here(&self) -> bool {
        self.here
    }

    /// It is connected, and given everything from the beginning.
    pub(super) fn connect(&mut self) {
        (self.here, self.incarnation, self.told) = (true, 0, None);
        (self.not_before, self.failures) = (0, 0);
        self.restart();
    }

    /// It is away: what waits for it will be found again when it is back.
    pub(super) fn disconnect(&mut self) {
        (self.here, self.walk, self.walk_again, self.flight) = (false, None, false, None);
        self.queued -= self.pending.len() as u64;
        self.pending.clear();
    }

    /// Walks the flow table from its beginning; where a walk is under way, once that has ended.
    pub(super) fn resynchronise(&mut self) {
        match self.walk {
            Some(_) => self.walk_again = true,
            None if self.here => self.restart(),
            None => {}
        }
    }

    /// Walks the flow table from its beginning, now.
    pub(super) fn restart(&mut self) {
        self.counters.resynchronisations += 1;
        (self.walk, self.walk_again, self.told) = (Some(Walk::default()), false, None);
    }

    /// Has a flow wait; where `limit` wait already, the flow table is walked for them.
    pub(super) fn push(&mut self, flow: Pending, limit: usize) {
        if self.pending.len() >= limit {
            self.counters.overflows += 1;
            self.resynchronise();
        } else {
            self.queued += 1;
            self.pending.push_back(flow);
        }
    }

    fn under_way(&self) -> usize {
        self.flight.as_ref().map_or(0, |flight| flight.flows.len())
    }

    /// The walk has come to the end of the flow table.
    pub(super) fn end_walk(&mut self) {
        if let Some(walk) = &mut self.walk {
            walk.until = Some(self.queued);
        }
        self.settle();
    }

    /// Makes the peer current once all that its walk found is delivered.
    pub(super) fn settle(&mut self) {
        let delivered = self.queued - (self.pending.len() + self.under_way()) as u64;
        if self.walk.is_some_and(|walk| walk.until.is_some_and(|until| delivered >= until)) {
            self.walk = None;
            if self.walk_again {
                self.restart();
            }
        }
    }

    pub(super) fn state(&self) -> State {
        match (self.here, &self.walk) {
            (false, _) => State::Away,
            (true, Some(_)) => State::Resynchronising,
            (true, None) => State::Current,
        }
    }

    /// Whether a batch may go out now.
    pub(super) fn is_free(&self, now: u64) -> bool {
        self.here && self.flight.is_none() && now >= self.not_before
    }

    /// Whether the peer is to hear this even if there are no flows: it is something new, or silence was long enough.
    pub(super) fn is_news(&self, said: (bool, u64), now: u64) -> bool {
        self.told.is_none_or(|(at, told)| told != said || now >= at + KEEPALIVE.as_nanos() as u64)
    }

    /// Whether its flows have waited long enough, or are as many as fill a batch.
    pub(super) fn is_ripe(&self, now: u64, flush: Duration, full: usize) -> bool {
        let ripe = |first: &Pending| self.walk.is_some() || now >= first.since() + flush.as_nanos() as u64;
        self.pending.len() >= full || self.pending.front().is_some_and(ripe)
    }

    /// The batch under way, if it has this sequence, is over.
    pub(super) fn land(&mut self, sequence: u64) -> Option<Flight> {
        self.flight.take_if(|flight| flight.sequence == sequence)
    }

    /// The flight reached the peer.
    pub(super) fn delivered(&mut self, said: (bool, u64), now: u64) {
        self.told = Some((now, said));
        (self.failures, self.not_before) = (0, 0);
    }

    /// A flow of the flight is with the peer.
    pub(super) fn acknowledge(&mut self, flow: &Pending, now: u64) {
        self.counters.acknowledged += 1;
        if let Some(changed) = flow.changed {
            self.lag.saturating_record(now.saturating_sub(changed) / 1_000);
        }
    }

    /// The flight was in vain: its flows wait again, before all others.
    pub(super) fn put_back(&mut self, flight: Flight) {
        self.counters.failed += 1;
        flight.flows.into_iter().rev().for_each(|(flow, _)| self.pending.push_front(flow));
    }

    /// Waits longer after each failure in a row.
    pub(super) fn back_off(&mut self, now: u64) {
        if self.failures > 0 {
            let wait = BACKOFF.saturating_mul(1 << (self.failures - 1).min(10)).min(BACKOFF_MAX);
            self.not_before = now + wait.as_nanos() as u64;
        }
        self.failures += 1;
    }

    /// Waits long: the peer does not want what it gets.
    pub(super) fn rest(&mut self, now: u64) {
        self.not_before = now + REFUSED.as_nanos() as u64;
    }

    /// What is counted of it.
    pub(super) fn counted(&mut self, now: u64) -> PeerCounters {
        if self.told_lag.0 != self.lag.len() {
            self.told_lag = (self.lag.len(), Lag::of(&self.lag));
        }
        let backlog = (self.pending.len() + self.under_way()) as u64;
        let flying = self.flight.as_ref().and_then(|flight| flight.flows.first()).map(|(flow, _)| flow.queued);
        let oldest = flying.into_iter().chain(self.pending.front().map(|flow| flow.queued)).min();
        let waiting_ms = oldest.map_or(0, |oldest| now.saturating_sub(oldest) / 1_000_000);
        PeerCounters { state: self.state(), backlog, waiting_ms, lag: self.told_lag.1, ..self.counters.clone() }
    }
}
