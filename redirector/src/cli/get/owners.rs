//! Owners: how many slots each node has at each rank, or slot by slot.

use anyhow::Result;
use redirector_ebpf::abi::RANKS;
use redirector_ebpf::tables::Slot as Line;
use serde::Serialize;

use super::View;
use crate::cli::output::{Names, Output, Row, cell};
use crate::cli::target::Target;

#[derive(Debug, clap::Args)]
pub(super) struct Owners {
    /// List each slot.
    #[arg(long)]
    slots: bool,
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    output: Output,
}

#[derive(Serialize)]
struct Owner {
    node: String,
    primary: usize,
    secondary: usize,
    third: usize,
    fourth: usize,
    /// Slots that it owned before their last change.
    previous: usize,
}

impl Row for Owner {
    fn header() -> &'static [&'static str] {
        &["NODE", "PRIMARY", "SECONDARY", "THIRD", "FOURTH", "PREVIOUS"]
    }

    fn cells(&self) -> Vec<String> {
        let counts = [self.primary, self.secondary, self.third, self.fourth, self.previous];
        [self.node.clone()].into_iter().chain(counts.map(|count| count.to_string())).collect()
    }
}

#[derive(Serialize)]
struct Slot {
    slot: usize,
    ranks: Vec<String>,
    previous: Option<String>,
    version: u64,
}

impl Row for Slot {
    fn header() -> &'static [&'static str] {
        &["SLOT", "PRIMARY", "SECONDARY", "THIRD", "FOURTH", "PREVIOUS", "VERSION"]
    }

    fn cells(&self) -> Vec<String> {
        let mut cells = vec![self.slot.to_string()];
        cells.extend((0..RANKS).map(|rank| cell(self.ranks.get(rank))));
        cells.extend([cell(self.previous.as_ref()), self.version.to_string()]);
        cells
    }
}

impl Owners {
    pub(super) fn run(self) -> Result<()> {
        let view = View::open(&self.target)?;
        let slots = view.maps.slots()?;
        if self.slots {
            return self.output.list(slots.iter().enumerate().map(|(slot, line)| one(&view.names, slot, line)));
        }
        self.output.list(owners(&view.names, &slots))
    }
}

fn one(names: &Names, slot: usize, line: &Line) -> Slot {
    Slot {
        slot,
        ranks: line.ranks.iter().filter_map(|node| names.node_if(*node)).collect(),
        previous: names.node_if(line.previous),
        version: line.version,
    }
}

fn owners(names: &Names, slots: &[Line]) -> Vec<Owner> {
    let count = |of: &dyn Fn(&Line) -> bool| slots.iter().filter(|slot| of(slot)).count();
    let is_named = |node: &u8| slots.iter().any(|slot| slot.ranks.contains(node) || slot.previous == *node);
    let owner = |node: u8| {
        let [primary, secondary, third, fourth] = std::array::from_fn(|rank| count(&|slot| slot.ranks[rank] == node));
        Owner {
            node: names.node(node),
            primary,
            secondary,
            third,
            fourth,
            previous: count(&|slot| slot.previous == node),
        }
    };
    (1..=254).filter(is_named).map(owner).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::registry::Registry;

    #[test]
    fn slots_are_counted_by_rank() {
        let names = Names::new(Registry::default());
        let slot = |ranks, previous| Line { ranks, previous, version: 1, ..Line::default() };
        let slots = [slot([1, 2, 0, 0], 0), slot([2, 1, 3, 0], 3), slot([1, 3, 2, 0], 0)];
        let rows: Vec<_> = owners(&names, &slots).iter().map(Row::cells).collect();
        assert_eq!(
            rows,
            [["n1", "2", "1", "0", "0", "0"], ["n2", "1", "1", "1", "0", "0"], ["n3", "0", "1", "1", "0", "1"]]
        );
        assert_eq!(one(&names, 1, &slots[1]).cells(), ["1", "n2", "n1", "n3", "-", "n3", "1"]);
    }
}
