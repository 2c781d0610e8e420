//! The audit of a node's tables at work: maps are read, beats told, what is wrong mended and noted.

use std::collections::BTreeMap;

use super::audit::{Finding, Said};
use super::node::Node;
use crate::consensus::machine::Role;
use crate::dataplane::flows::now;
use crate::dataplane::liveness::LivenessTables as _;
use crate::journal::Kind;

/// Looks after which tables are read again that nothing has changed by agreement.
const EVERY: u32 = 4;

impl Node {
    /// Sees whether tables are what was agreed on, here and elsewhere.
    pub(super) fn audit(&mut self) {
        let Some(agreement) = &self.agreement else { return };
        let version = agreement.follower().followed().map_or(0, |state| state.version);
        self.audits = self.audits.wrapping_add(1);
        if version != self.audited || self.audits.is_multiple_of(EVERY) {
            self.audited = version;
            self.look_at_tables();
        }
        self.compare_digests();
    }

    fn look_at_tables(&mut self) {
        let (Some(agreement), Some(liveness)) = (&self.agreement, &self.liveness) else { return };
        let (follower, journal) = (agreement.follower(), self.incidents.journal());
        let condition = liveness.maps().condition();
        let mut held = match self.audit.look(follower, &self.image, &self.maps) {
            Ok(held) => held,
            Err(error) => return tracing::error!("tables cannot be read: {:#}", anyhow::Error::new(error)),
        };
        if !held.wrong.is_empty() {
            for what in &held.wrong {
                tracing::error!(what, "tables are not what was agreed on, and are written anew");
                journal.note(Kind::Mismatch, None, format!("in the maps, {what}"));
            }
            // Peers hear of it too: what this node says of itself is what is there.
            condition.slots.store(held.slots);
            condition.pools.store(held.pools);
            let mended = self.audit.repair(follower, &mut self.image, &mut self.maps);
            let again = mended.and_then(|()| self.audit.look(follower, &self.image, &self.maps));
            held = match again {
                Ok(held) => held,
                Err(error) => return tracing::error!("tables cannot be mended: {:#}", anyhow::Error::new(error)),
            };
            match held.wrong.is_empty() {
                true => journal.note(Kind::Repair, None, "the maps were written anew, as agreed"),
                false => journal.note(Kind::Mismatch, None, "the maps are wrong still, and are written anew soon"),
            }
        }
        condition.slots.store(held.slots);
        condition.pools.store(held.pools);
    }

    fn compare_digests(&mut self) {
        let (Some(agreement), Some(liveness)) = (&self.agreement, &self.liveness) else { return };
        let (maps, status) = (liveness.maps(), agreement.overview().status);
        let condition = maps.condition();
        let own =
            Said { applied: condition.applied.load(), slots: condition.slots.load(), pools: condition.pools.load() };
        let mut peers = BTreeMap::new();
        let mut latest: BTreeMap<u8, u64> = BTreeMap::new();
        for &(node, port) in liveness.links() {
            let heard = maps.heard(node, port);
            let at = heard.at.load();
            if liveness.hears(at) && latest.get(&node).is_none_or(|known| *known < at) {
                latest.insert(node, at);
                peers.insert(node, Said::of(heard));
            }
        }
        let journal = self.incidents.journal();
        for finding in self.audit.compare(own, status.leader, self.config.node.id, &peers, now()) {
            match finding {
                Finding::Agrees { node } => {
                    journal.note(Kind::Repair, Some(node), "its tables have the digests of this node's again");
                }
                Finding::Differs { node, applied, is_mine } => {
                    let what = format!("its tables have other digests than this node's at {applied}");
                    tracing::error!(node, applied, is_mine, "tables differ");
                    journal.note(Kind::Mismatch, Some(node), what);
                    if is_mine && status.role == Role::Leader {
                        journal.note(Kind::Repair, None, "most others differ from this node: another is to lead");
                        agreement.resign();
                    } else if let (true, Some(leader)) = (is_mine, status.leader) {
                        journal.note(Kind::Repair, Some(leader), "the agreed state is fetched anew from it");
                        agreement.refetch(leader);
                    }
                }
            }
        }
    }
}
