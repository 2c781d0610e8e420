//! An application under guard: while it stays silent its node drains, or its backend is out, and when it is well they serve
//! again.

use std::ffi::OsString;
use std::fs;
use std::io::Write as _;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use xtask::lab::Topology;
use xtask::traffic::{HTTP_PORT, Load};

use crate::scene::{Scene, all_answered, every_kind, targets, wait_until};

fn standing(scene: &Scene, name: &str) -> Result<String> {
    let nodes: Vec<Value> = serde_json::from_str(&scene.done("n1", &["get", "nodes", "-o", "json"])?)?;
    let node = nodes.iter().find(|node| node["name"] == name).with_context(|| format!("{name} is a node"))?;
    Ok(node["agreed"]["standing"].as_str().unwrap_or_default().to_owned())
}

#[test]
fn a_node_whose_application_is_silent_drains_until_it_is_well() -> Result<()> {
    let topology = Topology::for_test("guarded");
    let scene = Scene::up(&topology, every_kind(&topology, &["l2"]))?;
    let run = scene.lab.config_file("n3").with_file_name("run");
    let well = run.join("well");
    // It goes to the background, where it is of no use, until the file is there; then it runs, and says so through its socket.
    let seconds = (1_000_000 + std::process::id()).to_string();
    let script = format!("test -e {} || {{ setsid sleep {seconds} & exit 7; }}; exec sleep {seconds}", well.display());
    let guarded = |label: &str| {
        let mut guard =
            scene.lab.redirector("n3", &["guard", "--name", "app", "--timeout", "2s", "--failures", "2"])?;
        guard.args(["--", "sh", "-c", &script]);
        scene.lab.spawn("n3", label, guard)
    };
    scene.lab.kill_agent("n3")?;
    let guard = guarded("guard")?;
    wait_until("the agent is asked in vain", || Ok(guard.log_tail().contains("in vain to have this node drain")))?;
    scene.lab.start_agent("n3")?;
    wait_until("n3, whose application fails, drains", || Ok(standing(&scene, "n3")?.starts_with("drain")))?;
    let told = guard.log_tail();
    ensure!(told.contains("exited with status 7") && told.contains("left processes behind"), "{told}");
    ensure!(standing(&scene, "n1")? == "up" && standing(&scene, "n2")? == "up", "only the guarded node drains");
    guard.kill()?;
    wait_until("nothing of the application is left", || Ok(sleepers(&seconds)? == 0))?;

    fs::write(&well, "")?;
    // Another guard puts back what the one before it has taken out.
    let guard = guarded("guard-again")?;
    let lines = run.join("guard-app.lines");
    wait_until("n3, whose application is well, serves again", || {
        // The guard may have just been about to start it, or to listen where the one before it did.
        for _ in 0..4 {
            drop(UnixStream::connect(&lines).and_then(|mut stream| stream.write_all(b"alive\n")));
            std::thread::sleep(Duration::from_millis(250));
        }
        Ok(standing(&scene, "n3")? == "up")
    })?;
    // Silent again, it is killed and started anew, which no node notices before it has failed twice.
    wait_until("the silent application is killed", || Ok(guard.log_tail().contains("no sign of life")))?;
    guard.stop()?;
    ensure!(sleepers(&seconds)? == 0, "the application outlives its guard");
    Ok(())
}

/// Processes that sleep for so long.
fn sleepers(seconds: &str) -> Result<usize> {
    let of = |entry: fs::DirEntry| fs::read(entry.path().join("cmdline")).unwrap_or_default();
    let wanted = format!("sleep\0{seconds}\0").into_bytes();
    Ok(fs::read_dir("/proc")?.flatten().map(of).filter(|command| *command == wanted).count())
}

/// Where the guards of backends tell nodes' probes whether their applications are well.
const DOOR: u16 = 8099;

#[test]
fn a_backend_whose_application_is_silent_is_out_until_it_is_well() -> Result<()> {
    let topology = Topology { nodes: 2, backends: 3, ..Topology::for_test("guardedb") };
    let mut config = every_kind(&topology, &["l2"]);
    let probe = format!(
        "kind = \"http\"\nport = {DOOR}\ninterval = \"200ms\"\ntimeout = \"200ms\"\nstatus = \"200\"\nrise = 2\nfall = 3"
    );
    for pool in &mut config.pool {
        pool.probe = probe.parse()?;
    }
    let scene = Scene::without_agents(&topology, config)?;
    let sockets: Vec<PathBuf> = scene.lab.backends().iter().map(|name| socket_of(&scene, name)).collect();
    for name in scene.lab.backends() {
        // Each application is named after its lab, since all backends of it share their files.
        let mut guard = scene.lab.host(&name)?.command(binary(&scene, &name)?);
        guard.args(["guard", "--name", &label(&scene, &name), "--timeout", "1s", "--failures", "2"]);
        guard.args(["--backend", &format!("[::]:{DOOR}"), "--", "sleep", "1000"]);
        scene.lab.spawn(&name, "guard", guard)?;
    }
    let (silent, stop) = (AtomicBool::new(false), AtomicBool::new(false));
    let beat = || -> Result<()> {
        let beats = UnixDatagram::unbound()?;
        while !stop.load(Ordering::Relaxed) {
            let meant = sockets.iter().skip(usize::from(silent.load(Ordering::Relaxed)));
            // A guard that is being started has no socket yet.
            meant.for_each(|socket| drop(beats.send_to(b"WATCHDOG=1", socket)));
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    };
    std::thread::scope(|scope| -> Result<()> {
        let beating = scope.spawn(beat);
        let result = goes_out_and_comes_back(&scene, &silent);
        stop.store(true, Ordering::Relaxed);
        beating.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        result
    })
}

fn goes_out_and_comes_back(scene: &Scene, silent: &AtomicBool) -> Result<()> {
    scene.lab.start_agents()?;
    let are_in = |names: &[&str]| -> Result<bool> {
        let mut right = true;
        for node in scene.lab.nodes() {
            let backends: Vec<Value> = serde_json::from_str(&scene.done(&node, &["get", "backends", "-o", "json"])?)?;
            right &= backends.iter().all(|one| match names.iter().any(|name| one["name"] == *name) {
                true => one["rows"].as_u64() > Some(0) && one["health"]["state"] == "alive",
                false => one["rows"] == 0,
            });
        }
        Ok(right)
    };
    wait_until("all backends are in", || are_in(&["b1", "b2", "b3"]))?;
    let load = || {
        let load = Load::new(targets(&scene.config, HTTP_PORT), 100, Duration::from_secs(1));
        scene.lab.client().run(|| load.run())
    };
    silent.store(true, Ordering::Relaxed);
    wait_until("b1, whose application is silent, is out", || are_in(&["b2", "b3"]))?;
    let guard = scene.lab.process("b1-guard")?.log_tail();
    ensure!(guard.contains("no sign of life") && guard.contains("this backend is out"), "{guard}");
    let backends = scene.done("n1", &["get", "backends"])?;
    ensure!(backends.contains("its probes fail") && backends.contains("Connection refused"), "{backends}");
    let without = load()?;
    all_answered(&without)?;
    ensure!(!without.backends.contains_key("b1"), "{without:#?}");
    silent.store(false, Ordering::Relaxed);
    wait_until("b1, whose application is well, is in again", || are_in(&["b1", "b2", "b3"]))?;
    all_answered(&load()?)
}

fn label(scene: &Scene, name: &str) -> String {
    format!("{}-{name}", scene.lab.topology().name)
}

fn socket_of(scene: &Scene, name: &str) -> PathBuf {
    PathBuf::from(format!("/run/redirector/guard-{}.sock", label(scene, name)))
}

/// The program under test.
fn binary(scene: &Scene, name: &str) -> Result<OsString> {
    Ok(scene.lab.redirector(name, &[] as &[&str])?.get_program().to_owned())
}
