//! What a configuration says of the node and its cluster. Names are those of the file; `example.toml` explains each.

use std::{fmt, net::IpAddr, path::PathBuf, time::Duration};

use clap::ValueEnum;
use serde::{Serialize, Serializer};

use super::{Bfd, Decap, Health, Pool, Service, Shedding, Vip, text::serialize_duration as duration};

/// A node's whole configuration.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Config {
    /// Who this node is and where it keeps its things.
    pub node: Node,
    /// What all nodes of the cluster have in common.
    pub cluster: Cluster,
    /// Sizes of the maps.
    pub tables: Tables,
    /// Budgets.
    pub limits: Limits,
    /// Idle times after which flow entries may go.
    pub timeouts: Timeouts,
    /// Copies of flows for the other owners of their slots.
    pub replication: Replication,
    /// When load is shed, and how.
    pub shedding: Shedding,
    /// What follows from a node's health.
    pub health: Health,
    /// Interfaces that packets are taken from.
    #[serde(rename = "interface")]
    pub interfaces: Vec<Interface>,
    /// Routers that this node speaks BFD with.
    #[serde(rename = "bfd")]
    pub bfds: Vec<Bfd>,
    /// Every node of the cluster, this one too; empty for a cluster of one.
    #[serde(rename = "member")]
    pub members: Vec<Member>,
    /// Who votes besides them, and has no data plane.
    #[serde(rename = "witness")]
    pub witnesses: Vec<Witness>,
    /// Virtual addresses.
    #[serde(rename = "vip")]
    pub vips: Vec<Vip>,
    /// What is served at them.
    #[serde(rename = "service")]
    pub services: Vec<Service>,
    /// Who serves it.
    #[serde(rename = "pool")]
    pub pools: Vec<Pool>,
    /// The backend's side, for `redirector decap`.
    pub decap: Option<Decap>,
}

/// Who this node is and where it keeps its things.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Node {
    /// 1 to 254, unique in the cluster.
    pub id: u8,
    /// For people; the host's name if not given.
    pub name: String,
    /// Directory on a BPF file system for maps and links.
    pub pins: PathBuf,
    /// Directory for what must outlive a reboot.
    pub data: PathBuf,
    /// Directory of the control socket.
    pub run: PathBuf,
}

/// What all nodes of the cluster have in common.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Cluster {
    /// Tells clusters on one network apart.
    pub id: u32,
    /// The secret of beats and forwarded packets; may be absent in a cluster of one.
    pub key: Option<Key>,
    /// Ownership slots, a power of two.
    pub slots: u32,
    /// How soon a node that dies is noticed.
    pub beats: Beats,
    /// Whether beats that need a fit host are used on one that was not measured, or does not fit.
    pub beats_anyway: bool,
    /// Keys of beats other than the one that follows from `key`: the first is used, either is accepted.
    pub beat_keys: Vec<Key>,
    /// The key of beats to the far ends of paths; without it none are sent.
    pub path_key: Option<Key>,
    /// How this node's agent proves to its peers who it is; without it, agents do not talk.
    #[serde(flatten)]
    pub identity: Option<IdentityFiles>,
    /// The UDP port on which agents talk, the same on every node.
    pub port: u16,
    /// How long most of the others must have suspected a node before it is agreed that it is down.
    #[serde(serialize_with = "duration")]
    pub down_after: Duration,
    /// How long most of the others must have heard nothing of a node's agent, while its data plane answers, before its slots
    /// are given to others.
    #[serde(serialize_with = "duration")]
    pub silent_after: Duration,
}

/// How often nodes ask each other whether they live, and how many unanswered questions make a suspect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beats {
    /// Time between two requests to a peer on a link.
    pub interval: Duration,
    /// Requests on each link that go unanswered before a peer is suspected.
    pub multiplier: u32,
}

impl Beats {
    /// For any host.
    pub const STANDARD: Self = Self { interval: Duration::from_millis(100), multiplier: 3 };
    /// For hosts whose CPUs are their own.
    pub const FAST: Self = Self { interval: Duration::from_millis(10), multiplier: 3 };
    /// For hosts that `doctor` found fit.
    pub const EXTREME: Self = Self { interval: Duration::from_millis(3), multiplier: 3 };

    /// How long a peer may be silent at most before it is suspected.
    pub fn timeout(&self) -> Duration {
        self.interval * self.multiplier
    }
}

impl fmt::Display for Beats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::STANDARD => f.write_str("standard"),
            Self::FAST => f.write_str("fast"),
            Self::EXTREME => f.write_str("extreme"),
            Self { interval, multiplier } => {
                write!(f, "{} x {multiplier}", humantime::format_duration(interval))
            }
        }
    }
}

impl Serialize for Beats {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Where a node's proof of who it is lies: PEM files, different on each node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct IdentityFiles {
    /// Certificates of the authorities that vouch for the cluster's nodes: one, or several while they change.
    pub ca: PathBuf,
    /// This node's certificate, any intermediate ones after it.
    pub certificate: PathBuf,
    /// Its private key.
    pub private_key: PathBuf,
}

/// The cluster's secret. It shows a fingerprint instead of itself wherever it is printed or serialised.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Key(
    /// The secret itself.
    pub [u8; 16],
);

impl Key {
    /// As the words that tags are made with.
    pub fn words(&self) -> [u64; 2] {
        let [low, high] = [&self.0[..8], &self.0[8..]];
        [low, high].map(|half| half.iter().rev().fold(0u64, |word, byte| word << 8 | u64::from(*byte)))
    }

    /// The number by which beats name their key, 1 to 255.
    pub fn number(&self) -> u8 {
        let digest = siphasher::sip::SipHasher24::new_with_key(&self.0).hash(b"redirector beat key number");
        (digest % 255) as u8 + 1
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digest = siphasher::sip::SipHasher24::new_with_key(&self.0).hash(b"redirector cluster key");
        write!(f, "fingerprint {:08x}", digest >> 32)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({self})")
    }
}

impl Serialize for Key {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Sizes of the maps in entries, powers of two; fixed when the maps are first made.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[expect(missing_docs, reason = "each is the size of the map that it names")]
pub struct Tables {
    pub flows4: u32,
    pub flows6: u32,
    pub fragments: u32,
    pub services: u32,
    pub backends: u32,
    pub vips: u32,
    pub pools: u32,
}

impl Default for Tables {
    fn default() -> Self {
        Self {
            flows4: 1 << 20,
            flows6: 1 << 18,
            fragments: 1 << 13,
            services: 1 << 14,
            backends: 1 << 13,
            vips: 1 << 12,
            pools: 1 << 10,
        }
    }
}

/// Budgets of this node.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Limits {
    /// New flows per second and CPU; 0 is no limit.
    pub new_flows_per_second: u32,
    /// New flows per second and source prefix (/24, /56); 0 is no limit.
    pub new_flows_per_source: u32,
    /// ICMP errors that this node sends, per second and CPU.
    pub icmp_per_second: u32,
    /// Entries a second that each CPU puts into the flow table; 0: no limit.
    pub inserts_per_second: u32,
    /// 0 to 3: the shed level that holds at least, whatever the load.
    pub shed_level: u8,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            new_flows_per_second: 0,
            new_flows_per_source: 0,
            icmp_per_second: 100,
            inserts_per_second: 0,
            shed_level: 0,
        }
    }
}

/// Idle times after which a flow entry may go, by protocol and state.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[expect(missing_docs, reason = "each is the idle time of the state that it names")]
pub struct Timeouts {
    #[serde(serialize_with = "duration")]
    pub tcp_new: Duration,
    #[serde(serialize_with = "duration")]
    pub tcp_established: Duration,
    #[serde(serialize_with = "duration")]
    pub tcp_closing: Duration,
    #[serde(serialize_with = "duration")]
    pub udp_new: Duration,
    #[serde(serialize_with = "duration")]
    pub udp: Duration,
    #[serde(serialize_with = "duration")]
    pub other: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            tcp_new: Duration::from_secs(60),
            tcp_established: Duration::from_secs(2 * 3600),
            tcp_closing: Duration::from_secs(30),
            udp_new: Duration::from_secs(30),
            udp: Duration::from_secs(3 * 60),
            other: Duration::from_secs(30),
        }
    }
}

/// Copies of flows for the other owners of their slots.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Replication {
    /// Whether there are any. Without them a node's death breaks the connections that it served.
    pub enabled: bool,
    /// How long a change of a flow waits at most until it is sent.
    #[serde(serialize_with = "duration")]
    pub flush: Duration,
    /// Flows a second that a node which lacks many is given.
    pub pace: u32,
}

impl Default for Replication {
    fn default() -> Self {
        Self { enabled: true, flush: Duration::from_millis(50), pace: 50_000 }
    }
}

/// An interface that packets are taken from.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Interface {
    /// The kernel's name.
    pub name: String,
    /// How the program is attached.
    pub mode: XdpMode,
}

/// How a program is attached to an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum XdpMode {
    /// Native, or generic where the driver has none.
    Auto,
    /// In the driver, or not at all.
    Native,
    /// In the kernel's stack.
    Generic,
}

/// A node of the cluster as its peers see it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Member {
    /// Its node id.
    pub id: u8,
    /// Where it is reached.
    pub address: IpAddr,
    /// The interface of this node that leads there.
    pub interface: String,
    /// Whose MAC address frames to it carry.
    pub next_hop: IpAddr,
    /// VLAN on that interface; 0 is untagged.
    pub vlan: u16,
    /// How packets are forwarded to it.
    pub forward: Forward,
    /// Its share of the slots, against the others'.
    pub weight: u32,
    /// Whether it may be alive at all; what it is, beats find out.
    pub alive: bool,
    /// Further ways to it: for beats, and for packets while it is silent on the first.
    #[serde(rename = "link")]
    pub links: Vec<MemberLink>,
}

/// A member that votes and has no data plane.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Witness {
    /// Its id: no node has it.
    pub id: u8,
    /// Where its agent is reached.
    pub address: IpAddr,
}

impl Config {
    /// Whether this is a witness's own configuration.
    pub fn is_witness(&self) -> bool {
        self.witnesses.iter().any(|witness| witness.id == self.node.id)
    }

    /// Everybody who votes, and where their agents are reached.
    pub fn voters(&self) -> impl Iterator<Item = (u8, IpAddr)> {
        let nodes = self.members.iter().map(|member| (member.id, member.address));
        nodes.chain(self.witnesses.iter().map(|witness| (witness.id, witness.address)))
    }
}

/// A further way to a node, over another interface.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MemberLink {
    /// Where it is reached.
    pub address: IpAddr,
    /// The interface of this node that leads there.
    pub interface: String,
    /// Whose MAC address frames to it carry.
    pub next_hop: IpAddr,
    /// VLAN on that interface; 0 is untagged.
    pub vlan: u16,
}

/// How packets are forwarded between nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Forward {
    /// Within a segment, by MAC address.
    Mac,
    /// Across routers, behind a header in UDP.
    Udp,
}
