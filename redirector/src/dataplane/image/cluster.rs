//! This node, the others, and the ways to them.

use std::net::IpAddr;
use std::time::Duration;

use redirector_ebpf::abi::{HOP_PORT, NODES};
use redirector_ebpf::tables::path::kind as carried;
use redirector_ebpf::tables::{Node, Path, Slot};
use siphasher::sip128::SipHasher24;

use super::{Image, ImageError, Links, source};
use crate::config::{Config, Forward, MemberLink, Refused};
use crate::dataplane::address::address;
use crate::ownership;

impl Image {
    pub(super) fn node(&mut self, config: &Config, key: [u8; 16]) {
        let limits = &config.limits;
        let timeouts = &config.timeouts;
        let word = |label: u64| {
            let hash = SipHasher24::new_with_key(&key).hash(&label.to_le_bytes());
            [hash.h1, hash.h2]
        };
        // Labels 1 to 6 give the hash's words, 7 the tags'.
        let hash_key = std::array::from_fn(|i| word(i as u64 / 2 + 1)[i % 2]);
        let mut idle = [seconds(timeouts.other); 8];
        idle[1] = seconds(timeouts.tcp_new);
        idle[2] = seconds(timeouts.tcp_established);
        idle[3] = seconds(timeouts.tcp_closing);
        idle[4] = seconds(timeouts.udp);
        idle[6] = seconds(timeouts.udp_new);
        // It may be an idle connection as well as any.
        idle[7] = idle[2];
        self.node = Node {
            hash_key,
            tag_key: word(7),
            cluster: config.cluster.id,
            slot_mask: config.cluster.slots - 1,
            new_flows: limits.new_flows_per_second,
            new_flows_per_source: limits.new_flows_per_source,
            inserts: limits.inserts_per_second,
            replies: limits.icmp_per_second,
            idle,
            id: config.node.id,
            shed_level: limits.shed_level,
            shed_least: limits.shed_level,
            prefixes: u8::from(config.vips.iter().any(|vip| !vip.address.is_single())),
            tells_refused: u8::from(matches!(config.shedding.answer, Refused::Reject)),
            tells_flows: u8::from(config.replication.enabled && config.members.len() > 1),
            ..Node::default()
        };
    }

    pub(super) fn members(&mut self, config: &Config, links: &Links) -> Result<(), ImageError> {
        let mut weights = vec![(config.node.id, 1)];
        self.alive.set(config.node.id, true);
        if !config.members.is_empty() {
            weights = config.members.iter().map(|member| (member.id, member.weight)).collect();
        }
        for member in &config.members {
            if member.id == config.node.id {
                match member.address {
                    IpAddr::V4(_) => self.node.hop4 = address(member.address),
                    IpAddr::V6(_) => self.node.hop6 = address(member.address),
                }
                continue;
            }
            self.alive.set(member.id, member.alive);
            let own = config.members.iter().find(|own| own.id == config.node.id);
            let peer = matches!(member.forward, Forward::Mac).then_some(member.id);
            let neighbour = self.neighbour(&member.interface, member.next_hop, peer)?;
            let (port, row) = self.port(&member.interface)?;
            let local = match own {
                Some(own) if own.address.is_ipv4() == member.address.is_ipv4() => own.address,
                _ => source(links, &member.interface, member.address)?,
            };
            let path = Path {
                kind: if peer.is_some() { carried::L2 } else { carried::HOP },
                port,
                vlan: member.vlan,
                neighbour,
                mtu: row.mtu.min(u32::from(u16::MAX)) as u16,
                outer_v6: u8::from(member.address.is_ipv6()),
                remote_port: HOP_PORT.to_be(),
                local: address(local),
                remote: address(member.address),
                ..Path::default()
            };
            self.peers.insert(member.id, path);
            self.ways.insert((member.id, port), path);
            self.links.insert((member.id, port), path);
            for further in &member.links {
                let is_marked = peer.is_some() && further.next_hop == further.address;
                let link = self.member_link(further, links, peer.filter(|_| is_marked))?;
                self.links.insert((member.id, link.port), link);
                // Across routers a node takes packets at one address, by whichever interface they come.
                let kind = if is_marked { carried::L2 } else { carried::HOP };
                let way = Path { kind, outer_v6: path.outer_v6, local: path.local, remote: path.remote, ..link };
                self.ways.insert((member.id, link.port), Path { remote_port: path.remote_port, ..way });
            }
        }
        weights.sort_unstable();
        let ranks = ownership::target(&weights, config.cluster.slots as usize, 1).unwrap_or_default();
        self.slots = ranks.into_iter().map(|ranks| Slot { ranks, version: 1, ..Slot::default() }).collect();
        debug_assert!(usize::from(u8::MAX) < NODES);
        Ok(())
    }

    /// A further way to a node, as beats take it. `peer` is the node, where packets are marked by MAC address.
    fn member_link(&mut self, member: &MemberLink, links: &Links, peer: Option<u8>) -> Result<Path, ImageError> {
        let neighbour = self.neighbour(&member.interface, member.next_hop, peer)?;
        let (port, row) = self.port(&member.interface)?;
        Ok(Path {
            port,
            vlan: member.vlan,
            neighbour,
            mtu: row.mtu.min(u32::from(u16::MAX)) as u16,
            outer_v6: u8::from(member.address.is_ipv6()),
            local: address(source(links, &member.interface, member.address)?),
            remote: address(member.address),
            ..Path::default()
        })
    }
}

fn seconds(time: Duration) -> u16 {
    u16::try_from(time.as_secs().max(1)).unwrap_or(u16::MAX)
}
