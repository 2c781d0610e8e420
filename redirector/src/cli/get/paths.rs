//! Paths to backends, in order of rank.

use std::net::IpAddr;

use redirector_ebpf::tables::path::kind;
use serde::Serialize;

use super::View;
use crate::cli::output::{Row, cell, mode, yes};
use crate::dataplane::image::ip;
use crate::dataplane::maps::MapsError;

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
            "PACKETS",
            "BYTES",
        ]
    }

    fn cells(&self) -> Vec<String> {
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
            self.packets.to_string(),
            self.bytes.to_string(),
        ]
    }
}

pub(super) fn list(view: &View) -> Result<Vec<Path>, MapsError> {
    let registry = &view.names.registry;
    let mut paths = Vec::new();
    for (&id, row) in &registry.backends {
        let (pool, backend) = view.names.backend(id);
        let traffic = view.backend_traffic(id)?;
        for (rank, path_id) in row.paths.into_iter().enumerate() {
            let Some(path) = registry.paths.get(&path_id).filter(|_| path_id != 0) else { continue };
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
                packets: traffic[rank].packets,
                bytes: traffic[rank].bytes,
            });
        }
    }
    paths.sort_by(|a, b| (&a.pool, &a.backend, a.rank).cmp(&(&b.pool, &b.backend, b.rank)));
    Ok(paths)
}
