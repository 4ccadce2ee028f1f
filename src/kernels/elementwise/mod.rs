//! Operations on single bytes. Each is one plain loop, which is its definition; it is compiled for every [`SimdLevel`], where
//! compilers vectorise it. Only a table lookup has kernels of its own: no compiler makes one of shuffles.

#[cfg(target_arch = "aarch64")]
mod aarch64;
#[cfg(target_arch = "x86_64")]
mod x86;

use super::{Domain, Requant, SimdLevel};

/// One input of an operation of two.
#[derive(Debug, Clone, Copy)]
pub struct Operand<'a> {
    /// Bytes.
    pub bytes: &'a [u8],
    /// Zero point.
    pub zero_point: i32,
}

/// Defines a function by its plain loop, and compiles that loop for every level.
macro_rules! levels {
    ($(#[$doc:meta])* $name:ident, $plain:ident($($arg:ident: $ty:ty),* $(,)?)) => {
        $(#[$doc])*
        ///
        /// # Safety
        /// The processor has `level`.
        pub unsafe fn $name(level: SimdLevel, $($arg: $ty),*) {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
                fn avx512($($arg: $ty),*) {
                    $plain($($arg),*)
                }
                #[target_feature(enable = "avx2")]
                fn avx2($($arg: $ty),*) {
                    $plain($($arg),*)
                }
                // SAFETY: the processor has what the level says.
                unsafe {
                    match level {
                        SimdLevel::Avx512 => return avx512($($arg),*),
                        SimdLevel::Avx2 => return avx2($($arg),*),
                        SimdLevel::Baseline => {}
                    }
                }
            }
            let _ = level;
            $plain($($arg),*)
        }
    };
}

levels!(
    /// `out = requant(f32(a − zp_a)·mult[0] + f32(b − zp_b)·mult[1])`, as many bytes as `out` has.
    add,
    add_plain(domain: Domain, a: Operand<'_>, b: Operand<'_>, mult: [f32; 2], requant: &Requant, out: &mut [u8])
);

#[inline(always)]
fn add_plain(domain: Domain, a: Operand<'_>, b: Operand<'_>, mult: [f32; 2], requant: &Requant, out: &mut [u8]) {
    each_domain(domain, |decode| {
        for ((o, &qa), &qb) in out.iter_mut().zip(a.bytes).zip(b.bytes) {
            let va = (decode(qa) - a.zero_point) as f32 * mult[0];
            let vb = (decode(qb) - b.zero_point) as f32 * mult[1];
            *o = requant.quantize(va + vb);
        }
    });
}

levels!(
    /// `out = requant(f32((a − zp_a)·(b − zp_b))·mult)`, as many bytes as `out` has.
    multiply,
    multiply_plain(domain: Domain, a: Operand<'_>, b: Operand<'_>, mult: f32, requant: &Requant, out: &mut [u8])
);

#[inline(always)]
fn multiply_plain(domain: Domain, a: Operand<'_>, b: Operand<'_>, mult: f32, requant: &Requant, out: &mut [u8]) {
    each_domain(domain, |decode| {
        for ((o, &qa), &qb) in out.iter_mut().zip(a.bytes).zip(b.bytes) {
            // Exact in f32: below 2¹⁷.
            let product = (decode(qa) - a.zero_point) * (decode(qb) - b.zero_point);
            *o = requant.quantize(product as f32 * mult);
        }
    });
}

levels!(
    /// [`multiply`] of every pixel of `a` by the one pixel `gate`; `out` and `a` are whole pixels without anything between them.
    multiply_pixels,
    multiply_pixels_plain(domain: Domain, a: Operand<'_>, gate: Operand<'_>, mult: f32, requant: &Requant, out: &mut [u8])
);

#[inline(always)]
fn multiply_pixels_plain(domain: Domain, a: Operand<'_>, gate: Operand<'_>, mult: f32, requant: &Requant, out: &mut [u8]) {
    let channels = gate.bytes.len();
    for (out, pixel) in out.chunks_exact_mut(channels).zip(a.bytes.chunks_exact(channels)) {
        multiply_plain(domain, Operand { bytes: pixel, ..a }, gate, mult, requant, out);
    }
}

levels!(
    /// `sums[c] += Σ pixel[c]` over the whole pixels of `sums.len()` channels in `pixels`: bytes as they are decoded, zero points
    /// not subtracted. For pools over whole pictures; small windows are depthwise convolutions with weights of 1.
    channel_sums,
    channel_sums_plain(domain: Domain, pixels: &[u8], sums: &mut [i32])
);

#[inline(always)]
fn channel_sums_plain(domain: Domain, pixels: &[u8], sums: &mut [i32]) {
    let channels = sums.len();
    each_domain(domain, |decode| {
        // Few enough pixels that their sums fit 16 bits.
        for pixels in pixels.chunks(channels * 128) {
            for (first, sums) in sums.chunks_mut(64).enumerate().map(|(i, sums)| (64 * i, sums)) {
                let mut narrow = [0i16; 64];
                match <&[i32; 64]>::try_from(&*sums) {
                    Ok(_) => pixels.chunks_exact(channels).for_each(|pixel| {
                        let bytes: &[u8; 64] = pixel[first..].first_chunk().expect("a whole block");
                        narrow.iter_mut().zip(bytes).for_each(|(n, &b)| *n += decode(b) as i16);
                    }),
                    Err(_) => pixels.chunks_exact(channels).for_each(|pixel| {
                        narrow.iter_mut().zip(&pixel[first..]).for_each(|(n, &b)| *n += decode(b) as i16);
                    }),
                }
                sums.iter_mut().zip(narrow).for_each(|(s, n)| *s += i32::from(n));
            }
        }
    });
}

levels!(
    /// ONNX `QuantizeLinear` of one plane's values into every `step`-th byte of `out`:
    /// `saturate(round_half_even(x / scale) + zero_point)`; NaN becomes the zero point.
    quantize,
    quantize_plain(values: &[f32], scale: f32, requant: &Requant, out: &mut [u8], step: usize)
);

#[inline(always)]
fn quantize_plain(values: &[f32], scale: f32, requant: &Requant, out: &mut [u8], step: usize) {
    let mut bytes = [0u8; 64];
    for (values, out) in values.chunks(64).zip(out.chunks_mut(64 * step)) {
        for (b, &v) in bytes.iter_mut().zip(values) {
            let v = v / scale;
            *b = requant.quantize(if v.is_nan() { 0.0 } else { v });
        }
        out.iter_mut().step_by(step).zip(bytes).for_each(|(o, b)| *o = b);
    }
}

levels!(
    /// `out[i] = (byte − zero_point)·scale` of every `step`-th byte of `from`.
    dequantize,
    dequantize_plain(domain: Domain, from: Operand<'_>, step: usize, scale: f32, out: &mut [f32])
);

#[inline(always)]
fn dequantize_plain(domain: Domain, from: Operand<'_>, step: usize, scale: f32, out: &mut [f32]) {
    each_domain(domain, |decode| {
        if step == 1 {
            out.iter_mut().zip(from.bytes).for_each(|(o, &q)| *o = (decode(q) - from.zero_point) as f32 * scale);
        } else {
            out.iter_mut().zip(from.bytes.iter().step_by(step)).for_each(|(o, &q)| *o = (decode(q) - from.zero_point) as f32 * scale);
        }
    });
}

/// Tells domains apart outside of loops: compilers do better with bytes whose sign they know.
#[inline(always)]
fn each_domain(domain: Domain, mut run: impl FnMut(fn(u8) -> i32)) {
    match domain {
        Domain::U8 => run(|b| i32::from(b)),
        Domain::S8 => run(|b| i32::from(b as i8)),
    }
}

/// `out[i] = table[from[i]]`, as many bytes as `out` has; the two have the same length.
pub fn lookup(table: &[u8; 256], from: &[u8], out: &mut [u8]) {
    assert_eq!(from.len(), out.len());
    #[cfg(target_arch = "x86_64")]
    let done = x86::lookup(table, from, out);
    #[cfg(target_arch = "aarch64")]
    let done = aarch64::lookup(table, from, out);
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let done = 0;
    out[done..].iter_mut().zip(&from[done..]).for_each(|(o, &b)| *o = table[usize::from(b)]);
}

#[cfg(test)]
mod tests;
