//! From node to node: by MAC address within the segment, behind a header across routers.

use redirector::dataplane::memory::MemoryTables;
use redirector_ebpf::reason::Reason;
use suite::decode::{Body, decode};
use suite::node::{self, Family, final_mac, mac, mac_of, send};
use suite::packet::{Mac, Packet, ROUTER, tcp, udp};

use super::{case, case_of, only, ranks};

fn https() -> Packet {
    tcp("192.0.2.7:40000", "198.51.100.1:443")
}

/// A node at which every slot has these ranks and this previous owner.
fn at(me: u8, order: [u8; 4], previous: u8) -> MemoryTables {
    at_in(Family::V4, me, order, previous)
}

/// The same where nodes reach each other by this family.
fn at_in(family: Family, me: u8, order: [u8; 4], previous: u8) -> MemoryTables {
    let mut tables = node::node_in(family, me);
    ranks(order)(&mut tables);
    only("l2/a")(&mut tables);
    tables.image.slots.iter_mut().for_each(|slot| slot.previous = previous);
    tables
}

#[test]
fn the_first_rank_that_is_alive_serves() {
    let dead = |nodes: &'static [u8]| {
        move |tables: &mut MemoryTables| {
            only("l2/a")(tables);
            nodes.iter().for_each(|node| tables.image.alive.set(*node, false));
        }
    };
    let recorded = &[Reason::NoteRecorded];
    let to_peer = |says, order, off| {
        case(says, &https()).with(ranks(order)).with(dead(off)).leaves(Reason::Forwarded, 0, &[], |out| {
            assert_eq!((out.to, out.from), (mac(2, 0), mac(1, 0)));
            assert_eq!((out.ips.len(), out.outer().ttl), (1, 62));
        });
    };
    to_peer("the primary", [2, 1, 0, 0], &[]);
    to_peer("the secondary of a dead one", [3, 2, 1, 0], &[3]);
    to_peer("the last of all", [3, 0, 4, 2], &[3, 4]);
    for (says, order, off) in [
        ("this node", [1, 2, 3, 4], &[][..]),
        ("this node after dead ones", [2, 3, 1, 4], &[2, 3]),
        ("nobody is alive", [2, 3, 0, 0], &[2, 3]),
        ("nobody is named", [0; 4], &[]),
    ] {
        case(says, &https()).with(ranks(order)).with(dead(off)).leaves(Reason::Served, 0, recorded, |_| {});
    }
    case("an owner without a way to it", &https())
        .with(ranks([200, 0, 0, 0]))
        .with(|tables| {
            tables.image.alive.set(200, true);
        })
        .ends(Reason::NoNeighbour, &[]);
}

#[test]
fn across_routers_a_header_says_who_sends() {
    for (family, next, (local, remote)) in [
        (Family::V4, "10.0.0.254", ("10.0.0.1", "10.3.0.3")),
        (Family::V6, "2001:db8::fffe", ("2001:db8::1", "2001:db8:3::3")),
    ] {
        let in_family = |tables: &mut MemoryTables| *tables = node::node_in(family, 1);
        case("to a node elsewhere", &https()).with(in_family).with(ranks([3, 0, 0, 0])).leaves(
            Reason::Forwarded,
            0,
            &[],
            |out| {
                assert_eq!(out.to, mac_of(next.parse().unwrap()));
                let [outer, inner] = &out.ips[..] else { panic!("{out:?}") };
                assert_eq!((outer.src, outer.dst), (local.parse().unwrap(), remote.parse().unwrap()));
                assert!(outer.dont_fragment);
                let Body::Tunnel(Some(udp)) = &outer.body else { panic!() };
                assert_eq!((udp.destination_port, udp.checksum), (4199, 0));
                assert_eq!((inner.dst, inner.ttl), ("198.51.100.1".parse().unwrap(), 62));
            },
        );
    }
}

/// Sends `packet` into node 1, which forwards it, and hands the frame to `receiver` as the network would.
fn forwarded(packet: &Packet, order: [u8; 4], receiver: &MemoryTables, port_mac: Mac, from: Mac) -> node::Done {
    let family = if receiver.image.node.hop4 == Default::default() { Family::V6 } else { Family::V4 };
    let done = send(&at_in(family, 1, order, 0), &packet.bytes());
    assert_eq!(done.verdict.reason, Reason::Forwarded);
    let mut frame = done.bytes;
    frame[..6].copy_from_slice(&port_mac);
    frame[6..12].copy_from_slice(&from);
    send(receiver, &frame)
}

#[test]
fn the_receiver_serves_whatever_its_own_tables_say() {
    // Each receiver thinks that somebody else owns the slot.
    let segment = forwarded(&https(), [2, 0, 0, 0], &at(2, [1, 0, 0, 0], 0), mac(2, 0), mac(1, 0));
    assert_eq!((segment.verdict.reason, segment.journey.mark.sender()), (Reason::Served, 1));
    for family in [Family::V4, Family::V6] {
        let routed = forwarded(&https(), [3, 0, 0, 0], &at_in(family, 3, [1, 2, 0, 0], 0), mac(3, 0), ROUTER);
        assert_eq!((routed.verdict.reason, routed.journey.mark.sender()), (Reason::Served, 1), "{family:?}");
        let seen = decode(&routed.bytes);
        assert_eq!((seen.ips.len(), seen.outer().ttl), (1, 61), "the header is off, each node counts a hop");
    }
}

#[test]
fn a_flow_that_the_new_owner_does_not_know_goes_on_to_the_previous_owner() {
    let third = forwarded(&https(), [2, 0, 0, 0], &at(2, [2, 0, 0, 0], 3), mac(2, 0), mac(1, 0));
    assert_eq!((third.verdict.reason, third.journey.owner), (Reason::HandedBack, 3));
    let mut frame = third.bytes;
    frame[..6].copy_from_slice(&mac(3, 0));
    frame[6..12].copy_from_slice(&ROUTER);
    let kept = send(&at(3, [2, 0, 0, 0], 2), &frame);
    assert_eq!(kept.verdict.reason, Reason::Served, "final, though its tables name others");
    assert!(kept.journey.mark.is_final() && kept.journey.mark.sender() == 2);

    let back = at(2, [2, 0, 0, 0], 1);
    let served = forwarded(&https(), [2, 0, 0, 0], &back, mac(2, 0), mac(1, 0));
    assert_eq!(served.verdict.reason, Reason::Served, "never back to the node that it came from");
    let opened = forwarded(&https().syn(), [2, 0, 0, 0], &at(2, [2, 0, 0, 0], 3), mac(2, 0), mac(1, 0));
    assert_eq!(opened.verdict.reason, Reason::Served, "a packet that opens a flow stays");
    let mut dead = at(2, [2, 0, 0, 0], 3);
    dead.image.alive.set(3, false);
    let served = forwarded(&https(), [2, 0, 0, 0], &dead, mac(2, 0), mac(1, 0));
    assert_eq!(served.verdict.reason, Reason::Served, "the previous owner is dead");
}

#[test]
fn a_final_packet_is_marked_by_the_mac_address_within_the_segment() {
    let straight = at(1, [1, 0, 0, 0], 2);
    let done = send(&straight, &https().bytes());
    assert_eq!(done.verdict.reason, Reason::HandedBack);
    let seen = decode(&done.bytes);
    assert_eq!((seen.to, seen.from), (mac(2, 0), final_mac(1, 0)));
    let kept = send(&at(2, [3, 0, 0, 0], 3), &done.bytes);
    assert_eq!((kept.verdict.reason, kept.journey.mark.is_final()), (Reason::Served, true));
}

#[test]
fn a_previous_owner_serves_what_it_knows() {
    let tables = at(1, [1, 0, 0, 0], 0);
    assert_eq!(send(&tables, &https().syn().bytes()).verdict.reason, Reason::Served);
    let mut tables = tables;
    tables.image.slots.iter_mut().for_each(|slot| (slot.ranks, slot.previous) = ([2, 0, 0, 0], 1));
    let known = send(&tables, &https().bytes());
    assert_eq!((known.verdict.reason, known.journey.known), (Reason::Served, true));
    let unknown = send(&tables, &tcp("192.0.2.7:41111", "198.51.100.1:443").bytes());
    assert_eq!(unknown.verdict.reason, Reason::Forwarded);
}

/// A frame with a node's header as it reaches node 3.
fn arriving() -> Vec<u8> {
    let mut frame = send(&at(1, [3, 0, 0, 0], 0), &https().bytes()).bytes;
    frame[..6].copy_from_slice(&mac(3, 0));
    frame[6..12].copy_from_slice(&ROUTER);
    frame
}

#[test]
fn headers_that_are_not_right_are_dropped() {
    // Ethernet 14, IPv4 20, UDP 8: the header starts at 42, the inner packet at 66.
    let changed = |at: usize, value: u8| {
        let mut frame = arriving();
        frame[at] = value;
        frame
    };
    let mut service_elsewhere = arriving();
    service_elsewhere[85] = 99;
    for (says, frame, reason) in [
        ("another version", changed(44, 2), Reason::HopMalformed),
        ("another mark", changed(45, 3), Reason::HopMalformed),
        ("another magic", changed(42, 0), Reason::HopMalformed),
        ("another cluster", changed(53, 8), Reason::HopMalformed),
        ("a reserved byte", changed(47, 1), Reason::HopMalformed),
        ("neither IPv4 nor IPv6 within", changed(66, 0x55), Reason::HopMalformed),
        ("cut off", arriving()[..14 + 20 + 8 + 20].to_vec(), Reason::MalformedIpv4),
        ("a sender that is no member", changed(46, 99), Reason::HopUnknownSender),
        ("this node as the sender", changed(46, 3), Reason::HopUnknownSender),
        ("another member's number", changed(46, 2), Reason::HopUnknownSender),
        ("a source that is no member's", changed(29, 99), Reason::HopUnknownSender),
        ("a wrong tag", changed(60, 0xff), Reason::HopTag),
        ("a mark that the tag does not cover", changed(45, 2), Reason::HopTag),
        ("another flow within", changed(87, 0x01), Reason::HopTag),
        ("no VIP within", service_elsewhere, Reason::TunnelNotVip),
    ] {
        case_of(says, frame).with(|tables| *tables = at(3, [3, 0, 0, 0], 0)).ends(reason, &[]);
    }
    let mut unmatched = changed(60, 0xff);
    unmatched[88] = 0xfe;
    case_of("a wrong tag before a port without a service", unmatched)
        .with(|tables| *tables = at(3, [3, 0, 0, 0], 0))
        .ends(Reason::HopTag, &[]);
    let stranger = udp("10.0.0.77:5000", "10.3.0.3:4200").to(mac(3, 0));
    case("another port of this host", &stranger)
        .with(|tables| *tables = at(3, [3, 0, 0, 0], 0))
        .ends(Reason::NotOurs, &[]);
}

#[test]
fn who_answers_a_forwarded_packet_asks_the_kernel_for_the_way() {
    let long = https().sized(1_470).from(mac(1, 0)).to(mac(2, 0));
    let mut tables = at(2, [2, 0, 0, 0], 0);
    tables.image.paths.values_mut().for_each(|path| path.mtu = 1_400);
    let handed_over = send(&tables, &long.bytes());
    assert_eq!(handed_over.verdict.reason, Reason::ReplyHandedOver);
    assert_eq!(decode(&handed_over.bytes).to, mac(2, 0), "the kernel takes only frames that are for it");
    let client = redirector::dataplane::address::address("192.0.2.7".parse().unwrap());
    let way = redirector::dataplane::address::mac_word([2, 5, 5, 5, 5, 5]);
    tables.routes.insert(client, (1, way));
    let done = send(&tables, &long.bytes());
    assert_eq!((done.verdict.reason, done.verdict.port), (Reason::TooBigSent, 1));
    let seen = decode(&done.bytes);
    assert_eq!((seen.to, seen.from), ([2, 5, 5, 5, 5, 5], mac(2, 1)));
}
