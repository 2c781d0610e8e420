//! The pinned maps, typed. The only place that says which type stands behind which name.

use std::fmt::Debug;
use std::path::{Path as FilePath, PathBuf};
use std::sync::Mutex;

use aya::maps::lpm_trie::LpmTrie;
use aya::maps::xdp::DevMap;
use aya::maps::{Array, ArrayOfMaps, HashMap, Map, MapData, MapError, PerCpuArray, PerCpuHashMap};
use redirector_ebpf::packet::Address;
use redirector_ebpf::tables::cell::{Cells, SETS};
use redirector_ebpf::tables::liveness::link;
use redirector_ebpf::tables::names::{Name, NameKey};
use redirector_ebpf::tables::trace::TraceFilter;
use redirector_ebpf::tables::{
    AliveNodes, Backend, FragmentKey, NeighbourKey, Node, Path, Pool, Port, RefusedKey, Row, Service, ServiceKey, Slot,
    Traffic, Vip,
};

use super::batch::Counters;
use super::flows::FlowTables;
use super::liveness::LivenessMaps;
use super::paths::PathMaps;
use super::registry::Registry;

/// A pinned map is missing or of another shape.
#[derive(Debug, thiserror::Error)]
pub enum MapsError {
    /// The map could not be opened.
    #[error("no data plane is loaded at {directory} (map {name}); `redirector run` or `redirector load` loads it")]
    Open {
        /// Where it was looked for.
        directory: PathBuf,
        /// The map.
        name: &'static str,
        /// Why not.
        #[source]
        source: MapError,
    },
    /// A map could not be read or written.
    #[error("the map {name} cannot be {doing}")]
    Use {
        /// The map.
        name: &'static str,
        /// `read` or `written`.
        doing: &'static str,
        /// Why not.
        #[source]
        source: MapError,
    },
    /// The system refused what no map API offers.
    #[error("the map {name} cannot be {doing}")]
    System {
        /// The map.
        name: &'static str,
        /// What was tried.
        doing: &'static str,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// More entries than the map holds.
    #[error("{needed} {what} are configured and the data plane was loaded for {size} (see `[tables]`)")]
    Full {
        /// What there is too much of.
        what: &'static str,
        /// How many are needed.
        needed: usize,
        /// How many there is room for.
        size: usize,
    },
}

/// All maps of a node.
#[expect(missing_docs, reason = "each is the map of its name; the kernel's side says what it holds")]
pub struct Maps {
    pub node: Array<MapData, Node>,
    pub ports: Array<MapData, Port>,
    pub devices: DevMap<MapData>,
    pub port_numbers: HashMap<MapData, u32, u32>,
    pub vips4: HashMap<MapData, u32, Vip>,
    pub vips6: HashMap<MapData, Address, Vip>,
    pub prefixes4: LpmTrie<MapData, u32, Vip>,
    pub prefixes6: LpmTrie<MapData, [u32; 4], Vip>,
    pub cells: ArrayOfMaps<MapData>,
    pub listed: Array<MapData, u64>,
    pub services: HashMap<MapData, ServiceKey, Service>,
    pub ranges: LpmTrie<MapData, [u32; 2], Service>,
    pub pools: Array<MapData, Pool>,
    pub pool_tables: ArrayOfMaps<MapData>,
    pub slots: ArrayOfMaps<MapData>,
    /// The slot table that was last read or put in force here.
    pub(super) known_slots: Mutex<Option<Vec<Slot>>>,
    pub alive: Array<MapData, AliveNodes>,
    pub peers: Array<MapData, Path>,
    pub ways: Array<MapData, u64>,
    pub peer_macs: HashMap<MapData, u64, u32>,
    pub backends: Array<MapData, Backend>,
    pub paths: Array<MapData, Path>,
    pub path_alive: Array<MapData, u64>,
    pub neighbours: Array<MapData, u64>,
    pub neighbour_ids: HashMap<MapData, NeighbourKey, u32>,
    pub held4: HashMap<MapData, u32, u32>,
    pub held6: HashMap<MapData, Address, u32>,
    pub fragments: HashMap<MapData, FragmentKey, u64>,
    pub reasons: PerCpuArray<MapData, u64>,
    /// The same, for whoever reads all of them.
    pub all_reasons: Counters,
    pub refused: PerCpuHashMap<MapData, u32, u64>,
    pub service_traffic: PerCpuArray<MapData, Traffic>,
    pub backend_traffic: PerCpuArray<MapData, [Traffic; 4]>,
    pub names: HashMap<MapData, NameKey, Name>,
    pub trace: Array<MapData, TraceFilter>,
    pub flows: FlowTables,
    pub liveness: LivenessMaps,
    pub path_health: PathMaps,
}

/// Opens a pinned map as a typed one.
fn open<T>(directory: &FilePath, name: &'static str, wrap: fn(MapData) -> Map) -> Result<T, MapsError>
where
    T: TryFrom<Map, Error = MapError>,
{
    MapData::from_pin(directory.join(name)).and_then(|data| T::try_from(wrap(data))).map_err(|source| MapsError::Open {
        directory: directory.to_owned(),
        name,
        source,
    })
}

/// Opens a pinned array.
///
/// # Errors
/// [`MapsError::Open`].
pub fn open_array<V: aya::Pod>(directory: &FilePath, name: &'static str) -> Result<Array<MapData, V>, MapsError> {
    open(directory, name, Map::Array)
}

impl Maps {
    /// Opens the maps that are pinned in `directory`.
    ///
    /// # Errors
    /// [`MapsError::Open`].
    pub fn open(directory: &FilePath) -> Result<Self, MapsError> {
        Ok(Self {
            node: open(directory, "NODE", Map::Array)?,
            ports: open(directory, "PORTS", Map::Array)?,
            devices: open(directory, "DEVICES", Map::DevMap)?,
            port_numbers: open(directory, "PORT_NUMBERS", Map::HashMap)?,
            vips4: open(directory, "VIPS4", Map::HashMap)?,
            vips6: open(directory, "VIPS6", Map::HashMap)?,
            prefixes4: open(directory, "PREFIXES4", Map::LpmTrie)?,
            prefixes6: open(directory, "PREFIXES6", Map::LpmTrie)?,
            cells: open(directory, "CELLS", Map::ArrayOfMaps)?,
            listed: open(directory, "LISTED", Map::Array)?,
            services: open(directory, "SERVICES", Map::HashMap)?,
            ranges: open(directory, "RANGES", Map::LpmTrie)?,
            pools: open(directory, "POOLS", Map::Array)?,
            pool_tables: open(directory, "POOL_TABLES", Map::ArrayOfMaps)?,
            slots: open(directory, "SLOTS", Map::ArrayOfMaps)?,
            known_slots: Mutex::default(),
            alive: open(directory, "ALIVE", Map::Array)?,
            peers: open(directory, "PEERS", Map::Array)?,
            ways: open(directory, "WAYS", Map::Array)?,
            peer_macs: open(directory, "PEER_MACS", Map::HashMap)?,
            backends: open(directory, "BACKENDS", Map::Array)?,
            paths: open(directory, "PATHS", Map::Array)?,
            path_alive: open(directory, "PATH_ALIVE", Map::Array)?,
            neighbours: open(directory, "NEIGHBOURS", Map::Array)?,
            neighbour_ids: open(directory, "NEIGHBOUR_IDS", Map::HashMap)?,
            held4: open(directory, "HELD4", Map::HashMap)?,
            held6: open(directory, "HELD6", Map::HashMap)?,
            fragments: open(directory, "FRAGMENTS", Map::LruHashMap)?,
            reasons: open(directory, "REASONS", Map::PerCpuArray)?,
            all_reasons: Counters::open(directory, "REASONS")?,
            refused: open(directory, "REFUSED", Map::PerCpuHashMap)?,
            service_traffic: open(directory, "SERVICE_TRAFFIC", Map::PerCpuArray)?,
            backend_traffic: open(directory, "BACKEND_TRAFFIC", Map::PerCpuArray)?,
            names: open(directory, "NAMES", Map::HashMap)?,
            trace: open(directory, "TRACE", Map::Array)?,
            flows: FlowTables::open(directory)?,
            liveness: LivenessMaps::open(directory)?,
            path_health: PathMaps::open(directory)?,
        })
    }

    /// Refused packets.
    ///
    /// # Errors
    /// [`MapsError::Use`].
    pub fn refused(&self) -> Result<Vec<(RefusedKey, u64)>, MapsError> {
        let counts = self.refused.iter().map(|entry| entry.map(|(key, cpus)| (RefusedKey(key), cpus.iter().sum())));
        let mut counts: Vec<(RefusedKey, u64)> = counts.collect::<Result<_, _>>().map_err(read("REFUSED"))?;
        counts.sort_by_key(|(key, _)| key.parts().0);
        Ok(counts)
    }

    /// The way that packets take to another node at present; the default where it is no member.
    ///
    /// # Errors
    /// [`MapsError::Use`].
    pub fn peer(&self, node: u8) -> Result<Path, MapsError> {
        let port = self.ways.get(&u32::from(node), 0).map_err(read("WAYS"))?;
        self.peers.get(&link(node, port as u8), 0).map_err(read("PEERS"))
    }

    /// What is named, and the rows of backends and paths behind the names.
    ///
    /// # Errors
    /// [`MapsError::Use`].
    pub fn registry(&self) -> Result<Registry, MapsError> {
        use redirector_ebpf::tables::names::kind;
        let mut named = Vec::new();
        for entry in self.names.iter() {
            let (key, name) = entry.map_err(read("NAMES"))?;
            named.push((key, name_text(&name)));
        }
        // Of two numbers of one path name, the one that its backend names is the present one: it comes last.
        let mut registry = Registry::new(named.clone());
        for (id, name) in
            registry.of(kind::BACKEND).into_iter().map(|(id, name)| (id, name.to_owned())).collect::<Vec<_>>()
        {
            let backend = self.backends.get(&id, 0).map_err(read("BACKENDS"))?;
            registry.backends.insert(id as u16, backend);
            for (rank, &path) in backend.paths.iter().enumerate().filter(|(_, path)| **path != 0) {
                registry.prefer(kind::PATH, &format!("{name}/{}", rank + 1), u32::from(path));
            }
        }
        for (key, _) in named.iter().filter(|(key, _)| key.kind == kind::PATH) {
            let row = self.paths.get(&key.id, 0).map_err(read("PATHS"))?;
            registry.paths.insert(key.id as u16, row);
        }
        Ok(registry)
    }

    /// The present rows of a pool; none where it has no table yet.
    ///
    /// # Errors
    /// [`MapsError::Use`].
    pub fn rows(&self, pool: &Pool) -> Result<Vec<Row>, MapsError> {
        if pool.rows == 0 {
            return Ok(Vec::new());
        }
        let table = self.pool_tables.get(&pool.table.into(), 0).map_err(read("POOL_TABLES"))?;
        super::batch::read_array(&table, pool.rows, "POOL_TABLES")
    }

    /// The cells of services in force; empty where there are none yet.
    ///
    /// # Errors
    /// [`MapsError::Use`].
    pub fn cells(&self) -> Result<Vec<Cells>, MapsError> {
        match self.cells.get(&0, 0) {
            Ok(table) => super::batch::read_array(&table, SETS as u32, "CELLS"),
            Err(MapError::KeyNotFound) => Ok(Vec::new()),
            Err(source) => Err(read("CELLS")(source)),
        }
    }

    /// The slot table in force; empty where there is none yet.
    ///
    /// # Errors
    /// [`MapsError::Use`].
    pub fn slots(&self) -> Result<Vec<Slot>, MapsError> {
        match self.slots.get(&0, 0) {
            Ok(table) => {
                let count = table.info().map_err(read("SLOTS"))?.max_entries();
                super::batch::read_array(&table, count, "SLOTS")
            }
            Err(MapError::KeyNotFound) => Ok(Vec::new()),
            Err(source) => Err(read("SLOTS")(source)),
        }
    }
}

/// An error of reading a map.
pub fn read(name: &'static str) -> impl Fn(MapError) -> MapsError {
    move |source| MapsError::Use { name, doing: "read", source }
}

/// An error of writing a map.
pub fn written(name: &'static str) -> impl Fn(MapError) -> MapsError {
    move |source| MapsError::Use { name, doing: "written", source }
}

/// The text of a name.
pub fn name_text(name: &Name) -> String {
    let end = name.bytes.iter().position(|byte| *byte == 0).unwrap_or(name.bytes.len());
    String::from_utf8_lossy(&name.bytes[..end]).into_owned()
}

/// The name of a text, cut to what fits.
pub fn name_of(text: &str) -> Name {
    let mut name = Name { bytes: [0; 136] };
    let len = text.floor_char_boundary(name.bytes.len() - 1);
    name.bytes[..len].copy_from_slice(&text.as_bytes()[..len]);
    name
}

impl Debug for Maps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Maps")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_prints_its_cause_once() {
        let refused = || {
            MapError::SyscallError(aya::sys::SyscallError {
                call: "bpf_map_update_elem",
                io_error: std::io::Error::from_raw_os_error(libc::E2BIG),
            })
        };
        let open = MapsError::Open { directory: "/pins".into(), name: "NODE", source: refused() };
        let system = MapsError::System { name: "NODE", doing: "mapped", source: std::io::ErrorKind::NotFound.into() };
        for (error, cause) in [(open, "os error 7"), (written("NODE")(refused()), "os error 7"), (system, "not found")]
        {
            let printed = format!("{:#}", anyhow::Error::new(error));
            assert_eq!(printed.matches(cause).count(), 1, "{printed}");
            assert_eq!(printed.matches("bpf_map_update_elem").count(), usize::from(cause == "os error 7"), "{printed}");
        }
    }
}
