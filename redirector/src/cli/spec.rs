//! `check`, `diff`, `apply`: what is configured.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use super::target::Target;
use crate::agent::Durable;
use crate::agent::control::{self, Answer, Request};
use crate::config;
use crate::doctor::fitness;

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Arguments of `check`.
#[derive(Debug, clap::Args)]
pub(super) struct Check {
    /// The configuration.
    file: Option<PathBuf>,
    /// Print a complete, commented example instead.
    #[arg(long, conflicts_with = "file")]
    example: bool,
    /// Print mistakes as JSON.
    #[arg(long)]
    json: bool,
}

impl Check {
    pub(super) fn run(self) -> Result<()> {
        let Some(file) = self.file else {
            if self.example {
                print!("{}", include_str!("../../example.toml"));
                return Ok(());
            }
            bail!("which file? `redirector check FILE`");
        };
        match config::load(&file) {
            Ok(config) => {
                let backends: usize = config.pools.iter().map(|pool| pool.backends.len()).sum();
                let (vips, services) = (config.vips.len(), config.services.len());
                if let Err(unfit) = fitness::judge(&config) {
                    let mend = fitness::mend(&config, &file.display().to_string());
                    eprintln!("{}: `run` refuses it on this host: {unfit}; {mend}", file.display());
                }
                println!("{}: good: {vips} VIPs, {services} services, {backends} backends", file.display());
                Ok(())
            }
            Err(mistakes) if self.json => {
                println!("{}", serde_json::to_string_pretty(mistakes.list())?);
                bail!("{} mistakes in {}", mistakes.list().len(), file.display())
            }
            Err(mistakes) => {
                eprintln!("{}", mistakes.render(std::io::stderr().is_terminal()));
                bail!("{} is not taken as it is", file.display())
            }
        }
    }
}

/// Which agent is asked, and what file it is asked about.
#[derive(Debug, clap::Args)]
struct Asking {
    /// The configuration to change to.
    file: PathBuf,
    #[command(flatten)]
    target: Target,
}

/// What an agent has done, or would do.
struct Done {
    node: String,
    version: u64,
    changes: Vec<String>,
    durable: Option<Durable>,
}

impl Asking {
    fn name(&self) -> String {
        self.file.display().to_string()
    }

    fn ask(&self, request: &Request) -> Result<Done> {
        // The file tells itself which node it is for, unless another configuration was named.
        let config = match self.target.config()? {
            Some(config) => config,
            None => config::load(&self.file)?,
        };
        match control::ask(&control::path(&config), request)? {
            Answer::Done { node, version, changes, durable } => Ok(Done { node, version, changes, durable }),
            Answer::Refused { reason } => bail!("{reason}"),
            _ => bail!("the agent answers what was not asked"),
        }
    }
}

/// Arguments of `diff`.
#[derive(Debug, clap::Args)]
pub(super) struct Diff {
    #[command(flatten)]
    asking: Asking,
}

impl Diff {
    pub(super) fn run(self) -> Result<()> {
        let request = Request::Diff { name: self.asking.name(), text: read(&self.asking.file)? };
        let Done { node, version, changes, .. } = self.asking.ask(&request)?;
        for change in &changes {
            println!("{change}");
        }
        println!("{} changes to version {version} on {node}", changes.len());
        Ok(())
    }
}

/// Arguments of `apply`.
#[derive(Debug, clap::Args)]
pub(super) struct Apply {
    #[command(flatten)]
    asking: Asking,
    /// Apply only if this version is in force, as `diff` showed it.
    #[arg(long, value_name = "VERSION")]
    expect: Option<u64>,
}

impl Apply {
    pub(super) fn run(self) -> Result<()> {
        let request = Request::Apply { name: self.asking.name(), text: read(&self.asking.file)?, expect: self.expect };
        let Done { node, version, changes, durable } = self.asking.ask(&request)?;
        for change in &changes {
            println!("{change}");
        }
        let durable = durable.map(|durable| format!(", {durable}")).unwrap_or_default();
        println!("committed: {} changes, version {version} is in force on {node}{durable}", changes.len());
        Ok(())
    }
}
