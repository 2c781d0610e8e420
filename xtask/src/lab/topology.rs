//! What a lab consists of: its hosts, their names, addresses and MACs. Pure: nothing here touches the kernel.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

/// Source addresses that the client has; enough of them that 1,000 new connections a second for a minute find free ports.
pub const CLIENT_ADDRESSES: u16 = 32;
/// Every VIP of a lab lies in here, and routes to the VIPs name it as a whole.
pub const VIPS4: &str = "10.77.100.0/24";
/// The IPv6 counterpart of [`VIPS4`].
pub const VIPS6: &str = "fd77::100:0/112";

const HOSTS_MAX: u8 = 32;
// The length of a name ends up in paths only, but a long one makes `ip netns` hard to read.
const NAME_LENGTH_MAX: usize = 24;
// What a page of 4 KiB holds beside headroom and tail room: the limit of native XDP on veth.
const MTU: std::ops::RangeInclusive<u16> = 1280..=3498;

/// What joins the hosts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fabric {
    /// One segment: a Linux bridge, every host in 10.77.0.0/16 and fd77::/64.
    #[default]
    Switched,
    /// A router with a link of its own to each host, and no segment shared by any two.
    Routed,
}

/// A network of its own between nodes and backends, beside the segment that all hosts share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Between {
    /// `eth1` of each node and backend: 10.78.0.0/16 and fd78::/64.
    A,
    /// `eth2` of each node and backend: 10.79.0.0/16 and fd79::/64.
    B,
}

impl Between {
    /// Both.
    pub const ALL: [Self; 2] = [Self::A, Self::B];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::A => "a",
            Self::B => "b",
        }
    }

    /// The bridge that it is.
    pub(super) fn bridge(self) -> &'static str {
        match self {
            Self::A => "bra",
            Self::B => "brb",
        }
    }

    /// The interface of nodes and backends.
    pub fn interface(self) -> &'static str {
        match self {
            Self::A => "eth1",
            Self::B => "eth2",
        }
    }

    fn octet(self) -> u8 {
        match self {
            Self::A => 78,
            Self::B => 79,
        }
    }
}

/// The size and shape of a lab.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Topology {
    /// Tells labs of one machine apart: lower-case letters and digits.
    pub name: String,
    /// Number of redirector nodes, `n1` and up.
    pub nodes: u8,
    /// Number of backends, `b1` and up.
    pub backends: u8,
    /// What joins them.
    pub fabric: Fabric,
    /// Whether there are two fabrics more, A and B, between nodes and backends; a switched lab only.
    #[serde(default)]
    pub between: bool,
    /// MTU of the nodes' and backends' links: the client's 1,500 bytes and an encapsulation fit.
    pub mtu: u16,
}

/// What a host is in the lab.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Holds the bridge, or is the router.
    Fabric,
    /// Where requests come from.
    Client,
    /// A redirector.
    Node(u8),
    /// A server.
    Backend(u8),
}

impl Topology {
    /// Three nodes and three backends on one segment.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), nodes: 3, backends: 3, fabric: Fabric::Switched, between: false, mtu: 1600 }
    }

    /// As [`Topology::new`], under a name that no other process uses.
    pub fn for_test(name: &str) -> Self {
        Self::new(format!("{name}{}", std::process::id()))
    }

    /// Refuses what could not be built, or could not be taken down again.
    pub fn check(&self) -> Result<()> {
        check_name(&self.name)?;
        ensure!(self.nodes <= HOSTS_MAX, "{} nodes: a lab has at most {HOSTS_MAX}", self.nodes);
        ensure!(self.backends <= HOSTS_MAX, "{} backends: a lab has at most {HOSTS_MAX}", self.backends);
        let has_segment = self.fabric == Fabric::Switched;
        ensure!(has_segment || !self.between, "fabrics A and B are for a switched lab: leave --routed out");
        ensure!(MTU.contains(&self.mtu), "MTU {}: must be {} to {}", self.mtu, MTU.start(), MTU.end());
        Ok(())
    }

    /// Every host but the fabric.
    pub fn hosts(&self) -> Vec<Role> {
        let nodes = (1..=self.nodes).map(Role::Node);
        let backends = (1..=self.backends).map(Role::Backend);
        std::iter::once(Role::Client).chain(nodes).chain(backends).collect()
    }

    /// The fabrics that a host has links to besides the segment of all.
    pub fn fabrics_of(&self, role: Role) -> &'static [Between] {
        match role {
            Role::Node(_) | Role::Backend(_) if self.between => &Between::ALL,
            _ => &[],
        }
    }

    /// The fabric's ends of a host's links, by interface.
    pub fn ends(&self, role: Role) -> Vec<String> {
        let name = role.name(self.fabric);
        let further = self.fabrics_of(role).iter().map(|between| role.end(self.fabric, *between));
        further.chain([name.clone()]).collect()
    }

    /// The host of this name, the fabric's included.
    pub fn find(&self, host: &str) -> Option<Role> {
        std::iter::once(Role::Fabric).chain(self.hosts()).find(|role| role.name(self.fabric) == host)
    }
}

/// Names are joined with `-` into those of namespaces and pins; a name with a `-` of its own could be taken for another lab's.
pub(super) fn check_name(name: &str) -> Result<()> {
    let plain = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    ensure!(
        plain && !name.is_empty() && name.len() <= NAME_LENGTH_MAX,
        "lab name `{name}`: use 1 to {NAME_LENGTH_MAX} lower-case letters and digits"
    );
    Ok(())
}

impl Role {
    /// The host's name within the lab.
    pub fn name(self, fabric: Fabric) -> String {
        match self {
            Self::Fabric if fabric == Fabric::Routed => "r1".into(),
            Self::Fabric => "bridge".into(),
            Self::Client => "c1".into(),
            Self::Node(number) => format!("n{number}"),
            Self::Backend(number) => format!("b{number}"),
        }
    }

    /// The host's IPv4 address; in a routed lab the router has this one on all its links.
    pub fn v4(self) -> Ipv4Addr {
        let (group, number) = self.place();
        Ipv4Addr::new(10, 77, group, number)
    }

    /// The host's IPv6 address.
    pub fn v6(self) -> Ipv6Addr {
        let (group, number) = self.place();
        Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, u16::from(group), u16::from(number))
    }

    /// Both addresses.
    pub fn addresses(self) -> [IpAddr; 2] {
        [self.v4().into(), self.v6().into()]
    }

    /// The fabric's end of the host's link to one of the fabrics between.
    pub fn end(self, fabric: Fabric, between: Between) -> String {
        format!("{}-{}", self.name(fabric), between.name())
    }

    /// The host's addresses on one of the fabrics between.
    pub fn addresses_on(self, between: Between) -> [IpAddr; 2] {
        let (group, number) = self.place();
        let v4 = Ipv4Addr::new(10, between.octet(), group, number);
        let net = 0xfd00 | u16::from(between.octet() / 10 * 16 + between.octet() % 10);
        let v6 = Ipv6Addr::new(net, 0, 0, 0, 0, 0, u16::from(group), u16::from(number));
        [v4.into(), v6.into()]
    }

    /// The MAC address of its interface on one of the fabrics between.
    pub fn mac_on(self, between: Between) -> [u8; 6] {
        let (group, number) = self.place();
        [2, 0, 0, between.octet(), group, number]
    }

    /// A MAC that names its host to whoever reads a packet capture.
    pub fn mac(self) -> String {
        mac_text(self.mac_bytes())
    }

    /// [`Role::mac`] as it is in a frame.
    pub fn mac_bytes(self) -> [u8; 6] {
        let (group, number) = self.place();
        [2, 0, 0, 0x77, group, number]
    }

    fn place(self) -> (u8, u8) {
        match self {
            Self::Fabric => (0, 1),
            Self::Node(number) => (1, number),
            Self::Backend(number) => (2, number),
            Self::Client => (3, 1),
        }
    }
}

/// A MAC address as `ip` writes it.
pub(super) fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// The lab's `number`th IPv4 VIP.
pub fn vip4(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 100, number)
}

/// The lab's `number`th IPv6 VIP.
pub fn vip6(number: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0x100, u16::from(number))
}

/// The client's addresses of the family of `like`.
pub fn client_addresses(like: IpAddr) -> Vec<IpAddr> {
    (1..=CLIENT_ADDRESSES)
        .map(|number| match like {
            IpAddr::V4(_) => IpAddr::from(Ipv4Addr::new(10, 77, 3, number as u8)),
            IpAddr::V6(_) => IpAddr::from(Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 3, number)),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_be_mistaken_are_refused() {
        for name in ["", "a-n1", "A", "a/b", "..", "a b", &"x".repeat(25)] {
            assert!(check_name(name).is_err(), "{name:?}");
        }
        check_name("lab").unwrap();
    }

    #[test]
    fn every_host_has_a_name_and_addresses_of_its_own() {
        let mut topology = Topology::new("lab");
        (topology.nodes, topology.backends) = (32, 32);
        let mut seen = std::collections::HashSet::new();
        for role in topology.hosts() {
            assert!(
                seen.insert(role.v4().to_string()) && seen.insert(role.v6().to_string()) && seen.insert(role.mac())
            );
            assert_eq!(topology.find(&role.name(Fabric::Switched)), Some(role));
        }
    }
}
