//! The journal of a node, as it lies on its disk; the agent need not run.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use serde::Serialize;

use super::output::{Output, Row, cell};
use super::target::CONFIG;
use crate::config;
use crate::journal::{self, Entry};

/// Arguments of `incidents`.
#[derive(Debug, clap::Args)]
pub(super) struct Incidents {
    /// The node's configuration.
    #[arg(long, value_name = "FILE", default_value = CONFIG)]
    config: std::path::PathBuf,
    /// Only the last so many.
    #[arg(long, value_name = "NUMBER")]
    last: Option<usize>,
    #[command(flatten)]
    output: Output,
}

#[derive(Serialize)]
#[serde(transparent)]
struct Line(Entry);

impl Row for Line {
    fn header() -> &'static [&'static str] {
        &["TIME", "KIND", "NODE", "WHAT"]
    }

    fn cells(&self) -> Vec<String> {
        match &self.0 {
            Entry::Incident(incident) => vec![
                time(incident.at_ms),
                incident.kind.to_string(),
                cell(incident.node),
                incident.what.replace(['\n', '\r'], " "),
            ],
            Entry::Damaged { file, line, damage } => {
                let what = format!("{}, line {line}: {damage}", file.display());
                vec!["-".to_owned(), "damaged".to_owned(), "-".to_owned(), what]
            }
        }
    }
}

impl Incidents {
    pub(super) fn run(self) -> Result<()> {
        let config = config::load(&self.config)?;
        let data = &config.node.data;
        let entries = journal::read(data).with_context(|| format!("cannot read the journal in {}", data.display()))?;
        let skipped = self.last.map_or(0, |last| entries.len().saturating_sub(last));
        self.output.list(entries.into_iter().skip(skipped).map(Line))
    }
}

/// A time as RFC 3339 has it, in UTC.
fn time(at_ms: u64) -> String {
    let at: SystemTime = UNIX_EPOCH + Duration::from_millis(at_ms);
    humantime::format_rfc3339_millis(at).to_string()
}
