//! The one sweep over pixels that every instruction set's [`Lanes`] fill in.
//!
//! Where outputs share input columns, a column of up to four bytes per channel is loaded and arranged once, then multiplied for
//! each of the `P` neighbouring outputs that read it.

use super::{Block, QUAD, TapOrder};

/// A block of channels in registers.
///
/// # Safety
/// All methods need the instruction set, and what their docs say of pointers.
pub trait Lanes: Copy {
    /// Channels.
    const CHANNELS: usize;
    /// Bytes of a weight.
    const WEIGHT_BYTES: usize;
    /// Up to four bytes per channel, arranged for multiplication.
    type Column: Copy;
    /// An i32 per channel.
    type Sums: Copy;
    /// Parameters of bounded requantization, in registers.
    type Finish: Copy;

    /// # Safety
    /// `bias` holds [`Self::CHANNELS`] values.
    unsafe fn bias(bias: *const i32) -> Self::Sums;

    /// Arranges `R` bytes per channel. What stands in place of the others is multiplied by zero weights.
    ///
    /// # Safety
    /// The first `R` pointers are readable for [`Self::CHANNELS`] bytes.
    unsafe fn column<const R: usize>(from: [*const u8; QUAD]) -> Self::Column;

    /// Adds the products of a column's `R` bytes.
    ///
    /// # Safety
    /// `weights` holds a quad.
    unsafe fn multiply<const R: usize>(sums: Self::Sums, column: Self::Column, weights: *const i8) -> Self::Sums;

    /// Reads the parameters.
    ///
    /// # Safety
    /// There are [`Self::CHANNELS`] multipliers.
    unsafe fn finish(block: &Block<'_>) -> Self::Finish;

    /// Requantizes a pixel of a block that is [`Block::bounded`] and has no residual, and stores its `n` channels.
    ///
    /// # Safety
    /// `finish` comes from `block`, whose output pixel this is.
    unsafe fn store(finish: &Self::Finish, block: &Block<'_>, sums: Self::Sums, output: *mut u8);

    /// Requantizes any pixel, and stores its `n` channels.
    ///
    /// # Safety
    /// Residual, if there is one, and output are pixels of `block`.
    unsafe fn store_any(block: &Block<'_>, sums: Self::Sums, residual: *const u8, output: *mut u8);
}

/// [`super::DepthwiseKernel::run`] by `L`, in tiles of `P` output pixels.
///
/// # Safety
/// As there; `P` is 1 to 4.
#[inline(always)]
pub unsafe fn sweep<L: Lanes, const P: usize>(b: &Block<'_>) {
    debug_assert_eq!(b.weights.len(), b.order.quads(b.taps.len()) * QUAD * L::CHANNELS * L::WEIGHT_BYTES);
    debug_assert!(b.width == L::CHANNELS && b.bias.len() == b.width && b.mult.len() == b.width);
    // SAFETY: the contract is the same.
    unsafe {
        if b.bounded && b.residual_params.is_none() {
            ordered::<L, P, true>(b);
        } else {
            // Hardly any layer comes here.
            ordered::<L, 1, false>(b);
        }
    }
}

/// # Safety
/// As [`sweep`]; the block is bounded and has no residual if `BOUNDED`.
#[inline(always)]
unsafe fn ordered<L: Lanes, const P: usize, const BOUNDED: bool>(b: &Block<'_>) {
    // SAFETY: the contract is the same.
    unsafe {
        match b.order {
            TapOrder::Sequence => sequence::<L, BOUNDED>(b),
            TapOrder::Columns { size: 1, .. } => columns::<L, P, 1, 1, BOUNDED>(b),
            TapOrder::Columns { size: 3, step: 1 } => columns::<L, P, 3, 1, BOUNDED>(b),
            TapOrder::Columns { size: 3, .. } => columns::<L, P, 3, 2, BOUNDED>(b),
            TapOrder::Columns { size: 5, step: 1 } => columns::<L, P, 5, 1, BOUNDED>(b),
            TapOrder::Columns { size: 5, .. } => columns::<L, P, 5, 2, BOUNDED>(b),
            TapOrder::Columns { step: 1, .. } => columns::<L, P, 7, 1, BOUNDED>(b),
            TapOrder::Columns { .. } => columns::<L, P, 7, 2, BOUNDED>(b),
        }
    }
}

/// Where one pixel's first tap, residual and output are.
#[derive(Clone, Copy)]
struct Place {
    input: *const u8,
    residual: *const u8,
    output: *mut u8,
}

impl Place {
    /// # Safety
    /// Pixel (y, x) is one of the block's.
    #[inline(always)]
    unsafe fn new(b: &Block<'_>, y: usize, x: usize) -> Self {
        let at = |step: [usize; 2]| y * step[0] + x * step[1];
        // SAFETY: the pixel is there; a residual perhaps not.
        unsafe {
            Place {
                input: b.input.add(at(b.input_step)),
                residual: b.residual.wrapping_add(at(b.residual_step)),
                output: b.output.add(at(b.output_step)),
            }
        }
    }

    /// Stores the pixel `p` columns to the right.
    ///
    /// # Safety
    /// As [`ordered`]; the pixel is one of the block's.
    #[inline(always)]
    unsafe fn store<L: Lanes, const BOUNDED: bool>(&self, b: &Block<'_>, finish: &L::Finish, p: usize, sums: L::Sums) {
        // SAFETY: the pixel is there, and its residual if the block has one.
        unsafe {
            let output = self.output.add(p * b.output_step[1]);
            if BOUNDED {
                L::store(finish, b, sums, output);
            } else {
                L::store_any(b, sums, self.residual.wrapping_add(p * b.residual_step[1]), output);
            }
        }
    }
}

/// One pixel after the other, any filter.
///
/// # Safety
/// As [`ordered`].
#[inline(always)]
unsafe fn sequence<L: Lanes, const BOUNDED: bool>(b: &Block<'_>) {
    let (taps, last) = (b.taps.as_ptr(), b.taps.len() - 1);
    // SAFETY: taps of all pixels are readable; weights hold whole quads.
    unsafe {
        let finish = L::finish(b);
        for y in 0..b.size[0] {
            for x in 0..b.size[1] {
                let place = Place::new(b, y, x);
                let (mut sums, mut weights) = (L::bias(b.bias.as_ptr()), b.weights.as_ptr());
                for first in (0..=last).step_by(QUAD) {
                    let from = std::array::from_fn(|i| place.input.add(*taps.add((first + i).min(last))));
                    sums = L::multiply::<4>(sums, L::column::<4>(from), weights);
                    weights = weights.add(QUAD * L::CHANNELS * L::WEIGHT_BYTES);
                }
                place.store::<L, BOUNDED>(b, &finish, 0, sums);
            }
        }
    }
}

/// A square filter of `K` taps a side, outputs `S` columns apart.
///
/// # Safety
/// As [`ordered`].
#[inline(always)]
unsafe fn columns<L: Lanes, const P: usize, const K: usize, const S: usize, const BOUNDED: bool>(b: &Block<'_>) {
    debug_assert!(b.taps.len() == K * K && (K == 1 || b.input_step[1] == S * b.taps[1]));
    // SAFETY: tiles lie among the block's pixels.
    unsafe {
        let finish = L::finish(b);
        for y in 0..b.size[0] {
            let mut x = 0;
            while x < b.size[1] {
                if b.size[1] < P {
                    tile::<L, 1, K, S, BOUNDED>(b, &finish, Place::new(b, y, x));
                    x += 1;
                } else {
                    // The last tile of a row overlaps the one before it.
                    tile::<L, P, K, S, BOUNDED>(b, &finish, Place::new(b, y, x.min(b.size[1] - P)));
                    x += P;
                }
            }
        }
    }
}

/// `P` outputs from `place` on.
///
/// # Safety
/// As [`ordered`]; the outputs are there.
#[inline(always)]
unsafe fn tile<L: Lanes, const P: usize, const K: usize, const S: usize, const BOUNDED: bool>(
    b: &Block<'_>,
    finish: &L::Finish,
    place: Place,
) {
    const { assert!(P <= 4 && K <= 7 && S <= 2) };
    let (width, taps) = (b.input_step[1] / S, b.taps.as_ptr());
    // SAFETY: all columns are taps of an output; weights hold [group][column] quads.
    unsafe {
        let mut sums = [L::bias(b.bias.as_ptr()); P];
        // Macros, not loops: sums that are indexed with variables would live in memory.
        macro_rules! products {
            ($first:literal, $rows:literal, $i:expr, $column:expr, $weights:expr, $($p:literal)*) => {$(
                if $p < P && $i >= $p * S && $i - $p * S < K {
                    let quad = $first / QUAD * K + $i - $p * S;
                    let weights = $weights.add(quad * QUAD * L::CHANNELS * L::WEIGHT_BYTES);
                    sums[$p] = L::multiply::<$rows>(sums[$p], $column, weights);
                }
            )*};
        }
        macro_rules! group {
            ($first:literal, $rows:literal, $($i:literal)*) => {
                let row = |r: usize| place.input.add(*taps.add(($first + r % $rows) * K));
                let rows = [row(0), row(1), row(2), row(3)];
                $(
                    if $i < (P - 1) * S + K {
                        let at = $i * width;
                        let column = L::column::<$rows>([rows[0].add(at), rows[1].add(at), rows[2].add(at), rows[3].add(at)]);
                        let weights = opaque(b.weights.as_ptr());
                        products!($first, $rows, $i, column, weights, 0 1 2 3);
                    }
                )*
            };
        }
        match K {
            1 => {
                group!(0, 1, 0 1 2 3);
            }
            3 => {
                group!(0, 3, 0 1 2 3 4 5 6 7 8);
            }
            5 => {
                group!(0, 4, 0 1 2 3 4 5 6 7 8 9 10);
                group!(4, 1, 0 1 2 3 4 5 6 7 8 9 10);
            }
            _ => {
                group!(0, 4, 0 1 2 3 4 5 6 7 8 9 10 11 12);
                group!(4, 3, 0 1 2 3 4 5 6 7 8 9 10 11 12);
            }
        }
        macro_rules! stores {
            ($($p:literal)*) => {$(
                if $p < P {
                    place.store::<L, BOUNDED>(b, finish, $p, sums[$p]);
                }
            )*};
        }
        stores!(0 1 2 3);
    }
}

/// The same pointer, of which compilers do not know that. They would load a weight once for all outputs that need it, run out of
/// registers, and spill it, where multiplications take it from memory at no cost.
#[inline(always)]
fn opaque(mut weights: *const i8) -> *const i8 {
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    // SAFETY: there is no instruction.
    unsafe {
        std::arch::asm!("/* {0} */", inout(reg) weights, options(nomem, nostack, preserves_flags));
    }
    weights
}
