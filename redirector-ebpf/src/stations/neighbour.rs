//! Station 3: who is next to us? The kernel keeps the next hops' entries fresh by asking; the answers pass here, and
//! their MAC addresses are taken note of. So next hops stay right while the agent is away, at no cost for other packets.
//!
//! Only answers sent to this port's own MAC address count, from addresses that are configured as next hops of this very
//! interface.

use crate::packet::headers::{Ethernet, Mac, Wire, ethertype};
use crate::packet::{Address, Frame, Packet, protocol};
use crate::tables::path::RESOLVED;
use crate::tables::{NeighbourKey, Port, Tables};

/// An ARP packet for IPv4 over Ethernet (RFC 826).
#[repr(C)]
#[derive(Clone, Copy)]
struct Arp {
    hardware: u16,
    protocol: u16,
    lengths: u16,
    operation: u16,
    sender_mac: Mac,
    sender: [u16; 2],
    target_mac: Mac,
    target: [u16; 2],
}

const _: () = assert!(core::mem::size_of::<Arp>() == 28);
// SAFETY: integers only, no padding as asserted.
unsafe impl Wire for Arp {}

/// A neighbour advertisement with a target link-layer address as its first option (RFC 4861, section 4.4).
#[repr(C)]
#[derive(Clone, Copy)]
struct Advertisement {
    kind: u8,
    code: u8,
    checksum: u16,
    flags: u32,
    target: [u32; 4],
    option: u8,
    option_len: u8,
    mac: Mac,
}

const _: () = assert!(core::mem::size_of::<Advertisement>() == 32);
// SAFETY: integers only, no padding as asserted.
unsafe impl Wire for Advertisement {}

const ARP_REPLY: u16 = 2u16.to_be();
const ADVERTISEMENT: u8 = 136;
const TARGET_ADDRESS: u8 = 2;

/// Takes note of an ARP reply.
#[inline(always)]
pub fn arp<F: Frame, T: Tables>(frame: &F, tables: &T, port: &Port) {
    let Some(ethernet) = frame.read::<Ethernet>(0) else { return };
    if ethernet.ethertype != ethertype::ARP.to_be() || ethernet.dst.word() != port.mac {
        return;
    }
    let Some(arp) = frame.read::<Arp>(14) else { return };
    if arp.operation == ARP_REPLY && arp.sender_mac == ethernet.src {
        let [high, low] = [arp.sender[0].to_ne_bytes(), arp.sender[1].to_ne_bytes()];
        let sender = u32::from_ne_bytes([high[0], high[1], low[0], low[1]]);
        learn(tables, port, Address::mapped(sender), arp.sender_mac);
    }
}

/// Takes note of a neighbour advertisement. The hop limit of 255 tells that no router has touched it.
#[inline(always)]
pub fn advertisement<F: Frame, T: Tables>(frame: &F, tables: &T, port: &Port, packet: &Packet) {
    if !packet.v6 || packet.tuple.protocol != protocol::ICMPV6 || packet.ttl != 255 {
        return;
    }
    let Some(message) = frame.read::<Advertisement>(usize::from(packet.l4)) else { return };
    if message.kind == ADVERTISEMENT && message.option == TARGET_ADDRESS && message.option_len == 1 {
        learn(tables, port, Address { words: message.target }, message.mac);
    }
}

#[inline(always)]
fn learn<T: Tables>(tables: &T, port: &Port, address: Address, mac: Mac) {
    if let Some(id) = tables.neighbour_id(&NeighbourKey { address, ifindex: port.ifindex, pad: 0 }) {
        tables.learn(id, mac.word() | RESOLVED);
    }
}
