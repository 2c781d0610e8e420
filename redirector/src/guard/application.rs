//! The application that is guarded: its process, and whatever it leaves behind.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

/// An application that leaves its first process behind within this time has probably gone to the background.
const AT_ONCE: Duration = Duration::from_secs(2);

/// How long one that is told to end may take.
const ENDING: Duration = Duration::from_secs(10);

/// An application. Who guards it is to be the parent of all processes that have lost theirs (`PR_SET_CHILD_SUBREAPER`).
#[derive(Debug, Default)]
pub struct Application {
    child: Option<(Child, Instant)>,
    /// Processes that were left behind and killed, and are to be waited for.
    left: Vec<i32>,
}

impl Application {
    /// Starts it in a process group of its own, as systemd would a service with a watchdog. It dies with the thread that
    /// starts it, since another guard would start another one beside it.
    ///
    /// # Errors
    /// Where the program cannot be run.
    pub fn start(&mut self, command: &[OsString], socket: &Path, lines: &Path, timeout: Duration) -> io::Result<()> {
        let mut started = Command::new(&command[0]);
        started.args(&command[1..]).process_group(0);
        started.env("NOTIFY_SOCKET", socket).env("WATCHDOG_USEC", timeout.as_micros().to_string());
        started.env("GUARD_LINES", lines);
        // SAFETY: one call that is safe between fork and exec, with integers.
        unsafe {
            started.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            });
        }
        self.child = Some((started.spawn()?, Instant::now()));
        Ok(())
    }

    /// Why it runs no more, if it has exited since this was last asked. What it has left behind is killed, wherever it went.
    pub fn exited(&mut self) -> Option<String> {
        // SAFETY: takes no status; the answer is 0 as long as that one has not gone.
        self.left.retain(|process| unsafe { libc::waitpid(*process, std::ptr::null_mut(), libc::WNOHANG) } == 0);
        if self.child.is_none() && !self.left.is_empty() {
            // Those that they had started themselves.
            self.kill_orphans();
        }
        let (child, since) = self.child.as_mut()?;
        let (group, lived) = (child.id() as i32, since.elapsed());
        let status = match child.try_wait() {
            Ok(None) => return None,
            Ok(Some(status)) => status,
            Err(error) => return Some(format!("whether the application runs is not known: {error}")),
        };
        self.child = None;
        // SAFETY: a signal to the group that was made for it; the answer says whether anybody is left there.
        unsafe { libc::kill(-group, libc::SIGKILL) };
        let is_left = self.kill_orphans();
        let how = words(status);
        Some(match (is_left, lived < AT_ONCE) {
            (true, _) => format!(
                "the application {how} after {lived:.1?} and left processes behind, which were killed: it must stay in the \
                 foreground, so start it without going to the background (no --daemon, `Type=notify` style)"
            ),
            (false, true) => format!("the application {how} after {lived:.1?}: what it says itself tells why"),
            (false, false) => format!("the application {how} after {lived:.1?}"),
        })
    }

    /// Kills whoever has lost its parent, while the application does not run; says whether there was anybody new.
    fn kill_orphans(&mut self) -> bool {
        let new: Vec<i32> = children().into_iter().filter(|process| !self.left.contains(process)).collect();
        for process in &new {
            // SAFETY: a signal to a child of this process, which has not been waited for.
            unsafe { libc::kill(*process, libc::SIGKILL) };
        }
        self.left.extend(&new);
        !new.is_empty()
    }

    /// Sends a signal to it and to all of its group.
    pub fn kill(&mut self, signal: i32) {
        if let Some((child, _)) = &self.child {
            // SAFETY: a signal to the group that was made for it and whose first process has not been waited for.
            unsafe { libc::kill(-(child.id() as i32), signal) };
        }
    }

    /// Tells it to end, and waits for that, but not for ever.
    pub async fn end(&mut self) {
        self.kill(libc::SIGTERM);
        let until = Instant::now() + ENDING;
        while self.child.is_some() && self.exited().is_none() && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.kill(libc::SIGKILL);
    }
}

/// This process's children.
fn children() -> Vec<i32> {
    let own = std::process::id().to_string();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let is_child = |process: &i32| {
        let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
        // The name before it is in brackets, and may hold anything.
        stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)) == Some(own.as_str())
    };
    ids.filter(is_child).collect()
}

fn words(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exited with status {code}"),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => "ended".to_owned(),
    }
}
