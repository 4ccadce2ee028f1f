//! Table lookup by VPERMI2B, or by PSHUFB.

use std::arch::x86_64::*;

/// Looks up whole registers, and tells how many bytes that was.
pub fn lookup(table: &[u8; 256], from: &[u8], out: &mut [u8]) -> usize {
    // SAFETY: each is there.
    unsafe {
        if is_x86_feature_detected!("avx512vbmi") && is_x86_feature_detected!("avx512bw") {
            vbmi(table, from, out)
        } else if is_x86_feature_detected!("avx2") {
            avx2(table, from, out)
        } else {
            0
        }
    }
}

/// Two tables of 128 bytes, chosen by a byte's sign.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
pub fn vbmi(table: &[u8; 256], from: &[u8], out: &mut [u8]) -> usize {
    // SAFETY: a table has four registers; chunks have one.
    unsafe {
        let t: [__m512i; 4] = std::array::from_fn(|i| _mm512_loadu_si512(table.as_ptr().add(64 * i).cast()));
        let (from, _) = from.as_chunks::<64>();
        let (out, _) = out.as_chunks_mut::<64>();
        for (out, from) in out.iter_mut().zip(from) {
            let x = _mm512_loadu_si512(from.as_ptr().cast());
            let (low, high) = (_mm512_permutex2var_epi8(t[0], x, t[1]), _mm512_permutex2var_epi8(t[2], x, t[3]));
            _mm512_storeu_si512(out.as_mut_ptr().cast(), _mm512_mask_blend_epi8(_mm512_movepi8_mask(x), low, high));
        }
        64 * from.len().min(out.len())
    }
}

/// Sixteen tables of 16 bytes; all but a byte's own give zero.
#[target_feature(enable = "avx2")]
pub fn avx2(table: &[u8; 256], from: &[u8], out: &mut [u8]) -> usize {
    // SAFETY: a table has sixteen quarters of a register pair; chunks have two registers.
    unsafe {
        let (from, _) = from.as_chunks::<64>();
        let (out, _) = out.as_chunks_mut::<64>();
        // A byte of this table becomes 112 to 127, which PSHUFB takes by its low bits; others end with the top bit set.
        let (sixteen, beyond) = (_mm256_set1_epi8(16), _mm256_set1_epi8(112));
        for (out, from) in out.iter_mut().zip(from) {
            let mut x = [_mm256_loadu_si256(from.as_ptr().cast()), _mm256_loadu_si256(from.as_ptr().add(32).cast())];
            let mut sum = [_mm256_setzero_si256(); 2];
            for part in table.as_chunks::<16>().0 {
                let part = _mm256_broadcastsi128_si256(_mm_loadu_si128(part.as_ptr().cast()));
                for (x, sum) in x.iter_mut().zip(&mut sum) {
                    *sum = _mm256_or_si256(*sum, _mm256_shuffle_epi8(part, _mm256_adds_epu8(*x, beyond)));
                    *x = _mm256_sub_epi8(*x, sixteen);
                }
            }
            _mm256_storeu_si256(out.as_mut_ptr().cast(), sum[0]);
            _mm256_storeu_si256(out.as_mut_ptr().add(32).cast(), sum[1]);
        }
        64 * from.len().min(out.len())
    }
}
