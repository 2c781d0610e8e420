//! A cluster whose majority is lost for good goes on with one voter, when an operator says who is lost.
//!
//! Nobody can know from here whether those that do not answer are dead or cut off; so this is never done by itself. What
//! the log holds is taken for agreed on, committed or not: no change that this node has, and that a lost majority may have
//! reported as done, goes away. The node goes on under a new UUID, and the UUIDs of all other disks are noted in the agreed
//! state: whoever has one of them, and comes back, is told so, sets its log aside and joins as somebody new. So the old
//! majority, should it come back, has nobody to agree with here, and gives way.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::commit::replay_entry;
use super::{Action, Damage, Event, Identity, Machine, Phase, RecoverError};
use crate::consensus::disk::Disk;
use crate::consensus::log::Log;
use crate::consensus::state::State;
use crate::consensus::wire::{Body, Snapshot, number};

/// Ticks that answers to a survey count for.
const FRESH: u64 = 100;

/// The log goes on so many indexes later: whatever those who are lost have agreed on meanwhile, versions only grow.
const GAP: u64 = 1 << 20;

impl<D: Disk> Machine<D> {
    /// Asks all members whether they are there, and how far they are. Answers come in as messages.
    pub fn survey(&mut self) {
        self.own.surveyed.clear();
        let Some(disk) = self.log().map(|log| log.identity().disk) else { return };
        for peer in self.own.peers() {
            self.own.send(peer, disk, Body::Survey);
        }
    }

    /// Has the cluster go on with this node as its only voter, and without the nodes that are `lost`. Everybody else must
    /// have answered a survey just now.
    ///
    /// # Errors
    /// [`RecoverError`]; nothing has changed then.
    pub fn recover(&mut self, lost: &BTreeSet<u8>) -> Result<(), RecoverError> {
        let state = self.recoverable(lost)?;
        match std::mem::replace(&mut self.phase, Phase::Stopped) {
            Phase::Running(mut running) => {
                running.give_up_on_proposals(&mut self.own, 0);
                let term = running.raft().term + 1;
                let mut log = running.into_log();
                let written = self.begin_anew(&mut log, state, term, lost);
                self.phase = self.own.begin(log, Damage::default());
                written?;
                self.own.strangers.clear();
                self.own.doubt = None;
                self.own.out.push(Action::Told(Event::Recovered(lost.iter().copied().collect())));
                self.own.out.push(Action::StateChanged);
                Ok(())
            }
            phase => {
                self.phase = phase;
                Err(RecoverError::NotReady)
            }
        }
    }

    /// Everything that the log holds, where the cluster may be recovered.
    fn recoverable(&self, lost: &BTreeSet<u8>) -> Result<State, RecoverError> {
        let Phase::Running(running) = &self.phase else { return Err(RecoverError::NotReady) };
        let (me, state) = (self.own.config.node, &self.own.state);
        if state.version == 0 || !state.members.contains_key(&me) {
            return Err(RecoverError::NotBegun);
        }
        if state.members[&me].is_witness() {
            return Err(RecoverError::Witness);
        }
        if lost.contains(&me) {
            return Err(RecoverError::Oneself(me));
        }
        if let Some(&id) = lost.iter().find(|id| !state.members.contains_key(id)) {
            return Err(RecoverError::Unknown(id));
        }
        let is_fresh = |id: &u8| self.own.surveyed.get(id).is_some_and(|(_, at)| self.own.tick - at <= FRESH);
        let voters: Vec<u8> = state.voters().collect();
        let there: Vec<u8> = voters.iter().copied().filter(|id| *id == me || is_fresh(id)).collect();
        if there.len() * 2 > voters.len() {
            return Err(RecoverError::Majority(there));
        }
        if let Some(&id) = lost.iter().find(|id| is_fresh(id)) {
            return Err(RecoverError::Answers(id));
        }
        let others = || state.members.keys().copied().filter(|id| *id != me && !lost.contains(id));
        if let Some(id) = others().find(|id| !is_fresh(id)) {
            return Err(RecoverError::Silent(id));
        }
        let own = running.end_of_log();
        if let Some(id) = others().find(|id| self.own.surveyed[id].0 > own) {
            return Err(RecoverError::Ahead(id));
        }
        if running.held.is_some() {
            return Err(RecoverError::NotReady);
        }
        let mut whole = State::clone(state);
        for index in state.version + 1..=own.1 {
            let entry = running.log().entry(index).ok_or(RecoverError::NotReady)?;
            replay_entry(&mut whole, entry).map_err(|_| RecoverError::Newer(index))?;
        }
        Ok(whole)
    }

    fn begin_anew(
        &mut self,
        log: &mut Log<D>,
        mut state: State,
        term: u64,
        lost: &BTreeSet<u8>,
    ) -> std::io::Result<()> {
        let identity = Identity { disk: self.own.draws.uuid(), ..log.identity() };
        state.recover(state.version + GAP, identity.node, identity.disk, lost);
        let voters = vec![number(identity.node, identity.disk)];
        log.begin_anew(identity, Snapshot { term, voters, learners: Vec::new(), state })
    }

    /// This disk has lost its seat: its node comes back as somebody new.
    pub(super) fn give_way(&mut self, from: u8) {
        let disk = match std::mem::replace(&mut self.phase, Phase::Stopped) {
            Phase::Running(mut running) => {
                running.give_up_on_proposals(&mut self.own, 0);
                running.into_log().into_disk()
            }
            Phase::Repairing(repair) => repair.into_parts().0.into_disk(),
            phase => {
                self.phase = phase;
                return;
            }
        };
        self.own.out.push(Action::Told(Event::GivenUp(from)));
        self.own.counters.given_up += 1;
        self.own.state = Arc::default();
        self.own.out.push(Action::StateChanged);
        self.phase = Phase::Blank { disk, has_remains: true };
        self.try_blank();
    }
}
