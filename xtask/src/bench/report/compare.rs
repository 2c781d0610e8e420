//! Figures against those of an earlier run.

use serde_json::Value;

use super::Results;
use super::shape::{self, Figure, Shape};

/// A figure that is there in both runs.
#[derive(Clone, Debug)]
pub(super) struct Change {
    pub(super) measurement: &'static str,
    pub(super) row: String,
    pub(super) figure: &'static str,
    pub(super) before: f64,
    pub(super) now: f64,
    pub(super) verdict: Verdict,
}

/// What a change means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Worse,
    Better,
    Noise,
}

impl Change {
    pub(super) fn is_worse(&self) -> bool {
        self.verdict == Verdict::Worse
    }
}

/// All figures that both have.
pub(super) fn changes(now: &Results, before: &Results) -> Vec<Change> {
    let mut changes = Vec::new();
    for shape in shape::ALL {
        for row in now.rows(shape.name) {
            let Some(old) = before.rows(shape.name).iter().find(|old| shape.is_same(row, old)) else { continue };
            changes.extend(shape.figures.iter().filter_map(|figure| {
                let (now, before) = (shape::figure(row, figure.path)?, shape::figure(old, figure.path)?);
                let aim = super::targets(shape, row).into_iter().find(|(_, target)| target.figure == figure.label);
                let meets = |value| aim.as_ref().is_none_or(|(_, aim)| aim.is_met_by(value, figure.more_is_better));
                let falls = meets(before) && !meets(now);
                change(shape, shape.label(row), figure, before, now, falls)
            }));
        }
    }
    changes
}

/// Rows of the earlier run that this one has not, of the measurements that both have: measurement and row.
pub(super) fn missing(now: &Results, before: &Results) -> Vec<(&'static str, String)> {
    let measured = shape::ALL.iter().filter(|shape| !now.rows(shape.name).is_empty());
    measured
        .flat_map(|shape| {
            let ran = |row: &&Value| row.get("not_run").is_none();
            let gone = move |old: &&Value| !now.rows(shape.name).iter().filter(ran).any(|row| shape.is_same(row, old));
            before.rows(shape.name).iter().filter(ran).filter(gone).map(|old| (shape.name, shape.label(old)))
        })
        .collect()
}

/// What a change means; it `falls` if what was aimed at was met and is missed now, which is no noise where that is nothing
/// at all.
fn change(shape: &Shape, row: String, figure: &Figure, before: f64, now: f64, falls: bool) -> Option<Change> {
    let (part, least) = figure.noise?;
    let by = now - before;
    let verdict = if falls && before == 0.0 {
        Verdict::Worse
    } else if by.abs() <= least || by.abs() <= part * before.abs() {
        Verdict::Noise
    } else if (by > 0.0) == figure.more_is_better {
        Verdict::Better
    } else {
        Verdict::Worse
    };
    Some(Change { measurement: shape.name, row, figure: figure.label, before, now, verdict })
}

/// Shows what is not noise, and how much is.
pub(super) fn show(changes: &[Change]) {
    let count = |verdict| changes.iter().filter(|change| change.verdict == verdict).count();
    println!("\ncompared with the earlier run: {} figures", changes.len());
    for (verdict, word) in [(Verdict::Worse, "worse"), (Verdict::Better, "better")] {
        for Change { measurement, row, figure, before, now, .. } in changes.iter().filter(|one| one.verdict == verdict)
        {
            let (from, to) = (shape::number(*before), shape::number(*now));
            println!("  {word:<6} {measurement}, {row}: {figure} from {from} to {to}");
        }
    }
    let [worse, better, same] = [Verdict::Worse, Verdict::Better, Verdict::Noise].map(count);
    println!("  {worse} worse, {better} better, {same} within their noise");
}
