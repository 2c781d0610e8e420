//! Packets of all kinds by chance, and damage to them.

use std::net::IpAddr;

use etherparse::{ArpPacket, EtherType, Ethernet2Header, Icmpv6Type};
use redirector::dataplane::memory::MemoryTables;
use redirector_ebpf::reason::Reason;
use redirector_ebpf::tables::path::kind;

use super::neighbour::{BROADCAST, arp, solicitation, source_option};
use super::node::{self, Family, final_mac, mac};
use super::packet::{Extension, Layer, Mac, Packet, ROUTER, echo, raw, tcp, too_big, udp};
use super::random::Random;

/// Addresses, protocols and ports of the standard cluster's services, those that need their owner most often; and one
/// address that is none of its.
const SERVED4: &[(&str, u8, &[u16])] = &[
    ("198.51.100.1", 6, &[80, 443, 443, 8_000, 8_005]),
    ("198.51.100.1", 6, &[443]),
    ("198.51.100.1", 17, &[5_060, 5_080]),
    ("198.51.100.2", 6, &[80]),
    ("198.51.100.3", 17, &[53]),
    ("198.51.100.4", 17, &[53, 0, 65_535]),
    ("198.51.100.10", 6, &[1, 2, 3, 4, 5, 6, 7]),
    ("203.0.113.5", 6, &[80]),
    ("203.0.113.9", 6, &[80]),
    ("192.0.2.200", 6, &[80]),
];
const SERVED6: &[(&str, u8, &[u16])] = &[
    ("2001:db8:100::1", 6, &[80, 443]),
    ("2001:db8:100::1", 17, &[5_060, 5_080]),
    ("2001:db8:100::10", 6, &[1, 2, 3, 4, 5, 6, 7]),
    ("2001:db8:200::77", 6, &[1, 2, 3, 4, 5, 6, 7]),
    ("2001:db8:300::1", 6, &[80]),
];

/// Where packets for one node come from.
pub struct Source {
    random: Random,
    me: u8,
    /// Nodes that forward to this one: within its segment, and across routers.
    senders: Vec<MemoryTables>,
}

impl Source {
    /// The packets of this seed for a node of the standard cluster in this family.
    pub fn new(seed: u64, family: Family, me: u8) -> Self {
        let senders = (1..=5).filter(|id| *id != me).map(|id| node::node_in(family, id)).collect();
        Self { random: Random::new(seed), me, senders }
    }

    /// The next frame: of a packet as it should be, or damaged; never shorter than an Ethernet header.
    pub fn frame(&mut self) -> Vec<u8> {
        let mut frame = self.whole();
        if self.random.once_in(2) {
            damage(&mut self.random, &mut frame);
        }
        frame
    }

    fn whole(&mut self) -> Vec<u8> {
        match self.random.below(20) {
            0 => self.arp(),
            1 => self.advertisement(),
            2 => self.question(),
            3..=4 => self.forwarded(),
            5..=7 => {
                let (packet, id) = (self.packet(), self.random.below(6) as u32);
                let size = self.random.pick(&[8, 64, 160, 400]);
                let len = 200 + self.random.below(900);
                let mut fragments = packet.sized(len).fragments(id, size);
                // Mostly one of the first few, so that later ones find their first.
                let last = fragments.len().min(4);
                fragments.swap_remove(self.random.below(last))
            }
            _ => self.packet().bytes(),
        }
    }

    /// To this node, mostly from a router, else as if from another node.
    fn addressed(&mut self, packet: Packet) -> Packet {
        let from: Mac = match self.random.below(12) {
            0 | 1 => mac(1 + self.random.below(4) as u8, 0),
            2 | 3 => final_mac(1 + self.random.below(4) as u8, 0),
            _ => ROUTER,
        };
        let to = match self.random.below(40) {
            0 => [0xff; 6],
            1 => mac(9, 9),
            _ => mac(self.me, 0),
        };
        packet.from(from).to(to)
    }

    fn packet(&mut self) -> Packet {
        let random = &mut self.random;
        let v6 = random.once_in(3);
        let client =
            if v6 { format!("2001:db8:7::{}", random.below(30)) } else { format!("192.0.2.{}", random.below(30)) };
        let (vip, protocol, ports) = random.pick(if v6 { SERVED6 } else { SERVED4 });
        let (vip, port) = match random.below(6) {
            0 => (vip, random.pick(&[0, 22, 80, 443, 65_535])),
            1 => (random.pick(if v6 { SERVED6 } else { SERVED4 }).0, random.pick(ports)),
            _ => (vip, random.pick(ports)),
        };
        let socket = |ip: &str, port: u16| if v6 { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") };
        let from = socket(&client, 40_000 + random.below(16) as u16);
        let to = socket(vip, port);
        let flow = || if protocol == 17 { udp(&from, &to) } else { tcp(&from, &to) };
        let mut packet = match random.below(10) {
            0 => echo(&client, vip, random.below(4) as u16),
            1 => {
                let about = if random.once_in(4) { echo(&client, vip, random.below(4) as u16) } else { flow() };
                too_big(if v6 { "2001:db8:66::1" } else { "203.0.113.200" }, &about.answer())
            }
            2 => udp(&from, &to),
            3 => tcp(&from, &to),
            4 if random.once_in(3) => {
                let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
                let protocol = random.pick(&[4, 41, 47, 50, 89, 132]);
                let len = random.below(60);
                raw(ip(&client), ip(vip), protocol, random.bytes(len))
            }
            _ => flow(),
        };
        if matches!(packet.layer, Layer::Tcp(_) | Layer::Udp(..)) {
            let len = if random.once_in(6) { 1_180 + random.below(340) } else { random.below(60) };
            packet = packet.sized(len);
        }
        packet = match random.below(8) {
            0..=2 => packet.syn_if_tcp(),
            3 => packet.flags(|tcp| tcp.fin = true),
            4 => packet.flags(|tcp| (tcp.rst, tcp.ack) = (true, false)),
            5 => packet.flags(|tcp| tcp.ack = false),
            _ => packet,
        };
        let tags = random.below(12);
        packet = packet.tags(&[100, 200][..tags.saturating_sub(9)]);
        packet = packet.ttl(random.pick(&[0, 1, 2, 64, 64, 64, 64, 64, 64, 255])).tos(random.number() as u8);
        if !v6 && random.once_in(5) {
            packet = packet.options(4 * (1 + random.below(10)));
        }
        if v6 && random.once_in(4) {
            let kinds = [
                Extension::HopByHop,
                Extension::Destination(0),
                Extension::Destination(9),
                Extension::Routing(0),
                Extension::Routing(1),
                Extension::Authentication,
            ];
            let count = 1 + random.below(7);
            packet = packet.extensions(&(0..count).map(|_| random.pick(&kinds)).collect::<Vec<_>>());
        }
        self.addressed(packet)
    }

    /// What another node forwards to this one: first, or to be kept.
    fn forwarded(&mut self) -> Vec<u8> {
        let (packet, me) = (self.packet(), self.me);
        let sender = self.random.below(self.senders.len());
        let id = self.senders[sender].image.node.id;
        let kept = self.random.once_in(3);
        for slot in &mut self.senders[sender].image.slots {
            (slot.ranks[0], slot.previous) = if kept { (id, me) } else { (me, 0) };
        }
        let done = node::send(&self.senders[sender], &packet.to(mac(id, 0)).from(ROUTER).bytes());
        let mut frame = done.bytes;
        let across = self.senders[sender].image.peers[&me].kind == kind::HOP;
        if across && matches!(done.verdict.reason, Reason::Forwarded | Reason::HandedBack) {
            frame[6..12].copy_from_slice(&ROUTER);
        }
        frame[..6].copy_from_slice(&mac(me, 0));
        frame
    }

    /// Somebody's question for the MAC address of a VIP.
    fn question(&mut self) -> Vec<u8> {
        let random = &mut self.random;
        let from = [2, 4, 10, 0, 0, random.below(4) as u8];
        let to_me = random.once_in(3);
        if random.once_in(2) {
            let target = random.pick(&ASKED4).parse().expect("an address");
            let sender = random.pick(&["10.0.0.9", "0.0.0.0", "198.51.100.1"]).parse().expect("an address");
            let to = if to_me { mac(self.me, 0) } else { BROADCAST };
            return arp(etherparse::ArpOperation::REQUEST, to, (from, sender), ([0; 6], target));
        }
        let target = random.pick(&ASKED6).parse().expect("an address");
        let source = random.pick(&["fe80::9", "::", "fe80::9", "ff02::1"]).parse().expect("an address");
        let mut options = if random.once_in(2) { source_option(from) } else { Vec::new() };
        if random.once_in(2) {
            options.extend([14, 1, 1, 2, 3, 4, 5, 6]);
        }
        let packet = solicitation(target, from, source, &options);
        let packet = if to_me { Packet { dst: target.into(), ..packet.to(mac(self.me, 0)) } } else { packet };
        packet.bytes()
    }

    /// An answer from one of the next hops, or from somebody else.
    fn arp(&mut self) -> Vec<u8> {
        let sender = [10, 0, self.random.below(3) as u8, self.random.pick(&[1, 2, 3, 254])];
        let from = [2, 4, 10, 0, self.random.below(3) as u8, self.random.below(4) as u8];
        let operation = etherparse::ArpOperation(1 + self.random.below(2) as u16);
        let hardware = etherparse::ArpHardwareId::ETHERNET;
        let (me, mine) = (mac(self.me, 0), [10, 0, 0, self.me]);
        let arp =
            ArpPacket::new(hardware, EtherType::IPV4, operation, &from, &sender, &me, &mine).expect("the sizes fit");
        let link = Ethernet2Header { source: from, destination: me, ether_type: EtherType::ARP };
        [&link.to_bytes()[..], &arp.to_bytes()].concat()
    }

    /// Likewise for IPv6: target, then the target's link-layer address as an option (RFC 4861, section 4.4).
    fn advertisement(&mut self) -> Vec<u8> {
        let target: IpAddr =
            self.random.pick(&["2001:db8::ffff", "2001:db8::fffe", "2001:db8::1"]).parse().expect("an address");
        let IpAddr::V6(v6) = target else { unreachable!("written above") };
        let option = [2, 1, 2, 6, 0, 0, 0, self.random.below(4) as u8];
        let kind = Icmpv6Type::Unknown { type_u8: 136, code_u8: 0, bytes5to8: [0x60, 0, 0, 0] };
        let me = format!("2001:db8::{}", self.me).parse().expect("an address");
        let ttl = self.random.pick(&[255, 255, 64]);
        let packet = raw(target, me, 58, Vec::new()).to(mac(self.me, 0)).ttl(ttl);
        Packet { layer: Layer::Icmp6(kind), payload: [&v6.octets()[..], &option].concat(), ..packet }.bytes()
    }
}

/// VIPs of which a node may hold some, and one address that is none.
pub const ASKED4: [&str; 3] = ["198.51.100.1", "198.51.100.10", "192.0.2.200"];
/// Likewise IPv6.
pub const ASKED6: [&str; 3] = ["2001:db8:100::1", "2001:db8:100::10", "2001:db8:66::6"];

/// Damages a frame a little; it stays as long as an Ethernet header at least, and keeps its MAC addresses.
pub fn damage(random: &mut Random, frame: &mut Vec<u8>) {
    for _ in 0..random.below(9) {
        // Mostly where the headers are.
        let reach = if random.once_in(4) { frame.len() } else { frame.len().min(80) };
        let at = 12 + random.below(reach - 12);
        frame[at] = random.number() as u8;
    }
    match random.below(6) {
        0 => frame.truncate(14 + random.below(frame.len() - 13)),
        1 => {
            let len = random.below(60);
            frame.extend(random.bytes(len));
        }
        _ => {}
    }
}
