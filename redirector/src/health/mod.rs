//! Self-health: what a node measures of its own host, the score that it makes of it, and what share of the work it takes.
//!
//! ```text
//! /proc, PSI, netlink, a timed fsync ─► figures ─► areas (25 points each) ─► score ─► Standing ─► share of the slots
//! ```
//!
//! [`Figures`] and [`Standing`] know neither clock nor kernel; [`Probes`] reads the host, the disk on a thread of its own,
//! so that one that does not answer holds up nobody.

mod figure;
mod host;
mod probes;
mod standing;
mod storage;

pub use figure::{Area, AreaStatus, FigureStatus, Figures, Reading, Verdict};
pub use probes::{Host, Probes};
pub use standing::{FULL_SHARE, Standing};
