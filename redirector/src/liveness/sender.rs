//! The thread that asks: real-time priority, absolute times, no allocation that grows, and nothing shared that it waits for.
//!
//! It wakes at every interval, or at every [`LOOK`] if that is shorter, to see whether alive bits changed: a change is told
//! to the agent, and beaten out at once to all peers that answer. When it was late by more than an interval it leaves the rounds in
//! between out, so that its own stall looks like nobody's death.

use std::collections::BTreeMap;
use std::io;
use std::path::Path as FilePath;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use aya::maps::{Array, MapData};
use redirector_ebpf::beat::{Beat, Kind};
use redirector_ebpf::packet::headers::Mac;
use redirector_ebpf::stations::beat::age_ms;
use redirector_ebpf::sync::Word;
use redirector_ebpf::tables::liveness::{REMEMBERED, Vitals, Watch, slot};
use redirector_ebpf::tables::path::RESOLVED;
use redirector_ebpf::tables::{AliveNodes, Path};
use tokio::sync::watch;

use super::figures::Figures;
use super::frame::{self, Way};
use super::socket::{PacketSocket, be_real_time, sleep_until};
use crate::dataplane::flows::now;
use crate::dataplane::image::ip;
use crate::dataplane::liveness::{LivenessMaps, LivenessTables as _};
use crate::dataplane::maps::{self, MapsError};

/// How often alive bits are looked at, if the interval is longer.
const LOOK: u64 = 2_000_000;

/// How often next hops' MAC addresses are read again.
const REREAD: u64 = 100_000_000;

/// A link that requests go over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkPlan {
    /// The peer.
    pub node: u8,
    /// The way to it; it names port, VLAN, next hop and both addresses.
    pub path: Path,
    /// The kernel's index of the interface.
    pub interface: u32,
    /// The interface's MAC address.
    pub mac: u64,
}

/// Whom to ask, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// This node.
    pub node: u8,
    /// The cluster.
    pub cluster: u32,
    /// The rules, as the map has them.
    pub watch: Watch,
    /// The links.
    pub links: Vec<LinkPlan>,
}

/// The sender could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Its maps.
    #[error(transparent)]
    Maps(#[from] MapsError),
    /// No thread.
    #[error("the thread that sends beats could not be started")]
    Thread(#[source] io::Error),
    /// No random numbers.
    #[error("no random number for the nonces of beats: {0}")]
    Random(getrandom::Error),
}

/// A sender that runs. It ends when it is dropped.
pub struct Sender {
    shared: Arc<Shared>,
    changes: watch::Receiver<u64>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    plan: Mutex<Option<Plan>>,
    figures: Mutex<Figures>,
    watcher: Mutex<Option<Watcher>>,
    stop: AtomicBool,
}

/// What is called, in the sender's thread, when alive bits change or what peers say of them.
pub type Watcher = Box<dyn Fn(&LivenessMaps) + Send>;

impl Sender {
    /// Starts the thread, in the network namespace of this one. It does nothing until it has a plan.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn start(directory: &FilePath) -> Result<Self, StartError> {
        let maps = LivenessMaps::open(directory)?;
        let neighbours = maps::open_array(directory, "NEIGHBOURS")?;
        let mut seed = [0; 8];
        getrandom::fill(&mut seed).map_err(StartError::Random)?;
        let shared = Arc::new(Shared {
            plan: Mutex::new(None),
            figures: Mutex::new(Figures::default()),
            watcher: Mutex::new(None),
            stop: AtomicBool::new(false),
        });
        let (changed, changes) = watch::channel(0);
        let mut work = Work {
            shared: shared.clone(),
            maps,
            neighbours,
            changed,
            alive: AliveNodes::default(),
            views: 0,
            nonce_base: u64::from_le_bytes(seed) >> 1,
            plan: None,
            links: Vec::new(),
            sockets: BTreeMap::new(),
            figures: Figures::default(),
            reread: 0,
        };
        let thread = thread::Builder::new().name("beats".to_owned()).spawn(move || work.run());
        Ok(Self { shared, changes, thread: Some(thread.map_err(StartError::Thread)?) })
    }

    /// Changes whom to ask and how.
    pub fn set_plan(&self, plan: Plan) {
        *self.shared.plan.lock().unwrap_or_else(PoisonError::into_inner) = Some(plan);
    }

    /// Changes whenever alive bits do, or what peers say of them.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.clone()
    }

    /// Has this called at each such change, at once and at the sender's priority: it must return soon.
    pub fn set_watcher(&self, watcher: Watcher) {
        *self.shared.watcher.lock().unwrap_or_else(PoisonError::into_inner) = Some(watcher);
    }

    /// What was measured so far.
    pub fn figures(&self) -> Figures {
        self.shared.figures.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It ends within an interval; that it panicked was said where it did.
            let _ = thread.join();
        }
    }
}

/// A link that is being asked on.
struct Link {
    plan: LinkPlan,
    target_mac: Option<[u8; 6]>,
    /// The last answer that is in the figures, and when it came.
    recorded: u64,
    came: u64,
}

struct Work {
    shared: Arc<Shared>,
    maps: LivenessMaps,
    neighbours: Array<MapData, u64>,
    changed: watch::Sender<u64>,
    alive: AliveNodes,
    views: u64,
    nonce_base: u64,
    plan: Option<Plan>,
    links: Vec<Link>,
    sockets: BTreeMap<u32, (PacketSocket, Vec<Vec<u8>>)>,
    figures: Figures,
    reread: u64,
}

/// How often the figures are given out.
const PUBLISH: u64 = 250_000_000;

impl Work {
    fn run(&mut self) {
        match be_real_time() {
            Ok(()) => self.figures.sender.real_time = true,
            Err(error) => {
                tracing::warn!(%error, "beats are sent without real-time priority: short timeouts may be missed")
            }
        }
        let mut due = now();
        let mut round = due;
        let mut publish = due;
        while !self.shared.stop.load(Ordering::Relaxed) {
            sleep_until(due);
            let time = now();
            let interval = self.interval();
            let late = time.saturating_sub(due);
            if self.plan.is_some() {
                self.figures.sender.lateness.saturating_record((late / 1000).max(1));
            }
            if time >= round {
                self.take_plan();
                if time >= self.reread {
                    self.read_next_hops();
                    self.reread = time + REREAD;
                }
                self.ask(time, false);
                let missed = (time - round) / interval;
                self.figures.sender.skipped += missed;
                round += (missed + 1) * interval;
            }
            if self.look() {
                self.ask(now(), true);
            }
            self.record();
            if time >= publish {
                publish = time + PUBLISH;
                if let Ok(mut figures) = self.shared.figures.try_lock() {
                    figures.clone_from(&self.figures);
                }
            }
            due = round.min(time + LOOK.min(interval));
        }
    }

    fn interval(&self) -> u64 {
        self.plan.as_ref().map_or(LOOK, |plan| plan.watch.interval.max(1_000_000))
    }

    fn take_plan(&mut self) {
        let Ok(mut place) = self.shared.plan.try_lock() else { return };
        let Some(plan) = place.take() else { return };
        drop(place);
        self.links = plan
            .links
            .iter()
            .map(|link| {
                let (sent, heard) = self.link_maps(link);
                // No answer that was asked for before counts any more.
                sent.nonce_base.store(self.nonce_base);
                Link { plan: link.clone(), target_mac: None, recorded: heard, came: 0 }
            })
            .collect();
        let interfaces: Vec<u32> = plan.links.iter().map(|link| link.interface).collect();
        self.sockets.retain(|interface, _| interfaces.contains(interface));
        for interface in interfaces {
            if self.sockets.contains_key(&interface) {
                continue;
            }
            match PacketSocket::open(interface) {
                Ok(socket) => drop(self.sockets.insert(interface, (socket, Vec::new()))),
                Err(error) => tracing::error!(interface, %error, "no socket to send beats with"),
            }
        }
        self.figures.links.retain(|key, _| plan.links.iter().any(|link| (link.node, link.path.port) == *key));
        self.plan = Some(plan);
        self.reread = 0;
    }

    fn link_maps(&self, link: &LinkPlan) -> (&redirector_ebpf::tables::Sent, u64) {
        let sent = self.maps.sent(link.node, link.path.port);
        (sent, self.maps.heard(link.node, link.path.port).answered.load())
    }

    fn read_next_hops(&mut self) {
        for link in &mut self.links {
            let word = self.neighbours.get(&link.plan.path.neighbour, 0).unwrap_or(0);
            link.target_mac = (word & RESOLVED != 0).then(|| octets(word));
        }
    }

    /// Sends a request on every link, or between two rounds on those whose last was answered: else what is remembered of
    /// a link would reach back less far than its rounds, and a silent peer's time be over early.
    fn ask(&mut self, time: u64, between: bool) {
        let Some(plan) = &self.plan else { return };
        let condition = self.maps.condition();
        let mut vitals = Vitals::of(condition.vitals.load());
        vitals.agent_age = age_ms(condition.agent.load(), time);
        let tables = [condition.applied.load(), condition.slots.load(), condition.pools.load()];
        let view = self.maps.alive();
        for (_, frames) in self.sockets.values_mut() {
            frames.clear();
        }
        for link in &self.links {
            let LinkPlan { node, path, interface, mac } = &link.plan;
            let sent = self.maps.sent(*node, path.port);
            let last = sent.sequence.load();
            if between && self.maps.heard(*node, path.port).answered.load() != last {
                continue;
            }
            let number = last + 1;
            let mut beat = Beat::default();
            beat.set_head(&plan.watch, plan.cluster, Kind::Request, plan.node, *node);
            beat.set_turn(number, self.nonce_base.wrapping_add(number), 0, time);
            beat.set_condition(vitals, tables, &view);
            beat.seal(&plan.watch);
            // Before it is sent: else the answer could come before the number. A request to a next hop that is not known
            // counts too, since whoever cannot be asked cannot be used.
            slot(&sent.times, number).store(time);
            sent.sequence.store(number);
            let v6 = path.outer_v6 != 0;
            let (Some(target_mac), Some((_, frames))) = (link.target_mac, self.sockets.get_mut(interface)) else {
                continue;
            };
            let way = Way {
                source_mac: octets(*mac),
                target_mac,
                vlan: path.vlan,
                source: ip(&path.local, v6),
                target: ip(&path.remote, v6),
            };
            let mut bytes = Vec::with_capacity(192);
            if frame::write(&mut bytes, &way, &beat) {
                frames.push(bytes);
                self.figures.links.entry((*node, path.port)).or_default().sent += 1;
            }
        }
        for (socket, frames) in self.sockets.values_mut() {
            let sent = socket.send(frames);
            self.figures.sender.unsent += (frames.len() - sent) as u64;
        }
        condition.sender.store(time);
    }

    /// Whether alive bits have changed. Whoever waits for it is told, also where only peers see it otherwise now.
    fn look(&mut self) -> bool {
        let alive = self.maps.alive();
        let heard = self.links.iter().map(|link| self.maps.heard(link.plan.node, link.plan.path.port));
        let words = heard.flat_map(|heard| heard.view.iter().map(Word::load).chain([heard.vitals.load() & 0xff]));
        let views = words.fold(0u64, |sum, word| sum.rotate_left(7).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ word);
        let turned = std::mem::replace(&mut self.alive, alive) != alive;
        if std::mem::replace(&mut self.views, views) != views || turned {
            if let Ok(watcher) = self.shared.watcher.try_lock()
                && let Some(watcher) = &*watcher
            {
                watcher(&self.maps);
            }
            self.changed.send_modify(|changes| *changes += 1);
        }
        turned
    }

    /// Puts new answers into the figures.
    fn record(&mut self) {
        for link in &mut self.links {
            let (node, port) = (link.plan.node, link.plan.path.port);
            let (sent, heard) = (self.maps.sent(node, port), self.maps.heard(node, port));
            let answered = heard.answered.load();
            let from = (link.recorded + 1).max((answered + 1).saturating_sub(REMEMBERED as u64 - 1));
            for number in from..=answered {
                let came = slot(&heard.times, number).load();
                let asked = sent.time(number);
                // One that was never answered leaves an older time in its place.
                if came < asked || asked == 0 {
                    continue;
                }
                let gap = (link.came != 0).then(|| came.saturating_sub(link.came));
                link.came = came;
                self.figures.links.entry((node, port)).or_default().record(came - asked, gap);
            }
            link.recorded = answered.max(link.recorded);
        }
    }
}

fn octets(word: u64) -> [u8; 6] {
    let Mac([a, b, c]) = Mac::from_word(word);
    let [a, b, c] = [a.to_ne_bytes(), b.to_ne_bytes(), c.to_ne_bytes()];
    [a[0], a[1], b[0], b[1], c[0], c[1]]
}
