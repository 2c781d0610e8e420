//! The load: the greatest of four shares, each in per cent.

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Rates and shares are taken over this time: finer, and the ticks in which the kernel counts CPU time show.
const WINDOW: Duration = Duration::from_millis(500);

/// Samples that are remembered at most.
const SAMPLES: usize = 64;

/// What is read at one moment; counts go up for ever.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// When.
    pub at: Duration,
    /// Packets that came in.
    pub packets: u64,
    /// Of each CPU, time in soft interrupts and in all, in ticks.
    pub softirq: Vec<(u64, u64)>,
    /// Proven flows, and places for flows, in the part of the tables that was looked at.
    pub flows: (u64, u64),
    /// What waits for replication, and how much may.
    pub queue: (u64, u64),
}

/// The load, part by part, in per cent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Load {
    /// Time that the busiest CPU spends in soft interrupts.
    pub softirq: u8,
    /// Packets a second against the capacity.
    pub packets: u8,
    /// Proven flows against the flow tables' room.
    pub flows: u8,
    /// What waits for replication against what may.
    pub queue: u8,
}

impl Load {
    /// The greatest of all, and its name.
    pub fn greatest(&self) -> (u8, &'static str) {
        let Self { softirq, packets, flows, queue } = *self;
        let parts = [(softirq, "soft interrupts"), (packets, "packets"), (flows, "flows"), (queue, "queue")];
        parts.into_iter().max_by_key(|(share, _)| *share).unwrap_or_default()
    }
}

/// Works the load out from samples.
#[derive(Clone, Debug, Default)]
pub struct Meter {
    samples: VecDeque<Sample>,
}

fn share(part: u64, of: u64) -> u8 {
    part.saturating_mul(100).checked_div(of).map_or(0, |share| share.min(100) as u8)
}

impl Meter {
    /// Takes a sample; gives the load. `capacity` is packets a second, 0 for unknown; soft interrupts count if `softirq` says so.
    pub fn observe(&mut self, sample: Sample, capacity: u64, softirq: bool) -> Load {
        while self.samples.len() >= SAMPLES
            || self.samples.get(1).is_some_and(|second| sample.at.saturating_sub(second.at) >= WINDOW)
        {
            self.samples.pop_front();
        }
        let sum = |part: fn(&Sample) -> (u64, u64)| {
            let all = self.samples.iter().chain([&sample]).map(part);
            all.fold((0, 0), |(a, b), (c, d)| (a + c, b + d))
        };
        let mut load = Load { queue: share(sample.queue.0, sample.queue.1), ..Load::default() };
        let (used, places) = sum(|sample| sample.flows);
        load.flows = share(used, places);
        if let Some(first) = self.samples.front() {
            let nanos = sample.at.saturating_sub(first.at).as_nanos() as u64;
            let packets = sample.packets.saturating_sub(first.packets);
            let possible = (u128::from(capacity) * u128::from(nanos) / 1_000_000_000) as u64;
            load.packets = share(packets, possible);
            let both = first.softirq.iter().zip(&sample.softirq);
            let shares = both.map(|(a, b)| share(b.0.saturating_sub(a.0), b.1.saturating_sub(a.1)));
            load.softirq = shares.filter(|_| softirq).max().unwrap_or(0);
        }
        self.samples.push_back(sample);
        load
    }
}

/// Of each CPU, the ticks that it has spent on each kind of thing, from `/proc/stat` (proc(5)): user, nice, system, idle,
/// iowait, irq, softirq, steal. What is no such line is passed over.
pub fn cpu_times(stat: &str) -> Vec<[u64; 8]> {
    let of_cpu = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        words.next()?.strip_prefix("cpu")?.parse::<u32>().ok()?;
        let mut times = [0; 8];
        times.iter_mut().zip(words).for_each(|(time, word)| *time = word.parse().unwrap_or(0));
        Some(times)
    };
    stat.lines().filter_map(of_cpu).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(ms: u64, packets: u64, softirq: &[(u64, u64)]) -> Sample {
        let at = Duration::from_millis(ms);
        Sample { at, packets, softirq: softirq.to_vec(), flows: (0, 800), queue: (0, 100) }
    }

    #[test]
    fn rates_are_of_the_last_half_second() {
        let mut meter = Meter::default();
        assert_eq!(meter.observe(sample(0, 0, &[]), 1000, true), Load::default());
        // 500 packets a second for ten seconds, then 2,000 for one.
        let mut packets = 0;
        for step in 1..=100 {
            packets += 50;
            let load = meter.observe(sample(step * 100, packets, &[]), 1000, true);
            assert_eq!(load.packets, 50, "step {step}");
        }
        let mut last = 0;
        for step in 101..=110 {
            packets += 200;
            let load = meter.observe(sample(step * 100, packets, &[]), 1000, true);
            assert!(load.packets >= last, "it rises");
            last = load.packets;
        }
        assert_eq!(last, 100, "no more than all");
        assert_eq!(meter.observe(sample(11_100, packets, &[]), 0, true).packets, 0, "no capacity is known");
    }

    #[test]
    fn the_busiest_cpu_counts_and_the_greatest_part() {
        let mut meter = Meter::default();
        meter.observe(sample(0, 0, &[(10, 100), (10, 100)]), 0, true);
        let busy = sample(100, 0, &[(11, 110), (19, 110)]);
        let mut without = meter.clone();
        let load = meter.observe(busy.clone(), 0, true);
        assert_eq!((load.softirq, load.greatest()), (90, (90, "soft interrupts")));
        assert_eq!(without.observe(busy, 0, false).softirq, 0);
        let full = Sample { flows: (700, 800), queue: (99, 100), ..sample(200, 0, &[(11, 120), (19, 120)]) };
        let load = meter.observe(full, 0, true);
        assert_eq!((load.flows, load.queue, load.greatest()), (29, 99, (99, "queue")), "flows part by part");
    }

    #[test]
    fn stat_is_read_as_the_kernel_writes_it() {
        let stat = "cpu  3 3 3 3 3 3 3 3 0 0\ncpu0 1 2 3 4 5 6 7 8 9 10\ncpu1 1 1 1 1 1 1 2 3\nintr 5 cpu2\ncpux 1\n";
        assert_eq!(cpu_times(stat), [[1, 2, 3, 4, 5, 6, 7, 8], [1, 1, 1, 1, 1, 1, 2, 3]]);
        assert_eq!(cpu_times("cpu0 18446744073709551616 -1"), [[0; 8]], "what is no number is nothing");
    }
}
