//! Where the flows went, for a terminal.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;

use super::maps::Maps;
use super::walks::{Check, Walk, Walks, count};
use crate::lab::{Lab, vip4};

/// Draws every service, one flow, and the counters.
pub(super) fn draw(walks: &Walks, maps: &Maps) {
    for (index, service) in walks.services.iter().enumerate() {
        let flows: Vec<&Walk> = walks.of(index).collect();
        let how = if service.mode == "l2" { "no tunnel".to_owned() } else { service.mode.to_uppercase() };
        let affinity = if service.owned { "owned" } else { "shared" };
        println!("{}  {}  {affinity}, {how}: {} flows", service.name, service.vip, flows.len());
        let entered = column("enters", count(flows.iter().map(|walk| walk.entered())));
        let served = column("owner", count(flows.iter().map(|walk| walk.served())));
        let backend = column("backend", count(flows.iter().map(|walk| walk.delivered())));
        let columns = if service.owned { vec![entered, served, backend] } else { vec![entered, backend] };
        side_by_side(&columns);
        if service.owned {
            let over = flows.iter().filter(|walk| walk.entered() != walk.served()).count();
            println!("    {over} of them entered at another node than their owner's, and took one hop more");
        }
        println!();
    }
    if let Some(walk) = walks.carried_over().next() {
        let (client, vip) = walk.flow;
        println!("one of them, as the fabric saw it\n    {client} asks {vip}");
        println!("    c1 → {}, which replies to c1 directly\n", walk.journey.hops.join(" → "));
    }
    if let Some(why) = &maps.why {
        println!("`redirector why` about it");
        why.lines().for_each(|line| println!("    {line}"));
        println!();
    }
    println!("packets by reason");
    let nodes: Vec<&String> = maps.counters.keys().collect();
    let reasons = maps.counters.values().flat_map(BTreeMap::keys).collect::<BTreeSet<_>>();
    println!("    {:<24}{}", "", nodes.iter().map(|node| format!("{node:>10}")).collect::<String>());
    for reason in reasons {
        let counts = maps.counters.values().map(|counts| format!("{:>10}", counts.get(reason).unwrap_or(&0)));
        println!("    {reason:<24}{}", counts.collect::<String>());
    }
    println!();
}

/// What was checked, and how it came out.
pub(super) fn checks(checks: &[Check]) {
    for check in checks {
        println!("{} {}", if check.wrong.is_empty() { "✓" } else { "✗" }, check.what);
        check.wrong.iter().for_each(|wrong| println!("    {wrong}"));
    }
}

/// For whoever keeps the lab.
pub(super) fn what_to_try(lab: &Lab) -> Result<()> {
    let name = &lab.topology().name;
    let exec = format!("cargo xtask lab exec --name {name}");
    let flows = lab.redirector("n1", &["get", "flows", "--limit", "20"])?;
    let words: Vec<_> =
        [flows.get_program()].into_iter().chain(flows.get_args()).map(|word| word.to_string_lossy()).collect();
    println!("\nthe lab `{name}` stays up; try");
    println!("    {exec} c1 -- curl http://{}/", vip4(1));
    println!("    {exec} n1 -- {}", words.join(" "));
    println!("    cargo xtask lab fault --name {name} kill n1; cargo xtask lab heal --name {name}");
    println!("    cargo xtask lab down --name {name}");
    Ok(())
}

fn column(title: &str, counts: BTreeMap<String, u64>) -> Vec<String> {
    let rows = counts.into_iter().map(|(name, count)| format!("{name:<4}{count:>5}"));
    std::iter::once(format!("{title:<9}")).chain(rows).collect()
}

/// Columns of names and counts, joined by lines that cross: from any of one column to any of the next.
fn side_by_side(columns: &[Vec<String>]) {
    let height = columns.iter().map(Vec::len).max().unwrap_or(0);
    for row in 0..height {
        let cells: Vec<String> =
            columns.iter().map(|column| format!("{:<9}", column.get(row).map_or("", String::as_str))).collect();
        let joint = match row {
            0 => "      ",
            1 if height == 2 => " ──── ",
            1 => " ─┐┌─ ",
            row if row + 1 == height => " ─┘└─ ",
            _ => " ─┼┼─ ",
        };
        println!("    {}", cells.join(joint).trim_end());
    }
}
