//! BFD with a real BIRD: sessions come up with the timers that both agree on, paths follow what the router's session says,
//! and the router sees this node die.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use xtask::lab::{Config, Fabric, Role, Topology};

use crate::announced::{ROUTER, announces, hops, receives, sends_to, start_bird};
use crate::holders::configure;
use crate::scene::{Scene, wait_until, words};
use crate::told::{Path, paths};

/// What nodes are configured with, and BIRD: what holds differs from either.
const OWN_MS: u64 = 100;
const OWN_MULTIPLIER: u64 = 3;
const ROUTER_MIN_TX_MS: u64 = 150;
const ROUTER_MIN_RX_MS: u64 = 80;
const ROUTER_MULTIPLIER: u64 = 4;
/// BIRD waits in `poll`, which takes whole milliseconds, and may note an end at the next of its rounds.
const BIRD_TICK: Duration = Duration::from_millis(5);

#[derive(Debug, Deserialize)]
struct Session {
    peer: std::net::IpAddr,
    interface: Option<String>,
    state: String,
    interval_us: Option<u64>,
    detection_us: Option<u64>,
    downs: u64,
}

fn sessions(scene: &Scene, node: &str) -> Result<Vec<Session>> {
    Ok(serde_json::from_str(&scene.done(node, &["get", "bfd", "-o", "json"])?)?)
}

/// Over a single hop with authentication, and over several without, as the router's BGP asks for: of both families.
fn own_sessions() -> String {
    let timers = format!("min_tx = \"{OWN_MS}ms\"\nmin_rx = \"{OWN_MS}ms\"\nmultiplier = {OWN_MULTIPLIER}\n");
    let auth = "auth = \"meticulous-sha1\"\nkey_id = 5\npassword = \"between us\"\n";
    let of = |peer| {
        format!(
            "[[bfd]]\npeer = \"{peer}\"\ninterface = \"eth0\"\n{timers}{auth}\
             [[bfd]]\npeer = \"{peer}\"\nmultihop = true\n{timers}"
        )
    };
    ROUTER.addresses().map(of).concat()
}

/// What the router runs: BGP that goes by BFD, and sessions with each node by itself.
fn router(nodes: &[Role], log: &str) -> String {
    let timers = format!(
        "min rx interval {ROUTER_MIN_RX_MS} ms; min tx interval {ROUTER_MIN_TX_MS} ms; idle tx interval 1 s; multiplier {ROUTER_MULTIPLIER};"
    );
    let mut text = format!(
        "log \"{log}\" all;\ntimeformat log \"%s.%6f\";\ndebug protocols {{ states, events }};\n\
         protocol bfd {{\n  interface \"n*\" {{ {timers} authentication meticulous keyed sha1; password \"between us\" {{ id 5; }}; }};\n  \
         multihop {{ {timers} }};\n"
    );
    for node in nodes {
        let name = node.name(Fabric::Routed);
        for (own, peer) in ROUTER.addresses().into_iter().zip(node.addresses()) {
            text += &format!("  neighbor {peer} dev \"{name}\" local {own};\n");
        }
    }
    text + "}\n" + &receives(nodes).replace("multihop 2;", "multihop 2; bfd on;")
}

/// What BIRD says of its sessions with a node: interface, state, interval and timeout in seconds.
fn told_by_bird(scene: &Scene, node: Role) -> Result<Vec<[String; 4]>> {
    let socket = scene.lab.directory().join("r1.bird.ctl");
    let mut birdc = scene.lab.host("r1")?.command("birdc");
    let output = birdc.arg("-s").arg(socket).args(["show", "bfd", "sessions"]).output()?;
    let text = words(&output);
    let addresses = node.addresses().map(|address| address.to_string());
    let lines = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let of_node = lines.filter(|fields| fields.first().is_some_and(|peer| addresses.contains(&(*peer).to_owned())));
    of_node
        .map(|fields| match fields[..] {
            [_, interface, state, .., interval, timeout] => {
                Ok([interface, state, interval, timeout].map(str::to_owned))
            }
            _ => bail!("{text}"),
        })
        .collect()
}

/// How late a thread of usual priority woke at most while something was done: what BIRD's may have been as well.
fn lateness<T>(what: impl FnOnce() -> T) -> (T, Duration) {
    const NAP: Duration = Duration::from_millis(5);
    let ends = AtomicBool::new(false);
    thread::scope(|scope| {
        let watching = scope.spawn(|| {
            let mut worst = Duration::ZERO;
            while !ends.load(Ordering::Relaxed) {
                let began = Instant::now();
                thread::sleep(NAP);
                worst = worst.max(began.elapsed().saturating_sub(NAP));
            }
            worst
        });
        let done = what();
        ends.store(true, Ordering::Relaxed);
        (done, watching.join().unwrap_or_else(|payload| std::panic::resume_unwind(payload)))
    })
}

/// When BIRD noted that its sessions with a node went down, on the host's clock.
fn noted(log: &str, node: Role) -> Result<Vec<Duration>> {
    let mut times = Vec::new();
    for address in node.addresses() {
        let says = format!("Session to {address} changed state from Up to Down");
        for line in log.lines().filter(|line| line.contains(&says)) {
            let time: f64 = line.split_whitespace().next().context("an empty line")?.parse()?;
            times.push(Duration::from_secs_f64(time));
        }
    }
    Ok(times)
}

#[test]
fn a_router_that_speaks_bfd_sees_a_node_die_and_is_seen() -> Result<()> {
    let topology = Topology { fabric: Fabric::Routed, backends: 1, ..Topology::for_test("bfd") };
    let config = Config { more: own_sessions(), ..Config::standard(&topology) };
    let scene = Scene::without_agents(&topology, config)?;
    configure(&scene, "route", &[])?;
    let nodes: Vec<Role> = (1..=topology.nodes).map(Role::Node).collect();
    let r1 = scene.lab.host("r1")?;
    r1.ip(&[xtask::lab::VIPS4, xtask::lab::VIPS6].map(|vips| format!("route del {vips}")))?;
    // BIRD takes whom a link's own address names for its neighbour alone.
    for node in &nodes {
        let name = node.name(Fabric::Routed);
        let [own4, own6] = ROUTER.addresses();
        let [peer4, peer6] = node.addresses();
        r1.ip(&[
            format!("addr add {own4} peer {peer4} dev {name}"),
            format!("addr del {own6}/128 dev {name}"),
            format!("addr add {own6} peer {peer6} dev {name} nodad"),
        ])?;
    }
    scene.lab.start_agents()?;
    for node in &nodes {
        start_bird(&scene, *node, &announces(*node))?;
    }
    let log = scene.lab.directory().join("r1.bird.log");
    start_bird(&scene, ROUTER, &router(&nodes, &log.display().to_string()))?;
    sends_to(&scene, &[1, 2, 3])?;

    // The slower of both is what holds, either way.
    let interval = OWN_MS.max(ROUTER_MIN_RX_MS) * 1000;
    let detection = ROUTER_MULTIPLIER * OWN_MS.max(ROUTER_MIN_TX_MS) * 1000;
    let timeout = OWN_MULTIPLIER * OWN_MS.max(ROUTER_MIN_RX_MS);
    for node in &nodes {
        let name = node.name(Fabric::Routed);
        wait_until(&format!("all four sessions of {name} are up as negotiated"), || {
            let own = sessions(&scene, &name)?;
            let bird = told_by_bird(&scene, *node)?;
            let right = |session: &Session| {
                session.state == "up"
                    && (session.interval_us, session.detection_us) == (Some(interval), Some(detection))
            };
            let expected = [format!("{:.3}", ROUTER_MIN_TX_MS as f64 / 1e3), format!("{:.3}", timeout as f64 / 1e3)];
            let same = |[_, state, interval, timeout]: &[String; 4]| {
                state == "Up" && [interval.clone(), timeout.clone()] == expected
            };
            Ok(own.len() == 4 && own.iter().all(right) && bird.len() == 4 && bird.iter().all(same))
        })
        .with_context(|| format!("{:?} {:?}", sessions(&scene, &name), told_by_bird(&scene, *node)))?;
    }

    // The router falls silent: paths over it are off, and say why. It speaks again: they are used again.
    let bird = scene.lab.process("r1-bird")?;
    for (signal, alive) in [(libc::SIGSTOP, false), (libc::SIGCONT, true)] {
        bird.signal(signal);
        wait_until(&format!("paths are alive: {alive}"), || {
            let paths = paths(&scene, "n1")?;
            let right = |path: &Path| {
                let health = path.health.as_ref();
                let why = health.and_then(|health| health.why.as_deref());
                let state = health.map(|health| health.state.as_str());
                path.alive == alive && (alive || (state, why) == (Some("suspect"), Some("its BFD session is down")))
            };
            Ok(!paths.is_empty() && paths.iter().all(right))
        })?;
        // Each session has a time of its own, and a path goes by one of them.
        wait_until("all sessions have seen it", || {
            let deaf: Vec<_> = sessions(&scene, "n1")?.into_iter().filter(|session| session.downs == 0).collect();
            deaf.iter().for_each(|session| eprintln!("{} on {:?} saw nothing yet", session.peer, session.interface));
            Ok(deaf.is_empty())
        })?;
    }
    let journal = scene.done("n1", &["incidents"])?;
    ensure!(journal.contains("is down: detection time expired"), "{journal}");

    // A try counts where no thread woke later than an interval: then the router has seen the death of a node within three
    // intervals, and what it was late when it heard the last packet and when its own timer ended. Its clock ticks in
    // milliseconds. The nodes are the tries, and one that counts decides.
    sends_to(&scene, &[1, 2, 3])?;
    for (at, node) in nodes.iter().enumerate() {
        let name = node.name(Fabric::Routed);
        wait_until("the router's sessions are up", || {
            Ok(told_by_bird(&scene, *node)?.iter().all(|[_, state, ..]| state == "Up"))
        })?;
        let known = noted(&fs::read_to_string(&log)?, *node)?.len();
        let (died, late) = lateness(|| -> Result<Duration> {
            let died = scene.lab.kill(&name)?;
            let died = SystemTime::now().duration_since(UNIX_EPOCH)? - died.elapsed();
            wait_until("the router notes the death", || {
                Ok(noted(&fs::read_to_string(&log)?, *node)?.len() == known + 4)
            })?;
            Ok(died)
        });
        let died = died?;
        let left = [&nodes[..at + 1]].concat();
        let dead: Vec<_> = left.iter().map(|node| node.addresses()[0]).collect();
        wait_until("the router sends it nothing any more", || {
            let vip = xtask::lab::vip4(1).into();
            Ok(hops(&r1, vip)?.is_disjoint(&dead.iter().copied().collect()))
        })?;
        let seen = noted(&fs::read_to_string(&log)?, *node)?.split_off(known);
        let took: Vec<Duration> = seen.iter().map(|seen| seen.saturating_sub(died)).collect();
        eprintln!("{name}: the router saw it dead after {took:?}; threads woke up to {late:?} late");
        if late > Duration::from_millis(OWN_MS) {
            continue;
        }
        let most = Duration::from_millis(timeout) + 2 * late.max(BIRD_TICK);
        ensure!(took.iter().all(|took| *took <= most), "{took:?}, at most {most:?}");
        return Ok(());
    }
    bail!("inconclusive: threads woke later than an interval at each of three deaths; the machine is too busy")
}

/// Datagrams a second of a peer that floods.
const FLOOD: u32 = 20_000;

/// A peer that floods, with packets that are right in form and with such that are not, takes no other session down.
#[test]
fn a_peer_that_floods_takes_no_other_session_down() -> Result<()> {
    let topology = Topology { nodes: 2, backends: 1, ..Topology::for_test("bfdflood") };
    let peers = [Role::Node(1), Role::Node(2), Role::Backend(1)].map(|role| role.addresses()[0]);
    // A node has no session with itself, and says so without harm.
    let more = peers.map(|peer| {
        format!("[[bfd]]\npeer = \"{peer}\"\ninterface = \"eth0\"\nmin_tx = \"100ms\"\nmin_rx = \"100ms\"\n")
    });
    let config = Config { more: more.concat(), ..Config::standard(&topology) };
    let scene = Scene::up(&topology, config)?;
    let with = |peer: std::net::IpAddr| -> Result<serde_json::Value> {
        let all: Vec<serde_json::Value> = serde_json::from_str(&scene.done("n1", &["get", "bfd", "-o", "json"])?)?;
        all.into_iter().find(|one| one["peer"] == peer.to_string()).context("a session of each peer")
    };
    wait_until("the nodes' session is up", || Ok(with(peers[1])?["state"] == "up"))?;
    let (before, flood) = (with(peers[1])?, scene.lab.host("b1")?);
    let (sent, wrong) = flood.run(|| -> Result<(u64, u64)> {
        let socket = std::net::UdpSocket::bind((peers[2], 49_200))?;
        socket.set_ttl(255)?;
        // RFC 5880, section 4.1: version 1, any state, multiplier 3, 24 bytes, a discriminator, no other's, and times.
        let mut packet = [0u8; 24];
        packet[..8].copy_from_slice(&[0x20, 0x40, 3, 24, 0, 0, 0, 9]);
        packet[12..24].copy_from_slice(&[0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0]);
        let (mut sent, mut wrong, began) = (0u64, 0u64, Instant::now());
        while began.elapsed() < Duration::from_secs(3) {
            while (sent as f64) < began.elapsed().as_secs_f64() * f64::from(FLOOD) {
                packet[1] = 0x40 | (sent as u8 & 3) << 6;
                packet[7] = sent as u8;
                let length = if sent % 3 == 0 { 23 } else { 24 };
                wrong += u64::from(length < 24);
                // What does not fit the device's queue is no loss.
                let _ = socket.send_to(&packet[..length], (peers[0], 3784));
                sent += 1;
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok((sent, wrong))
    })??;
    let (after, of_flood) = (with(peers[1])?, with(peers[2])?);
    let discarded: u64 =
        of_flood["discarded"].as_object().into_iter().flatten().filter_map(|(_, many)| many.as_u64()).sum();
    println!("of {sent} packets, {wrong} of them cut short, {discarded} were thrown away: {of_flood:#}");
    ensure!(discarded > 0, "none of {sent} was heard: {of_flood:#}");
    ensure!(after["state"] == "up" && after["downs"] == before["downs"], "{after:#}");
    ensure!(after["received"].as_u64() > before["received"].as_u64(), "{after:#}");
    let nodes = scene.lab.suspicions()?;
    ensure!(nodes.is_empty(), "{nodes:?}");
    Ok(())
}
