//! What a process has used: CPU time, of all of it and of each thread, and memory.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result};

/// What a process had used at one moment.
pub(crate) struct Usage {
    at: Instant,
    /// Ticks by thread, with the thread's name.
    threads: BTreeMap<i32, (String, u64)>,
    ticks: u64,
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
        let directory = format!("/proc/{pid}");
        let (_, ticks) = stat(Path::new(&directory).join("stat").as_path())?;
        let mut threads = BTreeMap::new();
        for entry in fs::read_dir(format!("{directory}/task")).with_context(|| format!("process {pid} is gone"))? {
            let path = entry?.path();
            // One that has ended meanwhile is none.
            let (Ok(used), Some(id)) = (stat(&path.join("stat")), path.file_name().and_then(|name| name.to_str()))
            else {
                continue;
            };
            threads.insert(id.parse()?, used);
        }
        Ok(Self { at: Instant::now(), threads, ticks })
    }

    /// What was used since then.
    pub(crate) fn since(&self, before: &Self) -> Share {
        // SAFETY: takes an integer, and fails never for this one.
        let hertz = unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as f64;
        let took = self.at.duration_since(before.at).as_secs_f64();
        let share = |ticks: u64| 100.0 * ticks as f64 / hertz / took;
        let mut by_name = BTreeMap::<&str, u64>::new();
        for (id, (name, ticks)) in &self.threads {
            let earlier = before.threads.get(id).map_or(0, |(_, ticks)| *ticks);
            *by_name.entry(name).or_default() += ticks.saturating_sub(earlier);
        }
        let used = by_name.into_iter().filter(|(_, ticks)| *ticks > 0);
        let mut threads: Vec<_> = used.map(|(name, ticks)| (name.to_owned(), share(ticks))).collect();
        threads.sort_by(|one, other| other.1.total_cmp(&one.1));
        Share { all: share(self.ticks.saturating_sub(before.ticks)), threads }
    }
}

/// A name, and ticks in user and kernel mode.
fn stat(path: &Path) -> Result<(String, u64)> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let odd = || format!("{} is odd", path.display());
    let (name, rest) = text.split_once('(').and_then(|(_, rest)| rest.rsplit_once(')')).with_context(odd)?;
    // Behind the name come state and so on; the 14th and 15th of all are the times.
    let times: Vec<u64> = rest.split_whitespace().skip(11).take(2).filter_map(|word| word.parse().ok()).collect();
    Ok((name.to_owned(), times.iter().sum()))
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
