//! Requests at a fixed rate, each on a socket of its own.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::{Response, fetch};
use crate::lab::client_addresses;

const ERRORS_KEPT: usize = 10;

/// What is to be sent. The rate does not follow the answers: a late one delays no other while threads are left.
#[derive(Clone, Debug)]
pub struct Load {
    /// Whom to ask, in turn.
    pub targets: Vec<SocketAddr>,
    /// Requests a second.
    pub per_second: u32,
    /// How long.
    pub duration: Duration,
    /// How many requests may be under way at a time.
    pub threads: usize,
    /// When a request counts as failed.
    pub timeout: Duration,
}

/// What became of it.
#[derive(Clone, Debug, Default, Serialize)]
pub struct LoadReport {
    /// Requests sent.
    pub sent: u64,
    /// Requests answered, and rightly.
    pub ok: u64,
    /// The others.
    pub failed: u64,
    /// Who answered.
    pub backends: BTreeMap<String, u64>,
    /// The first few failures, in words.
    pub errors: Vec<String>,
    /// The middle of all times to answer.
    pub median_us: u64,
    /// Ninety-nine of a hundred answers were this quick.
    pub p99_us: u64,
    /// The slowest answer.
    pub max_us: u64,
    /// How late the latest request was sent: more than a few milliseconds say that the machine, or `threads`, was short.
    pub lateness_max_us: u64,
}

impl Load {
    /// A load with 64 threads and a time-out of 5 seconds.
    pub fn new(targets: Vec<SocketAddr>, per_second: u32, duration: Duration) -> Self {
        Self { targets, per_second, duration, threads: 64, timeout: Duration::from_secs(5) }
    }

    /// Sends it all and waits for the last answer.
    pub fn run(&self) -> LoadReport {
        self.run_until(&AtomicBool::new(false), |_, _| {})
    }

    /// As [`Load::run`], but ends early when `stop` is set, and shows each answer, with its request's number, to `seen`.
    pub fn run_until(&self, stop: &AtomicBool, seen: impl Fn(u64, &Response) + Sync) -> LoadReport {
        let rate = f64::from(self.per_second.max(1));
        let total = if self.targets.is_empty() { 0 } else { (rate * self.duration.as_secs_f64()) as u64 };
        let next = AtomicU64::new(0);
        let begun = Instant::now();
        let outcome = Mutex::new((LoadReport::default(), Vec::new()));
        thread::scope(|scope| {
            for _ in 0..self.threads {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        if number >= total {
                            return;
                        }
                        let due = begun + Duration::from_secs_f64(number as f64 / rate);
                        thread::sleep(due.saturating_duration_since(Instant::now()));
                        let late = due.elapsed();
                        let answer = self.send(number);
                        if let Ok(response) = &answer {
                            seen(number, response);
                        }
                        let mut outcome = outcome.lock().expect("no thread panics while it counts");
                        let (report, times) = &mut *outcome;
                        report.count(answer, late, times);
                    }
                });
            }
        });
        let (mut report, mut times) = outcome.into_inner().expect("no thread panics while it counts");
        times.sort_unstable();
        let at = |share: f64| times.get((times.len() as f64 * share) as usize).copied().unwrap_or_default();
        (report.median_us, report.p99_us) = (at(0.5), at(0.99));
        report.max_us = times.last().copied().unwrap_or_default();
        report
    }

    fn send(&self, number: u64) -> anyhow::Result<Response> {
        let target = self.targets[number as usize % self.targets.len()];
        // Sources change slower than targets, so that every target is asked from every source.
        let sources = client_addresses(target.ip());
        let source = sources[(number as usize / self.targets.len()) % sources.len()];
        fetch(target, &format!("/{number}"), Some(source), self.timeout)
    }
}

impl LoadReport {
    fn count(&mut self, answer: anyhow::Result<Response>, late: Duration, times: &mut Vec<u64>) {
        self.sent += 1;
        self.lateness_max_us = self.lateness_max_us.max(late.as_micros() as u64);
        match answer {
            Ok(response) => {
                self.ok += 1;
                *self.backends.entry(response.backend).or_default() += 1;
                times.push(response.took.as_micros() as u64);
            }
            Err(error) => {
                self.failed += 1;
                if self.errors.len() < ERRORS_KEPT {
                    self.errors.push(format!("{error:#}"));
                }
            }
        }
    }
}
