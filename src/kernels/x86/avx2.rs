//! AVX2 without VNNI: pairs of products in 16 bits where they fit.

use super::epilogue::{ymm_bias, ymm_finish};
use super::winograd::AVX2_WINOGRAD;
use crate::kernels::{ConvKernel, Domain, SimdLevel, TileArgs, excess};
use std::arch::{asm, x86_64::*};

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
    lane: 4,
    unroll: 1,
    pairs: true,
    small: None,
    winograd: Some(AVX2_WINOGRAD),
    supported: || is_x86_feature_detected!("avx2"),
    run: avx2_tile,
};

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
