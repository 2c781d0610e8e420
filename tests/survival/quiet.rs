//! Nobody is suspected without cause: a cluster whose machine is busy.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use xtask::lab::{Cut, Topology};
use xtask::traffic::CpuTime;

use crate::kills::{Traffic, nothing_broke};
use crate::replicated::{is_delivered, only_new_on};
use crate::scene::{Scene, every_kind, wait_until};
use crate::truth::every;

/// Seconds to be quiet for; ten minutes show more than a test can.
const SECONDS_ENV: &str = "QUIET_SECONDS";
const SECONDS: u64 = 10;
const NODES: u8 = 5;
/// Of the profile `fast`: who is silent for longer is suspected.
const TIMEOUT_US: u64 = 30_000;

/// What one node tells of the time.
#[derive(Debug, Default)]
struct Told {
    suspicions: u64,
    gap_max_us: u64,
    timer_gap_max_us: u64,
    late_p99_us: u64,
    late_max_us: u64,
    rounds_left_out: u64,
}

fn told(scene: &Scene, node: &str) -> Result<Told> {
    let nodes: Value = serde_json::from_str(&scene.done(node, &["get", "nodes", "-o", "json"])?)?;
    let peers: Vec<&Value> =
        nodes.as_array().context("a list of nodes")?.iter().map(|node| &node["measured"]).collect();
    let number = |value: &Value| value.as_u64().unwrap_or(0);
    let gaps = peers.iter().flat_map(|peer| peer["links"].as_array().into_iter().flatten());
    let own = nodes.as_array().into_iter().flatten().find(|node| node["self"] == true).context("the node itself")?;
    let sender = &own["sender"];
    ensure!(sender["real_time"] == true, "the sender of {node} has no real-time priority: {sender}");
    let pulse: Value = serde_json::from_str(&scene.done(node, &["maps", "dump", "PULSE", "-o", "json"])?)?;
    Ok(Told {
        suspicions: peers.iter().map(|peer| number(&peer["suspicions"])).sum(),
        gap_max_us: gaps.map(|link| number(&link["gap_us"]["max"])).max().unwrap_or(0),
        timer_gap_max_us: number(&pulse[0]["value"]["gap_max_us"]),
        late_p99_us: number(&sender["lateness_us"]["p99"]),
        late_max_us: number(&sender["lateness_us"]["max"]),
        rounds_left_out: number(&sender["skipped"]),
    })
}

fn all_told(scene: &Scene) -> Result<Vec<Told>> {
    scene.lab.nodes().iter().map(|node| told(scene, node)).collect()
}

fn suspicions(told: &[Told]) -> u64 {
    told.iter().map(|told| told.suspicions).sum()
}

#[test]
fn a_busy_machine_makes_no_suspects() -> Result<()> {
    let seconds = std::env::var(SECONDS_ENV).ok().map_or(Ok(SECONDS), |text| text.parse())?;
    let topology = Topology { nodes: NODES, ..Topology::for_test("quiet") };
    let mut config = every_kind(&topology, &["l2"]);
    config.beats = Some("fast".to_owned());
    let scene = Scene::up(&topology, config)?;
    let before = all_told(&scene)?;
    let cpu = CpuTime::now()?;
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let busy = || {
            while !stop.load(Ordering::Relaxed) {
                std::hint::spin_loop();
            }
        };
        let cpus = thread::available_parallelism().map_or(2, usize::from);
        (0..cpus).for_each(|_| drop(scope.spawn(busy)));
        thread::sleep(Duration::from_secs(seconds));
        stop.store(true, Ordering::Relaxed);
    });
    let stolen = CpuTime::now()?.stolen_since(cpu);
    let after = all_told(&scene)?;
    let suspicions = suspicions(&after) - suspicions(&before);
    let gap = after.iter().map(|told| told.gap_max_us).max().unwrap_or(0);
    // Of stalls from before only those count that were outdone meanwhile.
    let grown = after.iter().zip(&before).filter(|(after, before)| after.timer_gap_max_us > before.timer_gap_max_us);
    let timer = grown.map(|(after, _)| after.timer_gap_max_us).max().unwrap_or(0);
    let most = |of: fn(&Told) -> u64| after.iter().map(of).max().unwrap_or(0);
    let left_out = |told: &[Told]| told.iter().map(|told| told.rounds_left_out).sum::<u64>();
    println!(
        "senders since they began: p99 of lateness {} us, max {} us; rounds left out meanwhile {}",
        most(|told| told.late_p99_us),
        most(|told| told.late_max_us),
        left_out(&after) - left_out(&before),
    );
    println!(
        "{seconds} s, {NODES} nodes, fast: {suspicions} suspicions; largest beat gap {gap} us, largest gap of a kernel \
         timer {timer} us, steal {stolen:.2} %"
    );
    match suspicions {
        0 => Ok(()),
        _ if timer > TIMEOUT_US => {
            println!("inconclusive: the machine itself stalled for longer than the timeout");
            Ok(())
        }
        _ => bail!("{suspicions} suspicions of nodes that lived: {after:#?}"),
    }
}

/// What a stall that is longer than the timeout leads to: nodes that live are suspected, each in turn, and let in again.
/// Most connections are not where their rows would send them.
#[test]
fn a_suspicion_without_cause_breaks_no_connection() -> Result<()> {
    let topology = Topology::for_test("falsely");
    let mut config = every_kind(&topology, &["l2"]);
    config.beats = Some("fast".to_owned());
    let mut scene = Scene::up(&topology, config)?;
    let traffic = Traffic::start(&scene)?;
    only_new_on(&mut scene.config, "b2");
    scene.apply()?;
    let nodes = scene.lab.nodes();
    wait_until("all have each other's flows", || every(&nodes, |node| is_delivered(&scene, node, &nodes)))?;
    for stalled in &nodes {
        let others: Vec<&str> = nodes.iter().filter(|node| *node != stalled).map(String::as_str).collect();
        let before = suspicions(&all_told(&scene)?);
        scene.lab.partition(&[stalled], &others, Cut::Beats)?;
        wait_until(&format!("all others suspect {stalled}"), || {
            every(&others, |by| Ok(scene.lab.seen(by)?.iter().any(|seen| seen.name == *stalled && !seen.alive)))
        })?;
        thread::sleep(Duration::from_secs(1));
        scene.lab.heal()?;
        scene.lab.whole()?;
        let after = suspicions(&all_told(&scene)?);
        ensure!(after >= before + 4, "{stalled} and the others were to suspect each other: {before}, {after}");
        wait_until("answers come to every flow", || Ok(traffic.flows()))?;
    }
    let (stream, long) = traffic.finish()?;
    nothing_broke(&long)?;
    println!("{} of {} datagrams were lost over three suspicions without cause", stream.lost, stream.sent);
    ensure!(stream.moved == 0 && stream.wrong == 0, "{stream:#?}");
    Ok(())
}
