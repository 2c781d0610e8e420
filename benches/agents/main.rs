//! What agents do and cost in a real cluster: `replicate` and `cpu`; each module says what it is.
//!
//! The cluster is a lab's: agents as users run them, in network namespaces. Flows come about by packets that the node's own
//! loaded program is run on (`BPF_PROG_TEST_RUN`), so that recording them, telling of them, sending and taking them are all
//! real, and no time goes into carrying the packets to the node.

mod cpu;
mod flows;
mod process;
mod replicate;

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use xtask::bench::rows::Rows;

fn main() -> Result<()> {
    // With fewer steps, and shorter.
    let (mut short, mut json, mut within) = (false, None, None);
    let mut name = None;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--short" => short = true,
            "--json" => json = Some(arguments.next().context("--json wants a file")?.into()),
            "--within" => {
                let seconds = arguments.next().context("--within wants seconds")?;
                within = Some(Duration::from_secs(seconds.parse().context("--within wants seconds")?));
            }
            // What cargo adds to every bench.
            "--bench" => {}
            _ if name.is_none() && !argument.starts_with('-') => name = Some(argument),
            other => {
                bail!("unknown argument {other}; there are replicate or cpu, --short, --within SECONDS, --json FILE")
            }
        }
    }
    let mut rows = Rows::new(json, within);
    match name.as_deref() {
        Some("replicate") => replicate::run(short, &mut rows)?,
        Some("cpu") => cpu::run(short, &mut rows)?,
        _ => bail!("name what to measure: replicate or cpu"),
    }
    rows.finish()
}
