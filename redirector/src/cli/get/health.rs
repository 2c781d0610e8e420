//! This node's health: each figure with its thresholds, and the load. The agent tells.

use anyhow::{Context as _, Result, bail};

use crate::agent::control::{self, Answer, Request};
use crate::agent::{HealthStatus, LoadStatus};
use crate::cli::output::{Output, ago, text_pairs, text_table, yes};
use crate::cli::target::Target;
use crate::health::{Area, Verdict};

fn area(area: Area) -> &'static str {
    match area {
        Area::Cpu => "cpu",
        Area::Memory => "memory",
        Area::Network => "network",
        Area::Storage => "storage",
    }
}

fn number(value: f64) -> String {
    if value >= f64::MAX { "-".to_owned() } else { format!("{value}") }
}

/// The shed level, and since when it holds where anything is shed.
fn level(load: &LoadStatus) -> String {
    match load.level {
        0 => "0, nothing is shed".to_owned(),
        level => format!("{level} for {}", ago(load.for_ms)),
    }
}

fn text(health: &HealthStatus) -> String {
    let points = health.areas.iter().map(|one| format!("{} {}/25", area(one.area), one.points));
    let load = &health.load;
    let parts = load.load;
    let capacity = match load.capacity {
        0 => "unknown".to_owned(),
        capacity => match &load.learnt {
            Some(learnt) => format!("{capacity} packets/s, learnt {}", learnt.at()),
            None => format!("{capacity} packets/s"),
        },
    };
    let mut pairs = vec![
        ("score", format!("{} ({})", health.score, points.collect::<Vec<_>>().join(", "))),
        ("share", format!("{} of 4 quarters", health.share)),
        ("hands over", yes(health.hands_over)),
        (
            "load",
            format!(
                "{}% (soft interrupts {}, packets {}, flows {}, queue {}), capacity {capacity}",
                parts.greatest().0,
                parts.softirq,
                parts.packets,
                parts.flows,
                parts.queue
            ),
        ),
        ("shed level", level(load)),
    ];
    pairs.extend(health.storage_failure.iter().map(|why| ("storage fails", why.clone())));
    let words = health.figures.iter().filter_map(|one| one.words.as_deref());
    let words: String = words.map(|words| format!("\n{words}")).collect();
    let rows = health.figures.iter().map(|one| {
        let verdict = match one.verdict {
            Verdict::Good => "good",
            Verdict::Poor => "poor",
            Verdict::Bad => "bad",
        };
        let figures = [one.value.map_or_else(|| "fails".to_owned(), number), number(one.good), number(one.bad)];
        let head = [area(one.area).to_owned(), one.name.clone()].into_iter();
        head.chain(figures).chain([verdict.to_owned(), ago(one.for_ms)]).collect()
    });
    let table = text_table(&["AREA", "FIGURE", "VALUE", "GOOD", "BAD", "VERDICT", "FOR"], rows.collect());
    format!("{}\n{table}{words}", text_pairs(pairs))
}

pub(super) fn show(target: &Target, output: Output) -> Result<()> {
    let config = target.config()?.context("the agent is found by its configuration: name it by --config FILE")?;
    match control::ask(&control::path(&config), &Request::Health)? {
        Answer::Health { health } => output.one(&health, || text(&health)),
        _ => bail!("the agent answers what was not asked"),
    }
}
