//! Which packets are refused while load is shed, who is told, and how it is counted.

use redirector::dataplane::memory::MemoryTables;
use redirector_ebpf::packet::Packet as Parsed;
use redirector_ebpf::reason::Reason;
use redirector_ebpf::stations::admit::{class, is_shed};
use redirector_ebpf::tables::{Refusal, RefusedKey, Service};
use suite::decode::Body;
use suite::node::{self, send};
use suite::packet::{Packet, tcp, udp};

use super::ranks;

const CLASSES: [u8; 4] = [class::CRITICAL, class::HIGH, class::NORMAL, class::LOW];

/// Node 1 owns every slot, and every service is of this class.
fn node_at(level: u8, class: u8) -> MemoryTables {
    let mut tables = node::node(1);
    ranks([1, 2, 0, 0])(&mut tables);
    for service in tables.image.services.values_mut().chain(tables.image.ranges.values_mut()) {
        service.class = class;
    }
    tables.image.node.shed_level = level;
    tables
}

fn shared(client: u16) -> Packet {
    tcp(&format!("192.0.2.7:{client}"), "198.51.100.1:80")
}

fn owned(client: u16) -> Packet {
    tcp(&format!("192.0.2.7:{client}"), "198.51.100.1:443")
}

fn sip(client: u16) -> Packet {
    udp(&format!("192.0.2.7:{client}"), "198.51.100.1:5060")
}

fn becomes(tables: &MemoryTables, packet: &Packet) -> Reason {
    send(tables, &packet.bytes()).verdict.reason
}

/// Lets `first` in while nothing is shed.
fn establish(tables: &mut MemoryTables, first: &Packet) {
    let level = std::mem::take(&mut tables.image.node.shed_level);
    assert_eq!(becomes(tables, first), Reason::Served);
    tables.image.node.shed_level = level;
}

#[test]
fn each_level_refuses_its_classes() {
    for level in 0..=3 {
        for class in CLASSES {
            let says = format!("level {level}, class {class}");
            // As the module says: level 1 low, level 2 normal too, level 3 high too.
            let is_refused = matches!((level, class), (1, 3) | (2, 2..) | (3, 1..));
            assert_eq!(is_shed(class, level), is_refused, "{says}");
            let mut tables = node_at(level, class);
            let new = if is_refused { Reason::Shed } else { Reason::Served };
            assert_eq!(becomes(&tables, &shared(1).syn()), new, "{says}: a SYN of a shared service");
            assert_eq!(becomes(&tables, &owned(1).syn()), new, "{says}: a SYN of an owned service");
            assert_eq!(becomes(&tables, &sip(1)), new, "{says}: a datagram of an unknown flow, owned");
            let old = if (level, class) == (3, 3) { Reason::ShedEstablished } else { Reason::Served };
            assert_eq!(becomes(&tables, &shared(2)), old, "{says}: data of a shared service");
            establish(&mut tables, &owned(3).syn());
            establish(&mut tables, &sip(3));
            assert_eq!(becomes(&tables, &owned(3)), old, "{says}: data of a known flow");
            assert_eq!(becomes(&tables, &sip(3)), old, "{says}: a datagram of a known flow");
        }
    }
}

#[test]
fn what_is_refused_is_counted_by_service_class_and_reason() {
    let mut tables = node_at(3, class::LOW);
    let service = |packet: &Packet| send(&tables, &packet.bytes()).journey.service.unwrap().id;
    let (web, secure, phone) = (service(&shared(1).syn()), service(&owned(1).syn()), service(&sip(1)));
    tables.refused.borrow_mut().clear();
    establish(&mut tables, &sip(2));
    for port in 10..13 {
        assert_eq!(becomes(&tables, &shared(port).syn()), Reason::Shed);
    }
    becomes(&tables, &owned(20).syn());
    becomes(&tables, &sip(2));
    tables.image.node.shed_level = 0;
    tables.image.node.new_flows_per_source = 1;
    becomes(&tables, &shared(30).syn());
    assert_eq!(becomes(&tables, &shared(31).syn()), Reason::SourceBudget);
    tables.image.node.new_flows_per_source = 0;
    tables.image.node.new_flows = 1;
    becomes(&tables, &shared(32).syn());
    assert_eq!(becomes(&tables, &shared(33).syn()), Reason::NewFlowBudget);
    let expected = [
        (web, Refusal::Level, 3),
        (secure, Refusal::Level, 1),
        (phone, Refusal::Established, 1),
        (web, Refusal::Source, 1),
        (web, Refusal::NewFlows, 1),
    ];
    let expected = expected.map(|(service, why, count)| (RefusedKey::new(service, class::LOW, why), count));
    assert_eq!(*tables.refused.borrow(), expected.into_iter().collect());
    assert!(expected.iter().all(|(key, _)| {
        let (service, class, why) = key.parts();
        RefusedKey::new(service, class, why) == *key
    }));
}

/// A service goes by the class selector of the DSCP if it says so, and by lower effort.
#[test]
fn dscp_says_the_class_where_the_service_goes_by_it() {
    let (default, lower_effort, ef, voice, af11, af21, af31, af41) = (0, 1, 46, 44, 10, 18, 26, 34);
    for (dscp, expected) in [
        (default, class::HIGH),
        (lower_effort, class::LOW),
        (2, class::HIGH),
        (8, class::LOW),
        (af11, class::LOW),
        (16, class::NORMAL),
        (af21, class::NORMAL),
        (24, class::HIGH),
        (af31, class::HIGH),
        (32, class::HIGH),
        (af41, class::HIGH),
        (40, class::CRITICAL),
        (voice, class::CRITICAL),
        (ef, class::CRITICAL),
        (48, class::CRITICAL),
        (63, class::CRITICAL),
    ] {
        // ECN is no part of it.
        let packet = Parsed { tos: dscp << 2 | 3, ..Parsed::default() };
        let by = |goes: u8| Service { class: class::HIGH, dscp: goes, ..Service::default() };
        assert_eq!(redirector_ebpf::stations::admit::class(&by(1), &packet), expected, "{dscp}");
        assert_eq!(redirector_ebpf::stations::admit::class(&by(0), &packet), class::HIGH, "{dscp}");
    }
    let mut tables = node_at(1, class::NORMAL);
    tables.image.services.values_mut().for_each(|service| service.dscp = 1);
    assert_eq!(becomes(&tables, &shared(1).syn()), Reason::Served);
    assert_eq!(becomes(&tables, &shared(1).syn().tos(1 << 2)), Reason::Shed);
    let counted = tables.refused.borrow().keys().map(|key| key.parts().1).collect::<Vec<_>>();
    assert_eq!(counted, [class::LOW], "counted by the class that the packet has");
}

#[test]
fn who_is_refused_may_be_told() {
    let mut tables = node_at(3, class::LOW);
    tables.image.node.tells_refused = 1;
    for packet in [shared(1).syn(), shared(2), owned(1).syn(), tcp("[2001:db8:7::7]:1", "[2001:db8:100::1]:80").syn()] {
        let done = send(&tables, &packet.bytes());
        assert_eq!(done.verdict.reason, Reason::ResetSent);
        let answer = suite::decode::decode(&done.bytes);
        assert!(matches!(&answer.outer().body, Body::Tcp(tcp, _) if tcp.rst), "{answer:?}");
    }
    assert_eq!(becomes(&tables, &sip(1)), Reason::UnreachableSent);
    assert_eq!(tables.refused.borrow().values().sum::<u64>(), 5);
    let reset = shared(1).flags(|tcp| tcp.rst = true);
    assert_eq!(becomes(&tables, &reset), Reason::UnmatchedDrop, "no reset answers a reset");
    tables.image.node.replies = 1;
    becomes(&tables, &shared(3).syn());
    assert_eq!(becomes(&tables, &shared(4).syn()), Reason::ReplyBudget, "answers have a budget");
}

#[test]
fn what_another_node_let_in_is_not_asked_again() {
    let tables = node_at(3, class::NORMAL);
    let forwarded = owned(1).syn().from(node::mac(2, 0));
    assert_eq!(becomes(&tables, &forwarded), Reason::Served);
}
