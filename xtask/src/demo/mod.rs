//! `cargo xtask demo`: a cluster of redirectors, real requests through it, where they went, and what clients feel when a
//! node dies.
//!
//! Three accounts of every flow are held against one another: what the client was told, what a witness on the fabric saw,
//! and what the nodes' maps say.
//!
//! ```text
//! requests ── answers ──┐
//!         └── witness ──┴─ walks ── checks ── picture, JSON, exit status
//!                 maps ─────────────┘
//! users ── death ── return ── checks ── terminal, JSON, exit status
//! ```

mod death;
mod maps;
mod picture;
mod walks;

use std::fs;
use std::io::{IsTerminal, Write, stdout};
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Serialize;

use crate::lab::{self, Config, Lab, Topology};
use crate::setup::{self, Purpose};
use crate::step;
use crate::traffic::{HTTP_PORT, Load, LoadReport, Response};
use death::Death;
use maps::Maps;
use walks::{Check, Walks};

const LAB: &str = "demo";
/// 10 ms × 3.
const BEATS: &str = "fast";
/// Requests to each of the four services.
const REQUESTS_EACH: u32 = 300;
const PER_SECOND: u32 = 400;
const REQUESTS_MIN: u64 = 1000;

/// Brings up a cluster, sends requests through it, shows where they went, and lets a node die and come back.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Leave the lab up, to play with
    #[arg(long)]
    keep: bool,
    /// Write the result to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// What `--json` writes.
#[derive(Debug, Serialize)]
struct Outcome<'a> {
    requests_sent: u64,
    requests_ok: u64,
    #[serde(flatten)]
    walks: walks::Totals,
    death: &'a Death,
    checks: &'a [Check],
    load: &'a LoadReport,
    seconds: f32,
}

/// Does it all; an error if any check failed.
pub fn command(args: Args) -> Result<()> {
    let begun = Instant::now();
    stage("set-up: what building and the lab need", || setup::command(Purpose::Demo))?;
    stage("building redirector (the first time takes minutes)", || {
        step::run(step::cargo().args(["build", "--release", "--package", "redirector"]))
    })?;
    let topology = Topology::new(LAB);
    let beats = Some(BEATS.to_owned());
    let config = Config { beats, ..Config::standard(&topology).with_echo().with_holders() };
    let mut lab = stage("lab: a client, 3 nodes and 3 backends in network namespaces", || {
        lab::bring_up(&topology, &config, false)
    })?;
    if args.keep {
        lab.keep()?;
    }
    let witness = lab.watch()?;
    let (load, answers) = stage("requests from real sockets through the VIPs", || send(&lab, &config))?;
    let walks = Walks::new(&config, answers, &witness.finish()?);
    let maps = stage("asking the nodes what their maps say", || Maps::read(&lab, &walks))?;

    let mut checks = walks.checks();
    checks.insert(0, answered(&load));
    checks.extend(maps.checks(&walks));
    println!();
    picture::draw(&walks, &maps);
    let death = stage("the node that holds a VIP dies while clients use it", || Death::watch(&lab, &config))?;
    checks.extend(death.checks());
    println!();
    picture::checks(&checks);

    if let Some(path) = &args.json {
        let seconds = begun.elapsed().as_secs_f32();
        let (requests_sent, requests_ok) = (load.sent, load.ok);
        let outcome = Outcome {
            requests_sent,
            requests_ok,
            walks: walks.totals(),
            death: &death,
            checks: &checks,
            load: &load,
            seconds,
        };
        let text = serde_json::to_string_pretty(&outcome)?;
        fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))?;
    }
    if args.keep {
        picture::what_to_try(&lab)?;
    } else {
        lab.down()?;
    }
    match checks.iter().filter(|check| !check.wrong.is_empty()).count() {
        0 => Ok(()),
        failed => bail!("{failed} of {} checks failed", checks.len()),
    }
}

/// Says what goes on, does it, and says how long it took.
fn stage<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    println!("── {what}");
    let begun = Instant::now();
    let done = work().with_context(|| what.to_owned())?;
    println!("   done in {:.1} s", begun.elapsed().as_secs_f32());
    Ok(done)
}

/// Sends the requests, to the services in turn, and returns the answers.
fn send(lab: &Lab, config: &Config) -> Result<(LoadReport, Vec<Response>)> {
    let targets = config.targets(HTTP_PORT);
    let total = REQUESTS_EACH * targets.len() as u32;
    let duration = Duration::from_secs_f64(f64::from(total) / f64::from(PER_SECOND));
    let load = Load::new(targets, PER_SECOND, duration);
    let (answers, done) = (Mutex::new(Vec::new()), AtomicU64::new(0));
    let seen = |_, response: &Response| {
        answers.lock().expect("no thread panics while it notes an answer").push(response.clone());
        progress(done.fetch_add(1, Ordering::Relaxed) + 1, u64::from(total));
    };
    let report = lab.client().run(|| load.run_until(&AtomicBool::new(false), seen))?;
    if stdout().is_terminal() {
        println!();
    }
    Ok((report, answers.into_inner().expect("no thread panics while it notes an answer")))
}

fn progress(done: u64, total: u64) {
    const WIDTH: u64 = 40;
    if stdout().is_terminal() && (done.is_multiple_of(20) || done == total) {
        let full = "█".repeat((done * WIDTH / total) as usize);
        print!("\r   {full:░<40} {done} of {total}");
        let _ = stdout().flush();
    }
}

fn answered(load: &LoadReport) -> Check {
    let mut check = Check::new(format!("every request was answered, {REQUESTS_MIN} at least"));
    if load.ok != load.sent || load.sent < REQUESTS_MIN {
        check.wrong.push(format!("{} of {} were answered", load.ok, load.sent));
        check.wrong.extend(load.errors.iter().cloned());
    }
    check
}
