//! Activation ranges from running the float graph. Memory does not grow with the number of images.

use crate::float::Runner;
use crate::scheme::{ActivationType, Affine};
use crate::{Error, Result};
use rayon::prelude::*;
use serde::Serialize;

/// How a clipping range is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Calibrator {
    /// Smallest and largest value seen.
    Minmax,
    /// Exponential moving average (0.9) of each image's smallest and largest value.
    MovingAverage,
    /// The range with the least squared quantization error, found on a histogram.
    Mse,
}

/// A tensor's range.
pub type Range = (f64, f64);

const BINS: usize = 2048;
const MOMENTUM: f64 = 0.9;
/// Images per ordered step: bounds memory and keeps results independent of thread count.
const CHUNK: usize = 32;

/// Loads the calibration input with this index.
pub type Load<'a> = &'a (dyn Fn(usize) -> Result<Vec<f32>> + Sync);

/// The calibration inputs.
pub struct Feed<'a> {
    /// Indices, in the order moving averages see them.
    pub images: &'a [usize],
    /// Reads one.
    pub load: Load<'a>,
    /// Called after each run.
    pub tick: &'a (dyn Fn() + Sync),
}

impl Feed<'_> {
    fn chunks<T: Send>(&self, one: impl Fn(Vec<f32>) -> Result<T> + Sync, mut merge: impl FnMut(T)) -> Result<()> {
        for chunk in self.images.chunks(CHUNK) {
            let run = |&i: &usize| {
                let out = one((self.load)(i)?)?;
                (self.tick)();
                Ok(out)
            };
            let done: Vec<T> = chunk.par_iter().map(run).collect::<Result<_>>()?;
            done.into_iter().for_each(&mut merge);
        }
        Ok(())
    }
}

/// Measures the outputs of `runner` after its own `skip` graph outputs; they are called `names`.
/// Returns the chosen range of each.
pub fn calibrate(
    runner: &Runner,
    skip: usize,
    names: &[String],
    feed: &Feed,
    calibrator: Calibrator,
    dtype: ActivationType,
) -> Result<Vec<Range>> {
    let count = names.len();
    let mut all = vec![(f64::INFINITY, f64::NEG_INFINITY); count];
    let mut average: Vec<Option<Range>> = vec![None; count];
    let extremes = |input: Vec<f32>| {
        let mut ranges = vec![(f64::INFINITY, f64::NEG_INFINITY); count];
        let mut bad = None;
        runner.run(&input, |i, _, values| {
            if i < skip {
                return;
            }
            let (mut lo, mut hi, mut finite) = (f32::INFINITY, f32::NEG_INFINITY, true);
            for &v in values {
                lo = lo.min(v);
                hi = hi.max(v);
                finite &= v.is_finite();
            }
            if !finite {
                bad = bad.or(Some(i - skip));
            }
            ranges[i - skip] = (lo.into(), hi.into());
        })?;
        match bad {
            Some(i) => Err(Error::tensor(&names[i], "it becomes NaN or infinite on calibration data")),
            None => Ok(ranges),
        }
    };
    feed.chunks(extremes, |ranges| {
        for (t, &(lo, hi)) in ranges.iter().enumerate().filter(|(_, r)| r.0 <= r.1) {
            all[t] = (all[t].0.min(lo), all[t].1.max(hi));
            let mix = |old: f64, new: f64| old * MOMENTUM + new * (1.0 - MOMENTUM);
            average[t] = Some(average[t].map_or((lo, hi), |(l, h)| (mix(l, lo), mix(h, hi))));
        }
    })?;
    let missing = all.iter().position(|r| r.0 > r.1);
    if let Some(t) = missing {
        return Err(Error::tensor(&names[t], "tract gave no float values for it"));
    }
    match calibrator {
        Calibrator::Minmax => Ok(all),
        Calibrator::MovingAverage => Ok(average.into_iter().map(|r| r.unwrap_or((0.0, 0.0))).collect()),
        Calibrator::Mse => {
            let mut total: Vec<Histogram> = all.iter().map(|&r| Histogram::new(r)).collect();
            let count_values = |input: Vec<f32>| {
                let mut parts: Vec<Histogram> = all.iter().map(|&r| Histogram::new(r)).collect();
                runner.run(&input, |i, _, values| {
                    if i >= skip {
                        parts[i - skip].add(values);
                    }
                })?;
                Ok(parts)
            };
            feed.chunks(count_values, |parts| total.iter_mut().zip(&parts).for_each(|(t, p)| t.merge(p)))?;
            Ok(total.par_iter().map(|h| h.best_range(dtype)).collect())
        }
    }
}

/// Counts of values in equal bins over a known range. Exact zeros are left out: they cost no error.
pub struct Histogram {
    lo: f64,
    hi: f64,
    counts: Vec<u64>,
}

impl Histogram {
    /// Empty, over a range.
    pub fn new((lo, hi): Range) -> Self {
        Self { lo, hi, counts: vec![0; BINS] }
    }
    /// Counts values, all within the range.
    pub fn add(&mut self, values: &[f32]) {
        if self.hi <= self.lo {
            return;
        }
        let (lo, k) = (self.lo as f32, (BINS as f64 / (self.hi - self.lo)) as f32);
        for &v in values.iter().filter(|v| **v != 0.0) {
            let bin = ((v - lo) * k) as usize; // saturates
            self.counts[bin.min(BINS - 1)] += 1;
        }
    }
    /// Adds another histogram over the same range.
    pub fn merge(&mut self, other: &Self) {
        self.counts.iter_mut().zip(&other.counts).for_each(|(a, b)| *a += b);
    }
    fn error(&self, range: Range, dtype: ActivationType) -> f64 {
        let a = Affine::from_range(range.0, range.1, dtype);
        let width = (self.hi - self.lo) / BINS as f64;
        let at = |i: usize| self.lo + (i as f64 + 0.5) * width;
        let used = self.counts.iter().enumerate().filter(|(_, n)| **n > 0);
        used.map(|(i, &n)| n as f64 * (a.fake(at(i)) - at(i)).powi(2)).sum()
    }
    /// The range of least squared error: shrinks both ends together, then each alone.
    pub fn best_range(&self, dtype: ActivationType) -> Range {
        let (lo, hi) = (self.lo.min(0.0), self.hi.max(0.0));
        let steps = || (20..=100).map(|i| f64::from(i) / 100.0);
        let mut best = ((lo, hi), self.error((lo, hi), dtype));
        let mut attempt = |range: Range| {
            let e = self.error(range, dtype);
            if e < best.1 {
                best = (range, e);
            }
            best.0
        };
        let mut at = (lo, hi);
        for f in steps() {
            at = attempt((lo * f, hi * f));
        }
        if lo < 0.0 && hi > 0.0 {
            for _ in 0..2 {
                let h = at.1;
                for f in steps() {
                    at = attempt((lo * f, h));
                }
                let l = at.0;
                for f in steps() {
                    at = attempt((l, hi * f));
                }
            }
        }
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mse_clips_a_lone_outlier_and_keeps_a_flat_distribution() {
        let mut h = Histogram::new((0.0, 100.0));
        let mut values: Vec<f32> = (0..200_000).map(|i| (i % 1000) as f32 / 1000.0).collect();
        h.add(&values);
        values.truncate(1);
        h.add(&[100.0]);
        let clipped = h.best_range(ActivationType::Uint8);
        // Least of (100 − c)² + n·(c/255)²/12 for n = 200,000.
        assert!((clipped.1 - 79.6).abs() < 3.0, "{clipped:?}");
        let mut flat = Histogram::new((0.0, 1.0));
        flat.add(&(1..=100_000).map(|i| i as f32 / 100_000.0).collect::<Vec<_>>());
        assert!(flat.best_range(ActivationType::Uint8).1 > 0.97);
    }

    #[test]
    fn a_constant_tensor_keeps_its_value() {
        let h = Histogram::new((2.0, 2.0));
        assert_eq!(h.best_range(ActivationType::Uint8), (0.0, 2.0));
    }
}
