//! What a configuration means to the cluster: in the terms in which nodes agree.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use crate::config::{BackendState, Config, Pool, PoolHealth, Timeouts};
use crate::consensus::driver::Genesis;
use crate::consensus::machine;
use crate::consensus::planner::{Patience, Times};
use crate::consensus::state::{Command, Definition, Member, Seat, Standing, State};
use crate::ownership::Ranks;
use crate::vip;

/// Entries of the log after which a snapshot takes their place.
const SNAPSHOT_EVERY: u64 = 1000;

/// The pools of a configuration, as they are agreed on.
fn definitions(config: &Config) -> BTreeMap<String, Definition> {
    let definition = |pool: &Pool| {
        let weight = |state| move |weight| if state == BackendState::Active { weight } else { 0 };
        Definition(pool.backends.iter().map(|one| (one.name.clone(), weight(one.state)(one.weight))).collect())
    };
    config.pools.iter().map(|pool| (pool.name.clone(), definition(pool))).collect()
}

/// The shares of the slots that a configuration gives to nodes.
fn weights(config: &Config) -> BTreeMap<u8, u32> {
    config.members.iter().map(|member| (member.id, if member.alive { member.weight } else { 0 })).collect()
}

fn weight(config: &Config) -> u32 {
    weights(config).get(&config.node.id).copied().unwrap_or(1)
}

fn address(config: &Config) -> String {
    let own = config.voters().find(|(id, _)| *id == config.node.id);
    own.map(|(_, own)| SocketAddr::new(own, config.cluster.port).to_string()).unwrap_or_default()
}

/// Who may be a member besides this node.
pub fn others(config: &Config) -> BTreeSet<u8> {
    config.voters().map(|(id, _)| id).filter(|id| *id != config.node.id).collect()
}

/// Who should hold each VIP, and who after it.
pub fn vips(config: &Config) -> BTreeMap<String, Vec<u8>> {
    vip::plan::of(config).into_iter().map(|(vip, ranks)| (vip.to_string(), ranks)).collect()
}

/// How long backends of pools take to start, and to drain, and flows to be over of which a single packet came; and how much of
/// a pool must be healthy.
pub fn times(config: &Config) -> Times {
    let of = |time: fn(&PoolHealth) -> Option<Duration>| -> BTreeMap<String, u64> {
        let timed = |pool: &Pool| Some((pool.name.clone(), time(&pool.health)?.as_millis() as u64));
        config.pools.iter().filter_map(timed).collect()
    };
    let Timeouts { tcp_new, udp_new, other, .. } = config.timeouts;
    Times {
        new_flows: tcp_new.max(udp_new).max(other).as_millis() as u64,
        panics: config.pools.iter().map(|pool| (pool.name.clone(), pool.health.panic)).collect(),
        slow_starts: of(|health| Some(health.slow_start).filter(|time| !time.is_zero())),
        drains: of(|health| health.drain.map(|deadline| deadline.after)),
    }
}

/// Who a node is, in this incarnation. The seed is another one with every start.
pub fn machine(config: &Config, incarnation: u64, seed: u128) -> machine::Config {
    machine::Config {
        cluster: config.cluster.id,
        node: config.node.id,
        peers: others(config).into_iter().collect(),
        address: address(config),
        weight: weight(config),
        witness: config.is_witness(),
        incarnation,
        seed,
        snapshot_every: SNAPSHOT_EVERY,
    }
}

/// How patient a node is when it leads.
pub fn patience(config: &Config) -> Patience {
    Patience {
        down: config.cluster.down_after.as_millis() as u64,
        silent: config.cluster.silent_after.as_millis() as u64,
        ..Patience::default()
    }
}

/// A change to this configuration, of this text.
pub fn apply(config: &Config, text: &str, expect: Option<u64>) -> Command {
    Command::Apply { text: text.to_owned(), expect, pools: definitions(config) }
}

/// The first state of a cluster that begins with what is in force on a node: a configuration, its version, and how many
/// rows pools have.
pub fn genesis(config: &Config, text: &str, version: u64, sizes: BTreeMap<String, u32>, incarnation: u64) -> Genesis {
    let (address, weight, text) = (address(config), weight(config), text.to_owned());
    let (me, slots, pools) = (config.node.id, config.cluster.slots, definitions(config));
    Box::new(move |disk| {
        let seat = Some(Seat { disk, votes: true });
        let member =
            Member { address, weight, seat, standing: Standing::Up, draining: false, drained: false, incarnation };
        let mut state = State::genesis(me, member, slots, text, pools);
        state.specification.version = version;
        // A table of another size would send the flows of today elsewhere.
        for (name, pool) in &mut state.pools {
            pool.size = pool.size.max(sizes.get(name).copied().unwrap_or(0));
        }
        state
    })
}

/// The same, where nodes have served together already, by a table that follows from their configuration: those that live
/// are members from the beginning, by id and incarnation, and the slots stay with them. They get their seats as they join.
pub fn genesis_of(
    first: Genesis,
    config: &Config,
    peers: &[(u8, u64)],
    slots: &[redirector_ebpf::tables::Slot],
) -> Genesis {
    let weights = weights(config);
    let member = |&(id, incarnation): &(u8, u64)| {
        let (_, address) = config.voters().find(|(voter, _)| *voter == id)?;
        let address = SocketAddr::new(address, config.cluster.port).to_string();
        let (weight, standing) = (weights.get(&id).copied()?, Standing::Up);
        Some((id, Member { address, weight, seat: None, standing, draining: false, drained: false, incarnation }))
    };
    let members: Vec<(u8, Member)> = peers.iter().filter_map(member).collect();
    let ranks: Vec<Ranks> = slots.iter().map(|slot| slot.ranks).collect();
    Box::new(move |disk| {
        let mut state = first(disk);
        state.members.extend(members);
        if ranks.len() == state.slots.len() {
            let State { members, slots, .. } = &mut state;
            for (slot, ranks) in slots.iter_mut().zip(ranks) {
                let present = ranks.into_iter().filter(|id| members.contains_key(id));
                let mut kept = Ranks::default();
                kept.iter_mut().zip(present).for_each(|(rank, id)| *rank = id);
                if kept[0] != 0 {
                    slot.ranks = kept;
                }
            }
        }
        state
    })
}

/// What a leader asks for where members have other shares of the slots than a configuration gives them.
pub fn shares(config: &Config, state: &State) -> Option<Command> {
    let is_other =
        |(id, weight): &(u8, u32)| state.is_node(*id) && state.members.get(id).is_some_and(|one| one.weight != *weight);
    let other: BTreeMap<u8, u32> = weights(config).into_iter().filter(is_other).collect();
    (!other.is_empty()).then_some(Command::SetWeights(other))
}
