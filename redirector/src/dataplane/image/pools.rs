//! Pools, their backends, and the paths to those.

use std::collections::BTreeSet;
use std::net::IpAddr;

use redirector_ebpf::abi::{GUE_PORT, PATHS};
use redirector_ebpf::tables::names::kind as named;
use redirector_ebpf::tables::path::kind as carried;
use redirector_ebpf::tables::{Backend, Path};

use super::{Image, ImageError, Leg, Links, PoolImage, Watched, paths_size, source};
use crate::config::{BackendState, Bfd, Config, Mode, OnDeath, Pool as PoolConfig};
use crate::dataplane::address::{address, ip};
use crate::paths::probes::Target;
use crate::pool::{self, Member};

impl Image {
    pub(super) fn pools(&mut self, config: &Config, links: &Links) -> Result<(), ImageError> {
        for pool in &config.pools {
            let id = self.registry.assign(named::POOL, &pool.name, config.tables.pools)? as u16;
            let mut members = Vec::new();
            for backend in &pool.backends {
                let name = format!("{}/{}", pool.name, backend.name);
                let number = self.registry.assign(named::BACKEND, &name, config.tables.backends)? as u16;
                let mut paths = [0; PATHS];
                for (rank, path) in backend.paths.iter().take(PATHS).enumerate() {
                    let row = self.path(pool, path, links)?;
                    let size = paths_size(config);
                    paths[rank] = self.registry.assign_path(&format!("{name}/{}", rank + 1), &row, size)?;
                    self.paths.insert(paths[rank], row);
                    let next_hop = path.next_hop;
                    let watched = self.watched(config, pool, &row, path.interface.as_str(), next_hop, links);
                    self.watched.insert(paths[rank], watched);
                }
                self.backends.insert(number, Backend { pool: id, paths });
                if matches!(backend.state, BackendState::Active) {
                    members.push(Member { hash: pool::stable_hash(&backend.name), weight: backend.weight, id: number });
                }
            }
            let rows = pool::rows(pool.backends.len());
            self.pools.insert(
                id,
                PoolImage {
                    configured: members.clone(),
                    members,
                    rows,
                    on_death: pool.health.on_death,
                    at_deadline: pool.health.drain.map_or(OnDeath::Hold, |deadline| deadline.fate),
                    drained: BTreeSet::new(),
                    settle: pool.settle,
                },
            );
        }
        self.registry.backends.extend(self.backends.iter().map(|(id, row)| (*id, *row)));
        Ok(())
    }

    fn watched(
        &self,
        config: &Config,
        pool: &PoolConfig,
        row: &Path,
        interface: &str,
        next_hop: IpAddr,
        links: &Links,
    ) -> Watched {
        let target = if row.kind == carried::L2 { next_hop } else { ip(&row.remote, row.outer_v6 != 0) };
        let session = |bfd: &Bfd| match &bfd.interface {
            Some(over) => bfd.peer == next_hop && over == interface,
            None => bfd.peer == target,
        };
        let leg = |source| Leg { path: Path { mtu: 0, ..*row }, source, target };
        let is_asked = config.cluster.path_key.is_some();
        Watched {
            leg: source(links, interface, target).ok().filter(|_| is_asked).map(leg),
            beats: pool.health.beats.unwrap_or(config.cluster.beats),
            rise: pool.health.rise,
            hold_down: pool.health.hold_down,
            probe: pool.probe.as_ref().map(|probe| Target {
                probe: probe.clone(),
                address: target,
                next_hop,
                interface: interface.to_owned(),
                is_tagged: row.vlan != 0,
                mac: links.get(interface).map_or([0; 6], |link| link.mac),
            }),
            passive: pool.health.passive,
            session: config.bfds.iter().position(session).filter(|_| pool.health.bfd),
        }
    }

    fn path(&mut self, pool: &PoolConfig, path: &crate::config::Path, links: &Links) -> Result<Path, ImageError> {
        let neighbour = self.neighbour(&path.interface, path.next_hop, None)?;
        let (port, row) = self.port(&path.interface)?;
        let mtu = path.mtu.map_or(row.mtu, u32::from).min(u32::from(u16::MAX)) as u16;
        let plain = Path { port, vlan: path.vlan, neighbour, mtu, ..Path::default() };
        let kind = match pool.mode {
            Mode::L2 => return Ok(Path { kind: carried::L2, ..plain }),
            Mode::Ipip => carried::IPIP,
            Mode::Gue => carried::GUE,
        };
        let v6 = path.remote.is_ipv6();
        let (local, bits) = match path.source {
            Some(prefix) => {
                let width = if v6 { 128 } else { 32 };
                (prefix.address(), (width - u32::from(prefix.length())).min(16))
            }
            None => (source(links, &path.interface, path.remote)?, 0),
        };
        Ok(Path {
            kind,
            outer_v6: u8::from(v6),
            source_bits: bits as u8,
            remote_port: GUE_PORT.to_be(),
            local: address(local),
            remote: address(path.remote),
            ..plain
        })
    }
}
