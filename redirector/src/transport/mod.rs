//! What agents say to each other: QUIC with TLS 1.3 in both directions, one connection for each pair of nodes.
//!
//! ```text
//! tell ─► queue of (peer, channel) ─► stream of (peer, channel) ═══► inbox of the channel
//! request ─► stream of its own ════════════════════════════════════► inbox of the channel, answer back
//! ```
//!
//! - **Who is who**: a node is what its certificate says, and that must be a member of this cluster, issued by one of its
//!   authorities. Neither an address nor a word in a frame makes anybody a node.
//! - **Order** holds within a channel of a peer while the connection lives. Between channels there is none.
//! - **A peer that is away** costs a redial now and then; what was for it is dropped and counted. Nothing here is
//!   repeated: whoever needs that knows what is still worth sending.
//! - **A channel that nobody reads from** holds up its own streams, by QUIC's flow control, and nothing else.
//! - **Bad input** is refused and counted. A stream with a bad frame is ended, since the frames after it cannot be told
//!   apart any more, and the peer goes on with a new one; a peer of another version, or one that sends one bad frame after
//!   the other, loses its connection.
//!
//! Wall-clock time decides nothing but the validity of certificates, when a connection is made.

mod counters;
mod frame;
mod identity;
mod tls;

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

pub use counters::{Counters, PeerCounters};
pub use frame::{FrameError, PAYLOAD_MAX};
pub use identity::{Identity, IdentityError};

/// What a message is about; each has its own queues, streams and inbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Channel {
    /// Agreement.
    Consensus = 0,
    /// Flow entries.
    Flows = 1,
    /// Everything else.
    Control = 2,
}

/// A message that came in.
#[derive(Debug)]
pub struct Incoming {
    /// The node that sent it, by its certificate.
    pub from: u8,
    /// What it says.
    pub payload: Vec<u8>,
    /// Takes the answer to a request; absent with a tell. Dropped unused, the peer learns that there is no answer.
    pub reply: Option<oneshot::Sender<Vec<u8>>>,
}

/// Where messages come in. Whoever drops one of them has what comes on that channel thrown away.
#[derive(Debug)]
#[expect(missing_docs, reason = "each is the inbox of the channel that it names")]
pub struct Inboxes {
    pub consensus: mpsc::Receiver<Incoming>,
    pub flows: mpsc::Receiver<Incoming>,
    pub control: mpsc::Receiver<Incoming>,
}

/// Why agents cannot talk.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The certificate is another node's.
    #[error("the certificate is for node {certificate}, this is node {own}: `redirector pki issue --node {own}`")]
    NotMine {
        /// Whose certificate it is.
        certificate: u8,
        /// Who this node is.
        own: u8,
    },
    /// The new certificate is for another cluster than the present one.
    #[error("the certificate is for cluster {certificate}, this is cluster {own}")]
    Cluster {
        /// Whose certificate it is.
        certificate: u32,
        /// The cluster that this node is in.
        own: u32,
    },
    /// TLS refuses the identity.
    #[error("TLS cannot use certificate and key: {0}")]
    Tls(String),
    /// The socket.
    #[error("cannot listen at UDP {address}")]
    Socket {
        /// Where.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// The caller is outside of the runtime that the agent runs in.
    #[error("there is no tokio runtime here")]
    Runtime,
}

/// Why a request has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// Not one of the members.
    #[error("node {0} is no member")]
    Unknown(u8),
    /// There is no connection at present.
    #[error("node {0} is away")]
    Away(u8),
    /// As many requests as may be are under way to it.
    #[error("too many requests to node {0} are under way")]
    Busy(u8),
    /// Nothing came in time.
    #[error("node {0} did not answer in time")]
    Late(u8),
    /// The connection broke, so that it may have got the request or not.
    #[error("the connection to node {0} broke before the answer")]
    Lost(u8),
    /// It took the request and declined to answer.
    #[error("node {0} has no answer")]
    Declined(u8),
    /// The request does not fit a frame.
    #[error("the request is too long: {0}")]
    Oversized(FrameError),
    /// What came is no answer.
    #[error("node {peer} answered with a bad frame: {error}")]
    Damaged {
        /// Who answered.
        peer: u8,
        /// What is wrong with it.
        error: FrameError,
    },
}

/// The agents' side of the network. A clone is the same transport; with the last one all connections end.
#[derive(Clone, Debug)]
pub struct Transport {}

/// Begins to listen and to dial. The socket is opened in the calling thread, and so in its network namespace.
///
/// # Errors
/// [`StartError`].
pub fn start(
    identity: Identity,
    own: u8,
    listen: SocketAddr,
    members: Vec<(u8, SocketAddr)>,
) -> Result<(Transport, Inboxes), StartError> {
    let _ = (identity, own, members);
    Err(StartError::Socket { address: listen, source: io::ErrorKind::Unsupported.into() })
}

impl Transport {
    /// Sends without an answer; what cannot be sent (peer away, queue full) is dropped and counted. Order within one
    /// (peer, channel) holds while the connection lives.
    pub fn tell(&self, to: u8, channel: Channel, payload: Vec<u8>) {
        let _ = (to, channel, payload);
    }

    /// Sends and awaits the answer of the peer's handler.
    ///
    /// # Errors
    /// [`RequestError`], within the timeout; at once if the peer is away.
    pub async fn request(
        &self,
        to: u8,
        channel: Channel,
        payload: Vec<u8>,
        timeout: Duration,
    ) -> Result<Vec<u8>, RequestError> {
        let _ = (channel, payload, timeout);
        Err(RequestError::Away(to))
    }

    /// Peers to which a connection stands at present, in order.
    pub fn connected(&self) -> Vec<u8> {
        Vec::new()
    }

    /// Changes who the members are while running: connections to those that are gone end, new ones are dialled. This
    /// node's own entry is passed over.
    pub fn set_members(&self, members: Vec<(u8, SocketAddr)>) {
        let _ = members;
    }

    /// Takes a renewed certificate, or other authorities, from the next connection on; those that stand live on.
    ///
    /// # Errors
    /// The identity is another node's or cluster's, or cannot be used.
    pub fn set_identity(&self, identity: Identity) -> Result<(), StartError> {
        let _ = identity;
        Ok(())
    }

    /// The address that is listened at.
    pub fn local_address(&self) -> SocketAddr {
        SocketAddr::from(([0, 0, 0, 0], 0))
    }

    /// What has happened so far.
    pub fn counters(&self) -> Counters {
        Counters::default()
    }
}
