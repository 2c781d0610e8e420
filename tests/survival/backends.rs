//! Backends that die and come back: new flows go to others, and to them again.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use redirector_ebpf::reason::Reason;
use serde::Deserialize;
use xtask::lab::{Config, Topology};
use xtask::traffic::{ECHO_PORT, HTTP_PORT, Load, LoadReport, LongConnections, Stream, Streaming};

use crate::scene::{PATIENCE, Scene, all_answered, every_kind, pool_of, targets, wait_until};

/// A backend, as `get backends` tells of it.
#[derive(Debug, Deserialize)]
struct Backend {
    name: String,
    share: f64,
    rows: usize,
    paths_alive: usize,
    health: Option<Health>,
}

#[derive(Debug, Deserialize)]
struct Health {
    state: String,
    why: Option<String>,
}

fn backends(scene: &Scene, node: &str) -> Result<Vec<Backend>> {
    Ok(serde_json::from_str(&scene.done(node, &["get", "backends", "-o", "json"])?)?)
}

/// Waits until on every node these backends have rows in all of their pools, and the others have none.
fn wait_for_rows(scene: &Scene, with: &[&str]) -> Result<()> {
    for node in scene.lab.nodes() {
        wait_until(&format!("at {node} {with:?} have rows, and no others"), || {
            Ok(backends(scene, &node)?
                .iter()
                .all(|backend| (backend.rows > 0) == with.contains(&backend.name.as_str())))
        })?;
    }
    Ok(())
}

fn wait_for_paths(scene: &Scene, of: &str, alive: usize) -> Result<()> {
    for node in scene.lab.nodes() {
        wait_until(&format!("at {node} {alive} paths of {of} are alive"), || {
            let mut those = backends(scene, &node)?.into_iter().filter(|backend| backend.name == of);
            Ok(those.all(|backend| backend.paths_alive == alive))
        })?;
    }
    Ok(())
}

/// Requests on new connections to every VIP.
fn requests(scene: &Scene) -> Result<LoadReport> {
    let load = Load::new(targets(&scene.config, HTTP_PORT), 200, Duration::from_secs(2));
    scene.lab.client().run(|| load.run())
}

/// Requests on new connections to services whose flows have owners. A SYN that nobody answers is sent again after a second.
fn requests_of_owners(scene: &Scene) -> Result<LoadReport> {
    let has_owner = |to: &SocketAddr| pool_of(&scene.config, to.ip()).contains("-owned-");
    let owned = targets(&scene.config, HTTP_PORT).into_iter().filter(has_owner).collect();
    let load = Load::new(owned, 200, Duration::from_secs(2));
    scene.lab.client().run(|| load.run())
}

fn names(load: &LoadReport) -> BTreeSet<&str> {
    load.backends.keys().map(String::as_str).collect()
}

/// A lab whose backends' deaths are noticed soon, at a pace that leaves the machine to others.
fn up(name: &str, nodes: u8) -> Result<Scene> {
    let topology = Topology { nodes, backends: 3, between: true, ..Topology::for_test(name) };
    let mut config =
        Config { beats: Some("50ms x 3".into()), ..every_kind(&topology, &["ipip"]).with_fabrics(&topology) };
    if nodes == 1 {
        config.pool.iter_mut().for_each(|pool| pool.health.slow_start = Some("4s".into()));
    }
    let scene = Scene::up(&topology, config)?;
    ["b1", "b2", "b3"].iter().try_for_each(|backend| wait_for_paths(&scene, backend, 3))?;
    Ok(scene)
}

fn new_flows_avoid_it_and_go_to_it_again(scene: &Scene) -> Result<()> {
    all_answered(&requests(scene)?).context("before")?;
    scene.lab.unplug("b1")?;
    // The first of these begin before anybody suspects it, and may go on before its death is agreed on.
    let load = requests_of_owners(scene)?;
    all_answered(&load).context("while it is suspect")?;
    ensure!(names(&load) == BTreeSet::from(["b2", "b3"]), "{load:#?}");
    let mut avoided = 0;
    for node in scene.lab.nodes() {
        avoided += scene.count(&node, Reason::NoteAvoided)?;
    }
    ensure!(avoided > 0, "no new flow avoided it: {load:#?}");
    wait_for_paths(scene, "b1", 0)?;
    wait_for_rows(scene, &["b2", "b3"])?;
    let journal = scene.done("n1", &["incidents"])?;
    ensure!(journal.contains("/b1 is dead: it gets no new flows"), "{journal}");
    let load = requests(scene)?;
    all_answered(&load).context("without it")?;
    ensure!(names(&load) == BTreeSet::from(["b2", "b3"]), "{load:#?}");
    scene.lab.heal()?;
    wait_for_rows(scene, &["b1", "b2", "b3"])?;
    wait_for_paths(scene, "b1", 3)?;
    let load = requests(scene)?;
    all_answered(&load).context("with it again")?;
    ensure!(names(&load).len() == 3, "{load:#?}");
    Ok(())
}

#[test]
fn a_cluster_agrees_that_a_backend_is_dead_and_that_it_is_back() -> Result<()> {
    new_flows_avoid_it_and_go_to_it_again(&up("agreed", 3)?)
}

#[test]
fn a_node_alone_takes_a_dead_backend_out_and_in_again() -> Result<()> {
    let scene = up("alone", 1)?;
    new_flows_avoid_it_and_go_to_it_again(&scene)?;
    wait_until("b1 has all of its share again", || {
        Ok(shown(&scene, "n1", "b1")?.1 == BTreeSet::from(["alive".into()]))
    })?;
    scene.lab.unplug("b1")?;
    wait_for_rows(&scene, &["b2", "b3"])?;
    scene.lab.heal()?;
    let mut seen = Vec::new();
    wait_until("b1 has all of its share again, in steps", || {
        let (share, states) = shown(&scene, "n1", "b1")?;
        seen.extend(states.contains("starting").then_some(share));
        Ok(share > 30.0 && states == BTreeSet::from(["alive".into()]))
    })?;
    println!("shares of b1, which starts slowly: {seen:?}");
    ensure!(seen.is_sorted() && seen.first().is_some_and(|first| *first < 15.0), "{seen:?}");
    let levels: BTreeSet<u64> = seen.iter().map(|share| *share as u64).collect();
    ensure!(levels.len() >= 4, "too few steps: {seen:?}");
    scene.nothing_was_dropped()
}

/// The share that a backend's pools give it on the average, and how it stands in them.
fn shown(scene: &Scene, node: &str, name: &str) -> Result<(f64, BTreeSet<String>)> {
    let those: Vec<Backend> = backends(scene, node)?.into_iter().filter(|backend| backend.name == name).collect();
    let states = those.iter().filter_map(|backend| Some(backend.health.as_ref()?.state.clone())).collect();
    Ok((those.iter().map(|backend| backend.share).sum::<f64>() / those.len() as f64, states))
}

/// Alone and in a cluster, where that is agreed on.
#[test]
fn all_of_a_pool_is_used_when_too_little_of_it_is_healthy() -> Result<()> {
    [("panic", 1), ("panics", 3)].into_iter().try_for_each(|(name, nodes)| all_is_used_in_a_panic(&up(name, nodes)?))
}

fn all_is_used_in_a_panic(scene: &Scene) -> Result<()> {
    scene.lab.unplug("b1")?;
    wait_for_rows(scene, &["b2", "b3"])?;
    scene.lab.unplug("b2")?;
    wait_for_rows(scene, &["b1", "b2", "b3"])?;
    // The tables go by what was agreed on a moment before it is told.
    wait_until("the log says it loudly", || Ok(scene.lab.process("n1-agent")?.log_tail().contains("PANIC")))?;
    wait_until("the journal names it", || Ok(scene.done("n1", &["incidents"])?.contains("PANIC: 33 % of pool")))?;
    wait_until("packets and `get services` see it", || {
        Ok(scene.done("n1", &["get", "services"])?.contains("(PANIC)"))
    })?;
    for backend in backends(scene, "n1")? {
        let health = backend.health.as_ref().context("the agent knows of backends")?;
        let expected = if backend.name == "b3" { "alive" } else { "panic" };
        ensure!(health.state == expected && health.why.is_some() == (expected == "panic"), "{backend:?}");
    }
    scene.lab.heal()?;
    wait_for_paths(scene, "b1", 3).context("b1 is back")?;
    wait_for_paths(scene, "b2", 3).context("b2 is back")?;
    wait_until("it is over", || Ok(!scene.done("n1", &["get", "services"])?.contains("(PANIC)")))?;
    all_answered(&requests(scene)?)
}

/// What becomes of a dead backend's flows, pool by pool: of each affinity and family both.
const ON_DEATH: [&str; 8] = ["rehash", "hold", "reset", "reset", "reset", "reset", "hold", "rehash"];

/// The VIPs of pools of which `is_meant` says so.
fn targets_of(scene: &Scene, port: u16, is_meant: impl Fn(&str) -> bool) -> Vec<SocketAddr> {
    targets(&scene.config, port)
        .into_iter()
        .zip(ON_DEATH)
        .filter(|(_, fate)| is_meant(fate))
        .map(|(to, _)| to)
        .collect()
}

#[test]
fn flows_of_a_dead_backend_stay_go_to_others_or_are_reset() -> Result<()> {
    let topology = Topology { nodes: 2, backends: 3, between: true, ..Topology::for_test("fates") };
    let mut config = every_kind(&topology, &["ipip", "gue"]).with_fabrics(&topology);
    config.beats = Some("50ms x 3".into());
    config.pool.iter_mut().zip(ON_DEATH).for_each(|(pool, fate)| pool.health.on_death = Some(fate.into()));
    let scene = Scene::up(&topology, config)?;
    for backend in ["b1", "b2", "b3"] {
        wait_for_paths(&scene, backend, 3)?;
    }
    let stream = |targets: &[SocketAddr]| scene.lab.client().run(|| Stream::new(400, targets, 48).start());
    let moves = stream(&targets_of(&scene, ECHO_PORT, |fate| fate != "hold"))??;
    let stays = stream(&targets_of(&scene, ECHO_PORT, |fate| fate == "hold"))??;
    let web = targets_of(&scene, HTTP_PORT, |fate| fate == "reset");
    let long = scene.lab.client().run(|| LongConnections::open(&web, 48, Duration::from_millis(50), PATIENCE))??;
    let lately = Duration::from_millis(500);
    // Before that the time since the stream began would count as an answer's.
    let answered = |stream: &Streaming| stream.elapsed() > lately * 2 && stream.silence() < lately;
    wait_until("all flows are answered", || Ok(answered(&moves) && answered(&stays)))?;

    scene.lab.unplug("b1")?;
    wait_for_rows(&scene, &["b2", "b3"])?;
    wait_until("datagrams go to others", || Ok(answered(&moves)))?;
    ensure!(!answered(&stays), "flows that are to stay went to others too");
    // Each connection ends by what it waits for: an answer, or a reset.
    let long = long.finish();
    println!("connections: {long:#?}");
    let on_dead = long.backends.get("b1").copied().unwrap_or_default();
    let told = long.errors.iter().filter(|error| error.contains("Connection reset by peer")).count() as u64;
    ensure!(on_dead > 0 && long.broken == on_dead && told == on_dead && long.wrong == 0, "{long:#?}");
    let mut severed = 0;
    for node in scene.lab.nodes() {
        severed += scene.count(&node, Reason::NoteSevered)?;
    }
    ensure!(severed >= on_dead, "{severed} resets for {on_dead} connections: others sent them");
    let load = requests(&scene)?;
    all_answered(&load).context("who connects anew")?;
    ensure!(names(&load) == BTreeSet::from(["b2", "b3"]), "{load:#?}");

    scene.lab.heal()?;
    wait_for_rows(&scene, &["b1", "b2", "b3"])?;
    wait_until("flows that stayed go on", || Ok(answered(&stays) && answered(&moves)))?;
    let (moves, stays) = (moves.finish()?, stays.finish()?);
    ensure!(stays.moved == 0 && stays.wrong == 0, "{stays:#?}");
    ensure!(moves.moved > 0 && moves.wrong == 0, "{moves:#?}");
    Ok(())
}

/// New connections to all VIPs, and the share of them that b1 answered.
fn share_of_b1(scene: &Scene) -> Result<f64> {
    let load = requests(scene)?;
    all_answered(&load)?;
    let answers = |name: &str| load.backends.get(name).copied().unwrap_or_default() as f64;
    Ok(answers("b1") / (answers("b1") + answers("b2")))
}

#[test]
fn a_backend_that_comes_back_gets_its_share_step_by_step() -> Result<()> {
    let topology = Topology { nodes: 2, backends: 2, between: true, ..Topology::for_test("warm") };
    let mut config = every_kind(&topology, &["ipip"]).with_fabrics(&topology);
    config.beats = Some("50ms x 3".into());
    config.pool.iter_mut().for_each(|pool| pool.health.slow_start = Some("16s".into()));
    let scene = Scene::up(&topology, config)?;
    ["b1", "b2"].iter().try_for_each(|backend| wait_for_paths(&scene, backend, 3))?;
    scene.lab.unplug("b1")?;
    wait_for_rows(&scene, &["b2"])?;
    scene.lab.heal()?;
    wait_for_rows(&scene, &["b1", "b2"])?;
    // What the tables give it, before and after, and what clients find meanwhile.
    let mut seen: Vec<(f64, f64, f64)> = Vec::new();
    let shown = |node: &str| shown(&scene, node, "b1");
    wait_until("it has all of its share again", || {
        let (before, states) = shown("n1")?;
        let found = share_of_b1(&scene)?;
        let (after, _) = shown("n1")?;
        ensure!(before > 45.0 || states.contains("starting"), "{before} % and {states:?}");
        seen.push((before, after, found * 100.0));
        Ok(before > 45.0 && states == BTreeSet::from(["alive".to_owned()]))
    })?;
    println!("share by the tables before and after, and by new connections: {seen:?}");
    ensure!(seen.iter().map(|(before, ..)| *before).is_sorted(), "it fell: {seen:?}");
    let levels = seen.iter().map(|(before, ..)| *before as u64).collect::<BTreeSet<_>>();
    ensure!(levels.len() >= 5, "too few steps: {seen:?}");
    let first = seen.iter().filter(|(_, after, _)| *after < 25.0).map(|(.., found)| *found).collect::<Vec<_>>();
    ensure!(!first.is_empty() && first.iter().all(|found| *found < 38.0), "too many at first: {seen:?}");
    // 200 connections, of which half are due: fewer than 70 come once in a hundred thousand times.
    let whole = share_of_b1(&scene)?;
    ensure!((0.35..0.65).contains(&whole), "{whole}");
    for node in scene.lab.nodes() {
        wait_until("every node has the same", || Ok((shown(&node)?.0 - 50.0).abs() < 1.0))?;
    }
    Ok(())
}
