//! A witness: a voter without a data plane. It keeps the log, votes, and answers commands; it sees no packet, sends no
//! beat, owns nothing and holds nothing. With it two nodes have a majority left when one of them dies.
//!
//! It runs on any host, without root. What it knows of the cluster's members follows what is agreed on.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::time::interval;

use super::agreement::{AgreementStatus, Durable};
use super::backup::Backup;
use super::control::{self, Answer, Request, refused, wrong};
use super::incidents::Incidents;
use super::node::DISK;
use super::talk::members;
use super::terms;
use crate::breaker::Breakers;
use crate::config::{self, Config};
use crate::consensus::driver::{self, Handle, Settings};
use crate::consensus::state::{Command, State};
use crate::journal::{Journal, Kind};
use crate::transport::{self, Identity, Transport};

/// How often what happened is looked at.
const LOOK: Duration = Duration::from_millis(200);

/// How long it takes to say farewell at most.
const FAREWELL: Duration = Duration::from_secs(1);

struct Witness {
    config: Config,
    handle: Handle,
    transport: Transport,
    breakers: Breakers,
    /// The version of the configuration that it goes by.
    version: u64,
}

/// Runs a witness by its configuration file until a signal ends it.
///
/// # Errors
/// What keeps it from starting; once started, it goes on.
pub async fn run(path: &Path) -> Result<()> {
    let config = config::load(path)?;
    let (name, id) = (path.display(), config.node.id);
    if !config.is_witness() {
        bail!("node {id} is no [[witness]] in {name}: `redirector run` runs a node");
    }
    let Some(identity) = Identity::load(&config.cluster)? else {
        bail!(
            "{name}: a witness needs `ca`, `certificate` and `private_key` in [cluster]: `redirector pki issue --node {id}` \
             makes them"
        );
    };
    std::fs::create_dir_all(&config.node.data)
        .with_context(|| format!("cannot make {}", config.node.data.display()))?;
    let (requests, mut requested) = mpsc::channel(16);
    let _socket = control::listen(&config, requests)?;
    let breakers = Breakers::default();
    let mut incidents = Incidents::new(Journal::start(&config.node.data, breakers.breaker("journal", DISK)));
    let mut witness = Witness::start(config, identity, breakers)?;
    let mut events = witness.handle.events();
    let mut decisions = witness.handle.state();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut reload = signal(SignalKind::hangup())?;
    let mut look = interval(LOOK);
    tracing::info!(witness = witness.config.node.name, "voting");
    incidents.journal().note(Kind::Agent, None, "the witness votes");
    loop {
        tokio::select! {
            Some((request, answer)) = requested.recv() => witness.answer(request, answer),
            Ok(()) = decisions.changed() => witness.follow(),
            Ok(event) = events.recv() => incidents.told(&event),
            _ = look.tick() => {
                witness.breakers.look();
                incidents.agreement(&witness.handle.overview().borrow());
                incidents.transport(&witness.transport.counters());
            }
            _ = reload.recv() => witness.transport.renew(&witness.config.cluster),
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    // The others notice by themselves, a little later, where this takes too long.
    let _ = tokio::time::timeout(FAREWELL, witness.end()).await;
    incidents.journal().note(Kind::Agent, None, "the witness ends");
    incidents.journal().flush();
    Ok(())
}

impl Witness {
    fn start(config: Config, identity: Identity, breakers: Breakers) -> Result<Self> {
        let members = members(&config);
        let own = members.iter().find(|(id, _)| *id == config.node.id).context("a witness that is named")?.1;
        let (transport, inboxes) = transport::start(identity, config.node.id, own, members, &breakers)?;
        let mut seed = [0; 16];
        getrandom::fill(&mut seed).map_err(|error| anyhow::anyhow!("the kernel gives no random number: {error}"))?;
        let settings = Settings {
            machine: terms::machine(&config, 0, u128::from_le_bytes(seed)),
            file: config.node.data.join("agreement.redb"),
            breaker: breakers.breaker("data directory", DISK),
            patience: terms::patience(&config),
            welcome: terms::others(&config),
            alone: None,
        };
        let handle = driver::start(settings, transport.clone(), inboxes.consensus)?;
        handle.plan_vips(terms::vips(&config));
        handle.plan_times(terms::times(&config));
        let mut witness = Self { config, handle, transport, breakers, version: 0 };
        witness.follow();
        Ok(witness)
    }

    /// Takes over what is agreed on of the members.
    fn follow(&mut self) {
        let state = self.state();
        let specification = &state.specification;
        if specification.version == self.version {
            return;
        }
        self.version = specification.version;
        if self.version == 0 {
            return;
        }
        match config::merge(&format!("version {}", self.version), &specification.text, &self.config) {
            Ok(next) => {
                self.transport.set_members(members(&next));
                self.handle.welcome(terms::others(&next));
                self.handle.plan_vips(terms::vips(&next));
                self.handle.plan_times(terms::times(&next));
                self.config = next;
            }
            Err(mistakes) => {
                tracing::error!(version = self.version, %mistakes, "what was agreed on is not understood; it votes by what it knew");
            }
        }
    }

    fn state(&self) -> Arc<State> {
        self.handle.state().borrow().clone()
    }

    fn status(&self) -> AgreementStatus {
        let overview = self.handle.overview().borrow().clone();
        AgreementStatus::of(overview, &self.state(), &self.transport.counters(), |_| true, true)
    }

    fn answer(&self, request: Request, answer: oneshot::Sender<Answer>) {
        let name = self.config.node.name.clone();
        let now = match request {
            Request::Status => Answer::Done { node: name, version: self.version, changes: Vec::new(), durable: None },
            Request::Nodes => Answer::Nodes { liveness: None, agreement: Some(self.status()) },
            Request::Breakers => Answer::Breakers { breakers: self.breakers.statuses() },
            Request::Backup if self.version == 0 => refused(format!("{name} has no seat yet: nothing is agreed on")),
            Request::Backup => Answer::Backup { backup: Backup::of(self.config.cluster.id, &self.state()) },
            Request::Leave { node } => return self.ask(name, Command::Leave(node), answer),
            Request::Drain { node, .. } => return self.ask(name, Command::Drain(node), answer),
            Request::Undrain { node } => return self.ask(name, Command::Undrain(node), answer),
            _ => refused(format!("{name} is a witness, which has no data plane: ask a node")),
        };
        // Whoever asked may have gone away meanwhile.
        let _ = answer.send(now);
    }

    /// Has the cluster decide, and answers then.
    fn ask(&self, node: String, command: Command, answer: oneshot::Sender<Answer>) {
        let handle = self.handle.clone();
        tokio::spawn(async move {
            let decided = handle.propose(command).await;
            // Whoever asked may have gone away meanwhile.
            let _ = answer.send(decided.map_or_else(wrong, |done| Answer::Done {
                node,
                version: done.version,
                changes: Vec::new(),
                durable: Some(Durable { on: done.durable_on, of: done.of }),
            }));
        });
    }

    async fn end(&self) {
        self.handle.resign();
        self.handle.end().await;
        self.transport.close().await;
    }
}
