//! Depthwise convolution. Baseline: SMULL and SMLAL sum two products in 16 bits, SADDW adds them up in 32. With `dotprod`: four taps
//! of a channel are interleaved for SDOT.

use super::epilogue::Epilogue;
use crate::kernels::Domain;
use crate::kernels::depthwise::sweep::{self, Lanes, sweep};
use crate::kernels::depthwise::{Block, DepthwiseKernel, QUAD, TapOrder, interleaved};
use std::arch::{aarch64::*, asm};

/// For every AArch64 processor.
pub const NEON_DEPTHWISE: DepthwiseKernel = DepthwiseKernel {
    name: "neon-depthwise-c16",
    isa: "neon",
    domain: Domain::S8,
    widths: &[16, 8],
    weight_bytes: 1,
    weight_index: |width, channel, tap| tap * width + channel,
    channel_index: |_, channel| channel,
    columns: true,
    supported: super::NEON.supported,
    run: neon,
};

/// SDOT.
pub const DOTPROD_DEPTHWISE: DepthwiseKernel = DepthwiseKernel {
    name: "dotprod-depthwise-c16",
    isa: "dotprod",
    domain: Domain::S8,
    widths: &[16],
    weight_bytes: 1,
    weight_index: |width, channel, tap| interleaved(width, channel) * QUAD + tap,
    channel_index: interleaved,
    columns: true,
    supported: super::DOTPROD.supported,
    run: dotprod,
};

/// SMMLA has nothing to add.
pub const I8MM_DEPTHWISE: DepthwiseKernel =
    DepthwiseKernel { name: "i8mm-depthwise-c16", isa: "i8mm", supported: super::I8MM.supported, ..DOTPROD_DEPTHWISE };

/// # Safety
/// See [`DepthwiseKernel::run`].
unsafe fn neon(b: &Block<'_>) {
    // SAFETY: the contract is the same; pairs of products fit 16 bits unless both are −128 · −128.
    unsafe {
        match (b.width, b.narrow) {
            (16, true) => sweep!(b, Pairs<2, true>, 4, neon_columns, neon_pixels),
            (_, true) => sweep!(b, Pairs<1, true>, 4, neon_columns, neon_pixels),
            (16, false) => wide::<Pairs<2, false>>(b),
            (_, false) => wide::<Pairs<1, false>>(b),
        }
    }
}

/// Any order of taps, for layers that our quantizer does not make.
///
/// # Safety
/// See [`DepthwiseKernel::run`].
unsafe fn wide<L: Lanes>(b: &Block<'_>) {
    let size = match b.order {
        TapOrder::Columns { size, .. } => [size, size],
        TapOrder::Sequence => [b.taps.len(), 1],
    };
    // SAFETY: the contract is the same.
    unsafe { neon_pixels::<L>(b, size, sweep::begin::<L>(b)) }
}

/// # Safety
/// See [`sweep::columns`].
#[inline(never)]
#[target_feature(enable = "neon")]
unsafe fn neon_columns<L: Lanes, const K: usize, const S: usize>(b: &Block<'_>) {
    // SAFETY: the contract is the same.
    unsafe { sweep::columns::<L, 4, K, S>(b) }
}

/// # Safety
/// See [`sweep::pixels`].
#[inline(never)]
#[target_feature(enable = "neon")]
unsafe fn neon_pixels<L: Lanes>(b: &Block<'_>, size: [usize; 2], fast: bool) {
    // SAFETY: the contract is the same.
    unsafe { sweep::pixels::<L>(b, size, fast) }
}

/// # Safety
/// See [`DepthwiseKernel::run`].
unsafe fn dotprod(b: &Block<'_>) {
    // SAFETY: the contract is the same.
    unsafe { sweep!(b, Dots, 4, dotprod_columns, dotprod_pixels) }
}

/// # Safety
/// See [`sweep::columns`].
#[inline(never)]
#[target_feature(enable = "neon,dotprod")]
unsafe fn dotprod_columns<L: Lanes, const K: usize, const S: usize>(b: &Block<'_>) {
    // SAFETY: the contract is the same.
    unsafe { sweep::columns::<L, 4, K, S>(b) }
}

/// # Safety
/// See [`sweep::pixels`].
#[inline(never)]
#[target_feature(enable = "neon,dotprod")]
unsafe fn dotprod_pixels<L: Lanes>(b: &Block<'_>, size: [usize; 2], fast: bool) {
    // SAFETY: the contract is the same.
    unsafe { sweep::pixels::<L>(b, size, fast) }
}

/// `8 · H` channels in their order; pairs of products are summed in 16 bits if `NARROW`.
#[derive(Clone, Copy)]
struct Pairs<const H: usize, const NARROW: bool>;

impl<const H: usize, const NARROW: bool> Lanes for Pairs<H, NARROW> {
    const CHANNELS: usize = 8 * H;
    const WEIGHT_BYTES: usize = 1;
    /// `[half][row]`.
    type Column = [[int8x8_t; QUAD]; H];
    type Sums = [[int32x4_t; 2]; H];
    type Finish = Finish<H>;

    #[inline(always)]
    unsafe fn bias(bias: *const i32) -> Self::Sums {
        // SAFETY: as promised.
        unsafe { std::array::from_fn(|h| [vld1q_s32(bias.wrapping_add(8 * h)), vld1q_s32(bias.wrapping_add(8 * h + 4))]) }
    }

    #[inline(always)]
    unsafe fn column<const R: usize>(from: [*const u8; QUAD]) -> Self::Column {
        // SAFETY: as promised; rows from R on are not used.
        unsafe { std::array::from_fn(|h| std::array::from_fn(|r| vld1_s8(from[if r < R { r } else { 0 }].wrapping_add(8 * h).cast()))) }
    }

    #[inline(always)]
    unsafe fn multiply<const R: usize>(mut sums: Self::Sums, x: Self::Column, weights: *const i8) -> Self::Sums {
        // SAFETY: a quad of weights has four rows.
        unsafe {
            for (h, (sums, x)) in sums.iter_mut().zip(x).enumerate() {
                let w = |r: usize| vld1_s8(weights.wrapping_add((r * H + h) * 8));
                let mut add = |products: int16x8_t| {
                    *sums = [vaddw_s16(sums[0], vget_low_s16(products)), vaddw_high_s16(sums[1], products)];
                };
                if NARROW {
                    let first = vmull_s8(x[0], w(0));
                    add(if R > 1 { vmlal_s8(first, x[1], w(1)) } else { first });
                    if R > 2 {
                        let second = vmull_s8(x[2], w(2));
                        add(if R > 3 { vmlal_s8(second, x[3], w(3)) } else { second });
                    }
                } else {
                    for (r, &x) in x.iter().enumerate().take(R) {
                        add(vmull_s8(x, w(r)));
                    }
                }
            }
        }
        sums
    }

    #[inline(always)]
    unsafe fn finish(b: &Block<'_>) -> Self::Finish {
        // SAFETY: there are as many multipliers as channels.
        unsafe { Finish::new(b) }
    }

    #[inline(always)]
    unsafe fn store(f: &Self::Finish, b: &Block<'_>, sums: Self::Sums, output: *mut u8) {
        // SAFETY: as promised.
        unsafe { f.store(b, sums, output) }
    }

    #[inline(always)]
    unsafe fn store_any(b: &Block<'_>, sums: Self::Sums, residual: *const u8, output: *mut u8) {
        // SAFETY: as promised.
        unsafe { store_any(b, sums, residual, output) }
    }
}

/// Sixteen channels as two steps of interleaving leave them: the first, second, third and fourth four channels, in this order.
#[derive(Clone, Copy)]
struct Dots;

impl Lanes for Dots {
    const CHANNELS: usize = 16;
    const WEIGHT_BYTES: usize = 1;
    type Column = [int8x16_t; 4];
    type Sums = [int32x4_t; 4];
    type Finish = Finish<2>;

    #[inline(always)]
    unsafe fn bias(bias: *const i32) -> Self::Sums {
        // SAFETY: as promised.
        unsafe { std::array::from_fn(|j| vld1q_s32(bias.wrapping_add(4 * j))) }
    }

    #[inline(always)]
    unsafe fn column<const R: usize>(from: [*const u8; QUAD]) -> Self::Column {
        // SAFETY: as promised; rows from R on are multiplied by zero.
        unsafe {
            let row = |r: usize| vld1q_s8(from[if r < R { r } else { R - 1 }].cast());
            let words = |v| vreinterpretq_s16_s8(v);
            let bytes = |v| vreinterpretq_s8_s16(v);
            let (ab, cd) = ([vzip1q_s8(row(0), row(1)), vzip2q_s8(row(0), row(1))], [vzip1q_s8(row(2), row(3)), vzip2q_s8(row(2), row(3))]);
            let [low, high] = [0, 1].map(|i| (words(ab[i]), words(cd[i])));
            [
                bytes(vzip1q_s16(low.0, low.1)),
                bytes(vzip2q_s16(low.0, low.1)),
                bytes(vzip1q_s16(high.0, high.1)),
                bytes(vzip2q_s16(high.0, high.1)),
            ]
        }
    }

    #[inline(always)]
    unsafe fn multiply<const R: usize>(mut sums: Self::Sums, x: Self::Column, weights: *const i8) -> Self::Sums {
        for (j, (sum, x)) in sums.iter_mut().zip(x).enumerate() {
            // SAFETY: a quad of weights fills four registers; SDOT is there, and touches registers only.
            unsafe {
                let w = vld1q_s8(weights.wrapping_add(16 * j));
                asm!("sdot {:v}.4s, {:v}.16b, {:v}.16b", inout(vreg) *sum, in(vreg) x, in(vreg) w, options(pure, nomem, nostack, preserves_flags));
            }
        }
        sums
    }

    #[inline(always)]
    unsafe fn finish(b: &Block<'_>) -> Self::Finish {
        // SAFETY: there are as many multipliers as channels.
        unsafe { Finish::new(b) }
    }

    #[inline(always)]
    unsafe fn store(f: &Self::Finish, b: &Block<'_>, [s0, s1, s2, s3]: Self::Sums, output: *mut u8) {
        // SAFETY: as promised.
        unsafe { f.store(b, [[s0, s1], [s2, s3]], output) }
    }

    #[inline(always)]
    unsafe fn store_any(b: &Block<'_>, [s0, s1, s2, s3]: Self::Sums, residual: *const u8, output: *mut u8) {
        // SAFETY: as promised.
        unsafe { store_any(b, [[s0, s1], [s2, s3]], residual, output) }
    }
}

/// Bounded requantization of `8 · H` channels.
#[derive(Clone, Copy)]
struct Finish<const H: usize> {
    zero_point: int16x8_t,
    lo: int8x8_t,
    hi: int8x8_t,
}

impl<const H: usize> Finish<H> {
    /// # Safety
    /// None beyond NEON.
    #[inline(always)]
    unsafe fn new(b: &Block<'_>) -> Self {
        let zero_point = b.requant.zero_point;
        let byte = |clamp: f32| (clamp as i32 + zero_point) as i8;
        // SAFETY: NEON is part of every AArch64 target.
        unsafe {
            Finish { zero_point: vdupq_n_s16(zero_point as i16), lo: vdup_n_s8(byte(b.requant.lo)), hi: vdup_n_s8(byte(b.requant.hi)) }
        }
    }

    /// # Safety
    /// There are `8 · H` multipliers; `output` is writable for `b.n` bytes.
    #[inline(always)]
    unsafe fn store(&self, b: &Block<'_>, sums: [[int32x4_t; 2]; H], output: *mut u8) {
        // SAFETY: as promised.
        unsafe {
            let bytes: [int8x8_t; H] = std::array::from_fn(|h| {
                let mult = b.mult.as_ptr().add(8 * h);
                let round = |i: usize| vcvtnq_s32_f32(vmulq_f32(vcvtq_f32_s32(sums[h][i]), vld1q_f32(mult.wrapping_add(4 * i))));
                // Clamping may come last, on bytes: what saturates before the zero point is added saturates in the end.
                let words = vqaddq_s16(vqmovn_high_s32(vqmovn_s32(round(0)), round(1)), self.zero_point);
                vmin_s8(vmax_s8(vqmovn_s16(words), self.lo), self.hi)
            });
            put(bytes, output, b.n);
        }
    }
}

/// # Safety
/// There are `8 · H` multipliers; `residual` is readable for as many bytes if the block has one, `output` writable for `b.n`.
#[inline(always)]
unsafe fn store_any<const H: usize>(b: &Block<'_>, sums: [[int32x4_t; 2]; H], residual: *const u8, output: *mut u8) {
    // SAFETY: as promised.
    unsafe {
        let bytes: [int8x8_t; H] = std::array::from_fn(|h| {
            let epilogue = Epilogue::new(b.mult.as_ptr().add(8 * h), b.requant, b.residual_params);
            epilogue.pixel(sums[h], || vld1_s8(residual.add(8 * h).cast()))
        });
        put(bytes, output, b.n);
    }
}

/// # Safety
/// `output` is writable for `n` bytes.
#[inline(always)]
unsafe fn put<const H: usize>(bytes: [int8x8_t; H], output: *mut u8, n: usize) {
    // SAFETY: as promised.
    unsafe {
        if n == 8 * H {
            for (h, bytes) in bytes.into_iter().enumerate() {
                vst1_s8(output.add(8 * h).cast(), bytes);
            }
        } else {
            let mut whole = [[0i8; 8]; H];
            for (to, bytes) in whole.iter_mut().zip(bytes) {
                vst1_s8(to.as_mut_ptr(), bytes);
            }
            std::ptr::copy_nonoverlapping(whole.as_ptr().cast(), output, n);
        }
    }
}
