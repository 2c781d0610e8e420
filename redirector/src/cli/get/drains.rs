//! Backends that drain: how many flows they have left, and how long. The agent tells.

use anyhow::{Context as _, Result, bail};
use serde::Serialize;

use super::View;
use crate::agent::DrainStatus;
use crate::agent::control::{self, Answer, Request};
use crate::cli::output::{Output, Row, ago, cell};
use crate::cli::target::Target;

#[derive(Serialize)]
struct Drain {
    pool: String,
    name: String,
    #[serde(flatten)]
    status: DrainStatus,
}

impl Row for Drain {
    fn header() -> &'static [&'static str] {
        &["POOL", "NAME", "STATE", "FLOWS", "HERE", "UNTOLD", "LAST-ENDS-IN", "DEADLINE-IN", "LEFT-THEN", "THEN"]
    }

    fn cells(&self) -> Vec<String> {
        let status = &self.status;
        let untold: Vec<String> = status.untold.iter().map(u8::to_string).collect();
        vec![
            self.pool.clone(),
            self.name.clone(),
            status.state().to_owned(),
            status.flows.to_string(),
            status.here.to_string(),
            cell((!untold.is_empty()).then(|| untold.join(","))),
            cell(status.ends_in_ms.map(ago)),
            cell(status.deadline_in_ms.map(ago)),
            cell(status.left_then),
            cell(status.fate.as_ref()),
        ]
    }
}

pub(super) fn show(view: &View, target: &Target, output: Output) -> Result<()> {
    let config = target.config()?.context("the agent is found by its configuration: name it by --config FILE")?;
    let Answer::Backends { backends } = control::ask(&control::path(&config), &Request::Backends)? else {
        bail!("the agent answers what was not asked");
    };
    let drain = |backend: crate::agent::BackendStatus| {
        let (pool, name) = view.names.backend(backend.backend);
        Some(Drain { pool, name, status: backend.drain? })
    };
    let mut drains: Vec<Drain> = backends.into_iter().filter_map(drain).collect();
    drains.sort_by(|a, b| (&a.pool, &a.name).cmp(&(&b.pool, &b.name)));
    output.list(drains)
}
