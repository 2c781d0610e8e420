//! Processors that have too much to do: programs on a node that do nothing but compute.
//!
//! All hosts of a lab share the machine's processors, so the others feel it too, less than the node's own programs do in a
//! group of their own.

use std::os::unix::process::CommandExt as _;

use anyhow::{Result, bail, ensure};

use super::{Lab, Process, Role};

/// More than that keeps nothing from running that fewer would not.
const MOST: u16 = 64;

/// Seconds of a processor after which a busy program ends, whatever becomes of its lab.
const SECONDS: u64 = 600;

const WHAT: &str = "busy";

impl Lab {
    /// Has this many programs compute on a node until [`Lab::heal`], ten minutes at most.
    pub fn busy(&self, node: &str, programs: u16) -> Result<()> {
        if !matches!(self.topology.find(node), Some(Role::Node(_))) {
            bail!("`{node}` is not a node of the lab `{}`; it has {}", self.topology.name, self.nodes().join(", "));
        }
        ensure!((1..=MOST).contains(&programs), "{programs} busy programs: write a number from 1 to {MOST}");
        self.rest(node)?;
        for number in 1..=programs {
            let mut command = self.host(node)?.command("sh");
            command.args(["-c", "while :; do :; done"]);
            // SAFETY: between fork and exec the closure makes a system call and nothing else.
            unsafe { command.pre_exec(bound) };
            self.spawn(node, &format!("{WHAT}-{number}"), command)?;
        }
        Ok(())
    }

    /// Ends the busy programs of a node.
    pub(super) fn rest(&self, node: &str) -> Result<()> {
        let prefix = format!("{node}-{WHAT}-");
        let busy = self.processes()?.into_iter().filter(|process| process.label.starts_with(&prefix));
        busy.into_iter().try_for_each(|process| process.kill().and_then(|()| process.forget(&self.directory)))
    }

    /// The busy programs that run on a node.
    pub fn busy_on(&self, node: &str) -> Result<Vec<Process>> {
        let prefix = format!("{node}-{WHAT}-");
        let all = self.processes()?.into_iter();
        Ok(all.filter(|process| process.label.starts_with(&prefix) && process.alive()).collect())
    }
}

fn bound() -> std::io::Result<()> {
    let limit = libc::rlimit { rlim_cur: SECONDS, rlim_max: SECONDS };
    // SAFETY: a pointer to a limit that lives as long as the call.
    match unsafe { libc::setrlimit(libc::RLIMIT_CPU, &raw const limit) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}
