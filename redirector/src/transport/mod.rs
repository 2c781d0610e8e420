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
//! - **The newest connection** is sent over, since a peer that restarted leaves one behind that only time shows to be
//!   dead. Where both ends dialled at once there are two for some seconds; then what was under way on the older is done.
//! - **A peer that is away** costs a redial now and then; what was for it is dropped and counted. Nothing here is
//!   repeated: whoever needs that knows what is still worth sending.
//! - **A channel that nobody reads from** holds up its own streams, by QUIC's flow control, and nothing else.
//! - **Bad input** is refused and counted. A stream with a bad frame is ended, since the frames after it cannot be told
//!   apart any more, and the peer goes on with a new one; a peer of another version, or one that sends one bad frame after
//!   the other, loses its connection.
//!
//! Wall-clock time decides nothing but the validity of certificates, when a connection is made, and there [`clock`] keeps
//! its jumps out.

mod accept;
mod clock;
mod counters;
mod dial;
mod endpoint;
mod error;
mod frame;
mod identity;
mod notice;
mod peer;
mod receive;
mod send;
#[cfg(test)]
mod tests;
mod tls;

use tokio::sync::{mpsc, oneshot};

pub use counters::{Counters, PeerCounters};
pub use endpoint::{Transport, start};
pub use error::{RequestError, StartError};
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

/// Why a connection or a stream was ended, as QUIC's application error codes.
mod code {
    use quinn::VarInt;

    /// The agent ends.
    pub(super) const ENDED: VarInt = VarInt::from_u32(0);
    /// There is a newer connection between the two.
    pub(super) const SUPERSEDED: VarInt = VarInt::from_u32(1);
    /// The certificate is good and names nobody who belongs here.
    pub(super) const NOT_A_MEMBER: VarInt = VarInt::from_u32(2);
    /// A version of the frames that is not known here.
    pub(super) const VERSION: VarInt = VarInt::from_u32(3);
    /// Of a stream: it has a bad frame. Of a connection: too many streams had.
    pub(super) const DAMAGED: VarInt = VarInt::from_u32(4);
    /// Of a stream: the request was taken and has no answer.
    pub(super) const DECLINED: VarInt = VarInt::from_u32(5);
    /// Of a stream: who began it has lost interest.
    pub(super) const ABANDONED: VarInt = VarInt::from_u32(6);
}
