//! Virtual addresses, who holds them, and what becomes of packets to them that no service takes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use redirector_ebpf::packet::Address;
use redirector_ebpf::tables::Vip as Line;
use serde::Serialize;

use super::{ANSWER, View, all, ranges};
use crate::agent::control::{self, Answer, Request};
use crate::cli::output::{Row, echo, unmatched};
use crate::config::{Config, Prefix};
use crate::dataplane::address::ip;
use crate::dataplane::maps::{Maps, MapsError};
use crate::vip;

#[derive(Serialize)]
pub(super) struct Vip {
    address: Prefix,
    unmatched: &'static str,
    echo: &'static str,
    /// Whether this node answers ARP or neighbour discovery for it.
    held: bool,
    /// Who should hold it, best first, as agreed, or by the configuration at hand; empty where no node does, or none is at hand.
    plan: Vec<String>,
    services: Vec<String>,
}

impl Row for Vip {
    fn header() -> &'static [&'static str] {
        &["ADDRESS", "UNMATCHED", "ECHO", "HELD", "PLAN", "SERVICES"]
    }

    fn cells(&self) -> Vec<String> {
        let list = |names: &[String]| if names.is_empty() { "-".to_owned() } else { names.join(",") };
        let held = if self.held { "here" } else { "-" };
        let (plan, services) = (list(&self.plan), list(&self.services));
        vec![self.address.to_string(), self.unmatched.to_owned(), self.echo.to_owned(), held.to_owned(), plan, services]
    }
}

/// All VIPs. Who should hold them is told by the agent, if one answers that agrees on anything; else by the configuration.
pub(super) fn list(view: &View, config: Option<&Config>) -> Result<Vec<Vip>, MapsError> {
    let plan = config.map(|config| vip::plan::committed(config, &agreed(config)));
    let (held, plan) = (vip::held(&view.maps)?, plan.unwrap_or_default());
    let ranks = |address: IpAddr| plan.get(&address).into_iter().flatten().map(|node| view.names.node(*node)).collect();
    let mut services: HashMap<u32, BTreeSet<String>> = HashMap::new();
    let single = all(view.maps.services.iter(), "SERVICES")?.into_iter().map(|(key, line)| (key.vip, line.id));
    for (vip, service) in single.chain(ranges(&view.maps)?.into_iter().map(|(key, _, line)| (key.vip, line.id))) {
        services.entry(vip).or_default().insert(view.names.service(service));
    }
    let told = |(address, line): (Prefix, Line)| Vip {
        address,
        unmatched: unmatched(line.unmatched),
        echo: echo(line.echo),
        held: address.is_single() && held.contains(&address.address()),
        plan: if address.is_single() { ranks(address.address()) } else { Vec::new() },
        services: services.remove(&line.id).unwrap_or_default().into_iter().collect(),
    };
    Ok(lines(&view.maps)?.into_iter().map(told).collect())
}

fn agreed(config: &Config) -> BTreeMap<String, Vec<u8>> {
    match control::ask_within(ANSWER, &control::path(config), &Request::Nodes) {
        Ok(Answer::Nodes { agreement: Some(agreement), .. }) => agreement.vips,
        _ => BTreeMap::new(),
    }
}

/// All VIPs and prefixes of them, in order.
pub(in crate::cli) fn lines(maps: &Maps) -> Result<BTreeMap<Prefix, Line>, MapsError> {
    let v4 = |word: u32| IpAddr::from(word.to_ne_bytes());
    let v6 = |words: [u32; 4]| ip(&Address { words }, true);
    let mut lines = BTreeMap::new();
    lines.extend(all(maps.vips4.iter(), "VIPS4")?.into_iter().map(|(word, line)| (v4(word).into(), line)));
    lines.extend(all(maps.vips6.iter(), "VIPS6")?.into_iter().map(|(key, line)| (ip(&key, true).into(), line)));
    let prefix = |address, bits: u32| Prefix::around(address, bits.min(128) as u8);
    let prefixes4 = all(maps.prefixes4.iter(), "PREFIXES4")?;
    lines.extend(prefixes4.into_iter().map(|(key, line)| (prefix(v4(key.data()), key.prefix_len()), line)));
    let prefixes6 = all(maps.prefixes6.iter(), "PREFIXES6")?;
    lines.extend(prefixes6.into_iter().map(|(key, line)| (prefix(v6(key.data()), key.prefix_len()), line)));
    Ok(lines)
}
