//! What agents tell each other, within the agent: the transport, and what goes over it.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;

use redirector_ebpf::tables::{AliveNodes, Slot};
use tokio::sync::mpsc;

use crate::breaker::Breakers;
use crate::config::Config;
use crate::replication::{self, Counters, Replication, Settings, State, View};
use crate::transport::{self, Identity, Incoming, Transport};

/// What was said and heard of flows that nodes owe each other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Delivered {
    /// Peers that have got all flows that they should have from here.
    pub(super) to: BTreeSet<u8>,
    /// Peers from which this node has got all flows that it should have.
    pub(super) from: BTreeSet<u8>,
}

/// The agent's conversation with its peers.
pub(super) struct Talk {
    transport: Transport,
    replication: Option<Replication>,
    seen: Option<(AliveNodes, u64)>,
    agreement: Option<mpsc::Receiver<Incoming>>,
}

/// Where the agents of all members listen.
fn members(config: &Config) -> Vec<(u8, SocketAddr)> {
    let address = |member: &crate::config::Member| (member.id, SocketAddr::new(member.address, config.cluster.port));
    config.members.iter().map(address).collect()
}

impl Talk {
    /// Begins to talk, if the configuration says by what certificate, and there is anybody to talk to. An agent that cannot
    /// talk is none the worse a redirector: that is said, and goes on.
    pub(super) fn start(config: &Config, directory: &Path, breakers: &Breakers) -> Option<Self> {
        let own = members(config).into_iter().find(|(id, _)| *id == config.node.id)?.1;
        if config.members.len() < 2 {
            return None;
        }
        let identity = match Identity::load(&config.cluster) {
            Ok(Some(identity)) => identity,
            Ok(None) => {
                tracing::warn!("no certificate is configured, so agents do not talk: flows have no copies elsewhere");
                return None;
            }
            Err(error) => {
                tracing::error!("agents do not talk: {:#}", anyhow::Error::new(error));
                return None;
            }
        };
        let (transport, inboxes) = match transport::start(identity, config.node.id, own, members(config), breakers) {
            Ok(started) => started,
            Err(error) => {
                tracing::error!("agents do not talk: {:#}", anyhow::Error::new(error));
                return None;
            }
        };
        let replication = Settings::of(config).and_then(|settings| {
            match replication::start(settings, directory, transport.clone(), inboxes.flows) {
                Ok(replication) => Some(replication),
                Err(error) => {
                    tracing::error!("flows are not replicated: {:#}", anyhow::Error::new(error));
                    None
                }
            }
        });
        Some(Self { transport, replication, seen: None, agreement: Some(inboxes.consensus) })
    }

    /// What agreement goes over; its inbox can be had once.
    pub(super) fn for_agreement(&mut self) -> Option<(Transport, mpsc::Receiver<Incoming>)> {
        Some((self.transport.clone(), self.agreement.take()?))
    }

    /// Takes over a configuration whose tables are in force.
    pub(super) fn configure(&mut self, config: &Config) {
        self.transport.set_members(members(config));
        self.seen = None;
        if let Some(replication) = &self.replication {
            replication.names_changed();
        }
    }

    /// Says who is alive and which slots are in force, where that is new.
    /// Where slots are agreed on and move, all their ranks are to have their flows.
    pub(super) fn view(&mut self, slots: &[Slot], alive: AliveNodes, slots_digest: u64, to_all_ranks: bool) {
        if self.seen == Some((alive, slots_digest)) {
            return;
        }
        self.seen = Some((alive, slots_digest));
        if let Some(replication) = &self.replication {
            replication.set_view(View { slots: slots.to_vec(), alive, to_all_ranks });
        }
    }

    /// Who has got everything, and from whom everything has come; none where flows are not replicated.
    pub(super) fn delivered(&self) -> Option<Delivered> {
        let replication = self.replication.as_ref()?;
        let current = |(id, peer): (u8, replication::PeerCounters)| (peer.state == State::Current).then_some(id);
        let to = replication.counters().peers.into_iter().filter_map(current).collect();
        Some(Delivered { to, from: replication.complete_from() })
    }

    /// What replication has counted.
    pub(super) fn counters(&self) -> Option<Counters> {
        self.replication.as_ref().map(Replication::counters)
    }

    /// Ends; peers are told at once.
    pub(super) async fn end(self) {
        drop(self.replication);
        self.transport.close().await;
    }
}
