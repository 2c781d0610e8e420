//! Runs the tries: a task for each target, on a thread that serves nothing else.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;

use super::{Machine, Rules, Target, ask};
use crate::breaker::{Breaker, Breakers, Policy};
use crate::paths::health::Sign;

/// Tries that may go on at a time at least. More targets than that may all be asked at once, as long as they leave half of
/// the files that this process may have open to others.
const TRIES_MIN: usize = 256;

fn tries(targets: usize) -> usize {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the limit is written to and outlives the call, which cannot fail with these arguments.
    unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    let most = usize::try_from(limit.rlim_cur / 2).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
    targets.min(most).max(TRIES_MIN)
}

/// A target that is asked again and again.
#[derive(Debug)]
pub struct Probed {
    kind: &'static str,
    began: Instant,
    machine: Mutex<Machine>,
    breaker: Arc<Breaker>,
}

/// What there is to tell of a probe.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ProbeStatus {
    /// What it asks.
    pub kind: String,
    /// What it says.
    pub says: Sign,
    /// How long it has said that, milliseconds.
    pub for_ms: u64,
    /// Why the last try that failed did.
    pub why: Option<String>,
    /// How long the last try that succeeded took, microseconds.
    pub took_us: Option<u64>,
    /// Tries that succeeded since the agent started.
    pub succeeded: u64,
    /// Tries that failed.
    pub failed: u64,
}

impl Probed {
    /// What it says.
    pub fn sign(&self) -> Sign {
        self.machine().sign
    }

    /// Why it says that a path is bad.
    pub fn why(&self) -> Option<String> {
        self.machine().why.clone()
    }

    /// What there is to tell.
    pub fn status(&self) -> ProbeStatus {
        let machine = self.machine();
        ProbeStatus {
            kind: self.kind.to_owned(),
            says: machine.sign,
            for_ms: self.began.elapsed().saturating_sub(machine.since).as_millis() as u64,
            why: machine.why.clone(),
            took_us: machine.took.map(|took| took.as_micros() as u64),
            succeeded: machine.succeeded,
            failed: machine.failed,
        }
    }

    fn machine(&self) -> MutexGuard<'_, Machine> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks again and again.
    async fn go_on(&self, target: &Target, tries: &Semaphore) {
        loop {
            let due = self.machine().due;
            tokio::time::sleep(due.saturating_sub(self.began.elapsed())).await;
            // First: a breaker's trial is not to grow old in a queue.
            let Ok(one) = tries.acquire().await else { return };
            let permit = match self.breaker.ask() {
                Ok(permit) => permit,
                Err(open) => {
                    drop(one);
                    tokio::time::sleep(open.again.max(Duration::from_millis(1))).await;
                    continue;
                }
            };
            let begins = self.began.elapsed();
            self.machine().begins(begins, random());
            let result = ask(target).await.map_err(|failure| failure.0);
            permit.told(&result);
            let ends = self.began.elapsed();
            self.machine().ended(ends, result.map(|()| ends - begins));
        }
    }
}

/// All probes of a node.
pub struct Prober {
    runtime: Option<Runtime>,
    tries: Arc<Semaphore>,
    /// How many tries may go on.
    bound: usize,
    targets: HashMap<Target, (Arc<Probed>, AbortHandle)>,
}

impl Prober {
    /// A prober without targets; its thread starts with the first.
    pub fn new() -> Self {
        let tries = Arc::new(Semaphore::new(TRIES_MIN));
        Self { runtime: None, tries, bound: TRIES_MIN, targets: HashMap::new() }
    }

    /// Asks these from now on, and no others. Paths that end in the same way share a probe.
    ///
    /// # Errors
    /// Where there is no thread to be had.
    pub fn configure(
        &mut self,
        targets: BTreeMap<u16, Target>,
        breakers: &Breakers,
    ) -> io::Result<BTreeMap<u16, Arc<Probed>>> {
        let mut kept = HashMap::new();
        let mut probed = BTreeMap::new();
        for (path, target) in targets {
            if let Some(there) = self.targets.remove(&target) {
                kept.insert(target.clone(), there);
            }
            if !kept.contains_key(&target) {
                let new = self.start(&target, breakers)?;
                kept.insert(target.clone(), new);
            }
            if let Some((one, _)) = kept.get(&target) {
                probed.insert(path, one.clone());
            }
        }
        for (_, task) in std::mem::replace(&mut self.targets, kept).into_values() {
            task.abort();
        }
        // Once there is room it stays: tries that go on cannot be taken back.
        let bound = tries(self.targets.len()).max(self.bound);
        self.tries.add_permits(bound - self.bound);
        self.bound = bound;
        Ok(probed)
    }

    fn start(&mut self, target: &Target, breakers: &Breakers) -> io::Result<(Arc<Probed>, AbortHandle)> {
        if self.runtime.is_none() {
            let builder = Builder::new_multi_thread().worker_threads(1).thread_name("probes").enable_all().build();
            self.runtime = Some(builder?);
        }
        let runtime = self.runtime.as_ref().ok_or(io::ErrorKind::NotFound)?;
        let probe = &target.probe;
        // Once it is open, it is tried as often as before, one try at a time.
        let policy = Policy {
            failures: probe.fall,
            window: (probe.interval + probe.timeout) * 2 * probe.fall,
            timeout: probe.interval,
            patience: probe.timeout * 2,
        };
        let kind = probe.question.name();
        let port = probe.question.port().map(|port| format!(" port {port}")).unwrap_or_default();
        let name = format!("{kind} probe of {}{port} on {}", target.address, target.interface);
        let breaker = breakers.breaker(name, policy);
        let rules = Rules { interval: probe.interval, jitter: probe.jitter, rise: probe.rise, fall: probe.fall };
        let machine = Mutex::new(Machine::new(rules, Duration::ZERO, random()));
        let probed = Arc::new(Probed { kind, began: Instant::now(), machine, breaker });
        let (goes, target, tries) = (probed.clone(), target.clone(), self.tries.clone());
        let task = runtime.spawn(async move { goes.go_on(&target, &tries).await });
        Ok((probed, task.abort_handle()))
    }
}

impl Default for Prober {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // The agent does not wait for answers of others.
            runtime.shutdown_background();
        }
    }
}

/// Any number; without randomness probes go together, which harms little.
fn random() -> u64 {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_or(0, |()| u64::from_le_bytes(bytes))
}
