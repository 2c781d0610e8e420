//! The faults, by the names that results have them under.

use std::time::Instant;

use anyhow::Result;

use super::Profile;
use crate::lab::{Between, Lab, Place};
use crate::step;

/// What befalls a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Fault {
    /// Silent death of a node that owns the flows and is not their ingress.
    Owner,
    /// Silent death of the node that holds the VIP and owns the flows.
    VipHolder,
    /// Silent death of the leader of the consensus.
    Leader,
    /// A node loses its carrier.
    Carrier,
    /// A node's agent is killed.
    Agent,
    /// The path to a backend is cut.
    Path,
    /// A node is drained.
    Drain,
    /// A node's agent is restarted.
    Restart,
    /// A node's program is replaced.
    Replace,
    /// Silent death of keepalived's VIP holder.
    Keepalived,
}

/// What faults are made in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// A cluster to which VIPs are routed.
    Cluster,
    /// One whose nodes hold its VIPs.
    Holders,
    /// One with two fabrics between nodes and backends.
    Fabrics,
    /// No cluster, but keepalived.
    Keepalived,
}

impl Fault {
    /// All, in the order in which they are made and shown: those that one cluster serves for come together.
    pub(super) const ALL: [Self; 10] = [
        Self::Owner,
        Self::Leader,
        Self::Carrier,
        Self::Agent,
        Self::Drain,
        Self::Restart,
        Self::Replace,
        Self::VipHolder,
        Self::Path,
        Self::Keepalived,
    ];

    /// What it is made in.
    pub(super) fn stage(self) -> Stage {
        match self {
            Self::VipHolder => Stage::Holders,
            Self::Path => Stage::Fabrics,
            Self::Keepalived => Stage::Keepalived,
            _ => Stage::Cluster,
        }
    }

    /// Whether a node or a path is taken for dead, and flaps when that happens again and again.
    pub(super) fn is_death(self) -> bool {
        matches!(self, Self::Owner | Self::VipHolder | Self::Leader | Self::Carrier | Self::Path)
    }

    /// Its name in results.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Owner => "owner",
            Self::VipHolder => "vip-holder",
            Self::Leader => "leader",
            Self::Carrier => "carrier",
            Self::Agent => "agent",
            Self::Path => "path",
            Self::Drain => "drain",
            Self::Restart => "restart",
            Self::Replace => "replace",
            Self::Keepalived => "keepalived",
        }
    }

    /// What is done.
    pub(super) fn what(self) -> &'static str {
        match self {
            Self::Owner => "silent death of the node that owns the flows; another is their ingress",
            Self::VipHolder => "silent death of the node that holds the VIP, and owns the flows",
            Self::Leader => "silent death of the leader, which owns the flows",
            Self::Carrier => "the node that owns the flows loses its carrier",
            Self::Agent => "SIGKILL of the agent of the node that owns the flows",
            Self::Path => "the fabric of all best paths loses every frame, and keeps its carriers; another is there",
            Self::Drain => "the node that owns the flows is drained",
            Self::Restart => "the agent of the node that owns the flows ends and is started again",
            Self::Replace => "the program of the node that owns the flows is replaced, while no agent runs",
            Self::Keepalived => "silent death of keepalived's VIP holder, no redirector involved",
        }
    }

    /// What is aimed at, by figure: gaps in milliseconds, losses in datagrams.
    pub(super) fn targets(self, profile: Profile) -> &'static [(&'static str, f64)] {
        match (self, profile) {
            (Self::Owner | Self::Leader, Profile::Fast) => &[("gap_ms.p99", 35.0)],
            (Self::Owner | Self::Leader, Profile::Extreme) => &[("gap_ms.p99", 12.0)],
            (Self::VipHolder, Profile::Fast) => &[("gap_ms.p99", 45.0)],
            (Self::VipHolder, Profile::Extreme) => &[("gap_ms.p99", 20.0)],
            (Self::Path, Profile::Fast) => {
                &[("gap_ms.p99", 45.0), ("broken_connections", 0.0), ("return_lost.max", 0.0)]
            }
            (Self::Agent | Self::Restart | Self::Replace | Self::Drain, _) => &[("lost.max", 0.0)],
            _ => &[],
        }
    }

    /// Makes it, and says when it was there.
    pub(super) fn make(self, lab: &Lab, node: &str) -> Result<Instant> {
        let begun = Instant::now();
        match self {
            Self::Owner | Self::Leader | Self::VipHolder | Self::Keepalived => return lab.kill(node),
            Self::Carrier => return lab.unplug(node),
            Self::Agent => return lab.kill_agent(node),
            Self::Path => return lab.cut(&Place::fabric(Between::A)),
            Self::Restart => {
                lab.process(&format!("{node}-agent"))?.stop()?;
                lab.start_agent(node)?;
            }
            Self::Replace => {
                lab.process(&format!("{node}-agent"))?.stop()?;
                step::read(&mut lab.redirector(node, &["load"])?)?;
            }
            Self::Drain => lab.drain(node)?,
        }
        Ok(begun)
    }

    /// Ends it, and all others.
    pub(super) fn mend(self, lab: &Lab, node: &str) -> Result<()> {
        if self == Self::Drain {
            lab.undrain(node)?;
        }
        lab.heal()?;
        lab.whole()?;
        // Else the next victim could own nothing yet.
        lab.settled()?;
        lab.paths_whole()
    }
}
