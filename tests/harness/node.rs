//! The nodes of a small cluster: tables made from a configuration by the agent's own code, then bent by a test.

use std::net::IpAddr;

use redirector::config::{self, Config, Forward};
use redirector::dataplane::address::{address, mac_word};
use redirector::dataplane::image::{Image, Link, Links, compile};
use redirector::dataplane::memory::{MemoryFrame, MemoryTables};
use redirector::dataplane::registry::Registry;
use redirector_ebpf::packet::Tuple;
use redirector_ebpf::reason::{Reason, Verdict};
use redirector_ebpf::stations::{self, Journey};
use redirector_ebpf::tables::names::kind;
use redirector_ebpf::tables::path::{FINAL_BIT, RESOLVED};
use redirector_ebpf::tables::{Mark, Row};

use super::packet::Mac;

/// Pools by the ports of the two VIPs that have a port for each way of carrying.
pub const CARRIED: [(u16, &str); 7] =
    [(1, "in4"), (2, "in6"), (3, "gue4"), (4, "gue6"), (5, "spread4"), (6, "ranked"), (7, "narrow")];

/// The MAC address of a node's port.
pub fn mac(node: u8, port: u8) -> Mac {
    [2, 0, 0, 0, node, port]
}

/// The MAC address of a node's port as it stands in frames that the receiver must keep.
pub fn final_mac(node: u8, port: u8) -> Mac {
    let mut mac = mac(node, port);
    mac[0] ^= FINAL_BIT as u8;
    mac
}

/// The MAC address of whoever has this address and is no node of the segment.
pub fn mac_of(ip: IpAddr) -> Mac {
    match ip {
        IpAddr::V4(v4) => {
            let [a, b, c, d] = v4.octets();
            [2, 4, a, b, c, d]
        }
        IpAddr::V6(v6) => {
            let o = v6.octets();
            [2, 6, o[0], o[5], o[14], o[15]]
        }
    }
}

/// The family of the addresses at which nodes reach each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

fn members(family: Family) -> String {
    let member = |id: u8| {
        let (near, far, router) = match family {
            Family::V4 => (format!("10.0.0.{id}"), format!("10.{id}.0.{id}"), "10.0.0.254"),
            Family::V6 => (format!("2001:db8::{id}"), format!("2001:db8:{id}::{id}"), "2001:db8::fffe"),
        };
        let address = match id {
            1 | 2 => format!("address = \"{near}\""),
            _ => format!("address = \"{far}\"\nnext_hop = \"{router}\"\nforward = \"udp\""),
        };
        format!("[[member]]\nid = {id}\ninterface = \"eth0\"\n{address}\n")
    };
    (1..=5).map(member).collect()
}

/// The configuration of a node of the standard cluster, whose nodes reach each other by IPv4.
pub fn configuration(me: u8) -> Config {
    configuration_in(Family::V4, me)
}

/// The configuration of a node of the standard cluster, whose nodes reach each other by this family.
pub fn configuration_in(family: Family, me: u8) -> Config {
    let mut services = String::new();
    for (label, vip) in [("v4", "198.51.100.10"), ("v6", "2001:db8:100::10"), ("prefix6", "2001:db8:200::/64")] {
        for (port, pool) in CARRIED {
            let name = format!("{label}-{pool}");
            services += &format!(
                "[[service]]\nname = \"{name}\"\nvip = \"{vip}\"\nprotocol = \"tcp\"\nports = {port}\npool = \"{pool}\"\n"
            );
        }
    }
    for (name, protocol, ports, affinity) in [
        ("shared6", "tcp", "ports = 80", "shared"),
        ("owned6", "tcp", "ports = 443", "owned"),
        ("owned-udp6", "udp", "ports = \"5060-5080\"", "owned"),
        ("ping6", "icmp", "", "shared"),
    ] {
        services += &format!(
            "[[service]]\nname = \"{name}\"\nvip = \"2001:db8:100::1\"\nprotocol = \"{protocol}\"\n{ports}\n\
             affinity = \"{affinity}\"\npool = \"l2\"\n"
        );
    }
    let rest = include_str!("node.toml").replace("SERVICES", &services).replace("MEMBERS", &members(family));
    parse(&format!("[node]\nid = {me}\n{rest}"))
}

/// A configuration of this text.
pub fn parse(text: &str) -> Config {
    config::parse("test.toml", text).unwrap_or_else(|mistakes| panic!("{mistakes}"))
}

/// The interfaces of a node with this configuration.
pub fn links(config: &Config) -> Links {
    let me = config.node.id;
    let own = config.members.iter().find(|member| member.id == me).map(|member| member.address);
    let link = |port: u8| {
        let mut addresses = vec![
            format!("10.0.{port}.{me}").parse().expect("an address"),
            format!("2001:db8:{port}::{me}").parse().expect("an address"),
        ];
        addresses.extend(own.filter(|_| port == 0));
        let link = Link { index: 2 + u32::from(port), mac: mac(me, port), mtu: 1_500, addresses };
        (format!("eth{port}"), link)
    };
    (0..2).map(link).collect()
}

/// The image of a node with this configuration.
pub fn image(config: &Config) -> Image {
    let key = config.cluster.key.expect("the configuration has a key").0;
    compile(config, key, &links(config), Registry::default()).expect("the configuration compiles")
}

/// A node of the standard cluster, all of whose neighbours are known and alive.
pub fn node(me: u8) -> MemoryTables {
    node_in(Family::V4, me)
}

/// Likewise of the one whose nodes reach each other by this family.
pub fn node_in(family: Family, me: u8) -> MemoryTables {
    tables(&configuration_in(family, me))
}

/// A node with this configuration, all of whose neighbours are known.
pub fn tables(config: &Config) -> MemoryTables {
    tables_of(image(config), config)
}

/// A node with this image, made of this configuration.
pub fn tables_of(image: Image, config: &Config) -> MemoryTables {
    let buckets = config.tables.flows4 as usize / redirector_ebpf::tables::flow::WAYS;
    let mut tables = MemoryTables::new(image, buckets);
    let mut known = Vec::new();
    for (&id, hop) in &tables.image.neighbours {
        let peer = config.members.iter().find(|member| member.next_hop == hop.address && Some(member.id) == hop.peer);
        known.push((id, mac_word(peer.map_or_else(|| mac_of(hop.address), |member| mac(member.id, 0)))));
    }
    tables.neighbours.borrow_mut().extend(known.into_iter().map(|(id, mac)| (id, mac | RESOLVED)));
    for member in config.members.iter().filter(|member| matches!(member.forward, Forward::Mac)) {
        if member.id != config.node.id {
            tables.peer_macs.insert(mac_word(mac(member.id, 0)), Mark::forwarded(member.id));
            tables.peer_macs.insert(mac_word(final_mac(member.id, 0)), Mark::kept(member.id));
        }
    }
    tables
}

/// What a node did with a packet.
#[derive(Debug)]
pub struct Done {
    /// The verdict.
    pub verdict: Verdict,
    /// What was found on the way.
    pub journey: Journey,
    /// The frame afterwards.
    pub bytes: Vec<u8>,
    /// What was counted besides the verdict.
    pub notes: Vec<Reason>,
}

/// Sends a frame through a node.
pub fn send(tables: &MemoryTables, frame: &[u8]) -> Done {
    tables.counted.borrow_mut().clear();
    let (mut frame, mut journey) = (MemoryFrame::new(frame), Journey::default());
    let verdict = stations::run(&mut frame, tables, &mut journey);
    let mut notes = tables.counted.borrow().clone();
    assert_eq!(notes.pop(), Some(verdict.reason), "the verdict is counted, and counted last");
    assert!(notes.iter().all(|note| note.is_note()), "one verdict a packet: {notes:?}");
    Done { verdict, journey, bytes: frame.bytes().to_vec(), notes }
}

/// The number of a backend.
pub fn backend(tables: &MemoryTables, name: &str) -> u16 {
    tables.image.registry.id(kind::BACKEND, name).unwrap_or_else(|| panic!("no backend {name}")) as u16
}

/// The MAC address of a backend's first next hop.
pub fn backend_mac(tables: &MemoryTables, id: u16) -> Mac {
    let path = tables.image.backends[&id].paths[0];
    mac_of(tables.image.neighbours[&tables.image.paths[&path].neighbour].address)
}

/// The number of a pool.
pub fn pool(tables: &MemoryTables, name: &str) -> u16 {
    tables.image.registry.id(kind::POOL, name).unwrap_or_else(|| panic!("no pool {name}")) as u16
}

/// Makes every row of a pool this one.
pub fn set_rows(tables: &mut MemoryTables, name: &str, row: Row) {
    let table = tables.pools[&pool(tables, name)].table;
    tables.tables.get_mut(&table).expect("the pool has a table").fill(row);
}

/// The tuple of a flow between these addresses and ports.
pub fn tuple(src: (IpAddr, u16), dst: (IpAddr, u16), protocol: u8) -> Tuple {
    Tuple { src: address(src.0), dst: address(dst.0), sport: src.1.to_be(), dport: dst.1.to_be(), protocol }
}
