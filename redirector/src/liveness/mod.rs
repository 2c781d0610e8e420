//! Liveness, the agent's part: asks every peer over every link whether it lives, and lets those be alive that may be.
//!
//! ```text
//! Sender (real-time thread) ─ requests ─► peers' XDP ─ answers ─► own XDP ─► HEARD ─► kernel timer ─► ALIVE ─► packets
//!     └─ figures, changes ─► Detector (in the agent) ─ admissions ─► WATCHED ───────────────┘
//! ```
//!
//! The kernel's timer turns a peer off, without the agent; see [`redirector_ebpf::liveness`]. Only the agent turns one on:
//! the [`Detector`] decides when. Nothing here goes by the wall clock.

mod asker;
mod damping;
mod detector;
mod figures;
pub mod frame;
mod legs;
mod sender;
mod socket;
#[cfg(test)]
mod tests;

pub use asker::{Asker, Changes, LinkPlan, Plan};
pub use damping::Damping;
#[cfg(test)]
pub(crate) use damping::FORGIVEN;
pub use detector::{AGENT_SILENT, Action, Detector, Observation, Own, Peer, State};
pub use figures::{Figures, LinkFigures, SenderFigures, Spread};
pub use legs::{FarEnd, FarPlan, LegFigures};
pub use sender::{Sender, StartError, Watcher};
pub(crate) use socket::be_real_time;
