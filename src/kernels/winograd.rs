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
//!
//! A tile at the edge of the picture may have only three or two outputs a side. F(3, 3) and F(2, 3) need five and four of the
//! same points, so it takes the same `U` and leaves out the rest (see [`points`]).

use super::Domain;

/// Output pixels of a tile, a side.
pub const TILE: usize = 4;
/// Input pixels of a tile, a side.
pub const PATCH: usize = 6;
/// Independent matrix products.
pub const POINTS: usize = PATCH * PATCH;
/// 9⁻¹ modulo 2³².
pub(super) const INVERSE_OF_9: i32 = 954_437_177;

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
    /// `v` is laid out `[depth / LANES][mr][LANES]`, so that one load takes a register of every tile; otherwise `[mr][depth]`.
    pub interleaved: bool,
    /// Values after the last of `u` that it reads, and does not use.
    pub read_ahead: usize,
    /// Multiply-accumulates a cycle at peak, over those of the direct kernel: what the planner weighs.
    pub relative_speed: f64,
    /// Transforming one input or output channel of one tile, in multiply-accumulates of the direct kernel.
    pub transform_cost: [f64; 2],
    /// Transformed weights are eight times as large; above this size, reading them costs what multiplying less gains.
    /// For one thread: several gain less time each, and share what memory delivers.
    pub max_weight_bytes: fn() -> usize,
    /// Direct products that a core makes while one byte of weights arrives from beyond its own caches. Direct weights are an eighth, and
    /// count as nothing.
    pub byte_cost: fn() -> f64,
    /// Computes a product.
    ///
    /// # Safety
    /// The processor supports the kernel; operands are as [`Product`] says, and nobody else touches `m`.
    pub run: unsafe fn(Product),
}

/// One matrix product, and how much of it is still to do.
#[derive(Debug)]
pub struct Product {
    /// Groups of [`WinogradKernel::mr`] rows of `depth` values. If interleaved, `mr·LANES` values after a group are readable.
    pub v: *const i16,
    /// Values from one group of `v` to the next.
    pub group: usize,
    /// Rows of the first group that are left out.
    pub offset: usize,
    /// Rows to multiply.
    pub rows: usize,
    /// `depth·nr` values, and what is read ahead.
    pub u: *const i16,
    /// Takes `rows·nr` sums.
    pub m: *mut i32,
    /// A multiple of [`LANES`], not 0.
    pub depth: usize,
}

impl Product {
    /// The next rows that lie in one group, for a kernel: where they and their sums lie, and how many there are.
    #[inline(always)]
    pub fn next(&mut self, kernel: &WinogradKernel) -> Option<(*const i16, *mut i32, usize)> {
        if self.rows == 0 {
            return None;
        }
        let count = self.rows.min(kernel.mr - self.offset);
        let [row, _] = kernel.strides(self.depth);
        let next = (self.v.wrapping_add(self.offset * row), self.m, count);
        self.v = self.v.wrapping_add(self.group);
        self.m = self.m.wrapping_add(count * kernel.nr);
        (self.offset, self.rows) = (0, self.rows - count);
        Some(next)
    }
}

impl WinogradKernel {
    /// From one row of `v` to the next, and from [`LANES`] values of a row to the next ones.
    #[inline(always)]
    pub fn strides(&self, depth: usize) -> [usize; 2] {
        if self.interleaved { [LANES, self.mr * LANES] } else { [depth, LANES] }
    }
}

/// The definition of [`WinogradKernel::run`], for any kernel: the sums of rows `offset..offset + rows` of `v`, whose groups lie one
/// after another.
#[cfg(test)]
pub fn reference(kernel: &WinogradKernel, v: &[i16], u: &[i16], depth: usize, offset: usize, rows: usize) -> Vec<i32> {
    let (mr, nr, kr, [row, lanes]) = (kernel.mr, kernel.nr, kernel.kr, kernel.strides(depth));
    let term = |i: usize, j: usize, k: usize| {
        let v = v[i / mr * mr * depth + i % mr * row + k / LANES * lanes + k % LANES];
        i32::from(v).wrapping_mul(i32::from(u[(k / kr * nr + j) * kr + k % kr]))
    };
    let sum = |i: usize, j: usize| (0..depth).fold(0i32, |sum, k| sum.wrapping_add(term(i, j, k)));
    (offset * nr..(offset + rows) * nr).map(|at| sum(at / nr, at % nr)).collect()
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

/// Packs `[out][depth][3][3]` weights to `[out / nr][point][depth / kr][nr][kr]`, depth padded to [`LANES`], and zeros for what the
/// kernel reads ahead.
pub fn pack(kernel: &WinogradKernel, weights: &[i8], out: usize, depth: usize) -> Vec<i16> {
    let (nr, kr, padded) = (kernel.nr, kernel.kr, depth.next_multiple_of(LANES));
    let panel = padded * nr;
    let mut packed = vec![0i16; out.div_ceil(nr) * POINTS * panel + kernel.read_ahead];
    for (index, g) in weights.as_chunks::<9>().0.iter().enumerate() {
        let (o, k) = (index / depth, index % depth);
        let base = o / nr * POINTS * panel + (k / kr * nr + o % nr) * kr + k % kr;
        for (point, u) in transform_filter(*g).into_iter().enumerate() {
            packed[base + point * panel] = u;
        }
    }
    packed
}

/// Several channels as one number modulo 2¹⁶ or 2³²: a vector register, or an array that the compiler makes one of.
pub trait Ring: Copy {
    /// `self + other`
    fn plus(self, other: Self) -> Self;
    /// `self − other`
    fn minus(self, other: Self) -> Self;
    /// `self · 2ᴺ`
    fn shifted<const N: i32>(self) -> Self;
}

/// The points, of 0, 1, −1, 2, −2, ∞, that a side with this many outputs needs.
pub fn points(outputs: usize) -> &'static [usize] {
    match outputs {
        0..=2 => &[0, 1, 2, 5],
        3 => &[0, 1, 2, 3, 5],
        _ => &[0, 1, 2, 3, 4, 5],
    }
}

/// `Bᵀ d` for a side of `outputs`; points that it does not need hold anything.
#[inline(always)]
fn input_1d<V: Ring>(outputs: usize, d: [V; PATCH]) -> [V; PATCH] {
    match outputs {
        // x³ − x and its quotients.
        0..=2 => [d[2].minus(d[0]), d[1].plus(d[2]), d[2].minus(d[1]), d[0], d[0], d[3].minus(d[1])],
        // x⁴ − 2x³ − x² + 2x
        3 => {
            let (a, b) = (d[3].minus(d[1]), d[3].minus(d[2]));
            let two = |v: V| v.shifted::<1>();
            [two(d[0].minus(d[2])).plus(a), b.minus(two(d[1])), b.plus(two(d[1].minus(d[2]))), a, d[0], d[4].minus(d[2]).minus(two(a))]
        }
        // x⁵ − 5x³ + 4x
        _ => {
            let (a, b) = (d[4].minus(d[2].shifted::<2>()), d[3].minus(d[1].shifted::<2>()));
            let (c, e) = (d[4].minus(d[2]), d[3].minus(d[1]).shifted::<1>());
            [
                d[0].minus(d[2]).shifted::<2>().plus(c),
                a.plus(b),
                a.minus(b),
                c.plus(e),
                c.minus(e),
                d[5].minus(d[3]).minus(e.shifted::<1>()),
            ]
        }
    }
}

/// `V = Bᵀ d B` of one patch, given and stored point by point, row-major; `outputs` down and across.
#[inline(always)]
pub fn transform_input<V: Ring>(outputs: [usize; 2], d: impl Fn(usize, usize) -> V, store: impl FnMut(usize, V)) {
    // Most tiles are whole: a copy without branches is theirs.
    if outputs == [TILE; 2] { input_2d([TILE; 2], d, store) } else { input_2d(outputs, d, store) }
}

#[inline(always)]
fn input_2d<V: Ring>(outputs: [usize; 2], d: impl Fn(usize, usize) -> V, mut store: impl FnMut(usize, V)) {
    // Written out: a loop would have to fill the array first.
    macro_rules! column {
        ($x:literal) => {
            input_1d(outputs[0], [d(0, $x), d(1, $x), d(2, $x), d(3, $x), d(4, $x), d(5, $x)])
        };
    }
    let columns = [column!(0), column!(1), column!(2), column!(3), column!(4), column!(5)];
    for &y in points(outputs[0]) {
        let row = input_1d(outputs[1], [columns[0][y], columns[1][y], columns[2][y], columns[3][y], columns[4][y], columns[5][y]]);
        for &x in points(outputs[1]) {
            store(y * PATCH + x, row[x]);
        }
    }
}

/// `24·Âᵀ m` of a side of `outputs`, each result without its power of two [`left_out`].
#[inline(always)]
fn output_1d<V: Ring>(outputs: usize, m: [V; PATCH]) -> [V; TILE] {
    let triple = |v: V| v.plus(v.shifted::<1>());
    let two = |v: V| v.shifted::<1>();
    match outputs {
        0..=2 => {
            let first = triple(m[1].plus(m[2]).minus(two(m[0])));
            let second = triple(m[1].minus(m[2]).plus(two(m[5])));
            [first, second, first, first]
        }
        3 => {
            let (a, b) = (triple(m[1]), two(m[3]));
            [triple(m[0]).minus(a).minus(m[2]).plus(m[3]), m[2].minus(a).plus(b), two(b.plus(triple(m[5]))).minus(a).minus(m[2]), a]
        }
        _ => {
            let (s, d) = (m[1].plus(m[2]), m[1].minus(m[2]));
            let (t, e) = (m[3].plus(m[4]), m[3].minus(m[4]));
            [two(triple(m[0]).minus(two(s))).plus(t), e.minus(two(d)), t.minus(s), two(e.plus(triple(m[5]))).minus(d)]
        }
    }
}

/// log₂ of what [`output_1d`] leaves out of result `i`.
#[inline(always)]
fn left_out(outputs: usize, i: usize) -> u32 {
    if outputs == TILE { [0, 1, 2, 2][i] } else { 2 }
}

/// `Y` of one tile of `outputs` down and across from its products; results beyond `outputs` hold anything.
#[inline(always)]
pub fn transform_output(outputs: [usize; 2], m: impl Fn(usize) -> Sums) -> [[Sums; TILE]; TILE] {
    if outputs == [TILE; 2] { output_2d([TILE; 2], m) } else { output_2d(outputs, m) }
}

#[inline(always)]
fn output_2d(outputs: [usize; 2], m: impl Fn(usize) -> Sums) -> [[Sums; TILE]; TILE] {
    let mut columns = [[m(0); TILE]; PATCH];
    for &x in points(outputs[1]) {
        columns[x] = output_1d(outputs[0], [m(x), m(PATCH + x), m(2 * PATCH + x), m(3 * PATCH + x), m(4 * PATCH + x), m(5 * PATCH + x)]);
    }
    let mut y = [columns[0]; TILE];
    for i in 0..outputs[0] {
        y[i] = output_1d(outputs[1], [columns[0][i], columns[1][i], columns[2][i], columns[3][i], columns[4][i], columns[5][i]]);
        for j in 0..outputs[1] {
            // y · 2^(left out) = 576·Y, so y · 9⁻¹ = Y · 2^(6 − left out): exact, with room for the sign.
            y[i][j] = y[i][j].divide(6 - left_out(outputs[0], i) - left_out(outputs[1], j));
        }
    }
    y
}

#[cfg(target_arch = "aarch64")]
pub use super::aarch64::lanes::{Finish, Sums, Values};
#[cfg(not(target_arch = "aarch64"))]
pub use plain::{Finish, Sums, Values};

/// Channels that input transforms handle at once; the depth of `U` and `V` is padded to a multiple of it.
pub const LANES: usize = Values::LANES;
/// Channels that output transforms handle at once.
pub const OUT_LANES: usize = Sums::LANES;

/// Arrays, for the compiler to put into registers of whatever width the caller is compiled for.
#[cfg(not(target_arch = "aarch64"))]
mod plain {
    use super::{INVERSE_OF_9, Ring};
    use crate::kernels::{Domain, Requant, ResidualParams};

    /// Transformed inputs of several channels.
    #[derive(Clone, Copy)]
    pub struct Values([i16; Values::LANES]);

    /// Products of several channels.
    #[derive(Clone, Copy)]
    pub struct Sums([i32; Sums::LANES]);

    macro_rules! ring {
        ($type:ident) => {
            impl Ring for $type {
                #[inline(always)]
                fn plus(mut self, other: Self) -> Self {
                    for i in 0..Self::LANES {
                        self.0[i] = self.0[i].wrapping_add(other.0[i]);
                    }
                    self
                }

                #[inline(always)]
                fn minus(mut self, other: Self) -> Self {
                    for i in 0..Self::LANES {
                        self.0[i] = self.0[i].wrapping_sub(other.0[i]);
                    }
                    self
                }

                #[inline(always)]
                fn shifted<const N: i32>(mut self) -> Self {
                    for i in 0..Self::LANES {
                        self.0[i] <<= N;
                    }
                    self
                }
            }
        };
    }
    ring!(Values);
    ring!(Sums);

    impl Values {
        /// Channels.
        pub const LANES: usize = 32;

        /// Widens bytes.
        ///
        /// # Safety
        /// `bytes` is readable for [`Self::LANES`].
        #[inline(always)]
        pub unsafe fn widen(domain: Domain, bytes: *const u8) -> Self {
            let mut values = [0; Self::LANES];
            // SAFETY: as promised.
            let bytes = unsafe { bytes.cast::<[u8; Self::LANES]>().read_unaligned() };
            for i in 0..Self::LANES {
                values[i] = match domain {
                    Domain::U8 => i16::from(bytes[i]),
                    Domain::S8 => i16::from(bytes[i] as i8),
                };
            }
            Values(values)
        }

        /// # Safety
        /// `to` is writable for [`Self::LANES`] values.
        #[inline(always)]
        pub unsafe fn store(self, to: *mut i16) {
            // SAFETY: as promised.
            unsafe { to.cast::<[i16; Self::LANES]>().write_unaligned(self.0) }
        }
    }

    impl Sums {
        /// Channels.
        pub const LANES: usize = 16;

        /// # Safety
        /// `from` is readable for [`Self::LANES`] values.
        #[inline(always)]
        pub unsafe fn load(from: *const i32) -> Self {
            // SAFETY: as promised.
            Sums(unsafe { from.cast::<[i32; Self::LANES]>().read_unaligned() })
        }

        /// Values per channel.
        #[cfg(test)]
        pub fn to_array(self) -> [i32; Self::LANES] {
            self.0
        }

        /// `self / (9 · 2^shift)`, where that is whole and `self / 9` fits.
        #[inline(always)]
        pub fn divide(mut self, shift: u32) -> Self {
            for i in 0..Self::LANES {
                self.0[i] = self.0[i].wrapping_mul(INVERSE_OF_9) >> shift;
            }
            self
        }
    }

    /// Bias, multipliers and requantization of several channels.
    pub struct Finish {
        bias: [i32; Sums::LANES],
        mult: [f32; Sums::LANES],
        requant: Requant,
        residual: ResidualParams,
    }

    impl Finish {
        /// # Safety
        /// `bias` and `mult` are readable for [`Sums::LANES`] values.
        #[inline(always)]
        pub unsafe fn new(bias: *const i32, mult: *const f32, requant: Requant, residual: Option<ResidualParams>) -> Self {
            // SAFETY: as promised.
            let (bias, mult) =
                unsafe { (bias.cast::<[i32; Sums::LANES]>().read_unaligned(), mult.cast::<[f32; Sums::LANES]>().read_unaligned()) };
            Finish { bias, mult, requant, residual: residual.unwrap_or(ResidualParams { zero_point: 0, mult: 0.0 }) }
        }

        /// Requantizes and stores pixels, to which their `residual`s are added if `RESIDUAL` (see [`crate::kernels`]).
        ///
        /// # Safety
        /// `out` is writable for [`Sums::LANES`] bytes each, and `residual` readable if `RESIDUAL`.
        #[inline(always)]
        pub unsafe fn pixels<const RESIDUAL: bool, const N: usize>(
            &self,
            domain: Domain,
            sums: &[Sums; N],
            residual: [*const u8; N],
            out: [*mut u8; N],
        ) {
            for i in 0..N {
                // SAFETY: as promised.
                unsafe { self.pixel::<RESIDUAL>(domain, sums[i], residual[i], out[i]) };
            }
        }

        /// # Safety
        /// As [`Self::pixels`].
        #[inline(always)]
        unsafe fn pixel<const RESIDUAL: bool>(&self, domain: Domain, sums: Sums, residual: *const u8, out: *mut u8) {
            let mut real = [0f32; Sums::LANES];
            for i in 0..Sums::LANES {
                real[i] = sums.0[i].wrapping_add(self.bias[i]) as f32 * self.mult[i];
            }
            if RESIDUAL {
                // SAFETY: as promised.
                let residual = unsafe { residual.cast::<[u8; Sums::LANES]>().read_unaligned() };
                for i in 0..Sums::LANES {
                    real[i] += (domain.decode(residual[i]) - self.residual.zero_point) as f32 * self.residual.mult;
                }
            }
            let mut bytes = [0u8; Sums::LANES];
            for i in 0..Sums::LANES {
                bytes[i] = self.requant.quantize(real[i]);
            }
            // SAFETY: as promised.
            unsafe { out.cast::<[u8; Sums::LANES]>().write_unaligned(bytes) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One patch through the transforms, the same in every channel; what the first one gives.
    fn convolve(d: &[[u8; PATCH]; PATCH], domain: Domain, filters: &[[i8; 9]], outputs: [usize; 2]) -> [[i32; TILE]; TILE] {
        // SAFETY (all blocks below): arrays of one register's size.
        let lanes = d.map(|row| row.map(|byte| unsafe { Values::widen(domain, [byte; LANES].as_ptr()) }));
        let mut m = [[0i32; OUT_LANES]; POINTS];
        for g in filters {
            let u = transform_filter(*g);
            transform_input(
                outputs,
                |y, x| lanes[y][x],
                |point, v| {
                    let mut values = [0; LANES];
                    unsafe { v.store(values.as_mut_ptr()) };
                    m[point].iter_mut().for_each(|m| *m = m.wrapping_add(i32::from(values[0]).wrapping_mul(i32::from(u[point]))));
                },
            );
        }
        transform_output(outputs, |point| unsafe { Sums::load(m[point].as_ptr()) }).map(|row| row.map(|sums| sums.to_array()[0]))
    }

    fn direct(d: &[[u8; PATCH]; PATCH], domain: Domain, filters: &[[i8; 9]]) -> [[i32; TILE]; TILE] {
        let tap =
            |y: usize, x: usize, g: &[i8; 9]| -> i32 { (0..9).map(|t| domain.decode(d[y + t / 3][x + t % 3]) * i32::from(g[t])).sum() };
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
            // Every kernel of AArch64 reads signed bytes.
            let domain = if cfg!(target_arch = "aarch64") || round % 3 == 2 { Domain::S8 } else { Domain::U8 };
            let d: [[u8; PATCH]; PATCH] =
                std::array::from_fn(|_| std::array::from_fn(|_| if extreme { 255 * (byte() & 1) } else { byte() }));
            let filters: Vec<[i8; 9]> = (0..1 + round % 114)
                .map(|_| std::array::from_fn(|_| if extreme { if byte() & 1 == 0 { -128 } else { 127 } } else { byte() as i8 }))
                .collect();
            assert!(is_exact(domain, filters.as_flattened()));
            let expected = direct(&d, domain, &filters);
            for outputs in [[4, 4], [3, 4], [4, 2], [3, 3], [2, 3], [1, 1], [4, 1]] {
                let found = convolve(&d, domain, &filters, outputs);
                for y in 0..outputs[0] {
                    assert_eq!(found[y][..outputs[1]], expected[y][..outputs[1]], "round {round}, {outputs:?}, row {y}");
                }
            }
        }
    }

    #[test]
    fn the_bound_is_tight_enough_to_refuse() {
        assert!(is_exact(Domain::U8, &[-128; 1027]) && is_exact(Domain::S8, &[-128; 2047]));
        assert!(!is_exact(Domain::U8, &[-128; 1029]) && !is_exact(Domain::S8, &[-128; 2048]));
        // Weights of both signs cannot all meet the value that is worst for them.
        assert!(is_exact(Domain::U8, &[[-128; 1027], [127; 1027]].concat()));
        // Just above it, the result really can be wrong: the proof is not idle.
        let (domain, count, byte) = if cfg!(target_arch = "aarch64") { (Domain::S8, 240, 0x80) } else { (Domain::U8, 120, 0xff) };
        let filters = vec![[127i8; 9]; count];
        let d = [[byte; PATCH]; PATCH];
        assert!(!is_exact(domain, filters.as_flattened()) && convolve(&d, domain, &filters, [4, 4]) != direct(&d, domain, &filters));
    }
}
