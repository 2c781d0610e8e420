//! A node's place in its cluster, given up while an application is not well. The agent is asked as often as it takes, and never
//! waited for; what was asked is kept on disk, so that a guard that is started anew puts back what its predecessor took out, and
//! nothing that somebody else did.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Result;
use tokio::task::JoinHandle;

use crate::agent::control::{self, Answer, Request};
use crate::config::Config;

/// How long the agent may take to answer.
const ANSWER: Duration = Duration::from_secs(10);

/// How long it is left alone after it was asked in vain.
const AGAIN: Duration = Duration::from_secs(2);

/// The place of one node.
pub struct Seat {
    node: u8,
    socket: PathBuf,
    /// There while this guard, or one before it, has had the node drain.
    kept: PathBuf,
    /// Why it is to drain, if it is.
    wanted: Option<String>,
    /// Whether it drains by this guard, as far as the agent has said so.
    drains: bool,
    asked: Option<(bool, JoinHandle<Result<Answer>>)>,
    not_before: Instant,
    in_vain: u32,
}

impl Seat {
    /// The place of the node of this configuration, for the guard of this name.
    pub fn of(name: &str, config: &Config) -> Self {
        let kept = config.node.data.join(format!("guard-{name}.drains"));
        let drains = kept.exists();
        Self {
            node: config.node.id,
            socket: control::path(config),
            kept,
            wanted: drains.then(|| "as it did when the guard was started".to_owned()),
            drains,
            asked: None,
            not_before: Instant::now(),
            in_vain: 0,
        }
    }

    /// Whether the node is to drain.
    pub fn is_out(&self) -> bool {
        self.wanted.is_some()
    }

    /// From now on the node is to drain for this reason, or (none) to serve.
    pub fn want(&mut self, why: Option<String>) {
        self.wanted = why;
        self.not_before = Instant::now();
    }

    /// Hears what the agent has answered, and asks for what is wanted and not done.
    pub async fn look(&mut self, name: &str) {
        if let Some((out, asked)) = self.asked.take_if(|(_, asked)| asked.is_finished()) {
            self.answered(name, out, asked.await.map_err(anyhow::Error::new).and_then(|answer| answer));
        }
        if self.asked.is_some() || self.wanted.is_some() == self.drains || Instant::now() < self.not_before {
            return;
        }
        let (out, node, socket) = (self.wanted.is_some(), self.node, self.socket.clone());
        if out && let Err(error) = fs::write(&self.kept, "") {
            tracing::error!(name, %error, file = %self.kept.display(), "a guard that is started anew will not know that this node drains");
        }
        let request = if out { Request::Drain { node } } else { Request::Undrain { node } };
        let ask = move || control::ask_within(ANSWER, &socket, &request);
        self.asked = Some((out, tokio::task::spawn_blocking(ask)));
    }

    fn answered(&mut self, name: &str, out: bool, answer: Result<Answer>) {
        match answer {
            Ok(_) => {
                (self.drains, self.in_vain) = (out, 0);
                match (out, &self.wanted) {
                    (true, Some(why)) => tracing::warn!(name, "this node drains: {why}"),
                    (true, None) => tracing::warn!(name, "this node drains, and is well again"),
                    (false, _) => tracing::warn!(name, "well again: this node drains no more"),
                }
                if !out && let Err(error) = forget(&self.kept) {
                    tracing::error!(name, %error, file = %self.kept.display(), "remove it, else the next guard puts this node back unasked");
                }
            }
            Err(error) => {
                self.not_before = Instant::now() + AGAIN;
                self.in_vain += 1;
                // Said once for each trouble, not every two seconds.
                if self.in_vain == 1 {
                    let what = if out { "drain" } else { "serve again" };
                    tracing::error!(
                        name,
                        "the agent was asked in vain to have this node {what}, and is asked again: {error:#}"
                    );
                }
            }
        }
    }
}

fn forget(file: &PathBuf) -> io::Result<()> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
