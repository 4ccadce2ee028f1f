//! A tile in plain Rust that compilers vectorise: the fallback where no hand-written kernel fits.

use super::{ConvKernel, Domain, SimdLevel, TileArgs, reference::requantize};

const MR: usize = 4;
const NR: usize = 16;

/// Portable kernel: u8 × s8 products fit 16 bits (255·−128 = −32,640), so one widening step suffices.
pub const PORTABLE: ConvKernel = ConvKernel {
    name: "portable-conv-4x16c1",
    isa: "portable",
    level: SimdLevel::Baseline,
    domain: Domain::U8,
    mr: MR,
    nr: NR,
    kr: 1,
    lane: 1,
    unroll: 1,
    pairs: false,
    small: None,
    winograd: None,
    supported: || true,
    run: portable_tile,
};

/// # Safety
/// See [`ConvKernel::run`].
unsafe fn portable_tile(t: &TileArgs<'_>) {
    let mut acc = [[0i32; NR]; MR];
    for row in &mut acc {
        row.copy_from_slice(&t.bias[..NR]);
    }
    let mut weights = t.weights.chunks_exact(NR);
    for run in t.runs {
        for k in 0..run.steps {
            let Some(w) = weights.next() else { return };
            for (row, acc) in t.rows.iter().zip(&mut acc) {
                // SAFETY: all mr entries of rows are readable over every run.
                let x = i16::from(unsafe { *row.add(run.offset + k) });
                for (a, &w) in acc.iter_mut().zip(w) {
                    *a = a.wrapping_add(i32::from(x * i16::from(w)));
                }
            }
        }
    }
    for (i, acc) in acc.iter().enumerate().take(t.m) {
        for (j, &acc) in acc.iter().enumerate().take(t.n) {
            // SAFETY: residual[i] is readable and out[i] writable for n bytes from `channel` on.
            unsafe {
                let residual = t.residual_params.map(|p| (i32::from(*t.residual[i].add(t.channel + j)), p));
                *t.out[i].add(t.channel + j) = requantize(acc, t.mult[j], residual, &t.requant);
            }
        }
    }
}
