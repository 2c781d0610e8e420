//! `bench packet`: time of the loaded program per packet, against a floor.

use std::path::Path;

use anyhow::{Context as _, Result};

use crate::step;

/// Runs the measurement, which is a bench of the suite since it loads the program.
pub(super) fn run(json: Option<&Path>) -> Result<()> {
    let mut cargo = step::cargo();
    cargo.args(["bench", "--quiet", "--package", "suite", "--bench", "packet", "--"]);
    if let Some(file) = json {
        // The bench runs in the package's directory, not in this one.
        cargo.arg("--json").arg(std::path::absolute(file).with_context(|| format!("what is {}", file.display()))?);
    }
    step::run(&mut cargo)
}
