//! VPDPBUSD on 512-bit registers.

use super::settled;
use super::winograd::AVX512VNNI_WINOGRAD;
use crate::kernels::{ConvKernel, Domain, MAX_MR, SimdLevel, TileArgs};
use std::arch::x86_64::*;

/// VPDPBUSD, 14 pixels × 32 channels: 28 accumulators, 2 weight registers, one broadcast.
/// ResNet's pictures (112, 56, 28, 14 pixels a side) are whole multiples of 14.
pub const VNNI512: ConvKernel = ConvKernel {
    name: "avx512vnni-conv-14x32c4",
    isa: "avx512vnni",
    level: SimdLevel::Avx512,
    domain: Domain::U8,
    mr: 14,
    nr: 32,
    kr: 4,
    lane: 4,
    unroll: 1,
    pairs: false,
    small: None,
    winograd: Some(AVX512VNNI_WINOGRAD),
    supported: || {
        is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vnni")
    },
    run: vnni512_tile,
};

/// # Safety
/// See [`ConvKernel::run`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn vnni512_tile(t: &TileArgs<'_>) {
    // A tail of a few pixels should not pay for fourteen.
    // SAFETY: the contract is the same for every height that covers m.
    unsafe {
        match t.m {
            0..=2 => vnni512_rows::<2>(t),
            3..=4 => vnni512_rows::<4>(t),
            5..=7 => vnni512_rows::<7>(t),
            8..=10 => vnni512_rows::<10>(t),
            11..=12 => vnni512_rows::<12>(t),
            _ => vnni512_rows::<14>(t),
        }
    }
}

/// # Safety
/// See [`ConvKernel::run`]; `m <= MR`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn vnni512_rows<const MR: usize>(t: &TileArgs<'_>) {
    const { assert!(MR <= MAX_MR) };
    debug_assert!(t.m <= MR && t.bias.len() >= 32 && t.mult.len() >= 32);
    // SAFETY: per-channel slices hold nr = 32 entries; weights hold 128 bytes a step; rows are readable.
    unsafe {
        let bias = [_mm512_loadu_si512(t.bias.as_ptr().cast()), _mm512_loadu_si512(t.bias.as_ptr().add(16).cast())];
        let mut acc = [bias; MR];
        let mut w = t.weights.as_ptr();
        for run in t.runs {
            let x: [*const u8; MR] = std::array::from_fn(|i| t.rows[i].add(run.offset));
            for s in 0..run.steps {
                let w0 = _mm512_loadu_si512(w.cast());
                let w1 = _mm512_loadu_si512(w.add(64).cast());
                // Weights of wide layers come from the second-level cache every time, or from beyond.
                _mm_prefetch::<_MM_HINT_T0>(w.wrapping_add(1024));
                _mm_prefetch::<_MM_HINT_T0>(w.wrapping_add(1088));
                w = w.add(128);
                for i in 0..MR {
                    let x = _mm512_set1_epi32(x[i].add(4 * s).cast::<i32>().read_unaligned());
                    acc[i][0] = _mm512_dpbusd_epi32(acc[i][0], x, w0);
                    acc[i][1] = _mm512_dpbusd_epi32(acc[i][1], x, w1);
                }
            }
        }
        if t.saturates && t.n == 32 && t.m == MR {
            match t.residual_params {
                None => zmm_finish_whole::<MR, false>(t, &acc),
                Some(_) => zmm_finish_whole::<MR, true>(t, &acc),
            }
        } else {
            zmm_finish(t, &settled(&acc));
        }
    }
}

/// [`zmm_finish`] of a tile with all its pixels and channels whose clamping is left to packing: straight code, in which
/// accumulators stay in registers.
///
/// # Safety
/// See [`ConvKernel::run`]; `m == MR`, `n == 32`, `saturates`, and there is a residual if `ADD`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn zmm_finish_whole<const MR: usize, const ADD: bool>(t: &TileArgs<'_>, acc: &[[__m512i; 2]; MR]) {
    // SAFETY: `mult` holds 32 entries; residual and output hold as many bytes.
    unsafe {
        let mult = [_mm512_loadu_ps(t.mult.as_ptr()), _mm512_loadu_ps(t.mult.as_ptr().add(16))];
        let zero_point = _mm512_set1_epi16(t.requant.zero_point as i16);
        let (residual_zero, residual_mult) = match t.residual_params {
            Some(p) if ADD => (_mm512_set1_epi32(p.zero_point), _mm512_set1_ps(p.mult)),
            _ => (_mm512_setzero_si512(), _mm512_setzero_ps()),
        };
        let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        // Neither loops nor closures: those would be calls, or index the accumulators, and either puts them in memory.
        macro_rules! whole {
            ($i:expr, $half:literal) => {{
                let mut v = _mm512_mul_ps(_mm512_cvtepi32_ps(acc[$i][$half]), mult[$half]);
                if ADD {
                    let r = _mm_loadu_si128(t.residual[$i].add(t.channel + 16 * $half).cast());
                    let r = _mm512_sub_epi32(_mm512_cvtepu8_epi32(r), residual_zero);
                    v = _mm512_add_ps(v, _mm512_mul_ps(_mm512_cvtepi32_ps(r), residual_mult));
                }
                _mm512_cvtps_epi32(v)
            }};
        }
        // The zero point is added to two halves at once: what saturates on the way saturates in the end.
        macro_rules! words {
            ($i:expr) => {
                _mm512_adds_epi16(_mm512_packs_epi32(whole!($i, 0), whole!($i, 1)), zero_point)
            };
        }
        macro_rules! pairs {
            ($($pair:literal)*) => {$(
                if 2 * $pair < MR {
                    let (first, second) = (2 * $pair, if 2 * $pair + 1 < MR { 2 * $pair + 1 } else { 2 * $pair });
                    let low = words!(first);
                    let high = if second > first { words!(second) } else { low };
                    let bytes = _mm512_permutexvar_epi32(order, _mm512_packus_epi16(low, high));
                    _mm256_storeu_si256(t.out[first].add(t.channel).cast(), _mm512_castsi512_si256(bytes));
                    if second > first {
                        _mm256_storeu_si256(t.out[second].add(t.channel).cast(), _mm512_extracti64x4_epi64(bytes, 1));
                    }
                }
            )*};
        }
        pairs!(0 1 2 3 4 5 6);
    }
}

/// Requantizes and stores a tile.
///
/// # Safety
/// See [`ConvKernel::run`]; `m <= MR`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn zmm_finish<const MR: usize>(t: &TileArgs<'_>, acc: &[[__m512i; 2]; MR]) {
    // SAFETY: `mult` holds 32 entries; residual and output hold n bytes.
    unsafe {
        let mult = [_mm512_loadu_ps(t.mult.as_ptr()), _mm512_loadu_ps(t.mult.as_ptr().add(16))];
        let (lo, hi) = (_mm512_set1_ps(t.requant.lo), _mm512_set1_ps(t.requant.hi));
        let zero_point = _mm512_set1_epi32(t.requant.zero_point);
        let real = |i: usize, half: usize, mask: __mmask16| {
            let mut v = _mm512_mul_ps(_mm512_cvtepi32_ps(acc[i][half]), mult[half]);
            if let Some(p) = t.residual_params {
                let r = t.residual[i].add(t.channel + 16 * half);
                let r = if mask == 0xffff { _mm_loadu_si128(r.cast()) } else { _mm_maskz_loadu_epi8(mask, r.cast()) };
                let r = _mm512_sub_epi32(_mm512_cvtepu8_epi32(r), _mm512_set1_epi32(p.zero_point));
                v = _mm512_add_ps(v, _mm512_mul_ps(_mm512_cvtepi32_ps(r), _mm512_set1_ps(p.mult)));
            }
            v
        };
        for i in 0..t.m {
            for half in 0..2 {
                let n = t.n.saturating_sub(16 * half).min(16);
                let mask = ((1u32 << n) - 1) as __mmask16;
                let v = _mm512_min_ps(_mm512_max_ps(real(i, half, mask), lo), hi);
                let q = _mm512_add_epi32(_mm512_cvtps_epi32(v), zero_point);
                let out = t.out[i].add(t.channel + 16 * half);
                if n == 16 {
                    // Many times faster than a masked store.
                    _mm_storeu_si128(out.cast(), _mm512_cvtepi32_epi8(q));
                } else {
                    _mm512_mask_cvtepi32_storeu_epi8(out.cast(), mask, q);
                }
            }
        }
    }
}
