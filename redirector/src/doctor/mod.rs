//! What of this host would hurt, and the mend for it.
//!
//! This room looks, measures and judges; it mends nothing. Only when asked to try does it attach a program, for a
//! moment.
//!
//! ```text
//! /proc, ethtool, netlink, wake-ups ─► gather ─► Facts ─► judge (pure) ─► Findings
//! ```
//!
//! What cannot be found out is `None` among the facts, and a judgement never counts it as good or as bad.

pub mod backend;
mod ethtool;
pub mod fitness;
mod host;
mod interface;
mod rules;
#[cfg(test)]
mod tests;
mod trial;
mod wakeups;

use std::{io, panic, thread};

use serde::Serialize;

use crate::netlink;

pub use host::Host;
pub use interface::{Controller, Interface, Program};
pub use wakeups::Wakeups;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Good to know.
    Note,
    /// Works, but slower or with less than promised.
    Warning,
    /// Does not work.
    Error,
}

/// One thing that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub level: Level,
    /// What it is about: an interface, a VIP, or a part of the host.
    pub subject: String,
    /// What is so, and why it matters.
    pub says: String,
    /// What to do about it: where it can be, a command.
    pub mend: Option<String>,
}

impl Finding {
    fn new(level: Level, subject: impl Into<String>, says: impl Into<String>) -> Self {
        Self { level, subject: subject.into(), says: says.into(), mend: None }
    }

    fn ok(subject: impl Into<String>, says: impl Into<String>) -> Self {
        Self::new(Level::Ok, subject, says)
    }

    fn note(subject: impl Into<String>, says: impl Into<String>) -> Self {
        Self::new(Level::Note, subject, says)
    }

    fn warning(subject: impl Into<String>, says: impl Into<String>) -> Self {
        Self::new(Level::Warning, subject, says)
    }

    fn error(subject: impl Into<String>, says: impl Into<String>) -> Self {
        Self::new(Level::Error, subject, says)
    }

    fn mend(self, mend: impl Into<String>) -> Self {
        Self { mend: Some(mend.into()), ..self }
    }
}

/// What is so on this host, without a judgement.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Facts {
    /// Of the host as a whole.
    pub host: Host,
    /// Of its interfaces.
    pub interfaces: Vec<Interface>,
}

/// What may be done to find out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Manner {
    /// Disturb nothing.
    #[default]
    Look,
    /// Attach a program that passes everything, for a moment; many drivers reset the card for it.
    Try,
}

/// Why no facts could be gathered.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel does not tell, or there is no such interface.
    #[error(transparent)]
    Netlink(#[from] netlink::Error),
    /// Not even a thread to ask on.
    #[error("cannot start an asynchronous runtime")]
    Runtime(#[source] io::Error),
}

/// Gathers the facts in the network namespace of the calling thread, which is blocked for a quarter of a second.
/// Without a name: all interfaces that are up, but for the loopback and the veths of a bridge, which are
/// containers' ends.
pub fn gather(interface: Option<&str>, manner: Manner) -> Result<Facts, Error> {
    let interfaces = block_on(async || {
        let all = netlink::interfaces().await?;
        let wanted = match interface {
            Some(name) => vec![netlink::interface(name).await?],
            None => all.iter().filter(|interface| is_of_interest(interface)).cloned().collect(),
        };
        let mut interfaces = Vec::new();
        for interface in wanted {
            interfaces.push(interface::gather(interface, &all, manner).await?);
        }
        Ok(interfaces)
    })?;
    Ok(Facts { host: host::gather(), interfaces })
}

/// Works on a thread of its own, which is in the namespace of this one, and works within another runtime too.
fn block_on<T: Send>(work: impl AsyncFnOnce() -> Result<T, netlink::Error> + Send) -> Result<T, Error> {
    let run = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().map_err(Error::Runtime)?;
        Ok(runtime.block_on(work())?)
    };
    thread::scope(|scope| scope.spawn(run).join().unwrap_or_else(|payload| panic::resume_unwind(payload)))
}

fn is_of_interest(interface: &netlink::Interface) -> bool {
    let container = interface.kind.as_deref() == Some("veth") && interface.controller.is_some();
    interface.up && interface.name != "lo" && !container
}

/// Judges the facts: the host first, then each interface.
pub fn judge(facts: &Facts) -> Vec<Finding> {
    let mut findings = rules::host(&facts.host);
    if facts.interfaces.is_empty() {
        findings.push(
            Finding::error("interfaces", "none is up, apart from the loopback")
                .mend("ip link set dev INTERFACE up, or name the interface that is meant"),
        );
    }
    for interface in &facts.interfaces {
        findings.extend(rules::interface(interface, facts.host.cpus));
    }
    findings
}

/// A setting below `/proc/sys/net`, in the network namespace of this thread.
fn net_setting(path: &str) -> Option<i64> {
    host::number(&format!("/proc/sys/net/{path}"))
}
