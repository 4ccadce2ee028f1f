//! Weights for kernels that add two products in 16 bits before they widen: VPMADDUBSW saturates.
//!
//! Products of bytes 0..=255 with two neighbouring weights fit if what is positive, and what is negative, of the two sums to no
//! more than [`PAIR_LIMIT`]. What a pair has beyond that is taken away and multiplied on its own: exact, and cheap while it is rare.
//! Of normally distributed weights that reach ±127 at 3.3 standard deviations, one pair in sixty has an excess.

use super::{ConvKernel, Run};

/// 255 · 128 = 32,640.
pub const PAIR_LIMIT: i32 = 128;
/// Channels that share an entry: the i32 lanes of a register.
pub const LANES: usize = 8;
/// Bytes of an entry's weights, `[LANES][4]`.
pub const ENTRY: usize = 4 * LANES;
/// Entries among all steps of [`LANES`] channels beyond which widening every byte is cheaper.
const MOST: f64 = 0.35;

/// The excess of packed weights, by block and [`LANES`] channels of it.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Excess {
    /// Where the entries of each `[block][nr / LANES]` end.
    pub ends: Vec<i32>,
    /// Byte offset of each entry's step from the output pixel's first tap.
    pub offsets: Vec<i32>,
    /// [`ENTRY`] bytes each.
    pub weights: Vec<i8>,
}

/// The excess of one block: offsets and weights for each [`LANES`] of its channels.
pub type BlockExcess<'a> = [(&'a [i32], &'a [i8]); 2];

impl Excess {
    /// Takes it out of the blocks that [`super::pack_weights`] has packed for a `kernel` of 4 bytes a step and 2 · [`LANES`] channels;
    /// `None`, and `packed` as it was, where there is too much of it to pay, or the kernel has no use for it.
    pub fn take(kernel: &ConvKernel, packed: &mut [i8], runs: &[Run]) -> Option<Excess> {
        if !kernel.pairs || packed.is_empty() {
            return None;
        }
        let entries = packed.chunks_exact(ENTRY).filter(|e| e.chunks_exact(2).any(|pair| beyond(pair) != 0)).count();
        (entries as f64 <= MOST * (packed.len() / ENTRY) as f64).then(|| Self::take_all(kernel, packed, runs))
    }

    /// [`Excess::take`], whether it pays or not; there is at least one step.
    pub fn take_all(kernel: &ConvKernel, packed: &mut [i8], runs: &[Run]) -> Excess {
        debug_assert!(kernel.kr == 4 && kernel.nr == 2 * LANES);
        let mut excess = Excess::default();
        let offsets: Vec<usize> = runs.iter().flat_map(|r| (0..r.steps).map(|s| r.offset + s * kernel.kr)).collect();
        for block in packed.chunks_exact_mut(offsets.len() * kernel.nr * kernel.kr) {
            for half in 0..2 {
                for (step, &offset) in block.chunks_exact_mut(2 * ENTRY).zip(&offsets) {
                    let mut entry = [0i8; ENTRY];
                    for (pair, apart) in step[half * ENTRY..][..ENTRY].chunks_exact_mut(2).zip(entry.chunks_exact_mut(2)) {
                        split(pair, apart);
                    }
                    if entry != [0; ENTRY] {
                        excess.offsets.push(offset as i32);
                        excess.weights.extend(entry);
                    }
                }
                excess.ends.push(excess.offsets.len() as i32);
            }
        }
        excess
    }
}

/// What a pair has too much: −128..=126.
fn beyond(pair: &[i8]) -> i8 {
    let sum = i32::from(pair[0]) + i32::from(pair[1]);
    // Weights of unlike signs never have: each of them fits.
    (sum - sum.clamp(-PAIR_LIMIT, PAIR_LIMIT)) as i8
}

/// Moves what a pair has too much from its larger weight to `entry`.
fn split(pair: &mut [i8], entry: &mut [i8]) {
    let (much, larger) = (beyond(pair), usize::from(pair[1].unsigned_abs() > pair[0].unsigned_abs()));
    pair[larger] -= much;
    entry[larger] = much;
}

/// The entries of `block`.
pub fn of_block<'a>(ends: &[i32], offsets: &'a [i32], weights: &'a [i8], block: usize) -> BlockExcess<'a> {
    let end = |i: usize| ends[i] as usize;
    std::array::from_fn(|half| {
        let i = 2 * block + half;
        let (first, last) = (if i == 0 { 0 } else { end(i - 1) }, end(i));
        (&offsets[first..last], &weights[first * ENTRY..last * ENTRY])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pair_fits_sixteen_bits_and_nothing_is_lost() {
        for a in i8::MIN..=i8::MAX {
            for b in i8::MIN..=i8::MAX {
                let (mut pair, mut apart) = ([a, b], [0; 2]);
                split(&mut pair, &mut apart);
                for i in 0..2 {
                    assert_eq!(i32::from(pair[i]) + i32::from(apart[i]), i32::from([a, b][i]), "{a} {b}");
                }
                for part in [pair, apart] {
                    for x in [[255, 255], [255, 0], [0, 255]] {
                        let sum: i32 = (0..2).map(|i| x[i] * i32::from(part[i])).sum();
                        assert!(i16::try_from(sum).is_ok(), "{a} {b}: {part:?} by {x:?} is {sum}");
                    }
                }
            }
        }
    }
}
