//! Which number each leg has.

use std::collections::HashMap;

use redirector_ebpf::tables::leg::LEGS;

use crate::dataplane::image::Leg;

/// There are more legs than numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("paths lead over more than {LEGS} different next hops and tunnels")]
pub struct TooMany;

/// Numbers for legs that are used: those that have one keep it. Says besides which numbers have become another leg's.
///
/// # Errors
/// [`TooMany`].
pub fn numbers<'a>(
    known: &HashMap<Leg, u16>,
    used: impl Iterator<Item = &'a Leg> + Clone,
) -> Result<(HashMap<Leg, u16>, Vec<u16>), TooMany> {
    let mut legs: HashMap<Leg, u16> = HashMap::new();
    let mut taken = vec![false; LEGS];
    for (leg, number) in used.clone().filter_map(|leg| Some((leg, known.get(leg)?))) {
        taken[usize::from(*number)] = true;
        legs.insert(leg.clone(), *number);
    }
    let mut free = (0..LEGS).filter(|number| !taken[*number]);
    let mut new = Vec::new();
    for leg in used {
        if !legs.contains_key(leg) {
            let number = free.next().ok_or(TooMany)? as u16;
            new.push(number);
            legs.insert(leg.clone(), number);
        }
    }
    Ok((legs, new))
}
