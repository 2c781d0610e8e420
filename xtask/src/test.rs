//! All that is checked before a change is good.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::{env, fs};

use anyhow::{Context as _, Result, ensure};
use clap::{Args as ClapArgs, ValueEnum};

use crate::setup::{self, Purpose};
use crate::step::{self, Report};
use crate::{ebpf, kernel, sim};

/// How many seeds the simulation is run with, besides those that its tests try.
const SEEDS: u64 = 50;
const FIRST_SEED: u64 = 5;

/// What to check.
#[derive(ClapArgs, Debug)]
pub struct Args {
    /// Leave out what is slow: the long tests and the old kernel.
    #[arg(long, conflicts_with = "kernel")]
    quick: bool,
    /// Load and run every program on the oldest kernel promised, under qemu (the default where CI is set).
    #[arg(long)]
    kernel: bool,
    /// Do this step alone.
    #[arg(long, value_name = "STEP")]
    only: Option<Step>,
    /// Write what the programs cost now to `xtask/budget.toml`, instead of comparing.
    #[arg(long)]
    record: bool,
}

/// The steps, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Step {
    /// Formatting.
    Fmt,
    /// Lints.
    Clippy,
    /// The release binary, which namespace tests run.
    Build,
    /// Unit, property, differential and namespace tests.
    Test,
    /// Five nodes under virtual time and faults; the known bugs are found.
    Sim,
    /// What the BPF object holds and costs.
    Object,
    /// Every program on the oldest kernel promised.
    Kernel,
}

/// Does the steps asked for, goes on after one that failed, and sums up.
pub fn command(args: &Args) -> Result<()> {
    ensure!(step::is_root(), "the tests load BPF programs and make network namespaces: run this as root");
    let on_ci = env::var_os("CI").is_some_and(|value| !value.is_empty() && value != "false");
    let wanted = |step| match args.only {
        Some(only) => only == step,
        None => step != Step::Kernel || args.kernel || (on_ci && !args.quick),
    };
    setup::command(Purpose::Test)?;
    let mut report = Report::default();
    if wanted(Step::Fmt) {
        report.step("fmt", "cargo fmt --all --check", || step::run(step::cargo().args(["fmt", "--all", "--check"])));
    }
    if wanted(Step::Clippy) {
        report.step("clippy", "cargo clippy --workspace --all-targets -- -D warnings", || {
            step::run(step::cargo().args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))
        });
    }
    if wanted(Step::Build) {
        report.step("build", "cargo build --release --package redirector", || {
            step::run(step::cargo().args(["build", "--release", "--package", "redirector"]))
        });
    }
    if wanted(Step::Test) {
        report.step("test", "cargo test --workspace --exclude simulation", || {
            step::run(tests(args).args(["test", "--workspace", "--exclude", "simulation"]))
        });
    }
    if wanted(Step::Sim) {
        let what = format!("cargo test --release --package simulation; then {SEEDS} seeds more");
        report.step("sim", &what, || {
            step::run(tests(args).args(["test", "--release", "--package", "simulation"]))?;
            sim::command(&sim::Args { seeds: SEEDS, first: FIRST_SEED })
        });
    }
    if wanted(Step::Object) {
        report.step("object", "no panics in the BPF object; stack and verified instructions within budget", || {
            step::run(tests(args).args(["test", "--workspace", "--test", "object", "--", "--nocapture"]))
        });
    }
    if wanted(Step::Kernel) {
        report.step("kernel", "every program on Debian's Linux 6.1, under qemu", || kernel::check(&programs_test()?));
    }
    report.finish()
}

/// A cargo that tests, told what the tests are to know.
fn tests(args: &Args) -> Command {
    let mut cargo = step::cargo();
    cargo.env("REDIRECTOR_BIN", step::target().join("release/redirector"));
    if args.quick {
        cargo.env("REDIRECTOR_QUICK", "1");
    }
    if args.record {
        cargo.env("REDIRECTOR_RECORD_BUDGET", "1");
    }
    cargo
}

/// Builds `tests/programs.rs` and returns its executable. The whole workspace is named, so that nothing that the other
/// tests have built is built again with other features.
fn programs_test() -> Result<PathBuf> {
    let mut cargo = step::cargo();
    cargo.args(["test", "--workspace", "--test", "programs", "--no-run", "--message-format=json"]);
    let messages = step::read(cargo.stderr(Stdio::inherit()))?;
    let executable = messages.lines().find_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        (message["target"]["name"] == "programs").then(|| message["executable"].as_str().map(PathBuf::from))?
    });
    executable.context("cargo built no test named `programs`")
}

/// Builds the BPF object alone, and prints where it is.
pub fn build_ebpf() -> Result<()> {
    println!("{}", build_object(ebpf::OBJECT)?.display());
    Ok(())
}

/// Builds one of the BPF objects and returns its path.
pub fn build_object(object: &str) -> Result<PathBuf> {
    let target = step::target();
    fs::create_dir_all(&target).with_context(|| format!("create {}", target.display()))?;
    let toolchain = ebpf::Toolchain::find()?;
    let _lock = ebpf::lock(&target)?;
    ebpf::build(&toolchain, object, step::workspace(), &target)
}
