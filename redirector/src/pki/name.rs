//! The name by which a certificate speaks of a node.

use std::fmt;
use std::str::FromStr;

/// A node of a cluster, written `node-3.cluster-7.redirector`: a DNS name (subject alternative name) that is never
/// looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NodeName {
    /// The node's id, 1 to 254.
    pub node: u8,
    /// The cluster's id.
    pub cluster: u32,
}

/// The part of the names that all nodes of a cluster share.
pub(super) fn domain(cluster: u32) -> String {
    format!("cluster-{cluster}.redirector")
}

/// The cluster that a domain is of; none if it is no cluster's.
pub(super) fn cluster_of(domain_name: &str) -> Option<u32> {
    let cluster = domain_name.strip_prefix("cluster-")?.strip_suffix(".redirector")?.parse().ok()?;
    (domain(cluster) == domain_name).then_some(cluster)
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node-{}.{}", self.node, domain(self.cluster))
    }
}

/// A text is not the name of a node.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not the name of a node, such as node-3.cluster-7.redirector")]
pub struct NotANode(String);

impl FromStr for NodeName {
    type Err = NotANode;

    fn from_str(text: &str) -> Result<Self, NotANode> {
        let parts = text.strip_prefix("node-").and_then(|rest| rest.split_once('.'));
        let name = parts.and_then(|(node, domain)| {
            let node = node.parse().ok().filter(|node| (1..=254).contains(node))?;
            Some(Self { node, cluster: cluster_of(domain)? })
        });
        // There is one way to write a name, so that no two texts mean the same node.
        name.filter(|name| name.to_string() == text).ok_or_else(|| NotANode(text.to_owned()))
    }
}
