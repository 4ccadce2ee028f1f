//! Depthwise convolution: quads of bytes for VPDPBUSD, pairs of words for VPMADDWD where there is no VNNI.
//!
//! Two steps of interleaving make four taps of a channel neighbours. They work by 16 bytes and leave channels in an order that the
//! packs of requantization undo.

use crate::kernels::Domain;
use crate::kernels::depthwise::sweep::{self, Lanes, sweep};
use crate::kernels::depthwise::{Block, DepthwiseKernel, QUAD, interleaved};
use std::arch::x86_64::*;

/// VPDPBUSD, 64 channels, 32 or 16.
pub const VNNI512_DEPTHWISE: DepthwiseKernel = DepthwiseKernel {
    name: "avx512vnni-depthwise-c64",
    isa: "avx512vnni",
    widths: &[64, 32, 16],
    supported: super::VNNI512.supported,
    run: vnni512,
    ..VNNI256_DEPTHWISE
};

/// The same, beside matrix products: AMX has none for one filter per channel.
pub const AMX_DEPTHWISE: DepthwiseKernel =
    DepthwiseKernel { name: "amx-depthwise-c64", isa: "amx", supported: super::amx::supported, ..VNNI512_DEPTHWISE };

/// VPDPBUSD, 32 channels or 16.
pub const VNNI256_DEPTHWISE: DepthwiseKernel = DepthwiseKernel {
    name: "avxvnni-depthwise-c32",
    isa: "avxvnni",
    domain: Domain::U8,
    widths: &[32, 16],
    weight_bytes: 1,
    weight_index: |width, channel, tap| interleaved(width, channel) * QUAD + tap,
    channel_index: interleaved,
    columns: true,
    supported: super::VNNI256.supported,
    run: vnni256,
};

/// VPMADDWD, 16 channels.
pub const AVX2_DEPTHWISE: DepthwiseKernel = DepthwiseKernel {
    name: "avx2-depthwise-c16",
    isa: "avx2",
    domain: Domain::U8,
    widths: &[16],
    weight_bytes: 2,
    weight_index: |width, channel, tap| (tap / 2 * width + interleaved_words(channel)) * 2 + tap % 2,
    channel_index: |_, channel| interleaved_words(channel),
    columns: true,
    supported: super::AVX2.supported,
    run: avx2,
};

/// Index of one of 16 channels after one step of interleaving words, which works by 16 bytes.
const fn interleaved_words(channel: usize) -> usize {
    let (part, c) = (channel / 8, channel % 8);
    c / 4 * 8 + part * 4 + c % 4
}

/// # Safety
/// See [`DepthwiseKernel::run`].
unsafe fn vnni512(b: &Block<'_>) {
    // SAFETY: the contract is the same.
    unsafe {
        match b.width {
            64 => sweep!(b, Zmm, 4, vnni512_columns, vnni512_pixels),
            32 => sweep!(b, Ymm, 4, vnni512_columns, vnni512_pixels),
            _ => sweep!(b, Xmm, 4, vnni512_columns, vnni512_pixels),
        }
    }
}

/// # Safety
/// See [`sweep::columns`].
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn vnni512_columns<L: Lanes, const K: usize, const S: usize>(b: &Block<'_>) {
    // SAFETY: the contract is the same.
    unsafe { sweep::columns::<L, 4, K, S>(b) }
}

/// # Safety
/// See [`sweep::pixels`].
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn vnni512_pixels<L: Lanes>(b: &Block<'_>, size: [usize; 2], fast: bool) {
    // SAFETY: the contract is the same.
    unsafe { sweep::pixels::<L>(b, size, fast) }
}

/// Tiles of two pixels: sixteen registers hold their sums, a column, and what lies between.
///
/// # Safety
/// See [`DepthwiseKernel::run`].
unsafe fn vnni256(b: &Block<'_>) {
    // SAFETY: the contract is the same.
    unsafe {
        match b.width {
            32 => sweep!(b, VexYmm, 2, vnni256_columns, vnni256_pixels),
            _ => sweep!(b, VexXmm, 2, vnni256_columns, vnni256_pixels),
        }
    }
}

/// # Safety
/// See [`sweep::columns`].
#[inline(never)]
#[target_feature(enable = "avx2,avxvnni")]
unsafe fn vnni256_columns<L: Lanes, const K: usize, const S: usize>(b: &Block<'_>) {
    // SAFETY: the contract is the same.
    unsafe { sweep::columns::<L, 2, K, S>(b) }
}

/// # Safety
/// See [`sweep::pixels`].
#[inline(never)]
#[target_feature(enable = "avx2,avxvnni")]
unsafe fn vnni256_pixels<L: Lanes>(b: &Block<'_>, size: [usize; 2], fast: bool) {
    // SAFETY: the contract is the same.
    unsafe { sweep::pixels::<L>(b, size, fast) }
}

/// # Safety
/// See [`DepthwiseKernel::run`].
unsafe fn avx2(b: &Block<'_>) {
    // SAFETY: the contract is the same.
    unsafe { sweep!(b, Words, 4, avx2_columns, avx2_pixels) }
}

/// # Safety
/// See [`sweep::columns`].
#[inline(never)]
#[target_feature(enable = "avx2")]
unsafe fn avx2_columns<L: Lanes, const K: usize, const S: usize>(b: &Block<'_>) {
    // SAFETY: the contract is the same.
    unsafe { sweep::columns::<L, 4, K, S>(b) }
}

/// # Safety
/// See [`sweep::pixels`].
#[inline(never)]
#[target_feature(enable = "avx2")]
unsafe fn avx2_pixels<L: Lanes>(b: &Block<'_>, size: [usize; 2], fast: bool) {
    // SAFETY: the contract is the same.
    unsafe { sweep::pixels::<L>(b, size, fast) }
}

/// Defines [`Lanes`] of one width of registers and one encoding of VPDPBUSD.
macro_rules! quads {
    (
        $name:ident, $bytes:literal, $int:ty, $real:ty, $load:ident, $store:ident, $store_part:ident, $dot:ident,
        $unpacklo8:ident, $unpackhi8:ident, $unpacklo16:ident, $unpackhi16:ident, $to_real:ident, $mul:ident, $add:ident, $max:ident,
        $min:ident, $round:ident, $load_real:ident, $pack32:ident, $pack16:ident, $adds16:ident, $add32:ident, $sub32:ident,
        $set8:ident, $min8:ident, $max8:ident, $set16:ident, $set32:ident, $set_real:ident
    ) => {
        #[derive(Clone, Copy)]
        struct $name;

        impl $name {
            /// Four taps of each channel side by side.
            ///
            /// # Safety
            /// None beyond the instruction set.
            #[inline(always)]
            unsafe fn interleave(a: $int, b: $int, c: $int, d: $int) -> [$int; 4] {
                // SAFETY: the instruction set is there.
                unsafe {
                    let (ab, cd) = ([$unpacklo8(a, b), $unpackhi8(a, b)], [$unpacklo8(c, d), $unpackhi8(c, d)]);
                    [$unpacklo16(ab[0], cd[0]), $unpackhi16(ab[0], cd[0]), $unpacklo16(ab[1], cd[1]), $unpackhi16(ab[1], cd[1])]
                }
            }

            /// # Safety
            /// `to` is writable for `n` bytes.
            #[inline(always)]
            unsafe fn put(to: *mut u8, bytes: $int, n: usize) {
                // SAFETY: as promised.
                unsafe {
                    if n == $bytes {
                        $store(to.cast(), bytes);
                    } else {
                        $store_part(to, bytes, n);
                    }
                }
            }
        }

        impl Lanes for $name {
            const CHANNELS: usize = $bytes;
            const WEIGHT_BYTES: usize = 1;
            type Column = [$int; 4];
            type Sums = [$int; 4];
            /// Zero point, smallest and largest output.
            type Finish = [$int; 3];

            #[inline(always)]
            unsafe fn bias(bias: *const i32) -> Self::Sums {
                // SAFETY: as promised.
                unsafe {
                    let part = |j: usize| $load(bias.wrapping_add(j * $bytes / 4).cast());
                    [part(0), part(1), part(2), part(3)]
                }
            }

            #[inline(always)]
            unsafe fn column<const R: usize>(from: [*const u8; QUAD]) -> Self::Column {
                // SAFETY: as promised.
                unsafe {
                    let row = |r: usize| $load(from[if r < R { r } else { R - 1 }].cast());
                    Self::interleave(row(0), row(1), row(2), row(3))
                }
            }

            #[inline(always)]
            unsafe fn multiply<const R: usize>(sums: Self::Sums, x: Self::Column, weights: *const i8) -> Self::Sums {
                // SAFETY: a quad of weights fills as many registers.
                unsafe {
                    let dot = |j: usize| $dot(sums[j], x[j], $load(weights.wrapping_add(j * $bytes).cast()));
                    [dot(0), dot(1), dot(2), dot(3)]
                }
            }

            #[inline(always)]
            unsafe fn finish(b: &Block<'_>) -> Self::Finish {
                let zero_point = b.requant.zero_point;
                // SAFETY: the instruction set is there.
                unsafe {
                    let byte = |clamp: f32| $set8((clamp as i32 + zero_point) as i8);
                    [$set16(zero_point as i16), byte(b.requant.lo), byte(b.requant.hi)]
                }
            }

            #[inline(always)]
            unsafe fn store(&[zero_point, lo, hi]: &Self::Finish, b: &Block<'_>, sums: Self::Sums, output: *mut u8) {
                // SAFETY: there are as many multipliers as channels; n bytes of output are writable.
                unsafe {
                    let mult = b.mult.as_ptr();
                    let round = |j: usize| $round($mul($to_real(sums[j]), $load_real(mult.wrapping_add(j * $bytes / 4))));
                    // Clamping may come last, on bytes: what saturates before the zero point is added saturates in the end.
                    let words = [$adds16($pack32(round(0), round(1)), zero_point), $adds16($pack32(round(2), round(3)), zero_point)];
                    Self::put(output, $min8($max8($pack16(words[0], words[1]), lo), hi), b.n);
                }
            }

            #[inline(always)]
            unsafe fn store_any(b: &Block<'_>, sums: Self::Sums, residual: *const u8, output: *mut u8) {
                // SAFETY: there are as many multipliers as channels; residuals are readable for a block's width.
                unsafe {
                    let (lo, hi, zero_point) = ($set_real(b.requant.lo), $set_real(b.requant.hi), $set32(b.requant.zero_point));
                    let mult = b.mult.as_ptr();
                    let mut q = sums;
                    let zero = $set32(0);
                    let r = match b.residual_params {
                        Some(_) => Self::interleave($load(residual.cast()), zero, zero, zero),
                        None => sums,
                    };
                    for (j, q) in q.iter_mut().enumerate() {
                        let mut v = $mul($to_real(*q), $load_real(mult.wrapping_add(j * $bytes / 4)));
                        if let Some(p) = b.residual_params {
                            v = $add(v, $mul($to_real($sub32(r[j], $set32(p.zero_point))), $set_real(p.mult)));
                        }
                        *q = $add32($round($min($max(v, lo), hi)), zero_point);
                    }
                    // Values are 0..=255: both packs are exact.
                    Self::put(output, $pack16($pack32(q[0], q[1]), $pack32(q[2], q[3])), b.n);
                }
            }
        }
    };
}

/// # Safety
/// `to` is writable for `n` bytes, less than 64.
#[inline]
#[target_feature(enable = "avx512bw")]
unsafe fn store512(to: *mut u8, bytes: __m512i, n: usize) {
    // SAFETY: as promised.
    unsafe { _mm512_mask_storeu_epi8(to.cast(), (1 << n) - 1, bytes) }
}

/// # Safety
/// `to` is writable for `n` bytes, less than 32.
#[inline]
#[target_feature(enable = "avx512bw,avx512vl")]
unsafe fn store256(to: *mut u8, bytes: __m256i, n: usize) {
    // SAFETY: as promised.
    unsafe { _mm256_mask_storeu_epi8(to.cast(), (1 << n) - 1, bytes) }
}

/// # Safety
/// `to` is writable for `n` bytes, less than 16.
#[inline]
#[target_feature(enable = "avx512bw,avx512vl")]
unsafe fn store128(to: *mut u8, bytes: __m128i, n: usize) {
    // SAFETY: as promised.
    unsafe { _mm_mask_storeu_epi8(to.cast(), (1 << n) - 1, bytes) }
}

/// # Safety
/// `to` is writable for `n` bytes, less than 32.
#[inline(never)]
#[target_feature(enable = "avx2")]
unsafe fn store256_by_pieces(to: *mut u8, bytes: __m256i, n: usize) {
    // SAFETY: as promised.
    unsafe {
        if n >= 16 {
            _mm_storeu_si128(to.cast(), _mm256_castsi256_si128(bytes));
            store128_by_pieces(to.add(16), _mm256_extracti128_si256(bytes, 1), n - 16);
        } else {
            store128_by_pieces(to, _mm256_castsi256_si128(bytes), n);
        }
    }
}

/// # Safety
/// `to` is writable for `n` bytes, less than 16.
#[inline(never)]
#[target_feature(enable = "avx2")]
unsafe fn store128_by_pieces(mut to: *mut u8, mut bytes: __m128i, n: usize) {
    // SAFETY: pieces are n bytes together.
    unsafe {
        if n & 8 != 0 {
            _mm_storel_epi64(to.cast(), bytes);
            (to, bytes) = (to.add(8), _mm_srli_si128(bytes, 8));
        }
        if n & 4 != 0 {
            to.cast::<i32>().write_unaligned(_mm_cvtsi128_si32(bytes));
            (to, bytes) = (to.add(4), _mm_srli_si128(bytes, 4));
        }
        let rest = _mm_cvtsi128_si32(bytes).to_le_bytes();
        for (i, &byte) in rest.iter().enumerate().take(n & 3) {
            *to.add(i) = byte;
        }
    }
}

quads!(
    Zmm,
    64,
    __m512i,
    __m512,
    _mm512_loadu_si512,
    _mm512_storeu_si512,
    store512,
    _mm512_dpbusd_epi32,
    _mm512_unpacklo_epi8,
    _mm512_unpackhi_epi8,
    _mm512_unpacklo_epi16,
    _mm512_unpackhi_epi16,
    _mm512_cvtepi32_ps,
    _mm512_mul_ps,
    _mm512_add_ps,
    _mm512_max_ps,
    _mm512_min_ps,
    _mm512_cvtps_epi32,
    _mm512_loadu_ps,
    _mm512_packs_epi32,
    _mm512_packus_epi16,
    _mm512_adds_epi16,
    _mm512_add_epi32,
    _mm512_sub_epi32,
    _mm512_set1_epi8,
    _mm512_min_epu8,
    _mm512_max_epu8,
    _mm512_set1_epi16,
    _mm512_set1_epi32,
    _mm512_set1_ps
);
quads!(
    Ymm,
    32,
    __m256i,
    __m256,
    _mm256_loadu_si256,
    _mm256_storeu_si256,
    store256,
    _mm256_dpbusd_epi32,
    _mm256_unpacklo_epi8,
    _mm256_unpackhi_epi8,
    _mm256_unpacklo_epi16,
    _mm256_unpackhi_epi16,
    _mm256_cvtepi32_ps,
    _mm256_mul_ps,
    _mm256_add_ps,
    _mm256_max_ps,
    _mm256_min_ps,
    _mm256_cvtps_epi32,
    _mm256_loadu_ps,
    _mm256_packs_epi32,
    _mm256_packus_epi16,
    _mm256_adds_epi16,
    _mm256_add_epi32,
    _mm256_sub_epi32,
    _mm256_set1_epi8,
    _mm256_min_epu8,
    _mm256_max_epu8,
    _mm256_set1_epi16,
    _mm256_set1_epi32,
    _mm256_set1_ps
);
quads!(
    Xmm,
    16,
    __m128i,
    __m128,
    _mm_loadu_si128,
    _mm_storeu_si128,
    store128,
    _mm_dpbusd_epi32,
    _mm_unpacklo_epi8,
    _mm_unpackhi_epi8,
    _mm_unpacklo_epi16,
    _mm_unpackhi_epi16,
    _mm_cvtepi32_ps,
    _mm_mul_ps,
    _mm_add_ps,
    _mm_max_ps,
    _mm_min_ps,
    _mm_cvtps_epi32,
    _mm_loadu_ps,
    _mm_packs_epi32,
    _mm_packus_epi16,
    _mm_adds_epi16,
    _mm_add_epi32,
    _mm_sub_epi32,
    _mm_set1_epi8,
    _mm_min_epu8,
    _mm_max_epu8,
    _mm_set1_epi16,
    _mm_set1_epi32,
    _mm_set1_ps
);
quads!(
    VexYmm,
    32,
    __m256i,
    __m256,
    _mm256_loadu_si256,
    _mm256_storeu_si256,
    store256_by_pieces,
    _mm256_dpbusd_avx_epi32,
    _mm256_unpacklo_epi8,
    _mm256_unpackhi_epi8,
    _mm256_unpacklo_epi16,
    _mm256_unpackhi_epi16,
    _mm256_cvtepi32_ps,
    _mm256_mul_ps,
    _mm256_add_ps,
    _mm256_max_ps,
    _mm256_min_ps,
    _mm256_cvtps_epi32,
    _mm256_loadu_ps,
    _mm256_packs_epi32,
    _mm256_packus_epi16,
    _mm256_adds_epi16,
    _mm256_add_epi32,
    _mm256_sub_epi32,
    _mm256_set1_epi8,
    _mm256_min_epu8,
    _mm256_max_epu8,
    _mm256_set1_epi16,
    _mm256_set1_epi32,
    _mm256_set1_ps
);
quads!(
    VexXmm,
    16,
    __m128i,
    __m128,
    _mm_loadu_si128,
    _mm_storeu_si128,
    store128_by_pieces,
    _mm_dpbusd_avx_epi32,
    _mm_unpacklo_epi8,
    _mm_unpackhi_epi8,
    _mm_unpacklo_epi16,
    _mm_unpackhi_epi16,
    _mm_cvtepi32_ps,
    _mm_mul_ps,
    _mm_add_ps,
    _mm_max_ps,
    _mm_min_ps,
    _mm_cvtps_epi32,
    _mm_loadu_ps,
    _mm_packs_epi32,
    _mm_packus_epi16,
    _mm_adds_epi16,
    _mm_add_epi32,
    _mm_sub_epi32,
    _mm_set1_epi8,
    _mm_min_epu8,
    _mm_max_epu8,
    _mm_set1_epi16,
    _mm_set1_epi32,
    _mm_set1_ps
);

/// Sixteen channels widened to words, taps in pairs.
#[derive(Clone, Copy)]
struct Words;

impl Words {
    /// # Safety
    /// `to` is writable for `n` bytes.
    #[inline(always)]
    unsafe fn put(to: *mut u8, bytes: __m128i, n: usize) {
        // SAFETY: as promised.
        unsafe {
            if n == 16 {
                _mm_storeu_si128(to.cast(), bytes);
            } else {
                store128_by_pieces(to, bytes, n);
            }
        }
    }
}

impl Lanes for Words {
    const CHANNELS: usize = 16;
    const WEIGHT_BYTES: usize = 2;
    /// `[pair][half]`.
    type Column = [[__m256i; 2]; 2];
    type Sums = [__m256i; 2];
    /// Zero point; smallest and largest output.
    type Finish = (__m256i, [__m128i; 2]);

    #[inline(always)]
    unsafe fn bias(bias: *const i32) -> Self::Sums {
        // SAFETY: as promised.
        unsafe { [_mm256_loadu_si256(bias.cast()), _mm256_loadu_si256(bias.wrapping_add(8).cast())] }
    }

    #[inline(always)]
    unsafe fn column<const R: usize>(from: [*const u8; QUAD]) -> Self::Column {
        // SAFETY: as promised.
        unsafe {
            let row = |r: usize| _mm256_cvtepu8_epi16(_mm_loadu_si128(from[if r < R { r } else { R - 1 }].cast()));
            let pair = |a, b| [_mm256_unpacklo_epi16(a, b), _mm256_unpackhi_epi16(a, b)];
            [pair(row(0), row(1)), pair(row(2), row(3))]
        }
    }

    #[inline(always)]
    unsafe fn multiply<const R: usize>(mut sums: Self::Sums, x: Self::Column, weights: *const i8) -> Self::Sums {
        for (i, pair) in x.iter().enumerate().take(R.div_ceil(2)) {
            for (j, sum) in sums.iter_mut().enumerate() {
                // SAFETY: a quad of weights, each of two bytes, fills four registers.
                let w = unsafe { _mm256_loadu_si256(weights.wrapping_add((2 * i + j) * 32).cast()) };
                // SAFETY: AVX2 is there.
                *sum = unsafe { _mm256_add_epi32(*sum, _mm256_madd_epi16(pair[j], w)) };
            }
        }
        sums
    }

    #[inline(always)]
    unsafe fn finish(b: &Block<'_>) -> Self::Finish {
        let zero_point = b.requant.zero_point;
        // SAFETY: AVX2 is there.
        unsafe {
            let byte = |clamp: f32| _mm_set1_epi8((clamp as i32 + zero_point) as i8);
            (_mm256_set1_epi16(zero_point as i16), [byte(b.requant.lo), byte(b.requant.hi)])
        }
    }

    #[inline(always)]
    unsafe fn store(&(zero_point, [lo, hi]): &Self::Finish, b: &Block<'_>, sums: Self::Sums, output: *mut u8) {
        // SAFETY: there are 16 multipliers; n bytes of output are writable.
        unsafe {
            let mult = b.mult.as_ptr();
            let round =
                |j: usize| _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_cvtepi32_ps(sums[j]), _mm256_loadu_ps(mult.wrapping_add(8 * j))));
            // Clamping may come last, on bytes: what saturates before the zero point is added saturates in the end.
            let words = _mm256_adds_epi16(_mm256_packs_epi32(round(0), round(1)), zero_point);
            let bytes = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
            Self::put(output, _mm_min_epu8(_mm_max_epu8(bytes, lo), hi), b.n);
        }
    }

    #[inline(always)]
    unsafe fn store_any(b: &Block<'_>, mut sums: Self::Sums, residual: *const u8, output: *mut u8) {
        // SAFETY: there are 16 multipliers; residuals are readable for 16 bytes, output is writable for n.
        unsafe {
            let (lo, hi) = (_mm256_set1_ps(b.requant.lo), _mm256_set1_ps(b.requant.hi));
            let r = match b.residual_params {
                Some(_) => _mm256_cvtepu8_epi16(_mm_loadu_si128(residual.cast())),
                None => _mm256_setzero_si256(),
            };
            let zero = _mm256_setzero_si256();
            let r = [_mm256_unpacklo_epi16(r, zero), _mm256_unpackhi_epi16(r, zero)];
            for (j, sum) in sums.iter_mut().enumerate() {
                let mut v = _mm256_mul_ps(_mm256_cvtepi32_ps(*sum), _mm256_loadu_ps(b.mult.as_ptr().wrapping_add(8 * j)));
                if let Some(p) = b.residual_params {
                    let r = _mm256_cvtepi32_ps(_mm256_sub_epi32(r[j], _mm256_set1_epi32(p.zero_point)));
                    v = _mm256_add_ps(v, _mm256_mul_ps(r, _mm256_set1_ps(p.mult)));
                }
                *sum = _mm256_cvtps_epi32(_mm256_min_ps(_mm256_max_ps(v, lo), hi));
            }
            // Nothing saturates here.
            let words = _mm256_add_epi16(_mm256_packs_epi32(sums[0], sums[1]), _mm256_set1_epi16(b.requant.zero_point as i16));
            let bytes = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
            Self::put(output, bytes, b.n);
        }
    }
}
