//! What nodes owe each other of flows: who is to have copies, and who has got all of them.

use std::collections::BTreeSet;

use redirector_ebpf::tables::{AliveNodes, Slot};

use super::lookout::Agreed;
use crate::consensus::state::State;
use crate::replication::{self, Progress, View};

/// How long a flow may have been on its way to a peer that is said to have all of them, milliseconds. Peers that answer are
/// as good as never so far behind; one that stood still is, and does not look it before its first batch is given up.
const LATE: u64 = 500;

/// What was said and heard of flows that nodes owe each other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Delivered {
    /// Peers that have got all flows that they should have from here.
    pub to: BTreeSet<u8>,
    /// Peers from which this node has got all flows that it should have.
    pub from: BTreeSet<u8>,
}

impl Delivered {
    /// Of what replication says: how far each peer is, and who has given this node everything.
    pub fn of(peers: impl IntoIterator<Item = (u8, Progress)>, complete_from: BTreeSet<u8>) -> Self {
        let current = |(id, peer): (u8, Progress)| {
            (peer.state == replication::State::Current && peer.waiting_ms < LATE).then_some(id)
        };
        Self { to: peers.into_iter().filter_map(current).collect(), from: complete_from }
    }
}

/// Where flows are copied to other nodes.
pub trait Copies {
    /// Says which slots are in force, by a table of this digest, who is alive, and what is agreed on, if anything is.
    fn set_slots(&mut self, slots: &[Slot], alive: AliveNodes, digest: u64, agreed: Agreed<'_>);

    /// Who has got everything, and from whom everything has come; none where flows are not copied.
    fn delivered(&self) -> Option<Delivered>;
}

/// Who is to have copies of flows, as it was last given to replication.
#[derive(Debug, Default)]
pub struct Copyholders {
    seen: Option<(AliveNodes, u64, bool)>,
}

impl Copyholders {
    /// Has the next view given out whatever was given before.
    pub fn forget(&mut self) {
        self.seen = None;
    }

    /// The view for replication, where it is another than the last one. Where slots are agreed on and move, all of their
    /// ranks that are present are to have their flows; else the first two that are `alive`. A node that does not know yet
    /// what is agreed on must not call anybody complete that a node that does would give more.
    pub fn view(&mut self, slots: &[Slot], alive: AliveNodes, digest: u64, agreed: Agreed<'_>) -> Option<View> {
        let (alive, to_all_ranks) = match agreed {
            Agreed::Nothing => (alive, false),
            Agreed::Unknown => (alive, true),
            Agreed::On(state) => (present(state), true),
        };
        let view = Some((alive, digest, to_all_ranks));
        if self.seen == view {
            return None;
        }
        self.seen = view;
        Some(View { slots: slots.to_vec(), alive, to_all_ranks })
    }
}

/// Who is there to have copies of flows.
fn present(state: &State) -> AliveNodes {
    let mut present = AliveNodes::default();
    state.members.iter().filter(|(_, member)| member.is_present()).for_each(|(&id, _)| present.set(id, true));
    present
}
