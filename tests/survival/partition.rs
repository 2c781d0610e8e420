//! A cluster of five that is cut in two, and one that loses node after node: packets go on, tables wait for a majority.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use redirector::dataplane::flows::now;
use redirector_ebpf::hash::FlowHash;
use redirector_ebpf::tables::names::kind;
use redirector_ebpf::tables::{Row, Slot};
use serde_json::Value;
use xtask::lab::{Cut, Topology, VIPS4, VIPS6, vip4, vip6};
use xtask::traffic::{HTTP_PORT, Load, LongConnections};

use crate::agreement::is_one_table;
use crate::raw;
use crate::replicated::{is_delivered, off_choice, only_new_on};
use crate::scene::{PATIENCE, Scene, all_answered, every_kind, targets, wait_until};
use crate::truth::{every, nodes, owners_add_up, packets_go_as_told, standing, stranger, wait_until_seen};

const MOST: [&str; 3] = ["n1", "n2", "n3"];
const FEW: [&str; 2] = ["n4", "n5"];
const CONNECTIONS: usize = 100;
/// How soon after the cut is healed there is one table again.
const ONE_AGAIN: Duration = Duration::from_secs(10);
/// A choice of a backend that was used within this time counts for more than one that was not.
const RECENT: Duration = Duration::from_secs(5);
/// Connections that both sides take for theirs, of which a third had a backend that gets no new flows on one side.
const CONTESTED: usize = 150;

fn five(name: &str) -> Result<Scene> {
    let topology = Topology { nodes: 5, ..Topology::for_test(name) };
    let mut config = every_kind(&topology, &["l2"]);
    config.down_after = Some("2s".into());
    config.pool.iter_mut().for_each(|pool| pool.settle = "1s".into());
    Scene::up(&topology, config)
}

fn enter_at(scene: &Scene, nodes: &[&str]) -> Result<()> {
    scene.lab.steer(VIPS4, nodes)?;
    scene.lab.steer(VIPS6, nodes)
}

/// Requests that enter at these nodes are answered.
fn answers(scene: &Scene, nodes: &[&str]) -> Result<()> {
    enter_at(scene, nodes)?;
    let load = Load::new(targets(&scene.config, HTTP_PORT), 200, Duration::from_secs(1));
    all_answered(&scene.lab.client().run(|| load.run())?).with_context(|| format!("requests that enter at {nodes:?}"))
}

fn go_on(long: &LongConnections) -> Result<()> {
    let before = long.lines();
    wait_until("all connections go on", || Ok(long.lines() > before + 10 * CONNECTIONS as u64))
}

/// The rows of a node's pools, and its slots.
type Tables = (Vec<(String, Vec<Row>)>, Vec<Slot>);

fn tables(scene: &Scene, node: &str) -> Result<Tables> {
    Ok((scene.rows(node)?, scene.maps(node)?.slots()?))
}

#[test]
fn both_sides_of_a_cut_serve_and_agree_again_when_it_is_healed() -> Result<()> {
    let mut scene = five("cutoff")?;
    let web = targets(&scene.config, HTTP_PORT);
    let client = scene.lab.client();
    let long = client.run(|| LongConnections::open(&web, CONNECTIONS, Duration::from_millis(50), PATIENCE))??;
    go_on(&long)?;
    let before: Vec<_> = FEW.iter().map(|node| tables(&scene, node)).collect::<Result<_>>()?;

    scene.lab.partition(&MOST, &FEW, Cut::BothWays)?;
    for by in MOST {
        wait_until_seen(&scene, by, "n4 and n5 are down", |nodes| {
            FEW.iter().all(|away| nodes[*away].state == "suspect" && standing(nodes, away) == "down")
        })?;
    }
    for by in FEW {
        wait_until_seen(&scene, by, "there is no majority", |nodes| {
            let own = nodes[by].agreement.as_ref();
            own.is_some_and(|own| !own.quorum) && MOST.iter().all(|away| nodes[*away].state == "suspect")
        })?;
        ensure!(nodes(&scene, by)?[FEW[usize::from(by == FEW[0])]].alive, "{by} has lost its only companion");
    }
    go_on(&long)?;

    // The one side can change things, and the other says that it cannot.
    only_new_on(&mut scene.config, "b3");
    scene.lab.configure(&scene.config)?;
    let file = |node: &str| scene.lab.config_file(node).display().to_string();
    let says = scene.done("n1", &["apply", &file("n1")])?;
    ensure!(says.contains("durable on 2 of 5") || says.contains("durable on 3 of 5"), "{says}");
    for node in FEW {
        let says = scene.refused(node, &["apply", &file(node)])?;
        ensure!(says.contains("nothing was changed") && says.contains("majority"), "{says}");
    }
    answers(&scene, &MOST)?;
    answers(&scene, &FEW)?;
    MOST.iter().chain(&FEW).try_for_each(|node| packets_go_as_told(&scene, node))?;
    for by in MOST {
        let owners = owners_add_up(&scene, by)?;
        ensure!(owners.keys().all(|owner| MOST.contains(&owner.as_str())), "{by} has {owners:?} own slots");
    }

    let contest = Contest::begin(&scene)?;
    for (node, before) in FEW.iter().zip(before) {
        ensure!(tables(&scene, node)? == before, "{node} changed its tables without a majority");
    }
    enter_at(&scene, &["n1", "n2", "n3", "n4", "n5"])?;
    contest.end(&scene)?;
    answers(&scene, &["n1", "n2", "n3", "n4", "n5"])?;
    let long = long.finish();
    ensure!(long.broken == 0 && long.wrong == 0, "{long:#?}");
    scene.lab.whole()
}

/// Connections that both sides have recorded, on another backend each.
struct Contest {
    /// Used on the side of the few until the end, and on the other long ago: the few's choice holds.
    used_by_few: Vec<Ends>,
    /// Used on both: that under the later slot table holds, which the majority's is.
    used_by_both: Vec<Ends>,
    /// What each side chose.
    few: Choices,
    most: Choices,
}

/// Client and VIP of a connection.
type Ends = (SocketAddr, SocketAddr);
type Choices = BTreeMap<Ends, String>;

impl Contest {
    fn begin(scene: &Scene) -> Result<Self> {
        let vips = [SocketAddr::new(vip4(2).into(), HTTP_PORT), SocketAddr::new(vip6(2).into(), HTTP_PORT)];
        let all: Vec<_> = (0..CONTESTED).map(|number| stranger(vips[number % 2])).collect();
        for (entrance, side) in [(MOST[0], &MOST[..]), (FEW[0], &FEW)] {
            enter_at(scene, &[entrance])?;
            send(scene, &all, raw::SYN)?;
            // A while later, so that this proves the flows.
            thread::sleep(Duration::from_millis(50));
            send(scene, &all, raw::ACK)?;
            wait_until(&format!("{side:?} have all flows"), || {
                let choices = choices_of(scene, side)?;
                Ok(all.iter().all(|ends| choices.contains_key(ends)))
            })?;
        }
        let (most, few) = (choices_of(scene, &MOST)?, choices_of(scene, &FEW)?);
        let contested: Vec<_> = all.into_iter().filter(|ends| most[ends] != few[ends]).collect();
        ensure!(contested.len() > CONTESTED / 3, "both sides chose alike but for {} flows", contested.len());
        let (used_by_few, used_by_both) = contested.split_at(contested.len() / 2);
        Ok(Self { used_by_few: used_by_few.to_vec(), used_by_both: used_by_both.to_vec(), few, most })
    }

    /// Heals the cut under packets of all these connections, and holds what becomes of them against the rule.
    fn end(&self, scene: &Scene) -> Result<()> {
        let healed = AtomicBool::new(false);
        thread::scope(|scope| {
            let packets = scope.spawn(|| self.go_on(scene, &healed));
            let done = self.heal(scene);
            healed.store(true, Ordering::Relaxed);
            let packets = packets.join().unwrap_or_else(|payload| std::panic::resume_unwind(payload));
            done.and(packets)
        })
    }

    /// Packets come in where they did.
    fn go_on(&self, scene: &Scene, healed: &AtomicBool) -> Result<()> {
        while !healed.load(Ordering::Relaxed) {
            enter_at(scene, &[FEW[0]])?;
            send(scene, &self.used_by_few, raw::ACK)?;
            send(scene, &self.used_by_both, raw::ACK)?;
            enter_at(scene, &[MOST[0]])?;
            send(scene, &self.used_by_both, raw::ACK)?;
            thread::sleep(RECENT / 10);
        }
        Ok(())
    }

    fn heal(&self, scene: &Scene) -> Result<()> {
        thread::sleep(RECENT + Duration::from_secs(2));
        scene.lab.heal()?;
        let begun = Instant::now();
        wait_until("all nodes have one table and one digest", || is_one_table(scene))?;
        println!("one table and one digest {:.1} s after the cut was healed", begun.elapsed().as_secs_f32());
        ensure!(begun.elapsed() < ONE_AGAIN, "one table only after {:?}", begun.elapsed());
        wait_until("every node sees every other", || Ok(scene.lab.suspicions()?.is_empty()))?;
        println!("whole {:.1} s after the cut was healed", begun.elapsed().as_secs_f32());
        let holds = |ends: &Ends| if self.used_by_few.contains(ends) { &self.few[ends] } else { &self.most[ends] };
        for node in scene.lab.nodes() {
            let mut other = BTreeSet::new();
            let settled = wait_until(&format!("{node} goes by the choices that hold"), || {
                let choices = choices(scene, &node)?;
                let contested = self.used_by_few.iter().chain(&self.used_by_both);
                let wrong = |ends: &&Ends| choices.get(ends).is_some_and(|on| on != holds(ends));
                other = contested.filter(wrong).copied().collect();
                Ok(other.is_empty())
            });
            let by_few = other.iter().filter(|ends| self.used_by_few.contains(ends)).count();
            settled.with_context(|| {
                let told: Vec<String> = other.iter().take(5).map(|ends| told(scene, ends)).collect();
                format!("{} flows, {by_few} of them used by the few alone: {told:#?}", other.len())
            })?;
        }
        println!("no flow is contested {:.1} s after the cut was healed", begun.elapsed().as_secs_f32());
        self.is_counted(scene)
    }

    /// Every contested flow was met on either side, and lost on one.
    fn is_counted(&self, scene: &Scene) -> Result<()> {
        let (mut met, mut lost) = (BTreeMap::new(), BTreeMap::new());
        for node in scene.lab.nodes() {
            let told: Value = scene.lab.ask(&node, &["get", "replication"])?;
            let count = |what: &str| told["received"][what].as_u64().unwrap_or(0);
            met.insert(node.clone(), count("conflicts"));
            lost.insert(node, count("conflicts_lost"));
        }
        println!("conflicts met {met:?}, lost {lost:?}");
        let lost_by = |side: &[&str]| side.iter().map(|node| lost[*node]).sum::<u64>();
        ensure!(lost_by(&MOST) >= self.used_by_few.len() as u64, "{lost:?}");
        ensure!(lost_by(&FEW) >= self.used_by_both.len() as u64, "{lost:?}");
        Ok(())
    }
}

fn send(scene: &Scene, all: &[Ends], flags: u8) -> Result<()> {
    scene.lab.client().run(|| all.iter().try_for_each(|(from, to)| raw::send_segment(*from, *to, flags)))?
}

/// The backends of a node's proven flows.
fn choices(scene: &Scene, node: &str) -> Result<Choices> {
    let maps = scene.maps(node)?;
    let (key, registry) = (maps.node.get(&0, 0)?.hash_key, maps.registry()?);
    let name = |id: u16| registry.name(kind::BACKEND, u32::from(id)).unwrap_or("none").to_owned();
    let proven = maps.flows.iter(&key).filter(|flow| flow.entry.proven());
    Ok(proven.map(|flow| ((flow.source(), flow.destination()), name(flow.entry.backend()))).collect())
}

/// What all nodes have of a flow, in words.
fn told(scene: &Scene, ends: &Ends) -> String {
    let one = |node: String| -> Result<String> {
        let maps = scene.maps(&node)?;
        let (key, registry) = (maps.node.get(&0, 0)?.hash_key, maps.registry()?);
        let flow = maps.flows.iter(&key).find(|flow| (flow.source(), flow.destination()) == *ends);
        let Some(flow) = flow else { return Ok(format!("{node}: none")) };
        let slot = FlowHash::of(&key, &flow.record.tuple, flow.v6).slot(maps.node.get(&0, 0)?.slot_mask);
        Ok(format!(
            "{node}: {} {} s idle, slot {slot} of version {}, which is {:?}",
            registry.name(kind::BACKEND, u32::from(flow.entry.backend())).unwrap_or("none"),
            flow.entry.idle(now()),
            flow.record.version,
            maps.slots()?[slot as usize],
        ))
    };
    let all: Result<Vec<_>> = scene.lab.nodes().into_iter().map(one).collect();
    format!("{ends:?}: {all:#?}")
}

/// The same of several nodes that agree.
fn choices_of(scene: &Scene, nodes: &[&str]) -> Result<Choices> {
    let mut all = Choices::new();
    for node in nodes {
        for (ends, backend) in choices(scene, node)? {
            let other = all.insert(ends, backend.clone()).filter(|other| *other != backend);
            ensure!(other.is_none(), "{node} has {ends:?} on {backend}, and another node on {other:?}");
        }
    }
    Ok(all)
}

/// One after the other, until a single node is left; connections whose pool has changed live on there.
#[test]
fn the_last_node_serves_what_all_others_served() -> Result<()> {
    let mut scene = five("last")?;
    let web = targets(&scene.config, HTTP_PORT);
    let client = scene.lab.client();
    let long = client.run(|| LongConnections::open(&web, CONNECTIONS, Duration::from_millis(50), PATIENCE))??;
    go_on(&long)?;
    only_new_on(&mut scene.config, "b2");
    scene.apply()?;
    go_on(&long)?;
    let all = scene.lab.nodes();
    let mut off = BTreeSet::new();
    for node in &all {
        off.extend(off_choice(&scene, node)?);
    }
    ensure!(off.len() * 10 > CONNECTIONS * 3, "only {} connections are off their choice", off.len());

    let mut live: Vec<&str> = all.iter().map(String::as_str).collect();
    let mut frozen = None;
    while live.len() > 1 {
        wait_until("every node has the flows that it should have", || {
            every(&live, |node| is_delivered(&scene, node, &live))
        })?;
        // The one that leads, where one does.
        let seen: Vec<Value> = scene.lab.ask(live[0], &["get", "nodes"])?;
        let leader = seen.iter().find(|node| node["leads"] == true).and_then(|node| node["name"].as_str());
        let victim =
            leader.filter(|leader| live.contains(leader) && *leader != live[0]).unwrap_or(live[live.len() - 1]);
        let victim = live.remove(live.iter().position(|node| *node == victim).context("it lives")?);
        enter_at(&scene, &live)?;
        scene.lab.kill(victim)?;
        go_on(&long)?;
        for by in &live {
            let agreed = if live.len() > 2 { "down" } else { "up" };
            wait_until_seen(&scene, by, &format!("{victim} is suspect, and agreed to be {agreed}"), |nodes| {
                nodes[victim].state == "suspect" && standing(nodes, victim) == agreed
            })?;
        }
        answers(&scene, &live)?;
        live.iter().try_for_each(|node| packets_go_as_told(&scene, node))?;
        if live.len() <= 2 {
            let now = tables(&scene, live[0])?;
            let before = frozen.get_or_insert_with(|| now.clone());
            ensure!(*before == now, "{} changed its tables without a majority", live[0]);
            let file = scene.lab.config_file(live[0]).display().to_string();
            let says = scene.refused(live[0], &["apply", &file, "--expect", "1"])?;
            ensure!(says.contains("nothing was changed") && says.contains("majority"), "{says}");
        }
    }
    let last = nodes(&scene, live[0])?;
    ensure!(last[live[0]].state == "cut-off", "the last node says of itself: {last:#?}");
    enter_at(&scene, &live)?;
    go_on(&long)?;

    scene.lab.heal()?;
    wait_until("all nodes have one table and one digest", || is_one_table(&scene))?;
    scene.lab.whole()?;
    enter_at(&scene, &all.iter().map(String::as_str).collect::<Vec<_>>())?;
    go_on(&long)?;
    let long = long.finish();
    ensure!(long.broken == 0 && long.wrong == 0, "{long:#?}");
    Ok(())
}
