//! What is told of flows for other nodes: the same by the host's functions and by the compiled program.

use std::thread::sleep;
use std::time::Duration;

use redirector_ebpf::reason::Reason;
use redirector_ebpf::tables::Row;
use redirector_ebpf::tables::event::FlowEvent;
use redirector_ebpf::tables::flow::{LASTING, State};
use suite::node;
use suite::packet::{Packet, tcp_between, udp_between};

use super::NOT_ROOT;
use super::kernel::Kernel;

/// Longer than any tick of the kernel's coarse clock, so that a flow's second packet proves it.
const PAUSE: Duration = Duration::from_millis(20);

/// Of an event what does not depend on the clock.
fn timeless(event: &FlowEvent) -> FlowEvent {
    FlowEvent { time: 0, since: 0, ..*event }
}

#[test]
fn flows_are_told_of_when_they_are_proven_and_when_they_close() {
    assert!(xtask::step::is_root(), "{NOT_ROOT}");
    let config = node::configuration(1);
    let mut host = node::tables(&config);
    assert_eq!(host.image.node.tells_flows, 1, "there are other members");
    host.image.slots.iter_mut().enumerate().for_each(|(at, slot)| {
        (slot.ranks, slot.version) = ([1, 2, 0, 0], at as u64 + 1);
    });
    let backend = node::backend(&host, "l2/a");
    node::set_rows(&mut host, "l2", Row::new(backend, backend, false));
    let mut kernel = Kernel::load(&config, &host);

    let client = |port: u16| (std::net::Ipv4Addr::new(10, 9, 0, 1), port).into();
    let tcp = |port| tcp_between(client(port), "198.51.100.1:443".parse().unwrap());
    let udp = |port| udp_between(client(port), "198.51.100.1:5060".parse().unwrap());
    let client6 = "[2001:db8:9::1]:40000".parse().unwrap();
    let tcp6 = || tcp_between(client6, "[2001:db8:100::1]:443".parse().unwrap());
    let fin = |packet: Packet| packet.flags(|header| header.fin = true);
    // What is sent one after the other, and what is to be told of it.
    let steps: Vec<(&str, Packet, &[State])> = vec![
        ("a SYN proves nothing", tcp(1).syn(), &[]),
        ("nor does a datagram", udp(2), &[]),
        ("a SYN again proves nothing", tcp(1).syn(), &[]),
        ("the answer's acknowledgement does", tcp(1), &[State::Established]),
        ("a second datagram does", udp(2), &[State::Datagrams]),
        ("more of either is no news", tcp(1), &[]),
        ("more of either is no news", udp(2), &[]),
        ("a flow closes", fin(tcp(1)), &[State::Closing]),
        ("and closes but once", fin(tcp(1)), &[]),
        ("a SYN opens it again", tcp(1).syn(), &[]),
        ("and it is proven again", tcp(1), &[State::Established]),
        ("nor do packets of a connection that was not seen to open", tcp(3), &[]),
        ("nor do packets of a connection that was not seen to open", tcp(3), &[]),
        ("nor that it closes", fin(tcp(3)), &[]),
        ("of another", tcp(4), &[]),
        ("IPv6: a SYN proves nothing", tcp6().syn(), &[]),
        ("the answer's acknowledgement does", tcp6(), &[State::Established]),
        ("and the flow closes", fin(tcp6()), &[State::Closing]),
        ("it has lasted", tcp(4), &[State::Established]),
    ];
    for (says, packet, states) in steps {
        if says == "it has lasted" {
            sleep(Duration::from_millis(LASTING));
            host.now.set(host.now.get() + LASTING * 1_000_000);
        }
        let frame = packet.bytes();
        let done = node::send(&host, &frame);
        assert_eq!(done.verdict.reason, Reason::Served, "{says}");
        kernel.run(&frame);
        let told: Vec<FlowEvent> = host.told.take().iter().map(timeless).collect();
        assert_eq!(kernel.told().iter().map(timeless).collect::<Vec<_>>(), told, "{says}");
        let of = |told: &[FlowEvent]| told.iter().map(|event| event.state).collect::<Vec<_>>();
        assert_eq!(of(&told), states.iter().map(|state| *state as u8).collect::<Vec<_>>(), "{says}");
        assert!(told.iter().all(|event| event.backend == backend && event.slot_version != 0), "{says}: {told:?}");
        sleep(PAUSE);
        host.now.set(host.now.get() + PAUSE.as_nanos() as u64);
    }
}

/// While nobody reads the ring, what does not fit is counted, so that the reader knows that it missed something.
#[test]
fn a_full_ring_is_counted_and_costs_no_packet() {
    assert!(xtask::step::is_root(), "{NOT_ROOT}");
    const FLOWS: u16 = 40_000;
    let mut config = node::configuration(1);
    config.tables.flows4 = 1 << 18;
    let mut host = node::tables_of(node::image(&config), &config);
    host.image.slots.iter_mut().for_each(|slot| slot.ranks = [1, 2, 0, 0]);
    let mut kernel = Kernel::load(&config, &host);
    let flow =
        |port| udp_between((std::net::Ipv4Addr::new(10, 9, 0, 1), port).into(), "198.51.100.1:5060".parse().unwrap());
    let frames: Vec<Vec<u8>> = (1..=FLOWS).map(|port| flow(port).bytes()).collect();
    frames.iter().for_each(|frame| drop(kernel.run(frame)));
    sleep(PAUSE);
    frames.iter().for_each(|frame| drop(kernel.run(frame)));
    let (told, lost) = (kernel.told().len() as u64, kernel.counted(Reason::NoteEventLost));
    println!("{told} told, {lost} lost");
    assert!(lost > 0 && told + lost == u64::from(FLOWS));
    assert_eq!(kernel.counted(Reason::Served), 2 * u64::from(FLOWS));
}
