//! Which paths and backends are used: from what beats, probes and neighbours say to admissions.
//!
//! ```text
//! sender ─ beats ─► far ends ─ answers ─► own XDP ─► LEG_HEARD ─► kernel timer ─► PATH_ALIVE ─► packets
//!                                            └─► Path (here) ─ admissions ─► WATCHED_PATHS ─┘
//! ```
//!
//! The kernel's timer turns a path off, without the agent; see [`redirector_ebpf::paths`]. Only the agent turns one on: the
//! machine of [`health`] decides when.

pub mod backends;
pub mod health;
pub mod legs;
pub mod probes;
pub mod signals;
