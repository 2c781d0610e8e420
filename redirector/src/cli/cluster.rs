//! `bootstrap`, `join`, `leave`, `drain`, `undrain`, `witness`, `recover`: the cluster's life.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::target::CONFIG;
use crate::agent::control::{self, Answer, Request};
use crate::agent::{self, AgreementStatus, MemberStatus};
use crate::config::{self, Config};

/// How often `join` asks how far it is.
const LOOK: Duration = Duration::from_millis(200);

/// How long an agent may not answer while something else is awaited: it may be restarted meanwhile.
const AWAY: Duration = Duration::from_secs(10);

/// The node whose agent is asked.
#[derive(Debug, clap::Args)]
pub(super) struct Node {
    /// The node's configuration.
    #[arg(long, value_name = "FILE", default_value = CONFIG)]
    pub(super) config: PathBuf,
}

impl Node {
    pub(super) fn ask(&self, request: &Request) -> Result<(Config, Answer)> {
        let config = config::load(&self.config)?;
        let answer = control::ask(&control::path(&config), request)?;
        Ok((config, answer))
    }

    /// How agreement stands there.
    fn agreement(&self) -> Result<(Config, AgreementStatus)> {
        let (config, answer) = self.ask(&Request::Nodes)?;
        let Answer::Nodes { agreement, .. } = answer else { bail!("the agent answers what was not asked") };
        let agreement = agreement.context(
            "this node takes no part in agreement: it needs `ca`, `certificate` and `private_key` in [cluster], and two \
             [[member]] at least",
        )?;
        Ok((config, agreement))
    }
}

/// Arguments of `bootstrap`.
#[derive(Debug, clap::Args)]
pub(super) struct Bootstrap {
    #[command(flatten)]
    node: Node,
}

impl Bootstrap {
    pub(super) fn run(self) -> Result<()> {
        let (_, answer) = self.node.ask(&Request::Bootstrap)?;
        let Answer::Done { node, version, .. } = answer else { bail!("the agent answers what was not asked") };
        println!(
            "a cluster begins with {node} and its configuration, version {version}; its other members join by themselves"
        );
        Ok(())
    }
}

/// Arguments of `witness`.
#[derive(Debug, clap::Args)]
pub(super) struct Witness {
    /// The witness's configuration: the nodes' own, with another [node], which is one of the [[witness]].
    #[arg(long, value_name = "FILE", default_value = CONFIG)]
    config: PathBuf,
}

impl Witness {
    pub(super) fn run(self) -> Result<()> {
        super::plane::log();
        super::plane::runtime()?.block_on(agent::witness::run(&self.config))
    }
}

/// Arguments of `recover`.
#[derive(Debug, clap::Args)]
pub(super) struct Recover {
    /// A node or witness that is lost for good, by its id; once for each. All others must answer.
    #[arg(long = "give-up", value_name = "NODE", required = true, value_parser = clap::value_parser!(u8).range(1..=254))]
    lost: Vec<u8>,
    /// Do it. Without this it is only told what would be done.
    #[arg(long)]
    yes_they_are_lost_for_good: bool,
    #[command(flatten)]
    node: Node,
}

impl Recover {
    pub(super) fn run(self) -> Result<()> {
        let lost: BTreeSet<u8> = self.lost.iter().copied().collect();
        let names = lost.iter().map(u8::to_string).collect::<Vec<_>>().join(", ");
        if !self.yes_they_are_lost_for_good {
            let config = config::load(&self.node.config)?;
            bail!(
                "nothing was changed. This would make {} the ONLY VOTER of cluster {}, and GIVE UP node(s) {names}:\n\
                 - changes that only they know of are LOST, though they may have been reported as done;\n\
                 - if they live, and are only cut off, there are TWO CLUSTERS until they hear of this one;\n\
                 - when they come back their logs are set aside, and they join as new members.\n\
                 Packets are not interrupted. Keep a `redirector backup` first. If they are lost for good, say so:\n  \
                 redirector recover {} --yes-they-are-lost-for-good",
                config.node.name,
                config.cluster.id,
                lost.iter().map(|id| format!("--give-up {id}")).collect::<Vec<_>>().join(" "),
            );
        }
        let (_, answer) = self.node.ask(&Request::Recover { lost })?;
        let Answer::Done { node, .. } = answer else { bail!("the agent answers what was not asked") };
        println!(
            "{node} is the only voter of the cluster now, without node(s) {names}: changes are possible again. Other members, and \
             those if they come back, join by themselves; take the [[member]] or [[witness]] away of who shall not"
        );
        Ok(())
    }
}

/// Arguments of `join`.
#[derive(Debug, clap::Args)]
pub(super) struct Join {
    #[command(flatten)]
    node: Node,
    /// How many seconds to wait.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    wait: u64,
}

impl Join {
    pub(super) fn run(self) -> Result<()> {
        let until = Instant::now() + Duration::from_secs(self.wait);
        loop {
            let (config, agreement) = self.node.agreement()?;
            let own = agreement.members.iter().find(|member| member.node == config.node.id);
            if let Some(MemberStatus { standing, seat: Some(seat), .. }) = own {
                println!("{} is a {seat} of the cluster, and {standing}", config.node.name);
                return Ok(());
            }
            if Instant::now() > until {
                bail!(
                    "{} has no seat yet: one node must `bootstrap` the cluster, and its configuration must name this node \
                     as a [[member]]",
                    config.node.name
                );
            }
            thread::sleep(LOOK);
        }
    }
}

/// Arguments of `leave`.
#[derive(Debug, clap::Args)]
pub(super) struct Leave {
    /// The id of the node that goes; take its [[member]] away first, or it joins again.
    #[arg(value_name = "NODE", value_parser = clap::value_parser!(u8).range(1..=254))]
    id: u8,
    #[command(flatten)]
    node: Node,
}

impl Leave {
    pub(super) fn run(self) -> Result<()> {
        let (_, answer) = self.node.ask(&Request::Leave { node: self.id })?;
        let Answer::Done { durable, .. } = answer else { bail!("the agent answers what was not asked") };
        let durable = durable.map(|durable| format!(": {durable}")).unwrap_or_default();
        println!("node {} is no member any more{durable}", self.id);
        Ok(())
    }
}

/// A node by its id, or by the name that `get nodes` has for it.
fn node_of(text: &str, config: &Config) -> Result<u8> {
    if text == config.node.name {
        return Ok(config.node.id);
    }
    let id = text.strip_prefix('n').unwrap_or(text).parse().ok().filter(|id| (1..=254).contains(id));
    id.with_context(|| {
        format!("`{text}` is neither this node's name nor an id from 1 to 254; `redirector get nodes` lists them")
    })
}

/// Arguments of `drain`.
#[derive(Debug, clap::Args)]
pub(super) struct Drain {
    /// The node, by its id or as `get nodes` calls it.
    #[arg(value_name = "NODE")]
    which: String,
    #[command(flatten)]
    node: Node,
    /// How many seconds to wait until it is drained; 0: it is asked for, and goes on by itself.
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    wait: u64,
}

impl Drain {
    pub(super) fn run(self) -> Result<()> {
        let id = node_of(&self.which, &config::load(&self.node.config)?)?;
        let (_, answer) = self.node.ask(&Request::Drain { node: id, unless_last: false })?;
        let Answer::Done { durable, .. } = answer else { bail!("the agent answers what was not asked") };
        let durable = durable.map(|durable| format!(": {durable}")).unwrap_or_default();
        println!("node {id} gives its slots and VIPs away{durable}");
        let until = Instant::now() + Duration::from_secs(self.wait);
        let (mut heard, mut has_begun) = (Instant::now(), false);
        while Instant::now() < until {
            match self.node.agreement() {
                Ok((_, agreement)) => {
                    heard = Instant::now();
                    match standing(&agreement, id) {
                        Some("drained") => {
                            println!("node {id} is drained: it may be stopped, and nobody would miss it");
                            return Ok(());
                        }
                        Some("draining") => has_begun = true,
                        Some("down") => bail!("node {id} is down: what it owned went over without it"),
                        Some("up") if has_begun => bail!("node {id} drains no more: somebody has undrained it"),
                        // Whoever is asked may be a little behind.
                        Some(_) => {}
                        None => bail!("node {id} is no member any more"),
                    }
                }
                Err(error) if heard.elapsed() > AWAY => return Err(error),
                Err(_) => {}
            }
            thread::sleep(LOOK);
        }
        if self.wait > 0 {
            bail!(
                "node {id} is not drained after {} s; it goes on: `redirector get nodes` tells how far it is",
                self.wait
            );
        }
        Ok(())
    }
}

fn standing(agreement: &AgreementStatus, id: u8) -> Option<&str> {
    agreement.members.iter().find(|member| member.node == id).map(|member| member.standing.as_str())
}

/// Arguments of `undrain`.
#[derive(Debug, clap::Args)]
pub(super) struct Undrain {
    /// The node, by its id or as `get nodes` calls it.
    #[arg(value_name = "NODE")]
    which: String,
    #[command(flatten)]
    node: Node,
}

impl Undrain {
    pub(super) fn run(self) -> Result<()> {
        let id = node_of(&self.which, &config::load(&self.node.config)?)?;
        let (_, answer) = self.node.ask(&Request::Undrain { node: id })?;
        let Answer::Done { durable, .. } = answer else { bail!("the agent answers what was not asked") };
        let durable = durable.map(|durable| format!(": {durable}")).unwrap_or_default();
        println!("node {id} gets slots and VIPs again, as their flows reach it{durable}");
        Ok(())
    }
}
