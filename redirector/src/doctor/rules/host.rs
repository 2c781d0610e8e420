//! What is good or bad of the host as a whole.

use std::time::Duration;

use crate::doctor::{Finding, Host, Wakeups};

/// The oldest kernel that is promised to work.
const KERNEL_MIN: (u32, u32) = (6, 1);

/// What came with which kernel, of all that is used.
const SINCE: [((u32, u32), &str); 6] = [
    ((5, 9), "XDP programs held by links, which survive the agent"),
    ((5, 12), "atomic operations in BPF"),
    ((5, 15), "timers in BPF, which notice dead peers"),
    ((5, 16), "neighbour entries that the kernel keeps fresh"),
    ((5, 17), "loops in BPF"),
    ((5, 18), "packets larger than a page"),
];

/// From this one on drivers tell what their XDP can do.
const KERNEL_TELLS: (u32, u32) = (6, 3);

/// The liveness profiles, the fastest first: name, interval of beats, beats missed until suspicion.
const PROFILES: [(&str, Duration, u32); 3] = [
    ("extreme", Duration::from_millis(3), 3),
    ("fast", Duration::from_millis(10), 3),
    ("standard", Duration::from_millis(100), 3),
];

/// Judges the host.
pub(in crate::doctor) fn host(host: &Host) -> Vec<Finding> {
    let mut findings = Vec::new();
    if !host.root {
        findings.push(
            Finding::error(
                "privileges",
                "not root: XDP programs cannot be loaded, and not everything can be looked at",
            )
            .mend("sudo redirector doctor"),
        );
    }
    findings.push(kernel(&host.kernel));
    findings.extend(jit(host.jit));
    findings.push(bpffs(&host.bpffs));
    findings.push(memlock(host.memlock, host.root));
    findings.push(realtime(host.realtime_us, host.wakeups.as_ref()));
    findings.extend(host.wakeups.as_ref().map(wakeups));
    findings.push(Finding::note(
        "own traffic",
        "packets that this host itself sends to a VIP are not seen by XDP, and so not redirected",
    ));
    findings
}

fn kernel(release: &str) -> Finding {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) else {
        return Finding::note("kernel", format!("its version is not understood: {release:?}"));
    };
    let version = (major, minor);
    if version < KERNEL_MIN {
        let missing: Vec<_> = SINCE.iter().filter(|(since, _)| version < *since).map(|(_, what)| *what).collect();
        let lacks = if missing.is_empty() { String::new() } else { format!("; it lacks {}", missing.join(", ")) };
        return Finding::error("kernel", format!("{release} is too old{lacks}"))
            .mend(format!("boot Linux {}.{} or newer", KERNEL_MIN.0, KERNEL_MIN.1));
    }
    if version < KERNEL_TELLS {
        return Finding::ok("kernel", format!("{release}: new enough, but drivers do not tell what their XDP can do"));
    }
    Finding::ok("kernel", release)
}

fn jit(jit: Option<i64>) -> Option<Finding> {
    Some(match jit? {
        0 => Finding::warning("BPF JIT", "off: programs are interpreted, several times slower")
            .mend("sysctl -w net.core.bpf_jit_enable=1"),
        _ => Finding::ok("BPF JIT", "on"),
    })
}

fn bpffs(mounts: &[String]) -> Finding {
    match mounts {
        [] => Finding::error(
            "BPF file system",
            "not mounted: maps and links cannot be pinned, and would die with the agent",
        )
        .mend("mount -t bpf bpf /sys/fs/bpf"),
        mounts => Finding::ok("BPF file system", format!("mounted at {}", mounts.join(", "))),
    }
}

fn memlock(limit: Option<u64>, root: bool) -> Finding {
    match limit {
        Some(bytes) if !root => {
            let says = format!("only {} KiB can be locked: the beats' sender may wait for its own pages", bytes >> 10);
            Finding::warning("locked memory", says).mend("ulimit -l unlimited, or LimitMEMLOCK=infinity in the unit")
        }
        _ => Finding::ok("locked memory", "as much as is needed"),
    }
}

fn realtime(runtime_us: Option<i64>, wakeups: Option<&Wakeups>) -> Finding {
    let refused =
        "real-time priority is refused: beats are sent late on a busy host, and this node is suspected for it";
    match (runtime_us, wakeups) {
        (Some(0), _) => Finding::warning("real time", refused).mend("sysctl -w kernel.sched_rt_runtime_us=950000"),
        (_, Some(Wakeups { realtime: false, .. })) => Finding::warning("real time", refused)
            .mend("run as root, or with LimitRTPRIO=50 and AmbientCapabilities=CAP_SYS_NICE in the unit"),
        (_, Some(_)) => Finding::ok("real time", "allowed"),
        (_, None) => Finding::note("real time", "could not be tried"),
    }
}

fn wakeups(wakeups: &Wakeups) -> Finding {
    let Wakeups { p50_us, p99_us, max_us, steal_percent, realtime: _ } = wakeups;
    let late = format!("late by {p50_us} µs in the middle, {p99_us} µs at p99, {max_us} µs at most");
    let figures = format!("{late}; {steal_percent:.1} % stolen");
    match PROFILES.iter().find(|(_, interval, multiplier)| wakeups.fits(*interval, *multiplier)) {
        Some(("standard", ..)) => {
            Finding::warning("wake-ups", format!("{figures}: fit for the liveness profile `standard` alone"))
                .mend("give this host CPUs of its own, and measure again while it is idle")
        }
        Some((name, ..)) => Finding::ok("wake-ups", format!("{figures}: fit for the liveness profile `{name}`")),
        None => Finding::warning(
            "wake-ups",
            format!("{figures}: at any liveness profile this node may be suspected without cause"),
        )
        .mend("allow real-time priority, and give this host CPUs of its own"),
    }
}
