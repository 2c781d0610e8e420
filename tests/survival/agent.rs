//! Agents that die and come back while packets go on.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use aya::maps::MapInfo;
use redirector::dataplane::load;
use redirector_ebpf::tables::names::NameKey;
use xtask::lab::{Backend, Topology};
use xtask::traffic::{Datagrams, ECHO_PORT, HTTP_PORT, Load, LongConnections};

use crate::scene::{PATIENCE, Scene, all_answered, every_kind, targets, wait_until};

/// What must outlive an agent: its maps, what is numbered in them, and its flows.
#[derive(Debug, PartialEq)]
pub(crate) struct Adopted {
    maps: Vec<(String, u32)>,
    numbers: Vec<(NameKey, String)>,
}

pub(crate) fn adopted(scene: &Scene, node: &str) -> Result<Adopted> {
    let mut maps = Vec::new();
    for entry in load::directory(&scene.pins(node)?).read_dir()? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if !name.starts_with("link-") {
            maps.push((name, MapInfo::from_pin(&path)?.id()));
        }
    }
    maps.sort();
    let registry = scene.maps(node)?.registry()?;
    let mut numbers: Vec<_> = registry.names().map(|(key, name)| (key, name.to_owned())).collect();
    numbers.sort();
    Ok(Adopted { maps, numbers })
}

pub(crate) fn proven_flows(scene: &Scene, node: &str) -> Result<Vec<(SocketAddr, SocketAddr, u16)>> {
    let maps = scene.maps(node)?;
    let key = maps.node.get(&0, 0)?.hash_key;
    let flows = maps.flows.iter(&key).filter(|flow| flow.entry.proven());
    let mut flows: Vec<_> = flows.map(|flow| (flow.source(), flow.destination(), flow.entry.backend())).collect();
    flows.sort();
    Ok(flows)
}

#[test]
fn killed_agents_are_not_missed_and_come_back_to_what_was_there() -> Result<()> {
    let topology = Topology::for_test("killed");
    let mut config = every_kind(&topology, &["l2", "ipip"]);
    config.pool.iter_mut().for_each(|pool| pool.backend.truncate(2));
    let mut scene = Scene::up(&topology, config)?;
    let client = scene.lab.client();
    let (web, echo) = (targets(&scene.config, HTTP_PORT), targets(&scene.config, ECHO_PORT));
    let long = client.run(|| LongConnections::open(&web, 48, Duration::from_millis(100), PATIENCE))??;
    let streams = client.run(|| Datagrams::start(&echo, 24, Duration::from_millis(50)))??;
    let load = Load::new(web.clone(), 1000, 10 * PATIENCE);
    let all_is_done = AtomicBool::new(false);
    let running = thread::scope(|scope| -> Result<_> {
        let running = scope.spawn(|| client.run(|| load.run_until(&all_is_done, |_, _| ())));
        let mut change = || {
            one_is_killed_and_comes_back(&scene)?;
            all_are_killed_and_come_back(&scene)?;
            a_backend_is_added_while_one_is_away(&mut scene)?;
            the_program_is_replaced(&scene)
        };
        let changed = change();
        all_is_done.store(true, Ordering::Relaxed);
        let running = running.join().unwrap_or_else(|payload| std::panic::resume_unwind(payload));
        changed.and(running)
    })?;
    all_answered(&running)?;
    ensure!(running.backends.contains_key("b3"), "the backend that was added got nothing: {running:#?}");
    let streams = streams.finish();
    ensure!(streams.sent == streams.echoed && streams.wrong == 0 && streams.moved == 0, "{streams:#?}");
    let long = long.finish();
    ensure!(long.broken == 0 && long.lines > long.opened, "{long:#?}");
    scene.nothing_was_dropped()
}

fn one_is_killed_and_comes_back(scene: &Scene) -> Result<()> {
    wait_until("flows are proven", || Ok(!proven_flows(scene, "n2")?.is_empty()))?;
    let before = (adopted(scene, "n2")?, proven_flows(scene, "n2")?);
    scene.lab.process("n2-agent")?.kill()?;
    thread::sleep(Duration::from_millis(500));
    scene.lab.start_agent("n2")?;
    ensure!(adopted(scene, "n2")? == before.0, "another data plane was made: {:#?}", before.0);
    let after = proven_flows(scene, "n2")?;
    let long_ago = before.1.iter().filter(|flow| !after.contains(flow)).count();
    ensure!(long_ago == 0, "{long_ago} of {} flows are known no more", before.1.len());
    Ok(())
}

fn all_are_killed_and_come_back(scene: &Scene) -> Result<()> {
    for node in scene.lab.nodes() {
        scene.lab.process(&format!("{node}-agent"))?.kill()?;
    }
    thread::sleep(Duration::from_millis(500));
    scene.lab.start_agents()
}

/// The file changes while nobody looks; whoever starts next applies it.
fn a_backend_is_added_while_one_is_away(scene: &mut Scene) -> Result<()> {
    for node in scene.lab.nodes() {
        scene.lab.process(&format!("{node}-agent"))?.kill()?;
    }
    let topology = scene.lab.topology().clone();
    for pool in &mut scene.config.pool {
        let v6 = pool.backend[0].address.is_ipv6();
        pool.backend.push(Backend::new(&topology, 3, v6));
    }
    scene.lab.configure(&scene.config)?;
    scene.lab.start_agents()?;
    let registry = scene.maps("n1")?.registry()?;
    let pool = &scene.config.pool[0].name;
    let is_there = registry.names().any(|(_, name)| name == format!("{pool}/b3"));
    ensure!(is_there, "the backend was not taken over: {registry:?}");
    Ok(())
}

fn the_program_is_replaced(scene: &Scene) -> Result<()> {
    for node in scene.lab.nodes() {
        let before = scene.program(&node)?;
        let agent = scene.lab.process(&format!("{node}-agent"))?;
        let begun = Instant::now();
        agent.stop()?;
        scene.lab.start_agent(&node)?;
        let after = scene.program(&node)?;
        ensure!(after.is_some() && after != before, "{node} kept its program, {:?} after its restart", begun.elapsed());
    }
    Ok(())
}
