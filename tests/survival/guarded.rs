//! An application under guard: while it stays silent its node drains, and when it is well the node serves again.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use xtask::lab::Topology;

use crate::scene::{Scene, every_kind, wait_until};

fn standing(scene: &Scene, name: &str) -> Result<String> {
    let nodes: Vec<Value> = serde_json::from_str(&scene.done("n1", &["get", "nodes", "-o", "json"])?)?;
    let node = nodes.iter().find(|node| node["name"] == name).with_context(|| format!("{name} is a node"))?;
    Ok(node["agreed"]["standing"].as_str().unwrap_or_default().to_owned())
}

#[test]
fn a_node_whose_application_is_silent_drains_until_it_is_well() -> Result<()> {
    let topology = Topology::for_test("guarded");
    let scene = Scene::up(&topology, every_kind(&topology, &["l2"]))?;
    let run = scene.lab.config_file("n3").with_file_name("run");
    let well = run.join("well");
    // It exits at once until the file is there; then it runs, and says so through its socket.
    let script = format!("test -e {} || exit 7; exec sleep 1000", well.display());
    let mut guard = scene.lab.redirector("n3", &["guard", "--name", "app", "--timeout", "2s", "--failures", "2"])?;
    guard.args(["--", "sh", "-c", &script]);
    let guard = scene.lab.spawn("n3", "guard", guard)?;
    wait_until("n3, whose application fails, drains", || Ok(standing(&scene, "n3")?.starts_with("drain")))?;
    ensure!(guard.log_tail().contains("exited with status 7"), "{}", guard.log_tail());
    ensure!(standing(&scene, "n1")? == "up" && standing(&scene, "n2")? == "up", "only the guarded node drains");

    fs::write(&well, "")?;
    let (socket, beats) = (run.join("guard-app.sock"), UnixDatagram::unbound()?);
    wait_until("n3, whose application is well, serves again", || {
        // The guard may have just been about to start it.
        for _ in 0..4 {
            beats.send_to(b"WATCHDOG=1", &socket)?;
            std::thread::sleep(Duration::from_millis(250));
        }
        Ok(standing(&scene, "n3")? == "up")
    })?;
    // Silent again, it is killed and started anew, which no node notices before it has failed twice.
    wait_until("the silent application is killed", || Ok(guard.log_tail().contains("no sign of life")))?;
    guard.stop()
}
