//! The agent's own work under load: the same levels as for packets.
//!
//! One level for the process, since a line of the log knows no node that it belongs to.

use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

/// Kinds of work that the agent does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Log lines below a warning, and traces of packets.
    Logs,
    /// Distributions of round trips and gaps.
    Statistics,
    /// Bringing peers up to date that lack many flows, at its full pace. Changes of flows go out as ever.
    Resynchronisation,
    /// Beats, who is alive, agreement.
    Vital,
}

/// Whether a kind of work is done at a shed level.
pub const fn is_done(work: Work, level: u8) -> bool {
    match work {
        Work::Logs => level < 1,
        Work::Statistics => level < 2,
        Work::Resynchronisation => level < 3,
        Work::Vital => true,
    }
}

static LEVEL: AtomicU8 = AtomicU8::new(0);

/// Says what the shed level is.
pub fn set_level(level: u8) {
    LEVEL.store(level, Relaxed);
}

/// Whether a kind of work is done at present.
pub fn is_due(work: Work) -> bool {
    is_done(work, LEVEL.load(Relaxed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_given_up_in_order_and_what_is_vital_never() {
        let done = |level| {
            [Work::Logs, Work::Statistics, Work::Resynchronisation, Work::Vital].map(|work| is_done(work, level))
        };
        assert_eq!(done(0), [true; 4]);
        assert_eq!(done(1), [false, true, true, true]);
        assert_eq!(done(2), [false, false, true, true]);
        assert_eq!(done(3), [false, false, false, true]);
    }
}
