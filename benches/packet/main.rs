//! Time of the loaded program per packet, against a floor that swaps two MAC addresses and sends the packet back.
//!
//! Floor, cell, and the wrapper around a program that returns at once, are measured in turn, in slices of 100,000 packets on
//! one CPU at real-time priority, all under the same wrapper (`redirector-bench`), so that what disturbs the machine
//! disturbs all. A slice during which the host took the CPU away (its `steal` grew) or another thread did (the involuntary
//! switches of this one grew) is dropped and taken again, at most four times, whichever of the three it is; the last one
//! counts in any case. Given are medians over the rounds and the paired ratio.
//!
//! A packet of a `shared` service costs a cluster what it costs the node where it enters, however many there are. One of an
//! `owned` service enters at another node than its owner with a probability of (n - 1) / n, and costs a forwarding besides:
//! that is summed up round by round for 3, 8 and 64 nodes.
//!
//! Figures are of `BPF_PROG_TEST_RUN`: no driver, no DMA, warm instruction cache.
//!
//! With `forward`, `scale` or `rewrite` as its first argument it measures that instead; each module says what it is.

mod cells;
mod forward;
mod measure;
mod node;
mod rewrite;
mod scale;

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;
use xtask::bench::machine::{Disturbance, Slices, Watch};
use xtask::bench::rows::Rows;
use xtask::bench::spread::{Ratios, median};

use cells::Cell;
use measure::Bench;

/// What was measured of one cell with one number of flows.
#[derive(Debug, Serialize)]
struct Figure {
    cell: String,
    flows: u64,
    ns_median: f64,
    floor_ns_median: f64,
    wrapper_ns_median: f64,
    /// What it takes without the wrapper.
    net_ns_median: f64,
    #[serde(flatten)]
    ratios: Ratios,
    #[serde(flatten)]
    disturbance: Disturbance,
    #[serde(flatten)]
    slices: Slices,
    /// The ratio that was aimed at.
    target: Option<f64>,
}

/// What was asked for.
struct Options {
    json: Option<PathBuf>,
    /// No figure is begun after this.
    within: Option<Duration>,
    /// Fewer rounds and steps.
    short: bool,
    /// Cells whose name begins so; none: all.
    cells: Vec<String>,
    /// One number of flows in place of all.
    flows: Option<u64>,
    /// Rounds of floor and cell.
    rounds: usize,
    /// Another build of the object than the one that the agent has in it.
    object: Option<String>,
}

impl Options {
    fn of(mut arguments: impl Iterator<Item = String>) -> Result<Self> {
        let mut options = Self {
            json: None,
            within: None,
            short: false,
            cells: Vec::new(),
            flows: None,
            rounds: ROUNDS,
            object: None,
        };
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().with_context(|| format!("{argument} wants a value"));
            match argument.as_str() {
                "--json" => options.json = Some(value()?.into()),
                "--within" => {
                    options.within = Some(Duration::from_secs(value()?.parse().context("--within wants seconds")?));
                }
                "--short" => (options.short, options.rounds) = (true, ROUNDS_SHORT),
                "--cell" => options.cells.push(value()?),
                "--flows" => options.flows = Some(value()?.parse().context("--flows wants a number")?),
                "--rounds" => options.rounds = value()?.parse().context("--rounds wants a number")?,
                "--object" => options.object = Some(value()?),
                // What cargo adds to every bench.
                "--bench" => {}
                other => anyhow::bail!(
                    "unknown argument {other}; there are --json FILE, --short, --within SECONDS, --cell NAME, --flows N, --rounds N, --object FILE"
                ),
            }
        }
        ensure!(options.rounds > 0, "--rounds wants one at least");
        Ok(options)
    }

    fn takes(&self, cell: &str) -> bool {
        self.cells.is_empty() || self.cells.iter().any(|name| cell.starts_with(name.as_str()))
    }
}

/// Rounds of floor and cell, where nothing else is asked for.
const ROUNDS: usize = 21;
const ROUNDS_SHORT: usize = 5;

/// Another measurement than that of the cells, if one is named.
fn other(name: &str) -> Option<fn(&Options, &mut Rows) -> Result<()>> {
    match name {
        "forward" => Some(forward::run),
        "rewrite" => Some(rewrite::run),
        "scale" => Some(scale::run),
        _ => None,
    }
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1).peekable();
    let other = arguments.peek().and_then(|name| other(name));
    let options = Options::of(arguments.skip(usize::from(other.is_some())))?;
    // SAFETY: takes nothing, fails never.
    let root = unsafe { libc::geteuid() } == 0;
    ensure!(root, "needs root, for BPF: sudo -E env \"PATH=$PATH\" cargo bench --bench packet");
    let mut rows = Rows::new(options.json.clone(), options.within);
    match other {
        Some(measure) => measure(&options, &mut rows)?,
        None => cells(&options, &mut rows)?,
    }
    rows.finish()
}

fn cells(options: &Options, rows: &mut Rows) -> Result<()> {
    let object = match &options.object {
        Some(file) => fs::read(file).with_context(|| format!("cannot read {file}"))?,
        None => redirector::OBJECT.to_vec(),
    };
    let mut bench = Bench::new(&object)?;
    let mut of_one_flow = HashMap::new();
    println!(
        "{:<16} {:>9} {:>8} {:>9} {:>10} {:>6} {:>13} {:>7}",
        "cell", "flows", "ns", "floor ns", "wrapper ns", "ratio", "p10..p90", "target"
    );
    for cell in cells::ALL.iter().filter(|cell| options.takes(cell.name)) {
        for (flows, target) in
            cell.flows().into_iter().filter(|(flows, _)| options.flows.is_none_or(|only| only == *flows))
        {
            if !rows.begin(format_args!("{}, {flows} flows", cell.name)) {
                continue;
            }
            let rounds = measure(&mut bench, cell, flows, options.rounds)?;
            let figure = rounds.figure(cell.name.to_owned(), flows, target)?;
            figure.show();
            rows.push(&figure)?;
            if flows == 1 {
                of_one_flow.insert(cell.name, rounds);
            }
        }
    }
    for figure in cluster(&of_one_flow)? {
        figure.show();
        rows.push(&figure)?;
    }
    Ok(())
}

/// Nanoseconds a packet, round by round.
#[derive(Default)]
struct Rounds {
    own: Vec<f64>,
    floor: Vec<f64>,
    wrapper: Vec<f64>,
    disturbance: Disturbance,
    slices: Slices,
}

impl Rounds {
    fn figure(&self, cell: String, flows: u64, target: Option<f64>) -> Result<Figure> {
        let of_each = |ns: &Vec<f64>| median(ns.iter().copied());
        let net = self.own.iter().zip(&self.wrapper).map(|(own, wrapper)| (own - wrapper).max(0.0));
        Ok(Figure {
            cell,
            flows,
            ns_median: of_each(&self.own)?,
            floor_ns_median: of_each(&self.floor)?,
            wrapper_ns_median: of_each(&self.wrapper)?,
            net_ns_median: median(net)?,
            ratios: Ratios::of(self.own.iter().zip(&self.floor).map(|(own, floor)| own / floor))?,
            disturbance: self.disturbance,
            slices: self.slices,
            target,
        })
    }
}

impl Figure {
    fn show(&self) {
        let verdict = match self.target {
            Some(target) if self.ratios.ratio_median <= target => format!("≤ {target}"),
            Some(target) => format!("> {target} !"),
            None => "–".to_owned(),
        };
        println!(
            "{:<16} {:>9} {:>8.1} {:>9.1} {:>10.1} {:>6.2} {:>6.2}..{:<5.2} {:>7}",
            self.cell,
            self.flows,
            self.ns_median,
            self.floor_ns_median,
            self.wrapper_ns_median,
            self.ratios.ratio_median,
            self.ratios.ratio_p10,
            self.ratios.ratio_p90,
            verdict
        );
    }
}

fn measure(bench: &mut Bench, cell: &Cell, flows: u64, rounds: usize) -> Result<Rounds> {
    bench.prepare(cell, flows)?;
    bench.slices();
    let (mut measured, watch) = (Rounds::default(), Watch::start());
    for _ in 0..rounds {
        measured.floor.push(bench.floor(cell, flows)?);
        measured.own.push(bench.cell(cell, flows)?);
        measured.wrapper.push(bench.wrapper(cell, flows)?);
    }
    (measured.disturbance, measured.slices) = (watch.seen(), bench.slices());
    Ok(measured)
}

/// What a packet costs all nodes together, for clusters of several sizes, where the cells that it is made of were measured.
fn cluster(measured: &HashMap<&str, Rounds>) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for nodes in [3, 8, 64] {
        if let Some(shared) = measured.get("shared-l2") {
            figures.push(shared.figure(format!("cluster-{nodes}-shared"), 1, None)?);
        }
        if let (Some(owned), Some(forward)) = (measured.get("owned-l2"), measured.get("owned-forward")) {
            let share = f64::from(nodes - 1) / f64::from(nodes);
            let own = owned.own.iter().zip(&forward.own).map(|(own, hop)| own + share * hop).collect();
            let wrapper = owned.wrapper.iter().zip(&forward.wrapper).map(|(own, hop)| own + share * hop).collect();
            let rounds = Rounds { own, floor: owned.floor.clone(), wrapper, ..*owned };
            figures.push(rounds.figure(format!("cluster-{nodes}-owned"), 1, None)?);
        }
    }
    Ok(figures)
}
