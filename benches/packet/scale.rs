//! `scale`: what a packet costs as flows, services, backends and nodes become many, and what their tables take in memory.
//!
//! Measured as `packet` is. Services are hit all of them in turn, and so are the rows of the pool and, where the slots
//! belong to many nodes, the slots.

use std::fs;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::Path;

use anyhow::{Context as _, Result};
use aya::maps::MapData;
use serde::Serialize;
use xtask::bench::machine::{Disturbance, Slices, Watch};
use xtask::bench::rows::Rows;
use xtask::bench::spread::{Ratios, median};

use crate::Options;
use crate::cells::{Cell, Table, Varies, cell};
use crate::measure::Bench;
use crate::node::Node;

/// Flows where something else is varied: enough that every row and slot is met.
const FLOWS: u64 = 100_000;

#[derive(Debug, Serialize)]
struct Figure {
    /// What is varied.
    axis: &'static str,
    count: u64,
    /// Of a shared service; of an owned one at the flow's owner, or at whichever node it enters; or its way through all.
    cell: &'static str,
    ns_median: f64,
    floor_ns_median: f64,
    #[serde(flatten)]
    ratios: Ratios,
    /// All maps of the node.
    memory_bytes: u64,
    #[serde(flatten)]
    disturbance: Disturbance,
    #[serde(flatten)]
    slices: Slices,
}

/// Measures all of it.
pub(crate) fn run(options: &Options, rows: &mut Rows) -> Result<()> {
    println!(
        "{:<9} {:>9} {:<20} {:>8} {:>9} {:>7} {:>13} {:>10}",
        "axis", "count", "cell", "ns", "floor ns", "ratio", "p10..p90", "memory"
    );
    let mut scale = Scale { rounds: if options.short { 5 } else { 15 }, rows };
    let steps = |all: &[u64], few: &[u64]| if options.short { few.to_vec() } else { all.to_vec() };
    for flows in steps(&[1, 10, 100, 1_000, 10_000, 100_000, 1_000_000, 4_000_000], &[1, 1_000, 100_000, 1_000_000]) {
        // As an operator would: twice as many places as flows.
        let Some(mut bench) = scale.bench("flows", flows, &Size { flows, ..Size::LEAST })? else { continue };
        scale.measure(&mut bench, "flows", flows, &cell("shared", 80, Table::Empty, [0.0; 3]), flows)?;
        scale.measure(&mut bench, "flows", flows, &cell("owned", 84, Table::Known, [0.0; 3]), flows)?;
    }
    for services in steps(&[1, 10, 100, 1_000, 10_000], &[1, 1_000]) {
        let Some(mut bench) = scale.bench("services", services, &Size { services, ..Size::LEAST })? else { continue };
        let cell = Cell { varies: Varies::Port, ..cell("shared", 1_000, Table::Empty, [0.0; 3]) };
        scale.measure(&mut bench, "services", services, &cell, services)?;
    }
    for backends in steps(&[1, 4, 16, 64, 256, 1_024, 4_096], &[1, 64, 1_024]) {
        let Some(mut bench) = scale.bench("backends", backends, &Size { backends, ..Size::LEAST })? else { continue };
        scale.measure(&mut bench, "backends", backends, &cell("shared", 80, Table::Empty, [0.0; 3]), FLOWS)?;
    }
    for nodes in steps(&[2, 3, 4, 8, 16, 32, 64], &[3, 8, 64]) {
        let Some(mut bench) = scale.bench("nodes", nodes, &Size { nodes, ..Size::LEAST })? else { continue };
        scale.measure(&mut bench, "nodes", nodes, &cell("shared", 80, Table::Empty, [0.0; 3]), FLOWS)?;
        let at_owner = scale.measure(&mut bench, "nodes", nodes, &cell("owned", 84, Table::Known, [0.0; 3]), FLOWS)?;
        let entering = cell("owned, entering", 84, Table::Shared, [0.0; 3]);
        let entering = scale.measure(&mut bench, "nodes", nodes, &entering, FLOWS)?;
        scale.whole(nodes, &at_owner, &entering)?;
    }
    Ok(())
}

struct Scale<'a> {
    rounds: usize,
    rows: &'a mut Rows,
}

impl Scale<'_> {
    /// Loads a node of a size, if there is time for it.
    fn bench(&mut self, axis: &str, count: u64, size: &Size) -> Result<Option<Bench>> {
        match self.rows.begin(format_args!("{count} {axis}")) {
            true => Bench::of(Node::of(&text(size), 1)?).map(Some),
            false => Ok(None),
        }
    }

    /// Measures a cell.
    fn measure(
        &mut self,
        bench: &mut Bench,
        axis: &'static str,
        count: u64,
        cell: &Cell,
        flows: u64,
    ) -> Result<Measured> {
        bench.prepare(cell, flows)?;
        bench.slices();
        let (mut own, mut floor, watch) = (Vec::new(), Vec::new(), Watch::start());
        for _ in 0..self.rounds {
            floor.push(bench.floor(cell, flows)?);
            own.push(bench.cell(cell, flows)?);
        }
        let (memory_bytes, disturbance, slices) = (memory(bench.directory())?, watch.seen(), bench.slices());
        let measured = Measured { own, floor, memory_bytes, disturbance, slices };
        self.show(measured.figure(axis, count, cell.name)?)?;
        Ok(measured)
    }

    /// What a packet of an owned service costs the whole cluster, round by round: where it enters, and, if that is not its
    /// owner, as in all but one of as many cases as there are nodes, at its owner too.
    fn whole(&mut self, nodes: u64, owner: &Measured, entering: &Measured) -> Result<()> {
        let elsewhere = 1.0 - 1.0 / nodes as f64;
        let own = entering.own.iter().zip(&owner.own).map(|(entering, owner)| entering + elsewhere * owner).collect();
        let measured = Measured { own, floor: owner.floor.clone(), ..*owner };
        self.show(measured.figure("nodes", nodes, "owned, whole cluster")?)
    }

    fn show(&mut self, figure: Figure) -> Result<()> {
        let Figure { axis, count, cell, ns_median, floor_ns_median, memory_bytes, .. } = figure;
        let Ratios { ratio_median, ratio_p10, ratio_p90 } = figure.ratios;
        let memory = memory_bytes as f64 / f64::from(1 << 20);
        println!(
            "{axis:<9} {count:>9} {cell:<20} {ns_median:>8.1} {floor_ns_median:>9.1} {ratio_median:>7.2} \
             {ratio_p10:>6.2}..{ratio_p90:<5.2} {memory:>6.1} MiB"
        );
        self.rows.push(&figure)
    }
}

/// A cell of one size, round by round.
struct Measured {
    own: Vec<f64>,
    floor: Vec<f64>,
    memory_bytes: u64,
    disturbance: Disturbance,
    slices: Slices,
}

impl Measured {
    fn figure(&self, axis: &'static str, count: u64, cell: &'static str) -> Result<Figure> {
        Ok(Figure {
            axis,
            count,
            cell,
            ns_median: median(self.own.iter().copied())?,
            floor_ns_median: median(self.floor.iter().copied())?,
            ratios: Ratios::of(self.own.iter().zip(&self.floor).map(|(own, floor)| own / floor))?,
            memory_bytes: self.memory_bytes,
            disturbance: self.disturbance,
            slices: self.slices,
        })
    }
}

/// How much a node has to know.
struct Size {
    flows: u64,
    services: u64,
    backends: u64,
    nodes: u64,
}

impl Size {
    const LEAST: Self = Self { flows: FLOWS, services: 1, backends: 2, nodes: 2 };
}

/// A configuration of this size: port 80 is shared, port 84 owned, and from 1000 on there are as many services as wanted.
fn text(size: &Size) -> String {
    let places = (size.flows * 2).next_power_of_two().max(4096);
    let mut text = format!(
        "[node]\nid = 1\npins = \"PINS\"\n[cluster]\nkey = \"000102030405060708090a0b0c0d0e0f\"\n\
         [tables]\nflows4 = {places}\nflows6 = 4096\n[[interface]]\nname = \"eth0\"\n[[vip]]\naddress = \"198.51.100.1\"\n"
    );
    for id in 1..=size.nodes {
        text += &format!("[[member]]\nid = {id}\naddress = \"10.0.0.{id}\"\ninterface = \"eth0\"\n");
    }
    let mut service = |port: u64, affinity: &str| {
        text += &format!(
            "[[service]]\nname = \"s{port}\"\nvip = \"198.51.100.1\"\nprotocol = \"tcp\"\nports = {port}\npool = \"pool\"\n\
             affinity = \"{affinity}\"\n"
        );
    };
    service(80, "shared");
    service(84, "owned");
    (0..size.services).for_each(|number| service(1_000 + number, "shared"));
    text += "[[pool]]\nname = \"pool\"\nmode = \"ipip\"\n";
    for number in 0..size.backends {
        let (high, low) = (number / 250, number % 250 + 1);
        text += &format!(
            "[[pool.backend]]\nname = \"b{number}\"\naddress = \"10.1.{high}.{low}\"\n\
             [[pool.backend.path]]\ninterface = \"eth0\"\nnext_hop = \"10.0.0.254\"\n"
        );
    }
    text
}

/// Bytes that the kernel has charged for all maps that are pinned in a directory.
fn memory(directory: &Path) -> Result<u64> {
    let mut sum = 0;
    for entry in fs::read_dir(directory)? {
        let Ok(map) = MapData::from_pin(entry?.path()) else { continue };
        let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", map.fd().as_fd().as_raw_fd()))?;
        let bytes = text.lines().find_map(|line| line.strip_prefix("memlock:")?.trim().parse::<u64>().ok());
        sum += bytes.context("the kernel does not say what a map takes")?;
    }
    Ok(sum)
}
