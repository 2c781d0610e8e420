//! A node's disk on which bits flip.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use redirector::consensus::frame::{self, Kind};
use redirector::consensus::wire::{Entry, Snapshot};
use serde_json::Value;
use xtask::lab::{Config, Topology};

use crate::agreement::is_one_table;
use crate::kills::{Traffic, nothing_broke};
use crate::scene::{Scene, wait_until};

fn scene(name: &str) -> Result<Scene> {
    let topology = Topology::for_test(name);
    let config = Config { down_after: Some("2s".into()), ..Config::standard(&topology).with_echo() };
    Scene::without_agents(&topology, config)
}

/// Applies a change at a node, and says what the node answers.
pub(crate) fn change(scene: &mut Scene, at: &str, seconds: u32) -> Result<String> {
    scene.config.timeouts.insert("udp".into(), format!("{seconds}s"));
    scene.lab.configure(&scene.config)?;
    let file = scene.lab.config_file(at).display().to_string();
    let mut says = String::new();
    wait_until(&format!("{at} takes the change"), || {
        let done = scene.run(at, &["apply", &file])?;
        says = crate::scene::words(&done);
        Ok(done.status.success())
    })
    .with_context(|| format!("{at} said: {says}"))?;
    Ok(says)
}

/// Whether nodes go by the file that was changed last.
pub(crate) fn all_go_by_it(scene: &Scene, nodes: &[String]) -> Result<bool> {
    nodes.iter().try_fold(true, |all, node| {
        let file = scene.lab.config_file(node).display().to_string();
        Ok(all && scene.done(node, &["diff", &file])?.starts_with("0 changes"))
    })
}

pub(crate) fn own(scene: &Scene, node: &str) -> Result<Value> {
    let nodes: Vec<Value> = scene.lab.ask(node, &["get", "nodes"])?;
    let own = nodes.into_iter().find(|one| one["self"] == true).context("a node that tells of itself")?;
    Ok(own["agreement"].clone())
}

fn log_file(scene: &Scene, node: &str) -> PathBuf {
    scene.lab.config_file(node).with_file_name("data").join("agreement.redb")
}

/// Flips a bit in the last record of a kind, wherever in the file there is a copy of it; says of how many.
fn flip(scene: &Scene, node: &str, kind: Kind) -> Result<usize> {
    let path = log_file(scene, node);
    let mut bytes = fs::read(&path)?;
    let is_record = |at: usize| {
        let length = u32::from_le_bytes(bytes[at + 4..at + 8].try_into().ok()?) as usize;
        let frame = bytes.get(at..at + 16 + length + 4)?;
        let index = frame::key(frame)?;
        let is_whole = match kind {
            Kind::Snapshot => frame::open::<Snapshot>(kind, index, frame).is_ok(),
            _ => frame::open::<Entry>(kind, index, frame).is_ok(),
        };
        is_whole.then_some((index, at + 16 + length / 2))
    };
    let starts = (0..bytes.len() - 16).filter(|&at| bytes[at..at + 4] == [kind as u8, 1, 0, 0]);
    let records: Vec<(u64, usize)> = starts.filter_map(is_record).collect();
    let last = records.iter().map(|(index, _)| *index).max().with_context(|| format!("no {kind:?} on the disk"))?;
    let places: Vec<usize> = records.into_iter().filter(|(index, _)| *index == last).map(|(_, place)| place).collect();
    places.iter().for_each(|&place| bytes[place] ^= 0x10);
    fs::write(&path, bytes)?;
    Ok(places.len())
}

#[test]
fn a_bit_that_flips_on_a_disk_is_found_and_mended_and_spreads_nowhere() -> Result<()> {
    let mut scene = scene("flipped")?;
    scene.lab.start_agents()?;
    let nodes = scene.lab.nodes();
    for seconds in 50..55 {
        change(&mut scene, "n1", seconds)?;
    }
    wait_until("all go by the changes", || all_go_by_it(&scene, &nodes))?;
    let traffic = Traffic::start(&scene)?;
    let agent = || scene.lab.process("n3-agent");
    for kind in [Kind::Entry, Kind::Snapshot] {
        agent()?.stop()?;
        let copies = flip(&scene, "n3", kind)?;
        println!("{kind:?}: {copies} copies were damaged");
        scene.lab.start_agent("n3")?;
        wait_until(&format!("n3 has found and mended the damaged {kind:?}"), || {
            let told = own(&scene, "n3")?;
            Ok(told["log"]["damaged"] == 1 && told["log"]["repaired"] == 1 && told["role"] == "follower")
        })?;
        wait_until("all have one table", || is_one_table(&scene))?;
        let told = own(&scene, "n3")?;
        ensure!(told["log"]["reborn"] == 0, "{kind:?}: {told}");
        // What was mended is on the disk.
        agent()?.stop()?;
        scene.lab.start_agent("n3")?;
        wait_until("n3 follows", || Ok(own(&scene, "n3")?["role"] == "follower"))?;
        ensure!(own(&scene, "n3")?["log"]["damaged"] == 0, "{kind:?} is damaged still");
    }
    // Under a running agent, which then dies without closing its file: all of it is in doubt then.
    let copies = flip(&scene, "n3", Kind::Entry)?;
    agent()?.kill()?;
    scene.lab.start_agent("n3")?;
    wait_until("n3 votes again", || {
        let told = own(&scene, "n3")?;
        let members = told["members"].as_array().into_iter().flatten();
        let votes = members.filter(|member| member["seat"] == "voter" && member["standing"] == "up").count();
        Ok(told["role"] == "follower" && votes == 3)
    })?;
    println!("{copies} copies damaged under way: {}", own(&scene, "n3")?["log"]);
    let journal = scene.done("n3", &["incidents"])?;
    for told in
        ["damaged records of the log were found: 1 entries, 0 snapshots", "0 entries, 1 snapshots", "fetched from node"]
    {
        ensure!(journal.contains(told), "`{told}` is not in the journal:\n{journal}");
    }
    for node in ["n1", "n2"] {
        let told = own(&scene, node)?;
        ensure!(told["log"]["damaged"] == 0 && told["log"]["reborn"] == 0, "{node} is damaged too: {told}");
        let journal = scene.done(node, &["incidents"])?;
        ensure!(!journal.contains("damaged records"), "{node} found damage too:\n{journal}");
    }
    let says = change(&mut scene, "n3", 99)?;
    ensure!(says.contains("durable on"), "{says}");
    wait_until("all go by it", || Ok(all_go_by_it(&scene, &nodes)? && is_one_table(&scene)?))?;
    let (stream, long) = traffic.finish()?;
    nothing_broke(&long)?;
    ensure!(stream.lost == 0 && stream.wrong == 0 && stream.moved == 0, "{stream:#?}");
    Ok(())
}
