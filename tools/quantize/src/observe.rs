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
    /// The range that leaves out one value in 10,000 at each end.
    Percentile,
    /// The range whose quantized distribution is nearest to the original by Kullback-Leibler divergence.
    Entropy,
    /// The range with the least squared quantization error, found on a histogram.
    Mse,
}

impl Calibrator {
    /// How often every input is run.
    pub fn passes(self) -> usize {
        if matches!(self, Self::Minmax | Self::MovingAverage) { 1 } else { 2 }
    }
}

/// A tensor's range.
pub type Range = (f64, f64);

const BINS: usize = 2048;
const MOMENTUM: f64 = 0.9;
/// Share of values that [`Calibrator::Percentile`] clips at each end.
const TAIL: f64 = 1e-4;
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
    /// Runs `one` on every input, in parallel, and `merge` on the results of `chunk` of them at a time, in order.
    pub fn chunks<T: Send>(
        &self,
        chunk: usize,
        one: impl Fn(usize, Vec<f32>) -> Result<T> + Sync,
        mut merge: impl FnMut(Vec<T>),
    ) -> Result<()> {
        for chunk in self.images.chunks(chunk) {
            let run = |&i: &usize| {
                let out = one(i, (self.load)(i)?)?;
                (self.tick)();
                Ok(out)
            };
            merge(chunk.par_iter().map(run).collect::<Result<_>>()?);
        }
        Ok(())
    }
}

/// Measures the outputs of `runner` after its own `skip` graph outputs; they are called `names`.
/// Returns the chosen range of each, and the distribution it was chosen on, where the calibrator needs one.
pub fn calibrate(
    runner: &Runner,
    skip: usize,
    names: &[String],
    feed: &Feed,
    calibrator: Calibrator,
    dtype: ActivationType,
) -> Result<Vec<(Range, Option<Histogram>)>> {
    let count = names.len();
    let mut all = vec![(f64::INFINITY, f64::NEG_INFINITY); count];
    let mut average: Vec<Option<Range>> = vec![None; count];
    let extremes = |_, input: Vec<f32>| {
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
    feed.chunks(CHUNK, extremes, |images| {
        for (t, &(lo, hi)) in images.iter().flat_map(|r| r.iter().enumerate()).filter(|(_, r)| r.0 <= r.1) {
            all[t] = (all[t].0.min(lo), all[t].1.max(hi));
            let mix = |old: f64, new: f64| old * MOMENTUM + new * (1.0 - MOMENTUM);
            average[t] = Some(average[t].map_or((lo, hi), |(l, h)| (mix(l, lo), mix(h, hi))));
        }
    })?;
    let missing = all.iter().position(|r| r.0 > r.1);
    if let Some(t) = missing {
        return Err(Error::tensor(&names[t], "tract gave no float values for it"));
    }
    if calibrator.passes() == 1 {
        let averages = || average.iter().map(|r| r.unwrap_or((0.0, 0.0))).collect();
        let ranges: Vec<Range> = if calibrator == Calibrator::Minmax { all } else { averages() };
        return Ok(ranges.into_iter().map(|r| (r, None)).collect());
    }
    let mut total: Vec<Histogram> = all.iter().map(|&r| Histogram::new(r)).collect();
    let count_values = |_, input: Vec<f32>| {
        let mut parts: Vec<Histogram> = all.iter().map(|&r| Histogram::new(r)).collect();
        runner.run(&input, |i, _, values| {
            if i >= skip {
                parts[i - skip].add(values);
            }
        })?;
        Ok(parts)
    };
    feed.chunks(CHUNK, count_values, |images| images.iter().for_each(|parts| total.iter_mut().zip(parts).for_each(|(t, p)| t.merge(p))))?;
    let chosen = |h: Histogram| {
        let range = match calibrator {
            Calibrator::Percentile => h.percentiles(TAIL),
            Calibrator::Entropy => h.least_divergent_range(dtype),
            _ => h.best_range(dtype),
        };
        (range, Some(h))
    };
    Ok(total.into_par_iter().map(chosen).collect())
}

/// What one channel of a tensor is like.
#[derive(Debug, Clone, Copy, Default)]
pub struct Channel {
    /// Mean value.
    pub mean: f64,
    /// Mean square.
    pub square: f64,
    /// Eighth root of the mean eighth power: close to the largest magnitude, yet lone outliers hardly count.
    pub peak: f64,
}

/// Every channel (second dimension) of the outputs of `runner` after its own `skip` graph outputs.
pub fn channels(runner: &Runner, skip: usize, count: usize, feed: &Feed) -> Result<Vec<Vec<Channel>>> {
    let mut all: Vec<Vec<Channel>> = vec![Vec::new(); count];
    let one = |_, input: Vec<f32>| {
        let mut channels: Vec<Vec<Channel>> = vec![Vec::new(); count];
        let one = |values: &[f32]| {
            let add = |c: Channel, &v: &f32| {
                let v = f64::from(v);
                Channel { mean: c.mean + v, square: c.square + v * v, peak: c.peak + v.powi(8) }
            };
            let (sum, n) = (values.iter().fold(Channel::default(), add), values.len().max(1) as f64);
            Channel { mean: sum.mean / n, square: sum.square / n, peak: sum.peak / n }
        };
        runner.run(&input, |i, shape, values| {
            if i >= skip && shape.len() >= 2 {
                let area = (values.len() / shape[1].max(1)).max(1);
                channels[i - skip] = values.chunks(area).map(one).collect();
            }
        })?;
        Ok(channels)
    };
    feed.chunks(CHUNK, one, |images| {
        for (t, channels) in images.into_iter().flat_map(|image| image.into_iter().enumerate()) {
            all[t].resize(channels.len(), Channel::default());
            for (sum, one) in all[t].iter_mut().zip(channels) {
                let n = feed.images.len().max(1) as f64;
                sum.mean += one.mean / n;
                sum.square += one.square / n;
                sum.peak += one.peak / n;
            }
        }
    })?;
    all.iter_mut().flatten().for_each(|c| c.peak = c.peak.powf(0.125));
    Ok(all)
}

/// Counts of values in equal bins over a known range. Exact zeros are counted apart: they cost no error.
#[derive(Debug, Clone)]
pub struct Histogram {
    lo: f64,
    hi: f64,
    zeros: u64,
    counts: Vec<u64>,
}

impl Histogram {
    /// Empty, over a range.
    pub fn new((lo, hi): Range) -> Self {
        Self { lo, hi, zeros: 0, counts: vec![0; BINS] }
    }
    /// Counts values, all within the range.
    pub fn add(&mut self, values: &[f32]) {
        if self.hi <= self.lo {
            return;
        }
        let (lo, k) = (self.lo as f32, (BINS as f64 / (self.hi - self.lo)) as f32);
        for &v in values {
            if v == 0.0 {
                self.zeros += 1;
                continue;
            }
            let bin = ((v - lo) * k) as usize; // saturates
            self.counts[bin.min(BINS - 1)] += 1;
        }
    }
    /// Adds another histogram over the same range.
    pub fn merge(&mut self, other: &Self) {
        self.zeros += other.zeros;
        self.counts.iter_mut().zip(&other.counts).for_each(|(a, b)| *a += b);
    }
    /// Counts of values other than zero in fewer bins, for a drawing.
    pub fn coarse(&self, bins: usize) -> Vec<u64> {
        self.counts.chunks(BINS.div_ceil(bins.max(1))).map(|c| c.iter().sum()).collect()
    }
    /// Smallest and largest value.
    pub fn range(&self) -> Range {
        (self.lo, self.hi)
    }
    fn center(&self, bin: usize) -> f64 {
        self.lo + (bin as f64 + 0.5) * (self.hi - self.lo) / BINS as f64
    }
    /// The range that leaves out this share of all values at each end.
    pub fn percentiles(&self, tail: f64) -> Range {
        let all = self.counts.iter().sum::<u64>() + self.zeros;
        let allowed = (all as f64 * tail) as u64;
        let width = (self.hi - self.lo) / BINS as f64;
        let bins_within = |counts: &mut dyn Iterator<Item = &u64>| {
            let mut seen = 0;
            counts
                .take_while(|n| {
                    seen += **n;
                    seen <= allowed
                })
                .count()
        };
        let (below, above) = (bins_within(&mut self.counts.iter()), bins_within(&mut self.counts.iter().rev()));
        // Zero is always represented, so a tail ends there.
        ((self.lo + below as f64 * width).min(0.0).max(self.lo.min(0.0)), (self.hi - above as f64 * width).max(0.0).min(self.hi.max(0.0)))
    }
    /// Kullback-Leibler divergence between the distribution clipped to `range` and its quantized form, over bins within.
    fn divergence(&self, range: Range, dtype: ActivationType) -> f64 {
        let a = Affine::from_range(range.0, range.1, dtype);
        let level = |x: f64| ((a.fake(x) / f64::from(a.scale)).round() as i32 + a.zero_point - dtype.qmin()).clamp(0, 255) as usize;
        let inside = |x: f64| x >= range.0 && x <= range.1;
        let used: Vec<(usize, f64, bool)> = (0..BINS)
            .filter(|&i| self.counts[i] > 0)
            .map(|i| (level(self.center(i)), self.counts[i] as f64, inside(self.center(i))))
            .collect();
        // P holds the clipped values in its outermost bins, Q is made without them (Migacz, 8-bit inference with TensorRT, 2017).
        let (mut mass, mut bins) = ([0f64; 256], [0f64; 256]);
        for &(level, n, _) in used.iter().filter(|u| u.2) {
            mass[level] += n;
            bins[level] += 1.0;
        }
        let (total_p, total_q) = (used.iter().map(|u| u.1).sum::<f64>(), mass.iter().sum::<f64>());
        if total_q == 0.0 {
            return f64::INFINITY;
        }
        let ends = [used.iter().position(|u| u.2), used.iter().rposition(|u| u.2)];
        let clipped = |from: std::ops::Range<usize>| used[from].iter().map(|u| u.1).sum::<f64>();
        let (first, last) = (ends[0].unwrap_or(0), ends[1].unwrap_or(0));
        let (low, high) = (clipped(0..first), clipped(last + 1..used.len()));
        (first..=last)
            .map(|i| {
                let extra = if i == first { low } else { 0.0 } + if i == last { high } else { 0.0 };
                let (p, q) = ((used[i].1 + extra) / total_p, mass[used[i].0] / bins[used[i].0].max(1.0) / total_q);
                if q > 0.0 { p * (p / q).ln() } else { 0.0 }
            })
            .sum()
    }
    /// The range of least divergence, both ends shrunk together.
    pub fn least_divergent_range(&self, dtype: ActivationType) -> Range {
        let (lo, hi) = (self.lo.min(0.0), self.hi.max(0.0));
        let candidates = (10..=100).rev().map(|i| f64::from(i) / 100.0).map(|f| (lo * f, hi * f));
        let scored = candidates.map(|r| (r, self.divergence(r, dtype)));
        scored.min_by(|a, b| a.1.total_cmp(&b.1)).map_or((lo, hi), |b| b.0)
    }
    fn error(&self, range: Range, dtype: ActivationType) -> f64 {
        let a = Affine::from_range(range.0, range.1, dtype);
        let at = |i: usize| self.center(i);
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
    fn percentile_and_entropy_leave_a_lone_outlier_out() {
        let mut h = Histogram::new((0.0, 100.0));
        h.add(&(0..100_000).map(|i| (i % 1000) as f32 / 100.0).collect::<Vec<_>>());
        h.add(&[100.0]);
        let p = h.percentiles(TAIL);
        assert!(p.0 == 0.0 && (9.9..10.2).contains(&p.1), "{p:?}");
        let e = h.least_divergent_range(ActivationType::Uint8);
        assert!(e.1 < 60.0, "{e:?}");
        // Nothing to gain from clipping: the values fill their range evenly.
        let mut flat = Histogram::new((-1.0, 1.0));
        flat.add(&(0..200_000).map(|i| i as f32 / 100_000.0 - 1.0).collect::<Vec<_>>());
        let p = flat.percentiles(TAIL);
        assert!(p.0 < -0.99 && p.1 > 0.99, "{p:?}");
        assert!(flat.least_divergent_range(ActivationType::Uint8).1 > 0.9);
    }

    #[test]
    fn a_constant_tensor_keeps_its_value() {
        let h = Histogram::new((2.0, 2.0));
        assert_eq!(h.best_range(ActivationType::Uint8), (0.0, 2.0));
    }
}
