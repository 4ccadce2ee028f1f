//! Elementwise operations of every level against one byte at a time.

use super::*;
use crate::kernels::{registry, tests::random};

/// What this processor has, and the domain of kernels that use it.
fn levels() -> Vec<(SimdLevel, Domain)> {
    registry().iter().filter(|k| (k.supported)()).map(|k| (k.level, k.domain)).collect()
}

fn bytes(state: &mut u64, n: usize) -> Vec<u8> {
    (0..n).map(|_| random(state) as u8).collect()
}

#[test]
fn tables_give_each_byte_its_own() {
    for seed in 0..20_000 {
        let mut state = seed << 8;
        let len = (random(&mut state) % 300) as usize;
        let table: [u8; 256] = bytes(&mut state, 256).try_into().unwrap();
        let from = bytes(&mut state, len);
        let expected: Vec<u8> = from.iter().map(|&b| table[usize::from(b)]).collect();
        let mut out = vec![0; len];
        lookup(&table, &from, &mut out);
        assert_eq!(&out, &expected);
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") {
            out.fill(0);
            // SAFETY: AVX2 is there.
            let done = unsafe { x86::avx2(&table, &from, &mut out) };
            assert_eq!(&out[..done], &expected[..done]);
            assert!(len - done < 64);
        }
    }
}

#[test]
fn levels_equal_the_definition() {
    for seed in 0..20_000 {
        let mut state = seed << 8;
        let [len, channels] = [200, 150].map(|n| 1 + (random(&mut state) % n) as usize);
        let zeros = [0; 3].map(|_: u8| random(&mut state) as u8);
        let mult = [1e-4, 0.003, 0.03, 1.0][seed as usize % 4];
        let (a, b, gate) = (bytes(&mut state, len), bytes(&mut state, len), bytes(&mut state, channels));
        let pixels = bytes(&mut state, channels * (len + 40 * (seed % 7) as usize));
        let values: Vec<f32> = (0..len).map(|_| (random(&mut state) as i32) as f32 * 1e-7).collect();
        for (level, domain) in levels() {
            let shift = if domain == Domain::S8 { 128 } else { 0 };
            let [za, zb, zero_point] = zeros.map(|z| i32::from(z) - shift);
            let (lo, hi) = domain.range();
            let requant = Requant { zero_point, lo: (lo - zero_point) as f32, hi: (hi - zero_point) as f32 };
            let real = |q: u8, zero: i32| domain.decode(q) - zero;
            let (oa, ob, og) =
                (Operand { bytes: &a, zero_point: za }, Operand { bytes: &b, zero_point: zb }, Operand { bytes: &gate, zero_point: zb });
            let mut out = vec![0; len];
            // SAFETY (here and below): supported kernels' levels.
            unsafe { add(level, domain, oa, ob, [mult, 0.03], &requant, &mut out) };
            let expected: Vec<u8> =
                a.iter().zip(&b).map(|(&a, &b)| requant.quantize(real(a, za) as f32 * mult + real(b, zb) as f32 * 0.03)).collect();
            assert_eq!(&out, &expected);
            // SAFETY: as above.
            unsafe { multiply(level, domain, oa, ob, mult, &requant, &mut out) };
            let product = |a: u8, b: u8| requant.quantize((real(a, za) * real(b, zb)) as f32 * mult);
            let expected: Vec<u8> = a.iter().zip(&b).map(|(&a, &b)| product(a, b)).collect();
            assert_eq!(&out, &expected);
            let mut gated = vec![0; pixels.len()];
            // SAFETY: as above.
            unsafe { multiply_pixels(level, domain, Operand { bytes: &pixels, zero_point: za }, og, mult, &requant, &mut gated) };
            let expected: Vec<u8> = pixels.iter().enumerate().map(|(i, &a)| product(a, gate[i % channels])).collect();
            assert_eq!(&gated, &expected);
            let mut sums = vec![7; channels];
            // SAFETY: as above.
            unsafe { channel_sums(level, domain, &pixels, &mut sums) };
            let sum = |c: usize| pixels.iter().skip(c).step_by(channels).map(|&q| domain.decode(q)).sum::<i32>();
            assert_eq!(&sums, &(0..channels).map(|c| 7 + sum(c)).collect::<Vec<_>>());
            let step = 1 + (seed % 4) as usize;
            let mut out = vec![0xa5; step * len];
            // SAFETY: as above.
            unsafe { quantize(level, &values, 0.37, &requant, &mut out, step) };
            let expected: Vec<u8> =
                (0..step * len).map(|i| if i % step == 0 { requant.quantize(values[i / step] / 0.37) } else { 0xa5 }).collect();
            assert_eq!(&out, &expected);
            let mut reals = vec![0.0; pixels.len() / step];
            // SAFETY: as above.
            unsafe { dequantize(level, domain, Operand { bytes: &pixels, zero_point: za }, step, 0.37, &mut reals) };
            let expected: Vec<f32> = (0..reals.len()).map(|i| real(pixels[i * step], za) as f32 * 0.37).collect();
            assert_eq!(&reals, &expected);
        }
    }
}

#[test]
fn not_a_number_becomes_the_zero_point() {
    let (requant, mut out) = (Requant { zero_point: 3, lo: -3.0, hi: 252.0 }, [0; 3]);
    // SAFETY: every processor has the baseline.
    unsafe { quantize(SimdLevel::Baseline, &[f32::NAN, f32::INFINITY, f32::NEG_INFINITY], 1.0, &requant, &mut out, 1) };
    assert_eq!(out, [3, 255, 0]);
}
