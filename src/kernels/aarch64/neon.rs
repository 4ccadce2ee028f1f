//! Baseline NEON. SMULL and SMLAL sum two products of bytes in 16 bits, SADALP adds them up in 32: 16 products for
//! three instructions. A pass holds 2 pixels × 8 channels in 16 accumulators.
//!
//! Two products fit 16 bits unless both are −128 · −128; blocks that hold a weight of −128 (our quantizer writes none)
//! take a path that widens every product.

use super::epilogue::{Epilogue, NR};
use super::winograd::NEON_WINOGRAD;
use crate::kernels::{ConvKernel, Domain, MAX_MR, Run, SimdLevel, TileArgs};
use std::arch::{aarch64::*, asm};
use std::mem::offset_of;

/// Pixels per pass.
const PASS: usize = 2;
/// Pixels per call.
const MR: usize = 16;
/// Bytes per step.
const KR: usize = 8;

/// For every AArch64 processor: Cortex-A53, A57, A72.
pub const NEON: ConvKernel = ConvKernel {
    name: "neon-conv-16x8c8",
    isa: "neon",
    level: SimdLevel::Baseline,
    domain: Domain::S8,
    mr: MR,
    nr: NR,
    kr: KR,
    pairs: false,
    winograd: Some(NEON_WINOGRAD),
    supported: || true,
    run: neon_tile,
};

/// # Safety
/// See [`ConvKernel::run`].
unsafe fn neon_tile(t: &TileArgs<'_>) {
    const { assert!(MR <= MAX_MR) };
    debug_assert_eq!(t.weights.len(), t.runs.iter().map(|r| r.steps).sum::<usize>() * NR * KR);
    // SAFETY: the contract is the same; entries of rows from m to MR are readable.
    unsafe {
        let epilogue = Epilogue::of_tile(t);
        for first in (0..t.m).step_by(PASS) {
            let lanes = if t.narrow { accumulate(t, first) } else { accumulate_wide(t, first) };
            let bias = [vld1q_s32(t.bias.as_ptr()), vld1q_s32(t.bias.as_ptr().add(4))];
            let sum = |a, b, c, d| vpaddq_s32(vpaddq_s32(a, b), vpaddq_s32(c, d));
            let sums =
                |[a, b, c, d, e, f, g, h]: [int32x4_t; NR]| [vaddq_s32(bias[0], sum(a, b, c, d)), vaddq_s32(bias[1], sum(e, f, g, h))];
            epilogue.store_pass(t, first, lanes.map(sums));
        }
    }
}

/// Four lanes of partial sums per pixel and channel, for any weights.
///
/// # Safety
/// See [`ConvKernel::run`].
#[cold]
unsafe fn accumulate_wide(t: &TileArgs<'_>, first: usize) -> [[int32x4_t; NR]; PASS] {
    // SAFETY: reads rows over their runs and the weights of all steps.
    unsafe {
        let mut acc = [[vdupq_n_s32(0); NR]; PASS];
        let mut w = t.weights.as_ptr();
        for run in t.runs {
            for step in 0..run.steps {
                for (acc, row) in acc.iter_mut().zip(&t.rows[first..]) {
                    let x = vld1_s8(row.add(run.offset + step * KR).cast());
                    for (j, acc) in acc.iter_mut().enumerate() {
                        *acc = vpadalq_s16(*acc, vmull_s8(x, vld1_s8(w.add(j * KR))));
                    }
                }
                w = w.add(NR * KR);
            }
        }
        acc
    }
}

/// Two channels × two pixels × sixteen bytes, in products `$t0..$t3`; meanwhile the products before them, `$u0..$u3`,
/// are added to `$a0..$a3`. Eight instructions lie between dependent ones, and every load ahead of its use.
macro_rules! group {
    (($t0:literal, $t1:literal, $t2:literal, $t3:literal), ($u0:literal, $u1:literal, $u2:literal, $u3:literal),
     ($a0:literal, $a1:literal, $a2:literal, $a3:literal), ($w0:literal, $w1:literal), $early:literal, $late:literal) => {
        concat!(
            "smull v",
            $t0,
            ".8h, v16.8b, v20.8b\n",
            "ldr d22, [{w}, #",
            $w0,
            "]\n",
            "smull v",
            $t1,
            ".8h, v17.8b, v20.8b\n",
            "ldr d23, [{w}, #",
            $w1,
            "]\n",
            "smull v",
            $t2,
            ".8h, v16.8b, v21.8b\n",
            "smull v",
            $t3,
            ".8h, v17.8b, v21.8b\n",
            $early,
            "sadalp v",
            $a0,
            ".4s, v",
            $u0,
            ".8h\n",
            "sadalp v",
            $a1,
            ".4s, v",
            $u1,
            ".8h\n",
            $late,
            "sadalp v",
            $a2,
            ".4s, v",
            $u2,
            ".8h\n",
            "sadalp v",
            $a3,
            ".4s, v",
            $u3,
            ".8h\n",
            "smlal v",
            $t0,
            ".8h, v18.8b, v22.8b\n",
            "smlal v",
            $t1,
            ".8h, v19.8b, v22.8b\n",
            "smlal v",
            $t2,
            ".8h, v18.8b, v23.8b\n",
            "smlal v",
            $t3,
            ".8h, v19.8b, v23.8b\n",
        )
    };
}

/// Two channels × two pixels × the last eight bytes of a run.
macro_rules! single {
    ($w0:literal, $w1:literal, ($t0:literal, $t1:literal, $t2:literal, $t3:literal), ($a0:literal, $a1:literal, $a2:literal, $a3:literal)) => {
        concat!(
            "ldr d20, [{w}, #",
            $w0,
            "]\n",
            "ldr d21, [{w}, #",
            $w1,
            "]\n",
            "smull v",
            $t0,
            ".8h, v16.8b, v20.8b\n",
            "smull v",
            $t1,
            ".8h, v17.8b, v20.8b\n",
            "smull v",
            $t2,
            ".8h, v16.8b, v21.8b\n",
            "smull v",
            $t3,
            ".8h, v17.8b, v21.8b\n",
            "sadalp v",
            $a0,
            ".4s, v",
            $t0,
            ".8h\n",
            "sadalp v",
            $a1,
            ".4s, v",
            $t1,
            ".8h\n",
            "sadalp v",
            $a2,
            ".4s, v",
            $t2,
            ".8h\n",
            "sadalp v",
            $a3,
            ".4s, v",
            $t3,
            ".8h\n",
        )
    };
}

/// Four lanes of partial sums per pixel and channel. No weight is −128.
///
/// # Safety
/// See [`ConvKernel::run`].
#[inline]
unsafe fn accumulate(t: &TileArgs<'_>, first: usize) -> [[int32x4_t; NR]; PASS] {
    // SAFETY: NEON is part of every AArch64 target.
    let zero = unsafe { vdupq_n_s32(0) };
    let (a0, a1, a2, a3, a4, a5, a6, a7, a8, a9, a10, a11, a12, a13, a14, a15);
    let runs = t.runs.as_ptr_range();
    // SAFETY: reads rows over their runs (whole steps) and weights of all steps, no byte more (in the last block of a
    // run the increments are zero, so that loads ahead repeat it); writes nothing.
    unsafe {
        asm!(
            "2:",
            "cmp {run}, {end}",
            "b.eq 6f",
            "ldr {off}, [{run}, #{OFFSET}]",
            "ldr {n}, [{run}, #{STEPS}]",
            "add {run}, {run}, #{SIZE}",
            "ldp {p0}, {p1}, [{rows}]",
            "add {p0}, {p0}, {off}",
            "add {p1}, {p1}, {off}",
            "and {odd}, {n}, #1",
            "lsr {n}, {n}, #1",
            "cbz {n}, 4f",
            "ldr d16, [{p0}]",
            "ldr d17, [{p1}]",
            "ldr d20, [{w}]",
            "ldr d21, [{w}, #8]",
            "movi v28.2d, #0",
            "movi v29.2d, #0",
            "movi v30.2d, #0",
            "movi v31.2d, #0",
            "3:",
            "ldr d18, [{p0}, #8]",
            "ldr d19, [{p1}, #8]",
            "subs {n}, {n}, #1",
            "csel {off}, xzr, {sixteen}, eq",
            group!((24, 25, 26, 27), (28, 29, 30, 31), (6, 14, 7, 15), (64, 72), "ldr d20, [{w}, #16]\n", "ldr d21, [{w}, #24]\n"),
            group!((28, 29, 30, 31), (24, 25, 26, 27), (0, 8, 1, 9), (80, 88), "ldr d20, [{w}, #32]\n", "ldr d21, [{w}, #40]\n"),
            group!((24, 25, 26, 27), (28, 29, 30, 31), (2, 10, 3, 11), (96, 104), "ldr d20, [{w}, #48]\n", "ldr d21, [{w}, #56]\n"),
            "add {p0}, {p0}, {off}",
            "add {p1}, {p1}, {off}",
            group!(
                (28, 29, 30, 31), (24, 25, 26, 27), (4, 12, 5, 13), (112, 120),
                "add {w}, {w}, {off}, lsl #3\nldr d20, [{w}]\nldr d16, [{p0}]\n", "ldr d21, [{w}, #8]\nldr d17, [{p1}]\n"
            ),
            "cbnz {n}, 3b",
            "add {p0}, {p0}, #16",
            "add {p1}, {p1}, #16",
            "add {w}, {w}, #128",
            "sadalp v6.4s, v28.8h",
            "sadalp v14.4s, v29.8h",
            "sadalp v7.4s, v30.8h",
            "sadalp v15.4s, v31.8h",
            "4:",
            "cbz {odd}, 2b",
            "ldr d16, [{p0}]",
            "ldr d17, [{p1}]",
            single!(0, 8, (24, 25, 26, 27), (0, 8, 1, 9)),
            single!(16, 24, (28, 29, 30, 31), (2, 10, 3, 11)),
            single!(32, 40, (24, 25, 26, 27), (4, 12, 5, 13)),
            single!(48, 56, (28, 29, 30, 31), (6, 14, 7, 15)),
            "add {w}, {w}, #64",
            "b 2b",
            "6:",
            OFFSET = const offset_of!(Run, offset),
            STEPS = const offset_of!(Run, steps),
            SIZE = const size_of::<Run>(),
            rows = in(reg) t.rows.as_ptr().add(first),
            run = inout(reg) runs.start => _,
            end = in(reg) runs.end,
            w = inout(reg) t.weights.as_ptr() => _,
            sixteen = in(reg) 16usize,
            n = out(reg) _,
            off = out(reg) _,
            odd = out(reg) _,
            p0 = out(reg) _, p1 = out(reg) _,
            inout("v0") zero => a0, inout("v1") zero => a1, inout("v2") zero => a2, inout("v3") zero => a3, inout("v4") zero => a4, inout("v5") zero => a5, inout("v6") zero => a6,
            inout("v7") zero => a7, inout("v8") zero => a8, inout("v9") zero => a9, inout("v10") zero => a10, inout("v11") zero => a11, inout("v12") zero => a12, inout("v13") zero => a13,
            inout("v14") zero => a14, inout("v15") zero => a15,
            out("v16") _, out("v17") _, out("v18") _, out("v19") _, out("v20") _, out("v21") _, out("v22") _, out("v23") _,
            out("v24") _, out("v25") _, out("v26") _, out("v27") _, out("v28") _, out("v29") _, out("v30") _, out("v31") _,
            options(nostack, readonly),
        );
    }
    [[a0, a1, a2, a3, a4, a5, a6, a7], [a8, a9, a10, a11, a12, a13, a14, a15]]
}
