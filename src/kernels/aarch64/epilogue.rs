//! Requantization of eight channels of one pixel, as [`super::super`] defines it.

use crate::kernels::{Requant, ResidualParams, TileArgs};
use std::arch::aarch64::*;

/// Channels of every tile.
pub const NR: usize = 8;

/// The parameters of eight channels, in registers.
pub struct Epilogue {
    mult: [float32x4_t; 2],
    lo: float32x4_t,
    hi: float32x4_t,
    zero_point: int16x8_t,
    residual: Option<(int16x8_t, float32x4_t)>,
}

impl Epilogue {
    /// # Safety
    /// The tile has `NR` multipliers.
    #[inline(always)]
    pub unsafe fn of_tile(t: &TileArgs<'_>) -> Self {
        debug_assert!(t.mult.len() >= NR && t.bias.len() >= NR && (1..=NR).contains(&t.n));
        // SAFETY: per-channel slices hold NR entries.
        unsafe { Epilogue::new(t.mult.as_ptr(), t.requant, t.residual_params) }
    }

    /// # Safety
    /// `mult` points to `NR` multipliers.
    #[inline(always)]
    pub unsafe fn new(mult: *const f32, requant: Requant, residual: Option<ResidualParams>) -> Self {
        // SAFETY: as promised; NEON is part of every AArch64 target.
        unsafe {
            Epilogue {
                mult: [vld1q_f32(mult), vld1q_f32(mult.add(4))],
                lo: vdupq_n_f32(requant.lo),
                hi: vdupq_n_f32(requant.hi),
                zero_point: vdupq_n_s16(requant.zero_point as i16),
                residual: residual.map(|p| (vdupq_n_s16(p.zero_point as i16), vdupq_n_f32(p.mult))),
            }
        }
    }

    /// Requantizes one pixel; `residual`, its residual bytes, is read if the layer adds one.
    #[inline(always)]
    pub fn pixel(&self, acc: [int32x4_t; 2], residual: impl FnOnce() -> int8x8_t) -> int8x8_t {
        match self.residual {
            None => self.requantize(acc),
            Some(params) => self.requantize_with(acc, residual(), params),
        }
    }

    /// Requantizes and stores pixels `first..first + P`, as far as the tile has them.
    ///
    /// # Safety
    /// `first < t.m`, and [`ConvKernel::run`](crate::kernels::ConvKernel::run)'s contract.
    #[inline(always)]
    pub unsafe fn store_pass<const P: usize>(&self, t: &TileArgs<'_>, first: usize, acc: [[int32x4_t; 2]; P]) {
        // SAFETY: only pixels below t.m and channels below t.n are touched.
        unsafe {
            if t.n == NR && first + P <= t.m {
                // Straight lines, without bounds checks: this is where most tiles go.
                let out = t.out.as_ptr().add(first);
                match self.residual {
                    None => {
                        for (i, &acc) in acc.iter().enumerate() {
                            vst1_s8((*out.add(i)).add(t.channel).cast(), self.requantize(acc));
                        }
                    }
                    Some(params) => {
                        let residual = t.residual.as_ptr().add(first);
                        for (i, &acc) in acc.iter().enumerate() {
                            vst1_s8(
                                (*out.add(i)).add(t.channel).cast(),
                                self.requantize_with(acc, vld1_s8((*residual.add(i)).add(t.channel).cast()), params),
                            );
                        }
                    }
                }
            } else {
                // A copy, so that the other path keeps its accumulators in registers.
                let acc = acc;
                self.store_tail(t, first, &acc);
            }
        }
    }

    /// As [`Self::store_pass`], byte by byte at the edges.
    ///
    /// # Safety
    /// As for [`Self::store_pass`].
    #[cold]
    #[inline(never)]
    unsafe fn store_tail(&self, t: &TileArgs<'_>, first: usize, acc: &[[int32x4_t; 2]]) {
        for (i, &acc) in (first..t.m).zip(acc) {
            let mut bytes = [0i8; NR];
            // SAFETY: out[i] is writable and residual[i] readable for n ≤ NR bytes from `channel` on.
            unsafe {
                let q = match self.residual {
                    None => self.requantize(acc),
                    Some(params) => {
                        std::ptr::copy_nonoverlapping(t.residual[i].add(t.channel).cast(), bytes.as_mut_ptr(), t.n);
                        self.requantize_with(acc, vld1_s8(bytes.as_ptr()), params)
                    }
                };
                vst1_s8(bytes.as_mut_ptr(), q);
                std::ptr::copy_nonoverlapping(bytes.as_ptr().cast(), t.out[i].add(t.channel), t.n);
            }
        }
    }

    #[inline(always)]
    fn requantize(&self, acc: [int32x4_t; 2]) -> int8x8_t {
        // SAFETY: NEON is part of every AArch64 target.
        unsafe { self.quantize([vmulq_f32(vcvtq_f32_s32(acc[0]), self.mult[0]), vmulq_f32(vcvtq_f32_s32(acc[1]), self.mult[1])]) }
    }

    #[inline(always)]
    fn requantize_with(&self, acc: [int32x4_t; 2], residual: int8x8_t, (zero_point, mult): (int16x8_t, float32x4_t)) -> int8x8_t {
        // SAFETY: NEON is part of every AArch64 target.
        unsafe {
            // Differences of bytes fit 16 bits.
            let r = vsubq_s16(vmovl_s8(residual), zero_point);
            let r = [vmovl_s16(vget_low_s16(r)), vmovl_high_s16(r)].map(|r| vmulq_f32(vcvtq_f32_s32(r), mult));
            let v = [vmulq_f32(vcvtq_f32_s32(acc[0]), self.mult[0]), vmulq_f32(vcvtq_f32_s32(acc[1]), self.mult[1])];
            self.quantize([vaddq_f32(v[0], r[0]), vaddq_f32(v[1], r[1])])
        }
    }

    #[inline(always)]
    fn quantize(&self, v: [float32x4_t; 2]) -> int8x8_t {
        // SAFETY: NEON is part of every AArch64 target.
        unsafe {
            // Clamped to ±255: narrowing is exact, and so is adding the zero point afterwards.
            let q = v.map(|v| vcvtnq_s32_f32(vminnmq_f32(vmaxnmq_f32(v, self.lo), self.hi)));
            vmovn_s16(vaddq_s16(vmovn_high_s32(vmovn_s32(q[0]), q[1]), self.zero_point))
        }
    }
}
