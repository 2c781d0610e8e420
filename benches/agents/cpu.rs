//! `cpu`: what agents take of a core and of memory, idle and while flows are replicated, in a cluster of five nodes.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde::Serialize;
use xtask::bench::machine::{Disturbance, Watch};
use xtask::bench::rows::Rows;
use xtask::bench::spread::Spread;
use xtask::lab::{Config, Lab, Topology};

use crate::flows::{Kind, Node};
use crate::process::{Usage, memory};

const NODES: u8 = 5;
/// Percent of one core that is aimed at, idle with `fast`.
const TARGET: f64 = 2.0;
/// Flows a second that are made while it is measured what replication costs.
const RATE: u64 = 10_000;
const STEP: Duration = Duration::from_millis(50);
/// How long nothing is agreed on when a cluster has settled, and how long that may take.
const QUIET: Duration = Duration::from_secs(3);
const SETTLING: Duration = Duration::from_secs(60);

#[derive(Debug, Serialize)]
struct Figure {
    profile: &'static str,
    /// What the agents do: nothing, or telling each other of flows.
    at: &'static str,
    nodes: u8,
    flows_per_second: u64,
    /// The share of one core that an agent takes, over the five agents.
    cpu_pct: Spread,
    /// The five threads that take most of it, over all agents.
    threads_cpu_pct: Vec<(String, f64)>,
    /// Resident memory, over the five agents, in MiB; of it the flow tables are shared with the kernel.
    resident_mib: Spread,
    own_mib: Spread,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<f64>,
    #[serde(flatten)]
    disturbance: Disturbance,
}

/// Measures all of it.
pub(crate) fn run(short: bool, rows: &mut Rows) -> Result<()> {
    let time = Duration::from_secs(if short { 4 } else { 20 });
    println!(
        "{:<9} {:<12} {:>20} {:>18} {:>8}  threads",
        "profile", "at", "cpu % p50/p99/max", "resident MiB p50", "steal %"
    );
    for profile in ["standard", "fast", "extreme"] {
        if !rows.begin(profile) {
            continue;
        }
        let topology = Topology { nodes: NODES, backends: 2, ..Topology::new(format!("cpu{}", std::process::id())) };
        let config = Config { beats: Some(profile.into()), flows4: Some(1 << 20), ..Config::standard(&topology) };
        let lab = Lab::up(&topology)?;
        lab.configure(&config)?;
        lab.start_agents()?;
        let mut nodes = (1..=NODES).map(|number| Node::of(&lab, number)).collect::<Result<Vec<_>>>()?;
        settled(&nodes)?;
        let idle = measure(profile, "idle", &mut nodes, time, |_| {
            thread::sleep(time);
            Ok(0)
        })?;
        rows.push(&idle)?;
        if profile == "fast" {
            rows.push(&measure(profile, "replicating", &mut nodes, time, |nodes| make(nodes, time))?)?;
        }
    }
    Ok(())
}

/// Waits until slots have moved where they are to be and everybody is up, which a start leaves to be done: until nothing
/// more is agreed on for a while.
fn settled(nodes: &[Node]) -> Result<()> {
    let (begun, mut since, mut before) = (Instant::now(), Instant::now(), 0);
    while begun.elapsed() < SETTLING {
        thread::sleep(Duration::from_millis(200));
        let known = nodes.iter().map(Node::agreement).collect::<Result<Vec<_>>>()?;
        let commit = known.iter().map(|(commit, _)| *commit).max().unwrap_or(0);
        if commit != before || !known.iter().all(|(_, redundant)| *redundant) {
            (since, before) = (Instant::now(), commit);
        }
        if since.elapsed() >= QUIET {
            return Ok(());
        }
    }
    bail!("the cluster has not settled after {SETTLING:?}")
}

fn measure(
    profile: &'static str,
    at: &'static str,
    nodes: &mut [Node],
    time: Duration,
    work: impl FnOnce(&mut [Node]) -> Result<u64>,
) -> Result<Figure> {
    let watch = Watch::start();
    let before = nodes.iter().map(|node| Usage::of(node.pid)).collect::<Result<Vec<_>>>()?;
    let flows = work(nodes)?;
    let after = nodes.iter().map(|node| Usage::of(node.pid)).collect::<Result<Vec<_>>>()?;
    let shares: Vec<_> = after.iter().zip(&before).map(|(after, before)| after.since(before)).collect();
    let mut threads = std::collections::BTreeMap::<String, f64>::new();
    for (name, share) in shares.iter().flat_map(|share| &share.threads) {
        *threads.entry(name.clone()).or_default() += share / nodes.len() as f64;
    }
    let mut threads: Vec<_> = threads.into_iter().collect();
    threads.sort_by(|one, other| other.1.total_cmp(&one.1));
    threads.truncate(5);
    let memory = nodes.iter().map(|node| memory(node.pid)).collect::<Result<Vec<_>>>()?;
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let figure = Figure {
        profile,
        at,
        nodes: NODES,
        flows_per_second: (flows as f64 / time.as_secs_f64()) as u64,
        cpu_pct: Spread::of_ms(shares.iter().map(|share| share.all))?,
        threads_cpu_pct: threads,
        resident_mib: Spread::of_ms(memory.iter().map(|(_, all)| mib(*all)))?,
        own_mib: Spread::of_ms(memory.iter().map(|(own, _)| mib(*own)))?,
        target: (profile == "fast" && at == "idle").then_some(TARGET),
        disturbance: watch.seen(),
    };
    let Spread { p50, p99, max } = figure.cpu_pct;
    let names = figure.threads_cpu_pct.iter().map(|(name, share)| format!("{name} {share:.2}")).collect::<Vec<_>>();
    println!(
        "{profile:<9} {at:<12} {:>20} {:>18.1} {:>8.1}  {}{}",
        format!("{p50:.2}/{p99:.2}/{max:.2}"),
        figure.resident_mib.p50,
        figure.disturbance.steal_pct,
        names.join(", "),
        if figure.target.is_some_and(|target| p50 >= target) { "; missed" } else { "" }
    );
    Ok(figure)
}

/// Makes connections for a while, each at every node, so that its owner is among them; how many.
fn make(nodes: &mut [Node], time: Duration) -> Result<u64> {
    let a_step = RATE * STEP.as_millis() as u64 / 1000;
    let begun = Instant::now();
    let mut step = 0;
    while begun.elapsed() < time {
        for node in &mut *nodes {
            node.send(Kind::Opening, step * a_step, a_step as u32)?;
            if step > 0 {
                node.send(Kind::Established, (step - 1) * a_step, a_step as u32)?;
            }
        }
        step += 1;
        thread::sleep((begun + STEP * step as u32).saturating_duration_since(Instant::now()));
    }
    Ok(step * a_step)
}
