//! Figures, their thresholds and verdicts, and the score.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::thresholds::Figure;

/// What a figure is about; each area is worth 25 points.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the names say it")]
pub enum Area {
    Cpu,
    Memory,
    Network,
    Storage,
}

impl Area {
    /// All four.
    pub const ALL: [Self; 4] = [Self::Cpu, Self::Memory, Self::Network, Self::Storage];
}

/// Points of an area.
const POINTS: f64 = 25.0;

/// What a figure comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Good,
    /// Between its thresholds.
    Poor,
    /// Beyond the second.
    Bad,
}

/// What was measured of one figure.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading {
    /// Which one, with the thresholds that hold.
    pub figure: Figure,
    /// Its value, in the unit of its name.
    pub value: f64,
    /// What it is about in particular; empty where the value says all.
    pub words: String,
}

impl Reading {
    /// 1 for a good value, 0 for a bad one, and what lies between.
    pub fn grade(&self) -> f64 {
        let grade = (self.figure.bad - self.value) / (self.figure.bad - self.figure.good);
        if grade.is_nan() { 0.0 } else { grade.clamp(0.0, 1.0) }
    }

    fn verdict(&self) -> Verdict {
        match self.grade() {
            1.0 => Verdict::Good,
            0.0 => Verdict::Bad,
            _ => Verdict::Poor,
        }
    }
}

/// A figure, as it is told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FigureStatus {
    /// Its area.
    pub area: Area,
    /// Its name.
    pub name: String,
    /// Its value, in the unit of its name; none where there is no end to it, as of a write that fails.
    pub value: Option<f64>,
    /// Where it ceases to be good.
    pub good: f64,
    /// Where it becomes bad.
    pub bad: f64,
    /// Its verdict.
    pub verdict: Verdict,
    /// How long that has been its verdict, milliseconds.
    pub for_ms: u64,
    /// What it is about in particular, where the value does not say all.
    #[serde(default)]
    pub words: Option<String>,
}

/// An area, as it is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AreaStatus {
    /// Which one.
    pub area: Area,
    /// Its points of 25: those of its worst figure.
    pub points: u8,
}

/// The last reading of every figure.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    readings: BTreeMap<(Area, &'static str), (Reading, Verdict, Duration)>,
}

impl Figures {
    /// Takes readings; says which verdicts have changed. A figure that is read no more goes.
    pub fn observe(&mut self, readings: Vec<Reading>, now: Duration) -> Vec<(&'static str, f64, Verdict)> {
        let mut changed = Vec::new();
        let mut before = std::mem::take(&mut self.readings);
        for reading in readings {
            let (figure, verdict) = (reading.figure, reading.verdict());
            let key = (figure.area, figure.name);
            let since = match before.remove(&key) {
                Some((_, was, since)) if was == verdict => since,
                None if verdict == Verdict::Good => now,
                _ => {
                    changed.push((figure.name, reading.value, verdict));
                    now
                }
            };
            self.readings.insert(key, (reading, verdict, since));
        }
        changed
    }

    /// What a figure is about in particular.
    pub fn words(&self, name: &str) -> &str {
        let reading = self.readings.values().find(|(reading, ..)| reading.figure.name == name);
        reading.map_or("", |(reading, ..)| &reading.words)
    }

    /// An area's points, 0 to 25: those of its worst figure. What is not measured is not held against it.
    pub fn points(&self, area: Area) -> u8 {
        let grades = self.readings.iter().filter(|((of, _), _)| *of == area).map(|(_, (reading, ..))| reading.grade());
        (POINTS * grades.fold(1.0, f64::min)).round() as u8
    }

    /// The score, 0 to 100.
    pub fn score(&self) -> u8 {
        Area::ALL.iter().map(|area| self.points(*area)).sum()
    }

    /// Whether a figure is bad without which a node must not serve.
    pub fn has_failed(&self) -> bool {
        self.readings.values().any(|(reading, verdict, _)| reading.figure.is_vital && *verdict == Verdict::Bad)
    }

    /// All figures, area by area.
    pub fn statuses(&self, now: Duration) -> Vec<FigureStatus> {
        let status = |(reading, verdict, since): &(Reading, Verdict, Duration)| FigureStatus {
            area: reading.figure.area,
            name: reading.figure.name.to_owned(),
            // JSON knows no infinity.
            value: reading.value.is_finite().then(|| (reading.value * 10.0).round() / 10.0),
            good: reading.figure.good,
            bad: reading.figure.bad,
            verdict: *verdict,
            for_ms: now.saturating_sub(*since).as_millis() as u64,
            words: Some(&reading.words).filter(|words| !words.is_empty()).cloned(),
        };
        self.readings.values().map(status).collect()
    }

    /// All areas.
    pub fn areas(&self) -> Vec<AreaStatus> {
        Area::ALL.iter().map(|area| AreaStatus { area: *area, points: self.points(*area) }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(area: Area, name: &'static str, value: f64, good: f64, bad: f64) -> Reading {
        let figure = Figure { is_vital: area == Area::Storage, ..Figure::new(area, name, good, bad) };
        Reading { figure, value, words: String::new() }
    }

    #[test]
    fn grades_go_either_way() {
        for (value, good, bad, grade) in [
            (5.0, 10.0, 20.0, 1.0),
            (10.0, 10.0, 20.0, 1.0),
            (15.0, 10.0, 20.0, 0.5),
            (20.0, 10.0, 20.0, 0.0),
            (99.0, 10.0, 20.0, 0.0),
            (50.0, 10.0, 2.0, 1.0),
            (6.0, 10.0, 2.0, 0.5),
            (0.0, 10.0, 2.0, 0.0),
            (f64::NAN, 10.0, 20.0, 0.0),
            (f64::INFINITY, 10.0, 20.0, 0.0),
        ] {
            assert_eq!(reading(Area::Cpu, "x", value, good, bad).grade(), grade, "{value} of {good} to {bad}");
        }
    }

    #[test]
    fn the_worst_figure_of_an_area_counts() {
        let mut figures = Figures::default();
        assert_eq!((figures.score(), figures.has_failed()), (100, false), "nothing is known");
        let second = Duration::from_secs(1);
        let fine = vec![
            reading(Area::Cpu, "steal", 0.0, 10.0, 60.0),
            reading(Area::Cpu, "loop", 500.0, 200.0, 2000.0),
            reading(Area::Storage, "fsync", 10.0, 100.0, 2000.0),
        ];
        assert_eq!(figures.observe(fine.clone(), second), [("loop", 500.0, Verdict::Poor)]);
        assert_eq!((figures.points(Area::Cpu), figures.score()), (21, 96));
        let mut dead = fine.clone();
        dead[2].value = 3000.0;
        assert_eq!(figures.observe(dead.clone(), 2 * second), [("fsync", 3000.0, Verdict::Bad)]);
        assert_eq!(figures.observe(dead, 5 * second), [], "told once");
        assert_eq!((figures.score(), figures.has_failed()), (71, true));
        let told = figures.statuses(6 * second);
        assert_eq!(told.iter().map(|one| one.for_ms).collect::<Vec<_>>(), [5000, 5000, 4000]);
        let endless = vec![reading(Area::Storage, "fsync", f64::INFINITY, 100.0, 2000.0)];
        let mut other = figures.clone();
        other.observe(endless, 6 * second);
        let said = serde_json::to_string(&other.statuses(6 * second)).unwrap();
        assert_eq!(serde_json::from_str::<Vec<FigureStatus>>(&said).unwrap()[0].value, None, "{said}");
        assert_eq!(figures.observe(fine, 7 * second), [("fsync", 10.0, Verdict::Good)]);
        assert!(!figures.has_failed());
    }
}
