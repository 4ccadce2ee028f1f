//! The one sweep over pixels that every instruction set's [`Lanes`] fill in.
//!
//! Where outputs share input columns, a column of up to four bytes per channel is loaded and arranged once, then multiplied for
//! each of the `P` neighbouring outputs that read it.

use super::{Block, QUAD};

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

/// Calls the sweep that a block needs, of functions which an instruction set has compiled: `columns::<L, K, S>(block)` in tiles of
/// `$p` pixels, or `pixels::<L>(block, size, fast)`. Functions of their own, because one of them all takes compilers minutes.
macro_rules! sweep {
    ($block:expr, $lanes:ty, $p:literal, $columns:ident, $pixels:ident) => {{
        use $crate::kernels::depthwise::{TapOrder, sweep};
        let b: &$crate::kernels::depthwise::Block<'_> = $block;
        let fast = sweep::begin::<$lanes>(b);
        match b.order {
            TapOrder::Columns { size, step } if fast && b.size[1] >= $p => match (size, step) {
                (1, _) => $columns::<$lanes, 1, 1>(b),
                (3, 1) => $columns::<$lanes, 3, 1>(b),
                (3, _) => $columns::<$lanes, 3, 2>(b),
                (5, 1) => $columns::<$lanes, 5, 1>(b),
                (5, _) => $columns::<$lanes, 5, 2>(b),
                (_, 1) => $columns::<$lanes, 7, 1>(b),
                _ => $columns::<$lanes, 7, 2>(b),
            },
            TapOrder::Columns { size, .. } => $pixels::<$lanes>(b, [size, size], fast),
            TapOrder::Sequence => $pixels::<$lanes>(b, [b.taps.len(), 1], fast),
        }
    }};
}
pub(crate) use sweep;

/// Checks a block, and tells whether its requantization is bounded and without residual.
pub fn begin<L: Lanes>(b: &Block<'_>) -> bool {
    debug_assert_eq!(b.weights.len(), b.order.quads(b.taps.len()) * QUAD * L::CHANNELS * L::WEIGHT_BYTES);
    debug_assert!(b.width == L::CHANNELS && b.bias.len() == b.width && b.mult.len() == b.width);
    b.bounded && b.residual_params.is_none()
}

/// Where one pixel's first tap, residual and output are.
#[derive(Clone, Copy)]
struct Place {
    input: *const u8,
    residual: *const u8,
    output: *mut u8,
}

impl Place {
    #[inline(always)]
    fn new(b: &Block<'_>, y: usize, x: usize) -> Self {
        let at = |step: [usize; 2]| y * step[0] + x * step[1];
        Place {
            input: b.input.wrapping_add(at(b.input_step)),
            residual: b.residual.wrapping_add(at(b.residual_step)),
            output: b.output.wrapping_add(at(b.output_step)),
        }
    }
}

/// One pixel after the other, any filter: quads of four taps below each other in `rows` × `columns`.
///
/// # Safety
/// As [`super::DepthwiseKernel::run`]; the block is bounded and has no residual if `fast`.
#[inline(always)]
pub unsafe fn pixels<L: Lanes>(b: &Block<'_>, [rows, columns]: [usize; 2], fast: bool) {
    debug_assert_eq!(rows * columns, b.taps.len());
    let taps = b.taps.as_ptr();
    // SAFETY: taps of all pixels are readable; weights hold whole quads.
    unsafe {
        let finish = L::finish(b);
        for y in 0..b.size[0] {
            for x in 0..b.size[1] {
                let place = Place::new(b, y, x);
                let (mut sums, mut weights) = (L::bias(b.bias.as_ptr()), b.weights.as_ptr());
                for first in (0..rows).step_by(QUAD) {
                    for column in 0..columns {
                        // Weights of rows that are not there are zero.
                        let row = |i: usize| place.input.wrapping_add(*taps.wrapping_add((first + i).min(rows - 1) * columns + column));
                        sums = L::multiply::<4>(sums, L::column::<4>([row(0), row(1), row(2), row(3)]), weights);
                        weights = weights.wrapping_add(QUAD * L::CHANNELS * L::WEIGHT_BYTES);
                    }
                }
                if fast {
                    L::store(&finish, b, sums, place.output);
                } else {
                    L::store_any(b, sums, place.residual, place.output);
                }
            }
        }
    }
}

/// A square filter of `K` taps a side, outputs `S` columns apart.
///
/// # Safety
/// As [`super::DepthwiseKernel::run`]; rows have `P` pixels at least; the block is bounded and has no residual.
#[inline(always)]
pub unsafe fn columns<L: Lanes, const P: usize, const K: usize, const S: usize>(b: &Block<'_>) {
    debug_assert!(b.taps.len() == K * K && (K == 1 || b.input_step[1] == S * b.taps[1]));
    // SAFETY: tiles lie among the block's pixels.
    unsafe {
        let finish = L::finish(b);
        for y in 0..b.size[0] {
            for x in (0..b.size[1]).step_by(P) {
                // The last tile of a row overlaps the one before it.
                tile::<L, P, K, S>(b, &finish, Place::new(b, y, x.min(b.size[1] - P)));
            }
        }
    }
}

/// `P` outputs from `place` on.
///
/// # Safety
/// As [`columns`]; the outputs are there.
#[inline(always)]
unsafe fn tile<L: Lanes, const P: usize, const K: usize, const S: usize>(b: &Block<'_>, finish: &L::Finish, place: Place) {
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
                    let weights = $weights.wrapping_add(quad * QUAD * L::CHANNELS * L::WEIGHT_BYTES);
                    sums[$p] = L::multiply::<$rows>(sums[$p], $column, weights);
                }
            )*};
        }
        macro_rules! group {
            ($first:literal, $rows:literal, $($i:literal)*) => {
                // Of one row, too: the others repeat it.
                #[allow(clippy::modulo_one)]
                let row = |r: usize| place.input.wrapping_add(*taps.wrapping_add(($first + r % $rows) * K));
                let rows = [row(0), row(1), row(2), row(3)];
                $(
                    if $i < (P - 1) * S + K {
                        let at = $i * width;
                        let column = L::column::<$rows>(rows.map(|r| r.wrapping_add(at)));
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
                    L::store(finish, b, sums[$p], place.output.wrapping_add($p * b.output_step[1]));
                }
            )*};
        }
        stores!(0 1 2 3);
    }
}

/// The same pointer, of which compilers do not know that. They would load a weight once for all outputs that need it, run out of
/// registers, and spill it, where multiplications take it from memory at no cost.
#[inline(always)]
#[allow(clippy::pointers_in_nomem_asm_block)] // No memory is read here: the pointer is only hidden.
fn opaque(mut weights: *const i8) -> *const i8 {
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    // SAFETY: there is no instruction.
    unsafe {
        std::arch::asm!("/* {0} */", inout(reg) weights, options(nomem, nostack, preserves_flags));
    }
    weights
}
