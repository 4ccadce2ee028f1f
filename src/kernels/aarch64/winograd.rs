//! The i16 products of exact Winograd convolution: SMLAL by lane, four products an instruction. Without dotprod a direct
//! convolution makes eight, but needs four times as many.

use crate::kernels::winograd::WinogradKernel;
use std::arch::aarch64::*;

/// Rows per call: 24 accumulators, six rows of `v` and two registers of `u` fill the register file.
const MR: usize = 6;
/// Output channels per call.
const NR: usize = 16;
/// Values of a row that one register holds.
const STEP: usize = 8;

/// For cores without dotprod.
pub const NEON_WINOGRAD: WinogradKernel = WinogradKernel {
    name: "neon-winograd-6x16c1",
    mr: MR,
    nr: NR,
    kr: 1,
    relative_speed: 0.5,
    transform_cost: [130.0, 350.0],
    // One core reads about 2 bytes a cycle from a Pi 4's memory, which is what the products ask for; four cores share that.
    max_weight_bytes: || 20 << 20,
    run: product,
};

/// # Safety
/// See [`WinogradKernel::run`].
unsafe fn product(v: *const i16, u: *const i16, m: *mut i32, depth: usize, rows: usize) {
    // SAFETY: the contract is the same for as many rows as remain.
    unsafe {
        match rows {
            1 => product_rows::<1>(v, u, m, depth),
            2 => product_rows::<2>(v, u, m, depth),
            3 => product_rows::<3>(v, u, m, depth),
            4 => product_rows::<4>(v, u, m, depth),
            5 => product_rows::<5>(v, u, m, depth),
            _ => product_rows::<MR>(v, u, m, depth),
        }
    }
}

/// # Safety
/// See [`WinogradKernel::run`]; computes exactly `ROWS` rows.
unsafe fn product_rows<const ROWS: usize>(v: *const i16, u: *const i16, m: *mut i32, depth: usize) {
    // SAFETY: a step reads eight values a row and eight times sixteen of `u`; depth is a multiple of eight.
    unsafe {
        let mut acc = [[vdupq_n_s32(0); NR / 4]; ROWS];
        for k in (0..depth).step_by(STEP) {
            let mut x = [vdupq_n_s16(0); ROWS];
            for (i, x) in x.iter_mut().enumerate() {
                *x = vld1q_s16(v.add(i * depth + k));
            }
            macro_rules! lane {
                ($lane:literal) => {
                    let at = u.add((k + $lane) * NR);
                    let (u0, u1) = (vld1q_s16(at), vld1q_s16(at.add(8)));
                    for (acc, &x) in acc.iter_mut().zip(&x) {
                        acc[0] = vmlal_laneq_s16::<$lane>(acc[0], vget_low_s16(u0), x);
                        acc[1] = vmlal_high_laneq_s16::<$lane>(acc[1], u0, x);
                    }
                    for (acc, &x) in acc.iter_mut().zip(&x) {
                        acc[2] = vmlal_laneq_s16::<$lane>(acc[2], vget_low_s16(u1), x);
                        acc[3] = vmlal_high_laneq_s16::<$lane>(acc[3], u1, x);
                    }
                };
            }
            lane!(0);
            lane!(1);
            lane!(2);
            lane!(3);
            lane!(4);
            lane!(5);
            lane!(6);
            lane!(7);
        }
        for (i, acc) in acc.into_iter().enumerate() {
            for (j, acc) in acc.into_iter().enumerate() {
                vst1q_s32(m.add(i * NR + 4 * j), acc);
            }
        }
    }
}
