//! Virtual addresses, and what becomes of packets to them that no service takes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use redirector_ebpf::packet::Address;
use redirector_ebpf::tables::Vip as Line;
use serde::Serialize;

use super::{View, all, ranges};
use crate::cli::output::{Row, echo, unmatched};
use crate::config::Prefix;
use crate::dataplane::image::ip;
use crate::dataplane::maps::{Maps, MapsError};

#[derive(Serialize)]
pub(super) struct Vip {
    address: Prefix,
    unmatched: &'static str,
    echo: &'static str,
    services: Vec<String>,
}

impl Row for Vip {
    fn header() -> &'static [&'static str] {
        &["ADDRESS", "UNMATCHED", "ECHO", "SERVICES"]
    }

    fn cells(&self) -> Vec<String> {
        let services = if self.services.is_empty() { "-".to_owned() } else { self.services.join(",") };
        vec![self.address.to_string(), self.unmatched.to_owned(), self.echo.to_owned(), services]
    }
}

pub(super) fn list(view: &View) -> Result<Vec<Vip>, MapsError> {
    let mut services: HashMap<u32, BTreeSet<String>> = HashMap::new();
    let single = all(view.maps.services.iter(), "SERVICES")?.into_iter().map(|(key, line)| (key.vip, line.id));
    for (vip, service) in single.chain(ranges(&view.maps)?.into_iter().map(|(key, _, line)| (key.vip, line.id))) {
        services.entry(vip).or_default().insert(view.names.service(service));
    }
    let vip = |(address, line): (Prefix, Line)| Vip {
        address,
        unmatched: unmatched(line.unmatched),
        echo: echo(line.echo),
        services: services.remove(&line.id).unwrap_or_default().into_iter().collect(),
    };
    Ok(lines(&view.maps)?.into_iter().map(vip).collect())
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
