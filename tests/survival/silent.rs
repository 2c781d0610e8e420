//! A node whose agent stays silent goes on as it was for a while, and is then relieved in an orderly way, as long as its data
//! plane answers; nobody notices.

use anyhow::{Result, ensure};
use xtask::lab::Topology;

use crate::kills::{Traffic, nothing_broke};
use crate::replicated::{is_delivered, only_new_on};
use crate::scene::{Scene, every_kind, wait_until};
use crate::truth::{every, nodes, owners_add_up};

const SILENT: &str = "n2";
const OTHERS: [&str; 2] = ["n1", "n3"];

/// Slots that a node is the primary owner of, in another one's eyes.
fn slots(scene: &Scene, by: &str) -> Result<usize> {
    Ok(nodes(scene, by)?[SILENT].primary_slots)
}

/// Whether it is alive to the others, and its agent silent.
fn is_silent(scene: &Scene) -> Result<bool> {
    every(&OTHERS, |by| {
        let seen = nodes(scene, by)?;
        Ok(seen[SILENT].alive && seen[SILENT].state == "agent-silent")
    })
}

#[test]
fn an_agent_that_stays_silent_is_relieved_and_nobody_notices() -> Result<()> {
    let topology = Topology::for_test("relieved");
    let mut config = every_kind(&topology, &["l2"]);
    // Far enough from the second after which an agent is told to be silent.
    config.silent_after = Some("6s".to_owned());
    let mut scene = Scene::up(&topology, config)?;
    let traffic = Traffic::start(&scene)?;
    only_new_on(&mut scene.config, "b2");
    scene.apply()?;
    let all = scene.lab.nodes();
    wait_until("all have each other's flows", || every(&all, |node| is_delivered(&scene, node, &all)))?;
    let share = slots(&scene, "n1")?;
    ensure!(share > 0, "{SILENT} owns nothing that could be taken from it");

    scene.lab.pause(SILENT)?;
    wait_until(&format!("the agent of {SILENT} is silent to the others"), || is_silent(&scene))?;
    for by in OTHERS {
        ensure!(slots(&scene, by)? == share, "{by} has {SILENT} own {} slots of {share} already", slots(&scene, by)?);
    }
    for by in OTHERS {
        wait_until(&format!("by {by} {SILENT} owns nothing any more"), || {
            ensure!(is_silent(&scene)?, "{SILENT} is suspected, though its data plane answers");
            Ok(slots(&scene, by)? == 0)
        })?;
        let owners = owners_add_up(&scene, by)?;
        ensure!(OTHERS.iter().all(|node| owners.contains_key(*node)), "{by} tells of the owners {owners:?}");
    }
    scene.lab.resume(SILENT)?;
    wait_until(&format!("{SILENT} has its share again"), || {
        every(&OTHERS, |by| Ok(slots(&scene, by)?.abs_diff(share) <= 3))
    })?;
    scene.lab.whole()?;
    let (stream, long) = traffic.finish()?;
    nothing_broke(&long)?;
    ensure!(stream.lost == 0 && stream.wrong == 0 && stream.moved == 0, "{stream:#?}");
    scene.nothing_was_dropped()
}
