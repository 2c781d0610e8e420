//! How late threads wake up here: what the beats' sender has to live with.

use std::time::Duration;
use std::{fs, io, ptr};

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

const SLEEPS: u32 = 200;
const SLEEP: Duration = Duration::from_millis(1);
/// Later than this is counted as this, in microseconds.
const LATE_MAX: u64 = 10_000_000;
/// Above most threads and below the kernel's own.
const PRIORITY: i32 = 50;
/// Above this share of stolen time no timeout of a few beats was ever quiet.
const STEAL_PERCENT_MAX: f64 = 0.5;

/// How late threads wake up, in microseconds, out of 200 sleeps of a millisecond.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Wakeups {
    /// Half of them were no later than this.
    pub p50_us: u64,
    /// All but two were no later than this.
    pub p99_us: u64,
    /// The latest.
    pub max_us: u64,
    /// Whether the sleeping thread had real-time priority.
    pub realtime: bool,
    /// Share of the CPU time, meanwhile, that the hypervisor gave to others.
    pub steal_percent: f64,
}

impl Wakeups {
    /// Whether beats of this interval are sent and answered in time, so that a peer that misses `multiplier` of them is
    /// suspected with reason.
    pub fn fits(&self, interval: Duration, multiplier: u32) -> bool {
        let us = |duration: Duration| duration.as_micros() as u64;
        self.realtime
            && self.steal_percent < STEAL_PERCENT_MAX
            && self.p99_us <= us(interval) / 2
            && self.max_us <= us(interval * multiplier) / 2
    }

    /// Measures, on a thread that is left with real-time priority if that is allowed.
    pub(super) fn measure() -> Option<Self> {
        let realtime = become_realtime();
        let mut late = Histogram::<u64>::new_with_max(LATE_MAX, 3).ok()?;
        let before = CpuTime::now();
        let mut due = now().ok()?;
        for _ in 0..SLEEPS {
            due += SLEEP;
            sleep_until(due).ok()?;
            late.saturating_record(now().ok()?.saturating_sub(due).as_micros() as u64);
        }
        let steal_percent = match (before, CpuTime::now()) {
            (Some(before), Some(after)) => after.steal_percent_since(before),
            _ => 0.0,
        };
        let (p50_us, p99_us) = (late.value_at_quantile(0.5), late.value_at_quantile(0.99));
        Some(Self { p50_us, p99_us, max_us: late.max(), realtime, steal_percent })
    }
}

fn become_realtime() -> bool {
    // SAFETY: all bytes zero is a valid `sched_param`, of which some C libraries have more fields than others.
    let mut parameters: libc::sched_param = unsafe { std::mem::zeroed() };
    parameters.sched_priority = PRIORITY;
    // SAFETY: 0 is this thread; the parameters outlive the call.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameters) == 0 }
}

fn now() -> io::Result<Duration> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the time is written to and outlives the call.
    match unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) } {
        0 => Ok(Duration::new(time.tv_sec as u64, time.tv_nsec as u32)),
        _ => Err(io::Error::last_os_error()),
    }
}

fn sleep_until(due: Duration) -> io::Result<()> {
    let time = libc::timespec { tv_sec: due.as_secs() as libc::time_t, tv_nsec: due.subsec_nanos().into() };
    loop {
        // SAFETY: the time outlives the call; an absolute sleep has nothing left to report.
        let result = unsafe {
            libc::clock_nanosleep(libc::CLOCK_MONOTONIC, libc::TIMER_ABSTIME, &raw const time, ptr::null_mut())
        };
        match result {
            0 => return Ok(()),
            libc::EINTR => {}
            error => return Err(io::Error::from_raw_os_error(error)),
        }
    }
}

/// CPU time of all CPUs together, in ticks.
#[derive(Clone, Copy)]
pub(super) struct CpuTime {
    total: u64,
    stolen: u64,
}

impl CpuTime {
    fn now() -> Option<Self> {
        Self::parse(&fs::read_to_string("/proc/stat").ok()?)
    }

    /// Reads the first line of `/proc/stat`: user, nice, system, idle, iowait, irq, softirq, steal, and guests',
    /// which are in user and nice already.
    pub(super) fn parse(stat: &str) -> Option<Self> {
        let line = stat.lines().next()?.strip_prefix("cpu ")?;
        let ticks = line.split_ascii_whitespace().take(8).map(str::parse).collect::<Result<Vec<u64>, _>>().ok()?;
        Some(Self { total: ticks.iter().sum(), stolen: *ticks.get(7)? })
    }

    pub(super) fn steal_percent_since(self, before: Self) -> f64 {
        let total = self.total.saturating_sub(before.total).max(1);
        100.0 * self.stolen.saturating_sub(before.stolen) as f64 / total as f64
    }
}
