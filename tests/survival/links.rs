//! Nodes with two links to each other. One of them may fail: nobody is suspected, and what nodes send each other takes the
//! other one. Where both fail, a node is suspected.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use redirector_ebpf::reason::Reason;
use serde::Deserialize;
use serde_json::Value;
use xtask::lab::{Between, Cut, Place, Topology, VIPS4, VIPS6};

use crate::kills::{Traffic, nothing_broke};
use crate::replicated::is_delivered;
use crate::scene::{Scene, every_kind, wait_until};
use crate::truth::every;

/// Which links are cut: the segment of all, where packets to nodes go first, and the other one.
const FIRST: &str = "eth0";
const OTHER: &str = "eth1";
/// Longer than any timeout: who is silent for so long would be suspected.
const SILENT_MS: u64 = 1500;

/// A node, as `get nodes` tells of it.
#[derive(Debug, Deserialize)]
struct Node {
    name: String,
    state: String,
    primary_slots: usize,
    /// What packets to it leave by.
    interface: Option<String>,
    links: Vec<Link>,
    measured: Option<Measured>,
}

/// The last answers on a link.
#[derive(Debug, Deserialize)]
struct Link {
    interface: String,
    answered: u64,
    round_trip_us: Option<u64>,
    silent_ms: Option<u64>,
}

/// What the agent that is asked has counted.
#[derive(Debug, Deserialize)]
struct Measured {
    suspicions: u64,
}

/// The other nodes in the eyes of one.
fn peers(scene: &Scene, by: &str) -> Result<BTreeMap<String, Node>> {
    let nodes: Vec<Node> = scene.lab.ask(by, &["get", "nodes"])?;
    Ok(nodes.into_iter().filter(|node| node.name != by).map(|node| (node.name.clone(), node)).collect())
}

fn suspicions(scene: &Scene) -> Result<u64> {
    let mut sum = 0;
    for by in scene.lab.nodes() {
        let counted = |peer: &Node| peer.measured.as_ref().map(|measured| measured.suspicions);
        let all: Option<u64> = peers(scene, &by)?.values().map(counted).sum();
        sum += all.with_context(|| format!("the agent of {by} tells nothing of a peer"))?;
    }
    Ok(sum)
}

fn nobody_was_suspected(scene: &Scene) -> Result<()> {
    let count = suspicions(scene)?;
    ensure!(count == 0, "{count} suspicions of nodes that answer over one of their links");
    Ok(())
}

/// Whether a link of a peer has been silent for long, or is not at all.
fn is_silent(peer: &Node, interface: &str, silent: bool) -> bool {
    let mut links = peer.links.iter().filter(|link| link.interface == interface);
    links.any(|link| link.silent_ms.is_some_and(|ms| (ms >= SILENT_MS) == silent))
}

/// Waits until packets of one node to another leave by an interface.
fn goes_by(scene: &Scene, from: &str, to: &str, interface: &str) -> Result<()> {
    wait_until(&format!("{from} reaches {to} by {interface}"), || {
        Ok(peers(scene, from)?.get(to).is_some_and(|peer| peer.interface.as_deref() == Some(interface)))
    })
}

#[test]
fn one_of_two_links_may_fail_and_nobody_is_suspected() -> Result<()> {
    let topology = Topology { between: true, ..Topology::for_test("links") };
    let mut config = every_kind(&topology, &["l2"]).with_holders();
    config.links = vec![Between::A];
    // A node with a carrier on two of its three interfaces is as ill in its network as can be.
    config.more = "[health]\ndwell = \"500ms\"\n[health.figures]\n\"carrier-%\" = [100, 70]\n\
                   [shedding]\nsoftirq = false\n"
        .into();
    let scene = Scene::up(&topology, config)?;
    each_link_is_told_of(&scene)?;
    the_second_is_not_missed(&scene)?;
    packets_turn_to_the_second(&scene)?;
    an_ill_node_gives_most_of_its_share_away(&scene)?;
    nobody_was_suspected(&scene)?;
    without_its_first_a_node_hands_over(&scene)?;
    nobody_was_suspected(&scene)?;
    each_goes_by_whom_it_reaches_itself(&scene)?;
    without_either_a_node_falls(&scene)
}

/// Round trips by interface, in the table and in JSON.
fn each_link_is_told_of(scene: &Scene) -> Result<()> {
    let shown = scene.done("n1", &["get", "nodes"])?;
    let (_, links) = shown.split_once("RTT-MIN").with_context(|| format!("no links are shown: {shown}"))?;
    for (name, peer) in peers(scene, "n1")? {
        for interface in [FIRST, OTHER] {
            let told = peer.links.iter().find(|link| link.interface == interface && link.answered > 0);
            ensure!(told.is_some_and(|link| link.round_trip_us.is_some()), "{name} by {interface}: {peer:#?}");
            let line = links.lines().find(|line| line.contains(&name) && line.contains(interface));
            ensure!(line.is_some_and(|line| line.contains(" us")), "{name} by {interface} is not in:\n{shown}");
        }
    }
    Ok(())
}

fn the_second_is_not_missed(scene: &Scene) -> Result<()> {
    let nodes = scene.lab.nodes();
    let is = |silent| every(&nodes, |by| Ok(peers(scene, by)?.values().all(|peer| is_silent(peer, OTHER, silent))));
    let traffic = Traffic::start(scene)?;
    scene.lab.cut(&Place::fabric(Between::A))?;
    wait_until("nobody answers over the second link", || is(true))?;
    nobody_was_suspected(scene)?;
    scene.lab.heal()?;
    wait_until("all answer over the second link", || is(false))?;
    let (stream, long) = traffic.finish()?;
    nothing_broke(&long)?;
    ensure!(stream.lost == 0 && stream.wrong == 0 && stream.moved == 0, "{stream:#?}");
    Ok(())
}

/// Nodes 1 and 2 cannot reach each other on the segment any more, where all others reach both.
fn packets_turn_to_the_second(scene: &Scene) -> Result<()> {
    let traffic = known_to_all(scene)?;
    scene.lab.partition(&["n1"], &["n2"], Cut::BothWays)?;
    for (from, to) in [("n1", "n2"), ("n2", "n1")] {
        goes_by(scene, from, to, OTHER)?;
        goes_by(scene, from, "n3", FIRST)?;
    }
    wait_until("all flows outlive the first link", || Ok(traffic.flows()))?;
    let detour = format!("leave by {OTHER}, since it is silent");
    wait_until("n1 has noted which way it takes", || {
        Ok(scene.done("n1", &["incidents"])?.lines().any(|line| line.contains(&detour)))
    })?;
    let (stream, long) = traffic.finish()?;
    nothing_broke(&long)?;
    println!("{} of {} datagrams were lost until the second link was taken", stream.lost, stream.sent);
    ensure!(stream.wrong == 0 && stream.moved == 0, "{stream:#?}");

    // All that comes in at node 1, of which node 2 owns a third; then over the first link again.
    [VIPS4, VIPS6].iter().try_for_each(|vips| scene.lab.steer(vips, &["n1"]))?;
    let forwarded = scene.count("n1", Reason::Forwarded)?;
    let traffic = Traffic::start(scene)?;
    wait_until("packets are forwarded over the second link", || {
        Ok(traffic.flows() && scene.count("n1", Reason::Forwarded)? > forwarded + 2000)
    })?;
    nobody_was_suspected(scene)?;
    scene.lab.heal()?;
    goes_by(scene, "n1", "n2", FIRST)?;
    goes_by(scene, "n2", "n1", FIRST)?;
    let (stream, long) = traffic.finish()?;
    nothing_broke(&long)?;
    ensure!(stream.lost == 0 && stream.wrong == 0 && stream.moved == 0, "{stream:#?}");
    Ok(())
}

/// Traffic whose flows have copies: younger ones may be lost with their owner.
fn known_to_all(scene: &Scene) -> Result<Traffic> {
    let (nodes, traffic) = (scene.lab.nodes(), Traffic::start(scene)?);
    wait_until("every flow goes on for a while", || Ok(traffic.flows() && traffic.goes_on()))?;
    wait_until("all have each other's flows", || every(&nodes, |node| is_delivered(scene, node, &nodes)))?;
    Ok(traffic)
}

/// One area of node 3's health is as bad as can be, and all others are good: its share falls to a quarter, a quarter at a
/// time, and it keeps that, and serves.
fn an_ill_node_gives_most_of_its_share_away(scene: &Scene) -> Result<()> {
    let others = ["n1", "n2"];
    let share = peers(scene, "n1")?["n3"].primary_slots;
    let traffic = known_to_all(scene)?;
    scene.lab.unlink(&"n3-a".parse().map_err(anyhow::Error::msg)?)?;
    // A quarter of a share beside two whole ones is a ninth of all.
    wait_until("n3 has a quarter of its share", || {
        every(&others, |by| Ok(peers(scene, by)?["n3"].primary_slots.abs_diff(share / 3) <= share / 20))
    })
    .with_context(|| format!("{:?}; {:?}", scene.done("n3", &["get", "health"]), peers(scene, "n1")))?;
    let log = scene.lab.process("n3-agent")?.log_tail();
    let mut told = log.lines().filter(|line| line.contains("quarters of its share"));
    for quarters in [3, 2, 1] {
        let step = told.next().with_context(|| format!("it is not told of {quarters} quarters:\n{log}"))?;
        ensure!(step.contains(&format!("takes {quarters} quarters")), "no step to {quarters} quarters: {step}");
    }
    let health: Value = scene.lab.ask("n3", &["get", "health"])?;
    ensure!(health["share"] == 1 && health["hands_over"] == false, "{health:#}");
    for by in others {
        ensure!(peers(scene, by)?["n3"].state == "alive", "{by} does not see n3 alive, which has a part to serve");
    }
    scene.lab.heal()?;
    wait_until("n3 has its whole share again", || {
        every(&others, |by| Ok(peers(scene, by)?["n3"].primary_slots.abs_diff(share) <= 3))
    })?;
    let (stream, long) = traffic.finish()?;
    nothing_broke(&long)?;
    ensure!(stream.lost == 0 && stream.wrong == 0 && stream.moved == 0, "{stream:#?}");
    Ok(())
}

/// Nothing of node 3 comes out of the interface that leads to clients and backends too. It lives, by its other one, and has
/// to give away by itself what it cannot serve.
fn without_its_first_a_node_hands_over(scene: &Scene) -> Result<()> {
    let others = ["n1", "n2"];
    [VIPS4, VIPS6].iter().try_for_each(|vips| scene.lab.steer(vips, &others))?;
    let (share, held) = (peers(scene, "n1")?["n3"].primary_slots, scene.lab.held("n3")?);
    ensure!(!held.is_empty(), "n3 holds no VIP");
    let traffic = known_to_all(scene)?;
    scene.lab.cut(&"n3".parse().map_err(anyhow::Error::msg)?)?;
    for by in others {
        wait_until(&format!("by {by} n3 has handed over"), || {
            let n3 = &peers(scene, by)?["n3"];
            Ok(n3.state == "draining" && n3.primary_slots == 0)
        })?;
    }
    wait_until("all flows have owners that serve them", || Ok(traffic.flows()))?;
    for vip in held {
        wait_until(&format!("another node than n3 holds {vip}"), || {
            Ok(scene.lab.holder(vip).is_ok_and(|holder| others.contains(&holder.as_str())))
        })?;
    }
    let health = scene.done("n3", &["get", "health"])?;
    ensure!(health.contains("answers-on-first-link-%"), "{health}");
    scene.lab.heal()?;
    wait_until("n3 has its share again", || {
        every(&others, |by| Ok(peers(scene, by)?["n3"].primary_slots.abs_diff(share) <= 3))
    })?;
    let (stream, long) = traffic.finish()?;
    nothing_broke(&long)?;
    println!("{} of {} datagrams were lost until n3 had handed over", stream.lost, stream.sent);
    ensure!(stream.wrong == 0 && stream.moved == 0, "{stream:#?}");
    Ok(())
}

/// What node 1 sends does not reach node 2, which it hears: neither can make the round trip, and node 3 can with both. So
/// nodes 1 and 3 have two owners for the slots of node 2, and flows go on at either.
fn each_goes_by_whom_it_reaches_itself(scene: &Scene) -> Result<()> {
    [VIPS4, VIPS6].iter().try_for_each(|vips| scene.lab.steer(vips, &["n1"]))?;
    let traffic = known_to_all(scene)?;
    let forwarded = scene.count("n1", Reason::Forwarded)?;
    wait_until("n1 forwards packets", || Ok(scene.count("n1", Reason::Forwarded)? > forwarded + 200))?;
    scene.lab.cut(&"n1-a".parse().map_err(anyhow::Error::msg)?)?;
    scene.lab.partition(&["n1"], &["n2"], Cut::OneWay)?;
    for (by, of) in [("n1", "n2"), ("n2", "n1")] {
        wait_until(&format!("{by} suspects {of}"), || Ok(peers(scene, by)?[of].state == "suspect"))?;
    }
    wait_until("all flows go on", || Ok(traffic.flows()))?;
    ensure!(peers(scene, "n3")?.values().all(|peer| peer.state == "alive"), "n3 suspects whom it reaches");
    scene.lab.heal()?;
    scene.lab.whole()?;
    let (stream, long) = traffic.finish()?;
    nothing_broke(&long)?;
    println!("{} of {} datagrams were lost over a cut of one way between two nodes", stream.lost, stream.sent);
    ensure!(stream.wrong == 0 && stream.moved == 0, "{stream:#?}");
    Ok(())
}

fn without_either_a_node_falls(scene: &Scene) -> Result<()> {
    let others = ["n1", "n2"];
    [VIPS4, VIPS6].iter().try_for_each(|vips| scene.lab.steer(vips, &others))?;
    let traffic = known_to_all(scene)?;
    scene.lab.partition(&others, &["n3"], Cut::BothWays)?;
    for by in others {
        goes_by(scene, by, "n3", OTHER)?;
        ensure!(peers(scene, by)?["n3"].state == "alive", "{by} suspects n3, which it reaches");
    }
    scene.lab.cut(&"n3-a".parse().map_err(anyhow::Error::msg)?)?;
    for by in others {
        wait_until(&format!("{by} suspects n3"), || Ok(peers(scene, by)?["n3"].state == "suspect"))?;
    }
    wait_until("all flows outlive n3", || Ok(traffic.flows()))?;
    scene.lab.heal()?;
    scene.lab.whole()?;
    let (stream, long) = traffic.finish()?;
    nothing_broke(&long)?;
    ensure!(stream.wrong == 0 && stream.moved == 0, "{stream:#?}");
    Ok(())
}
