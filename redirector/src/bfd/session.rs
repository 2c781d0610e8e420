//! One session (RFC 5880, section 6.8): a state machine that is fed with packets and the time, and says what to send when.
//!
//! ```text
//!        ┌── peer: Down ──► Init ── peer: Init, Up ──┐
//!      Down                  │ silent                ├─► Up
//!        └── peer: Init ─────┼───────────────────────┘   │
//!        ▲◄──────────────────┴── silent; peer: Down, AdminDown
//! ```
//!
//! While it is not up it sends once a second at most (section 6.8.3); when it comes up, a poll tells the peer of the timers
//! that were configured. Numbers from a peer are worked with in 64 bits: whatever it writes, nothing overflows, and nothing
//! is sent faster than is configured here.

use std::time::Duration;

use super::packet::{Discard, Packet, State, diagnostic};
use crate::paths::health::Sign;

/// What a session sends at most while it is not up (section 6.8.3), in microseconds.
const SLOW: u32 = 1_000_000;
/// A detection time longer than this says nothing about a path: whoever is told after minutes is told by others before.
pub const USEFUL: Duration = Duration::from_secs(60);

/// What is configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timers {
    /// No packets are sent faster than this.
    pub min_tx: Duration,
    /// None are to come faster than this.
    pub min_rx: Duration,
    /// Packets that the peer may miss.
    pub multiplier: u8,
}

/// What the peer said last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remote {
    /// Its discriminator; 0: not known.
    pub discriminator: u32,
    /// Its state.
    pub state: State,
    /// Why its session left its state last.
    pub diagnostic: u8,
    /// No packets come faster, in microseconds.
    pub min_tx: u32,
    /// It takes none faster, in microseconds; 0: none at all.
    pub min_rx: u32,
    /// Its packets that may be missed.
    pub multiplier: u8,
    /// It wants none that it does not ask for.
    pub demand: bool,
}

impl Default for Remote {
    fn default() -> Self {
        // Section 6.8.1: until it is heard, it takes what comes.
        Self {
            discriminator: 0,
            state: State::Down,
            diagnostic: diagnostic::NONE,
            min_tx: 0,
            min_rx: 1,
            multiplier: 0,
            demand: false,
        }
    }
}

/// A change of state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// From this.
    pub from: State,
    /// To this.
    pub to: State,
    /// Why.
    pub diagnostic: u8,
}

/// A session with one peer. Times are on the caller's clock.
#[derive(Clone, Debug)]
pub struct Session {
    timers: Timers,
    discriminator: u32,
    state: State,
    diagnostic: u8,
    since: Duration,
    remote: Remote,
    /// When a packet came that was not thrown away; none since the peer was given up.
    heard: Option<Duration>,
    /// When a packet went that was not an answer.
    sent: Option<Duration>,
    /// By how many thousandths the interval after that one is shortened (section 6.8.7).
    jitter: u32,
    /// The state of the random numbers.
    draws: u64,
    /// The peer has not yet confirmed the timers.
    polls: bool,
    /// A poll of the peer's is to be answered.
    answers: bool,
    /// What the peer should know at once has changed.
    news: bool,
    /// It was up, and the peer has not ended it since.
    has_served: bool,
    changes: Vec<Change>,
}

impl Session {
    /// A session that is down. `discriminator` is unique on this host and not 0; `seed` makes its sending uneven.
    pub fn new(timers: Timers, discriminator: u32, seed: u64, now: Duration) -> Self {
        Self {
            timers,
            discriminator,
            state: State::Down,
            diagnostic: diagnostic::NONE,
            since: now,
            remote: Remote::default(),
            heard: None,
            sent: None,
            jitter: 0,
            draws: seed | 1,
            polls: false,
            answers: false,
            news: false,
            has_served: false,
            changes: Vec::new(),
        }
    }

    /// Its state.
    pub fn state(&self) -> State {
        self.state
    }

    /// Why it left its state last.
    pub fn diagnostic(&self) -> u8 {
        self.diagnostic
    }

    /// When it came into its state.
    pub fn since(&self) -> Duration {
        self.since
    }

    /// The number that the peer knows it by.
    pub fn discriminator(&self) -> u32 {
        self.discriminator
    }

    /// What the peer said last.
    pub fn remote(&self) -> &Remote {
        &self.remote
    }

    /// What it says of a path to the peer. A session that was never up says nothing, since nobody may be there who speaks
    /// BFD; nor does one that the peer's administrator has ended (RFC 5882, section 4.2).
    pub fn sign(&self) -> Sign {
        match self.state {
            State::Up if self.detection().is_some_and(|time| time > USEFUL) => Sign::None,
            State::Up => Sign::Good,
            _ if self.has_served => Sign::Bad,
            _ => Sign::None,
        }
    }

    /// The time between two packets, before it is shortened; none where the peer takes no periodic ones.
    pub fn interval(&self) -> Option<Duration> {
        let both_up = self.state == State::Up && self.remote.state == State::Up;
        if self.remote.min_rx == 0 || self.remote.demand && both_up && !self.polls {
            return None;
        }
        Some(Duration::from_micros(self.min_tx().max(self.remote.min_rx).into()))
    }

    /// After how long without a packet the peer is taken for dead (section 6.8.4); none while it is not heard.
    pub fn detection(&self) -> Option<Duration> {
        let every = micros(self.timers.min_rx).max(self.remote.min_tx);
        self.heard?;
        Some(Duration::from_micros(u64::from(self.remote.multiplier) * u64::from(every)))
    }

    /// A packet that is worth something by itself, is this session's, and is authentic.
    ///
    /// # Errors
    /// [`Discard::Held`] while the session is held down.
    pub fn handle_packet(&mut self, packet: &Packet, now: Duration) -> Result<(), Discard> {
        self.remote = Remote {
            discriminator: packet.mine,
            state: packet.state,
            diagnostic: packet.diagnostic,
            min_tx: packet.min_tx,
            min_rx: packet.min_rx,
            multiplier: packet.multiplier,
            demand: packet.demand,
        };
        if packet.last {
            self.polls = false;
        }
        if self.state == State::AdminDown {
            return Err(Discard::Held);
        }
        self.heard = Some(now);
        match (self.state, packet.state) {
            (State::Init | State::Up, State::AdminDown) => {
                self.has_served = false;
                self.enter(State::Down, diagnostic::NEIGHBOR_DOWN, now);
            }
            (_, State::AdminDown) => self.has_served = false,
            (State::Down, State::Down) => self.enter(State::Init, self.diagnostic, now),
            (State::Down, State::Init) | (State::Init, State::Init | State::Up) => {
                self.enter(State::Up, diagnostic::NONE, now);
            }
            (State::Up, State::Down) => self.enter(State::Down, diagnostic::NEIGHBOR_DOWN, now),
            _ => {}
        }
        self.answers |= packet.poll;
        Ok(())
    }

    /// Time has passed. Packets that have come by then are to be handled before.
    pub fn handle_timeout(&mut self, now: Duration) {
        let Some(time) = self.detection().zip(self.heard).map(|(time, heard)| heard + time) else { return };
        if now < time {
            return;
        }
        self.heard = None;
        self.remote = Remote::default();
        if matches!(self.state, State::Init | State::Up) {
            self.enter(State::Down, diagnostic::EXPIRED, now);
        }
    }

    /// Holds the session down for good, and tells the peer so.
    pub fn end(&mut self, now: Duration) {
        self.has_served = false;
        self.enter(State::AdminDown, diagnostic::ADMIN_DOWN, now);
    }

    /// What is to be sent at a time; to be asked until there is nothing more.
    pub fn poll_packet(&mut self, now: Duration) -> Option<Packet> {
        let last = std::mem::take(&mut self.answers);
        if !last {
            let is_due = self.due().is_some_and(|due| due <= now);
            if !is_due && !std::mem::take(&mut self.news) {
                return None;
            }
            self.news = false;
            self.sent = Some(now);
            self.jitter = self.draw();
        }
        Some(Packet {
            diagnostic: self.diagnostic,
            state: self.state,
            poll: self.polls && !last,
            last,
            multiplier: self.timers.multiplier,
            mine: self.discriminator,
            yours: self.remote.discriminator,
            min_tx: self.min_tx(),
            min_rx: micros(self.timers.min_rx),
            ..Packet::default()
        })
    }

    /// When to come back at the latest.
    pub fn poll_timeout(&self) -> Option<Duration> {
        if self.news || self.answers {
            return Some(Duration::ZERO);
        }
        let expires = self.detection().zip(self.heard).map(|(time, heard)| heard + time);
        [self.due(), expires].into_iter().flatten().min()
    }

    /// A change of state, the oldest that was not told.
    pub fn poll_change(&mut self) -> Option<Change> {
        (!self.changes.is_empty()).then(|| self.changes.remove(0))
    }

    /// When the next periodic packet goes. It follows what the peer takes at once (section 6.8.3).
    fn due(&self) -> Option<Duration> {
        let interval = self.interval()?;
        Some(self.sent.map_or(Duration::ZERO, |sent| sent + interval * (1000 - self.jitter) / 1000))
    }

    /// No packets are sent faster than this at present, in microseconds.
    fn min_tx(&self) -> u32 {
        let configured = micros(self.timers.min_tx);
        if self.state == State::Up { configured } else { configured.max(SLOW) }
    }

    fn enter(&mut self, state: State, diagnostic: u8, now: Duration) {
        self.diagnostic = diagnostic;
        if self.state == state {
            return;
        }
        self.changes.push(Change { from: self.state, to: state, diagnostic });
        // The timers differ in and out of this state, and the peer confirms them.
        self.polls = state == State::Up && micros(self.timers.min_tx) < SLOW;
        self.has_served |= state == State::Up;
        (self.state, self.since, self.news) = (state, now, true);
    }

    /// By how much the next interval is shortened: up to a quarter, and where one packet decides by a tenth at least.
    fn draw(&mut self) -> u32 {
        // Xorshift: nothing depends on it but that two hosts do not fall into step.
        self.draws ^= self.draws << 13;
        self.draws ^= self.draws >> 7;
        self.draws ^= self.draws << 17;
        let least = if self.timers.multiplier == 1 { 100 } else { 0 };
        least + (self.draws >> 32) as u32 % (251 - least)
    }
}

fn micros(time: Duration) -> u32 {
    u32::try_from(time.as_micros()).unwrap_or(u32::MAX)
}
