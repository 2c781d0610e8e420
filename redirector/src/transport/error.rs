//! What can go wrong, in words.

use std::io;
use std::net::SocketAddr;

use super::FrameError;

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
