//! The agent's socket for commands: one JSON request a line, one JSON answer.

use std::collections::BTreeSet;
use std::fs::{File, TryLockError};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot};

use super::agreement::{AgreementStatus, Durable};
use super::backup::Backup;
use super::change::ApplyError;
use super::follow::{Asked, Change};
use super::{Applied, BackendStatus, HealthStatus, LivenessStatus, Node, PathStatus};
use crate::bfd;
use crate::breaker;
use crate::config::Config;
use crate::consensus::driver::ProposeError;

/// A request longer than this is refused.
const REQUEST_BYTES_MAX: u64 = 64 << 20;

/// How long a command waits for its answer.
const ANSWER: Duration = Duration::from_secs(60);

/// How long an agent that was killed may take until its last thread has gone.
const PREDECESSOR: Duration = Duration::from_secs(2);

/// What is asked of an agent.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "lowercase")]
pub enum Request {
    /// Who are you, and what is in force?
    Status,
    /// How do your peers live?
    Nodes,
    /// How far are your peers with your flows?
    Replication,
    /// Which breakers are there, and how are they?
    Breakers,
    /// How do your paths do?
    Paths,
    /// How do your backends do?
    Backends,
    /// How do your BFD sessions do?
    Bfd,
    /// How is your health, and your load?
    Health,
    /// Go by what this host was found to take.
    Learn,
    /// What would this change?
    Diff {
        /// The file's name, for mistakes.
        name: String,
        /// The configuration.
        text: String,
    },
    /// Change to this.
    Apply {
        /// The file's name, for mistakes.
        name: String,
        /// The configuration.
        text: String,
        /// The version that it is meant to follow.
        expect: Option<u64>,
    },
    /// Begin a cluster.
    Bootstrap,
    /// Begin a cluster with what a backup says.
    Restore {
        /// The backup.
        backup: Backup,
    },
    /// What is agreed on?
    Backup,
    /// Let the cluster go on without a majority of its voters, which is lost.
    Recover {
        /// The nodes that are given up.
        lost: BTreeSet<u8>,
    },
    /// Let a node be no member any more.
    Leave {
        /// Which one.
        node: u8,
    },
    /// Let a node give its slots and VIPs away.
    Drain {
        /// Which one.
        node: u8,
        /// Not where nobody but this node serves, as far as it sees.
        #[serde(default)]
        unless_last: bool,
    },
    /// Does a node give its slots and VIPs away, or has it?
    Draining {
        /// Which one.
        node: u8,
    },
    /// Let a node have slots and VIPs again.
    Undrain {
        /// Which one.
        node: u8,
    },
}

/// What an agent answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "lowercase")]
pub enum Answer {
    /// Its state, or what was done.
    Done {
        /// The node's name.
        node: String,
        /// The version in force.
        version: u64,
        /// What changes or has changed.
        changes: Vec<String>,
        /// On how many disks it is, where a cluster has agreed on it.
        #[serde(default)]
        durable: Option<Durable>,
    },
    /// How its peers live, and how the cluster agrees.
    Nodes {
        /// What liveness has to tell; none at a witness.
        liveness: Option<LivenessStatus>,
        /// What agreement has; none where there is none.
        agreement: Option<AgreementStatus>,
    },
    /// How its paths do.
    Paths {
        /// One by one.
        paths: Vec<PathStatus>,
    },
    /// How its backends do.
    Backends {
        /// One by one.
        backends: Vec<BackendStatus>,
    },
    /// How its BFD sessions do.
    Bfd {
        /// One by one.
        sessions: Vec<bfd::Status>,
    },
    /// Whether a node drains, or has.
    Draining {
        /// As is agreed on.
        drains: bool,
    },
    /// What replication has counted.
    Replication {
        /// As JSON of their own: numbers as keys would not survive the tag that tells answers apart.
        counters: serde_json::Value,
    },
    /// The breakers.
    Breakers {
        /// All, by name.
        breakers: Vec<breaker::Status>,
    },
    /// Its health.
    Health {
        /// Figures, verdicts and load.
        health: HealthStatus,
    },
    /// What is agreed on.
    Backup {
        /// To be kept.
        backup: Backup,
    },
    /// It was not done.
    Refused {
        /// Why.
        reason: String,
        /// The version in force, where another one was expected.
        #[serde(default)]
        present: Option<u64>,
        /// Whether it may be done all the same.
        #[serde(default)]
        is_unsure: bool,
    },
}

pub(super) type Query = (Request, oneshot::Sender<Answer>);

/// The socket of a node.
pub fn path(config: &Config) -> PathBuf {
    config.node.run.join(format!("{}.sock", config.node.name))
}

/// Takes the directory of a data plane's pins for this process, until the file is dropped. An agent that was killed lets
/// go of it once its last write to the disk has ended.
///
/// # Errors
/// Where another process has it.
pub fn hold(pins: &Path) -> Result<File> {
    let directory = File::open(pins).with_context(|| format!("cannot open {}", pins.display()))?;
    let deadline = Instant::now() + PREDECESSOR;
    loop {
        match directory.try_lock() {
            Ok(()) => return Ok(directory),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(20)),
            Err(TryLockError::WouldBlock) => {
                bail!("another agent looks after the data plane at {}: end it first", pins.display())
            }
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("cannot lock {}", pins.display()));
            }
        }
    }
}

/// Removes the socket's file when the agent ends.
pub(super) struct Socket(PathBuf);

impl Drop for Socket {
    fn drop(&mut self) {
        // It is of no use any more; a file that cannot be removed is replaced by the next agent.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Listens for requests.
///
/// # Errors
/// Where another agent of this node runs, or the socket cannot be made.
pub(super) fn listen(config: &Config, requests: mpsc::Sender<Query>) -> Result<Socket> {
    let path = path(config);
    if UnixStream::connect(&path).is_ok() {
        bail!("another agent of node {} answers at {}: end it first", config.node.name, path.display());
    }
    std::fs::create_dir_all(&config.node.run).with_context(|| format!("cannot make {}", config.node.run.display()))?;
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot replace {}", path.display()));
        }
        _ => {}
    }
    let listener = UnixListener::bind(&path).with_context(|| format!("cannot listen at {}", path.display()))?;
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).context("cannot protect the socket")?;
    tokio::spawn(async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => drop(tokio::spawn(serve(stream, requests.clone()))),
                Err(error) => {
                    tracing::warn!(%error, "a command could not connect");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    });
    Ok(Socket(path))
}

async fn serve(stream: tokio::net::UnixStream, requests: mpsc::Sender<Query>) {
    let (reader, mut writer) = stream.into_split();
    let mut line = String::new();
    let answer = match tokio::io::BufReader::new(reader.take(REQUEST_BYTES_MAX)).read_line(&mut line).await {
        Ok(_) => match serde_json::from_str(&line) {
            Ok(request) => hand_over(request, &requests).await,
            Err(error) => refused(format!("the request is not understood: {error}")),
        },
        Err(error) => refused(format!("the request could not be read: {error}")),
    };
    let mut text = serde_json::to_vec(&answer).unwrap_or_default();
    text.push(b'\n');
    if let Err(error) = writer.write_all(&text).await {
        tracing::debug!(%error, "whoever asked has gone away");
    }
}

async fn hand_over(request: Request, requests: &mpsc::Sender<Query>) -> Answer {
    let (answer, answered) = oneshot::channel();
    if requests.send((request, answer)).await.is_err() {
        return refused("the agent is ending".to_owned());
    }
    answered.await.unwrap_or_else(|_| refused("the agent is ending".to_owned()))
}

pub(super) fn refused(reason: String) -> Answer {
    Answer::Refused { reason, present: None, is_unsure: false }
}

/// Answers a request: at once or, where the cluster decides, once it has.
pub(super) async fn answer(node: &mut Node, request: Request, answer: oneshot::Sender<Answer>) {
    let name = node.config().node.name.clone();
    let version = node.version();
    let done = |version, changes| Answer::Done { node: name.clone(), version, changes, durable: None };
    let now = match request {
        Request::Nodes => match node.liveness() {
            Some(liveness) => Answer::Nodes { liveness: Some(liveness), agreement: node.agreement() },
            None => refused("the agent does not watch its peers yet".to_owned()),
        },
        Request::Replication => match node.replication() {
            Some(counters) => Answer::Replication { counters: serde_json::to_value(counters).unwrap_or_default() },
            None => refused("flows are not replicated here".to_owned()),
        },
        Request::Learn => {
            node.learn_capacity();
            done(version, Vec::new())
        }
        Request::Health => Answer::Health { health: node.health() },
        Request::Breakers => Answer::Breakers { breakers: node.breakers().statuses() },
        Request::Bfd => Answer::Bfd { sessions: node.sessions() },
        Request::Paths => match node.paths() {
            Some(paths) => Answer::Paths { paths },
            None => refused("the agent does not watch its paths yet".to_owned()),
        },
        Request::Backends => match node.backends() {
            Some(backends) => Answer::Backends { backends },
            None => refused("the agent does not watch its paths yet".to_owned()),
        },
        Request::Status => done(version, Vec::new()),
        Request::Diff { name, text } => node.diff(&name, &text).map_or_else(wrong, |changes| done(version, changes)),
        Request::Apply { name, text, expect } => match node.apply(&name, &text, expect).await {
            Ok(Change::Done(applied)) => done(applied.version, applied.changes),
            Ok(Change::Asked(asked)) => return later(node, asked, answer),
            Err(error) => not_applied(error),
        },
        Request::Leave { node: id } => match node.leave(id) {
            Ok(asked) => return later(node, asked, answer),
            Err(error) => wrong(error),
        },
        Request::Draining { node: id } => match node.is_draining(id) {
            Ok(drains) => Answer::Draining { drains },
            Err(error) => wrong(error),
        },
        Request::Drain { unless_last: true, .. } if !node.others_serve() => {
            refused("no other node is alive that serves: who drained now would leave nobody".to_owned())
        }
        Request::Drain { node: id, .. } => match node.drain(id, true) {
            Ok(asked) => return later(node, asked, answer),
            Err(error) => wrong(error),
        },
        Request::Undrain { node: id } => match node.drain(id, false) {
            Ok(asked) => return later(node, asked, answer),
            Err(error) => wrong(error),
        },
        Request::Bootstrap => match node.bootstrap() {
            Ok(bootstrap) => return soon(bootstrap, done(version, Vec::new()), answer),
            Err(error) => wrong(error),
        },
        Request::Restore { backup } => match node.restore(&backup).await {
            Ok(restore) => return soon(restore, done(backup.version.max(version) + 1, Vec::new()), answer),
            Err(error) => wrong(error),
        },
        Request::Backup => Answer::Backup { backup: node.backup() },
        Request::Recover { lost } => match node.recover(lost) {
            Ok(recover) => return soon(recover, done(version, Vec::new()), answer),
            Err(error) => wrong(error),
        },
    };
    // Whoever asked may have gone away meanwhile.
    let _ = answer.send(now);
}

/// Answers once something is done.
fn soon<E: std::error::Error + Send + Sync + 'static>(
    work: impl Future<Output = Result<(), E>> + Send + 'static,
    done: Answer,
    answer: oneshot::Sender<Answer>,
) {
    tokio::spawn(async move {
        // Whoever asked may have gone away meanwhile.
        let _ = answer.send(work.await.map_or_else(wrong, |()| done));
    });
}

/// Answers once the cluster has decided.
fn later(node: &Node, asked: Asked, answer: oneshot::Sender<Answer>) {
    let node = node.config().node.name.clone();
    tokio::spawn(async move {
        let decided = asked.decide().await;
        // Whoever asked may have gone away meanwhile.
        let _ = answer.send(decided.map_or_else(not_applied, |Applied { version, changes, durable }| Answer::Done {
            node,
            version,
            changes,
            durable,
        }));
    });
}

pub(super) fn wrong(error: impl std::error::Error + Send + Sync + 'static) -> Answer {
    refused(format!("{:#}", anyhow::Error::new(error)))
}

fn not_applied(error: ApplyError) -> Answer {
    let (present, is_unsure) = (error.present(), matches!(error, ApplyError::Agreement(ProposeError::Unknown)));
    Answer::Refused { reason: format!("{:#}", anyhow::Error::new(error)), present, is_unsure }
}

/// Asks the agent at a socket.
///
/// # Errors
/// Where nobody answers, or it refuses.
pub fn ask(socket: &Path, request: &Request) -> Result<Answer> {
    ask_within(ANSWER, socket, request)
}

/// The same of what can be done without, such as by an agent that is stopped.
///
/// # Errors
/// As [`ask`], also where the answer takes longer than that.
pub fn ask_within(time: Duration, socket: &Path, request: &Request) -> Result<Answer> {
    match answer_within(time, socket, request)? {
        Answer::Refused { reason, .. } => bail!("{reason}"),
        done => Ok(done),
    }
}

/// As [`ask`], for whom a refusal is an answer too.
///
/// # Errors
/// Where nobody answers.
pub fn answer_of(socket: &Path, request: &Request) -> Result<Answer> {
    answer_within(ANSWER, socket, request)
}

/// As [`ask_within`], for whom a refusal is an answer too.
///
/// # Errors
/// Where nobody answers in time.
pub fn answer_within(time: Duration, socket: &Path, request: &Request) -> Result<Answer> {
    let mut stream = UnixStream::connect(socket)
        .with_context(|| format!("no agent answers at {}: `redirector run` starts it", socket.display()))?;
    stream.set_read_timeout(Some(time))?;
    let mut text = serde_json::to_vec(request)?;
    text.push(b'\n');
    stream.write_all(&text).context("the agent does not take the request")?;
    let mut line = String::new();
    BufReader::new(stream)
        .read_line(&mut line)
        .context("the agent does not answer; whether it was done is not known")?;
    serde_json::from_str(&line).context("the agent's answer is not understood")
}
