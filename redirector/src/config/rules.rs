//! Rules that concern more than one table.

use std::{
    collections::{HashMap, HashSet},
    hash::Hash,
};

use super::{mistake::Notes, *};

/// Notes what is wrong with the configuration as a whole.
pub(super) fn check(config: &Config, notes: &Notes) {
    if !config.is_witness() {
        interfaces(config, notes);
    }
    sessions(config, notes);
    members(config, notes);
    let vips = config.vips.iter().map(|vip| vip.address);
    unique(notes, vips, |i| format!("vip[{i}].address"), "remove one of the two");
    ingress(config, notes);
    services(config, notes);
    for (index, pool) in config.pools.iter().enumerate() {
        pool_is_sound(pool, &format!("pool[{index}]"), notes);
    }
    unique(
        notes,
        config.pools.iter().map(|pool| &pool.name),
        |i| format!("pool[{i}].name"),
        "give it a name of its own",
    );
    sizes(config, notes);
}

/// Notes values that come twice, at their second place.
fn unique<T: Eq + Hash + std::fmt::Display>(
    notes: &Notes,
    values: impl Iterator<Item = T>,
    field: impl Fn(usize) -> String,
    mend: &str,
) {
    let mut first = HashMap::new();
    for (index, value) in values.enumerate() {
        let field = field(index);
        if notes.is_wrong(&field) {
            continue;
        }
        let shown = value.to_string();
        if let Some(other) = first.insert(value, field.clone()) {
            notes.report(&field, format!("{shown} is taken already by line {}", notes.line(&other)), mend);
        }
    }
}

fn interfaces(config: &Config, notes: &Notes) {
    if config.interfaces.is_empty() {
        let mend = "add [[interface]] with name = \"eth0\"";
        notes.report("interface", "there is no [[interface]] to take packets from", mend);
        return;
    }
    let names = config.interfaces.iter().map(|interface| &interface.name);
    unique(notes, names, |i| format!("interface[{i}].name"), "name each interface once");
    let members = config.members.iter().enumerate();
    let members = members.flat_map(|(i, member)| {
        let first = (format!("member[{i}].interface"), &member.interface);
        let links = member.links.iter().enumerate();
        let links = links.map(move |(n, link)| (format!("member[{i}].link[{n}].interface"), &link.interface));
        std::iter::once(first).chain(links)
    });
    let paths = config.pools.iter().enumerate().flat_map(|(p, pool)| {
        pool.backends.iter().enumerate().flat_map(move |(b, backend)| {
            let paths = backend.paths.iter().enumerate();
            paths.map(move |(i, path)| (format!("pool[{p}].backend[{b}].path[{i}].interface"), &path.interface))
        })
    });
    let vips = config.vips.iter().enumerate();
    let vips = vips.filter_map(|(i, vip)| Some((format!("vip[{i}].interface"), vip.interface.as_ref()?)));
    let known: Vec<&str> = config.interfaces.iter().map(|interface| interface.name.as_str()).collect();
    let unread = (0..known.len()).any(|i| notes.is_wrong(&format!("interface[{i}].name")));
    for (field, name) in members.chain(paths).chain(vips).filter(|(_, name)| !unread && !known.contains(&name.as_str()))
    {
        let mend = format!("write one of {}, or add an [[interface]]", known.join(", "));
        notes.report(&field, format!("{name:?} is none of the [[interface]]"), mend);
    }
}

/// Notes BFD sessions that could not be told apart.
fn sessions(config: &Config, notes: &Notes) {
    let mend = "keep one of the two: a session is known by its peer, and over a single hop by its interface";
    let known = config.bfds.iter().map(|bfd| match &bfd.interface {
        Some(interface) => format!("{} on {interface}", bfd.peer),
        None => format!("{} over several hops", bfd.peer),
    });
    unique(notes, known, |i| format!("bfd[{i}].peer"), mend);
}

fn members(config: &Config, notes: &Notes) {
    let members = &config.members;
    let other = "give each node and each witness its own";
    let field = |i: usize, name: &str| match i.checked_sub(members.len()) {
        None => format!("member[{i}].{name}"),
        Some(i) => format!("witness[{i}].{name}"),
    };
    unique(notes, config.voters().map(|(id, _)| id), |i| field(i, "id"), other);
    unique(notes, config.voters().map(|(_, address)| address), |i| field(i, "address"), other);
    for (i, member) in members.iter().enumerate() {
        let interfaces = std::iter::once(&member.interface).chain(member.links.iter().map(|link| &link.interface));
        let field = |n: usize| match n.checked_sub(1) {
            None => format!("member[{i}].interface"),
            Some(n) => format!("member[{i}].link[{n}].interface"),
        };
        unique(notes, interfaces, field, "beats tell links by interface: name another, or remove the link");
    }
    let unread = (0..members.len()).any(|i| notes.is_wrong(&format!("member[{i}].id")))
        || (0..config.witnesses.len()).any(|i| notes.is_wrong(&format!("witness[{i}].id")));
    let id = config.node.id;
    if config.voters().next().is_some() && !unread && config.voters().all(|(voter, _)| voter != id) {
        let mend = format!("add [[member]] with id = {id}, or correct the id");
        notes.report("node.id", format!("node {id} is none of the [[member]]"), mend);
    }
    if let Some(own) = members.iter().position(|member| member.id == id).filter(|_| !unread) {
        one_family_across_routers(members, own, notes);
    }
    if config.cluster.path_key.is_some() && config.cluster.path_key == config.cluster.key {
        let mend = "draw another one by `openssl rand -hex 16`: backends have it too, and must not speak for nodes";
        notes.report("cluster.path_key", "it is the nodes' own key", mend);
    }
    if let Some(first) = config.witnesses.first().filter(|_| members.is_empty()) {
        let mend = "add a [[member]] for each node, or remove the [[witness]]";
        notes.report("witness[0].id", format!("witness {} has no [[member]] to vote for", first.id), mend);
    }
    if members.len() > 1 && config.cluster.key.is_none() && !notes.is_wrong("cluster.key_file") {
        let mend = "add [cluster] key = \"...\", the same on every node, made by `openssl rand -hex 16`";
        notes.report("cluster.key", "a cluster of several nodes needs a key", mend);
    }
}

/// Notes members to which packets would go across routers from an address of the other family.
fn one_family_across_routers(members: &[Member], own: usize, notes: &Notes) {
    let field = |index: usize| format!("member[{index}].address");
    let address = members[own].address;
    let wrong = |member: &Member| member.forward == Forward::Udp && member.address.is_ipv4() != address.is_ipv4();
    for (index, member) in members.iter().enumerate().filter(|(_, member)| wrong(member)) {
        if notes.is_wrong(&field(own)) || notes.is_wrong(&field(index)) {
            continue;
        }
        let (id, theirs, family) = (member.id, member.address, if address.is_ipv4() { "IPv4" } else { "IPv6" });
        let message = format!("forward = \"udp\" cannot lead from this node at {address} to node {id} at {theirs}");
        let mend = format!("write an {family} address of node {id}, or give this node one of the other family");
        notes.report(&field(index), message, mend);
    }
}

/// Notes VIPs that no node could hold, and interfaces of those that none holds.
fn ingress(config: &Config, notes: &Notes) {
    for (index, vip) in config.vips.iter().enumerate() {
        let arp = vip.ingress == Ingress::Arp;
        if arp && !vip.address.is_single() {
            let message = format!("ingress = \"arp\" is for single addresses, and {} is a prefix", vip.address);
            let mend = "write ingress = \"route\", or each address as a [[vip]] of its own";
            notes.report(&format!("vip[{index}].ingress"), message, mend);
        }
        if !arp && vip.interface.is_some() {
            let mend = "add ingress = \"arp\", or remove it";
            notes.report(&format!("vip[{index}].interface"), "an interface is for ingress = \"arp\" only", mend);
        }
    }
}

fn services(config: &Config, notes: &Notes) {
    let services = &config.services;
    unique(notes, services.iter().map(|s| &s.name), |i| format!("service[{i}].name"), "give it a name of its own");

    let vips: HashSet<_> = config.vips.iter().map(|vip| vip.address).collect();
    let vips_unread = (0..config.vips.len()).any(|i| notes.is_wrong(&format!("vip[{i}].address")));
    let pools: HashSet<_> = config.pools.iter().map(|pool| pool.name.as_str()).collect();
    let pools_unread = (0..config.pools.len()).any(|i| notes.is_wrong(&format!("pool[{i}].name")));
    for (index, service) in services.iter().enumerate() {
        if !vips_unread && !vips.contains(&service.vip) {
            let mend = format!("add [[vip]] with address = \"{}\", or correct the address", service.vip);
            notes.report(&format!("service[{index}].vip"), format!("{} is none of the [[vip]]", service.vip), mend);
        }
        if !pools_unread && !pools.contains(service.pool.as_str()) {
            let message = format!("there is no pool {:?}", service.pool);
            notes.report(&format!("service[{index}].pool"), message, "add the [[pool]], or correct the name");
        }
    }
    overlaps(services, notes);
}

/// Notes services of which a packet could mean two. A sweep over sorted ranges, so that thousands of services at one
/// VIP do not cost their square.
fn overlaps(services: &[Service], notes: &Notes) {
    let unread = |index: usize| {
        ["vip", "protocol", "ports"].iter().any(|name| notes.is_wrong(&format!("service[{index}].{name}")))
    };
    let mut groups: HashMap<_, Vec<(PortRange, usize)>> = HashMap::new();
    for (index, service) in services.iter().enumerate().filter(|(index, _)| !unread(*index)) {
        let group = groups.entry((service.vip, service.protocol)).or_default();
        group.extend(service.ports.iter().map(|&ports| (ports, index)));
    }
    for mut group in groups.into_values() {
        group.sort();
        let mut farthest = group[0];
        for &(ports, index) in &group[1..] {
            if ports.first <= farthest.0.last && index != farthest.1 {
                let (earlier, later) = (index.min(farthest.1), index.max(farthest.1));
                // ICMP has no field for ports: the place is then the service's header.
                let field = format!("service[{later}].ports");
                let (protocol, vip) = (services[later].protocol, services[later].vip);
                let message = match protocol {
                    Protocol::Icmp => format!("ICMP of {vip} is served by {:?} already", services[earlier].name),
                    _ => format!(
                        "ports {ports} and {} of {vip} are also served by {:?}",
                        farthest.0, services[earlier].name
                    ),
                };
                notes.report(&field, message, "let each port of a VIP belong to one service");
            }
            if ports.last > farthest.0.last {
                farthest = (ports, index);
            }
        }
    }
}

fn pool_is_sound(pool: &Pool, field: &str, notes: &Notes) {
    let names = pool.backends.iter().map(|backend| &backend.name);
    unique(notes, names, |i| format!("{field}.backend[{i}].name"), "give it a name of its own");
    if pool.backends.iter().all(|backend| backend.state == BackendState::Draining) {
        let mend = "add [[pool.backend]], or take the services away from the pool to stop them";
        notes.report(&format!("{field}.backend"), "the pool has no active backend", mend);
    }
    for (index, backend) in pool.backends.iter().enumerate() {
        paths_are_sound(pool.mode, backend, &format!("{field}.backend[{index}]"), notes);
    }
}

fn paths_are_sound(mode: Mode, backend: &Backend, field: &str, notes: &Notes) {
    match backend.paths.len() {
        0 => {
            let mend = "add [[pool.backend.path]] with interface = \"eth0\" below the backend";
            notes.report(&format!("{field}.path"), "the backend has no path", mend);
        }
        1..=3 => {}
        many => notes.report(
            &format!("{field}.path[3]"),
            format!("the backend has {many} paths, three are the most"),
            "keep the best three",
        ),
    }
    for (index, path) in backend.paths.iter().enumerate() {
        let field = format!("{field}.path[{index}]");
        if backend.paths[..index].contains(path) {
            notes.report(&field, "the path is there twice", "remove one of the two");
        }
        let Some(source) = path.source.filter(|_| mode != Mode::L2) else { continue };
        let source_field = format!("{field}.source");
        if source.address().is_ipv4() != path.remote.is_ipv4() {
            let message = format!("source {source} and far end {} are of different families", path.remote);
            notes.report(
                &source_field,
                message,
                "write both in one family; what is inside the tunnel may be of the other",
            );
        }
        if mode == Mode::Gue && !source.is_single() {
            let mend = "write one address: GUE has its entropy in the UDP source port";
            notes.report(&source_field, "a prefix as source is for mode \"ipip\" only", mend);
        }
    }
}

/// Notes lists that do not fit the maps.
fn sizes(config: &Config, notes: &Notes) {
    let Config { tables, pools, vips, services, .. } = config;
    let backends = pools.iter().map(|pool| pool.backends.len()).sum();
    let all = [
        ("backends", backends, tables.backends),
        ("pools", pools.len(), tables.pools),
        ("vips", vips.len(), tables.vips),
        ("services", services.len(), tables.services),
    ];
    for (name, count, size) in all.into_iter().filter(|&(_, count, size)| count > size as usize) {
        let mend = format!("set tables.{name} to {count} or more; maps that exist already must be made anew for that");
        notes.report(&format!("tables.{name}"), format!("{count} {name} do not fit {size} places"), mend);
    }
}
