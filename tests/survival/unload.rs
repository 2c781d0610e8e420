//! The data plane without an agent, and what is left when it is taken away.

use std::collections::BTreeSet;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::{fs, io};

use anyhow::{Context, Result, ensure};
use aya::maps::{MapInfo, loaded_maps};
use aya::programs::loaded_programs;
use redirector::dataplane::load;
use redirector_ebpf::abi::ABI_VERSION;
use xtask::lab::{Config, Topology};
use xtask::traffic::{HTTP_PORT, fetch};

use crate::scene::{Scene, TIMEOUT, targets, wait_until, words};

#[test]
fn a_data_plane_comes_and_goes_and_says_what_keeps_it_away() -> Result<()> {
    let topology = Topology { nodes: 1, backends: 1, ..Topology::for_test("unload") };
    let scene = Scene::without_agents(&topology, Config::standard(&topology))?;
    interfaces_that_do_not_fit_are_named(&scene)?;
    others_than_root_are_told_so(&scene)?;
    another_version_is_left_alone(&scene)?;
    the_mode_on_the_command_line_counts(&scene)?;
    nothing_is_left_after_unload(&scene)?;
    a_second_agent_is_refused(&scene)
}

fn nothing_is_left_after_unload(scene: &Scene) -> Result<()> {
    scene.done("n1", &["load"])?;
    scene.lab.client().run(|| -> Result<()> {
        for target in targets(&scene.config, HTTP_PORT) {
            fetch(target, "/", None, TIMEOUT)?;
        }
        Ok(())
    })??;
    let (ours, program) = (maps_of(scene)?, scene.program("n1")?.context("no program was attached")?);
    ensure!(ours.len() > 20 && ours.is_subset(&maps()?) && programs()?.contains(&program), "{ours:?}, {program}");

    scene.done("n1", &["unload"])?;
    ensure!(!scene.pins("n1")?.exists(), "pins are left");
    // The kernel does its part a little later.
    wait_until("nothing is attached", || Ok(scene.program("n1")?.is_none()))?;
    wait_until("program and maps are freed", || Ok(maps()?.is_disjoint(&ours) && !programs()?.contains(&program)))?;
    let error = scene.refused("n1", &["unload"])?;
    ensure!(error.contains("nothing is loaded"), "{error}");
    Ok(())
}

/// The file says native.
fn the_mode_on_the_command_line_counts(scene: &Scene) -> Result<()> {
    for (mode, shown) in [("generic", "xdpgeneric"), ("auto", "xdp ")] {
        scene.done("n1", &["load", "--mode", mode])?;
        let link = scene.lab.host("n1")?.command("ip").args(["link", "show", "dev", "eth0"]).output()?;
        let link = String::from_utf8_lossy(&link.stdout).into_owned();
        ensure!(link.contains(shown), "--mode {mode}: {link}");
        scene.lab.client().run(|| -> Result<()> {
            for target in targets(&scene.config, HTTP_PORT) {
                fetch(target, "/", None, TIMEOUT)?;
            }
            Ok(())
        })??;
        scene.done("n1", &["unload"])?;
        wait_until("nothing is attached", || Ok(scene.program("n1")?.is_none()))?;
    }
    Ok(())
}

fn interfaces_that_do_not_fit_are_named(scene: &Scene) -> Result<()> {
    let file = scene.lab.config_file("n1");
    let good = fs::read_to_string(&file)?;
    for (interface, mode, says) in [
        ("eth7", "native", ["`eth7` does not exist", "ip link"]),
        ("lo", "native", ["lo in native mode failed", "mode = \"generic\""]),
    ] {
        let named = good
            .replace("\"eth0\"", &format!("\"{interface}\""))
            .replace("mode = \"native\"", &format!("mode = \"{mode}\""));
        fs::write(&file, named)?;
        let error = scene.refused("n1", &["load"])?;
        ensure!(says.iter().all(|says| error.contains(says)), "{error}");
    }
    fs::write(&file, good)?;
    // What the failed attempts have made is no obstacle.
    if scene.pins("n1")?.exists() {
        scene.done("n1", &["unload"])?;
    }
    Ok(())
}

fn others_than_root_are_told_so(scene: &Scene) -> Result<()> {
    let command = scene.lab.redirector("n1", &["load"])?;
    let program = scene.lab.directory().join("redirector");
    fs::copy(command.get_program(), &program)?;
    for args in [["load"].as_slice(), &["run"], &["unload"], &["decap"]] {
        let output = Command::new(&program).args(args).uid(65534).output()?;
        let says = words(&output);
        ensure!(!output.status.success() && says.contains("needs root") && says.contains("sudo"), "{args:?}: {says}");
    }
    Ok(())
}

fn another_version_is_left_alone(scene: &Scene) -> Result<()> {
    let other = scene.pins("n1")?.join(format!("v{}", ABI_VERSION + 1));
    fs::create_dir_all(&other)?;
    let error = scene.refused("n1", &["load"])?;
    let way_out = format!("redirector unload --pins {}", scene.pins("n1")?.display());
    ensure!(error.contains("another version") && error.contains(&way_out), "{error}");
    ensure!(other.exists(), "the other version's pins are gone");
    scene.done("n1", &["unload"])?;
    Ok(())
}

fn a_second_agent_is_refused(scene: &Scene) -> Result<()> {
    scene.lab.start_agent("n1")?;
    for args in [["run"].as_slice(), &["load"], &["unload"]] {
        let error = scene.refused("n1", args)?;
        ensure!(error.contains("another agent"), "{args:?}: {error}");
    }
    let agent = scene.lab.process("n1-agent")?;
    ensure!(agent.alive(), "the first agent has ended: {}", agent.log_tail());
    Ok(())
}

/// A node's maps, those within others too.
fn maps_of(scene: &Scene) -> Result<BTreeSet<u32>> {
    let mut ids = BTreeSet::new();
    for entry in load::directory(&scene.pins("n1")?).read_dir()? {
        let path = entry?.path();
        if !path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("link-")) {
            ids.insert(MapInfo::from_pin(path)?.id());
        }
    }
    let maps = scene.maps("n1")?;
    for pool in 0..u32::from(u8::MAX) {
        let tables = [maps.pool_tables.get(&pool, 0), maps.slots.get(&pool, 0)];
        for table in tables.into_iter().flatten() {
            ids.insert(table.info()?.id());
        }
    }
    Ok(ids)
}

fn maps() -> io::Result<BTreeSet<u32>> {
    loaded_maps().map(|info| Ok(info.map_err(io::Error::other)?.id())).collect()
}

fn programs() -> io::Result<BTreeSet<u32>> {
    loaded_programs().map(|info| Ok(info.map_err(io::Error::other)?.id())).collect()
}
