//! Requantization of eight channels of one pixel, as [`super::super`] defines it.

use crate::kernels::TileArgs;
use std::arch::aarch64::*;

/// Channels of every tile.
pub const NR: usize = 8;

/// The tile's parameters, in registers.
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
    pub unsafe fn new(t: &TileArgs<'_>) -> Self {
        debug_assert!(t.mult.len() >= NR && t.bias.len() >= NR && (1..=NR).contains(&t.n));
        // SAFETY: per-channel slices hold NR entries; NEON is part of every AArch64 target.
        unsafe {
            Epilogue {
                mult: [vld1q_f32(t.mult.as_ptr()), vld1q_f32(t.mult.as_ptr().add(4))],
                lo: vdupq_n_f32(t.requant.lo),
                hi: vdupq_n_f32(t.requant.hi),
                zero_point: vdupq_n_s16(t.requant.zero_point as i16),
                residual: t.residual_params.map(|p| (vdupq_n_s16(p.zero_point as i16), vdupq_n_f32(p.mult))),
            }
        }
    }

    /// Requantizes and stores the accumulators of pixel `i`, bias included.
    ///
    /// # Safety
    /// `i < t.m`, and [`ConvKernel::run`](crate::kernels::ConvKernel::run)'s contract.
    #[inline(always)]
    pub unsafe fn store(&self, t: &TileArgs<'_>, i: usize, acc: [int32x4_t; 2]) {
        // SAFETY: out[i] is writable and residual[i] readable for n bytes; whole vectors are used where n = NR only.
        unsafe {
            let mut v = [vmulq_f32(vcvtq_f32_s32(acc[0]), self.mult[0]), vmulq_f32(vcvtq_f32_s32(acc[1]), self.mult[1])];
            if let Some((zero_point, mult)) = self.residual {
                let bytes = if t.n == NR {
                    vld1_s8(t.residual[i].cast())
                } else {
                    let mut bytes = [0i8; NR];
                    std::ptr::copy_nonoverlapping(t.residual[i].cast(), bytes.as_mut_ptr(), t.n);
                    vld1_s8(bytes.as_ptr())
                };
                // Differences of bytes fit 16 bits.
                let r = vsubq_s16(vmovl_s8(bytes), zero_point);
                v[0] = vaddq_f32(v[0], vmulq_f32(vcvtq_f32_s32(vmovl_s16(vget_low_s16(r))), mult));
                v[1] = vaddq_f32(v[1], vmulq_f32(vcvtq_f32_s32(vmovl_high_s16(r)), mult));
            }
            // Clamped to ±255: narrowing is exact, and so is adding the zero point afterwards.
            let q = v.map(|v| vcvtnq_s32_f32(vminnmq_f32(vmaxnmq_f32(v, self.lo), self.hi)));
            let q = vaddq_s16(vmovn_high_s32(vmovn_s32(q[0]), q[1]), self.zero_point);
            let bytes = vmovn_s16(q);
            if t.n == NR {
                vst1_s8(t.out[i].cast(), bytes);
            } else {
                let mut tail = [0i8; NR];
                vst1_s8(tail.as_mut_ptr(), bytes);
                std::ptr::copy_nonoverlapping(tail.as_ptr().cast(), t.out[i], t.n);
            }
        }
    }
}
