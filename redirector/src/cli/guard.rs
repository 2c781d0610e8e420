//! `guard`: runs an application in the foreground and watches for its signs of life. One that is silent is killed and
//! started anew; while it stays so its node drains, by way of the agent, or its backend is out, by way of the nodes' probes.

use std::ffi::OsString;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use tokio::signal::unix::{SignalKind, signal};

use super::plane::{log, runtime};
use super::target::CONFIG;
use crate::config;
use crate::guard::{Action, Application, Door, Machine, Policy, Seat, Signs};

/// How often it is looked whether the application runs.
const TICK: Duration = Duration::from_millis(50);

/// Arguments of `guard`.
#[derive(Debug, clap::Args)]
pub(super) struct Guard {
    /// What the application is called in messages; its sockets are `guard-NAME.sock`, for datagrams, and `guard-NAME.lines`, for
    /// lines of a stream, in the node's run directory, or in /run/redirector with --backend.
    #[arg(long, value_parser = name)]
    name: String,
    /// How long it may be silent.
    #[arg(long, value_name = "TIME", default_value = "3s", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// Failures in a row, of silence or exits, until the node drains or the backend is out.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    failures: u32,
    /// The application is a backend's, on a host without an agent: connections to this address are taken while it is well,
    /// and refused while it is not, for a [pool.probe] of kind `tcp` or `http` to ask at this port.
    #[arg(long, value_name = "ADDRESS:PORT")]
    backend: Option<SocketAddr>,
    /// The node's configuration.
    #[arg(long, value_name = "FILE", default_value = CONFIG, conflicts_with = "backend")]
    config: PathBuf,
    /// The application and its arguments; it stays in the foreground, and sends `WATCHDOG=1`, or any datagram, to the Unix
    /// socket that NOTIFY_SOCKET names, as for systemd, or any line to the Unix stream socket that GUARD_LINES names.
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

fn name(text: &str) -> Result<String, String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    match (1..=32).contains(&text.len()) && text.chars().all(fits) {
        true => Ok(text.to_owned()),
        false => Err("use 1 to 32 of the characters A-Z a-z 0-9 - _ .".to_owned()),
    }
}

/// Where sockets of guards are on hosts without an agent.
const RUN: &str = "/run/redirector";

/// What is out while the application is not well.
enum Dependant {
    /// This node: its agent has it drain.
    Node(Seat),
    /// A backend: probes find its door shut.
    Backend(Door),
}

impl Dependant {
    /// Answers the next probe, if there is anything to answer at; else it never returns.
    async fn answer(&self) -> io::Result<()> {
        match self {
            Self::Node(_) => std::future::pending().await,
            Self::Backend(door) => door.answer().await,
        }
    }

    /// Whether it is out when the guard starts.
    fn is_out(&self) -> bool {
        match self {
            Self::Node(seat) => seat.is_out(),
            Self::Backend(_) => true,
        }
    }

    /// Takes it out, or puts it back. What goes wrong is told, and tried again.
    async fn handle(&mut self, name: &str, action: &Action) {
        let why = if let Action::TakeOut(why) = action { Some(why) } else { None };
        match (self, why) {
            (Self::Node(seat), why) => seat.want(why.cloned()),
            (Self::Backend(door), Some(why)) => {
                tracing::warn!(name, "this backend is out: {why}");
                door.shut();
            }
            (Self::Backend(door), None) => match door.open().await {
                Ok(()) => tracing::warn!(name, "well: this backend is in"),
                Err(error) => tracing::error!(name, %error, "well, and probes cannot be told"),
            },
        }
    }

    /// Goes on with what could not be done at once.
    async fn look(&mut self, name: &str, is_out: bool) {
        match self {
            Self::Node(seat) => seat.look(name).await,
            // Where another had the address when it was to be opened.
            Self::Backend(door) => {
                if !is_out && !door.is_open() && door.open().await.is_ok() {
                    tracing::warn!(name, "this backend is in");
                }
            }
        }
    }
}

impl Guard {
    pub(super) fn run(self) -> Result<()> {
        log();
        if self.timeout < Duration::from_millis(100) {
            bail!("--timeout {:?} is less than 100ms, which no busy host keeps", self.timeout);
        }
        runtime()?.block_on(async {
            match self.backend {
                Some(at) => {
                    let door = Door::shut_at(at).await;
                    let door = door.with_context(|| format!("--backend {at}: probes cannot be answered there"))?;
                    self.watch(Path::new(RUN), Dependant::Backend(door)).await
                }
                None => {
                    let config = config::load(&self.config)?;
                    let seat = Seat::of(&self.name, &config);
                    self.watch(&config.node.run, Dependant::Node(seat)).await
                }
            }
        })
    }

    async fn watch(&self, run: &Path, mut dependant: Dependant) -> Result<()> {
        std::fs::create_dir_all(run).with_context(|| format!("cannot make {}", run.display()))?;
        let place = |kind: &str| run.join(format!("guard-{}.{kind}", self.name));
        let (socket, lines) = (place("sock"), place("lines"));
        let mut signs = Signs::listen(&socket, &lines).context("cannot listen for signs of life")?;
        // Who is left by a parent that has gone away is this process's to wait for.
        // SAFETY: integers in.
        unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1) };
        let policy = Policy {
            timeout: self.timeout,
            first_pause: Duration::from_secs(1),
            longest_pause: Duration::from_secs(30),
            failures: self.failures,
            steady: self.timeout * 3,
        };
        let began = Instant::now();
        let begin = if dependant.is_out() { Machine::with_all_out } else { Machine::new };
        let mut machine = begin(policy, began.elapsed());
        let mut application = Application::default();
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let mut tick = tokio::time::interval(TICK);
        loop {
            let mut actions = Vec::new();
            tokio::select! {
                answered = dependant.answer() => {
                    if let Err(error) = answered {
                        tracing::warn!(name = self.name, %error, "a probe could not be answered");
                        tokio::time::sleep(TICK).await;
                    }
                }
                _ = tick.tick() => {
                    // First of all: those that came while something else was done must not be missed.
                    if signs.heard() {
                        actions.extend(machine.handle_beat(began.elapsed()));
                    }
                    if let Some(why) = application.exited() {
                        tracing::warn!(name = self.name, "{why}");
                        actions.extend(machine.handle_exit(&why, began.elapsed()));
                    }
                    actions.extend(machine.handle_time(began.elapsed()));
                    dependant.look(&self.name, machine.is_out()).await;
                }
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
            }
            for action in actions {
                match action {
                    Action::Start => {
                        if let Err(error) = application.start(&self.command, &socket, &lines, self.timeout) {
                            let why = format!("{} cannot be started: {error}", self.command[0].to_string_lossy());
                            tracing::error!(name = self.name, "{why}");
                            for action in machine.handle_exit(&why, began.elapsed()) {
                                dependant.handle(&self.name, &action).await;
                            }
                        }
                    }
                    Action::Kill(why) => {
                        tracing::error!(name = self.name, "{why}: killed, and started anew");
                        application.kill(libc::SIGKILL);
                    }
                    Action::TakeOut(_) | Action::PutBack => dependant.handle(&self.name, &action).await,
                }
            }
        }
        application.end().await;
        Ok(())
    }
}
