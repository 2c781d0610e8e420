//! Nodes that die without a word, and agents that do or stall, under a stream and long connections.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use xtask::lab::{Seen, Topology, VIPS4, VIPS6};
use xtask::traffic::{ECHO_PORT, HTTP_PORT, LongConnections, LongReport, Stream, StreamReport, Streaming};

use crate::agent::{adopted, proven_flows};
use crate::replicated::is_delivered;
use crate::scene::{PATIENCE, Scene, every_kind, targets, wait_until};
use crate::takeover;
use crate::truth::every;

const PER_SECOND: u32 = 2000;
const FLOWS: usize = 32;
const CONNECTIONS: usize = 64;
/// A stall of the machine is shorter than this, and so is a failover; an outage that nobody mends is not.
const GAP_MAX: Duration = Duration::from_secs(5);
/// Longer than any timeout: who would be suspected has been by then.
const SUSPECTED_BY_THEN: Duration = Duration::from_secs(2);

pub(crate) struct Traffic {
    stream: Streaming,
    long: LongConnections,
}

impl Traffic {
    pub(crate) fn start(scene: &Scene) -> Result<Self> {
        let (web, echo) = (targets(&scene.config, HTTP_PORT), targets(&scene.config, ECHO_PORT));
        scene.lab.client().run(|| {
            let long = LongConnections::open(&web, CONNECTIONS, Duration::from_millis(50), PATIENCE)?;
            Ok(Self { stream: Stream::new(PER_SECOND, &echo, FLOWS).start()?, long })
        })?
    }

    /// Whether answers come to every flow.
    pub(crate) fn flows(&self) -> bool {
        self.stream.silence() < Duration::from_millis(200)
    }

    /// Whether connections have had time to be known to all owners.
    pub(crate) fn goes_on(&self) -> bool {
        self.long.lines() > 10 * CONNECTIONS as u64
    }

    pub(crate) fn finish(self) -> Result<(StreamReport, LongReport)> {
        Ok((self.stream.finish()?, self.long.finish()))
    }
}

fn cluster(name: &str) -> Result<Scene> {
    let topology = Topology::for_test(name);
    Scene::up(&topology, every_kind(&topology, &["l2", "ipip"]))
}

pub(crate) fn nothing_broke(long: &LongReport) -> Result<()> {
    ensure!(long.broken == 0 && long.wrong == 0 && long.lines > long.opened, "{long:#?}");
    Ok(())
}

/// Each node in turn, while the two others take the packets in.
#[test]
fn a_silent_death_breaks_no_connection() -> Result<()> {
    let enter_elsewhere = |scene: &Scene, others: &[&str]| {
        scene.lab.steer(VIPS4, others)?;
        scene.lab.steer(VIPS6, others)
    };
    each_dies_in_turn(&cluster("silent")?, enter_elsewhere, |_, _| Ok(()))
}

/// Each node in turn, while packets come in at whichever holds their VIP; so what the dead one held is taken over.
#[test]
fn the_death_of_a_vip_s_holder_breaks_no_connection() -> Result<()> {
    let topology = Topology::for_test("holder");
    let scene = Scene::without_agents(&topology, every_kind(&topology, &["l2", "ipip"]).with_holders())?;
    scene.lab.on_link()?;
    scene.lab.start_agents()?;
    for node in scene.lab.nodes() {
        ensure!(!scene.lab.held(&node)?.is_empty(), "{node} holds no VIP");
    }
    let tap = takeover::listen(&scene)?;
    let mut families = BTreeSet::new();
    each_dies_in_turn(
        &scene,
        |_, _| Ok(()),
        |left, died| {
            families.extend(left.iter().map(IpAddr::is_ipv6));
            takeover::is_announced(&scene, &tap, left, died)
        },
    )?;
    ensure!(families.len() == 2, "VIPs of one family only were taken over");
    tap.close()
}

/// Kills each node, sees that no flow stays silent and no connection breaks, and lets it come back. `prepare` says where
/// packets come in while only the others live; `taken_over` is told of the VIPs that were the dead one's, and when it died.
fn each_dies_in_turn(
    scene: &Scene,
    prepare: impl Fn(&Scene, &[&str]) -> Result<()>,
    mut taken_over: impl FnMut(&[IpAddr], Instant) -> Result<()>,
) -> Result<()> {
    let nodes = scene.lab.nodes();
    let traffic = Traffic::start(scene)?;
    for victim in &nodes {
        let others: Vec<&str> = nodes.iter().filter(|node| *node != victim).map(String::as_str).collect();
        prepare(scene, &others)?;
        wait_until("answers come to every flow", || Ok(traffic.flows()))?;
        let (lines, left) = (traffic.long.lines(), scene.lab.held(victim)?);
        let died = scene.lab.kill(victim)?;
        thread::sleep(Duration::from_millis(500).saturating_sub(died.elapsed()));
        wait_until(&format!("all flows outlive {victim}"), || Ok(traffic.flows()))?;
        wait_until("connections go on", || Ok(traffic.long.lines() > lines + 4 * CONNECTIONS as u64))?;
        wait_until(&format!("the others hold what {victim} held: {left:?}"), || {
            let held: Vec<_> = others.iter().map(|other| scene.lab.held(other)).collect::<Result<_>>()?;
            Ok(left.iter().all(|vip| held.iter().flatten().filter(|held| *held == vip).count() == 1))
        })?;
        for other in &others {
            wait_until(&format!("{other} suspects {victim}, and nobody else"), || {
                let states = scene.lab.seen(other)?.into_iter().map(|Seen { name, state, alive }| (name, state, alive));
                let wanted = |node: &String| match node == victim {
                    true => (node.clone(), "suspect".to_owned(), false),
                    false => (node.clone(), "alive".to_owned(), true),
                };
                Ok(states.eq(nodes.iter().map(wanted)))
            })?;
        }
        taken_over(&left, died)?;
        scene.lab.heal()?;
        scene.lab.whole()?;
    }
    let (stream, long) = traffic.finish()?;
    nothing_broke(&long)?;
    ensure!(stream.moved == 0 && stream.duplicated == 0, "flows changed backends: {stream:#?}");
    ensure!(Duration::from_micros(stream.gap_max_us) < GAP_MAX, "a flow was silent for too long: {stream:#?}");
    Ok(())
}

/// Beats every three milliseconds. A machine that other work keeps busy suspects nodes that live, so nothing is said of whom
/// else it suspects, nor of how soon the dead one is back.
#[test]
fn a_death_under_extreme_beats_breaks_no_connection() -> Result<()> {
    let topology = Topology::for_test("extreme");
    let mut config = every_kind(&topology, &["l2"]);
    config.beats = Some("extreme".to_owned());
    let scene = Scene::up(&topology, config)?;
    let (victim, others) = ("n3", ["n1", "n2"]);
    [VIPS4, VIPS6].iter().try_for_each(|vips| scene.lab.steer(vips, &others))?;
    let traffic = Traffic::start(&scene)?;
    wait_until("answers come to every flow", || Ok(traffic.flows()))?;
    let lines = traffic.long.lines();
    scene.lab.kill(victim)?;
    for by in others {
        wait_until(&format!("{by} suspects {victim}"), || {
            Ok(scene.lab.seen(by)?.iter().any(|seen| seen.name == victim && !seen.alive))
        })?;
    }
    wait_until(&format!("all flows outlive {victim}"), || Ok(traffic.flows()))?;
    wait_until("connections go on", || Ok(traffic.long.lines() > lines + 20 * CONNECTIONS as u64))?;
    let (stream, long) = traffic.finish()?;
    nothing_broke(&long)?;
    println!("longest time without an answer: {} us", stream.gap_max_us);
    ensure!(stream.moved == 0 && stream.wrong == 0, "flows changed backends: {stream:#?}");
    ensure!(Duration::from_micros(stream.gap_max_us) < GAP_MAX, "a flow was silent for too long: {stream:#?}");
    Ok(())
}

#[test]
fn agents_killed_all_at_once_are_neither_missed_nor_suspected() -> Result<()> {
    let scene = cluster("agentless")?;
    let nodes = scene.lab.nodes();
    let tables = |node: &String| Ok((adopted(&scene, node)?, scene.rows(node)?, scene.maps(node)?.slots()?));
    let traffic = Traffic::start(&scene)?;
    wait_until("all have each other's flows", || every(&nodes, |node| is_delivered(&scene, node, &nodes)))?;
    let before: Vec<_> = nodes.iter().map(tables).collect::<Result<_>>()?;
    let flows: Vec<_> = nodes.iter().map(|node| proven_flows(&scene, node)).collect::<Result<_>>()?;
    for node in &nodes {
        scene.lab.process(&format!("{node}-agent"))?.signal(libc::SIGKILL);
    }
    for node in &nodes {
        scene.lab.process(&format!("{node}-agent"))?.kill()?;
    }
    nobody_is_suspected(&scene)?;
    scene.lab.start_agents()?;
    nobody_is_suspected(&scene)?;
    let (stream, long) = traffic.finish()?;
    nothing_broke(&long)?;
    ensure!(stream.lost == 0 && stream.wrong == 0 && stream.moved == 0, "{stream:#?}");
    for (node, before) in nodes.iter().zip(before) {
        ensure!(tables(node)? == before, "{node} made another data plane, or went by other tables");
    }
    for (node, before) in nodes.iter().zip(flows) {
        let after = proven_flows(&scene, node)?;
        let lost = before.iter().filter(|flow| !after.contains(flow)).count();
        ensure!(!before.is_empty() && lost == 0, "{node} lost {lost} of {} flows, or their backends", before.len());
    }
    scene.nothing_was_dropped()
}

#[test]
fn an_agent_that_stalls_is_not_taken_for_a_dead_node() -> Result<()> {
    let scene = cluster("stalled")?;
    let traffic = Traffic::start(&scene)?;
    scene.lab.pause("n2")?;
    nobody_is_suspected(&scene)?;
    scene.lab.resume("n2")?;
    nobody_is_suspected(&scene)?;
    let (stream, long) = traffic.finish()?;
    nothing_broke(&long)?;
    ensure!(stream.lost == 0 && stream.wrong == 0 && stream.moved == 0, "{stream:#?}");
    scene.nothing_was_dropped()
}

pub(crate) fn nobody_is_suspected(scene: &Scene) -> Result<()> {
    let begun = Instant::now();
    while begun.elapsed() < SUSPECTED_BY_THEN {
        let suspicions = scene.lab.suspicions()?;
        ensure!(suspicions.is_empty(), "{suspicions:?}");
        thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}
