//! Time of the loaded program per packet, against a floor that swaps two MAC addresses and sends the packet back.
//!
//! Floor and cell are measured in turn, in short slices on one CPU, both under the same wrapper (`redirector-bench`), so
//! that what disturbs the machine disturbs both. A slice during which the host took the CPU away (its `steal` grew) is
//! taken again, at most twice, whichever of the two it is. Given are medians over the rounds and the paired ratio.
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

use std::fs;

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;

use cells::Cell;
use measure::Bench;

/// What was measured of one cell with one number of flows.
#[derive(Debug, Serialize)]
struct Figure {
    cell: &'static str,
    flows: u64,
    ns_median: f64,
    floor_ns_median: f64,
    wrapper_ns_median: f64,
    ratio_median: f64,
    ratio_p10: f64,
    ratio_p90: f64,
    /// The ratio that was aimed at.
    target: Option<f64>,
}

/// What was asked for.
struct Options {
    json: Option<String>,
    /// Fewer rounds and steps, of the other measurements.
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
        let mut options =
            Self { json: None, short: false, cells: Vec::new(), flows: None, rounds: ROUNDS, object: None };
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().with_context(|| format!("{argument} wants a value"));
            match argument.as_str() {
                "--json" => options.json = Some(value()?),
                "--short" => options.short = true,
                "--cell" => options.cells.push(value()?),
                "--flows" => options.flows = Some(value()?.parse().context("--flows wants a number")?),
                "--rounds" => options.rounds = value()?.parse().context("--rounds wants a number")?,
                "--object" => options.object = Some(value()?),
                // What cargo adds to every bench.
                "--bench" => {}
                other => anyhow::bail!(
                    "unknown argument {other}; there are --json FILE, --short, --cell NAME, --flows N, --rounds N, --object FILE"
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
const ROUNDS: usize = 9;

/// Another measurement than that of the cells, if one is named.
fn other(name: &str) -> Option<fn(&Options) -> Result<serde_json::Value>> {
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
    if let Some(measure) = other {
        return write(&options, &measure(&options)?);
    }
    let object = match &options.object {
        Some(file) => fs::read(file).with_context(|| format!("cannot read {file}"))?,
        None => redirector::OBJECT.to_vec(),
    };
    let mut bench = Bench::new(&object)?;
    let mut figures = Vec::new();
    println!(
        "{:<14} {:>9} {:>9} {:>9} {:>7} {:>13} {:>7}",
        "cell", "flows", "ns", "floor ns", "ratio", "p10..p90", "target"
    );
    for cell in cells::ALL.iter().filter(|cell| options.takes(cell.name)) {
        for (flows, target) in
            cell.flows().into_iter().filter(|(flows, _)| options.flows.is_none_or(|only| only == *flows))
        {
            let figure = measure(&mut bench, cell, flows, target, options.rounds)?;
            let verdict = match figure.target {
                Some(target) if figure.ratio_median <= target => format!("≤ {target}"),
                Some(target) => format!("> {target} !"),
                None => "–".to_owned(),
            };
            println!(
                "{:<14} {:>9} {:>9.1} {:>9.1} {:>7.2} {:>6.2}..{:<5.2} {:>7}",
                figure.cell,
                figure.flows,
                figure.ns_median,
                figure.floor_ns_median,
                figure.ratio_median,
                figure.ratio_p10,
                figure.ratio_p90,
                verdict
            );
            figures.push(figure);
        }
    }
    write(&options, &figures)
}

fn write(options: &Options, figures: &impl Serialize) -> Result<()> {
    let Some(file) = &options.json else { return Ok(()) };
    fs::write(file, serde_json::to_string_pretty(figures)?).with_context(|| format!("cannot write {file}"))
}

fn measure(bench: &mut Bench, cell: &Cell, flows: u64, target: Option<f64>, rounds: usize) -> Result<Figure> {
    bench.prepare(cell, flows)?;
    let (mut of_cell, mut of_floor, mut of_wrapper, mut ratios) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        let floor = bench.floor(cell, flows)?;
        let own = bench.cell(cell, flows)?;
        of_wrapper.push(bench.wrapper(cell, flows)?);
        of_floor.push(floor);
        of_cell.push(own);
        ratios.push(own / floor);
    }
    Ok(Figure {
        cell: cell.name,
        flows,
        ns_median: quantile(&mut of_cell, 0.5),
        floor_ns_median: quantile(&mut of_floor, 0.5),
        wrapper_ns_median: quantile(&mut of_wrapper, 0.5),
        ratio_median: quantile(&mut ratios, 0.5),
        ratio_p10: quantile(&mut ratios, 0.1),
        ratio_p90: quantile(&mut ratios, 0.9),
        target,
    })
}

/// A quantile by nearest rank.
fn quantile(values: &mut [f64], at: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    values[((values.len() - 1) as f64 * at).round() as usize]
}
