//! What a configuration says of VIPs, services and pools. Names are those of the file; `example.toml` explains each.

use std::{fmt, net::IpAddr, time::Duration};

use clap::ValueEnum;
use serde::{Serialize, Serializer};

use super::{PoolHealth, Prefix, Probe, text::serialize_duration as duration};

/// A virtual address, or a prefix of them.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Vip {
    /// The address or prefix.
    pub address: Prefix,
    /// What becomes of packets that no service takes.
    pub unmatched: Unmatched,
    /// What becomes of echo requests that no ICMP service takes.
    pub echo: Echo,
    /// How its packets come to the nodes.
    pub ingress: Ingress,
    /// The interface on which its holder answers ARP or neighbour discovery for it; `None`: the node's first.
    pub interface: Option<String>,
}

/// How the packets of a VIP come to the nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Ingress {
    /// Somebody else routes them.
    None,
    /// One node holds the VIP and answers for it on the segment; others are its successors.
    Arp,
    /// Every node that is ready has a route for BIRD or FRR to announce.
    Route,
}

/// What becomes of packets to a VIP that no service takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Unmatched {
    /// Dropped.
    Drop,
    /// Answered by a TCP reset or an ICMP error.
    Reject,
    /// Left to the kernel.
    Pass,
}

/// What becomes of echo requests to a VIP without an ICMP service; one with it has them served, whatever this says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Echo {
    /// Answered by the node.
    Answer,
    /// Left to the kernel, whatever `unmatched` says.
    Pass,
    /// Dropped.
    Drop,
}

/// What is served at a VIP.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Service {
    /// Unique.
    pub name: String,
    /// One of the VIPs, as a whole.
    pub vip: Prefix,
    /// The protocol.
    pub protocol: Protocol,
    /// In ascending order, without overlaps; [`PortRange::ANY`] alone for ICMP.
    pub ports: Vec<PortRange>,
    /// Its priority when load is shed.
    pub class: Class,
    /// Whether a packet's DSCP says its class, where it says any.
    pub dscp: bool,
    /// Who serves its flows.
    pub affinity: Affinity,
    /// Name of the pool.
    pub pool: String,
}

/// The protocol of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the names say it")]
pub enum Protocol {
    Tcp,
    Udp,
    /// ICMP of the VIP's family.
    Icmp,
}

/// Ports from first to last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortRange {
    /// The first port.
    pub first: u16,
    /// The last port, not less than the first.
    pub last: u16,
}

impl PortRange {
    /// Every port.
    pub const ANY: Self = Self { first: 0, last: u16::MAX };

    /// Whether a port is in both.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::ANY => f.write_str("any"),
            Self { first, last } if first == last => write!(f, "{first}"),
            Self { first, last } => write!(f, "{first}-{last}"),
        }
    }
}

impl Serialize for PortRange {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Priority classes, the dearest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the names say it")]
pub enum Class {
    Critical,
    High,
    Normal,
    Low,
}

/// Who serves a service's flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Affinity {
    /// Whichever node receives the packet, as long as the row is undisputed.
    Shared,
    /// The owner of the flow's slot.
    Owned,
}

/// Weighted backends.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Pool {
    /// Unique.
    pub name: String,
    /// How packets reach its backends.
    pub mode: Mode,
    /// How long a row stays disputed at least; in a cluster of several nodes it does until they agree that no old flow is
    /// left, for which they have no way yet.
    #[serde(serialize_with = "duration")]
    pub settle: Duration,
    /// How its backends are watched.
    pub health: PoolHealth,
    /// How their paths are asked besides; none: they are not.
    pub probe: Option<Probe>,
    /// At least one of them active.
    #[serde(rename = "backend")]
    pub backends: Vec<Backend>,
}

/// How packets reach backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// MAC addresses are rewritten; the backend holds the VIP.
    L2,
    /// IP in IP, any pair of families.
    Ipip,
    /// Generic UDP encapsulation.
    Gue,
}

/// A host that serves flows.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Backend {
    /// Unique within the pool; rows of the pool's table follow from it.
    pub name: String,
    /// Its address.
    pub address: IpAddr,
    /// Its share of the rows, against the others'.
    pub weight: u32,
    /// Whether it gets new flows.
    pub state: BackendState,
    /// One to three ways to it, best first.
    #[serde(rename = "path")]
    pub paths: Vec<Path>,
}

/// Whether a backend gets new flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum BackendState {
    /// It does.
    Active,
    /// It keeps the flows that it has.
    Draining,
}

/// A way to a backend.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Path {
    /// The interface that packets leave by.
    pub interface: String,
    /// Whose MAC address frames carry: unless given, the tunnel's end, or the backend in mode `l2`.
    pub next_hop: IpAddr,
    /// VLAN on that interface; 0 is untagged.
    pub vlan: u16,
    /// The tunnel's far end; the backend's address in mode `l2`.
    pub remote: IpAddr,
    /// The tunnel's near end, in mode `ipip` also a prefix whose host bits take the flow's entropy. `None`: the
    /// interface's first address of the far end's family.
    pub source: Option<Prefix>,
    /// Largest packet, where it differs from the interface's.
    pub mtu: Option<u16>,
}
