//! Certificates and the authority behind them are changed while the agents run.

use std::fs;
use std::path::Path;

use anyhow::{Result, ensure};
use serde_json::Value;
use xtask::lab::Topology;

use crate::disk::{change, own};
use crate::kills::{Traffic, nothing_broke};
use crate::scene::{Scene, every_kind, wait_until, words};

const CLUSTER: &str = "7";

fn pki(scene: &Scene, args: &[&str]) -> Result<()> {
    let binary = scene.lab.redirector("n1", &["check"])?.get_program().to_owned();
    let done = std::process::Command::new(binary).arg("pki").args(args).output()?;
    ensure!(done.status.success(), "{}", words(&done));
    Ok(())
}

fn log(scene: &Scene, node: &str) -> Result<String> {
    Ok(fs::read_to_string(scene.lab.directory().join(format!("{node}-agent.log")))?)
}

/// How often an agent has taken its files anew.
fn rereads(scene: &Scene, node: &str) -> Result<usize> {
    Ok(log(scene, node)?.matches("certificate reread").count())
}

/// Has all agents read their certificates anew.
fn reread(scene: &Scene) -> Result<()> {
    for node in scene.lab.nodes() {
        let before = rereads(scene, &node)?;
        scene.lab.process(&format!("{node}-agent"))?.signal(libc::SIGHUP);
        wait_until(&format!("{node} has its certificate anew"), || Ok(rereads(scene, &node)? > before))?;
    }
    Ok(())
}

fn all_reached(scene: &Scene) -> Result<bool> {
    for node in scene.lab.nodes() {
        let told = own(scene, &node)?;
        let members = told["members"].as_array().map(Vec::as_slice).unwrap_or_default();
        if members.len() != 3 || members.iter().any(|member| member["reached"] != Value::Bool(true)) {
            return Ok(false);
        }
    }
    Ok(true)
}

#[test]
fn a_new_authority_takes_over_while_agents_run() -> Result<()> {
    let topology = Topology::for_test("renewal");
    let mut scene = Scene::up(&topology, every_kind(&topology, &["l2"]))?;
    let directory = scene.lab.directory().join("pki");
    let (new, ca) = (scene.lab.directory().join("new-pki"), directory.join("ca.crt"));
    let text = |path: &Path| path.display().to_string();
    wait_until("all are reached", || all_reached(&scene))?;
    let traffic = Traffic::start(&scene)?;

    fs::create_dir(&new)?;
    pki(&scene, &["init", "--dir", &text(&new), "--cluster", CLUSTER])?;
    let (old_ca, new_ca) = (fs::read_to_string(&ca)?, fs::read_to_string(new.join("ca.crt"))?);
    fs::write(&ca, format!("{old_ca}{new_ca}"))?;
    reread(&scene)?;
    for node in ["1", "2", "3"] {
        pki(&scene, &["issue", "--dir", &text(&new), "--node", node, "--out", &text(&directory)])?;
    }
    reread(&scene)?;
    fs::write(&ca, new_ca)?;
    reread(&scene)?;

    // Who starts now knows the new authority alone, and must be known to those that started with the old one.
    let (n1, n2) = (scene.lab.process("n1-agent")?.pid, scene.lab.process("n2-agent")?.pid);
    scene.lab.kill_agent("n3")?;
    scene.lab.start_agent("n3")?;
    wait_until("all are reached", || all_reached(&scene))?;
    let told = change(&mut scene, "n3", 70)?;
    ensure!(told.contains("of 3"), "{told}");
    ensure!((scene.lab.process("n1-agent")?.pid, scene.lab.process("n2-agent")?.pid) == (n1, n2), "not restarted");

    // What is spoilt is refused, and what was in use stays.
    fs::write(directory.join("node-1.crt"), "no certificate")?;
    scene.lab.process("n1-agent")?.signal(libc::SIGHUP);
    wait_until("the spoilt one is refused", || {
        Ok(log(&scene, "n1")?.contains("the certificate is not taken; what was in use stays"))
    })?;
    ensure!(all_reached(&scene)?, "a spoilt file cost a connection");
    let (stream, long) = traffic.finish()?;
    nothing_broke(&long)?;
    ensure!(stream.wrong == 0 && stream.moved == 0, "{stream:#?}");
    Ok(())
}
