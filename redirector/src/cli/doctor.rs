//! `doctor`: what of this host would hurt, each finding with its mend.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::decap::fail_on;
use super::output::{Format, Output};
use super::target::{CONFIG, require_root};
use crate::config;
use crate::doctor::{self, Finding, Level, Manner, backend};

/// Arguments of `doctor`.
#[derive(Debug, clap::Args)]
pub(super) struct Doctor {
    /// Look at this interface; without, at all.
    interface: Option<String>,
    /// Find out whether the driver takes native XDP by attaching a program that passes everything, for a moment. Many
    /// drivers reset their queues for it.
    #[arg(long = "try")]
    attach: bool,
    /// The configuration of the node on this host: what is measured is kept in its data directory, where `run` looks for it
    /// before it beats as fast as `extreme` [default: /etc/redirector/redirector.toml, if it is there].
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    output: Output,
}

impl Doctor {
    pub(super) fn run(self) -> Result<()> {
        require_root()?;
        let manner = if self.attach { Manner::Try } else { Manner::Look };
        let node = match &self.config {
            None if !Path::new(CONFIG).exists() => None,
            file => Some(config::load(file.as_deref().unwrap_or(Path::new(CONFIG)))?.node),
        };
        let facts = doctor::gather(self.interface.as_deref(), manner)?;
        if let (Some(node), Some(wakeups)) = (node, facts.host.wakeups) {
            let kept = doctor::fitness::keep(&node.data, wakeups);
            kept.with_context(|| format!("what was measured cannot be kept in {}", node.data.display()))?;
        }
        report(&doctor::judge(&facts), &self.output)
    }
}

/// The findings about a backend.
pub(super) fn check_backend(settings: &config::Decap) -> Result<()> {
    let mut findings: Vec<Finding> = Vec::new();
    for interface in &settings.interfaces {
        let found = backend::judge(settings, &backend::gather(interface)?);
        // What concerns the host as a whole is told once.
        findings.extend(found.into_iter().filter(|finding| !findings.contains(finding)).collect::<Vec<_>>());
    }
    report(&findings, &Output::default())
}

fn report(findings: &[Finding], output: &Output) -> Result<()> {
    match output.format() {
        Format::Table => findings.iter().for_each(print),
        _ => output.print(findings)?,
    }
    fail_on(findings.iter().filter(|finding| finding.level == Level::Error).count())
}

fn print(finding: &Finding) {
    println!("{:<8} {}: {}", format!("{:?}", finding.level).to_lowercase(), finding.subject, finding.says);
    if let Some(mend) = &finding.mend {
        println!("         ↳ {mend}");
    }
}
