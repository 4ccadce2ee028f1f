//! Depthwise convolution in plain Rust that compilers vectorise.

use super::sweep::{self, Lanes, sweep};
use super::{Block, DepthwiseKernel, QUAD};
use crate::kernels::{Domain, reference::requantize};

const CHANNELS: usize = 16;

/// Where no hand-written kernel fits.
pub const PORTABLE: DepthwiseKernel = DepthwiseKernel {
    name: "portable-depthwise-c16",
    isa: "portable",
    domain: Domain::U8,
    widths: &[CHANNELS],
    weight_bytes: 1,
    weight_index: |width, channel, tap| tap * width + channel,
    channel_index: |_, channel| channel,
    columns: true,
    supported: || true,
    run: portable,
};

/// # Safety
/// See [`DepthwiseKernel::run`].
unsafe fn portable(b: &Block<'_>) {
    // SAFETY: the contract is the same.
    unsafe { sweep!(b, Plain, 1, columns, pixels) }
}

/// # Safety
/// See [`sweep::columns`].
unsafe fn columns<L: Lanes, const K: usize, const S: usize>(b: &Block<'_>) {
    // SAFETY: the contract is the same.
    unsafe { sweep::columns::<L, 1, K, S>(b) }
}

/// # Safety
/// See [`sweep::pixels`].
unsafe fn pixels<L: Lanes>(b: &Block<'_>, size: [usize; 2], fast: bool) {
    // SAFETY: the contract is the same.
    unsafe { sweep::pixels::<L>(b, size, fast) }
}

#[derive(Clone, Copy)]
struct Plain;

impl Lanes for Plain {
    const CHANNELS: usize = CHANNELS;
    const WEIGHT_BYTES: usize = 1;
    type Column = [[u8; CHANNELS]; QUAD];
    type Sums = [i32; CHANNELS];
    type Finish = ();

    #[inline(always)]
    unsafe fn bias(bias: *const i32) -> Self::Sums {
        // SAFETY: as promised.
        unsafe { bias.cast::<Self::Sums>().read() }
    }

    #[inline(always)]
    unsafe fn column<const R: usize>(from: [*const u8; QUAD]) -> Self::Column {
        let mut column = [[0; CHANNELS]; QUAD];
        for (bytes, from) in column.iter_mut().zip(from).take(R) {
            // SAFETY: as promised.
            *bytes = unsafe { from.cast::<[u8; CHANNELS]>().read() };
        }
        column
    }

    #[inline(always)]
    unsafe fn multiply<const R: usize>(mut sums: Self::Sums, column: Self::Column, weights: *const i8) -> Self::Sums {
        for (r, bytes) in column.iter().enumerate().take(R) {
            // SAFETY: a quad holds four weights of every channel.
            let weights = unsafe { weights.add(r * CHANNELS).cast::<[i8; CHANNELS]>().read() };
            for ((s, &x), w) in sums.iter_mut().zip(bytes).zip(weights) {
                // A product fits 16 bits: 255 · −128 = −32,640.
                *s = s.wrapping_add(i32::from(i16::from(x) * i16::from(w)));
            }
        }
        sums
    }

    unsafe fn finish(_: &Block<'_>) {}

    #[inline(always)]
    unsafe fn store(_: &(), b: &Block<'_>, sums: Self::Sums, output: *mut u8) {
        for (i, (&sum, &mult)) in sums.iter().zip(b.mult).enumerate().take(b.n) {
            // SAFETY: output is writable for n bytes.
            unsafe { *output.add(i) = requantize(sum, mult, None, &b.requant) };
        }
    }

    #[inline(always)]
    unsafe fn store_any(b: &Block<'_>, sums: Self::Sums, residual: *const u8, output: *mut u8) {
        for (i, (&sum, &mult)) in sums.iter().zip(b.mult).enumerate().take(b.n) {
            // SAFETY: output is writable and residual readable for n bytes.
            unsafe {
                let residual = b.residual_params.map(|p| (i32::from(*residual.add(i)), p));
                *output.add(i) = requantize(sum, mult, residual, &b.requant);
            }
        }
    }
}
