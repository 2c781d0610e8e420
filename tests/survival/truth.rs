//! What the command line says, held against what packets do, in every phase of a node's death.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use redirector_ebpf::tables::{AliveNodes, Slot};
use serde::Deserialize;
use xtask::lab::{Config, Journey, Role, Topology, VIPS4, VIPS6, client_addresses};
use xtask::traffic::{HTTP_PORT, Load, ask};

use crate::holders::neighbour;
use crate::raw;
use crate::scene::{Scene, all_answered, targets, wait_until};

/// Connections that are opened at a node to see where they go.
const CONNECTIONS: u32 = 24;
/// How often it is tried to find a node's tables the same before and after.
const TRIES: u32 = 20;

/// A node, as `get nodes` tells of it.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Node {
    pub(crate) name: String,
    #[serde(rename = "self")]
    pub(crate) is_self: bool,
    pub(crate) state: String,
    pub(crate) alive: bool,
    pub(crate) primary_slots: usize,
    pub(crate) agreed: Option<Agreed>,
    pub(crate) agreement: Option<Agreement>,
}

/// What the cluster agrees on of a node.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Agreed {
    pub(crate) standing: String,
}

/// How agreement stands where it was asked.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Agreement {
    pub(crate) quorum: bool,
    pub(crate) redundant: bool,
}

#[derive(Debug, Deserialize)]
struct Owner {
    node: String,
    primary: usize,
}

#[derive(Debug, Deserialize)]
struct Vip {
    address: String,
    held: bool,
}

#[derive(Debug, Deserialize)]
struct Why {
    owner: Option<String>,
    backend: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Flow {
    source: SocketAddr,
    destination: SocketAddr,
    backend: String,
    owner: String,
}

/// The nodes in the eyes of one.
pub(crate) fn nodes(scene: &Scene, by: &str) -> Result<BTreeMap<String, Node>> {
    let nodes: Vec<Node> = scene.lab.ask(by, &["get", "nodes"])?;
    Ok(nodes.into_iter().map(|node| (node.name.clone(), node)).collect())
}

/// Waits until a node's eyes see something.
pub(crate) fn wait_until_seen(
    scene: &Scene,
    by: &str,
    what: &str,
    holds: impl Fn(&BTreeMap<String, Node>) -> bool,
) -> Result<()> {
    let mut last = BTreeMap::new();
    let waited = wait_until(&format!("{by} sees that {what}"), || {
        last = nodes(scene, by)?;
        Ok(holds(&last))
    });
    waited.with_context(|| format!("{by} sees {last:#?}"))
}

/// Whether something holds at each of these nodes.
pub(crate) fn every(nodes: &[impl AsRef<str>], holds: impl Fn(&str) -> Result<bool>) -> Result<bool> {
    nodes.iter().try_fold(true, |all, node| Ok(all && holds(node.as_ref())?))
}

/// What a node of this name is agreed to be.
pub(crate) fn standing<'a>(nodes: &'a BTreeMap<String, Node>, of: &str) -> &'a str {
    nodes.get(of).and_then(|node| node.agreed.as_ref()).map_or("", |agreed| &agreed.standing)
}

/// Connections that enter at a node go just where `why` says there, and are listed by `get flows` at their owner.
pub(crate) fn packets_go_as_told(scene: &Scene, at: &str) -> Result<()> {
    scene.lab.steer(VIPS4, &[at])?;
    scene.lab.steer(VIPS6, &[at])?;
    while_nothing_changes(scene, at, || go_as_told(scene, at))
        .with_context(|| format!("connections that enter at {at}"))
}

/// What holds at a node while its tables stay as they are: while they change, what was true for a packet is not for a
/// question that comes later.
fn while_nothing_changes<T>(scene: &Scene, at: &str, holds: impl Fn() -> Result<T>) -> Result<T> {
    for _ in 0..TRIES {
        let before = tables(scene, at)?;
        let held = holds();
        if tables(scene, at)? == before {
            return held;
        }
    }
    bail!("the tables of {at} never stay the same for long enough")
}

/// What a node's answers follow from.
fn tables(scene: &Scene, node: &str) -> Result<(Vec<Slot>, AliveNodes)> {
    let maps = scene.maps(node)?;
    Ok((maps.slots()?, maps.alive.get(&0, 0)?))
}

fn go_as_told(scene: &Scene, at: &str) -> Result<()> {
    let targets = targets(&scene.config, HTTP_PORT);
    let load = Load::new(targets.clone(), 5 * CONNECTIONS, Duration::from_millis(200));
    let client = scene.lab.client();
    all_answered(&client.run(|| load.run())?)?;
    // Asked before there is any packet of it: afterwards nodes that have a copy may know more.
    let flows = (0..CONNECTIONS).map(|number| stranger(targets[number as usize % targets.len()]));
    let told = flows.map(|(source, target)| {
        let question = ["why", "tcp", &source.to_string(), &target.to_string(), "--syn"];
        Ok(((source, target), scene.lab.ask::<Why>(at, &question)?))
    });
    let told: BTreeMap<(SocketAddr, SocketAddr), Why> = told.collect::<Result<_>>()?;
    let witness = scene.lab.watch()?;
    client.run(|| told.keys().try_for_each(|(source, target)| raw::send_segment(*source, *target, raw::SYN)))??;
    let journeys = witness.finish()?;
    let mut listed: BTreeMap<&String, Vec<Flow>> = BTreeMap::new();
    let mut forwarded = 0;
    for (ends, why) in &told {
        let Journey { hops, .. } = journeys.get(ends).with_context(|| format!("{ends:?} was not witnessed"))?;
        let (backend, nodes) = hops.split_last().context("a connection that went nowhere")?;
        let path = [Some(at), why.owner.as_deref().filter(|owner| *owner != at)];
        ensure!(nodes.iter().map(String::as_str).eq(path.into_iter().flatten()), "{hops:?} was not told: {why:?}");
        ensure!(why.backend.as_ref() == Some(backend), "{hops:?} was not told: {why:?}");
        let Some(owner) = &why.owner else { continue };
        forwarded += u32::from(owner != at);
        if !listed.contains_key(owner) {
            listed.insert(owner, scene.lab.ask(owner, &["get", "flows"])?);
        }
        let is_it = |flow: &&Flow| (flow.source, flow.destination) == *ends;
        let flow = listed[owner].iter().find(is_it).with_context(|| format!("{owner} does not list {ends:?}"))?;
        ensure!(flow.backend == *backend && flow.owner == *owner, "{hops:?} is listed as {flow:?}");
    }
    ensure!(!listed.is_empty(), "no connection was owned");
    println!("{} connections entered at {at}, {forwarded} went on to another owner, as told", told.len());
    Ok(())
}

/// A connection that nobody has opened yet, from an address that nobody has.
pub(crate) fn stranger(target: SocketAddr) -> (SocketAddr, SocketAddr) {
    static NEXT: AtomicU16 = AtomicU16::new(20_000);
    let host = client_addresses(target.ip()).len() + 100;
    let address = match target.ip() {
        IpAddr::V4(_) => IpAddr::from([10, 77, 3, host as u8]),
        IpAddr::V6(_) => IpAddr::from([0xfd77, 0, 0, 0, 0, 0, 3, host as u16]),
    };
    (SocketAddr::new(address, NEXT.fetch_add(1, Ordering::Relaxed)), target)
}

/// `get owners` adds up, and says the same as `get nodes`.
pub(crate) fn owners_add_up(scene: &Scene, by: &str) -> Result<BTreeMap<String, usize>> {
    let owners: Vec<Owner> = scene.lab.ask(by, &["get", "owners"])?;
    let owners: BTreeMap<String, usize> = owners.into_iter().map(|owner| (owner.node, owner.primary)).collect();
    let slots = scene.maps(by)?.slots()?.len();
    ensure!(owners.values().sum::<usize>() == slots, "{owners:?} own {slots} slots");
    Ok(owners)
}

/// Each VIP is with one of these nodes, and that is where the client finds it.
fn vips_are_where_told(scene: &Scene, live: &[String]) -> Result<()> {
    scene.lab.on_link()?;
    let client = scene.lab.client();
    let mut holders: BTreeMap<IpAddr, Vec<&String>> = BTreeMap::new();
    for node in live {
        for Vip { address, held } in scene.lab.ask::<Vec<Vip>>(node, &["get", "vips"])? {
            let holders = holders.entry(address.parse()?).or_default();
            holders.extend(held.then_some(node));
        }
    }
    ensure!(holders.len() == scene.config.vip.len(), "{holders:?}");
    for (vip, holders) in holders {
        let [holder] = holders[..] else { bail!("{vip} is held by {holders:?}") };
        client.ip(&[format!("neighbour del {vip} dev eth0")]).or_else(|error| match neighbour(scene, vip)? {
            None => Ok(()),
            Some(_) => Err(error),
        })?;
        // The answer does not matter, only whom the question goes to.
        let _ = client.run(|| ask(SocketAddr::new(vip, 9), None, b"where?", Duration::from_millis(100)))?;
        let mac = (1..).zip(scene.lab.nodes()).find(|(_, name)| name == holder).map(|(id, _)| Role::Node(id).mac());
        wait_until(&format!("the client finds {vip} at {holder}"), || Ok(neighbour(scene, vip)? == mac))?;
    }
    Ok(())
}

/// Everything that nodes which serve say, of themselves and of one that may not.
fn all_is_true(scene: &Scene, live: &[String], victim: Option<(&str, &str, &str)>) -> Result<()> {
    if victim.is_none() {
        let is_redundant = |by: &str| {
            let seen = nodes(scene, by)?;
            let own = seen.values().find(|node| node.is_self).and_then(|node| node.agreement.as_ref());
            Ok(own.is_some_and(|agreement| agreement.redundant))
        };
        wait_until("all take a whole cluster for redundant", || every(live, is_redundant))?;
    }
    for by in live {
        let (seen, owners) = while_nothing_changes(scene, by, || Ok((nodes(scene, by)?, owners_add_up(scene, by)?)))?;
        for node in seen.values() {
            let wanted = match victim {
                Some((name, state, standing)) if name == node.name => (state, standing, false),
                _ => ("alive", "up", true),
            };
            let told = (node.state.as_str(), standing(&seen, &node.name), node.alive);
            ensure!(told == wanted, "{by} says of {}: {told:?}, and it is {wanted:?}", node.name);
            let owned = owners.get(&node.name).copied().unwrap_or(0);
            ensure!(owned == node.primary_slots, "{by} says that {} owns {owned}: {node:?}", node.name);
            ensure!((owned > 0) == (wanted.1 != "down"), "{by} says that {} owns {owned} slots", node.name);
        }
        let agreement = seen.values().find(|node| node.is_self).and_then(|node| node.agreement.clone());
        let agreement = agreement.with_context(|| format!("{by} does not say how agreement stands"))?;
        ensure!(agreement.quorum, "{by} takes itself for cut off: {agreement:?}");
    }
    vips_are_where_told(scene, live)?;
    live.iter().try_for_each(|node| packets_go_as_told(scene, node))
}

#[test]
fn what_is_told_is_true_in_every_phase_of_a_death() -> Result<()> {
    let topology = Topology::for_test("truth");
    let mut config = Config::standard(&topology).with_holders();
    // Long enough to look around before a suspect is agreed to be down.
    config.down_after = Some("12s".into());
    let scene = Scene::up(&topology, config)?;
    let all = scene.lab.nodes();
    all_is_true(&scene, &all, None).context("before")?;

    let victim = "n2";
    let others: Vec<String> = all.iter().filter(|node| *node != victim).cloned().collect();
    let seen_as = |state: &str, agreed: &str| {
        let what = format!("{victim} is {state}, and {agreed}");
        others.iter().try_for_each(|by| {
            wait_until_seen(&scene, by, &what, |nodes| {
                nodes[victim].state == state && standing(nodes, victim) == agreed
            })
        })
    };
    scene.lab.kill(victim)?;
    seen_as("suspect", "up")?;
    all_is_true(&scene, &others, Some((victim, "suspect", "up"))).context("while it is suspected")?;

    seen_as("suspect", "down")?;
    wait_until("nobody ranks it", || {
        every(&others, |by| Ok(!scene.maps(by)?.slots()?.iter().any(|slot| slot.ranks.contains(&2))))
    })?;
    all_is_true(&scene, &others, Some((victim, "suspect", "down"))).context("while it is down")?;

    scene.lab.heal()?;
    let mut returning = 0;
    wait_until("it is back", || {
        for by in &others {
            let seen = nodes(&scene, by)?;
            let node = &seen[victim];
            let (state, standing) = (node.state.as_str(), standing(&seen, victim));
            // What it is agreed to be and what this node makes of it are read one after the other.
            ensure!(node.alive != (state == "returning"), "{by} says of {victim}: {node:?}");
            ensure!(matches!(state, "returning" | "alive"), "{by} says of {victim}: {node:?}");
            ensure!(matches!(standing, "down" | "returning" | "up"), "{by} says of {victim}: {node:?}");
            if state == "returning" && standing == "down" {
                returning += 1;
                ensure!(node.primary_slots == 0, "{victim} owns slots already: {node:?}");
            }
        }
        Ok(scene.lab.suspicions()?.is_empty())
    })?;
    ensure!(returning > 0, "it was never seen on its way back");
    scene.lab.whole()?;
    wait_until("it owns its share again", || {
        every(&all, |by| Ok(owners_add_up(&scene, by)?.get(victim).is_some_and(|share| *share > 5000)))
    })?;
    all_is_true(&scene, &all, None).context("after")
}
