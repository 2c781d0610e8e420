//! Measurements that load BPF programs. They are benches of the suite, since `xtask` is built before the BPF toolchain is
//! there; each writes its figures to a file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::step;

/// The benches, built.
pub(super) struct Suite(BTreeMap<String, PathBuf>);

impl Suite {
    /// Builds benches, and the program that agents are, so that no time goes into that later. Both in one go: apart, cargo
    /// would build what they have in common twice, with other features.
    pub(super) fn build(benches: &[&str]) -> Result<Self> {
        let mut cargo = step::cargo();
        cargo.args(["build", "--release", "--message-format=json-render-diagnostics"]);
        cargo.args(["--package", "redirector", "--package", "suite", "--bin", "redirector"]);
        for bench in benches {
            cargo.args(["--bench", bench]);
        }
        let messages = step::read(cargo.stderr(Stdio::inherit()))?;
        let executable = |line: &str| {
            let message: Value = serde_json::from_str(line).ok()?;
            let path = PathBuf::from(message["executable"].as_str()?);
            Some((message["target"]["name"].as_str()?.to_owned(), path))
        };
        Ok(Self(messages.lines().filter_map(executable).collect()))
    }

    /// Runs the bench `target` with these arguments, its figures into `json`.
    pub(super) fn run(&self, target: &str, arguments: &[&str], json: &Path) -> Result<()> {
        let path = |name: &str| self.0.get(name).with_context(|| format!("cargo built no {name}"));
        let mut bench = Command::new(path(target)?);
        bench.current_dir(step::workspace()).env("REDIRECTOR_BIN", path("redirector")?);
        bench.args(arguments);
        bench.arg("--json").arg(std::path::absolute(json).with_context(|| format!("what is {}", json.display()))?);
        step::run(&mut bench)
    }
}
