//! Tables that are damaged in a live node: it finds that, puts them right, notes it, and no other node is touched.

use anyhow::{Context, Result, ensure};
use redirector::dataplane::batch;
use redirector::dataplane::liveness::LivenessTables as _;
use redirector_ebpf::tables::{Row, Slot};
use serde_json::Value;
use xtask::lab::{Config, Topology};

use crate::scene::{Scene, wait_until};

type Tables = (Vec<Slot>, Vec<(String, Vec<Row>)>);

fn tables(scene: &Scene, node: &str) -> Result<Tables> {
    Ok((scene.maps(node)?.slots()?, scene.rows(node)?))
}

/// The incidents of a kind in a node's journal, in words, with whom they are about.
fn incidents(scene: &Scene, node: &str, kind: &str) -> Result<Vec<(Option<u64>, String)>> {
    let all: Vec<Value> = serde_json::from_str(&scene.done(node, &["incidents", "-o", "json"])?)?;
    let those = all.iter().filter(|one| one["kind"] == kind);
    Ok(those.map(|one| (one["node"].as_u64(), one["what"].as_str().unwrap_or_default().to_owned())).collect())
}

/// What all nodes say of their tables in beats.
fn digests(scene: &Scene) -> Result<Vec<(u64, u64)>> {
    let said = |node: &String| {
        let maps = scene.maps(node)?;
        let condition = maps.liveness.condition();
        Ok((condition.slots.load(), condition.pools.load()))
    };
    scene.lab.nodes().iter().map(said).collect()
}

fn is_one(scene: &Scene) -> Result<bool> {
    let digests = digests(scene)?;
    Ok(digests.iter().all(|digest| *digest == digests[0] && digest.0 != 0 && digest.1 != 0))
}

#[test]
fn a_damaged_table_is_found_repaired_and_noted_and_stays_where_it_is() -> Result<()> {
    let topology = Topology::for_test("audit");
    let scene = Scene::up(&topology, Config::standard(&topology))?;
    wait_until("all nodes say the same of their tables", || is_one(&scene))?;
    let nodes = scene.lab.nodes();
    let before: Vec<Tables> = nodes.iter().map(|node| tables(&scene, node)).collect::<Result<_>>()?;

    let maps = scene.maps("n2")?;
    let mut slots = maps.slots()?;
    slots.iter_mut().step_by(1000).for_each(|slot| slot.ranks.swap(0, 1));
    batch::write_array(&maps.slots.get(&0, 0)?, &slots, "SLOTS")?;
    let id = (1..64).find(|id| maps.pools.get(id, 0).is_ok_and(|pool| pool.rows > 0)).context("there is no pool")?;
    let pool = maps.pools.get(&id, 0)?;
    let mut rows = maps.rows(&pool)?;
    let other =
        rows.iter().find(|row| row.current() != rows[0].current()).context("one backend has all rows")?.current();
    rows[0] = Row::new(other, other, false);
    batch::write_array(&maps.pool_tables.get(&pool.table.into(), 0)?, &rows, "POOL_TABLES")?;

    wait_until("n2 has put its tables right", || Ok(tables(&scene, "n2")? == before[1]))?;
    wait_until("it is noted", || Ok(!incidents(&scene, "n2", "repair")?.is_empty()))?;
    let found = incidents(&scene, "n2", "mismatch")?;
    ensure!(found.iter().any(|(_, what)| what.contains("17 slots are not as agreed")), "{found:?}");
    ensure!(found.iter().any(|(_, what)| what.contains("1 rows of pool")), "{found:?}");
    wait_until("all nodes say the same again", || is_one(&scene))?;
    for (node, before) in nodes.iter().zip(&before).filter(|(node, _)| *node != "n2") {
        ensure!(tables(&scene, node)? == *before, "the damage has spread to {node}");
        ensure!(
            incidents(&scene, node, "mismatch")?.iter().all(|(about, _)| *about == Some(2)),
            "{node} was damaged too"
        );
    }

    scene.lab.kill("n3")?;
    wait_until("the suspicion is noted", || {
        Ok(incidents(&scene, "n1", "peer")?.iter().any(|(about, what)| *about == Some(3) && what.contains("suspected")))
    })?;
    scene.lab.heal()?;
    wait_until("the return is noted", || {
        Ok(incidents(&scene, "n1", "peer")?.iter().any(|(about, what)| *about == Some(3) && what == "it serves"))
    })
}
