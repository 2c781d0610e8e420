//! Beats to the far ends of paths, and the frames that carry them.

use std::net::SocketAddr;

use redirector::dataplane::memory::MemoryTables;
use redirector_ebpf::abi::{BEAT_PORT, GUE_PORT};
use redirector_ebpf::beat::Beat;
use redirector_ebpf::tables::leg::LegRules;
use redirector_ebpf::tables::liveness::slot;

use super::backend::PATH_KEY;
use super::beat::{bytes, watch};
use super::node::{self, Family, mac};
use super::packet::{Packet, raw, udp_between};

/// How a beat comes to its far end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carried {
    /// As it is.
    Plain,
    /// Within IP.
    Ipip,
    /// Within GUE.
    Gue,
}

/// Node 1 of the standard cluster, which asks far ends.
pub fn node(family: Family) -> MemoryTables {
    let mut tables = node::node_in(family, 1);
    tables.watch = watch(1);
    tables.leg_rules = LegRules { key: PATH_KEY, paths: 0, key_id: 5, noted: 1, pad: [0; 2] };
    tables
}

/// The next request of a node over a leg, as its sender writes it.
pub fn ask(tables: &MemoryTables, leg: u32) -> Beat {
    let (sent, now) = (&tables.leg_sent[leg as usize], tables.now.get());
    let number = sent.sequence.load() + 1;
    let turn = [number, sent.nonce_base.load() + number, now];
    let node = &tables.image.node;
    let mut beat = Beat::path_request(5, node.cluster, node.id, tables.watch.boot_id, leg, turn);
    beat.seal_with(&tables.leg_rules.key);
    slot(&sent.times, number).store(now);
    sent.sequence.store(number);
    beat
}

/// The frame that carries a beat from node 1 to the standard backend.
pub fn frame(family: Family, carried: Carried, beat: &Beat) -> Vec<u8> {
    let (from, to) = match family {
        Family::V4 => ("10.0.0.1", "10.9.0.1"),
        Family::V6 => ("2001:db8:1::1", "2001:db8:9::1"),
    };
    let (from, to) = (from.parse().expect("an address"), to.parse().expect("an address"));
    let socket = |address, port| SocketAddr::new(address, port);
    let beat = Packet { payload: bytes(beat), ..udp_between(socket(from, BEAT_PORT), socket(to, BEAT_PORT)) };
    let protocol = if from.is_ipv4() { 4 } else { 41 };
    let packet = match carried {
        Carried::Plain => beat,
        Carried::Ipip => raw(from, to, protocol, beat.ip_bytes()),
        Carried::Gue => Packet {
            payload: [&[0, protocol, 0, 0][..], &beat.ip_bytes()].concat(),
            ..udp_between(socket(from, 0xc000), socket(to, GUE_PORT))
        },
    };
    packet.from(mac(1, 0)).to(mac(9, 0)).bytes()
}
