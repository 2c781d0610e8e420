//! What figures were measured on, and what disturbed them meanwhile.

use std::fs;

use anyhow::Result;
use serde::Serialize;

use crate::traffic::CpuTime;

/// How often a disturbed slice is taken again.
const AGAIN: usize = 4;

/// What the machine was short of while something was measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Disturbance {
    /// The share of CPU time that the hypervisor gave to others.
    pub steal_pct: f64,
    /// Programs that ran or wanted to, on average of the last minute: those that are measured, and all others.
    pub load: f64,
}

/// Watches the machine from its making on.
#[derive(Clone, Copy, Debug)]
pub struct Watch(Option<CpuTime>);

impl Watch {
    /// Begins to watch.
    pub fn start() -> Self {
        Self(CpuTime::now().ok())
    }

    /// What was seen so far.
    pub fn seen(self) -> Disturbance {
        let steal_pct = match (self.0, CpuTime::now()) {
            (Some(before), Ok(now)) => now.stolen_since(before),
            _ => 0.0,
        };
        Disturbance { steal_pct: (steal_pct * 100.0).round() / 100.0, load: load() }
    }
}

fn load() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(0.0)
}

/// Slices that were disturbed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Slices {
    /// Dropped, and taken again.
    pub slices_dropped: u64,
    /// Disturbed too, but kept, since those that were taken in their place had been no better.
    pub slices_disturbed: u64,
}

/// Ticks that the hypervisor has given to others.
pub fn stolen() -> u64 {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    stat.lines().next().and_then(|line| line.split_whitespace().nth(8)?.parse().ok()).unwrap_or(0)
}

/// What tells whether a slice was disturbed: ticks that the hypervisor has given to others, and how often this thread had to
/// leave its CPU.
pub fn disturbances() -> (u64, i64) {
    // SAFETY: a zeroed one is valid, and the call fills no more than that.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_THREAD, &raw mut usage);
        usage
    };
    (stolen(), usage.ru_nivcsw)
}

/// A slice that was left alone, or the last of those tried. This is the rule by which slices are dropped, the same for what
/// is measured and for what it is measured against: a slice during which `disturbances` changed is taken again, at most
/// four times. How often that was so is added to `slices`.
///
/// # Errors
/// The slice's.
pub fn undisturbed<T, D: PartialEq>(
    slices: &mut Slices,
    mut slice: impl FnMut() -> Result<T>,
    mut disturbances: impl FnMut() -> D,
) -> Result<T> {
    let mut taken = 0;
    loop {
        let before = disturbances();
        let value = slice()?;
        taken += 1;
        let is_disturbed = disturbances() != before;
        if !is_disturbed || taken > AGAIN {
            slices.slices_disturbed += u64::from(is_disturbed);
            return Ok(value);
        }
        slices.slices_dropped += 1;
    }
}

/// The machine in words: its CPUs, how many, and the kernel.
pub fn describe() -> String {
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ").map(|(_, name)| name));
    let count = std::thread::available_parallelism().map_or(1, usize::from);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let virtual_ = if cpus.lines().any(|line| line.starts_with("flags") && line.contains(" hypervisor")) {
        "virtual "
    } else {
        ""
    };
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {virtual_}CPU{plural} ({}), Linux {}", model.unwrap_or("unknown model"), kernel.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes slices that cost as many stolen ticks as are told; returns which one counted, and what was counted of them.
    fn counted(ticks: &[u64]) -> (usize, u64, u64) {
        let slices = std::cell::Cell::new(0);
        let slice = || {
            slices.set(slices.get() + 1);
            Ok(slices.get())
        };
        let stolen = || ticks[..slices.get()].iter().sum::<u64>();
        let mut counts = Slices::default();
        let counted = undisturbed(&mut counts, slice, stolen).unwrap();
        (counted, counts.slices_dropped, counts.slices_disturbed)
    }

    #[test]
    fn a_disturbed_slice_is_taken_again_at_most_four_times() {
        assert_eq!(counted(&[0]), (1, 0, 0));
        assert_eq!(counted(&[3, 0]), (2, 1, 0));
        assert_eq!(counted(&[1, 1, 1, 1, 0]), (5, 4, 0));
        assert_eq!(counted(&[1, 1, 1, 1, 1]), (5, 4, 1));
    }

    #[test]
    fn a_slice_that_fails_is_not_tried_again() {
        let mut tries = 0;
        let failed: Result<()> = undisturbed(
            &mut Slices::default(),
            || {
                tries += 1;
                anyhow::bail!("no")
            },
            || 0u64,
        );
        assert!(failed.is_err());
        assert_eq!(tries, 1);
    }
}
