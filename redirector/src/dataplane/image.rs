//! What the maps should hold for a configuration: computed whole, before any map is touched.

mod cluster;
mod pools;
mod services;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::time::Duration;

use redirector_ebpf::abi::PORTS;
use redirector_ebpf::packet::protocol;
use redirector_ebpf::tables::names::{NameKey, kind as named};
use redirector_ebpf::tables::{
    AliveNodes, Backend, NeighbourKey, Node, Path, Port, Row, Service, ServiceKey, Slot, Vip,
};

use super::address::{mac_word, mapped};
use super::registry::{Full, Registry};
use crate::config::{Beats, Config, OnDeath, Passive, Prefix, Protocol};
use crate::paths::probes::Target;
use crate::pool::Member;

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

    /// The number of a next hop.
    fn neighbour(&mut self, interface: &str, hop: IpAddr, peer: Option<u8>) -> Result<u32, ImageError> {
        let (_, port) = self.port(interface)?;
        let id = self.registry.assign(named::NEIGHBOUR, &format!("{hop}%{interface}"), 4096)?;
        let entry = self.neighbours.entry(id).or_insert(NextHop { interface: port.ifindex, address: hop, peer });
        entry.peer = entry.peer.or(peer);
        Ok(id)
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
