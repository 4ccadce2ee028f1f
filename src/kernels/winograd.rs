//! Exact Winograd convolution F(4×4, 3×3): 36 multiplications for 16 outputs instead of 144.
//!
//! The Toom–Cook points 0, ±1, ±2, ∞ (Lavin & Gray, arXiv 1509.09308, §4.2) with every fraction moved to the end:
//! ```text
//! U = Ĝ g Ĝᵀ        Ĝ rows (1,0,0) (1,1,1) (1,−1,1) (1,2,4) (1,−2,4) (0,0,1)     |U| ≤ 128·49      fits i16
//! V = Bᵀ d B        see `input_1d`                                               |V| ≤ 255·68      fits i16
//! M = Σ_c U·V       i32, modulo 2³²
//! 576·Y = Âᵀ M Â    Â = Aᵀ·diag(6,−4,−4,1,1,24), so that nothing is divided before the end
//! ```
//! All of it is ring arithmetic modulo 2³², so sums may wrap: `576·Y` comes out exactly modulo 2³². 576 = 64·9, and 9
//! has an inverse modulo 2³²; thus `Y` is exact if `|Y| < 2²⁵`, which [`is_exact`] proves from the real weights of each
//! output channel. Results then equal the direct convolution bit for bit.

#[cfg(target_arch = "aarch64")]
use super::aarch64::Epilogue;
use super::{Domain, Requant, ResidualParams};
#[cfg(target_arch = "aarch64")]
use std::arch::aarch64::*;

/// Output pixels of a tile, a side.
pub const TILE: usize = 4;
/// Input pixels of a tile, a side.
pub const PATCH: usize = 6;
/// Independent matrix products.
pub const POINTS: usize = PATCH * PATCH;
/// Channels that input transforms handle at once, one register; the depth of `U` and `V` is padded to a multiple of it.
pub const LANES: usize = if cfg!(target_arch = "aarch64") { 8 } else { 32 };
/// 9⁻¹ modulo 2³².
const INVERSE_OF_9: i32 = 954_437_177;
/// log₂ of what `output_1d` leaves out of each result.
const LEFT_OUT: [u32; TILE] = [0, 1, 2, 2];

/// The i16 matrix product of one instruction set: `m[i][j] = Σ_k v[i][k]·u[k][j]` modulo 2³².
#[derive(Debug, Clone, Copy)]
pub struct WinogradKernel {
    /// `isa-winograd-MRxNRcKR`.
    pub name: &'static str,
    /// Tiles per call.
    pub mr: usize,
    /// Output channels per call.
    pub nr: usize,
    /// Depth per step: `u` is laid out `[k / kr][nr][kr]`.
    pub kr: usize,
    /// Multiply-accumulates a cycle at peak, over those of the direct kernel: what the planner weighs.
    pub relative_speed: f64,
    /// Transforming one input or output channel of one tile, in multiply-accumulates of the direct kernel.
    pub transform_cost: [f64; 2],
    /// Transformed weights are eight times as large; above this size, reading them costs what multiplying less gains.
    /// For one thread: several gain less time each, and share what memory delivers.
    pub max_weight_bytes: usize,
    /// Computes one block.
    ///
    /// # Safety
    /// The processor supports the kernel. `v` holds `rows ≤ mr` rows of `depth` values, `u` holds `depth·nr` values,
    /// `m` takes `rows·nr` values; `depth` is a multiple of [`LANES`].
    pub run: unsafe fn(v: *const i16, u: *const i16, m: *mut i32, depth: usize, rows: usize),
}

/// The definition of [`WinogradKernel::run`], for any shape.
///
/// # Safety
/// See [`WinogradKernel::run`].
#[cfg(test)]
pub unsafe fn reference<const NR: usize, const KR: usize>(v: *const i16, u: *const i16, m: *mut i32, depth: usize, rows: usize) {
    for i in 0..rows {
        for j in 0..NR {
            let mut sum = 0i32;
            for k in 0..depth {
                // SAFETY: within the promised sizes.
                let (v, u) = unsafe { (*v.add(i * depth + k), *u.add((k / KR * NR + j) * KR + k % KR)) };
                sum = sum.wrapping_add(i32::from(v).wrapping_mul(i32::from(u)));
            }
            // SAFETY: within the promised sizes.
            unsafe { *m.add(i * NR + j) = sum };
        }
    }
}

/// True if a 3×3 filter of these weights (all channels of one output) gives `|Σ w·x| < 2²⁵` for all bytes `x`.
pub fn is_exact(domain: Domain, filter: &[i8]) -> bool {
    let (positive, negative) = filter.iter().fold((0, 0), |(p, n), &w| (p + i64::from(w.max(0)), n + i64::from(w.min(0))));
    let (lo, hi) = domain.range();
    let (lo, hi) = (i64::from(lo), i64::from(hi));
    let (least, most) = (lo * positive + hi * negative, hi * positive + lo * negative);
    least > -(1 << 25) && most < 1 << 25
}

/// `Ĝ g Ĝᵀ` of one 3×3 filter, row-major.
pub fn transform_filter(g: [i8; 9]) -> [i16; POINTS] {
    let expand = |a: i16, b: i16, c: i16| [a, a + b + c, a - b + c, a + 2 * b + 4 * c, a - 2 * b + 4 * c, c];
    let rows: [[i16; PATCH]; 3] = std::array::from_fn(|y| expand(g[3 * y].into(), g[3 * y + 1].into(), g[3 * y + 2].into()));
    let mut out = [0; POINTS];
    for x in 0..PATCH {
        for (y, v) in expand(rows[0][x], rows[1][x], rows[2][x]).into_iter().enumerate() {
            out[y * PATCH + x] = v;
        }
    }
    out
}

/// Packs `[out][depth][3][3]` weights to `[out / nr][point][depth / kr][nr][kr]`; depth padded to [`LANES`].
pub fn pack(kernel: &WinogradKernel, weights: &[i8], out: usize, depth: usize) -> Vec<i16> {
    let (nr, kr, padded) = (kernel.nr, kernel.kr, depth.next_multiple_of(LANES));
    let panel = padded * nr;
    let mut packed = vec![0i16; out.div_ceil(nr) * POINTS * panel];
    for (index, g) in weights.as_chunks::<9>().0.iter().enumerate() {
        let (o, k) = (index / depth, index % depth);
        let base = o / nr * POINTS * panel + (k / kr * nr + o % nr) * kr + k % kr;
        for (point, u) in transform_filter(*g).into_iter().enumerate() {
            packed[base + point * panel] = u;
        }
    }
    packed
}

/// `Bᵀ d` for [`LANES`] channels.
#[inline(always)]
fn input_1d(d: [&[i16; LANES]; PATCH], r: &mut [[i16; LANES]; PATCH]) {
    for i in 0..LANES {
        let d = [d[0][i], d[1][i], d[2][i], d[3][i], d[4][i], d[5][i]];
        let (a, b) = (d[4] - 4 * d[2], d[3] - 4 * d[1]);
        let (c, e) = (d[4] - d[2], 2 * (d[3] - d[1]));
        r[0][i] = 4 * (d[0] - d[2]) + c;
        r[1][i] = a + b;
        r[2][i] = a - b;
        r[3][i] = c + e;
        r[4][i] = c - e;
        r[5][i] = d[5] - d[3] - 2 * e;
    }
}

/// `V = Bᵀ d B` of one patch and [`LANES`] channels; `v[point]` receives them.
#[inline(always)]
pub fn transform_input(d: &[[[i16; LANES]; PATCH]; PATCH], mut store: impl FnMut(usize, &[i16; LANES])) {
    let mut columns = [[[0i16; LANES]; PATCH]; PATCH];
    for x in 0..PATCH {
        input_1d([&d[0][x], &d[1][x], &d[2][x], &d[3][x], &d[4][x], &d[5][x]], &mut columns[x]);
    }
    for y in 0..PATCH {
        let mut row = [[0i16; LANES]; PATCH];
        input_1d([&columns[0][y], &columns[1][y], &columns[2][y], &columns[3][y], &columns[4][y], &columns[5][y]], &mut row);
        for (x, v) in row.iter().enumerate() {
            store(y * PATCH + x, v);
        }
    }
}

/// Channels that output transforms handle at once.
pub const OUT_LANES: usize = if cfg!(target_arch = "aarch64") { 8 } else { 16 };

/// `Âᵀ m`, each result without its power of two [`LEFT_OUT`].
#[inline(always)]
fn output_1d(m: [&[i32; OUT_LANES]; PATCH], y: &mut [[i32; OUT_LANES]; TILE]) {
    for i in 0..OUT_LANES {
        let m: [i32; PATCH] = [m[0][i], m[1][i], m[2][i], m[3][i], m[4][i], m[5][i]];
        let (s, d) = (m[1].wrapping_add(m[2]), m[1].wrapping_sub(m[2]));
        let (t, e) = (m[3].wrapping_add(m[4]), m[3].wrapping_sub(m[4]));
        let triple = |v: i32| v.wrapping_add(v << 1);
        y[0][i] = (triple(m[0]).wrapping_sub(s << 1) << 1).wrapping_add(t);
        y[1][i] = e.wrapping_sub(d << 1);
        y[2][i] = t.wrapping_sub(s);
        y[3][i] = (e.wrapping_add(triple(m[5])) << 1).wrapping_sub(d);
    }
}

/// `Y` of one tile and [`OUT_LANES`] output channels from its [`POINTS`] products, row-major.
#[inline(always)]
pub fn transform_output<'a>(m: impl Fn(usize) -> &'a [i32; OUT_LANES], y: &mut [[[i32; OUT_LANES]; TILE]; TILE]) {
    let mut columns = [[[0i32; OUT_LANES]; TILE]; PATCH];
    for x in 0..PATCH {
        output_1d([m(x), m(PATCH + x), m(2 * PATCH + x), m(3 * PATCH + x), m(4 * PATCH + x), m(5 * PATCH + x)], &mut columns[x]);
    }
    for i in 0..TILE {
        output_1d([&columns[0][i], &columns[1][i], &columns[2][i], &columns[3][i], &columns[4][i], &columns[5][i]], &mut y[i]);
        for (j, lanes) in y[i].iter_mut().enumerate() {
            // lanes · 2^(left out) = 576·Y, so lanes · 9⁻¹ = Y · 2^(6 − left out): exact, with room for the sign.
            let shift = 6 - LEFT_OUT[i] - LEFT_OUT[j];
            for v in lanes {
                *v = v.wrapping_mul(INVERSE_OF_9) >> shift;
            }
        }
    }
}

/// Bias, multipliers and requantization of [`OUT_LANES`] channels.
#[cfg(not(target_arch = "aarch64"))]
pub struct Finish {
    bias: [i32; OUT_LANES],
    mult: [f32; OUT_LANES],
    requant: Requant,
    residual: Option<ResidualParams>,
}

#[cfg(not(target_arch = "aarch64"))]
impl Finish {
    /// # Safety
    /// `bias` and `mult` hold [`OUT_LANES`] values.
    #[inline(always)]
    pub unsafe fn new(bias: &[i32], mult: &[f32], requant: Requant, residual: Option<ResidualParams>) -> Self {
        // SAFETY: as promised; arrays of plain numbers may be read from anywhere.
        unsafe {
            Finish {
                bias: bias.as_ptr().cast::<[i32; OUT_LANES]>().read_unaligned(),
                mult: mult.as_ptr().cast::<[f32; OUT_LANES]>().read_unaligned(),
                requant,
                residual,
            }
        }
    }

    /// The bytes of one pixel from its sums and the bytes of its residual (see [`crate::kernels`]).
    #[inline(always)]
    pub fn pixel(&self, domain: Domain, sums: &[i32; OUT_LANES], residual: &[u8; OUT_LANES]) -> [u8; OUT_LANES] {
        let mut real = [0f32; OUT_LANES];
        for i in 0..OUT_LANES {
            real[i] = sums[i].wrapping_add(self.bias[i]) as f32 * self.mult[i];
        }
        if let Some(params) = &self.residual {
            for i in 0..OUT_LANES {
                real[i] += (domain.decode(residual[i]) - params.zero_point) as f32 * params.mult;
            }
        }
        let mut bytes = [0u8; OUT_LANES];
        for i in 0..OUT_LANES {
            bytes[i] = self.requant.quantize(real[i]);
        }
        bytes
    }
}

/// Bias, multipliers and requantization of [`OUT_LANES`] channels.
#[cfg(target_arch = "aarch64")]
pub struct Finish {
    bias: [int32x4_t; 2],
    epilogue: Epilogue,
}

#[cfg(target_arch = "aarch64")]
impl Finish {
    /// # Safety
    /// `bias` and `mult` hold [`OUT_LANES`] values.
    #[inline(always)]
    pub unsafe fn new(bias: &[i32], mult: &[f32], requant: Requant, residual: Option<ResidualParams>) -> Self {
        // SAFETY: as promised.
        unsafe {
            Finish {
                bias: [vld1q_s32(bias.as_ptr()), vld1q_s32(bias.as_ptr().add(4))],
                epilogue: Epilogue::new(mult.as_ptr(), requant, residual),
            }
        }
    }

    /// The bytes of one pixel from its sums and the bytes of its residual (see [`crate::kernels`]).
    #[inline(always)]
    pub fn pixel(&self, domain: Domain, sums: &[i32; OUT_LANES], residual: &[u8; OUT_LANES]) -> [u8; OUT_LANES] {
        debug_assert_eq!(domain, Domain::S8);
        let mut bytes = [0; OUT_LANES];
        // SAFETY: the arrays hold eight values; NEON is part of every AArch64 target.
        unsafe {
            let sums = [vaddq_s32(vld1q_s32(sums.as_ptr()), self.bias[0]), vaddq_s32(vld1q_s32(sums.as_ptr().add(4)), self.bias[1])];
            vst1_s8(bytes.as_mut_ptr().cast(), self.epilogue.pixel(sums, || vld1_s8(residual.as_ptr().cast())));
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One patch, one channel, one filter through the transforms.
    fn convolve(d: &[[i16; PATCH]; PATCH], filters: &[[i8; 9]]) -> [[i32; TILE]; TILE] {
        let lanes: [[[i16; LANES]; PATCH]; PATCH] = std::array::from_fn(|y| std::array::from_fn(|x| [d[y][x]; LANES]));
        let mut m = [[0i32; OUT_LANES]; POINTS];
        for g in filters {
            let u = transform_filter(*g);
            transform_input(&lanes, |point, v| {
                m[point].iter_mut().for_each(|m| *m = m.wrapping_add(i32::from(v[0]).wrapping_mul(i32::from(u[point]))));
            });
        }
        let mut y = [[[0; OUT_LANES]; TILE]; TILE];
        transform_output(|point| &m[point], &mut y);
        y.map(|row| row.map(|lanes| lanes[OUT_LANES - 1]))
    }

    fn direct(d: &[[i16; PATCH]; PATCH], filters: &[[i8; 9]]) -> [[i32; TILE]; TILE] {
        let tap = |y: usize, x: usize, g: &[i8; 9]| -> i32 { (0..9).map(|t| i32::from(d[y + t / 3][x + t % 3]) * i32::from(g[t])).sum() };
        std::array::from_fn(|y| std::array::from_fn(|x| filters.iter().map(|g| tap(y, x, g)).sum()))
    }

    #[test]
    fn equals_the_direct_sum_up_to_the_proven_bound() {
        let mut state = 1u64;
        let mut byte = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        };
        // Most sums wrap i32 on the way.
        for round in 0..300 {
            let extreme = round % 3 == 0;
            let domain = if round % 3 == 2 { Domain::S8 } else { Domain::U8 };
            let d: [[i16; PATCH]; PATCH] = std::array::from_fn(|_| {
                std::array::from_fn(|_| {
                    if extreme {
                        i16::from(byte() & 1) * 255
                    } else if round % 3 == 1 {
                        byte().into()
                    } else {
                        i16::from(byte() as i8)
                    }
                })
            });
            let filters: Vec<[i8; 9]> = (0..1 + round % 114)
                .map(|_| std::array::from_fn(|_| if extreme { if byte() & 1 == 0 { -128 } else { 127 } } else { byte() as i8 }))
                .collect();
            assert!(is_exact(domain, filters.as_flattened()));
            assert_eq!(convolve(&d, &filters), direct(&d, &filters), "round {round}");
        }
    }

    #[test]
    fn the_bound_is_tight_enough_to_refuse() {
        assert!(is_exact(Domain::U8, &[-128; 1027]) && is_exact(Domain::S8, &[-128; 2047]));
        assert!(!is_exact(Domain::U8, &[-128; 1029]) && !is_exact(Domain::S8, &[-128; 2048]));
        // Weights of both signs cannot all meet the value that is worst for them.
        assert!(is_exact(Domain::U8, &[[-128; 1027], [127; 1027]].concat()));
        // Just above it, the result really can be wrong: the proof is not idle.
        let filters = vec![[127i8; 9]; 120];
        let d = [[255i16; PATCH]; PATCH];
        assert!(!is_exact(Domain::U8, filters.as_flattened()) && convolve(&d, &filters) != direct(&d, &filters));
    }
}
