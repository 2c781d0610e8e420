//! Backends: their share of their pool's rows, their paths, and the flows on them.

use std::collections::HashMap;

use redirector_ebpf::tables::names::kind;
use serde::Serialize;

use super::{ANSWER, View, sum};
use crate::agent::BackendStatus;
use crate::agent::control::{self, Answer, Request};
use crate::cli::output::{Output, Row, cell};
use crate::cli::target::Target;
use crate::dataplane::maps::{MapsError, read};

#[derive(Serialize)]
pub(super) struct Backend {
    pool: String,
    name: String,
    /// Part of its pool's new flows, in percent.
    share: f64,
    /// Rows of the pool that name it for new flows.
    rows: usize,
    /// Disputed rows that it leaves: their old flows are still on it.
    rows_leaving: usize,
    paths_alive: usize,
    paths: usize,
    /// Flows that are recorded on this node.
    flows: usize,
    packets: u64,
    bytes: u64,
    /// What the agent knows of it; none where the agent does not answer.
    health: Option<BackendStatus>,
}

impl Row for Backend {
    fn header() -> &'static [&'static str] {
        &["POOL", "NAME", "SHARE", "ROWS", "ROWS-LEAVING", "PATHS-ALIVE", "FLOWS", "PACKETS", "BYTES", "STATE", "WHY"]
    }

    fn cells(&self) -> Vec<String> {
        vec![
            self.pool.clone(),
            self.name.clone(),
            format!("{:.1}%", self.share),
            self.rows.to_string(),
            self.rows_leaving.to_string(),
            format!("{}/{}", self.paths_alive, self.paths),
            self.flows.to_string(),
            self.packets.to_string(),
            self.bytes.to_string(),
            cell(self.health.as_ref().map(|health| &health.state)),
            cell(self.health.as_ref().and_then(|health| health.why.as_ref())),
        ]
    }
}

/// Rows that name a backend: current, leaving, and all of its pool.
type Rows = (usize, usize, usize);

/// Shows the backends. What the agent knows besides is told where it runs.
pub(super) fn show(view: &View, target: &Target, output: Output) -> anyhow::Result<()> {
    output.list(list(view, &ask(target))?)
}

/// What the agent knows of backends, by id.
pub(in crate::cli) fn ask(target: &Target) -> HashMap<u16, BackendStatus> {
    let Ok(Some(config)) = target.config() else { return HashMap::new() };
    match control::ask_within(ANSWER, &control::path(&config), &Request::Backends) {
        Ok(Answer::Backends { backends }) => backends.into_iter().map(|status| (status.backend, status)).collect(),
        _ => HashMap::new(),
    }
}

fn list(view: &View, told: &HashMap<u16, BackendStatus>) -> Result<Vec<Backend>, MapsError> {
    let rows = rows(view)?;
    let mut flows: HashMap<u16, usize> = HashMap::new();
    for flow in view.maps.flows.iter(&view.node.hash_key) {
        *flows.entry(flow.entry.backend()).or_default() += 1;
    }
    let mut backends = Vec::new();
    for (id, row) in &view.names.registry.backends {
        let (pool, name) = view.names.backend(*id);
        let (current, leaving, whole) = rows.get(id).copied().unwrap_or_default();
        let paths: Vec<u16> = row.paths.into_iter().filter(|path| *path != 0).collect();
        let alive: Vec<bool> = paths.iter().map(|path| view.path_alive(*path)).collect::<Result<_, _>>()?;
        let traffic = sum(view.backend_traffic(*id)?);
        backends.push(Backend {
            pool,
            name,
            share: (current as f64 * 1000.0 / whole.max(1) as f64).round() / 10.0,
            rows: current,
            rows_leaving: leaving,
            paths_alive: alive.into_iter().filter(|alive| *alive).count(),
            paths: paths.len(),
            flows: flows.get(id).copied().unwrap_or(0),
            packets: traffic.packets,
            bytes: traffic.bytes,
            health: told.get(id).cloned(),
        });
    }
    backends.sort_by(|a, b| (&a.pool, &a.name).cmp(&(&b.pool, &b.name)));
    Ok(backends)
}

fn rows(view: &View) -> Result<HashMap<u16, Rows>, MapsError> {
    let mut counts: HashMap<u16, Rows> = HashMap::new();
    for (id, _) in view.names.registry.of(kind::POOL) {
        let pool = view.maps.pools.get(&id, 0).map_err(read("POOLS"))?;
        let rows = view.maps.rows(&pool)?;
        for row in &rows {
            let count = counts.entry(row.current()).or_default();
            count.0 += 1;
            count.2 = rows.len();
            if row.disputed() && row.previous() != row.current() {
                counts.entry(row.previous()).or_default().1 += 1;
            }
        }
    }
    Ok(counts)
}
