//! What this host can take, learnt from the traffic that it has: packets a second, by how much time its busiest CPU spends
//! on them.
//!
//! With driver, interrupts and program in it, that is what no run of the program alone tells. It takes for granted that
//! twice the packets take twice the time and come to the same CPUs, so it is the better the busier the host was.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// Below this share of the busiest CPU, in per cent, its ticks tell nothing.
const LEAST_SHARE: f64 = 5.0;

/// What was measured is worth nothing where the hypervisor took more of the time, in per cent.
const MOST_STEAL: f64 = 10.0;

/// Greatest size of the record.
const BYTES: u64 = 4096;

/// Version of the record's form on disk: it, the CRC-32C of the JSON in hex, and the JSON.
const FORMAT: &str = "1";

/// Counts at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    /// When.
    pub at: Duration,
    /// Packets that have come in.
    pub packets: u64,
    /// Of each CPU, the ticks that it has spent on each kind of thing: see [`cpu_times`](super::cpu_times).
    pub cpus: Vec<[u64; 8]>,
}

/// What a host was found to take.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Capacity {
    /// Packets a second with which its busiest CPU would do nothing else.
    pub packets_per_second: u64,
    /// When it was measured, by the host's clock, milliseconds since 1970.
    pub at_ms: u64,
    /// For how long.
    pub seconds: f64,
    /// Packets a second that came in meanwhile.
    pub seen_per_second: u64,
    /// Share of its time that the busiest CPU spent in soft interrupts, per cent.
    pub softirq_percent: f64,
    /// Share of all CPUs' time that the hypervisor gave to others, per cent.
    pub steal_percent: f64,
    /// The interfaces whose packets were counted.
    pub interfaces: Vec<String>,
}

/// Why nothing is learnt.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Unlearnt {
    /// There was too little to do.
    #[error(
        "{packets} packets a second kept the busiest CPU busy for {share:.1} % of its time, of which nothing can be learnt: \
         measure at a busier hour or beside a generator ({LEAST_SHARE} % at least), or write `capacity` in [shedding]"
    )]
    Idle {
        /// Packets a second.
        packets: u64,
        /// The share, per cent.
        share: f64,
    },
    /// The host is shared.
    #[error(
        "the hypervisor gave {0:.1} % of the time to others, {MOST_STEAL} % at most would do: measure at a quieter hour"
    )]
    Stolen(f64),
}

/// What follows from two readings.
///
/// # Errors
/// [`Unlearnt`].
pub fn learn(before: &Reading, after: &Reading, interfaces: Vec<String>) -> Result<Capacity, Unlearnt> {
    let seconds = after.at.saturating_sub(before.at).as_secs_f64();
    let spent: Vec<[u64; 8]> = before
        .cpus
        .iter()
        .zip(&after.cpus)
        .map(|(before, after)| std::array::from_fn(|kind| after[kind].saturating_sub(before[kind])))
        .collect();
    let percent = |part: u64, of: u64| if of == 0 { 0.0 } else { part as f64 * 100.0 / of as f64 };
    let whole = |times: &[u64; 8]| times.iter().sum::<u64>();
    let busiest = spent.iter().map(|times| percent(times[6], whole(times))).fold(0.0, f64::max);
    let steal = percent(spent.iter().map(|times| times[7]).sum(), spent.iter().map(whole).sum());
    let packets = after.packets.saturating_sub(before.packets) as f64;
    let rate = if seconds > 0.0 { packets / seconds } else { 0.0 };
    if steal > MOST_STEAL {
        return Err(Unlearnt::Stolen(steal));
    }
    if busiest < LEAST_SHARE || rate < 1.0 {
        return Err(Unlearnt::Idle { packets: rate as u64, share: busiest });
    }
    Ok(Capacity {
        packets_per_second: (rate * 100.0 / busiest) as u64,
        at_ms: UNIX_EPOCH.elapsed().map_or(0, |time| time.as_millis() as u64),
        seconds,
        seen_per_second: rate as u64,
        softirq_percent: busiest,
        steal_percent: steal,
        interfaces,
    })
}

impl Capacity {
    /// When it was measured, in words.
    pub fn at(&self) -> String {
        let at: SystemTime = UNIX_EPOCH + Duration::from_millis(self.at_ms);
        humantime::format_rfc3339_seconds(at).to_string()
    }

    fn seal(&self) -> io::Result<String> {
        let json = serde_json::to_string(self)?;
        Ok(format!("{FORMAT} {:08x} {json}\n", crc32c::crc32c(json.as_bytes())))
    }

    fn open(text: &str) -> Option<Self> {
        let (sum, json) = text.strip_suffix('\n')?.strip_prefix(FORMAT)?.strip_prefix(' ')?.split_once(' ')?;
        let is_whole = sum == format!("{:08x}", crc32c::crc32c(json.as_bytes()));
        serde_json::from_str(json).ok().filter(|_| is_whole)
    }

    /// Keeps it in a data directory: the old record or the new one is there after a crash.
    ///
    /// # Errors
    /// Where the disk fails.
    pub fn keep(&self, data: &Path) -> io::Result<()> {
        fs::create_dir_all(data)?;
        let next = path(data).with_extension("next");
        let mut file = File::create(&next)?;
        file.write_all(self.seal()?.as_bytes())?;
        file.sync_all()?;
        fs::rename(&next, path(data))
    }

    /// What is kept in a data directory; none where nothing is, or nothing that can be used, which is told.
    pub fn read(data: &Path) -> Option<Self> {
        let path = path(data);
        let file = File::open(&path).ok()?;
        let mut text = String::new();
        let known = file.take(BYTES).read_to_string(&mut text).ok().and_then(|_| Self::open(&text));
        if known.is_none() {
            tracing::warn!(file = %path.display(), "damaged, and not used: measure again by `redirector capacity`");
        }
        known
    }
}

/// Where a host's capacity is kept.
pub fn path(data: &Path) -> PathBuf {
    data.join("capacity")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(seconds: u64, packets: u64, cpus: &[[u64; 8]]) -> Reading {
        Reading { at: Duration::from_secs(seconds), packets, cpus: cpus.to_vec() }
    }

    #[test]
    fn the_busiest_cpu_says_how_much_more_there_could_be() {
        let before = reading(10, 500, &[[0, 0, 0, 100, 0, 0, 50, 0], [9; 8]]);
        let half = [0, 0, 0, 600, 0, 0, 550, 0];
        let after = reading(20, 1_000_500, &[half, [9, 9, 9, 1009, 9, 9, 9, 9]]);
        let learnt = learn(&before, &after, vec!["eth0".to_owned()]).unwrap();
        assert_eq!((learnt.packets_per_second, learnt.seen_per_second), (200_000, 100_000));
        assert_eq!((learnt.softirq_percent, learnt.steal_percent, learnt.seconds), (50.0, 0.0, 10.0));
        // The same the other way round, and CPUs that came or went.
        assert!(matches!(learn(&after, &before, Vec::new()), Err(Unlearnt::Idle { packets: 0, .. })));
        assert!(matches!(
            learn(&before, &reading(20, 9_000, &[]), Vec::new()),
            Err(Unlearnt::Idle { packets: 850, .. })
        ));
    }

    #[test]
    fn of_too_little_and_of_stolen_time_nothing_is_learnt() {
        let before = reading(0, 0, &[[0; 8]]);
        let idle = learn(&before, &reading(10, 5_000, &[[0, 0, 0, 990, 0, 0, 10, 0]]), Vec::new()).unwrap_err();
        assert!(idle.to_string().contains("500 packets a second kept the busiest CPU busy for 1.0 %"), "{idle}");
        assert!(idle.to_string().contains("`capacity` in [shedding]"), "{idle}");
        let stolen = learn(&before, &reading(10, 5_000, &[[0, 0, 0, 400, 0, 0, 400, 200]]), Vec::new());
        assert_eq!(stolen, Err(Unlearnt::Stolen(20.0)));
    }

    #[test]
    fn what_is_kept_is_read_and_damage_is_found() {
        let data = std::env::temp_dir().join(format!("redirector-capacity-{}", std::process::id()));
        assert_eq!(Capacity::read(&data), None);
        let capacity = Capacity {
            packets_per_second: 812_000,
            at_ms: 1_790_000_000_000,
            seconds: 10.0,
            seen_per_second: 81_200,
            softirq_percent: 10.0,
            steal_percent: 0.5,
            interfaces: vec!["eth0".to_owned()],
        };
        capacity.keep(&data).unwrap();
        assert_eq!(Capacity::read(&data), Some(capacity));
        let whole = fs::read(path(&data)).unwrap();
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 4;
            fs::write(path(&data), &damaged).unwrap();
            assert_eq!(Capacity::read(&data), None, "byte {at} was flipped");
        }
        fs::write(path(&data), vec![b'9'; 1 << 20]).unwrap();
        assert_eq!(Capacity::read(&data), None);
        fs::remove_dir_all(&data).unwrap();
    }
}
