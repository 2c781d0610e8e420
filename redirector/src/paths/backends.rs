//! Which backends of a pool get no new flows since all of their paths are down, as one node sees it.

use std::collections::BTreeSet;

/// A backend, as far as this depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backend<'a> {
    /// Its name in the pool.
    pub name: &'a str,
    /// Its share; 0 where it gets no new flows anyway.
    pub weight: u32,
    /// Whether none of its paths is used.
    pub is_dead: bool,
}

/// What becomes of a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// These are out, often none.
    Out(BTreeSet<String>),
    /// So little of it would be left that the rest could not bear it, or that the fault is more likely this node's own: all
    /// are used. With the share that is healthy, in per cent.
    Panic(u8),
}

/// Judges a pool. Below `panic` per cent of healthy weight all of it is used.
pub fn judge<'a>(backends: impl IntoIterator<Item = Backend<'a>>, panic: u8) -> Verdict {
    let (mut whole, mut healthy, mut dead) = (0u64, 0u64, BTreeSet::new());
    for Backend { name, weight, is_dead } in backends {
        whole += u64::from(weight);
        if is_dead {
            dead.insert(name.to_owned());
        } else {
            healthy += u64::from(weight);
        }
    }
    let share = (healthy * 100).checked_div(whole).unwrap_or(100);
    let is_too_little = healthy == 0 && whole > 0 || healthy * 100 < whole * u64::from(panic);
    if is_too_little && !dead.is_empty() { Verdict::Panic(share as u8) } else { Verdict::Out(dead) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool<'a>(backends: &[(&'a str, u32, bool)]) -> Vec<Backend<'a>> {
        backends.iter().map(|&(name, weight, is_dead)| Backend { name, weight, is_dead }).collect()
    }

    fn out(names: &[&str]) -> Verdict {
        Verdict::Out(names.iter().map(|name| (*name).to_owned()).collect())
    }

    #[test]
    fn the_dead_are_out_unless_too_little_is_left() {
        for (says, backends, panic, verdict) in [
            ("all live", pool(&[("a", 1, false), ("b", 1, false)]), 50, out(&[])),
            ("one of two is dead", pool(&[("a", 1, true), ("b", 1, false)]), 50, out(&["a"])),
            ("two of three", pool(&[("a", 1, true), ("b", 1, true), ("c", 1, false)]), 50, Verdict::Panic(33)),
            (
                "two of three, and that may be",
                pool(&[("a", 1, true), ("b", 1, true), ("c", 1, false)]),
                0,
                out(&["a", "b"]),
            ),
            ("by weight", pool(&[("a", 9, true), ("b", 1, false)]), 50, Verdict::Panic(10)),
            ("by weight", pool(&[("a", 1, true), ("b", 9, false)]), 50, out(&["a"])),
            ("all are dead", pool(&[("a", 1, true), ("b", 1, true)]), 0, Verdict::Panic(0)),
            ("one that drains is dead", pool(&[("a", 0, true), ("b", 1, false)]), 100, out(&["a"])),
            ("one that drains is all that lives", pool(&[("a", 1, true), ("b", 0, false)]), 0, Verdict::Panic(0)),
            ("nothing", pool(&[]), 50, out(&[])),
        ] {
            assert_eq!(judge(backends, panic), verdict, "{says}");
        }
    }
}
