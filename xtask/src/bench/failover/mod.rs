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
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use std::{fs, io};

use anyhow::{Context, Result, anyhow, ensure};

use super::random::Random;
use cluster::Cluster;
use fault::{Fault, Stage};
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
    /// How often each fault is made: 50 times, or as often as the time of a short version allows, once at least
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

/// Measures, shows, and writes. Of a time within which to do it every fault has a fair share: it is made once, and again as
/// long as its share lasts; faults that the time does not suffice for at all are said not to have been run.
pub(super) fn run(args: &Args, within: Option<Duration>, json: &Path) -> Result<()> {
    let kills = args.kills.unwrap_or(if within.is_some() { 1 } else { 50 });
    ensure!(kills > 0, "--kills 0 measures nothing");
    let seed = args.seed.unwrap_or_else(seed_of_now);
    println!("failover: profile {}, {kills} kills each, seed {seed}", args.profile.name());
    let faults = if args.faults.is_empty() { Fault::ALL.to_vec() } else { args.faults.clone() };
    let until = within.map(|time| Instant::now() + time);
    let (mut outcomes, mut failed, count) = (Vec::new(), Vec::new(), faults.len() as u32);
    let mut up = None;
    for (fault, left) in faults.into_iter().zip((1..=count).rev()) {
        println!("\n{}: {}", fault.name(), fault.what());
        let rest = until.map(|until| until.saturating_duration_since(Instant::now()));
        let share = rest.map(|rest| Instant::now() + rest / left);
        let mut made = Vec::new();
        let done = match rest {
            Some(Duration::ZERO) => Err(anyhow!("the time was over")),
            _ => make(args, fault, kills, share, seed, &mut up, &mut made),
        };
        if done.is_err() {
            // Nobody knows how it was left.
            up = None;
        }
        let outcome = match done {
            Err(error) if made.is_empty() => {
                // keepalived need not be there.
                failed.extend((fault != Fault::Keepalived).then(|| fault.name()));
                Outcome::not_run(fault, args.profile, format!("{error:#}"))
            }
            done => {
                if let Err(error) = done {
                    println!("  FAILED: {error:#}");
                    failed.push(fault.name());
                }
                Outcome::of(fault, args.profile, made)?
            }
        };
        println!("  {outcome}");
        outcomes.push(outcome);
        // Each is worth keeping if a later one fails.
        let text = serde_json::to_string_pretty(&outcomes)?;
        fs::write(json, text + "\n").with_context(|| format!("cannot write {}", json.display()))?;
    }
    println!();
    figures::table(&mut io::stdout().lock(), &outcomes)?;
    ensure!(failed.is_empty(), "not all kills of {} were made", failed.join(", "));
    Ok(())
}

/// What is up, and what it is for.
type Up = Option<(Stage, Box<dyn Scene>)>;

/// What a fault is made in: what there is already, if that serves, else a new one in its place.
fn scene<'a>(args: &Args, stage: Stage, up: &'a mut Up) -> Result<&'a mut dyn Scene> {
    if up.as_ref().is_some_and(|(present, _)| *present != stage) {
        // Two at once would disturb each other.
        *up = None;
    }
    let (_, scene) = match up.take() {
        Some(present) => up.insert(present),
        None => up.insert((stage, bring_up(args, stage)?)),
    };
    Ok(scene.as_mut())
}

fn bring_up(args: &Args, stage: Stage) -> Result<Box<dyn Scene>> {
    Ok(match stage {
        Stage::Keepalived => Box::new(Keepalived::up(args)?),
        _ => Box::new(Cluster::up(args, stage)?),
    })
}

/// After so many deaths nodes and paths begin to be let in much later than the first time, as those that flap are.
const DEATHS_OF_A_SCENE: u32 = 5;

/// Makes a fault as often as is wanted, but not again after `share`.
fn make(
    args: &Args,
    fault: Fault,
    kills: u32,
    share: Option<Instant>,
    seed: u64,
    up: &mut Up,
    made: &mut Vec<Kill>,
) -> Result<()> {
    let mut random = Random::new(seed);
    for number in 1..=kills {
        if number > 1 && share.is_some_and(|share| Instant::now() >= share) {
            println!("  no time for more");
            break;
        }
        if fault.is_death() && kills > DEATHS_OF_A_SCENE && number % DEATHS_OF_A_SCENE == 1 {
            *up = None;
        }
        let scene = scene(args, fault.stage(), up)?;
        let kill = scene.kill(fault, number, &mut random).with_context(|| format!("kill {number} of {kills}"))?;
        println!("  {number:>3} of {kills}: {kill}");
        made.push(kill);
    }
    Ok(())
}

fn seed_of_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
