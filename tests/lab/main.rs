//! The lab itself, without a redirector in it: what is built works, and nothing of it stays behind.

mod faults;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use xtask::lab::{Fabric, Lab, Role, Topology, VIPS4, VIPS6, vip4, vip6};
use xtask::traffic::{ECHO_PORT, HTTP_PORT, Load, LongConnections, Server, ask, fetch};

const TIMEOUT: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(30);

#[test]
fn a_switched_lab_carries_traffic_and_leaves_nothing() -> Result<()> {
    carries_traffic_and_leaves_nothing(Fabric::Switched, "switched")
}

#[test]
fn a_routed_lab_carries_traffic_and_leaves_nothing() -> Result<()> {
    carries_traffic_and_leaves_nothing(Fabric::Routed, "routed")
}

fn carries_traffic_and_leaves_nothing(fabric: Fabric, name: &str) -> Result<()> {
    let topology = Topology { fabric, ..Topology::for_test(name) };
    let mut lab = Lab::up(&topology)?;
    lab.serve()?;
    lab.client().run(|| -> Result<()> {
        for number in 1..=topology.backends {
            let backend = Role::Backend(number);
            for address in backend.addresses() {
                let response = fetch((address, HTTP_PORT).into(), "/here?", None, TIMEOUT)?;
                ensure!(response.backend == backend.name(fabric), "{address} answered as {}", response.backend);
                let echoed = ask((address, ECHO_PORT).into(), None, b"one datagram", TIMEOUT)?;
                ensure!(echoed == backend.name(fabric), "{address} echoed as {echoed}");
            }
        }
        Ok(())
    })??;
    lab.down()?;
    ensure!(left_of(&topology.name)?.is_empty(), "left behind: {:?}", left_of(&topology.name)?);
    Ok(())
}

#[test]
fn many_sockets_and_long_connections_are_counted() -> Result<()> {
    let mut lab = Lab::up(&Topology::for_test("load"))?;
    lab.serve()?;
    let targets: Vec<SocketAddr> = (1..=3)
        .flat_map(|number| Role::Backend(number).addresses())
        .map(|address| (address, HTTP_PORT).into())
        .collect();
    let (load, long) = lab.client().run(|| -> Result<_> {
        let long = LongConnections::open(&targets, 12, Duration::from_millis(10), TIMEOUT)?;
        let load = Load::new(targets.clone(), 500, Duration::from_secs(1)).run();
        Ok((load, long.finish()))
    })??;
    ensure!((load.sent, load.ok, load.failed) == (500, 500, 0), "{load:?}");
    ensure!(load.backends.len() == 3, "{load:?}");
    ensure!((long.opened, long.broken) == (12, 0) && long.lines > 12 && long.backends.len() == 3, "{long:?}");
    Ok(())
}

#[test]
fn a_broken_connection_is_noticed() -> Result<()> {
    let mut lab = Lab::up(&Topology { nodes: 0, backends: 1, ..Topology::for_test("broken") })?;
    lab.serve()?;
    let target = (Role::Backend(1).v4(), HTTP_PORT).into();
    let patience = Duration::from_millis(300);
    let client = lab.client();
    let long = client.run(|| LongConnections::open(&[target], 2, Duration::from_millis(10), patience))??;
    lab.host("b1")?.ip(&["link set eth0 down"])?;
    std::thread::sleep(2 * patience);
    let long = long.finish();
    ensure!(long.broken == 2 && long.wrong == 0 && long.errors.len() == 2, "{long:?}");
    let load = client.run(|| Load { timeout: patience, ..Load::new(vec![target], 20, patience) }.run())?;
    ensure!(load.ok == 0 && load.failed == load.sent && load.sent > 0, "{load:?}");
    Ok(())
}

/// Servers that stand on the nodes themselves, in place of redirectors, say where flows enter.
#[test]
fn flows_to_vips_enter_at_all_nodes_or_where_they_are_steered() -> Result<()> {
    for (fabric, name) in [(Fabric::Switched, "enters"), (Fabric::Routed, "enterr")] {
        let lab = Lab::up(&Topology { fabric, backends: 0, ..Topology::for_test(name) })?;
        ensure!(lab.on_link().is_ok() == (fabric == Fabric::Switched), "VIPs are on a segment that is not there");
        lab.steer(VIPS4, &["n1", "n2", "n3"])?;
        lab.steer(VIPS6, &["n1", "n2", "n3"])?;
        let (vip4, vip6) = (vip4(1), vip6(1));
        let mut servers = Vec::new();
        for node in lab.nodes() {
            let host = lab.host(&node)?;
            host.ip(&[format!("address add {vip4}/32 dev lo"), format!("address add {vip6}/128 dev lo nodad")])?;
            servers.push(host.run(|| Server::start(&node))??);
        }
        for vip in [IpAddr::from(vip4), vip6.into()] {
            let entered = || -> Result<BTreeSet<String>> {
                let requests = (0..60).map(|_| Ok(fetch((vip, HTTP_PORT).into(), "/", None, TIMEOUT)?.backend));
                requests.collect()
            };
            let everywhere = lab.client().run(entered)??;
            ensure!(everywhere.len() == 3, "flows to {vip} entered at {everywhere:?} only");
            lab.steer(&vip.to_string(), &["n2"])?;
            let witness = lab.watch()?;
            let there = lab.client().run(entered)??;
            let journeys = witness.finish()?;
            let right = journeys.values().filter(|journey| journey.hops == ["n2"] && !journey.tunnelled).count();
            ensure!((journeys.len(), right) == (60, 60), "60 flows to n2 were witnessed as {journeys:?}");
            ensure!(
                there == BTreeSet::from(["n2".to_owned()]),
                "flows to {vip} were steered to n2, and entered at {there:?}"
            );
        }
    }
    Ok(())
}

#[test]
fn a_taken_name_is_refused_and_its_lab_left_alone() -> Result<()> {
    let topology = Topology { nodes: 1, backends: 1, ..Topology::for_test("taken") };
    let mut lab = Lab::up(&topology)?;
    let error = Lab::up(&topology).err().context("a second lab of the same name came up")?;
    ensure!(error.to_string().contains("lab down --name"), "no way out is named: {error:#}");
    lab.serve()?;
    lab.client().run(|| fetch((Role::Backend(1).v4(), HTTP_PORT).into(), "/", None, TIMEOUT))??;
    Ok(())
}

#[test]
fn a_program_in_the_background_is_found_again_and_goes_with_its_lab() -> Result<()> {
    let topology = Topology { nodes: 1, backends: 0, ..Topology::for_test("background") };
    let lab = Lab::up(&topology)?;
    let mut sleep = lab.host("n1")?.command("sleep");
    sleep.arg("600");
    let process = lab.spawn("n1", "sleeper", sleep)?;
    ensure!(Lab::open(&topology.name)?.process("n1-sleeper")?.pid == process.pid, "another process was recorded");
    ensure!(process.alive(), "it has ended: {}", process.log_tail());
    drop(lab);
    ensure!(!process.alive(), "it outlived its lab");
    ensure!(left_of(&topology.name)?.is_empty(), "left behind: {:?}", left_of(&topology.name)?);
    Ok(())
}

/// What a killed run leaves is in nobody's way for longer than until the next one.
#[test]
fn a_lab_whose_owner_was_killed_is_taken_down_by_the_next() -> Result<()> {
    let topology = Topology { nodes: 1, backends: 0, ..Topology::for_test("orphan") };
    let lab = Lab::up(&topology)?;
    // A pid beyond the kernel's largest runs nowhere.
    std::fs::write(lab.directory().join("owner"), "4194305 1")?;
    Lab::up(&Topology { nodes: 0, backends: 0, ..Topology::for_test("next") })?;
    let left = left_of(&topology.name)?;
    ensure!(left.is_empty(), "left behind: {left:?}");
    Ok(())
}

/// Names the lab that this program is to hold until it is told to end.
const HELD: &str = "REDIRECTOR_TEST_HOLDS";

/// What [`a_program_that_is_told_to_end_takes_its_lab_down`] runs in a process of its own.
#[test]
#[ignore = "it runs until it is told to end, by another test"]
fn holds_a_lab_until_it_is_told_to_end() -> Result<()> {
    let name = std::env::var(HELD).context("it is run by another test alone")?;
    let topology = Topology { name, nodes: 1, backends: 0, ..Topology::for_test("held") };
    let lab = Lab::up(&topology)?;
    let mut sleep = lab.host("n1")?.command("sleep");
    sleep.arg("600");
    lab.spawn("n1", "sleeper", sleep)?;
    lab.give_disk("n1")?;
    std::fs::write(lab.directory().join("ready"), "")?;
    std::thread::sleep(Duration::from_secs(600));
    Ok(())
}

#[test]
fn a_program_that_is_told_to_end_takes_its_lab_down() -> Result<()> {
    for (signal, what) in [(libc::SIGTERM, "term"), (libc::SIGINT, "int"), (libc::SIGHUP, "hup")] {
        let topology = Topology::for_test(&format!("held{what}"));
        let mut held = std::process::Command::new(std::env::current_exe()?);
        held.args(["--exact", "holds_a_lab_until_it_is_told_to_end", "--ignored", "--nocapture"]);
        let mut held = held.env(HELD, &topology.name).spawn()?;
        let ready = Path::new("/run/redirector-lab").join(&topology.name).join("ready");
        let deadline = std::time::Instant::now() + PATIENCE;
        while !ready.exists() {
            ensure!(held.try_wait()?.is_none() && std::time::Instant::now() < deadline, "it holds no lab");
            std::thread::sleep(Duration::from_millis(20));
        }
        let sleeper = Lab::open(&topology.name)?.process("n1-sleeper")?;
        // SAFETY: a signal to a child that was not waited for.
        unsafe { libc::kill(held.id() as i32, signal) };
        let status = held.wait()?;
        ensure!(std::os::unix::process::ExitStatusExt::signal(&status) == Some(signal), "it ended by {status}");
        ensure!(!sleeper.alive(), "a process outlived its lab");
        ensure!(left_of(&topology.name)?.is_empty(), "left behind: {:?}", left_of(&topology.name)?);
    }
    Ok(())
}

fn left_of(name: &str) -> Result<Vec<String>> {
    let mut left = Vec::new();
    for directory in ["/run/netns", "/run/redirector-lab", "/sys/fs/bpf"] {
        for entry in Path::new(directory).read_dir().with_context(|| format!("cannot read {directory}"))? {
            left.extend(entry?.file_name().into_string().ok().filter(|entry| entry.contains(name)));
        }
    }
    Ok(left)
}
