//! Order statistics of latencies. Nothing here assumes a distribution: latencies have long tails.

use serde::{Deserialize, Serialize};

/// Most samples that are kept; of more, every second, fourth, … is.
const MOST: usize = 1 << 20;
/// Most bins of a histogram.
const BINS: usize = 40;

/// Times of inferences, in order, ms.
#[derive(Debug, Clone)]
pub struct Samples {
    kept: Vec<f64>,
    /// Every how-manieth is kept.
    stride: u64,
    seen: u64,
}

impl Default for Samples {
    fn default() -> Self {
        Samples { kept: Vec::new(), stride: 1, seen: 0 }
    }
}

impl Samples {
    /// Adds one.
    pub fn push(&mut self, ms: f64) {
        if self.seen.is_multiple_of(self.stride) {
            if self.kept.len() == MOST {
                let mut index = 0;
                self.kept.retain(|_| {
                    index += 1;
                    index % 2 == 1
                });
                self.stride *= 2;
            }
            if self.seen.is_multiple_of(self.stride) {
                self.kept.push(ms);
            }
        }
        self.seen += 1;
    }

    /// How many were added.
    pub fn len(&self) -> u64 {
        self.seen
    }

    /// Whether none was added.
    pub fn is_empty(&self) -> bool {
        self.seen == 0
    }

    /// Those that were kept.
    pub fn as_slice(&self) -> &[f64] {
        &self.kept
    }

    /// Half the width of the median's 95 % confidence interval, over the median.
    pub fn relative_error(&self) -> f64 {
        let mut sorted = self.kept.clone();
        sorted.sort_by(f64::total_cmp);
        let (from, to) = median_interval(&sorted);
        (to - from) / 2.0 / middle(&sorted)
    }
}

/// A latency's distribution, ms.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// Fastest.
    pub min: f64,
    /// Half were faster.
    pub median: f64,
    /// 95 % confidence interval of the median, from order statistics.
    pub median_ci95: [f64; 2],
    /// Arithmetic mean.
    pub mean: f64,
    /// Standard deviation.
    pub sd: f64,
    /// Nearest rank.
    pub p90: f64,
    /// Nearest rank.
    pub p95: f64,
    /// Nearest rank.
    pub p99: f64,
    /// Slowest.
    pub max: f64,
    /// Samples further above the third quartile than three times the quartiles' distance (Tukey's far-out).
    pub outliers: u64,
}

/// How often what came up.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Histogram {
    /// Lower edge of the first bin, ms.
    pub from_ms: f64,
    /// Width of a bin, ms; the last one holds everything above its lower edge.
    pub bin_ms: f64,
    /// Samples in each.
    pub counts: Vec<u64>,
}

/// Describes samples; all 0 where there are none.
pub fn describe(samples: &[f64]) -> (Latency, Histogram) {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (Some(&min), Some(&max)) = (sorted.first(), sorted.last()) else { return Default::default() };
    let n = sorted.len() as f64;
    let mean = sorted.iter().sum::<f64>() / n;
    let sd = (sorted.iter().map(|s| (s - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0)).sqrt();
    let (q1, q3) = (rank(&sorted, 25), rank(&sorted, 75));
    let far = q3 + 3.0 * (q3 - q1);
    let (low, high) = median_interval(&sorted);
    let latency = Latency {
        min,
        median: middle(&sorted),
        median_ci95: [low, high],
        mean,
        sd,
        p90: rank(&sorted, 90),
        p95: rank(&sorted, 95),
        p99: rank(&sorted, 99),
        max,
        outliers: sorted.iter().filter(|s| **s > far).count() as u64,
    };
    (latency, histogram(&sorted))
}

/// Bins up to the 99th percentile: the tail goes into the last one.
fn histogram(sorted: &[f64]) -> Histogram {
    let from_ms = sorted[0];
    let bins = BINS.min(sorted.len());
    let bin_ms = ((rank(sorted, 99) - from_ms) / bins as f64).max(from_ms.abs() * 1e-4).max(1e-9);
    let mut counts = vec![0; bins];
    for sample in sorted {
        counts[(((sample - from_ms) / bin_ms) as usize).min(bins - 1)] += 1;
    }
    Histogram { from_ms, bin_ms, counts }
}

/// Nearest rank: the smallest sample that is not below `percent` of all.
fn rank(sorted: &[f64], percent: usize) -> f64 {
    sorted[(sorted.len() * percent).div_ceil(100).clamp(1, sorted.len()) - 1]
}

fn middle(sorted: &[f64]) -> f64 {
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0,
    }
}

/// Middle value; the mean of the two middle ones of an even number. Sorts.
pub fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    middle(values)
}

/// The order statistics between which the median lies with probability 95 % (normal approximation of the binomial;
/// Conover, "Practical Nonparametric Statistics", 3.2): everything, where there are too few.
fn median_interval(sorted: &[f64]) -> (f64, f64) {
    let n = sorted.len() as f64;
    let half = 1.96 * n.sqrt() / 2.0;
    let (from, to) = ((n / 2.0 - half).floor().max(1.0) as usize, ((n / 2.0 + half).ceil() + 1.0).min(n) as usize);
    match sorted {
        [] => (f64::NAN, f64::NAN),
        _ => (sorted[from - 1], sorted[to - 1]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_nearest_rank() {
        let samples: Vec<f64> = (1..=200).rev().map(f64::from).collect();
        let (l, h) = describe(&samples);
        assert_eq!((l.min, l.median, l.p90, l.p95, l.p99, l.max), (1.0, 100.5, 180.0, 190.0, 198.0, 200.0));
        assert_eq!((l.mean, l.outliers, h.counts.iter().sum::<u64>()), (100.5, 0, 200));
        let (l, h) = describe(&[7.0]);
        assert_eq!((l.min, l.median, l.p90, l.p99, l.max, l.sd, h.counts), (7.0, 7.0, 7.0, 7.0, 7.0, 0.0, vec![1]));
        assert_eq!(describe(&[]).0, Latency::default());
    }

    #[test]
    fn the_interval_holds_the_median_as_often_as_it_says() {
        // A skewed distribution with median ln 2; 2,000 experiments of 51 samples.
        let mut state = 1u64;
        let mut uniform = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 11) as f64 + 0.5) / (1u64 << 53) as f64
        };
        let held = (0..2000).filter(|_| {
            let samples: Vec<f64> = (0..51).map(|_| -uniform().ln()).collect();
            let [from, to] = describe(&samples).0.median_ci95;
            (from..=to).contains(&std::f64::consts::LN_2)
        });
        let share = held.count() as f64 / 2000.0;
        assert!((0.94..0.99).contains(&share), "{share}");
    }

    #[test]
    fn tails_are_outliers_and_fill_the_last_bin() {
        let mut samples: Vec<f64> = (0..1000).map(|i| 10.0 + f64::from(i % 10) / 100.0).collect();
        samples.extend([50.0, 60.0, 70.0]);
        let (l, h) = describe(&samples);
        assert_eq!(l.outliers, 3);
        assert!(h.counts.last().is_some_and(|&c| c >= 3) && h.counts.iter().sum::<u64>() == 1003);
    }

    #[test]
    fn millions_of_samples_take_constant_memory() {
        let mut samples = Samples::default();
        (0..5 * MOST).for_each(|i| samples.push(i as f64));
        assert_eq!(samples.len(), 5 * MOST as u64);
        assert!(samples.as_slice().len() <= MOST);
        let median = describe(samples.as_slice()).0.median;
        assert!((median / (2.5 * MOST as f64) - 1.0).abs() < 1e-3, "{median}");
    }
}
