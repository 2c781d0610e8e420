//! Processes that run on a lab's hosts: started in the background, recorded on disk, stopped without touching any other.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use std::{fs, thread};

use anyhow::{Context, Result, bail};

use super::host::Host;

/// How long a process may take over SIGTERM before SIGKILL.
const GRACE: Duration = Duration::from_secs(2);
const OWNER: &str = "owner";
const POLL: Duration = Duration::from_millis(5);
const LOG_TAIL_BYTES: usize = 4096;

/// A process that a lab started. The start time makes sure that a reused pid is not taken for it.
#[derive(Clone, Debug)]
pub struct Process {
    /// `HOST-WHAT`, as in `n1-agent`.
    pub label: String,
    /// Process id.
    pub pid: i32,
    started: u64,
    log: PathBuf,
}

impl Process {
    /// Starts a command in the background, out of reach of the terminal's Ctrl-C, its output in a log file.
    pub(super) fn start(lab: &Path, host: &Host, what: &str, mut command: Command) -> Result<Self> {
        let label = format!("{}-{what}", host.name());
        let log_path = lab.join(format!("{label}.log"));
        let log = fs::File::options().create(true).append(true).open(&log_path);
        let log = log.with_context(|| format!("cannot write {}", log_path.display()))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let child = command.spawn().with_context(|| format!("cannot start {label}: {command:?}"))?;
        let pid = child.id() as i32;
        let started = started(pid).unwrap_or_default();
        let process = Self { label, pid, started, log: log_path };
        fs::write(record(lab, &process.label), format!("{pid} {started}"))
            .with_context(|| format!("cannot record the process {}", process.label))?;
        Ok(process)
    }

    /// The process that was recorded under this label, whether it still runs or not.
    pub(super) fn recorded(lab: &Path, label: &str) -> Result<Self> {
        let path = record(lab, label);
        let text = fs::read_to_string(&path).with_context(|| format!("no process {label} was started in this lab"))?;
        let (pid, started) = text.split_once(' ').with_context(|| format!("damaged record {}", path.display()))?;
        let log = lab.join(format!("{label}.log"));
        Ok(Self { label: label.into(), pid: pid.parse()?, started: started.parse()?, log })
    }

    /// All that were recorded.
    pub(super) fn all(lab: &Path) -> Result<Vec<Self>> {
        let Ok(entries) = fs::read_dir(lab.join("processes")) else { return Ok(Vec::new()) };
        let mut labels = Vec::new();
        for entry in entries {
            labels.push(entry?.file_name().to_string_lossy().into_owned());
        }
        labels.sort();
        labels.iter().map(|label| Self::recorded(lab, label)).collect()
    }

    /// Whether it runs; one that only waits to be collected by its parent does not.
    pub fn alive(&self) -> bool {
        started(self.pid).is_some_and(|started| started == self.started)
    }

    /// Ends it the hard way, as a crash would, and waits until it is gone.
    pub fn kill(&self) -> Result<()> {
        self.signal(libc::SIGKILL);
        self.gone_by(Instant::now() + GRACE)
    }

    /// Asks it to end, waits, and insists.
    pub fn stop(&self) -> Result<()> {
        self.signal(libc::SIGTERM);
        self.gone_by(Instant::now() + GRACE).or_else(|_| self.kill())
    }

    /// Sends any other signal, such as SIGSTOP.
    pub fn signal(&self, signal: i32) {
        if self.alive() {
            // SAFETY: integers only; the start time has just shown that the pid is still this process.
            unsafe { libc::kill(self.pid, signal) };
        }
    }

    /// The end of what it printed.
    pub fn log_tail(&self) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&text[text.len().saturating_sub(LOG_TAIL_BYTES)..]).trim().to_owned()
    }

    /// Strikes it off the lab's records.
    pub(super) fn forget(&self, lab: &Path) -> Result<()> {
        let path = record(lab, &self.label);
        fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))
    }

    fn gone_by(&self, deadline: Instant) -> Result<()> {
        loop {
            // SAFETY: collects a child of ours, if it is one; no status is asked for.
            unsafe { libc::waitpid(self.pid, std::ptr::null_mut(), libc::WNOHANG) };
            if !self.alive() {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("{} (pid {}) does not end", self.label, self.pid);
            }
            thread::sleep(POLL);
        }
    }
}

/// Ends whatever else runs within a namespace, such as a shell left open by `lab exec`; this process excepted.
pub(super) fn sweep(namespace: &str) -> Result<()> {
    within(namespace)?.iter().try_for_each(Process::stop)
}

/// Kills whatever runs within a namespace, this process excepted, and waits until it is gone.
pub(super) fn kill_all(namespace: &str) -> Result<()> {
    let all = within(namespace)?;
    all.iter().for_each(|process| process.signal(libc::SIGKILL));
    all.iter().try_for_each(Process::kill)
}

/// All processes within a namespace but this one.
fn within(namespace: &str) -> Result<Vec<Process>> {
    let mut all = Vec::new();
    let Ok(of_lab) = inode(Path::new("/run/netns").join(namespace)) else { return Ok(all) };
    let own = std::process::id() as i32;
    for entry in fs::read_dir("/proc").context("cannot read /proc")? {
        let path = entry?.path();
        let Some(pid) = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok()) else {
            continue;
        };
        if pid != own && inode(path.join("ns/net")).is_ok_and(|inode| inode == of_lab) {
            let label = format!("a process in {namespace}");
            let started = started(pid).unwrap_or_default();
            all.push(Process { label, pid, started, log: PathBuf::new() });
        }
    }
    Ok(all)
}

/// Notes that a lab lives as long as this process.
pub(super) fn own(lab: &Path) -> Result<()> {
    let pid = std::process::id() as i32;
    let text = format!("{pid} {}", started(pid).unwrap_or_default());
    fs::write(lab.join(OWNER), text).context("cannot note the lab's owner")
}

/// Notes that a lab outlives this process.
pub(super) fn disown(lab: &Path) -> Result<()> {
    fs::remove_file(lab.join(OWNER)).context("cannot remove the note of the lab's owner")
}

/// Whether a lab's owner has ended without taking it down.
pub(super) fn is_abandoned(lab: &Path) -> bool {
    fs::read_to_string(lab.join(OWNER)).is_ok_and(|text| {
        let owner = text.split_once(' ').and_then(|(pid, ticks)| Some((pid.parse().ok()?, ticks.parse().ok()?)));
        owner.is_some_and(|(pid, ticks): (i32, u64)| started(pid) != Some(ticks))
    })
}

fn record(lab: &Path, label: &str) -> PathBuf {
    lab.join("processes").join(label)
}

/// Tells a namespace from another.
pub(super) fn inode(path: PathBuf) -> io::Result<u64> {
    fs::metadata(path).map(|metadata| std::os::unix::fs::MetadataExt::ino(&metadata))
}

/// When a process was started, in ticks since boot; none if it does not run.
fn started(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field, the program's name, may hold spaces and parentheses; the third, the state, follows its last one.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    let ended = matches!(fields.next()?, "Z" | "X") && threads(pid) < 2;
    if ended { None } else { fields.nth(18)?.parse().ok() }
}

/// How many threads a process has. The first to end stays listed until all have, and files and locks stay theirs as long.
fn threads(pid: i32) -> usize {
    fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count)
}
