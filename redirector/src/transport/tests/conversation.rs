//! Nodes that get on with each other.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use tokio::net::UdpSocket;

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn three_nodes_talk_on_all_channels() {
    let authority = Authority::of(7);
    let mut nodes = [authority.node(1), authority.node(2), authority.node(3)];
    introduce(&nodes.iter().collect::<Vec<_>>()).await;
    for from in &nodes {
        for to in nodes.iter().filter(|to| to.id != from.id) {
            for channel in Channel::ALL {
                from.transport.tell(to.id, channel, vec![from.id, channel.byte()]);
            }
        }
    }
    for node in &mut nodes {
        let Inboxes { consensus, flows, control } = &mut node.inboxes;
        for (channel, inbox) in Channel::ALL.into_iter().zip([consensus, flows, control]) {
            let mut senders = Vec::new();
            for _ in 0..2 {
                let Incoming { from, payload, reply } = next(inbox).await;
                assert_eq!(payload, [from, channel.byte()]);
                assert!(reply.is_none());
                senders.push(from);
            }
            senders.sort_unstable();
            assert_eq!(senders, (1..=3).filter(|id| *id != node.id).collect::<Vec<_>>());
        }
    }
    for node in &nodes {
        for (peer, counts) in shown(node) {
            assert!(counts.connected && counts.rtt_us.is_some(), "{peer}: {counts:?}");
            let figures = (counts.frames_in, counts.bytes_in, counts.frames_out, counts.bytes_out, counts.dropped);
            assert_eq!(figures, (3, 54, 3, 54, 0), "{peer}: {counts:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_answered_declined_late_or_too_long() {
    let (_authority, one, mut two) = pair().await;
    let handler = tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Some(Incoming { from, payload, reply }) = two.inboxes.control.recv().await {
            let reply = reply.expect("a request");
            match payload.as_slice() {
                b"decline" => drop(reply),
                b"never" => kept.push(reply),
                b"huge" => drop(reply.send(vec![0; PAYLOAD_MAX + 1])),
                other => drop(reply.send([&[from], other].concat())),
            }
        }
        drop(two.transport);
    });
    let ask = |payload: Vec<u8>, timeout| one.transport.request(2, Channel::Control, payload, timeout);
    assert_eq!(ask(b"who".to_vec(), PATIENCE).await, Ok(b"\x01who".to_vec()));
    assert_eq!(ask(b"decline".to_vec(), PATIENCE).await, Err(RequestError::Declined(2)));
    assert_eq!(ask(b"huge".to_vec(), PATIENCE).await, Err(RequestError::Declined(2)));
    assert_eq!(ask(b"never".to_vec(), Duration::from_millis(50)).await, Err(RequestError::Late(2)));
    let long = ask(vec![0; PAYLOAD_MAX + 1], PATIENCE).await;
    assert_eq!(long, Err(RequestError::Oversized(FrameError::Oversized(PAYLOAD_MAX + 1))));
    let large = vec![5; 3 << 20];
    assert_eq!(ask(large.clone(), PATIENCE).await.map(|answer| answer[1..] == large), Ok(true));
    assert_eq!(one.transport.request(9, Channel::Control, vec![], PATIENCE).await, Err(RequestError::Unknown(9)));

    // More than may be under way at once, none of them answered: those above the bound are refused at once, and when
    // the others are given up there is room again.
    let many = (0..send::REQUESTS_MAX + 5).map(|_| {
        let transport = one.transport.clone();
        tokio::spawn(async move { transport.request(2, Channel::Control, b"never".to_vec(), 2 * PATIENCE).await })
    });
    let (mut refused, mut waiting) = (0, many.collect::<Vec<_>>());
    until("the refusals", || {
        let ended = waiting.extract_if(.., |asked| asked.is_finished()).count();
        refused += ended;
        refused == 5
    })
    .await;
    assert_eq!(waiting.len(), send::REQUESTS_MAX);
    for asked in waiting {
        asked.abort();
        assert!(asked.await.unwrap_err().is_cancelled());
    }
    assert_eq!(ask(b"again".to_vec(), PATIENCE).await, Ok(b"\x01again".to_vec()));
    handler.abort();
}

/// Whatever stands between two nodes, requests are under way while a newer connection takes over, and none is lost.
#[tokio::test(flavor = "multi_thread")]
async fn a_newer_connection_takes_over_without_loss() {
    let (authority, one, mut two) = pair().await;
    let rogue = refusal::Rogue::new(&authority.identity(2));
    let connections = one.counts(2).connections;
    let transport = two.transport.clone();
    let asked = tokio::spawn(async move { transport.request(1, Channel::Control, b"?".to_vec(), PATIENCE).await });
    let TestNode { transport, mut inboxes, .. } = one;
    let under_way = next(&mut inboxes.control).await;
    // Another connection by the name of node 2, as when both dialled at once.
    let newer = rogue.dial_at(1, transport.local_address()).await;
    let counts = || transport.counters().peers[&2].clone();
    until("the newer connection", || counts().connections > connections).await;
    under_way.reply.unwrap().send(b"!".to_vec()).unwrap();
    assert_eq!(asked.await.unwrap(), Ok(b"!".to_vec()));
    transport.tell(2, Channel::Flows, b"over the newer".to_vec());
    let mut stream = timeout(PATIENCE, newer.accept_uni()).await.unwrap().unwrap();
    let mut frame = [0; frame::HEADER + 14];
    timeout(PATIENCE, stream.read_exact(&mut frame)).await.unwrap().unwrap();
    assert_eq!(&frame[frame::HEADER..], b"over the newer");
    assert!(two.inboxes.flows.try_recv().is_err());
    // The older one ends in the end.
    until("the end of the older", || two.transport.connected().is_empty() || two.counts(1).connections > 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn order_holds_within_a_channel() {
    let (_authority, one, mut two) = pair().await;
    // Of all sizes, and paced by what may wait, so that none is dropped.
    let teller = tokio::spawn(async move {
        for number in 0..3000u32 {
            let mut payload = number.to_be_bytes().to_vec();
            payload.resize(4 + (number as usize * 7919) % 5000, 0);
            one.transport.tell(2, Channel::Flows, payload);
            if number % 500 == 499 {
                let sent = u64::from(number) + 1;
                until("the queue to empty", || one.counts(2).frames_out + one.counts(2).dropped >= sent).await;
            }
        }
        one
    });
    for number in 0..3000u32 {
        let incoming = next(&mut two.inboxes.flows).await;
        assert_eq!(incoming.payload[..4], number.to_be_bytes());
    }
    let one = teller.await.unwrap();
    assert_eq!(one.counts(2).dropped, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_restarts_is_connected_again() {
    let (authority, one, two) = pair().await;
    let place = two.place();
    timeout(PATIENCE, two.transport.close()).await.unwrap();
    drop(two);
    until("the end of the connection", || one.transport.connected().is_empty()).await;
    one.transport.tell(2, Channel::Control, b"to nobody".to_vec());
    assert_eq!(one.counts(2).dropped, 1);
    assert_eq!(one.transport.request(2, Channel::Control, vec![], PATIENCE).await, Err(RequestError::Away(2)));
    // The old socket is closed when QUIC has drained its connections.
    let begin = Instant::now();
    let (transport, mut inboxes) = loop {
        match start(authority.identity(2), 2, place.1, vec![one.place()], &Breakers::default()) {
            Ok(started) => break started,
            Err(error) => assert!(begin.elapsed() < PATIENCE, "{error:?}"),
        }
        sleep(Duration::from_millis(20)).await;
    };
    one.knows(2).await;
    until("the other end", || transport.connected() == [1]).await;
    one.transport.tell(2, Channel::Control, b"welcome back".to_vec());
    assert_eq!(next(&mut inboxes.control).await.payload, b"welcome back");
    assert!(one.counts(2).connections >= 2);
}

/// A peer that vanished without a word, and is back before anybody noticed.
#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_comes_back_need_not_wait_for_the_old_connection_to_run_out() {
    for (stays, returns) in [(1, 2), (2, 1)] {
        let authority = Authority::of(7);
        let (one, two) = (authority.node(stays), authority.node(returns));
        introduce(&[&one, &two]).await;
        let mut again = authority.node(returns);
        // The old one stays open and silent as far as this end can tell; the new one has another address.
        again.transport.set_members(vec![one.place()]);
        again.knows(stays).await;
        until("the newer connection", || one.counts(returns).connections >= 2).await;
        one.transport.tell(returns, Channel::Control, b"to the newest".to_vec());
        assert_eq!(next(&mut again.inboxes.control).await.payload, b"to the newest");
        drop(two);
    }
}

/// Carries datagrams between a node and whoever dials it here, while it is let.
async fn relay(to: SocketAddr, carries: Arc<AtomicBool>) -> SocketAddr {
    let (outer, inner) = (UdpSocket::bind(ANY).await.unwrap(), UdpSocket::bind(ANY).await.unwrap());
    let address = outer.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut there, mut back, mut dialler) = ([0; 65_535], [0; 65_535], None);
        loop {
            // What the kernel says of a closed port is of no concern here.
            tokio::select! {
                Ok((length, from)) = outer.recv_from(&mut there) => {
                    dialler = Some(from);
                    if carries.load(Ordering::Relaxed) {
                        let _ = inner.send_to(&there[..length], to).await;
                    }
                }
                Ok((length, _)) = inner.recv_from(&mut back) => {
                    if let Some(dialler) = dialler.filter(|_| carries.load(Ordering::Relaxed)) {
                        let _ = outer.send_to(&back[..length], dialler).await;
                    }
                }
            }
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn silence_is_noticed_and_its_end_too() {
    let authority = Authority::of(7);
    let (one, mut two) = (authority.node(1), authority.node(2));
    let carries = Arc::new(AtomicBool::new(true));
    let between = relay(two.transport.local_address(), carries.clone()).await;
    one.transport.set_members(vec![(2, between)]);
    // Where nobody listens: the port of `discard`.
    two.transport.set_members(vec![(1, SocketAddr::from((Ipv4Addr::LOCALHOST, 9)))]);
    for _ in 0..2 {
        one.knows(2).await;
        two.knows(1).await;
        one.transport.tell(2, Channel::Flows, b"heard".to_vec());
        assert_eq!(next(&mut two.inboxes.flows).await.payload, b"heard");
        carries.store(false, Ordering::Relaxed);
        let cut = || one.transport.connected().is_empty() && two.transport.connected().is_empty();
        until("both to notice the silence", cut).await;
        carries.store(true, Ordering::Relaxed);
    }
    one.knows(2).await;
    assert!(one.counts(2).connections >= 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn members_come_and_go() {
    let (_authority, one, two) = pair().await;
    one.transport.set_members(vec![one.place()]);
    assert!(one.transport.connected().is_empty());
    assert_eq!(one.transport.request(2, Channel::Control, vec![], PATIENCE).await, Err(RequestError::Unknown(2)));
    until("the other end's notice", || two.counts(1).refused_certificates > 0).await;
    one.transport.set_members(vec![two.place()]);
    one.knows(2).await;
    two.knows(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_channel_that_is_not_read_from_stops_no_other() {
    let (_authority, one, mut two) = pair().await;
    let payload = |number: u32| [&number.to_be_bytes()[..], &[0; 4096]].concat();
    let told = 4 * send::FRAMES_MAX as u32;
    for number in 0..told {
        one.transport.tell(2, Channel::Flows, payload(number));
        tokio::task::yield_now().await;
    }
    until("the queue to overflow", || one.counts(2).dropped > 0).await;
    // Other channels, and requests, go on.
    for number in 0..200u32 {
        one.transport.tell(2, Channel::Consensus, payload(number));
        assert_eq!(next(&mut two.inboxes.consensus).await.payload[..4], number.to_be_bytes());
    }
    let asked = tokio::spawn({
        let transport = one.transport.clone();
        async move { transport.request(2, Channel::Control, b"?".to_vec(), PATIENCE).await }
    });
    next(&mut two.inboxes.control).await.reply.unwrap().send(b"!".to_vec()).unwrap();
    assert_eq!(asked.await.unwrap(), Ok(b"!".to_vec()));
    // And what was not dropped is all there, in order.
    let dropped = one.counts(2).dropped;
    let mut last = None;
    for _ in 0..u64::from(told) - dropped {
        let number = u32::from_be_bytes(next(&mut two.inboxes.flows).await.payload[..4].try_into().unwrap());
        assert!(last.is_none_or(|last| last < number), "{number} after {last:?}");
        last = Some(number);
    }
    assert_eq!(one.counts(2).dropped, dropped);
}
