//! `maps`: the pinned BPF maps as they are, decoded.

mod decode;
mod list;
mod liveness;
mod paths;

use anyhow::{Result, bail};
use clap::Subcommand;
use serde::Serialize;
use serde_json::Value;

use super::output::{Output, Row};
use super::target::Target;
use crate::dataplane::load;
use decode::Decoder;

/// Show the BPF maps, decoded.
#[derive(Debug, clap::Args)]
pub(super) struct Maps {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The maps, their sizes and how full they are.
    List {
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        output: Output,
    },
    /// The entries of a map. Entries of arrays that are all zero are left out.
    Dump {
        /// The map.
        name: String,
        /// Show so many entries at most.
        #[arg(long, value_name = "N")]
        limit: Option<usize>,
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        output: Output,
    },
    /// One entry of a map.
    Lookup {
        /// The map.
        name: String,
        /// The key, as `dump` prints it.
        key: String,
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        output: Output,
    },
}

impl Maps {
    pub(super) fn run(self) -> Result<()> {
        match self.command {
            Command::List { target, output } => output.list(list::list(&target)?),
            Command::Dump { name, limit, target, output } => {
                let decoder = Decoder::open(&load::directory(&target.pins()?), target.maps()?)?;
                output.list(decoder.entries(&canonical(&name)?)?.take(limit.unwrap_or(usize::MAX)))
            }
            Command::Lookup { name, key, target, output } => {
                let name = canonical(&name)?;
                let decoder = Decoder::open(&load::directory(&target.pins()?), target.maps()?)?;
                match decoder.entries(&name)?.find(|entry| entry.key == key) {
                    Some(entry) => output.one(&entry, || format!("{}\n", fields(&entry.value))),
                    None => bail!(
                        "{name} has no entry `{key}`, or one that is all zero; `redirector maps dump {name}` shows the keys"
                    ),
                }
            }
        }
    }
}

/// A map's name as it is pinned.
fn canonical(name: &str) -> Result<String> {
    let upper = name.to_ascii_uppercase();
    match decode::NAMES.contains(&upper.as_str()) {
        true => Ok(upper),
        false => bail!("no map is called `{name}`; there are {}", decode::NAMES.join(", ")),
    }
}

/// An entry of a map.
#[derive(Debug, PartialEq, Serialize)]
struct Entry {
    key: String,
    value: Value,
}

impl Row for Entry {
    fn header() -> &'static [&'static str] {
        &["KEY", "VALUE"]
    }

    fn cells(&self) -> Vec<String> {
        vec![self.key.clone(), fields(&self.value)]
    }
}

/// A value on one line: `field=value`, without what is null.
fn fields(value: &Value) -> String {
    match value {
        Value::Object(fields) => {
            let one = |(name, value): (&String, &Value)| format!("{name}={}", self::fields(value));
            fields.iter().filter(|(_, value)| !value.is_null()).map(one).collect::<Vec<_>>().join(" ")
        }
        Value::Array(values) => values.iter().map(fields).collect::<Vec<_>>().join(","),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_value_stands_on_one_line() {
        let value = json!({"ranks": ["n1", "n2"], "previous": null, "version": 3});
        assert_eq!(fields(&value), "ranks=n1,n2 version=3");
        assert_eq!(fields(&json!(7)), "7");
    }

    #[test]
    fn names_are_those_of_the_pins() {
        assert_eq!(canonical("slots").unwrap(), "SLOTS");
        let error = canonical("nonsense").unwrap_err().to_string();
        assert!(error.contains("SLOTS") && error.contains("FLOWS4"), "{error}");
    }
}
