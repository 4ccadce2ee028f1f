//! SDOT by lane. A pass holds 7 pixels × 8 channels in 14 accumulators, beside 16 input bytes of each pixel and
//! four steps of weights: 56 SDOT for 15 loads. 7 divides every layer width of a ResNet at 224 pixels.

use super::epilogue::{Epilogue, NR};
use crate::kernels::{ConvKernel, Domain, MAX_MR, Run, SimdLevel, TileArgs};
use std::arch::{aarch64::*, asm};
use std::mem::offset_of;

/// Pixels per pass.
const PASS: usize = 7;
/// Pixels per call: two passes share its set-up and the weights in cache.
const MR: usize = 2 * PASS;

/// For Cortex-A76, A78AE, A55 and newer.
pub const DOTPROD: ConvKernel = ConvKernel {
    name: "dotprod-conv-14x8c4",
    isa: "dotprod",
    level: SimdLevel::Baseline,
    domain: Domain::S8,
    mr: MR,
    nr: NR,
    kr: 4,
    lane: 4,
    unroll: 1,
    pairs: false,
    small: None,
    winograd: None,
    supported: || std::arch::is_aarch64_feature_detected!("dotprod"),
    run: dotprod_tile,
};

/// # Safety
/// See [`ConvKernel::run`].
#[target_feature(enable = "neon,dotprod")]
unsafe fn dotprod_tile(t: &TileArgs<'_>) {
    const { assert!(MR <= MAX_MR) };
    debug_assert_eq!(t.weights.len(), t.runs.iter().map(|r| r.steps).sum::<usize>() * NR * 4);
    // SAFETY: the contract is the same; entries of rows from m to MR are readable.
    unsafe {
        let epilogue = Epilogue::of_tile(t);
        for first in (0..t.m).step_by(PASS) {
            epilogue.store_pass(t, first, accumulate(t, first));
        }
    }
}

/// One accumulator: `acc += w · x[lane]`, four channels by four bytes.
macro_rules! dot {
    ($acc:literal, $w:literal, $x:literal, $lane:literal) => {
        concat!("sdot v", $acc, ".4s, v", $w, ".16b, v", $x, ".4b[", $lane, "]\n")
    };
}

/// Seven pixels × eight channels × four bytes.
macro_rules! step {
    ($w0:literal, $w1:literal, $lane:literal) => {
        concat!(
            dot!(0, $w0, 14, $lane),
            dot!(7, $w1, 14, $lane),
            dot!(1, $w0, 15, $lane),
            dot!(8, $w1, 15, $lane),
            dot!(2, $w0, 16, $lane),
            dot!(9, $w1, 16, $lane),
            dot!(3, $w0, 17, $lane),
            dot!(10, $w1, 17, $lane),
            dot!(4, $w0, 18, $lane),
            dot!(11, $w1, 18, $lane),
            dot!(5, $w0, 19, $lane),
            dot!(12, $w1, 19, $lane),
            dot!(6, $w0, 20, $lane),
            dot!(13, $w1, 20, $lane),
        )
    };
}

/// The next bytes of seven pixels, into registers of `$width`.
macro_rules! pixels {
    ($width:literal) => {
        concat!(
            "ldr ",
            $width,
            "14, [{p0}, {x}]\n",
            "ldr ",
            $width,
            "15, [{p1}, {x}]\n",
            "ldr ",
            $width,
            "16, [{p2}, {x}]\n",
            "ldr ",
            $width,
            "17, [{p3}, {x}]\n",
            "ldr ",
            $width,
            "18, [{p4}, {x}]\n",
            "ldr ",
            $width,
            "19, [{p5}, {x}]\n",
            "ldr ",
            $width,
            "20, [{p6}, {x}]\n",
        )
    };
}

/// Bias plus all products of pixels `first..first + PASS`: `[pixel][channels / 4]`.
///
/// # Safety
/// See [`ConvKernel::run`].
#[inline]
#[target_feature(enable = "neon,dotprod")]
unsafe fn accumulate(t: &TileArgs<'_>, first: usize) -> [[int32x4_t; 2]; PASS] {
    // SAFETY: per-channel slices hold NR entries.
    let (b0, b1) = unsafe { (vld1q_s32(t.bias.as_ptr()), vld1q_s32(t.bias.as_ptr().add(4))) };
    let (a0, a1, a2, a3, a4, a5, a6, a7, a8, a9, a10, a11, a12, a13);
    let runs = t.runs.as_ptr_range();
    // SAFETY: reads rows over their runs (whole steps) and weights of all steps, no byte more; writes nothing.
    // Loads stand together: in-order cores pay once for turning from products to loads, the others run ahead anyway.
    unsafe {
        asm!(
            "ldp {p0}, {p1}, [{p6}]",
            "ldp {p2}, {p3}, [{p6}, #16]",
            "ldp {p4}, {p5}, [{p6}, #32]",
            "ldr {p6}, [{p6}, #48]",
            "2:",
            "cmp {run}, {end}",
            "b.eq 6f",
            "ldr {x}, [{run}, #{OFFSET}]",
            "ldr {n}, [{run}, #{STEPS}]",
            "add {run}, {run}, #{SIZE}",
            "subs {n}, {n}, #4",
            "b.lo 4f",
            "3:",
            pixels!("q"),
            "ldr q21, [{w}]",
            "ldr q22, [{w}, #16]",
            "ldr q23, [{w}, #32]",
            "ldr q24, [{w}, #48]",
            "ldr q25, [{w}, #64]",
            "ldr q26, [{w}, #80]",
            "ldr q27, [{w}, #96]",
            "ldr q28, [{w}, #112]",
            "add {x}, {x}, #16",
            "add {w}, {w}, #128",
            step!(21, 22, 0),
            step!(23, 24, 1),
            step!(25, 26, 2),
            step!(27, 28, 3),
            "subs {n}, {n}, #4",
            "b.hs 3b",
            "4:",
            "adds {n}, {n}, #4",
            "b.eq 2b",
            "5:",
            pixels!("s"),
            "ldr q21, [{w}]",
            "ldr q22, [{w}, #16]",
            "add {x}, {x}, #4",
            "add {w}, {w}, #32",
            step!(21, 22, 0),
            "subs {n}, {n}, #1",
            "b.ne 5b",
            "b 2b",
            "6:",
            OFFSET = const offset_of!(Run, offset),
            STEPS = const offset_of!(Run, steps),
            SIZE = const size_of::<Run>(),
            run = inout(reg) runs.start => _,
            end = in(reg) runs.end,
            w = inout(reg) t.weights.as_ptr() => _,
            n = out(reg) _,
            x = out(reg) _,
            p0 = out(reg) _, p1 = out(reg) _, p2 = out(reg) _, p3 = out(reg) _, p4 = out(reg) _, p5 = out(reg) _, p6 = inout(reg) t.rows.as_ptr().add(first) => _,
            inout("v0") b0 => a0, inout("v1") b0 => a1, inout("v2") b0 => a2, inout("v3") b0 => a3, inout("v4") b0 => a4, inout("v5") b0 => a5, inout("v6") b0 => a6,
            inout("v7") b1 => a7, inout("v8") b1 => a8, inout("v9") b1 => a9, inout("v10") b1 => a10, inout("v11") b1 => a11, inout("v12") b1 => a12, inout("v13") b1 => a13,
            out("v14") _, out("v15") _, out("v16") _, out("v17") _, out("v18") _, out("v19") _, out("v20") _,
            out("v21") _, out("v22") _, out("v23") _, out("v24") _, out("v25") _, out("v26") _, out("v27") _, out("v28") _,
            options(nostack, readonly),
        );
    }
    [[a0, a7], [a1, a8], [a2, a9], [a3, a10], [a4, a11], [a5, a12], [a6, a13]]
}
