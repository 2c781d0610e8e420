//! Services: what they stand on, and what was sent to them.

use std::collections::BTreeMap;

use redirector_ebpf::tables::{Service as Line, ServiceKey};
use serde::Serialize;

use super::{View, all, sum};
use crate::cli::output::{Row, class, protocol};
use crate::dataplane::maps::{Maps, MapsError, read};

#[derive(Serialize)]
pub(super) struct Service {
    name: String,
    vip: String,
    protocol: &'static str,
    /// Single ports and ranges, as the configuration writes them; none of ICMP.
    ports: Vec<String>,
    class: &'static str,
    affinity: &'static str,
    pool: String,
    /// Whether so little of the pool is healthy that all of it is used.
    panics: bool,
    packets: u64,
    bytes: u64,
}

impl Row for Service {
    fn header() -> &'static [&'static str] {
        &["NAME", "VIP", "PROTOCOL", "PORTS", "CLASS", "AFFINITY", "POOL", "PACKETS", "BYTES"]
    }

    fn cells(&self) -> Vec<String> {
        let ports = if self.ports.is_empty() { "-".to_owned() } else { self.ports.join(",") };
        vec![
            self.name.clone(),
            self.vip.clone(),
            self.protocol.to_owned(),
            ports,
            self.class.to_owned(),
            self.affinity.to_owned(),
            if self.panics { format!("{} (PANIC)", self.pool) } else { self.pool.clone() },
            self.packets.to_string(),
            self.bytes.to_string(),
        ]
    }
}

/// First and last port.
type Ports = (u16, u16);

pub(super) fn list(view: &View) -> Result<Vec<Service>, MapsError> {
    // By name, VIP and protocol, so that the list has an order.
    let mut found: BTreeMap<(String, u32, u8), (Line, Vec<Ports>)> = BTreeMap::new();
    let single = all(view.maps.services.iter(), "SERVICES")?.into_iter().map(|(key, line)| (key, 64, line));
    for (key, bits, line) in single.chain(ranges(&view.maps)?) {
        let of = (view.names.service(line.id), key.vip, key.protocol);
        found.entry(of).or_insert((line, Vec::new())).1.push(range(&key, bits));
    }
    let mut services = Vec::new();
    for ((name, vip, number), (line, ports)) in found {
        let traffic = view.maps.service_traffic.get(&u32::from(line.id), 0).map_err(read("SERVICE_TRAFFIC"))?;
        let traffic = sum(traffic.iter().copied());
        let protocol = protocol(number);
        let pool = view.maps.pools.get(&u32::from(line.pool), 0).map_err(read("POOLS"))?;
        services.push(Service {
            name,
            vip: view.names.vip(vip),
            protocol,
            ports: if protocol == "icmp" { Vec::new() } else { merged(ports) },
            class: class(line.class),
            affinity: if line.owned != 0 { "owned" } else { "shared" },
            pool: view.names.pool(line.pool),
            panics: pool.panics != 0,
            packets: traffic.packets,
            bytes: traffic.bytes,
        });
    }
    Ok(services)
}

/// Services on ranges of ports: key, bits of the key that count, service.
pub(in crate::cli) fn ranges(maps: &Maps) -> Result<Vec<(ServiceKey, u32, Line)>, MapsError> {
    let key = |[vip, rest]: [u32; 2]| {
        let [protocol, pad, a, b] = rest.to_ne_bytes();
        ServiceKey { vip, protocol, pad, port: u16::from_ne_bytes([a, b]) }
    };
    let entries = all(maps.ranges.iter(), "RANGES")?;
    Ok(entries.into_iter().map(|(prefix, line)| (key(prefix.data()), prefix.prefix_len(), line)).collect())
}

/// The ports that a key stands for.
fn range(key: &ServiceKey, bits: u32) -> Ports {
    let first = u16::from_be(key.port);
    let free = 64 - bits.clamp(48, 64);
    (first, first | ((1u32 << free) - 1) as u16)
}

/// Ports as ranges again: prefixes that follow each other belong together.
fn merged(mut ports: Vec<Ports>) -> Vec<String> {
    ports.sort_unstable();
    let mut ranges: Vec<Ports> = Vec::new();
    for (first, last) in ports {
        match ranges.last_mut() {
            Some(before) if u32::from(before.1) + 1 >= u32::from(first) => before.1 = before.1.max(last),
            _ => ranges.push((first, last)),
        }
    }
    let text = |(first, last): &Ports| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    };
    ranges.iter().map(text).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use redirector_ebpf::tables::ServiceKey;

    use super::{merged, range};

    fn key(port: u16) -> ServiceKey {
        ServiceKey { vip: 1, protocol: 6, pad: 0, port: port.to_be() }
    }

    #[test]
    fn a_key_stands_for_the_ports_below_its_prefix() {
        assert_eq!(range(&key(80), 64), (80, 80));
        assert_eq!(range(&key(0), 48), (0, u16::MAX));
        assert_eq!(range(&key(5004), 62), (5004, 5007));
    }

    #[test]
    fn what_follows_each_other_is_one_range() {
        assert_eq!(merged(vec![(5008, 5011), (80, 80), (5004, 5007)]), ["80", "5004-5011"]);
        assert_eq!(merged(vec![(0, 32767), (32768, u16::MAX)]), ["0-65535"]);
        assert!(merged(Vec::new()).is_empty());
    }

    proptest! {
        /// Taken apart in any way, a range comes back whole.
        #[test]
        fn a_range_comes_back(first in 0u16..60_000, lengths in proptest::collection::vec(1u16..200, 1..20)) {
            let mut parts = Vec::new();
            let mut next = u32::from(first);
            for length in lengths {
                let last = (next + u32::from(length) - 1).min(0xffff);
                parts.push((next as u16, last as u16));
                next = last + 1;
                if next > 0xffff {
                    break;
                }
            }
            let last = next - 1;
            let whole = if u32::from(first) == last { first.to_string() } else { format!("{first}-{last}") };
            parts.reverse();
            prop_assert_eq!(merged(parts), [whole]);
        }
    }
}
