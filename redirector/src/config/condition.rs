//! What a node makes of its own condition: of its load by `[shedding]`, of its health by `[health]`.

use std::ops::RangeInclusive;
use std::time::Duration;

use clap::ValueEnum;
use serde::Serialize;

use super::reader::Reader;
use super::text::{Wrong, serialize_duration as duration};
use crate::health::{Figure, Thresholds};

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
    /// The score below which its share of the slots falls step by step. As it is by itself, one area at its worst, which leaves
    /// 75, is enough.
    pub degraded: u8,
    /// The score below which it hands everything over.
    pub critical: u8,
    /// How long a score holds at least before anything follows from it.
    #[serde(serialize_with = "duration")]
    pub dwell: Duration,
    /// Thresholds of figures that are not as they are by themselves.
    pub figures: Thresholds,
}

impl Default for Health {
    fn default() -> Self {
        let figures = Thresholds::default();
        Self { hand_over: true, degraded: 80, critical: 50, dwell: Duration::from_secs(3), figures }
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
        figures: r.table("figures").map(thresholds).unwrap_or_default(),
    };
    if health.critical >= health.degraded {
        let wrong = format!("critical = {} is not below degraded = {}", health.critical, health.degraded);
        let field = if r.has("critical") { "critical" } else { "degraded" };
        r.wrong(field, Wrong::new(wrong, "a node gives up its share first, and then all: write a lower critical"));
    }
    r.done();
    health
}

/// Reads `[health.figures]`: by a figure's name, where it ceases to be good, and where it is bad.
fn thresholds(mut r: Reader<'_>) -> Thresholds {
    let mut thresholds = Thresholds::default();
    for figure in Figure::ALL {
        let order = if figure.rises() { "rise" } else { "fall" };
        let example = if figure.rises() { "[20, 80]" } else { "[20, 5]" };
        let mend = format!("write where it ceases to be good and where it is bad, as in {example}");
        let Some(numbers) = r.item(figure.name).and_then(|item| item.elements(&mend)) else { continue };
        let count = numbers.len();
        let numbers: Vec<u32> = numbers.iter().filter_map(|item| item.number(0..=u32::MAX)).collect();
        let wrong = match <[u32; 2]>::try_from(numbers) {
            Ok([good, bad]) if good != bad && (good < bad) == figure.rises() => {
                thresholds.set(&figure, [good, bad]);
                continue;
            }
            Ok([good, bad]) => format!("{good}, {bad} do not {order}, and its bad values lie that way"),
            Err(_) if count == 2 => continue,
            Err(_) => format!("there are 2 thresholds, not {count}"),
        };
        r.wrong(figure.name, Wrong::new(wrong, mend));
    }
    r.done();
    thresholds
}
