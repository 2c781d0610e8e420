//! Certificates of a cluster's agents: making the cluster's certificate authority (CA), issuing a certificate for each
//! node, and reading what a certificate says.
//!
//! ```text
//! DIR/ca.crt  DIR/ca.key          the authority; the key stays where certificates are issued and goes to no node
//! node-ID.crt node-ID.key ca.crt  what a node gets
//! ```
//!
//! A node's certificate names the node and its cluster and nothing else ([`NodeName`]); addresses may change without a
//! new one. The authority's own certificate is good for names of its cluster alone. Everything is PEM (RFC 7468), keys
//! are ECDSA on P-256.

mod certificate;
mod files;
mod issue;
mod name;
#[cfg(test)]
mod tests;

use std::io;
use std::path::PathBuf;

pub use certificate::Certificate;
pub(crate) use certificate::pem;
pub(crate) use issue::CLOCKS_APART;
pub use issue::{Issued, init, issue};
pub use name::NodeName;

/// Why a certificate was not made or not read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such directory.
    #[error("there is no directory {}: make it, `mkdir -m 700 {}`", .0.display(), .0.display())]
    NoDirectory(PathBuf),
    /// The directory has an authority already.
    #[error(
        "{} is there already: certificates that it signed would be worth nothing; take another directory, or --force",
        .0.display()
    )]
    Exists(PathBuf),
    /// The directory has no authority.
    #[error("there is no {}: `redirector pki init --dir DIR --cluster ID` makes an authority", .0.display())]
    NoAuthority(PathBuf),
    /// The authority's key can be read by others than its owner.
    #[error("{} can be read or written by others (mode {mode:03o}): `chmod 600 {}`", .path.display(), .path.display())]
    Exposed {
        /// The key's file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A node's id is out of range.
    #[error("{0} is not a node's id: they are 1 to 254")]
    NodeId(u16),
    /// A period of validity is out of range.
    #[error("{asked} days is not a validity: write 1 to {most}, when the authority itself ends")]
    Days {
        /// What was asked for.
        asked: u32,
        /// What the authority can grant.
        most: u32,
    },
    /// A file cannot be read or written.
    #[error("{}: {source}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file holds something else than it should.
    #[error("{}: {what}", .path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The cryptographic library refused.
    #[error("the certificate was not made: {0}")]
    Make(#[from] rcgen::Error),
}
