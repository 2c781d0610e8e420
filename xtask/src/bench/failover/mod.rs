//! `bench failover`: for how long each kind of fault interrupts a stream through a real cluster, and what else it breaks.
//!
//! Per fault the same is done again and again: a node is chosen by chance, another is made the ingress, and flows that the
//! first owns are streamed beside long TCP connections; at a moment chosen by chance the fault is made; when answers come
//! again, or will not, the cluster is healed and awaited. keepalived gets the same stream and the same death.

mod cluster;
mod fault;
mod figures;
mod keepalived;
mod shot;

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};
use std::{fs, io};

use anyhow::{Context, Result, ensure};

use super::random::Random;
use cluster::Cluster;
use fault::Fault;
use figures::{Kill, Outcome};
use keepalived::Keepalived;

/// How to measure failover.
#[derive(clap::Args, Debug)]
#[group(id = "failover")]
#[command(next_help_heading = "Options of failover")]
pub(super) struct Args {
    /// How soon nodes suspect each other: `standard` (100 ms × 3), `fast` (10 ms × 3) or `extreme` (3 ms × 3)
    #[arg(long, value_enum, default_value = "fast")]
    profile: Profile,
    /// How often each fault is made: 50 times, or 2 in a short version
    #[arg(long)]
    kills: Option<u32>,
    /// The faults, all unless some are named
    #[arg(long = "fault", value_enum, value_name = "NAME")]
    faults: Vec<Fault>,
    /// Datagrams a second
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: u32,
    /// Flows among which they are divided: gaps are measured as finely as one flow is paced
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    flows: u32,
    /// Nodes of the cluster
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(2..=32))]
    nodes: u8,
    /// Repeats the choices of an earlier run
    #[arg(long)]
    seed: Option<u64>,
}

/// The intervals of beats that are measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Profile {
    Standard,
    Fast,
    Extreme,
}

impl Profile {
    fn name(self) -> &'static str {
        match self {
            Self::Standard => "standard",
            Self::Fast => "fast",
            Self::Extreme => "extreme",
        }
    }
}

/// What faults are made in.
trait Scene {
    /// Makes the fault once and says what it did.
    fn kill(&mut self, fault: Fault, number: u32, random: &mut Random) -> Result<Kill>;
}

/// Measures, shows, and writes.
pub(super) fn run(args: &Args, short: bool, json: &Path) -> Result<()> {
    let kills = args.kills.unwrap_or(if short { 2 } else { 50 });
    ensure!(kills > 0, "--kills 0 measures nothing");
    let seed = args.seed.unwrap_or_else(seed_of_now);
    println!("failover: profile {}, {kills} kills each, seed {seed}", args.profile.name());
    let faults = if args.faults.is_empty() { Fault::ALL.to_vec() } else { args.faults.clone() };
    let mut outcomes = Vec::new();
    for fault in faults {
        println!("\n{}: {}", fault.name(), fault.what());
        let outcome = match scene(args, fault)? {
            Ok(mut scene) => measure(args.profile, kills, fault, scene.as_mut(), Random::new(seed))?,
            Err(reason) => Outcome::not_run(fault, args.profile, reason),
        };
        println!("  {outcome}");
        outcomes.push(outcome);
        // Each is worth keeping if a later one fails.
        let text = serde_json::to_string_pretty(&outcomes)?;
        fs::write(json, text + "\n").with_context(|| format!("cannot write {}", json.display()))?;
    }
    println!();
    figures::table(&mut io::stdout().lock(), &outcomes)?;
    Ok(())
}

/// What the fault is made in, or why it cannot be made: keepalived need not be there.
fn scene(args: &Args, fault: Fault) -> Result<Result<Box<dyn Scene>, String>> {
    Ok(match fault {
        Fault::Keepalived => match Keepalived::up(args) {
            Ok(scene) => Ok(Box::new(scene)),
            Err(error) => Err(format!("{error:#}")),
        },
        _ => Ok(Box::new(Cluster::up(args, fault)?)),
    })
}

fn measure(profile: Profile, kills: u32, fault: Fault, scene: &mut dyn Scene, mut random: Random) -> Result<Outcome> {
    let mut made = Vec::new();
    for number in 1..=kills {
        let kill = scene.kill(fault, number, &mut random).with_context(|| format!("kill {number} of {kills}"))?;
        println!("  {number:>3} of {kills}: {kill}");
        made.push(kill);
    }
    Outcome::of(fault, profile, made)
}

fn seed_of_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
