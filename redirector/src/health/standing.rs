//! From the score to the share of the work that a node takes, damped: it sinks step by step, gives all up where its health
//! is critical, and comes back more slowly than it went.

use std::time::Duration;

use crate::config::Health;

/// The whole share, in quarters.
pub const FULL_SHARE: u8 = 4;

/// So much better than `degraded` a score must be for a share to rise again.
const DISTANCE: u8 = 5;

/// Where the score stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Range {
    Healthy,
    /// Between sinking and rising.
    Between,
    Degraded,
    Critical,
}

/// The share that a node takes. Times are durations since any moment that stays the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    share: u8,
    range: Range,
    /// Since when the score has been in its range, or the share changed last.
    since: Duration,
}

impl Default for Standing {
    fn default() -> Self {
        Self { share: FULL_SHARE, range: Range::Healthy, since: Duration::ZERO }
    }
}

impl Standing {
    /// The share: 4 quarters for a healthy node, 3 to 1 for a degraded one, 0 for one that hands everything over.
    pub fn share(&self) -> u8 {
        self.share
    }

    /// Takes note of the score, and whether the node has failed in something that it cannot do without; says whether the
    /// share has changed.
    pub fn observe(&mut self, score: u8, has_failed: bool, settings: &Health, now: Duration) -> bool {
        let range = match score {
            _ if has_failed => Range::Critical,
            score if score < settings.critical => Range::Critical,
            score if score < settings.degraded => Range::Degraded,
            score if score >= settings.degraded.saturating_add(DISTANCE).min(100) => Range::Healthy,
            _ => Range::Between,
        };
        if range != self.range {
            (self.range, self.since) = (range, now);
        }
        let held = now.saturating_sub(self.since);
        let next = match (range, self.share) {
            (Range::Critical, _) if held >= settings.dwell => 0,
            // One that has handed all over takes nothing back until it is well.
            (Range::Degraded, 2..) if held >= settings.dwell => self.share - 1,
            (Range::Healthy, 0..FULL_SHARE) if held >= 2 * settings.dwell => self.share + 1,
            (_, share) => share,
        };
        let is_other = next != self.share;
        if is_other {
            (self.share, self.since) = (next, now);
        }
        is_other
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::{Figure, Figures, Reading};

    const T0: Duration = Duration::from_secs(100);
    const MS: Duration = Duration::from_millis(1);

    /// Score and failure, then the share after less than a dwell, after one, and after two, from each share.
    const TABLE: &[(u8, bool, [[u8; 3]; 5])] = &[
        (100, false, [[0, 0, 1], [1, 1, 2], [2, 2, 3], [3, 3, 4], [4, 4, 4]]),
        (85, false, [[0, 0, 1], [1, 1, 2], [2, 2, 3], [3, 3, 4], [4, 4, 4]]),
        (84, false, [[0, 0, 0], [1, 1, 1], [2, 2, 2], [3, 3, 3], [4, 4, 4]]),
        (80, false, [[0, 0, 0], [1, 1, 1], [2, 2, 2], [3, 3, 3], [4, 4, 4]]),
        (79, false, [[0, 0, 0], [1, 1, 1], [2, 1, 1], [3, 2, 2], [4, 3, 3]]),
        (75, false, [[0, 0, 0], [1, 1, 1], [2, 1, 1], [3, 2, 2], [4, 3, 3]]),
        (50, false, [[0, 0, 0], [1, 1, 1], [2, 1, 1], [3, 2, 2], [4, 3, 3]]),
        (49, false, [[0, 0, 0], [1, 0, 0], [2, 0, 0], [3, 0, 0], [4, 0, 0]]),
        (0, false, [[0, 0, 0], [1, 0, 0], [2, 0, 0], [3, 0, 0], [4, 0, 0]]),
        (100, true, [[0, 0, 0], [1, 0, 0], [2, 0, 0], [3, 0, 0], [4, 0, 0]]),
    ];

    #[test]
    fn every_share_meets_every_score() {
        let settings = Health::default();
        assert_eq!((settings.degraded, settings.critical), (80, 50), "the table's");
        for &(score, has_failed, by_share) in TABLE {
            for (share, expected) in (0..).zip(by_share) {
                for (held, expected) in
                    [settings.dwell - MS, settings.dwell, 2 * settings.dwell].into_iter().zip(expected)
                {
                    let mut standing = Standing { share, range: Range::Between, since: Duration::ZERO };
                    standing.observe(score, has_failed, &settings, T0);
                    let before = standing.share();
                    assert!(before == share || score == 84 || score == 80, "nothing follows at once");
                    standing.observe(score, has_failed, &settings, T0 + held);
                    let says = format!("{share} quarters, {score} points, failed: {has_failed}, held {held:?}");
                    assert_eq!(standing.share(), expected, "{says}");
                }
            }
        }
    }

    #[test]
    fn any_figure_at_its_worst_is_enough_to_sink_and_not_to_hand_all_over() {
        let settings = Health::default();
        for worst in Figure::ALL.into_iter().filter(|figure| !figure.is_vital) {
            let reading = |figure: Figure, value| Reading { figure, value, words: String::new() };
            let well: Vec<Reading> = Figure::ALL.into_iter().map(|figure| reading(figure, figure.good)).collect();
            let (mut figures, mut standing, mut now) = (Figures::default(), Standing::default(), T0);
            let mut shares = |readings: &[Reading]| {
                let mut seen = vec![standing.share()];
                for _ in 0..100 {
                    now += settings.dwell / 10;
                    figures.observe(readings.to_vec(), now);
                    if standing.observe(figures.score(), figures.has_failed(), &settings, now) {
                        seen.push(standing.share());
                    }
                }
                seen
            };
            assert_eq!(shares(&well), [4], "{}", worst.name);
            let mut ill = well.clone();
            ill.retain(|one| one.figure.name != worst.name);
            ill.push(reading(worst, worst.bad));
            assert_eq!(shares(&ill), [4, 3, 2, 1], "{}", worst.name);
            assert_eq!(shares(&well), [1, 2, 3, 4], "{}", worst.name);
        }
    }

    #[test]
    fn it_sinks_step_by_step_and_rises_more_slowly() {
        let (settings, mut standing, mut now) = (Health::default(), Standing::default(), T0);
        let mut shares = |score: u8, steps: u32| {
            let mut seen = vec![standing.share()];
            for _ in 0..steps {
                now += settings.dwell / 10;
                if standing.observe(score, false, &settings, now) {
                    seen.push(standing.share());
                }
            }
            seen
        };
        assert_eq!(shares(60, 35), [4, 3, 2, 1]);
        assert_eq!(shares(60, 100), [1], "a degraded node keeps a part");
        assert_eq!(shares(10, 15), [1, 0]);
        assert_eq!(shares(83, 100), [0], "not well enough");
        assert_eq!(shares(90, 45), [0, 1, 2]);
        // A score that jumps to and fro moves nothing.
        let mut seen = Vec::new();
        (0..50).for_each(|_| {
            seen.extend(shares(60, 5));
            seen.extend(shares(90, 5));
        });
        assert!(seen.iter().all(|share| *share == 2), "{seen:?}");
    }
}
