//! The time by which certificates are judged. It is the wall clock's when the process began and what has passed since by
//! the monotonic clock, so that a wall clock that jumps meanwhile cuts nobody off.
//!
//! A wall clock that was wrong at the beginning, as on a host whose battery is empty, may be set right later: where this
//! node's own certificate holds by the wall clock and not by the steady time, the wall clock is believed. And it is never
//! earlier than when this node's own certificate was issued.

use std::sync::OnceLock;
use std::time::{Instant, SystemTime};

use rustls::pki_types::UnixTime;
use rustls::time_provider::TimeProvider;

use crate::pki::CLOCKS_APART;

/// From when to when a certificate is good.
pub(super) type Validity = (SystemTime, SystemTime);

/// A clock that believes this node's own certificate.
#[derive(Debug)]
pub(super) struct Clock {
    own: Validity,
}

impl Clock {
    /// Goes by the certificate that is good for this time.
    pub(super) fn new(own: Validity) -> Self {
        // So that the process begins no later than its first certificate is taken.
        steady();
        Self { own }
    }
}

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        let now = believed(steady(), SystemTime::now(), self.own);
        now.duration_since(SystemTime::UNIX_EPOCH).ok().map(UnixTime::since_unix_epoch)
    }
}

fn steady() -> SystemTime {
    static BEGINNING: OnceLock<(SystemTime, Instant)> = OnceLock::new();
    let (wall, began) = *BEGINNING.get_or_init(|| (SystemTime::now(), Instant::now()));
    wall + began.elapsed()
}

fn believed(steady: SystemTime, wall: SystemTime, (from, until): Validity) -> SystemTime {
    let holds = |time| from <= time && time <= until;
    match (holds(steady), holds(wall)) {
        (false, true) => wall,
        (false, false) if steady < from => from + CLOCKS_APART,
        _ => steady,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn jumps_are_not_believed_and_corrections_are() {
        let year = |year: u64| SystemTime::UNIX_EPOCH + Duration::from_secs((year - 1970) * 365 * 86_400);
        let own = (year(2024), year(2034));
        let issued = year(2024) + CLOCKS_APART;
        assert_eq!(believed(year(1970), year(1970), own), issued, "it has been issued");
        assert_eq!(believed(year(1970), year(2090), own), issued);
        for (steady, wall, now) in [
            (2026, 2026, 2026),
            // The wall clock jumps.
            (2026, 1970, 2026),
            (2026, 2090, 2026),
            (2026, 2030, 2026),
            // It was wrong at the beginning, and is set right.
            (1970, 2026, 2026),
            (2090, 2026, 2026),
            // The certificate has run out.
            (2035, 2035, 2035),
            (2035, 1970, 2035),
        ] {
            assert_eq!(believed(year(steady), year(wall), own), year(now), "{steady}, {wall}");
        }
    }
}
