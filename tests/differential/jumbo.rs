//! Packets that are longer than what the driver keeps in one piece.

use redirector_ebpf::reason::{Action, Reason};
use suite::node::{self, CARRIED};
use suite::packet::tcp;

use super::NOT_ROOT;
use super::kernel::Kernel;

/// Frames below and above the 3,520 bytes that a test run keeps in one piece.
const SIZES: [usize; 5] = [1_500, 3_400, 3_600, 5_000, 8_000];

#[test]
fn jumbo_packets_are_redirected_as_others_are() {
    assert!(xtask::step::is_root(), "{NOT_ROOT}");
    let config = node::configuration(1);
    for mtu in [9_000, 3_000] {
        let mut host = node::tables(&config);
        host.image.paths.values_mut().for_each(|path| path.mtu = mtu);
        let kernel = Kernel::load(&config, &host);
        let mut told = 0;
        for (port, pool) in CARRIED {
            for size in SIZES {
                for vip in ["198.51.100.10", "[2001:db8:100::10]"] {
                    let client = if vip.starts_with('[') { "[2001:db8:9::7]:40000" } else { "192.0.2.7:40000" };
                    let frame = tcp(client, &format!("{vip}:{port}")).to(node::mac(1, 0)).sized(size).bytes();
                    let expected = node::send(&host, &frame);
                    let (action, bytes) = kernel.run(&frame);
                    let what = format!("{size} bytes through {pool} to {vip} with an MTU of {mtu}");
                    let sent = matches!(action, 3 | 4);
                    assert_eq!(sent, expected.verdict.reason.action() == Action::Transmit, "{what}: {expected:?}");
                    assert!(bytes == expected.bytes, "{what}: the frames differ");
                    told += u32::from(expected.verdict.reason == Reason::TooBigSent);
                }
            }
        }
        assert_eq!(told > 0, mtu == 3_000, "with an MTU of {mtu}, {told} senders were told");
    }
}
