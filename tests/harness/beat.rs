//! Nodes that ask each other whether they live: their beats, and the frames that carry them.

use std::net::{IpAddr, SocketAddr};

use redirector::dataplane::memory::MemoryTables;
use redirector_ebpf::abi::BEAT_PORT;
use redirector_ebpf::beat::{BYTES, Beat, Kind, WORDS};
use redirector_ebpf::tables::liveness::{Heard, Vitals, Watch, link, slot};

use super::decode::{Body, decode};
use super::node::{self, Family, mac};
use super::packet::{Packet, udp_between};

/// Nanoseconds between two requests.
pub const INTERVAL: u64 = 10_000_000;

/// The rules of a node.
pub fn watch(me: u8) -> Watch {
    Watch {
        keys: [[0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908], [3, 4]],
        boot_id: 0xb007_0000 + u64::from(me),
        interval: INTERVAL,
        grace: INTERVAL / 4,
        incarnation: 100 + u32::from(me),
        multiplier: 3,
        key_ids: [7, 9],
        pad: 0,
        peers: 4,
    }
}

/// A node of the standard cluster that asks these peers over its first port, and has asked each of them a few times.
pub fn node(family: Family, me: u8, peers: &[u8]) -> MemoryTables {
    let mut tables = node::node_in(family, me);
    tables.watch = watch(me);
    for peer in peers {
        let sent = &tables.sent[link(*peer, 0) as usize];
        sent.nonce_base.store(u64::from(me) << 32);
        sent.sequence.store(20);
    }
    tables
}

/// What a node heard of a peer over its first port.
pub fn heard(tables: &MemoryTables, peer: u8) -> &Heard {
    &tables.heard[link(peer, 0) as usize]
}

/// All that a node heard over its first port of the nodes of the cluster, and of those that there cannot be.
pub fn all_heard(tables: &MemoryTables) -> Vec<u64> {
    [0, 1, 2, 3, 4, 5, 255].into_iter().flat_map(|node| words(heard(tables, node))).collect()
}

/// The words of [`Heard`], the times last: at 3, and from 16 on.
pub fn words(heard: &Heard) -> Vec<u64> {
    let Heard { incarnation, asked, answered, at, vitals, boot_id, applied, slots, pools, pad, view, times } = heard;
    let single = [incarnation, asked, answered, at, vitals, boot_id, applied, slots, pools];
    single.into_iter().chain(pad).chain(view).chain(times).map(|word| word.load()).collect()
}

/// The next request of a node to a peer, as its sender writes it.
pub fn ask(tables: &MemoryTables, peer: u8) -> Beat {
    let (node, now, sent) = (&tables.image.node, tables.now.get(), &tables.sent[link(peer, 0) as usize]);
    let number = sent.sequence.load() + 1;
    let mut beat = Beat::default();
    beat.set_head(&tables.watch, node.cluster, Kind::Request, node.id, peer);
    beat.set_turn(number, sent.nonce_base.load() + number, 0, now);
    let said = &tables.condition;
    beat.set_condition(
        Vitals::of(said.vitals.load()),
        [said.applied.load(), said.slots.load(), said.pools.load()],
        &tables.image.alive,
    );
    beat.seal(&tables.watch);
    slot(&sent.times, number).store(now);
    sent.sequence.store(number);
    beat
}

/// Where a node of the standard cluster takes beats.
pub fn address(family: Family, node: u8) -> IpAddr {
    let text = match family {
        Family::V4 => format!("10.0.0.{node}"),
        Family::V6 => format!("2001:db8::{node}"),
    };
    text.parse().expect("an address")
}

/// A beat's bytes.
pub fn bytes(beat: &Beat) -> Vec<u8> {
    beat.words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// A packet with this payload to the port of beats of a node.
pub fn packet(family: Family, from: u8, to: u8, payload: Vec<u8>) -> Packet {
    let socket = |node| SocketAddr::new(address(family, node), BEAT_PORT);
    Packet { payload, ..udp_between(socket(from), socket(to)) }.from(mac(from, 0)).to(mac(to, 0))
}

/// The frame that carries a beat from node to node.
pub fn frame(family: Family, from: u8, to: u8, beat: &Beat) -> Vec<u8> {
    packet(family, from, to, bytes(beat)).bytes()
}

/// The beat in a frame, which must be sound.
pub fn beat_of(frame: &[u8]) -> Beat {
    let seen = decode(frame);
    let Body::Udp(header, payload) = &seen.outer().body else { panic!("no UDP: {seen:?}") };
    assert_ne!(header.checksum, 0, "the checksum stands in for IPv4's, and IPv6 demands it");
    assert_eq!(payload.len(), BYTES, "the length of a beat");
    let word = |at: usize| u64::from_le_bytes(payload[at * 8..][..8].try_into().expect("eight bytes"));
    Beat { words: std::array::from_fn::<_, WORDS, _>(word) }
}
