//! Self-health: what a node measures of its own host, the score that it makes of it, and what share of the work it takes.
//!
//! ```text
//! /proc, PSI, netlink, a timed fsync ─► figures ─► areas (25 points each) ─► score ─► Standing ─► share of the slots
//! ```
//!
//! [`Figures`] and [`Standing`] know neither clock nor kernel; [`Probes`] reads the host, the disk on a thread of its own,
//! so that one that does not answer holds up nobody.

mod arrivals;
mod figure;
mod host;
mod neighbours;
mod probes;
mod standing;
mod storage;
mod thresholds;

pub use figure::{Area, AreaStatus, FigureStatus, Figures, Reading, Verdict};
pub use neighbours::{Hop, Neighbours, Unresolved};
pub use probes::{Host, Probes};
pub use standing::{FULL_SHARE, Standing};
pub use thresholds::{Figure, Thresholds};
