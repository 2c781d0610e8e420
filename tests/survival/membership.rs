//! A cluster that gets a node more, gives it a greater share, and loses it again, by the commands that operators have for
//! that, while clients are served.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Result, ensure};
use redirector_ebpf::tables::Mark;
use serde_json::Value;
use xtask::lab::{Topology, VIPS4, VIPS6};

use crate::agreement::{is_one_table_of, nodes};
use crate::disk::all_go_by_it;
use crate::kills::{Traffic, nothing_broke};
use crate::scene::{Scene, every_kind, wait_until};

/// As they begin; `n4` comes and goes.
const FIRST: [&str; 3] = ["n1", "n2", "n3"];
const SLOTS: u64 = 16384;

/// The members by id, with their weights.
fn of_weights(weights: &[u32]) -> BTreeMap<u8, u32> {
    (1..).zip(weights.iter().copied()).collect()
}

/// The first nodes of the lab begin a cluster, by the commands of the README.
fn begin(scene: &Scene) -> Result<()> {
    FIRST.iter().try_for_each(|node| scene.lab.start_agent(node).map(drop))?;
    scene.done("n1", &["bootstrap"])?;
    for node in &FIRST[1..] {
        let says = scene.done(node, &["join"])?;
        ensure!(says.starts_with(&format!("{node} is a ")), "{says}");
    }
    Ok(())
}

/// Gives the members these weights, by the file of one node that is applied at another's.
fn weigh(scene: &mut Scene, at: &str, weights: &[u32]) -> Result<()> {
    scene.config.members = of_weights(weights);
    scene.lab.configure(&scene.config)?;
    let file = scene.lab.config_file(at).display().to_string();
    let says = scene.done(at, &["apply", &file])?;
    ensure!(says.contains("durable on "), "{says}");
    Ok(())
}

/// What keeps the nodes of these weights from being the cluster: all of them up and voters, each with its share of the slots,
/// by one table, and redundant.
fn missing(scene: &Scene, names: &[String], weights: &[u32]) -> Result<Option<String>> {
    let all: u32 = weights.iter().sum();
    for by in names {
        let seen = nodes(scene, by)?;
        let said: Vec<Value> = scene.lab.ask(by, &["get", "owners"])?;
        if seen.len() != weights.len() || said.iter().filter(|one| one["primary"] != 0).count() != weights.len() {
            return Ok(Some(format!("{by} knows of other nodes: {seen:?}, {said:?}")));
        }
        if let Some(away) = seen.iter().find(|node| node["alive"] != true) {
            return Ok(Some(format!("{by} does not see alive: {away}")));
        }
        for ((node, weight), name) in seen.iter().zip(weights).zip(names) {
            let share = SLOTS * u64::from(*weight) / u64::from(all);
            let is_share = |slots: &Value| slots.as_u64().is_some_and(|slots| slots.abs_diff(share) <= share / 20);
            let is_member = node["agreed"]["standing"] == "up" && node["agreed"]["seat"] == "voter";
            let owned = said.iter().find(|one| one["node"] == *name).map_or(&Value::Null, |one| &one["primary"]);
            if !is_member || !is_share(owned) || node["primary_slots"] != *owned {
                return Ok(Some(format!("{by}: {name} has {owned} of {share} slots: {node}")));
            }
        }
        let own = seen.iter().find(|one| one["self"] == true).map_or(&Value::Null, |own| &own["agreement"]);
        if own["redundant"] != true {
            return Ok(Some(format!("{by} is not redundant: {own}")));
        }
    }
    let is_one = is_one_table_of(scene, names)? && all_go_by_it(scene, names)?;
    Ok((!is_one).then(|| "they go by several tables or files".to_owned()))
}

fn becomes(scene: &Scene, weights: &[u32]) -> Result<()> {
    let names: Vec<String> = scene.lab.nodes().into_iter().take(weights.len()).collect();
    let mut last = None;
    let waited = wait_until(&format!("{names:?} of weights {weights:?} are the cluster"), || {
        last = missing(scene, &names, weights)?;
        Ok(last.is_none())
    });
    waited.map_err(|error| error.context(last.unwrap_or_default()))
}

fn enter_at(scene: &Scene, nodes: &[&str]) -> Result<()> {
    [VIPS4, VIPS6].iter().try_for_each(|vips| scene.lab.steer(vips, nodes))
}

#[test]
fn a_node_joins_gets_another_weight_and_leaves_under_traffic() -> Result<()> {
    let topology = Topology { nodes: 4, ..Topology::for_test("members") };
    let mut config = every_kind(&topology, &["l2", "ipip"]);
    config.members = of_weights(&[1, 1, 1]);
    let mut scene = Scene::without_agents(&topology, config)?;
    enter_at(&scene, &FIRST)?;
    begin(&scene)?;
    becomes(&scene, &[1, 1, 1])?;
    // What is lost while nodes look for the next hops of a cluster that has just begun is none of the change's.
    let first = Traffic::start(&scene)?;
    wait_until("answers come to every flow", || Ok(first.goes_on() && first.flows()))?;
    nothing_broke(&first.finish()?.1)?;
    let traffic = Traffic::start(&scene)?;
    wait_until("connections are known to their owners", || Ok(traffic.goes_on()))?;

    weigh(&mut scene, "n2", &[1, 1, 1, 1])?;
    scene.lab.start_agent("n4")?;
    let says = scene.done("n4", &["join"])?;
    ensure!(says.starts_with("n4 is a "), "{says}");
    becomes(&scene, &[1, 1, 1, 1])?;
    enter_at(&scene, &["n1", "n2", "n3", "n4"])?;
    wait_until("answers come to every flow", || Ok(traffic.flows()))?;

    weigh(&mut scene, "n4", &[1, 1, 1, 2])?;
    becomes(&scene, &[1, 1, 1, 2])?;
    wait_until("answers come to every flow", || Ok(traffic.flows()))?;

    enter_at(&scene, &FIRST)?;
    // The file of the node that goes stays as it is: one must name its own node.
    let file = scene.lab.config_file("n4");
    let own = fs::read(&file)?;
    weigh(&mut scene, "n1", &[1, 1, 1])?;
    fs::write(&file, own)?;
    let says = scene.done("n1", &["leave", "4"])?;
    ensure!(says.contains("node 4 is no member any more: durable on "), "{says}");
    becomes(&scene, &[1, 1, 1])?;
    scene.lab.process("n4-agent")?.stop()?;
    scene.done("n4", &["unload"])?;
    wait_until("answers come to every flow", || Ok(traffic.flows()))?;
    becomes(&scene, &[1, 1, 1])?;
    wait_until("nobody takes packets for n4's any more", || {
        FIRST.iter().try_fold(true, |all, node| {
            let marks = scene.maps(node)?.peer_macs.iter().collect::<Result<Vec<_>, _>>()?;
            Ok(all && marks.len() == 4 && marks.iter().all(|(_, mark)| Mark(*mark).sender() != 4))
        })
    })?;
    let (stream, long) = traffic.finish()?;
    nothing_broke(&long)?;
    ensure!(stream.lost == 0 && stream.wrong == 0 && stream.moved == 0, "{stream:#?}");
    Ok(())
}
