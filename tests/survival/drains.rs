//! Backends that drain: their flows are counted as they end, and those that are left at the deadline are ended or moved; no
//! other backend's connection notices.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use redirector_ebpf::reason::Reason;
use serde::Deserialize;
use xtask::lab::Topology;
use xtask::traffic::{ECHO_PORT, HTTP_PORT, LongConnections, LongReport, Stream};

use crate::scene::{PATIENCE, Scene, every_kind, targets, wait_until};

/// An entry of `get drains`.
#[derive(Debug, Deserialize)]
struct Drain {
    pool: String,
    name: String,
    flows: u64,
    here: u64,
    untold: Vec<u8>,
    ends_in_ms: Option<u64>,
    deadline_in_ms: Option<u64>,
    left_then: Option<u64>,
    is_over: bool,
}

/// What becomes of flows at the deadline, pool by pool: of each affinity and family.
const AT_DEADLINE: [&str; 4] = ["reset", "rehash", "rehash", "reset"];

fn drains(scene: &Scene, node: &str) -> Result<Vec<Drain>> {
    Ok(serde_json::from_str(&scene.done(node, &["get", "drains", "-o", "json"])?)?)
}

/// The VIPs of pools whose flows end by a reset, or of the others.
fn targets_of(scene: &Scene, port: u16, fate: &str) -> Vec<SocketAddr> {
    let fates = AT_DEADLINE.iter().cycle();
    targets(&scene.config, port).into_iter().zip(fates).filter(|(_, is)| **is == fate).map(|(to, _)| to).collect()
}

/// What a node tells of pools that end flows by a reset.
fn of_reset(scene: &Scene, node: &str) -> Result<Vec<Drain>> {
    let fates: Vec<(&String, &str)> = scene.config.pool.iter().map(|pool| &pool.name).zip(AT_DEADLINE).collect();
    let is_reset = |drain: &Drain| fates.iter().any(|(pool, fate)| **pool == drain.pool && *fate == "reset");
    Ok(drains(scene, node)?.into_iter().filter(is_reset).collect())
}

fn flows(drains: &[Drain]) -> u64 {
    drains.iter().map(|drain| drain.flows).sum()
}

/// Waits until every node tells that so many flows are left in pools that end them by a reset.
fn wait_for_flows(scene: &Scene, left: u64) -> Result<()> {
    let (mut here, nodes) = (0, scene.lab.nodes());
    for node in &nodes {
        let mut last = Vec::new();
        let done = wait_until(&format!("{node} tells of {left} flows"), || {
            last = of_reset(scene, node)?;
            Ok(last.iter().all(|drain| drain.name == "b1" && drain.untold.is_empty()) && flows(&last) == left)
        });
        done.with_context(|| format!("{last:#?}"))?;
        here += last.iter().map(|drain| drain.here).sum::<u64>();
    }
    ensure!(here == left, "each of {} nodes counts its own, in all {here} of {left}", nodes.len());
    Ok(())
}

fn set_state(scene: &mut Scene, state: &str) {
    let backends = scene.config.pool.iter_mut().flat_map(|pool| &mut pool.backend);
    backends.filter(|backend| backend.name == "b1").for_each(|backend| backend.state = state.into());
}

/// Sets the deadline, which begins for who drains already.
fn set_deadline(scene: &mut Scene, deadline: &str) {
    for (pool, fate) in scene.config.pool.iter_mut().zip(AT_DEADLINE) {
        (pool.health.drain_deadline, pool.health.at_deadline) = (Some(deadline.into()), Some(fate.into()));
    }
}

fn open(scene: &Scene, targets: &[SocketAddr], count: usize) -> Result<LongConnections> {
    scene.lab.client().run(|| LongConnections::open(targets, count, Duration::from_millis(50), PATIENCE))?
}

fn on_b1(long: &LongReport) -> u64 {
    long.backends.get("b1").copied().unwrap_or_default()
}

/// Those on b1 were told by a reset, and no other noticed.
fn reset_on_b1(long: &LongReport) -> Result<()> {
    let told = long.errors.iter().filter(|error| error.contains("Connection reset by peer")).count() as u64;
    let on_b1 = on_b1(long);
    ensure!(on_b1 > 0 && long.broken == on_b1 && told == on_b1 && long.wrong == 0, "{long:#?}");
    ensure!(long.backends.len() > 1, "nothing was on another backend: {long:#?}");
    Ok(())
}

fn wait_for_the_end(scene: &Scene) -> Result<()> {
    for node in scene.lab.nodes() {
        wait_until(&format!("{node} tells that the time to drain is over"), || {
            let drains = drains(scene, &node)?;
            Ok(!drains.is_empty() && drains.iter().all(|drain| drain.is_over))
        })?;
    }
    Ok(())
}

#[test]
fn flows_of_a_backend_that_drains_are_counted_and_end_at_the_deadline() -> Result<()> {
    let topology = Topology { nodes: 2, backends: 3, ..Topology::for_test("drains") };
    let mut scene = Scene::up(&topology, every_kind(&topology, &["ipip"]))?;
    let web = targets_of(&scene, HTTP_PORT, "reset");
    let (ends, stays) = (open(&scene, &web, 36)?, open(&scene, &web, 36)?);
    let echo = targets_of(&scene, ECHO_PORT, "rehash");
    let moves = scene.lab.client().run(|| Stream::new(200, &echo, 24).start())??;

    set_state(&mut scene, "draining");
    scene.apply()?;
    let mut most = 0;
    wait_until("flows are counted", || {
        let before = most;
        most = most.max(flows(&of_reset(&scene, "n1")?));
        std::thread::sleep(Duration::from_millis(1500));
        Ok(most > 0 && before == most)
    })?;
    let ended = ends.finish();
    ensure!(ended.broken == 0 && on_b1(&ended) > 0, "{ended:#?}");
    wait_until("they are fewer when some have ended, and an estimate is ventured", || {
        let drains = of_reset(&scene, "n1")?;
        Ok(flows(&drains) < most && drains.iter().any(|drain| drain.ends_in_ms > Some(0) && drain.flows > 0))
    })?;
    let says = scene.done("n1", &["get", "backends"])?;
    ensure!(says.contains("draining") && says.contains("left, the last for about"), "{says}");
    ensure!(drains(&scene, "n1")?.iter().all(|drain| drain.deadline_in_ms.is_none() && drain.left_then.is_none()));
    let left = flows(&of_reset(&scene, "n1")?);
    println!("of {most} flows {} ended and {left} are left", on_b1(&ended));
    wait_for_flows(&scene, left)?;

    set_deadline(&mut scene, "3s");
    scene.apply()?;
    wait_for_the_end(&scene)?;
    let stays = stays.finish();
    reset_on_b1(&stays)?;
    ensure!(on_b1(&stays) == left, "{left} were counted: {stays:#?}");
    let severed = scene.lab.nodes().iter().map(|node| scene.count(node, Reason::NoteSevered)).sum::<Result<u64>>()?;
    ensure!(severed >= left, "{severed} resets for {left} connections: others sent them");
    let lately = Duration::from_millis(500);
    wait_until("datagrams go to others", || Ok(moves.silence() < lately))?;
    let moves = moves.finish()?;
    ensure!(moves.moved > 0 && moves.wrong == 0, "{moves:#?}");
    wait_for_flows(&scene, 0)?;
    let journal = scene.done("n1", &["incidents"])?;
    ensure!(journal.contains("/b1's time to drain is over: its flows are reset"), "{journal}");
    Ok(())
}

#[test]
fn a_node_alone_ends_draining_by_its_own_clock_and_takes_an_edited_fate_of_the_dead() -> Result<()> {
    let topology = Topology { nodes: 1, backends: 3, between: true, ..Topology::for_test("drainone") };
    let mut config = every_kind(&topology, &["ipip"]).with_fabrics(&topology);
    config.beats = Some("50ms x 3".into());
    let mut scene = Scene::up(&topology, config)?;
    let web = targets_of(&scene, HTTP_PORT, "reset");
    let long = open(&scene, &web, 24)?;
    set_state(&mut scene, "draining");
    set_deadline(&mut scene, "2s");
    scene.apply()?;
    wait_for_the_end(&scene)?;
    reset_on_b1(&long.finish())?;

    set_state(&mut scene, "active");
    scene.apply()?;
    let long = open(&scene, &web, 24)?;
    scene.lab.unplug("b1")?;
    let rows_of_b1 = |scene: &Scene| -> Result<u64> {
        let backends: Vec<serde_json::Value> =
            serde_json::from_str(&scene.done("n1", &["get", "backends", "-o", "json"])?)?;
        Ok(backends.iter().filter(|one| one["name"] == "b1").filter_map(|one| one["rows"].as_u64()).sum())
    };
    wait_until("b1 is dead, and has no rows", || Ok(rows_of_b1(&scene)? == 0))?;
    ensure!(scene.count("n1", Reason::NoteSevered)? > 0, "resets of the first part");
    // Its flows are held as yet: what is edited now holds for them at once.
    scene.config.pool.iter_mut().for_each(|pool| pool.health.on_death = Some("reset".into()));
    scene.apply()?;
    reset_on_b1(&long.finish())
}
