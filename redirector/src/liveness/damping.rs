//! How long what fell stays out, so that what flaps is not used at each turn: twice as long with each fall, until time has
//! passed without one. The same for peers and for paths.

use std::time::Duration;

use serde::Serialize;

/// After so long without another fall, one is forgotten.
pub(crate) const FORGIVEN: Duration = Duration::from_secs(60);

/// The falls of one peer or path that still count.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Damping {
    flaps: u32,
    not_before: Duration,
    quiet_since: Duration,
}

impl Damping {
    /// Nothing fell yet.
    pub fn new(now: Duration) -> Self {
        Self { flaps: 0, not_before: Duration::ZERO, quiet_since: now }
    }

    /// Time goes by: forgets a fall when it has been quiet for long enough.
    pub fn pass(&mut self, now: Duration) {
        if self.flaps > 0 && now.saturating_sub(self.quiet_since) >= FORGIVEN {
            self.flaps -= 1;
            self.quiet_since = now;
        }
    }

    /// It fell: it stays out for `least`, doubled with each fall that is not forgotten, and for `most` at most.
    pub fn fall(&mut self, now: Duration, least: Duration, most: Duration) {
        let doubled = least.saturating_mul(2u32.saturating_pow(self.flaps));
        self.not_before = now + doubled.min(most);
        self.flaps += 1;
        self.quiet_since = now;
    }

    /// Whether so much time has passed since it fell, however often it did.
    pub fn has_rested(&self, now: Duration, least: Duration) -> bool {
        now.saturating_sub(self.quiet_since) >= least
    }

    /// Whether it has to stay out.
    pub fn holds(&self, now: Duration) -> bool {
        now < self.not_before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAST: Duration = Duration::from_millis(250);
    const MOST: Duration = Duration::from_secs(30);

    /// How long one that falls now stays out.
    fn held(damping: &mut Damping, now: Duration) -> Duration {
        damping.fall(now, LEAST, MOST);
        let held = damping.not_before - now;
        assert!(damping.holds(now + held - Duration::from_nanos(1)) && !damping.holds(now + held));
        held
    }

    #[test]
    fn each_fall_doubles_up_to_the_most_and_is_forgotten_one_by_one() {
        let now = Duration::from_secs(100);
        let mut damping = Damping::new(now);
        let waits: Vec<Duration> = (0..40).map(|_| held(&mut damping, now)).collect();
        for (falls, wait) in waits.iter().enumerate() {
            let doubled = LEAST.saturating_mul(1 << falls.min(20));
            assert_eq!(*wait, doubled.min(MOST), "after {falls} falls");
        }
        let mut then = now;
        for _ in 0..38 {
            then += FORGIVEN;
            damping.pass(then - Duration::from_nanos(1));
            damping.pass(then);
        }
        assert_eq!(held(&mut damping, then), LEAST * 4, "two are left");
    }
}
