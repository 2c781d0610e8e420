//! What is answered from here: echo requests, packets for ports without a service, packets that are too long.
//!
//! The answer goes back by the frame's own source address. For packets that another node forwarded, where that address is
//! the node's, it goes where the kernel would route it; where the kernel's tables do not know the next hop yet, it is given
//! to the kernel, which finds it out and forwards, if it may. Answers have a budget.

use super::{Journey, admit};
use crate::packet::headers::{DONT_FRAGMENT, Ethernet, Icmp, Ipv4, Ipv6, Mac, Ports, Tcp, Vlan, icmp, icmpv6};
use crate::packet::{Address, Frame, Packet, checksum, protocol, tcp};
use crate::reason::{Reason, Station, Verdict};
use crate::tables::path::RESOLVED;
use crate::tables::{Budget, Node, Tables};

/// What is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// An echo reply.
    Echo,
    /// A TCP reset, or port unreachable for UDP.
    Reject,
    /// Fragmentation needed or packet too big, with the MTU that fits.
    TooBig(u16),
}

/// TTL of what is sent from here.
const TTL: u8 = 64;

/// Longest part of a packet that an ICMP error quotes: its headers and eight bytes of transport (RFC 792).
const QUOTE_MAX: usize = 96;

/// Turns the packet into its answer.
///
/// # Errors
/// [`Reason::ReplyBudget`] or [`Reason::TooBig`] where the budget is spent, [`Reason::ReplyTooLong`],
/// [`Reason::UnmatchedDrop`] where the packet must not be answered.
#[inline(always)]
pub fn send<F: Frame, T: Tables>(
    frame: &mut F,
    tables: &T,
    node: &Node,
    ingress: u8,
    journey: &Journey,
    answer: Answer,
) -> Station<Verdict> {
    let packet = &journey.packet;
    if !matches!(answer, Answer::Echo) && !admit::spend(tables.budget(Budget::Replies), node.replies, tables.now()) {
        return Err(if matches!(answer, Answer::TooBig(_)) { Reason::TooBig } else { Reason::ReplyBudget });
    }
    let forwarded = !journey.mark.is_none() || tables.peer_of_mac(packet.source_mac).is_some();
    let own = tables.port(ingress).ok_or(Reason::NoPort)?.mac;
    let (port, to, known) = if !forwarded {
        (ingress, packet.source_mac, true)
    } else {
        match tables.route(&packet.tuple.src, packet.v6) {
            Some((port, to)) => (port, to, true),
            None => (ingress, own, false),
        }
    };
    let from = tables.port(port).ok_or(Reason::NoPort)?.mac;
    let link = Link::read(frame, packet, to & (RESOLVED - 1), from)?;
    let reason = match answer {
        Answer::Echo => {
            echo(frame, packet)?;
            link.write(frame)?;
            Reason::EchoAnswered
        }
        Answer::Reject if packet.tuple.protocol == protocol::TCP => {
            reset(frame, packet)?;
            link.write(frame)?;
            Reason::ResetSent
        }
        Answer::Reject if packet.tuple.protocol == protocol::UDP => {
            let (kind, code) = if packet.v6 { (icmpv6::UNREACHABLE, 4) } else { (icmp::UNREACHABLE, 3) };
            error(frame, packet, &link, kind, code, 0)?;
            Reason::UnreachableSent
        }
        Answer::Reject => return Err(Reason::UnmatchedDrop),
        Answer::TooBig(mtu) => {
            let (kind, code) = if packet.v6 { (icmpv6::TOO_BIG, 0) } else { (icmp::UNREACHABLE, 4) };
            error(frame, packet, &link, kind, code, mtu)?;
            Reason::TooBigSent
        }
    };
    Ok(Verdict { reason: if known { reason } else { Reason::ReplyHandedOver }, port })
}

/// The link-layer header of the answer: the packet's own, tags included, with other addresses.
struct Link {
    ethernet: Ethernet,
    tags: [u32; 2],
    len: u16,
}

impl Link {
    #[inline(always)]
    fn read<F: Frame>(frame: &F, packet: &Packet, to: u64, from: u64) -> Station<Self> {
        let mut ethernet: Ethernet = frame.read(0).ok_or(Reason::NoRoom)?;
        ethernet.dst = Mac::from_word(to);
        ethernet.src = Mac::from_word(from);
        let mut tags = [0, 0];
        if packet.l3 >= 18 {
            tags[0] = frame.read(14).ok_or(Reason::NoRoom)?;
        }
        if packet.l3 >= 22 {
            tags[1] = frame.read(18).ok_or(Reason::NoRoom)?;
        }
        Ok(Self { ethernet, tags, len: packet.l3 })
    }

    #[inline(always)]
    fn write<F: Frame>(&self, frame: &mut F) -> Station<()> {
        frame.write(0, self.ethernet).ok_or(Reason::NoRoom)?;
        if self.len >= 18 {
            frame.write(14, self.tags[0]).ok_or(Reason::NoRoom)?;
        }
        if self.len >= 22 {
            frame.write(18, self.tags[1]).ok_or(Reason::NoRoom)?;
        }
        Ok(())
    }
}

const _: () = assert!(core::mem::size_of::<Vlan>() == core::mem::size_of::<u32>());

/// Turns an echo request into its reply, in place.
#[inline(always)]
fn echo<F: Frame>(frame: &mut F, packet: &Packet) -> Station<()> {
    let (l3, l4) = (usize::from(packet.l3), usize::from(packet.l4));
    let (request, answer) = if packet.v6 { (icmpv6::ECHO, icmpv6::ECHO_REPLY) } else { (icmp::ECHO, icmp::ECHO_REPLY) };
    if packet.v6 {
        let mut ip: Ipv6 = frame.read(l3).ok_or(Reason::NoRoom)?;
        (ip.src, ip.dst) = (ip.dst, ip.src);
        ip.hop_limit = TTL;
        frame.write(l3, ip).ok_or(Reason::NoRoom)?;
    } else {
        let mut ip: Ipv4 = frame.read(l3).ok_or(Reason::NoRoom)?;
        (ip.src, ip.dst) = (ip.dst, ip.src);
        let old = u16::from_ne_bytes([ip.ttl, ip.protocol]);
        ip.ttl = TTL;
        ip.checksum = checksum::update(ip.checksum, old, u16::from_ne_bytes([ip.ttl, ip.protocol]));
        frame.write(l3, ip).ok_or(Reason::NoRoom)?;
    }
    let mut header: Icmp = frame.read(l4).ok_or(Reason::NoRoom)?;
    header.checksum = checksum::update(
        header.checksum,
        u16::from_ne_bytes([request, header.code]),
        u16::from_ne_bytes([answer, header.code]),
    );
    header.kind = answer;
    frame.write(l4, header).ok_or(Reason::NoRoom)
}

/// An IP header for `len` bytes of payload from the VIP to the client; returns its length.
#[inline(always)]
fn write_ip<F: Frame>(frame: &mut F, packet: &Packet, protocol: u8, len: usize) -> Station<usize> {
    let (l3, tuple) = (usize::from(packet.l3), &packet.tuple);
    if packet.v6 {
        let header = Ipv6 {
            version_class_label: (6u32 << 28).to_be(),
            payload_len: (len as u16).to_be(),
            next: protocol,
            hop_limit: TTL,
            src: tuple.dst.words,
            dst: tuple.src.words,
        };
        frame.write(l3, header).ok_or(Reason::NoRoom)?;
        Ok(40)
    } else {
        let mut header = Ipv4 {
            version_ihl: 0x45,
            tos: 0,
            total_len: ((20 + len) as u16).to_be(),
            id: 0,
            fragment: DONT_FRAGMENT,
            ttl: TTL,
            protocol,
            checksum: 0,
            src: tuple.dst.words[0],
            dst: tuple.src.words[0],
        };
        header.checksum = checksum::ipv4(&header);
        frame.write(l3, header).ok_or(Reason::NoRoom)?;
        Ok(20)
    }
}

/// The sum of the pseudo-header of TCP and ICMPv6 (RFC 9293 section 3.1, RFC 8200 section 8.1).
#[inline(always)]
fn pseudo_header(src: &Address, dst: &Address, protocol: u8, len: usize) -> u32 {
    let mut sum = u32::from((len as u16).to_be()) + u32::from(u16::from(protocol).to_be());
    let mut i = 0;
    while i < 4 {
        sum += checksum::halves(src.words[i]) + checksum::halves(dst.words[i]);
        i += 1;
    }
    sum
}

/// Turns a TCP segment into the reset that answers it (RFC 9293, section 3.5.2).
#[inline(always)]
fn reset<F: Frame>(frame: &mut F, packet: &Packet) -> Station<()> {
    let l4 = usize::from(packet.l4);
    let segment: Tcp = frame.read(l4).ok_or(Reason::NoRoom)?;
    if segment.flags & tcp::RST != 0 {
        return Err(Reason::UnmatchedDrop);
    }
    let acknowledged = segment.flags & tcp::ACK != 0;
    let header_len = usize::from(segment.data_offset >> 4) * 4;
    let data = (usize::from(packet.l3) + usize::from(packet.l3_len)).saturating_sub(l4 + header_len) as u32;
    let controls = u32::from(segment.flags & tcp::SYN != 0) + u32::from(segment.flags & tcp::FIN != 0);
    let mut answer = Tcp {
        ports: Ports { src: segment.ports.dst, dst: segment.ports.src },
        seq: if acknowledged { segment.ack } else { 0 },
        ack: if acknowledged { 0 } else { u32::from_be(segment.seq).wrapping_add(data + controls).to_be() },
        data_offset: 5 << 4,
        flags: if acknowledged { tcp::RST } else { tcp::RST | tcp::ACK },
        window: 0,
        checksum: 0,
        urgent: 0,
    };
    let sum = pseudo_header(&packet.tuple.dst, &packet.tuple.src, protocol::TCP, 20)
        + u32::from(answer.ports.src)
        + u32::from(answer.ports.dst)
        + checksum::halves(answer.seq)
        + checksum::halves(answer.ack)
        + u32::from(u16::from_ne_bytes([answer.data_offset, answer.flags]));
    answer.checksum = !checksum::fold(sum);
    let ip = if packet.v6 { 40 } else { 20 };
    frame.cut(usize::from(packet.l3) + ip + 20).ok_or(Reason::NoRoom)?;
    write_ip(frame, packet, protocol::TCP, 20)?;
    frame.write(usize::from(packet.l3) + ip, answer).ok_or(Reason::NoRoom)
}

/// Turns a packet into an ICMP error that quotes its headers and eight bytes of its transport.
#[inline(always)]
fn error<F: Frame>(frame: &mut F, packet: &Packet, link: &Link, kind: u8, code: u8, mtu: u16) -> Station<()> {
    let (l3, l4) = (usize::from(packet.l3), usize::from(packet.l4));
    // A multiple of four, since IP headers are.
    let quote = l4 - l3 + 8;
    if quote > QUOTE_MAX {
        return Err(Reason::ReplyTooLong);
    }
    let ip = if packet.v6 { 40 } else { 20 };
    frame.cut(l3 + quote).ok_or(Reason::NoRoom)?;
    frame.move_head(-(ip as i32 + 8)).ok_or(Reason::NoRoom)?;
    link.write(frame)?;
    let next = if packet.v6 { protocol::ICMPV6 } else { protocol::ICMP };
    write_ip(frame, packet, next, 8 + quote)?;
    // The MTU is the lower half of the field for IPv4, and fits there for IPv6's whole one.
    let mut header = Icmp { kind, code, checksum: 0, id: 0, sequence: mtu.to_be() };
    let mut sum = if packet.v6 { pseudo_header(&packet.tuple.dst, &packet.tuple.src, next, 8 + quote) } else { 0 };
    sum += u32::from(u16::from_ne_bytes([kind, code])) + u32::from(header.sequence);
    let mut at = 0;
    while at < QUOTE_MAX {
        if at >= quote {
            break;
        }
        sum += checksum::halves(frame.read(l3 + ip + 8 + at).ok_or(Reason::NoRoom)?);
        at += 4;
    }
    header.checksum = !checksum::fold(sum);
    frame.write(l3 + ip, header).ok_or(Reason::NoRoom)
}
