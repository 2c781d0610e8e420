//! Running other programs, and saying what goes on meanwhile.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};
use std::{env, fmt};

use anyhow::{Context as _, Result, ensure};

/// Runs a command to its end; its output is the user's. Anything but success is an error that names the command.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("run {}", Line(command)))?;
    ensure!(status.success(), "{} failed: {status}", Line(command));
    Ok(())
}

/// Runs a command for its standard output; what it says besides is shown if it fails.
pub fn read(command: &mut Command) -> Result<String> {
    let Output { status, stdout, stderr } = command.output().with_context(|| format!("run {}", Line(command)))?;
    ensure!(status.success(), "{} failed: {status}\n{}", Line(command), String::from_utf8_lossy(&stderr));
    String::from_utf8(stdout).with_context(|| format!("read what {} says", Line(command)))
}

/// The cargo that runs us.
pub fn cargo() -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(workspace());
    cargo
}

/// Whether we may load BPF programs, make namespaces and install packages.
pub fn is_root() -> bool {
    // SAFETY: geteuid has no preconditions.
    unsafe { libc::geteuid() == 0 }
}

/// The top of the source tree.
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask is a folder of the workspace")
}

/// Where cargo puts what it builds.
pub fn target() -> PathBuf {
    let directory = env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from);
    workspace().join(directory)
}

/// How the steps of a longer job went.
#[derive(Default)]
pub struct Report {
    lines: Vec<(&'static str, Duration, Option<String>)>,
}

impl Report {
    /// Announces and does one step; a failure is noted, and the job goes on.
    pub fn step(&mut self, name: &'static str, what: &str, work: impl FnOnce() -> Result<()>) {
        println!("\n[{name}] {what}");
        let start = Instant::now();
        let failure = work().err().map(|error| format!("{error:#}"));
        let took = start.elapsed();
        match &failure {
            None => println!("[{name}] done in {:.1} s", took.as_secs_f64()),
            Some(failure) => println!("[{name}] FAILED after {:.1} s: {failure}", took.as_secs_f64()),
        }
        self.lines.push((name, took, failure));
    }

    /// Prints the summary; an error if any step failed.
    pub fn finish(self) -> Result<()> {
        println!("\nsummary");
        for (name, took, failure) in &self.lines {
            let verdict = failure.as_deref().map_or("ok", |failure| failure.lines().next().unwrap_or_default());
            println!("  {name:<8} {:>7.1} s  {verdict}", took.as_secs_f64());
        }
        let failed: Vec<_> =
            self.lines.iter().filter(|(_, _, failure)| failure.is_some()).map(|(name, ..)| *name).collect();
        ensure!(failed.is_empty(), "failed: {}", failed.join(", "));
        Ok(())
    }
}

/// A command as one would type it.
struct Line<'a>(&'a Command);

impl fmt::Display for Line<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "`{}", self.0.get_program().display())?;
        for argument in self.0.get_args() {
            write!(formatter, " {}", argument.display())?;
        }
        formatter.write_str("`")
    }
}
