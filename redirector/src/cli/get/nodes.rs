//! Nodes: who they are, whether they are alive, and the way to them.

use std::net::IpAddr;

use redirector_ebpf::packet::Address;
use redirector_ebpf::tables::Path;
use redirector_ebpf::tables::path::kind;
use serde::Serialize;

use super::View;
use crate::cli::output::{Row, cell, yes};
use crate::dataplane::image::ip;
use crate::dataplane::maps::{MapsError, read};

#[derive(Serialize)]
pub(super) struct Node {
    id: u8,
    name: String,
    #[serde(rename = "self")]
    is_self: bool,
    alive: bool,
    /// Where it takes packets from other nodes.
    address: Option<IpAddr>,
    /// How packets are forwarded to it.
    forward: Option<&'static str>,
    interface: Option<String>,
    next_hop: Option<String>,
    mac: Option<String>,
    primary_slots: usize,
}

impl Row for Node {
    fn header() -> &'static [&'static str] {
        &["ID", "NAME", "SELF", "ALIVE", "ADDRESS", "FORWARD", "INTERFACE", "NEXT-HOP", "MAC", "PRIMARY-SLOTS"]
    }

    fn cells(&self) -> Vec<String> {
        let mac = match (&self.mac, self.is_self) {
            (None, false) => "unresolved".to_owned(),
            (mac, _) => cell(mac.as_ref()),
        };
        vec![
            self.id.to_string(),
            self.name.clone(),
            yes(self.is_self),
            yes(self.alive),
            cell(self.address),
            cell(self.forward),
            cell(self.interface.as_ref()),
            cell(self.next_hop.as_ref()),
            mac,
            self.primary_slots.to_string(),
        ]
    }
}

/// This node and its peers; also those that only the slots still name.
pub(super) fn list(view: &View) -> Result<Vec<Node>, MapsError> {
    let slots = view.maps.slots()?;
    let alive = view.maps.alive.get(&0, 0).map_err(read("ALIVE"))?;
    let mut nodes = Vec::new();
    for id in 1..=254u8 {
        let path = view.maps.peers.get(&u32::from(id), 0).map_err(read("PEERS"))?;
        let is_self = id == view.node.id;
        let is_peer = path != Path::default();
        if !is_self && !is_peer && !slots.iter().any(|slot| slot.ranks.contains(&id)) {
            continue;
        }
        let own = [(view.node.hop4, false), (view.node.hop6, true)];
        let own = own.into_iter().find(|(address, _)| *address != Address::default());
        nodes.push(Node {
            id,
            name: view.names.node(id),
            is_self,
            alive: alive.is_alive(id),
            address: match is_self {
                true => own.map(|(address, v6)| ip(&address, v6)),
                false => is_peer.then(|| ip(&path.remote, path.outer_v6 != 0)),
            },
            forward: is_peer.then_some(if path.kind == kind::HOP { "udp" } else { "mac" }),
            interface: is_peer.then(|| view.names.port(path.port)),
            next_hop: is_peer.then(|| view.names.neighbour(path.neighbour)),
            mac: if is_peer { view.mac(path.neighbour)? } else { None },
            primary_slots: slots.iter().filter(|slot| slot.ranks[0] == id).count(),
        });
    }
    Ok(nodes)
}
