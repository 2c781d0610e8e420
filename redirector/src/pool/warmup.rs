//! Backends that come back from death and get their weight in steps, where a node decides alone. Nodes that agree do so on
//! the steps too.
//!
//! One that is out has the first step from then on, so that it comes back with that, and each further one after an equal
//! part of the pool's time. One that is dead and used all the same, in a panic, gets no more before it is back. What has not
//! been out has all of its weight, whether it is new or the agent is.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::Member;
use crate::consensus::state::WARMTH;

/// By pool and backend, how many of [`WARMTH`] steps it has, and since when.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Warmup {
    steps: BTreeMap<String, BTreeMap<String, (u8, Duration)>>,
}

impl Warmup {
    /// Looks how a pool stands: which of its backends are out, which there are and whether they are dead, and how long one
    /// takes to start, if it does so slowly. Times are durations since any moment that stays the same.
    pub fn observe<'a>(
        &mut self,
        pool: &str,
        out: &BTreeSet<String>,
        has: impl Iterator<Item = (&'a str, bool)>,
        whole: Duration,
        now: Duration,
    ) {
        if whole.is_zero() {
            self.steps.remove(pool);
            return;
        }
        let mut before = self.steps.remove(pool).unwrap_or_default();
        let mut after = BTreeMap::new();
        for (backend, is_dead) in has {
            let (mut step, mut since) = match before.remove(backend) {
                _ if out.contains(backend) => (1, now),
                Some((step, _)) if is_dead => (step, now),
                Some(got) => got,
                None => continue,
            };
            let part = whole / u32::from(WARMTH);
            // An agent that was held up gives a step as late, and none twice as fast.
            if now.saturating_sub(since) >= part {
                (step, since) = (step + 1, now);
            }
            if step < WARMTH {
                after.insert(backend.to_owned(), (step, since));
            }
        }
        if !after.is_empty() {
            self.steps.insert(pool.to_owned(), after);
        }
    }

    /// Forgets all pools but these.
    pub fn keep(&mut self, is_there: impl Fn(&str) -> bool) {
        self.steps.retain(|pool, _| is_there(pool));
    }

    /// The steps that backends have got, by pool; those that are not here have all of their weight.
    pub fn steps(&self) -> BTreeMap<String, BTreeMap<String, u8>> {
        let of_pool =
            |steps: &BTreeMap<String, (u8, Duration)>| steps.iter().map(|(name, got)| (name.clone(), got.0)).collect();
        self.steps.iter().map(|(pool, steps)| (pool.clone(), of_pool(steps))).collect()
    }
}

/// Has members count by the steps that they have got; those without have all of their weight. Weights count against each
/// other alone, so that where one has some of the steps, all others have [`WARMTH`] of them.
pub fn weigh(members: &mut [Member], steps: impl Fn(&Member) -> Option<u8>) {
    if members.iter().all(|member| steps(member).is_none()) {
        return;
    }
    for member in members {
        let step = steps(member).unwrap_or(WARMTH).clamp(1, WARMTH);
        member.weight = member.weight.saturating_mul(step.into());
    }
}

#[cfg(test)]
mod tests {
    use super::super::{build, rows, stable_hash};
    use super::*;

    const T0: Duration = Duration::from_secs(100);
    const WHOLE: Duration = Duration::from_secs(8);
    const NAMES: [&str; 3] = ["one", "two", "three"];

    fn out(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    /// All backends, and whether they are dead.
    fn all<'a>(dead: &'a [&str]) -> impl Iterator<Item = (&'static str, bool)> + 'a {
        NAMES.into_iter().map(|name| (name, dead.contains(&name)))
    }

    fn step(warmup: &Warmup, name: &str) -> Option<u8> {
        warmup.steps().get("web").and_then(|steps| steps.get(name)).copied()
    }

    #[test]
    fn who_was_out_gets_a_step_after_each_part_of_the_time() {
        let mut warmup = Warmup::default();
        let mut look = |gone: &[&str], ms: u64| {
            warmup.observe("web", &out(gone), all(&[]), WHOLE, T0 + Duration::from_millis(ms));
            NAMES.map(|name| step(&warmup, name))
        };
        assert_eq!(look(&[], 0), [None; 3], "what was never out has all");
        for at in [100, 900, 5_000] {
            assert_eq!(look(&["two"], at), [None, Some(1), None], "one that is out waits with the first");
        }
        let mut seen = Vec::new();
        for at in (5_020..14_000).step_by(20) {
            let step = look(&[], at)[1];
            if seen.last() != Some(&(step, at)) && seen.last().is_none_or(|(last, _)| *last != step) {
                seen.push((step, at));
            }
        }
        let steps: Vec<_> = seen.iter().map(|(step, _)| step.unwrap_or(WARMTH)).collect();
        assert_eq!(steps, (1..=WARMTH).collect::<Vec<_>>());
        assert!(seen[1..].windows(2).all(|pair| pair[1].1 - pair[0].1 == 1_000), "evenly: {seen:?}");
        assert_eq!(seen.last(), Some(&(None, 12_000)));
    }

    #[test]
    fn who_dies_again_begins_again_and_who_is_held_up_hurries_not() {
        let mut warmup = Warmup::default();
        let mut look = |gone: &[&str], s: u64| {
            warmup.observe("web", &out(gone), all(&[]), WHOLE, T0 + Duration::from_secs(s));
            NAMES.map(|name| step(&warmup, name))
        };
        look(&["one", "two"], 0);
        assert_eq!(look(&["two"], 1), [Some(2), Some(1), None]);
        assert_eq!(look(&["one"], 2), [Some(1), Some(2), None]);
        assert_eq!(look(&[], 60), [Some(2), Some(3), None], "a minute in which nobody looked is one part");
        warmup.observe("web", &out(&[]), [("two", false)].into_iter(), WHOLE, T0 + Duration::from_secs(60));
        assert_eq!(warmup.steps()["web"], [("two".to_owned(), 3)].into(), "one that is taken away is forgotten");
        warmup.observe("web", &out(&["two"]), all(&[]), Duration::ZERO, T0 + Duration::from_secs(61));
        assert!(warmup.steps().is_empty(), "a pool without a slow start has none");
        warmup.observe("web", &out(&["two"]), all(&[]), WHOLE, T0 + Duration::from_secs(62));
        warmup.keep(|pool| pool != "web");
        assert!(warmup.steps().is_empty(), "a pool that is gone is forgotten");
    }

    #[test]
    fn who_is_dead_in_a_panic_waits_for_its_next_step() {
        let mut warmup = Warmup::default();
        let at = |s: u64| T0 + Duration::from_secs(s);
        warmup.observe("web", &out(&["one"]), all(&["one"]), WHOLE, at(0));
        warmup.observe("web", &out(&[]), all(&[]), WHOLE, at(1));
        assert_eq!(step(&warmup, "one"), Some(2));
        for second in 2..20 {
            warmup.observe("web", &out(&[]), all(&["one", "two"]), WHOLE, at(second));
            assert_eq!((step(&warmup, "one"), step(&warmup, "two")), (Some(2), None), "what was never out has all");
        }
        warmup.observe("web", &out(&[]), all(&[]), WHOLE, at(20));
        assert_eq!(step(&warmup, "one"), Some(3));
    }

    #[test]
    fn rows_move_to_who_starts_alone_and_as_many_as_its_steps_say() {
        let members = NAMES.map(|name| Member {
            hash: stable_hash(name),
            weight: 5,
            id: name.len() as u16 * 10 + u16::from(name.as_bytes()[0]),
        });
        let size = rows(members.len());
        let table = |step: Option<u8>| {
            let mut members = members;
            weigh(&mut members, |member| step.filter(|_| member.hash == stable_hash("two")));
            build(&members, size)
        };
        let two = members[1].id;
        let share = |table: &[u16]| table.iter().filter(|id| **id == two).count() as f64 / size as f64;
        let mut before = build(&[members[0], members[2]], size);
        for step in (1..WARMTH).map(Some).chain([None]) {
            let after = table(step);
            let due = f64::from(step.unwrap_or(WARMTH)) / (f64::from(step.unwrap_or(WARMTH)) + 2.0 * f64::from(WARMTH));
            assert!((share(&after) - due).abs() < 0.01, "{step:?}: {} is due {due}", share(&after));
            let others = before.iter().zip(&after).filter(|(old, new)| old != new && **new != two).count();
            assert!(others * 20 < size, "{step:?}: {others} rows of {size} went from one of the others to the other");
            before = after;
        }
        assert_eq!(before, build(&members, size), "with all of its weight nothing is left of it");
    }
}
