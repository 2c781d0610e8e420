//! One host of a lab: a network namespace, and ways to do something within it.
//!
//! Only the network namespace is entered, unlike `ip netns exec`, which also mounts a new /sys and so hides the pins in
//! /sys/fs/bpf.

use std::ffi::{CStr, CString, OsStr};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::{fs, panic, thread};

use anyhow::{Context, Result, bail, ensure};

/// A host of a lab.
#[derive(Clone, Debug)]
pub struct Host {
    name: String,
    namespace: String,
    path: CString,
}

impl Host {
    pub(super) fn new(name: String, namespace: String) -> Self {
        let path = format!("/run/netns/{namespace}");
        let path = CString::new(path).expect("names of labs and hosts are letters, digits and dashes");
        Self { name, namespace, path }
    }

    /// The host's name within its lab.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The namespace's name, as `ip netns` lists it.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// A command that will run on this host.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let path = self.path.clone();
        let mut command = Command::new(program);
        // SAFETY: between fork and exec the closure makes system calls and nothing else.
        unsafe { command.pre_exec(move || enter(&path)) };
        command
    }

    /// Runs a closure on this host, on a thread of its own. Threads and sockets that it makes belong to this host too.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let entered = thread::scope(|scope| {
            let thread = scope.spawn(|| enter(&self.path).map(|()| work()));
            thread.join().unwrap_or_else(|payload| panic::resume_unwind(payload))
        });
        entered.with_context(|| format!("cannot enter the network namespace {}", self.namespace))
    }

    /// Feeds lines to `ip -batch` on this host.
    pub fn ip(&self, lines: &[impl AsRef<str>]) -> Result<()> {
        ip_batch(self.command("ip"), lines).with_context(|| format!("setting up the network of {}", self.name))
    }

    /// Runs a program on this host with a text as its input; the package is named where the program is missing.
    pub(crate) fn feed(&self, program: &str, package: &str, args: &[&str], text: &str) -> Result<()> {
        let mut command = self.command(program);
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child =
            command.spawn().with_context(|| format!("cannot run `{program}`: install the package {package}"))?;
        if let Some(mut input) = child.stdin.take() {
            // An early failure closes the pipe; the program's own words, below, say more.
            let _ = input.write_all(text.as_bytes());
        }
        let output = child.wait_with_output().with_context(|| format!("waiting for `{program}`"))?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "`{program}` on {}: {}", self.name, error.trim());
        Ok(())
    }

    pub(super) fn sysctl(&self, settings: &[(&str, &str)]) -> Result<()> {
        self.run(|| {
            for (key, value) in settings {
                let path = format!("/proc/sys/net/{key}");
                fs::write(&path, value).with_context(|| format!("cannot write {value} to {path} on {}", self.name))?;
            }
            Ok(())
        })?
    }
}

fn enter(namespace: &CStr) -> io::Result<()> {
    // SAFETY: a path that ends with NUL; the descriptor is owned from here on, so that it is closed on every way out.
    let namespace = unsafe {
        let fd = libc::open(namespace.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        OwnedFd::from_raw_fd(fd)
    };
    // SAFETY: takes two integers, and changes this thread's namespace alone.
    match unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Runs `ip`, given as a command without arguments, over many lines at once.
pub(super) fn ip_batch(mut ip: Command, lines: &[impl AsRef<str>]) -> Result<()> {
    ip.args(["-batch", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = ip.spawn().context("cannot run `ip`: install the package iproute2")?;
    let text: String = lines.iter().flat_map(|line| [line.as_ref(), "\n"]).collect();
    if let Some(mut input) = child.stdin.take() {
        // An early failure of `ip` closes the pipe; its own words, below, say more.
        let _ = input.write_all(text.as_bytes());
    }
    let output = child.wait_with_output().context("waiting for `ip`")?;
    if !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr);
        // It ends with "Command failed -:LINE".
        let line = error.trim().rsplit(':').next().and_then(|number| number.parse::<usize>().ok());
        let failed = line.and_then(|number| text.lines().nth(number.checked_sub(1)?)).unwrap_or("-batch");
        bail!("`ip {failed}`: {}", error.lines().next().unwrap_or("failed"));
    }
    Ok(())
}
