//! What each command does to a state.

use std::collections::BTreeMap;

use super::command::{Advance, Command, Refusal};
use super::pool::{Definition, Pool};
use super::{Member, Seat, Standing, State, slots};
use crate::ownership::Ranks;

/// Does what a command says, or nothing.
pub(super) fn apply(state: &mut State, index: u64, command: &Command) -> Result<(), Refusal> {
    match command {
        Command::Apply { text, expect, pools } => specify(state, index, text, *expect, pools),
        Command::PlanVips(vips) => plan_vips(state, vips),
        Command::NodeDown { id, incarnation } => down(state, index, *id, *incarnation),
        Command::NodeReturning { id, incarnation } => returning(state, index, *id, *incarnation),
        Command::NodeUp { id, incarnation } => up(state, *id, *incarnation),
        Command::Drain(id) => drain(state, *id),
        Command::Undrain(id) => member(state, *id).map(|member| (member.draining, member.drained) = (false, false)),
        Command::SetWeights(weights) => set_weights(state, weights),
        Command::Move { first, ranks } => move_slots(state, index, *first, ranks),
        Command::Forget { unchanged_since } => {
            slots::forget(state, |slot| slot.version <= *unchanged_since, index);
            Ok(())
        }
        Command::PoolStep { pool, since, advance } => pool_step(state, index, pool, *since, advance),
        Command::SetOut(pools) => {
            for (name, out) in pools {
                if let Some(pool) = state.pools.get_mut(name) {
                    pool.set_out(out, warming(&state.warming, name), index);
                }
            }
            Ok(())
        }
        Command::Warm { pool, steps } => warm(state, index, pool, steps),
        Command::Elapse { pool, version, parts } => elapse(state, pool, *version, parts),
        Command::Panic(pools) => {
            // A pool may have been taken away since this was proposed.
            state.panicking = pools.clone();
            state.panicking.retain(|name, _| state.pools.contains_key(name));
            Ok(())
        }
        Command::Join { id, disk, address, weight, incarnation } => {
            let seat = Some(Seat { disk: *disk, votes: false });
            let (address, weight, incarnation) = (address.clone(), *weight, *incarnation);
            let standing = Standing::Returning;
            join(state, *id, Member { address, weight, seat, standing, draining: false, drained: false, incarnation })
        }
        Command::Promote { id, disk } => {
            let seat = member(state, *id)?.seat.as_mut().filter(|seat| seat.disk == *disk);
            seat.map(|seat| seat.votes = true).ok_or(Refusal::Stale(*id))
        }
        Command::Retire { id, disk } => retire(state, *id, *disk),
        Command::Leave(id) => leave(state, index, *id),
        Command::Relieve(id) => relieve(state, index, *id),
        Command::Witness { id, disk, address } => {
            let seat = Some(Seat { disk: *disk, votes: false });
            let (address, standing) = (address.clone(), Standing::Witness);
            let new = Member { address, weight: 0, seat, standing, draining: false, drained: false, incarnation: 0 };
            join(state, *id, new)
        }
    }
}

fn member(state: &mut State, id: u8) -> Result<&mut Member, Refusal> {
    state.members.get_mut(&id).ok_or(Refusal::Unknown(id))
}

fn specify(
    state: &mut State,
    index: u64,
    text: &str,
    expect: Option<u64>,
    pools: &BTreeMap<String, Definition>,
) -> Result<(), Refusal> {
    let present = state.specification.version;
    if let Some(expected) = expect.filter(|expected| *expected != present) {
        return Err(Refusal::Version { present, expected });
    }
    let full = |(name, pool): &(&String, &Pool)| {
        !pool.takes_change() && pools.get(*name).is_some_and(|definition| *definition != pool.configured)
    };
    if let Some((name, _)) = state.pools.iter().find(full) {
        return Err(Refusal::Unsettled(name.clone()));
    }
    state.pools.retain(|name, _| pools.contains_key(name));
    state.warming.retain(|name, steps| {
        steps.retain(|backend, _| pools.get(name).is_some_and(|pool| pool.0.contains_key(backend)));
        !steps.is_empty()
    });
    state.panicking.retain(|name, _| pools.contains_key(name));
    state.drains.retain(|name, parts| {
        parts.retain(|backend, _| pools.get(name).is_some_and(|pool| pool.0.get(backend) == Some(&0)));
        !parts.is_empty()
    });
    for (name, definition) in pools {
        match state.pools.get_mut(name) {
            Some(pool) => pool.change(definition, warming(&state.warming, name), index),
            None => drop(state.pools.insert(name.clone(), Pool::settled(definition.clone(), index))),
        }
    }
    if state.specification.text != text {
        state.specification.version += 1;
        text.clone_into(&mut state.specification.text);
    }
    Ok(())
}

/// The steps that a pool's backends have got.
fn warming<'a>(all: &'a BTreeMap<String, BTreeMap<String, u8>>, pool: &str) -> &'a BTreeMap<String, u8> {
    static NONE: BTreeMap<String, u8> = BTreeMap::new();
    all.get(pool).unwrap_or(&NONE)
}

fn warm(state: &mut State, index: u64, name: &str, steps: &BTreeMap<String, u8>) -> Result<(), Refusal> {
    let pool = state.pools.get_mut(name).ok_or(Refusal::OutOfTurn)?;
    if !pool.takes_change() {
        return Err(Refusal::Unsettled(name.to_owned()));
    }
    // A backend may have been taken away since this was proposed.
    let there = steps.iter().filter(|(backend, _)| pool.configured.0.contains_key(*backend));
    let steps: BTreeMap<String, u8> = there.map(|(backend, step)| (backend.clone(), *step)).collect();
    pool.lead(&steps, index);
    if steps.is_empty() {
        state.warming.remove(name);
    } else {
        state.warming.insert(name.to_owned(), steps);
    }
    Ok(())
}

fn elapse(state: &mut State, name: &str, version: u64, parts: &BTreeMap<String, u8>) -> Result<(), Refusal> {
    let pool = state.pools.get(name).ok_or(Refusal::OutOfTurn)?;
    // A backend that begins to drain anew has all of its time again.
    if version != state.specification.version || !parts.keys().all(|backend| pool.drains(backend)) {
        return Err(Refusal::OutOfTurn);
    }
    if parts.is_empty() {
        state.drains.remove(name);
    } else {
        state.drains.insert(name.to_owned(), parts.clone());
    }
    Ok(())
}

fn plan_vips(state: &mut State, vips: &BTreeMap<String, Vec<u8>>) -> Result<(), Refusal> {
    match vips.values().flatten().find(|id| !state.is_node(**id)) {
        Some(&id) => Err(Refusal::Unknown(id)),
        None => {
            state.vips.clone_from(vips);
            Ok(())
        }
    }
}

fn down(state: &mut State, index: u64, id: u8, incarnation: u64) -> Result<(), Refusal> {
    let member = member(state, id)?;
    if member.incarnation != incarnation || !member.is_present() {
        return Err(Refusal::Stale(id));
    }
    member.standing = Standing::Down;
    slots::take_out(state, id, index);
    Ok(())
}

fn returning(state: &mut State, index: u64, id: u8, incarnation: u64) -> Result<(), Refusal> {
    let member = member(state, id)?;
    if member.is_witness() {
        return Err(Refusal::Witness(id));
    }
    let has_lost_its_maps = incarnation > member.incarnation;
    let is_back = incarnation == member.incarnation && !member.is_present();
    if !has_lost_its_maps && !is_back {
        return Err(Refusal::Stale(id));
    }
    (member.standing, member.incarnation) = (Standing::Returning, incarnation);
    slots::take_out(state, id, index);
    Ok(())
}

fn up(state: &mut State, id: u8, incarnation: u64) -> Result<(), Refusal> {
    let member = member(state, id)?;
    if member.incarnation != incarnation || member.standing != Standing::Returning {
        return Err(Refusal::Stale(id));
    }
    member.standing = Standing::Up;
    Ok(())
}

fn drain(state: &mut State, id: u8) -> Result<(), Refusal> {
    if member(state, id)?.is_witness() {
        return Err(Refusal::Witness(id));
    }
    if !state.members.iter().any(|(&other, member)| other != id && member.due() > 0) {
        return Err(Refusal::LastOwner(id));
    }
    member(state, id).map(|member| member.draining = true)
}

fn relieve(state: &mut State, index: u64, id: u8) -> Result<(), Refusal> {
    if !member(state, id)?.draining || !state.owns_nothing(id) {
        return Err(Refusal::Stale(id));
    }
    slots::forget(state, |slot| slot.previous == id, index);
    member(state, id).map(|member| member.drained = true)
}

fn set_weights(state: &mut State, weights: &BTreeMap<u8, u32>) -> Result<(), Refusal> {
    if let Some(&id) = weights.keys().find(|id| !state.members.contains_key(id)) {
        return Err(Refusal::Unknown(id));
    }
    for (id, &weight) in weights {
        member(state, *id)?.weight = weight;
    }
    Ok(())
}

fn move_slots(state: &mut State, index: u64, first: u32, ranks: &[Ranks]) -> Result<(), Refusal> {
    let present = slots::present(state);
    let present = |id: u8| id == 0 || present[usize::from(id)];
    let fits = (first as usize).checked_add(ranks.len()).is_some_and(|end| end <= state.slots.len());
    if !fits || !ranks.iter().all(|&ranks| slots::are_ranks(ranks) && ranks.into_iter().all(present)) {
        return Err(Refusal::Ranks { first });
    }
    slots::rank(state, first as usize, ranks, index);
    Ok(())
}

fn pool_step(state: &mut State, index: u64, name: &str, since: u64, advance: &Advance) -> Result<(), Refusal> {
    let pool = state.pools.get_mut(name).filter(|pool| pool.since == since).ok_or(Refusal::OutOfTurn)?;
    match advance {
        Advance::Switch => pool.switch(index),
        Advance::Agree(rows) => pool.agree(rows.clone(), index),
        Advance::Settle => pool.settle(index),
    }
}

fn join(state: &mut State, id: u8, new: Member) -> Result<(), Refusal> {
    if id == 0 || id == u8::MAX {
        return Err(Refusal::Unknown(id));
    }
    match state.members.get_mut(&id) {
        Some(member) if member.seat.is_some() => return Err(Refusal::Seated(id)),
        Some(member) if member.is_witness() != new.is_witness() => return Err(Refusal::OtherKind(id)),
        Some(member) => (member.address, member.seat) = (new.address, new.seat),
        None => drop(state.members.insert(id, new)),
    }
    Ok(())
}

/// Whether others would be left to vote without a node.
fn others_vote(state: &State, id: u8) -> bool {
    let votes = |member: &Member| member.seat.is_some_and(|seat| seat.votes);
    state.members.iter().any(|(&other, member)| other != id && votes(member))
}

fn retire(state: &mut State, id: u8, disk: u128) -> Result<(), Refusal> {
    let member = member(state, id)?;
    if member.seat.is_none_or(|seat| seat.disk != disk) {
        return Err(Refusal::Stale(id));
    }
    if !others_vote(state, id) {
        return Err(Refusal::LastVoter(id));
    }
    self::member(state, id)?.seat = None;
    Ok(())
}

fn leave(state: &mut State, index: u64, id: u8) -> Result<(), Refusal> {
    member(state, id)?;
    if !others_vote(state, id) {
        return Err(Refusal::LastVoter(id));
    }
    state.members.remove(&id);
    slots::take_out(state, id, index);
    state.vips.values_mut().for_each(|holders| holders.retain(|&holder| holder != id));
    Ok(())
}
