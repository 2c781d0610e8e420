//! The host, read: once in a while, by the agent's main task, and never a call that could wait.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::arrivals::Arrivals;
use super::figure::Reading;
use super::host::{available, pressure};
use super::neighbours::Unresolved;
use super::storage::Storage;
use super::thresholds::{Figure, Thresholds};
use crate::breaker::Breakers;
use crate::netlink::Received;
use crate::shedding::cpu_times;

/// What the agent knows of its own host besides.
#[derive(Clone, Debug, Default)]
pub struct Host {
    /// How many interfaces are configured.
    pub interfaces: usize,
    /// Of these, how many have a carrier, and how many have XDP attached in the way that is configured; none while it is not
    /// known.
    pub links: Option<(usize, usize)>,
    /// Next hops that the kernel finds no MAC address of.
    pub next_hops: Unresolved,
    /// What interfaces have received, by their numbers, where that was counted since the last reading.
    pub received: Option<BTreeMap<u32, Received>>,
    /// Packets that XDP has dropped on purpose.
    pub refused: u64,
    /// Of the peers that answer, and that have several links, how many do so on the first.
    pub heard_first: (usize, usize),
    /// The longest time that the agent's main task was held up since the last reading.
    pub delay: Duration,
}

/// Reads the host.
#[derive(Debug)]
pub struct Probes {
    storage: Storage,
    cpus: Vec<[u64; 8]>,
    arrivals: Arrivals,
    clocks: Option<(Duration, Duration)>,
}

/// Readings as they come in.
struct Sheet<'a> {
    thresholds: &'a Thresholds,
    readings: Vec<Reading>,
}

impl Sheet<'_> {
    fn note(&mut self, figure: Figure, value: f64) {
        self.explain(figure, value, String::new());
    }

    fn explain(&mut self, figure: Figure, value: f64, words: String) {
        self.readings.push(Reading { figure: self.thresholds.of(figure), value, words });
    }
}

fn read(path: impl AsRef<Path>) -> Option<String> {
    fs::read_to_string(path).ok()
}

impl Probes {
    /// Begins to try the data directory, behind a breaker of this list.
    ///
    /// # Errors
    /// Where there is no thread for it.
    pub fn start(data: &Path, breakers: &Breakers) -> io::Result<Self> {
        let storage = Storage::start(data, breakers)?;
        Ok(Self { storage, cpus: Vec::new(), arrivals: Arrivals::default(), clocks: None })
    }

    /// Reads everything. `now` is monotonic.
    pub fn read(&mut self, host: &Host, thresholds: &Thresholds, now: Duration) -> Vec<Reading> {
        let mut sheet = Sheet { thresholds, readings: Vec::new() };
        self.cpu(host, now, &mut sheet);
        memory(&mut sheet);
        self.network(host, &mut sheet);
        self.storage(&mut sheet);
        sheet.readings
    }

    /// Why the data directory fails, if it does.
    pub fn storage_failure(&self) -> Option<String> {
        self.storage.found().failure
    }

    fn cpu(&mut self, host: &Host, now: Duration, sheet: &mut Sheet<'_>) {
        let cpus = cpu_times(&read("/proc/stat").unwrap_or_default());
        if cpus.len() == self.cpus.len() {
            let share = |kind: usize, (before, after): (&[u64; 8], &[u64; 8])| {
                let all: u64 = after.iter().zip(before).map(|(a, b)| a.saturating_sub(*b)).sum();
                if all == 0 { 0.0 } else { after[kind].saturating_sub(before[kind]) as f64 * 100.0 / all as f64 }
            };
            let shares = |kind| self.cpus.iter().zip(&cpus).map(move |both| share(kind, both));
            sheet.note(Figure::STEAL, shares(7).sum::<f64>() / cpus.len().max(1) as f64);
            sheet.note(Figure::SOFTIRQ, shares(6).fold(0.0, f64::max));
            let idle = shares(3).sum::<f64>() + shares(4).sum::<f64>();
            sheet.note(Figure::BUSY, 100.0 - idle / cpus.len().max(1) as f64);
        }
        self.cpus = cpus;
        sheet.note(Figure::LOOP_DELAY, host.delay.as_secs_f64() * 1000.0);
        let real = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        if let Some((was_now, was_real)) = self.clocks.replace((now, real)) {
            let step = (real.as_secs_f64() - was_real.as_secs_f64()) - (now.as_secs_f64() - was_now.as_secs_f64());
            sheet.note(Figure::CLOCK_STEP, step.abs() * 1000.0);
        }
    }

    fn network(&mut self, host: &Host, sheet: &mut Sheet<'_>) {
        let share = |count: usize, of: usize| count as f64 * 100.0 / of.max(1) as f64;
        if let Some((carried, attached)) = host.links {
            sheet.note(Figure::CARRIER, share(carried, host.interfaces));
            sheet.note(Figure::ATTACHED, share(attached, host.interfaces));
        }
        if let Some(received) = &host.received {
            self.arrivals.observe(received.clone(), host.refused);
        }
        if let Some(lost) = self.arrivals.lost() {
            sheet.note(Figure::RECEIVE_DROPS, lost);
        }
        // With a single peer it is not known whose fault it is.
        let (first, heard) = host.heard_first;
        if heard > 1 {
            sheet.note(Figure::FIRST_LINK, share(first, heard));
        }
        let hops = &host.next_hops;
        if hops.of > 0 {
            sheet.explain(Figure::NEXT_HOPS, share(hops.own, hops.of), hops.words.clone());
        }
    }

    fn storage(&self, sheet: &mut Sheet<'_>) {
        let found = self.storage.found();
        sheet.note(Figure::FSYNC, found.fsync.map_or(f64::INFINITY, |time| time.as_secs_f64() * 1000.0));
        sheet.note(Figure::SPACE, found.free);
    }
}

fn memory(sheet: &mut Sheet<'_>) {
    if let Some(available) = read("/proc/meminfo").as_deref().and_then(available) {
        sheet.note(Figure::AVAILABLE, available);
    }
    if let Some(waiting) = read("/proc/pressure/memory").and_then(|text| pressure(&text, "full")) {
        sheet.note(Figure::PRESSURE, waiting);
    }
}
