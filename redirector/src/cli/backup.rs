//! `backup` and `restore`: what the cluster agrees on, in a file.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};

use super::cluster::Node;
use crate::agent::backup;
use crate::agent::control::{Answer, Request};
use crate::config;

/// Arguments of `backup`.
#[derive(Debug, clap::Args)]
pub(super) struct Backup {
    /// Where to; the file holds the cluster's key, if the configuration does. One that is there is replaced.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    node: Node,
}

impl Backup {
    pub(super) fn run(self) -> Result<()> {
        let (_, answer) = self.node.ask(&Request::Backup)?;
        let Answer::Backup { backup } = answer else { bail!("the agent answers what was not asked") };
        let mut next = self.file.clone().into_os_string();
        next.push(".next");
        let cannot = || format!("cannot write {}", self.file.display());
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&next).with_context(cannot)?;
        file.write_all(&backup.seal()?).and_then(|()| file.sync_all()).with_context(cannot)?;
        fs::rename(&next, &self.file).with_context(cannot)?;
        let backup::Backup { cluster, version, members, .. } = backup;
        println!("{}: cluster {cluster}, version {version}, {} members", self.file.display(), members.len());
        Ok(())
    }
}

/// Arguments of `restore`.
#[derive(Debug, clap::Args)]
pub(super) struct Restore {
    /// What `redirector backup` has written.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    node: Node,
}

impl Restore {
    pub(super) fn run(self) -> Result<()> {
        let name = self.file.display();
        let bytes = fs::read(&self.file).with_context(|| format!("cannot read {name}"))?;
        let backup = backup::Backup::open(&bytes).with_context(|| name.to_string())?;
        let own = config::load(&self.node.config)?.cluster.id;
        if backup.cluster != own {
            bail!("{name} is of cluster {}, and this node is of cluster {own}: nothing was changed", backup.cluster);
        }
        let (old, members) = (backup.version, backup.members.clone());
        let (_, answer) = self.node.ask(&Request::Restore { backup })?;
        let Answer::Done { node, version, .. } = answer else { bail!("the agent answers what was not asked") };
        println!("a cluster begins with {node} and version {old} of the backup, as version {version}");
        for member in members.iter().filter(|member| member.part != "node") {
            match member.part.as_str() {
                "witness" => println!("node {} was a witness", member.id),
                _ => println!("node {} was drained: `redirector drain {}` once it has joined", member.id, member.id),
            }
        }
        println!("its other members join by themselves, with empty data directories and without old data planes");
        Ok(())
    }
}
