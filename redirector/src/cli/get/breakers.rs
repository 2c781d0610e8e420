//! Circuit breakers: what the agent depends on, and whether it is left alone at present. The agent tells.

use anyhow::{Context as _, Result, bail};
use serde::Serialize;

use crate::agent::control::{self, Answer, Request};
use crate::breaker::{Past, State, Status};
use crate::cli::output::{Format, Output, Row, ago, cell};
use crate::cli::target::Target;

#[derive(Debug, clap::Args)]
pub(super) struct Breakers {
    /// Show how each came to be what it is; JSON and YAML always do.
    #[arg(long)]
    history: bool,
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    output: Output,
}

fn name(state: State) -> &'static str {
    match state {
        State::Closed => "closed",
        State::Open => "open",
        State::HalfOpen => "half-open",
    }
}

impl Row for Status {
    fn header() -> &'static [&'static str] {
        &[
            "BREAKER",
            "STATE",
            "FOR",
            "FAILURES",
            "SUCCEEDED",
            "FAILED",
            "LATE",
            "REFUSED",
            "TRIALS",
            "OPENED",
            "LAST-FAILURE",
        ]
    }

    fn cells(&self) -> Vec<String> {
        let failures = format!("{} of {} in {}", self.failures, self.threshold, ago(self.window_ms));
        let head = [self.name.clone(), name(self.state).to_owned(), ago(self.for_ms), failures];
        let counts = [self.succeeded, self.failed, self.late, self.refused, self.trials, self.opened]
            .map(|count| count.to_string());
        head.into_iter().chain(counts).chain([cell(self.last_failure.as_deref())]).collect()
    }
}

/// A transition of a breaker.
#[derive(Serialize)]
struct Line<'a> {
    name: &'a str,
    #[serde(flatten)]
    past: &'a Past,
}

impl Row for Line<'_> {
    fn header() -> &'static [&'static str] {
        &["BREAKER", "AGO", "FROM", "TO", "WHY"]
    }

    fn cells(&self) -> Vec<String> {
        let Self { name: breaker, past: Past { ago_ms, from, to, why } } = *self;
        vec![breaker.to_owned(), ago(*ago_ms), name(*from).to_owned(), name(*to).to_owned(), why.clone()]
    }
}

impl Breakers {
    pub(super) fn run(self) -> Result<()> {
        let breakers = ask(&self.target)?;
        if self.history && matches!(self.output.format(), Format::Table) {
            let all = breakers.iter().flat_map(|one| one.history.iter().map(|past| Line { name: &one.name, past }));
            return self.output.list(all);
        }
        self.output.list(breakers)
    }
}

fn ask(target: &Target) -> Result<Vec<Status>> {
    let config = target.config()?.context("the agent is found by its configuration: name it by --config FILE")?;
    match control::ask(&control::path(&config), &Request::Breakers)? {
        Answer::Breakers { breakers } => Ok(breakers),
        _ => bail!("the agent answers what was not asked"),
    }
}
