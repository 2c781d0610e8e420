//! What is said of connections that failed: not too often, and whether a certificate was the reason.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use quinn::ConnectionError;

/// The least time between two lines about the same thing.
const PACE: Duration = Duration::from_secs(10);

/// Lets a line be logged now and then.
#[derive(Debug, Default)]
pub(super) struct Pace(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    last: Option<Instant>,
    unsaid: u64,
}

impl Pace {
    /// Whether it is time for a line, and how many were left out since the last one.
    pub(super) fn due(&self) -> Option<u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).due_at(Instant::now())
    }
}

impl State {
    fn due_at(&mut self, now: Instant) -> Option<u64> {
        if self.last.is_some_and(|last| now.saturating_duration_since(last) < PACE) {
            self.unsaid += 1;
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.unsaid))
    }
}

/// Alerts of TLS (RFC 8446, section 6.2) that speak of a certificate: bad, unsupported, revoked, expired, unknown, of an
/// unknown authority, without access, with a wrong signature, missing.
const ABOUT_CERTIFICATES: [u64; 9] = [42, 43, 44, 45, 46, 48, 49, 51, 116];

/// Where QUIC's error codes have the alerts of TLS (RFC 9001, section 4.8).
const ALERTS: u64 = 0x100;

/// Whether one end refused the other's certificate.
pub(super) fn is_refusal(error: &ConnectionError) -> bool {
    let code = match error {
        ConnectionError::TransportError(error) => error.code,
        ConnectionError::ConnectionClosed(close) => close.error_code,
        _ => return false,
    };
    u64::from(code).checked_sub(ALERTS).is_some_and(|alert| ABOUT_CERTIFICATES.contains(&alert))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_unsaid_is_told_later() {
        let mut state = State::default();
        let start = Instant::now();
        assert_eq!(state.due_at(start), Some(0));
        assert_eq!(state.due_at(start + PACE / 2), None);
        assert_eq!(state.due_at(start), None);
        assert_eq!(state.due_at(start + PACE), Some(2));
        assert_eq!(state.due_at(start + PACE * 3), Some(0));
    }
}
