//! Facts of the host as a whole.

use std::{fs, thread};

use serde::Serialize;

use super::Wakeups;

/// Facts of the host as a whole.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Host {
    /// The kernel's release: `6.18.44-arch1`.
    pub kernel: String,
    /// Whether this process runs as root.
    pub root: bool,
    /// CPUs that this process may run on.
    pub cpus: usize,
    /// `net.core.bpf_jit_enable`; only the first network namespace shows it.
    pub jit: Option<i64>,
    /// Where BPF file systems are mounted.
    pub bpffs: Vec<String>,
    /// Bytes of memory that this process may lock; `None` is any number.
    pub memlock: Option<u64>,
    /// `kernel.sched_rt_runtime_us`: microseconds of each period (a second by default) that real-time threads may
    /// run in; -1 is all.
    pub realtime_us: Option<i64>,
    /// How late sleeping threads wake up.
    pub wakeups: Option<Wakeups>,
}

/// Gathers the facts, and sleeps for a fifth of a second to do so.
pub(super) fn gather() -> Host {
    // SAFETY: takes nothing and cannot fail.
    let user = unsafe { libc::geteuid() };
    Host {
        kernel: fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
        root: user == 0,
        cpus: thread::available_parallelism().map_or(1, usize::from),
        jit: super::net_setting("core/bpf_jit_enable"),
        bpffs: bpffs(&fs::read_to_string("/proc/self/mounts").unwrap_or_default()),
        memlock: memlock(),
        realtime_us: number("/proc/sys/kernel/sched_rt_runtime_us"),
        wakeups: measure(),
    }
}

/// On a thread of its own, since its priority is raised.
fn measure() -> Option<Wakeups> {
    thread::spawn(Wakeups::measure).join().ok().flatten()
}

/// The number in a file of one line.
pub(super) fn number(path: &str) -> Option<i64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Mount points of BPF file systems, from a table of mounts.
pub(super) fn bpffs(mounts: &str) -> Vec<String> {
    let bpf = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (point, kind) = (fields.next()?, fields.next()?);
        (kind == "bpf").then(|| point.to_owned())
    });
    bpf.collect()
}

fn memlock() -> Option<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the limit is written to and outlives the call, which cannot fail with these arguments.
    unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut limit) };
    (limit.rlim_cur != libc::RLIM_INFINITY).then_some(limit.rlim_cur)
}
