//! Flows that one node's program records are served by another's: real maps, real packets, a real connection between.

mod node;
mod table;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Result, ensure};
use redirector::replication::{FlowBytes, State};
use redirector_ebpf::tables::flow::State as FlowState;
use suite::node::mac;
use suite::packet::{Packet, tcp_between};

use node::{Authority, Node, wait_until};

const FLOWS: u32 = 20_000;
/// Longer than any tick of the kernel's coarse clock, so that a flow's second packet proves it.
const PAUSE: Duration = Duration::from_millis(20);
const SERVED: u32 = 3;

const NOT_ROOT: &str =
    "running BPF programs needs root: `sudo -E env PATH=$PATH cargo test -p suite --test replication`";

fn client(number: u32) -> SocketAddr {
    (Ipv4Addr::from(0x0b00_0000 + number / 50_000), 10_000 + (number % 50_000) as u16).into()
}

fn packet(number: u32) -> Packet {
    tcp_between(client(number), "198.51.100.1:443".parse().expect("an address"))
}

/// Opens connections at a node and proves them; returns where the node sent each.
fn connect(node: &Node, numbers: std::ops::Range<u32>) -> Result<Vec<[u8; 6]>> {
    for number in numbers.clone() {
        let (verdict, _) = node.run(&packet(number).syn().bytes())?;
        ensure!(verdict == SERVED, "the SYN of {} was not served: {verdict}", client(number));
    }
    sleep(PAUSE);
    numbers.map(|number| Ok(node.run(&packet(number).bytes())?.1[..6].try_into()?)).collect()
}

/// Runs a test in namespaces of its own, in a runtime whose threads are in them too.
fn in_a_world(test: impl FnOnce() -> Result<()> + Send) -> Result<()> {
    assert!(xtask::step::is_root(), "{NOT_ROOT}");
    std::thread::scope(|scope| {
        let world = scope.spawn(|| {
            node::namespaces()?;
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
            let _inside = runtime.enter();
            test()
        });
        world.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

#[test]
fn a_node_serves_the_flows_of_a_dead_one_on_their_backends() -> Result<()> {
    in_a_world(|| {
        let authority = Authority::new("flows")?;
        // The first batches come damaged, and one in between.
        let damages = Arc::new(AtomicUsize::new(2));
        let one = Node::start(1, authority.identity(1)?, &Arc::default())?;
        let mut two = Node::start(2, authority.identity(2)?, &damages)?;
        one.meet(&two);
        wait_until("node 1 has nothing to make up for", || {
            let peers = one.replication.counters().peers;
            Ok(peers.get(&2).is_some_and(|peer| peer.state == State::Current))
        })?;

        let mut sent = connect(&one, 0..FLOWS / 2)?;
        damages.fetch_add(1, Ordering::Relaxed);
        sent.extend(connect(&one, FLOWS / 2..FLOWS)?);
        for number in 0..100 {
            one.run(&packet(number).flags(|header| header.fin = true).bytes())?;
        }
        let flows = one.flows()?;
        // A few find their bucket full; they are served, and not tracked.
        ensure!(flows.len() as u32 > FLOWS - FLOWS / 100, "{} flows were recorded", flows.len());
        wait_until("node 2 has the same flows", || Ok(two.flows()? == flows))?;
        let closing = flows.values().filter(|(_, _, state)| *state == FlowState::Closing as u8).count();
        ensure!(closing == 100, "{closing} flows are closing");

        let (here, there) = (one.replication.counters(), two.replication.counters());
        let to_two = &here.peers[&2];
        println!("sender {here:#?}\nreceiver {:#?}", there.received);
        println!("{:.1} bytes a flow on the wire", to_two.bytes as f64 / to_two.sent as f64);
        ensure!(to_two.damaged == 3 && there.received.damaged == 3, "damaged batches were found and sent again");
        ensure!(there.received.unknown_names + there.received.full + there.received.refused == 0);
        ensure!(here.events >= u64::from(FLOWS) && here.events_lost == 0);
        let FlowBytes { ipv4, ipv6 } = here.flow_bytes;
        ensure!(ipv4 < 256 && ipv6 < 256);

        // Node 1 is dead, and by node 2's own tables all flows would be on another backend than most are.
        two.send_new_flows_to("pool/a")?;
        two.bury(1)?;
        let mut elsewhere = 0;
        for number in 0..FLOWS {
            if !flows.contains_key(&client(number)) {
                continue;
            }
            let (verdict, frame) = two.run(&packet(number).to(mac(2, 0)).bytes())?;
            ensure!(verdict == SERVED && frame[..6] == sent[number as usize], "{} changed its backend", client(number));
            elsewhere += u32::from(frame[..6] != sent[0]);
        }
        ensure!(elsewhere > FLOWS / 2, "only {elsewhere} flows were on another backend than the first");
        Ok(())
    })
}

#[test]
fn a_byte_that_flips_on_the_way_to_one_node_is_found_there_and_is_on_no_other() -> Result<()> {
    in_a_world(|| {
        let authority = Authority::new("flips")?;
        let (damages, intact) = (Arc::new(AtomicUsize::new(3)), Arc::default());
        let one = Node::start_of(3, 1, authority.identity(1)?, &intact)?;
        let two = Node::start_of(3, 2, authority.identity(2)?, &damages)?;
        let three = Node::start_of(3, 3, authority.identity(3)?, &intact)?;
        Node::all_meet(&[&one, &two, &three]);
        connect(&one, 0..5_000)?;
        let flows = one.flows()?;
        wait_until("nodes 2 and 3 have the same flows", || Ok(two.flows()? == flows && three.flows()? == flows))?;
        wait_until("node 1 knows that", || {
            let peers = one.replication.counters().peers;
            Ok([2, 3].iter().all(|id| peers.get(id).is_some_and(|peer| peer.state == State::Current)))
        })?;
        let [one, two, three] = [&one, &two, &three].map(|node| node.replication.counters());
        ensure!(damages.load(Ordering::Relaxed) == 0, "not every damage was done");
        // Node 3 may tell node 2 of flows too.
        let sent_again = one.peers[&2].damaged + three.peers[&2].damaged;
        ensure!((sent_again, two.received.damaged) == (3, 3), "found and sent again: {two:#?}");
        ensure!((one.peers[&3].damaged, three.received.damaged) == (0, 0), "found elsewhere: {three:#?}");
        for received in [two.received, three.received] {
            ensure!(received.refused + received.conflicts + received.unknown_names == 0, "{received:#?}");
        }
        Ok(())
    })
}

#[test]
fn a_node_that_lost_everything_is_complete_once_it_has_its_flows_again() -> Result<()> {
    in_a_world(|| {
        let authority = Authority::new("return")?;
        let intact = Arc::default();
        let one = Node::start(1, authority.identity(1)?, &intact)?;
        let two = Node::start(2, authority.identity(2)?, &intact)?;
        one.meet(&two);
        connect(&one, 0..500)?;
        let flows = one.flows()?;
        wait_until("node 2 has the flows", || Ok(two.flows()? == flows))?;
        wait_until("node 2 knows that", || Ok(two.replication.complete_from().contains(&1)))?;
        two.lose_everything()?;

        // More come while it is away, and all of them are there before it calls itself complete.
        connect(&one, 500..5_000)?;
        let two = Node::start(2, authority.identity(2)?, &intact)?;
        ensure!(two.flows()?.is_empty() && two.replication.complete_from().is_empty());
        let flows = one.flows()?;
        one.meet(&two);
        wait_until("node 2 is complete", || Ok(two.replication.complete_from().contains(&1)))?;
        ensure!(two.flows()? == flows, "{} of {} flows", two.flows()?.len(), flows.len());
        ensure!(one.replication.counters().peers[&2].resynchronisations >= 2);

        // And so it goes on.
        drop(connect(&one, 5_000..5_100)?);
        wait_until("later ones too", || Ok(two.flows()?.len() == one.flows()?.len()))?;
        println!("lag in microseconds, built as this test is: {:?}", one.replication.counters().peers[&2].lag);
        Ok(())
    })
}
