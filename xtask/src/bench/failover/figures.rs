//! What was measured, and its sums.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Write};

use anyhow::Result;
use serde::Serialize;

use super::Profile;
use super::fault::Fault;
use crate::bench::spread::Spread;

/// One fault.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Kill {
    /// The node that it befell.
    pub(super) node: String,
    /// The longest time without an answer.
    pub(super) gap_ms: f64,
    /// From the fault to the first answer after the longest silence: the first packet that the new owner served, and the
    /// way back. None where nothing fell silent for longer than answers are apart anyway.
    pub(super) first_ms: Option<f64>,
    /// Datagrams without an answer.
    pub(super) lost: u64,
    /// Answers that came again.
    pub(super) duplicated: u64,
    /// Answers that came after a later one.
    pub(super) reordered: u64,
    /// Flows that were answered by more than one backend.
    pub(super) moved: u64,
    /// TCP connections that were open.
    pub(super) connections: u64,
    /// Those that broke.
    pub(super) broken_connections: u64,
    /// The longest that any of them waited for an answer.
    pub(super) wait_max_ms: f64,
    /// The longest time without an answer while the cluster was healed.
    pub(super) return_gap_ms: f64,
    /// Datagrams that were lost meanwhile.
    pub(super) return_lost: u64,
    /// How late the sender was at worst.
    pub(super) lateness_ms: f64,
    /// Whether sender and receiver ran at real-time priority.
    pub(super) realtime: bool,
    /// The share of CPU time that the hypervisor gave to others.
    pub(super) steal_pct: f64,
}

/// All that one fault did.
#[derive(Debug, Serialize)]
pub(super) struct Outcome {
    fault: &'static str,
    profile: &'static str,
    kills: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    not_run: Option<String>,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    figures: Option<Figures>,
}

#[derive(Debug, Serialize)]
struct Figures {
    gap_ms: Spread,
    lost: Spread,
    #[serde(skip_serializing_if = "Option::is_none")]
    first_ms: Option<Spread>,
    connections: u64,
    broken_connections: u64,
    wait_ms: Spread,
    moved: u64,
    duplicated: u64,
    reordered: u64,
    return_gap_ms: Spread,
    return_lost: Spread,
    lateness_ms_max: f64,
    steal_pct: f64,
    /// What is aimed at, by figure.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    targets: BTreeMap<&'static str, f64>,
    each: Vec<Kill>,
}

impl Outcome {
    /// The sums of what was measured.
    pub(super) fn of(fault: Fault, profile: Profile, each: Vec<Kill>) -> Result<Self> {
        let sum = |of: fn(&Kill) -> u64| each.iter().map(of).sum();
        let first: Vec<f64> = each.iter().filter_map(|kill| kill.first_ms).collect();
        let figures = Figures {
            gap_ms: Spread::of_ms(each.iter().map(|kill| kill.gap_ms))?,
            lost: Spread::of_counts(each.iter().map(|kill| kill.lost))?,
            first_ms: if first.is_empty() { None } else { Some(Spread::of_ms(first)?) },
            connections: sum(|kill| kill.connections),
            broken_connections: sum(|kill| kill.broken_connections),
            wait_ms: Spread::of_ms(each.iter().map(|kill| kill.wait_max_ms))?,
            moved: sum(|kill| kill.moved),
            duplicated: sum(|kill| kill.duplicated),
            reordered: sum(|kill| kill.reordered),
            return_gap_ms: Spread::of_ms(each.iter().map(|kill| kill.return_gap_ms))?,
            return_lost: Spread::of_counts(each.iter().map(|kill| kill.return_lost))?,
            lateness_ms_max: each.iter().map(|kill| kill.lateness_ms).fold(0.0, f64::max),
            steal_pct: each.iter().map(|kill| kill.steal_pct).sum::<f64>() / each.len().max(1) as f64,
            targets: fault.targets(profile).iter().copied().collect(),
            each,
        };
        let (fault, profile, kills) = (fault.name(), profile.name(), figures.each.len());
        Ok(Self { fault, profile, kills, not_run: None, figures: Some(figures) })
    }

    /// One that could not be measured.
    pub(super) fn not_run(fault: Fault, profile: Profile, reason: String) -> Self {
        Self { fault: fault.name(), profile: profile.name(), kills: 0, not_run: Some(reason), figures: None }
    }
}

impl fmt::Display for Kill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { node, gap_ms, lost, connections, broken_connections, lateness_ms, steal_pct, .. } = self;
        let wait_max_ms = self.wait_max_ms;
        let (return_gap_ms, return_lost) = (self.return_gap_ms, self.return_lost);
        write!(
            f,
            "{node}: gap {gap_ms:.1} ms, {lost} lost, {broken_connections} of {connections} connections broken, \
             none waited longer than {wait_max_ms:.0} ms; "
        )?;
        write!(
            f,
            "on return {return_gap_ms:.1} ms, {return_lost} lost; late {lateness_ms:.1} ms, steal {steal_pct:.1} %"
        )
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.figures, &self.not_run) {
            (Some(Figures { gap_ms: Spread { p50, p99, max }, .. }), _) => {
                write!(f, "gap {p50:.1} ms in the middle, {p99:.1} ms at p99, {max:.1} ms at most")
            }
            (None, reason) => write!(f, "not run: {}", reason.as_deref().unwrap_or("no reason is known")),
        }
    }
}

/// All outcomes, a line each.
pub(super) fn table(out: &mut impl Write, outcomes: &[Outcome]) -> io::Result<()> {
    write!(out, "{:<12}{:>6}  {:>24}  {:>18}", "fault", "kills", "gap ms p50/p99/max", "lost p50/p99/max")?;
    writeln!(out, "  {:>12}  {:>14}  {:>7}  {:>7}", "broken", "lost on return", "late ms", "steal %")?;
    for Outcome { fault, kills, figures, not_run, .. } in outcomes {
        let Some(figures) = figures else {
            writeln!(out, "{fault:<12}{kills:>6}  not run: {}", not_run.as_deref().unwrap_or_default())?;
            continue;
        };
        let Figures { gap_ms, lost, connections, broken_connections, return_lost, lateness_ms_max, steal_pct, .. } =
            figures;
        let gap = format!("{:.1}/{:.1}/{:.1}", gap_ms.p50, gap_ms.p99, gap_ms.max);
        let lost = format!("{}/{}/{}", lost.p50, lost.p99, lost.max);
        let broken = format!("{broken_connections} of {connections}");
        let back = return_lost.max;
        writeln!(
            out,
            "{fault:<12}{kills:>6}  {gap:>24}  {lost:>18}  {broken:>12}  {back:>14}  {lateness_ms_max:>7.1}  {steal_pct:>7.1}"
        )?;
    }
    Ok(())
}
