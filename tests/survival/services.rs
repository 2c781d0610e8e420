//! Requests through every kind of service, and what else a client may send to a VIP.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::FromRawFd;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use xtask::lab::{Journey, Topology};
use xtask::traffic::{ECHO_PORT, HTTP_PORT, Load, ask};

use crate::scene::{Scene, TIMEOUT, all_answered, every_kind, pool_of, targets, wait_until};

const RETRY: Duration = Duration::from_millis(500);

#[test]
fn every_kind_of_service_answers_everything() -> Result<()> {
    let topology = Topology::for_test("services");
    let config = every_kind(&topology, &["l2", "ipip", "gue"]);
    let scene = Scene::up(&topology, config)?;
    every_request_is_answered(&scene)?;
    every_datagram_is_answered(&scene, b"one datagram", 12)?;
    // Larger than any link takes: the client fragments it, and all fragments must meet at one backend.
    every_datagram_is_answered(&scene, &[b'x'; 4000], 12)?;
    echo_requests_are_answered(&scene)?;
    scene.nothing_was_dropped()?;
    unmatched_ports_are_refused(&scene)
}

/// Held against what the fabric saw of each connection, and against the nodes' tables of flows.
pub(crate) fn every_request_is_answered(scene: &Scene) -> Result<()> {
    let witness = scene.lab.watch()?;
    let load = Load::new(targets(&scene.config, HTTP_PORT), 500, Duration::from_secs(3));
    let load = scene.lab.client().run(|| load.run())?;
    let journeys = witness.finish()?;
    all_answered(&load)?;
    ensure!(load.backends.len() == usize::from(scene.lab.topology().backends), "not all backends served: {load:#?}");
    ensure!(journeys.len() as u64 >= load.sent, "{} of {} connections were witnessed", journeys.len(), load.sent);

    let mut recorded: BTreeMap<(SocketAddr, SocketAddr), BTreeSet<String>> = BTreeMap::new();
    for node in scene.lab.nodes() {
        let maps = scene.maps(&node)?;
        let key = maps.node.get(&0, 0)?.hash_key;
        for flow in maps.flows.iter(&key) {
            recorded.entry((flow.source(), flow.destination())).or_default().insert(node.clone());
        }
    }
    let mut entered_elsewhere = 0;
    for (flow, Journey { hops, tunnelled }) in &journeys {
        let pool = pool_of(&scene.config, flow.1.ip());
        let (backend, nodes) = hops.split_last().context("a connection that went nowhere")?;
        ensure!(backend.starts_with('b') && *tunnelled != pool.starts_with("l2"), "{pool}: {hops:?}, {tunnelled}");
        let recorded = recorded.get(flow).cloned().unwrap_or_default();
        if pool.contains("shared") {
            ensure!(nodes.len() == 1 && recorded.is_empty(), "{pool}: {hops:?}, recorded at {recorded:?}");
        } else {
            let owner = nodes.last().context("a connection past the nodes")?;
            // Besides its owner, the others of its slot's ranks may have it.
            ensure!(nodes.len() <= 2 && recorded.contains(owner), "{pool}: {hops:?}, recorded at {recorded:?}");
            entered_elsewhere += u32::from(nodes.len() == 2);
        }
    }
    ensure!(entered_elsewhere > 0, "no owned connection entered at another node than its owner");
    Ok(())
}

pub(crate) fn every_datagram_is_answered(scene: &Scene, payload: &[u8], each: usize) -> Result<()> {
    scene.lab.client().run(|| {
        for target in targets(&scene.config, ECHO_PORT) {
            let answers = (0..each).map(|_| ask(target, None, payload, TIMEOUT));
            let backends: BTreeSet<String> = answers
                .collect::<Result<_>>()
                .with_context(|| format!("{} bytes to {}", payload.len(), pool_of(&scene.config, target.ip())))?;
            // Fragments have no ports, so a client's all go one way.
            let fragmented = payload.len() > 1400;
            ensure!(fragmented || backends.len() > 1, "{each} flows to {target} all went to {backends:?}");
        }
        Ok(())
    })?
}

pub(crate) fn echo_requests_are_answered(scene: &Scene) -> Result<()> {
    scene.lab.client().run(|| {
        fs::write("/proc/sys/net/ipv4/ping_group_range", "0 0")?;
        targets(&scene.config, 0).into_iter().try_for_each(ping)
    })?
}

/// The kernel fills in identifier and checksum, and hands over answers to this socket's requests alone.
fn ping(vip: SocketAddr) -> Result<()> {
    let (domain, protocol, request) = match vip.ip() {
        IpAddr::V4(_) => (libc::AF_INET, libc::IPPROTO_ICMP, 8),
        IpAddr::V6(_) => (libc::AF_INET6, libc::IPPROTO_ICMPV6, 128),
    };
    // SAFETY: integers in; the descriptor is checked and owned from here on.
    let socket = unsafe {
        let fd = libc::socket(domain, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, protocol);
        ensure!(fd >= 0, "no socket for echo requests: {}", std::io::Error::last_os_error());
        UdpSocket::from_raw_fd(fd)
    };
    socket.connect(vip)?;
    socket.set_read_timeout(Some(TIMEOUT))?;
    let message = [&[request, 0, 0, 0, 0, 0, 0, 1], &b"are you there"[..]].concat();
    socket.send(&message)?;
    let mut answer = [0; 64];
    let length = socket.recv(&mut answer).with_context(|| format!("{vip} does not answer echo requests"))?;
    ensure!(answer[..length].ends_with(b"are you there"), "{vip} answered something else");
    Ok(())
}

pub(crate) fn unmatched_ports_are_refused(scene: &Scene) -> Result<()> {
    scene.lab.client().run(|| {
        for target in targets(&scene.config, 4) {
            let refused = TcpStream::connect_timeout(&target, TIMEOUT).err().map(|error| error.kind());
            ensure!(refused == Some(ErrorKind::ConnectionRefused), "TCP to {target}: {refused:?}");
            let socket = UdpSocket::bind((if target.is_ipv4() { "0.0.0.0" } else { "::" }, 0))?;
            socket.connect(target)?;
            socket.set_read_timeout(Some(RETRY))?;
            // Answers have a budget, so one may be missing.
            wait_until(&format!("UDP to {target} is refused"), || {
                let heard = socket.send(b"anybody?").and_then(|_| socket.recv(&mut [0; 16]));
                Ok(heard.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused))
            })?;
        }
        Ok(())
    })?
}
