//! The node's tables, copied into memory as far as one flow needs them.

use std::collections::BTreeMap;

use redirector_ebpf::hash::HashKey;
use redirector_ebpf::packet::Packet;
use redirector_ebpf::stations::service;
use redirector_ebpf::tables::flow::WAYS;
use redirector_ebpf::tables::names::kind;
use redirector_ebpf::tables::{Node, Path};

use super::question::Question;
use crate::cli::get::{ranges, vip_lines};
use crate::cli::output::Names;
use crate::dataplane::flows::now;
use crate::dataplane::image::Image;
use crate::dataplane::maps::{Maps, MapsError, read as reading};
use crate::dataplane::memory::MemoryTables;

/// Copies what the flow may meet: of the flow table its bucket, of the pools its service's.
pub(super) fn read(maps: &Maps, names: &Names, question: &Question) -> Result<MemoryTables, MapsError> {
    let node = maps.node.get(&0, 0).map_err(reading("NODE"))?;
    let mut tables = MemoryTables::new(image(maps, names, node)?, 1);
    tables.now.set(now());
    tables.ingress = tables.image.ports.iter().position(|port| port.ifindex != 0).unwrap_or(0) as u8;
    for (id, _) in names.registry.of(kind::NEIGHBOUR) {
        let word = maps.neighbours.get(&id, 0).map_err(reading("NEIGHBOURS"))?;
        tables.neighbours.borrow_mut().insert(id, word);
    }
    flow(maps, &node.hash_key, question, &mut tables);
    let packet = Packet { v6: question.v6(), tuple: question.tuple(), ..Packet::default() };
    let vip = service::find_vip(&tables, &packet).ok();
    let Some(service) = vip.and_then(|vip| service::find(&tables, &vip, &packet)) else { return Ok(tables) };
    let pool = maps.pools.get(&u32::from(service.pool), 0).map_err(reading("POOLS"))?;
    tables.tables.insert(pool.table, maps.rows(&pool)?);
    tables.pools.insert(service.pool, pool);
    let backends = names.registry.backends.values().filter(|backend| backend.pool == service.pool);
    for path in backends.flat_map(|backend| backend.paths).filter(|path| *path != 0) {
        let word = maps.path_alive.get(&u32::from(path), 0).map_err(reading("PATH_ALIVE"))?;
        tables.paths_off.insert(path, word);
    }
    Ok(tables)
}

/// Puts the flow's bucket in place. It is the copy's only one; tags do not depend on how many there are.
fn flow(maps: &Maps, key: &HashKey, question: &Question, tables: &mut MemoryTables) {
    let v6 = question.v6();
    let (bucket, words, records) = maps.flows.bucket(key, &question.tuple(), v6);
    tables.set_bucket(v6, 0, words);
    for (place, record) in records {
        tables.set_tuple(v6, place - bucket * WAYS as u32, record);
    }
}

fn image(maps: &Maps, names: &Names, node: Node) -> Result<Image, MapsError> {
    let ports = maps.ports.iter().collect::<Result<_, _>>().map_err(reading("PORTS"))?;
    let services = maps.services.iter().collect::<Result<_, _>>().map_err(reading("SERVICES"))?;
    let mut peers = BTreeMap::new();
    for id in 1..=254u8 {
        let path = maps.peer(id)?;
        if path != Path::default() {
            peers.insert(id, path);
        }
    }
    let registry = &names.registry;
    Ok(Image {
        // What happens here is of no interest to a trace.
        node: Node { trace: 0, ..node },
        ports,
        vips: vip_lines(maps)?,
        services,
        ranges: ranges(maps)?.into_iter().map(|(key, bits, line)| ((key, bits), line)).collect(),
        backends: registry.backends.iter().map(|(id, row)| (*id, *row)).collect(),
        paths: registry.paths.iter().map(|(id, row)| (*id, *row)).collect(),
        peers,
        slots: maps.slots()?,
        alive: maps.alive.get(&0, 0).map_err(reading("ALIVE"))?,
        ..Image::default()
    })
}
