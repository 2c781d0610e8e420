//! Five hosts, what lies between them, and who uses them, a millisecond at a time.

use std::collections::BTreeMap;

use redirector::agent::terms;
use redirector::config;
use redirector::consensus::driver::ProposeError;
use redirector::consensus::machine::NotTaken;
use redirector_ebpf::beat::{Beat, WORDS};
use redirector_ebpf::reason::Reason;
use suite::random::Random;

use super::agent::Act;
use super::checks::{Asked, Checks};
use super::fault::Episode;
use super::flaw::Flaw;
use super::host::Host;
use super::network::{Content, Network};
use super::users::{self, Connection, configuration};
use super::{Failure, HOSTS, MS, SECOND, Summary, VIP};

/// How often the operator changes the pool.
const CHANGE: u64 = 900 * MS;

/// One run of so many ends with flows that both sides of a cut take for theirs.
const CONTEST: usize = 4;

/// A change that was asked for.
pub(super) struct Change {
    pub(super) text: String,
    /// When, and how often it was passed on to a leader.
    asked: u64,
    passed: u32,
}

/// Everything.
pub(crate) struct World {
    pub(super) now: u64,
    pub(super) random: Random,
    pub(super) hosts: Vec<Host>,
    pub(super) network: Network,
    pub(super) connections: Vec<Connection>,
    pub(super) checks: Checks,
    pub(super) changes: BTreeMap<u64, Change>,
    pub(super) beats: (String, u64),
    down_after: &'static str,
    flaw: Flaw,
    lives: u64,
    pub(super) opened: u64,
    asked: u64,
    pub(super) change_at: u64,
    /// When something happened last that nodes have to find out.
    pub(super) disturbed: u64,
    /// Whether a fault goes on.
    pub(super) faulty: bool,
    /// Whether all was well when it was last looked, with nothing to be made up for.
    pub(super) calm: bool,
    /// The time at which the cluster was last told well, and changes that were done since all was healed.
    pub(super) done_since_healed: u64,
    pub(super) summary: Summary,
}

impl World {
    /// Hosts that were never switched on.
    pub(crate) fn new(seed: u64, flaw: Flaw) -> Self {
        let mut random = Random::new(seed);
        let (beats, timeout) = random.pick(&[("fast", 30), ("25ms x 4", 100), ("standard", 300)]);
        let down_after = random.pick(&["1s", "2s", "10s"]);
        let fastest = random.pick(&[50, 200, 20_000]);
        let host = |id| configuration(id, beats, down_after, 0);
        let hosts: Vec<Host> = (1..=HOSTS).map(|id| Host::new(id, host(id), fastest, &mut random)).collect();
        if flaw == Flaw::ForgetfulDisk {
            hosts.iter().for_each(|host| host.disk.lie());
        }
        Self {
            now: 0,
            random,
            hosts,
            network: Network::default(),
            connections: Vec::new(),
            checks: Checks::default(),
            changes: BTreeMap::new(),
            beats: (beats.to_owned(), timeout * MS),
            down_after,
            flaw,
            lives: 0,
            opened: 0,
            asked: 0,
            change_at: u64::MAX,
            disturbed: 0,
            faulty: false,
            calm: false,
            done_since_healed: 0,
            summary: Summary::default(),
        }
    }

    /// Forms a cluster, lets episodes happen, and looks at all that must hold.
    pub(crate) fn run(mut self, episodes: usize) -> Result<Summary, Failure> {
        for at in 0..self.hosts.len() {
            self.start(at);
        }
        self.pass(300 * MS)?;
        self.bootstrap();
        self.until("the cluster is formed", 40 * SECOND, |world| world.is_calm())?;
        self.change_at = self.now;
        for number in 0..users::CONNECTIONS as u64 {
            self.connections.push(Connection::new(number, self.now, &mut self.random));
        }
        self.opened = users::CONNECTIONS as u64;
        self.pass(1_500 * MS)?;
        for _ in 0..episodes {
            let episode = Episode::draw(&mut self.random);
            self.pass_episode(&episode)?;
        }
        if self.random.once_in(CONTEST) {
            self.contest()?;
        }
        (self.summary.virtual_seconds, self.summary.digest) = (self.now / SECOND, self.checks.digest);
        Ok(self.summary)
    }

    fn pass_episode(&mut self, episode: &Episode) -> Result<(), Failure> {
        let first = self.checks.story.len();
        for &(after, fault) in &episode.faults {
            self.pass(after)?;
            self.strike(fault);
        }
        self.pass(episode.back)?;
        for at in 0..self.hosts.len() {
            if self.random.once_in(2) {
                self.start(at);
            }
        }
        self.pass(episode.healed)?;
        while !self.hosts.iter().all(|host| host.has_booted(self.now)) {
            self.pass(10 * MS)?;
        }
        self.heal();
        // A change that is asked for now has to be done soon.
        self.done_since_healed = 0;
        self.change_at = self.now;
        self.until("one leader, one table, two owners each, and changes are done", 10 * SECOND, |world| {
            world.is_well() && world.done_since_healed > 0
        })?;
        self.change_at = u64::MAX;
        self.until("everybody is alive in everybody's eyes, with all copies", 60 * SECOND, |world| world.is_calm())?;
        self.change_at = self.now + self.random.number() % CHANGE;
        self.summary.episodes += 1;
        self.checks.story.drain(..first.min(self.checks.story.len()));
        Ok(())
    }

    /// Notes what happens, for whoever reads a failure.
    pub(super) fn tell(&mut self, what: impl std::fmt::Display) {
        self.checks.story.push(format!("{:9.3} s  {what}", self.now as f64 / SECOND as f64));
        if std::env::var_os("SIM_STORY").is_some() {
            eprintln!("{}", self.checks.story.last().expect("just told"));
        }
    }

    /// Notes what became of a connection's packet, and what all nodes know of its flow, for whoever follows it.
    pub(super) fn tell_of(&mut self, connection: usize, visited: &[u8], what: &str) {
        let client = self.connections[connection].client.to_string();
        if std::env::var("SIM_FLOW").is_ok_and(|followed| followed == client) {
            self.tell(format_args!("{client} by {visited:?}: {what}; {}", self.whereabouts(connection)));
        }
    }

    pub(super) fn start(&mut self, at: usize) {
        let host = &mut self.hosts[at];
        let id = host.id;
        if host.plane.is_some() && host.agent.is_some() || !host.has_booted(self.now) {
            return;
        }
        self.lives += 1;
        if host.plane.is_none() {
            self.checks.forget(id);
        }
        host.start(self.lives, self.flaw, self.now, &mut self.random);
        self.disturbed = self.now;
        self.tell(format_args!("n{id} starts"));
    }

    fn bootstrap(&mut self) {
        let host = &mut self.hosts[0];
        let (Some(agent), Some(plane)) = (&mut host.agent, &host.plane) else { return };
        let text = configuration(1, &self.beats.0, self.down_after, 0);
        let sizes = agent.sizes(plane);
        let genesis = terms::genesis(agent.config(), &text, 1, sizes, agent.follower.incarnation());
        agent.desk.bootstrap(genesis).expect("an empty log on a disk that takes writes");
    }

    pub(super) fn until(&mut self, what: &str, within: u64, holds: impl Fn(&Self) -> bool) -> Result<(), Failure> {
        let end = self.now + within;
        while self.now < end {
            self.pass(20 * MS)?;
            if holds(self) {
                return Ok(());
            }
        }
        let standing = self.standing();
        Err(self.failure(format!("not within {} s: {what}\n{standing}", within / SECOND)))
    }

    pub(super) fn pass(&mut self, time: u64) -> Result<(), Failure> {
        let end = self.now + time;
        while self.now < end {
            self.now += MS;
            self.step();
            if let Some(what) = self.checks.broken.take() {
                return Err(self.failure(what));
            }
        }
        Ok(())
    }

    pub(super) fn failure(&mut self, what: String) -> Failure {
        Failure { at: self.now, what, story: std::mem::take(&mut self.checks.story) }
    }

    fn step(&mut self) {
        self.deliver();
        for at in 0..self.hosts.len() {
            self.tick(at);
            self.act(at);
        }
        if self.now.is_multiple_of(50 * MS) {
            let lives = self.hosts.iter().filter_map(|host| Some((host.id, (host.agent.as_ref()?.life, host.acts()))));
            self.network.look_after(&lives.collect(), self.now, &mut self.random);
        }
        self.ask_for_changes();
        self.use_connections();
        self.look();
    }

    fn deliver(&mut self) {
        loop {
            let hosts = &self.hosts;
            let listens = |id: u8| hosts[usize::from(id) - 1].acts();
            let Some((at, parcel)) = self.network.arrival(self.now, listens) else { return };
            let (from, to) = (parcel.from, parcel.to);
            let host = &mut self.hosts[usize::from(to) - 1];
            let time = host.time(at);
            match parcel.content {
                Content::Frame(bytes) if host.paused => host.waiting.push(bytes),
                Content::Frame(bytes) => {
                    let Some(plane) = &mut host.plane else { continue };
                    let done = plane.run(&bytes, time);
                    match done.reason {
                        Reason::BeatAnswered => {
                            self.network.send_frame(to, from, &done.bytes, at, &mut self.random);
                        }
                        Reason::BeatTaken => self.checks.answered(to, from, nonce(&bytes)),
                        _ => {}
                    }
                }
                content => {
                    let (Some(plane), Some(agent)) = (&mut host.plane, &mut host.agent) else { continue };
                    match content {
                        Content::Word(bytes) => agent.hear(plane, from, &bytes, time),
                        Content::Batch(sequence, bytes) => {
                            let answer = agent.take_copies(plane, from, &bytes, time);
                            let answer = Content::Answer(sequence, answer);
                            self.network.send(to, from, answer, at, &mut self.random);
                        }
                        Content::Answer(sequence, bytes) => agent.take_answer(plane, from, sequence, &bytes, time),
                        Content::Frame(_) => {}
                    }
                    self.carry_out(usize::from(to) - 1);
                }
            }
        }
    }

    /// A round of a host's timer.
    fn tick(&mut self, at: usize) {
        let host = &mut self.hosts[at];
        if host.paused {
            return;
        }
        let time = host.time(self.now);
        let Some(plane) = &mut host.plane else { return };
        let before = plane.tables.memory.image.alive;
        let fallen = plane.tick(time);
        let after = plane.tables.memory.image.alive;
        if before == after {
            return;
        }
        let id = host.id;
        for peer in fallen {
            self.tell(format_args!("n{id} suspects n{peer}"));
            self.check_suspicion(at, peer);
        }
        for peer in (1..=HOSTS).filter(|&peer| peer != id && after.is_alive(peer) && !before.is_alive(peer)) {
            self.tell(format_args!("n{id} lets n{peer} in"));
            self.check_admission(at, peer);
        }
    }

    fn act(&mut self, at: usize) {
        let host = &mut self.hosts[at];
        if !host.acts() {
            host.acts_since = self.now;
            return;
        }
        let time = host.time(self.now);
        let (Some(plane), Some(agent)) = (&mut host.plane, &mut host.agent) else { return };
        agent.run(plane, &self.network.connected(host.id), time);
        host.is_fit = agent.is_fit();
        self.carry_out(at);
    }

    /// Does what an agent wants done.
    fn carry_out(&mut self, at: usize) {
        let (id, now) = (self.hosts[at].id, self.now);
        let time = self.hosts[at].time(now);
        let acts = self.hosts[at].agent.as_mut().map(|agent| agent.acts()).unwrap_or_default();
        for act in acts {
            match act {
                Act::Beat { to, bytes } => {
                    self.checks.asked(id, to, Asked { nonce: nonce(&bytes), at: time });
                    self.network.send_frame(id, to, &bytes, now, &mut self.random);
                }
                Act::Tell { to, bytes } => self.network.send(id, to, Content::Word(bytes), now, &mut self.random),
                Act::Copy { to, sequence, bytes } => {
                    self.network.send(id, to, Content::Batch(sequence, bytes), now, &mut self.random);
                }
                Act::Probe(vip) => {
                    let answers = |host: &Host| {
                        let holds = |plane: &super::plane::Plane| plane.tables.memory.held.contains_key(&vip);
                        let reached = self.network.is_open(id, host.id) && self.network.is_open(host.id, id);
                        host.id != id && host.forwards() && reached && host.plane.as_ref().is_some_and(holds)
                    };
                    if self.hosts.iter().any(answers) {
                        let host = &mut self.hosts[at];
                        if let (Some(plane), Some(agent)) = (&mut host.plane, &mut host.agent) {
                            agent.hear_of_holder(plane, vip, time);
                        }
                    }
                }
                Act::Announce(vip) => self.tell(format_args!("n{id} announces {vip}")),
                Act::Answer(change, answer) => self.answered(at, change, answer),
            }
        }
    }

    /// What became of a change.
    fn answered(
        &mut self,
        at: usize,
        number: u64,
        answer: Result<redirector::consensus::driver::Committed, ProposeError>,
    ) {
        let Some(mut change) = self.changes.remove(&number) else { return };
        let id = self.hosts[at].id;
        match answer {
            Ok(done) => {
                self.tell(format_args!("change {number} is version {} at {}", done.version, done.index));
                self.checks.acknowledged(done.index, done.version, change.text);
                self.done_since_healed += 1;
                self.summary.changes += 1;
            }
            Err(ProposeError::NotTaken(NotTaken::NotLeader(leader))) if change.passed < 3 && leader != id => {
                change.passed += 1;
                self.pass_on(usize::from(leader) - 1, number, change);
            }
            Err(error) => self.tell(format_args!("change {number} at n{id}: {error}")),
        }
    }

    /// Asks a node for a change.
    fn pass_on(&mut self, at: usize, number: u64, change: Change) {
        let host = &mut self.hosts[at];
        if !host.acts() {
            return;
        }
        let time = host.time(self.now);
        let (Some(plane), Some(agent)) = (&mut host.plane, &mut host.agent) else { return };
        let merged = config::merge("change", &change.text, agent.config()).unwrap_or_else(|wrong| panic!("{wrong}"));
        let command = terms::apply(&merged, &change.text, None);
        self.changes.insert(number, change);
        agent.propose(plane, &command, number, time);
        self.carry_out(at);
    }

    fn ask_for_changes(&mut self) {
        if self.now < self.change_at {
            return;
        }
        self.change_at = self.now + CHANGE / 2 + self.random.number() % CHANGE;
        let at = self.random.below(self.hosts.len());
        self.ask(at);
    }

    /// Asks a node for the operator's next change.
    pub(super) fn ask(&mut self, at: usize) {
        self.asked += 1;
        let text = configuration(1, &self.beats.0, self.down_after, self.asked);
        self.pass_on(at, self.asked, Change { text, asked: self.now, passed: 0 });
        let now = self.now;
        self.changes.retain(|_, change| now - change.asked < 30 * SECOND);
    }

    /// How everybody stands, for whoever reads a failure.
    pub(super) fn standing(&self) -> String {
        let mut text = String::new();
        for host in &self.hosts {
            let Some((agent, plane)) = host.agent.as_ref().zip(host.plane.as_ref()) else {
                text += &format!("n{}: no agent\n", host.id);
                continue;
            };
            let status = agent.status();
            let members: Vec<String> = agent
                .desk
                .state()
                .members
                .iter()
                .map(|(id, member)| {
                    format!(
                        "{id}:{:?}{}",
                        member.standing,
                        match member.seat {
                            Some(seat) if seat.votes => "",
                            Some(_) => "/learns",
                            None => "/no seat",
                        }
                    )
                })
                .collect();
            let alive: Vec<u8> = (1..=HOSTS).filter(|&peer| plane.tables.memory.image.alive.is_alive(peer)).collect();
            let states: Vec<String> =
                agent.lookout.detector().peers().iter().map(|(id, peer)| format!("{id}:{:?}", peer.state)).collect();
            text += &format!(
                "n{}: {:?} term {} leader {:?}, state {} (installed {}), {}{:?}; alive {alive:?}, {}; {}; connected {:?}\n",
                host.id,
                status.role,
                status.term,
                status.leader,
                agent.desk.state().version,
                agent.follower.installed(),
                if status.is_redundant { "redundant, " } else { "" },
                agent.lookout.own(),
                states.join(" "),
                members.join(" "),
                self.network.connected(host.id),
            );
        }
        text + &format!("VIP {VIP} held by {:?}", self.holders())
    }
}

/// The nonce of the beat in a frame: its sender's of a request, its receiver's of an answer.
pub(super) fn nonce(frame: &[u8]) -> u64 {
    // Ethernet, IPv4 without options, UDP.
    let payload = &frame[14 + 20 + 8..];
    let word = |at: usize| u64::from_le_bytes(payload[at * 8..][..8].try_into().expect("eight bytes"));
    Beat { words: std::array::from_fn::<_, WORDS, _>(word) }.nonce()
}
