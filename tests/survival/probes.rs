//! Backends on which nothing of ours runs: their paths are probed, and follow what the probes find.

use std::io::{Read as _, Write as _};
use std::net::{Ipv6Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use xtask::lab::Topology;
use xtask::traffic::{HTTP_PORT, Load};

use crate::scene::{Scene, all_answered, every_kind, pool_of, targets, wait_until};
use crate::told::{Health, Path, paths};

/// Where the application's health is asked for, other than where it serves.
const PORT: u16 = 8080;

/// Says of an application that it is healthy, until it is dropped.
struct Application {
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Application {
    fn start(scene: &Scene, host: &str) -> Result<Self> {
        let ends = Arc::new(AtomicBool::new(false));
        let thread = scene.lab.host(host)?.run(|| -> Result<_> {
            let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT))?;
            listener.set_nonblocking(true)?;
            let ends = ends.clone();
            Ok(thread::spawn(move || {
                while !ends.load(Ordering::Relaxed) {
                    let Ok((mut stream, _)) = listener.accept() else {
                        thread::sleep(Duration::from_millis(1));
                        continue;
                    };
                    let mut request = [0; 1024];
                    let _ = stream.set_nonblocking(false);
                    let _ = stream.set_read_timeout(Some(Duration::from_millis(200)));
                    if stream.read(&mut request).is_ok_and(|len| request[..len].starts_with(b"GET /health HTTP/1.1")) {
                        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\nI am healthy");
                    }
                }
            }))
        })??;
        Ok(Self { ends, thread: Some(thread) })
    }
}

impl Drop for Application {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What each pool is asked, and whether it is the application that answers.
const PROBES: [(&str, bool); 4] = [
    ("kind = \"http\"\nport = 8080\npath = \"/health\"\nbody = \"healthy\"", true),
    ("kind = \"icmp\"", false),
    ("kind = \"udp\"\nport = 7\nsend = \"70696e67\"", false),
    ("kind = \"neighbour\"", false),
];
const PACE: &str = "interval = \"200ms\"\ntimeout = \"200ms\"\nrise = 2\nfall = 3";

fn asks_application(path: &Path) -> bool {
    path.health.as_ref().and_then(|health| health.probe.as_ref()).is_some_and(|probe| probe.kind == "http")
}

/// Waits until the paths of b1 of which `dead` says so are off by what their probes say, and all others alive by that.
fn wait_for(scene: &Scene, what: &str, dead: impl Fn(&Path) -> bool) -> Result<()> {
    wait_until(what, || {
        let right = |path: &Path| {
            let Some(Health { state, why, probe: Some(probe), .. }) = &path.health else { return false };
            if path.backend == "b1" && dead(path) {
                let says = why.as_deref().unwrap_or_default().starts_with("its probes fail: ");
                !path.alive && state == "suspect" && probe.says == "bad" && says
            } else {
                path.alive && state == "alive" && probe.says == "good"
            }
        };
        Ok(paths(scene, "n1")?.iter().all(right))
    })
}

/// Sends requests to all VIPs; says which pools b1 answered for.
fn served_by_b1(scene: &Scene) -> Result<Vec<String>> {
    let mut pools = Vec::new();
    for target in targets(&scene.config, HTTP_PORT) {
        let load = Load::new(vec![target], 40, Duration::from_secs(2));
        let load = scene.lab.client().run(|| load.run())?;
        all_answered(&load)?;
        if load.backends.contains_key("b1") {
            pools.push(pool_of(&scene.config, target.ip()).to_owned());
        }
    }
    Ok(pools)
}

#[test]
fn paths_follow_what_probes_find_where_nothing_of_ours_runs() -> Result<()> {
    let topology = Topology { nodes: 1, backends: 2, ..Topology::for_test("probes") };
    let mut config = every_kind(&topology, &["l2"]);
    for (pool, (probe, _)) in config.pool.iter_mut().zip(PROBES.iter().cycle()) {
        pool.probe = format!("{probe}\n{PACE}").parse()?;
    }
    let all: Vec<String> = config.pool.iter().map(|pool| pool.name.clone()).collect();
    let scene = Scene::without_agents(&topology, config)?;
    let (one, _two) = (Application::start(&scene, "b1")?, Application::start(&scene, "b2")?);
    scene.lab.start_agents()?;
    wait_for(&scene, "all probes find all well", |_| false)?;
    ensure!(served_by_b1(&scene)? == all, "all are served");

    drop(one);
    wait_for(&scene, "the application's death is found", asks_application)?;
    let dead = paths(&scene, "n1")?.into_iter().find(|path| path.backend == "b1" && asks_application(path));
    let dead = dead.context("b1 has paths")?;
    let why = dead.health.and_then(|health| health.why).unwrap_or_default();
    ensure!(why.contains(":8080: Connection refused"), "{why}");
    wait_until("no new flow goes there", || {
        let served = served_by_b1(&scene)?;
        Ok(!served.contains(&dead.pool) && served.len() == all.len() - 1)
    })?;
    let vip = scene.config.service.iter().find(|service| service.pool == dead.pool).context("a service")?.vip.clone();
    let vip = SocketAddr::new(vip.parse()?, HTTP_PORT);
    let says = (1..=16).map(|port| {
        let client =
            SocketAddr::new(if vip.is_ipv4() { [192, 0, 2, 7].into() } else { Ipv6Addr::LOCALHOST.into() }, port);
        scene.done("n1", &["why", "tcp", &client.to_string(), &vip.to_string()])
    });
    let says = says.collect::<Result<Vec<_>>>()?;
    let named = says.iter().filter(|says| says.contains("/b1 is out: its probes fail: ")).count();
    let concerned = says.iter().filter(|says| says.contains("/b1")).count();
    ensure!(named == concerned && named > 0, "`why` names the reason in {named} of {concerned}: {says:#?}");
    let opened =
        |log: &str| log.lines().filter(|line| line.contains("left alone for") && line.contains("http")).count();
    // Trials go on, and fail, without a word.
    let log = scene.lab.process("n1-agent")?.log_tail();
    ensure!(opened(&log) <= 1, "each trial that fails is told of: {log}");
    let breakers = scene.done("n1", &["get", "breakers"])?;
    ensure!(breakers.contains("http probe of") && breakers.contains("port 8080 on eth0"), "{breakers}");

    let _one = Application::start(&scene, "b1")?;
    wait_for(&scene, "the application is found again", |_| false)?;
    wait_until("it gets new flows again", || Ok(served_by_b1(&scene)? == all))?;

    scene.lab.unplug("b1")?;
    wait_for(&scene, "every probe finds that the host is gone", |_| true)?;
    wait_until("no new flow goes there at all", || Ok(served_by_b1(&scene)?.is_empty()))?;
    scene.lab.heal()?;
    wait_for(&scene, "the host is found again", |_| false)
}
