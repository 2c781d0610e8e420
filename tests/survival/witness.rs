//! Two nodes and a witness: whichever of the three dies, changes go on, and what `get nodes` says of it is true.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use xtask::lab::{Config, Topology};

use crate::agreement::{is_one_table, nodes, standing};
use crate::disk::{all_go_by_it, change, own};
use crate::kills::{Traffic, nothing_broke};
use crate::scene::{Scene, every_kind, wait_until, words};

/// The host that the witness is on has no data plane.
const HOST: &str = "c1";
const ID: u8 = 9;

/// Writes the witness's configuration, which is a node's with another `[node]`, and its certificate.
fn prepare(scene: &Scene) -> Result<()> {
    let pki = scene.lab.directory().join("pki");
    // Making a certificate takes no configuration, which this would name.
    let issue = format!("redirector pki issue --node {ID} --dir {}", pki.display());
    let binary = scene.lab.redirector("n1", &["check"])?.get_program().to_owned();
    let issued = Command::new(binary).args(issue.split(' ').skip(1)).output()?;
    ensure!(issued.status.success(), "{}", words(&issued));
    let file = fs::read_to_string(scene.lab.config_file("n1"))?;
    let own = scene.lab.config_file(HOST);
    let directory = own.parent().context("a directory")?;
    fs::create_dir_all(directory.join("data"))?;
    let (node, rest) = file.split_once("[cluster]").context("a [cluster]")?;
    let home = |name: &str| scene.lab.config_file(name).parent().map(|path| path.display().to_string());
    let (theirs, ours) = (home("n1").context("a directory")?, home(HOST).context("a directory")?);
    let node = node.replace("id = 1", &format!("id = {ID}")).replace("\"n1\"", "\"w9\"").replace(&theirs, &ours);
    let rest = rest.replacen("node-1.crt", "node-9.crt", 1).replacen("node-1.key", "node-9.key", 1);
    Ok(fs::write(own, format!("{node}[cluster]{rest}"))?)
}

fn start_witness(scene: &Scene) -> Result<()> {
    scene.lab.spawn(HOST, "agent", scene.lab.redirector(HOST, &["witness"])?).map(drop)
}

fn witness(scene: &Scene, by: &str) -> Result<Value> {
    let all = nodes(scene, by)?;
    let found = all.into_iter().find(|one| one["id"] == ID);
    found.with_context(|| format!("{by} does not show the witness"))
}

fn says(scene: &Scene, node: &str, expected: &str) -> Result<()> {
    let shown = scene.done(node, &["get", "nodes"])?;
    ensure!(shown.contains(expected), "`{expected}` is not in: {shown}");
    Ok(())
}

/// All three are there.
fn is_whole(scene: &Scene) -> Result<bool> {
    let told = ["n1", "n2"].map(|node| own(scene, node));
    Ok(told
        .into_iter()
        .collect::<Result<Vec<_>>>()?
        .iter()
        .all(|told| told["quorum"] == true && told["redundant"] == true && told["spare"] == true))
}

#[test]
fn of_two_nodes_and_a_witness_any_one_may_die() -> Result<()> {
    let topology = Topology { nodes: 2, ..Topology::for_test("witness") };
    let more = format!("[[witness]]\nid = {ID}\naddress = \"10.77.3.1\"\n");
    let config = every_kind(&topology, &["l2", "ipip"]).with_holders();
    let mut scene = Scene::without_agents(&topology, Config { down_after: Some("2s".into()), more, ..config })?;
    scene.lab.on_link()?;
    prepare(&scene)?;
    let refused = scene.refused(HOST, &["run"])?;
    ensure!(refused.contains("redirector witness"), "{refused}");
    let refused = scene.refused("n1", &["witness"])?;
    ensure!(refused.contains("redirector run"), "{refused}");
    start_witness(&scene)?;
    scene.lab.start_agents()?;
    wait_until("the witness votes", || Ok(witness(&scene, "n1")?["agreed"]["seat"] == "voter"))?;
    wait_until("all is whole", || is_whole(&scene))?;
    says(&scene, "n1", "redundant: any one node may fail\n")?;
    let seen = nodes(&scene, HOST)?;
    ensure!(seen.len() == 3 && seen.iter().all(|one| one["state"] == "reached"), "the witness shows {seen:?}");
    let refused = scene.refused(HOST, &["apply", &scene.lab.config_file(HOST).display().to_string()])?;
    ensure!(refused.contains("is a witness"), "{refused}");
    wait_until("a node leads", || Ok(own(&scene, "n1")?["leader"] != ID))?;

    let traffic = Traffic::start(&scene)?;
    let mut seconds = 70;
    for (victim, survivor) in [("n2", "n1"), ("n1", "n2")] {
        wait_until("answers come to every flow", || Ok(traffic.flows()))?;
        scene.lab.kill(victim)?;
        wait_until(&format!("{survivor} says that it is not redundant"), || {
            Ok(own(&scene, survivor)?["redundant"] == false)
        })?;
        wait_until(&format!("{victim} is agreed to be down"), || Ok(standing(&scene, survivor, victim)? == "down"))?;
        wait_until(&format!("{victim} owns nothing"), || {
            let id = victim.as_bytes()[1] - b'0';
            Ok(!scene.maps(survivor)?.slots()?.iter().any(|slot| slot.ranks.contains(&id)))
        })?;
        wait_until("all flows outlive it", || Ok(traffic.flows()))?;
        let told = change(&mut scene, survivor, seconds)?;
        ensure!(told.contains("durable on 2 of 3"), "{told}");
        let told = own(&scene, survivor)?;
        ensure!(told["quorum"] == true && told["redundant"] == false && told["spare"] == false, "{told}");
        says(&scene, survivor, "not redundant: another fault")?;
        scene.lab.heal()?;
        wait_until(&format!("{victim} is back"), || is_whole(&scene))?;
        scene.lab.settled()?;
        seconds += 1;
    }

    scene.lab.process(&format!("{HOST}-agent"))?.kill()?;
    wait_until("the witness is missed", || {
        let told = own(&scene, "n1")?;
        Ok(told["redundant"] == true && told["spare"] == false && witness(&scene, "n2")?["state"] == "away")
    })?;
    says(&scene, "n1", "redundant: any one node may fail; without one more voter")?;
    let told = change(&mut scene, "n1", seconds)?;
    ensure!(told.contains("durable on 2 of 3"), "{told}");
    start_witness(&scene)?;
    wait_until("the witness is back", || is_whole(&scene))?;
    wait_until("it has all of the log", || {
        Ok(own(&scene, HOST)?["last"] == own(&scene, "n1")?["last"] && own(&scene, HOST)?["role"] == "follower")
    })?;
    wait_until("one table", || Ok(all_go_by_it(&scene, &scene.lab.nodes())? && is_one_table(&scene)?))?;
    let (stream, long) = traffic.finish()?;
    nothing_broke(&long)?;
    ensure!(stream.wrong == 0 && stream.moved == 0, "{stream:#?}");
    Ok(())
}
