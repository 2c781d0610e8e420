//! The host, read: once in a while, by the agent's main task, and never a call that could wait.

use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::figure::{Area, Reading};
use super::host::{available, pressure, received};
use super::storage::Storage;
use crate::shedding::cpu_times;

/// What the agent knows of its own host besides.
#[derive(Clone, Debug, Default)]
pub struct Host {
    /// Interfaces that are configured.
    pub interfaces: Vec<String>,
    /// Of these, how many have a carrier, and how many have XDP attached in the way that is configured; none while it is not
    /// known.
    pub links: Option<(usize, usize)>,
    /// Next hops, and how many of them have a MAC address.
    pub next_hops: (usize, usize),
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
    received: (u64, u64),
    clocks: Option<(Duration, Duration)>,
}

fn reading(area: Area, name: &'static str, value: f64, good: f64, bad: f64) -> Reading {
    Reading { area, name, value, good, bad, is_vital: false }
}

fn read(path: impl AsRef<Path>) -> Option<String> {
    fs::read_to_string(path).ok()
}

impl Probes {
    /// Begins to try the data directory.
    ///
    /// # Errors
    /// Where there is no thread for it.
    pub fn start(data: &Path) -> io::Result<Self> {
        Ok(Self { storage: Storage::start(data)?, cpus: Vec::new(), received: (0, 0), clocks: None })
    }

    /// Reads everything. `now` is monotonic.
    pub fn read(&mut self, host: &Host, now: Duration) -> Vec<Reading> {
        let mut readings = Vec::new();
        self.cpu(host, now, &mut readings);
        memory(&mut readings);
        self.network(host, &mut readings);
        self.storage(&mut readings);
        readings
    }

    /// Why the data directory fails, if it does.
    pub fn storage_failure(&self) -> Option<String> {
        self.storage.found().failure
    }

    fn cpu(&mut self, host: &Host, now: Duration, readings: &mut Vec<Reading>) {
        let cpus = cpu_times(&read("/proc/stat").unwrap_or_default());
        if cpus.len() == self.cpus.len() {
            let share = |kind: usize, (before, after): (&[u64; 8], &[u64; 8])| {
                let all: u64 = after.iter().zip(before).map(|(a, b)| a.saturating_sub(*b)).sum();
                if all == 0 { 0.0 } else { after[kind].saturating_sub(before[kind]) as f64 * 100.0 / all as f64 }
            };
            let shares = |kind| self.cpus.iter().zip(&cpus).map(move |both| share(kind, both));
            let steal = shares(7).sum::<f64>() / cpus.len().max(1) as f64;
            readings.push(reading(Area::Cpu, "steal-%", steal, 20.0, 80.0));
            readings.push(reading(Area::Cpu, "softirq-%", shares(6).fold(0.0, f64::max), 90.0, 100.0));
            let idle = shares(3).sum::<f64>() + shares(4).sum::<f64>();
            // Busy CPUs are no fault by themselves: what suffers by them is measured beside.
            readings.push(reading(Area::Cpu, "busy-%", 100.0 - idle / cpus.len().max(1) as f64, 100.0, f64::MAX));
        }
        self.cpus = cpus;
        readings.push(reading(Area::Cpu, "loop-delay-ms", host.delay.as_secs_f64() * 1000.0, 500.0, 5000.0));
        let real = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        if let Some((was_now, was_real)) = self.clocks.replace((now, real)) {
            let step = (real.as_secs_f64() - was_real.as_secs_f64()) - (now.as_secs_f64() - was_now.as_secs_f64());
            // Nothing but certificates goes by the wall clock.
            readings.push(reading(Area::Cpu, "clock-step-ms", step.abs() * 1000.0, 1000.0, 3_600_000.0));
        }
    }

    fn network(&mut self, host: &Host, readings: &mut Vec<Reading>) {
        if let Some((carried, attached)) = host.links {
            let share = |count: usize| count as f64 * 100.0 / host.interfaces.len().max(1) as f64;
            readings.push(reading(Area::Network, "carrier-%", share(carried), 100.0, 0.0));
            readings.push(reading(Area::Network, "xdp-attached-%", share(attached), 100.0, 0.0));
        }
        let (packets, dropped) = received(&read("/proc/net/dev").unwrap_or_default(), &host.interfaces);
        let (before, lost) = std::mem::replace(&mut self.received, (packets, dropped));
        let came = packets.saturating_sub(before);
        if before > 0 && came > 0 {
            let share = dropped.saturating_sub(lost) as f64 * 100.0 / came as f64;
            readings.push(reading(Area::Network, "receive-overruns-%", share, 1.0, 50.0));
        }
        // With a single peer it is not known whose fault it is. A node that no packets can come to from the others is alive to
        // them, by its other links, and must hand over by itself what it has.
        let (first, heard) = host.heard_first;
        if heard > 1 {
            let share = first as f64 * 100.0 / heard as f64;
            let on_first = reading(Area::Network, "answers-on-first-link-%", share, 50.0, 0.0);
            readings.push(Reading { is_vital: true, ..on_first });
        }
        let (hops, known) = host.next_hops;
        if hops > 0 {
            readings.push(reading(Area::Network, "next-hops-known-%", known as f64 * 100.0 / hops as f64, 100.0, 0.0));
        }
    }

    fn storage(&self, readings: &mut Vec<Reading>) {
        let found = self.storage.found();
        let milliseconds = found.fsync.map_or(f64::INFINITY, |time| time.as_secs_f64() * 1000.0);
        let fsync = reading(Area::Storage, "fsync-ms", milliseconds, 500.0, 4000.0);
        readings.push(Reading { is_vital: true, ..fsync });
        readings.push(reading(Area::Storage, "space-left-%", found.free, 5.0, 0.0));
    }
}

fn memory(readings: &mut Vec<Reading>) {
    if let Some(available) = read("/proc/meminfo").as_deref().and_then(available) {
        readings.push(reading(Area::Memory, "available-%", available, 5.0, 1.0));
    }
    if let Some(waiting) = read("/proc/pressure/memory").and_then(|text| pressure(&text, "full")) {
        readings.push(reading(Area::Memory, "pressure-%", waiting, 20.0, 80.0));
    }
}
