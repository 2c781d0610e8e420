//! Fragments: all of a packet go to one node, where the first one's decision serves the rest.

use redirector::dataplane::memory::MemoryTables;
use redirector_ebpf::hash::FlowHash;
use redirector_ebpf::reason::Reason;
use suite::decode::{Body, decode};
use suite::node::{self, mac, send, tuple};
use suite::packet::{Extension, Packet, tcp, udp};

use super::{only, ranks};

fn big(packet: Packet) -> Vec<Vec<u8>> {
    packet.sized(1_000).fragments(0x77, 400)
}

fn sip() -> Packet {
    udp("192.0.2.7:40000", "198.51.100.1:5060")
}

#[test]
fn the_first_one_decides_for_the_rest() {
    for (says, packet) in [
        ("UDP, owned", sip()),
        ("TCP, shared", tcp("192.0.2.7:40000", "198.51.100.1:80")),
        ("UDP over IPv6", udp("[2001:db8:7::7]:40000", "[2001:db8:100::1]:5060")),
        ("tagged", sip().tags(&[4, 5])),
        ("IPv4 options", sip().options(12)),
        (
            "an extension header before",
            udp("[2001:db8:7::7]:1", "[2001:db8:100::1]:5060").extensions(&[Extension::HopByHop]),
        ),
    ] {
        let mut tables = node::node(1);
        ranks([1, 0, 0, 0])(&mut tables);
        let fragments = big(packet);
        assert_eq!(
            send(&tables, &fragments[1]).verdict.reason,
            Reason::FragmentUnknown,
            "{says}: before the first one"
        );
        let first = send(&tables, &fragments[0]);
        assert_eq!(first.verdict.reason, Reason::Served, "{says}: {first:?}");
        for later in &fragments[1..] {
            let done = send(&tables, later);
            assert_eq!((done.verdict.reason, done.journey.backend), (Reason::Served, first.journey.backend), "{says}");
            let (one, other) = (decode(&first.bytes), decode(&done.bytes));
            assert_eq!((one.to, one.from, &one.tags), (other.to, other.from, &other.tags), "{says}");
            assert!(other.outer().fragment);
        }
    }
}

#[test]
fn options_behind_the_fragment_header_stand_in_the_first_one_only() {
    let mut tables = node::node(1);
    ranks([1, 0, 0, 0])(&mut tables);
    // A destination options header and UDP behind it, as one unfragmented body.
    let whole = udp("[2001:db8:7::7]:40000", "[2001:db8:100::1]:5060").sized(800);
    let body = whole.clone().extensions(&[Extension::Destination(0)]).ip_bytes()[40..].to_vec();
    let carried = suite::packet::raw(whole.src, whole.dst, 60, body);
    let [first, second, third] = &carried.fragments(5, 400)[..] else { panic!("three fragments") };
    let served = send(&tables, first);
    assert_eq!(served.verdict.reason, Reason::Served);
    for later in [second, third] {
        let done = send(&tables, later);
        assert_eq!((done.verdict.reason, done.journey.backend), (Reason::Served, served.journey.backend));
    }
}

#[test]
fn fragments_of_other_packets_do_not_mix() {
    let mut tables = node::node(1);
    ranks([1, 0, 0, 0])(&mut tables);
    send(&tables, &sip().sized(1_000).fragments(1, 400)[0]);
    for (says, later) in [
        ("another id", sip().sized(1_000).fragments(2, 400)[1].clone()),
        ("another protocol", tcp("192.0.2.7:40000", "198.51.100.1:80").sized(1_000).fragments(1, 400)[1].clone()),
        ("another client", udp("192.0.2.8:40000", "198.51.100.1:5060").sized(1_000).fragments(1, 400)[1].clone()),
    ] {
        assert_eq!(send(&tables, &later).verdict.reason, Reason::FragmentUnknown, "{says}");
    }
    assert_eq!(send(&tables, &sip().sized(1_000).fragments(1, 400)[2]).verdict.reason, Reason::Served);
}

#[test]
fn fragments_travel_in_tunnels_too() {
    let tables = node::node(1);
    let mut tables = tables;
    ranks([1, 0, 0, 0])(&mut tables);
    let fragments = big(tcp("192.0.2.7:40000", "198.51.100.10:3"));
    let port = |frame: &[u8]| {
        let done = send(&tables, frame);
        assert_eq!(done.verdict.reason, Reason::Served);
        let seen = decode(&done.bytes);
        let Body::Tunnel(Some(udp)) = &seen.outer().body else { panic!("{seen:?}") };
        assert!(seen.inner().fragment && seen.outer().dont_fragment);
        udp.source_port
    };
    let first = port(&fragments[0]);
    assert!(fragments[1..].iter().all(|later| port(later) == first), "one way for all of them");
}

/// Slots of the flow and of its fragments, which differ.
fn slots(tables: &MemoryTables) -> (Packet, usize, usize) {
    let node = &tables.image.node;
    (40_000..u16::MAX)
        .map(|client| {
            let packet = udp(&format!("192.0.2.7:{client}"), "198.51.100.1:5060");
            let tuple = tuple((packet.src, client), (packet.dst, 5_060), 17);
            let flow = FlowHash::of(&node.hash_key, &tuple, false).slot(node.slot_mask);
            let fragments = FlowHash::of_fragment(&node.hash_key, &tuple, false).slot(node.slot_mask);
            (packet, flow as usize, fragments as usize)
        })
        .find(|(_, flow, fragments)| flow != fragments)
        .expect("such a port")
}

/// A node that knows this owner of the flow's slot, and that owner of the fragments'.
fn between(me: u8, flow_owner: u8, fragment_owner: u8) -> (MemoryTables, Packet) {
    let mut tables = node::node(me);
    only("l2/a")(&mut tables);
    let (packet, flow, fragments) = slots(&tables);
    tables.image.slots[flow].ranks = [flow_owner, 0, 0, 0];
    tables.image.slots[fragments].ranks = [fragment_owner, 0, 0, 0];
    (tables, packet)
}

#[test]
fn all_go_to_the_owner_of_the_fragments_slot_and_on_to_the_flow_s() {
    let (entry, packet) = between(1, 2, 3);
    for fragment in big(packet.clone()) {
        let done = send(&entry, &fragment);
        assert_eq!((done.verdict.reason, done.journey.owner), (Reason::Forwarded, 3));
    }
    // At the fragments' owner, unmarked: the first one and the rest go to the flow's owner, to be kept.
    let (middle, packet) = between(1, 2, 1);
    for fragment in big(packet) {
        let done = send(&middle, &fragment);
        assert_eq!(done.journey.owner, 2);
        let seen = decode(&done.bytes);
        assert_eq!((seen.to, seen.from), (mac(2, 0), node::final_mac(1, 0)));
    }
}

#[test]
fn the_flow_s_owner_serves_fragments_that_enter_there() {
    // The first came by way of the fragments' owner; the rest enter at the flow's owner itself.
    let (tables, packet) = between(1, 1, 2);
    let fragments = big(packet);
    let mut kept = fragments[0].clone();
    kept[6..12].copy_from_slice(&node::final_mac(2, 0));
    assert_eq!(send(&tables, &kept).verdict.reason, Reason::Served);
    assert_eq!(send(&tables, &fragments[1]).verdict.reason, Reason::Served);
}

#[test]
fn a_kept_fragment_is_never_sent_on() {
    // Both nodes sent the first one to the other, as skewed tables can make them.
    let (tables, packet) = between(1, 2, 1);
    let fragments = big(packet);
    assert_eq!(send(&tables, &fragments[0]).verdict.reason, Reason::HandedBack);
    for from in [node::final_mac(2, 0), mac(2, 0)] {
        let mut later = fragments[1].clone();
        later[6..12].copy_from_slice(&from);
        assert_eq!(send(&tables, &later).verdict.reason, Reason::FragmentUnknown);
    }
}
