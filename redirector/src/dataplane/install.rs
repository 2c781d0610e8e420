//! From an image to the maps, in an order in which every packet meets tables that make sense: what is pointed to comes
//! before what points to it, and goes after it.

use std::borrow::BorrowMut;
use std::collections::{HashMap as Table, HashSet};
use std::hash::Hash;
use std::net::IpAddr;

use aya::Pod;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{HashMap, MapData, MapError};
use redirector_ebpf::abi::PORTS;
use redirector_ebpf::tables::flow::Entry;
use redirector_ebpf::tables::liveness::link;
use redirector_ebpf::tables::names::{NameKey, kind};
use redirector_ebpf::tables::path::{FINAL_BIT, RESOLVED, alive};
use redirector_ebpf::tables::{Backend, Mark, Node, Path, Pool};

use super::address::address;
use super::batch;
use super::flows::{is_over, now};
use super::image::{Image, NextHop};
use super::maps::{Maps, MapsError, name_of, read, written};
use super::registry::Registry;
use super::rows::{self, RowTables as _};
use super::shortcuts::Shortcuts;
use crate::pool::transition;

/// Puts an image into the maps. Pools that change take both steps of a change, so that no established flow moves.
///
/// # Errors
/// [`MapsError`], where the kernel refuses a write.
pub fn install(maps: &mut Maps, image: &Image) -> Result<(), MapsError> {
    names(maps, image)?;
    neighbour_ids(maps, image)?;
    ports(maps, image)?;
    ways(maps, image)?;
    maps.node.set(0, image.node, 0).map_err(written("NODE"))?;
    alive(maps, image)?;
    rows::slots(maps, image)?;
    for (&id, path) in &image.paths {
        if maps.paths.get(&u32::from(id), 0).map_err(read("PATHS"))? != *path {
            maps.paths.set(u32::from(id), path, 0).map_err(written("PATHS"))?;
            maps.path_alive.set(u32::from(id), alive::ON, 0).map_err(written("PATH_ALIVE"))?;
        }
    }
    for (&id, backend) in &image.backends {
        maps.backends.set(u32::from(id), image.seen(id, backend), 0).map_err(written("BACKENDS"))?;
    }
    rows::pools(maps, image)?;
    vips_and_services(maps, image)?;
    remove_old_names(maps, image)
}

/// Ways to other nodes. Which of them is taken is the timer's to say, unless what it said is there no more.
fn ways(maps: &mut Maps, image: &Image) -> Result<(), MapsError> {
    for (&(id, port), path) in &image.ways {
        maps.peers.set(link(id, port), path, 0).map_err(written("PEERS"))?;
    }
    for (&id, first) in &image.peers {
        let taken = maps.ways.get(&u32::from(id), 0).map_err(read("WAYS"))?;
        if !image.ways.contains_key(&(id, taken as u8)) {
            maps.ways.set(u32::from(id), u64::from(first.port), 0).map_err(written("WAYS"))?;
        }
    }
    Ok(())
}

/// Alive bits as they are configured, where no timer runs that would write them.
fn alive(maps: &mut Maps, image: &Image) -> Result<(), MapsError> {
    const STOPPED: u64 = 1_000_000_000;
    if now().saturating_sub(maps.liveness.pulse().last.load()) < STOPPED {
        return Ok(());
    }
    maps.alive.set(0, image.alive, 0).map_err(written("ALIVE"))
}

/// Adds the next hops of paths that are configured no more: flows on their backends still go there.
pub fn keep_old_hops(image: &mut Image) {
    for (_, path) in image.registry.paths.iter().filter(|(id, _)| !image.paths.contains_key(id)) {
        let name = image.registry.name(kind::NEIGHBOUR, path.neighbour).unwrap_or_default();
        if let Some(address) = name.split('%').next().and_then(|hop| hop.parse().ok()) {
            let interface = image.ports.get(usize::from(path.port)).map_or(0, |port| port.ifindex);
            image.neighbours.entry(path.neighbour).or_insert(NextHop { interface, address, peer: None });
        }
    }
}

/// Whether there is room for what the registry could not see: more entries than names.
///
/// # Errors
/// [`MapsError::Full`].
pub fn room(image: &Image) -> Result<(), MapsError> {
    // The sizes of the kernel's side.
    let limits = [
        ("port ranges, taken apart into prefixes", image.ranges.len(), 65_536),
        ("VIP prefixes", image.vips.keys().filter(|vip| !vip.is_single()).count(), 1_024),
        ("names of things", image.registry.names().count(), 65_536),
    ];
    match limits.into_iter().find(|(_, needed, size)| needed > size) {
        Some((what, needed, size)) => Err(MapsError::Full { what, needed, size }),
        None => Ok(()),
    }
}

fn names(maps: &mut Maps, image: &Image) -> Result<(), MapsError> {
    for (key, name) in image.registry.names() {
        maps.names.insert(key, name_of(name), 0).map_err(written("NAMES"))?;
    }
    Ok(())
}

fn neighbour_ids(maps: &mut Maps, image: &Image) -> Result<(), MapsError> {
    let target: Table<_, _> = image.neighbours.iter().map(|(id, hop)| (hop.key(), *id)).collect();
    update(&mut maps.neighbour_ids, &target, "NEIGHBOUR_IDS")
}

fn ports(maps: &mut Maps, image: &Image) -> Result<(), MapsError> {
    for (number, port) in image.ports.iter().enumerate() {
        let number = number as u32;
        maps.ports.set(number, port, 0).map_err(written("PORTS"))?;
        if port.ifindex != 0 {
            maps.devices.set(number, port.ifindex, None, 0).map_err(|_| MapsError::System {
                name: "DEVICES",
                doing: "written",
                source: std::io::Error::last_os_error(),
            })?;
            maps.port_numbers.insert(port.ifindex, number, 0).map_err(written("PORT_NUMBERS"))?;
        }
    }
    Ok(())
}

fn vips_and_services(maps: &mut Maps, image: &Image) -> Result<(), MapsError> {
    update(&mut maps.services, &image.services, "SERVICES")?;
    let ranges: Table<_, _> = image.ranges.iter().map(|((key, bits), row)| ((*bits, key.words()), *row)).collect();
    update_trie(&mut maps.ranges, &ranges, "RANGES")?;
    let (mut vips4, mut vips6) = (Table::new(), Table::new());
    let (mut prefixes4, mut prefixes6) = (Table::new(), Table::new());
    for (prefix, vip) in &image.vips {
        let words = address(prefix.address());
        let bits = u32::from(prefix.length());
        match (prefix.address(), prefix.is_single()) {
            (IpAddr::V4(_), true) => drop(vips4.insert(words.words[0], *vip)),
            (IpAddr::V6(_), true) => drop(vips6.insert(words, *vip)),
            (IpAddr::V4(_), false) => drop(prefixes4.insert((bits, words.words[0]), *vip)),
            (IpAddr::V6(_), false) => drop(prefixes6.insert((bits, words.words), *vip)),
        }
    }
    let Shortcuts { cells, listed } = image.shortcuts();
    let present: Vec<u64> = maps.listed.iter().collect::<Result<_, _>>().map_err(read("LISTED"))?;
    // What is not listed is passed by: a VIP is listed first and struck off last.
    set_listed(maps, &present, |word| present[word] | listed[word])?;
    update(&mut maps.vips4, &vips4, "VIPS4")?;
    update(&mut maps.vips6, &vips6, "VIPS6")?;
    update_trie(&mut maps.prefixes4, &prefixes4, "PREFIXES4")?;
    update_trie(&mut maps.prefixes6, &prefixes6, "PREFIXES6")?;
    if maps.cells()? != cells {
        let table = batch::new_array_of_size(&cells, "CELLS")?;
        maps.cells.set(0, &table, 0).map_err(written("CELLS"))?;
    }
    set_listed(maps, &present, |word| listed[word])
}

fn set_listed(maps: &mut Maps, present: &[u64], target: impl Fn(usize) -> u64) -> Result<(), MapsError> {
    let differ = (0..present.len()).filter(|word| target(*word) != present[*word]);
    differ.into_iter().try_for_each(|word| maps.listed.set(word as u32, target(word), 0)).map_err(written("LISTED"))
}

/// Makes a hash map hold `target`: what is new or changed is written, then what is not in it goes.
fn update<K, V>(map: &mut HashMap<MapData, K, V>, target: &Table<K, V>, name: &'static str) -> Result<(), MapsError>
where
    K: Pod + Eq + Hash,
    V: Pod + PartialEq,
{
    for (key, value) in target {
        // What is right already is not touched, under packets that look it up.
        if map.get(key, 0).ok().as_ref() != Some(value) {
            map.insert(key, value, 0).map_err(written(name))?;
        }
    }
    let present: Vec<K> = map.keys().collect::<Result<_, MapError>>().map_err(read(name))?;
    for key in present.iter().filter(|key| !target.contains_key(key)) {
        map.remove(key).map_err(written(name))?;
    }
    Ok(())
}

/// The same for prefixes, by how many bits count.
///
/// # Errors
/// [`MapsError::Use`].
pub fn update_trie<M, K, V>(
    map: &mut LpmTrie<M, K, V>,
    target: &Table<(u32, K), V>,
    name: &'static str,
) -> Result<(), MapsError>
where
    M: BorrowMut<MapData>,
    K: Pod + Eq + Hash,
    V: Pod,
{
    for ((bits, data), value) in target {
        map.insert(&Key::new(*bits, *data), value, 0).map_err(written(name))?;
    }
    let present: Vec<Key<K>> = map.keys().collect::<Result<_, MapError>>().map_err(read(name))?;
    for key in present.iter().filter(|key| !target.contains_key(&(key.prefix_len(), key.data()))) {
        map.remove(key).map_err(written(name))?;
    }
    Ok(())
}

/// Names of what is configured no more. Backends, paths and next hops stay until no packet goes there: see [`settle`].
fn remove_old_names(maps: &mut Maps, image: &Image) -> Result<(), MapsError> {
    let used: HashSet<NameKey> = image.used();
    let gone: Vec<NameKey> = image
        .registry
        .names()
        .map(|(key, _)| key)
        .filter(|key| !used.contains(key) && !matches!(key.kind, kind::BACKEND | kind::PATH | kind::NEIGHBOUR))
        .collect();
    for key in gone {
        if key.kind == kind::POOL {
            maps.pools.set(key.id, Pool::default(), 0).map_err(written("POOLS"))?;
        }
        maps.names.remove(&key).or_else(gone_already).map_err(written("NAMES"))?;
    }
    Ok(())
}

fn gone_already(error: MapError) -> Result<(), MapError> {
    match error {
        MapError::KeyNotFound => Ok(()),
        MapError::SyscallError(e) if e.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => Err(other),
    }
}

/// What a round of [`settle`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settled {
    /// Flows that were over and are gone, since the last round.
    pub swept: usize,
    /// Rows whose dispute has ended.
    pub rows: usize,
    /// Backends and paths that were given back.
    pub released: usize,
}

/// A pass through the flow tables, part by part: there may be millions of flows, and whoever walks them all at once keeps the
/// agent from all else. Takes out flows that are over or whose backend has drained, and notes which backends others are on.
pub struct Sweep {
    part: usize,
    swept: usize,
    /// By backend, whether flows are on it: as far as the pass has come, and in the one before.
    has_flows: [Vec<bool>; 2],
}

impl Default for Sweep {
    fn default() -> Self {
        let none = || vec![false; usize::from(u16::MAX) + 1];
        Self { part: 0, swept: 0, has_flows: [none(), none()] }
    }
}

impl Sweep {
    /// Steps of a pass.
    pub const PARTS: usize = 128;

    /// Goes through the next part.
    pub fn step(&mut self, maps: &Maps, image: &Image) {
        let Node { hash_key, idle, .. } = &image.node;
        let (time, [seen, before]) = (now(), &mut self.has_flows);
        let is_lost = |entry: Entry| image.drained.contains(&entry.backend());
        self.swept += maps.flows.sweep(
            (self.part, Self::PARTS),
            hash_key,
            |entry, record| is_over(entry, record, idle, time) || is_lost(entry),
            |entry| seen[usize::from(entry.backend())] = true,
        );
        self.part += 1;
        if self.part == Self::PARTS {
            self.part = 0;
            std::mem::swap(seen, before);
            seen.fill(false);
        }
    }

    /// Backends that flows were seen on.
    fn backends(&self) -> impl Iterator<Item = u16> {
        (0..=u16::MAX).filter(|id| self.has_flows.iter().any(|has_flows| has_flows[usize::from(*id)]))
    }
}

/// Tidies up behind changes: ends disputes of rows of which no flow lives off the current backend once the pool's settle time
/// has passed, and gives numbers back that nothing names any more.
///
/// This node's flow table tells of this node's flows. Only a node without other members ends disputes by it: in a cluster
/// another owner may still have old flows of the same row. There nodes tell each other what [`rows::restless`] says, and end
/// disputes by agreement; without one, disputed rows stay with their owners, at the cost of a hop and a flow entry.
///
/// # Errors
/// [`MapsError`].
pub fn settle(maps: &mut Maps, image: &mut Image, sweep: &mut Sweep) -> Result<Settled, MapsError> {
    let mut named: HashSet<u16> = image.backends.keys().copied().chain(sweep.backends()).collect();
    let mut done = Settled { swept: std::mem::take(&mut sweep.swept), ..Settled::default() };
    let is_alone = image.peers.is_empty() && image.agreed.is_none();
    let busy = if is_alone { rows::restless(maps, image)? } else { Table::new() };
    for &id in image.pools.keys() {
        let pool = maps.pool(id)?;
        let mut rows = maps.rows(&pool)?;
        if !rows.iter().any(|row| row.disputed()) {
            continue;
        }
        if let Some(busy) = busy.get(&id) {
            let next = transition::settle(&rows, |row| !busy[row]);
            done.rows += rows.iter().zip(&next).filter(|(old, new)| old != new).count();
            if next != rows {
                rows::replace(maps, id, &pool, &next, pool.old_until)?;
            }
            rows = next;
        }
        named.extend(rows.iter().flat_map(|row| [row.current(), row.previous()]));
    }
    done.released = release(maps, image, &named)?;
    forget_nodes(maps, image)?;
    forget_hops(maps, image)?;
    Ok(done)
}

/// Takes out the ways to nodes that are members no more, and the marks by which their packets are known: whoever has their
/// address then is nobody who forwards packets. Not as soon as they go, since they may forward some until they know of it.
fn forget_nodes(maps: &mut Maps, image: &Image) -> Result<(), MapsError> {
    for node in (1..=254).filter(|node| !image.peers.contains_key(node)) {
        if maps.peer(node)? != Path::default() {
            for port in 0..PORTS as u8 {
                maps.peers.set(link(node, port), Path::default(), 0).map_err(written("PEERS"))?;
            }
        }
    }
    let marks: Vec<(u64, u32)> = maps.peer_macs.iter().collect::<Result<_, _>>().map_err(read("PEER_MACS"))?;
    for (mac, _) in marks.into_iter().filter(|(_, mark)| !image.peers.contains_key(&Mark(*mark).sender())) {
        maps.peer_macs.remove(&mac).or_else(gone_already).map_err(written("PEER_MACS"))?;
    }
    Ok(())
}

/// Gives back next hops that no way leads over any more. Not as soon as their nodes go: packets are sent to a node until
/// its alive bit is off, which is after all else that a change has to do.
fn forget_hops(maps: &mut Maps, image: &mut Image) -> Result<(), MapsError> {
    let named: Vec<u32> = image.registry.of(kind::NEIGHBOUR).into_iter().map(|(id, _)| id).collect();
    for id in named.into_iter().filter(|id| !image.neighbours.contains_key(id)) {
        maps.neighbours.set(id, 0, 0).map_err(written("NEIGHBOURS"))?;
        forget(maps, &mut image.registry, kind::NEIGHBOUR, id)?;
    }
    Ok(())
}

/// Gives back backends that nothing names, and paths that no backend has.
fn release(maps: &mut Maps, image: &mut Image, named: &HashSet<u16>) -> Result<usize, MapsError> {
    let mut registry: Registry = maps.registry()?;
    let mut released = 0;
    let backends = registry.of(kind::BACKEND).into_iter().map(|(id, _)| id as u16);
    let mut unnamed: HashSet<u16> = backends.filter(|id| !named.contains(id)).collect();
    if !unnamed.is_empty() {
        // A flow may have begun on one while its row was not settled yet, where the sweep had gone by already.
        let flows: HashSet<u16> = maps.flows.iter(&image.node.hash_key).map(|flow| flow.entry.backend()).collect();
        unnamed.retain(|id| !flows.contains(id));
    }
    for id in unnamed {
        maps.backends.set(u32::from(id), Backend::default(), 0).map_err(written("BACKENDS"))?;
        registry.backends.remove(&id);
        forget(maps, &mut registry, kind::BACKEND, u32::from(id))?;
        released += 1;
    }
    let in_use: HashSet<u16> = registry.backends.values().flat_map(|backend| backend.paths).collect();
    let paths: Vec<u16> = registry.of(kind::PATH).into_iter().map(|(id, _)| id as u16).collect();
    for id in paths.into_iter().filter(|id| !in_use.contains(id)) {
        maps.paths.set(u32::from(id), Path::default(), 0).map_err(written("PATHS"))?;
        maps.path_alive.set(u32::from(id), alive::OFF, 0).map_err(written("PATH_ALIVE"))?;
        registry.paths.remove(&id);
        forget(maps, &mut registry, kind::PATH, u32::from(id))?;
        released += 1;
    }
    image.registry = registry;
    Ok(released)
}

fn forget(maps: &mut Maps, registry: &mut Registry, kind: u32, id: u32) -> Result<(), MapsError> {
    registry.release(kind, id);
    maps.names.remove(&NameKey { kind, id }).or_else(gone_already).map_err(written("NAMES"))
}

/// Puts a next hop's MAC address in place, and the marks that it makes if it is another node.
///
/// # Errors
/// [`MapsError::Use`].
pub fn set_neighbour(maps: &mut Maps, id: u32, mac: u64, peer: Option<u8>) -> Result<(), MapsError> {
    let before = maps.neighbours.get(&id, 0).map_err(read("NEIGHBOURS"))?;
    if before != mac | RESOLVED {
        maps.neighbours.set(id, mac | RESOLVED, 0).map_err(written("NEIGHBOURS"))?;
    }
    let Some(node) = peer else { return Ok(()) };
    let old = before & !RESOLVED;
    if old != 0 && old != mac {
        for stale in [old, old ^ FINAL_BIT] {
            maps.peer_macs.remove(&stale).or_else(gone_already).map_err(written("PEER_MACS"))?;
        }
    }
    maps.peer_macs.insert(mac, Mark::forwarded(node).0, 0).map_err(written("PEER_MACS"))?;
    maps.peer_macs.insert(mac ^ FINAL_BIT, Mark::kept(node).0, 0).map_err(written("PEER_MACS"))
}
