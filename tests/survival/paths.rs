//! Paths that die under traffic: each backend is reached over fabric A, fabric B and the segment of all.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::Value;
use xtask::lab::{Between, Config, Place, Spoil, Topology, client_addresses};
use xtask::traffic::{ECHO_PORT, HTTP_PORT, LongConnections, Stream};

use crate::scene::{PATIENCE, Scene, every_kind, pool_of, targets, wait_until};
use crate::told::{Path, paths};

const CONNECTIONS: usize = 200;
const PER_SECOND: u32 = 2000;
const FLOWS: usize = 32;

/// What `why` says of a flow's way.
#[derive(Debug, Deserialize)]
struct Why {
    backend: Option<String>,
    path: Option<u8>,
    path_why: Option<String>,
}

fn up(name: &str, modes: &[&str]) -> Result<Scene> {
    let scene = prepared(name, modes)?;
    scene.lab.start_agents()?;
    Ok(scene)
}

/// The same, where nothing redirects yet.
fn prepared(name: &str, modes: &[&str]) -> Result<Scene> {
    let topology = Topology { nodes: 2, backends: 2, between: true, ..Topology::for_test(name) };
    let mut config = Config { beats: Some("fast".into()), ..every_kind(&topology, modes).with_fabrics(&topology) };
    // These are about paths alone: no backend is taken out of its pool.
    config.pool.iter_mut().for_each(|pool| pool.health.panic = Some(100));
    Scene::without_agents(&topology, config)
}

/// Waits until on every node the paths of these ranks are alive, and no others, by the agent's words and by the bits.
fn wait_for_ranks(scene: &Scene, ranks: &[u8], of: &str) -> Result<()> {
    for node in scene.lab.nodes() {
        wait_until(&format!("at {node} paths {ranks:?} of {of} are alive, and no others"), || {
            let right = |path: &Path| {
                let state = path.health.as_ref().map_or("", |health| health.state.as_str());
                let expected = ranks.contains(&path.rank);
                path.alive == expected && (state == "alive") == expected
            };
            Ok(paths(scene, &node)?.iter().filter(|path| of.is_empty() || path.backend == of).all(right))
        })?;
    }
    Ok(())
}

/// Packets that each rank of paths has taken, on all nodes.
fn taken(scene: &Scene) -> Result<[u64; 3]> {
    let mut taken = [0; 3];
    for node in scene.lab.nodes() {
        for path in paths(scene, &node)? {
            taken[usize::from(path.rank) - 1] += path.packets;
        }
    }
    Ok(taken)
}

fn why(scene: &Scene, vip: IpAddr, port: u16) -> Result<Why> {
    let source = SocketAddr::new(client_addresses(vip)[0], port).to_string();
    let target = SocketAddr::new(vip, HTTP_PORT).to_string();
    Ok(serde_json::from_str(&scene.done("n1", &["why", "tcp", &source, &target, "-o", "json"])?)?)
}

#[test]
fn connections_go_over_the_other_fabric_when_one_is_cut_and_back_without_loss() -> Result<()> {
    let scene = up("fabrics", &["l2", "ipip", "gue"])?;
    let (web, echo) = (targets(&scene.config, HTTP_PORT), targets(&scene.config, ECHO_PORT));
    wait_for_ranks(&scene, &[1, 2, 3], "")?;
    for path in paths(&scene, "n1")? {
        let beats = path.health.as_ref().and_then(|health| health.beats.as_ref());
        ensure!(beats.is_some_and(|beats| beats.answered > 0), "no beat of it was answered: {path:?}");
    }
    let fabric = Place::fabric(Between::A);
    let long =
        scene.lab.client().run(|| LongConnections::open(&web, CONNECTIONS, Duration::from_millis(50), PATIENCE))??;
    let all_go_on = |what: &str| {
        let lines = long.lines();
        wait_until(what, || Ok(long.lines() > lines + 4 * CONNECTIONS as u64))
    };
    for cut in ["silently", "with its carrier"] {
        match cut {
            "silently" => scene.lab.cut(&fabric)?,
            _ => scene.lab.unlink(&fabric)?,
        };
        wait_for_ranks(&scene, &[2, 3], "")?;
        let before = taken(&scene)?;
        all_go_on("connections go on over fabric B")?;
        let after = taken(&scene)?;
        ensure!(after[0] == before[0] && after[1] > before[1] && after[2] == before[2], "{cut}: {before:?} {after:?}");
        for vip in web.iter().map(SocketAddr::ip) {
            let said = why(&scene, vip, 5000)?;
            let right = said.path == Some(2) && said.path_why.as_deref() == Some("rank 2 is the first that is alive");
            ensure!(right, "{} cut {cut}: {said:?}", pool_of(&scene.config, vip));
        }
        // From before the fabric is there again until all have gone back.
        let stream = scene.lab.client().run(|| Stream::new(PER_SECOND, &echo, FLOWS).start())??;
        thread::sleep(Duration::from_millis(300));
        match cut {
            "silently" => drop(scene.lab.mend(&fabric)?),
            _ => scene.lab.heal()?,
        }
        wait_for_ranks(&scene, &[1, 2, 3], "")?;
        thread::sleep(Duration::from_millis(300));
        let stream = stream.finish()?;
        ensure!(stream.lost == 0 && stream.wrong == 0 && stream.moved == 0, "on the way back: {stream:#?}");
        let before = taken(&scene)?;
        all_go_on("connections go on over fabric A")?;
        let after = taken(&scene)?;
        ensure!(after[0] > before[0] && after[1] == before[1] && after[2] == before[2], "{before:?} {after:?}");
    }
    let long = long.finish();
    ensure!(long.opened == CONNECTIONS as u64 && long.broken == 0 && long.wrong == 0, "{long:#?}");
    Ok(())
}

/// Paths that are dead stay so whoever is told of it, and so do those that die while nobody is.
#[test]
fn an_agent_that_starts_anew_revives_no_dead_path() -> Result<()> {
    const WATCHED: Duration = Duration::from_millis(1500);
    let scene = up("anew", &["l2", "ipip"])?;
    let web = targets(&scene.config, HTTP_PORT);
    wait_for_ranks(&scene, &[1, 2, 3], "")?;
    let fabric = Place::fabric(Between::A);
    let long =
        scene.lab.client().run(|| LongConnections::open(&web, CONNECTIONS, Duration::from_millis(50), PATIENCE))??;
    for (silently, watched) in [(true, true), (false, true), (true, false), (false, false)] {
        let what = format!("cut silently: {silently}, while an agent ran: {watched}");
        let cut = || if silently { scene.lab.cut(&fabric) } else { scene.lab.unlink(&fabric) };
        if watched {
            cut()?;
            wait_for_ranks(&scene, &[2, 3], "")?;
        }
        scene.lab.kill_agent("n1")?;
        if !watched {
            cut()?;
        }
        let before = first_of(&scene)?;
        scene.lab.start_agent("n1")?;
        if !watched {
            wait_for_ranks(&scene, &[2, 3], "").with_context(|| what.clone())?;
        }
        let (began, settled) = (Instant::now(), first_of(&scene)?);
        ensure!(!watched || settled == before, "{what}: while the agent started: {before:?} {settled:?}");
        while began.elapsed() < WATCHED {
            ensure!(first_of(&scene)? == settled, "{what}: packets went into the cut fabric");
        }
        let lines = long.lines();
        wait_until("connections go on over fabric B", || Ok(long.lines() > lines + 4 * CONNECTIONS as u64))?;
        wait_for_ranks(&scene, &[2, 3], "").with_context(|| what.clone())?;
        match silently {
            true => drop(scene.lab.mend(&fabric)?),
            false => scene.lab.heal()?,
        }
        wait_for_ranks(&scene, &[1, 2, 3], "").with_context(|| what.clone())?;
    }
    let long = long.finish();
    ensure!(long.opened == CONNECTIONS as u64 && long.broken == 0 && long.wrong == 0, "{long:#?}");
    Ok(())
}

/// Of n1's paths of rank 1: packets that went by them, and whether one is alive.
fn first_of(scene: &Scene) -> Result<(u64, bool)> {
    let first: Vec<Path> = paths(scene, "n1")?.into_iter().filter(|path| path.rank == 1).collect();
    Ok((first.iter().map(|path| path.packets).sum(), first.iter().any(|path| path.alive)))
}

#[test]
fn packets_leave_by_the_least_bad_when_no_path_is_alive() -> Result<()> {
    let scene = up("leastbad", &["l2", "ipip"])?;
    let web = targets(&scene.config, HTTP_PORT);
    wait_for_ranks(&scene, &[1, 2, 3], "")?;
    let l2: Vec<SocketAddr> =
        web.into_iter().filter(|target| pool_of(&scene.config, target.ip()).starts_with("l2")).collect();
    let long = scene.lab.client().run(|| LongConnections::open(&l2, 24, Duration::from_millis(50), PATIENCE))??;
    // Its far ends answer no more, and yet it serves what needs no tunnel.
    scene.lab.process("b1-decap")?.stop()?;
    wait_for_ranks(&scene, &[], "b1")?;
    wait_for_ranks(&scene, &[1, 2, 3], "b2")?;
    let silent = paths(&scene, "n1")?.into_iter().find(|path| path.backend == "b1").context("b1 has paths")?;
    let says = silent.health.and_then(|health| health.why);
    ensure!(says.as_deref() == Some("its beats went unanswered"), "{says:?}");
    let lines = long.lines();
    wait_until("connections go on by the least bad", || Ok(long.lines() > lines + 400))?;
    let mut seen = BTreeSet::new();
    for port in 5000..5032 {
        let said = why(&scene, l2[0].ip(), port)?;
        let alive = "the first, and alive";
        let bad = "none is alive: the first is the least bad";
        let expected = if said.backend.as_deref() == Some("b1") { bad } else { alive };
        ensure!(said.path == Some(1) && said.path_why.as_deref() == Some(expected), "{said:?}");
        seen.insert(said.backend);
    }
    ensure!(seen.len() == 2, "both backends are asked for: {seen:?}");
    // Nothing can leave by the first any more.
    scene.lab.unlink(&Place::fabric(Between::A))?;
    wait_for_ranks(&scene, &[2, 3], "b2")?;
    wait_until("connections go on over fabric B", || {
        let (lines, all) = (long.lines(), paths(&scene, "n1")?);
        thread::sleep(Duration::from_millis(200));
        let later = paths(&scene, "n1")?;
        let moved = |rank| {
            let packets =
                |all: &[Path]| all.iter().filter(|path| path.rank == rank).map(|path| path.packets).sum::<u64>();
            packets(&later) - packets(&all)
        };
        Ok(long.lines() > lines && moved(1) == 0 && moved(2) > 0)
    })?;
    for port in 5000..5032 {
        let said = why(&scene, l2[0].ip(), port)?;
        let bad = "none is alive: rank 2 is the first whose port has a carrier";
        let expected = if said.backend.as_deref() == Some("b1") { bad } else { "rank 2 is the first that is alive" };
        ensure!(said.path == Some(2) && said.path_why.as_deref() == Some(expected), "{said:?}");
    }
    let lines = long.lines();
    wait_until("connections go on by the least bad", || Ok(long.lines() > lines + 400))?;
    scene.lab.heal()?;
    let long = long.finish();
    ensure!(long.broken == 0 && long.wrong == 0, "{long:#?}");
    scene.lab.start_decaps()?;
    wait_for_ranks(&scene, &[1, 2, 3], "")
}

/// A node whose way over fabric A leads nowhere says so, and loses part of a quarter of its score.
fn next_hops_that_nobody_reaches_are_named(scene: &Scene) -> Result<()> {
    scene.lab.cut(&Place::fabric(Between::A))?;
    wait_until("n1 names the next hops that it does not reach", || {
        let (figure, health) = unresolved(scene, "n1")?;
        let words = figure["words"].as_str().unwrap_or_default();
        let network = health["areas"].as_array().and_then(|areas| areas.iter().find(|area| area["area"] == "network"));
        let points = network.and_then(|network| network["points"].as_u64()).context("the network's points")?;
        let is_named = words.contains("by eth1") && !words.contains("by eth2");
        Ok(is_named && figure["verdict"] == "poor" && (10..25).contains(&points))
    })?;
    let (figure, health) = unresolved(scene, "n1")?;
    println!("of {}: {}", health["score"], figure["words"]);
    let value = |name: &str| {
        let figure = health["figures"].as_array()?.iter().find(|figure| figure["name"] == name)?;
        figure["value"].as_f64()
    };
    ensure!(value("carrier-%") == Some(100.0) && value("xdp-attached-%") == Some(100.0), "{health:#}");
    ensure!(value("receive-drops-%").is_some(), "{health:#}");
    scene.lab.mend(&Place::fabric(Between::A))?;
    wait_until("n1 reaches all of them", || Ok(unresolved(scene, "n1")?.0["value"] == 0.0))
}

/// Has a node's kernel ask its neighbours by fabric A every second, which it does once in a minute by itself.
fn doubt_neighbours(scene: &Scene, node: &str) -> Result<()> {
    let settings = [("base_reachable_time_ms", 1000), ("delay_first_probe_time", 1), ("interval_probe_time_ms", 500)];
    scene.lab.host(node)?.run(|| {
        for family in ["ipv4", "ipv6"] {
            for (key, value) in settings {
                let path = format!("/proc/sys/net/{family}/neigh/{}/{key}", Between::A.interface());
                fs::write(&path, value.to_string()).with_context(|| path.clone())?;
            }
        }
        Ok(())
    })?
}

/// What a node's health says of unresolved next hops, and all of it.
fn unresolved(scene: &Scene, node: &str) -> Result<(Value, Value)> {
    let health: Value = serde_json::from_str(&scene.done(node, &["get", "health", "-o", "json"])?)?;
    let figures = health["figures"].as_array().context("figures")?;
    let figure = figures.iter().find(|figure| figure["name"] == "next-hops-unresolved-%").context("next hops")?;
    Ok((figure.clone(), health))
}

#[test]
fn spoilt_frames_are_no_answers_and_a_few_lost_ones_are_no_death() -> Result<()> {
    let scene = prepared("spoilt", &["l2", "ipip"])?;
    doubt_neighbours(&scene, "n1")?;
    scene.lab.start_agents()?;
    wait_for_ranks(&scene, &[1, 2, 3], "")?;
    scene.lab.spoil(&Place::fabric(Between::A), Spoil::Corrupt(100.0))?;
    wait_for_ranks(&scene, &[2, 3], "")?;
    scene.lab.heal()?;
    wait_for_ranks(&scene, &[1, 2, 3], "")?;
    scene.lab.spoil(&Place::fabric(Between::B), Spoil::Loss(1.0))?;
    thread::sleep(Duration::from_secs(2));
    let web = targets(&scene.config, HTTP_PORT);
    let long = scene.lab.client().run(|| LongConnections::open(&web, 8, Duration::from_millis(50), PATIENCE))??;
    wait_for_ranks(&scene, &[1, 2, 3], "")?;
    ensure!(long.finish().broken == 0, "connections over fabric A");
    next_hops_that_nobody_reaches_are_named(&scene)
}
