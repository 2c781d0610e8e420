//! Numbers of named things. A flow's entry holds its backend's number, so a name keeps its number for as long as the maps
//! live, across restarts and changes of configuration: the registry is read from the maps and written back to them.

use std::collections::HashMap;

use redirector_ebpf::tables::names::{NameKey, kind};
use redirector_ebpf::tables::{Backend, Path};

/// Names and numbers, by kind.
#[derive(Clone, Debug, Default)]
pub struct Registry {
    names: HashMap<NameKey, String>,
    ids: HashMap<(u32, String), u32>,
    /// Present rows of backends, by number.
    pub backends: HashMap<u16, Backend>,
    /// Present rows of paths, by number.
    pub paths: HashMap<u16, Path>,
}

/// A kind of thing has no number left.
#[derive(Debug, thiserror::Error)]
#[error("no number is left for {what} `{name}`: the data plane was loaded for {size} (see `[tables]`)")]
pub struct Full {
    /// The kind, in words.
    pub what: &'static str,
    /// The name that got no number.
    pub name: String,
    /// How many the map holds.
    pub size: u32,
}

impl Registry {
    /// The registry of these names.
    pub fn new(names: impl IntoIterator<Item = (NameKey, String)>) -> Self {
        let mut registry = Self::default();
        for (key, name) in names {
            registry.insert(key, name);
        }
        registry
    }

    fn insert(&mut self, key: NameKey, name: String) {
        self.ids.insert((key.kind, name.clone()), key.id);
        self.names.insert(key, name);
    }

    /// The name of a number.
    pub fn name(&self, kind: u32, id: u32) -> Option<&str> {
        self.names.get(&NameKey { kind, id }).map(String::as_str)
    }

    /// The number of a name.
    pub fn id(&self, kind: u32, name: &str) -> Option<u32> {
        self.ids.get(&(kind, name.to_owned())).copied()
    }

    /// Makes a number the one of its name, where several have it.
    pub fn prefer(&mut self, kind: u32, name: &str, id: u32) {
        self.ids.insert((kind, name.to_owned()), id);
    }

    /// All names.
    pub fn names(&self) -> impl Iterator<Item = (NameKey, &str)> {
        self.names.iter().map(|(key, name)| (*key, name.as_str()))
    }

    /// Numbers and names of a kind, in order of numbers.
    pub fn of(&self, kind: u32) -> Vec<(u32, &str)> {
        let mut all: Vec<_> =
            self.names().filter(|(key, _)| key.kind == kind).map(|(key, name)| (key.id, name)).collect();
        all.sort_unstable();
        all
    }

    /// The number of a name, a new one from 1 to `size - 1` if it has none.
    ///
    /// # Errors
    /// [`Full`].
    pub fn assign(&mut self, kind: u32, name: &str, size: u32) -> Result<u32, Full> {
        match self.id(kind, name) {
            Some(id) => Ok(id),
            None => self.assign_new(kind, name, size),
        }
    }

    /// The number of a path with this row. Rows are immutable: a changed one gets a new number, and the name with it.
    ///
    /// # Errors
    /// [`Full`].
    pub fn assign_path(&mut self, name: &str, row: &Path, size: u32) -> Result<u16, Full> {
        if let Some(id) = self.id(kind::PATH, name)
            && self.paths.get(&(id as u16)) == Some(row)
        {
            return Ok(id as u16);
        }
        let id = self.assign_new(kind::PATH, name, size)? as u16;
        self.paths.insert(id, *row);
        Ok(id)
    }

    /// A number that was not used lately: the one after the greatest, or the lowest free.
    fn assign_new(&mut self, kind: u32, name: &str, size: u32) -> Result<u32, Full> {
        let used = |id: &u32| self.names.contains_key(&NameKey { kind, id: *id });
        let greatest = self.names.keys().filter(|key| key.kind == kind).map(|key| key.id).max().unwrap_or(0);
        let id = match greatest + 1 {
            next if next < size => next,
            _ => (1..size).find(|id| !used(id)).ok_or_else(|| Full {
                what: word(kind),
                name: name.to_owned(),
                size: size.saturating_sub(1),
            })?,
        };
        self.insert(NameKey { kind, id }, name.to_owned());
        Ok(id)
    }

    /// Gives a number back.
    pub fn release(&mut self, kind: u32, id: u32) {
        if let Some(name) = self.names.remove(&NameKey { kind, id })
            && self.id(kind, &name) == Some(id)
        {
            self.ids.remove(&(kind, name));
        }
    }
}

/// A kind in words.
pub fn word(kind: u32) -> &'static str {
    match kind {
        kind::VIP => "VIP",
        kind::SERVICE => "service",
        kind::POOL => "pool",
        kind::BACKEND => "backend",
        kind::PATH => "path",
        kind::NEIGHBOUR => "neighbour",
        kind::NODE => "node",
        kind::PORT => "port",
        _ => "table",
    }
}
