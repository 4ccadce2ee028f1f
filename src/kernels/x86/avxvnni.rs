//! VPDPBUSD on 256-bit registers.

use super::epilogue::{ymm_bias, ymm_finish};
use super::winograd::AVXVNNI_WINOGRAD;
use crate::kernels::{ConvKernel, Domain, SimdLevel, TileArgs};
use std::arch::x86_64::*;

/// VPDPBUSD on 256-bit registers (Alder Lake and its small cores), 6 pixels × 16 channels.
pub const VNNI256: ConvKernel = ConvKernel {
    name: "avxvnni-conv-6x16c4",
    isa: "avxvnni",
    level: SimdLevel::Avx2,
    domain: Domain::U8,
    mr: 6,
    nr: 16,
    kr: 4,
    lane: 4,
    unroll: 1,
    pairs: false,
    small: None,
    winograd: Some(AVXVNNI_WINOGRAD),
    supported: || is_x86_feature_detected!("avx2") && is_x86_feature_detected!("avxvnni"),
    run: vnni256_tile,
};

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
        ymm_finish(t, &acc);
    }
}
