//! The configuration: read from TOML, checked as a whole, compared with another.
//!
//! This room owns the file's schema, its defaults and its rules. It never touches a map, a socket or the network,
//! and it never stops at the first mistake: whoever edits a file learns of all of them at once, each with its place
//! and its mend.
//!
//! ```text
//! text ─ toml (recovers from syntax errors, keeps spans) ─ Reader (types, ranges, unknown fields) ─ Config
//!                                                             │                                       │
//!                                                           Notes ◄──────────── rules (whole file) ◄──┘
//! ```
//!
//! `read` fills a field that is wrong or missing with a placeholder and notes the mistake. `rules` then judges the whole
//! and stays silent about fields that already have a mistake, so that one slip is told once.

mod bfd;
mod condition;
mod decap;
mod diff;
mod health;
mod mistake;
mod prefix;
mod probe;
mod read;
mod reader;
mod rules;
mod schema;
mod service;
#[cfg(test)]
mod tests;
mod text;

use std::{fs::File, io::Read as _, path::Path as FilePath};

use toml::de::DeTable;

pub use bfd::Bfd;
pub use condition::{Health, Refused, Shedding};
pub use decap::Decap;
pub use diff::{Change, Kind, What, diff};
pub use health::{Deadline, OnDeath, Passive, PoolHealth};
pub use mistake::{Mistake, Mistakes};
pub use prefix::Prefix;
pub use probe::{Bytes, Probe, Question, Statuses};
pub use schema::*;
pub use service::*;

use mistake::Notes;
use reader::Reader;

/// A configuration larger than this, in bytes, is refused unread: 32,767 backends with three paths fit in half of it.
const TEXT_BYTES_MAX: u64 = 64 << 20;

/// Reads and checks the configuration of a node.
pub fn load(path: &FilePath) -> Result<Config, Mistakes> {
    parse(&path.display().to_string(), &text_of(path)?)
}

/// Checks a node's configuration given as text. `name` is the file's name in mistakes, and a relative `cluster.key_file`
/// is looked for beside it; that file is the only thing that is read besides the text.
pub fn parse(name: &str, text: &str) -> Result<Config, Mistakes> {
    checked(name, text, |mut root, notes, whole| {
        let config = read::config(&mut root, FilePath::new(name).parent());
        root.done();
        if whole {
            rules::check(&config, notes);
        }
        config
    })
}

/// Reads what all nodes have in common from the configuration of any of them, and puts it in place of `own`'s: members,
/// VIPs, services, pools, limits, timeouts, replication, shedding and health. What is a node's own in the text is not looked at, so no file
/// is read. Rules hold for the whole that results.
pub fn merge(name: &str, text: &str, own: &Config) -> Result<Config, Mistakes> {
    checked(name, text, |mut root, notes, whole| {
        let config = read::shared(&mut root, own);
        root.done();
        if whole {
            rules::check(&config, notes);
        }
        config
    })
}

/// Reads `[decap]`, which is all that a backend's file needs; the tables of a node may be there too and are not judged.
pub fn load_decap(path: &FilePath) -> Result<Decap, Mistakes> {
    parse_decap(&path.display().to_string(), &text_of(path)?)
}

/// Like [`load_decap`], from text.
pub fn parse_decap(name: &str, text: &str) -> Result<Decap, Mistakes> {
    checked(name, text, |mut root, _, _| {
        let decap = decap::decap_alone(&mut root);
        root.done();
        decap
    })
}

/// Runs `read` over the parsed text; its result counts only if nobody noted a mistake. The flag tells `read` that the
/// syntax was sound, so that what it sees is the whole file.
fn checked<T>(name: &str, text: &str, read: impl FnOnce(Reader<'_>, &Notes, bool) -> T) -> Result<T, Mistakes> {
    let (table, errors) = DeTable::parse_recoverable(text);
    let notes = Notes::new(text, &errors);
    let value = read(Reader::root(table.get_ref(), &notes), &notes, errors.is_empty());
    let mistakes = notes.into_mistakes();
    if mistakes.is_empty() { Ok(value) } else { Err(Mistakes::new(name, text, mistakes)) }
}

fn text_of(path: &FilePath) -> Result<String, Mistakes> {
    let name = path.display().to_string();
    let refuse = |message: String, mend: &str| Mistakes::unread(&name, message, mend);
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(TEXT_BYTES_MAX + 1).read_to_end(&mut bytes))
        .map_err(|error| refuse(format!("cannot read it: {error}"), "check the path and its permissions"))?;
    if bytes.len() as u64 > TEXT_BYTES_MAX {
        return Err(refuse(format!("larger than {} MiB", TEXT_BYTES_MAX >> 20), "give the path of a configuration"));
    }
    String::from_utf8(bytes).map_err(|error| {
        let place = error.utf8_error().valid_up_to();
        let line = error.as_bytes()[..place].iter().filter(|&&byte| byte == b'\n').count() + 1;
        refuse(format!("line {line} is not UTF-8 text"), "save the file as UTF-8")
    })
}
