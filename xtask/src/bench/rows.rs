//! The rows of a measurement, as they come: each is on disk once it is there, so that nothing of it is lost if a later one
//! fails, and none is begun when the time is over.

use std::fmt::Display;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde::Serialize;
use serde_json::Value;

/// Rows, and where they go.
#[derive(Debug, Default)]
pub struct Rows {
    file: Option<PathBuf>,
    until: Option<Instant>,
    rows: Vec<Value>,
    left_out: Vec<String>,
}

impl Rows {
    /// None yet. They go into `file`, if one is named, and none is begun once this time has passed.
    pub fn new(file: Option<PathBuf>, within: Option<Duration>) -> Self {
        Self { file, until: within.map(|time| Instant::now() + time), ..Self::default() }
    }

    /// Whether there is time for a row; notes it as left out where there is none.
    pub fn begin(&mut self, row: impl Display) -> bool {
        let is_over = self.until.is_some_and(|until| Instant::now() >= until);
        if is_over {
            println!("{row}: left out, the time is over");
            self.left_out.push(row.to_string());
        }
        !is_over
    }

    /// Keeps a row.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn push(&mut self, row: &impl Serialize) -> Result<()> {
        self.rows.push(serde_json::to_value(row)?);
        let Some(file) = &self.file else { return Ok(()) };
        let text = serde_json::to_string_pretty(&self.rows)?;
        fs::write(file, text + "\n").with_context(|| format!("cannot write {}", file.display()))
    }

    /// All rows are there.
    ///
    /// # Errors
    /// Says which were left out.
    pub fn finish(self) -> Result<()> {
        if self.left_out.is_empty() {
            return Ok(());
        }
        bail!("the time was over before {} of the figures: {}", self.left_out.len(), self.left_out.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn rows_are_on_disk_at_once_and_those_left_out_are_named() {
        let file = std::env::temp_dir().join(format!("redirector-rows-{}", std::process::id()));
        let mut rows = Rows::new(Some(file.clone()), Some(Duration::ZERO));
        rows.push(&json!({"cell": "first"})).unwrap();
        let kept: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        fs::remove_file(&file).unwrap();
        assert_eq!(kept, json!([{"cell": "first"}]));
        assert!(!rows.begin("the second"));
        assert!(rows.finish().unwrap_err().to_string().ends_with("before 1 of the figures: the second"));
    }

    #[test]
    fn without_a_bound_every_row_is_begun() {
        let mut rows = Rows::new(None, None);
        assert!(rows.begin("any"));
        assert!(rows.finish().is_ok());
    }
}
