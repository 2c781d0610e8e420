//! The short ways to services that packets try first: which service has its cell where, and which addresses are listed.

use std::collections::HashMap;
use std::net::IpAddr;

use redirector_ebpf::hash::Toward;
use redirector_ebpf::packet::{Tuple, protocol};
use redirector_ebpf::tables::cell::{self, Cells, LISTED_WORDS, SETS};

use super::address::address;
use super::image::Image;

/// What the maps of short ways should hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shortcuts {
    /// Sets of cells.
    pub cells: Vec<Cells>,
    /// Bits of the addresses that are VIPs.
    pub listed: Vec<u64>,
}

impl Image {
    /// The short ways to this image's services on one port of one address. What finds no room has none.
    pub fn shortcuts(&self) -> Shortcuts {
        let (mut cells, mut listed) = (vec![Cells::default(); SETS], vec![0; LISTED_WORDS]);
        let key = &self.node.hash_key;
        let single = || self.vips.iter().filter(|(prefix, _)| prefix.is_single());
        for (prefix, _) in single() {
            let tuple = Tuple { dst: address(prefix.address()), ..Tuple::default() };
            let (word, bit) = cell::listed(Toward::of(key, &tuple, prefix.address().is_ipv6()));
            listed[word as usize] |= bit;
        }
        let vips: HashMap<u32, IpAddr> = single().map(|(prefix, vip)| (vip.id, prefix.address())).collect();
        // By number, so that the same services always find the same places.
        let mut services: Vec<_> = self.services.iter().filter(|(key, _)| key.protocol != protocol::ICMP).collect();
        services.sort_unstable_by_key(|(key, service)| (service.id, key.vip, key.protocol, key.port));
        for (of, service) in services {
            let Some(&vip) = vips.get(&of.vip) else { continue };
            let (dst, v6) = (address(vip), vip.is_ipv6());
            let tuple = Tuple { dst, dport: of.port, protocol: of.protocol, ..Tuple::default() };
            cells[Toward::of(key, &tuple, v6).cells() as usize].put(of.port, of.protocol, v6, dst, *service);
        }
        Shortcuts { cells, listed }
    }
}
