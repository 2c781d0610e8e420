//! What a backend often lacks: for `redirector decap --check`.

use std::net::IpAddr;

use serde::Serialize;

use super::rules::{self, INNER_MTU, TUNNEL_BYTES, sysctl_name};
use super::{Error, Finding, Interface, Level, Manner, interface};
use crate::config::{Decap, Prefix};
use crate::netlink::{self, AttachedMode, Routes};

/// The name of the decap program, as far as the kernel keeps it.
const DECAP_PROGRAM: &str = "redirector_deca";

/// What is so on a backend, without a judgement.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Facts {
    /// The interface's name.
    pub name: String,
    /// The interface where tunnel packets arrive, or why there are no facts of it.
    pub interface: Result<Interface, String>,
    /// Its addresses and their prefix lengths.
    pub addresses: Vec<(IpAddr, u8)>,
    /// Local and default routes.
    pub routes: Routes,
    /// The greater of `net.ipv4.conf.all.arp_ignore` and the interface's.
    pub arp_ignore: Option<i64>,
    /// The greater of `net.ipv4.conf.all.arp_announce` and the interface's.
    pub arp_announce: Option<i64>,
}

/// Gathers the facts of an interface in the network namespace of the calling thread.
///
/// # Errors
/// Where the kernel does not tell.
pub fn gather(name: &str) -> Result<Facts, Error> {
    let gathered = super::block_on(async || {
        let found = match netlink::interface(name).await {
            Ok(found) => {
                let addresses = found.addresses.clone();
                let all = netlink::interfaces().await?;
                Ok((interface::gather(found, &all, Manner::Look).await?, addresses))
            }
            Err(error @ netlink::Error::NoInterface { .. }) => Err(error.to_string()),
            Err(error) => return Err(error),
        };
        Ok((found, netlink::routes().await?))
    });
    let (found, routes) = gathered?;
    let (interface, addresses) = match found {
        Ok((interface, addresses)) => (Ok(interface), addresses),
        Err(says) => (Err(says), Vec::new()),
    };
    let arp = |setting| interface::stricter(name, setting);
    let (arp_ignore, arp_announce) = (arp("arp_ignore"), arp("arp_announce"));
    Ok(Facts { name: name.to_owned(), interface, addresses, routes, arp_ignore, arp_announce })
}

/// Judges the facts against what is configured.
pub fn judge(decap: &Decap, facts: &Facts) -> Vec<Finding> {
    let mut findings = sources(decap);
    findings.extend(decap.vips.iter().map(|prefix| vip(prefix, &facts.routes)));
    match &facts.interface {
        Ok(interface) => {
            findings.extend(rules::link(interface));
            findings.push(program(interface));
            findings.extend(rules::others_programs(interface));
            findings.extend(size(decap, interface, &facts.routes));
            findings.extend(rp_filter(interface));
        }
        Err(says) => findings.push(Finding::error(&facts.name, says).mend("correct `interface` under [decap]")),
    }
    findings.extend(arp(decap, facts));
    findings
}

fn sources(decap: &Decap) -> Vec<Finding> {
    let mend = "list the nodes' tunnel sources under [decap], as addresses or prefixes";
    if decap.sources.is_empty() {
        return vec![Finding::error("sources", "none is configured: every tunnel packet is dropped").mend(mend)];
    }
    let all = decap.sources.iter().filter(|source| source.length() == 0);
    let findings: Vec<_> = all
        .map(|source| {
            Finding::warning("sources", format!("{source}: anyone may send packets into this host in a tunnel"))
                .mend(mend)
        })
        .collect();
    if findings.is_empty() {
        return vec![Finding::ok("sources", format!("{} configured", decap.sources.len()))];
    }
    findings
}

fn vip(vip: &Prefix, routes: &Routes) -> Finding {
    let whole = |(address, length): &(IpAddr, u8)| {
        *length <= vip.length() && Prefix::around(*address, *length).contains(vip.address())
    };
    if routes.local.iter().any(whole) {
        return Finding::ok(vip.to_string(), "is this host's own address");
    }
    let some = routes.local.iter().any(|(address, _)| vip.contains(*address));
    let which = if some { "some of its addresses are not" } else { "is not" };
    let says = format!("{which} this host's own: packets for it are taken apart, and then dropped or sent on");
    let mend = if vip.is_single() {
        format!("ip address add {}/{} dev lo", vip.address(), vip.length())
    } else {
        format!("ip route add local {vip} dev lo")
    };
    Finding::error(vip.to_string(), says).mend(mend)
}

fn program(interface: &Interface) -> Finding {
    let decap = interface.programs.iter().find(|program| program.name.as_deref() == Some(DECAP_PROGRAM));
    let name = &interface.name;
    match decap {
        None => Finding::warning(name, "the decap program is not attached: tunnel packets are not taken apart")
            .mend("redirector decap --config FILE"),
        Some(program) if program.mode == AttachedMode::Generic => Finding::warning(
            name,
            format!("the decap program {program} runs in the kernel's stack, several times slower"),
        )
        .mend("use an interface whose driver has native XDP"),
        Some(program) => Finding::ok(name, format!("the decap program {program} is attached")),
    }
}

/// Whether a client's packets fit into a tunnel on their way here.
fn size(decap: &Decap, interface: &Interface, routes: &Routes) -> Vec<Finding> {
    let Interface { name, mtu, .. } = interface;
    let needed = INNER_MTU + TUNNEL_BYTES;
    if *mtu >= needed {
        return vec![Finding::ok(name, format!("MTU {mtu}: packets of {INNER_MTU} bytes fit into a tunnel"))];
    }
    let mut findings = Vec::new();
    for v6 in [false, true] {
        let headers = if v6 { 60 } else { 40 };
        let most = mtu.saturating_sub(TUNNEL_BYTES + headers);
        let mut ways = routes.default.iter().filter(|route| route.v6 == v6).peekable();
        let clamped = ways.peek().is_some() && ways.all(|route| route.advmss.is_some_and(|mss| mss <= most));
        if clamped || !decap.vips.iter().any(|vip| vip.address().is_ipv6() == v6) {
            continue;
        }
        let family = if v6 { "IPv6" } else { "IPv4" };
        let says = format!("MTU {mtu}: {family} packets of {INNER_MTU} bytes do not fit into a tunnel");
        let why = "clients whose network swallows ICMP never learn to send smaller ones";
        let tcp = format!("{} change default via GATEWAY advmss {most}", if v6 { "ip -6 route" } else { "ip route" });
        findings.push(
            Finding::warning(name, format!("{says}, and {why}"))
                .mend(format!("ip link set dev {name} mtu {needed}, on switches and nodes too; for TCP alone: {tcp}")),
        );
    }
    if findings.is_empty() {
        findings.push(Finding::ok(name, format!("MTU {mtu}: TCP announces segments that fit into a tunnel")));
    }
    findings
}

fn rp_filter(interface: &Interface) -> Option<Finding> {
    let name = &interface.name;
    (interface.rp_filter == Some(1)).then(|| {
        let says = "rp_filter is strict: packets out of a tunnel are dropped if answers leave by another interface";
        Finding::warning(name, says)
            .mend(format!("sysctl -w net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.{}.rp_filter=2", sysctl_name(name)))
    })
}

/// Whether this host claims VIPs on its segment, which belong to the redirectors.
fn arp(decap: &Decap, facts: &Facts) -> Vec<Finding> {
    let name = &facts.name;
    let mut vips = decap.vips.iter().filter(|vip| vip.address().is_ipv4()).peekable();
    if vips.peek().is_none() {
        return Vec::new();
    }
    // Elsewhere hardly anyone asks for the VIP's MAC address, but a route that names no gateway is enough.
    let on_link = vips
        .any(|vip| facts.addresses.iter().any(|(own, length)| Prefix::around(*own, *length).contains(vip.address())));
    let level = if on_link { Level::Warning } else { Level::Note };
    let key = sysctl_name(name);
    let mut findings = Vec::new();
    if facts.arp_ignore.is_some_and(|value| value < 1) {
        let says = "answers ARP for VIPs on `lo`: whoever asks sends its packets here, past the redirectors";
        findings.push(Finding::new(level, name, says).mend(format!("sysctl -w net.ipv4.conf.{key}.arp_ignore=1")));
    }
    if facts.arp_announce.is_some_and(|value| value < 2) {
        let says = "asks by ARP in a VIP's name: its neighbours learn that the VIP is here";
        findings.push(Finding::new(level, name, says).mend(format!("sysctl -w net.ipv4.conf.{key}.arp_announce=2")));
    }
    findings
}
