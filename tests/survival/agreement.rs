//! A cluster that agrees: on its configuration, on who serves, and on when a pool's change has come to its end.

use std::collections::BTreeSet;
use std::process::Output;
use std::{fs, thread};

use anyhow::{Context, Result, ensure};
use redirector::dataplane::liveness::LivenessTables as _;
use redirector_ebpf::abi::PORTS;
use redirector_ebpf::tables::Slot;
use serde_json::Value;
use xtask::lab::{Config, Topology};
use xtask::traffic::{HTTP_PORT, Load};

use crate::disk::all_go_by_it;
use crate::kills::{Traffic, nothing_broke};
use crate::scene::{PATIENCE, Scene, all_answered, every_kind, targets, wait_until, words};

/// Changes settle soon, and dead nodes are soon agreed to be dead.
fn cluster(name: &str) -> Result<Scene> {
    let topology = Topology::for_test(name);
    let mut config = Config::standard(&topology);
    config.pool.iter_mut().for_each(|pool| pool.settle = "1s".into());
    for state in ["tcp_new", "tcp_closing", "udp_new", "udp"] {
        config.timeouts.insert(state.into(), "2s".into());
    }
    config.down_after = Some("2s".into());
    Scene::up(&topology, config)
}

/// A change of every pool, in the files of all nodes.
fn weigh(scene: &mut Scene, weight: u32) -> Result<()> {
    scene.config.pool.iter_mut().for_each(|pool| pool.backend[0].weight = weight);
    scene.lab.configure(&scene.config)
}

fn apply_on(scene: &Scene, node: &str) -> Result<String> {
    let file = scene.lab.config_file(node);
    scene.done(node, &["apply", &file.display().to_string()])
}

/// The nodes as one of them sees them, with all that it says.
pub(crate) fn nodes(scene: &Scene, by: &str) -> Result<Vec<Value>> {
    Ok(serde_json::from_str(&scene.done(by, &["get", "nodes", "-o", "json"])?)?)
}

pub(crate) fn standing(scene: &Scene, by: &str, of: &str) -> Result<String> {
    let nodes = nodes(scene, by)?;
    let node = nodes.iter().find(|node| node["name"] == of).with_context(|| format!("{by} does not know {of}"))?;
    Ok(node["agreed"]["standing"].as_str().unwrap_or_default().to_owned())
}

fn disputed(scene: &Scene, node: &str) -> Result<usize> {
    Ok(scene.rows(node)?.iter().flat_map(|(_, rows)| rows).filter(|row| row.disputed()).count())
}

/// The slot tables of all nodes, and what each says of its own and has heard of the others'.
pub(crate) fn is_one_table(scene: &Scene) -> Result<bool> {
    is_one_table_of(scene, &scene.lab.nodes())
}

/// The same of the first nodes alone.
pub(crate) fn is_one_table_of(scene: &Scene, names: &[String]) -> Result<bool> {
    let maps = names.iter().map(|node| scene.maps(node)).collect::<Result<Vec<_>>>()?;
    let tables: Vec<Vec<Slot>> = maps.iter().map(|maps| Ok(maps.slots()?)).collect::<Result<_>>()?;
    let said: Vec<u64> = maps.iter().map(|maps| maps.liveness.condition().slots.load()).collect();
    let heard = maps.iter().flat_map(|maps| {
        let ids = 1..=names.len() as u8;
        ids.flat_map(move |id| (0..PORTS as u8).map(move |port| maps.liveness.heard(id, port).slots.load()))
    });
    let is_same = |digest: u64| digest == said[0];
    Ok(tables.iter().all(|table| *table == tables[0])
        && said.iter().all(|digest| is_same(*digest))
        && heard.filter(|digest| *digest != 0).all(is_same))
}

#[test]
fn a_change_reaches_all_nodes_and_its_disputes_end() -> Result<()> {
    let mut scene = cluster("agreed")?;
    let web = targets(&scene.config, HTTP_PORT);
    weigh(&mut scene, 3)?;
    let again = scene.refused("n2", &["bootstrap"])?;
    ensure!(again.contains("a cluster begins once") && again.contains("redirector unload"), "{again}");
    let says = apply_on(&scene, "n2")?;
    ensure!(says.contains("durable on 2 of 3") || says.contains("durable on 3 of 3"), "{says}");
    for node in scene.lab.nodes() {
        let file = scene.lab.config_file(&node).display().to_string();
        wait_until(&format!("{node} goes by what n2 was told"), || {
            Ok(scene.done(&node, &["diff", &file])?.starts_with("0 changes to version 2 "))
        })?;
    }
    let says = apply_on(&scene, "n3")?;
    ensure!(says.contains("0 changes, version 2 "), "{says}");
    let file = scene.lab.config_file("n1").display().to_string();
    weigh(&mut scene, 5)?;
    let refused = scene.refused("n1", &["apply", &file, "--expect", "1"])?;
    ensure!(refused.contains("version 2 is in force, not 1"), "{refused}");

    let load = Load::new(web, 200, PATIENCE / 10);
    all_answered(&scene.lab.client().run(|| load.run())?)?;
    for node in scene.lab.nodes() {
        wait_until(&format!("the disputes of {node} end"), || Ok(disputed(&scene, &node)? == 0))?;
    }
    of_two_changes_to_one_version_one_is_made(&mut scene)?;
    no_change_undoes_another_unseen(&mut scene)
}

/// The idle times of datagrams and of connections that close, as two operators change them, each on a node of their own and by a
/// file that was made before the other's change.
fn no_change_undoes_another_unseen(scene: &mut Scene) -> Result<()> {
    let mut refused = 0;
    for seconds in 10..14 {
        scene.lab.configure(&scene.config)?;
        apply_on(scene, "n1")?;
        wait_until("all go by what both files were made of", || all_go_by_it(scene, &scene.lab.nodes()))?;
        let mut files = Vec::new();
        for (node, what) in [("n1", "udp"), ("n3", "tcp_closing")] {
            let mut config = scene.config.clone();
            config.timeouts.insert(what.into(), format!("{seconds}s"));
            scene.lab.configure(&config)?;
            let file = scene.lab.config_file(node).display().to_string();
            fs::copy(&file, format!("{file}.{what}"))?;
            files.push((node, format!("{file}.{what}")));
        }
        let apply = |(node, file): &(&str, String)| scene.run(node, &["apply", file]);
        let answers = thread::scope(|scope| {
            let one = scope.spawn(|| apply(&files[0]));
            let other = apply(&files[1]);
            [one.join().expect("it does not panic"), other]
        });
        let answers: Vec<_> = answers.into_iter().collect::<Result<_>>()?;
        let (done, not): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| answer.status.success());
        refused += not.len();
        let undoes = |answer: &Output| ["udp", "tcp_closing"].iter().all(|what| words(answer).contains(what));
        match (done.as_slice(), not.as_slice()) {
            ([_], [not]) => {
                let says = words(not);
                ensure!(says.contains("came in force meanwhile") && undoes(not), "{says}");
            }
            // One after the other: then whoever was later is told what that undoes.
            ([one, other], []) => ensure!(undoes(one) || undoes(other), "neither tells of the other's: {answers:?}"),
            _ => anyhow::bail!("neither change was made: {answers:?}"),
        }
    }
    println!("{refused} of 8 changes were refused, each at once with another one");
    Ok(())
}

/// Two operators change version 2 on two nodes at once.
fn of_two_changes_to_one_version_one_is_made(scene: &mut Scene) -> Result<()> {
    let files: Vec<String> =
        ["n1", "n3"].iter().map(|node| scene.lab.config_file(node).display().to_string()).collect();
    weigh(scene, 6)?;
    let other = format!("{}.other", files[1]);
    fs::copy(&files[1], &other)?;
    weigh(scene, 7)?;
    let scene = &*scene;
    let apply = |node: &'static str, file: &str| scene.run(node, &["apply", file, "--expect", "2"]);
    let (one, other) = thread::scope(|scope| {
        let one = scope.spawn(|| apply("n1", &files[0]));
        let other = apply("n3", &other);
        (one.join().expect("it does not panic"), other)
    });
    let answers = [one?, other?];
    let refused: Vec<String> = answers
        .iter()
        .filter(|answer| !answer.status.success())
        .map(|answer| String::from_utf8_lossy(&answer.stderr).into_owned())
        .collect();
    ensure!(refused.len() == 1 && refused[0].contains("version 3 is in force, not 2"), "{answers:?}");
    Ok(())
}

#[test]
fn without_a_majority_nothing_changes() -> Result<()> {
    let mut scene = cluster("minority")?;
    for node in ["n2", "n3"] {
        scene.lab.kill_agent(node)?;
    }
    wait_until("n1 knows that it is alone", || {
        let nodes = nodes(&scene, "n1")?;
        Ok(nodes.iter().any(|node| node["self"] == true && node["agreement"]["quorum"] == false))
    })?;
    let before = (scene.rows("n1")?, scene.maps("n1")?.slots()?);
    weigh(&mut scene, 4)?;
    let file = scene.lab.config_file("n1").display().to_string();
    let refused = scene.refused("n1", &["apply", &file])?;
    ensure!(refused.contains("nothing was changed") && refused.contains("majority"), "{refused}");
    ensure!(before == (scene.rows("n1")?, scene.maps("n1")?.slots()?), "tables were changed without a majority");
    let load = Load::new(targets(&scene.config, HTTP_PORT), 200, PATIENCE / 10);
    all_answered(&scene.lab.client().run(|| load.run())?)?;

    for node in ["n2", "n3"] {
        scene.lab.start_agent(node)?;
    }
    wait_until("changes are possible again", || Ok(scene.run("n1", &["apply", &file])?.status.success()))
}

#[test]
fn a_dead_node_is_agreed_to_be_down_and_comes_back_to_its_slots() -> Result<()> {
    let scene = cluster("down")?;
    let owned = |node: &str, of: u8| -> Result<usize> {
        Ok(scene.maps(node)?.slots()?.iter().filter(|slot| slot.ranks[0] == of).count())
    };
    let share = owned("n1", 3)?;
    ensure!(share > 0 && is_one_table(&scene)?, "the cluster did not begin with one table");
    scene.lab.kill("n3")?;
    for by in ["n1", "n2"] {
        wait_until(&format!("{by} learns that n3 is down"), || Ok(standing(&scene, by, "n3")? == "down"))?;
        wait_until(&format!("{by} has n3 own nothing"), || {
            Ok(!scene.maps(by)?.slots()?.iter().any(|slot| slot.ranks.contains(&3) || slot.previous == 3))
        })?;
    }
    scene.lab.heal()?;
    for by in scene.lab.nodes() {
        wait_until(&format!("{by} learns that n3 is up"), || Ok(standing(&scene, &by, "n3")? == "up"))?;
    }
    wait_until("n3 owns its slots again", || Ok(owned("n1", 3)? == share))?;
    wait_until("all nodes have one table", || is_one_table(&scene))?;
    wait_until("every node sees every other", || Ok(scene.lab.suspicions()?.is_empty()))
}

#[test]
fn a_cluster_that_serves_already_begins_to_agree_and_nothing_moves() -> Result<()> {
    let topology = Topology::for_test("begins");
    let scene = Scene::without_agents(&topology, every_kind(&topology, &["l2", "ipip"]))?;
    let names = scene.lab.nodes();
    for node in &names {
        scene.lab.start_agent(node)?;
    }
    wait_until("every node sees every other", || Ok(scene.lab.suspicions()?.is_empty()))?;
    let ranks =
        |node: &str| -> Result<Vec<[u8; 4]>> { Ok(scene.maps(node)?.slots()?.iter().map(|slot| slot.ranks).collect()) };
    let before = ranks("n1")?;
    let traffic = Traffic::start(&scene)?;
    wait_until("answers come to every flow", || Ok(traffic.flows()))?;
    scene.done("n1", &["bootstrap"])?;
    scene.lab.settled()?;
    wait_until("all have one table", || is_one_table(&scene))?;
    for node in &names {
        ensure!(ranks(node)? == before, "slots have moved on {node}");
        // Its standing was never another one: that would have changed its slots' versions.
        let versions: BTreeSet<u64> = scene.maps(node)?.slots()?.iter().map(|slot| slot.version).collect();
        ensure!(versions == [1].into(), "slots of {node} have changed: {versions:?}");
    }
    let (stream, long) = traffic.finish()?;
    nothing_broke(&long)?;
    ensure!(stream.lost == 0 && stream.wrong == 0 && stream.moved == 0, "{stream:#?}");
    scene.nothing_was_dropped()
}
