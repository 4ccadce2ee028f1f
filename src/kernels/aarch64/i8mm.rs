//! SMMLA: each multiplies two pixels × eight bytes by two channels × eight bytes. A pass holds 8 pixels × 8 channels
//! as 4 × 4 pairs.

use super::epilogue::{Epilogue, NR};
use crate::kernels::{ConvKernel, Domain, MAX_MR, Run, SimdLevel, TileArgs};
use std::arch::{aarch64::*, asm};
use std::mem::offset_of;

/// Pixels per pass.
const PASS: usize = 8;
/// Pixels per call.
const MR: usize = 2 * PASS;

/// For Cortex-A510, A710, Neoverse V1 and newer.
pub const I8MM: ConvKernel = ConvKernel {
    name: "i8mm-conv-16x8c8",
    isa: "i8mm",
    level: SimdLevel::Baseline,
    domain: Domain::S8,
    mr: MR,
    nr: NR,
    kr: 8,
    lane: 8,
    unroll: 1,
    pairs: false,
    small: None,
    winograd: None,
    supported: || std::arch::is_aarch64_feature_detected!("i8mm"),
    run: i8mm_tile,
};

/// # Safety
/// See [`ConvKernel::run`].
#[target_feature(enable = "neon,i8mm")]
unsafe fn i8mm_tile(t: &TileArgs<'_>) {
    const { assert!(MR <= MAX_MR) };
    debug_assert_eq!(t.weights.len(), t.runs.iter().map(|r| r.steps).sum::<usize>() * NR * 8);
    // SAFETY: the contract is the same; entries of rows from m to MR are readable.
    unsafe {
        let epilogue = Epilogue::of_tile(t);
        for first in (0..t.m).step_by(PASS) {
            epilogue.store_pass(t, first, accumulate(t, first));
        }
    }
}

/// Two pixels' eight bytes in one register.
macro_rules! pair {
    ($x:literal, $p:literal, $q:literal) => {
        concat!("ldr d", $x, ", [{", $p, "}], #8\n", "ld1 {{v", $x, ".d}}[1], [{", $q, "}], #8\n")
    };
}

/// One pair of pixels × eight channels × eight bytes.
macro_rules! products {
    ($a:literal, $b:literal, $c:literal, $d:literal, $x:literal) => {
        concat!(
            "smmla v",
            $a,
            ".4s, v",
            $x,
            ".16b, v20.16b\n",
            "smmla v",
            $b,
            ".4s, v",
            $x,
            ".16b, v21.16b\n",
            "smmla v",
            $c,
            ".4s, v",
            $x,
            ".16b, v22.16b\n",
            "smmla v",
            $d,
            ".4s, v",
            $x,
            ".16b, v23.16b\n"
        )
    };
}

/// Bias plus all products of pixels `first..first + PASS`: `[pixel][channels / 4]`.
///
/// # Safety
/// See [`ConvKernel::run`].
#[inline]
#[target_feature(enable = "neon,i8mm")]
unsafe fn accumulate(t: &TileArgs<'_>, first: usize) -> [[int32x4_t; 2]; PASS] {
    let zero = vdupq_n_s32(0);
    let (a0, a1, a2, a3, a4, a5, a6, a7, a8, a9, a10, a11, a12, a13, a14, a15);
    let runs = t.runs.as_ptr_range();
    // SAFETY: reads rows over their runs (whole steps) and weights of all steps, no byte more; writes nothing.
    unsafe {
        asm!(
            "2:",
            "cmp {run}, {end}",
            "b.eq 4f",
            "ldr {off}, [{run}, #{OFFSET}]",
            "ldr {n}, [{run}, #{STEPS}]",
            "add {run}, {run}, #{SIZE}",
            "ldp {p0}, {p1}, [{rows}]",
            "ldp {p2}, {p3}, [{rows}, #16]",
            "ldp {p4}, {p5}, [{rows}, #32]",
            "ldp {p6}, {p7}, [{rows}, #48]",
            "add {p0}, {p0}, {off}",
            "add {p1}, {p1}, {off}",
            "add {p2}, {p2}, {off}",
            "add {p3}, {p3}, {off}",
            "add {p4}, {p4}, {off}",
            "add {p5}, {p5}, {off}",
            "add {p6}, {p6}, {off}",
            "add {p7}, {p7}, {off}",
            "cbz {n}, 2b",
            "3:",
            "ldp q20, q21, [{w}]",
            "ldp q22, q23, [{w}, #32]",
            "add {w}, {w}, #64",
            pair!(16, "p0", "p1"),
            pair!(17, "p2", "p3"),
            products!(0, 1, 2, 3, 16),
            pair!(18, "p4", "p5"),
            products!(4, 5, 6, 7, 17),
            pair!(19, "p6", "p7"),
            products!(8, 9, 10, 11, 18),
            products!(12, 13, 14, 15, 19),
            "subs {n}, {n}, #1",
            "b.ne 3b",
            "b 2b",
            "4:",
            OFFSET = const offset_of!(Run, offset),
            STEPS = const offset_of!(Run, steps),
            SIZE = const size_of::<Run>(),
            rows = in(reg) t.rows.as_ptr().add(first),
            run = inout(reg) runs.start => _,
            end = in(reg) runs.end,
            w = inout(reg) t.weights.as_ptr() => _,
            n = out(reg) _,
            off = out(reg) _,
            p0 = out(reg) _, p1 = out(reg) _, p2 = out(reg) _, p3 = out(reg) _, p4 = out(reg) _, p5 = out(reg) _, p6 = out(reg) _, p7 = out(reg) _,
            inout("v0") zero => a0, inout("v1") zero => a1, inout("v2") zero => a2, inout("v3") zero => a3, inout("v4") zero => a4, inout("v5") zero => a5, inout("v6") zero => a6,
            inout("v7") zero => a7, inout("v8") zero => a8, inout("v9") zero => a9, inout("v10") zero => a10, inout("v11") zero => a11, inout("v12") zero => a12, inout("v13") zero => a13,
            inout("v14") zero => a14, inout("v15") zero => a15,
            out("v16") _, out("v17") _, out("v18") _, out("v19") _, out("v20") _, out("v21") _, out("v22") _, out("v23") _,
            options(nostack, readonly),
        );
    }
    // SAFETY: per-channel slices hold NR entries.
    let bias = unsafe { [vld1q_s32(t.bias.as_ptr()), vld1q_s32(t.bias.as_ptr().add(4))] };
    // An accumulator holds two channels of one pixel, then of the other.
    let split = |a, b, bias| {
        let (a, b) = (vreinterpretq_s64_s32(a), vreinterpretq_s64_s32(b));
        [vzip1q_s64(a, b), vzip2q_s64(a, b)].map(|v| vaddq_s32(bias, vreinterpretq_s32_s64(v)))
    };
    let pixels = |[a, b, c, d]: [int32x4_t; 4]| {
        let (lo, hi) = (split(a, b, bias[0]), split(c, d, bias[1]));
        [[lo[0], hi[0]], [lo[1], hi[1]]]
    };
    let ([p0, p1], [p2, p3]) = (pixels([a0, a1, a2, a3]), pixels([a4, a5, a6, a7]));
    let ([p4, p5], [p6, p7]) = (pixels([a8, a9, a10, a11]), pixels([a12, a13, a14, a15]));
    [p0, p1, p2, p3, p4, p5, p6, p7]
}
