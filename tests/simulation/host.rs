//! A host: its clock, its disk, its data plane and its agent.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use redirector::consensus::state::State;
use suite::random::Random;

use super::SECOND;
use super::agent::{Agent, Start};
use super::disk::Platter;
use super::flaw::Flaw;
use super::plane::Plane;

/// How long a host takes at least until its data plane is there again.
const BOOT: u64 = SECOND;

/// A host of the cluster.
pub struct Host {
    /// The node's id.
    pub id: u8,
    /// What its clock is ahead of true time, and by how much it is fast, parts of a million.
    clock: (u64, i64),
    /// Its disk.
    pub disk: Platter,
    /// Its data plane; none while the host is dead.
    pub plane: Option<Plane>,
    /// Its agent.
    pub agent: Option<Agent>,
    /// Whether all of it stands still.
    pub paused: bool,
    /// Whether its agent stands still.
    pub agent_paused: bool,
    /// Frames that came while it stood still.
    pub waiting: Vec<Vec<u8>>,
    /// Whether it said last that it serves all that it should.
    pub is_fit: bool,
    /// The text of its configuration file.
    text: String,
    boots: u64,
    /// When it died last.
    died: u64,
    /// Since when its agent has done anything without a break.
    pub acts_since: u64,
    /// Since when its flow table has a client's flow proven, so that others are to hear of it.
    pub proven: BTreeMap<SocketAddr, u64>,
    /// The state that was looked at last.
    pub seen: Arc<State>,
}

impl Host {
    /// A host that was never switched on, whose clock goes as it likes.
    pub fn new(id: u8, text: String, fastest: i64, random: &mut Random) -> Self {
        let fast = random.below(2 * fastest as usize + 1) as i64 - fastest;
        Self {
            id,
            clock: (1_000_000_000_000 + random.number() % 1_000_000_000_000, fast),
            disk: Platter::default(),
            plane: None,
            agent: None,
            paused: false,
            agent_paused: false,
            waiting: Vec::new(),
            is_fit: false,
            text,
            boots: 0,
            died: 0,
            acts_since: 0,
            proven: BTreeMap::new(),
            seen: Arc::default(),
        }
    }

    /// The time by its clock.
    pub fn time(&self, now: u64) -> u64 {
        let (ahead, fast) = self.clock;
        (now + ahead).wrapping_add_signed((now / 1_000_000) as i64 * fast)
    }

    /// Whether its data plane takes packets at present.
    pub fn forwards(&self) -> bool {
        self.plane.is_some() && !self.paused
    }

    /// Whether its agent does anything at present.
    pub fn acts(&self) -> bool {
        self.agent.is_some() && !self.paused && !self.agent_paused
    }

    /// Starts what does not run: the data plane, which is new then, and the agent.
    pub fn start(&mut self, life: u64, flaw: Flaw, now: u64, random: &mut Random) {
        let time = self.time(now);
        if self.plane.is_none() {
            self.boots += 1;
            self.is_fit = false;
            let file = redirector::config::parse("file", &self.text).unwrap_or_else(|wrong| panic!("{wrong}"));
            self.plane = Some(Plane::new(&file, flaw));
        }
        if let (Some(plane), None) = (&mut self.plane, &self.agent) {
            let boot = u64::from(self.id) << 32 | self.boots;
            let start = Start { text: &self.text, disk: &self.disk, now: time, life, boot, flaw };
            self.agent = Some(Agent::start(&start, plane, random));
        }
        (self.paused, self.agent_paused) = (false, false);
    }

    /// Whether it may be up again: booting and loading programs takes longer than finding out that it is gone.
    pub fn has_booted(&self, now: u64) -> bool {
        self.plane.is_some() || self.boots == 0 || now - self.died >= BOOT
    }

    /// It dies, with all that is in its memory.
    pub fn die(&mut self, now: u64) {
        self.died = now;
        self.disk.cut_power();
        (self.plane, self.agent) = (None, None);
        (self.paused, self.agent_paused, self.is_fit) = (false, false, false);
        self.waiting.clear();
        self.proven.clear();
    }

    /// Its agent dies.
    pub fn lose_agent(&mut self) {
        self.agent = None;
        self.agent_paused = false;
    }
}
