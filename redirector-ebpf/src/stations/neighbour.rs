//! Station 3: who is next to us? Others ask that of the VIPs that this node holds, and are answered here (see [`answer`]).
//! The kernel keeps the next hops' entries fresh by asking; the answers pass here, and their MAC addresses are taken note
//! of. So next hops stay right and VIPs found while the agent is away, at no cost for other packets.
//!
//! Only answers sent to this port's own MAC address are learnt from, from addresses that are configured as next hops of
//! this very interface.

mod answer;

use crate::packet::headers::icmpv6::ADVERTISEMENT;
use crate::packet::headers::{Ethernet, Mac, Wire, ethertype};
use crate::packet::{Address, Frame, Packet, protocol};
use crate::reason::Reason;
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

const ARP_REQUEST: u16 = 1u16.to_be();
const ARP_REPLY: u16 = 2u16.to_be();
const TARGET_ADDRESS: u8 = 2;

/// What a neighbour asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// Nothing that concerns this node.
    Nothing,
    /// An ARP request for a held VIP; the frame is the reply to it now.
    Request,
    /// A neighbour solicitation for a held VIP; [`advertise`] answers it.
    Solicitation,
}

/// Hears what neighbours say in frames that are no traffic for VIPs: broadcasts and multicasts, ARP, and neighbour
/// discovery addressed to a VIP.
///
/// Messages with a VLAN tag are left to the kernel: a VIP is held on the interface itself, not on the VLANs over it.
#[inline(always)]
pub fn hear<F: Frame, T: Tables>(frame: &mut F, tables: &T, port: &Port) -> Question {
    let Some(ethernet) = frame.read::<Ethernet>(0) else { return Question::Nothing };
    let to_me = ethernet.dst.word() == port.mac;
    if !(to_me || ethernet.dst.is_group()) || ethernet.src.is_group() {
        return Question::Nothing;
    }
    if ethernet.ethertype == ethertype::IPV6.to_be() {
        return match answer::is_solicitation(frame, tables, port) {
            Some(true) => Question::Solicitation,
            _ => Question::Nothing,
        };
    }
    if ethernet.ethertype != ethertype::ARP.to_be() {
        return Question::Nothing;
    }
    match frame.read::<Arp>(14) {
        Some(arp) if arp.operation == ARP_REQUEST => match answer::request(frame, tables, port, ethernet.src, arp) {
            Some(()) => Question::Request,
            None => Question::Nothing,
        },
        Some(arp) if arp.operation == ARP_REPLY && arp.sender_mac == ethernet.src && to_me => {
            learn(tables, port, Address::mapped(join(arp.sender)), arp.sender_mac);
            Question::Nothing
        }
        _ => Question::Nothing,
    }
}

/// Makes a [`Question::Solicitation`] the advertisement that answers it; `None` where the frame cannot be grown.
#[inline(always)]
pub fn advertise<F: Frame>(frame: &mut F, port: &Port) -> Option<()> {
    answer::advertise(frame, Mac::from_word(port.mac))
}

/// What becomes of a frame in which neighbours may speak; for `reason` it is left to the kernel.
#[inline(always)]
pub fn respond<F: Frame, T: Tables>(frame: &mut F, tables: &T, port: &Port, reason: Reason) -> Reason {
    match tables.hear(frame, port) {
        Question::Nothing => reason,
        Question::Request => Reason::ArpAnswered,
        Question::Solicitation if tables.advertise(frame, port) => Reason::NdAnswered,
        Question::Solicitation => Reason::NoRoom,
    }
}

/// An address of an ARP packet, where it is aligned to two bytes only.
#[inline(always)]
fn join(halves: [u16; 2]) -> u32 {
    let [high, low] = [halves[0].to_ne_bytes(), halves[1].to_ne_bytes()];
    u32::from_ne_bytes([high[0], high[1], low[0], low[1]])
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
