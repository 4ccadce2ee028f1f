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
/// See [`ConvKernel::run`](crate::kernels::ConvKernel::run).
#[inline]
#[target_feature(enable = "avx2")]
pub unsafe fn ymm_finish(t: &TileArgs<'_>, acc: &[[__m256i; 2]; 6]) {
    // SAFETY: the contract is the same.
    unsafe {
        if t.saturates && t.n == 16 && t.m == 6 {
            match t.residual_params {
                None => finish_whole::<false>(t, acc),
                Some(_) => finish_whole::<true>(t, acc),
            }
        } else {
            finish_part(t, &super::settled(acc));
        }
    }
}

/// [`finish_part`] of a tile with all its pixels and channels whose clamping is left to packing: straight code, in which
/// accumulators stay in registers.
///
/// # Safety
/// As for [`ymm_finish`]; `m == 6`, `n == 16`, `saturates`, and there is a residual if `ADD`.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn finish_whole<const ADD: bool>(t: &TileArgs<'_>, acc: &[[__m256i; 2]; 6]) {
    // SAFETY: `mult` holds 16 entries; residual and output hold as many bytes.
    unsafe {
        let mult = [_mm256_loadu_ps(t.mult.as_ptr()), _mm256_loadu_ps(t.mult.as_ptr().add(8))];
        let zero_point = _mm256_set1_epi16(t.requant.zero_point as i16);
        let (residual_zero, residual_mult) = match t.residual_params {
            Some(p) if ADD => (_mm256_set1_epi32(p.zero_point), _mm256_set1_ps(p.mult)),
            _ => (_mm256_setzero_si256(), _mm256_setzero_ps()),
        };
        let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
        // Neither loops nor closures, as in the 512-bit kernel.
        macro_rules! half {
            ($i:literal, $half:literal) => {{
                let mut v = _mm256_mul_ps(_mm256_cvtepi32_ps(acc[$i][$half]), mult[$half]);
                if ADD {
                    let r = _mm_loadl_epi64(t.residual[$i].add(t.channel + 8 * $half).cast());
                    let r = _mm256_sub_epi32(_mm256_cvtepu8_epi32(r), residual_zero);
                    v = _mm256_add_ps(v, _mm256_mul_ps(_mm256_cvtepi32_ps(r), residual_mult));
                }
                _mm256_cvtps_epi32(v)
            }};
        }
        // The zero point is added to two halves at once: what saturates on the way saturates in the end.
        macro_rules! words {
            ($i:literal) => {
                _mm256_adds_epi16(_mm256_packs_epi32(half!($i, 0), half!($i, 1)), zero_point)
            };
        }
        macro_rules! pairs {
            ($(($first:literal, $second:literal))*) => {$(
                let bytes = _mm256_permutevar8x32_epi32(_mm256_packus_epi16(words!($first), words!($second)), order);
                _mm_storeu_si128(t.out[$first].add(t.channel).cast(), _mm256_castsi256_si128(bytes));
                _mm_storeu_si128(t.out[$second].add(t.channel).cast(), _mm256_extracti128_si256(bytes, 1));
            )*};
        }
        pairs!((0, 1)(2, 3)(4, 5));
    }
}

/// As [`ymm_finish`], of any part of a tile.
///
/// # Safety
/// As there.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn finish_part(t: &TileArgs<'_>, acc: &[[__m256i; 2]; 6]) {
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
