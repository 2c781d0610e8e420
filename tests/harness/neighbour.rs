//! Questions of neighbours, for next hops and VIPs.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::{ArpHardwareId, ArpOperation, ArpPacket, EtherType, Ethernet2Header, Icmpv6Type};

use super::packet::{Layer, Mac, Packet, raw};

/// The broadcast address.
pub const BROADCAST: Mac = [0xff; 6];

/// An ARP packet over a frame to this MAC address.
pub fn arp(operation: ArpOperation, to: Mac, sender: (Mac, Ipv4Addr), target: (Mac, Ipv4Addr)) -> Vec<u8> {
    let link = Ethernet2Header { source: sender.0, destination: to, ether_type: EtherType::ARP };
    let ((sender_mac, sender), (target_mac, target)) = (sender, target);
    let hardware = ArpHardwareId::ETHERNET;
    let (sender, target) = (sender.octets(), target.octets());
    let arp = ArpPacket::new(hardware, EtherType::IPV4, operation, &sender_mac, &sender, &target_mac, &target);
    [&link.to_bytes()[..], &arp.expect("the sizes fit").to_bytes()].concat()
}

/// The request of somebody at this MAC address for the MAC address of `target`.
pub fn who_has(target: Ipv4Addr, sender: (Mac, Ipv4Addr)) -> Vec<u8> {
    arp(ArpOperation::REQUEST, BROADCAST, sender, ([0; 6], target))
}

/// The group in which an address is asked for.
pub fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = address.octets();
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), u16::from(b) << 8 | u16::from(c))
}

/// The MAC address that packets to a group go to (RFC 2464, section 7).
pub fn group_mac(group: Ipv6Addr) -> Mac {
    let [.., a, b, c, d] = group.octets();
    [0x33, 0x33, a, b, c, d]
}

/// A neighbour solicitation for `target` to its group, with these options.
pub fn solicitation(target: Ipv6Addr, from: Mac, source: Ipv6Addr, options: &[u8]) -> Packet {
    let group = solicited_node(target);
    let packet = raw(IpAddr::from(source), IpAddr::from(group), 58, [&target.octets()[..], options].concat());
    let kind = Icmpv6Type::Unknown { type_u8: 135, code_u8: 0, bytes5to8: [0; 4] };
    Packet { layer: Layer::Icmp6(kind), ..packet.from(from).to(group_mac(group)).ttl(255) }
}

/// The option that tells the sender's MAC address.
pub fn source_option(mac: Mac) -> Vec<u8> {
    [&[1, 1][..], &mac].concat()
}
