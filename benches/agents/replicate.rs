//! `replicate`: flows that two nodes record are copied to each other, at a steady pace: how many a second arrive for
//! certain, how late, and what each takes on the wire and in memory.
//!
//! Every connection opens at both nodes, is recorded by the one that owns it, and proven by a second packet a few ticks
//! later, which is the change that is to be told. The lag goes from there to the other node's acknowledgement, as the
//! agents themselves measure it.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use redirector::replication::{Counters, State};
use serde::Serialize;
use xtask::bench::machine::{Disturbance, Watch};
use xtask::bench::rows::Rows;
use xtask::bench::spread::Spread;
use xtask::lab::{Config, Lab, Topology};

use crate::flows::{Kind, Node};
use crate::process::{Usage, memory};

/// Flows a second that are aimed at.
const RATE: u64 = 200_000;
/// Flows a second that are made: a little more, since the last flush counts too.
const OFFERED: u64 = 220_000;
/// Bytes that a flow may take in all.
const BYTES: f64 = 256.0;
/// How often connections are made.
const STEP: Duration = Duration::from_millis(10);
/// Steps between a connection's two packets: more than a tick of the kernel's coarse clock, which proves the flow.
const BETWEEN: u64 = 2;
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug, Serialize)]
struct Figure {
    flows: u64,
    /// Those that were recorded and told of; of the others the bucket was full.
    arrived: u64,
    flush_ms: u64,
    /// Connections that were proven a second.
    offered_per_second: f64,
    /// From the first change to the last acknowledgement.
    flows_per_second: f64,
    lag_ms: Spread,
    wire_bytes: f64,
    /// In the flow tables and the agent's own, as tables are filled at the worst.
    memory_bytes: f64,
    /// What the agents grew by, beside the flow tables.
    grown_bytes: f64,
    /// Wire and memory.
    bytes: f64,
    /// Changes that found a ring or queue full; they were found again by walking the tables.
    events_lost: u64,
    /// The share of one core that both agents took.
    agents_cpu_pct: f64,
    threads_cpu_pct: Vec<(String, f64)>,
    targets: Targets,
    #[serde(flatten)]
    disturbance: Disturbance,
}

#[derive(Debug, Serialize)]
struct Targets {
    #[serde(rename = "lag_ms.p99")]
    lag: f64,
    bytes: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    flows_per_second: Option<f64>,
}

/// Measures all of it.
pub(crate) fn run(short: bool, rows: &mut Rows) -> Result<()> {
    println!(
        "{:>9} {:>8} {:>10} {:>10} {:>24} {:>6} {:>7} {:>6} {:>6} {:>7}",
        "flows", "flush", "offered/s", "arrived/s", "lag ms p50/p99/max", "wire", "memory", "lost", "cpu %", "steal %"
    );
    let cases: &[(u64, u64)] = if short {
        &[(12_000, 50), (100_000, 50), (100_000, 10), (400_000, 50)]
    } else {
        &[(12_000, 50), (100_000, 50), (1_000_000, 50), (12_000, 10), (100_000, 10), (1_000_000, 10)]
    };
    for &(flows, flush) in cases {
        let what = format!("{flows} flows, flushed every {flush} ms");
        if !rows.begin(&what) {
            continue;
        }
        let figure = measure(flows, flush).context(what)?;
        let Spread { p50, p99, max } = figure.lag_ms;
        println!(
            "{:>9} {:>5} ms {:>10.0} {:>10.0} {:>24} {:>6.1} {:>7.1} {:>6} {:>6.1} {:>7.1}",
            flows,
            flush,
            figure.offered_per_second,
            figure.flows_per_second,
            format!("{p50:.1}/{p99:.1}/{max:.1}"),
            figure.wire_bytes,
            figure.memory_bytes,
            figure.events_lost,
            figure.agents_cpu_pct,
            figure.disturbance.steal_pct
        );
        rows.push(&figure)?;
    }
    Ok(())
}

fn measure(flows: u64, flush: u64) -> Result<Figure> {
    let topology = Topology { nodes: 2, backends: 2, ..Topology::new(format!("replicate{}", std::process::id())) };
    let config = Config {
        flush: Some(format!("{flush}ms")),
        // A quarter full, so that hardly any bucket is.
        flows4: Some((flows * 4).next_power_of_two().max(65_536) as u32),
        ..Config::standard(&topology)
    };
    let lab = Lab::up(&topology)?;
    lab.configure(&config)?;
    lab.start_agents()?;
    let mut nodes = [Node::of(&lab, 1)?, Node::of(&lab, 2)?];
    current(&nodes)?;
    let memory_before = grown(&nodes)?;
    let usage_before = nodes.iter().map(|node| Usage::of(node.pid)).collect::<Result<Vec<_>>>()?;
    let watch = Watch::start();

    let (first_change, offered) = make(&mut nodes, flows)?;
    let (counters, took) = arrived(&nodes, first_change)?;
    let disturbance = watch.seen();
    let mut cpu = 0.0;
    let mut threads = Vec::new();
    for (node, before) in nodes.iter().zip(&usage_before) {
        let share = Usage::of(node.pid)?.since(before);
        cpu += share.all;
        threads.extend(share.threads);
    }
    let sum = |of: fn(&Counters) -> u64| counters.iter().map(of).sum::<u64>() as f64;
    let sent = |one: &Counters| one.peers.values().map(|peer| peer.sent).sum::<u64>();
    let bytes = |one: &Counters| one.peers.values().map(|peer| peer.bytes).sum::<u64>();
    let lags: Vec<_> = counters.iter().flat_map(|one| one.peers.values()).map(|peer| peer.lag).collect();
    // The worse of the two.
    let lag = |of: fn(&redirector::replication::Lag) -> u64| lags.iter().map(of).max().unwrap_or(0) as f64 / 1000.0;
    let arrived = sum(|one| one.peers.values().map(|peer| peer.acknowledged).sum());
    let wire_bytes = sum(bytes) / sum(sent).max(1.0);
    let memory_bytes = counters[0].flow_bytes.ipv4 as f64;
    let long = flows >= RATE * 2;
    Ok(Figure {
        flows,
        arrived: arrived as u64,
        flush_ms: flush,
        offered_per_second: offered.round(),
        flows_per_second: (arrived / took.as_secs_f64()).round(),
        lag_ms: Spread { p50: lag(|lag| lag.p50), p99: lag(|lag| lag.p99), max: lag(|lag| lag.max) },
        wire_bytes,
        memory_bytes,
        grown_bytes: (grown(&nodes)?.saturating_sub(memory_before)) as f64 / 2.0 / arrived.max(1.0),
        bytes: wire_bytes + memory_bytes,
        events_lost: sum(|one| one.events_lost) as u64,
        agents_cpu_pct: cpu,
        threads_cpu_pct: threads,
        targets: Targets {
            lag: if flush <= 10 { 20.0 } else { 100.0 },
            bytes: BYTES,
            // Of few flows the last flush is most of the time.
            flows_per_second: long.then_some(RATE as f64),
        },
        disturbance,
    })
}

/// Waits until the nodes have nothing to make up for.
fn current(nodes: &[Node]) -> Result<()> {
    let begun = Instant::now();
    loop {
        let mut all = true;
        for node in nodes {
            let peers = node.counters()?.peers;
            all &= peers.len() == 1 && peers.values().all(|peer| peer.state == State::Current);
        }
        if all {
            return Ok(());
        }
        ensure!(begun.elapsed() < PATIENCE, "the nodes do not get current");
        thread::sleep(Duration::from_millis(50));
    }
}

fn grown(nodes: &[Node]) -> Result<u64> {
    nodes.iter().map(|node| Ok(memory(node.pid)?.0)).sum()
}

/// Makes so many connections at the pace that is aimed at. When the first was proven, and how many were a second.
fn make(nodes: &mut [Node], flows: u64) -> Result<(Instant, f64)> {
    let a_step = OFFERED * STEP.as_millis() as u64 / 1000;
    let steps = flows.div_ceil(a_step);
    let count = |step: u64| (flows - step * a_step).min(a_step) as u32;
    let begun = Instant::now();
    let mut first = None;
    for step in 0..steps + BETWEEN {
        thread::sleep((begun + STEP * step as u32).saturating_duration_since(Instant::now()));
        for node in &mut *nodes {
            if step < steps {
                node.send(Kind::Opening, step * a_step, count(step))?;
            }
            if let Some(step) = step.checked_sub(BETWEEN) {
                first.get_or_insert_with(Instant::now);
                node.send(Kind::Established, step * a_step, count(step))?;
            }
        }
    }
    let first = first.context("there are steps")?;
    // The last step has its time too.
    let took = first.elapsed().max(STEP * steps as u32);
    Ok((first, flows as f64 / took.as_secs_f64()))
}

/// Waits until all that was told of has arrived for certain, and says after what time.
fn arrived(nodes: &[Node], begun: Instant) -> Result<(Vec<Counters>, Duration)> {
    let mut before = 0;
    loop {
        let counters = nodes.iter().map(Node::counters).collect::<Result<Vec<_>>>()?;
        let took = begun.elapsed();
        let peers = || counters.iter().flat_map(|one| one.peers.values());
        let (arrived, waiting) =
            (peers().map(|peer| peer.acknowledged).sum::<u64>(), peers().map(|peer| peer.backlog).sum::<u64>());
        let told: u64 = counters.iter().map(|one| one.events + one.events_lost).sum();
        let whole = peers().all(|peer| peer.state == State::Current);
        if waiting == 0 && whole && told > 0 && arrived >= told && arrived == before {
            return Ok((counters, took));
        }
        before = arrived;
        if took > PATIENCE {
            bail!("{arrived} of {told} flows have arrived after {took:?}, and {waiting} wait: {counters:?}");
        }
        thread::sleep(Duration::from_millis(10));
    }
}
