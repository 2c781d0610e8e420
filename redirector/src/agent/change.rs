//! What becomes of a change of the configuration: made, or refused and why.

use serde::{Deserialize, Serialize};

use super::agreement::Durable;
use crate::config::Mistakes;
use crate::consensus::driver::ProposeError;
use crate::consensus::state::Refusal;
use crate::dataplane::image::ImageError;
use crate::dataplane::maps::MapsError;
use crate::netlink;

/// A change that was made.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Applied {
    /// The version that is in force now.
    pub version: u64,
    /// What changed, in words.
    pub changes: Vec<String>,
    /// On how many disks it is, where a cluster has agreed on it.
    #[serde(default)]
    pub durable: Option<Durable>,
}

/// Why a change was not made. No map was touched, unless the kernel refused a write.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The configuration is wrong.
    #[error(transparent)]
    Mistakes(#[from] Mistakes),
    /// Someone else was faster.
    #[error("the configuration in force is version {present}, not {expected}: look at `redirector diff` again")]
    Version {
        /// The version in force.
        present: u64,
        /// The version that the change was made for.
        expected: u64,
    },
    /// A part that only `run` reads differs.
    #[error("`[{0}]` is the node's own and cannot change while it runs: change the file that `run` reads, and restart")]
    Own(&'static str),
    /// It does not fit this host.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The maps.
    #[error(transparent)]
    Maps(#[from] MapsError),
    /// The kernel did not tell of its interfaces.
    #[error(transparent)]
    Netlink(#[from] netlink::Error),
    /// The rules by which peers are watched could not be written.
    #[error(transparent)]
    Liveness(#[from] anyhow::Error),
    /// The change could not be made durable.
    #[error("the change is not in force, the disk does not take it")]
    Disk(#[from] std::io::Error),
    /// The cluster has not taken it.
    #[error(transparent)]
    Agreement(#[from] ProposeError),
    /// Only a cluster could decide, and this node is part of none.
    #[error(
        "this node takes no part in agreement: it needs `ca`, `certificate` and `private_key` in [cluster], two [[member]] \
         at least, and a log that can be written; its journal says what is missing"
    )]
    Alone,
}

impl ApplyError {
    /// The version in force, where another one was expected.
    pub(super) fn present(&self) -> Option<u64> {
        match self {
            Self::Version { present, .. } => Some(*present),
            Self::Agreement(ProposeError::Refused(Refusal::Version { present, .. })) => Some(*present),
            _ => None,
        }
    }
}
