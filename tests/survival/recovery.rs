//! A cluster whose majority is lost for good, and one that begins anew from a backup.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use xtask::lab::{Config, Topology};

use crate::agreement::{is_one_table, nodes, standing};
use crate::disk::{all_go_by_it, change, own};
use crate::kills::{Traffic, nothing_broke};
use crate::scene::{Scene, every_kind, wait_until};

const SURE: &str = "--yes-they-are-lost-for-good";

fn cluster(name: &str) -> Result<Scene> {
    let topology = Topology::for_test(name);
    let config = every_kind(&topology, &["l2", "ipip"]).with_holders();
    let scene = Scene::without_agents(&topology, Config { down_after: Some("2s".into()), ..config })?;
    scene.lab.on_link()?;
    scene.lab.start_agents()?;
    Ok(scene)
}

fn backup(scene: &Scene, node: &str) -> Result<(String, Value)> {
    let file = scene.lab.directory().join(format!("{node}.backup"));
    let name = file.display().to_string();
    let says = scene.done(node, &["backup", &name])?;
    ensure!(says.contains("cluster 7, version"), "{says}");
    let kept = serde_json::from_str(&fs::read_to_string(&file)?)?;
    Ok((name, kept))
}

#[test]
fn one_node_goes_on_without_a_majority_that_is_lost_and_takes_it_in_again() -> Result<()> {
    let mut scene = cluster("recover")?;
    change(&mut scene, "n2", 71)?;
    let refused = scene.refused("n1", &["recover", "--give-up", "2", SURE])?;
    ensure!(
        refused.contains("a majority of the voters answers") && refused.contains("nothing was changed"),
        "{refused}"
    );
    scene.lab.kill("n2")?;
    scene.lab.kill("n3")?;
    wait_until("n1 knows that it has no majority", || Ok(own(&scene, "n1")?["quorum"] == false))?;

    let traffic = Traffic::start(&scene)?;
    wait_until("answers come to every flow", || Ok(traffic.flows()))?;
    let file = scene.lab.config_file("n1").display().to_string();
    scene.config.timeouts.insert("udp".into(), "72s".into());
    scene.lab.configure(&scene.config)?;
    let refused = scene.refused("n1", &["apply", &file])?;
    ensure!(refused.contains("no majority"), "{refused}");
    let warned = scene.refused("n1", &["recover", "--give-up", "2", "--give-up", "3"])?;
    for part in ["nothing was changed", "ONLY VOTER", "LOST", "TWO CLUSTERS", SURE] {
        ensure!(warned.contains(part), "`{part}` is not in: {warned}");
    }
    let refused = scene.refused("n1", &["recover", "--give-up", "2", SURE])?;
    ensure!(refused.contains("node 3 is a member, does not answer"), "{refused}");
    let before = scene.maps("n1")?.slots()?.len();
    let says = scene.done("n1", &["recover", "--give-up", "2", "--give-up", "3", SURE])?;
    ensure!(says.contains("only voter"), "{says}");
    let says = scene.done("n1", &["apply", &file])?;
    ensure!(says.contains("durable on 1 of 1"), "{says}");
    wait_until("n1 owns all slots", || {
        let slots = scene.maps("n1")?.slots()?;
        Ok(slots.len() == before && slots.iter().all(|slot| slot.ranks == [1, 0, 0, 0]))
    })?;
    let told = scene.done("n1", &["incidents"])?;
    ensure!(told.contains("recovered by an operator"), "{told}");

    // Those that were given up come back with their old logs, a majority of before.
    scene.lab.heal()?;
    for node in ["n2", "n3"] {
        wait_until(&format!("{node} gives its log up"), || Ok(own(&scene, node)?["log"]["given_up"] == 1))?;
    }
    scene.lab.settled()?;
    let all = scene.lab.nodes();
    wait_until("one table, and the change of after", || Ok(all_go_by_it(&scene, &all)? && is_one_table(&scene)?))?;
    let says = change(&mut scene, "n3", 73)?;
    ensure!(says.contains("of 3"), "{says}");
    let told = scene.done("n2", &["incidents"])?;
    ensure!(told.contains("an operator has recovered the cluster on node 1"), "{told}");
    let (stream, long) = traffic.finish()?;
    nothing_broke(&long)?;
    ensure!(stream.lost == 0 && stream.wrong == 0 && stream.moved == 0, "{stream:#?}");
    Ok(())
}

#[test]
fn a_cluster_begins_anew_with_what_was_kept() -> Result<()> {
    let mut scene = cluster("restore")?;
    change(&mut scene, "n1", 81)?;
    let (file, kept) = backup(&scene, "n2")?;
    let version = kept["backup"]["version"].as_u64().context("a version")?;
    let text = kept["backup"]["text"].as_str().context("a text")?;
    ensure!(version >= 2 && text.contains("udp = \"81s\""), "{kept}");
    change(&mut scene, "n1", 82)?;
    let refused = scene.refused("n1", &["restore", &file])?;
    ensure!(refused.contains("a cluster begins once"), "{refused}");

    // All of it is lost, and the files of today say something else.
    let nodes_ = scene.lab.nodes();
    for node in &nodes_ {
        scene.lab.process(&format!("{node}-agent"))?.stop()?;
        scene.done(node, &["unload"])?;
        let data = scene.lab.config_file(node).with_file_name("data");
        fs::remove_dir_all(&data)?;
        fs::create_dir(&data)?;
    }
    for node in &nodes_ {
        scene.lab.start_agent(node)?;
    }
    let damaged = format!("{file}.damaged");
    fs::write(&damaged, fs::read_to_string(&file)?.replace("81s", "83s"))?;
    let refused = scene.refused("n2", &["restore", &damaged])?;
    ensure!(refused.contains("damaged or was edited"), "{refused}");
    let says = scene.done("n2", &["restore", &file])?;
    ensure!(says.contains(&format!("version {version} of the backup")), "{says}");
    for node in &nodes_ {
        wait_until(&format!("{node} has joined"), || {
            let all = nodes(&scene, node)?;
            let votes = |one: &&Value| one["agreed"]["seat"] == "voter" && one["agreed"]["standing"] == "up";
            Ok(all.iter().filter(votes).count() == 3)
        })?;
    }
    // What was kept is in force, and not what the files say.
    scene.config.timeouts.insert("udp".into(), "81s".into());
    scene.lab.configure(&scene.config)?;
    wait_until("what was kept is in force", || Ok(all_go_by_it(&scene, &nodes_)? && is_one_table(&scene)?))?;
    let again: Vec<u64> = nodes_.iter().filter_map(|node| own(&scene, node).ok()?["version"].as_u64()).collect();
    ensure!(again.iter().all(|now| *now > version), "{again:?} after {version}");
    ensure!(standing(&scene, "n1", "n3")? == "up" && Path::new(&file).exists());
    let traffic = Traffic::start(&scene)?;
    std::thread::sleep(Duration::from_secs(1));
    let (stream, long) = traffic.finish()?;
    nothing_broke(&long)?;
    ensure!(stream.lost == 0, "{stream:#?}");
    Ok(())
}
