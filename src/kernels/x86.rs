//! AVX2, AVX-VNNI and AVX-512 VNNI microkernels.
//!
//! All keep a tile of i32 accumulators in registers over the whole depth and requantize from there.

use super::winograd::WinogradKernel;
use super::{ConvKernel, Domain, MAX_MR, SimdLevel, TileArgs, excess};
use std::arch::{asm, x86_64::*};

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
    pairs: false,
    winograd: Some(WinogradKernel {
        name: "avx512vnni-winograd-14x32c2",
        mr: 14,
        nr: 32,
        kr: 2,
        relative_speed: 0.5,
        transform_cost: [400.0, 1000.0],
        // Zen 5 and Sapphire Rapids, which have AVX-VNNI as well, make 512 bits of products at once. Others take twice as long,
        // in which twice as many weights arrive (Zen 4: a ResNet-34 gains 6 % by it).
        max_weight_bytes: || if is_x86_feature_detected!("avxvnni") { 4 << 20 } else { 10 << 20 },
        run: vnni512_product,
    }),
    supported: || {
        is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vnni")
    },
    run: vnni512_tile,
};

/// VPDPBUSD on 256-bit registers (Alder Lake and its small cores), 6 pixels × 16 channels.
pub const VNNI256: ConvKernel = ConvKernel {
    name: "avxvnni-conv-6x16c4",
    isa: "avxvnni",
    level: SimdLevel::Avx2,
    domain: Domain::U8,
    mr: 6,
    nr: 16,
    kr: 4,
    pairs: false,
    winograd: Some(YMM_WINOGRAD),
    supported: || is_x86_feature_detected!("avx2") && is_x86_feature_detected!("avxvnni"),
    run: vnni256_tile,
};

/// VPMADDUBSW, 6 pixels × 16 channels, where [`excess`] sees to it that no two products exceed 16 bits: it would saturate. Where
/// too many do, VPMADDWD on widened bytes.
pub const AVX2: ConvKernel = ConvKernel {
    name: "avx2-conv-6x16c4",
    isa: "avx2",
    level: SimdLevel::Avx2,
    domain: Domain::U8,
    mr: 6,
    nr: 16,
    kr: 4,
    pairs: true,
    winograd: Some(WinogradKernel { relative_speed: 1.2, max_weight_bytes: || 12 << 20, ..YMM_WINOGRAD }),
    supported: || is_x86_feature_detected!("avx2"),
    run: avx2_tile,
};

/// VPMADDWD, 6 tiles × 16 channels.
const YMM_WINOGRAD: WinogradKernel = WinogradKernel {
    name: "avx2-winograd-6x16c2",
    mr: 6,
    nr: 16,
    kr: 2,
    relative_speed: 0.4,
    transform_cost: [400.0, 1000.0],
    max_weight_bytes: || 4 << 20,
    run: avx2_product,
};

/// # Safety
/// See [`WinogradKernel::run`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn vnni512_product(v: *const i16, u: *const i16, m: *mut i32, depth: usize, rows: usize) {
    // SAFETY: the contract is the same for every height that is no more than `rows`.
    unsafe {
        let mut done = 0;
        while done < rows {
            let (v, m) = (v.add(done * depth), m.add(done * 32));
            done += match rows - done {
                14.. => vnni512_product_rows::<14>(v, u, m, depth),
                12..14 => vnni512_product_rows::<12>(v, u, m, depth),
                7..12 => vnni512_product_rows::<7>(v, u, m, depth),
                4..7 => vnni512_product_rows::<4>(v, u, m, depth),
                _ => vnni512_product_rows::<1>(v, u, m, depth),
            };
        }
    }
}

/// VPDPWSSD. LLVM takes its intrinsic apart into VPMADDWD and VPADDD, to win latency, and loses throughput.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
fn dpwssd(mut acc: __m512i, a: __m512i, b: __m512i) -> __m512i {
    // SAFETY: the instruction is there, and touches registers only.
    unsafe {
        asm!("vpdpwssd {}, {}, {}", inout(zmm_reg) acc, in(zmm_reg) a, in(zmm_reg) b, options(pure, nomem, nostack, preserves_flags))
    };
    acc
}

/// # Safety
/// See [`WinogradKernel::run`]; computes and returns exactly `MR` rows.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn vnni512_product_rows<const MR: usize>(v: *const i16, u: *const i16, m: *mut i32, depth: usize) -> usize {
    // SAFETY: a step reads two values a row and 64 of `u`; depth is even.
    unsafe {
        let mut acc = [[_mm512_setzero_si512(); 2]; MR];
        for s in 0..depth / 2 {
            let u0 = _mm512_loadu_si512(u.add(64 * s).cast());
            let u1 = _mm512_loadu_si512(u.add(64 * s + 32).cast());
            for i in 0..MR {
                let v = _mm512_set1_epi32(v.add(i * depth + 2 * s).cast::<i32>().read_unaligned());
                acc[i][0] = dpwssd(acc[i][0], v, u0);
                acc[i][1] = dpwssd(acc[i][1], v, u1);
            }
        }
        for i in 0..MR {
            _mm512_storeu_si512(m.add(32 * i).cast(), acc[i][0]);
            _mm512_storeu_si512(m.add(32 * i + 16).cast(), acc[i][1]);
        }
    }
    MR
}

/// # Safety
/// See [`WinogradKernel::run`].
#[target_feature(enable = "avx2")]
unsafe fn avx2_product(v: *const i16, u: *const i16, m: *mut i32, depth: usize, rows: usize) {
    // SAFETY: the contract is the same for every height that is no more than `rows`.
    unsafe {
        let mut done = 0;
        while done < rows {
            let (v, m) = (v.add(done * depth), m.add(done * 16));
            done += match rows - done {
                6.. => avx2_product_rows::<6>(v, u, m, depth),
                3..6 => avx2_product_rows::<3>(v, u, m, depth),
                _ => avx2_product_rows::<1>(v, u, m, depth),
            };
        }
    }
}

/// # Safety
/// See [`WinogradKernel::run`]; computes and returns exactly `MR` rows.
#[target_feature(enable = "avx2")]
unsafe fn avx2_product_rows<const MR: usize>(v: *const i16, u: *const i16, m: *mut i32, depth: usize) -> usize {
    // SAFETY: a step reads two values a row and 32 of `u`; depth is even.
    unsafe {
        let mut acc = [[_mm256_setzero_si256(); 2]; MR];
        for s in 0..depth / 2 {
            let u0 = _mm256_loadu_si256(u.add(32 * s).cast());
            let u1 = _mm256_loadu_si256(u.add(32 * s + 16).cast());
            for i in 0..MR {
                let v = _mm256_set1_epi32(v.add(i * depth + 2 * s).cast::<i32>().read_unaligned());
                acc[i][0] = _mm256_add_epi32(acc[i][0], _mm256_madd_epi16(v, u0));
                acc[i][1] = _mm256_add_epi32(acc[i][1], _mm256_madd_epi16(v, u1));
            }
        }
        for i in 0..MR {
            _mm256_storeu_si256(m.add(16 * i).cast(), acc[i][0]);
            _mm256_storeu_si256(m.add(16 * i + 8).cast(), acc[i][1]);
        }
    }
    MR
}

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
        let zero_point = _mm512_set1_epi32(t.requant.zero_point);
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
                _mm512_add_epi32(_mm512_cvtps_epi32(v), zero_point)
            }};
        }
        macro_rules! pairs {
            ($($pair:literal)*) => {$(
                if 2 * $pair < MR {
                    let (first, second) = (2 * $pair, if 2 * $pair + 1 < MR { 2 * $pair + 1 } else { 2 * $pair });
                    let low = _mm512_packs_epi32(whole!(first, 0), whole!(first, 1));
                    let high = if second > first { _mm512_packs_epi32(whole!(second, 0), whole!(second, 1)) } else { low };
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

/// # Safety
/// See [`ConvKernel::run`].
#[target_feature(enable = "avx2,avxvnni")]
unsafe fn vnni256_tile(t: &TileArgs<'_>) {
    const MR: usize = 6;
    // SAFETY: weights hold 64 bytes a step; rows are readable.
    unsafe {
        let mut acc = [ymm_bias(t); MR];
        let mut w = t.weights.as_ptr();
        for run in t.runs {
            let x: [*const u8; MR] = std::array::from_fn(|i| t.rows[i].add(run.offset));
            for s in 0..run.steps {
                let w0 = _mm256_loadu_si256(w.cast());
                let w1 = _mm256_loadu_si256(w.add(32).cast());
                w = w.add(64);
                for i in 0..MR {
                    let x = _mm256_set1_epi32(x[i].add(4 * s).cast::<i32>().read_unaligned());
                    acc[i][0] = _mm256_dpbusd_avx_epi32(acc[i][0], x, w0);
                    acc[i][1] = _mm256_dpbusd_avx_epi32(acc[i][1], x, w1);
                }
            }
        }
        ymm_finish(t, &settled(&acc));
    }
}

/// # Safety
/// See [`ConvKernel::run`].
#[target_feature(enable = "avx2")]
unsafe fn avx2_tile(t: &TileArgs<'_>) {
    // SAFETY: weights hold 64 bytes a step; rows are readable over every run, and where an entry of the excess says.
    unsafe {
        let mut acc = [ymm_bias(t); 6];
        let mut w = t.weights.as_ptr();
        for run in t.runs.iter().filter(|r| r.steps > 0) {
            let x = std::array::from_fn(|i| t.rows[i].add(run.offset));
            match t.excess {
                Some(_) => avx2_pairs(&mut acc, x, w, run.steps),
                None => avx2_wide(&mut acc, x, w, run.steps),
            }
            w = w.add(64 * run.steps);
        }
        if let Some(excess) = t.excess {
            let x: [*const u8; 6] = std::array::from_fn(|i| t.rows[i]);
            avx2_excess(acc.each_mut().map(|a| &mut a[0]), x, excess[0]);
            avx2_excess(acc.each_mut().map(|a| &mut a[1]), x, excess[1]);
        }
        ymm_finish(t, &acc);
    }
}

/// Adds the products of `steps` > 0 times 4 bytes of each row, which fit 16 bits in pairs. By hand: of 12 accumulators, a weight,
/// a constant and two temporaries LLVM makes a merry-go-round of moves.
///
/// # Safety
/// Every row has 4 bytes a step, `w` 64.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn avx2_pairs(acc: &mut [[__m256i; 2]; 6], x: [*const u8; 6], w: *const i8, steps: usize) {
    macro_rules! rows {
        ($($i:literal)*) => { concat!($(
            "vpbroadcastd {x}, [{x", $i, "} + {at}]\n",
            "vpmaddubsw {t}, {x}, {w0}\n",
            "vpmaddubsw {x}, {x}, [{w} + 32]\n",
            "vpmaddwd {t}, {t}, {ones}\n",
            "vpmaddwd {x}, {x}, {ones}\n",
            "vpaddd {a", $i, "}, {a", $i, "}, {t}\n",
            "vpaddd {b", $i, "}, {b", $i, "}, {x}\n",
        )*) };
    }
    // SAFETY: reads what the contract grants.
    unsafe {
        asm!(
            "2:",
            "vmovdqu {w0}, [{w}]",
            rows!(0 1 2 3 4 5),
            "add {w}, 64",
            "add {at}, 4",
            "dec {steps}",
            "jne 2b",
            x0 = in(reg) x[0], x1 = in(reg) x[1], x2 = in(reg) x[2], x3 = in(reg) x[3], x4 = in(reg) x[4], x5 = in(reg) x[5],
            a0 = inout(ymm_reg) acc[0][0], b0 = inout(ymm_reg) acc[0][1], a1 = inout(ymm_reg) acc[1][0], b1 = inout(ymm_reg) acc[1][1],
            a2 = inout(ymm_reg) acc[2][0], b2 = inout(ymm_reg) acc[2][1], a3 = inout(ymm_reg) acc[3][0], b3 = inout(ymm_reg) acc[3][1],
            a4 = inout(ymm_reg) acc[4][0], b4 = inout(ymm_reg) acc[4][1], a5 = inout(ymm_reg) acc[5][0], b5 = inout(ymm_reg) acc[5][1],
            x = out(ymm_reg) _, t = out(ymm_reg) _, w0 = out(ymm_reg) _, ones = in(ymm_reg) _mm256_set1_epi16(1),
            w = inout(reg) w => _, at = inout(reg) 0usize => _, steps = inout(reg) steps => _,
            options(readonly, nostack)
        );
    }
}

/// As [`avx2_pairs`], of any weights: VPMADDWD on bytes that are widened.
///
/// # Safety
/// Every row has 4 bytes a step, `w` 64.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn avx2_wide(acc: &mut [[__m256i; 2]; 6], x: [*const u8; 6], w: *const i8, steps: usize) {
    let low = _mm256_set1_epi16(0xff);
    // Bytes (a, b, c, d) of a lane: a and c are its even bytes, b and d its odd ones; the order of a sum is free.
    let even = |w| _mm256_srai_epi16(_mm256_slli_epi16(w, 8), 8);
    let odd = |w| _mm256_srai_epi16(w, 8);
    // SAFETY: reads what the contract grants.
    unsafe {
        for s in 0..steps {
            let [w0, w1] = [_mm256_loadu_si256(w.add(64 * s).cast()), _mm256_loadu_si256(w.add(64 * s + 32).cast())];
            let (e0, o0, e1, o1) = (even(w0), odd(w0), even(w1), odd(w1));
            for (acc, x) in acc.iter_mut().zip(x) {
                let x = _mm256_set1_epi32(x.add(4 * s).cast::<i32>().read_unaligned());
                let (xe, xo) = (_mm256_and_si256(x, low), _mm256_srli_epi16(x, 8));
                let sum = |e, o| _mm256_add_epi32(_mm256_madd_epi16(xe, e), _mm256_madd_epi16(xo, o));
                acc[0] = _mm256_add_epi32(acc[0], sum(e0, o0));
                acc[1] = _mm256_add_epi32(acc[1], sum(e1, o1));
            }
        }
    }
}

/// Adds the products of an excess to its half of the accumulators.
///
/// # Safety
/// Every row has 4 bytes at every offset.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn avx2_excess(acc: [&mut __m256i; 6], x: [*const u8; 6], (offsets, weights): (&[i32], &[i8])) {
    debug_assert_eq!(weights.len(), excess::ENTRY * offsets.len());
    if offsets.is_empty() {
        return;
    }
    macro_rules! rows {
        ($($i:literal)*) => { concat!($(
            "vpbroadcastd {x}, [{x", $i, "} + {at}]\n",
            "vpmaddubsw {x}, {x}, {w0}\n",
            "vpmaddwd {x}, {x}, {ones}\n",
            "vpaddd {a", $i, "}, {a", $i, "}, {x}\n",
        )*) };
    }
    let [a0, a1, a2, a3, a4, a5] = acc;
    // SAFETY: reads what the contract grants; offsets are not negative.
    unsafe {
        asm!(
            "2:",
            "mov {at:e}, [{offsets}]",
            "vmovdqu {w0}, [{w}]",
            rows!(0 1 2 3 4 5),
            "add {offsets}, 4",
            "add {w}, 32",
            "dec {entries}",
            "jne 2b",
            x0 = in(reg) x[0], x1 = in(reg) x[1], x2 = in(reg) x[2], x3 = in(reg) x[3], x4 = in(reg) x[4], x5 = in(reg) x[5],
            a0 = inout(ymm_reg) *a0, a1 = inout(ymm_reg) *a1, a2 = inout(ymm_reg) *a2,
            a3 = inout(ymm_reg) *a3, a4 = inout(ymm_reg) *a4, a5 = inout(ymm_reg) *a5,
            x = out(ymm_reg) _, w0 = out(ymm_reg) _, ones = in(ymm_reg) _mm256_set1_epi16(1),
            at = out(reg) _, offsets = inout(reg) offsets.as_ptr() => _, w = inout(reg) weights.as_ptr() => _,
            entries = inout(reg) offsets.len() => _,
            options(readonly, nostack)
        );
    }
}

/// A copy that may be indexed with a variable: accumulators that are would live in memory all along.
#[inline(always)]
fn settled<T: Copy, const MR: usize>(acc: &[[T; 2]; MR]) -> [[T; 2]; MR] {
    let mut done = [acc[0]; MR];
    done.copy_from_slice(acc);
    done
}

/// # Safety
/// `t.bias` holds 16 entries.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn ymm_bias(t: &TileArgs<'_>) -> [__m256i; 2] {
    debug_assert!(t.bias.len() >= 16);
    // SAFETY: as promised.
    unsafe { [_mm256_loadu_si256(t.bias.as_ptr().cast()), _mm256_loadu_si256(t.bias.as_ptr().add(8).cast())] }
}

/// Requantizes and stores a tile of 6 × 16.
///
/// # Safety
/// See [`ConvKernel::run`].
#[target_feature(enable = "avx2")]
unsafe fn ymm_finish(t: &TileArgs<'_>, acc: &[[__m256i; 2]; 6]) {
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
