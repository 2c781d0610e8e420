//! The machine and the planner at work: a thread of their own, since a disk may take its time, and a handle for the
//! agent.
//!
//! ```text
//! transport ─► inbox ─┐                            ┌─► transport
//! handle ─────────────┼─► thread ─► desk ─► machine ┼─► disk
//! 20 ms ticks ────────┘                 ─► planner └─► state, status, events ─► handle
//! ```

pub mod desk;
mod thread;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crossbeam::channel::{TrySendError, bounded};
use serde::{Deserialize, Serialize};
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::time::{Instant, sleep};

use super::disk::Guarded;
use super::frame::{self, Kind};
use super::log::OpenError;
use super::machine::{BootstrapError, Config, Counters, Event, Machine, NotTaken, RecoverError, Status};
use super::planner::{Patience, Report, Times};
use super::redb::File;
use super::state::{Command, Refusal, State};
use crate::breaker::Breaker;
use crate::doorbell::{Doorbell, Letterbox};
use crate::transport::{Channel, Incoming, Transport};
use thread::Input;

/// A tick of the machine.
pub const TICK: Duration = Duration::from_millis(20);

/// How often reports are sent and plans are made.
pub const ROUND: Duration = Duration::from_millis(100);

/// Inputs that may wait for the thread.
const WAITING: usize = 1024;

/// How long a change waits for a leader that takes it, before the answer is that there is none.
const LEADER: Duration = Duration::from_secs(3);

/// How long the answer to a change may take once it was sent to the leader.
const ANSWER: Duration = Duration::from_secs(8);

/// How long others may take to say that a cluster has begun.
const GREETED: Duration = Duration::from_millis(300);

/// How long members may take to say that they are there, before a cluster goes on without those that did not.
const SURVEYED: Duration = Duration::from_secs(1);

/// Between attempts at a change that was not taken.
const RETRY: Duration = Duration::from_millis(100);

/// Makes a cluster's first state, for the UUID of its first node's disk.
pub type Genesis = Box<dyn FnOnce(u128) -> State + Send>;

/// What a node's part in agreement needs.
pub struct Settings {
    /// Who it is.
    pub machine: Config,
    /// The log's file.
    pub file: PathBuf,
    /// Stands before writing to it.
    pub breaker: Arc<Breaker>,
    /// How patient this node is when it leads.
    pub patience: Patience,
    /// Nodes that may become members.
    pub welcome: BTreeSet<u8>,
    /// The first state of a cluster of one. A node that was told of peers has none: it waits until one lets it join, or
    /// until [`Handle::bootstrap`].
    pub alone: Option<Genesis>,
}

/// A change that is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Committed {
    /// The configuration's version after it.
    pub version: u64,
    /// Its place in the log.
    pub index: u64,
    /// On how many voters' disks it is known to be.
    pub durable_on: usize,
    /// Of how many.
    pub of: usize,
}

/// Why a change is not known to be done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum ProposeError {
    /// All nodes refuse it: nothing has changed.
    #[error("{0}")]
    Refused(Refusal),
    /// Nobody has taken it: nothing has changed.
    #[error("nothing was changed: {0}")]
    NotTaken(NotTaken),
    /// It may be done or not.
    #[error("whether it was done is not known: the leader did not answer. Repeating it is safe")]
    Unknown,
    /// The node ends, or its part in agreement has.
    #[error("nothing was changed: agreement does not run on this node")]
    Ended,
}

/// How agreement stands on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overview {
    /// This node.
    pub me: u8,
    /// The machine.
    pub status: Status,
    /// What was refused or went wrong.
    pub counters: Counters,
}

/// Where the agent asks for changes and learns of them. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    inputs: Letterbox<Input>,
    transport: Transport,
    cluster: u32,
    state: watch::Receiver<Arc<State>>,
    overview: watch::Receiver<Overview>,
    events: broadcast::Sender<Event>,
    /// What happens from the start on, until somebody wants it.
    first: Arc<Mutex<Option<broadcast::Receiver<Event>>>>,
}

/// Starts a node's part in agreement. It ends when all handles and the transport are gone, or with [`Handle::end`].
///
/// # Errors
/// [`OpenError`], where the log is to be left as it is.
pub fn start(settings: Settings, transport: Transport, inbox: mpsc::Receiver<Incoming>) -> Result<Handle, OpenError> {
    let Settings { machine: config, file, breaker, patience, welcome, alone } = settings;
    let cluster = config.cluster;
    let mut machine = Machine::new(config, Guarded::new(File::new(file), breaker))?;
    if let Some(genesis) = alone {
        match machine.bootstrap(genesis) {
            Ok(()) | Err(BootstrapError::Begun) => {}
            Err(BootstrapError::Io(error)) => return Err(error.into()),
            Err(BootstrapError::Elsewhere(_)) => {}
        }
    }
    let ((inputs, waiting), bell) = (bounded(WAITING), Doorbell::default());
    let inputs = Letterbox::new(inputs, bell.clone());
    let (publish_state, state) = watch::channel(Arc::clone(machine.state()));
    let (me, counters) = (machine.config().node, machine.counters().clone());
    let overview = Overview { me, status: machine.status(), counters };
    let (publish_overview, overview) = watch::channel(overview);
    let (events, first) = broadcast::channel(64);
    let first = Arc::new(Mutex::new(Some(first)));
    let published = thread::Published { state: publish_state, overview: publish_overview, events: events.clone() };
    let thread = thread::Thread::new(machine, patience, welcome, transport.clone(), published);
    std::thread::Builder::new().name("consensus".to_owned()).spawn(move || thread.run(&waiting, &bell))?;
    let handle = Handle { inputs, transport, cluster, state, overview, events, first };
    tokio::spawn(receive(inbox, handle.clone()));
    Ok(handle)
}

/// Hands on what comes in. When the thread is behind, what raft says may be lost, as on a network.
async fn receive(mut inbox: mpsc::Receiver<Incoming>, handle: Handle) {
    while let Some(Incoming { from, payload, reply }) = inbox.recv().await {
        let sent = match reply {
            Some(reply) if frame::says(&payload, Kind::Ask) => {
                let (answer, answered) = oneshot::channel();
                let cluster = handle.cluster;
                tokio::spawn(async move {
                    let answered = answered.await.unwrap_or(Err(ProposeError::Ended));
                    // Whoever asked may have lost interest.
                    let _ = reply.send(frame::seal(Kind::Answer, cluster.into(), &answered));
                });
                match frame::open(Kind::Ask, handle.cluster.into(), &payload) {
                    Ok(command) => handle.inputs.try_send(Input::Propose { command, answer }),
                    Err(error) => {
                        tracing::warn!(from, %error, "a change that a node asks for is not understood");
                        continue;
                    }
                }
            }
            _ => handle.inputs.try_send(Input::Message { from, payload }),
        };
        match sent {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => tracing::debug!(from, "agreement is behind: a message is lost"),
            Err(TrySendError::Disconnected(_)) => return,
        }
    }
}

impl Handle {
    /// What is agreed on, and every change of it.
    pub fn state(&self) -> watch::Receiver<Arc<State>> {
        self.state.clone()
    }

    /// How agreement stands, and every change of it.
    pub fn overview(&self) -> watch::Receiver<Overview> {
        self.overview.clone()
    }

    /// What happens, for the journal: to the first who asks, what has happened since the start too.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        let first = self.first.lock().unwrap_or_else(PoisonError::into_inner).take();
        first.unwrap_or_else(|| self.events.subscribe())
    }

    /// Changes what is agreed on, from any node: the leader is asked.
    ///
    /// # Errors
    /// [`ProposeError`].
    pub async fn propose(&self, command: Command) -> Result<Committed, ProposeError> {
        let until = Instant::now() + LEADER;
        loop {
            let mut answer = self.propose_here(command.clone()).await;
            if let Err(ProposeError::NotTaken(NotTaken::NotLeader(leader))) = answer {
                answer = self.propose_at(leader, &command).await;
            }
            let why = match answer {
                Err(ProposeError::NotTaken(why)) if why.may_pass() && Instant::now() < until => why,
                Err(ProposeError::NotTaken(NotTaken::NotLeader(_))) => {
                    return Err(ProposeError::NotTaken(NotTaken::NoQuorum));
                }
                answer => return answer,
            };
            tracing::debug!(%why, "a change is proposed again");
            sleep(RETRY).await;
        }
    }

    async fn propose_here(&self, command: Command) -> Result<Committed, ProposeError> {
        let (answer, answered) = oneshot::channel();
        match self.inputs.try_send(Input::Propose { command, answer }) {
            Ok(()) => answered.await.unwrap_or(Err(ProposeError::Unknown)),
            Err(TrySendError::Full(_)) => Err(ProposeError::NotTaken(NotTaken::Busy)),
            Err(TrySendError::Disconnected(_)) => Err(ProposeError::Ended),
        }
    }

    async fn propose_at(&self, leader: u8, command: &Command) -> Result<Committed, ProposeError> {
        use crate::transport::RequestError::{Away, Busy, Oversized, Unknown};
        let ask = frame::seal(Kind::Ask, self.cluster.into(), command);
        match self.transport.request(leader, Channel::Consensus, ask, ANSWER).await {
            Ok(answer) => frame::open(Kind::Answer, self.cluster.into(), &answer).unwrap_or(Err(ProposeError::Unknown)),
            Err(Away(_) | Busy(_) | Unknown(_)) => Err(ProposeError::NotTaken(NotTaken::NotLeader(leader))),
            Err(Oversized(_)) => Err(ProposeError::NotTaken(NotTaken::TooLong)),
            Err(error) => {
                tracing::warn!(leader, %error, "the leader was asked for a change and did not answer");
                Err(ProposeError::Unknown)
            }
        }
    }

    /// Tells the leader what this node sees and has done; the last report holds until there is another. Says whether it was
    /// taken: a thread that is behind has an older report, and wants a newer one soon.
    pub fn report(&self, report: Report) -> bool {
        self.inputs.try_send(Input::Report(report)).is_ok()
    }

    /// Says who may become a member.
    pub fn welcome(&self, nodes: BTreeSet<u8>) {
        if self.inputs.try_send(Input::Welcome(nodes)).is_err() {
            tracing::warn!("agreement is behind: new members are not welcome yet");
        }
    }

    /// Says who should hold each VIP, and who after it: what is agreed on when this node leads.
    pub fn plan_vips(&self, vips: BTreeMap<String, Vec<u8>>) {
        if self.inputs.try_send(Input::Vips(vips)).is_err() {
            tracing::warn!("agreement is behind: VIPs are not planned anew yet");
        }
    }

    /// Says how long backends of pools take to start, and to drain.
    pub fn plan_times(&self, times: Times) {
        if self.inputs.try_send(Input::Times(times)).is_err() {
            tracing::warn!("agreement is behind: backends start and drain as they did yet");
        }
    }

    /// Begins a cluster of this node alone, unless another node says that it is part of one.
    ///
    /// # Errors
    /// [`BootstrapError`].
    pub async fn bootstrap(&self, genesis: Genesis) -> Result<(), BootstrapError> {
        let (answer, answered) = oneshot::channel();
        let ended = || BootstrapError::Io(std::io::Error::other("agreement does not run on this node"));
        self.inputs.try_send(Input::Greet).map_err(|_| ended())?;
        sleep(GREETED).await;
        self.inputs.try_send(Input::Bootstrap { genesis, answer }).map_err(|_| ended())?;
        answered.await.unwrap_or_else(|_| Err(ended()))
    }

    /// Has the cluster go on with this node as its only voter, without those that are lost: their agents must not answer,
    /// and all others must.
    ///
    /// # Errors
    /// [`RecoverError`]; nothing has changed then.
    pub async fn recover(&self, lost: BTreeSet<u8>) -> Result<(), RecoverError> {
        let (answer, answered) = oneshot::channel();
        let ended = || RecoverError::Io(std::io::Error::other("agreement does not run on this node"));
        self.inputs.try_send(Input::Survey).map_err(|_| ended())?;
        sleep(SURVEYED).await;
        self.inputs.try_send(Input::Recover { lost, answer }).map_err(|_| ended())?;
        answered.await.unwrap_or_else(|_| Err(ended()))
    }

    /// Fetches the agreed state anew from a node, since this one's is not what the others have.
    pub fn refetch(&self, from: u8) {
        // Whoever finds that it differs still asks again.
        let _ = self.inputs.try_send(Input::Refetch(from));
    }

    /// Asks another node to lead, if this one does: before it ends or is upgraded.
    pub fn resign(&self) {
        // Without it the others find a leader too, only later.
        let _ = self.inputs.try_send(Input::Resign);
    }

    /// Ends this node's part in agreement and closes its file.
    pub async fn end(&self) {
        let (answer, ended) = oneshot::channel();
        if self.inputs.try_send(Input::End(answer)).is_ok() {
            // The thread may have ended by itself.
            let _ = ended.await;
        }
    }
}
