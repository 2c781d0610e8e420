//! Configurations that are refused, and what they have changed: nothing.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use aya::maps::MapData;
use redirector::dataplane::load;
use xtask::lab::{Config, Topology};

use crate::scene::Scene;

/// Maps that packets and time change, or that hold no values of the agent's.
const OF_PACKETS: &[&str] = &[
    "FLOWS",
    "TUPLES",
    "FRAGMENTS",
    "BUDGETS",
    "SOURCES",
    "REASONS",
    "SERVICE_TRAFFIC",
    "BACKEND_TRAFFIC",
    "CAPTURED",
    "FLOW_EVENTS",
    "CONDITION",
    "SENT",
    "HEARD",
    "PULSE",
    "LEG_SENT",
    "LEG_HEARD",
    "SIGHTINGS",
    "SIGNALS",
    "link-",
];

#[test]
fn what_is_refused_changes_nothing() -> Result<()> {
    let topology = Topology { nodes: 1, backends: 2, ..Topology::for_test("refusal") };
    let scene = Scene::up(&topology, Config::standard(&topology))?;
    let good = fs::read_to_string(scene.lab.config_file("n1"))?;
    let before = dump(&load::directory(&scene.pins("n1")?))?;
    ensure!(before.len() > 20 && before.values().any(|values| values.len() > 1), "what was read is no data plane's");
    let version = scene.done("n1", &["diff", &file(&scene, &good)?])?;

    let line = good.lines().position(|line| line == "weight = 1").context("no weight in the file")? + 1;
    let wrong =
        good.replacen("weight = 1", "weight = 0", 1).replacen("address = \"10.77.2.2\"", "adress = \"10.77.2.2\"", 1);
    let path = file(&scene, &wrong)?;
    let error = scene.refused("n1", &["apply", &path])?;
    for says in [format!("{path}:{line}"), "weight".into(), "adress".into()] {
        ensure!(error.contains(&says), "`{says}` is not in: {error}");
    }

    let other = good.replacen("weight = 1", "weight = 2", 1);
    let path = file(&scene, &other)?;
    let error = scene.refused("n1", &["apply", &path, "--expect", "99"])?;
    ensure!(error.contains("99") && error.contains("redirector diff"), "{error}");

    let elsewhere = good.replacen("/data\"", "/other\"", 1);
    let error = scene.refused("n1", &["apply", &file(&scene, &elsewhere)?])?;
    ensure!(error.contains("[node]"), "{error}");

    let after = dump(&load::directory(&scene.pins("n1")?))?;
    for (map, values) in &before {
        ensure!(after.get(map) == Some(values), "{map} was changed");
    }
    ensure!(scene.done("n1", &["diff", &file(&scene, &good)?])? == version, "the version was changed");
    Ok(())
}

/// A file beside the node's own.
fn file(scene: &Scene, text: &str) -> Result<String> {
    let path = scene.lab.config_file("n1").with_file_name("next.toml");
    fs::write(&path, text)?;
    Ok(path.display().to_string())
}

type Values = BTreeMap<Vec<u8>, Vec<u8>>;

/// Every key and value of the maps that are the agent's to write.
fn dump(directory: &Path) -> Result<BTreeMap<String, Values>> {
    let mut maps = BTreeMap::new();
    for entry in directory.read_dir()? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if !OF_PACKETS.iter().any(|prefix| name.starts_with(prefix)) {
            let values = values(&MapData::from_pin(&path)?).with_context(|| format!("reading {name}"))?;
            maps.insert(name, values);
        }
    }
    Ok(maps)
}

fn values(map: &MapData) -> Result<Values> {
    let info = map.info()?;
    let (mut key, mut next) = (None::<Vec<u8>>, vec![0; info.key_size() as usize]);
    let mut values = Values::new();
    while element(map, GET_NEXT_KEY, key.as_deref(), &mut next)? {
        let mut value = vec![0; info.value_size() as usize];
        if element(map, LOOKUP, Some(&next), &mut value)? {
            values.insert(next.clone(), value);
        }
        key = Some(next.clone());
    }
    Ok(values)
}

const LOOKUP: libc::c_long = 1;
const GET_NEXT_KEY: libc::c_long = 4;

/// The kernel's `union bpf_attr` for one element.
#[repr(C)]
struct Element {
    map: u32,
    pad: u32,
    key: u64,
    out: u64,
    flags: u64,
}

/// Asks for the value of a key, or the key after it; whether there is one. Without types: here bytes are all that counts.
fn element(map: &MapData, command: libc::c_long, key: Option<&[u8]>, out: &mut [u8]) -> io::Result<bool> {
    let key = key.map_or(0, |key| key.as_ptr() as u64);
    let map = map.fd().as_fd().as_raw_fd() as u32;
    let mut attr = Element { map, pad: 0, key, out: out.as_mut_ptr() as u64, flags: 0 };
    // SAFETY: the buffers are of the sizes that the map has, and outlive the call.
    match unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut attr, size_of::<Element>()) } {
        0 => Ok(true),
        _ => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            error => Err(error),
        },
    }
}
