//! `capacity`: learns from the traffic that there is how many packets a second this host can take, for the shedding of load.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use redirector_ebpf::reason::Reason;

use super::output::{Output, text_pairs};
use super::target::{CONFIG, require_root};
use crate::agent::control::{self, Answer, Request};
use crate::config::{self, Config};
use crate::dataplane::load;
use crate::dataplane::maps::Maps;
use crate::shedding::capacity::{Capacity, Reading, learn};
use crate::shedding::cpu_times;

/// How long the agent may take to answer.
const ANSWER: Duration = Duration::from_secs(5);

/// Ticks are hundredths of a second: below this they are too few.
const SHORTEST: Duration = Duration::from_secs(1);

/// Arguments of `capacity`.
#[derive(Debug, clap::Args)]
pub(super) struct Learn {
    /// How long packets and the time that CPUs spend on them are counted.
    #[arg(long = "for", value_name = "TIME", default_value = "10s", value_parser = humantime::parse_duration)]
    time: Duration,
    /// Tell what was learnt, and keep nothing.
    #[arg(long)]
    dry_run: bool,
    /// The node's configuration: what is learnt is kept in its data directory, for its agent.
    #[arg(long, value_name = "FILE", default_value = CONFIG)]
    config: PathBuf,
    #[command(flatten)]
    output: Output,
}

impl Learn {
    pub(super) fn run(self) -> Result<()> {
        require_root()?;
        if !(SHORTEST..=Duration::from_secs(3600)).contains(&self.time) {
            bail!("--for {:?} is not within 1s to 1h", self.time);
        }
        let config = config::load(&self.config)?;
        let maps = Maps::open(&load::directory(&config.node.pins))?;
        let began = Instant::now();
        let before = read(&maps, began)?;
        std::thread::sleep(self.time);
        let interfaces = config.interfaces.iter().map(|interface| interface.name.clone()).collect();
        let capacity = learn(&before, &read(&maps, began)?, interfaces)?;
        self.output.one(&capacity, || text(&capacity))?;
        if self.dry_run {
            return Ok(());
        }
        let kept = capacity.keep(&config.node.data);
        kept.with_context(|| format!("what was learnt cannot be kept in {}", config.node.data.display()))?;
        eprintln!("{}", take_over(&config));
        Ok(())
    }
}

/// Has the agent go by what is kept; says what comes of it.
fn take_over(config: &Config) -> String {
    if config.shedding.capacity != 0 {
        return "kept, and not used: [shedding] has a `capacity`, which holds".to_owned();
    }
    match control::ask_within(ANSWER, &control::path(config), &Request::Learn) {
        Ok(Answer::Done { .. }) => "kept, and the agent goes by it from now on".to_owned(),
        Ok(_) => "kept; the agent goes by it from its next start on".to_owned(),
        Err(error) => format!("kept; the agent goes by it from its next start on ({error:#})"),
    }
}

/// What is counted at this moment.
fn read(maps: &Maps, began: Instant) -> Result<Reading> {
    let counts = maps.all_reasons.sums()?;
    let ends = Reason::ALL.iter().filter(|reason| !reason.is_note());
    let packets = ends.filter_map(|reason| counts.get(*reason as usize)).sum();
    let stat = fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
    Ok(Reading { at: began.elapsed(), packets, cpus: cpu_times(&stat) })
}

fn text(capacity: &Capacity) -> String {
    text_pairs(vec![
        ("capacity", format!("{} packets/s", capacity.packets_per_second)),
        (
            "measured",
            format!(
                "{} for {:.1} s: {} packets/s on {} took {:.1} % of the busiest CPU",
                capacity.at(),
                capacity.seconds,
                capacity.seen_per_second,
                capacity.interfaces.join(", "),
                capacity.softirq_percent
            ),
        ),
        ("steal", format!("{:.1} %", capacity.steal_percent)),
    ])
}
