//! `guard`: runs an application in the foreground and watches for its signs of life. One that is silent is killed and
//! started anew; while it stays so its node drains, by way of the agent, or its backend is out, by way of the nodes' probes.

use std::ffi::OsString;
use std::io;
use std::net::SocketAddr;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use tokio::net::UnixDatagram;
use tokio::signal::unix::{SignalKind, signal};

use super::plane::{log, runtime};
use super::target::CONFIG;
use crate::agent::control::{self, Request};
use crate::config::{self, Config};
use crate::guard::{Action, Door, Machine, Policy};

/// How often it is looked whether the application runs.
const TICK: Duration = Duration::from_millis(50);

/// How long the agent may take to answer.
const ANSWER: Duration = Duration::from_secs(10);

/// An application that leaves its first process behind within this time has probably gone to the background.
const AT_ONCE: Duration = Duration::from_secs(2);

/// Arguments of `guard`.
#[derive(Debug, clap::Args)]
pub(super) struct Guard {
    /// What the application is called in messages; its socket is `guard-NAME.sock` in the node's run directory, or in
    /// /run/redirector with --backend.
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
    /// socket that NOTIFY_SOCKET names, as for systemd.
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

/// The socket's file, which goes with the guard.
struct Socket(PathBuf);

impl Drop for Socket {
    fn drop(&mut self) {
        // The next guard replaces what is left.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Where sockets of guards are on hosts without an agent.
const RUN: &str = "/run/redirector";

/// What is out while the application is not well.
enum Dependant {
    /// This node: its agent has it drain.
    Node(Box<Config>),
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
}

struct Application {
    child: Option<(Child, Instant)>,
    /// Groups of processes that were left behind and killed, and are to be waited for.
    left: Vec<i32>,
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
                    self.watch(&config.node.run.clone(), Dependant::Node(Box::new(config))).await
                }
            }
        })
    }

    async fn watch(&self, run: &Path, mut dependant: Dependant) -> Result<()> {
        std::fs::create_dir_all(run).with_context(|| format!("cannot make {}", run.display()))?;
        let path = run.join(format!("guard-{}.sock", self.name));
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot replace {}", path.display()));
            }
            _ => {}
        }
        let beats = UnixDatagram::bind(&path).with_context(|| format!("cannot listen at {}", path.display()))?;
        let _socket = Socket(path.clone());
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
        let begin = if self.backend.is_some() { Machine::with_all_out } else { Machine::new };
        let mut machine = begin(policy, began.elapsed());
        let mut application = Application { child: None, left: Vec::new() };
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let mut tick = tokio::time::interval(TICK);
        let mut datagram = [0; 512];
        loop {
            let mut actions = Vec::new();
            tokio::select! {
                received = beats.recv(&mut datagram) => match received {
                    Ok(_) => actions.extend(machine.handle_beat(began.elapsed())),
                    Err(error) => tracing::warn!(name = self.name, %error, "a sign of life could not be read"),
                },
                answered = dependant.answer() => {
                    if let Err(error) = answered {
                        tracing::warn!(name = self.name, %error, "a probe could not be answered");
                        tokio::time::sleep(TICK).await;
                    }
                }
                _ = tick.tick() => {
                    if let Some(why) = application.exited() {
                        tracing::warn!(name = self.name, "{why}");
                        actions.extend(machine.handle_exit(&why, began.elapsed()));
                    }
                    actions.extend(machine.handle_time(began.elapsed()));
                    // Where another had the address when it was to be opened.
                    if let Dependant::Backend(door) = &mut dependant
                        && !machine.is_out()
                        && !door.is_open()
                        && door.open().await.is_ok()
                    {
                        tracing::warn!(name = self.name, "this backend is in");
                    }
                }
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
            }
            for action in actions {
                match action {
                    Action::Start => {
                        if let Err(error) = application.start(&self.command, &path, self.timeout) {
                            let why = format!("{} cannot be started: {error}", self.command[0].to_string_lossy());
                            tracing::error!(name = self.name, "{why}");
                            for action in machine.handle_exit(&why, began.elapsed()) {
                                self.tell(&mut dependant, &action).await;
                            }
                        }
                    }
                    Action::Kill(why) => {
                        tracing::error!(name = self.name, "{why}: killed, and started anew");
                        application.kill(libc::SIGKILL);
                    }
                    Action::TakeOut(_) | Action::PutBack => self.tell(&mut dependant, &action).await,
                }
            }
        }
        application.kill(libc::SIGTERM);
        Ok(())
    }

    /// Takes out what depends on the application, or puts it back. What goes wrong is told, and the guard goes on.
    async fn tell(&self, dependant: &mut Dependant, action: &Action) {
        match dependant {
            Dependant::Node(config) => self.tell_agent(config, action).await,
            Dependant::Backend(door) => match action {
                Action::TakeOut(why) => {
                    tracing::warn!(name = self.name, "this backend is out: {why}");
                    door.shut();
                }
                _ => match door.open().await {
                    Ok(()) => tracing::warn!(name = self.name, "well: this backend is in"),
                    Err(error) => tracing::error!(name = self.name, %error, "well, and probes cannot be told"),
                },
            },
        }
    }

    /// Has the agent drain the node, or undrain it.
    async fn tell_agent(&self, config: &Config, action: &Action) {
        let node = config.node.id;
        let (request, what) = match action {
            Action::TakeOut(why) => (Request::Drain { node }, format!("this node drains: {why}")),
            _ => (Request::Undrain { node }, "well again: this node drains no more".to_owned()),
        };
        let socket = control::path(config);
        let asked = tokio::task::spawn_blocking(move || control::ask_within(ANSWER, &socket, &request)).await;
        match asked.map_err(anyhow::Error::new).and_then(|answer| answer) {
            Ok(_) => tracing::warn!(name = self.name, "{what}"),
            Err(error) => tracing::error!(name = self.name, "the agent was asked in vain ({what}): {error:#}"),
        }
    }
}

impl Application {
    /// Starts it in a process group of its own, as systemd would a service with a watchdog.
    fn start(&mut self, command: &[OsString], socket: &std::path::Path, timeout: Duration) -> io::Result<()> {
        let mut started = Command::new(&command[0]);
        started.args(&command[1..]).process_group(0);
        started.env("NOTIFY_SOCKET", socket).env("WATCHDOG_USEC", timeout.as_micros().to_string());
        self.child = Some((started.spawn()?, Instant::now()));
        Ok(())
    }

    /// Why it runs no more, if it has exited since it was last asked. What it has left behind is killed.
    fn exited(&mut self) -> Option<String> {
        // SAFETY: takes no status; the answer is 0 as long as one of them has not gone.
        self.left.retain(|group| unsafe { libc::waitpid(-group, std::ptr::null_mut(), libc::WNOHANG) } >= 0);
        let (child, since) = self.child.as_mut()?;
        let (group, lived) = (child.id() as i32, since.elapsed());
        let status = match child.try_wait() {
            Ok(None) => return None,
            Ok(Some(status)) => status,
            Err(error) => return Some(format!("whether the application runs is not known: {error}")),
        };
        self.child = None;
        // SAFETY: a signal to the group that was made for it; the answer says whether anybody is left there.
        let left = unsafe { libc::kill(-group, libc::SIGKILL) } == 0;
        if left {
            self.left.push(group);
        }
        let how = words(status);
        Some(match (left, lived < AT_ONCE) {
            (true, _) => format!(
                "the application {how} after {lived:.1?} and left processes behind, which were killed: it must stay in the \
                 foreground, so start it without going to the background (no --daemon, `Type=notify` style)"
            ),
            (false, true) => format!("the application {how} after {lived:.1?}: what it says itself tells why"),
            (false, false) => format!("the application {how} after {lived:.1?}"),
        })
    }

    fn kill(&mut self, signal: i32) {
        if let Some((child, _)) = &self.child {
            // SAFETY: a signal to the group that was made for it and whose first process has not been waited for.
            unsafe { libc::kill(-(child.id() as i32), signal) };
        }
    }
}

fn words(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exited with status {code}"),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => "ended".to_owned(),
    }
}
