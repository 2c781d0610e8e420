//! A node's agent: its own lookout, follower, desk, replication and VIP machine, fed with virtual time. What is here only
//! carries things between them, as the agent's threads and tasks do.

mod copies;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use redirector::agent::copies::Copyholders;
use redirector::agent::follower::{self, Follower};
use redirector::agent::lookout::{Host as Birth, Lookout};
use redirector::agent::pulse::pulse;
use redirector::agent::terms;
use redirector::config::{self, Config};
use redirector::consensus::driver::desk::{Desk, Errand};
use redirector::consensus::driver::{Committed as Done, ProposeError, ROUND, TICK};
use redirector::consensus::machine::{Machine, Status};
use redirector::consensus::state::{Command, State};
use redirector::dataplane::flows;
use redirector::dataplane::image::Image;
use redirector::dataplane::liveness::LivenessTables as _;
use redirector::dataplane::rows;
use redirector::liveness::frame::{self, Way};
use redirector::liveness::{Asker, Own};
use redirector::replication;
use redirector::replication::live::Live;
use redirector::replication::machine::{self as copying, Pace};
use redirector::replication::receive::Receiver;
use redirector::replication::store::Mapped;
use redirector::vip::machine as vip;
use redirector::vip::plan;
use redirector_ebpf::packet::headers::Mac;
use suite::node;
use suite::random::Random;

use copies::Talk;

use super::disk::{Committed, Platter};
use super::flaw::Flaw;
use super::plane::Plane;
use super::{MS, SECOND};

const PULSE: u64 = 40 * MS;
const TIDY: u64 = 5 * SECOND;
/// How often replication looks round, and how often it looks who is connected.
const COPY: u64 = 5 * MS;
const LOOK: u64 = 50 * MS;
/// How long an answer to a batch may take.
const TIMEOUT: u64 = SECOND;

/// What an agent wants done.
pub enum Act {
    /// Put this frame on the segment.
    Beat { to: u8, bytes: Vec<u8> },
    /// Say this to a node's desk.
    Tell { to: u8, bytes: Vec<u8> },
    /// Give this batch to a node.
    Copy { to: u8, sequence: u64, bytes: Vec<u8> },
    /// Ask the segment who answers for a VIP.
    Probe(IpAddr),
    /// Tell the segment who answers for a VIP.
    Announce(IpAddr),
    /// Tell whoever asked for a change what became of it.
    Answer(u64, Result<Done, ProposeError>),
}

/// A running agent.
pub struct Agent {
    /// Which process of all that ever were it is.
    pub life: u64,
    config: Config,
    image: Image,
    /// What it makes of its peers.
    pub lookout: Lookout,
    /// How far it follows.
    pub follower: Follower,
    /// Its part in agreement.
    pub desk: Desk<Platter, u64>,
    asker: Asker,
    talk: Talk,
    vips: vip::Machine,
    vip_view: vip::View,
    /// Where time begins for machines that know instants only.
    origin: Instant,
    due: Due,
    known: Arc<State>,
    disk: Platter,
    acts: Vec<Act>,
}

#[derive(Default)]
struct Due {
    asker: u64,
    tick: u64,
    round: u64,
    pulse: u64,
    tidy: u64,
    copy: u64,
    look: u64,
}

/// Whose agent is to start, and on what.
pub struct Start<'a> {
    /// The configuration file's text.
    pub text: &'a str,
    /// The host's disk.
    pub disk: &'a Platter,
    /// The time by the host's clock.
    pub now: u64,
    /// Which process it is.
    pub life: u64,
    /// Which boot of the host it is.
    pub boot: u64,
    /// A bug that it has.
    pub flaw: Flaw,
}

fn compile(config: &Config, plane: &Plane) -> Image {
    let links = node::links(config);
    let key = config.cluster.key.expect("the simulation's configuration has a key").0;
    redirector::dataplane::image::compile(config, key, &links, plane.registry()).expect("it has compiled before")
}

impl Agent {
    /// Starts an agent on a data plane, new or left by an earlier one.
    pub fn start(start: &Start<'_>, plane: &mut Plane, random: &mut Random) -> Self {
        let Start { text, disk, now, life, boot, flaw } = *start;
        let file = config::parse("file", text).unwrap_or_else(|mistakes| panic!("{mistakes}"));
        let me = file.node.id;
        let committed = disk.committed();
        let config = match &committed {
            Some(known) => config::merge("as agreed", &known.text, &file).unwrap_or_else(|wrong| panic!("{wrong}")),
            None => file,
        };
        let mut image = compile(&config, plane);
        follower::adopt(committed.is_some(), &mut image, &plane.tables, &plane.board).expect("memory can be read");
        plane.tables.memory.now.set(now);
        plane.install(&image);
        let mut lookout = Lookout::new(me);
        let next_incarnation = || match flaw {
            Flaw::SameIncarnation => Ok(7),
            _ => Ok(disk.next_incarnation(now / SECOND)),
        };
        let birth = Birth { boot_id: boot, next_incarnation, time: now };
        let key = config.cluster.key.expect("the simulation's configuration has a key").0;
        let plan = lookout.configure(&mut plane.board, &config, key, &image, birth).expect("memory can be written");
        lookout.adopt(&plane.board);
        plane.board.condition().agent.store(now);
        let mut asker = Asker::new(random.number(), now);
        asker.set_plan(&plane.board, plan);
        let incarnation = u64::from(plane.board.watch().expect("memory can be read").incarnation);
        let seed = u128::from(random.number()) << 64 | u128::from(random.number());
        let machine = Machine::new(terms::machine(&config, incarnation, seed), disk.clone())
            .unwrap_or_else(|error| panic!("node {me}'s log is not opened: {error}"));
        let desk = Desk::new(machine, terms::patience(&config), terms::others(&config));
        let in_force = committed.map_or(0, |known| known.version);
        let applied = plane.board.condition().applied.load();
        let follower = Follower::new(me, incarnation, Some(desk.state()), applied, in_force);
        let (origin, live) = (Instant::now(), Arc::new(Live::new(me)));
        let own = copying::Identity {
            node: me,
            cluster: config.cluster.id,
            incarnation: random.number() | 1,
            hash_key: plane.hash_key(),
        };
        let replication = &config.replication;
        let pace = Pace {
            flush: replication.flush,
            // Copies that are made within milliseconds are there in time, whatever is said of them.
            flows_per_second: if start.flaw == Flaw::EarlyDelivery { 10 } else { replication.pace },
            pending: 1 << 12,
            batch_bytes: 4 << 10,
        };
        let talk = Talk {
            machine: copying::Machine::new(own, pace, live.clone()),
            receiver: Receiver::new(own, live),
            copyholders: Copyholders::default(),
            next_view: None,
            view_version: 0,
            peers: BTreeMap::new(),
            connected: Vec::new(),
            flights: BTreeMap::new(),
            flaw,
        };
        // What is in the ring by now is dropped, since the flow tables will be walked anyway.
        plane.tables.memory.told.borrow_mut().clear();
        let held: BTreeSet<IpAddr> = plane.tables.memory.held.keys().copied().collect();
        let vips = vip::Machine::new(me, vip::Timing::default(), &plan::of(&config), &held);
        let due = Due {
            asker: now,
            tick: now + TICK.as_nanos() as u64,
            round: now,
            pulse: now,
            tidy: now,
            copy: now,
            look: now,
        };
        let known = Arc::default();
        let vip_view = vip::View::default();
        let disk = disk.clone();
        let mut agent = Self {
            life,
            config,
            image,
            lookout,
            follower,
            desk,
            asker,
            talk,
            vips,
            vip_view,
            origin,
            due,
            known,
            disk,
            acts: Vec::new(),
        };
        agent.follow(plane, now);
        agent
    }

    /// The configuration in force.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// How agreement stands here.
    pub fn status(&self) -> Status {
        self.desk.overview().status
    }

    /// Whether this node serves all that it should.
    pub fn is_fit(&self) -> bool {
        self.lookout.own() != Own::Returning
    }

    /// Whether all peers among these have everything from here.
    pub fn owes_nothing(&self, to: &[u8]) -> bool {
        let current = |id: &u8| self.talk.peers.get(id).is_some_and(|peer| peer.state == replication::State::Current);
        to.iter().all(current)
    }

    /// What is to be done since the last call.
    pub fn acts(&mut self) -> Vec<Act> {
        std::mem::take(&mut self.acts)
    }

    fn instant(&self, now: u64) -> Instant {
        self.origin + Duration::from_nanos(now)
    }

    fn flows(plane: &Plane) -> Mapped {
        let memory = &plane.tables.memory;
        Mapped { tables: memory.flows.clone(), hash_key: memory.image.node.hash_key, idle: memory.image.node.idle }
    }

    /// Does all that is due at a time; `connected` are the agents that this one has a connection with.
    pub fn run(&mut self, plane: &mut Plane, connected: &[u8], now: u64) {
        if now >= self.due.asker {
            self.ask(plane, now);
        }
        if now >= self.due.copy {
            self.due.copy = now + COPY;
            self.copy(plane, connected, now);
        }
        let missed = (now.saturating_sub(self.due.tick) / TICK.as_nanos() as u64).saturating_sub(5);
        self.due.tick += missed * TICK.as_nanos() as u64;
        while now >= self.due.tick {
            self.due.tick += TICK.as_nanos() as u64;
            self.desk.tick();
        }
        if now >= self.due.round {
            self.due.round = now + ROUND.as_nanos() as u64;
            self.desk.round(now / MS);
        }
        self.errands(plane, now);
        if now >= self.due.tidy {
            self.due.tidy = now + TIDY;
            self.tidy(plane, now);
        }
        if now >= self.due.pulse {
            self.due.pulse = now + PULSE;
            self.look_at_peers(plane, now);
        }
        if self.vips.due().is_some_and(|due| due <= self.instant(now)) {
            let actions = self.vips.handle_time(self.instant(now));
            self.hold(plane, actions);
        }
    }

    fn ask(&mut self, plane: &mut Plane, now: u64) {
        let Self { asker, acts, .. } = self;
        let mut send = |link: &redirector::liveness::LinkPlan, beat: &redirector_ebpf::beat::Beat| {
            let octets = |word| Mac::from_word(word).0.map(u16::to_ne_bytes).concat().try_into().expect("six bytes");
            let ip = |address| redirector::dataplane::address::ip(address, false);
            let (source, target) = (ip(&link.path.local), ip(&link.path.remote));
            let way = Way {
                source_mac: octets(link.mac),
                target_mac: node::mac(link.node, 0),
                vlan: 0,
                source,
                target,
                tunnel: None,
            };
            let mut bytes = Vec::with_capacity(192);
            assert!(frame::write(&mut bytes, &way, beat), "one family");
            acts.push(Act::Beat { to: link.node, bytes });
        };
        if asker.round(now).is_some() {
            asker.ask(&plane.board, now, false, |_, link, beat| send(link, beat));
        }
        let changes = asker.look(&plane.board);
        if changes.alive {
            asker.ask(&plane.board, now, true, |_, link, beat| send(link, beat));
        }
        self.due.asker = self.asker.due(now);
        if changes.any {
            self.look_at_peers(plane, now);
        }
    }

    fn look_at_peers(&mut self, plane: &mut Plane, now: u64) {
        let Self { lookout, image, talk, follower, .. } = self;
        let report = pulse(lookout, &plane.board, &image.slots, Some(talk), Some(follower), now);
        if let Some(report) = report {
            self.desk.handle_report(report, now / MS);
        }
        if self.follower.awaited().is_some() {
            self.follow(plane, now);
        }
        let view = self.lookout.view(&plane.board, &self.config, true, now);
        if view != self.vip_view {
            self.vip_view.clone_from(&view);
            let actions = self.vips.handle_view(view, self.instant(now));
            self.hold(plane, actions);
        }
    }

    fn hold(&mut self, plane: &mut Plane, actions: Vec<vip::Action>) {
        let held = &mut plane.tables.memory.held;
        for action in actions {
            match action {
                vip::Action::Hold(vip) => drop(held.insert(vip, 2)),
                vip::Action::Release(vip) => drop(held.remove(&vip)),
                vip::Action::Probe(vip) => self.acts.push(Act::Probe(vip)),
                vip::Action::Announce(vip) => self.acts.push(Act::Announce(vip)),
            }
        }
    }

    /// Somebody else answers for a VIP.
    pub fn hear_of_holder(&mut self, plane: &mut Plane, vip: IpAddr, now: u64) {
        let actions = self.vips.handle_answer(vip, self.instant(now));
        self.hold(plane, actions);
    }

    /// What another desk says.
    pub fn hear(&mut self, plane: &mut Plane, from: u8, bytes: &[u8], now: u64) {
        self.desk.handle_message(from, bytes, now / MS);
        self.errands(plane, now);
    }

    /// Asks for a change of the configuration.
    pub fn propose(&mut self, plane: &mut Plane, command: &Command, asker: u64, now: u64) {
        self.desk.propose(command, asker);
        if self.talk.flaw == Flaw::EarlyAcknowledgement && self.status().leader == Some(self.config.node.id) {
            let state = self.desk.state();
            let (version, index) = (state.specification.version + 1, state.version + 1);
            let done = Done { version, index, durable_on: 1, of: 5 };
            self.acts.push(Act::Answer(asker, Ok(done)));
        }
        self.errands(plane, now);
    }

    fn errands(&mut self, plane: &mut Plane, now: u64) {
        while let Some(errand) = self.desk.poll() {
            match errand {
                Errand::Send { to, bytes } => self.acts.push(Act::Tell { to, bytes }),
                Errand::Answer(asker, answer) => self.acts.push(Act::Answer(asker, answer)),
                Errand::Tell(_) => {}
                Errand::Publish if Arc::ptr_eq(&self.known, self.desk.state()) => {}
                Errand::Publish => {
                    self.known = self.desk.state().clone();
                    self.follow(plane, now);
                }
            }
        }
    }

    /// Makes the data plane go by what is agreed on.
    fn follow(&mut self, plane: &mut Plane, now: u64) {
        let state = self.desk.state().clone();
        if state.version == 0 || !self.follower.is_behind(&state) {
            return;
        }
        let memory = &plane.tables.memory.image;
        if self.follower.waits(&state, &memory.slots, &memory.alive, now) {
            return;
        }
        plane.tables.memory.now.set(now);
        let whole = !self.follower.is_newer(&state) || self.take(&state, plane);
        let taken = self.follower.take(&state, whole, &mut self.image, &mut plane.tables, &plane.board);
        taken.expect("memory takes every write");
        self.desk.handle_vips(terms::vips(&self.config));
        let plan = plan::committed(&self.config, &state.vips);
        let actions = self.vips.handle_plan(&plan, self.instant(now));
        self.hold(plane, actions);
    }

    /// Puts an agreed configuration in force.
    fn take(&mut self, state: &State, plane: &mut Plane) -> bool {
        let specification = &state.specification;
        let next = config::merge("agreed", &specification.text, &self.config).unwrap_or_else(|wrong| panic!("{wrong}"));
        let mut image = compile(&next, plane);
        image.slots = state.slots.iter().map(|slot| (*slot).into()).collect();
        image.agreed = Some(self.follower.rows(state, &image, true));
        if !self.disk.commit(Committed { version: specification.version, text: specification.text.clone() }) {
            return false;
        }
        plane.install(&image);
        (self.config, self.image) = (next, image);
        self.talk.copyholders.forget();
        self.follower.took(specification.version);
        self.desk.handle_welcome(terms::others(&self.config));
        true
    }

    fn tidy(&mut self, plane: &mut Plane, now: u64) {
        self.follow(plane, now);
        let memory = &plane.tables.memory;
        let idle = memory.image.node.idle;
        let is_over = |entry, record: Option<&_>| flows::is_over(entry, record, &idle, now);
        memory.flows.sweep((0, 1), &memory.image.node.hash_key, is_over, |_| ());
        plane.tables.memory.now.set(now);
        self.follower.look_for_old_flows(&plane.tables, &self.image).expect("memory can be read");
    }

    /// How many rows pools have, by name.
    pub fn sizes(&self, plane: &Plane) -> BTreeMap<String, u32> {
        let name = |id: u16| {
            let kind = redirector_ebpf::tables::names::kind::POOL;
            self.image.registry.name(kind, u32::from(id)).map(str::to_owned)
        };
        let sizes = rows::sizes(&plane.tables, &self.image).expect("memory can be read");
        sizes.into_iter().filter_map(|(id, rows)| Some((name(id)?, rows))).collect()
    }
}
