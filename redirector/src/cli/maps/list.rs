//! The maps, their sizes and how full they are.

use std::fs;
use std::os::fd::{AsFd as _, AsRawFd as _};

use anyhow::{Context as _, Result};
use aya::maps::{MapData, MapInfo, MapType};
use serde::Serialize;

use super::decode::{Decoder, NAMES};
use crate::cli::output::{Row, cell};
use crate::cli::target::Target;
use crate::dataplane::load;

#[derive(Serialize)]
pub(super) struct Line {
    name: String,
    #[serde(rename = "type")]
    kind: String,
    key_bytes: u32,
    value_bytes: u32,
    /// Entries that are there or, of arrays, that are not all zero. None of maps of maps, whose entries are others'.
    used: Option<usize>,
    max_entries: u32,
    /// What the kernel says that it takes.
    memory_bytes: Option<u64>,
}

impl Row for Line {
    fn header() -> &'static [&'static str] {
        &["NAME", "TYPE", "KEY", "VALUE", "USED", "MAX", "MEMORY"]
    }

    fn cells(&self) -> Vec<String> {
        vec![
            self.name.clone(),
            self.kind.clone(),
            self.key_bytes.to_string(),
            self.value_bytes.to_string(),
            cell(self.used),
            self.max_entries.to_string(),
            cell(self.memory_bytes.map(memory)),
        ]
    }
}

pub(super) fn list(target: &Target) -> Result<Vec<Line>> {
    let directory = load::directory(&target.pins()?);
    let decoder = Decoder::open(&directory, target.maps()?)?;
    let mut lines = Vec::new();
    for name in NAMES {
        let path = directory.join(name);
        let map = MapData::from_pin(&path).with_context(|| format!("cannot open {}", path.display()))?;
        let info = map.info()?;
        lines.push(Line {
            name: (*name).to_owned(),
            kind: info.map_type().map_or_else(|_| "unknown".to_owned(), kind),
            key_bytes: info.key_size(),
            value_bytes: info.value_size(),
            used: if holds_maps(&info) { None } else { Some(decoder.entries(name)?.count()) },
            max_entries: info.max_entries(),
            memory_bytes: memlock(&map),
        });
    }
    Ok(lines)
}

fn holds_maps(info: &MapInfo) -> bool {
    matches!(info.map_type(), Ok(MapType::ArrayOfMaps | MapType::HashOfMaps))
}

/// A type as bpftool calls it.
fn kind(kind: MapType) -> String {
    let name = format!("{kind:?}");
    let mut text = String::new();
    for (at, letter) in name.char_indices() {
        if at > 0 && letter.is_ascii_uppercase() {
            text.push('_');
        }
        text.push(letter.to_ascii_lowercase());
    }
    text
}

fn memlock(map: &MapData) -> Option<u64> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", map.fd().as_fd().as_raw_fd())).ok()?;
    info.lines().find_map(|line| line.strip_prefix("memlock:"))?.trim().parse().ok()
}

fn memory(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        _ => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_called_as_elsewhere() {
        assert_eq!(kind(MapType::PerCpuArray), "per_cpu_array");
        assert_eq!(kind(MapType::Hash), "hash");
    }

    #[test]
    fn memory_is_readable() {
        assert_eq!((memory(64), memory(1536), memory(3 << 20)), ("64 B".into(), "1.5 KiB".into(), "3.0 MiB".into()));
    }
}
