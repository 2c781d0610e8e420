//! Paths whose beats are answered, and on which connections die all the same: their flows tell.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use xtask::lab::{Config, Topology};
use xtask::traffic::{HTTP_PORT, Load, LoadReport, LongConnections};

use crate::scene::{PATIENCE, Scene, TIMEOUT, every_kind, targets, wait_until};
use crate::told::{Path, paths};

/// New connections a second.
const PER_SECOND: u32 = 60;

/// Requests in the background, until they are asked what became of them.
struct Requests {
    ends: Arc<AtomicBool>,
    thread: JoinHandle<LoadReport>,
}

impl Requests {
    fn start(scene: &Scene, targets: Vec<SocketAddr>, timeout: Duration) -> Result<Self> {
        let ends = Arc::new(AtomicBool::new(false));
        let load = Load { threads: 256, timeout, ..Load::new(targets, PER_SECOND, Duration::from_secs(120)) };
        let stop = ends.clone();
        // Threads are of the namespace in which they are started.
        let thread = scene.lab.client().run(|| thread::spawn(move || load.run_until(&stop, |_, _| {})))?;
        Ok(Self { ends, thread })
    }

    fn finish(self) -> Result<LoadReport> {
        self.ends.store(true, Ordering::Relaxed);
        self.thread.join().ok().context("the requests' thread panicked")
    }
}

/// A firewall before a backend that lets no connection begin over these interfaces, while those that are there go on.
fn refuse_new(scene: &Scene, backend: &str, interfaces: &[&str]) -> Result<()> {
    let drop = |interface: &&str| {
        format!(
            "add rule inet wall in iifname \"{interface}\" tcp dport {HTTP_PORT} tcp flags & (syn | ack) == syn drop"
        )
    };
    let mut rules = vec![
        "add table inet wall".to_owned(),
        "flush table inet wall".to_owned(),
        "add chain inet wall in { type filter hook input priority 0; }".to_owned(),
    ];
    rules.extend(interfaces.iter().map(drop));
    let output = scene.lab.host(backend)?.command("nft").arg(rules.join("\n")).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn complaint(path: &Path) -> Option<&str> {
    path.health.as_ref()?.flows.as_ref()?.complaint.as_deref()
}

/// Whether a path is out as its flows die.
fn is_out(path: &Path) -> bool {
    let why = path.health.as_ref().and_then(|health| health.why.as_deref()).unwrap_or_default();
    !path.alive && why.starts_with("its flows die: its flows get no answers: ")
}

#[test]
fn a_path_on_which_connections_die_is_shown_and_taken_out_and_tried_again() -> Result<()> {
    let topology = Topology { nodes: 2, backends: 2, between: true, ..Topology::for_test("passive") };
    let mut config = Config { beats: Some("fast".into()), ..every_kind(&topology, &["l2", "ipip"]) };
    config = config.with_fabrics(&topology);
    for pool in &mut config.pool {
        pool.health.panic = Some(100);
        pool.health.passive = pool.name.starts_with("ipip").then(|| "out".into());
    }
    let scene = Scene::up(&topology, config)?;
    scene.lab.paths_whole()?;
    let web = targets(&scene.config, HTTP_PORT);
    let (shown, acted): (Vec<_>, Vec<_>) =
        web.iter().copied().partition(|target| crate::scene::pool_of(&scene.config, target.ip()).starts_with("l2"));
    let long = scene.lab.client().run(|| LongConnections::open(&web, 32, Duration::from_millis(50), PATIENCE))??;
    // A path with few flows takes some seconds to be judged: who waits as TCP does gets over the other one then.
    let requests = Requests::start(&scene, acted.clone(), PATIENCE)?;
    let shows = Requests::start(&scene, shown, TIMEOUT)?;
    wait_until("flows are asked, and say that all is well", || {
        let paths = paths(&scene, "n1")?;
        let asked = |path: &&Path| path.rank == 1;
        Ok(paths.iter().filter(asked).all(|path| {
            let flows = path.health.as_ref().and_then(|health| health.flows.as_ref());
            flows.is_some_and(|flows| flows.recent.opened > 20 && flows.recent.again == 0 && flows.complaint.is_none())
        }))
    })?;

    for backend in scene.lab.backends() {
        refuse_new(&scene, &backend, &["eth1"])?;
    }
    for node in scene.lab.nodes() {
        wait_until(&format!("{node} takes out what is to be taken out, and shows the rest"), || {
            Ok(paths(&scene, &node)?.iter().all(|path| match (path.rank, path.pool.starts_with("ipip")) {
                (1, true) => is_out(path),
                (1, false) => path.alive && complaint(path).is_some(),
                _ => path.alive,
            }))
        })?;
    }
    let source = SocketAddr::new(xtask::lab::client_addresses(acted[0].ip())[0], 5000).to_string();
    let said = scene.done("n1", &["why", "tcp", &source, &acted[0].to_string()])?;
    ensure!(said.contains("is out: its flows die") && said.contains("rank 2 is the first that is alive"), "{said}");
    let report = requests.finish()?;
    ensure!(report.failed == 0, "each connection that began got over the other path in the end: {report:#?}");
    drop(shows.finish()?);

    // There is nothing to learn from a path that is not used: it is tried again.
    for backend in scene.lab.backends() {
        refuse_new(&scene, &backend, &[])?;
    }
    wait_until("the paths are tried again", || Ok(paths(&scene, "n1")?.iter().all(|path| path.alive)))?;

    // Nothing is gained by leaving a backend's last path.
    refuse_new(&scene, "b1", &["eth0", "eth1", "eth2"])?;
    let requests = Requests::start(&scene, acted, TIMEOUT)?;
    wait_until("all ways to b1 are known to be bad, and one is used", || {
        let of_b1 =
            paths(&scene, "n1")?.into_iter().filter(|path| path.backend == "b1" && path.pool.starts_with("ipip"));
        let of_b1: Vec<_> = of_b1.collect();
        for pool in of_b1.chunk_by(|a, b| a.pool == b.pool) {
            ensure!(pool.iter().any(|path| path.alive), "no way to b1 is left: {pool:#?}");
        }
        Ok(of_b1.iter().any(is_out) && of_b1.iter().any(|path| path.alive && complaint(path).is_some()))
    })?;
    drop(requests.finish()?);
    let long = long.finish();
    ensure!(long.broken == 0 && long.wrong == 0, "those that were there go on: {long:#?}");
    Ok(())
}
