//! What the maps should hold for a configuration: computed whole, before any map is touched.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::time::Duration;

use redirector_ebpf::abi::{GUE_PORT, HOP_PORT, NODES, PATHS, PORTS};
use redirector_ebpf::packet::protocol;
use redirector_ebpf::tables::names::{NameKey, kind as named};
use redirector_ebpf::tables::path::kind as carried;
use redirector_ebpf::tables::service::{echo, unmatched};
use redirector_ebpf::tables::{
    AliveNodes, Backend, NeighbourKey, Node, Path, Port, Row, Service, ServiceKey, Slot, Vip,
};
use siphasher::sip128::SipHasher24;

use super::address::{address, ip, mac_word, mapped};
use super::registry::{Full, Registry};
use crate::config::{
    Affinity, BackendState, Beats, Bfd, Config, Echo, Forward, MemberLink, Mode, OnDeath, Passive, Pool as PoolConfig,
    PortRange, Prefix, Protocol, Refused, Unmatched,
};
use crate::ownership;
use crate::paths::probes::Target;
use crate::pool::{self, Member};

/// What must be known of an interface of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// The kernel's number of it.
    pub index: u32,
    /// Its MAC address.
    pub mac: [u8; 6],
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

/// This host's interfaces by name.
pub type Links = HashMap<String, Link>;

/// A next hop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NextHop {
    /// The interface that it is reached over.
    pub interface: u32,
    /// Its address.
    pub address: IpAddr,
    /// The node that it is, where packets are marked by MAC address.
    pub peer: Option<u8>,
}

impl NextHop {
    /// What it is known by.
    pub fn key(&self) -> NeighbourKey {
        NeighbourKey { address: mapped(self.address), ifindex: self.interface, pad: 0 }
    }
}

/// A way over which beats go to the far end of paths, as packets do.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Leg {
    /// Port, VLAN, next hop and tunnel.
    pub path: Path,
    /// Where answers go: an address of this node's on the port.
    pub source: IpAddr,
    /// Who answers: the tunnel's far end, or the next hop where there is no tunnel.
    pub target: IpAddr,
}

/// How a path is watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watched {
    /// The way that beats to its far end take; none where none go.
    pub leg: Option<Leg>,
    /// How often they go.
    pub beats: Beats,
    /// Answers in a row after which it is used again.
    pub rise: u32,
    /// How long it waits at least until it is used again.
    pub hold_down: Duration,
    /// What its far end is asked besides.
    pub probe: Option<Target>,
    /// What is made of it when its flows die.
    pub passive: Passive,
    /// The BFD session that it goes by, as its place in the configuration.
    pub session: Option<usize>,
}

/// A pool as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolImage {
    /// Its backends that get new flows, with weight.
    pub members: Vec<Member>,
    /// The same, as configured: some may be dead.
    pub configured: Vec<Member>,
    /// Rows that its table needs.
    pub rows: usize,
    /// What becomes of flows of backends that are dead.
    pub on_death: OnDeath,
    /// What becomes of flows of backends that drain, once their time is over.
    pub at_deadline: OnDeath,
    /// Backends whose time to drain is over, where this node decides alone.
    pub drained: BTreeSet<u16>,
    /// How long a change of it takes to settle at least.
    pub settle: Duration,
}

/// What the maps should hold.
#[derive(Clone, Debug, Default)]
#[expect(missing_docs, reason = "each field is the content of the map of its name")]
pub struct Image {
    pub node: Node,
    pub ports: Vec<Port>,
    pub vips: BTreeMap<Prefix, Vip>,
    pub services: HashMap<ServiceKey, Service>,
    /// By key and by how many of its 64 bits count.
    pub ranges: HashMap<(ServiceKey, u32), Service>,
    pub pools: BTreeMap<u16, PoolImage>,
    pub backends: BTreeMap<u16, Backend>,
    /// Backends that are dead or have drained for long enough, and whose flows do not stay with them.
    pub fallen: BTreeSet<u16>,
    /// Those of them that have drained: nobody will have their flows again.
    pub drained: BTreeSet<u16>,
    pub paths: BTreeMap<u16, Path>,
    /// How paths are watched.
    pub watched: BTreeMap<u16, Watched>,
    pub neighbours: BTreeMap<u32, NextHop>,
    /// Ways to other nodes, those that come first.
    pub peers: BTreeMap<u8, Path>,
    /// All ways that packets may take to them, by node and port.
    pub ways: BTreeMap<(u8, u8), Path>,
    /// Ways that beats take, by node and port.
    pub links: BTreeMap<(u8, u8), Path>,
    pub slots: Vec<Slot>,
    /// Rows that the cluster has agreed on, by pool; those of other pools stay as they are. None: this node works out slots
    /// and rows by itself.
    pub agreed: Option<BTreeMap<u16, Vec<Row>>>,
    pub alive: AliveNodes,
    pub registry: Registry,
}

/// Why no image can be made of a configuration that is right in itself.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// An interface is not there.
    #[error("interface `{0}` does not exist on this host; `ip link` lists what does")]
    NoInterface(String),
    /// A tunnel has no source address.
    #[error("interface `{interface}` has no {family} address for the tunnel to {remote}: set `source` on the path")]
    NoSource {
        /// The interface.
        interface: String,
        /// IPv4 or IPv6.
        family: &'static str,
        /// The tunnel's end.
        remote: IpAddr,
    },
    /// More of something than the maps hold.
    #[error(transparent)]
    Full(#[from] Full),
}

/// Computes the image of a configuration. `registry` is what the maps hold at present; `key` is the cluster's.
///
/// # Errors
/// [`ImageError`]: nothing was changed.
pub fn compile(config: &Config, key: [u8; 16], links: &Links, registry: Registry) -> Result<Image, ImageError> {
    let mut image = Image { registry, ..Image::default() };
    image.ports(config, links)?;
    image.node(config, key);
    image.members(config, links)?;
    image.pools(config, links)?;
    image.services(config)?;
    Ok(image)
}

/// The number under which a service's protocol stands.
pub fn protocol_number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => protocol::TCP,
        Protocol::Udp => protocol::UDP,
        Protocol::Icmp => protocol::ICMP,
    }
}

/// The least set of prefixes of 16-bit ports that covers a range: (port, bits that count).
fn port_prefixes(range: PortRange) -> Vec<(u16, u32)> {
    let (mut first, last) = (u32::from(range.first), u32::from(range.last));
    let mut prefixes = Vec::new();
    while first <= last {
        let aligned = if first == 0 { 16 } else { first.trailing_zeros() };
        let fitting = (last - first + 1).ilog2();
        let bits = aligned.min(fitting);
        prefixes.push((first as u16, 16 - bits));
        first += 1 << bits;
    }
    prefixes
}

fn seconds(time: Duration) -> u16 {
    u16::try_from(time.as_secs().max(1)).unwrap_or(u16::MAX)
}

impl PoolImage {
    /// Whether flows of backends that are dead do not stay with them.
    pub fn parts(&self) -> bool {
        self.on_death != OnDeath::Hold
    }

    /// What becomes of flows of backends that are dead, or whose time to drain is over.
    pub fn fates(&self, dead: &BTreeSet<u16>, drained: &BTreeSet<u16>) -> BTreeMap<u16, OnDeath> {
        let dead = dead.iter().map(|id| (*id, self.on_death));
        // The time to drain was given for an end, so that holds where a backend is both.
        dead.chain(drained.iter().map(|id| (*id, self.at_deadline))).collect()
    }

    /// Backends that get no new flows though they are configured to: they are dead.
    pub fn dead(&self) -> BTreeSet<u16> {
        let lives = |member: &Member| self.members.iter().any(|other| other.id == member.id);
        self.configured.iter().filter(|member| !lives(member)).map(|member| member.id).collect()
    }
}

impl Image {
    /// A backend as packets see it. One whose flows do not stay is of no pool: so whoever has an entry there is unknown.
    pub fn seen(&self, id: u16, backend: &Backend) -> Backend {
        if self.fallen.contains(&id) { Backend { pool: 0, ..*backend } } else { *backend }
    }

    /// What its configuration names.
    pub fn used(&self) -> HashSet<NameKey> {
        let ids = |kind, ids: Vec<u32>| ids.into_iter().map(move |id| NameKey { kind, id });
        let services = self.services.values().chain(self.ranges.values()).map(|service| u32::from(service.id));
        let ports = self.ports.iter().enumerate().filter(|(_, port)| port.ifindex != 0).map(|(at, _)| at as u32 + 1);
        ids(named::VIP, self.vips.values().map(|vip| vip.id).collect())
            .chain(ids(named::SERVICE, services.collect()))
            .chain(ids(named::POOL, self.pools.keys().map(|id| u32::from(*id)).collect()))
            .chain(ids(named::BACKEND, self.backends.keys().map(|id| u32::from(*id)).collect()))
            .chain(ids(named::PATH, self.paths.keys().map(|id| u32::from(*id)).collect()))
            .chain(ids(named::NEIGHBOUR, self.neighbours.keys().copied().collect()))
            .chain(ids(named::PORT, ports.collect()))
            .collect()
    }

    /// The number of an attached interface's port.
    pub fn port_number(&self, interface: &str) -> Option<u8> {
        let number = self.registry.id(named::PORT, interface)? - 1;
        self.ports.get(number as usize).filter(|port| port.ifindex != 0).map(|_| number as u8)
    }

    fn ports(&mut self, config: &Config, links: &Links) -> Result<(), ImageError> {
        self.ports = vec![Port::default(); PORTS];
        for interface in &config.interfaces {
            let link = links.get(&interface.name).ok_or_else(|| ImageError::NoInterface(interface.name.clone()))?;
            // Numbers of ports count from 0, numbers in the registry from 1.
            let number = self.registry.assign(named::PORT, &interface.name, PORTS as u32 + 1)? - 1;
            self.ports[number as usize] = Port { mac: mac_word(link.mac), ifindex: link.index, mtu: link.mtu };
        }
        Ok(())
    }

    fn port(&self, interface: &str) -> Result<(u8, Port), ImageError> {
        let number = self.registry.id(named::PORT, interface);
        let number = number.ok_or_else(|| ImageError::NoInterface(interface.to_owned()))? - 1;
        Ok((number as u8, self.ports[number as usize]))
    }

    fn node(&mut self, config: &Config, key: [u8; 16]) {
        let limits = &config.limits;
        let timeouts = &config.timeouts;
        let word = |label: u64| {
            let hash = SipHasher24::new_with_key(&key).hash(&label.to_le_bytes());
            [hash.h1, hash.h2]
        };
        // Labels 1 to 6 give the hash's words, 7 the tags'.
        let hash_key = std::array::from_fn(|i| word(i as u64 / 2 + 1)[i % 2]);
        let mut idle = [seconds(timeouts.other); 8];
        idle[1] = seconds(timeouts.tcp_new);
        idle[2] = seconds(timeouts.tcp_established);
        idle[3] = seconds(timeouts.tcp_closing);
        idle[4] = seconds(timeouts.udp);
        idle[6] = seconds(timeouts.udp_new);
        // It may be an idle connection as well as any.
        idle[7] = idle[2];
        self.node = Node {
            hash_key,
            tag_key: word(7),
            cluster: config.cluster.id,
            slot_mask: config.cluster.slots - 1,
            new_flows: limits.new_flows_per_second,
            new_flows_per_source: limits.new_flows_per_source,
            inserts: limits.inserts_per_second,
            replies: limits.icmp_per_second,
            idle,
            id: config.node.id,
            shed_level: limits.shed_level,
            shed_least: limits.shed_level,
            prefixes: u8::from(config.vips.iter().any(|vip| !vip.address.is_single())),
            tells_refused: u8::from(matches!(config.shedding.answer, Refused::Reject)),
            tells_flows: u8::from(config.replication.enabled && config.members.len() > 1),
            ..Node::default()
        };
    }

    fn members(&mut self, config: &Config, links: &Links) -> Result<(), ImageError> {
        let mut weights = vec![(config.node.id, 1)];
        self.alive.set(config.node.id, true);
        if !config.members.is_empty() {
            weights = config.members.iter().map(|member| (member.id, member.weight)).collect();
        }
        for member in &config.members {
            if member.id == config.node.id {
                match member.address {
                    IpAddr::V4(_) => self.node.hop4 = address(member.address),
                    IpAddr::V6(_) => self.node.hop6 = address(member.address),
                }
                continue;
            }
            self.alive.set(member.id, member.alive);
            let own = config.members.iter().find(|own| own.id == config.node.id);
            let peer = matches!(member.forward, Forward::Mac).then_some(member.id);
            let neighbour = self.neighbour(&member.interface, member.next_hop, peer)?;
            let (port, row) = self.port(&member.interface)?;
            let local = match own {
                Some(own) if own.address.is_ipv4() == member.address.is_ipv4() => own.address,
                _ => source(links, &member.interface, member.address)?,
            };
            let path = Path {
                kind: if peer.is_some() { carried::L2 } else { carried::HOP },
                port,
                vlan: member.vlan,
                neighbour,
                mtu: row.mtu.min(u32::from(u16::MAX)) as u16,
                outer_v6: u8::from(member.address.is_ipv6()),
                remote_port: HOP_PORT.to_be(),
                local: address(local),
                remote: address(member.address),
                ..Path::default()
            };
            self.peers.insert(member.id, path);
            self.ways.insert((member.id, port), path);
            self.links.insert((member.id, port), path);
            for further in &member.links {
                let is_marked = peer.is_some() && further.next_hop == further.address;
                let link = self.member_link(further, links, peer.filter(|_| is_marked))?;
                self.links.insert((member.id, link.port), link);
                // Across routers a node takes packets at one address, by whichever interface they come.
                let kind = if is_marked { carried::L2 } else { carried::HOP };
                let way = Path { kind, outer_v6: path.outer_v6, local: path.local, remote: path.remote, ..link };
                self.ways.insert((member.id, link.port), Path { remote_port: path.remote_port, ..way });
            }
        }
        weights.sort_unstable();
        let ranks = ownership::target(&weights, config.cluster.slots as usize, 1).unwrap_or_default();
        self.slots = ranks.into_iter().map(|ranks| Slot { ranks, version: 1, ..Slot::default() }).collect();
        debug_assert!(usize::from(u8::MAX) < NODES);
        Ok(())
    }

    /// A further way to a node, as beats take it. `peer` is the node, where packets are marked by MAC address.
    fn member_link(&mut self, member: &MemberLink, links: &Links, peer: Option<u8>) -> Result<Path, ImageError> {
        let neighbour = self.neighbour(&member.interface, member.next_hop, peer)?;
        let (port, row) = self.port(&member.interface)?;
        Ok(Path {
            port,
            vlan: member.vlan,
            neighbour,
            mtu: row.mtu.min(u32::from(u16::MAX)) as u16,
            outer_v6: u8::from(member.address.is_ipv6()),
            local: address(source(links, &member.interface, member.address)?),
            remote: address(member.address),
            ..Path::default()
        })
    }

    /// The number of a next hop.
    fn neighbour(&mut self, interface: &str, hop: IpAddr, peer: Option<u8>) -> Result<u32, ImageError> {
        let (_, port) = self.port(interface)?;
        let id = self.registry.assign(named::NEIGHBOUR, &format!("{hop}%{interface}"), 4096)?;
        let entry = self.neighbours.entry(id).or_insert(NextHop { interface: port.ifindex, address: hop, peer });
        entry.peer = entry.peer.or(peer);
        Ok(id)
    }

    fn pools(&mut self, config: &Config, links: &Links) -> Result<(), ImageError> {
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

    fn services(&mut self, config: &Config) -> Result<(), ImageError> {
        for vip in &config.vips {
            let id = self.registry.assign(named::VIP, &vip.address.to_string(), config.tables.vips)?;
            let ranged = config.services.iter().any(|service| {
                service.vip == vip.address && service.ports.iter().any(|range| range.first != range.last)
            });
            let row = Vip {
                id,
                ranges: u8::from(ranged),
                unmatched: match vip.unmatched {
                    Unmatched::Drop => unmatched::DROP,
                    Unmatched::Reject => unmatched::REJECT,
                    Unmatched::Pass => unmatched::PASS,
                },
                echo: match vip.echo {
                    Echo::Answer => echo::ANSWER,
                    Echo::Pass => echo::PASS,
                    Echo::Drop => echo::DROP,
                },
                pad: 0,
            };
            self.vips.insert(vip.address, row);
        }
        for service in &config.services {
            // The configuration's rules have made sure that VIP and pool are there.
            let (Some(vip), Some(pool)) =
                (self.vips.get(&service.vip).copied(), self.registry.id(named::POOL, &service.pool))
            else {
                continue;
            };
            let id = self.registry.assign(named::SERVICE, &service.name, config.tables.services)? as u16;
            let row = Service {
                id,
                pool: pool as u16,
                class: service.class as u8,
                owned: u8::from(matches!(service.affinity, Affinity::Owned)),
                dscp: u8::from(service.dscp),
                pad: 0,
            };
            let key = |port: u16| ServiceKey {
                vip: vip.id,
                protocol: protocol_number(service.protocol),
                pad: 0,
                port: port.to_be(),
            };
            if matches!(service.protocol, Protocol::Icmp) {
                self.services.insert(key(0), row);
                continue;
            }
            for &range in &service.ports {
                if range.first == range.last {
                    self.services.insert(key(range.first), row);
                    continue;
                }
                for (port, bits) in port_prefixes(range) {
                    self.ranges.insert((key(port), 48 + bits), row);
                }
            }
        }
        Ok(())
    }
}

/// Entries of the map of paths: each backend's, and as many again for rows that take the place of others.
pub fn paths_size(config: &Config) -> u32 {
    (config.tables.backends * 4).min(1 << 16)
}

/// The address from which a tunnel leaves an interface.
fn source(links: &Links, interface: &str, remote: IpAddr) -> Result<IpAddr, ImageError> {
    let link = links.get(interface).ok_or_else(|| ImageError::NoInterface(interface.to_owned()))?;
    let fits = |candidate: &&IpAddr| match candidate {
        IpAddr::V4(_) => remote.is_ipv4(),
        IpAddr::V6(v6) => remote.is_ipv6() && !v6.is_unicast_link_local(),
    };
    link.addresses.iter().find(fits).copied().ok_or_else(|| ImageError::NoSource {
        interface: interface.to_owned(),
        family: if remote.is_ipv6() { "IPv6" } else { "IPv4" },
        remote,
    })
}
