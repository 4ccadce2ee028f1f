//! Baseline NEON. SMULL and SMLAL2 sum two products of bytes in 16 bits, SADALP adds them up in 32: 16 products for
//! three instructions. A pass holds 4 pixels × 4 channels in 16 accumulators: eight registers of operands for 48
//! instructions, the fewest there can be. In-order cores pay for every load of a vector, however well it is placed.
//!
//! Two products fit 16 bits unless both are −128 · −128; blocks that hold a weight of −128 (our quantizer writes none)
//! take a path that widens every product.

use super::epilogue::{Epilogue, NR};
use super::winograd::NEON_WINOGRAD;
use crate::kernels::{ConvKernel, Domain, MAX_MR, Run, SimdLevel, TileArgs};
use std::arch::{aarch64::*, asm};
use std::mem::offset_of;

/// Pixels per pass.
const PASS: usize = 4;
/// Channels per pass.
const HALF: usize = NR / 2;
/// Pixels per call.
const MR: usize = 16;
/// Bytes per step.
const KR: usize = 8;
/// Steps of a register.
const UNROLL: usize = 2;

/// For every AArch64 processor: Cortex-A53, A57, A72.
pub const NEON: ConvKernel = ConvKernel {
    name: "neon-conv-16x8c16",
    isa: "neon",
    level: SimdLevel::Baseline,
    domain: Domain::S8,
    mr: MR,
    nr: NR,
    kr: KR,
    lane: KR,
    unroll: UNROLL,
    pairs: false,
    small: None,
    winograd: Some(NEON_WINOGRAD),
    supported: || true,
    run: neon_tile,
};

/// Four lanes of partial sums per pixel and channel.
type Lanes = [[int32x4_t; HALF]; PASS];

/// # Safety
/// See [`ConvKernel::run`].
unsafe fn neon_tile(t: &TileArgs<'_>) {
    const { assert!(MR <= MAX_MR && NR == 2 * HALF) };
    debug_assert_eq!(t.weights.len(), t.runs.iter().map(|r| r.steps).sum::<usize>() * NR * KR);
    // SAFETY: the contract is the same; entries of rows from m to MR are readable.
    unsafe {
        let epilogue = Epilogue::of_tile(t);
        for first in (0..t.m).step_by(PASS) {
            let half = |half: usize| {
                let bias = vld1q_s32(t.bias.as_ptr().add(half * HALF));
                let lanes = if t.narrow { accumulate(t, first, half) } else { accumulate_wide(t, first, half) };
                lanes.map(|[a, b, c, d]| vaddq_s32(bias, vpaddq_s32(vpaddq_s32(a, b), vpaddq_s32(c, d))))
            };
            let (low, high) = (half(0), half(1));
            epilogue.store_pass(t, first, std::array::from_fn::<_, PASS, _>(|i| [low[i], high[i]]));
        }
    }
}

/// Half the channels of a pass, for any weights.
///
/// # Safety
/// See [`ConvKernel::run`].
#[cold]
unsafe fn accumulate_wide(t: &TileArgs<'_>, first: usize, half: usize) -> Lanes {
    // SAFETY: reads rows over their runs and the weights of all steps.
    unsafe {
        let mut acc = [[vdupq_n_s32(0); HALF]; PASS];
        let mut w = t.weights.as_ptr();
        for run in t.runs {
            let mut step = 0;
            while step < run.steps {
                let together = if step + UNROLL <= run.steps { UNROLL } else { 1 };
                for s in 0..together {
                    for (acc, row) in acc.iter_mut().zip(&t.rows[first..]) {
                        let x = vld1_s8(row.add(run.offset + (step + s) * KR).cast());
                        for (j, acc) in acc.iter_mut().enumerate() {
                            let w = vld1_s8(w.add(((half * HALF + j) * together + s) * KR));
                            *acc = vpadalq_s16(*acc, vmull_s8(x, w));
                        }
                    }
                }
                step += together;
                w = w.add(together * NR * KR);
            }
        }
        acc
    }
}

/// Products `$op` of four pixels with one channel's weights `$w`, of `$x` bytes each, to `$t0..$t3`.
macro_rules! products {
    ($op:literal, $bytes:literal, $w:literal, $t0:literal, $t1:literal, $t2:literal, $t3:literal) => {
        concat!(
            $op,
            " v",
            $t0,
            ".8h, v16.",
            $bytes,
            ", v",
            $w,
            ".",
            $bytes,
            "\n",
            $op,
            " v",
            $t1,
            ".8h, v17.",
            $bytes,
            ", v",
            $w,
            ".",
            $bytes,
            "\n",
            $op,
            " v",
            $t2,
            ".8h, v18.",
            $bytes,
            ", v",
            $w,
            ".",
            $bytes,
            "\n",
            $op,
            " v",
            $t3,
            ".8h, v19.",
            $bytes,
            ", v",
            $w,
            ".",
            $bytes,
            "\n",
        )
    };
}

/// Adds `v24..v27` to the sums of channel `$a` and `v28..v31` to those of channel `$b`, given by their four pixels.
macro_rules! sums {
    (($a0:literal, $a1:literal, $a2:literal, $a3:literal), ($b0:literal, $b1:literal, $b2:literal, $b3:literal)) => {
        concat!(
            "sadalp v",
            $a0,
            ".4s, v24.8h\n",
            "sadalp v",
            $a1,
            ".4s, v25.8h\n",
            "sadalp v",
            $a2,
            ".4s, v26.8h\n",
            "sadalp v",
            $a3,
            ".4s, v27.8h\n",
            "sadalp v",
            $b0,
            ".4s, v28.8h\n",
            "sadalp v",
            $b1,
            ".4s, v29.8h\n",
            "sadalp v",
            $b2,
            ".4s, v30.8h\n",
            "sadalp v",
            $b3,
            ".4s, v31.8h\n",
        )
    };
}

/// Two channels × four pixels × eight bytes, or sixteen.
macro_rules! two_channels {
    (8, $w0:literal, $w1:literal) => {
        concat!(products!("smull", "8b", $w0, 24, 25, 26, 27), products!("smull", "8b", $w1, 28, 29, 30, 31))
    };
    (16, $w0:literal, $w1:literal) => {
        concat!(
            two_channels!(8, $w0, $w1),
            products!("smlal2", "16b", $w0, 24, 25, 26, 27),
            products!("smlal2", "16b", $w1, 28, 29, 30, 31)
        )
    };
}

/// Half the channels of a pass. No weight is −128.
///
/// # Safety
/// See [`ConvKernel::run`].
#[inline]
unsafe fn accumulate(t: &TileArgs<'_>, first: usize, half: usize) -> Lanes {
    // SAFETY: NEON is part of every AArch64 target.
    let zero = unsafe { vdupq_n_s32(0) };
    let (a0, a1, a2, a3, a4, a5, a6, a7, a8, a9, a10, a11, a12, a13, a14, a15);
    let runs = t.runs.as_ptr_range();
    // SAFETY: reads rows over their runs (whole steps) and this half's weights of all steps, no byte more; writes nothing.
    unsafe {
        asm!(
            // Products of the last two channels are added during the next step's loads.
            "movi v24.2d, #0", "movi v25.2d, #0", "movi v26.2d, #0", "movi v27.2d, #0",
            "movi v28.2d, #0", "movi v29.2d, #0", "movi v30.2d, #0", "movi v31.2d, #0",
            "2:",
            "cmp {run}, {end}",
            "b.eq 6f",
            "ldr {at}, [{run}, #{OFFSET}]",
            "ldr {n}, [{run}, #{STEPS}]",
            "add {run}, {run}, #{SIZE}",
            "and {odd}, {n}, #1",
            "lsr {n}, {n}, #1",
            "cbz {n}, 4f",
            "3:",
            "ld1 {{v20.16b, v21.16b, v22.16b, v23.16b}}, [{w}]",
            sums!((2, 6, 10, 14), (3, 7, 11, 15)),
            "ldr q16, [{p0}, {at}]",
            "ldr q17, [{p1}, {at}]",
            "ldr q18, [{p2}, {at}]",
            "ldr q19, [{p3}, {at}]",
            "add {at}, {at}, #16",
            "add {w}, {w}, #128",
            "subs {n}, {n}, #1",
            two_channels!(16, 20, 21),
            sums!((0, 4, 8, 12), (1, 5, 9, 13)),
            two_channels!(16, 22, 23),
            "b.ne 3b",
            "4:",
            "cbz {odd}, 2b",
            // A step alone has half as many weights before this half's.
            "sub {n}, {w}, {half}",
            "ld1 {{v20.8b, v21.8b, v22.8b, v23.8b}}, [{n}]",
            sums!((2, 6, 10, 14), (3, 7, 11, 15)),
            "ldr d16, [{p0}, {at}]",
            "ldr d17, [{p1}, {at}]",
            "ldr d18, [{p2}, {at}]",
            "ldr d19, [{p3}, {at}]",
            "add {w}, {w}, #64",
            two_channels!(8, 20, 21),
            sums!((0, 4, 8, 12), (1, 5, 9, 13)),
            two_channels!(8, 22, 23),
            "b 2b",
            "6:",
            sums!((2, 6, 10, 14), (3, 7, 11, 15)),
            OFFSET = const offset_of!(Run, offset),
            STEPS = const offset_of!(Run, steps),
            SIZE = const size_of::<Run>(),
            p0 = in(reg) t.rows[first],
            p1 = in(reg) t.rows[first + 1],
            p2 = in(reg) t.rows[first + 2],
            p3 = in(reg) t.rows[first + 3],
            run = inout(reg) runs.start => _,
            end = in(reg) runs.end,
            w = inout(reg) t.weights.as_ptr().wrapping_add(half * HALF * UNROLL * KR) => _,
            half = in(reg) half * HALF * KR,
            n = out(reg) _,
            at = out(reg) _,
            odd = out(reg) _,
            inout("v0") zero => a0, inout("v1") zero => a1, inout("v2") zero => a2, inout("v3") zero => a3,
            inout("v4") zero => a4, inout("v5") zero => a5, inout("v6") zero => a6, inout("v7") zero => a7,
            inout("v8") zero => a8, inout("v9") zero => a9, inout("v10") zero => a10, inout("v11") zero => a11,
            inout("v12") zero => a12, inout("v13") zero => a13, inout("v14") zero => a14, inout("v15") zero => a15,
            out("v16") _, out("v17") _, out("v18") _, out("v19") _, out("v20") _, out("v21") _, out("v22") _, out("v23") _,
            out("v24") _, out("v25") _, out("v26") _, out("v27") _, out("v28") _, out("v29") _, out("v30") _, out("v31") _,
            options(nostack, readonly),
        );
    }
    [[a0, a1, a2, a3], [a4, a5, a6, a7], [a8, a9, a10, a11], [a12, a13, a14, a15]]
}
