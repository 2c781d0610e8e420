//! What flows say of paths, within the agent: has their packets noted, takes in the counts, and has paths taken out.

use std::collections::BTreeMap;
use std::time::Duration;

use redirector_ebpf::tables::Backend;
use serde::{Deserialize, Serialize};

use crate::config::Passive;
use crate::dataplane::image::Image;
use crate::dataplane::paths::PathMaps;
use crate::paths::signals::{Complaint, Counts, Signals};

/// More flows a second than this are not asked, and fewer than a quarter of it are all asked: the cells that remember SYNs
/// have to last for a few seconds.
const ASKED_A_SECOND: u64 = 4000;

/// What the flows of one path have said, and where that is counted.
pub(super) struct Flows {
    backend: u16,
    rank: u8,
    pool: u16,
    passive: Passive,
    /// The backend's other paths.
    others: Vec<u16>,
    signals: Signals,
}

/// What the flows of a path say, as the agent tells it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FlowSigns {
    /// What was counted lately, of the flows that are asked.
    pub recent: Counts,
    /// One in so many is.
    pub one_in: u32,
    /// What speaks against the path.
    pub complaint: Option<String>,
}

/// Where each path's flows are counted.
pub(super) fn places(image: &Image) -> BTreeMap<u16, (u16, u8, Backend)> {
    let ranks = |(&id, backend): (&u16, &Backend)| {
        let row = *backend;
        (0..).zip(row.paths).filter(|(_, path)| *path != 0).map(move |(rank, path)| (path, (id, rank, row)))
    };
    image.backends.iter().flat_map(ranks).collect()
}

impl Flows {
    /// Of a path whose counters stand where they stand.
    pub(super) fn new(maps: &PathMaps, path: u16, place: (u16, u8, Backend), passive: Passive, now: Duration) -> Self {
        let (backend, rank, row) = place;
        let others = row.paths.into_iter().filter(|other| ![0, path].contains(other)).collect();
        let signals = Signals::new(now, maps.signals(backend, rank));
        Self { backend, rank, pool: row.pool, passive, others, signals }
    }

    /// The same path, after a change of the configuration: what its flows have said stays.
    pub(super) fn configure(&mut self, next: Self) {
        let is_same = (self.backend, self.rank) == (next.backend, next.rank);
        let signals = if is_same { self.signals.clone() } else { next.signals.clone() };
        *self = Self { signals, ..next };
    }

    /// Whether they are asked at all.
    pub(super) fn are_asked(&self) -> bool {
        self.passive != Passive::Off
    }

    /// Whether the path is to stay out, if another of its backend is `admitted`.
    pub(super) fn keep_out(&self, now: Duration, admitted: impl Fn(u16) -> bool) -> bool {
        self.passive == Passive::Out && self.signals.is_out(now) && self.others.iter().any(|other| admitted(*other))
    }

    /// Whether the backend has other paths, and none of them is `used`.
    pub(super) fn lack_a_way(&self, used: impl Fn(u16) -> bool) -> bool {
        !self.others.is_empty() && !self.others.iter().any(|other| used(*other))
    }

    /// What speaks against the path.
    pub(super) fn complaint(&self) -> Option<Complaint> {
        self.signals.complaint()
    }

    /// Takes the path out for its flows, if that is configured and another one of its backend is `fit`.
    pub(super) fn take_out(&mut self, now: Duration, fit: impl Fn(u16) -> bool) {
        let is_bad = self.passive == Passive::Out && self.signals.complaint().is_some();
        if is_bad && self.others.iter().any(|other| fit(*other)) {
            self.signals.take_out(now);
        }
    }

    /// Why the path was taken out last.
    pub(super) fn fault(&self) -> Option<String> {
        self.signals.fault().map(|fault| fault.to_string())
    }

    /// What there is to tell; `noted` is [`redirector_ebpf::tables::leg::LegRules::noted`].
    pub(super) fn status(&self, noted: u8) -> Option<FlowSigns> {
        self.are_asked().then(|| FlowSigns {
            recent: self.signals.recent(),
            one_in: 1 << noted.saturating_sub(1),
            complaint: self.signals.complaint().map(|complaint| complaint.to_string()),
        })
    }
}

/// A tick has passed: takes in what was counted of each path, and judges it.
pub(super) fn judge<'a>(maps: &PathMaps, flows: impl Iterator<Item = (u16, &'a mut Flows)>) {
    let mut flows: Vec<_> = flows.filter(|(_, flows)| flows.are_asked()).collect();
    let mut pools: BTreeMap<u16, Counts> = BTreeMap::new();
    for (_, flows) in &mut flows {
        flows.signals.tick(maps.signals(flows.backend, flows.rank));
        let pool = pools.entry(flows.pool).or_default();
        *pool = *pool + flows.signals.recent();
    }
    for (path, flows) in flows {
        let had = flows.signals.complaint().is_some();
        flows.signals.judge(pools[&flows.pool] - flows.signals.recent());
        match flows.signals.complaint() {
            Some(complaint) if !had => tracing::warn!(path, "{complaint}, though the path's probes may be answered"),
            None if had => tracing::info!(path, "the flows of the path get answers again"),
            _ => {}
        }
    }
}

/// Which flows to ask from now on, after a tick.
pub(super) fn pace<'a>(noted: u8, flows: impl Iterator<Item = &'a Flows>) -> u8 {
    let opened = flows.filter(|flows| flows.are_asked()).map(|flows| flows.signals.last().opened);
    let mut any = false;
    let opened: u64 = opened.inspect(|_| any = true).sum();
    match noted {
        _ if !any => 0,
        0 => 1,
        noted if opened > ASKED_A_SECOND => noted.saturating_add(1).min(16),
        noted if opened < ASKED_A_SECOND / 4 => noted.saturating_sub(1).max(1),
        noted => noted,
    }
}
