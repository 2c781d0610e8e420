//! What agents do and cost in a real cluster: `replicate` and `cpu`; each module says what it is.
//!
//! The cluster is a lab's: agents as users run them, in network namespaces. Flows come about by packets that the node's own
//! loaded program is run on (`BPF_PROG_TEST_RUN`), so that recording them, telling of them, sending and taking them are all
//! real, and no time goes into carrying the packets to the node.

mod cpu;
mod flows;
mod process;
mod replicate;

use std::fs;

use anyhow::{Context as _, Result, bail};

/// How to measure.
struct Options {
    /// With fewer steps, and shorter.
    short: bool,
    json: Option<String>,
}

fn main() -> Result<()> {
    let mut options = Options { short: false, json: None };
    let mut name = None;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--short" => options.short = true,
            "--json" => options.json = Some(arguments.next().context("--json wants a file")?),
            // What cargo adds to every bench.
            "--bench" => {}
            _ if name.is_none() && !argument.starts_with('-') => name = Some(argument),
            other => bail!("unknown argument {other}; there are replicate or cpu, --short and --json FILE"),
        }
    }
    let figures = match name.as_deref() {
        Some("replicate") => replicate::run(&options)?,
        Some("cpu") => cpu::run(&options)?,
        _ => bail!("name what to measure: replicate or cpu"),
    };
    match &options.json {
        Some(file) => {
            fs::write(file, serde_json::to_string_pretty(&figures)?).with_context(|| format!("cannot write {file}"))
        }
        None => Ok(()),
    }
}
