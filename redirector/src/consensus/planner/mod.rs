//! What a leader proposes of itself, from the state and from what all nodes report.
//!
//! | seen | proposed |
//! |---|---|
//! | a majority of the others has suspected a node for a while | it is down; of two that suspect each other, the worse one |
//! | a node that is down is heard again and nobody suspects it; or its maps are new | it is returning |
//! | a returning node has the flows of all slots that it is ranked in | it is up |
//! | a majority of the others has found a node's agent silent for a while | it should own nothing |
//! | slots are not ranked as they should be | first more ranks, then, once the flows are there, the right order |
//! | a slot's previous owner has been asked for long enough | it is forgotten |
//! | a draining node owns nothing, holds nothing and has been asked for long enough | it is drained |
//! | most nodes have found a backend dead for a while, or no more | it gets no new flows, or gets some again |
//! | too little of a pool would be left so, or is no more | all of it is used, or no more |
//! | a backend of a pool with a slow start is out, or has had a part of its weight for long enough | the first part, the next |
//! | another part of the time has gone that a backend has to drain | that it has |
//! | every node has installed a step of a pool's change | the next step |
//! | VIPs are not planned as the leader's configuration has it, and all planned nodes are members | the plan |
//! | a disk without a seat belongs to a member | the old seat is taken away, a learner's is given, then the vote |
//!
//! Witnesses have no view of who lives, and nobody has one of them: they are not among "the others" anywhere here. Their
//! part is that a majority of the voters is left when one of two nodes dies, so that what the other one sees can be agreed
//! on; and that of two nodes which are cut off from each other only one can be called down.
//!
//! One step of each kind is under way at a time. A planner knows no clock: it is told the time, in milliseconds of any
//! clock that never goes back. Nothing in it outlives a leader: the next one sees the same and comes to the same.

mod backends;
mod pools;
mod slots;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::frame::{self, FrameError, Kind};
use super::machine::{Role, Status, Stranger};
use super::state::{Command, Member, RowSet, Standing, State};
use crate::health::FULL_SHARE;

/// What a node tells the leader, now and then and whenever it changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Its incarnation.
    pub incarnation: u64,
    /// The nodes that it suspects.
    pub suspects: BTreeSet<u8>,
    /// The nodes whose data plane answers while their agent has been silent for too long.
    pub silent: BTreeSet<u8>,
    /// The nodes that say that they want to be relieved of what they serve.
    pub ailing: BTreeSet<u8>,
    /// The share of its work that it takes for its health, in quarters.
    pub share: u8,
    /// The version of the state that its data plane goes by.
    pub installed: u64,
    /// The flows are here of all slots that rank it and have not changed since this version.
    pub resynced: u64,
    /// By pool, rows that have flows off their current backend. A pool that is not named has not been looked at since
    /// the version that is installed.
    pub restless: BTreeMap<String, RowSet>,
    /// By pool, the backends that no path leads to in its eyes.
    pub dead: BTreeMap<String, BTreeSet<String>>,
    /// Whether it drains, and holds no VIP and announces none any more.
    pub has_withdrawn: bool,
}

impl Default for Report {
    fn default() -> Self {
        Self {
            incarnation: 0,
            suspects: BTreeSet::new(),
            silent: BTreeSet::new(),
            ailing: BTreeSet::new(),
            share: FULL_SHARE,
            installed: 0,
            resynced: 0,
            restless: BTreeMap::new(),
            dead: BTreeMap::new(),
            has_withdrawn: false,
        }
    }
}

impl Report {
    /// Its form on the wire.
    pub fn seal(&self, cluster: u32) -> Vec<u8> {
        frame::seal(Kind::Report, cluster.into(), self)
    }

    /// Reads the wire's form.
    ///
    /// # Errors
    /// [`FrameError`].
    pub fn open(cluster: u32, bytes: &[u8]) -> Result<Self, FrameError> {
        frame::open(Kind::Report, cluster.into(), bytes)
    }
}

/// How patient a planner is, in milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// A node is down after it was suspected for so long.
    pub down: u64,
    /// A node whose agent most others have found silent for so long should own nothing.
    pub silent: u64,
    /// A node returns after nobody has suspected it for so long.
    pub back: u64,
    /// A backend is out after most nodes have found it dead for so long.
    pub backend: u64,
    /// A report that is older says nothing.
    pub report: u64,
    /// Previous owners are asked for so long at least, since what they told of last may be on its way.
    pub forwarding: u64,
    /// A node that drains is asked for so long after it has given its last slot away. Whoever got its slots has its flows,
    /// but for those that were not proven by then.
    pub draining: u64,
    /// Rows of one pool are settled bit by bit this far apart, while some have old flows.
    pub settling: u64,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            down: 10_000,
            silent: 30_000,
            back: 2_000,
            backend: 100,
            report: 1_000,
            forwarding: 10_000,
            draining: 3_000,
            settling: 30_000,
        }
    }
}

/// Which steps must not be under way together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Concern {
    /// Whether nodes serve.
    Standing,
    /// Who owns slots.
    Slots,
    /// Whose previous owners are asked.
    Forwarding,
    /// Who is drained.
    Draining,
    /// Who holds VIPs.
    Vips,
    /// Which backends are out.
    Backends,
    /// How much of their weight those that come back have got.
    Warmth,
    /// How much of their time those that drain have left.
    Deadlines,
    /// How pools change.
    Pools,
    /// Who has a seat.
    Seats,
}

impl Concern {
    /// All, in the order in which they are looked at.
    const ALL: [Self; 10] = [
        Self::Standing,
        Self::Slots,
        Self::Forwarding,
        Self::Draining,
        Self::Vips,
        Self::Backends,
        Self::Warmth,
        Self::Deadlines,
        Self::Pools,
        Self::Seats,
    ];
}

/// What a planner sees of the machine.
pub struct View<'a> {
    /// The state.
    pub state: &'a State,
    /// The machine.
    pub status: &'a Status,
    /// Disks without a seat.
    pub strangers: BTreeMap<u8, &'a Stranger>,
    /// Nodes that may become members: those that the configuration names.
    pub welcome: &'a BTreeSet<u8>,
    /// Who should hold each VIP, and who after it, by the configuration.
    pub vips: &'a BTreeMap<String, Vec<u8>>,
    /// How long what the configuration gives time takes.
    pub times: &'a Times,
}

/// What a configuration says of times, in milliseconds; of pools, by pool, with the share that decides whether it is time for a
/// panic.
#[derive(Clone, Debug, Default)]
pub struct Times {
    /// How long a flow may be idle of which a single packet was seen. Nobody is told of such ones, so that a previous owner
    /// is asked until the last of its own is over; all others are where a slot goes before it goes there.
    pub new_flows: u64,
    /// How much of a pool must be healthy, in per cent: where less is, all of it is used. Where nothing is said, any will do.
    pub panics: BTreeMap<String, u8>,
    /// How long backends that come back take to get all of their weight. Other pools' get it at once.
    pub slow_starts: BTreeMap<String, u64>,
    /// How long backends that drain keep their flows at most. Other pools' keep them until they end.
    pub drains: BTreeMap<String, u64>,
}

/// Entries that a learner may lack when it gets its vote.
const LEARNT: u64 = 16;

/// A leader's plans.
pub struct Planner {
    patience: Patience,
    reports: BTreeMap<u8, (u64, Report)>,
    suspected_since: BTreeMap<u8, u64>,
    well_since: BTreeMap<u8, u64>,
    silent_since: BTreeMap<u8, u64>,
    idle_since: BTreeMap<u8, u64>,
    incomplete_since: Option<u64>,
    under_way: BTreeSet<Concern>,
    target: slots::Target,
    forwarding: slots::Forwarding,
    settled_at: BTreeMap<String, u64>,
    /// By pool and backend.
    dead_since: BTreeMap<(String, String), u64>,
    alive_since: BTreeMap<(String, String), u64>,
    /// By pool and backend: the step that it has got of its weight, and since when.
    warm_since: BTreeMap<(String, String), (u8, u64)>,
    /// The same of the time that it has to drain.
    drained_since: BTreeMap<(String, String), (u8, u64)>,
}

impl Planner {
    /// A planner that has heard nothing yet.
    pub fn new(patience: Patience) -> Self {
        Self {
            patience,
            reports: BTreeMap::new(),
            suspected_since: BTreeMap::new(),
            well_since: BTreeMap::new(),
            silent_since: BTreeMap::new(),
            idle_since: BTreeMap::new(),
            incomplete_since: None,
            under_way: BTreeSet::new(),
            target: slots::Target::default(),
            forwarding: slots::Forwarding::default(),
            settled_at: BTreeMap::new(),
            dead_since: BTreeMap::new(),
            alive_since: BTreeMap::new(),
            warm_since: BTreeMap::new(),
            drained_since: BTreeMap::new(),
        }
    }

    /// Takes a node's report.
    pub fn handle_report(&mut self, from: u8, report: Report, now: u64) {
        self.reports.insert(from, (now, report));
    }

    /// The step of a concern has come to an end, whatever it was.
    pub fn finished(&mut self, concern: Concern) {
        self.under_way.remove(&concern);
    }

    /// What to propose now; [`Planner::finished`] is owed for each.
    pub fn plan(&mut self, view: &View<'_>, now: u64) -> Vec<(Concern, Command)> {
        self.watch(view.state, now);
        if view.status.role != Role::Leader {
            self.under_way.clear();
            // Another one counts these meanwhile.
            self.drained_since.clear();
            return Vec::new();
        }
        let mut plans = Vec::new();
        for concern in Concern::ALL {
            if self.under_way.contains(&concern) {
                continue;
            }
            let command = match concern {
                Concern::Standing => self.standing(view.state, now),
                Concern::Slots => self.slots(view.state, now),
                Concern::Forwarding => {
                    self.forwarding.step(view.state, now, self.patience.forwarding.max(view.times.new_flows))
                }
                Concern::Draining => self.draining(view.state, now),
                Concern::Vips => self.vips(view, now),
                Concern::Backends => self.backends(view, now),
                Concern::Warmth => self.warmth(view, now),
                Concern::Deadlines => self.deadlines(view, now),
                Concern::Pools => self.pools(view.state, now),
                Concern::Seats => seats(view),
            };
            if let Some(command) = command {
                self.under_way.insert(concern);
                plans.push((concern, command));
            }
        }
        plans
    }

    /// A node's report, unless it is too old.
    fn report(&self, id: u8, now: u64) -> Option<&Report> {
        self.reports.get(&id).filter(|(at, _)| now - at <= self.patience.report).map(|(_, report)| report)
    }

    /// Whether most of the other nodes that are there say something of a node.
    fn most_say(&self, state: &State, id: u8, now: u64, says: impl Fn(&Report) -> &BTreeSet<u8>) -> bool {
        let others = state.members.iter().filter(|&(&other, member)| other != id && member.is_present());
        let (mut all, mut those) = (0, 0);
        for (&other, _) in others {
            all += 1;
            those += usize::from(self.report(other, now).is_some_and(|report| says(report).contains(&id)));
        }
        those * 2 > all
    }

    /// Notes since when nodes are suspected, and since when they are well.
    fn watch(&mut self, state: &State, now: u64) {
        for &id in state.members.keys() {
            let is_suspect = self.most_say(state, id, now, |report| &report.suspects);
            let is_suspect_to_anyone = state
                .members
                .keys()
                .any(|&other| self.report(other, now).is_some_and(|one| one.suspects.contains(&id)));
            note(&mut self.suspected_since, id, is_suspect, now);
            let is_well = !is_suspect_to_anyone && self.report(id, now).is_some();
            note(&mut self.well_since, id, is_well, now);
            let is_silent = self.most_say(state, id, now, |report| &report.silent);
            note(&mut self.silent_since, id, is_silent, now);
        }
    }

    fn standing(&mut self, state: &State, now: u64) -> Option<Command> {
        let for_long = |since: &BTreeMap<u8, u64>, id, long| since.get(&id).is_some_and(|&at| now - at >= long);
        self.set_target(state, now);
        let nodes = || state.members.iter().filter(|(_, member)| !member.is_witness());
        let is_dead = |&(&id, member): &(&u8, &Member)| {
            member.is_present() && for_long(&self.suspected_since, id, self.patience.down)
        };
        // Two that are cut off from each other suspect each other: who reports, and is in better health, stays.
        let worth = |id: u8| (self.report(id, now).map(|report| report.share), Reverse(id));
        if let Some((&id, member)) = nodes().filter(is_dead).min_by_key(|(id, _)| worth(**id)) {
            return Some(Command::NodeDown { id, incarnation: member.incarnation });
        }
        nodes().find_map(|(&id, member)| {
            let incarnation = member.incarnation;
            let report = self.report(id, now)?;
            let is_back = member.standing == Standing::Down && for_long(&self.well_since, id, self.patience.back);
            if report.incarnation > incarnation || is_back && report.incarnation == incarnation {
                return Some(Command::NodeReturning { id, incarnation: report.incarnation });
            }
            let is_ready = member.standing == Standing::Returning && report.incarnation == incarnation;
            (is_ready && self.has_its_flows(state, id, report)).then_some(Command::NodeUp { id, incarnation })
        })
    }

    /// The plan of VIPs. While nodes still join, those that are there would be given all VIPs, and soon lose them again.
    fn vips(&mut self, view: &View<'_>, now: u64) -> Option<Command> {
        let is_member = |id: &u8| view.state.is_node(*id);
        if view.vips.values().flatten().all(is_member) {
            self.incomplete_since = None;
        } else if now - *self.incomplete_since.get_or_insert(now) < self.patience.down {
            return None;
        }
        let members = |ranks: &Vec<u8>| ranks.iter().copied().filter(|id| is_member(id)).collect();
        let plan: BTreeMap<String, Vec<u8>> =
            view.vips.iter().map(|(vip, ranks)| (vip.clone(), members(ranks))).collect();
        (plan != view.state.vips).then_some(Command::PlanVips(plan))
    }

    /// A node that is done with draining.
    fn draining(&mut self, state: &State, now: u64) -> Option<Command> {
        for (&id, member) in &state.members {
            let is_idle = member.draining && !member.drained && state.owns_nothing(id);
            note(&mut self.idle_since, id, is_idle, now);
        }
        self.idle_since.retain(|id, _| state.members.contains_key(id));
        let is_done = |(&id, &since): (&u8, &u64)| {
            let has_withdrawn = self.report(id, now).is_some_and(|report| report.has_withdrawn);
            (has_withdrawn && now - since >= self.patience.draining).then_some(Command::Relieve(id))
        };
        self.idle_since.iter().find_map(is_done)
    }
}

fn note<K: Ord>(since: &mut BTreeMap<K, u64>, id: K, holds: bool, now: u64) {
    if holds {
        since.entry(id).or_insert(now);
    } else {
        since.remove(&id);
    }
}

fn seats(view: &View<'_>) -> Option<Command> {
    let learnt = view.status.peers.iter().find_map(|peer| {
        let seat = view.state.members.get(&peer.id)?.seat.filter(|seat| !seat.votes)?;
        let matched =
            peer.matched.filter(|matched| peer.is_heard && matched + LEARNT >= view.status.last && *matched > 0);
        matched.map(|_| Command::Promote { id: peer.id, disk: seat.disk })
    });
    learnt.or_else(|| {
        view.strangers.iter().find_map(|(&id, stranger)| {
            let member = view.state.members.get(&id);
            match member.and_then(|member| member.seat) {
                _ if member.is_some_and(|member| member.is_witness() != stranger.witness) => None,
                Some(seat) => Some(Command::Retire { id, disk: seat.disk }),
                None if member.is_none() && !view.welcome.contains(&id) => None,
                None if stranger.witness => {
                    Some(Command::Witness { id, disk: stranger.disk, address: stranger.address.clone() })
                }
                None => Some(Command::Join {
                    id,
                    disk: stranger.disk,
                    address: stranger.address.clone(),
                    weight: stranger.weight,
                    incarnation: stranger.incarnation,
                }),
            }
        })
    })
}

#[cfg(test)]
mod tests;
