//! Which node a command is about: by its configuration, or by where its maps are pinned.

use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::config::{self, Config};
use crate::dataplane::load;
use crate::dataplane::maps::Maps;

/// Where the configuration is looked for.
pub(super) const CONFIG: &str = "/etc/redirector/redirector.toml";

/// Where pins are unless a configuration says otherwise.
const PINS: &str = "/sys/fs/bpf/redirector";

/// Arguments of every command that looks at a node.
#[derive(Debug, Default, clap::Args)]
pub(super) struct Target {
    /// The node's configuration [default: /etc/redirector/redirector.toml, if it is there].
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where its maps are pinned, for nodes without a configuration at hand.
    #[arg(long, value_name = "DIR", conflicts_with = "config")]
    pins: Option<PathBuf>,
}

impl Target {
    /// The node's configuration, if there is one.
    pub(super) fn config(&self) -> Result<Option<Config>> {
        match (&self.config, &self.pins) {
            (Some(path), _) => Ok(Some(config::load(path)?)),
            (None, None) if PathBuf::from(CONFIG).exists() => Ok(Some(config::load(CONFIG.as_ref())?)),
            _ => Ok(None),
        }
    }

    /// Where its maps are pinned.
    pub(super) fn pins(&self) -> Result<PathBuf> {
        match (&self.pins, self.config()?) {
            (Some(pins), _) => Ok(pins.clone()),
            (None, Some(config)) => Ok(config.node.pins),
            (None, None) => Ok(PathBuf::from(PINS)),
        }
    }

    /// Its maps.
    pub(super) fn maps(&self) -> Result<Maps> {
        require_root()?;
        Ok(Maps::open(&load::directory(&self.pins()?))?)
    }
}

/// Says at once what is missing.
pub(super) fn require_root() -> Result<()> {
    // SAFETY: takes nothing, fails never.
    if unsafe { libc::geteuid() } != 0 {
        bail!("this needs root, for BPF maps and programs: try `sudo redirector …`");
    }
    Ok(())
}
