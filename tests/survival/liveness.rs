//! Who is alive in whose eyes, when agents stop, cables are pulled and keys change.

use std::collections::BTreeMap;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use redirector_ebpf::reason::Reason;
use serde::Deserialize;
use xtask::lab::{Config, Topology};

use crate::scene::{Scene, wait_until, words};

/// A node, as `get nodes` tells of it.
#[derive(Debug, Deserialize)]
struct Node {
    state: String,
    alive: bool,
    sees: Vec<String>,
    measured: Option<Measured>,
}

/// What the agent that is asked has counted.
#[derive(Debug, Deserialize)]
struct Measured {
    suspicions: u64,
    false_suspicions: u64,
}

const NODES: [&str; 3] = ["n1", "n2", "n3"];

const OLD: &str = "\"0f0e0d0c0b0a09080706050403020100\"";
const NEW: &str = "\"a1b2c3d4e5f60718293a4b5c6d7e8f90\"";

fn up(name: &str, beats: &str) -> Result<Scene> {
    let topology = Topology { nodes: 3, backends: 1, ..Topology::for_test(name) };
    let config = Config { beats: Some(beats.into()), ..Config::standard(&topology) };
    let scene = Scene::without_agents(&topology, config)?;
    NODES.iter().try_for_each(|node| set_keys(&scene, node, &format!("[{OLD}]")))?;
    scene.lab.start_agents()?;
    Ok(scene)
}

/// The nodes in the eyes of one, by name.
fn seen_by(scene: &Scene, node: &str) -> Result<BTreeMap<String, Node>> {
    #[derive(Deserialize)]
    struct Named {
        name: String,
        #[serde(flatten)]
        node: Node,
    }
    let told: Vec<Named> = serde_json::from_str(&scene.done(node, &["get", "nodes", "-o", "json"])?)?;
    let told: BTreeMap<_, _> = told.into_iter().map(|Named { name, node }| (name, node)).collect();
    ensure!(told.keys().eq(NODES), "{node} tells of {told:#?}");
    Ok(told)
}

fn state(scene: &Scene, of: &str, by: &str) -> Result<String> {
    Ok(seen_by(scene, by)?.remove(of).context("it is there")?.state)
}

/// Waits until these nodes take another for this.
fn wait_for(scene: &Scene, of: &str, by: &[&str], what: &str) -> Result<()> {
    by.iter().try_for_each(|by| wait_until(&format!("{of} is {what} to {by}"), || Ok(state(scene, of, by)? == what)))
}

/// Waits until all nodes are alive to all, themselves included, and see each other so.
fn wait_for_all(scene: &Scene) -> Result<()> {
    for by in NODES {
        wait_until(&format!("all are alive to {by}"), || {
            let all = |node: &Node| node.state == "alive" && node.alive && node.sees == NODES;
            Ok(seen_by(scene, by)?.values().all(all))
        })?;
    }
    Ok(())
}

/// How often these nodes' agents have suspected another, and how often falsely.
fn suspicions(scene: &Scene, by: &[&str]) -> Result<(u64, u64)> {
    let mut sum = (0, 0);
    for by in by {
        for (name, node) in seen_by(scene, by)? {
            if name != *by {
                let counted = node.measured.with_context(|| format!("the agent of {by} tells nothing of {name}"))?;
                sum = (sum.0 + counted.suspicions, sum.1 + counted.false_suspicions);
            }
        }
    }
    Ok(sum)
}

fn nobody_was_suspected(scene: &Scene, by: &[&str]) -> Result<()> {
    let counted = suspicions(scene, by)?;
    ensure!(counted == (0, 0), "{by:?} suspected somebody: {counted:?}");
    Ok(())
}

/// For six times as long as an answer may take here, a node is alive to the others, without its agent.
fn is_alive_without_its_agent(scene: &Scene, node: &str, others: &[&str]) -> Result<()> {
    wait_for(scene, node, others, "agent-silent")?;
    let until = Instant::now() + Duration::from_secs(3);
    while Instant::now() < until {
        for by in others {
            let told = seen_by(scene, by)?.remove(node).context("it is there")?;
            ensure!(told.alive && told.state == "agent-silent", "{node} to {by}: {told:#?}");
        }
        thread::sleep(Duration::from_millis(100));
    }
    nobody_was_suspected(scene, others)?;
    let itself = seen_by(scene, node)?;
    ensure!(itself.values().all(|node| node.alive && node.measured.is_none()), "{itself:#?}");
    ensure!(itself[node].state == "agent-silent", "{itself:#?}");
    Ok(())
}

#[test]
fn without_its_agent_a_node_is_alive_and_keys_change_under_way() -> Result<()> {
    // Patient enough for a machine that does other things, and far from what agents are away.
    let scene = up("silent", "100ms x 5")?;
    wait_for_all(&scene)?;
    nobody_was_suspected(&scene, &NODES)?;
    each_link_is_shown(&scene)?;

    scene.lab.process("n1-agent")?.signal(libc::SIGSTOP);
    let held = is_alive_without_its_agent(&scene, "n1", &["n2", "n3"]);
    scene.lab.process("n1-agent")?.signal(libc::SIGCONT);
    held?;
    wait_for_all(&scene)?;
    nobody_was_suspected(&scene, &NODES)?;

    scene.lab.process("n2-agent")?.kill()?;
    is_alive_without_its_agent(&scene, "n2", &["n1", "n3"])?;
    scene.lab.start_agent("n2")?;
    wait_for_all(&scene)?;
    nobody_was_suspected(&scene, &NODES)?;
    keys_change(&scene)
}

/// Below the nodes a line for each link, with what was measured.
fn each_link_is_shown(scene: &Scene) -> Result<()> {
    let shown = scene.done("n1", &["get", "nodes"])?;
    let (_, links) = shown.split_once("RTT-MIN").with_context(|| format!("no links are shown: {shown}"))?;
    let of = |peer: &&str| links.lines().any(|line| line.trim_start().starts_with(*peer) && line.contains("0.0/h"));
    ensure!(["n2", "n3"].iter().all(of), "not all links are shown: {shown}");
    Ok(())
}

/// From one key to another by way of both, one node after the other.
fn keys_change(scene: &Scene) -> Result<()> {
    for keys in [format!("[{OLD}, {NEW}]"), format!("[{NEW}, {OLD}]"), format!("[{NEW}]")] {
        for node in NODES {
            set_keys(scene, node, &keys)?;
            scene.lab.process(&format!("{node}-agent"))?.stop()?;
            scene.lab.start_agent(node)?;
            wait_for_all(scene)?;
            nobody_was_suspected(scene, &NODES)?;
        }
    }
    for node in NODES {
        let refused = scene.count(node, Reason::BeatTag)?;
        ensure!(refused == 0, "{node} refused {refused} beats");
    }
    Ok(())
}

fn set_keys(scene: &Scene, node: &str, keys: &str) -> Result<()> {
    let file = scene.lab.config_file(node);
    let text = fs::read_to_string(&file)?;
    let others: Vec<&str> = text.lines().filter(|line| !line.starts_with("beat_keys")).collect();
    let text = others.join("\n").replacen("[cluster]", &format!("[cluster]\nbeat_keys = {keys}"), 1);
    Ok(fs::write(&file, text)?)
}

#[test]
fn who_is_cut_off_is_suspected_and_comes_back() -> Result<()> {
    let scene = up("cut", "fast")?;
    wait_for_all(&scene)?;
    for round in 1..=2 {
        let before = (suspicions(&scene, &["n1", "n2"])?, suspicions(&scene, &["n3"])?);
        on_bridge(&scene, "ip", &["link", "set", "n3", "down"])?;
        wait_for(&scene, "n3", &["n1", "n2"], "suspect")?;
        wait_for(&scene, "n3", &["n3"], "cut-off")?;
        for (by, of) in [("n1", "n3"), ("n2", "n3"), ("n3", "n1"), ("n3", "n2")] {
            wait_for(&scene, of, &[by], "suspect")?;
            ensure!(!seen_by(&scene, by)?[of].alive, "{of} is suspect and alive to {by}");
        }
        on_bridge(&scene, "ip", &["link", "set", "n3", "up"])?;
        wait_for_all(&scene)?;
        let after = (suspicions(&scene, &["n1", "n2"])?, suspicions(&scene, &["n3"])?);
        // At least: the others may be suspected too, on a machine that is busy.
        for (before, after) in [(before.0, after.0), (before.1, after.1)] {
            ensure!(after.0 >= before.0 + 2, "suspicions were not counted in round {round}: {before:?}, {after:?}");
            ensure!(after.1 >= before.1 + 2, "nobody had died in round {round}: {before:?}, {after:?}");
        }
    }
    one_way_is_no_way(&scene)
}

/// What node 1 sends does not reach node 2, which it hears.
fn one_way_is_no_way(scene: &Scene) -> Result<()> {
    let rules = [
        "add table bridge cut".to_owned(),
        "add chain bridge cut forward { type filter hook forward priority 0 ; }".to_owned(),
        "add rule bridge cut forward iifname n1 oifname n2 drop".to_owned(),
    ];
    for rule in &rules {
        on_bridge(scene, "nft", &[rule])?;
    }
    wait_for(scene, "n2", &["n1"], "suspect")?;
    wait_for(scene, "n1", &["n2"], "suspect")?;
    wait_for(scene, "n1", &["n3"], "alive")?;
    wait_for(scene, "n2", &["n3"], "alive")?;
    wait_until("n3 sees what they see", || {
        let seen = seen_by(scene, "n3")?;
        Ok(seen["n1"].sees == ["n1", "n3"] && seen["n2"].sees == ["n2", "n3"] && seen["n3"].sees == NODES)
    })?;
    on_bridge(scene, "nft", &["delete table bridge cut"])?;
    wait_for_all(scene)
}

/// Runs a program where the hosts' links meet.
fn on_bridge(scene: &Scene, program: &str, args: &[&str]) -> Result<()> {
    let output = scene.lab.host("bridge")?.command(program).args(args).output();
    let output = output.with_context(|| format!("cannot run {program}"))?;
    ensure!(output.status.success(), "{program} {args:?}: {}", words(&output));
    Ok(())
}
