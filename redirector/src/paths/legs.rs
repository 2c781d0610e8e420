//! Which number each leg has, and how soon what is sent over it must be answered.

use std::collections::HashMap;

use redirector_ebpf::tables::leg::LEGS;

use crate::config::Beats;
use crate::dataplane::image::{Leg, Watched};

/// The numbers of legs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Numbers {
    /// Each leg's.
    pub of: HashMap<Leg, u16>,
    /// Those that have become another leg's.
    pub new: Vec<u16>,
    /// Legs that have none, since there are no more of them.
    pub without: usize,
}

/// Numbers for legs that are used, in this order: those that have one keep it.
///
/// Until the sender takes its next plan, answers to what it asked over a leg that goes may still come: its number becomes
/// another leg's at once only where no other is left.
pub fn numbers<'a>(known: &HashMap<Leg, u16>, used: impl Iterator<Item = &'a Leg> + Clone) -> Numbers {
    let mut numbers = Numbers::default();
    let (mut taken, mut before) = (vec![false; LEGS], vec![false; LEGS]);
    known.values().for_each(|number| before[usize::from(*number)] = true);
    for (leg, number) in used.clone().filter_map(|leg| Some((leg, known.get(leg)?))) {
        taken[usize::from(*number)] = true;
        numbers.of.insert(leg.clone(), *number);
    }
    let free = |was: bool| (0..LEGS).filter(|number| before[*number] == was && !taken[*number]).collect::<Vec<_>>();
    let mut free = free(false).into_iter().chain(free(true));
    let mut without: Vec<&Leg> = Vec::new();
    for leg in used {
        if numbers.of.contains_key(leg) || without.last() == Some(&leg) {
            continue;
        }
        match free.next() {
            Some(number) => {
                numbers.new.push(number as u16);
                numbers.of.insert(leg.clone(), number as u16);
            }
            None => without.push(leg),
        }
    }
    without.sort_unstable_by_key(|leg| format!("{leg:?}"));
    without.dedup();
    numbers.without = without.len();
    numbers
}

/// How often each leg is asked, and how many answers may be missing. Of pools that share one the most impatient decides
/// both: the one that is the first to take it for dead.
pub fn paces<'a>(watched: impl Iterator<Item = &'a Watched>) -> HashMap<&'a Leg, Beats> {
    let mut paces: HashMap<&Leg, Beats> = HashMap::new();
    for (leg, beats) in watched.filter_map(|watched| Some((watched.leg.as_ref()?, watched.beats))) {
        let pace = paces.entry(leg).or_insert(beats);
        if (beats.timeout(), beats.interval) < (pace.timeout(), pace.interval) {
            *pace = beats;
        }
    }
    paces
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};
    use std::time::Duration;

    use redirector_ebpf::tables::Path;

    use super::*;
    use crate::config::Passive;

    fn leg(number: u32) -> Leg {
        let target = IpAddr::from(Ipv4Addr::from_bits(0x0a00_0000 | number));
        Leg { path: Path::default(), source: Ipv4Addr::LOCALHOST.into(), target }
    }

    fn legs(numbers: std::ops::Range<u32>) -> Vec<Leg> {
        numbers.map(leg).collect()
    }

    #[test]
    fn a_leg_keeps_its_number_and_one_that_is_freed_is_nobodys_in_the_same_change() {
        let first = numbers(&HashMap::new(), legs(0..3).iter());
        assert_eq!((first.of.len(), &first.new[..], first.without), (3, &[0, 1, 2][..], 0));
        let used = legs(1..5);
        let second = numbers(&first.of, used.iter().chain(&used));
        assert!((1..3).all(|kept| second.of[&leg(kept)] == first.of[&leg(kept)]));
        let freed = first.of[&leg(0)];
        assert!((3..5).all(|new| second.of[&leg(new)] != freed && second.new.contains(&second.of[&leg(new)])));
        let third = numbers(&second.of, legs(1..6).iter());
        assert_eq!((third.of[&leg(5)], &third.new[..]), (freed, &[freed][..]), "in the next it is free");
    }

    #[test]
    fn more_legs_than_numbers_are_left_without_and_none_loses_its_own() {
        const ALL: u32 = LEGS as u32;
        let first = numbers(&HashMap::new(), legs(0..ALL).iter());
        assert_eq!((first.of.len(), first.without), (LEGS, 0));
        let more = numbers(&first.of, legs(0..ALL + 7).iter());
        assert_eq!((more.of, more.new, more.without), (first.of.clone(), Vec::new(), 7));
        let others = numbers(&first.of, legs(ALL..2 * ALL).iter());
        assert_eq!((others.of.len(), others.new.len(), others.without), (LEGS, LEGS, 0), "where no other is left");
    }

    #[test]
    fn of_pools_that_share_a_leg_the_most_impatient_decides_both() {
        let beats = |ms, multiplier| Beats { interval: Duration::from_millis(ms), multiplier };
        let watched = |beats| Watched {
            leg: Some(leg(1)),
            beats,
            rise: 3,
            hold_down: Duration::ZERO,
            probe: None,
            passive: Passive::Off,
            session: None,
        };
        for (one, other, right) in [
            (beats(10, 3), beats(100, 2), beats(10, 3)),
            (beats(10, 50), beats(100, 3), beats(100, 3)),
            (beats(10, 6), beats(20, 3), beats(10, 6)),
        ] {
            for order in [[one, other], [other, one]] {
                let pools = order.map(watched);
                assert_eq!(paces(pools.iter())[&leg(1)], right, "{order:?}");
            }
        }
    }
}
