//! Eight channels in NEON registers, for the transforms of Winograd convolution.

use super::epilogue::Epilogue;
use crate::kernels::winograd::{INVERSE_OF_9, Ring};
use crate::kernels::{Domain, Requant, ResidualParams};
use std::arch::aarch64::*;

/// Transformed inputs of several channels.
#[derive(Clone, Copy)]
pub struct Values(int16x8_t);

/// Products of several channels.
#[derive(Clone, Copy)]
pub struct Sums([int32x4_t; 2]);

// SAFETY (all of these): NEON is part of every AArch64 target.
impl Ring for Values {
    #[inline(always)]
    fn plus(self, other: Self) -> Self {
        Values(unsafe { vaddq_s16(self.0, other.0) })
    }

    #[inline(always)]
    fn minus(self, other: Self) -> Self {
        Values(unsafe { vsubq_s16(self.0, other.0) })
    }

    #[inline(always)]
    fn shifted<const N: i32>(self) -> Self {
        Values(unsafe { vshlq_n_s16::<N>(self.0) })
    }
}

// SAFETY (all of these): as above.
impl Ring for Sums {
    #[inline(always)]
    fn plus(self, other: Self) -> Self {
        Sums(unsafe { [vaddq_s32(self.0[0], other.0[0]), vaddq_s32(self.0[1], other.0[1])] })
    }

    #[inline(always)]
    fn minus(self, other: Self) -> Self {
        Sums(unsafe { [vsubq_s32(self.0[0], other.0[0]), vsubq_s32(self.0[1], other.0[1])] })
    }

    #[inline(always)]
    fn shifted<const N: i32>(self) -> Self {
        Sums(unsafe { [vshlq_n_s32::<N>(self.0[0]), vshlq_n_s32::<N>(self.0[1])] })
    }
}

impl Values {
    /// Channels.
    pub const LANES: usize = 8;

    /// Widens bytes.
    ///
    /// # Safety
    /// `bytes` is readable for [`Self::LANES`].
    #[inline(always)]
    pub unsafe fn widen(domain: Domain, bytes: *const u8) -> Self {
        debug_assert_eq!(domain, Domain::S8, "the domain of every kernel here");
        // SAFETY: as promised.
        Values(unsafe { vmovl_s8(vld1_s8(bytes.cast())) })
    }

    /// # Safety
    /// `to` is writable for [`Self::LANES`] values.
    #[inline(always)]
    pub unsafe fn store(self, to: *mut i16) {
        // SAFETY: as promised.
        unsafe { vst1q_s16(to, self.0) }
    }
}

impl Sums {
    /// Channels.
    pub const LANES: usize = 8;

    /// # Safety
    /// `from` is readable for [`Self::LANES`] values.
    #[inline(always)]
    pub unsafe fn load(from: *const i32) -> Self {
        // SAFETY: as promised.
        Sums(unsafe { [vld1q_s32(from), vld1q_s32(from.add(4))] })
    }

    /// Values per channel.
    #[cfg(test)]
    pub fn to_array(self) -> [i32; Self::LANES] {
        // SAFETY: both are eight plain numbers.
        unsafe { std::mem::transmute(self.0) }
    }

    /// `self / (9 · 2^shift)`, where that is whole and `self / 9` fits.
    #[inline(always)]
    pub fn divide(self, shift: u32) -> Self {
        // SAFETY: NEON is part of every AArch64 target.
        Sums(self.0.map(|v| unsafe { vshlq_s32(vmulq_s32(v, vdupq_n_s32(INVERSE_OF_9)), vdupq_n_s32(-(shift as i32))) }))
    }
}

/// Bias, multipliers and requantization of several channels.
pub struct Finish {
    bias: Sums,
    epilogue: Epilogue,
}

impl Finish {
    /// # Safety
    /// `bias` and `mult` are readable for [`Sums::LANES`] values.
    #[inline(always)]
    pub unsafe fn new(bias: *const i32, mult: *const f32, requant: Requant, residual: Option<ResidualParams>) -> Self {
        // SAFETY: as promised.
        unsafe { Finish { bias: Sums::load(bias), epilogue: Epilogue::new(mult, requant, residual) } }
    }

    /// Requantizes and stores pixels, to which their `residual`s are added if `RESIDUAL` (see [`crate::kernels`]).
    ///
    /// # Safety
    /// `out` is writable for [`Sums::LANES`] bytes each, and `residual` readable if `RESIDUAL`; this was made with its parameters.
    #[inline(always)]
    pub unsafe fn pixels<const RESIDUAL: bool, const N: usize>(
        &self,
        domain: Domain,
        sums: &[Sums; N],
        residual: [*const u8; N],
        out: [*mut u8; N],
    ) {
        debug_assert_eq!(domain, Domain::S8, "the domain of every kernel here");
        // SAFETY: as promised. All loads come first and all stores last, so that what lies between can take turns.
        unsafe {
            let residual = residual.map(|r| if RESIDUAL { vld1_s8(r.cast()) } else { vdup_n_s8(0) });
            let bytes: [_; N] = std::array::from_fn(|i| self.epilogue.pixel(sums[i].plus(self.bias).0, || residual[i]));
            for (out, bytes) in out.into_iter().zip(bytes) {
                vst1_s8(out.cast(), bytes);
            }
        }
    }
}
