//! The backend's side: the host's function against the compiled decap program.

use redirector_ebpf::abi::GUE_PORT;
use redirector_ebpf::decap::Sources as _;
use redirector_ebpf::reason::{Action, Reason};
use suite::backend::{Backend, tunnelled};
use suite::generate::damage;
use suite::node::mac;
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
    seeds
}

#[test]
fn the_decap_program_decides_as_the_host_does() {
    assert!(xtask::step::is_root(), "{NOT_ROOT}");
    let host = Backend::default();
    let kernel = Decap::load(host.mac(), GUE_PORT, &host.sources, &host.vips);
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
        assert_eq!(verdict, told(reason.action(), false), "packet {at}, `{}`: {frame:02x?}", reason.name());
        assert_eq!(kernel.counted(reason), counted[reason as usize], "packet {at}, `{}`: {frame:02x?}", reason.name());
        assert!(
            reason.action() == Action::Drop || bytes == its_bytes,
            "packet {at}, `{}`: {frame:02x?}",
            reason.name()
        );
    }
    println!("{PACKETS} tunnel packets compared, 0 differences");
}
