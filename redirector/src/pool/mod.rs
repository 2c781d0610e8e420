//! Pools: which backend a flow's row names.
//!
//! This room computes tables and never installs them. A table is a pure function of the pool's committed backends, so
//! every node computes the same one and its digest can be compared between nodes.

pub mod ebb;
mod maglev;
pub mod transition;
pub mod warmup;

pub use maglev::{Member, build, rows, stable_hash};
