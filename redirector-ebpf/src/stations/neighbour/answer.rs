//! Questions for VIPs that this node holds, made answers in place: ARP requests and probes (RFC 826, RFC 5227), neighbour
//! solicitations and those of duplicate address detection (RFC 4861, RFC 4862). What is malformed, or asks for an address
//! that is not held, stays untouched.

use super::{ARP_REPLY, Arp, TARGET_ADDRESS, join};
use crate::packet::checksum::{fold, halves};
use crate::packet::headers::icmpv6::{ADVERTISEMENT, SOLICITATION};
use crate::packet::headers::{Ethernet, Ipv6, Mac, ethertype};
use crate::packet::{Address, Frame, protocol};
use crate::tables::{Port, Tables};

const SOURCE_ADDRESS: u8 = 1;
/// Where the IPv6 header and its addresses are in a frame without tags.
const IP: usize = 14;
const SOURCE: usize = IP + 8;
const DESTINATION: usize = SOURCE + 16;
/// Where the ICMPv6 message of a packet without extension headers starts.
const MESSAGE: usize = IP + 40;
const TARGET: usize = MESSAGE + 8;
/// Length of a solicitation with no option.
const SOLICITATION_LEN: usize = 24;
/// An option of eight bytes, or one of sixteen or two: a source address and a nonce (RFC 7527). Nobody sends more.
const OPTIONS_MAX: usize = 16;
/// Length of an advertisement with the target's MAC address as its option, and what it is longer by.
const ADVERTISEMENT_LEN: usize = 32;
const MORE: usize = ADVERTISEMENT_LEN - SOLICITATION_LEN;

/// Flags of an advertisement: it answers a solicitation; it replaces what was known.
const SOLICITED: u32 = (1u32 << 30).to_be();
const OVERRIDE: u32 = (1u32 << 29).to_be();

const ETHERNET: u16 = 1u16.to_be();
/// Lengths of a MAC address and of an IPv4 address.
const LENGTHS: u16 = 0x0604u16.to_be();
/// All nodes of the link (RFC 4291, section 2.7.1), and the MAC address that its packets go to (RFC 2464, section 7).
const ALL_NODES: [u32; 4] = [0xff02_0000u32.to_be(), 0, 0, 1u32.to_be()];
const ALL_NODES_MAC: Mac =
    Mac([u16::from_ne_bytes([0x33, 0x33]), u16::from_ne_bytes([0, 0]), u16::from_ne_bytes([0, 1])]);

/// Answers an ARP request for a held VIP. A probe, whose sender is still 0.0.0.0, is answered too, which tells the prober
/// that the address is taken; an announcement, which asks for its sender itself, is not.
#[inline(always)]
pub(super) fn request<F: Frame, T: Tables>(
    frame: &mut F,
    tables: &T,
    port: &Port,
    from: Mac,
    asked: Arp,
) -> Option<()> {
    let vip = join(asked.target);
    let plain = asked.hardware == ETHERNET && asked.protocol == ethertype::IPV4.to_be() && asked.lengths == LENGTHS;
    if !plain || join(asked.sender) == vip || !tables.holds(&Address::v4(vip), false, port.ifindex) {
        return None;
    }
    let own = Mac::from_word(port.mac);
    let reply = Arp {
        operation: ARP_REPLY,
        sender_mac: own,
        sender: asked.target,
        target_mac: asked.sender_mac,
        target: asked.sender,
        ..asked
    };
    frame.write(14, reply)?;
    frame.write(0, Ethernet { dst: from, src: own, ethertype: ethertype::ARP.to_be() })
}

/// Whether the frame is a neighbour solicitation for a held VIP, and valid (RFC 4861, section 7.1.1).
#[inline(always)]
pub(super) fn is_solicitation<F: Frame, T: Tables>(frame: &F, tables: &T, port: &Port) -> Option<bool> {
    let ip: Ipv6 = frame.read(IP)?;
    let len = usize::from(u16::from_be(ip.payload_len));
    let options = len.wrapping_sub(SOLICITATION_LEN);
    let version = u32::from_be(ip.version_class_label) >> 28;
    if version != 6 || ip.next != protocol::ICMPV6 || ip.hop_limit != 255 || options > OPTIONS_MAX || options % 8 != 0 {
        return None;
    }
    let [kind, code] = frame.read::<u16>(MESSAGE)?.to_ne_bytes();
    let vip = address(frame, TARGET)?;
    if kind != SOLICITATION || code != 0 || !tables.holds(&vip, true, port.ifindex) {
        return None;
    }
    let detecting = is_detecting(frame)?;
    let sound = frame.read::<u8>(SOURCE)? != 0xff
        && is_asked_there(&address(frame, DESTINATION)?, &vip, detecting)
        && options_are_sound(frame, options, detecting);
    Some(sound && checksum(frame, len)? == 0)
}

/// Makes a valid solicitation the advertisement that answers it.
#[inline(always)]
pub(super) fn advertise<F: Frame>(frame: &mut F, own: Mac) -> Option<()> {
    // To its length first, while a frame that cannot be changed is still the question.
    if frame.read::<u16>(IP + 4)? == (SOLICITATION_LEN as u16).to_be() {
        frame.cut(MESSAGE + SOLICITATION_LEN)?;
        frame.move_head(-(MORE as i32))?;
        // All of it back to where it was: room is made at the front, and needed at the end.
        frame.write(0, frame.read::<Ethernet>(MORE)?)?;
        let mut at = IP;
        while at < MESSAGE + SOLICITATION_LEN {
            frame.write(at, frame.read::<u64>(at + MORE)?)?;
            at += 8;
        }
    } else {
        frame.cut(MESSAGE + ADVERTISEMENT_LEN)?;
    }
    let detecting = is_detecting(frame)?;
    let dst = if detecting { ALL_NODES_MAC } else { frame.read::<Ethernet>(0)?.src };
    frame.write(0, Ethernet { dst, src: own, ethertype: ethertype::IPV6.to_be() })?;
    frame.write(IP + 4, (ADVERTISEMENT_LEN as u16).to_be())?;
    let to = if detecting { Address { words: ALL_NODES } } else { address(frame, SOURCE)? };
    frame.write(DESTINATION, to.words)?;
    let vip = address(frame, TARGET)?;
    frame.write(SOURCE, vip.words)?;
    let flags = if detecting { OVERRIDE } else { SOLICITED | OVERRIDE };
    frame.write(MESSAGE, u16::from_ne_bytes([ADVERTISEMENT, 0]))?;
    frame.write(MESSAGE + 2, 0u16)?;
    frame.write(MESSAGE + 4, flags)?;
    frame.write(MESSAGE + SOLICITATION_LEN, u16::from_ne_bytes([TARGET_ADDRESS, 1]))?;
    frame.write(MESSAGE + SOLICITATION_LEN + 2, own)?;
    frame.write(MESSAGE + 2, checksum(frame, ADVERTISEMENT_LEN)?)
}

/// Whether its sender has no address yet (RFC 4862, section 5.4).
#[inline(always)]
fn is_detecting<F: Frame>(frame: &F) -> Option<bool> {
    Some(address(frame, SOURCE)?.same(&Address::default()))
}

#[inline(always)]
fn address<F: Frame>(frame: &F, at: usize) -> Option<Address> {
    Some(Address { words: [frame.read(at)?, frame.read(at + 4)?, frame.read(at + 8)?, frame.read(at + 12)?] })
}

/// Whether a question for this VIP may be sent to that address. Who has no address yet asks the VIP's group only.
#[inline(always)]
fn is_asked_there(to: &Address, vip: &Address, detecting: bool) -> bool {
    to.same(&solicited_node(vip)) || !detecting && to.same(vip)
}

/// The group in which solicitations for an address are sent (RFC 4291, section 2.7.1).
#[inline(always)]
fn solicited_node(address: &Address) -> Address {
    let low = u32::from_be(address.words[3]) & 0xff_ffff;
    Address { words: [0xff02_0000u32.to_be(), 0, 1u32.to_be(), (0xff00_0000 | low).to_be()] }
}

/// Whether options have lengths that add up, and none tells the address of a sender that has none yet.
#[inline(always)]
fn options_are_sound<F: Frame>(frame: &F, options: usize, detecting: bool) -> bool {
    let mut at = 0;
    while at < OPTIONS_MAX {
        if at >= options {
            break;
        }
        let Some([kind, units]) = frame.read::<u16>(MESSAGE + SOLICITATION_LEN + at).map(u16::to_ne_bytes) else {
            return false;
        };
        if units == 0 || at + usize::from(units) * 8 > options || detecting && kind == SOURCE_ADDRESS {
            return false;
        }
        // One of sixteen bytes has no second one behind it.
        at += if units == 2 { 16 } else { 8 };
    }
    true
}

/// The checksum of the message and its pseudo-header, whose addresses stand right before it; 0 where the message holds it
/// already.
#[inline(always)]
fn checksum<F: Frame>(frame: &F, len: usize) -> Option<u16> {
    let mut sum = u32::from((len as u16).to_be()) + u32::from(u16::from(protocol::ICMPV6).to_be());
    let mut at = SOURCE;
    while at < MESSAGE + SOLICITATION_LEN + OPTIONS_MAX {
        if at >= MESSAGE + len {
            break;
        }
        sum += halves(frame.read(at)?);
        at += 4;
    }
    Some(!fold(sum))
}
