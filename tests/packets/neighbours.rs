//! What is learnt of next hops from their answers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::{ArpHardwareId, ArpOperation, ArpPacket, EtherType, Ethernet2Header, Icmpv6Type};
use redirector::dataplane::address::mac_word;
use redirector::dataplane::memory::MemoryTables;
use redirector_ebpf::reason::Reason;
use redirector_ebpf::tables::path::RESOLVED;
use suite::node::{self, mac, mac_of, send};
use suite::packet::{Layer, Mac, Packet, raw};

const HOP4: Ipv4Addr = Ipv4Addr::new(10, 0, 9, 9);
const HOP6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 9);
const NEW: Mac = [2, 0xaa, 0, 0, 0, 9];

/// A node whose backend is reached by two next hops of one address each, one on either interface.
fn twice(hop: IpAddr) -> MemoryTables {
    let mut config = node::configuration(1);
    let ranked = config.pools.iter_mut().find(|pool| pool.name == "ranked").expect("the pool");
    for (path, interface) in ranked.backends[0].paths.iter_mut().zip(["eth0", "eth1"]) {
        (path.interface, path.next_hop) = (interface.into(), hop);
    }
    node::tables(&config)
}

/// The MAC addresses of a next hop, by port.
fn known(tables: &MemoryTables, hop: IpAddr) -> [u64; 2] {
    [0, 1].map(|port: u32| {
        let here = |found: &&u32| {
            let next = &tables.image.neighbours[*found];
            next.address == hop && next.interface == 2 + port
        };
        let id = tables.image.neighbours.keys().find(here).expect("a next hop of this port");
        tables.neighbours.borrow()[id] & !RESOLVED
    })
}

/// Its answer to node 1, as it comes in by a port.
fn answer(hop: IpAddr, port: u8) -> (Vec<u8>, Reason) {
    let me = mac(1, port);
    match hop {
        IpAddr::V4(hop) => {
            let link = Ethernet2Header { source: NEW, destination: me, ether_type: EtherType::ARP };
            let (hardware, reply) = (ArpHardwareId::ETHERNET, ArpOperation::REPLY);
            let arp = ArpPacket::new(hardware, EtherType::IPV4, reply, &NEW, &hop.octets(), &me, &[10, 0, port, 1]);
            ([&link.to_bytes()[..], &arp.expect("the sizes fit").to_bytes()].concat(), Reason::NotIp)
        }
        IpAddr::V6(target) => {
            let option = [&[2, 1][..], &NEW].concat();
            let to = format!("2001:db8:{port}::1").parse().expect("an address");
            let packet = raw(hop, to, 58, Vec::new()).to(me).ttl(255);
            let kind = Icmpv6Type::Unknown { type_u8: 136, code_u8: 0, bytes5to8: [0x60, 0, 0, 0] };
            let payload = [&target.octets()[..], &option].concat();
            (Packet { layer: Layer::Icmp6(kind), payload, ..packet }.bytes(), Reason::NotOurs)
        }
    }
}

#[test]
fn one_address_on_two_interfaces_is_two_next_hops() {
    for hop in [IpAddr::from(HOP4), IpAddr::from(HOP6)] {
        let old = mac_word(mac_of(hop));
        for (port, expected) in [(0, [mac_word(NEW), old]), (1, [old, mac_word(NEW)])] {
            let mut tables = twice(hop);
            tables.ingress = port;
            assert_eq!(known(&tables, hop), [old; 2]);
            let (frame, reason) = answer(hop, port);
            assert_eq!(send(&tables, &frame).verdict.reason, reason);
            assert_eq!(known(&tables, hop), expected, "{hop} by port {port}");
        }
    }
}

#[test]
fn a_stranger_s_answer_is_not_learnt() {
    let stranger = IpAddr::from([10, 0, 9, 10]);
    let tables = twice(HOP4.into());
    let before = tables.neighbours.borrow().clone();
    send(&tables, &answer(stranger, 0).0);
    assert_eq!(*tables.neighbours.borrow(), before);
}
