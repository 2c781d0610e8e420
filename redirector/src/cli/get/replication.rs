//! Replication: how far each peer is with the flows that it is to have, as the agent tells it.

use anyhow::{Context as _, Result, bail};
use serde::Serialize;

use super::View;
use crate::agent::control::{self, Answer, Request};
use crate::cli::output::{Format, Output, Row};
use crate::cli::target::Target;
use crate::replication::{Counters, PeerCounters, State};

#[derive(Serialize)]
struct Line {
    node: String,
    #[serde(flatten)]
    counters: PeerCounters,
}

impl Row for Line {
    fn header() -> &'static [&'static str] {
        &[
            "NODE",
            "STATE",
            "SENT",
            "ACKNOWLEDGED",
            "BACKLOG",
            "BATCHES",
            "FAILED",
            "BYTES",
            "RESYNCS",
            "LAG-P50",
            "LAG-P99",
        ]
    }

    fn cells(&self) -> Vec<String> {
        let Self { node, counters } = self;
        let state = match counters.state {
            State::Away => "away",
            State::Resynchronising => "resynchronising",
            State::Current => "current",
        };
        let counts = [
            counters.sent,
            counters.acknowledged,
            counters.backlog,
            counters.batches,
            counters.failed,
            counters.bytes,
            counters.resynchronisations,
        ];
        let lags = [counters.lag.p50, counters.lag.p99].map(|lag| format!("{:.1} ms", lag as f64 / 1000.0));
        let head = [node.clone(), state.to_owned()].into_iter();
        head.chain(counts.map(|count| count.to_string())).chain(lags).collect()
    }
}

/// Shows what goes to each peer as a table; all that is counted in the other formats.
pub(super) fn show(target: &Target, output: Output) -> Result<()> {
    let counters = ask(target)?;
    if !matches!(output.format(), Format::Table) {
        return output.print(&counters);
    }
    let view = View::open(target)?;
    output.list(counters.peers.iter().map(|(id, peer)| Line { node: view.names.node(*id), counters: peer.clone() }))
}

fn ask(target: &Target) -> Result<Counters> {
    let config = target.config()?.context("the agent is found by its configuration: name it by --config FILE")?;
    match control::ask(&control::path(&config), &Request::Replication)? {
        Answer::Replication { counters } => {
            serde_json::from_value(counters).context("the agent's answer is not understood")
        }
        _ => bail!("the agent answers what was not asked"),
    }
}
