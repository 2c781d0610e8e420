//! Builds the network of a lab: namespaces, links, addresses, routes, XDP stubs.

use std::path::Path;
use std::process::Command;
use std::{fs, io};

use anyhow::{Context, Result};

use super::host::{Host, ip_batch};
use super::stub::Stub;
use super::topology::{Between, Fabric, Role, Topology, VIPS4, VIPS6, client_addresses, mac_text};
use super::{namespace, offload};

/// The client's MTU; that of the others leaves room for an encapsulation.
const CLIENT_MTU: u16 = 1500;

/// No waiting for duplicate addresses, no reverse path filter (replies come another way), no redirects (they would teach
/// the client a way past the nodes), and multipath by ports, so that flows of one client enter at different nodes.
const EVERYWHERE: &[(&str, &str)] = &[
    ("ipv4/conf/all/rp_filter", "0"),
    ("ipv4/conf/default/rp_filter", "0"),
    ("ipv4/conf/all/accept_redirects", "0"),
    ("ipv4/conf/default/accept_redirects", "0"),
    ("ipv4/conf/all/send_redirects", "0"),
    ("ipv4/conf/default/send_redirects", "0"),
    ("ipv6/conf/all/accept_dad", "0"),
    ("ipv6/conf/default/accept_dad", "0"),
    ("ipv6/conf/default/accept_ra", "0"),
    ("ipv6/conf/default/accept_redirects", "0"),
    ("ipv4/fib_multipath_hash_policy", "1"),
    ("ipv6/fib_multipath_hash_policy", "1"),
    ("ipv4/ip_local_port_range", "10000 65000"),
];
/// A backend holds the VIPs on `lo` and must neither answer ARP for them nor ask with them.
const BACKEND: &[(&str, &str)] = &[("ipv4/conf/all/arp_ignore", "1"), ("ipv4/conf/all/arp_announce", "2")];
/// A node's answers to clients ask the kernel's routes, which are for hosts that forward.
const NODE: &[(&str, &str)] = &[("ipv4/conf/default/forwarding", "1"), ("ipv6/conf/all/forwarding", "1")];
const ROUTER: &[(&str, &str)] = &[("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")];

/// Builds everything; on an error the caller takes down what there is.
pub(super) fn build(topology: &Topology) -> Result<()> {
    let roles = topology.hosts();
    let host = |role: Role| {
        let name = role.name(topology.fabric);
        Host::new(name.clone(), namespace(&topology.name, &name))
    };
    let fabric = host(Role::Fabric);
    let all: Vec<Host> = std::iter::once(fabric.clone()).chain(roles.iter().map(|&role| host(role))).collect();
    let namespaces: Vec<String> = all.iter().map(|host| format!("netns add {}", host.namespace())).collect();
    ip_batch(Command::new("ip"), &namespaces).context("making the network namespaces")?;

    for (host, role) in all.iter().zip(std::iter::once(&Role::Fabric).chain(&roles)) {
        host.sysctl(EVERYWHERE)?;
        match role {
            Role::Backend(_) => host.sysctl(BACKEND)?,
            Role::Node(_) => host.sysctl(NODE)?,
            Role::Fabric if topology.fabric == Fabric::Routed => host.sysctl(ROUTER)?,
            _ => {}
        }
    }

    let mut lines = vec!["link set lo up".to_owned()];
    if topology.fabric == Fabric::Switched {
        lines.push("link add br0 type bridge mcast_snooping 0".into());
        lines.push("link set br0 up".into());
    }
    if topology.between {
        for bridge in Between::ALL.map(Between::bridge) {
            lines.push(format!("link add {bridge} type bridge mcast_snooping 0"));
            lines.push(format!("link set {bridge} up"));
        }
    }
    for &role in &roles {
        lines.extend(fabric_end(topology, role));
    }
    fabric.ip(&lines)?;
    for &role in &roles {
        host(role).ip(&host_end(topology, role))?;
    }
    if topology.fabric == Fabric::Routed && topology.nodes > 0 {
        fabric.ip(&vip_routes(topology))?;
    }

    let stub = Stub::pass()?;
    fabric.run(|| {
        for interface in roles.iter().flat_map(|role| topology.ends(*role)) {
            stub.attach(&interface)?;
            offload::disable(&interface)?;
        }
        anyhow::Ok(())
    })??;
    for &role in &roles {
        host(role).run(|| {
            // The nodes' ends are for the redirector and the backends' for its decap, neither of which may find a program there.
            if role == Role::Client {
                stub.attach("eth0")?;
            }
            topology.fabrics_of(role).iter().try_for_each(|between| offload::disable(between.interface()))?;
            offload::disable("eth0")
        })??;
    }
    Ok(())
}

/// The link to a host, and the fabric's end of it.
fn fabric_end(topology: &Topology, role: Role) -> Vec<String> {
    let name = role.name(topology.fabric);
    let mtu = mtu(topology, role);
    let namespace = namespace(&topology.name, &name);
    let mac = role.mac();
    let mut lines =
        vec![format!("link add {name} mtu {mtu} type veth peer name eth0 address {mac} mtu {mtu} netns {namespace}")];
    if topology.fabric == Fabric::Switched {
        lines.push(format!("link set {name} master br0"));
    }
    for &between in topology.fabrics_of(role) {
        let (end, mac, interface) = (role.end(topology.fabric, between), role.mac_on(between), between.interface());
        let peer = format!("name {interface} address {} mtu {mtu} netns {namespace}", mac_text(mac));
        lines.push(format!("link add {end} mtu {mtu} type veth peer {peer}"));
        lines.push(format!("link set {end} master {}", between.bridge()));
    }
    lines.extend(link_up(topology, role));
    lines
}

/// What brings the fabric's end of a link up, for the first time or after it was down.
fn link_up(topology: &Topology, role: Role) -> Vec<String> {
    let name = role.name(topology.fabric);
    if topology.fabric == Fabric::Switched {
        return topology.ends(role).iter().map(|end| format!("link set {end} up")).collect();
    }
    let [router4, router6] = Role::Fabric.addresses();
    let [reach4, reach6] = match role {
        Role::Client => ["10.77.3.0/24".into(), "fd77::3:0/112".into()],
        _ => role.addresses().map(|address| address.to_string()),
    };
    vec![
        format!("address replace {router4}/32 dev {name}"),
        format!("address replace {router6}/128 dev {name} nodad"),
        format!("link set {name} up"),
        format!("route replace {reach4} dev {name}"),
        format!("route replace {reach6} dev {name}"),
    ]
}

/// What plugs a host in again; a router forgets its routes over a link that goes down.
pub(super) fn plug(topology: &Topology, role: Role) -> Vec<String> {
    let mut lines = link_up(topology, role);
    if topology.fabric == Fabric::Routed && matches!(role, Role::Node(_)) {
        lines.extend(vip_routes(topology));
    }
    lines
}

/// The host's end of its link.
fn host_end(topology: &Topology, role: Role) -> Vec<String> {
    let mut lines = vec!["link set lo up".to_owned()];
    let (bits4, bits6) = match topology.fabric {
        Fabric::Switched => (16, 64),
        Fabric::Routed => (32, 128),
    };
    for address in role.addresses() {
        let addresses = if role == Role::Client { client_addresses(address) } else { vec![address] };
        let (bits, flags) = if address.is_ipv4() { (bits4, "") } else { (bits6, " nodad") };
        lines.extend(addresses.iter().map(|address| format!("address add {address}/{bits} dev eth0{flags}")));
    }
    lines.push("link set eth0 up".into());
    for between in topology.fabrics_of(role) {
        let [v4, v6] = role.addresses_on(*between);
        let interface = between.interface();
        lines.push(format!("address add {v4}/16 dev {interface}"));
        lines.push(format!("address add {v6}/64 dev {interface} nodad"));
        lines.push(format!("link set {interface} up"));
    }
    if topology.fabric == Fabric::Routed {
        let [router4, router6] = Role::Fabric.addresses();
        let [own4, own6] = role.addresses();
        lines.push(format!("route add {router4} dev eth0"));
        let mtu = mtu(topology, role).min(CLIENT_MTU);
        lines.push(format!("route add default via {router4} src {own4} mtu {mtu}"));
        lines.push(format!("route add {router6} dev eth0"));
        lines.push(format!("route add default via {router6} dev eth0 src {own6} mtu {mtu}"));
    } else if matches!(role, Role::Backend(_)) {
        // A bridge drops what is larger than the client's link takes, and tells nobody.
        let mtu = topology.mtu.min(CLIENT_MTU);
        lines.push(format!("route add 10.77.3.0/24 dev eth0 mtu {mtu}"));
        lines.push(format!("route add fd77::3:0/112 dev eth0 mtu {mtu}"));
    } else if role == Role::Client && topology.nodes > 0 {
        lines.extend(vip_routes(topology));
    }
    lines
}

/// Routes of all VIPs over all nodes: the client's in a switched lab, the router's in a routed one.
fn vip_routes(topology: &Topology) -> Vec<String> {
    let nodes: Vec<Role> = (1..=topology.nodes).map(Role::Node).collect();
    [steer(topology, VIPS4, &nodes), steer(topology, VIPS6, &nodes)].into()
}

/// The client's routes where nodes hold the VIPs on its own segment.
pub(super) fn on_link() -> [String; 2] {
    [VIPS4, VIPS6].map(|vips| format!("route replace {vips} dev eth0"))
}

/// The line that sends a VIP, or a prefix of VIPs, through these nodes.
pub(super) fn steer(topology: &Topology, vips: &str, nodes: &[Role]) -> String {
    let v6 = vips.contains(':');
    let hops: String = nodes
        .iter()
        .map(|node| {
            let address = node.addresses()[usize::from(v6)];
            let device = match topology.fabric {
                Fabric::Switched => "eth0".to_owned(),
                Fabric::Routed => node.name(topology.fabric),
            };
            format!(" nexthop via {address} dev {device}")
        })
        .collect();
    format!("route replace {vips}{hops}")
}

fn mtu(topology: &Topology, role: Role) -> u16 {
    if role == Role::Client { CLIENT_MTU } else { topology.mtu }
}

/// Pins need a BPF file system; not every machine has mounted one.
pub fn mount_bpffs() -> Result<()> {
    let mounts = fs::read_to_string("/proc/mounts").context("cannot read /proc/mounts")?;
    let target = Path::new("/sys/fs/bpf");
    if mounts.lines().any(|line| line.split(' ').skip(1).take(2).eq(["/sys/fs/bpf", "bpf"])) {
        return Ok(());
    }
    // SAFETY: strings that end with NUL, and no data.
    let mounted =
        unsafe { libc::mount(c"bpf".as_ptr(), c"/sys/fs/bpf".as_ptr(), c"bpf".as_ptr(), 0, std::ptr::null()) };
    match mounted {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error())
            .with_context(|| format!("cannot mount a BPF file system on {}", target.display())),
    }
}
