//! A table of a million flows, listed.

use std::fs;

use anyhow::{Context, Result, ensure};
use redirector::dataplane::flows::{Copied, Put, now};
use redirector_ebpf::packet::{Address, Tuple, protocol};
use redirector_ebpf::tables::flow::{Entry, Record, State};
use redirector_ebpf::tables::names::kind;
use serde::de::IgnoredAny;
use xtask::lab::{Config, Topology, vip4};
use xtask::traffic::HTTP_PORT;

use crate::scene::Scene;

const FLOWS: usize = 1_000_000;

#[test]
fn a_million_flows_are_listed() -> Result<()> {
    let topology = Topology { nodes: 1, backends: 2, ..Topology::for_test("million") };
    let scene = Scene::without_agents(&topology, Config::standard(&topology))?;
    let file = scene.lab.config_file("n1");
    let text = fs::read_to_string(&file)?;
    ensure!(text.contains("flows4 = 65536"), "the table has another size than this test makes larger");
    fs::write(&file, text.replace("flows4 = 65536", "flows4 = 2097152"))?;
    scene.lab.start_agent("n1")?;
    fill(&scene)?;

    let page = scene.done("n1", &["get", "flows", "--limit", "20"])?;
    ensure!(page.lines().filter(|line| line.contains("owned4")).count() == 20, "{page}");
    let all: Vec<IgnoredAny> = serde_json::from_str(&scene.done("n1", &["get", "flows", "-o", "json"])?)?;
    ensure!(all.len() == FLOWS, "{} of {FLOWS} flows were listed", all.len());
    Ok(())
}

/// Puts flows of as many clients into the table, past the packets that would take a while.
fn fill(scene: &Scene) -> Result<()> {
    let maps = scene.maps("n1")?;
    let node = maps.node.get(&0, 0)?;
    let registry = maps.registry()?;
    let service = registry.id(kind::SERVICE, "owned4").context("no such service")? as u16;
    let backend = registry.id(kind::BACKEND, "owned4/b1").context("no such backend")? as u16;
    let dst = Address::v4(u32::from_ne_bytes(vip4(2).octets()));
    let now = now();
    let entry = |tag| Entry::first(tag, backend, State::Established, false, now).touched(State::Established, true, now);
    let mut filled = 0;
    // Some find their bucket full, so more are tried than are needed.
    for client in 0x0b00_0000_u32.. {
        let src = Address::v4(client.to_be());
        let tuple = Tuple { src, dst, sport: 40_000_u16.to_be(), dport: HTTP_PORT.to_be(), protocol: protocol::TCP };
        let record = Record { tuple, service, since: now, version: 1 };
        let copy = Copied { record: &record, v6: false, idle: &node.idle, now };
        filled += usize::from(maps.flows.put(&node.hash_key, &copy, entry, |_| false) == Put::Inserted);
        if filled == FLOWS {
            return Ok(());
        }
    }
    Ok(())
}
