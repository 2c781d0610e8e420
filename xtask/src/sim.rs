//! The simulation: built optimised, then run.

use anyhow::Result;
use clap::Args as ClapArgs;

use crate::step;

/// Which seeds.
#[derive(ClapArgs, Debug)]
pub struct Args {
    /// How many seeds.
    #[arg(long, default_value_t = 100)]
    pub(crate) seeds: u64,
    /// The first of them.
    #[arg(long = "seed", value_name = "FIRST", default_value_t = 1)]
    pub(crate) first: u64,
}

/// Runs five nodes under virtual time and faults, once for each seed.
///
/// # Errors
/// Where a seed fails: what does not hold stands on the terminal, with the command that replays it.
pub fn command(args: &Args) -> Result<()> {
    let (seeds, first) = (args.seeds.to_string(), args.first.to_string());
    let mut cargo = step::cargo();
    cargo.args(["run", "--release", "--package", "simulation", "--bin", "sim", "--"]);
    step::run(cargo.args(["--seeds", &seeds, "--seed", &first]))
}
