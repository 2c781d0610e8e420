//! What a node makes of its own condition: of its load by `[shedding]`, of its health by `[health]`.

use std::ops::RangeInclusive;
use std::time::Duration;

use clap::ValueEnum;
use serde::Serialize;

use super::reader::Reader;
use super::text::{Wrong, serialize_duration as duration};

/// Times that a level or standing is kept at least: less than a tick decides nothing, more than ten minutes is no damping.
const DWELL: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(600);

/// When load is shed, and how.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Shedding {
    /// Per cent of load from which shed levels 1, 2 and 3 hold.
    pub levels: [u8; 3],
    /// Per cent below a level's own at which it is left.
    pub hysteresis: u8,
    /// How long a level holds at least before it is left for a lower one.
    #[serde(serialize_with = "duration")]
    pub dwell: Duration,
    /// Packets a second that this host can take; 0: what `redirector capacity` learnt, or no such measure.
    pub capacity: u32,
    /// Whether the share of time that CPUs spend in soft interrupts counts.
    pub softirq: bool,
    /// What who is refused is told.
    pub answer: Refused,
}

/// What who is refused is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Refused {
    /// Nothing.
    Drop,
    /// A TCP reset, or ICMP port unreachable.
    Reject,
}

impl Default for Shedding {
    fn default() -> Self {
        Self {
            levels: [70, 85, 95],
            hysteresis: 5,
            dwell: Duration::from_secs(2),
            capacity: 0,
            softirq: true,
            answer: Refused::Drop,
        }
    }
}

/// What a node does when its own health sinks.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Health {
    /// Whether it does anything.
    pub hand_over: bool,
    /// The score below which its share of the slots falls step by step.
    pub degraded: u8,
    /// The score below which it hands everything over.
    pub critical: u8,
    /// How long a score holds at least before anything follows from it.
    #[serde(serialize_with = "duration")]
    pub dwell: Duration,
}

impl Default for Health {
    fn default() -> Self {
        Self { hand_over: true, degraded: 75, critical: 50, dwell: Duration::from_secs(3) }
    }
}

/// Reads `[shedding]`.
pub(super) fn shedding(mut r: Reader<'_>) -> Shedding {
    let default = Shedding::default();
    let shedding = Shedding {
        levels: levels(&mut r).unwrap_or(default.levels),
        hysteresis: r.number("hysteresis", 0..=50).unwrap_or(default.hysteresis),
        dwell: r.duration("dwell", DWELL).unwrap_or(default.dwell),
        capacity: r.number("capacity", 0..=u32::MAX).unwrap_or(default.capacity),
        softirq: r.flag("softirq").unwrap_or(default.softirq),
        answer: r.choice("answer").unwrap_or(default.answer),
    };
    if shedding.hysteresis >= shedding.levels[0] {
        let wrong = format!("{} is not below the first level, {}", shedding.hysteresis, shedding.levels[0]);
        r.wrong("hysteresis", Wrong::new(wrong, "else shedding would never end: write less than levels[0]"));
    }
    r.done();
    shedding
}

fn levels(r: &mut Reader<'_>) -> Option<[u8; 3]> {
    let mend = "write three rising numbers from 1 to 100, as in [70, 85, 95]";
    let numbers = r.item("levels")?.elements(mend)?;
    let count = numbers.len();
    let levels: Vec<u8> = numbers.iter().filter_map(|item| item.number(1..=100)).collect();
    let wrong = match <[u8; 3]>::try_from(levels) {
        Ok(levels) if levels.is_sorted_by(|a, b| a < b) => return Some(levels),
        Ok([a, b, c]) => format!("{a}, {b}, {c} do not rise: each level sheds more than the one before"),
        Err(_) if count == 3 => return None,
        Err(_) => format!("there are 3 levels, not {count}"),
    };
    r.wrong("levels", Wrong::new(wrong, mend));
    None
}

/// Reads `[health]`.
pub(super) fn health(mut r: Reader<'_>) -> Health {
    let default = Health::default();
    let health = Health {
        hand_over: r.flag("hand_over").unwrap_or(default.hand_over),
        degraded: r.number("degraded", 1..=100).unwrap_or(default.degraded),
        critical: r.number("critical", 1..=100).unwrap_or(default.critical),
        dwell: r.duration("dwell", DWELL).unwrap_or(default.dwell),
    };
    if health.critical >= health.degraded {
        let wrong = format!("critical = {} is not below degraded = {}", health.critical, health.degraded);
        let field = if r.has("critical") { "critical" } else { "degraded" };
        r.wrong(field, Wrong::new(wrong, "a node gives up its share first, and then all: write a lower critical"));
    }
    r.done();
    health
}
