//! What a process has used: CPU time, of all of it and of each thread, and memory.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};

/// What a process had used at one moment.
pub(crate) struct Usage {
    at: Instant,
    /// Nanoseconds by thread, with the thread's name.
    threads: BTreeMap<i32, (String, u64)>,
}

/// The share of one core that a process used, in percent.
pub(crate) struct Share {
    pub(crate) all: f64,
    /// By the threads' names, the greatest first; threads that used nothing are left out.
    pub(crate) threads: Vec<(String, f64)>,
}

impl Usage {
    /// Reads it.
    pub(crate) fn of(pid: i32) -> Result<Self> {
        let mut threads = BTreeMap::new();
        for entry in fs::read_dir(format!("/proc/{pid}/task")).with_context(|| format!("process {pid} is gone"))? {
            let path = entry?.path();
            // One that has ended meanwhile is none.
            let (Ok(used), Some(id)) = (used(&path), path.file_name().and_then(|name| name.to_str())) else {
                continue;
            };
            threads.insert(id.parse()?, used);
        }
        ensure!(!threads.is_empty(), "the kernel does not say how long threads ran (CONFIG_SCHED_INFO)");
        Ok(Self { at: Instant::now(), threads })
    }

    /// What was used since then, but for threads that have ended.
    pub(crate) fn since(&self, before: &Self) -> Share {
        let took = self.at.duration_since(before.at).as_nanos() as f64;
        let share = |time: u64| 100.0 * time as f64 / took;
        let mut by_name = BTreeMap::<&str, u64>::new();
        for (id, (name, time)) in &self.threads {
            let earlier = before.threads.get(id).map_or(0, |(_, time)| *time);
            *by_name.entry(name).or_default() += time.saturating_sub(earlier);
        }
        let all = by_name.values().sum();
        let used = by_name.into_iter().filter(|(_, time)| *time > 0);
        let mut threads: Vec<_> = used.map(|(name, time)| (name.to_owned(), share(time))).collect();
        threads.sort_by(|one, other| other.1.total_cmp(&one.1));
        Share { all: share(all), threads }
    }
}

/// A thread's name, and for how many nanoseconds it has run; the scheduler's own account, which is finer than clock ticks.
fn used(thread: &Path) -> Result<(String, u64)> {
    let read = |name: &str| {
        let path = thread.join(name);
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    };
    let (name, schedule) = (read("comm")?, read("schedstat")?);
    let ran = schedule.split_whitespace().next().and_then(|word| word.parse().ok());
    Ok((name.trim_end().to_owned(), ran.with_context(|| format!("{}/schedstat is odd", thread.display()))?))
}

/// Bytes of memory that a process holds, without what it shares with the kernel's maps: (anonymous, all).
pub(crate) fn memory(pid: i32) -> Result<(u64, u64)> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let field = |name: &str| -> Result<u64> {
        let line =
            text.lines().find_map(|line| line.strip_prefix(name)).with_context(|| format!("{path}: no {name}"))?;
        Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
    };
    Ok((field("RssAnon:")?, field("VmRSS:")?))
}
