//! The data plane as the agent sees it: what the maps should hold, the maps themselves, and how one becomes the other.
//!
//! ```text
//! Config ─ image ─► Image ─ install ─► Maps (pinned) ◄─ load ─ the embedded object
//!                     └──── memory ──► MemoryTables (why, tests)
//! ```
//!
//! Everything that decides is in `redirector_ebpf`; here nothing decides about a packet.

pub mod address;
pub mod batch;
pub mod flows;
pub mod image;
pub mod install;
pub mod liveness;
pub mod load;
mod mapped;
pub mod maps;
pub mod memory;
pub mod paths;
pub mod registry;
pub mod rows;
pub mod shortcuts;
