//! Five nodes in one thread, under virtual time, from a seed: no clock, no disk, no network. What decides in an agent and in
//! the data plane decides here too; only what carries things between them is of the simulation's own.
//!
//! ```text
//! fault ──► world ──┬─► host: disk, clock
//! users ───────┘    │     ├─ plane: tables, stations, the timer's rule
//!                   │     └─ agent: lookout, follower, desk, replication, VIPs
//!                   ├─► network: frames, connections
//!                   └─► checks, after every millisecond
//! ```
//!
//! The same seed gives the same run. A seed that fails is replayed by `cargo xtask sim --seeds 1 --seed SEED`, and with
//! `SIM_STORY=1` in the environment it tells what happens as it happens, with `SIM_FLOW=CLIENT:PORT` also of each packet of
//! that client's, and what the nodes know of its flow.

pub mod agent;
mod checks;
mod contest;
pub mod disk;
pub mod fault;
pub mod flaw;
pub mod host;
pub mod network;
pub mod plane;
mod traffic;
mod users;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

use flaw::Flaw;

/// A millisecond, in nanoseconds.
pub(crate) const MS: u64 = 1_000_000;
/// A second.
pub(crate) const SECOND: u64 = 1_000 * MS;
/// How many hosts there are.
pub(crate) const HOSTS: u8 = 5;
/// The VIP that all services have.
pub(crate) const VIP: &str = "10.0.0.100";

/// What a run came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Seconds of virtual time.
    pub virtual_seconds: u64,
    /// Episodes of faults.
    pub episodes: usize,
    /// Packets that clients sent.
    pub packets: u64,
    /// Of these, lost.
    pub lost: u64,
    /// Connections that moved to another backend, where nothing was promised.
    pub moved: u64,
    /// Suspicions.
    pub suspicions: u64,
    /// Changes that were acknowledged.
    pub changes: u64,
    /// A digest of all that happened.
    pub digest: u64,
}

/// What does not hold.
#[derive(Clone, Debug)]
pub struct Failure {
    /// When, nanoseconds.
    pub at: u64,
    /// What.
    pub what: String,
    /// What happened before.
    pub story: Vec<String>,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let last = self.story.len().saturating_sub(60);
        for line in &self.story[last..] {
            writeln!(f, "{line}")?;
        }
        write!(f, "{:9.3} s  {}", self.at as f64 / SECOND as f64, self.what)
    }
}

/// Runs a seed, with so many episodes of faults. A panic is a failure like any other.
///
/// # Errors
/// What does not hold.
pub fn run(seed: u64, episodes: usize, flaw: Flaw) -> Result<Summary, Failure> {
    let run = || world::World::new(seed, flaw).run(episodes);
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Err(Failure { at: 0, what: format!("panicked: {}", text.unwrap_or_default()), story: Vec::new() })
    })
}

/// How to see a failing seed again.
pub fn replay(seed: u64) -> String {
    format!("cargo xtask sim --seeds 1 --seed {seed}")
}
