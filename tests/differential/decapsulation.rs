//! The backend's side: the host's function against the compiled decap program.

use redirector_ebpf::reason::{Action, Reason};
use suite::backend::{Backend, tunnelled};
use suite::generate::damage;
use suite::leg::{self, Carried};
use suite::node::{Family, mac};
use suite::packet::{Packet, raw, tcp};
use suite::random::Random;

use super::kernel::Decap;
use super::{NOT_ROOT, told};

const PACKETS: usize = 20_000;

/// Tunnel packets of all kinds, with any congestion mark.
fn seeds() -> Vec<Vec<u8>> {
    let inners = |port: u16, ecn: u8| {
        let v4 = tcp("192.0.2.7:40000", &format!("198.51.100.10:{port}")).tos(ecn);
        let v6 = tcp("[2001:db8:7::7]:40000", &format!("[2001:db8:100::10]:{port}")).tos(ecn);
        [v4, v6]
    };
    let mut seeds = Vec::new();
    for port in 1..=4 {
        seeds.extend(inners(port, 0).iter().map(tunnelled));
    }
    for (inner, outer) in (0..16).map(|marks| (marks & 3, marks >> 2)) {
        for (protocol, packet) in [4, 41].into_iter().zip(inners(1, inner)) {
            for source in ["10.0.0.1", "10.0.0.77"] {
                let (src, dst) = (source.parse().expect("an address"), "10.9.0.1".parse().expect("an address"));
                let tunnel: Packet = raw(src, dst, protocol, packet.ip_bytes());
                seeds.push(tunnel.to(mac(9, 0)).tos(outer).bytes());
            }
        }
    }
    for family in [Family::V4, Family::V6] {
        let node = leg::node(family);
        for carried in [Carried::Plain, Carried::Ipip, Carried::Gue] {
            seeds.push(leg::frame(family, carried, &leg::ask(&node, 3)));
        }
    }
    seeds
}

/// A beat's answer without what depends on the clock: its time and its tag, and UDP's checksum of them.
fn timeless(reason: Reason, mut frame: Vec<u8>) -> Vec<u8> {
    if reason == Reason::BeatAnswered {
        let udp = if frame[12] == 0x08 { 34 } else { 54 };
        for part in [udp + 6..udp + 8, udp + 8 + 48..udp + 8 + 56, udp + 8 + 120..udp + 8 + 128] {
            frame[part].fill(0);
        }
    }
    frame
}

#[test]
fn the_decap_program_decides_as_the_host_does() {
    assert!(xtask::step::is_root(), "{NOT_ROOT}");
    let host = Backend::default();
    let kernel = Decap::load(&host.settings, &host.sources, &host.vips);
    let (seeds, mut random) = (seeds(), Random::new(1));
    let mut counted = vec![0u64; Reason::ALL.len()];
    for at in 0..PACKETS {
        let mut frame = seeds[random.below(seeds.len())].clone();
        if random.once_in(2) {
            damage(&mut random, &mut frame);
        }
        let (reason, bytes) = host.run(&frame);
        counted[reason as usize] += 1;
        let (verdict, its_bytes) = kernel.run(&frame);
        assert_eq!(verdict, told(reason.action(), true), "packet {at}, `{}`: {frame:02x?}", reason.name());
        assert_eq!(kernel.counted(reason), counted[reason as usize], "packet {at}, `{}`: {frame:02x?}", reason.name());
        assert!(
            reason.action() == Action::Drop || timeless(reason, bytes) == timeless(reason, its_bytes),
            "packet {at}, `{}`: {frame:02x?}",
            reason.name()
        );
    }
    assert!(counted[Reason::BeatAnswered as usize] > 100, "beats are answered");
    println!("{PACKETS} tunnel packets compared, 0 differences");
}
