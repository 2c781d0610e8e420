//! Pools that change under traffic.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use redirector_ebpf::tables::names::kind;
use xtask::lab::{Backend, Config, Topology};
use xtask::traffic::{Datagrams, ECHO_PORT, HTTP_PORT, Load, LongConnections, LongReport, Response};

use crate::scene::{PATIENCE, Scene, all_answered, every_kind, targets, wait_until};

/// Three of the backends serve at first; what is over is soon forgotten, so that a test sees changes settle.
fn three_backends(topology: &Topology, modes: &[&str]) -> Config {
    let mut config = every_kind(topology, modes);
    for pool in &mut config.pool {
        pool.backend.truncate(3);
        pool.settle = "2s".into();
    }
    for name in ["tcp_new", "tcp_closing", "udp_new", "udp"] {
        config.timeouts.insert(name.into(), "2s".into());
    }
    config
}

/// New flows of a backend no more: it is there for those that it has.
fn drain(scene: &mut Scene, backend: &str) {
    let backends = scene.config.pool.iter_mut().flat_map(|pool| &mut pool.backend);
    backends.filter(|member| member.name == backend).for_each(|member| member.state = "draining".into());
}

fn remove(scene: &mut Scene, backend: &str) {
    scene.config.pool.iter_mut().for_each(|pool| pool.backend.retain(|member| member.name != backend));
}

/// Disputed rows of the pools whose names hold this word.
fn disputed(scene: &Scene, node: &str, of: &str) -> Result<usize> {
    let pools = scene.rows(node)?.into_iter().filter(|(pool, _)| pool.contains(of));
    Ok(pools.flat_map(|(_, rows)| rows).filter(|row| row.disputed()).count())
}

fn unbroken(long: &LongReport, on: &str) -> Result<()> {
    ensure!(long.broken == 0 && long.backends.contains_key(on) && long.lines > long.opened, "{long:#?}");
    Ok(())
}

#[test]
fn backends_come_and_go_under_load() -> Result<()> {
    let topology = Topology { backends: 4, ..Topology::for_test("change") };
    let mut scene = Scene::up(&topology, three_backends(&topology, &["l2", "ipip"]))?;
    let client = scene.lab.client();
    let (web, echo) = (targets(&scene.config, HTTP_PORT), targets(&scene.config, ECHO_PORT));
    let long = client.run(|| LongConnections::open(&web, 64, Duration::from_millis(100), PATIENCE))??;
    let streams = client.run(|| Datagrams::start(&echo, 24, Duration::from_millis(50)))??;

    let load = Load::new(web, 1000, Duration::from_secs(12));
    let (drained, late) = (OnceLock::new(), AtomicU64::new(0));
    let seen = |_, response: &Response| {
        let begun = Instant::now() - response.took;
        if response.backend == "b1" && drained.get().is_some_and(|since| begun > *since) {
            late.fetch_add(1, Ordering::Relaxed);
        }
    };
    let never = AtomicBool::new(false);
    let load = thread::scope(|scope| -> Result<_> {
        let load = scope.spawn(|| client.run(|| load.run_until(&never, seen)));
        let changed = change_twice(&mut scene, &drained);
        let load = load.join().unwrap_or_else(|payload| std::panic::resume_unwind(payload));
        changed.and(load)
    })?;
    all_answered(&load)?;
    ensure!(load.backends.contains_key("b4"), "the backend that was added got nothing: {load:#?}");
    ensure!(late.load(Ordering::Relaxed) == 0, "{late:?} new flows went to the drained backend");
    let streams = streams.finish();
    ensure!(streams.sent == streams.echoed && streams.wrong == 0 && streams.moved == 0, "{streams:#?}");

    // Established connections outlive their backend's configuration, and an agent that never knew it.
    remove(&mut scene, "b1");
    scene.apply()?;
    scene.lab.process("n1-agent")?.kill()?;
    scene.lab.start_agent("n1")?;
    every_connection_goes_on(&long)?;
    unbroken(&long.finish(), "b1")?;
    scene.nothing_was_dropped()
}

/// One backend comes and one goes; then another change, while the first is in dispute.
fn change_twice(scene: &mut Scene, drained: &OnceLock<Instant>) -> Result<()> {
    let topology = scene.lab.topology().clone();
    thread::sleep(Duration::from_secs(1));
    for pool in &mut scene.config.pool {
        let v6 = pool.backend[0].address.is_ipv6();
        pool.backend.push(Backend::new(&topology, 4, v6));
    }
    drain(scene, "b1");
    scene.apply()?;
    let _ = drained.set(Instant::now());
    for node in scene.lab.nodes() {
        ensure!(disputed(scene, &node, "")? > 0, "no row of {node} is disputed after a change");
    }
    for pool in &mut scene.config.pool {
        pool.backend[1].weight = 3;
    }
    scene.apply()
}

/// Waits until as many lines as there are connections have been exchanged, many times over.
fn every_connection_goes_on(long: &LongConnections) -> Result<()> {
    let before = long.lines();
    wait_until("the connections go on", || Ok(long.lines() > before + 64 * 20))
}

/// Backends of this name that still have a number.
fn numbers(scene: &Scene, node: &str, backend: &str) -> Result<usize> {
    let registry = scene.maps(node)?.registry()?;
    let suffix = format!("/{backend}");
    Ok(registry.of(kind::BACKEND).into_iter().filter(|(_, name)| name.ends_with(&suffix)).count())
}

/// On a node alone, which knows by itself when the last flow of before has ended.
#[test]
fn disputes_last_as_long_as_flows_of_before() -> Result<()> {
    let topology = Topology { nodes: 1, ..Topology::for_test("dispute") };
    let mut scene = Scene::up(&topology, three_backends(&topology, &["l2"]))?;
    let web = targets(&scene.config, HTTP_PORT);
    let client = scene.lab.client();
    let long = client.run(|| LongConnections::open(&web, 32, Duration::from_millis(20), PATIENCE))??;
    drain(&mut scene, "b1");
    scene.apply()?;
    let all = disputed(&scene, "n1", "")?;
    wait_until("rows without flows settle", || Ok(disputed(&scene, "n1", "")? < all / 2))?;
    ensure!(disputed(&scene, "n1", "shared")? > 0 && disputed(&scene, "n1", "owned")? > 0, "old flows were forgotten");
    remove(&mut scene, "b1");
    scene.apply()?;
    ensure!(numbers(&scene, "n1", "b1")? == 4, "numbers of a backend with flows were given back");
    every_connection_goes_on(&long)?;
    unbroken(&long.finish(), "b1")?;
    wait_until("disputes end", || Ok(disputed(&scene, "n1", "")? == 0))?;
    wait_until("the number of the backend is free", || Ok(numbers(&scene, "n1", "b1")? == 0))
}
