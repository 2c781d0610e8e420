//! `cargo xtask bench`: measures what the program exists for.

mod failover;
mod packet;
mod random;

use std::path::PathBuf;

use anyhow::{Result, ensure};

use crate::setup::{self, Purpose};

/// What to measure.
#[derive(clap::Args)]
pub struct Args {
    /// The measurements.
    #[arg(value_enum, value_name = "NAME", default_value = "packet")]
    names: Vec<Name>,
    /// Write the figures to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    #[command(flatten)]
    failover: failover::Args,
}

/// Measurements that there are.
#[derive(Clone, Copy, clap::ValueEnum)]
enum Name {
    /// Time of the loaded program per packet, against a floor.
    Packet,
    /// For how long a stream is interrupted by faults, beside keepalived.
    Failover,
}

/// Runs the measurements, with set-up.
pub fn command(args: Args) -> Result<()> {
    let Args { names, json, failover } = args;
    ensure!(json.is_none() || names.len() == 1, "--json takes the figures of one measurement: name one");
    setup::command(Purpose::Bench)?;
    names.iter().try_for_each(|name| match name {
        Name::Packet => packet::run(json.as_deref()),
        Name::Failover => failover::run(&failover, json.as_deref()),
    })
}
