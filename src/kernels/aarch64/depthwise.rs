//! Depthwise convolution. Baseline: SMULL and SMLAL sum two products in 16 bits, SADDW adds them up in 32. With `dotprod`: four taps
//! of a channel are interleaved for SDOT.

use super::epilogue::Epilogue;
use crate::kernels::Domain;
use crate::kernels::depthwise::sweep::{Lanes, sweep};
use crate::kernels::depthwise::{Block, DepthwiseKernel, QUAD, interleaved};
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
            (16, true) => sweep::<Pairs<2, true>, 4>(b),
            (16, false) => sweep::<Pairs<2, false>, 2>(b),
            (_, true) => sweep::<Pairs<1, true>, 4>(b),
            (_, false) => sweep::<Pairs<1, false>, 2>(b),
        }
    }
}

/// # Safety
/// See [`DepthwiseKernel::run`].
#[target_feature(enable = "neon,dotprod")]
unsafe fn dotprod(b: &Block<'_>) {
    // SAFETY: the contract is the same.
    unsafe { sweep::<Dots, 4>(b) }
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
        unsafe { std::array::from_fn(|h| [vld1q_s32(bias.add(8 * h)), vld1q_s32(bias.add(8 * h + 4))]) }
    }

    #[inline(always)]
    unsafe fn column<const R: usize>(from: [*const u8; QUAD]) -> Self::Column {
        // SAFETY: as promised; rows from R on are not used.
        unsafe { std::array::from_fn(|h| std::array::from_fn(|r| vld1_s8(from[if r < R { r } else { 0 }].add(8 * h).cast()))) }
    }

    #[inline(always)]
    unsafe fn multiply<const R: usize>(mut sums: Self::Sums, x: Self::Column, weights: *const i8) -> Self::Sums {
        // SAFETY: a quad of weights has four rows.
        unsafe {
            for (h, (sums, x)) in sums.iter_mut().zip(x).enumerate() {
                let w = |r: usize| vld1_s8(weights.add((r * H + h) * 8));
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
        unsafe { Finish::new(b, |h| b.mult.as_ptr().add(8 * h)) }
    }

    #[inline(always)]
    unsafe fn store(f: &Self::Finish, b: &Block<'_>, sums: Self::Sums, residual: *const u8, output: *mut u8) {
        // SAFETY: as promised.
        unsafe { f.store(b, sums, residual, output) }
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
        unsafe { std::array::from_fn(|j| vld1q_s32(bias.add(4 * j))) }
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
                let w = vld1q_s8(weights.add(16 * j));
                asm!("sdot {:v}.4s, {:v}.16b, {:v}.16b", inout(vreg) *sum, in(vreg) x, in(vreg) w, options(pure, nomem, nostack, preserves_flags));
            }
        }
        sums
    }

    #[inline(always)]
    unsafe fn finish(b: &Block<'_>) -> Self::Finish {
        // SAFETY: there are as many multipliers as channels.
        unsafe { Finish::new(b, |h| b.mult.as_ptr().add(8 * h)) }
    }

    #[inline(always)]
    unsafe fn store(f: &Self::Finish, b: &Block<'_>, [s0, s1, s2, s3]: Self::Sums, residual: *const u8, output: *mut u8) {
        // SAFETY: as promised.
        unsafe { f.store(b, [[s0, s1], [s2, s3]], residual, output) }
    }
}

/// Requantization of `8 · H` channels.
#[derive(Clone, Copy)]
struct Finish<const H: usize> {
    epilogues: [Epilogue; H],
    /// Packing saturates as clamping would.
    saturates: bool,
}

impl<const H: usize> Finish<H> {
    /// # Safety
    /// `mult` gives eight multipliers for each half.
    #[inline(always)]
    unsafe fn new(b: &Block<'_>, mult: impl Fn(usize) -> *const f32) -> Self {
        // SAFETY: as promised.
        let epilogues = std::array::from_fn(|h| unsafe { Epilogue::new(mult(h), b.requant, b.residual_params) });
        Finish { epilogues, saturates: b.saturates && b.residual_params.is_none() }
    }

    /// # Safety
    /// `residual` is readable for `8 · H` bytes if the block has one, `output` writable for `b.n`.
    #[inline(always)]
    unsafe fn store(&self, b: &Block<'_>, sums: [[int32x4_t; 2]; H], residual: *const u8, output: *mut u8) {
        // SAFETY: as promised.
        unsafe {
            let bytes: [int8x8_t; H] = std::array::from_fn(|h| {
                if self.saturates {
                    self.epilogues[h].saturated(sums[h])
                } else {
                    self.epilogues[h].pixel(sums[h], || vld1_s8(residual.add(8 * h).cast()))
                }
            });
            if b.n == 8 * H {
                for (h, bytes) in bytes.into_iter().enumerate() {
                    vst1_s8(output.add(8 * h).cast(), bytes);
                }
            } else {
                let mut whole = [[0i8; 8]; H];
                for (to, bytes) in whole.iter_mut().zip(bytes) {
                    vst1_s8(to.as_mut_ptr(), bytes);
                }
                std::ptr::copy_nonoverlapping(whole.as_ptr().cast(), output, b.n);
            }
        }
    }
}
