//! How soon the flows of a backend that gets no new ones will have ended, by how they ended lately, without IO.
//!
//! Nothing is known of a flow but that it is there, so each is taken to end at one rate, whatever its age: as many as ended,
//! by the time that all of them together were there. Then of `n` flows the last ends after the `n`-th harmonic number by the
//! rate, and after a time `t` as many are left as `n` by `e` to the power of minus rate times `t`.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::time::Duration;

/// How far back flows' ends count.
const WINDOW: Duration = Duration::from_secs(300);

/// How far apart counts are kept.
const STEP: Duration = Duration::from_secs(5);

/// From how long a time on an estimate is ventured.
const ENOUGH: Duration = Duration::from_secs(10);

/// Counts of flows, the last of now.
#[derive(Clone, Debug, Default)]
pub struct Ebb {
    counts: VecDeque<(Duration, u64)>,
}

impl Ebb {
    /// So many flows are left, by any clock that never goes back. A count that is not whole is better left out.
    pub fn note(&mut self, flows: u64, now: Duration) {
        let before = self.counts.len().checked_sub(2).map(|at| self.counts[at].0);
        if before.is_some_and(|before| now.saturating_sub(before) < STEP) {
            self.counts.pop_back();
        }
        self.counts.push_back((now, flows));
        while self.counts.get(1).is_some_and(|(at, _)| now.saturating_sub(*at) >= WINDOW) {
            self.counts.pop_front();
        }
    }

    /// How many are left.
    pub fn flows(&self) -> Option<u64> {
        self.counts.back().map(|(_, flows)| *flows)
    }

    /// How many of a flow end in a second; none where too little was seen, or none has ended.
    fn rate(&self) -> Option<f64> {
        // Counts rise at first: a flow counts once it has sent a packet. So what went before the highest tells nothing.
        let highest = (0..self.counts.len()).max_by_key(|&at| (self.counts[at].1, Reverse(at)))?;
        let counts = || self.counts.range(highest..);
        let ((began, first), (now, last)) = (*counts().next()?, *self.counts.back()?);
        let ended = first.checked_sub(last).filter(|ended| *ended > 0 && now.saturating_sub(began) >= ENOUGH)?;
        let pairs = counts().zip(counts().skip(1));
        let lived = |((from, before), (to, after)): (&(Duration, u64), &(Duration, u64))| {
            to.saturating_sub(*from).as_secs_f64() * (*before as f64 + *after as f64) / 2.0
        };
        Some(ended as f64 / pairs.map(lived).sum::<f64>())
    }

    /// How long until the last has ended.
    pub fn lasts(&self) -> Option<Duration> {
        match self.flows()? {
            0 => Some(Duration::ZERO),
            flows => Duration::try_from_secs_f64(harmonic(flows) / self.rate()?).ok(),
        }
    }

    /// How many are left after so long.
    pub fn left_after(&self, time: Duration) -> Option<u64> {
        match self.flows()? {
            0 => Some(0),
            flows => Some((flows as f64 * (-self.rate()? * time.as_secs_f64()).exp()).round() as u64),
        }
    }
}

/// The sum of 1, 1/2, 1/3 … 1/n, of which the first hundred are added up.
fn harmonic(n: u64) -> f64 {
    const EXACT: u64 = 100;
    let sum: f64 = (1..=n.min(EXACT)).map(|k| 1.0 / k as f64).sum();
    if n > EXACT { sum + (n as f64 / EXACT as f64).ln() } else { sum }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn what_was_counted_before_all_had_spoken_does_not_count() {
        let (counts, mut ebb) = ([2, 7, 12, 12, 9, 8, 6, 6, 6], Ebb::default());
        let times = |count: usize| SECOND * count as u32 * 5;
        counts.iter().enumerate().for_each(|(at, flows)| ebb.note(*flows, times(at)));
        assert!(ebb.lasts().is_some_and(|lasts| lasts > Duration::ZERO) && ebb.left_after(SECOND) <= Some(6));
    }

    /// Notes the count of each second of the first `seconds`, and says how long the last flow of all lasts after that.
    fn watch(ends: &[f64], seconds: u32) -> (Ebb, f64) {
        let mut ebb = Ebb::default();
        for second in 0..=seconds {
            let left = ends.iter().filter(|end| **end > f64::from(second)).count();
            ebb.note(left as u64, SECOND * second);
        }
        (ebb, ends.iter().copied().fold(0.0, f64::max) - f64::from(seconds))
    }

    fn exponential(mean: f64, flows: usize, seed: u64) -> Vec<f64> {
        // SplitMix64.
        let draw = |at: usize| {
            let word = (seed * 1_000_003 + at as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            ((word ^ word >> 31) >> 11) as f64 / (1u64 << 53) as f64
        };
        (0..flows).map(|at| -mean * (1.0 - draw(at)).ln()).collect()
    }

    #[test]
    fn of_flows_that_end_at_one_rate_the_last_is_foretold() {
        for (mean, flows) in [(60.0, 1_000), (600.0, 10_000), (20.0, 200)] {
            let (mut foretold, mut was) = (0.0, 0.0);
            for seed in 0..40 {
                let ends = exponential(mean, flows, seed);
                let (ebb, last) = watch(&ends, 60);
                foretold += ebb.lasts().unwrap().as_secs_f64();
                was += last;
                let left = ebb.left_after(SECOND * 60).unwrap() as f64;
                let is = ends.iter().filter(|end| **end > 120.0).count() as f64;
                assert!((left - is).abs() <= 5.0 * is.sqrt() + 3.0, "{left} and not {is} are left of {flows}");
            }
            assert!((0.85..1.15).contains(&(foretold / was)), "{} and not {} s", foretold / 40.0, was / 40.0);
        }
    }

    #[test]
    fn nothing_is_foretold_of_too_little() {
        let mut ebb = Ebb::default();
        assert_eq!((ebb.flows(), ebb.lasts(), ebb.left_after(SECOND)), (None, None, None));
        (0..10).for_each(|second| ebb.note(100 - u64::from(second), SECOND * second));
        assert_eq!((ebb.flows(), ebb.lasts()), (Some(91), None), "for less than ten seconds");
        ebb.note(90, SECOND * 10);
        assert!(ebb.lasts().is_some());
        let mut still = Ebb::default();
        (0..400).for_each(|second| still.note(7, SECOND * second));
        assert_eq!((still.flows(), still.lasts(), still.left_after(SECOND)), (Some(7), None, None), "none ends");
        let mut more = Ebb::default();
        (0..400).for_each(|second| more.note(u64::from(second), SECOND * second));
        assert_eq!(more.lasts(), None, "a node that was not heard before has some too");
    }

    #[test]
    fn what_has_ended_lasts_no_longer_and_what_lasts_forever_is_no_panic() {
        let mut ebb = Ebb::default();
        ebb.note(0, Duration::ZERO);
        assert_eq!((ebb.lasts(), ebb.left_after(SECOND)), (Some(Duration::ZERO), Some(0)));
        let mut ebb = Ebb::default();
        ebb.note(u64::MAX, Duration::ZERO);
        ebb.note(u64::MAX - 1, SECOND * 20);
        assert_eq!(ebb.left_after(SECOND), Some(u64::MAX));
        assert!(ebb.lasts().is_none_or(|lasts| lasts > SECOND * 1_000_000));
    }

    #[test]
    fn what_was_long_ago_does_not_count_and_little_is_kept() {
        let mut ebb = Ebb::default();
        (0..200).for_each(|second| ebb.note(10_000 - 40 * u64::from(second), SECOND * second));
        (200..1000).for_each(|second| ebb.note(2_000, SECOND * second));
        assert_eq!(ebb.lasts(), None, "none has ended within five minutes");
        assert!(ebb.counts.len() <= 80, "{} counts", ebb.counts.len());
    }
}
