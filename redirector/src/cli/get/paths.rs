//! Paths to backends, in order of rank.

use std::collections::HashMap;
use std::net::IpAddr;

use redirector_ebpf::tables::path::kind;
use serde::Serialize;

use super::{ANSWER, View};
use crate::agent::control::{self, Answer, Request};
use crate::agent::{FlowSigns, PathStatus};
use crate::cli::output::{Output, Row, cell, mode, yes};
use crate::cli::target::Target;
use crate::dataplane::address::ip;
use crate::dataplane::maps::MapsError;
use crate::paths::health::State;
use crate::paths::signals::Counts;

#[derive(Serialize)]
pub(super) struct Path {
    pool: String,
    backend: String,
    rank: usize,
    mode: &'static str,
    interface: String,
    vlan: Option<u16>,
    next_hop: String,
    /// The next hop's MAC address, if it is known.
    mac: Option<String>,
    /// The tunnel's far end.
    remote: Option<IpAddr>,
    mtu: u16,
    alive: bool,
    /// What the agent knows of it; none where the agent does not answer.
    health: Option<PathStatus>,
    packets: u64,
    bytes: u64,
}

impl Row for Path {
    fn header() -> &'static [&'static str] {
        &[
            "POOL",
            "BACKEND",
            "RANK",
            "MODE",
            "INTERFACE",
            "VLAN",
            "NEXT-HOP",
            "MAC",
            "REMOTE",
            "ALIVE",
            "STATE",
            "RTT",
            "FLOWS",
            "WHY",
            "PACKETS",
            "BYTES",
        ]
    }

    fn cells(&self) -> Vec<String> {
        let health = self.health.as_ref();
        let beats = health.and_then(|health| health.beats).filter(|beats| beats.answered > 0);
        vec![
            self.pool.clone(),
            self.backend.clone(),
            self.rank.to_string(),
            self.mode.to_owned(),
            self.interface.clone(),
            cell(self.vlan),
            self.next_hop.clone(),
            self.mac.clone().unwrap_or_else(|| "unresolved".to_owned()),
            cell(self.remote),
            yes(self.alive),
            cell(self.health.as_ref().map(|health| state(health.state))),
            cell(beats.map(|beats| format!("{:.0} us", beats.round_trip_us))),
            cell(health.and_then(|health| health.flows.as_ref()).map(flows)),
            cell(health.and_then(|health| why(health, self.alive))),
            self.packets.to_string(),
            self.bytes.to_string(),
        ]
    }
}

/// Shows the paths. What the agent knows besides is told where it runs.
pub(super) fn show(view: &View, target: &Target, output: Output) -> anyhow::Result<()> {
    output.list(list(view, &ask(target))?)
}

/// What the agent knows of paths, by id.
pub(in crate::cli) fn ask(target: &Target) -> HashMap<u16, PathStatus> {
    let Ok(Some(config)) = target.config() else { return HashMap::new() };
    match control::ask_within(ANSWER, &control::path(&config), &Request::Paths) {
        Ok(Answer::Paths { paths }) => paths.into_iter().map(|status| (status.path, status)).collect(),
        _ => HashMap::new(),
    }
}

fn state(state: State) -> &'static str {
    match state {
        State::Assumed => "assumed",
        State::Alive => "alive",
        State::Suspect => "suspect",
        State::Returning => "returning",
    }
}

/// What flows have said lately.
fn flows(FlowSigns { recent: Counts { opened, again, resets }, .. }: &FlowSigns) -> String {
    format!("{opened} new, {again} again, {resets} reset")
}

/// Why a path is not used, or what speaks against one that is.
fn why(health: &PathStatus, alive: bool) -> Option<&str> {
    let complaint = || health.flows.as_ref().and_then(|flows| flows.complaint.as_deref());
    if alive { complaint() } else { health.why.as_deref() }
}

fn list(view: &View, told: &HashMap<u16, PathStatus>) -> Result<Vec<Path>, MapsError> {
    let registry = &view.names.registry;
    let mut paths = Vec::new();
    for (&id, row) in &registry.backends {
        let (pool, backend) = view.names.backend(id);
        let traffic = view.backend_traffic(id)?;
        for (rank, path_id) in row.paths.into_iter().enumerate() {
            let Some(path) = registry.paths.get(&path_id).filter(|_| path_id != 0) else { continue };
            let told = told.get(&path_id);
            paths.push(Path {
                pool: pool.clone(),
                backend: backend.clone(),
                rank: rank + 1,
                mode: mode(path.kind),
                interface: view.names.port(path.port),
                vlan: (path.vlan != 0).then_some(path.vlan),
                next_hop: view.names.neighbour(path.neighbour),
                mac: view.mac(path.neighbour)?,
                remote: (path.kind != kind::L2).then(|| ip(&path.remote, path.outer_v6 != 0)),
                mtu: path.mtu,
                alive: view.path_alive(path_id)?,
                health: told.cloned(),
                packets: traffic[rank].packets,
                bytes: traffic[rank].bytes,
            });
        }
    }
    paths.sort_by(|a, b| (&a.pool, &a.backend, a.rank).cmp(&(&b.pool, &b.backend, b.rank)));
    Ok(paths)
}
