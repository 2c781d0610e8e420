//! Shedding: how loaded this node is, and what it gives up to go on serving the rest.
//!
//! ```text
//! /proc/stat, counters, flow tables, queue ─► Meter ─► load ─► Levels ─► shed level ┬─► NODE (packets, XDP)
//!                                                                                   ├─► beats
//!                                                                                   └─► work (the agent's own)
//! ```
//!
//! [`Meter`] and [`Levels`] know neither clock nor kernel. Which packets a level refuses is for
//! [`redirector_ebpf::stations::admit`] to say; which work of the agent's own, for [`work`].

pub mod capacity;
mod levels;
mod load;
pub mod work;

pub use levels::Levels;
pub use load::{Load, Meter, Sample, cpu_times};
