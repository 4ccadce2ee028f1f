//! What the 256-bit kernels begin and end with: bias, and requantization as [`super::super`] defines it.

use crate::kernels::TileArgs;
use std::arch::x86_64::*;

/// # Safety
/// `t.bias` holds 16 entries.
#[inline]
#[target_feature(enable = "avx2")]
pub unsafe fn ymm_bias(t: &TileArgs<'_>) -> [__m256i; 2] {
    debug_assert!(t.bias.len() >= 16);
    // SAFETY: as promised.
    unsafe { [_mm256_loadu_si256(t.bias.as_ptr().cast()), _mm256_loadu_si256(t.bias.as_ptr().add(8).cast())] }
}

/// Requantizes and stores a tile of 6 × 16.
///
/// # Safety
/// See [`ConvKernel::run`].
#[inline]
#[target_feature(enable = "avx2")]
pub unsafe fn ymm_finish(t: &TileArgs<'_>, acc: &[[__m256i; 2]; 6]) {
    debug_assert!(t.m <= 6 && t.n <= 16 && t.mult.len() >= 16);
    // SAFETY: `mult` holds 16 entries; residual and output hold n bytes.
    unsafe {
        let mult = [_mm256_loadu_ps(t.mult.as_ptr()), _mm256_loadu_ps(t.mult.as_ptr().add(8))];
        let (lo, hi) = (_mm256_set1_ps(t.requant.lo), _mm256_set1_ps(t.requant.hi));
        let zero_point = _mm256_set1_epi32(t.requant.zero_point);
        for (i, acc) in acc.iter().enumerate().take(t.m) {
            let mut v = [_mm256_mul_ps(_mm256_cvtepi32_ps(acc[0]), mult[0]), _mm256_mul_ps(_mm256_cvtepi32_ps(acc[1]), mult[1])];
            if let Some(p) = t.residual_params {
                let r = t.residual[i].add(t.channel);
                let r = if t.n == 16 {
                    _mm_loadu_si128(r.cast())
                } else {
                    let mut bytes = [0u8; 16];
                    std::ptr::copy_nonoverlapping(r, bytes.as_mut_ptr(), t.n);
                    _mm_loadu_si128(bytes.as_ptr().cast())
                };
                let (zero, mult) = (_mm256_set1_epi32(p.zero_point), _mm256_set1_ps(p.mult));
                let real = |r| _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_sub_epi32(_mm256_cvtepu8_epi32(r), zero)), mult);
                v = [_mm256_add_ps(v[0], real(r)), _mm256_add_ps(v[1], real(_mm_srli_si128(r, 8)))];
            }
            let quantize = |v| _mm256_add_epi32(_mm256_cvtps_epi32(_mm256_min_ps(_mm256_max_ps(v, lo), hi)), zero_point);
            // Values are 0..=255: both saturating packs are exact. The first one works by halves of a register.
            let words = _mm256_permute4x64_epi64(_mm256_packus_epi32(quantize(v[0]), quantize(v[1])), 0b11_01_10_00);
            let bytes = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
            let out = t.out[i].add(t.channel);
            if t.n == 16 {
                _mm_storeu_si128(out.cast(), bytes);
            } else {
                let mut whole = [0u8; 16];
                _mm_storeu_si128(whole.as_mut_ptr().cast(), bytes);
                std::ptr::copy_nonoverlapping(whole.as_ptr(), out, t.n);
            }
        }
    }
}
