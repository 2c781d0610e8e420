//! Answers to packets that another node forwarded go where the kernel routes them.

use std::net::IpAddr;
use std::process::Command;

use redirector::dataplane::address::{address, mac_word};
use redirector_ebpf::reason::Reason;
use redirector_ebpf::tables::path::RESOLVED;
use suite::node::{self, mac};
use suite::packet::{tcp, udp};

use super::NOT_ROOT;
use super::kernel::Kernel;

const GATEWAY: [u8; 6] = [2, 0xaa, 0, 0, 0, 1];

/// Routes towards the clients over eth0, in this thread's network.
fn routes() {
    let run = |command: &str| {
        let mut words = command.split_whitespace();
        let status = Command::new(words.next().expect("a command")).args(words).status();
        assert!(status.expect("iproute2 is needed").success(), "{command}");
    };
    for port in ["eth0", "eth1"] {
        run(&format!("ip link set {port} up"));
        for family in ["ipv4", "ipv6"] {
            // A look-up for a packet in transit answers only where packets in transit are allowed.
            std::fs::write(format!("/proc/sys/net/{family}/conf/{port}/forwarding"), "1").expect("allow forwarding");
        }
    }
    run("ip address add 10.0.0.1/24 dev eth0");
    run("ip address add 2001:db8::1/64 dev eth0 nodad");
    run("ip route add default via 10.0.0.254 dev eth0");
    run("ip route add default via 2001:db8::ffff dev eth0");
    for gateway in ["10.0.0.254", "2001:db8::ffff"] {
        run(&format!("ip neighbour add {gateway} lladdr 02:aa:00:00:00:01 nud permanent dev eth0"));
    }
}

#[test]
fn answers_to_forwarded_packets_follow_the_kernel_s_routes() {
    assert!(xtask::step::is_root(), "{NOT_ROOT}");
    let config = node::configuration(1);
    let mut host = node::tables(&config);
    host.image.slots.iter_mut().for_each(|slot| slot.ranks = [1, 0, 0, 0]);
    for path in host.image.paths.values_mut() {
        path.mtu = 1_300;
    }
    let (v4, v6): (IpAddr, IpAddr) = ("192.0.2.7".parse().unwrap(), "2001:db8:7::7".parse().unwrap());
    for client in [v4, v6] {
        host.routes.insert(address(client), (0, mac_word(GATEWAY) | RESOLVED));
    }
    let kernel = Kernel::load(&config, &host);
    routes();
    for (says, packet, reason) in [
        ("too big", tcp("192.0.2.7:40000", "198.51.100.1:443").sized(1_400), Reason::TooBigSent),
        ("too big, IPv6", tcp("[2001:db8:7::7]:40000", "[2001:db8:100::1]:443").sized(1_400), Reason::TooBigSent),
        ("reset", tcp("192.0.2.7:40000", "198.51.100.2:22"), Reason::ResetSent),
        ("unreachable, IPv6", udp("[2001:db8:7::7]:40000", "[2001:db8:100::1]:22"), Reason::UnreachableSent),
    ] {
        let frame = packet.from(mac(2, 0)).bytes();
        let done = node::send(&host, &frame);
        assert_eq!(done.verdict.reason, reason, "{says}");
        let (verdict, bytes) = kernel.run(&frame);
        assert_eq!((verdict, kernel.counted(reason) > 0), (3, true), "{says}");
        assert_eq!(bytes[..6], GATEWAY, "{says}");
        assert_eq!(bytes, done.bytes, "{says}");
    }
}
