//! `cargo xtask bench`: measures what the program exists for. So far the packet path.

use std::path::PathBuf;

use anyhow::{Context as _, Result};

use crate::setup::{self, Purpose};
use crate::step;

/// What to measure.
#[derive(clap::Args)]
pub struct Args {
    /// The measurement.
    #[arg(value_enum, default_value = "packet")]
    name: Name,
    /// Write the figures to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Measurements that there are.
#[derive(Clone, Copy, clap::ValueEnum)]
enum Name {
    /// Time of the loaded program per packet, against a floor.
    Packet,
}

impl Name {
    fn bench(self) -> &'static str {
        match self {
            Self::Packet => "packet",
        }
    }
}

/// Runs a measurement, with set-up.
pub fn command(args: Args) -> Result<()> {
    setup::command(Purpose::Demo)?;
    let mut cargo = step::cargo();
    cargo.args(["bench", "--quiet", "--package", "suite", "--bench", args.name.bench(), "--"]);
    if let Some(file) = args.json {
        // The bench runs in the package's directory, not in this one.
        cargo.arg("--json").arg(std::path::absolute(&file).with_context(|| format!("what is {}", file.display()))?);
    }
    step::run(&mut cargo)
}
