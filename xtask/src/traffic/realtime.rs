//! Threads that measure run when they must, and what the machine was short of is told.

use std::fs;
use std::io;
use std::time::Duration;

/// Above every thread of the ordinary kind, below what a system runs at its highest priorities.
const PRIORITY: i32 = 10;

/// Gives this thread real-time priority (SCHED_FIFO); whether the machine lets it.
pub(super) fn take_priority() -> bool {
    let parameters = libc::sched_param { sched_priority: PRIORITY };
    // SAFETY: 0 is the calling thread, and the parameters outlive the call.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameters) == 0 }
}

/// Now, on the monotonic clock, since it began.
pub(super) fn now() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the clock exists on every Linux, and the time is ours to be written.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Sleeps until a moment of the monotonic clock.
pub(super) fn sleep_until(due: Duration) {
    let due = libc::timespec { tv_sec: due.as_secs() as i64, tv_nsec: i64::from(due.subsec_nanos()) };
    // SAFETY: the time outlives the call. A signal that ends the sleep early does no harm but a packet that is early.
    unsafe { libc::clock_nanosleep(libc::CLOCK_MONOTONIC, libc::TIMER_ABSTIME, &raw const due, std::ptr::null_mut()) };
}

/// What the machine's CPUs have done since it booted, in clock ticks.
#[derive(Clone, Copy, Debug)]
pub struct CpuTime {
    all: u64,
    stolen: u64,
}

impl CpuTime {
    /// Reads it.
    pub fn now() -> io::Result<Self> {
        Self::parse(&fs::read_to_string("/proc/stat")?).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    fn parse(text: &str) -> Option<Self> {
        let words = text.lines().next()?.strip_prefix("cpu ")?.split_ascii_whitespace();
        // user, nice, system, idle, iowait, irq, softirq, steal; then guests, who are in the first two already
        let ticks = words.take(8).map(str::parse).collect::<Result<Vec<u64>, _>>().ok()?;
        Some(Self { all: ticks.iter().sum(), stolen: *ticks.get(7)? })
    }

    /// The share of the time since then, in percent, that the hypervisor gave to others.
    pub fn stolen_since(self, before: Self) -> f64 {
        match self.all.saturating_sub(before.all) {
            0 => 0.0,
            all => 100.0 * self.stolen.saturating_sub(before.stolen) as f64 / all as f64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steal_is_a_share_of_all_time() {
        let before = CpuTime::parse("cpu  10 0 10 70 0 0 0 10 5 5\ncpu0 1\n").unwrap();
        let after = CpuTime::parse("cpu  20 0 20 130 0 0 0 30 5 5\n").unwrap();
        assert_eq!((before.all, after.all), (100, 200));
        assert!((after.stolen_since(before) - 20.0).abs() < 1e-9);
        assert!(before.stolen_since(before).abs() < 1e-9);
        for damaged in ["", "cpu 1 2", "cpu a b c d e f g h", "intr 1"] {
            assert!(CpuTime::parse(damaged).is_none(), "{damaged:?}");
        }
    }
}
