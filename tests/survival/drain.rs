//! Nodes that are drained: what they own goes over to others, and nothing is lost, not even when they die then.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use xtask::lab::Topology;
use xtask::traffic::{ECHO_PORT, HTTP_PORT, LongConnections, Stream};

use crate::scene::{PATIENCE, Scene, every_kind, targets, wait_until};

const PER_SECOND: u32 = 2000;
const FLOWS: usize = 32;
const CONNECTIONS: usize = 64;
const VICTIM: &str = "n1";
const ID: u8 = 1;

/// The slots that name the node, at any rank or as the previous owner, in another one's map.
fn named(scene: &Scene, by: &str) -> Result<usize> {
    Ok(scene.maps(by)?.slots()?.iter().filter(|slot| slot.ranks.contains(&ID) || slot.previous == ID).count())
}

fn standing(scene: &Scene, by: &str) -> Result<String> {
    let nodes: Vec<Value> = serde_json::from_str(&scene.done(by, &["get", "nodes", "-o", "json"])?)?;
    let node = nodes.iter().find(|node| node["name"] == VICTIM).with_context(|| format!("{by} does not know it"))?;
    Ok(node["agreed"]["standing"].as_str().unwrap_or_default().to_owned())
}

#[test]
fn a_drained_node_may_die_and_come_back_and_nothing_is_lost() -> Result<()> {
    let topology = Topology::for_test("drain");
    let scene = Scene::without_agents(&topology, every_kind(&topology, &["l2", "ipip"]).with_holders())?;
    scene.lab.on_link()?;
    scene.lab.start_agents()?;
    let held = scene.lab.held(VICTIM)?;
    ensure!(!held.is_empty() && named(&scene, "n2")? > 0, "{VICTIM} has nothing to give away");
    let (web, echo) = (targets(&scene.config, HTTP_PORT), targets(&scene.config, ECHO_PORT));
    let client = scene.lab.client();
    let long = client.run(|| LongConnections::open(&web, CONNECTIONS, Duration::from_millis(50), PATIENCE))??;
    let stream = client.run(|| Stream::new(PER_SECOND, &echo, FLOWS).start())??;
    wait_until("answers come to every flow", || Ok(stream.silence() < Duration::from_millis(200)))?;

    let says = scene.done("n2", &["drain", VICTIM])?;
    ensure!(says.contains("node 1 is drained"), "{says}");
    for by in scene.lab.nodes() {
        wait_until(&format!("{by} knows that it is drained"), || Ok(standing(&scene, &by)? == "drained"))?;
        wait_until(&format!("no slot names it on {by}"), || Ok(named(&scene, &by)? == 0))?;
    }
    ensure!(scene.lab.held(VICTIM)?.is_empty(), "it holds {:?} yet", scene.lab.held(VICTIM)?);
    for vip in &held {
        ensure!(scene.lab.holders(*vip)?.len() == 1, "{vip} is held by {:?}", scene.lab.holders(*vip)?);
    }
    scene.lab.kill(VICTIM)?;
    thread::sleep(Duration::from_secs(1));
    let drained = stream.finish()?;
    ensure!(drained.lost == 0 && drained.moved == 0 && drained.wrong == 0, "draining or the death lost: {drained:#?}");

    let stream = client.run(|| Stream::new(PER_SECOND, &echo, FLOWS).start())??;
    scene.lab.heal()?;
    wait_until("it is back, and drained still", || Ok(standing(&scene, "n2")? == "drained"))?;
    ensure!(named(&scene, "n2")? == 0, "it owns something that it was not given");
    scene.lab.undrain(VICTIM)?;
    scene.lab.whole()?;
    let back = stream.finish()?;
    ensure!(back.lost == 0 && back.moved == 0 && back.wrong == 0, "the return lost: {back:#?}");
    let long = long.finish();
    ensure!(long.broken == 0 && long.wrong == 0 && long.lines > long.opened, "{long:#?}");
    scene.nothing_was_dropped()
}
