//! The journal of incidents: what befell a node and its cluster, on its disk, for whoever asks afterwards.
//!
//! ```text
//! agent, threads ─► Journal::note ─► bounded queue ─► thread ─► DATA/incidents.log
//!                                                              (full: it becomes incidents.old)
//! ```
//!
//! A record is a line by itself, with a checksum, and is appended and never changed: a torn end, or damage in the midst,
//! costs the records that it hits and no others, and is told wherever the journal is read. Nobody waits for the disk: what
//! the queue or the disk does not take is counted, and the count is noted as soon as something can be.

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

use crate::dataplane::flows::now;
use file::File;

/// Incidents that may wait for the disk.
const WAITING: usize = 1024;

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

/// Where incidents are noted. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Journal {
    inputs: Option<Sender<Input>>,
    lost: Arc<AtomicU64>,
}

impl Journal {
    /// A journal that keeps nothing.
    pub fn none() -> Self {
        Self::default()
    }

    /// The journal in a data directory. Its file is opened with the first incident.
    pub fn start(data: &Path) -> Self {
        let (inputs, waiting) = bounded(WAITING);
        let lost = Arc::new(AtomicU64::new(0));
        let (file, losses) = (File::new(data), lost.clone());
        match std::thread::Builder::new().name("journal".to_owned()).spawn(move || write(file, &waiting, &losses)) {
            Ok(_) => Self { inputs: Some(inputs), lost },
            Err(error) => {
                tracing::error!(%error, "incidents are not kept: their thread cannot be started");
                Self::none()
            }
        }
    }

    /// Notes what happens now. Never waits.
    pub fn note(&self, kind: Kind, node: Option<u8>, what: impl Into<String>) {
        let Some(inputs) = &self.inputs else { return };
        if inputs.try_send(Input::Incident(Incident::now(kind, node, what.into()))).is_err() {
            self.lost.fetch_add(1, Relaxed);
        }
    }

    /// Waits a moment until everything is on disk.
    pub fn flush(&self) {
        let Some(inputs) = &self.inputs else { return };
        let (done, flushed) = bounded(1);
        if inputs.try_send(Input::Flush(done)).is_ok() {
            // Whoever ends does not wait for a disk that fails.
            let _ = flushed.recv_timeout(FLUSH);
        }
    }
}

/// Writes what comes, as much at a time as has come meanwhile.
fn write(mut file: File, waiting: &Receiver<Input>, lost: &AtomicU64) {
    let mut fails = false;
    while let Ok(first) = waiting.recv() {
        let (mut incidents, mut flushes) = (Vec::new(), Vec::new());
        for input in std::iter::once(first).chain(waiting.try_iter()) {
            match input {
                Input::Incident(incident) => incidents.push(incident),
                Input::Flush(done) => flushes.push(done),
            }
        }
        let missing = lost.swap(0, Relaxed);
        if missing > 0 {
            incidents
                .insert(0, Incident::now(Kind::Lost, None, format!("{missing} incidents before this were not kept")));
        }
        match file.append(&incidents) {
            Ok(()) => fails = false,
            Err(error) => {
                lost.fetch_add(missing + incidents.len() as u64 - u64::from(missing > 0), Relaxed);
                if !std::mem::replace(&mut fails, true) {
                    tracing::error!(%error, "incidents cannot be kept on disk");
                }
            }
        }
        for done in flushes {
            // Whoever waited may have given up.
            let _ = done.send(());
        }
    }
}
