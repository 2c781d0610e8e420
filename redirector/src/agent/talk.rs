//! What agents tell each other, within the agent: the transport, and what goes over it.

use std::net::SocketAddr;
use std::path::Path;

use redirector_ebpf::tables::{AliveNodes, Slot};
use tokio::sync::mpsc;

use super::copies::{Copies, Copyholders, Delivered};
use super::lookout::Agreed;
use super::tally::{Tallies, Tally};
use crate::breaker::Breakers;
use crate::config::Config;
use crate::replication::{self, Counters, Replication, Settings};
use crate::transport::{self, Channel, Identity, Incoming, Transport};

/// The agent's conversation with its peers.
pub(super) struct Talk {
    transport: Transport,
    replication: Option<Replication>,
    copyholders: Copyholders,
    agreement: Option<mpsc::Receiver<Incoming>>,
    tallies: Tallies,
}

/// Where the agents of all members listen.
pub(super) fn members(config: &Config) -> Vec<(u8, SocketAddr)> {
    config.voters().map(|(id, address)| (id, SocketAddr::new(address, config.cluster.port))).collect()
}

impl Talk {
    /// Begins to talk, if the configuration says by what certificate, and there is anybody to talk to. An agent that cannot
    /// talk is none the worse a redirector: that is said, and goes on.
    pub(super) fn start(config: &Config, directory: &Path, breakers: &Breakers) -> Option<Self> {
        let own = members(config).into_iter().find(|(id, _)| *id == config.node.id)?.1;
        if config.voters().count() < 2 {
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
        let is_alone = config.members.len() < 2;
        let replication = Settings::of(config).filter(|_| !is_alone).and_then(|settings| {
            match replication::start(settings, directory, transport.clone(), inboxes.flows) {
                Ok(replication) => Some(replication),
                Err(error) => {
                    tracing::error!("flows are not replicated: {:#}", anyhow::Error::new(error));
                    None
                }
            }
        });
        let tallies = Tallies::start(config.cluster.id, inboxes.control);
        let (copyholders, agreement) = (Copyholders::default(), Some(inboxes.consensus));
        Some(Self { transport, replication, copyholders, agreement, tallies })
    }

    /// What agreement goes over; its inbox can be had once.
    pub(super) fn for_agreement(&mut self) -> Option<(Transport, mpsc::Receiver<Incoming>)> {
        Some((self.transport.clone(), self.agreement.take()?))
    }

    /// What peers tell of flows on backends that drain.
    pub(super) fn tallies(&self) -> &Tallies {
        &self.tallies
    }

    /// Tells the other nodes the same of this one.
    pub(super) fn tell_tally(&self, config: &Config, tally: &Tally) {
        let bytes = tally.seal(config.cluster.id);
        for member in config.members.iter().filter(|member| member.id != config.node.id) {
            self.transport.tell(member.id, Channel::Control, bytes.clone());
        }
    }

    /// Takes over a configuration whose tables are in force.
    pub(super) fn configure(&mut self, config: &Config) {
        self.transport.set_members(members(config));
        self.copyholders.forget();
        if let Some(replication) = &self.replication {
            replication.names_changed();
        }
    }

    /// Takes over what the files of certificates hold by now.
    pub(super) fn renew(&self, config: &Config) {
        self.transport.renew(&config.cluster);
    }

    /// What replication has counted.
    pub(super) fn counters(&self) -> Option<Counters> {
        self.replication.as_ref().map(Replication::counters)
    }

    /// How many changes of flows wait to be replicated, and how many may; none where flows are not replicated.
    pub(super) fn queue(&self) -> Option<(u64, u64)> {
        self.replication.as_ref().map(Replication::queue)
    }

    /// Ends; peers are told at once.
    pub(super) async fn end(self) {
        drop(self.replication);
        self.transport.close().await;
    }
}

impl Copies for Talk {
    fn set_slots(&mut self, slots: &[Slot], alive: AliveNodes, digest: u64, agreed: Agreed<'_>) {
        if let (Some(view), Some(replication)) =
            (self.copyholders.view(slots, alive, digest, agreed), &self.replication)
        {
            replication.set_view(view);
        }
    }

    fn delivered(&self) -> Option<Delivered> {
        let replication = self.replication.as_ref()?;
        Some(Delivered::of(replication.progress(), replication.complete_from()))
    }
}
