//! How answers are printed: as a table for people, as JSON or YAML for programs.
//!
//! Lists are written while they are read, so that a million flows need no more memory than one page of them. A reader
//! that goes away early (`| head`) is no failure.

mod names;
#[cfg(test)]
mod tests;

use std::fmt::Display;
use std::io::{self, BufWriter, ErrorKind, StdoutLock, Write};

use anyhow::Result;
use clap::ValueEnum;
use comfy_table::presets::NOTHING;
use comfy_table::{ColumnConstraint, ContentArrangement, Table, Width};
use serde::ser::SerializeSeq as _;
use serde::{Serialize, Serializer};

pub(super) use names::{Names, class, echo, mac, mode, protocol, state, unmatched};

/// The argument of every command that prints.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub(super) struct Output {
    /// How to print.
    #[arg(short = 'o', long = "output", value_enum, value_name = "FORMAT", default_value_t)]
    format: Format,
}

/// The forms of output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// Columns for people.
    #[default]
    Table,
    /// JSON (RFC 8259).
    Json,
    /// YAML 1.2.
    Yaml,
}

/// What can stand as one row of a table.
pub(super) trait Row: Serialize {
    /// The columns' headings.
    fn header() -> &'static [&'static str];

    /// The cells below them.
    fn cells(&self) -> Vec<String>;
}

/// Rows that a table's columns are fitted to at once; longer tables come in pages, whose columns never get narrower.
const PAGE: usize = 1000;

impl Output {
    /// The format that was asked for.
    pub(super) fn format(self) -> Format {
        self.format
    }

    /// Prints one thing as its fields are, for what has no table of its own.
    pub(super) fn print<T: Serialize + ?Sized>(self, value: &T) -> Result<()> {
        to_stdout(|out| match self.format {
            Format::Json => json(out, value),
            Format::Yaml | Format::Table => out.write_all(yaml(value)?.as_bytes()),
        })
    }

    /// Prints a list.
    pub(super) fn list<R: Row>(self, rows: impl IntoIterator<Item = R>) -> Result<()> {
        to_stdout(|out| self.write_list(out, rows))
    }

    /// Prints one thing; `text` is its form for people.
    pub(super) fn one<T: Serialize>(self, value: &T, text: impl FnOnce() -> String) -> Result<()> {
        match self.format {
            Format::Table => to_stdout(|out| out.write_all(text().as_bytes())),
            _ => self.print(value),
        }
    }

    /// Prints a line for people below a list.
    pub(super) fn remark(self, line: &str) -> Result<()> {
        match self.format {
            Format::Table => to_stdout(|out| writeln!(out, "{line}")),
            _ => Ok(()),
        }
    }

    /// Prints one thing of an endless list as a line, or as a YAML document.
    pub(super) fn line<T: Serialize>(self, value: &T, text: impl FnOnce() -> String) -> Result<Reader> {
        let mut out = io::stdout().lock();
        let written = match self.format {
            Format::Table => writeln!(out, "{}", text()),
            Format::Json => {
                serde_json::to_string(value).map_err(io::Error::from).and_then(|line| writeln!(out, "{line}"))
            }
            Format::Yaml => yaml(value).and_then(|document| write!(out, "---\n{document}")),
        };
        match written.and_then(|()| out.flush()) {
            Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(Reader::Gone),
            result => Ok(result.map(|()| Reader::There)?),
        }
    }

    fn write_list<R: Row>(self, out: &mut impl Write, rows: impl IntoIterator<Item = R>) -> io::Result<()> {
        match self.format {
            Format::Table => table(out, rows.into_iter()),
            Format::Json => {
                let mut json = serde_json::Serializer::pretty(&mut *out);
                let mut list = json.serialize_seq(None)?;
                rows.into_iter().try_for_each(|row| list.serialize_element(&row))?;
                list.end()?;
                writeln!(out)
            }
            Format::Yaml => {
                let mut empty = true;
                for row in rows {
                    out.write_all(yaml(&[row])?.as_bytes())?;
                    empty = false;
                }
                if empty { writeln!(out, "[]") } else { Ok(()) }
            }
        }
    }
}

/// Whether somebody still reads what is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reader {
    /// Yes.
    There,
    /// No: it is time to end.
    Gone,
}

fn to_stdout(write: impl FnOnce(&mut BufWriter<StdoutLock<'_>>) -> io::Result<()>) -> Result<()> {
    let mut out = BufWriter::with_capacity(1 << 16, io::stdout().lock());
    match write(&mut out).and_then(|()| out.flush()) {
        Err(e) if e.kind() == ErrorKind::BrokenPipe => {
            // What is left in the buffer would be tried once more.
            let _ = out.into_parts();
            Ok(())
        }
        result => Ok(result?),
    }
}

fn json<T: Serialize + ?Sized>(out: &mut impl Write, value: &T) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut *out, value)?;
    writeln!(out)
}

/// Of the YAML crates that are kept, serde-saphyr is the one in safe Rust, where the forks of serde_yaml carry C code
/// that was translated; only its writing half is built.
fn yaml<T: Serialize + ?Sized>(value: &T) -> io::Result<String> {
    serde_saphyr::to_string(&value).map_err(io::Error::other)
}

fn table<R: Row>(out: &mut impl Write, mut rows: impl Iterator<Item = R>) -> io::Result<()> {
    let mut widths = vec![0; R::header().len()];
    let mut first = true;
    loop {
        let page: Vec<_> = rows.by_ref().take(PAGE).map(|row| row.cells()).collect();
        if page.is_empty() && !first {
            return Ok(());
        }
        let header = first.then(R::header);
        write!(out, "{}", columns(header, page, &mut widths))?;
        first = false;
    }
}

/// Lays rows out without borders. The columns are at least as wide as `widths`, which grows with them.
fn columns(header: Option<&[&str]>, rows: Vec<Vec<String>>, widths: &mut [u16]) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    if let Some(header) = header {
        table.set_header(header);
    }
    table.add_rows(rows);
    for (width, present) in widths.iter_mut().zip(table.column_max_content_widths()) {
        *width = present.max(*width);
    }
    for (index, &width) in widths.iter().enumerate() {
        if let Some(column) = table.column_mut(index) {
            // The distance to the next column is counted in.
            column.set_padding((0, 3));
            column.set_constraint(ColumnConstraint::LowerBoundary(Width::Fixed(width + 3)));
        }
    }
    table.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

/// A table with its header, as text.
pub(super) fn text_table(header: &[&str], rows: Vec<Vec<String>>) -> String {
    columns(Some(header), rows, &mut vec![0; header.len()])
}

/// Names and values below each other.
pub(super) fn text_pairs(pairs: Vec<(&str, String)>) -> String {
    let rows = pairs.into_iter().map(|(name, value)| vec![name.to_owned(), value]).collect();
    columns(None, rows, &mut [0; 2])
}

/// A cell that may be empty.
pub(super) fn cell(value: Option<impl Display>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// A time in milliseconds, in the units that people would use; no finer than a second where it is longer than that.
pub(super) fn ago(milliseconds: u64) -> String {
    let rounded = if milliseconds < 1000 { milliseconds } else { milliseconds / 1000 * 1000 };
    humantime::format_duration(std::time::Duration::from_millis(rounded)).to_string()
}

/// A cell that says yes or no.
pub(super) fn yes(value: bool) -> String {
    if value { "yes" } else { "no" }.to_owned()
}

/// Serialises pairs as a map in their order.
pub(super) fn ordered<S: Serializer, V: Serialize>(pairs: &[(&str, V)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(pairs.iter().map(|(name, value)| (name, value)))
}
