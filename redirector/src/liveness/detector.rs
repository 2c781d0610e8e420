//! What becomes of a peer, as far as the agent decides it: a state machine without clocks, sockets and maps.
//!
//! ```text
//! unknown ──answers, active──► alive ◄──► agent silent
//!                              ▲   │ bit turned off by the timer
//!                      damped, │   ▼
//!                 delivered to └─ suspect ──answers──► returning
//! ```
//!
//! A peer is let in when it answers, says that it is active, has been given the flows of the slots that it ranks in, and
//! the cluster, if it agrees on anything, agrees that it serves; after a suspicion not before a time that doubles with each
//! one, so that a flapping peer is damped.

use std::collections::BTreeMap;
use std::time::Duration;

use redirector_ebpf::tables::liveness::{Vitals, state};
use serde::Serialize;

use super::Damping;

/// A peer whose agent has given no sign of life for so long is told apart: its data plane goes on.
pub const AGENT_SILENT: Duration = Duration::from_secs(1);

/// How long a peer stays out after its first suspicion, at least.
const DAMPING: Duration = Duration::from_millis(250);
/// How long at most.
const DAMPING_MAX: Duration = Duration::from_secs(30);
/// How long a peer that fell has to answer again first: the flows that others owe it go out with its first answers, and this
/// node knows only of its own.
const SETTLING: Duration = Duration::from_millis(100);

/// What a peer is in this node's eyes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// It does not answer, and nothing says that it did.
    Unknown,
    /// Configured not to be used.
    Away,
    /// It answers, and may not serve yet.
    Returning,
    /// It serves.
    Alive,
    /// It serves, and its agent has been silent for a while.
    AgentSilent,
    /// It does not answer; its slots are served by the next ranks.
    Suspect,
}

/// What there is to see of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Observation {
    /// Whether it may be alive at all.
    pub allowed: bool,
    /// Whether it answered within the timeout.
    pub answers: bool,
    /// Its incarnation, from its last answer; 0: none yet.
    pub incarnation: u32,
    /// What it said of itself.
    pub vitals: Vitals,
    /// Whether nothing has turned it off since it was let in.
    pub on: bool,
    /// Whether all flows that it should have from this node have been delivered.
    pub delivered: bool,
    /// Whether the cluster agrees that it serves, as this incarnation; true where nothing is agreed on.
    pub agreed: bool,
}

/// What is to be done about a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Let it be alive, as this incarnation.
    Admit(u32),
    /// Do not let it be alive.
    Dismiss,
}

/// One peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Peer {
    /// What it is.
    pub state: State,
    /// Since when, on the agent's clock.
    pub since: Duration,
    /// Whether it was let in and nothing has turned it off since.
    pub admitted: bool,
    /// How often it was suspected.
    pub suspicions: u64,
    /// How often it came back as the same incarnation: it had not died.
    pub false_suspicions: u64,
    /// Whether it was suspected after it was let in last.
    fallen: bool,
    incarnation: u32,
    answers_since: Option<Duration>,
    #[serde(flatten)]
    damping: Damping,
}

impl Peer {
    fn new(now: Duration) -> Self {
        Self {
            state: State::Unknown,
            since: now,
            admitted: false,
            suspicions: 0,
            false_suspicions: 0,
            fallen: false,
            incarnation: 0,
            answers_since: None,
            damping: Damping::new(now),
        }
    }

    /// Takes in what there is to see at a time; says what is to be done.
    pub fn observe(&mut self, now: Duration, seen: &Observation) -> Option<Action> {
        self.damping.pass(now);
        if !seen.allowed {
            self.enter(State::Away, now);
            return std::mem::take(&mut self.admitted).then_some(Action::Dismiss);
        }
        if self.admitted && !seen.on {
            self.suspected(now);
        }
        if self.admitted && !seen.agreed {
            self.admitted = false;
            self.enter(State::Returning, now);
            return Some(Action::Dismiss);
        }
        if self.admitted {
            let silent = seen.vitals.agent_age as u128 >= AGENT_SILENT.as_millis();
            self.enter(if silent { State::AgentSilent } else { State::Alive }, now);
            return None;
        }
        if !seen.answers || seen.incarnation == 0 {
            self.answers_since = None;
            self.enter(if self.fallen { State::Suspect } else { State::Unknown }, now);
            return None;
        }
        let ready = matches!(seen.vitals.state, state::ACTIVE | state::DRAINING) && seen.delivered && seen.agreed;
        let answers_since = *self.answers_since.get_or_insert(now);
        let settles = self.fallen && now.saturating_sub(answers_since) < SETTLING;
        if !ready || settles || self.damping.holds(now) {
            self.enter(State::Returning, now);
            return None;
        }
        if std::mem::take(&mut self.fallen) && self.incarnation == seen.incarnation {
            self.false_suspicions += 1;
        }
        self.incarnation = seen.incarnation;
        self.admitted = true;
        self.enter(State::Alive, now);
        Some(Action::Admit(seen.incarnation))
    }

    /// An agent that starts finds a peer let in already, as this incarnation; it may have fallen since.
    pub fn adopt(&mut self, incarnation: u32, fallen: bool) {
        (self.admitted, self.fallen) = (!fallen, fallen);
        self.incarnation = incarnation;
        self.state = if fallen { State::Suspect } else { State::Alive };
    }

    fn suspected(&mut self, now: Duration) {
        (self.admitted, self.fallen, self.answers_since) = (false, true, None);
        self.suspicions += 1;
        self.damping.fall(now, DAMPING, DAMPING_MAX);
        self.enter(State::Suspect, now);
    }

    fn enter(&mut self, state: State, now: Duration) {
        if self.state != state {
            self.state = state;
            self.since = now;
        }
    }
}

/// What this node is itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Own {
    /// Some flows that others have are not here yet.
    Returning,
    /// It serves.
    Active,
    /// Every peer that was alive is silent, and no other one answers: it is this node that is cut off, or the last one.
    CutOff,
}

/// All peers.
#[derive(Debug, Default)]
pub struct Detector {
    peers: BTreeMap<u8, Peer>,
}

impl Detector {
    /// Keeps account of these nodes and of no others.
    pub fn set_peers(&mut self, nodes: &[u8], now: Duration) {
        self.peers.retain(|id, _| nodes.contains(id));
        for id in nodes {
            self.peers.entry(*id).or_insert_with(|| Peer::new(now));
        }
    }

    /// The peers.
    pub fn peers(&self) -> &BTreeMap<u8, Peer> {
        &self.peers
    }

    /// One of them.
    pub fn peer_mut(&mut self, node: u8) -> Option<&mut Peer> {
        self.peers.get_mut(&node)
    }

    /// What this node is, given whether it has all flows that it should have.
    pub fn own(&self, complete: bool) -> Own {
        let any = |state| self.peers.values().any(|peer| peer.state == state);
        let serves = self.peers.values().any(|peer| peer.admitted);
        match any(State::Suspect) && !any(State::Returning) && !serves {
            true => Own::CutOff,
            false if complete => Own::Active,
            false => Own::Returning,
        }
    }
}
