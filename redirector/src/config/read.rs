//! From TOML to [`Config`]: types, ranges, defaults, and what must be given. What concerns more than one table is left
//! to `rules`.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    ops::RangeInclusive,
    path::{Path as FilePath, PathBuf},
    time::Duration,
};

use super::{
    bfd, decap, health, probe,
    reader::{Item, Reader},
    text::{self, Wrong},
    *,
};

/// Stands in for an address that could not be read.
const NOWHERE: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
/// Node ids; 0 means none and 255 is kept for the wire format.
const NODES: RangeInclusive<u8> = 1..=254;
/// VLAN ids; 0 is untagged, 4095 is reserved.
const VLANS: RangeInclusive<u16> = 0..=4094;
/// Backends have 15-bit ids and 0 means none.
const BACKENDS_MAX: u32 = 32_767;
/// Idle times: less than a second is below the aging's own pace, and more than two hours is what nobody tests.
const IDLE: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(2 * 3600);
/// How long rows stay disputed: a second lets every node apply the change, a day outlasts any patience.
const SETTLE: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(24 * 3600);

/// How long a node is suspected before it is down: within a second it may be back by itself, and for an hour of one dead
/// node nobody wants to be one fault away from an outage.
const DOWN_AFTER: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(3600);

/// How long changes of flows wait: below the time that a batch takes nothing is won, above there is too much to lose.
const FLUSH: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(1);

/// Reads the whole file; `beside` is the directory that relative paths start from.
pub(super) fn config(root: &mut Reader<'_>, beside: Option<&FilePath>) -> Config {
    Config {
        node: node(root),
        cluster: root.table("cluster").map_or_else(cluster_of_one, |r| cluster(r, beside)),
        tables: root.table("tables").map_or_else(Tables::default, tables),
        limits: root.table("limits").map_or_else(Limits::default, limits),
        timeouts: root.table("timeouts").map_or_else(Timeouts::default, timeouts),
        replication: root.table("replication").map_or_else(Replication::default, replication),
        shedding: root.table("shedding").map_or_else(Shedding::default, condition::shedding),
        health: root.table("health").map_or_else(Health::default, condition::health),
        interfaces: root.tables("interface").into_iter().map(interface).collect(),
        bfds: root.tables("bfd").into_iter().map(bfd::bfd).collect(),
        members: root.tables("member").into_iter().map(member).collect(),
        witnesses: root.tables("witness").into_iter().map(witness).collect(),
        vips: root.tables("vip").into_iter().map(vip).collect(),
        services: root.tables("service").into_iter().map(service).collect(),
        pools: root.tables("pool").into_iter().map(pool).collect(),
        decap: root.table("decap").map(decap::decap),
    }
}

/// Reads what all nodes have in common, and takes the rest from a node's own configuration.
pub(super) fn shared(root: &mut Reader<'_>, own: &Config) -> Config {
    for name in ["node", "cluster", "tables", "interface", "bfd", "decap"] {
        root.item(name);
    }
    Config {
        node: own.node.clone(),
        cluster: own.cluster.clone(),
        tables: own.tables.clone(),
        interfaces: own.interfaces.clone(),
        bfds: own.bfds.clone(),
        decap: own.decap.clone(),
        limits: root.table("limits").map_or_else(Limits::default, limits),
        timeouts: root.table("timeouts").map_or_else(Timeouts::default, timeouts),
        replication: root.table("replication").map_or_else(Replication::default, replication),
        shedding: root.table("shedding").map_or_else(Shedding::default, condition::shedding),
        health: root.table("health").map_or_else(Health::default, condition::health),
        members: root.tables("member").into_iter().map(member).collect(),
        witnesses: root.tables("witness").into_iter().map(witness).collect(),
        vips: root.tables("vip").into_iter().map(vip).collect(),
        services: root.tables("service").into_iter().map(service).collect(),
        pools: root.tables("pool").into_iter().map(pool).collect(),
    }
}

/// This node's id, where the file names no other node and says nothing else.
const ONLY_NODE: u8 = 1;

fn node(root: &mut Reader<'_>) -> Node {
    let is_only = !root.has("member");
    let mut node = Node {
        id: ONLY_NODE,
        name: host_name(),
        pins: "/sys/fs/bpf/redirector".into(),
        data: "/var/lib/redirector".into(),
        run: "/run/redirector".into(),
    };
    let Some(mut r) = root.table("node") else {
        if !is_only {
            root.must("node", None, (), "add [node] with id = 1");
        }
        return node;
    };
    let id = r.number("id", NODES);
    if !is_only || r.has("id") {
        node.id = r.must("id", id, 0, "add id = 1, a number from 1 to 254 that no other node has");
    }
    node.name = r.parsed("name", text::name).unwrap_or(node.name);
    for (name, place) in [("pins", &mut node.pins), ("data", &mut node.data), ("run", &mut node.run)] {
        if let Some(path) = r.parsed(name, directory) {
            *place = path;
        }
    }
    r.done();
    node
}

fn host_name() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    text::name(name.trim()).unwrap_or_else(|_| "node".to_owned())
}

fn directory(text: &str) -> Result<PathBuf, Wrong> {
    match text.starts_with('/') {
        true => Ok(text.into()),
        false => Err(Wrong::new(format!("{text:?} is not an absolute path"), "write a path that starts with /")),
    }
}

fn cluster_of_one() -> Cluster {
    Cluster {
        id: 1,
        key: None,
        slots: 16_384,
        beats: Beats::STANDARD,
        beats_anyway: false,
        beat_keys: Vec::new(),
        path_key: None,
        identity: None,
        port: 4201,
        down_after: Duration::from_secs(10),
        silent_after: Duration::from_secs(30),
    }
}

fn cluster(mut r: Reader<'_>, beside: Option<&FilePath>) -> Cluster {
    let default = cluster_of_one();
    let key = r.parsed("key", text::key);
    let key_of_file = r.parsed("key_file", |name| {
        let path = beside.unwrap_or(FilePath::new("")).join(name);
        let content = fs::read_to_string(&path).map_err(|error| {
            Wrong::new(format!("cannot read {}: {error}", path.display()), "check path and permissions")
        })?;
        text::key(&content).map_err(|wrong| Wrong::new(format!("in {}: {}", path.display(), wrong.message), wrong.mend))
    });
    if r.has("key") && r.has("key_file") {
        r.wrong("key_file", Wrong::new("\"key\" is given too", "keep one of the two"));
    }
    let slots = r.number("slots", 256..=65_536).unwrap_or(default.slots);
    if !slots.is_power_of_two() {
        let (below, above) = (slots.next_power_of_two() / 2, slots.next_power_of_two());
        r.wrong("slots", Wrong::new(format!("{slots} is not a power of two"), format!("write {below} or {above}")));
    }
    let id = r.number("id", 0..=u32::MAX).unwrap_or(default.id);
    let beats = r.parsed("beats", text::beats).unwrap_or(default.beats);
    let beats_anyway = r.flag("beats_anyway").unwrap_or(default.beats_anyway);
    let beat_keys = beat_keys(&mut r);
    let path_key = r.parsed("path_key", text::key);
    let identity = identity(&mut r, beside);
    let port = r.number("port", 1..=u16::MAX).unwrap_or(default.port);
    let down_after = r.duration("down_after", DOWN_AFTER).unwrap_or(default.down_after);
    let silent_after = r.duration("silent_after", DOWN_AFTER).unwrap_or(default.silent_after);
    r.done();
    Cluster {
        id,
        key: key.or(key_of_file),
        slots,
        beats,
        beats_anyway,
        beat_keys,
        path_key,
        identity,
        port,
        down_after,
        silent_after,
    }
}

fn beat_keys(r: &mut Reader<'_>) -> Vec<Key> {
    let mend = "write a list of one or two keys, the one to use first";
    let elements = r.item("beat_keys").and_then(|item| item.elements(mend)).unwrap_or_default();
    let keys: Vec<Key> = elements.iter().filter_map(|item| item.parsed(text::key)).collect();
    if keys.len() > 2 {
        r.wrong("beat_keys", Wrong::new(format!("{} keys", keys.len()), mend));
    }
    if matches!(keys[..], [first, second] if first.number() == second.number()) {
        let what = "both keys have the same number, which is made of the key";
        r.wrong("beat_keys", Wrong::new(what, "draw another one by `openssl rand -hex 16`"));
    }
    keys
}

/// The three files by which agents know each other: all of them or none. They are opened when agents begin to talk.
fn identity(r: &mut Reader<'_>, beside: Option<&FilePath>) -> Option<IdentityFiles> {
    let beside = beside.unwrap_or(FilePath::new(""));
    let mut file = |name| r.parsed(name, |path| text::file(path).map(|path| beside.join(path)));
    let (ca, certificate, private_key) = (file("ca"), file("certificate"), file("private_key"));
    if !["ca", "certificate", "private_key"].iter().any(|name| r.has(name)) {
        return None;
    }
    let mend = "give ca, certificate and private_key, all three (`redirector pki` makes them), or none";
    Some(IdentityFiles {
        ca: r.must("ca", ca, PathBuf::new(), mend),
        certificate: r.must("certificate", certificate, PathBuf::new(), mend),
        private_key: r.must("private_key", private_key, PathBuf::new(), mend),
    })
}

fn tables(mut r: Reader<'_>) -> Tables {
    let default = Tables::default();
    let tables = Tables {
        flows4: r.size("flows4", 1024..=1 << 26).unwrap_or(default.flows4),
        flows6: r.size("flows6", 1024..=1 << 26).unwrap_or(default.flows6),
        fragments: r.size("fragments", 64..=1 << 20).unwrap_or(default.fragments),
        services: r.size("services", 16..=1 << 20).unwrap_or(default.services),
        backends: r.size("backends", 16..=BACKENDS_MAX).unwrap_or(default.backends),
        vips: r.size("vips", 16..=1 << 20).unwrap_or(default.vips),
        pools: r.size("pools", 16..=1 << 15).unwrap_or(default.pools),
    };
    r.done();
    tables
}

fn limits(mut r: Reader<'_>) -> Limits {
    let default = Limits::default();
    let limits = Limits {
        new_flows_per_second: r.number("new_flows_per_second", 0..=u32::MAX).unwrap_or(default.new_flows_per_second),
        new_flows_per_source: r.number("new_flows_per_source", 0..=u32::MAX).unwrap_or(default.new_flows_per_source),
        icmp_per_second: r.number("icmp_per_second", 0..=u32::MAX).unwrap_or(default.icmp_per_second),
        inserts_per_second: r.number("inserts_per_second", 0..=u32::MAX).unwrap_or(default.inserts_per_second),
        shed_level: r.number("shed_level", 0..=3).unwrap_or(default.shed_level),
    };
    r.done();
    limits
}

fn replication(mut r: Reader<'_>) -> Replication {
    let default = Replication::default();
    let replication = Replication {
        enabled: r.flag("enabled").unwrap_or(default.enabled),
        flush: r.duration("flush", FLUSH).unwrap_or(default.flush),
        pace: r.number("pace", 1_000..=10_000_000).unwrap_or(default.pace),
    };
    r.done();
    replication
}

fn timeouts(mut r: Reader<'_>) -> Timeouts {
    let default = Timeouts::default();
    let timeouts = Timeouts {
        tcp_new: r.duration("tcp_new", IDLE).unwrap_or(default.tcp_new),
        tcp_established: r.duration("tcp_established", IDLE).unwrap_or(default.tcp_established),
        tcp_closing: r.duration("tcp_closing", IDLE).unwrap_or(default.tcp_closing),
        udp_new: r.duration("udp_new", IDLE).unwrap_or(default.udp_new),
        udp: r.duration("udp", IDLE).unwrap_or(default.udp),
        other: r.duration("other", IDLE).unwrap_or(default.other),
    };
    r.done();
    timeouts
}

fn interface(mut r: Reader<'_>) -> Interface {
    let name = r.parsed("name", text::interface);
    let interface = Interface {
        name: r.must("name", name, String::new(), "add name = \"eth0\""),
        mode: r.choice("mode").unwrap_or(XdpMode::Auto),
    };
    r.done();
    interface
}

fn member(mut r: Reader<'_>) -> Member {
    let id = r.number("id", NODES);
    let address = r.parsed("address", text::address);
    let interface = r.parsed("interface", text::interface);
    let address = r.must("address", address, NOWHERE, "add the address that its peers reach it by");
    let member = Member {
        id: r.must("id", id, 0, "add the id that the node has in its own [node]"),
        address,
        interface: r.must("interface", interface, String::new(), "add the interface of this node that leads there"),
        next_hop: r.parsed("next_hop", text::address).unwrap_or(address),
        vlan: r.number("vlan", VLANS).unwrap_or(0),
        forward: r.choice("forward").unwrap_or(Forward::Mac),
        weight: weight(&mut r, "write 1 to 1000; `redirector drain` takes a node out of service"),
        alive: r.flag("alive").unwrap_or(true),
        links: r.tables("link").into_iter().map(member_link).collect(),
    };
    r.done();
    member
}

fn witness(mut r: Reader<'_>) -> Witness {
    let id = r.number("id", NODES);
    let address = r.parsed("address", text::address);
    let witness = Witness {
        id: r.must("id", id, 0, "add the id that the witness has in its own [node]"),
        address: r.must("address", address, NOWHERE, "add the address that the nodes' agents reach it by"),
    };
    r.done();
    witness
}

fn member_link(mut r: Reader<'_>) -> MemberLink {
    let address = r.parsed("address", text::address);
    let interface = r.parsed("interface", text::interface);
    let address = r.must("address", address, NOWHERE, "add the node's address on that interface's network");
    let link = MemberLink {
        address,
        interface: r.must("interface", interface, String::new(), "add the interface of this node that leads there"),
        next_hop: r.parsed("next_hop", text::address).unwrap_or(address),
        vlan: r.number("vlan", VLANS).unwrap_or(0),
    };
    r.done();
    link
}

fn vip(mut r: Reader<'_>) -> Vip {
    let address = r.parsed("address", text::vip);
    let vip = Vip {
        address: r.must("address", address, NOWHERE.into(), "add address = \"192.0.2.1\" or a prefix"),
        unmatched: r.choice("unmatched").unwrap_or(Unmatched::Drop),
        echo: r.choice("echo").unwrap_or(Echo::Answer),
        ingress: r.choice("ingress").unwrap_or(Ingress::None),
        interface: r.parsed("interface", text::interface),
    };
    r.done();
    vip
}

fn service(mut r: Reader<'_>) -> Service {
    let name = r.parsed("name", text::name);
    let vip = r.parsed("vip", text::vip);
    let protocol = r.choice("protocol");
    let pool = r.parsed("pool", text::name);
    let service = Service {
        name: r.must("name", name, String::new(), "add a name, unique among the services"),
        vip: r.must("vip", vip, NOWHERE.into(), "add the address of one of the [[vip]]"),
        protocol: r.must("protocol", protocol, Protocol::Tcp, "add protocol = \"tcp\", \"udp\" or \"icmp\""),
        ports: ports_of(&mut r, protocol),
        class: r.choice("class").unwrap_or(Class::Normal),
        dscp: r.flag("dscp").unwrap_or(false),
        affinity: r.choice("affinity").unwrap_or(Affinity::Shared),
        pool: r.must("pool", pool, String::new(), "add the name of one of the [[pool]]"),
    };
    r.done();
    service
}

fn ports_of(r: &mut Reader<'_>, protocol: Option<Protocol>) -> Vec<PortRange> {
    let item = r.item("ports");
    if protocol == Some(Protocol::Icmp) {
        if item.is_some() {
            r.wrong("ports", Wrong::new("ICMP has no ports", "remove \"ports\""));
        }
        return vec![PortRange::ANY];
    }
    let one = |item: &Item<'_>| match item.is_text() {
        true => item.parsed(text::ports),
        false => item.number(1..=u16::MAX).map(|port| PortRange { first: port, last: port }),
    };
    let mend = "add ports = 80, \"5060-5080\", \"any\" or a list of these";
    let mut ports: Vec<PortRange> = match &item {
        Some(item) if item.is_list() => item.elements(mend).unwrap_or_default().iter().filter_map(one).collect(),
        Some(item) => one(item).into_iter().collect(),
        None if protocol.is_some() => r.must("ports", None, Vec::new(), mend),
        None => Vec::new(),
    };
    ports.sort();
    if item.is_some_and(|item| item.is_list() && item.elements(mend).is_some_and(|list| list.is_empty())) {
        r.wrong("ports", Wrong::new("the list of ports is empty", mend));
    }
    if let Some(pair) = ports.windows(2).find(|pair| pair[0].overlaps(&pair[1])) {
        let message = format!("ports {} and {} of this service overlap", pair[0], pair[1]);
        r.wrong("ports", Wrong::new(message, "name each port once"));
    }
    ports
}

fn pool(mut r: Reader<'_>) -> Pool {
    let name = r.parsed("name", text::name);
    let mode = r.choice("mode");
    let name = r.must("name", name, String::new(), "add a name, unique among the pools");
    let mode = r.must("mode", mode, Mode::L2, "add mode = \"l2\", \"ipip\" or \"gue\"");
    let settle = r.duration("settle", SETTLE).unwrap_or(Duration::from_secs(60));
    let health = r.table("health").map_or_else(PoolHealth::default, health::health);
    let probe = r.table("probe").and_then(probe::probe);
    let backends = r.tables("backend").into_iter().map(|r| backend(r, mode)).collect();
    r.done();
    Pool { name, mode, settle, health, probe, backends }
}

fn backend(mut r: Reader<'_>, mode: Mode) -> Backend {
    let name = r.parsed("name", text::name);
    let address = r.parsed("address", text::address);
    let address = r.must("address", address, NOWHERE, "add the backend's own address");
    let backend = Backend {
        name: r.must("name", name, String::new(), "add a name, unique in the pool"),
        address,
        weight: weight(&mut r, "write 1 to 1000, or use state = \"draining\""),
        state: r.choice("state").unwrap_or(BackendState::Active),
        paths: r.tables("path").into_iter().map(|r| path(r, mode, address)).collect(),
    };
    r.done();
    backend
}

/// Zero gets an answer of its own: whoever writes it wants the thing out of service.
fn weight(r: &mut Reader<'_>, mend: &str) -> u32 {
    let weight = r.number("weight", 0..=1000).unwrap_or(1);
    if weight == 0 {
        r.wrong("weight", Wrong::new("a weight of zero is refused", mend));
    }
    weight
}

fn path(mut r: Reader<'_>, mode: Mode, backend: IpAddr) -> Path {
    let interface = r.parsed("interface", text::interface);
    let remote = r.parsed("remote", text::address).unwrap_or(backend);
    let path = Path {
        interface: r.must("interface", interface, String::new(), "add the interface that packets leave by"),
        next_hop: r.parsed("next_hop", text::address).unwrap_or(remote),
        vlan: r.number("vlan", VLANS).unwrap_or(0),
        remote,
        source: r.parsed("source", text::vip),
        mtu: r.number("mtu", 576..=65_535),
    };
    for name in ["remote", "source"].into_iter().filter(|name| mode == Mode::L2 && r.has(name)) {
        let message = format!("{name:?} means nothing in mode \"l2\": there is no tunnel");
        r.wrong(name, Wrong::new(message, "remove it, or set the pool's mode to \"ipip\" or \"gue\""));
    }
    r.done();
    path
}
