//! Bidirectional Forwarding Detection (RFC 5880, asynchronous mode): over a single hop (RFC 5881) and over several (RFC 5883).
//!
//! ```text
//! [[bfd]] ─► Speaker (real-time thread) ◄─ UDP 3784, 4784 ─► routers
//!               └─ Session, one a peer: states, timers ─► Sign ─► paths whose next hop or far end the peer is
//! ```
//!
//! [`packet`] is the wire form, [`session`] decides and knows neither clock nor socket, [`auth`] is how packets prove who
//! sent them, the [`Speaker`] is the thin shell around them. A router that speaks BFD sees so that this node dies, and this
//! node that the router does. Packets are sent by the agent: without it sessions go down, and the control-plane-independent
//! bit is never set. Demand mode is honoured in others and not asked for; there is no echo.
//!
//! Of the crates for it none was taken: those that are published hold a codec alone, or a daemon of their own around
//! tokio timers, which a CPU that is busy makes late; holo's lives within its routing suite.

pub mod auth;
pub mod packet;
pub mod session;
mod socket;
mod speaker;
#[cfg(test)]
mod tests;

pub use speaker::{Speaker, StartError, Status};
