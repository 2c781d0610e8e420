//! Distributions: what a figure was in the middle, at its 99th hundredth, and at most.

use anyhow::Result;
use hdrhistogram::Histogram;
use serde::Serialize;

/// Quantiles of values that were taken one by one.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[expect(missing_docs, reason = "each is the quantile that it names")]
pub struct Spread {
    pub p50: f64,
    pub p99: f64,
    pub max: f64,
}

impl Spread {
    /// Of counts, to five digits.
    ///
    /// # Errors
    /// Where a count is beyond all measure.
    pub fn of_counts(values: impl IntoIterator<Item = u64>) -> Result<Self> {
        let mut histogram = Histogram::<u64>::new(5)?;
        for value in values {
            histogram.record(value)?;
        }
        let [p50, p99] = [0.5, 0.99].map(|share| histogram.value_at_quantile(share) as f64);
        Ok(Self { p50, p99, max: histogram.max() as f64 })
    }

    /// Of milliseconds, to the microsecond.
    ///
    /// # Errors
    /// As [`Spread::of_counts`].
    pub fn of_ms(values: impl IntoIterator<Item = f64>) -> Result<Self> {
        let us = values.into_iter().map(|ms| (ms * 1000.0).round() as u64);
        let Self { p50, p99, max } = Self::of_counts(us)?;
        Ok(Self { p50: p50 / 1000.0, p99: p99 / 1000.0, max: max / 1000.0 })
    }
}

/// Ratios of what is measured to the floor, of pairs that were measured one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[expect(missing_docs, reason = "each is the quantile that it names")]
pub struct Ratios {
    pub ratio_median: f64,
    pub ratio_p10: f64,
    pub ratio_p90: f64,
}

impl Ratios {
    /// Of these, to four digits.
    ///
    /// # Errors
    /// Where a ratio is beyond all measure.
    pub fn of(ratios: impl IntoIterator<Item = f64>) -> Result<Self> {
        let [ratio_p10, ratio_median, ratio_p90] = quantiles(ratios, [0.1, 0.5, 0.9])?;
        Ok(Self { ratio_median, ratio_p10, ratio_p90 })
    }
}

/// The one in the middle.
///
/// # Errors
/// Where a value is beyond all measure.
pub fn median(values: impl IntoIterator<Item = f64>) -> Result<f64> {
    Ok(quantiles(values, [0.5])?[0])
}

/// Quantiles of positive values, to four digits behind the point and in all.
fn quantiles<const N: usize>(values: impl IntoIterator<Item = f64>, at: [f64; N]) -> Result<[f64; N]> {
    const UNIT: f64 = 10_000.0;
    let mut histogram = Histogram::<u64>::new(4)?;
    for value in values {
        histogram.record((value * UNIT).round() as u64)?;
    }
    // The least of the values that the histogram does not tell apart, so that whole ones stay whole.
    Ok(at.map(|share| histogram.lowest_equivalent(histogram.value_at_quantile(share)) as f64 / UNIT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_the_values_that_were_there() {
        let spread = Spread::of_counts(1..=1000).unwrap();
        assert_eq!(spread, Spread { p50: 500.0, p99: 990.0, max: 1000.0 });
        let ms = Spread::of_ms([0.25, 30.5, 1.0]).unwrap();
        assert_eq!(ms, Spread { p50: 1.0, p99: 30.5, max: 30.5 });
        let ratios = Ratios::of([0.5, 0.6, 0.7, 0.65, 0.55]).unwrap();
        assert_eq!((ratios.ratio_p10, ratios.ratio_median, ratios.ratio_p90), (0.5, 0.6, 0.7));
        assert_eq!(median([14.0]).unwrap(), 14.0);
    }
}
