//! Runs seeds on all cores; ends with status 1 if any fails.

use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use clap::Parser;
use simulation::flaw::Flaw;
use simulation::{replay, run};

/// Five nodes under virtual time and faults, from seeds.
#[derive(Parser)]
struct Args {
    /// How many seeds.
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// The first of them.
    #[arg(long = "seed", value_name = "FIRST", default_value_t = 1)]
    first: u64,
    /// Episodes of faults in each.
    #[arg(long, default_value_t = 3)]
    episodes: usize,
}

fn main() -> ExitCode {
    let Args { seeds, first, episodes } = Args::parse();
    let began = Instant::now();
    let (next, failed, seconds, suspicions, packets) =
        (AtomicU64::new(first), AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let work = || loop {
        let seed = next.fetch_add(1, Ordering::Relaxed);
        if seed >= first + seeds {
            return;
        }
        match run(seed, episodes, Flaw::None) {
            Ok(summary) => {
                seconds.fetch_add(summary.virtual_seconds, Ordering::Relaxed);
                suspicions.fetch_add(summary.suspicions, Ordering::Relaxed);
                packets.fetch_add(summary.packets, Ordering::Relaxed);
                if seeds == 1 {
                    println!("{summary:?}");
                }
            }
            Err(failure) => {
                failed.fetch_add(1, Ordering::Relaxed);
                println!("seed {seed} fails:\n{failure}\nreplay it: {}\n", replay(seed));
            }
        }
    };
    let cores = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| (0..cores).for_each(|_| drop(scope.spawn(work))));
    let failed = failed.into_inner();
    println!(
        "{seeds} seeds from {first}, {failed} failed; {} s of virtual time, {} suspicions, {} packets, in {:.1} s",
        seconds.into_inner(),
        suspicions.into_inner(),
        packets.into_inner(),
        began.elapsed().as_secs_f64()
    );
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
