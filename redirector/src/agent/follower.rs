//! How far a node follows what the cluster agrees on, and what it reports of that, without IO.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use redirector_ebpf::tables::names::kind;
use redirector_ebpf::tables::{AliveNodes, Row, Slot};

use super::copies::Delivered;
use super::lookout::{self, Agreed, Lookout};
use crate::consensus::planner::Report;
use crate::consensus::state::{self, Member, Phase, RowSet, Standing, State};
use crate::dataplane::image::Image;
use crate::dataplane::liveness::LivenessTables;
use crate::dataplane::maps::MapsError;
use crate::dataplane::rows::{self, RowTables};
use crate::liveness::State as Peer;
use crate::ownership::Ranks;

/// Where nodes agree, has an image keep the slots and rows that are in the tables, until this node knows better. Elsewhere
/// they follow from the configuration.
///
/// # Errors
/// [`MapsError`].
pub fn adopt(
    agreed: bool,
    image: &mut Image,
    tables: &impl RowTables,
    liveness: &impl LivenessTables,
) -> Result<(), MapsError> {
    let present = tables.slots()?;
    if agreed && liveness.condition().applied.load() != 0 && present.len() == image.slots.len() {
        (image.slots, image.agreed) = (present, Some(BTreeMap::new()));
    } else {
        liveness.condition().applied.store(0);
    }
    Ok(())
}

/// What of the agreed state a node's data plane goes by.
pub struct Follower {
    me: u8,
    incarnation: u64,
    /// What slots and rows in the maps follow from; empty until there is something.
    followed: Arc<State>,
    /// The version of everything that the data plane goes by.
    installed: u64,
    /// The version of the configuration in force; 0: none that was agreed on.
    in_force: u64,
    resynced: u64,
    restless: BTreeMap<String, RowSet>,
    awaited: Option<Awaited>,
}

/// What was agreed on and is not followed yet on purpose.
struct Awaited {
    state: Arc<State>,
    /// Who is to have this node's flows by it and by the slots that this node goes by, and a digest of that.
    slots: (Vec<Slot>, u64),
    /// Since when others want this node back, by that.
    since: Option<u64>,
}

/// How long a node goes on by its own slots at most once others want it back, nanoseconds: those who have them now may be
/// dead.
const WAIT: u64 = 4_000_000_000;

impl Follower {
    /// A node that starts. `known` is what its log says, if that can be read already, `applied` the version that its maps go
    /// by, and `in_force` that of the configuration in force. Whoever has no log follows whatever it is told first.
    pub fn new(me: u8, incarnation: u64, known: Option<&State>, applied: u64, in_force: u64) -> Self {
        let has_none = known.is_some_and(|known| known.version == 0);
        let (installed, in_force) = if has_none { (0, 0) } else { (applied, in_force) };
        Self {
            me,
            incarnation,
            followed: Arc::default(),
            installed,
            in_force,
            resynced: 0,
            restless: BTreeMap::new(),
            awaited: None,
        }
    }

    /// Whether the data plane is behind a state.
    pub fn is_behind(&self, state: &State) -> bool {
        let is_first = self.followed.version == 0;
        // A state that was wrong is replaced by another of the same version.
        let is_other = state.version == self.followed.version && *state != *self.followed;
        state.version > self.installed || is_first && state.version == self.installed || is_other
    }

    /// The log was lost: whatever this node is told next is followed.
    pub fn forget(&mut self) {
        (self.installed, self.in_force) = (0, 0);
    }

    /// What slots and rows in the maps follow from, once they follow from anything.
    pub fn followed(&self) -> Option<&State> {
        (self.followed.version > 0).then_some(&*self.followed)
    }

    /// The same, for whoever must tell what is not known yet from what is not agreed on.
    pub fn agreed(&self) -> Agreed<'_> {
        self.followed().map_or(Agreed::Unknown, Agreed::On)
    }

    /// The version of everything that the data plane goes by.
    pub fn installed(&self) -> u64 {
        self.installed
    }

    /// The version of the configuration in force; 0: none that was agreed on.
    pub fn in_force(&self) -> u64 {
        self.in_force
    }

    /// This node's incarnation.
    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// Whether a configuration is newer than the one in force.
    pub fn is_newer(&self, state: &State) -> bool {
        state.specification.version > self.in_force
    }

    /// Whether this node should go on by the slots that it has for now, though others were agreed on. It was cut off: those
    /// who were given its slots meanwhile have to know its flows and its companions' first, and know which of them are in
    /// use. So it waits until it is counted as returning, and until it sees somebody alive to forward to, as it does once
    /// it has given them its flows: it would serve flows itself that it does not know. One that has lost its maps has no
    /// flows to go by.
    pub fn waits(&mut self, state: &Arc<State>, slots: &[Slot], alive: &AliveNodes, time: u64) -> bool {
        let served = self
            .followed()
            .and_then(|followed| followed.members.get(&self.me))
            .is_some_and(|member| member.standing == Standing::Up && member.incarnation == self.incarnation);
        let serves = |ranks: Ranks| ranks.iter().any(|&id| id != 0 && (id == self.me || alive.is_alive(id)));
        let unserved = |(now, next): (&Slot, &state::Slot)| serves(now.ranks) && !serves(next.ranks);
        let standing = state.members.get(&self.me).map(|member| member.standing);
        let is_back = standing == Some(Standing::Returning);
        let waits = match standing {
            Some(Standing::Down) => served,
            Some(Standing::Returning) => served && slots.iter().zip(&state.slots).any(unserved),
            Some(Standing::Up | Standing::Witness) | None => false,
        };
        let before = self.awaited.take();
        let since = is_back.then(|| before.as_ref().and_then(|awaited| awaited.since).unwrap_or(time));
        if !waits || since.is_some_and(|since| time.saturating_sub(since) >= WAIT) {
            return false;
        }
        self.awaited = match before {
            Some(before) if Arc::ptr_eq(&before.state, state) => Some(Awaited { since, ..before }),
            _ => {
                let both = |(now, next): (&Slot, &state::Slot)| Slot {
                    ranks: holders(now.ranks, next.ranks, self.me),
                    ..(*next).into()
                };
                let next: Vec<Slot> = slots.iter().zip(&state.slots).map(both).collect();
                let digest = lookout::digest(&next);
                Some(Awaited { state: state.clone(), slots: (next, digest), since })
            }
        };
        true
    }

    /// Whether nobody is to be let in for now: this node was cut off, and not all who were cut off with it may have given
    /// the others their flows. Packets that it forwarded would meet choices that are out of use.
    pub fn keeps_out(&self) -> bool {
        self.awaited.as_ref().is_some_and(|awaited| awaited.since.is_none())
    }

    /// The version of what is agreed on as far as this node knows, whether it goes by it or not; none if it knows nothing.
    pub fn known(&self) -> Option<u64> {
        let awaited = self.awaited.as_ref().map(|awaited| awaited.state.version);
        awaited.or_else(|| self.followed().map(|state| state.version))
    }

    /// What others are given flows by: a slot table, with its digest, where this node does not go by what was agreed on for
    /// now.
    pub fn awaited(&self) -> Option<(&[Slot], u64, Agreed<'_>)> {
        let Awaited { state, slots: (slots, digest), .. } = self.awaited.as_ref()?;
        Some((slots, *digest, Agreed::On(state)))
    }

    /// A configuration is in force.
    pub fn took(&mut self, version: u64) {
        self.in_force = version;
    }

    /// Has slots and rows of the tables follow from a state. With `whole`, everything does.
    ///
    /// # Errors
    /// [`MapsError`]; then the state is still to be followed.
    pub fn take(
        &mut self,
        state: &Arc<State>,
        whole: bool,
        image: &mut Image,
        tables: &mut impl RowTables,
        liveness: &impl LivenessTables,
    ) -> Result<(), MapsError> {
        let news = self.rows(state, image, false);
        if self.followed().is_none_or(|followed| followed.slots != state.slots) || !news.is_empty() {
            image.slots = state.slots.iter().map(|slot| (*slot).into()).collect();
            image.agreed = Some(news);
            rows::follow(tables, image)?;
            liveness.condition().slots.store(lookout::digest(&image.slots));
            // What was taken once is not to be taken again when something else is.
            image.agreed = Some(BTreeMap::new());
        }
        liveness.condition().applied.store(state.version);
        self.follows(state.clone(), whole);
        Ok(())
    }

    fn follows(&mut self, state: Arc<State>, whole: bool) {
        if self.followed.slots != state.slots {
            self.restless.clear();
        }
        let before = &self.followed.pools;
        self.restless.retain(|name, _| before.get(name) == state.pools.get(name));
        if whole {
            self.installed = state.version;
        }
        self.followed = state;
    }

    /// The version of the configuration that is in force, with all its pools' new backends; none if a part is lacking.
    pub fn done(&self) -> Option<u64> {
        let is_whole = self.installed == self.followed.version && self.installed > 0;
        let waits = self.followed.pools.values().any(|pool| pool.phase() == Phase::Announced);
        (is_whole && !waits).then_some(self.followed.specification.version)
    }

    /// The rows of pools whose agreed steps the maps have not taken yet; of all pools, if `all`.
    pub fn rows(&self, state: &State, image: &Image, all: bool) -> BTreeMap<u16, Vec<Row>> {
        let registry = &image.registry;
        let is_news = |name: &String| {
            let is_same = self.followed.pools.get(name) == state.pools.get(name);
            all || !is_same || !self.followed.drained(name).eq(state.drained(name))
        };
        let news = state.pools.iter().filter(|(name, _)| is_news(name));
        news.filter_map(|(name, pool)| {
            let id = registry.id(kind::POOL, name)? as u16;
            let number = |backend: &str| registry.id(kind::BACKEND, &format!("{name}/{backend}")).unwrap_or(0) as u16;
            let mut rows = pool.rows(number);
            for row in rows.iter_mut().filter(|row| row.previous() == 0) {
                // The backend of before is gone here, and with it every flow of it that this node could serve.
                *row = Row::new(row.current(), row.current(), row.disputed());
            }
            if let Some(target) = image.pools.get(&id) {
                let dead = pool.fallen().map(|name| number(name)).collect();
                let drained = state.drained(name).map(|name| number(name)).collect();
                rows::part(&mut rows, &target.fates(&dead, &drained));
            }
            Some((id, rows))
        })
        .collect()
    }

    /// Looks which disputed rows have flows off their current backend.
    ///
    /// # Errors
    /// [`MapsError`].
    pub fn look_for_old_flows(&mut self, tables: &impl RowTables, image: &Image) -> Result<(), MapsError> {
        if self.followed().is_none() {
            return Ok(());
        }
        let busy = |rows: Vec<bool>| rows.iter().enumerate().filter(|(_, busy)| **busy).map(|(row, _)| row).collect();
        let name = |id: u16| image.registry.name(kind::POOL, u32::from(id)).map(str::to_owned);
        let named = |(id, rows): (u16, Vec<bool>)| Some((name(id)?, busy(rows)));
        self.restless = rows::restless(tables, image)?.into_iter().filter_map(named).collect();
        Ok(())
    }

    /// What the leader is told: what this node sees and has done.
    pub fn report(&mut self, lookout: &Lookout, delivered: Option<&Delivered>) -> Report {
        let complete_from: Option<&BTreeSet<u8>> = delivered.map(|delivered| &delivered.from);
        let fallen: BTreeSet<u8> = lookout.peers_in(&[Peer::Suspect, Peer::AgentSilent]).collect();
        if let Some(state) = self.followed() {
            // Who serves may have flows that this node should have. Whoever is dead has none to give any more.
            let me = self.me;
            let owes = |(&id, member): (&u8, &Member)| {
                let serves = id != me && member.standing == Standing::Up && !fallen.contains(&id);
                serves && complete_from.is_some_and(|from| !from.contains(&id))
            };
            if !state.members.iter().any(owes) {
                self.resynced = state.version;
            }
        }
        Report {
            incarnation: self.incarnation,
            suspects: lookout.peers_in(&[Peer::Suspect, Peer::Unknown]).collect(),
            silent: lookout.peers_in(&[Peer::AgentSilent]).collect(),
            ailing: lookout.ailing(),
            share: lookout.share(),
            installed: self.installed,
            resynced: self.resynced,
            restless: self.restless.clone(),
            has_withdrawn: false,
            dead: BTreeMap::new(),
        }
    }
}

/// Who is to have a slot's flows from a node that goes by other ranks than those that are agreed on: the next owners by
/// either, since packets go to some by the former until it goes by the latter.
fn holders(now: Ranks, next: Ranks, me: u8) -> Ranks {
    let all = next[..2].iter().chain(&now).chain(&next[2..]).copied().filter(|id| ![0, me].contains(id));
    let mut holders = Ranks::default();
    let mut count = 0;
    for id in all {
        if count < holders.len() && !holders.contains(&id) {
            holders[count] = id;
            count += 1;
        }
    }
    holders
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agreed(version: u64, standing: Standing, ranks: [Ranks; 2]) -> State {
        let member = |id: u8| Member {
            address: String::new(),
            weight: 1,
            seat: None,
            standing: if id == 4 { standing } else { Standing::Up },
            draining: false,
            drained: false,
            incarnation: 1,
        };
        State {
            version,
            members: (1..=5).map(|id| (id, member(id))).collect(),
            slots: ranks.map(|ranks| state::Slot { ranks, previous: 0, version }).into(),
            ..State::default()
        }
    }

    /// At node 4, which was cut off with node 5.
    #[test]
    fn who_was_cut_off_waits_for_those_who_have_its_slots() {
        let before = agreed(3, Standing::Up, [[4, 1, 2, 3], [1, 2, 5, 3]]);
        let mut follower = Follower::new(4, 1, Some(&before), 3, 1);
        let slots: Vec<Slot> = before.slots.iter().map(|slot| (*slot).into()).collect();
        let after = |standing| Arc::new(agreed(9, standing, [[1, 2, 3, 0], [1, 2, 3, 0]]));
        let sees = |nodes: &[u8]| {
            let mut alive = AliveNodes::default();
            nodes.iter().for_each(|node| alive.set(*node, true));
            alive
        };
        assert!(!follower.waits(&after(Standing::Down), &slots, &sees(&[5]), 1), "a node that knew nothing yet");
        follower.follows(Arc::new(before.clone()), true);
        for (standing, alive, waits) in [
            (Standing::Down, &[5][..], true),
            (Standing::Returning, &[4, 5], true),
            (Standing::Down, &[], true),
            (Standing::Down, &[3, 5], true),
            (Standing::Returning, &[3, 5], false),
            (Standing::Up, &[5], false),
        ] {
            let waited = follower.waits(&after(standing), &slots, &sees(alive), 1);
            assert_eq!(waited, waits, "{standing:?}, {alive:?} alive");
        }
        let nobody = sees(&[]);
        let (down, returning) = (after(Standing::Down), after(Standing::Returning));
        assert!(follower.waits(&down, &slots, &nobody, 1) && follower.waits(&down, &slots, &nobody, 2 * WAIT));
        assert_eq!(
            follower.awaited().map(|(slots, ..)| slots[0].ranks),
            Some([1, 2, 3, 0]),
            "who is to have its flows"
        );
        assert_eq!(holders([5, 4, 3, 1], [1, 2, 3, 0], 4), [1, 2, 5, 3]);
        assert!(follower.keeps_out(), "its companions may not have told of theirs yet");
        let at = |follower: &mut Follower, time| follower.waits(&returning, &slots, &nobody, time);
        assert!(at(&mut follower, WAIT) && at(&mut follower, 2 * WAIT - 1), "its companions have its flows still");
        assert!(!follower.keeps_out());
        assert!(!at(&mut follower, 2 * WAIT), "those who have its slots now are dead");
        assert!(follower.awaited().is_none());
        let mut reborn = Follower::new(4, 2, Some(&before), 3, 1);
        reborn.follows(Arc::new(before), true);
        assert!(!at(&mut reborn, 1), "its flows are lost");
    }
}
