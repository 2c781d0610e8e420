//! A wall clock that jumps, years ahead and back: only monotonic time decides anything.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use xtask::lab::{Topology, VIPS4, VIPS6};

use crate::agreement::is_one_table;
use crate::kills::{Traffic, nobody_is_suspected, nothing_broke};
use crate::replicated::is_delivered;
use crate::scene::{Scene, every_kind, wait_until, words};
use crate::truth::every;

/// Functions that tell the wall clock's time, in the place of the C library's: a file says by how many seconds they lie.
const SHIM: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile long *offset;

static __attribute__((constructor)) void begin(void) {
    int file = open(OFFSET, O_RDONLY | O_CLOEXEC);
    void *at = file < 0 ? MAP_FAILED : mmap(0, sizeof *offset, PROT_READ, MAP_SHARED, file, 0);
    if (at != MAP_FAILED)
        offset = at;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int failed = syscall(SYS_clock_gettime, clock, now);
    if (!failed && offset && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        now->tv_sec += *offset;
    return failed;
}

int gettimeofday(struct timeval *now, void *zone) {
    int failed = syscall(SYS_gettimeofday, now, zone);
    if (!failed && offset)
        now->tv_sec += *offset;
    return failed;
}

time_t time(time_t *now) {
    struct timespec read;
    clock_gettime(CLOCK_REALTIME, &read);
    if (now)
        *now = read.tv_sec;
    return read.tv_sec;
}
"#;

const YEAR: i64 = 365 * 86_400;

/// The wall clock of agents that are started later.
struct WallClock(File);

impl WallClock {
    fn of(scene: &Scene) -> Result<Self> {
        let place = |name: &str| scene.lab.directory().join(name);
        let (source, library, offset) = (place("clock.c"), place("clock.so"), place("clock.offset"));
        fs::write(&source, SHIM)?;
        let mut file = File::options().create(true).truncate(true).write(true).open(&offset)?;
        file.write_all(&0_i64.to_ne_bytes())?;
        let define = format!("-DOFFSET=\"{}\"", offset.display());
        // Whoever has built these tests has a C compiler: it is what links them.
        let built = Command::new("cc").args(["-shared", "-fPIC", &define, "-o"]).arg(&library).arg(&source).output();
        let built = built.context("cannot run `cc`")?;
        ensure!(built.status.success(), "{}", words(&built));
        scene.lab.preload(&library)?;
        Ok(Self(file))
    }

    fn jump(&self, years: i64) -> Result<()> {
        Ok(self.0.write_all_at(&(years * YEAR).to_ne_bytes(), 0)?)
    }
}

/// Whether an agent's log is written in another year than now.
fn has_jumped(scene: &Scene, node: &str, from: &str) -> Result<bool> {
    let log = scene.lab.process(&format!("{node}-agent"))?.log_tail();
    Ok(log.lines().last().is_some_and(|line| !line.contains(from)))
}

#[test]
fn a_wall_clock_that_jumps_decides_nothing() -> Result<()> {
    let topology = Topology::for_test("clock");
    let mut scene = Scene::without_agents(&topology, every_kind(&topology, &["l2"]))?;
    let clock = WallClock::of(&scene)?;
    scene.lab.start_agents()?;
    let nodes = scene.lab.nodes();
    let log = scene.lab.process("n1-agent")?.log_tail();
    let year = log.lines().last().and_then(|line| line.find("20").map(|at| line[at..at + 5].to_owned()));
    let year = year.context("a line of the log with its time")?;
    let traffic = Traffic::start(&scene)?;
    for (round, years) in [30, -40, 0].into_iter().enumerate() {
        clock.jump(years)?;
        // Agents that lose each other must show their certificates anew.
        let cut = ["n1", "n2"];
        scene.lab.partition(&cut, &["n3"], xtask::lab::Cut::Agents)?;
        thread::sleep(Duration::from_secs(7));
        nobody_is_suspected(&scene)?;
        scene.lab.heal()?;
        wait_until("all have each other's flows again", || every(&nodes, |node| is_delivered(&scene, node, &nodes)))?;
        scene.config.timeouts.insert("udp".into(), format!("{}s", 60 + round));
        scene.apply()?;
        wait_until("all go by the change", || is_one_table(&scene))?;
        for node in &nodes {
            ensure!(has_jumped(&scene, node, &year)? == (years != 0), "{node}'s clock did not jump by {years} years");
        }
        nobody_is_suspected(&scene)?;
    }
    scene.lab.steer(VIPS4, &["n1", "n2", "n3"])?;
    scene.lab.steer(VIPS6, &["n1", "n2", "n3"])?;
    let (stream, long) = traffic.finish()?;
    nothing_broke(&long)?;
    ensure!(stream.lost == 0 && stream.wrong == 0 && stream.moved == 0, "{stream:#?}");

    // A host whose clock lost the time begins in the past, and takes part all the same.
    clock.jump(-40)?;
    scene.lab.process("n2-agent")?.kill()?;
    scene.lab.start_agent("n2")?;
    wait_until("all have each other's flows again", || every(&nodes, |node| is_delivered(&scene, node, &nodes)))?;
    scene.lab.whole()
}

/// The wall clock is read where people look, where certificates are judged, where its steps are measured, and for the first
/// incarnation of a node whose disk tells of none: nowhere else.
#[test]
fn no_decision_reads_the_wall_clock() -> Result<()> {
    let for_people = ["pki/", "cli/", "journal/", "doctor/fitness.rs", "shedding/capacity.rs"];
    let for_the_agent = ["transport/clock.rs", "transport/identity.rs", "health/probes.rs", "agent/committed.rs"];
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("redirector/src");
    let (mut folders, mut read) = (vec![root.clone()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let text = fs::read_to_string(&path)?;
            let name = path.strip_prefix(&root)?.display().to_string();
            let reads = ["SystemTime::now", "EPOCH.elapsed", "CLOCK_REALTIME", "gettimeofday", "Utc::now", "now_utc"];
            let mut may = for_people.iter().chain(&for_the_agent);
            if reads.iter().any(|read| text.contains(read)) && !may.any(|may| name.starts_with(may)) {
                read.push(name);
            }
        }
    }
    ensure!(read.is_empty(), "the wall clock is read in {read:?}");
    Ok(())
}
