//! What the rows of a pool are made of.
//!
//! Rows are not kept here: they follow from the table before the first unsettled change and the steps taken since, in
//! the way of [`transition`]. So a node that joins in the middle of a dispute has the same rows as all others, and each
//! fills in its own numbers of the backends.

use std::collections::{BTreeMap, BTreeSet};

use redirector_ebpf::tables::Row;
use serde::{Deserialize, Serialize};

use super::Refusal;
use crate::pool::{self, Member, stable_hash, transition};

/// A pool whose disputes have not ended for so many steps takes no further change.
const STEPS_MAX: usize = 512;

/// Steps in which a backend that comes back gets its weight. Each is a change of the pool, that moves rows to it alone.
pub const WARMTH: u8 = 8;

/// Parts in which the time that a backend has to drain goes by: a leader that is new to it counts one of them again at most.
pub const DRAIN_PARTS: u8 = 16;

/// Backends by name and their weights: what a table is computed of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Definition(
    /// Weights by name; a draining backend has none and still counts for the table's size.
    pub BTreeMap<String, u32>,
);

/// A pool's rows, as steps towards them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    /// What is configured.
    pub configured: Definition,
    /// Backends that most nodes find dead: they are as if they drained, unless nobody else would be left.
    pub out: BTreeSet<String>,
    /// What its rows were before the first change that is not settled.
    pub base: Definition,
    /// How many rows they were; a table never shrinks while its pool lives.
    pub size: u32,
    /// The steps since.
    pub steps: Vec<Step>,
    /// Log index of the last step.
    pub since: u64,
}

/// A step of a pool's change; see [`transition`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// The rows that will change are disputed.
    Announce(Definition),
    /// The rows name their new backends.
    Switch,
    /// In these rows unknown flows are the current backend's.
    Agree(Rows),
    /// The dispute of these rows has ended.
    Settle(Rows),
}

/// Some rows of a table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Rows {
    /// All of them.
    All,
    /// Those.
    Some(RowSet),
}

/// A set of rows, a bit each.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowSet(Vec<u8>);

/// Where a pool's change stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// No row is disputed.
    Settled,
    /// Rows are disputed and name their old backends.
    Announced,
    /// They name their new ones.
    Switched,
    /// For some of them the dispute is about to end.
    Agreed,
}

impl Definition {
    /// The table of a size, with this node's numbers of the backends.
    fn table(&self, size: usize, id: &impl Fn(&str) -> u16) -> Vec<u16> {
        let member = |(name, &weight): (&String, _)| Member { hash: stable_hash(name), weight, id: id(name) };
        pool::build(&self.0.iter().map(member).collect::<Vec<_>>(), size)
    }

    fn size(&self) -> usize {
        pool::rows(self.0.len())
    }
}

impl Step {
    fn definition(&self) -> Option<&Definition> {
        match self {
            Self::Announce(definition) => Some(definition),
            _ => None,
        }
    }
}

impl Rows {
    fn contains(&self, row: usize) -> bool {
        match self {
            Self::All => true,
            Self::Some(rows) => rows.contains(row),
        }
    }
}

impl RowSet {
    /// Whether a row is in it.
    pub fn contains(&self, row: usize) -> bool {
        self.0.get(row / 8).is_some_and(|byte| byte >> (row % 8) & 1 == 1)
    }

    /// Puts a row in.
    pub fn insert(&mut self, row: usize) {
        if self.0.len() <= row / 8 {
            self.0.resize(row / 8 + 1, 0);
        }
        self.0[row / 8] |= 1 << (row % 8);
    }

    /// Puts another set's rows in.
    pub fn extend(&mut self, other: &Self) {
        if self.0.len() < other.0.len() {
            self.0.resize(other.0.len(), 0);
        }
        self.0.iter_mut().zip(&other.0).for_each(|(own, other)| *own |= other);
    }

    /// Whether no row is in it.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|&byte| byte == 0)
    }
}

impl FromIterator<usize> for RowSet {
    fn from_iter<T: IntoIterator<Item = usize>>(rows: T) -> Self {
        let mut set = Self::default();
        rows.into_iter().for_each(|row| set.insert(row));
        set
    }
}

impl Pool {
    /// A pool none of whose rows is disputed.
    pub fn settled(definition: Definition, since: u64) -> Self {
        let (configured, out) = (definition.clone(), BTreeSet::new());
        Self { configured, out, size: definition.size() as u32, base: definition, steps: Vec::new(), since }
    }

    /// Where its change stands.
    pub fn phase(&self) -> Phase {
        match self.steps.last() {
            None => Phase::Settled,
            Some(Step::Announce(_)) => Phase::Announced,
            Some(Step::Switch | Step::Settle(_)) => Phase::Switched,
            Some(Step::Agree(_)) => Phase::Agreed,
        }
    }

    /// What its table is, or is becoming.
    pub fn latest(&self) -> &Definition {
        self.steps.iter().rev().find_map(Step::definition).unwrap_or(&self.base)
    }

    /// The backends that are dead and that no row names for new flows, now or soon.
    pub fn fallen(&self) -> impl Iterator<Item = &String> {
        self.unnamed(self.out.iter())
    }

    /// Those of some backends that no row names for new flows, now or soon.
    pub(super) fn unnamed<'a>(
        &'a self,
        backends: impl Iterator<Item = &'a String>,
    ) -> impl Iterator<Item = &'a String> {
        let (mut current, mut next) = (&self.base, &self.base);
        for step in &self.steps {
            match step {
                Step::Announce(definition) => next = definition,
                Step::Switch => current = next,
                Step::Agree(_) | Step::Settle(_) => {}
            }
        }
        let has_none =
            |definition: &Definition, name: &String| definition.0.get(name).is_none_or(|&weight| weight == 0);
        backends.filter(move |name| has_none(current, name) && has_none(next, name))
    }

    /// The backends that its rows may name.
    pub fn names(&self) -> impl Iterator<Item = &String> {
        let definitions = std::iter::once(&self.base).chain(self.steps.iter().filter_map(Step::definition));
        definitions.flat_map(|definition| definition.0.keys())
    }

    /// Its rows, with this node's numbers of the backends.
    pub fn rows(&self, id: impl Fn(&str) -> u16) -> Vec<Row> {
        let mut rows = transition::fresh(&self.base.table(self.size as usize, &id));
        let mut table = Vec::new();
        for step in &self.steps {
            rows = match step {
                Step::Announce(definition) => {
                    table = definition.table(transition::size(rows.len(), definition.size()), &id);
                    transition::announce(&rows, &table)
                }
                Step::Switch => transition::switch(&rows, &table),
                Step::Agree(quiet) => transition::agree(&rows, |row| quiet.contains(row)),
                Step::Settle(quiet) => transition::settle(&rows, |row| quiet.contains(row)),
            }
        }
        rows
    }

    /// Begins a change to what is configured now, unless it is none.
    pub(super) fn change(&mut self, definition: &Definition, warming: &BTreeMap<String, u8>, index: u64) {
        self.configured.clone_from(definition);
        self.out.retain(|backend| definition.0.contains_key(backend));
        self.lead(warming, index);
    }

    /// Takes these backends out, and puts in all others that are configured.
    pub(super) fn set_out(&mut self, out: &BTreeSet<String>, warming: &BTreeMap<String, u8>, index: u64) {
        self.out = out.iter().filter(|backend| self.configured.0.contains_key(*backend)).cloned().collect();
        self.lead(warming, index);
    }

    /// What its table should be. Weights count against each other alone: where one has only some of the steps, each of the
    /// others has all of them.
    fn target(&self, warming: &BTreeMap<String, u8>) -> Definition {
        let is_warm = |name: &String| !warming.contains_key(name) || self.out.contains(name);
        let whole = if self.configured.0.keys().all(is_warm) { 1 } else { u32::from(WARMTH) };
        let weight = |name: &String, own: u32| match warming.get(name) {
            _ if self.out.contains(name) => 0,
            Some(&step) if whole > 1 => own.saturating_mul(step.clamp(1, WARMTH).into()),
            _ => own.saturating_mul(whole),
        };
        let target = self.configured.0.iter().map(|(name, &own)| (name.clone(), weight(name, own)));
        let target = Definition(target.collect());
        if target.0.values().all(|&weight| weight == 0) { self.configured.clone() } else { target }
    }

    /// Begins a change to what its table should be, unless it is that already.
    pub(super) fn lead(&mut self, warming: &BTreeMap<String, u8>, index: u64) {
        let target = self.target(warming);
        if *self.latest() != target {
            self.steps.push(Step::Announce(target));
            self.since = index;
        }
    }

    /// Whether a backend is there and drains.
    pub fn drains(&self, backend: &str) -> bool {
        self.configured.0.get(backend) == Some(&0)
    }

    /// Whether it takes many more changes before those of before are settled, and so small ones too.
    pub fn has_room(&self) -> bool {
        self.steps.len() < STEPS_MAX / 2
    }

    /// Whether it takes a change.
    pub fn takes_change(&self) -> bool {
        self.steps.len() < STEPS_MAX
    }

    /// The new backends become current.
    pub(super) fn switch(&mut self, index: u64) -> Result<(), Refusal> {
        self.expect(Phase::Announced)?;
        self.steps.push(Step::Switch);
        self.since = index;
        Ok(())
    }

    /// Unknown flows of quiet rows are the current backend's.
    pub(super) fn agree(&mut self, rows: Rows, index: u64) -> Result<(), Refusal> {
        self.expect(Phase::Switched)?;
        self.steps.push(Step::Agree(rows));
        self.since = index;
        Ok(())
    }

    /// Ends the dispute of the rows that were agreed on.
    pub(super) fn settle(&mut self, index: u64) -> Result<(), Refusal> {
        self.expect(Phase::Agreed)?;
        match self.steps.pop() {
            Some(Step::Agree(Rows::Some(rows))) => match self.steps.last_mut() {
                Some(Step::Settle(Rows::Some(settled))) => settled.extend(&rows),
                _ => self.steps.push(Step::Settle(Rows::Some(rows))),
            },
            _ => {
                let definitions = self.steps.iter().filter_map(Step::definition);
                let size = definitions.fold(self.size as usize, |size, one| transition::size(size, one.size()));
                self.size = size as u32;
                self.base = self.latest().clone();
                self.steps.clear();
            }
        }
        self.since = index;
        Ok(())
    }

    fn expect(&self, phase: Phase) -> Result<(), Refusal> {
        if self.phase() == phase { Ok(()) } else { Err(Refusal::OutOfTurn) }
    }
}
