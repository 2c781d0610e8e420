//! What becomes of figures: a file, a comparison with an earlier one, a page with plots.
//!
//! Every measurement gives a list of rows: objects with what tells the row from others, and figures. [`shape`] knows which
//! fields are which; nothing else here knows one measurement from another, but for the plots.

mod compare;
mod page;
mod plot;
mod plots;
mod shape;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use shape::Shape;

/// The rows of each measurement, by its name, and under [`RUN`] what tells of the run.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Results(BTreeMap<String, Vec<Value>>);

/// Stands among the measurements for where and by what they were made.
const RUN: &str = "run";

/// A target, and whether it was met.
#[derive(Clone, Debug, PartialEq)]
struct Target {
    row: String,
    figure: &'static str,
    value: f64,
    target: f64,
    met: bool,
    /// Of how many values the figure is a quantile, where they are too few to judge by.
    few: Option<u64>,
}

/// What is to be said of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Met,
    Missed,
    TooFew,
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Self::Met => "met",
            Self::Missed => "missed",
            Self::TooFew => "too few to say",
        }
    }
}

impl Target {
    fn verdict(&self) -> Verdict {
        match (self.few, self.met) {
            (Some(_), _) => Verdict::TooFew,
            (None, true) => Verdict::Met,
            (None, false) => Verdict::Missed,
        }
    }

    fn is_met_by(&self, value: f64, more_is_better: bool) -> bool {
        if more_is_better { value >= self.target } else { value <= self.target }
    }
}

/// A quantile of fewer values than this is no verdict: with less, the 99th hundredth is the greatest of a handful.
const FEW: u64 = 20;

impl Results {
    /// The results that a file holds; a list is of the one measurement that is named.
    pub(super) fn of(file: &Path, only: Option<&str>) -> Result<Self> {
        Self(only.map(|name| (name.to_owned(), Vec::new())).into_iter().collect()).earlier(file)
    }

    /// Notes where, when and by what this is measured.
    pub(super) fn describe(&mut self, run: &str) {
        self.0.insert(RUN.to_owned(), vec![json!({ "told": run })]);
    }

    /// Where, when and by what it was measured, if that was kept.
    fn run(&self) -> Option<&str> {
        self.0.get(RUN)?.first()?.get("told")?.as_str()
    }

    /// The measurements alone.
    fn measured(&self) -> impl Iterator<Item = (&String, &Vec<Value>)> {
        self.0.iter().filter(|(name, _)| *name != RUN)
    }

    /// Takes in the rows that a measurement has written to a file.
    pub(super) fn read(&mut self, name: &str, file: &Path) -> Result<()> {
        let rows = rows(&text(file)?).with_context(|| format!("{} is not a list of figures", file.display()))?;
        self.0.insert(name.to_owned(), rows);
        Ok(())
    }

    /// Writes the list of the one measurement, or an object of several.
    pub(super) fn write(&self, file: &Path) -> Result<()> {
        let text = match self.measured().next() {
            Some((_, rows)) if self.measured().count() == 1 => serde_json::to_string_pretty(rows)?,
            _ => serde_json::to_string_pretty(&self.0)?,
        };
        fs::write(file, text + "\n").with_context(|| format!("cannot write {}", file.display()))
    }

    /// Results of an earlier run; a list is of the one measurement that is there now.
    fn earlier(&self, file: &Path) -> Result<Self> {
        let value = text(file)?;
        let odd = || format!("{} holds no figures of this command", file.display());
        if value.is_array() {
            let one = || format!("{} is a list: name the one measurement that it is of", file.display());
            ensure!(self.measured().count() == 1, one());
            let rows = rows(&value).with_context(odd)?;
            return Ok(Self(self.measured().map(|(name, _)| (name.clone(), rows.clone())).collect()));
        }
        let by_name = value.as_object().with_context(odd)?.iter();
        let results = by_name.map(|(name, value)| Some((name.clone(), rows(value)?))).collect::<Option<_>>();
        Ok(Self(results.with_context(odd)?))
    }

    /// Shows what got worse since an earlier run, and says how much did.
    pub(super) fn compare(&self, file: &Path) -> Result<usize> {
        let before = self.earlier(file)?;
        let changes = compare::changes(self, &before);
        compare::show(&changes);
        for (measurement, row) in compare::missing(self, &before) {
            println!("  only the earlier run has: {measurement}, {row}");
        }
        Ok(changes.iter().filter(|change| change.is_worse()).count())
    }

    /// Writes a page that needs nothing besides itself.
    pub(super) fn page(&self, file: &Path) -> Result<()> {
        fs::write(file, page::page(self)?).with_context(|| format!("cannot write {}", file.display()))
    }

    /// Writes every plot to a file of its own.
    pub(super) fn plots(&self, directory: &Path) -> Result<()> {
        fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
        for plot in plots::all(self)? {
            let file = directory.join(format!("{}.svg", plot.name));
            fs::write(&file, plot.svg + "\n").with_context(|| format!("cannot write {}", file.display()))?;
        }
        Ok(())
    }

    /// Says which targets were missed, and how many there are.
    pub(super) fn show_targets(&self) {
        let targets = self.targets();
        let count = |verdict| targets.iter().filter(|(_, target)| target.verdict() == verdict).count();
        println!("\n{} of {} targets met", count(Verdict::Met), targets.len() - count(Verdict::TooFew));
        for (name, target) in targets.iter().filter(|(_, target)| target.verdict() != Verdict::Met) {
            let Target { row, figure, value, target: aim, few, .. } = target;
            let of = few.map_or_else(String::new, |few| format!(" by {few} values"));
            let (value, aim) = (shape::number(*value), shape::number(*aim));
            println!("  {}{of}: {name}, {row}: {figure} {value}, aimed at {aim}", target.verdict().word());
        }
    }

    /// How a measurement is made, and what of it is not as in a real network.
    pub(super) fn how(name: &str) -> Option<&'static str> {
        shape::ALL.iter().find(|shape| shape.name == name).map(|shape| shape.how)
    }

    fn rows(&self, name: &str) -> &[Value] {
        self.0.get(name).map_or(&[], Vec::as_slice)
    }

    fn targets(&self) -> Vec<(&'static str, Target)> {
        let known = shape::ALL.iter();
        known.flat_map(|shape| self.rows(shape.name).iter().flat_map(|row| targets(shape, row))).collect()
    }
}

/// The targets of a row: `targets` by figure, or `target` for the first figure.
fn targets(shape: &'static Shape, row: &Value) -> Vec<(&'static str, Target)> {
    let target = |(at, figure): (usize, &'static shape::Figure)| {
        let by_name = || row.get("targets")?.get(figure.path)?.as_f64();
        let only = || if at == shape.target { row.get("target")?.as_f64() } else { None };
        let (value, target) = (shape::figure(row, figure.path)?, by_name().or_else(only)?);
        let count = row.get("kills").or_else(|| row.get("samples")).and_then(Value::as_u64);
        let few = count.filter(|count| figure.path.ends_with(".p99") && *count < FEW);
        let mut one = Target { row: shape.label(row), figure: figure.label, value, target, met: false, few };
        one.met = one.is_met_by(value, figure.more_is_better);
        Some((shape.name, one))
    };
    shape.figures.iter().enumerate().filter_map(target).collect()
}

fn text(file: &Path) -> Result<Value> {
    let text = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("{} is not JSON", file.display()))
}

fn rows(value: &Value) -> Option<Vec<Value>> {
    value.as_array().filter(|rows| rows.iter().all(Value::is_object)).cloned()
}

#[cfg(test)]
mod tests;
