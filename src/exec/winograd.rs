//! Runs a Winograd convolution: strips of tiles, each transformed, multiplied and transformed back by one thread.

use super::steps::share;
use crate::kernels::Domain;
use crate::kernels::winograd::{Finish, LANES, OUT_LANES, PATCH, POINTS, Product, Sums, TILE, Values, transform_input, transform_output};
use crate::plan::{Buffer, Winograd};

/// # Safety
/// The arena holds the step's buffers and `scratch` its [`Winograd::scratch_bytes`], 64-byte aligned, this thread's alone;
/// the processor supports the kernel.
#[inline(always)]
pub unsafe fn run(domain: Domain, conv: &Winograd, arena: *mut u8, scratch: *mut u8, thread: usize, threads: usize) {
    let (mr, nr, depth) = (conv.kernel.mr, conv.kernel.nr, conv.depth);
    let (all_tiles, all_blocks) = (conv.tiles[0] * conv.tiles[1], conv.bias.len() / nr);
    // Few tiles are not worth dividing: each thread transforms all of them, and reads its share of the weights only.
    let (tiles, blocks) = if all_tiles < 2 * mr * threads && all_blocks >= threads {
        (0..all_tiles, share(all_blocks, thread, threads))
    } else {
        (share(all_tiles, thread, threads), 0..all_blocks)
    };
    let [row_stride, _] = conv.kernel.strides(depth);
    let v = scratch.cast::<i16>();
    // SAFETY (all blocks below): `v` takes a strip of every point, `m` a batch of one block's products of every point; both
    // lie in the scratch.
    let m = unsafe { v.add(POINTS * conv.strip * depth) }.cast::<i32>();
    for first in tiles.clone().step_by(conv.strip) {
        let strip = first..(first + conv.strip).min(tiles.end);
        for (row, index) in strip.clone().enumerate() {
            unsafe { load_tile(domain, conv, arena, conv.tile(index), v.add(row / mr * POINTS * mr * depth + row % mr * row_stride)) };
        }
        let panel = depth * nr;
        for block in blocks.clone() {
            let weights = unsafe { conv.weights.as_ptr().add(block * POINTS * panel) };
            for start in (0..strip.len()).step_by(conv.batch) {
                let batch = start..(start + conv.batch).min(strip.len());
                for point in 0..POINTS {
                    let needing = conv.needing(point);
                    let rows = batch.start.max(needing.start.saturating_sub(first))..batch.end.min(needing.end.saturating_sub(first));
                    if rows.is_empty() {
                        continue;
                    }
                    let (group, offset) = (rows.start / mr, rows.start % mr);
                    unsafe {
                        (conv.kernel.run)(Product {
                            v: v.add((group * POINTS + point) * mr * depth),
                            group: POINTS * mr * depth,
                            offset,
                            rows: rows.len(),
                            u: weights.add(point * panel),
                            m: m.add((point * conv.batch + rows.start - start) * nr),
                            depth,
                        });
                    }
                }
                let point_stride = conv.batch * nr;
                for row in batch.clone() {
                    let tile = conv.tile(first + row);
                    for channel in (0..nr).step_by(OUT_LANES) {
                        let sums = unsafe { m.add((row - start) * nr + channel) };
                        let product = |point: usize| unsafe { Sums::load(sums.add(point * point_stride)) };
                        unsafe { store_tile(domain, conv, arena, tile, block * nr + channel, product) };
                    }
                }
            }
        }
    }
}

/// Transforms one input tile into one row of every point of `v`, which holds groups of `mr` tiles: `[group][point][mr][depth]`, or as
/// [`WinogradKernel::interleaved`](crate::kernels::winograd::WinogradKernel::interleaved) says.
///
/// # Safety
/// As [`run`]; `v` is that row of the first point.
#[inline(always)]
unsafe fn load_tile(domain: Domain, conv: &Winograd, arena: *const u8, [ty, tx]: [usize; 2], v: *mut i16) {
    let (src, point_stride) = (&conv.src, conv.kernel.mr * conv.depth);
    let [_, lanes_stride] = conv.kernel.strides(conv.depth);
    // A partial tile at the bottom or right reads pixels that only outputs outside the picture would use: any will do.
    let rows = src.rows() - 1;
    let columns = src.shape[1] + src.halo[1] + src.halo[3] - 1;
    let y: [usize; PATCH] = std::array::from_fn(|i| src.base + (ty * TILE + i + src.halo[0] - conv.pad[0]).min(rows) * src.row_stride());
    let x: [usize; PATCH] = std::array::from_fn(|j| (tx * TILE + j + src.halo[1] - conv.pad[1]).min(columns) * src.shape[2]);
    let outputs = conv.outputs([ty, tx]);
    for channel in (0..src.shape[2]).step_by(LANES) {
        // SAFETY: pixels lie in the slot; the last channels may read up to LANES − 1 bytes of its slack, or of the next pixel,
        // which meet zero weights.
        let byte = |i: usize, j: usize| unsafe { arena.add(y[i] + x[j] + channel) };
        let store = |point: usize, values: Values| unsafe { values.store(v.add(point * point_stride + channel / LANES * lanes_stride)) };
        // Decided here, not for every byte.
        match domain {
            Domain::U8 => transform_input(outputs, |i, j| unsafe { Values::widen(Domain::U8, byte(i, j)) }, store),
            Domain::S8 => transform_input(outputs, |i, j| unsafe { Values::widen(Domain::S8, byte(i, j)) }, store),
        }
    }
}

/// Transforms one tile of [`OUT_LANES`] channels back, requantizes and stores it.
///
/// # Safety
/// As [`run`].
#[inline(always)]
unsafe fn store_tile(domain: Domain, conv: &Winograd, arena: *mut u8, tile: [usize; 2], channel: usize, product: impl Fn(usize) -> Sums) {
    let (dst, channels) = (&conv.dst, conv.dst.shape[2]);
    if channel >= channels {
        return;
    }
    let n = OUT_LANES.min(channels - channel);
    let outputs = conv.outputs(tile);
    let lanes = channel..channel + OUT_LANES;
    // SAFETY: `bias` and `mult` are padded to whole blocks.
    let finish =
        unsafe { Finish::new(conv.bias[lanes.clone()].as_ptr(), conv.mult[lanes].as_ptr(), conv.requant, conv.residual.map(|(_, p)| p)) };
    let sums = transform_output(outputs, product);
    // SAFETY: pixels of the picture, of which `n` channels are there; the residual has the output's shape.
    unsafe {
        let out = Pixels::new(dst, tile, channel, arena);
        // Most tiles are whole: copies without branches are theirs.
        let whole = n == OUT_LANES && outputs == [TILE; 2];
        match conv.residual.as_ref().map(|(residual, _)| Pixels::new(residual, tile, channel, arena)) {
            None if whole => store_whole::<false>(domain, &finish, &sums, out, out),
            None => store_part::<false>(domain, &finish, &sums, out, out, outputs, n),
            Some(residual) if whole => store_whole::<true>(domain, &finish, &sums, residual, out),
            Some(residual) => store_part::<true>(domain, &finish, &sums, residual, out, outputs, n),
        }
    }
}

/// Where a tile's pixels lie: the first one, and the way to the next one down and across, in bytes.
#[derive(Clone, Copy)]
struct Pixels {
    first: *mut u8,
    step: [usize; 2],
}

impl Pixels {
    /// # Safety
    /// The buffer lies in the arena, and the tile and channel in the buffer.
    #[inline(always)]
    unsafe fn new(buffer: &Buffer, [y, x]: [usize; 2], channel: usize, arena: *mut u8) -> Self {
        // SAFETY: as promised.
        Pixels { first: unsafe { arena.add(buffer.at(y * TILE, x * TILE) + channel) }, step: [buffer.row_stride(), buffer.shape[2]] }
    }

    #[inline(always)]
    fn at(&self, y: usize, x: usize) -> *mut u8 {
        self.first.wrapping_add(y * self.step[0] + x * self.step[1])
    }

    #[inline(always)]
    fn row(&self, y: usize) -> [*mut u8; TILE] {
        [self.at(y, 0), self.at(y, 1), self.at(y, 2), self.at(y, 3)]
    }
}

/// Requantizes and stores a tile; adds the residual if `RESIDUAL`.
///
/// # Safety
/// Its pixels are there, and no other thread touches those of `out`.
#[inline(always)]
unsafe fn store_whole<const RESIDUAL: bool>(domain: Domain, finish: &Finish, sums: &[[Sums; TILE]; TILE], residual: Pixels, out: Pixels) {
    for (y, sums) in sums.iter().enumerate() {
        // SAFETY: as promised.
        unsafe { finish.pixels::<RESIDUAL, TILE>(domain, sums, residual.row(y).map(|p| p.cast_const()), out.row(y)) };
    }
}

/// As [`store_whole`], for the first `n` channels of a tile of `outputs` down and across.
///
/// # Safety
/// As there, for those pixels and channels.
#[inline(always)]
unsafe fn store_part<const RESIDUAL: bool>(
    domain: Domain,
    finish: &Finish,
    sums: &[[Sums; TILE]; TILE],
    residual: Pixels,
    out: Pixels,
    outputs: [usize; 2],
    n: usize,
) {
    // Plain loops: closures would not be compiled for this function's instruction set.
    for i in 0..outputs[0] {
        for j in 0..outputs[1] {
            // SAFETY: as promised; channels beyond the `n`th pass through copies.
            unsafe {
                let (residual, out) = (residual.at(i, j), out.at(i, j));
                if n == OUT_LANES {
                    finish.pixels::<RESIDUAL, 1>(domain, &[sums[i][j]], [residual], [out]);
                } else {
                    let (mut before, mut after) = ([0u8; OUT_LANES], [0u8; OUT_LANES]);
                    if RESIDUAL {
                        std::ptr::copy_nonoverlapping(residual, before.as_mut_ptr(), n);
                    }
                    finish.pixels::<RESIDUAL, 1>(domain, &[sums[i][j]], [before.as_ptr()], [after.as_mut_ptr()]);
                    std::ptr::copy_nonoverlapping(after.as_ptr(), out, n);
                }
            }
        }
    }
}
