//! Measurements that load BPF programs. They are benches of the suite, since `xtask` is built before the BPF toolchain is
//! there; each writes its figures to a file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::{lab, step};

/// How long a figure that was begun in time may take.
const UNDER_WAY: Duration = Duration::from_secs(45);

/// How long a measurement may take at full length.
const LONGEST: Duration = Duration::from_secs(3600);

const POLL: Duration = Duration::from_millis(50);

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

    /// Has the bench `target` measure what `name` says, its figures into `json`; `within` a time, a short version.
    pub(super) fn run(&self, target: &str, name: Option<&str>, within: Option<Duration>, json: &Path) -> Result<()> {
        lab::mount_bpffs()?;
        let path = |name: &str| self.0.get(name).with_context(|| format!("cargo built no {name}"));
        let mut bench = Command::new(path(target)?);
        bench.current_dir(step::workspace()).env("REDIRECTOR_BIN", path("redirector")?);
        bench.args(name);
        if let Some(time) = within {
            bench.args(["--short", "--within", &time.as_secs().to_string()]);
        }
        bench.arg("--json").arg(std::path::absolute(json).with_context(|| format!("what is {}", json.display()))?);
        bounded(&mut bench, within.map_or(LONGEST, |time| time + UNDER_WAY))
    }
}

/// Runs a bench to its end, or kills it and takes down what it leaves.
fn bounded(bench: &mut Command, longest: Duration) -> Result<()> {
    let mut child = bench.spawn().with_context(|| format!("run {}", bench.get_program().display()))?;
    let until = Instant::now() + longest;
    while Instant::now() < until {
        if let Some(status) = child.try_wait()? {
            ensure!(status.success(), "{status}");
            return Ok(());
        }
        thread::sleep(POLL);
    }
    child.kill().and_then(|()| child.wait()).context("a bench that hangs cannot be killed")?;
    lab::take_down_abandoned()?;
    lab::remove_pins(&format!("redirector-bench-{}-", child.id()))?;
    bail!("it hung: nothing had come of it after {} s", longest.as_secs())
}
