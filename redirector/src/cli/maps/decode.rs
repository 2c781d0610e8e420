//! Every map's entries in words.

use std::net::IpAddr;
use std::path::{Path as FilePath, PathBuf};

use anyhow::{Context as _, Result, bail};
use aya::Pod;
use aya::maps::{Array, Map, MapData, MapError, PerCpuArray};
use redirector_ebpf::abi::PORTS;
use redirector_ebpf::packet::Address;
use redirector_ebpf::reason::Reason;
use redirector_ebpf::tables::cell::Cell;
use redirector_ebpf::tables::flow::WAYS;
use redirector_ebpf::tables::names::kind;
use redirector_ebpf::tables::path::{alive, kind as carried};
use redirector_ebpf::tables::{
    AliveNodes, Backend, FragmentKey, Mark, NeighbourKey, Node, Path, Pool, Port, Row, Service, ServiceKey, Slot,
    Traffic, Vip,
};
use serde_json::{Value, json};

use super::{Entry, liveness, paths};
use crate::cli::get::{ranges, vip_lines};
use crate::cli::output::{Names, class, echo, mac, mode, protocol, state, unmatched};
use crate::dataplane::address::ip;
use crate::dataplane::batch::read_array;
use crate::dataplane::flows::{Flow, now};
use crate::dataplane::maps::{Maps, name_text, read};
use crate::dataplane::registry::word;

/// The pinned maps.
pub(super) use crate::dataplane::load::PINNED as NAMES;

/// Entries, one after the other.
type Entries<'a> = Box<dyn Iterator<Item = Entry> + 'a>;

/// A node's maps and the names for what is in them.
pub(super) struct Decoder {
    directory: PathBuf,
    maps: Maps,
    node: Node,
    names: Names,
}

impl Decoder {
    pub(super) fn open(directory: &FilePath, maps: Maps) -> Result<Self> {
        let names = Names::read(&maps)?;
        let node = maps.node.get(&0, 0).map_err(read("NODE"))?;
        Ok(Self { directory: directory.to_owned(), maps, node, names })
    }

    /// The entries of a map.
    pub(super) fn entries(&self, name: &str) -> Result<Entries<'_>> {
        let Self { maps, names, .. } = self;
        Ok(match name {
            "NODE" => array("NODE", maps.node.iter(), |_, node: Node| Some(self.node(&node)))?,
            "PROGRAMS" => {
                // The kernel answers with the number of the program behind an entry.
                let programs: Array<_, u32> = Array::try_from(Map::Array(self.pin("PROGRAMS")?))?;
                let set = (0..programs.len()).filter_map(move |port| Some((port, programs.get(&port, 0).ok()?)));
                Box::new(set.map(|(port, id)| entry(port, json!({"port": names.port(port as u8), "program": id}))))
            }
            "PORTS" => array("PORTS", maps.ports.iter(), |at, port: Port| {
                let name = names.port(at as u8);
                some(
                    port.ifindex != 0,
                    || json!({"name": name, "mac": mac(port.mac), "ifindex": port.ifindex, "mtu": port.mtu}),
                )
            })?,
            "DEVICES" => {
                let devices = (0..maps.devices.len()).filter_map(|at| Some((at, maps.devices.get(at, 0).ok()?)));
                Box::new(devices.map(|(at, device)| entry(at, json!({"ifindex": device.if_index}))))
            }
            "PORT_NUMBERS" => hash("PORT_NUMBERS", maps.port_numbers.iter(), |ifindex, port| {
                entry(ifindex, json!({"port": port, "name": names.port(port as u8)}))
            })?,
            "VIPS4" | "VIPS6" | "PREFIXES4" | "PREFIXES6" => {
                let lines = vip_lines(maps)?.into_iter();
                let (v4, single) = (name.ends_with('4'), name.starts_with("VIPS"));
                let here = lines.filter(move |(vip, _)| vip.address().is_ipv4() == v4 && vip.is_single() == single);
                Box::new(here.map(|(prefix, line)| entry(prefix, vip(&line))))
            }
            "CELLS" => {
                let sets = maps.cells()?.into_iter().enumerate();
                let cells = sets.flat_map(|(set, cells)| cells.ways.map(|cell| (set, cell)));
                Box::new(cells.filter(|(_, cell)| cell.sort != 0).map(|(set, cell)| entry(set, self.cell(&cell))))
            }
            "LISTED" => array("LISTED", maps.listed.iter(), |_, word: u64| {
                some(word != 0, || json!({"addresses": word.count_ones()}))
            })?,
            "SERVICES" => hash("SERVICES", maps.services.iter(), |key, line| {
                entry(self.service_key(&key, 64), self.service(&line))
            })?,
            "RANGES" => Box::new(
                ranges(maps)?
                    .into_iter()
                    .map(|(key, bits, line)| entry(self.service_key(&key, bits), self.service(&line))),
            ),
            "POOLS" => array("POOLS", maps.pools.iter(), |at, pool: Pool| {
                let name = names.pool(at as u16);
                let left = pool.old_until.saturating_sub(now()) / 1_000_000_000;
                let panics = pool.panics != 0;
                some(
                    pool.rows != 0,
                    || json!({"name": name, "table": pool.table, "rows": pool.rows, "old_for_s": left, "panics": panics}),
                )
            })?,
            "POOL_TABLES" => Box::new(self.pool_tables()?.into_iter()),
            "SLOTS" => {
                let slots = maps.slots()?.into_iter().enumerate();
                Box::new(slots.map(|(at, slot)| entry(at, self.slot(&slot))))
            }
            "ALIVE" => array("ALIVE", maps.alive.iter(), |_, alive: AliveNodes| {
                let nodes: Vec<_> = (1..=254).filter(|id| alive.is_alive(*id)).map(|id| names.node(id)).collect();
                Some(json!({"nodes": nodes}))
            })?,
            "WATCH" | "CONDITION" | "SENT" | "HEARD" | "WATCHED" | "LATCHES" | "PULSE" | "CLOCK" => {
                Box::new(liveness::entries(&maps.liveness, names, name)?.into_iter())
            }
            "REFUSED" => Box::new(maps.refused()?.into_iter().map(|(key, count)| {
                let (service, kind, why) = key.parts();
                let service = names.service(service);
                entry(
                    key.0,
                    json!({"service": service, "class": class(kind), "reason": why.reason().name(), "packets": count}),
                )
            })),
            "LEG_RULES" | "LEG_SENT" | "LEG_HEARD" | "WATCHED_PATHS" | "PATH_LATCHES" | "SIGNALS" | "SIGHTINGS" => {
                Box::new(paths::entries(&maps.path_health, names, name)?.into_iter())
            }
            "PEERS" => array("PEERS", maps.peers.iter(), |at, path: Path| {
                let node = names.node((at as usize / PORTS) as u8);
                some(path != Path::default(), || self.path(Some(node), &path))
            })?,
            "WAYS" => array("WAYS", maps.ways.iter(), |at, port: u64| {
                let is_member = maps.peer(at as u8).is_ok_and(|path| path != Path::default());
                some(is_member, || json!({"node": names.node(at as u8), "port": names.port(port as u8)}))
            })?,
            "PEER_MACS" => hash("PEER_MACS", maps.peer_macs.iter(), |word, mark| {
                let mark = Mark(mark);
                entry(
                    mac(word).unwrap_or_default(),
                    json!({"node": names.node(mark.sender()), "final": mark.is_final()}),
                )
            })?,
            "BACKENDS" => array("BACKENDS", maps.backends.iter(), |at, row: Backend| {
                let paths: Vec<_> = row.paths.into_iter().filter(|path| *path != 0).collect();
                let name = names.backend_if(at as u16);
                some(row != Backend::default(), || json!({"name": name, "pool": names.pool(row.pool), "paths": paths}))
            })?,
            "PATHS" => array("PATHS", maps.paths.iter(), |at, path: Path| {
                some(path != Path::default(), || self.path(Some(names.path(at as u16)), &path))
            })?,
            "PATH_ALIVE" => array("PATH_ALIVE", maps.path_alive.iter(), |at, word: u64| {
                let is_path = word != 0 || names.registry.name(kind::PATH, at).is_some();
                let (is_on, carrier) = (word == alive::ON, word != alive::UNPLUGGED);
                some(is_path, || json!({"name": names.path(at as u16), "alive": is_on, "carrier": carrier}))
            })?,
            "NEIGHBOURS" => array("NEIGHBOURS", maps.neighbours.iter(), |at, word: u64| {
                some(word != 0, || json!({"name": names.neighbour(at), "mac": mac(word)}))
            })?,
            "NEIGHBOUR_IDS" => hash("NEIGHBOUR_IDS", maps.neighbour_ids.iter(), |key: NeighbourKey, id| {
                // As `ip` writes an address that means something on one interface only.
                let address = format!("{}%{}", canonical(&key.address), key.ifindex);
                entry(address, json!({"neighbour": id, "name": names.neighbour(id)}))
            })?,
            "HELD4" => {
                hash("HELD4", maps.held4.iter(), |vip: u32, index| self.held(ip(&Address::v4(vip), false), index))?
            }
            "HELD6" => hash("HELD6", maps.held6.iter(), |vip: Address, index| self.held(ip(&vip, true), index))?,
            "FLOWS4" | "FLOWS6" => Box::new(self.flows(name == "FLOWS6").map(|flow| self.flow(&flow))),
            "TUPLES4" | "TUPLES6" => Box::new(self.flows(name == "TUPLES6").map(|flow| self.tuple(&flow))),
            "FRAGMENTS" => hash("FRAGMENTS", maps.fragments.iter(), |key, decision| self.fragment(&key, decision))?,
            "BUDGETS" => self.per_cpu("BUDGETS", |at, values: Vec<u64>| {
                let names = ["new-flows", "inserts", "replies"];
                Some(json!({"name": names.get(at as usize), "full_at_ns": values}))
            })?,
            "SOURCES" => {
                let cells = Array::try_from(Map::Array(self.pin("SOURCES")?))?;
                array("SOURCES", cells.iter(), |_, word: u64| some(word != 0, || json!({"full_at_ns": word})))?
            }
            "REASONS" => self.per_cpu("REASONS", |at, values: Vec<u64>| {
                let name = Reason::ALL.get(at as usize).map(|reason| reason.name());
                let packets: u64 = values.iter().sum();
                some(packets != 0, || json!({"name": name, "packets": packets, "per_cpu": values}))
            })?,
            "SERVICE_TRAFFIC" => self.per_cpu("SERVICE_TRAFFIC", |at, values: Vec<Traffic>| {
                let total = values.iter().map(|cpu| cpu.packets).sum::<u64>();
                let bytes = values.iter().map(|cpu| cpu.bytes).sum::<u64>();
                some(total != 0, || json!({"name": names.service(at as u16), "packets": total, "bytes": bytes}))
            })?,
            "BACKEND_TRAFFIC" => self.per_cpu("BACKEND_TRAFFIC", |at, values: Vec<[Traffic; 4]>| {
                let by_rank = |count: fn(&Traffic) -> u64| -> Vec<u64> {
                    (0..3).map(|rank| values.iter().map(|cpu| count(&cpu[rank])).sum()).collect()
                };
                let (packets, bytes) = (by_rank(|traffic| traffic.packets), by_rank(|traffic| traffic.bytes));
                let name = names.backend_if(at as u16);
                let is_used = packets.iter().any(|packets| *packets != 0);
                some(is_used, || json!({"name": name, "packets_by_rank": packets, "bytes_by_rank": bytes}))
            })?,
            "NAMES" => hash("NAMES", maps.names.iter(), |key, name| {
                entry(format!("{}/{}", word(key.kind), key.id), json!(name_text(&name)))
            })?,
            "TRACE" => array("TRACE", maps.trace.iter(), |_, filter| {
                let v6 = filter.version == 6;
                Some(json!({
                    "client": ip(&filter.src, v6), "client_mask": ip(&filter.src_mask, v6),
                    "client_port": u16::from_be(filter.sport), "vip": ip(&filter.dst, v6),
                    "vip_mask": ip(&filter.dst_mask, v6), "vip_port": u16::from_be(filter.dport),
                    "protocol": filter.protocol, "version": filter.version,
                }))
            })?,
            // A ring gives each record to one reader: looking would take them from the one that they are for.
            "CAPTURED" | "FLOW_EVENTS" => Box::new(std::iter::empty()),
            other => bail!("no map is called `{other}`; there are {}", NAMES.join(", ")),
        })
    }

    fn pin(&self, name: &str) -> Result<MapData> {
        let path = self.directory.join(name);
        MapData::from_pin(&path).with_context(|| format!("cannot open {}", path.display()))
    }

    /// Entries of a map that each CPU has values of its own in.
    fn per_cpu<V: Pod>(&self, name: &'static str, value: impl Fn(u32, Vec<V>) -> Option<Value>) -> Result<Entries<'_>> {
        let map = PerCpuArray::<_, V>::try_from(Map::PerCpuArray(self.pin(name)?))?;
        array(name, map.iter(), |at, values| value(at, values.to_vec()))
    }

    /// The rows of all tables that are there, those of a pool that are not in force too.
    fn pool_tables(&self) -> Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for number in 0..self.maps.pool_tables.len() {
            let Ok(table) = self.maps.pool_tables.get(&number, 0) else { continue };
            let rows: Vec<Row> = read_array(&table, table.info()?.max_entries(), "POOL_TABLES")?;
            entries.extend(rows.iter().enumerate().map(|(at, row)| {
                let current = self.names.backend_if(row.current());
                let previous = self.names.backend_if(row.previous());
                entry(
                    format!("{number}/{at}"),
                    json!({
                        "current": current, "previous": previous, "disputed": row.disputed(), "severed": row.is_severed(0),
                    }),
                )
            }));
        }
        Ok(entries)
    }

    fn node(&self, node: &Node) -> Value {
        let limit = |rate: u32| (rate != 0).then_some(rate);
        json!({
            "id": node.id, "name": self.names.node(node.id), "cluster": node.cluster, "slots": node.slot_mask + 1,
            "shed_level": node.shed_level, "shed_least": node.shed_least, "tells_refused": node.tells_refused != 0, "trace": node.trace != 0, "prefixes": node.prefixes != 0,
            "hop4": some_address(&node.hop4, false), "hop6": some_address(&node.hop6, true),
            "new_flows": limit(node.new_flows), "new_flows_per_source": limit(node.new_flows_per_source),
            "inserts": limit(node.inserts), "replies": node.replies, "idle_s": node.idle,
            // The keys are the cluster's secret.
            "keys": "hidden",
        })
    }

    fn slot(&self, slot: &Slot) -> Value {
        let ranks: Vec<_> = slot.ranks.iter().filter_map(|node| self.names.node_if(*node)).collect();
        json!({"ranks": ranks, "previous": self.names.node_if(slot.previous), "version": slot.version})
    }

    fn service_key(&self, key: &ServiceKey, bits: u32) -> String {
        let port = u16::from_be(key.port);
        let prefix = if bits < 64 { format!("/{}", bits.saturating_sub(48)) } else { String::new() };
        format!("{} {} {port}{prefix}", self.names.vip(key.vip), protocol(key.protocol))
    }

    fn cell(&self, cell: &Cell) -> Value {
        let vip = ip(&cell.vip, cell.sort >> 24 == 6);
        let port = u16::from_be(cell.sort as u16);
        let key = format!("{vip} {} {port}", protocol((cell.sort >> 16) as u8));
        json!({"key": key, "service": self.service(&cell.service)})
    }

    fn service(&self, line: &Service) -> Value {
        json!({
            "name": self.names.service(line.id), "id": line.id, "pool": self.names.pool(line.pool),
            "class": class(line.class), "affinity": if line.owned != 0 { "owned" } else { "shared" },
        })
    }

    fn path(&self, name: Option<String>, path: &Path) -> Value {
        let v6 = path.outer_v6 != 0;
        let tunnel = path.kind != carried::L2;
        json!({
            "name": name, "mode": mode(path.kind), "interface": self.names.port(path.port),
            "vlan": (path.vlan != 0).then_some(path.vlan), "next_hop": self.names.neighbour(path.neighbour),
            "mtu": path.mtu, "local": tunnel.then(|| ip(&path.local, v6)), "remote": some_address(&path.remote, v6),
            "remote_port": (path.remote_port != 0).then(|| u16::from_be(path.remote_port)),
            "source_bits": (path.source_bits != 0).then_some(path.source_bits),
        })
    }

    fn held(&self, vip: IpAddr, ifindex: u32) -> Entry {
        let port = self.maps.port_numbers.get(&ifindex, 0).ok();
        entry(vip, json!({"ifindex": ifindex, "interface": port.map(|port| self.names.port(port as u8))}))
    }

    fn flows(&self, v6: bool) -> impl Iterator<Item = Flow> + '_ {
        self.maps.flows.iter(&self.node.hash_key).filter(move |flow| flow.v6 == v6)
    }

    fn flow(&self, flow: &Flow) -> Entry {
        let held = &flow.entry;
        let idle = held.idle(now());
        let idle = if held.proven() { json!({"idle_s": idle}) } else { json!({"idle_ms_mod_8192": idle}) };
        let mut value = json!({
            "tag": format!("{:08x}", held.tag()), "backend": self.names.backend_if(held.backend()),
            "state": state(held.state()), "proven": held.proven(), "ambiguous": held.ambiguous(),
        });
        if let (Value::Object(fields), Value::Object(idle)) = (&mut value, idle) {
            fields.extend(idle);
        }
        entry(format!("{}/{}", flow.place.0, flow.place.1), value)
    }

    fn tuple(&self, flow: &Flow) -> Entry {
        let age = now().saturating_sub(flow.record.since) / 1_000_000_000;
        let value = json!({
            "source": flow.source(), "destination": flow.destination(),
            "protocol": protocol(flow.record.tuple.protocol), "service": self.names.service(flow.record.service),
            "since_s": age, "version": flow.record.version,
        });
        entry(flow.place.0 as usize * WAYS + flow.place.1, value)
    }

    fn fragment(&self, key: &FragmentKey, decision: u64) -> Entry {
        // IPv4 addresses fill one word of four.
        let v6 = key.src.words[1..] != [0; 3] || key.dst.words[1..] != [0; 3];
        let text = format!("{} {} {:#x} {}", ip(&key.src, v6), ip(&key.dst, v6), key.id, protocol(key.protocol));
        let value = json!({
            "pool": self.names.pool(decision as u16), "service": self.names.service((decision >> 16) as u16),
            "backend": self.names.backend_if((decision >> 32) as u16 & 0x7fff),
            "node": self.names.node_if((decision >> 48) as u8),
        });
        entry(text, value)
    }
}

pub(super) fn entry(key: impl ToString, value: Value) -> Entry {
    Entry { key: key.to_string(), value }
}

fn some(is_used: bool, value: impl FnOnce() -> Value) -> Option<Value> {
    is_used.then(value)
}

fn some_address(address: &Address, v6: bool) -> Option<IpAddr> {
    (*address != Address::default()).then(|| ip(address, v6))
}

fn canonical(address: &Address) -> IpAddr {
    ip(address, true).to_canonical()
}

fn vip(line: &Vip) -> Value {
    json!({
        "id": line.id, "unmatched": unmatched(line.unmatched), "echo": echo(line.echo), "ranges": line.ranges & 1 == 1,
    })
}

/// An array's entries for which there is anything to say.
fn array<'a, V>(
    name: &'static str,
    values: impl Iterator<Item = Result<V, MapError>>,
    value: impl Fn(u32, V) -> Option<Value>,
) -> Result<Entries<'a>> {
    let mut entries = Vec::new();
    for (at, held) in values.enumerate() {
        if let Some(value) = value(at as u32, held.map_err(read(name))?) {
            entries.push(entry(at, value));
        }
    }
    Ok(Box::new(entries.into_iter()))
}

/// A hash map's entries.
fn hash<'a, K, V>(
    name: &'static str,
    held: impl Iterator<Item = Result<(K, V), MapError>>,
    line: impl Fn(K, V) -> Entry,
) -> Result<Entries<'a>> {
    let held: Vec<(K, V)> = held.collect::<Result<_, _>>().map_err(read(name))?;
    let mut entries: Vec<_> = held.into_iter().map(|(key, value)| line(key, value)).collect();
    entries.sort_by(|a, b| a.key.cmp(&b.key));
    Ok(Box::new(entries.into_iter()))
}
