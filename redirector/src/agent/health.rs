//! This node's own health within the agent: read twice a second, told in beats and by `get health`, and what share of the
//! slots follows from it.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::condition::LoadStatus;
use super::counts::Counts;
use crate::breaker::Breakers;
use crate::config::Health;
use crate::health::{AreaStatus, FULL_SHARE, FigureStatus, Figures, Hop, Host, Neighbours, Probes, Standing, Verdict};

/// How often the host is read.
const EVERY: Duration = Duration::from_millis(500);

/// Health, as the agent tells it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HealthStatus {
    /// 0 to 100.
    pub score: u8,
    /// Points of 25 for each area.
    pub areas: Vec<AreaStatus>,
    /// What was measured.
    pub figures: Vec<FigureStatus>,
    /// The share of its work that the node takes, in quarters.
    pub share: u8,
    /// Whether it hands everything over.
    pub hands_over: bool,
    /// Why the data directory fails, if it does.
    pub storage_failure: Option<String>,
    /// Its load.
    pub load: LoadStatus,
}

/// A node's health.
#[derive(Debug)]
pub(super) struct SelfHealth {
    probes: Probes,
    figures: Figures,
    standing: Standing,
    /// What the agent knows of its host besides.
    pub(super) host: Host,
    /// What the kernel knows of next hops.
    pub(super) neighbours: Neighbours,
    counts: Counts,
    read: Duration,
    pulsed: Duration,
}

impl SelfHealth {
    /// Begins to look. Needs a tokio runtime.
    ///
    /// # Errors
    /// Where there is no thread to try the disk with.
    pub(super) fn start(data: &Path, breakers: &Breakers) -> Result<Self> {
        Ok(Self {
            probes: Probes::start(data, breakers).context("the data directory cannot be watched")?,
            figures: Figures::default(),
            standing: Standing::default(),
            host: Host::default(),
            neighbours: Neighbours::default(),
            counts: Counts::start(),
            read: Duration::ZERO,
            pulsed: Duration::ZERO,
        })
    }

    /// How many interfaces are configured, and the numbers of those that there are.
    pub(super) fn set_interfaces(&mut self, configured: usize, indices: Vec<u32>) {
        self.host.interfaces = configured;
        self.counts.want(indices);
    }

    /// Whether it is time to read the host.
    pub(super) fn is_due(&self, now: Duration) -> bool {
        now.saturating_sub(self.read) >= EVERY
    }

    /// Looks which of the next hops are unresolved, and what interfaces have received; XDP has `refused` so many packets.
    pub(super) fn look_at_network(&mut self, hops: &[Hop], refused: u64, now: Duration) {
        self.host.next_hops = self.neighbours.judge(hops, now);
        self.host.received = self.counts.news();
        self.host.refused = refused;
    }

    /// A pulse of the agent, `every` so often; reads the host where it is time to.
    pub(super) fn observe(&mut self, settings: &Health, every: Duration, now: Duration) {
        if !self.pulsed.is_zero() {
            let delay = now.saturating_sub(self.pulsed).saturating_sub(every);
            self.host.delay = self.host.delay.max(delay);
        }
        self.pulsed = now;
        if !self.is_due(now) {
            return;
        }
        self.read = now;
        let readings = self.probes.read(&self.host, &settings.figures, now);
        (self.host.delay, self.host.received) = (Duration::ZERO, None);
        for (figure, value, verdict) in self.figures.observe(readings, now) {
            let words = self.figures.words(figure);
            match verdict {
                Verdict::Good => tracing::info!(figure, value, "good again"),
                Verdict::Poor => tracing::warn!(figure, value, words, "this node's health is poor in this"),
                Verdict::Bad => tracing::error!(figure, value, words, "this node's health is bad in this"),
            }
        }
        if self.standing.observe(self.score(), self.figures.has_failed(), settings, now) {
            let (share, score) = (self.standing.share(), self.score());
            tracing::warn!(score, "this node takes {share} quarters of its share from now on");
        }
    }

    pub(super) fn score(&self) -> u8 {
        self.figures.score()
    }

    /// The share of its work that this node should take, in quarters.
    pub(super) fn share(&self, settings: &Health) -> u8 {
        if settings.hand_over { self.standing.share() } else { FULL_SHARE }
    }

    pub(super) fn status(&self, settings: &Health, hands_over: bool, load: LoadStatus, now: Duration) -> HealthStatus {
        HealthStatus {
            score: self.score(),
            areas: self.figures.areas(),
            figures: self.figures.statuses(now),
            share: self.share(settings),
            hands_over,
            storage_failure: self.probes.storage_failure(),
            load,
        }
    }
}
