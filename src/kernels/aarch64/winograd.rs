//! The i16 products of exact Winograd convolution: SMLAL by lane, four products an instruction. Without dotprod a direct
//! convolution makes eight, but needs four times as many.
//!
//! Both operands lie so that one LD1 fills four registers: eight values of every tile, or sixteen channels of two values of
//! the depth. In-order cores wait for loads that come one by one between products; here 128 products have five. They are
//! loaded 32 products ahead, past the end of both operands.

use crate::kernels::winograd::{LANES, Product, WinogradKernel};
use std::arch::asm;

/// Tiles per call: 16 accumulators, eight registers of `v` and eight of `u` are all there are.
const MR: usize = 4;
/// Output channels per call.
const NR: usize = 16;

/// For cores without dotprod.
pub const NEON_WINOGRAD: WinogradKernel = WinogradKernel {
    name: "neon-winograd-4x16c1",
    mr: MR,
    nr: NR,
    kr: 1,
    interleaved: true,
    read_ahead: 2 * NR,
    relative_speed: 0.5,
    transform_cost: [130.0, 350.0],
    // One core reads about 2 bytes a cycle from a Pi 4's memory, which is what the products ask for; four cores share that.
    max_weight_bytes: || 20 << 20,
    // Not measured: no board was at hand.
    byte_cost: || 0.0,
    run: product,
};

/// # Safety
/// See [`WinogradKernel::run`].
unsafe fn product(mut p: Product) {
    debug_assert!(p.depth > 0 && p.depth.is_multiple_of(LANES));
    while let Some((v, m, rows)) = p.next(&NEON_WINOGRAD) {
        // SAFETY: the contract is the same.
        unsafe {
            match rows {
                1 => product_1(v, p.u, m, p.depth / LANES),
                2 => product_2(v, p.u, m, p.depth / LANES),
                3 => product_3(v, p.u, m, p.depth / LANES),
                _ => product_4(v, p.u, m, p.depth / LANES),
            }
        }
    }
}

/// One value of the depth: sixteen channels in `$u0` and `$u1`, times lane `$k` of every row's register.
macro_rules! value {
    ($k:literal, $u0:literal, $u1:literal, $(($x:literal, $a0:literal, $a1:literal, $a2:literal, $a3:literal)),*) => {
        concat!($(
            "smlal v", $a0, ".4s, v", $u0, ".4h, v", $x, ".h[", $k, "]\n",
            "smlal2 v", $a1, ".4s, v", $u0, ".8h, v", $x, ".h[", $k, "]\n",
            "smlal v", $a2, ".4s, v", $u1, ".4h, v", $x, ".h[", $k, "]\n",
            "smlal2 v", $a3, ".4s, v", $u1, ".8h, v", $x, ".h[", $k, "]\n",
        )*)
    };
}

/// Eight values of the depth; meanwhile `$load` takes the rows' next ones, and `u` runs four registers ahead.
macro_rules! eight {
    ($load:literal, $($row:tt),*) => {
        concat!(
            "ld1 {{v8.8h, v9.8h, v10.8h, v11.8h}}, [{u1}]\n",
            value!(0, 4, 5, $($row),*),
            value!(1, 6, 7, $($row),*),
            "ld1 {{v4.8h, v5.8h, v6.8h, v7.8h}}, [{u2}]\n",
            value!(2, 8, 9, $($row),*),
            value!(3, 10, 11, $($row),*),
            "ld1 {{v8.8h, v9.8h, v10.8h, v11.8h}}, [{u3}]\n",
            "add {u0}, {u0}, #256\n",
            "add {u1}, {u1}, #256\n",
            "add {u2}, {u2}, #256\n",
            "add {u3}, {u3}, #256\n",
            "add {v}, {v}, #64\n",
            "subs {n}, {n}, #1\n",
            value!(4, 4, 5, $($row),*),
            value!(5, 6, 7, $($row),*),
            "ld1 {{v4.8h, v5.8h, v6.8h, v7.8h}}, [{u0}]\n",
            value!(6, 8, 9, $($row),*),
            $load, ", [{v}]\n",
            value!(7, 10, 11, $($row),*),
        )
    };
}

/// A product of so many rows: `$even` and `$odd` load eight values of each, in turns.
macro_rules! product {
    ($name:ident, $even:literal, $odd:literal, [$($even_row:tt),*], [$($odd_row:tt),*], $($store:literal),*) => {
        /// # Safety
        /// See [`WinogradKernel::run`]; `eighths` is the depth by eights, and not 0.
        unsafe fn $name(v: *const i16, u: *const i16, m: *mut i32, eighths: usize) {
            const { assert!(LANES == 8 && NR == 16 && MR == 4) };
            // SAFETY: a turn reads eight values of every row and eight times sixteen of `u`, 64 bytes ahead each; the contract
            // says that those are there, and that `m` takes sixteen sums a row.
            unsafe {
                asm!(
                    concat!($even, ", [{v}]"),
                    "ld1 {{v4.8h, v5.8h, v6.8h, v7.8h}}, [{u0}]",
                    "movi v16.2d, #0", "movi v17.2d, #0", "movi v18.2d, #0", "movi v19.2d, #0",
                    "movi v20.2d, #0", "movi v21.2d, #0", "movi v22.2d, #0", "movi v23.2d, #0",
                    "movi v24.2d, #0", "movi v25.2d, #0", "movi v26.2d, #0", "movi v27.2d, #0",
                    "movi v28.2d, #0", "movi v29.2d, #0", "movi v30.2d, #0", "movi v31.2d, #0",
                    "2:",
                    eight!($odd, $($even_row),*),
                    "b.eq 3f",
                    eight!($even, $($odd_row),*),
                    "b.ne 2b",
                    "3:",
                    $($store),*,
                    v = inout(reg) v => _,
                    u0 = inout(reg) u => _,
                    u1 = inout(reg) u.add(32) => _,
                    u2 = inout(reg) u.add(64) => _,
                    u3 = inout(reg) u.add(96) => _,
                    m = inout(reg) m => _,
                    n = inout(reg) eighths => _,
                    out("v0") _, out("v1") _, out("v2") _, out("v3") _, out("v4") _, out("v5") _, out("v6") _, out("v7") _,
                    out("v8") _, out("v9") _, out("v10") _, out("v11") _, out("v12") _, out("v13") _, out("v14") _, out("v15") _,
                    out("v16") _, out("v17") _, out("v18") _, out("v19") _, out("v20") _, out("v21") _, out("v22") _, out("v23") _,
                    out("v24") _, out("v25") _, out("v26") _, out("v27") _, out("v28") _, out("v29") _, out("v30") _, out("v31") _,
                    options(nostack),
                );
            }
        }
    };
}

product!(
    product_1,
    "ld1 {{v0.8h}}",
    "ld1 {{v12.8h}}",
    [(0, 16, 17, 18, 19)],
    [(12, 16, 17, 18, 19)],
    "st1 {{v16.4s, v17.4s, v18.4s, v19.4s}}, [{m}]"
);
product!(
    product_2,
    "ld1 {{v0.8h, v1.8h}}",
    "ld1 {{v12.8h, v13.8h}}",
    [(0, 16, 17, 18, 19), (1, 20, 21, 22, 23)],
    [(12, 16, 17, 18, 19), (13, 20, 21, 22, 23)],
    "st1 {{v16.4s, v17.4s, v18.4s, v19.4s}}, [{m}], #64",
    "st1 {{v20.4s, v21.4s, v22.4s, v23.4s}}, [{m}]"
);
product!(
    product_3,
    "ld1 {{v0.8h, v1.8h, v2.8h}}",
    "ld1 {{v12.8h, v13.8h, v14.8h}}",
    [(0, 16, 17, 18, 19), (1, 20, 21, 22, 23), (2, 24, 25, 26, 27)],
    [(12, 16, 17, 18, 19), (13, 20, 21, 22, 23), (14, 24, 25, 26, 27)],
    "st1 {{v16.4s, v17.4s, v18.4s, v19.4s}}, [{m}], #64",
    "st1 {{v20.4s, v21.4s, v22.4s, v23.4s}}, [{m}], #64",
    "st1 {{v24.4s, v25.4s, v26.4s, v27.4s}}, [{m}]"
);
product!(
    product_4,
    "ld1 {{v0.8h, v1.8h, v2.8h, v3.8h}}",
    "ld1 {{v12.8h, v13.8h, v14.8h, v15.8h}}",
    [(0, 16, 17, 18, 19), (1, 20, 21, 22, 23), (2, 24, 25, 26, 27), (3, 28, 29, 30, 31)],
    [(12, 16, 17, 18, 19), (13, 20, 21, 22, 23), (14, 24, 25, 26, 27), (15, 28, 29, 30, 31)],
    "st1 {{v16.4s, v17.4s, v18.4s, v19.4s}}, [{m}], #64",
    "st1 {{v20.4s, v21.4s, v22.4s, v23.4s}}, [{m}], #64",
    "st1 {{v24.4s, v25.4s, v26.4s, v27.4s}}, [{m}], #64",
    "st1 {{v28.4s, v29.4s, v30.4s, v31.4s}}, [{m}]"
);
