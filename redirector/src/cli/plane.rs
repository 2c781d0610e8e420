//! `run`, `load`, `unload`: the data plane comes and goes.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};

use super::target::{CONFIG, Target, require_root};
use crate::agent::{self, control};
use crate::config::XdpMode;
use crate::dataplane::load;
use crate::shedding::work::{self, Work};

/// A runtime for one task that mostly waits.
pub(super) fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")
}

/// Logs to standard error; `RUST_LOG` chooses what. While load is shed, warnings and errors are left of it.
pub(super) fn log() {
    use tracing_subscriber::EnvFilter;
    use tracing_subscriber::filter::{FilterExt as _, dynamic_filter_fn};
    use tracing_subscriber::prelude::*;
    let chosen = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let shed = dynamic_filter_fn(|line, _| *line.level() <= tracing::Level::WARN || work::is_due(Work::Logs));
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_filter(chosen.and(shed));
    // Fails only where there is a logger already.
    let _ = tracing_subscriber::registry().with(lines).try_init();
}

/// Arguments of `run`.
#[derive(Debug, clap::Args)]
pub(super) struct Run {
    /// The node's configuration.
    #[arg(long, value_name = "FILE", default_value = CONFIG)]
    config: PathBuf,
    /// Attach XDP in this way, whatever the configuration says; `auto` logs which it got.
    #[arg(long, value_enum)]
    mode: Option<XdpMode>,
}

impl Run {
    pub(super) fn run(self) -> Result<()> {
        require_root()?;
        log();
        runtime()?.block_on(agent::run(&self.config, self.mode))
    }
}

/// Arguments of `load`.
#[derive(Debug, clap::Args)]
pub(super) struct Load {
    /// The node's configuration.
    #[arg(long, value_name = "FILE", default_value = CONFIG)]
    config: PathBuf,
    /// Attach a program that passes everything, and nothing else, to this interface: what the far end of a veth pair needs
    /// for redirected packets to arrive. It stays until `ip link set dev IFACE xdp off`.
    #[arg(long, value_name = "IFACE")]
    pass: Option<String>,
    /// Attach XDP in this way, whatever the configuration says.
    #[arg(long, value_enum)]
    mode: Option<XdpMode>,
}

impl Load {
    pub(super) fn run(self) -> Result<()> {
        require_root()?;
        log();
        match self.pass {
            Some(interface) => attach_pass(&interface, self.mode.unwrap_or(XdpMode::Auto)),
            None => {
                let text = std::fs::read_to_string(&self.config)
                    .with_context(|| format!("cannot read {}", self.config.display()))?;
                runtime()?.block_on(agent::load_alone(&self.config.display().to_string(), &text, self.mode))
            }
        }
    }
}

fn attach_pass(interface: &str, mode: XdpMode) -> Result<()> {
    let pins = PathBuf::from("/sys/fs/bpf/redirector-pass");
    let directory = load::prepare(&pins)?;
    let mut ebpf = load::open_decap(&directory)?;
    let attached = load::attach(load::program(&mut ebpf, "redirector_pass")?, &directory, interface, mode)?;
    println!("{interface}: passes everything ({attached}); `redirector unload --pins {}` ends it", pins.display());
    Ok(())
}

/// Arguments of `unload`.
#[derive(Debug, clap::Args)]
pub(super) struct Unload {
    #[command(flatten)]
    target: Target,
}

impl Unload {
    pub(super) fn run(self) -> Result<()> {
        require_root()?;
        let pins = self.target.pins()?;
        let directory = load::directory(&pins);
        // What an agent holds open would not go.
        let _held = if directory.exists() { Some(control::hold(&directory)?) } else { None };
        if !load::unload(&pins)? {
            bail!("nothing is loaded at {}", pins.display());
        }
        println!("{}: detached, nothing is left", pins.display());
        Ok(())
    }
}
