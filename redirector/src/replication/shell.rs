//! Replication as the agent has it: three threads (the ring's, the sender's, the inbox's) and what they share.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use aya::maps::{Array, HashMap, Map, MapData, MapError};
use crossbeam::channel::{self, Sender, bounded};
use redirector_ebpf::tables::Node;
use redirector_ebpf::tables::names::{Name, NameKey};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};

use super::counters::{Counters, FlowBytes, Progress, outdate};
use super::events::{Changed, Heard, Ring};
use super::live::Live;
use super::machine::{Identity, Pace};
use super::plan::View;
use super::receive::{Decided, Receiver};
use super::store::Mapped;
use super::wire::Refused;
use super::worker::Worker;
use crate::config::Config;
use crate::dataplane::flows::{FlowTables, now};
use crate::dataplane::maps::{MapsError, name_text, read};
use crate::dataplane::registry::Registry;
use crate::doorbell::{Doorbell, Letterbox};
use crate::transport::{Incoming, Transport};

/// Events that wait for the sender at most.
const EVENTS: usize = 1 << 16;
/// Flows that wait to be told of since it was decided whose choice holds.
const DECIDED: usize = 1 << 12;
/// Flows that wait for one peer at most.
const PENDING: usize = 1 << 17;
/// Bytes of a batch at most: some 3,000 flows.
const BATCH_BYTES: usize = 64 << 10;

/// How replication goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How long a change waits at most until it is sent.
    pub flush: Duration,
    /// Flows a second that a peer is resynchronised with.
    pub pace: u32,
}

impl Settings {
    /// Those of a configuration; none if it wants no replication.
    pub fn of(config: &Config) -> Option<Self> {
        let replication = &config.replication;
        replication.enabled.then_some(Self { flush: replication.flush, pace: replication.pace })
    }

    /// How often the threads look around.
    pub(super) fn tick(&self) -> Duration {
        (self.flush / 10).clamp(Duration::from_millis(1), Duration::from_millis(5))
    }

    /// The same while nothing happens: what then comes first is found a little later, well within the lag that is allowed.
    pub(super) fn idle_tick(&self) -> Duration {
        (self.flush / 4).clamp(Duration::from_millis(1), Duration::from_millis(12))
    }
}

/// Why replication does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The maps.
    #[error(transparent)]
    Maps(#[from] MapsError),
    /// A thread.
    #[error("no thread can be started for replication")]
    Thread(#[source] std::io::Error),
    /// The random numbers.
    #[error("the kernel gives no random number")]
    Random(#[from] getrandom::Error),
    /// The caller is outside of the runtime that the agent runs in.
    #[error("there is no tokio runtime here")]
    Runtime,
}

/// What the maps say besides flows.
pub(super) struct Known {
    pub(super) names: Registry,
    pub(super) idle: [u16; 8],
}

/// What the threads share.
pub(super) struct Shared {
    pub(super) own: Identity,
    pub(super) settings: Settings,
    pub(super) transport: Transport,
    pub(super) live: Arc<Live>,
    pub(super) heard: Heard,
    pub(super) receiver: Mutex<Receiver>,
    /// A view that is to be put in force.
    pub(super) next_view: Mutex<Option<View>>,
    /// The version of the view that is in force.
    pub(super) view_version: Mutex<u64>,
    pub(super) counters: Mutex<Counters>,
    /// Set when names may have changed.
    pub(super) renamed: AtomicBool,
    known: RwLock<Arc<Known>>,
    tables: Arc<FlowTables>,
    directory: PathBuf,
    stopping: AtomicBool,
}

/// A lock's content, also after a thread that held it has failed.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Relaxed)
    }

    pub(super) fn known(&self) -> Arc<Known> {
        self.known.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The flow tables, judged by what is known now.
    pub(super) fn flows(&self, known: &Known) -> Mapped {
        Mapped { tables: self.tables.clone(), hash_key: self.own.hash_key, idle: known.idle }
    }

    /// Reads names and idle times anew.
    pub(super) fn look_up(&self) {
        match look_up(&self.directory) {
            Ok((known, _)) => *self.known.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(known),
            Err(error) => {
                tracing::error!("names cannot be read: {:#}", anyhow::Error::new(error));
            }
        }
    }
}

fn look_up(directory: &Path) -> Result<(Known, Node), MapsError> {
    fn open<T: TryFrom<Map, Error = MapError>>(
        directory: &Path,
        name: &'static str,
        wrap: fn(MapData) -> Map,
    ) -> Result<T, MapsError> {
        let error = |source| MapsError::Open { directory: directory.to_owned(), name, source };
        MapData::from_pin(directory.join(name)).and_then(|map| T::try_from(wrap(map))).map_err(error)
    }
    let node: Array<MapData, Node> = open(directory, "NODE", Map::Array)?;
    let node = node.get(&0, 0).map_err(read("NODE"))?;
    let names: HashMap<MapData, NameKey, Name> = open(directory, "NAMES", Map::HashMap)?;
    let named = names.iter().map(|entry| entry.map(|(key, name)| (key, name_text(&name))));
    let named = named.collect::<Result<Vec<_>, _>>().map_err(read("NAMES"))?;
    Ok((Known { names: Registry::new(named), idle: node.idle }, node))
}

/// Running replication. It ends when this is dropped; flows and their copies stay.
pub struct Replication {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    inbox_ends: Option<oneshot::Sender<()>>,
    /// Changes that wait for the sender; here to be counted only.
    waiting: channel::Receiver<Changed>,
}

/// Starts replication between the maps that are pinned in `directory` and the nodes that the transport reaches. `inbox` is
/// the transport's inbox of flows.
///
/// # Errors
/// [`StartError`].
pub fn start(
    settings: Settings,
    directory: &Path,
    transport: Transport,
    inbox: mpsc::Receiver<Incoming>,
) -> Result<Replication, StartError> {
    let runtime = Handle::try_current().map_err(|_| StartError::Runtime)?;
    let (known, node) = look_up(directory)?;
    // Zero means that no life is known.
    let incarnation = getrandom::u64()? | 1;
    let own = Identity { node: node.id, cluster: node.cluster, incarnation, hash_key: node.hash_key };
    let live = Arc::new(Live::new(node.id));
    let mut ring = Ring::open(directory)?;
    let shared = Arc::new(Shared {
        own,
        settings,
        transport,
        live: live.clone(),
        heard: Heard::default(),
        receiver: Mutex::new(Receiver::new(own, live)),
        next_view: Mutex::default(),
        view_version: Mutex::default(),
        counters: Mutex::default(),
        renamed: AtomicBool::new(false),
        known: RwLock::new(Arc::new(known)),
        tables: Arc::new(FlowTables::open(directory)?),
        directory: directory.to_owned(),
        stopping: AtomicBool::new(false),
    });
    let ((events, changed), bell) = (bounded(EVENTS), Doorbell::default());
    let events = Letterbox::new(events, bell.clone());
    let (deciding, decided) = bounded(DECIDED);
    let (ending, ended) = oneshot::channel();
    let Settings { flush, pace: flows_per_second } = settings;
    let pace = Pace { flush, flows_per_second, pending: PENDING, batch_bytes: BATCH_BYTES };
    let waiting = changed.clone();
    let worker = Worker::new(shared.clone(), pace, runtime.clone(), changed, decided, bell);
    let thread = |name: &str, work: Box<dyn FnOnce() + Send>| {
        thread::Builder::new().name(name.to_owned()).spawn(work).map_err(StartError::Thread)
    };
    let mut replication =
        Replication { shared: shared.clone(), threads: Vec::new(), inbox_ends: Some(ending), waiting };
    let ring_shared = shared.clone();
    replication.threads.push(thread(
        "flow-events",
        Box::new(move || {
            while !ring_shared.is_stopping() {
                let settings = ring_shared.settings;
                let any = ring.drain(&events, &ring_shared.heard);
                thread::sleep(if any { settings.tick() } else { settings.idle_tick() });
            }
        }),
    )?);
    replication.threads.push(thread("flow-copies", Box::new(move || worker.run()))?);
    replication
        .threads
        .push(thread("flow-inbox", Box::new(move || take_in(&shared, &runtime, inbox, ended, &deciding)))?);
    Ok(replication)
}

/// Takes batches in until replication or the transport ends.
fn take_in(
    shared: &Shared,
    runtime: &Handle,
    mut inbox: mpsc::Receiver<Incoming>,
    mut ended: oneshot::Receiver<()>,
    deciding: &Sender<Decided>,
) {
    let mut next = || {
        runtime.block_on(async {
            tokio::select! {
                _ = &mut ended => None,
                incoming = inbox.recv() => incoming,
            }
        })
    };
    while let Some(Incoming { from, payload, reply }) = next() {
        let known = shared.known();
        let flows = shared.flows(&known);
        let taken = lock(&shared.receiver).handle_batch(from, &payload, &flows, &known.names, now());
        match taken.refused {
            None => {}
            Some(Refused::Damaged) => tracing::warn!(from, "a batch of flows came damaged and is asked for again"),
            Some(error) => tracing::warn!(from, %error, "a batch of flows is refused"),
        }
        for decided in taken.decided {
            if deciding.try_send(decided).is_err() {
                // All are looked at again, these among them.
                shared.heard.loss.store(true, Relaxed);
            }
        }
        if let Some(reply) = reply {
            // Whoever asked may have gone away meanwhile, and asks again.
            let _ = reply.send(taken.answer);
        }
    }
}

impl Replication {
    /// Says which slot table is in force and who is alive. Who is to have more than before is given it.
    pub fn set_view(&self, view: View) {
        *lock(&self.shared.view_version) = view.version();
        let mut next = lock(&self.shared.next_view);
        outdate(&mut lock(&self.shared.counters).peers);
        *next = Some(view);
    }

    /// Says that services or backends may be called otherwise than before.
    pub fn names_changed(&self) {
        self.shared.renamed.store(true, Relaxed);
    }

    /// The nodes that have given this one every flow that it is to have from them, by a slot table no older than the one
    /// in force here, and that are connected still.
    pub fn complete_from(&self) -> BTreeSet<u8> {
        let version = *lock(&self.shared.view_version);
        let mut receiver = lock(&self.shared.receiver);
        receiver.handle_connected(&self.shared.transport.connected());
        receiver.complete_from(version)
    }

    /// How far each peer is; it may be a tenth of a second old.
    pub fn progress(&self) -> Vec<(u8, Progress)> {
        lock(&self.shared.counters).peers.iter().map(|(&id, peer)| (id, peer.into())).collect()
    }

    /// What has happened so far; what is counted of peers may be a tenth of a second old.
    pub fn counters(&self) -> Counters {
        let heard = &self.shared.heard;
        Counters {
            events: heard.events.load(Relaxed),
            events_lost: heard.lost.load(Relaxed),
            flows: self.shared.live.len() as u64,
            flow_bytes: FlowBytes::default(),
            received: lock(&self.shared.receiver).counters,
            peers: lock(&self.shared.counters).peers.clone(),
        }
    }

    /// How many changes of flows wait to be sent, and how many may.
    pub fn queue(&self) -> (u64, u64) {
        (self.waiting.len() as u64, EVENTS as u64)
    }

    /// Ends it, and waits until nothing touches the maps any more. What dropping does, said aloud.
    pub fn stop(self) {}
}

impl Drop for Replication {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Relaxed);
        // The inbox's thread waits for this alone.
        drop(self.inbox_ends.take());
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of replication had failed");
            }
        }
    }
}
