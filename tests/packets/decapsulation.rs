//! The backend's side: tunnels are taken apart.

use redirector_ebpf::reason::Reason;
use suite::backend::{Backend, tunnelled};
use suite::decode::decode;
use suite::node::mac;
use suite::packet::{Packet, raw, tcp, udp};

fn run(frame: &[u8]) -> (Reason, Vec<u8>) {
    Backend::default().run(frame)
}

#[test]
fn all_tunnels_are_taken_apart() {
    for port in 1..=4 {
        for packet in [
            tcp("192.0.2.7:40000", &format!("198.51.100.10:{port}")).tos(0xb9),
            tcp("[2001:db8:7::7]:40000", &format!("[2001:db8:100::10]:{port}")).tos(0xb9),
        ] {
            let (reason, bytes) = run(&tunnelled(&packet));
            assert_eq!(reason, Reason::Unwrapped, "port {port}");
            let seen = decode(&bytes);
            assert_eq!((seen.to, seen.ips.len()), (mac(9, 0), 1));
            assert_eq!(bytes[14..], packet.clone().ttl(62).ip_bytes()[..], "port {port}");
        }
    }
}

/// A tunnel packet that no node of ours sent.
fn outer(src: &str, protocol: u8, payload: Vec<u8>) -> Packet {
    raw(src.parse().unwrap(), "10.9.0.1".parse().unwrap(), protocol, payload).to(mac(9, 0))
}

#[test]
fn strangers_and_strange_packets_are_dropped() {
    let inner = tcp("192.0.2.7:40000", "198.51.100.10:1");
    let gue = |header: [u8; 4]| {
        let datagram = udp("10.0.0.1:50000", "10.9.0.2:6080").to(mac(9, 0));
        Packet { payload: [&header[..], &inner.ip_bytes()].concat(), ..datagram }
    };
    let elsewhere = tcp("192.0.2.7:40000", "198.51.100.77:1").ip_bytes();
    for (says, packet, reason) in [
        ("an unknown source", outer("10.0.0.77", 4, inner.ip_bytes()), Reason::TunnelUnknownSource),
        ("no VIP within", outer("10.0.0.1", 4, elsewhere), Reason::TunnelNotVip),
        ("cut off within", outer("10.0.0.1", 4, inner.ip_bytes()[..19].to_vec()), Reason::TunnelMalformed),
        ("IPv4 where IPv6 is said", outer("10.0.0.1", 41, inner.ip_bytes()), Reason::TunnelMalformed),
        ("IPv6 cut off", outer("10.0.0.1", 41, vec![0x60; 39]), Reason::TunnelMalformed),
        ("GUE of another variant", gue([0x40, 4, 0, 0]), Reason::TunnelMalformed),
        ("GUE with flags", gue([0, 4, 0x80, 0]), Reason::TunnelMalformed),
        ("GUE with something else within", gue([0, 47, 0, 0]), Reason::TunnelMalformed),
    ] {
        assert_eq!(run(&packet.bytes()).0, reason, "{says}");
    }
    for (says, packet, reason) in [
        ("no tunnel", udp("10.0.0.1:50000", "10.9.0.2:53").to(mac(9, 0)), Reason::NotOurs),
        ("TCP", tcp("10.0.0.1:50000", "10.9.0.2:6080").to(mac(9, 0)), Reason::NotOurs),
        ("another's MAC address", outer("10.0.0.1", 4, inner.ip_bytes()).to(mac(8, 0)), Reason::NotForMe),
    ] {
        let bytes = packet.bytes();
        assert_eq!(run(&bytes), (reason, bytes), "{says} passes untouched");
    }
    let fragment = outer("10.0.0.1", 4, inner.sized(600).ip_bytes()).fragments(1, 400).swap_remove(0);
    assert_eq!(run(&fragment), (Reason::NotOurs, fragment), "a fragment of a tunnel packet");
}

#[test]
fn tunnels_cut_off_anywhere_are_harmless() {
    for port in 1..=4 {
        let frame = tunnelled(&tcp("192.0.2.7:40000", &format!("198.51.100.10:{port}")));
        for len in 14..frame.len() {
            let (reason, bytes) = run(&frame[..len]);
            assert!(bytes.len() <= len && bytes.len() >= 14, "port {port}, {len} bytes: {reason:?}");
        }
    }
}

/// RFC 6040, figure 4: what the inner ECN field is after decapsulation.
#[test]
fn congestion_marks_are_carried_over() {
    const NOT: u8 = 0;
    const ECT1: u8 = 1;
    const ECT0: u8 = 2;
    const CE: u8 = 3;
    let table: [(u8, [Option<u8>; 4]); 4] = [
        // inner, then outer Not-ECT, ECT(1), ECT(0), CE
        (NOT, [Some(NOT), Some(NOT), Some(NOT), None]),
        (ECT1, [Some(ECT1), Some(ECT1), Some(ECT1), Some(CE)]),
        (ECT0, [Some(ECT0), Some(ECT1), Some(ECT0), Some(CE)]),
        (CE, [Some(CE), Some(CE), Some(CE), Some(CE)]),
    ];
    let inners =
        [(4, tcp("192.0.2.7:40000", "198.51.100.10:1")), (41, tcp("[2001:db8:7::7]:40000", "[2001:db8:100::10]:1"))];
    for (protocol, inner) in inners {
        for (inner_ecn, row) in table {
            for (outer_ecn, expected) in row.into_iter().enumerate() {
                // 46 is expedited forwarding: DSCP stays what it is within.
                let inner = inner.clone().tos(46 << 2 | inner_ecn);
                let frame = outer("10.0.0.1", protocol, inner.ip_bytes()).tos(outer_ecn as u8).bytes();
                let (reason, bytes) = run(&frame);
                match expected {
                    None => assert_eq!(reason, Reason::TunnelCongestion),
                    Some(ecn) => {
                        assert_eq!(reason, Reason::Unwrapped);
                        assert_eq!(decode(&bytes).outer().tos, 46 << 2 | ecn, "{inner_ecn} within {outer_ecn}");
                    }
                }
            }
        }
    }
}
