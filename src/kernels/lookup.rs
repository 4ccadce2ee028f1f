//! Every function of one byte, by a table of 256 that lies in registers.
#![allow(unsafe_code)]

/// Writes the table's entry for each byte of `from` to `to`, as far as both reach.
pub fn look_up(table: &[u8; 256], from: &[u8], to: &mut [u8]) {
    let n = from.len().min(to.len());
    let (from, to) = (&from[..n], &mut to[..n]);
    let done = vectors(table, from, to);
    to[done..].iter_mut().zip(&from[done..]).for_each(|(o, &i)| *o = table[usize::from(i)]);
}

/// As many bytes as fill vectors; returns how many.
#[cfg(target_arch = "x86_64")]
fn vectors(table: &[u8; 256], from: &[u8], to: &mut [u8]) -> usize {
    if is_x86_feature_detected!("avx512vbmi") && is_x86_feature_detected!("avx512bw") {
        // SAFETY: the processor has it.
        unsafe { x86::vbmi(table, from, to) }
    } else if is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has it.
        unsafe { x86::avx2(table, from, to) }
    } else {
        0
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    /// VPERMI2B looks up in 128 entries at once.
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
    pub fn vbmi(table: &[u8; 256], from: &[u8], to: &mut [u8]) -> usize {
        // SAFETY: four times 64 bytes are the table.
        let t: [__m512i; 4] = std::array::from_fn(|i| unsafe { _mm512_loadu_si512(table.as_ptr().add(64 * i).cast()) });
        let (from, to) = (from.as_chunks::<64>().0, to.as_chunks_mut::<64>().0);
        for (i, o) in from.iter().zip(&mut *to) {
            // SAFETY: both are 64 bytes.
            unsafe {
                let index = _mm512_loadu_si512(i.as_ptr().cast());
                let low = _mm512_permutex2var_epi8(t[0], index, t[1]);
                let high = _mm512_permutex2var_epi8(t[2], index, t[3]);
                _mm512_storeu_si512(o.as_mut_ptr().cast(), _mm512_mask_blend_epi8(_mm512_movepi8_mask(index), low, high));
            }
        }
        64 * from.len()
    }

    /// PSHUFB looks up in 16 entries at once, and gives zero where bit 7 is set.
    #[target_feature(enable = "avx2")]
    pub fn avx2(table: &[u8; 256], from: &[u8], to: &mut [u8]) -> usize {
        // SAFETY: sixteen times 16 bytes are the table.
        let part = |i: usize| unsafe { _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().add(16 * i).cast())) };
        let t: [__m256i; 16] = std::array::from_fn(part);
        let (sixteen, bias) = (_mm256_set1_epi8(16), _mm256_set1_epi8(0x70));
        let (from, to) = (from.as_chunks::<32>().0, to.as_chunks_mut::<32>().0);
        for (i, o) in from.iter().zip(&mut *to) {
            // SAFETY: both are 32 bytes.
            unsafe {
                let mut index = _mm256_loadu_si256(i.as_ptr().cast());
                let mut result = _mm256_setzero_si256();
                for t in t {
                    // 0..16 become 0x70..0x80, all others have bit 7.
                    result = _mm256_or_si256(result, _mm256_shuffle_epi8(t, _mm256_adds_epu8(index, bias)));
                    index = _mm256_sub_epi8(index, sixteen);
                }
                _mm256_storeu_si256(o.as_mut_ptr().cast(), result);
            }
        }
        32 * from.len()
    }
}

/// As many bytes as fill vectors; returns how many. TBL looks up in 64 entries at once; TBX leaves a byte whose index is beyond.
#[cfg(target_arch = "aarch64")]
fn vectors(table: &[u8; 256], from: &[u8], to: &mut [u8]) -> usize {
    use std::arch::aarch64::*;
    let (from, to) = (from.as_chunks::<16>().0, to.as_chunks_mut::<16>().0);
    // SAFETY: four times 64 bytes are the table; chunks are 16 bytes; every AArch64 processor has NEON.
    unsafe {
        let t: [uint8x16x4_t; 4] = std::array::from_fn(|i| vld1q_u8_x4(table.as_ptr().add(64 * i)));
        let step = vdupq_n_u8(64);
        for (i, o) in from.iter().zip(&mut *to) {
            let index = vld1q_u8(i.as_ptr());
            let mut result = vqtbl4q_u8(t[0], index);
            let mut rest = index;
            for t in &t[1..] {
                rest = vsubq_u8(rest, step);
                result = vqtbx4q_u8(result, *t, rest);
            }
            vst1q_u8(o.as_mut_ptr(), result);
        }
    }
    16 * from.len()
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn vectors(_: &[u8; 256], _: &[u8], _: &mut [u8]) -> usize {
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(n: usize, seed: &mut u32) -> Vec<u8> {
        let mut next = || {
            *seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (*seed >> 24) as u8
        };
        (0..n).map(|_| next()).collect()
    }

    #[test]
    fn every_length_and_every_instruction_set_look_up_the_same() {
        let mut seed = 7;
        for n in (0..200).chain([256, 1000]) {
            let table: [u8; 256] = random(256, &mut seed).try_into().expect("256 bytes");
            let from = if n == 256 { (0..=255).collect() } else { random(n, &mut seed) };
            let expected: Vec<u8> = from.iter().map(|&i| table[usize::from(i)]).collect();
            let mut to = vec![0; n];
            look_up(&table, &from, &mut to);
            assert_eq!(to, expected, "{n} bytes");
            #[cfg(target_arch = "x86_64")]
            if is_x86_feature_detected!("avx2") {
                let mut to = vec![0; n];
                // SAFETY: the processor has it.
                let done = unsafe { x86::avx2(&table, &from, &mut to) };
                assert!(done + 32 > n && to[..done] == expected[..done], "{n} bytes with AVX2");
            }
        }
    }
}
