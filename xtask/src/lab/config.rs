//! The nodes' configuration files.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use super::topology::{Between, Fabric, Role, Topology, vip4, vip6};
use crate::traffic::{ECHO_PORT, HTTP_PORT};

/// The cluster's id.
pub(super) const CLUSTER: u32 = 7;

/// The key of beats to the far ends of paths.
const PATH_KEY: &str = "f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff";

/// Where in a lab's directory the certificates of its nodes are.
pub(super) const PKI: &str = "pki";

/// What the whole cluster serves; tests change it as they like.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Config {
    /// Addresses that the cluster answers for.
    pub vip: Vec<Vip>,
    /// What is served on them.
    pub service: Vec<Service>,
    /// Who serves it.
    pub pool: Vec<Pool>,
    /// Idle times other than the usual ones, by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub timeouts: BTreeMap<String, String>,
    /// How often nodes beat, if other than usual: `fast`, `extreme`, `25ms x 4`.
    #[serde(skip)]
    pub beats: Option<String>,
    /// Whether flows have no copies.
    #[serde(skip)]
    pub unreplicated: bool,
    /// Whether beats go to the far ends of paths.
    #[serde(skip)]
    pub path_key: bool,
    /// Fabrics over which nodes reach each other too, besides the segment of all.
    #[serde(skip)]
    pub links: Vec<Between>,
    /// The members by id and their weights; none: all nodes of the lab, each with weight 1.
    #[serde(skip)]
    pub members: BTreeMap<u8, u32>,
    /// How long a node is suspected before it is down, if other than usual.
    #[serde(skip)]
    pub down_after: Option<String>,
    /// How long a node's agent is silent before its slots are given to others, if other than usual.
    #[serde(skip)]
    pub silent_after: Option<String>,
    /// Further tables, as TOML.
    #[serde(skip)]
    pub more: String,
    /// How long a change of a flow waits until it is sent, if other than usual.
    #[serde(skip)]
    pub flush: Option<String>,
    /// Places for IPv4 flows, if other than the lab's usual few.
    #[serde(skip)]
    pub flows4: Option<u32>,
}

/// A virtual address or prefix.
#[derive(Clone, Debug, Serialize)]
pub struct Vip {
    /// Address or prefix.
    pub address: String,
    /// `drop`, `reject` or `pass`.
    pub unmatched: String,
    /// `answer`, `pass` or `drop`.
    pub echo: String,
    /// `none`, `arp` or `route`.
    pub ingress: String,
}

/// A service on a VIP.
#[derive(Clone, Debug, Serialize)]
pub struct Service {
    /// Unique name.
    pub name: String,
    /// One of the VIPs.
    pub vip: String,
    /// `tcp`, `udp` or `icmp`.
    pub protocol: String,
    /// One port, a range or any.
    pub ports: Ports,
    /// Priority class: `critical`, `high`, `normal` or `low`.
    pub class: String,
    /// `shared` or `owned`.
    pub affinity: String,
    /// The name of a pool.
    pub pool: String,
}

/// The ports of a service.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub enum Ports {
    /// A single one.
    One(u16),
    /// `"first-last"` or `"any"`.
    Text(String),
}

/// Backends that serve the same thing.
#[derive(Clone, Debug, Serialize)]
pub struct Pool {
    /// Unique name.
    pub name: String,
    /// `l2`, `ipip` or `gue`.
    pub mode: String,
    /// How long a change of the pool is kept in dispute at least.
    pub settle: String,
    /// How it is watched, where that is other than usual.
    #[serde(skip_serializing_if = "Health::is_usual")]
    pub health: Health,
    /// How its paths are probed, by field; nothing: they are not.
    #[serde(skip_serializing_if = "toml::Table::is_empty")]
    pub probe: toml::Table,
    /// The members.
    pub backend: Vec<Backend>,
}

/// How a pool is watched; what is none is as usual.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Health {
    /// Share of healthy weight below which all backends are used, per cent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub panic: Option<u8>,
    /// What becomes of a dead backend's flows: `hold`, `rehash` or `reset`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_death: Option<String>,
    /// What is made of it when flows die on a path: `off`, `show` or `out`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub passive: Option<String>,
    /// How long a backend that was dead takes to get all of its weight.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slow_start: Option<String>,
    /// How long a draining backend keeps its flows at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drain_deadline: Option<String>,
    /// What becomes of them then: `rehash` or `reset`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at_deadline: Option<String>,
}

impl Health {
    fn is_usual(&self) -> bool {
        *self == Self::default()
    }
}

/// A member of a pool.
#[derive(Clone, Debug, Serialize)]
pub struct Backend {
    /// The host's name in the lab.
    pub name: String,
    /// Its address, the far end of a tunnel where there is one.
    pub address: IpAddr,
    /// Share of the flows.
    pub weight: u32,
    /// `active` or `draining`.
    pub state: String,
    /// Ranked ways to it.
    pub path: Vec<Way>,
}

/// A way to a backend.
#[derive(Clone, Debug, Serialize)]
pub struct Way {
    /// Egress interface.
    pub interface: String,
    /// Whose MAC to send to.
    pub next_hop: IpAddr,
    /// VLAN, or 0.
    pub vlan: u16,
    /// The tunnel's far end, if it is not the backend's address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remote: Option<IpAddr>,
}

impl Config {
    /// Two VIPs of each family. The first pair: TCP port 80, `shared`, without a tunnel (GUE where a router lies between).
    /// The second pair: TCP port 80, `owned`, IPIP.
    pub fn standard(topology: &Topology) -> Self {
        let plain = if topology.fabric == Fabric::Switched { "l2" } else { "gue" };
        let mut config = Self::default();
        for (number, kind, affinity, mode) in [(1, "shared", "shared", plain), (2, "owned", "owned", "ipip")] {
            for vip in [IpAddr::from(vip4(number)), vip6(number).into()] {
                let name = format!("{kind}{}", if vip.is_ipv4() { 4 } else { 6 });
                config.vip.push(Vip::new(vip));
                config.service.push(Service {
                    name: name.clone(),
                    vip: vip.to_string(),
                    protocol: "tcp".into(),
                    ports: Ports::One(HTTP_PORT),
                    class: "normal".into(),
                    affinity: affinity.into(),
                    pool: name.clone(),
                });
                config.pool.push(Pool::of_all(topology, &name, mode, vip.is_ipv6()));
            }
        }
        config
    }

    /// Serves an echo of datagrams too, on every VIP and by every pool.
    pub fn with_echo(mut self) -> Self {
        let echo = |web: &Service| {
            let (name, protocol, ports) = (format!("{}-echo", web.name), "udp".into(), Ports::One(ECHO_PORT));
            Service { name, protocol, ports, ..web.clone() }
        };
        let echo: Vec<Service> = self.service.iter().map(echo).collect();
        self.service.extend(echo);
        self
    }

    /// Every VIP that is a single address, with this port.
    pub fn targets(&self, port: u16) -> Vec<SocketAddr> {
        self.vip.iter().filter_map(|vip| Some(SocketAddr::new(vip.address.parse().ok()?, port))).collect()
    }

    /// Has a node hold each VIP, and answer ARP or neighbour discovery for it.
    pub fn with_holders(mut self) -> Self {
        self.vip.iter_mut().for_each(|vip| vip.ingress = "arp".into());
        self
    }

    /// Gives every backend three ways: fabric A first, then fabric B, then the segment of all; beats go over each of them.
    pub fn with_fabrics(mut self, topology: &Topology) -> Self {
        for pool in &mut self.pool {
            let tunnelled = pool.mode != "l2";
            for backend in &mut pool.backend {
                let Some(role) = topology.find(&backend.name) else { continue };
                let ways = Between::ALL.map(|between| {
                    let next_hop = role.addresses_on(between)[usize::from(backend.address.is_ipv6())];
                    let interface = between.interface().to_owned();
                    Way { interface, next_hop, vlan: 0, remote: tunnelled.then_some(next_hop) }
                });
                backend.path.splice(0..0, ways);
            }
        }
        self.path_key = true;
        self
    }

    /// The file of every backend: who may send it tunnel packets, and what for.
    pub(super) fn backend_file(&self, topology: &Topology) -> Result<String> {
        let addresses = |role: Role| {
            let further = topology.fabrics_of(role).iter().flat_map(move |between| role.addresses_on(*between));
            role.addresses().into_iter().chain(further).collect::<Vec<_>>()
        };
        let sources = (1..=topology.nodes).flat_map(|number| addresses(Role::Node(number))).collect();
        let vips = self.vip.iter().map(|vip| vip.address.as_str()).collect();
        let file = BackendFile {
            decap: Decap {
                interface: interfaces(topology, Role::Backend(1)),
                sources,
                vips,
                cluster: CLUSTER,
                path_key: self.key(),
            },
        };
        toml::to_string(&file).context("cannot write the configuration of the backends as TOML")
    }

    fn key(&self) -> Option<&'static str> {
        self.path_key.then_some(PATH_KEY)
    }

    fn weights(&self, topology: &Topology) -> impl Iterator<Item = (u8, u32)> {
        let all = self.members.is_empty().then(|| (1..=topology.nodes).map(|id| (id, 1)));
        self.members.iter().map(|(&id, &weight)| (id, weight)).chain(all.into_iter().flatten())
    }

    /// The file of one node.
    pub(super) fn file(&self, topology: &Topology, lab: &Path, node: u8) -> Result<String> {
        let routed = topology.fabric == Fabric::Routed;
        ensure!(
            !routed || self.pool.iter().all(|pool| pool.mode != "l2"),
            "a pool of mode l2 reaches its backends by MAC, which no router lets through: use ipip or gue"
        );
        let name = Role::Node(node).name(topology.fabric);
        let directory = lab.join(&name);
        let file = File {
            node: Node {
                id: node,
                name: &name,
                pins: format!("/sys/fs/bpf/{}", super::namespace(&topology.name, &name)),
                data: directory.join("data").display().to_string(),
                run: directory.join("run").display().to_string(),
            },
            cluster: Cluster {
                id: CLUSTER,
                key: "000102030405060708090a0b0c0d0e0f",
                slots: 16384,
                beats: self.beats.as_deref(),
                beats_anyway: true,
                path_key: self.key(),
                down_after: self.down_after.as_deref(),
                silent_after: self.silent_after.as_deref(),
                ca: lab.join(PKI).join("ca.crt").display().to_string(),
                certificate: lab.join(PKI).join(format!("node-{node}.crt")).display().to_string(),
                private_key: lab.join(PKI).join(format!("node-{node}.key")).display().to_string(),
            },
            tables: Tables { flows4: self.flows4.unwrap_or(65536), flows6: 16384 },
            interface: interfaces(topology, Role::Node(node))
                .into_iter()
                .map(|name| Interface { name, mode: "native" })
                .collect(),
            member: self
                .weights(topology)
                .map(|(id, weight)| Member {
                    id,
                    weight,
                    address: Role::Node(id).v4().into(),
                    interface: "eth0",
                    next_hop: if routed { Role::Fabric } else { Role::Node(id) }.v4().into(),
                    forward: if routed { "udp" } else { "mac" },
                    alive: true,
                    link: self.links.iter().map(|between| Link::to(id, *between)).collect(),
                })
                .collect(),
            replication: Replication { enabled: !self.unreplicated, flush: self.flush.as_deref() },
            cluster_wide: self,
        };
        let text = toml::to_string(&file);
        let text = text.with_context(|| format!("cannot write the configuration of {name} as TOML"))?;
        // All nodes share the machine's CPUs, so each would take the soft interrupts of all for its own.
        let shedding = if self.more.contains("[shedding]") { "" } else { "[shedding]\nsoftirq = false\n" };
        Ok(format!("{text}\n{}\n{shedding}", self.more))
    }
}

/// The interfaces that packets come in by.
fn interfaces(topology: &Topology, role: Role) -> Vec<&'static str> {
    let further = topology.fabrics_of(role).iter().map(|between| between.interface());
    std::iter::once("eth0").chain(further).collect()
}

impl Vip {
    /// One that rejects what no service takes, and that somebody routes to the nodes.
    pub fn new(address: IpAddr) -> Self {
        let [unmatched, echo, ingress] = ["reject", "answer", "none"].map(str::to_owned);
        Self { address: address.to_string(), unmatched, echo, ingress }
    }
}

impl Pool {
    /// A pool of all the lab's backends.
    pub fn of_all(topology: &Topology, name: &str, mode: &str, v6: bool) -> Self {
        let backend = (1..=topology.backends).map(|number| Backend::new(topology, number, v6)).collect();
        Self {
            name: name.into(),
            mode: mode.into(),
            settle: "60s".into(),
            health: Health::default(),
            probe: toml::Table::new(),
            backend,
        }
    }
}

impl Backend {
    /// The lab's `number`th backend, with one path.
    pub fn new(topology: &Topology, number: u8, v6: bool) -> Self {
        let role = Role::Backend(number);
        let hop = if topology.fabric == Fabric::Routed { Role::Fabric } else { role };
        let next_hop = hop.addresses()[usize::from(v6)];
        Self {
            name: role.name(topology.fabric),
            address: role.addresses()[usize::from(v6)],
            weight: 1,
            state: "active".into(),
            path: vec![Way { interface: "eth0".into(), next_hop, vlan: 0, remote: None }],
        }
    }
}

#[derive(Serialize)]
struct File<'a> {
    node: Node<'a>,
    cluster: Cluster<'a>,
    tables: Tables,
    interface: Vec<Interface>,
    member: Vec<Member>,
    replication: Replication<'a>,
    #[serde(flatten)]
    cluster_wide: &'a Config,
}

#[derive(Serialize)]
struct BackendFile<'a> {
    decap: Decap<'a>,
}

#[derive(Serialize)]
struct Decap<'a> {
    interface: Vec<&'static str>,
    sources: Vec<IpAddr>,
    vips: Vec<&'a str>,
    cluster: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    path_key: Option<&'static str>,
}

#[derive(Serialize)]
struct Node<'a> {
    id: u8,
    name: &'a str,
    pins: String,
    data: String,
    run: String,
}

#[derive(Serialize)]
struct Cluster<'a> {
    id: u32,
    key: &'static str,
    slots: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    beats: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    path_key: Option<&'static str>,
    /// A lab's host is what it is.
    beats_anyway: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    down_after: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    silent_after: Option<&'a str>,
    ca: String,
    certificate: String,
    private_key: String,
}

#[derive(Serialize)]
struct Tables {
    flows4: u32,
    flows6: u32,
}

#[derive(Serialize)]
struct Replication<'a> {
    enabled: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    flush: Option<&'a str>,
}

#[derive(Serialize)]
struct Interface {
    name: &'static str,
    mode: &'static str,
}

#[derive(Serialize)]
struct Member {
    id: u8,
    weight: u32,
    address: IpAddr,
    interface: &'static str,
    next_hop: IpAddr,
    forward: &'static str,
    alive: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    link: Vec<Link>,
}

#[derive(Serialize)]
struct Link {
    address: IpAddr,
    interface: &'static str,
}

impl Link {
    fn to(node: u8, between: Between) -> Self {
        Self { address: Role::Node(node).addresses_on(between)[0], interface: between.interface() }
    }
}
