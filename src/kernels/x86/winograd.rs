//! The i16 products of exact Winograd convolution: VPDPWSSD, and VPMADDWD where there is none.

use crate::kernels::winograd::{Product, WinogradKernel};
use std::arch::{asm, x86_64::*};

/// VPDPWSSD, 14 tiles × 32 channels.
pub const AVX512VNNI_WINOGRAD: WinogradKernel = WinogradKernel {
    name: "avx512vnni-winograd-14x32c2",
    mr: 14,
    nr: 32,
    kr: 2,
    interleaved: false,
    read_ahead: 0,
    relative_speed: 0.5,
    transform_cost: [400.0, 1000.0],
    // Zen 5 and Sapphire Rapids, which have AVX-VNNI as well, make 512 bits of products at once. Others take twice as long,
    // in which twice as many weights arrive (Zen 4: a ResNet-34 gains 6 % by it).
    max_weight_bytes: || if is_x86_feature_detected!("avxvnni") { 4 << 20 } else { 10 << 20 },
    // Emerald Rapids: the 3×3 convolutions of GoogLeNet at 12×12 take 0.75 ms by Winograd and 0.41 directly, their weights 1.5 to 3.7 MB.
    byte_cost: || if is_x86_feature_detected!("avxvnni") { 20.0 } else { 2.0 },
    run: vnni512_product,
};

/// VPMADDWD, 6 tiles × 16 channels.
pub const AVXVNNI_WINOGRAD: WinogradKernel = WinogradKernel {
    name: "avx2-winograd-6x16c2",
    mr: 6,
    nr: 16,
    kr: 2,
    interleaved: false,
    read_ahead: 0,
    relative_speed: 0.4,
    transform_cost: [400.0, 1000.0],
    max_weight_bytes: || 4 << 20,
    byte_cost: || 2.0,
    run: avx2_product,
};

/// The same, beside direct products that are slower.
pub const AVX2_WINOGRAD: WinogradKernel = WinogradKernel { relative_speed: 1.2, max_weight_bytes: || 12 << 20, ..AVXVNNI_WINOGRAD };

/// # Safety
/// See [`WinogradKernel::run`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn vnni512_product(mut p: Product) {
    let (u, depth) = (p.u, p.depth);
    while let Some((v, m, rows)) = p.next(&AVX512VNNI_WINOGRAD) {
        let mut done = 0;
        while done < rows {
            let (v, m) = (v.wrapping_add(done * depth), m.wrapping_add(done * 32));
            // SAFETY: the contract is the same for every height that is no more than `rows`.
            done += match rows - done {
                14.. => unsafe { vnni512_product_rows::<14>(v, u, m, depth) },
                12..14 => unsafe { vnni512_product_rows::<12>(v, u, m, depth) },
                7..12 => unsafe { vnni512_product_rows::<7>(v, u, m, depth) },
                4..7 => unsafe { vnni512_product_rows::<4>(v, u, m, depth) },
                _ => unsafe { vnni512_product_rows::<1>(v, u, m, depth) },
            };
        }
    }
}

/// VPDPWSSD. LLVM takes its intrinsic apart into VPMADDWD and VPADDD, to win latency, and loses throughput.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
fn dpwssd(mut acc: __m512i, a: __m512i, b: __m512i) -> __m512i {
    // SAFETY: the instruction is there, and touches registers only.
    unsafe {
        asm!("vpdpwssd {}, {}, {}", inout(zmm_reg) acc, in(zmm_reg) a, in(zmm_reg) b, options(pure, nomem, nostack, preserves_flags))
    };
    acc
}

/// # Safety
/// See [`WinogradKernel::run`]; computes and returns exactly `MR` rows.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn vnni512_product_rows<const MR: usize>(v: *const i16, u: *const i16, m: *mut i32, depth: usize) -> usize {
    // SAFETY: a step reads two values a row and 64 of `u`; depth is even.
    unsafe {
        let mut acc = [[_mm512_setzero_si512(); 2]; MR];
        for s in 0..depth / 2 {
            let u0 = _mm512_loadu_si512(u.add(64 * s).cast());
            let u1 = _mm512_loadu_si512(u.add(64 * s + 32).cast());
            for i in 0..MR {
                let v = _mm512_set1_epi32(v.add(i * depth + 2 * s).cast::<i32>().read_unaligned());
                acc[i][0] = dpwssd(acc[i][0], v, u0);
                acc[i][1] = dpwssd(acc[i][1], v, u1);
            }
        }
        for i in 0..MR {
            _mm512_storeu_si512(m.add(32 * i).cast(), acc[i][0]);
            _mm512_storeu_si512(m.add(32 * i + 16).cast(), acc[i][1]);
        }
    }
    MR
}

/// # Safety
/// See [`WinogradKernel::run`].
#[target_feature(enable = "avx2")]
unsafe fn avx2_product(mut p: Product) {
    let (u, depth) = (p.u, p.depth);
    while let Some((v, m, rows)) = p.next(&AVXVNNI_WINOGRAD) {
        let mut done = 0;
        while done < rows {
            let (v, m) = (v.wrapping_add(done * depth), m.wrapping_add(done * 16));
            // SAFETY: the contract is the same for every height that is no more than `rows`.
            done += match rows - done {
                6.. => unsafe { avx2_product_rows::<6>(v, u, m, depth) },
                3..6 => unsafe { avx2_product_rows::<3>(v, u, m, depth) },
                _ => unsafe { avx2_product_rows::<1>(v, u, m, depth) },
            };
        }
    }
}

/// # Safety
/// See [`WinogradKernel::run`]; computes and returns exactly `MR` rows.
#[target_feature(enable = "avx2")]
unsafe fn avx2_product_rows<const MR: usize>(v: *const i16, u: *const i16, m: *mut i32, depth: usize) -> usize {
    // SAFETY: a step reads two values a row and 32 of `u`; depth is even.
    unsafe {
        let mut acc = [[_mm256_setzero_si256(); 2]; MR];
        for s in 0..depth / 2 {
            let u0 = _mm256_loadu_si256(u.add(32 * s).cast());
            let u1 = _mm256_loadu_si256(u.add(32 * s + 16).cast());
            for i in 0..MR {
                let v = _mm256_set1_epi32(v.add(i * depth + 2 * s).cast::<i32>().read_unaligned());
                acc[i][0] = _mm256_add_epi32(acc[i][0], _mm256_madd_epi16(v, u0));
                acc[i][1] = _mm256_add_epi32(acc[i][1], _mm256_madd_epi16(v, u1));
            }
        }
        for i in 0..MR {
            _mm256_storeu_si256(m.add(16 * i).cast(), acc[i][0]);
            _mm256_storeu_si256(m.add(16 * i + 8).cast(), acc[i][1]);
        }
    }
    MR
}
