//! Whether a node may serve yet, and whether peers that have turned it off may let it in.

use std::time::Duration;

use redirector_ebpf::tables::AliveNodes;
use redirector_ebpf::tables::liveness::{Heard, Vitals};

use super::{Agreed, Lookout};
use crate::agent::copies::Delivered;
use crate::consensus::state::{Standing, State};
use crate::dataplane::liveness::LivenessTables;
use crate::liveness::{AGENT_SILENT, Own};

/// How long a node that returns waits at most for flows that others have, before it serves without them.
pub(super) const FLOWS: Duration = Duration::from_secs(10);

/// What a node's readiness depends on besides the moment.
#[derive(Debug, Default)]
pub(super) struct Readiness {
    /// Since when it has asked anybody, where an earlier agent left nothing to go on with.
    pub(super) starting_since: Option<u64>,
    /// Whether it could serve when this was asked last, by this agent or an earlier one.
    pub(super) served: bool,
    /// Since when it has waited to hear what is agreed on.
    unaware_since: Option<u64>,
    /// Since when peers owe it flows.
    owed_since: Option<u64>,
}

impl Lookout {
    /// Whether this node must not serve yet; and whether peers that have turned it off must not let it in yet. The latter goes
    /// further: where the cluster agrees that it serves, and one peer suspected it, others may have served its flows
    /// meanwhile, also peers whose agents have just started, and it must know those first. Where it can be reached it goes on.
    pub(super) fn lacks(
        &mut self,
        maps: &impl LivenessTables,
        delivered: Option<&Delivered>,
        agreed: Agreed<'_>,
        time: u64,
    ) -> (bool, bool) {
        let owed = self.is_owed_flows(maps, delivered, time);
        let has_begun = self.has_begun(maps, time);
        let lacks = match agreed {
            Agreed::On(state) => {
                let serves = is_up_as(state, self.me, self.incarnation);
                !serves && (self.is_starting(time) || self.hears_one_up(maps, state, time))
            }
            Agreed::Unknown if has_begun => self.waits_to_know(time),
            Agreed::Unknown | Agreed::Nothing => self.is_starting(time) || owed,
        };
        self.readiness.served = !lacks;
        (lacks, owed)
    }

    /// Whether the tables are new, and peers have had no time to answer yet.
    fn is_starting(&mut self, time: u64) -> bool {
        let timeout = self.timeout;
        let since = &mut self.readiness.starting_since;
        *since = since.filter(|since| time.saturating_sub(*since) <= timeout);
        since.is_some() && !self.links.is_empty()
    }

    /// Whether this node's tables, or a peer's, go by something that was agreed on.
    pub(super) fn has_begun(&self, maps: &impl LivenessTables, time: u64) -> bool {
        maps.condition().applied.load() != 0
            || self.heard(maps, time).iter().any(|(_, heard)| heard.applied.load() != 0)
    }

    /// Whether any peer is heard that serves as the cluster agrees, or that knows of something later: what is agreed on may
    /// be long past here, such as a cluster of this node alone. Where none is, whoever is left serves.
    fn hears_one_up(&self, maps: &impl LivenessTables, state: &State, time: u64) -> bool {
        let serves = |node, heard: &Heard| is_up_as(state, node, heard.incarnation.load() as u32);
        let heard = self.heard(maps, time);
        heard.iter().any(|(node, heard)| serves(*node, heard) || heard.applied.load() > state.version)
    }

    /// Whether this node must not serve before it has heard what is agreed on. One that served before, by the word of an
    /// earlier agent, goes on; another one waits, but not for ever.
    fn waits_to_know(&mut self, time: u64) -> bool {
        if self.readiness.served {
            self.readiness.unaware_since = None;
            return false;
        }
        let since = *self.readiness.unaware_since.get_or_insert(time);
        time.saturating_sub(since) < FLOWS.as_nanos() as u64
    }

    /// Whether others that live do not count this node alive, and it has not got all their flows. One that the others go on
    /// counting alive lost nothing, even if its agent is new.
    fn is_owed_flows(&mut self, maps: &impl LivenessTables, delivered: Option<&Delivered>, time: u64) -> bool {
        let acts = |heard: &Heard| u128::from(Vitals::of(heard.vitals.load()).agent_age) < AGENT_SILENT.as_millis();
        let heard = self.heard(maps, time).into_iter().filter(|(_, heard)| acts(heard));
        let voice = |(node, heard): (u8, &Heard)| {
            let view = AliveNodes { words: std::array::from_fn(|word| heard.view[word].load()) };
            (node, view.is_alive(self.me))
        };
        let voices: Vec<(u8, bool)> = heard.map(voice).collect();
        let is_out = voices.iter().any(|(_, counted)| !counted);
        let missing = |delivered: &Delivered| voices.iter().any(|(node, _)| !delivered.from.contains(node));
        if !is_out || !delivered.is_some_and(missing) {
            self.readiness.owed_since = None;
            return false;
        }
        let since = *self.readiness.owed_since.get_or_insert(time);
        if time.saturating_sub(since) < FLOWS.as_nanos() as u64 {
            return true;
        }
        if self.own == Own::Returning {
            tracing::warn!("peers have not delivered all their flows in {FLOWS:?}: this node serves without them");
        }
        false
    }
}

/// Whether a node serves, as this incarnation: in another one it has lost what it knew.
pub(super) fn is_up_as(agreed: &State, node: u8, incarnation: u32) -> bool {
    let member = agreed.members.get(&node);
    member.is_some_and(|member| member.standing == Standing::Up && member.incarnation == u64::from(incarnation))
}
