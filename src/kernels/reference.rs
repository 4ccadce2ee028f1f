//! The scalar definition of the convolution tile: the specification that every other kernel equals bit for bit.

use super::{ConvKernel, Domain, SimdLevel, TileArgs};

/// The reference, as a kernel of its own (`EDGE_ISA=scalar`).
pub const SCALAR: ConvKernel = ConvKernel {
    name: "scalar-conv-1x1c1",
    isa: "scalar",
    level: SimdLevel::Baseline,
    domain: Domain::U8,
    mr: 1,
    nr: 1,
    kr: 1,
    lane: 1,
    unroll: 1,
    pairs: false,
    small: None,
    winograd: None,
    supported: || true,
    run: scalar_tile,
};

/// # Safety
/// See [`ConvKernel::run`].
unsafe fn scalar_tile(t: &TileArgs<'_>) {
    // SAFETY: the caller's contract is the same.
    unsafe { tile::<1, 1, 1>(t, Domain::U8) }
}

/// One tile of any shape, one multiplication at a time.
///
/// # Safety
/// See [`ConvKernel::run`].
pub unsafe fn tile<const MR: usize, const NR: usize, const KR: usize>(t: &TileArgs<'_>, domain: Domain) {
    for i in 0..t.m {
        for j in 0..t.n {
            let mut acc = t.bias[j];
            let mut step = 0;
            for run in t.runs {
                for s in 0..run.steps {
                    for k in 0..KR {
                        // SAFETY: rows[i] is readable over every run, padded to whole steps.
                        let x = domain.decode(unsafe { *t.rows[i].add(run.offset + s * KR + k) });
                        let w = i32::from(t.weights[(step * NR + j) * KR + k]);
                        acc = acc.wrapping_add(x * w);
                    }
                    step += 1;
                }
            }
            // SAFETY: residual[i] is readable and out[i] writable for n bytes from `channel` on.
            unsafe {
                let residual = t.residual_params.map(|p| (domain.decode(*t.residual[i].add(t.channel + j)), p));
                *t.out[i].add(t.channel + j) = requantize(acc, t.mult[j], residual, &t.requant);
            }
        }
    }
}

/// Requantization as the module documentation of [`super`] defines it.
#[inline]
pub fn requantize(acc: i32, mult: f32, residual: Option<(i32, super::ResidualParams)>, requant: &super::Requant) -> u8 {
    let mut v = acc as f32 * mult;
    if let Some((r, p)) = residual {
        v += (r - p.zero_point) as f32 * p.mult;
    }
    requant.quantize(v)
}
