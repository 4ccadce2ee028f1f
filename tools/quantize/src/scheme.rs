//! From ranges and weights to integers.
//!
//! real = scale · (integer − zero point). Activations: 8 bits asymmetric per tensor, zero exactly
//! representable. Weights: int8 symmetric per output channel in [−127, 127]. Bias: int32 with scale
//! s_x·s_w\[c\] and zero point 0.

use crate::rounding::Rounded;
use serde::Serialize;

/// Integer type of activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum ActivationType {
    /// 0 … 255
    Uint8,
    /// −128 … 127
    Int8,
}

impl ActivationType {
    /// Smallest integer.
    pub fn qmin(self) -> i32 {
        if self == Self::Uint8 { 0 } else { -128 }
    }
    /// Largest integer.
    pub fn qmax(self) -> i32 {
        self.qmin() + 255
    }
}

/// Parameters of a per-tensor activation.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Affine {
    /// Step between neighbouring integers, > 0.
    pub scale: f32,
    /// The integer that stands for 0.0.
    pub zero_point: i32,
    /// Integer type.
    #[serde(rename = "type")]
    pub dtype: ActivationType,
}

/// Ranges narrower than this are taken as "always zero": their scale would be close to subnormal.
const MIN_RANGE: f64 = 1e-30;

impl Affine {
    /// Covers `lo..=hi`, widened to include 0. An empty range gets scale 1.
    pub fn from_range(lo: f64, hi: f64, dtype: ActivationType) -> Self {
        let (lo, hi) = (lo.min(0.0), hi.max(0.0));
        // Also bounded above, so that the products with weight scales stay finite.
        let scale = if hi - lo < MIN_RANGE { 1.0 } else { ((hi - lo) / 255.0).min(1e30) as f32 };
        let zero = (f64::from(dtype.qmin()) - lo / f64::from(scale)).round_ties_even();
        let zero_point = zero.clamp(dtype.qmin().into(), dtype.qmax().into()) as i32;
        Self { scale, zero_point, dtype }
    }
    /// Smallest and largest real value that can be represented.
    pub fn range(&self) -> (f64, f64) {
        let real = |q: i32| f64::from(q - self.zero_point) * f64::from(self.scale);
        (real(self.dtype.qmin()), real(self.dtype.qmax()))
    }
    /// The representable value nearest to `x`.
    pub fn fake(&self, x: f64) -> f64 {
        let scale = f64::from(self.scale);
        let (qmin, qmax) = (self.dtype.qmin() - self.zero_point, self.dtype.qmax() - self.zero_point);
        (x / scale).round_ties_even().clamp(qmin.into(), qmax.into()) * scale
    }
}

/// Quantized weights of one Conv or Gemm; output channels outermost.
#[derive(Debug, Clone)]
pub struct Weights {
    /// Values in [−127, 127].
    pub values: Vec<i8>,
    /// One scale per output channel, > 0.
    pub scales: Vec<f32>,
    /// Bias in steps of s_x·s_w\[c\], empty without one.
    pub bias: Vec<i32>,
    /// f32 scales of the bias, s_x·s_w\[c\].
    pub bias_scales: Vec<f32>,
    /// Channels whose scale was enlarged so that their bias fits.
    pub enlarged: usize,
    /// 10·log10(Σw²/Σ(w − ŵ)²); infinite where exact.
    pub sqnr_db: f64,
}

/// How the range of a channel's weights is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum WeightRange {
    /// The largest magnitude.
    Absmax,
    /// The range with the least squared error.
    Mse,
}

/// What was measured on the inputs of one output channel's weights: the mean of every input channel.
pub struct InputMeans<'a> {
    /// One per input channel of the layer.
    pub means: &'a [f64],
    /// Groups of a Conv, 1 for a Gemm.
    pub groups: usize,
    /// Weights per input channel: the taps of a kernel.
    pub taps: usize,
}

impl InputMeans<'_> {
    /// Expected output change of `channel` (of `channels`) when its weights change by `delta`.
    fn shift(&self, channel: usize, channels: usize, delta: impl Iterator<Item = f64>) -> f64 {
        let first = channel / (channels / self.groups).max(1) * (self.means.len() / self.groups);
        let mean = |i: usize| self.means.get(first + i / self.taps).copied().unwrap_or(0.0);
        delta.enumerate().map(|(i, d)| d * mean(i)).sum()
    }
}

/// The scale with the least squared error, from `widest` down to 60 % of it.
fn best_scale(weights: &[f32], widest: f64) -> f64 {
    let error = |scale: f64| -> f64 {
        weights.iter().map(|&w| (f64::from(w) - (f64::from(w) / scale).round_ties_even().clamp(-127.0, 127.0) * scale).powi(2)).sum()
    };
    let candidates = (0..=80).map(|i| widest * (1.0 - 0.005 * f64::from(i)));
    candidates.map(|s| (s, error(s))).min_by(|a, b| a.1.total_cmp(&b.1)).map_or(widest, |b| b.0)
}

/// Largest bias kept: leaves half of int32 for the accumulated products.
const MAX_BIAS: f64 = (1 << 30) as f64;

/// Smallest weight scale, so that products with activation scales stay normal f32 numbers.
const MIN_WEIGHT_SCALE: f32 = 1e-20;

/// Steps of a layer's weights.
#[derive(Debug, Clone)]
pub struct Grid {
    /// One per output channel, > 0.
    pub scales: Vec<f32>,
    /// Channels whose scale was enlarged so that their bias fits.
    pub enlarged: usize,
}

/// Chooses the scale of each of `channels` rows of weights, whose bias (empty or one per channel) has to fit for inputs of
/// scale `input_scale`.
pub fn grid(weights: &[f32], bias: &[f32], channels: usize, input_scale: f32, range: WeightRange) -> Grid {
    let row = weights.len().checked_div(channels).unwrap_or(0);
    let absmax = |w: &[f32]| w.iter().fold(0f32, |m, v| m.max(v.abs()));
    let per_channel: Vec<f32> = (0..channels).map(|c| absmax(&weights[c * row..(c + 1) * row]) / 127.0).collect();
    // A channel without weights borrows the layer's step, so that its bias keeps a usable one.
    let widest = per_channel.iter().copied().fold(0f32, f32::max);
    let fallback = if widest > MIN_WEIGHT_SCALE { widest } else { 1.0 / 127.0 };
    let mut grid = Grid { scales: Vec::with_capacity(channels), enlarged: 0 };
    for (c, &natural) in per_channel.iter().enumerate() {
        let mut scale = if natural > 0.0 { natural.max(MIN_WEIGHT_SCALE) } else { fallback };
        let rows = &weights[c * row..(c + 1) * row];
        if range == WeightRange::Mse && natural > MIN_WEIGHT_SCALE {
            scale = (best_scale(rows, f64::from(natural)) as f32).max(MIN_WEIGHT_SCALE);
        }
        let needed = bias.get(c).copied().map_or(0.0, f64::from).abs() / (MAX_BIAS * f64::from(input_scale));
        if f64::from(scale) < needed {
            scale = (needed * 1.000_001) as f32;
            grid.enlarged += 1;
        }
        grid.scales.push(scale);
    }
    grid
}

/// What a layer's bias takes up of the errors of its weights.
pub enum Correction<'a> {
    /// Nothing.
    None,
    /// The expected error of weights rounded to nearest (Nagel et al., 1906.04721, 4.2).
    Means(&'a InputMeans<'a>),
    /// Weights that were rounded already, and the expected change of each output channel.
    Rounded(&'a Rounded),
}

/// Quantizes weights, to nearest if they are not rounded already, and bias (empty or one per channel) for inputs of scale `input_scale`.
pub fn quantize_weights(weights: &[f32], bias: &[f32], grid: Grid, input_scale: f32, correction: Correction) -> Weights {
    let channels = grid.scales.len();
    let row = weights.len().checked_div(channels).unwrap_or(0);
    let mut out = Weights {
        values: Vec::with_capacity(weights.len()),
        bias: Vec::with_capacity(bias.len()),
        bias_scales: Vec::with_capacity(channels),
        enlarged: grid.enlarged,
        sqnr_db: 0.0,
        scales: grid.scales,
    };
    let (mut signal, mut noise) = (0f64, 0f64);
    for (c, &scale) in out.scales.iter().enumerate() {
        let rows = &weights[c * row..(c + 1) * row];
        match correction {
            Correction::Rounded(r) => out.values.extend(&r.values[c * row..(c + 1) * row]),
            _ => out.values.extend(rows.iter().map(|&w| (f64::from(w) / f64::from(scale)).round_ties_even().clamp(-127.0, 127.0) as i8)),
        }
        let delta = |(&w, &q): (&f32, &i8)| f64::from(q) * f64::from(scale) - f64::from(w);
        let deltas = || rows.iter().zip(&out.values[c * row..]).map(delta);
        signal += rows.iter().map(|&w| f64::from(w).powi(2)).sum::<f64>();
        noise += deltas().map(|d| d * d).sum::<f64>();
        let shift = match correction {
            Correction::None => 0.0,
            Correction::Means(means) => means.shift(c, channels, deltas()),
            Correction::Rounded(r) => r.shift[c],
        };
        let bias_scale = input_scale * scale;
        if !bias.is_empty() {
            // Fits, for the scale leaves as much again for the correction.
            let b = f64::from(bias[c]) - shift;
            out.bias.push((b / f64::from(bias_scale)).round_ties_even() as i32);
        }
        out.bias_scales.push(bias_scale);
    }
    out.sqnr_db = sqnr_db(signal, noise);
    out
}

impl Weights {
    /// Adds the bias of outputs, several of which have the scale of one row.
    pub fn share(&mut self, bias: &[f32], row: impl Fn(usize) -> usize) {
        let scales: Vec<f32> = (0..bias.len()).map(|o| self.bias_scales[row(o)]).collect();
        self.bias = bias.iter().zip(&scales).map(|(&b, &s)| (f64::from(b) / f64::from(s)).round_ties_even() as i32).collect();
        self.bias_scales = scales;
    }
}

/// Signal to quantization noise ratio from two sums of squares.
pub fn sqnr_db(signal: f64, noise: f64) -> f64 {
    if noise == 0.0 { f64::INFINITY } else { 10.0 * (signal / noise).log10() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn quantize_weights(w: &[f32], b: &[f32], channels: usize, x: f32, range: WeightRange, means: Option<&InputMeans>) -> Weights {
        super::quantize_weights(w, b, grid(w, b, channels, x, range), x, means.map_or(Correction::None, Correction::Means))
    }

    #[test]
    fn a_relu_range_starts_at_the_smallest_integer() {
        for dtype in [ActivationType::Uint8, ActivationType::Int8] {
            let a = Affine::from_range(0.0, 6.0, dtype);
            assert_eq!(a.zero_point, dtype.qmin());
            assert!((a.range().1 - 6.0).abs() < 1e-5);
        }
    }

    #[test]
    fn degenerate_ranges_stay_valid() {
        for (lo, hi) in [(0.0, 0.0), (1e-40, 1e-39), (5.0, 5.0), (-3.0, -3.0), (-1e38, 1e38)] {
            let a = Affine::from_range(lo, hi, ActivationType::Uint8);
            assert!(a.scale.is_finite() && a.scale > 0.0, "{lo} {hi}: {a:?}");
            assert_eq!(a.fake(0.0), 0.0);
        }
    }

    #[test]
    fn a_dead_channel_keeps_its_bias() {
        let q = quantize_weights(&[0.0, 0.0, 0.5, -1.0], &[0.3, -0.2], 2, 0.02, WeightRange::Absmax, None);
        assert!(q.scales.iter().all(|&s| s > 0.0));
        for (c, want) in [0.3, -0.2].iter().enumerate() {
            let got = f64::from(q.bias[c]) * f64::from(q.bias_scales[c]);
            assert!((got - want).abs() < 1e-4, "{got} {want}");
        }
        assert_eq!(&q.values[..2], &[0, 0]);
        assert_eq!(q.values[3], -127);
    }

    #[test]
    fn a_huge_bias_enlarges_its_channel_only() {
        let q = quantize_weights(&[1e-9, 1e-9, 0.5, -1.0], &[1e3, 0.0], 2, 0.01, WeightRange::Absmax, None);
        assert_eq!(q.enlarged, 1);
        let got = f64::from(q.bias[0]) * f64::from(q.bias_scales[0]);
        assert!((got - 1e3).abs() < 1e-2, "{got}");
    }

    #[test]
    fn the_bias_takes_up_the_mean_error_of_its_weights() {
        // Two groups of two inputs with three taps each; two output channels per group.
        let w: Vec<f32> = (0..4 * 6).map(|i| ((i * 37 % 19) as f32 - 9.0) / 9.5).collect();
        let means = [1.0, -2.0, 0.5, 4.0];
        let inputs = InputMeans { means: &means, groups: 2, taps: 3 };
        let bias = [0.0; 4];
        let q = quantize_weights(&w, &bias, 4, 1e-4, WeightRange::Absmax, Some(&inputs));
        for c in 0..4 {
            let dot = |v: &dyn Fn(usize) -> f64| (0..6).map(|i| v(c * 6 + i) * means[c / 2 * 2 + i / 3]).sum::<f64>();
            let want = dot(&|i| f64::from(w[i]));
            let got = dot(&|i| f64::from(q.values[i]) * f64::from(q.scales[c])) + f64::from(q.bias[c]) * f64::from(q.bias_scales[c]);
            assert!((want - got).abs() < 1e-6, "{want} {got}");
        }
    }

    #[test]
    fn a_smaller_range_pays_where_few_weights_are_large() {
        let mut w: Vec<f32> = (0..400).map(|i| (i % 40) as f32 / 1000.0).collect();
        w.push(0.05);
        let error = |range| quantize_weights(&w, &[], 1, 1.0, range, None).sqnr_db;
        assert!(error(WeightRange::Mse) >= error(WeightRange::Absmax));
        assert!(quantize_weights(&w, &[], 1, 1.0, WeightRange::Mse, None).values.iter().all(|&v| v >= -127));
    }

    proptest! {
        #[test]
        fn values_in_range_are_off_by_half_a_step_at_most(lo in -50f64..0.0, width in 0.01f64..100.0, t in 0f64..1.0) {
            let a = Affine::from_range(lo, lo + width, ActivationType::Int8);
            let (bottom, top) = a.range();
            let x = bottom + t * (top - bottom);
            prop_assert!((a.fake(x) - x).abs() <= f64::from(a.scale) * 0.5001);
            prop_assert_eq!(a.fake(0.0), 0.0);
        }

        #[test]
        fn weights_are_off_by_half_a_step_at_most(w in proptest::collection::vec(-2f32..2.0, 12)) {
            let q = quantize_weights(&w, &[], 3, 0.1, WeightRange::Absmax, None);
            for (i, (&w, &v)) in w.iter().zip(&q.values).enumerate() {
                prop_assert!(v >= -127);
                prop_assert!((w - f32::from(v) * q.scales[i / 4]).abs() <= q.scales[i / 4] * 0.5001);
            }
        }
    }
}
