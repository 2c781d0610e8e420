//! `cargo xtask bench`: measures what the program exists for, against a floor and against what people would use instead.

mod failover;
pub mod machine;
mod random;
mod report;
pub mod rows;
pub mod spread;
mod suite;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::setup::{self, Purpose};
use crate::step::{self, Report};
use report::Results;
use suite::Suite;

/// What to measure.
#[derive(clap::Args)]
pub struct Args {
    /// The measurements; all of them, in a short version, unless some are named
    #[arg(value_enum, value_name = "NAME")]
    names: Vec<Name>,
    /// Fewer rounds and steps, as when none is named
    #[arg(long)]
    short: bool,
    /// Write the figures to this file: the list of the one measurement that is named, else an object of several
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write a page with plots to this file, which needs nothing besides itself
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Write every plot to a file in this directory
    #[arg(long, value_name = "DIRECTORY")]
    plots: Option<PathBuf>,
    /// Say what got worse since the run that wrote this file, and end with status 1 if anything did
    #[arg(long, value_name = "FILE")]
    compare: Option<PathBuf>,
    /// Measure nothing, and take the figures that an earlier run has written to this file
    #[arg(long, value_name = "FILE", conflicts_with_all = ["short", "json"])]
    from: Option<PathBuf>,
    #[command(flatten)]
    failover: failover::Args,
}

/// Measurements that there are, in the order in which they are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
enum Name {
    /// Time of the loaded program per packet, against a floor.
    Packet,
    /// Packets a second over a real veth pair, against a floor and against nftables DNAT.
    Forward,
    /// Flows copied a second between agents, the lag, and the bytes that a flow takes.
    Replicate,
    /// Time from a committed change of the members to the new slot table in force.
    Rewrite,
    /// Cost of a packet, and memory, against numbers of flows, services, backends and nodes.
    Scale,
    /// CPU and memory of agents, idle and replicating.
    Cpu,
    /// For how long a stream is interrupted by faults, beside keepalived.
    Failover,
}

impl Name {
    const ALL: [Self; 7] =
        [Self::Packet, Self::Forward, Self::Replicate, Self::Rewrite, Self::Scale, Self::Cpu, Self::Failover];

    fn name(self) -> &'static str {
        match self {
            Self::Packet => "packet",
            Self::Forward => "forward",
            Self::Replicate => "replicate",
            Self::Rewrite => "rewrite",
            Self::Scale => "scale",
            Self::Cpu => "cpu",
            Self::Failover => "failover",
        }
    }

    /// The bench of the suite that makes it, if one does.
    fn bench(self) -> Option<&'static str> {
        match self {
            Self::Packet | Self::Forward | Self::Rewrite | Self::Scale => Some("packet"),
            Self::Replicate | Self::Cpu => Some("agents"),
            Self::Failover => None,
        }
    }

    /// The seconds after which a short version begins no further figure, unless [`WHOLE`] is over before.
    fn time(self) -> Duration {
        Duration::from_secs(match self {
            Self::Packet => 40,
            Self::Forward => 80,
            Self::Replicate => 45,
            Self::Rewrite => 15,
            Self::Scale => 40,
            Self::Cpu => 90,
            Self::Failover => 230,
        })
    }

    /// Makes it, and writes its rows.
    fn measure(self, suite: &Suite, failover: &failover::Args, within: Option<Duration>, file: &Path) -> Result<()> {
        // The suite's first bench measures this where nothing is named.
        let name = (self != Self::Packet).then(|| self.name());
        match self.bench() {
            Some(bench) => suite.run(bench, name, within, file),
            None => failover::run(failover, within, file),
        }
    }
}

/// After so long no figure of a short version is begun: with what is then under way it takes less than ten minutes.
const WHOLE: Duration = Duration::from_secs(560);

/// The command in words, when it was given, and of which state of the project.
fn told(short: bool) -> String {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let read = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).current_dir(step::workspace()).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let commit = read("git", &["describe", "--always", "--dirty"]).unwrap_or_else(|| "no commit".to_owned());
    let day = read("date", &["-u", "+%F"]).unwrap_or_default();
    let version = if short { "the short version" } else { "at full length" };
    format!("`cargo xtask {}` ({version}), {commit}, {day}", arguments.join(" "))
}

/// Runs the measurements, with set-up, and writes what was asked for.
pub fn command(args: Args) -> Result<()> {
    if let Some(file) = &args.from {
        let only = args.names.first().filter(|_| args.names.len() == 1).map(|name| name.name());
        return finish(&args, &Results::of(file, only)?);
    }
    ensure!(crate::step::is_root(), "measuring loads BPF programs and makes network namespaces: run this as root");
    setup::command(Purpose::Bench)?;
    let short = args.short || args.names.is_empty();
    let mut names = if args.names.is_empty() { Name::ALL.to_vec() } else { args.names.clone() };
    names.sort();
    names.dedup();
    let machine = machine::describe();
    println!("on {machine}");
    let mut benches: Vec<&str> = names.iter().filter_map(|name| name.bench()).collect();
    benches.sort_unstable();
    benches.dedup();
    let suite = Suite::build(&benches)?;

    let directory = env::temp_dir().join(format!("redirector-bench-{}", std::process::id()));
    fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
    let (mut results, mut report, begun) = (Results::default(), Report::default(), Instant::now());
    results.describe(&format!("On {machine}, by {}", told(short)));
    for (at, name) in names.iter().enumerate() {
        let file = directory.join(name.name());
        // The last has what the others have left over.
        let rest = WHOLE.saturating_sub(begun.elapsed());
        let within = short.then(|| if at + 1 == names.len() { rest } else { name.time().min(rest) });
        let most = within.map_or_else(String::new, |within| format!(", {} s for it", within.as_secs()));
        let progress = format!("{} of {}, {:.0} s so far{most}", at + 1, names.len(), begun.elapsed().as_secs_f64());
        report.step(name.name(), &progress, || {
            Results::how(name.name()).iter().for_each(|how| println!("{how}"));
            let measured = name.measure(&suite, &args.failover, within, &file);
            // What was measured before something failed is worth keeping.
            if measured.is_ok() || file.exists() {
                results.read(name.name(), &file)?;
            }
            measured
        });
        if let Some(json) = &args.json {
            results.write(json)?;
        }
    }
    fs::remove_dir_all(&directory).with_context(|| format!("cannot remove {}", directory.display()))?;
    let finished = finish(&args, &results);
    report.finish()?;
    finished
}

/// Writes page and plots, and compares.
fn finish(args: &Args, results: &Results) -> Result<()> {
    results.show_targets();
    if let Some(file) = &args.html {
        results.page(file)?;
    }
    if let Some(directory) = &args.plots {
        results.plots(directory)?;
    }
    if let Some(file) = &args.compare {
        let worse = results.compare(file)?;
        ensure!(worse == 0, "{worse} figures are worse than in {}", file.display());
    }
    Ok(())
}
