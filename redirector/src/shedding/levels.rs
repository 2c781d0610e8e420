//! From load to shed level, damped: up at once, down one level at a time, after a dwell and with some distance.

use std::time::Duration;

use crate::config::Shedding;

/// The shed level and since when it holds. Times are durations since any moment that stays the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Levels {
    level: u8,
    since: Duration,
}

impl Levels {
    /// The level.
    pub fn level(&self) -> u8 {
        self.level
    }

    /// Since when it holds.
    pub fn since(&self) -> Duration {
        self.since
    }

    /// Takes note of the load, in per cent; says whether the level has changed.
    pub fn observe(&mut self, load: u8, settings: &Shedding, now: Duration) -> bool {
        let reached = settings.levels.iter().filter(|&&level| load >= level).count() as u8;
        let next = if reached > self.level {
            reached
        } else {
            let own = usize::from(self.level).checked_sub(1).and_then(|index| settings.levels.get(index));
            let is_below = own.is_some_and(|own| load < own.saturating_sub(settings.hysteresis));
            let has_held = now.saturating_sub(self.since) >= settings.dwell;
            self.level - u8::from(is_below && has_held)
        };
        let is_other = next != self.level;
        if is_other {
            *self = Self { level: next, since: now };
        }
        is_other
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const T0: Duration = Duration::from_secs(100);

    /// The level after each load, at each level, before and after the dwell; with levels at 70, 85, 95 and a hysteresis of 5.
    const TABLE: &[(u8, u8, u8, u8)] = &[
        // Level, load, then too early, then when it has dwelt.
        (0, 0, 0, 0),
        (0, 69, 0, 0),
        (0, 70, 1, 1),
        (0, 84, 1, 1),
        (0, 85, 2, 2),
        (0, 94, 2, 2),
        (0, 95, 3, 3),
        (0, 100, 3, 3),
        (1, 0, 1, 0),
        (1, 64, 1, 0),
        (1, 65, 1, 1),
        (1, 84, 1, 1),
        (1, 85, 2, 2),
        (1, 95, 3, 3),
        (2, 0, 2, 1),
        (2, 79, 2, 1),
        (2, 80, 2, 2),
        (2, 94, 2, 2),
        (2, 95, 3, 3),
        (3, 0, 3, 2),
        (3, 89, 3, 2),
        (3, 90, 3, 3),
        (3, 100, 3, 3),
    ];

    #[test]
    fn every_level_meets_every_load() {
        let settings = Shedding::default();
        assert_eq!((settings.levels, settings.hysteresis), ([70, 85, 95], 5), "the table's");
        for &(level, load, early, late) in TABLE {
            for (now, expected) in [(T0 + settings.dwell - Duration::from_nanos(1), early), (T0 + settings.dwell, late)]
            {
                let mut levels = Levels { level, since: T0 };
                let changed = levels.observe(load, &settings, now);
                assert_eq!((levels.level(), changed), (expected, expected != level), "level {level}, load {load}");
                assert_eq!(levels.since(), if changed { now } else { T0 });
            }
        }
    }

    proptest! {
        /// Whatever the load does: it is shed at once, and never more than one level is left within a dwell.
        #[test]
        fn up_at_once_and_down_slowly(loads in proptest::collection::vec((0u8..=100, 1u64..3000), 1..200)) {
            let settings = Shedding::default();
            let (mut levels, mut now) = (Levels::default(), T0);
            for (load, wait) in loads {
                let (before, since) = (levels.level(), levels.since());
                now += Duration::from_millis(wait);
                levels.observe(load, &settings, now);
                let reached = settings.levels.iter().filter(|&&level| load >= level).count() as u8;
                prop_assert!(levels.level() >= reached);
                if levels.level() < before {
                    prop_assert_eq!(levels.level(), before - 1);
                    prop_assert!(before == 0 || now - since >= settings.dwell);
                }
            }
        }
    }
}
