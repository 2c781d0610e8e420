//! VIPs, and the services on them.

use redirector_ebpf::tables::names::kind as named;
use redirector_ebpf::tables::service::{echo, unmatched};
use redirector_ebpf::tables::{Service, ServiceKey, Vip};

use super::{Image, ImageError, protocol_number};
use crate::config::{Affinity, Config, Echo, PortRange, Protocol, Unmatched};

impl Image {
    pub(super) fn services(&mut self, config: &Config) -> Result<(), ImageError> {
        for vip in &config.vips {
            let id = self.registry.assign(named::VIP, &vip.address.to_string(), config.tables.vips)?;
            let ranged = config.services.iter().any(|service| {
                service.vip == vip.address && service.ports.iter().any(|range| range.first != range.last)
            });
            let row = Vip {
                id,
                ranges: u8::from(ranged),
                unmatched: match vip.unmatched {
                    Unmatched::Drop => unmatched::DROP,
                    Unmatched::Reject => unmatched::REJECT,
                    Unmatched::Pass => unmatched::PASS,
                },
                echo: match vip.echo {
                    Echo::Answer => echo::ANSWER,
                    Echo::Pass => echo::PASS,
                    Echo::Drop => echo::DROP,
                },
                pad: 0,
            };
            self.vips.insert(vip.address, row);
        }
        for service in &config.services {
            // The configuration's rules have made sure that VIP and pool are there.
            let (Some(vip), Some(pool)) =
                (self.vips.get(&service.vip).copied(), self.registry.id(named::POOL, &service.pool))
            else {
                continue;
            };
            let id = self.registry.assign(named::SERVICE, &service.name, config.tables.services)? as u16;
            let row = Service {
                id,
                pool: pool as u16,
                class: service.class as u8,
                owned: u8::from(matches!(service.affinity, Affinity::Owned)),
                dscp: u8::from(service.dscp),
                pad: 0,
            };
            let key = |port: u16| ServiceKey {
                vip: vip.id,
                protocol: protocol_number(service.protocol),
                pad: 0,
                port: port.to_be(),
            };
            if matches!(service.protocol, Protocol::Icmp) {
                self.services.insert(key(0), row);
                continue;
            }
            for &range in &service.ports {
                if range.first == range.last {
                    self.services.insert(key(range.first), row);
                    continue;
                }
                for (port, bits) in port_prefixes(range) {
                    self.ranges.insert((key(port), 48 + bits), row);
                }
            }
        }
        Ok(())
    }
}

/// The least set of prefixes of 16-bit ports that covers a range: (port, bits that count).
fn port_prefixes(range: PortRange) -> Vec<(u16, u32)> {
    let (mut first, last) = (u32::from(range.first), u32::from(range.last));
    let mut prefixes = Vec::new();
    while first <= last {
        let aligned = if first == 0 { 16 } else { first.trailing_zeros() };
        let fitting = (last - first + 1).ilog2();
        let bits = aligned.min(fitting);
        prefixes.push((first as u16, 16 - bits));
        first += 1 << bits;
    }
    prefixes
}
