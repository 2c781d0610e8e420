//! What the sender measures: round trips and gaps of each link, and its own lateness.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::LegFigures;

/// Longest time that a histogram tells, in microseconds.
const LONGEST_US: u64 = 60_000_000;

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LONGEST_US, 3).expect("the bounds are in order and three digits are allowed")
}

/// Distributions of one link.
#[derive(Clone, Debug)]
pub struct LinkFigures {
    /// From a request to its answer, microseconds.
    pub round_trip: Histogram<u64>,
    /// Between two answers, microseconds.
    pub gap: Histogram<u64>,
    /// Requests sent.
    pub sent: u64,
    /// Answers taken.
    pub answered: u64,
}

impl Default for LinkFigures {
    fn default() -> Self {
        Self { round_trip: histogram(), gap: histogram(), sent: 0, answered: 0 }
    }
}

impl LinkFigures {
    /// Takes note of an answer.
    pub fn record(&mut self, round_trip_ns: u64, gap_ns: Option<u64>) {
        self.answered += 1;
        self.round_trip.saturating_record((round_trip_ns / 1000).max(1));
        if let Some(gap) = gap_ns {
            self.gap.saturating_record((gap / 1000).max(1));
        }
    }
}

/// What the sender says of itself.
#[derive(Clone, Debug)]
pub struct SenderFigures {
    /// How late it woke, microseconds.
    pub lateness: Histogram<u64>,
    /// Rounds that it left out since it was late by more than an interval.
    pub skipped: u64,
    /// Frames that could not be sent.
    pub unsent: u64,
    /// Whether it runs with real-time priority.
    pub real_time: bool,
}

impl Default for SenderFigures {
    fn default() -> Self {
        Self { lateness: histogram(), skipped: 0, unsent: 0, real_time: false }
    }
}

/// All of it.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// By node and port.
    pub links: BTreeMap<(u8, u8), LinkFigures>,
    /// The sender's own.
    pub sender: SenderFigures,
    /// By number of the leg to a far end.
    pub legs: BTreeMap<u16, LegFigures>,
}

/// A distribution in a few numbers, microseconds.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Spread {
    /// The least.
    pub min: u64,
    /// The middle.
    pub p50: u64,
    /// Of a hundred, 99 are no greater.
    pub p99: u64,
    /// Of ten thousand, 9,999 are no greater.
    pub p9999: u64,
    /// The greatest.
    pub max: u64,
}

impl Spread {
    /// Of a histogram.
    pub fn of(histogram: &Histogram<u64>) -> Self {
        let at = |share| histogram.value_at_quantile(share);
        let min = if histogram.is_empty() { 0 } else { histogram.min() };
        Self { min, p50: at(0.5), p99: at(0.99), p9999: at(0.9999), max: histogram.max() }
    }
}
