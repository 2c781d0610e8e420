//! Questions for VIPs: answered where the VIP is held, and nowhere else.

use std::net::{Ipv4Addr, Ipv6Addr};

use etherparse::icmpv6::NeighborAdvertisementHeader;
use etherparse::{ArpOperation, ArpPacketSlice, EtherType, Ethernet2Header, Icmpv6Type};
use redirector_ebpf::reason::Reason;
use suite::decode::{Body, Seen};
use suite::neighbour::{BROADCAST, arp, group_mac, solicitation, solicited_node, source_option, who_has};
use suite::node::{mac, send};
use suite::packet::{Mac, Packet};

use crate::{Case, case_of};

const VIP4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
const VIP6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x100, 0, 0, 0, 0, 1);
const ASKER: Mac = [2, 0xaa, 0, 0, 0, 7];
const ASKER4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 77);
const ASKER6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 7);
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// A frame to node 1, which holds both VIPs on its first interface.
fn held(says: &'static str, input: Vec<u8>) -> Case {
    case_of(says, input).with(|tables| {
        let interface = tables.image.ports[0].ifindex;
        tables.held.extend([(VIP4.into(), interface), (VIP6.into(), interface)]);
    })
}

/// The frame is answered by an ARP reply to this sender address.
fn is_replied(case: Case, asker: Ipv4Addr) {
    let done = send(&case.tables, &case.input);
    assert_eq!((done.verdict.reason, done.verdict.port), (Reason::ArpAnswered, 0), "{}", case.says);
    let (link, rest) = Ethernet2Header::from_slice(&done.bytes).expect("an Ethernet header");
    assert_eq!((link.destination, link.source, link.ether_type), (ASKER, mac(1, 0), EtherType::ARP), "{}", case.says);
    let reply = ArpPacketSlice::from_slice(rest).expect("an ARP packet");
    assert_eq!(reply.operation(), ArpOperation::REPLY, "{}", case.says);
    assert_eq!((reply.sender_hw_addr(), reply.sender_protocol_addr()), (&mac(1, 0)[..], &VIP4.octets()[..]));
    assert_eq!((reply.target_hw_addr(), reply.target_protocol_addr()), (&ASKER[..], &asker.octets()[..]));
}

/// The advertisement that answers the frame: whom it goes to, and whether it says that it was asked for.
fn advertised(case: Case, to: (Mac, Ipv6Addr), solicited: bool) {
    let says = case.says;
    case.leaves(Reason::NdAnswered, 0, &[], |seen: &Seen| {
        let ip = seen.outer();
        assert_eq!((seen.to, seen.from), (to.0, mac(1, 0)), "{says}");
        assert_eq!((ip.src, ip.dst, ip.ttl, ip.len), (VIP6.into(), to.1.into(), 255, 72), "{says}");
        let Body::Icmp6(header, rest) = &ip.body else { panic!("{says}: no ICMPv6") };
        let flags = NeighborAdvertisementHeader { router: false, solicited, r#override: true };
        assert_eq!(header.icmp_type, Icmpv6Type::NeighborAdvertisement(flags), "{says}");
        assert_eq!(rest[..], [&VIP6.octets()[..], &[2, 1], &mac(1, 0)].concat(), "{says}: target and option");
    });
}

fn solicited(case: Case) {
    advertised(case, (ASKER, ASKER6), true);
}

#[test]
fn arp_for_a_held_vip_is_answered() {
    is_replied(held("broadcast", who_has(VIP4, (ASKER, ASKER4))), ASKER4);
    let request = |to| arp(ArpOperation::REQUEST, to, (ASKER, ASKER4), (mac(1, 0), VIP4));
    is_replied(held("asked again by unicast", request(mac(1, 0))), ASKER4);
    is_replied(held("a probe of RFC 5227", who_has(VIP4, (ASKER, Ipv4Addr::UNSPECIFIED))), Ipv4Addr::UNSPECIFIED);
    let padded = [who_has(VIP4, (ASKER, ASKER4)), vec![0; 18]].concat();
    is_replied(held("padded to the shortest frame", padded), ASKER4);
}

#[test]
fn other_arp_is_left_to_the_kernel() {
    let asked = who_has(VIP4, (ASKER, ASKER4));
    case_of("not held", asked.clone()).ends(Reason::NotForMe, &[]);
    held("held on the other interface", asked.clone()).with(|tables| tables.ingress = 1).ends(Reason::NotForMe, &[]);
    held("another address", who_has(Ipv4Addr::new(198, 51, 100, 2), (ASKER, ASKER4))).ends(Reason::NotForMe, &[]);
    held("an announcement", who_has(VIP4, (ASKER, VIP4))).ends(Reason::NotForMe, &[]);
    let reply = |to| arp(ArpOperation::REPLY, to, (ASKER, ASKER4), (mac(1, 0), VIP4));
    held("a reply", reply(mac(1, 0))).ends(Reason::NotIp, &[]);
    held("a reply to all", reply(BROADCAST)).ends(Reason::NotForMe, &[]);
    let to_another = arp(ArpOperation::REQUEST, mac(2, 0), (ASKER, ASKER4), ([0; 6], VIP4));
    held("flooded, for another's MAC address", to_another).ends(Reason::NotForMe, &[]);
    let mut tagged = asked.clone();
    tagged.splice(12..12, [0x81, 0, 0, 100]);
    held("with a VLAN tag", tagged).ends(Reason::NotForMe, &[]);
    held("from a group", who_has(VIP4, (BROADCAST, ASKER4))).ends(Reason::NotForMe, &[]);
    // Hardware, protocol, lengths.
    for at in [14, 15, 16, 17, 18, 19] {
        let mut odd = asked.clone();
        odd[at] ^= 0x10;
        held("of another kind of network", odd).ends(Reason::NotForMe, &[]);
    }
    for len in 14..asked.len() {
        held("cut off", asked[..len].to_vec()).ends(Reason::NotForMe, &[]);
    }
}

#[test]
fn solicitations_for_a_held_vip_are_answered() {
    let asked = solicitation(VIP6, ASKER, ASKER6, &source_option(ASKER));
    solicited(held("with its sender's MAC address", asked.bytes()));
    solicited(held("without options", solicitation(VIP6, ASKER, ASKER6, &[]).bytes()));
    let nonce = [&source_option(ASKER)[..], &[14, 1, 1, 2, 3, 4, 5, 6]].concat();
    solicited(held("with a nonce", solicitation(VIP6, ASKER, ASKER6, &nonce).bytes()));
    let long = [&[14, 2][..], &[7; 14]].concat();
    solicited(held("with one long option", solicitation(VIP6, ASKER, ASKER6, &long).bytes()));
    solicited(held("with bytes behind it", [asked.bytes(), vec![0; 5]].concat()));
    let unicast = Packet { dst: VIP6.into(), ..asked.to(mac(1, 0)) };
    solicited(held("asked again by unicast", unicast.bytes()));
}

#[test]
fn duplicates_are_detected() {
    for options in [&[][..], &[14, 1, 1, 2, 3, 4, 5, 6]] {
        let asked = solicitation(VIP6, ASKER, Ipv6Addr::UNSPECIFIED, options);
        advertised(held("from no address yet", asked.bytes()), (group_mac(ALL_NODES), ALL_NODES), false);
    }
}

#[test]
fn other_solicitations_are_left_to_the_kernel() {
    let option = source_option(ASKER);
    let asked = solicitation(VIP6, ASKER, ASKER6, &option);
    let passes = |says, packet: &Packet| held(says, packet.bytes()).ends(Reason::NotForMe, &[]);
    case_of("not held", asked.bytes()).ends(Reason::NotForMe, &[]);
    passes("another address", &solicitation(Ipv6Addr::LOCALHOST, ASKER, ASKER6, &option));
    passes("touched by a router", &asked.clone().ttl(254));
    passes("with a VLAN tag", &asked.clone().tags(&[100]));
    passes("with an extension header", &asked.clone().extensions(&[suite::packet::Extension::HopByHop]));
    passes("from a group", &solicitation(VIP6, ASKER, ALL_NODES, &option));
    passes("from a group's MAC address", &asked.clone().from([3; 6]));
    passes("in another group", &Packet { dst: solicited_node(ASKER6).into(), ..asked.clone() });
    passes("from no address, but with a MAC address", &solicitation(VIP6, ASKER, Ipv6Addr::UNSPECIFIED, &option));
    passes("an option without length", &solicitation(VIP6, ASKER, ASKER6, &[1, 0, 0, 0, 0, 0, 0, 0]));
    passes("an option beyond the end", &solicitation(VIP6, ASKER, ASKER6, &[1, 2, 0, 0, 0, 0, 0, 0]));
    passes("half an option", &solicitation(VIP6, ASKER, ASKER6, &[1, 1, 0, 0]));
    passes("many options", &solicitation(VIP6, ASKER, ASKER6, &[&option[..], &option, &option].concat()));
    let frame = asked.bytes();
    for at in 54..frame.len() {
        let mut damaged = frame.clone();
        damaged[at] ^= 0x40;
        held("damaged", damaged).ends(Reason::NotForMe, &[]);
    }
    for len in 54..frame.len() {
        held("cut off", frame[..len].to_vec()).ends(Reason::NotForMe, &[]);
    }
    let unicast = Packet { dst: VIP6.into(), ..asked.to(mac(1, 0)) };
    case_of("asked again, but not held any more", unicast.bytes()).ends(Reason::NeighbourDiscovery, &[]);
    held("through a router", unicast.ttl(64).bytes()).ends(Reason::IcmpUnsupported, &[]);
}
