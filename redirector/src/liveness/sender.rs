//! The thread that asks: real-time priority, absolute times, no allocation that grows, and nothing shared that it waits for.
//!
//! It wakes at every interval, and more often where that is long, to see whether alive bits changed: a change is told
//! to the agent, and beaten out at once to all peers that answer. When it was late by more than an interval it leaves the rounds in
//! between out, so that its own stall looks like nobody's death.

use std::collections::BTreeMap;
use std::io;
use std::path::Path as FilePath;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use aya::maps::{Array, MapData};
use redirector_ebpf::packet::headers::Mac;
use redirector_ebpf::tables::liveness::{REMEMBERED, slot};
use redirector_ebpf::tables::path::RESOLVED;
use tokio::sync::watch;

use super::asker::{Asker, LinkPlan, Plan};
use super::figures::Figures;
use super::frame::{self, Way};
use super::legs::{FarPlan, Legs, Sockets};
use super::socket::{PacketSocket, be_real_time, sleep_until};
use crate::dataplane::address::ip;
use crate::dataplane::flows::now;
use crate::dataplane::liveness::{LivenessMaps, LivenessTables as _};
use crate::dataplane::maps::{self, MapsError};
use crate::dataplane::paths::PathMaps;
use crate::shedding::work;

/// How often next hops' MAC addresses are read again.
const REREAD: u64 = 100_000_000;

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
    far: Mutex<Option<FarPlan>>,
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
            far: Mutex::new(None),
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
            asker: Asker::new(u64::from_le_bytes(seed), now()),
            legs: Legs::new(PathMaps::open(directory)?, u64::from_le_bytes(seed) >> 1),
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

    /// Changes which far ends of paths to ask and how.
    pub fn set_far(&self, plan: FarPlan) {
        *self.shared.far.lock().unwrap_or_else(PoisonError::into_inner) = Some(plan);
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
    asker: Asker,
    links: Vec<Link>,
    legs: Legs,
    sockets: Sockets,
    figures: Figures,
    reread: u64,
}

/// How often the figures are given out.
const PUBLISH: u64 = 1_000_000_000;

impl Work {
    fn run(&mut self) {
        match be_real_time() {
            Ok(()) => self.figures.sender.real_time = true,
            Err(error) => {
                tracing::warn!(%error, "beats are sent without real-time priority: short timeouts may be missed")
            }
        }
        let mut due = now();
        let mut publish = due;
        while !self.shared.stop.load(Ordering::Relaxed) {
            sleep_until(due);
            let time = now();
            let late = time.saturating_sub(due);
            if self.asker.plan().is_some() {
                self.figures.sender.lateness.saturating_record((late / 1000).max(1));
            }
            if let Some(missed) = self.asker.round(time) {
                self.take_plan();
                self.take_far();
                if time >= self.reread {
                    self.read_next_hops();
                    self.legs.read_next_hops(&self.neighbours);
                    self.reread = time + REREAD;
                }
                self.ask(time, false);
                self.figures.sender.skipped += missed;
            }
            if time >= self.legs.due() {
                self.ask_far(time);
            }
            if self.look() {
                self.ask(now(), true);
            }
            self.record();
            if time >= publish {
                publish = time + PUBLISH;
                if let Ok(mut figures) = self.shared.figures.try_lock() {
                    self.figures.legs.clone_from(&self.legs.figures);
                    figures.clone_from(&self.figures);
                }
            }
            due = self.asker.due(time).min(self.legs.due());
        }
    }

    fn take_plan(&mut self) {
        let Ok(mut place) = self.shared.plan.try_lock() else { return };
        let Some(plan) = place.take() else { return };
        drop(place);
        let heard = |link: &LinkPlan| self.maps.heard(link.node, link.path.port).answered.load();
        let link = |plan: &LinkPlan| Link { plan: plan.clone(), target_mac: None, recorded: heard(plan), came: 0 };
        self.links = plan.links.iter().map(link).collect();
        self.open_sockets(plan.links.iter().map(|link| link.interface));
        self.figures.links.retain(|key, _| plan.links.iter().any(|link| (link.node, link.path.port) == *key));
        self.asker.set_plan(&self.maps, plan);
        self.reread = 0;
    }

    fn take_far(&mut self) {
        let Ok(mut place) = self.shared.far.try_lock() else { return };
        let Some(plan) = place.take() else { return };
        drop(place);
        self.open_sockets(plan.ends.iter().map(|end| end.interface));
        self.legs.set_plan(plan, now());
        self.reread = 0;
    }

    /// Sockets stay open: interfaces are read at start, and there are few.
    fn open_sockets(&mut self, interfaces: impl Iterator<Item = u32>) {
        for interface in interfaces {
            if self.sockets.contains_key(&interface) {
                continue;
            }
            match PacketSocket::open(interface) {
                Ok(socket) => drop(self.sockets.insert(interface, (socket, Vec::new()))),
                Err(error) => tracing::error!(interface, %error, "no socket to send beats with"),
            }
        }
    }

    fn ask_far(&mut self, time: u64) {
        self.clear_frames();
        self.legs.ask(time, &mut self.sockets);
        self.send_frames();
        self.maps.condition().sender.store(time);
    }

    fn clear_frames(&mut self) {
        self.sockets.values_mut().for_each(|(_, frames)| frames.clear());
    }

    fn send_frames(&mut self) {
        for (socket, frames) in self.sockets.values_mut() {
            let sent = socket.send(frames);
            self.figures.sender.unsent += (frames.len() - sent) as u64;
        }
    }

    fn read_next_hops(&mut self) {
        for link in &mut self.links {
            let word = self.neighbours.get(&link.plan.path.neighbour, 0).unwrap_or(0);
            link.target_mac = (word & RESOLVED != 0).then(|| octets(word));
        }
    }

    /// Sends the requests that are due.
    fn ask(&mut self, time: u64, between: bool) {
        self.clear_frames();
        let Self { asker, maps, links, sockets, figures, .. } = self;
        asker.ask(maps, time, between, |at, plan, beat| {
            let LinkPlan { node, path, interface, mac } = plan;
            let v6 = path.outer_v6 != 0;
            let target_mac = links.get(at).and_then(|link| link.target_mac);
            let (Some(target_mac), Some((_, frames))) = (target_mac, sockets.get_mut(interface)) else { return };
            let way = Way {
                source_mac: octets(*mac),
                target_mac,
                vlan: path.vlan,
                source: ip(&path.local, v6),
                target: ip(&path.remote, v6),
                tunnel: None,
            };
            let mut bytes = Vec::with_capacity(192);
            if frame::write(&mut bytes, &way, beat) {
                frames.push(bytes);
                figures.links.entry((*node, path.port)).or_default().sent += 1;
            }
        });
        self.send_frames();
    }

    /// Whether alive bits have changed. Whoever waits for it is told, also where only peers see it otherwise now.
    fn look(&mut self) -> bool {
        let changes = self.asker.look(&self.maps);
        if changes.any {
            if let Ok(watcher) = self.shared.watcher.try_lock()
                && let Some(watcher) = &*watcher
            {
                watcher(&self.maps);
            }
            self.changed.send_modify(|changes| *changes += 1);
        }
        changes.alive
    }

    /// Puts new answers into the figures. Of those that came while load was shed the last few are left, and no gap to them.
    fn record(&mut self) {
        self.legs.record();
        if !work::is_due(work::Work::Statistics) {
            return;
        }
        for link in &mut self.links {
            let (node, port) = (link.plan.node, link.plan.path.port);
            let (sent, heard) = (self.maps.sent(node, port), self.maps.heard(node, port));
            let answered = heard.answered.load();
            if answered > link.recorded + REMEMBERED as u64 {
                link.came = 0;
            }
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

pub(super) fn octets(word: u64) -> [u8; 6] {
    let Mac([a, b, c]) = Mac::from_word(word);
    let [a, b, c] = [a.to_ne_bytes(), b.to_ne_bytes(), c.to_ne_bytes()];
    [a[0], a[1], b[0], b[1], c[0], c[1]]
}
