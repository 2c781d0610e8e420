//! `check`, `diff`, `apply`: what is configured.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

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

/// Why it has not.
struct Refused {
    reason: String,
    /// The version in force, where another one was expected.
    present: Option<u64>,
}

impl From<Refused> for anyhow::Error {
    fn from(refused: Refused) -> Self {
        Self::msg(refused.reason)
    }
}

impl Asking {
    fn name(&self) -> String {
        self.file.display().to_string()
    }

    fn ask(&self, request: &Request) -> Result<Result<Done, Refused>> {
        // The file tells itself which node it is for, unless another configuration was named.
        let config = match self.target.config()? {
            Some(config) => config,
            None => config::load(&self.file)?,
        };
        match control::answer_of(&control::path(&config), request)? {
            Answer::Done { node, version, changes, durable } => Ok(Ok(Done { node, version, changes, durable })),
            Answer::Refused { reason, present, .. } => Ok(Err(Refused { reason, present })),
            _ => bail!("the agent answers what was not asked"),
        }
    }

    /// What a file would change, and the version that it would follow.
    fn diff(&self, text: &str) -> Result<Done> {
        let request = Request::Diff { name: self.name(), text: text.to_owned() };
        self.ask(&request)?.map_err(Refused::into)
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
        let Done { node, version, changes, .. } = self.asking.diff(&read(&self.asking.file)?)?;
        for change in &changes {
            println!("{change}");
        }
        println!("{} changes to version {version} on {node}", changes.len());
        Ok(())
    }
}

/// How long a node may take until it goes by a version that the cluster has agreed on.
const FOLLOWS: Duration = Duration::from_secs(5);

/// Arguments of `apply`.
#[derive(Debug, clap::Args)]
pub(super) struct Apply {
    #[command(flatten)]
    asking: Asking,
    /// Apply only if this version is in force, as `diff` showed it; default: the one that is when this command begins.
    #[arg(long, value_name = "VERSION")]
    expect: Option<u64>,
}

impl Apply {
    pub(super) fn run(self) -> Result<()> {
        let text = read(&self.asking.file)?;
        let expect = match self.expect {
            Some(version) => version,
            None => self.asking.diff(&text)?.version,
        };
        let request = Request::Apply { name: self.asking.name(), text: text.clone(), expect: Some(expect) };
        let Done { node, version, changes, durable } = match self.asking.ask(&request)? {
            Ok(done) => done,
            Err(Refused { present: Some(present), .. }) if self.expect.is_none() => self.outrun(&text, present)?,
            Err(refused) => return Err(refused.into()),
        };
        for change in &changes {
            println!("{change}");
        }
        let durable = durable.map(|durable| format!(", {durable}")).unwrap_or_default();
        println!("committed: {} changes, version {version} is in force on {node}{durable}", changes.len());
        Ok(())
    }
    /// Another change came first. All is well if it has made what the file says; else nobody has seen yet what the file would
    /// undo of it.
    fn outrun(&self, text: &str, present: u64) -> Result<Done> {
        let deadline = Instant::now() + FOLLOWS;
        let done = loop {
            let done = self.asking.diff(text)?;
            if done.version >= present || Instant::now() > deadline {
                break done;
            }
            thread::sleep(Duration::from_millis(20));
        };
        if done.version >= present && done.changes.is_empty() {
            return Ok(done);
        }
        let would = match done.version >= present {
            true => format!("now the file would change:\n{}\n", done.changes.join("\n")),
            false => String::new(),
        };
        bail!(
            "version {present} came in force meanwhile, by somebody else; {would}look at `redirector diff`, then repeat it"
        )
    }
}
