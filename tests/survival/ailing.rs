//! A node whose disk stops answering, or is full, hands everything over before it fails, and takes its part again when it
//! is well; nobody notices.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use xtask::lab::Topology;
use xtask::traffic::{Datagrams, ECHO_PORT, HTTP_PORT, Load, LongConnections};

use crate::disk::own;
use crate::scene::{PATIENCE, Scene, all_answered, every_kind, targets, wait_until};

/// A node as n1 sees it.
fn seen(scene: &Scene, name: &str) -> Result<Value> {
    let nodes: Vec<Value> = serde_json::from_str(&scene.done("n1", &["get", "nodes", "-o", "json"])?)?;
    nodes.into_iter().find(|node| node["name"] == name).with_context(|| format!("{name} is a node"))
}

fn has_handed_over(scene: &Scene) -> Result<bool> {
    let n3 = seen(scene, "n3")?;
    Ok(n3["state"] == "draining" && n3["health"].as_u64() < Some(80) && n3["primary_slots"] == 0)
}

fn has_its_share(scene: &Scene) -> Result<bool> {
    let (n2, n3) = (seen(scene, "n2")?, seen(scene, "n3")?);
    let slots = |node: &Value| node["primary_slots"].as_u64().unwrap_or(0);
    Ok(n3["state"] == "alive" && slots(&n3) > 0 && slots(&n3).abs_diff(slots(&n2)) < 10)
}

#[test]
fn a_node_without_a_disk_hands_over_and_comes_back() -> Result<()> {
    let topology = Topology::for_test("ailing");
    let mut config = every_kind(&topology, &["l2"]);
    config.more = "[health]\ndwell = \"500ms\"\n[shedding]\nsoftirq = false\n".into();
    let scene = Scene::without_agents(&topology, config)?;
    scene.lab.give_disk("n3")?;
    scene.lab.start_agents()?;
    let (client, stop) = (scene.lab.client(), AtomicBool::new(false));
    let (web, echo) = (targets(&scene.config, HTTP_PORT), targets(&scene.config, ECHO_PORT));
    let long = client.run(|| LongConnections::open(&web, 24, Duration::from_millis(50), PATIENCE))??;
    let datagrams = client.run(|| Datagrams::start(&echo, 8, Duration::from_millis(20)))??;
    let load = Load::new(web, 50, Duration::from_secs(600));
    let (result, load) = std::thread::scope(|scope| {
        let load = scope.spawn(|| client.run(|| load.run_until(&stop, |_, _| {})));
        let result = ails_and_recovers(&scene);
        stop.store(true, Ordering::Relaxed);
        (result, load.join())
    });
    result?;
    all_answered(&load.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?)?;
    let (long, datagrams) = (long.finish(), datagrams.finish());
    ensure!(long.broken == 0 && long.opened == 24, "{long:#?}");
    ensure!(datagrams.echoed == datagrams.sent && datagrams.wrong == 0, "{datagrams:?}");
    scene.nothing_was_dropped()
}

fn ails_and_recovers(scene: &Scene) -> Result<()> {
    wait_until("n3 has its share", || has_its_share(scene))?;
    scene.lab.freeze("n3")?;
    wait_until("n3, whose disk does not answer, has handed everything over", || has_handed_over(scene))?;
    let health: Value = serde_json::from_str(&scene.done("n3", &["get", "health", "-o", "json"])?)?;
    let figures = health["figures"].as_array().context("figures")?;
    let fsync = figures.iter().find(|figure| figure["name"] == "fsync-ms").context("a figure for the disk")?;
    ensure!(fsync["verdict"] == "bad" && health["hands_over"] == true, "{health:#}");
    wait_until("n3 says who waits for its disk", || {
        let told: Vec<Value> = serde_json::from_str(&scene.done("n3", &["get", "breakers", "-o", "json"])?)?;
        let waits = |name: &str| {
            let breaker = told.iter().find(|breaker| breaker["name"] == name);
            breaker.is_some_and(|breaker| breaker["last_failure"].as_str().is_some_and(|why| why.contains("come back")))
        };
        Ok(waits("data directory") && waits("storage probe"))
    })?;
    scene.lab.thaw("n3")?;
    wait_until("n3 is well and has its share again", || has_its_share(scene))?;
    wait_until("n3, whose disk is full, has handed everything over", || {
        scene.lab.fill("n3")?;
        has_handed_over(scene)
    })?;
    let health = scene.done("n3", &["get", "health"])?;
    ensure!(health.contains("storage fails") && health.contains("No space left"), "{health}");
    // An agent that starts on the full disk serves, and agrees with the others once there is room.
    scene.lab.process("n3-agent")?.kill()?;
    scene.lab.fill("n3")?;
    scene.lab.start_agent("n3")?;
    wait_until("n3 says that its disk takes no writes", || {
        scene.lab.fill("n3")?;
        Ok(own(scene, "n3")?["log"]["disk_failures"].as_u64() > Some(0))
    })?;
    println!("on a full disk: {}", own(scene, "n3")?["role"]);
    scene.lab.empty("n3")?;
    wait_until("n3 follows the others again", || Ok(own(scene, "n3")?["role"] == "follower"))?;
    ensure!(own(scene, "n3")?["log"]["reborn"] == 0, "n3 forgot who it was");
    wait_until("n3 is well and has its share again", || has_its_share(scene))
}
