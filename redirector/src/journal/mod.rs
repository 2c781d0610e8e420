//! The journal of incidents: what befell a node and its cluster, on its disk, for whoever asks afterwards.
//!
//! ```text
//! agent, threads ─► Journal::note ─► bounded queue ─► thread ─► breaker ─► DATA/incidents.log
//!                                                                         (full: it becomes incidents.old)
//! ```
//!
//! A record is a line by itself, with a checksum, and is appended and never changed: a torn end, or damage in the midst,
//! costs the records that it hits and no others, and is told wherever the journal is read. Nobody waits for the disk: what it
//! does not take is held until it does, what the queue does not take is counted, and the count is noted as soon as something
//! can be.

mod file;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, UNIX_EPOCH};

use crossbeam::channel::{Receiver, Sender, bounded};
use serde::{Deserialize, Serialize};

pub use file::{Entry, read};

use crate::breaker::Breaker;
use crate::dataplane::flows::now;
use file::File;

/// Incidents that may wait for the thread, and as many that it may hold.
const WAITING: usize = 1024;

/// Between tries, while the breaker lets them through.
const AGAIN: Duration = Duration::from_millis(100);

/// How long whoever ends waits for the disk at most.
const FLUSH: Duration = Duration::from_millis(500);

/// What kind of thing happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The agent started or ended.
    Agent,
    /// A peer was suspected, or is not any more.
    Peer,
    /// This node itself is returning, serving or cut off.
    Own,
    /// A BFD session came up, or went down from that.
    Session,
    /// A VIP came here or went.
    Takeover,
    /// Another role in the consensus.
    Role,
    /// A majority is reached, or is not any more.
    Agreement,
    /// No verdicts are passed on peers, or they are again.
    Frozen,
    /// Tables are other than they should be.
    Mismatch,
    /// What was wrong was put right.
    Repair,
    /// Something stored or received was damaged: it was not used.
    Damage,
    /// What came from outside was refused: a stranger's, another cluster's, or of a version that is not known here.
    Refused,
    /// Two nodes had chosen backends for one flow.
    Conflict,
    /// The disk does not take what is written, or does again.
    Disk,
    /// A backend died or is back, or too much of a pool is dead.
    Backend,
    /// Incidents are missing here.
    Lost,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Incident {
    /// Milliseconds since 1970 by the host's clock, which may jump: for people.
    pub at_ms: u64,
    /// Milliseconds since the host booted.
    pub uptime_ms: u64,
    /// Of what kind it is.
    pub kind: Kind,
    /// The node that it is about, where it is not the journal's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<u8>,
    /// What happened, in words.
    pub what: String,
}

impl Incident {
    /// One that happens now.
    fn now(kind: Kind, node: Option<u8>, what: String) -> Self {
        let at_ms = UNIX_EPOCH.elapsed().map_or(0, |time| time.as_millis() as u64);
        Self { at_ms, uptime_ms: now() / 1_000_000, kind, node, what }
    }
}

enum Input {
    Incident(Incident),
    Flush(Sender<()>),
}

/// Incidents that are not on disk.
#[derive(Debug, Default)]
struct Counts {
    /// Those that may come there.
    waiting: AtomicU64,
    /// Those that will not, and of which the journal does not tell yet.
    lost: AtomicU64,
}

/// Where incidents are noted. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Journal {
    inputs: Option<Sender<Input>>,
    counts: Arc<Counts>,
}

impl Journal {
    /// A journal that keeps nothing.
    pub fn none() -> Self {
        Self::default()
    }

    /// The journal in a data directory, behind a breaker. Its file is opened with the first incident.
    pub fn start(data: &Path, breaker: Arc<Breaker>) -> Self {
        let (inputs, waiting) = bounded(WAITING);
        let counts = Arc::<Counts>::default();
        let (file, counted) = (File::new(data), counts.clone());
        let thread = std::thread::Builder::new().name("journal".to_owned());
        match thread.spawn(move || write(file, &waiting, &counted, &breaker)) {
            Ok(_) => Self { inputs: Some(inputs), counts },
            Err(error) => {
                tracing::error!(%error, "incidents are not kept: their thread cannot be started");
                Self::none()
            }
        }
    }

    /// Notes what happens now. Never waits.
    pub fn note(&self, kind: Kind, node: Option<u8>, what: impl Into<String>) {
        let Some(inputs) = &self.inputs else { return };
        // Before the thread may write it.
        self.counts.waiting.fetch_add(1, Relaxed);
        if inputs.try_send(Input::Incident(Incident::now(kind, node, what.into()))).is_err() {
            self.counts.waiting.fetch_sub(1, Relaxed);
            self.counts.lost.fetch_add(1, Relaxed);
        }
    }

    /// Waits a moment until everything is on disk. Whoever ends does not wait for a disk that fails, and tells what is lost
    /// by that.
    pub fn flush(&self) {
        let Some(inputs) = &self.inputs else { return };
        let (done, flushed) = bounded(1);
        if inputs.try_send(Input::Flush(done)).is_err() || flushed.recv_timeout(FLUSH).is_err() {
            let Counts { waiting, lost } = &*self.counts;
            let missing = waiting.load(Relaxed) + lost.load(Relaxed);
            tracing::error!(
                "{missing} incidents are not on disk: it does not take them, and they are lost with this process"
            );
        }
    }
}

/// Writes what comes, as much at a time as has come meanwhile.
fn write(mut file: File, waiting: &Receiver<Input>, counts: &Arc<Counts>, breaker: &Breaker) {
    while let Ok(first) = waiting.recv() {
        let (mut incidents, mut flushes) = (Vec::new(), Vec::new());
        for input in std::iter::once(first).chain(waiting.try_iter()).take(WAITING) {
            match input {
                Input::Incident(incident) => incidents.push(incident),
                Input::Flush(done) => flushes.push(done),
            }
        }
        let noted = incidents.len() as u64;
        let missing = counts.lost.swap(0, Relaxed);
        if missing > 0 {
            let what = format!("{missing} incidents before this were not kept");
            incidents.push(Incident::now(Kind::Lost, None, what));
        }
        while let Err(again) = append(&mut file, &incidents, breaker) {
            // Who would note or wait for anything has a part in the counts.
            if Arc::strong_count(counts) == 1 {
                return;
            }
            std::thread::sleep(again);
        }
        counts.waiting.fetch_sub(noted, Relaxed);
        for done in flushes {
            // Whoever waited may have given up.
            let _ = done.send(());
        }
    }
}

/// Appends incidents, or says how long to wait before that is tried again. Of failures the breaker tells.
fn append(file: &mut File, incidents: &[Incident], breaker: &Breaker) -> Result<(), Duration> {
    if incidents.is_empty() {
        return Ok(());
    }
    let permit = breaker.ask().map_err(|open| open.again)?;
    let appended = file.append(incidents);
    permit.told(&appended);
    appended.map_err(|_| AGAIN)
}
