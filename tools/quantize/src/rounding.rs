//! Rounding of weights that makes up for its own errors.
//!
//! A layer's output changes by (ŵ − w)·x when its weights are rounded. Of the roundings of one output channel the one is wanted whose
//! expected square, (ŵ − w)ᵀ·H·(ŵ − w) with H the covariance of x on calibration inputs, is least; the mean goes into the bias.
//! With H = L·Lᵀ that is |(ŵ − w)ᵀ·L|², whose term k depends on weights k and later: weights are rounded from the last to the first,
//! each to the value that makes its term smallest, the most important ones first (Babai's nearest plane; Frantar et al., 2210.17323,
//! do the same in another notation).

use crate::onnx::*;
use edge_infer::graph::Window;
use ndarray::linalg::general_mat_mul;
use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis, Slice};
use rayon::prelude::*;
use serde::Serialize;
use std::ops::Range;

/// How weights become integers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Rounding {
    /// Each to the nearest.
    Nearest,
    /// Each so that the layer's output changes least on the calibration inputs; biases take up the mean error.
    Compensated,
}

/// Largest covariance of one layer, bytes; layers that need more are rounded to nearest.
pub const MAX_BYTES: usize = 512 << 20;
/// Samples wanted for each weight of an output channel.
const SAMPLES: usize = 8;
/// Fewest samples taken of one image, where it has as many.
const MIN_SAMPLES: usize = 64;
/// Share of the mean variance that is added to each: what calibration inputs do not show.
const DAMPING: f64 = 0.01;
/// Columns of a block, in products and factorizations.
const BLOCK: usize = 256;
/// Output channels rounded together, so that a row of L is read once for all of them.
const ROWS: usize = 16;

/// Rounded weights of a layer.
#[derive(Debug, Clone)]
pub struct Rounded {
    /// As the weights lie in the file.
    pub values: Vec<i8>,
    /// Mean change of each output channel.
    pub shift: Vec<f64>,
}

/// Where a Conv or Gemm reads its input.
#[derive(Debug, Clone)]
pub struct Reads {
    /// Channels, height and width of the input; of a vector its length, 1 and 1.
    shape: [usize; 3],
    window: Window,
    out: [usize; 2],
    groups: usize,
}

impl Reads {
    /// Of `node` with weights of dimensions `weights` on an input of `shape`; `None` if the node has another form.
    pub fn of(node: &NodeProto, weights: &[usize], shape: &[usize]) -> Option<Self> {
        let unit = Window { kernel: [1; 2], stride: [1; 2], dilation: [1; 2], pad: [0; 4], ceil: false };
        let groups = usize::try_from(attr_int(node, "group", 1)).ok().filter(|&g| g > 0)?;
        if is_op(node, "ConvTranspose") {
            return None; // each of its phases reads other taps
        }
        let (shape, window) = match (weights, shape) {
            (&[_, k], _) if shape.iter().product::<usize>() == k => ([k, 1, 1], unit),
            (&[out, per_group, kh, kw], &[_, c, h, w]) if c == per_group * groups && out % groups == 0 => {
                let pair = |name: &str| match attr_ints(node, name) {
                    [] => Some([1; 2]),
                    &[a, b] => Some([usize::try_from(a).ok().filter(|&v| v > 0)?, usize::try_from(b).ok().filter(|&v| v > 0)?]),
                    _ => None,
                };
                let mut pad = [0; 4];
                for (p, &v) in pad.iter_mut().zip(attr_ints(node, "pads")) {
                    *p = usize::try_from(v).ok()?;
                }
                ([c, h, w], Window { kernel: [kh, kw], stride: pair("strides")?, dilation: pair("dilations")?, pad, ceil: false })
            }
            _ => return None,
        };
        let out = window.output([shape[1], shape[2]])?;
        Some(Reads { shape, window, out, groups })
    }

    /// Weights of one output channel.
    fn taps(&self) -> usize {
        self.shape[0] / self.groups * self.window.kernel[0] * self.window.kernel[1]
    }

    /// Bytes of its covariance.
    pub fn bytes(&self) -> usize {
        self.taps().saturating_mul(self.taps()).saturating_mul(4 * self.groups)
    }

    fn samples(&self, images: usize) -> usize {
        (SAMPLES * self.taps()).div_ceil(images.max(1)).max(MIN_SAMPLES).min(self.out[0] * self.out[1])
    }

    /// Bytes of the samples of one of `images` images.
    pub fn sample_bytes(&self, images: usize) -> usize {
        self.samples(images).saturating_mul(self.taps()).saturating_mul(4 * self.groups)
    }

    /// What some of the output positions read of the input `x`: a row each, groups one after another.
    /// Positions are evenly spaced, others on each of `images` images.
    pub fn sample(&self, x: &[f32], image: usize, images: usize) -> Array2<f32> {
        let ([c, h, w], [kh, kw], positions) = (self.shape, self.window.kernel, self.out[0] * self.out[1]);
        let n = self.samples(images);
        let mut rows = Array2::zeros((n, c * kh * kw));
        for (i, mut row) in rows.outer_iter_mut().enumerate() {
            let at = (i * positions + image * 7919 % positions) / n;
            let (oy, ox) = (at / self.out[1], at % self.out[1]);
            // Row, column of a tap; beyond the picture where it lies in the padding.
            let y = |k: usize| (oy * self.window.stride[0] + k * self.window.dilation[0]).wrapping_sub(self.window.pad[0]);
            let x_at = |k: usize| (ox * self.window.stride[1] + k * self.window.dilation[1]).wrapping_sub(self.window.pad[1]);
            for (j, v) in row.iter_mut().enumerate() {
                let (channel, y, x_at) = (j / (kh * kw), y(j / kw % kh), x_at(j % kw));
                if y < h && x_at < w {
                    *v = x[(channel * h + y) * w + x_at];
                }
            }
        }
        rows
    }
}

/// Sums of what a layer reads, and of its products.
pub struct Moments {
    reads: Reads,
    count: usize,
    sums: Vec<f64>,
    /// Per group; the lower triangle.
    products: Vec<Array2<f32>>,
}

impl Moments {
    /// Empty.
    pub fn new(reads: Reads) -> Self {
        let k = reads.taps();
        Moments { count: 0, sums: vec![0.0; k * reads.groups], products: vec![Array2::zeros((k, k)); reads.groups], reads }
    }

    /// Adds samples.
    pub fn add(&mut self, rows: &Array2<f32>) {
        self.count += rows.nrows();
        for row in rows.outer_iter() {
            self.sums.iter_mut().zip(row).for_each(|(s, &v)| *s += f64::from(v));
        }
        let k = self.reads.taps();
        for (g, product) in self.products.iter_mut().enumerate() {
            let x = columns(rows.view(), g * k..(g + 1) * k);
            for first in (0..k).step_by(BLOCK) {
                let last = (first + BLOCK).min(k);
                let mut block = product.slice_axis_mut(Axis(0), Slice::from(first..last));
                let mut block = block.slice_axis_mut(Axis(1), Slice::from(..last));
                general_mat_mul(1.0, &columns(x, first..last).t(), &columns(x, 0..last), 1.0, &mut block);
            }
        }
    }

    /// Rounds weights in steps of `scales` (one per output channel) to −127 ..= 127; inputs have steps of `input_step` themselves.
    pub fn round(self, weights: &[f32], scales: &[f32], input_step: f32) -> Rounded {
        let (k, n) = (self.reads.taps(), self.count.max(1) as f64);
        let means: Vec<f64> = self.sums.iter().map(|s| s / n).collect();
        let per_group = scales.len() / self.reads.groups;
        let mut out = Rounded { values: vec![0; weights.len()], shift: vec![0.0; scales.len()] };
        let rounding_noise = f64::from(input_step).powi(2) / 12.0;
        let parts = out.values.chunks_mut((per_group * k).max(1)).zip(out.shift.chunks_mut(per_group.max(1)));
        for (g, (product, (values, shift))) in self.products.into_iter().zip(parts).enumerate() {
            let means = &means[g * k..][..k];
            let diagonal: Vec<f64> = (0..k).map(|i| f64::from(product[[i, i]]) / n - means[i].powi(2) + rounding_noise).collect();
            let mut order: Vec<usize> = (0..k).collect();
            order.sort_by(|&a, &b| diagonal[a].total_cmp(&diagonal[b]));
            let damping = DAMPING * diagonal.iter().sum::<f64>() / k as f64 + f64::MIN_POSITIVE;
            let covariance = |i: usize, j: usize| {
                let (a, b) = (order[i].max(order[j]), order[i].min(order[j]));
                if a == b { diagonal[a] } else { f64::from(product[[a, b]]) / n - means[a] * means[b] }
            };
            let factor = (0..6).find_map(|attempt| {
                let extra = damping * 10f64.powi(attempt);
                let lower = |(i, j): (usize, usize)| {
                    if j > i { 0.0 } else { (covariance(i, j) + if i == j { extra } else { 0.0 }) as f32 }
                };
                cholesky(Array2::from_shape_fn((k, k), lower))
            });
            // A covariance that cannot be factored (overflow) says nothing: then all terms count alike.
            let factor = factor.unwrap_or_else(|| Array2::eye(k));
            let rows = weights[g * per_group * k..].chunks(ROWS * k);
            let scales = scales[g * per_group..][..per_group].par_chunks(ROWS);
            let rows: Vec<&[f32]> = rows.collect();
            values.par_chunks_mut(ROWS * k).zip(shift.par_chunks_mut(ROWS)).zip(scales).enumerate().for_each(
                |(chunk, ((values, shift), scales))| {
                    round_rows(rows[chunk], scales, &factor.view(), &order, means, values, shift);
                },
            );
        }
        out
    }
}

/// Rounds some output channels. Column j of `factor` and position j of `order` belong together.
fn round_rows(
    weights: &[f32],
    scales: &[f32],
    factor: &ArrayView2<f32>,
    order: &[usize],
    means: &[f64],
    values: &mut [i8],
    shift: &mut [f64],
) {
    let k = order.len();
    // Σ over rounded weights j of error j · L[j, ·].
    let mut terms = vec![0f32; scales.len() * k];
    for at in (0..k).rev() {
        let (row, tap) = (factor.row(at), order[at]);
        for (o, &scale) in scales.iter().enumerate() {
            let w = weights[o * k + tap];
            let terms = &mut terms[o * k..][..k];
            let q = ((w - terms[at] / row[at]) / scale).round_ties_even().clamp(-127.0, 127.0);
            let error = q * scale - w;
            values[o * k + tap] = q as i8;
            shift[o] += f64::from(error) * means[tap];
            terms.iter_mut().zip(row.iter().take(at)).for_each(|(t, &l)| *t += error * l);
        }
    }
}

fn columns(x: ArrayView2<f32>, range: Range<usize>) -> ArrayView2<f32> {
    x.slice_axis_move(Axis(1), Slice::from(range))
}

/// L of a symmetric matrix given by its lower triangle; `None` if it is not positive definite.
fn cholesky(mut a: Array2<f32>) -> Option<Array2<f32>> {
    let n = a.nrows();
    let all = a.as_slice_mut()?;
    for first in (0..n).step_by(BLOCK) {
        let last = (first + BLOCK).min(n);
        // Columns of this block, from its diagonal down, then what remains to the right.
        for j in first..last {
            let (above, below) = all.split_at_mut((j + 1) * n);
            let row = &mut above[j * n + first..=j * n + j];
            let (pivot, row) = row.split_last_mut()?;
            let square = f64::from(*pivot) - row.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>();
            if !(square > 0.0 && square.is_finite()) {
                return None;
            }
            *pivot = square.sqrt() as f32;
            let (pivot, row) = (*pivot, &*row);
            below.par_chunks_mut(n).with_min_len(64).for_each(|other| {
                let dot: f32 = other[first..j].iter().zip(row).map(|(x, y)| x * y).sum();
                other[j] = (other[j] - dot) / pivot;
            });
        }
        let rest = &mut all[last * n..];
        let panel: Vec<f32> = rest.chunks_exact(n).flat_map(|row| &row[first..last]).copied().collect();
        let panel = Array2::from_shape_vec((n - last, last - first), panel).ok()?;
        rest.par_chunks_mut(BLOCK * n).enumerate().try_for_each(|(i, rows)| {
            let (from, to) = (i * BLOCK, i * BLOCK + rows.len() / n);
            let mut rows = ArrayViewMut2::from_shape((to - from, n), rows).ok()?;
            let (mine, left) = (panel.slice_axis(Axis(0), Slice::from(from..to)), panel.slice_axis(Axis(0), Slice::from(..to)));
            general_mat_mul(-1.0, &mine, &left.t(), 1.0, &mut rows.slice_axis_mut(Axis(1), Slice::from(last..last + to)));
            Some(())
        })?;
    }
    Some(a)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(n: usize, seed: u32) -> Vec<f32> {
        let mut x = seed;
        (0..n)
            .map(|_| {
                x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (x >> 8) as f32 / (1 << 23) as f32 - 1.0
            })
            .collect()
    }

    #[test]
    fn the_factor_times_itself_is_the_matrix() {
        for n in [1, 5, BLOCK, 2 * BLOCK + 37] {
            let x = Array2::from_shape_vec((n + 9, n), noise((n + 9) * n, 3)).unwrap();
            let a = x.t().dot(&x) + Array2::<f32>::eye(n);
            let mut l = cholesky(a.clone()).unwrap();
            l.indexed_iter_mut().filter(|((i, j), _)| j > i).for_each(|(_, v)| *v = 0.0);
            let worst = (l.dot(&l.t()) - &a).iter().fold(0f32, |m, v| m.max(v.abs()));
            assert!(worst < 1e-3 * n as f32, "{n}: {worst}");
        }
        assert!(cholesky(Array2::from_shape_vec((2, 2), vec![1.0, 0.0, 2.0, 1.0]).unwrap()).is_none());
    }

    /// Mean square of the error that rounding makes at the output, its mean taken off.
    fn cost(rows: &Array2<f32>, group: usize, taps: usize, weights: &[f32], values: &[i8], scale: f32) -> f64 {
        let error: Vec<f64> = values.iter().zip(weights).map(|(&q, &w)| f64::from(f32::from(q) * scale - w)).collect();
        let at = |r: usize| error.iter().enumerate().map(|(i, e)| e * f64::from(rows[[r, group * taps + i]])).sum::<f64>();
        let all: Vec<f64> = (0..rows.nrows()).map(at).collect();
        let mean = all.iter().sum::<f64>() / all.len() as f64;
        all.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / all.len() as f64
    }

    #[test]
    fn neighbours_make_up_for_each_other() {
        // Two groups of two channels, 3×3 with padding and step 2, on smooth pictures: taps are much alike.
        let node = make_node(
            "Conv",
            &["x", "w"],
            "y",
            vec![
                int_attribute("group", 2),
                AttributeProto { name: "strides".into(), r#type: 7, ints: vec![2, 2], ..Default::default() },
                AttributeProto { name: "pads".into(), r#type: 7, ints: vec![1; 4], ..Default::default() },
            ],
        );
        let reads = Reads::of(&node, &[6, 2, 3, 3], &[1, 4, 17, 17]).unwrap();
        assert_eq!((reads.taps(), reads.out), (18, [9, 9]));
        let mut moments = Moments::new(reads.clone());
        let mut all = Vec::new();
        for image in 0..20 {
            let coarse = noise(4 * 25, image as u32 + 1);
            let x: Vec<f32> = (0..4 * 289).map(|i| 1.0 + coarse[i / 289 * 25 + i % 289 / 17 / 4 * 5 + i % 17 / 4]).collect();
            let rows = reads.sample(&x, image, 20);
            moments.add(&rows);
            all.push(rows);
        }
        let views: Vec<_> = all.iter().map(|rows| rows.view()).collect();
        let rows = ndarray::concatenate(ndarray::Axis(0), &views).unwrap();
        let (weights, scales) = (noise(6 * 18, 99), [0.1f32; 6]);
        let rounded = moments.round(&weights, &scales, 1e-3);
        let mut totals = (0.0, 0.0);
        for o in 0..6 {
            let w = &weights[o * 18..][..18];
            let nearest: Vec<i8> = w.iter().map(|w| (w / 0.1).round_ties_even() as i8).collect();
            let before = cost(&rows, o / 3, 18, w, &nearest, 0.1);
            let after = cost(&rows, o / 3, 18, w, &rounded.values[o * 18..][..18], 0.1);
            assert!(after < before, "channel {o}: {before} became {after}");
            totals = (totals.0 + before, totals.1 + after);
            let mean: f64 = (0..18)
                .map(|i| {
                    f64::from(f32::from(rounded.values[o * 18 + i]) * 0.1 - w[i])
                        * rows.column(o / 3 * 18 + i).mapv(f64::from).mean().unwrap()
                })
                .sum();
            assert!((mean - rounded.shift[o]).abs() < 1e-4, "{mean} {}", rounded.shift[o]);
        }
        assert!(totals.1 < 0.5 * totals.0, "{totals:?}");
    }

    #[test]
    fn unrelated_inputs_and_dead_ones_round_to_nearest() {
        let node = make_node("Gemm", &["x", "w"], "y", vec![]);
        let reads = Reads::of(&node, &[2, 40], &[1, 40]).unwrap();
        let mut moments = Moments::new(reads.clone());
        for i in 0..40 {
            let mut x = vec![0.0; 40];
            x[i] = if i < 30 { 1.0 } else { 0.0 };
            moments.add(&reads.sample(&x, 0, 1));
        }
        let weights = noise(80, 5);
        let rounded = moments.round(&weights, &[0.05, 0.05], 0.0);
        let far = weights.iter().zip(&rounded.values).filter(|(w, q)| (*w / 0.05 - f32::from(**q)).abs() > 0.6);
        assert_eq!(far.count(), 0);
    }
}
