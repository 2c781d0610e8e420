//! Established connections whose pool has changed outlive their owner: only copies of flows tell where they belong.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use redirector_ebpf::hash::FlowHash;
use redirector_ebpf::tables::names::kind;
use xtask::lab::{Config, Topology, VIPS4, VIPS6};
use xtask::traffic::{HTTP_PORT, LongConnections, LongReport};

use crate::scene::{PATIENCE, Scene, every_kind, targets, wait_until};

const CONNECTIONS: usize = 200;
/// What share of the connections sits off its row's present backend before each death.
const OFF: f64 = 0.3;

/// `backend` alone gets new flows; the others keep theirs.
pub(crate) fn only_new_on(config: &mut Config, backend: &str) {
    for member in config.pool.iter_mut().flat_map(|pool| &mut pool.backend) {
        member.state = if member.name == backend { "active" } else { "draining" }.into();
    }
}

/// Flows that live on another backend than new ones of their row would.
pub(crate) fn off_choice(scene: &Scene, node: &str) -> Result<BTreeSet<(SocketAddr, SocketAddr)>> {
    let maps = scene.maps(node)?;
    let key = maps.node.get(&0, 0)?.hash_key;
    let registry = maps.registry()?;
    let mut off = BTreeSet::new();
    for (id, _) in registry.of(kind::POOL) {
        let rows = maps.rows(&maps.pools.get(&id, 0)?)?;
        let of_pool = |backend: u16| registry.backends.get(&backend).is_some_and(|row| u32::from(row.pool) == id);
        for flow in maps.flows.iter(&key).filter(|flow| of_pool(flow.entry.backend())) {
            let row = FlowHash::of(&key, &flow.record.tuple, flow.v6).row(rows.len() as u32) as usize;
            if rows[row].current() != flow.entry.backend() {
                off.insert((flow.source(), flow.destination()));
            }
        }
    }
    Ok(off)
}

/// Whether all that a node has told of flows has been acknowledged by these others.
pub(crate) fn is_delivered(scene: &Scene, node: &str, to: &[impl AsRef<str>]) -> Result<bool> {
    let counters: serde_json::Value = scene.lab.ask(node, &["get", "replication"])?;
    let has_all = |peer: &serde_json::Value| peer["state"] == "current" && peer["backlog"] == 0;
    let others = to.iter().map(AsRef::as_ref).filter(|other| *other != node);
    Ok(others.filter_map(|other| other.strip_prefix('n')).all(|id| has_all(&counters["peers"][id])))
}

/// Changes the pool, kills a node, and lets it come back, for each node in turn.
fn each_dies_after_a_change(scene: &mut Scene, replicated: bool) -> Result<LongReport> {
    let (nodes, backends) = (scene.lab.nodes(), ["b1", "b2", "b3"]);
    let web = targets(&scene.config, HTTP_PORT);
    let client = scene.lab.client();
    let open = |count| client.run(|| LongConnections::open(&web, count, Duration::from_millis(50), PATIENCE))?;
    let late = CONNECTIONS / 2 / nodes.len();
    let mut count = CONNECTIONS - late * nodes.len();
    let mut long = vec![open(count)?];
    let lines = |long: &[LongConnections]| long.iter().map(LongConnections::lines).sum::<u64>();
    for (victim, backend) in nodes.iter().zip(backends) {
        only_new_on(&mut scene.config, backend);
        scene.apply()?;
        // Of those that begin within a dispute, a row's previous backend tells nothing after the next change.
        long.push(open(late)?);
        count += late;
        let before = lines(&long);
        wait_until("every connection was busy since the change", || Ok(lines(&long) > before + 3 * count as u64))?;
        let all = |of: fn(&Scene, &str) -> Result<BTreeSet<_>>| -> Result<BTreeSet<_>> {
            nodes.iter().map(|node| of(scene, node)).try_fold(BTreeSet::new(), |mut all, one| {
                all.extend(one?);
                Ok(all)
            })
        };
        let off = all(off_choice)?.len();
        ensure!(off as f64 >= OFF * count as f64, "only {off} of {count} connections are off their choice");
        if replicated {
            for node in &nodes {
                wait_until(&format!("the others have {node}'s flows"), || is_delivered(scene, node, &nodes))?;
            }
        }
        let others: Vec<&str> = nodes.iter().filter(|node| *node != victim).map(String::as_str).collect();
        scene.lab.steer(VIPS4, &others)?;
        scene.lab.steer(VIPS6, &others)?;
        scene.lab.kill(victim)?;
        thread::sleep(Duration::from_secs(3));
        scene.lab.heal()?;
        scene.lab.whole()?;
    }
    let mut all = LongReport::default();
    for report in long.into_iter().map(LongConnections::finish) {
        all.opened += report.opened;
        all.broken += report.broken;
        all.wrong += report.wrong;
        all.errors.extend(report.errors);
    }
    Ok(all)
}

fn scene(name: &str, replicated: bool) -> Result<Scene> {
    let topology = Topology::for_test(name);
    let mut config = every_kind(&topology, &["l2"]);
    config.unreplicated = !replicated;
    Scene::up(&topology, config)
}

/// Idle times of which a long flow outlives several.
const IDLE: Duration = Duration::from_secs(2);

/// A flow has its packets at its primary alone; the others know by what they are told that it is not idle.
#[test]
fn long_flows_are_not_aged_out_where_they_are_not_served() -> Result<()> {
    let topology = Topology::for_test("longlived");
    let mut config = every_kind(&topology, &["l2"]);
    for state in ["tcp_established", "tcp_new", "udp", "udp_new"] {
        config.timeouts.insert(state.into(), format!("{}s", IDLE.as_secs()));
    }
    let mut scene = Scene::up(&topology, config)?;
    let (nodes, others, victim) = (scene.lab.nodes(), ["n1", "n2"], "n3");
    let web = targets(&scene.config, HTTP_PORT);
    let open = || LongConnections::open(&web, CONNECTIONS / 2, Duration::from_millis(50), PATIENCE);
    let long = scene.lab.client().run(open)??;
    only_new_on(&mut scene.config, "b2");
    scene.apply()?;
    for node in &nodes {
        wait_until(&format!("the others have {node}'s flows"), || is_delivered(&scene, node, &nodes))?;
    }
    [VIPS4, VIPS6].iter().try_for_each(|vips| scene.lab.steer(vips, &others))?;
    thread::sleep(4 * IDLE);
    let known = |node: &str| off_choice(&scene, node);
    let (served, kept) = (known(victim)?, [known("n1")?, known("n2")?]);
    let lost: Vec<_> = served.iter().filter(|flow| kept.iter().all(|kept| !kept.contains(*flow))).collect();
    ensure!(served.len() > CONNECTIONS / 12, "only {} connections are off their choice at {victim}", served.len());
    ensure!(lost.is_empty(), "{} of {} flows have no copy any more: {lost:?}", lost.len(), served.len());
    let before = long.lines();
    scene.lab.kill(victim)?;
    wait_until("every connection goes on", || Ok(long.lines() > before + 20 * CONNECTIONS as u64))?;
    let long = long.finish();
    ensure!(long.broken == 0 && long.wrong == 0 && long.opened == CONNECTIONS as u64 / 2, "{long:#?}");
    Ok(())
}

#[test]
fn flows_off_their_hash_choice_outlive_any_node() -> Result<()> {
    let long = each_dies_after_a_change(&mut scene("copies", true)?, true)?;
    ensure!(long.broken == 0 && long.wrong == 0 && long.opened == CONNECTIONS as u64, "{long:#?}");
    Ok(())
}

/// The test of the test: it would find that copies are missing.
#[test]
fn without_copies_such_flows_break() -> Result<()> {
    let mut scene = scene("nocopies", false)?;
    let told = scene.done("n1", &["get", "nodes"])?;
    ensure!(told.contains("not redundant: not all nodes have this one's flows"), "{told}");
    let long = each_dies_after_a_change(&mut scene, false)?;
    ensure!(long.broken > 0, "nothing broke, though no flow was replicated: {long:#?}");
    Ok(())
}
