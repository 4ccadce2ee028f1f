//! Runs a Winograd convolution: strips of tiles, each transformed, multiplied and transformed back by one thread.

use super::steps::share;
use crate::kernels::Domain;
use crate::kernels::winograd::{Finish, LANES, OUT_LANES, PATCH, POINTS, Sums, TILE, Values, transform_input, transform_output};
use crate::plan::Winograd;

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
    let v = scratch.cast::<i16>();
    // SAFETY (all blocks below): `v` takes a strip of every point, `m` a batch of one block's products of every point; both
    // lie in the scratch.
    let m = unsafe { v.add(POINTS * conv.strip * depth) }.cast::<i32>();
    for first in tiles.clone().step_by(conv.strip) {
        let strip = first..(first + conv.strip).min(tiles.end);
        for (row, index) in strip.clone().enumerate() {
            unsafe { load_tile(domain, conv, arena, conv.tile(index), v.add(row * depth)) };
        }
        let panel = depth * nr;
        for block in blocks.clone() {
            let weights = conv.weights[block * POINTS * panel..][..POINTS * panel].as_ptr();
            for start in (0..strip.len()).step_by(conv.batch) {
                let batch = start..(start + conv.batch).min(strip.len());
                for point in 0..POINTS {
                    let needing = conv.needing(point);
                    let rows = batch.start.max(needing.start.saturating_sub(first))..batch.end.min(needing.end.saturating_sub(first));
                    for row in rows.clone().step_by(mr) {
                        let v = unsafe { v.add((point * conv.strip + row) * depth) };
                        let m = unsafe { m.add((point * conv.batch + row - start) * nr) };
                        unsafe { (conv.kernel.run)(v, weights.add(point * panel), m, depth, mr.min(rows.end - row)) };
                    }
                }
                for row in batch.clone() {
                    for channel in (0..nr).step_by(OUT_LANES) {
                        let product = |point: usize| unsafe { Sums::load(m.add((point * conv.batch + row - start) * nr + channel)) };
                        unsafe { store_tile(domain, conv, arena, conv.tile(first + row), block * nr + channel, product) };
                    }
                }
            }
        }
    }
}

/// Transforms one input tile into row 0 of every point of `v`.
///
/// # Safety
/// As [`run`]; `v` has a row to write at every point.
#[inline(always)]
unsafe fn load_tile(domain: Domain, conv: &Winograd, arena: *const u8, [ty, tx]: [usize; 2], v: *mut i16) {
    let (src, point_stride) = (&conv.src, conv.strip * conv.depth);
    // A partial tile at the bottom or right reads pixels that only outputs outside the picture would use: any will do.
    let rows = src.rows() - 1;
    let columns = src.shape[1] + src.halo[1] + src.halo[3] - 1;
    let y: [usize; PATCH] = std::array::from_fn(|i| (ty * TILE + i + src.halo[0] - conv.pad[0]).min(rows));
    let x: [usize; PATCH] = std::array::from_fn(|j| (tx * TILE + j + src.halo[1] - conv.pad[1]).min(columns));
    for channel in (0..src.shape[2]).step_by(LANES) {
        let pixel = |i: usize, j: usize| src.base + y[i] * src.row_stride() + x[j] * src.shape[2] + channel;
        // SAFETY: pixels lie in the slot; the last channels may read up to LANES − 1 bytes of its slack, or of the next pixel,
        // which meet zero weights.
        let value = |i: usize, j: usize| unsafe { Values::widen(domain, arena.add(pixel(i, j))) };
        transform_input(conv.outputs([ty, tx]), value, |point, values| unsafe { values.store(v.add(point * point_stride + channel)) });
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
    let [first_y, first_x] = tile.map(|t| t * TILE);
    let lanes = channel..channel + OUT_LANES;
    // SAFETY: `bias` and `mult` are padded to whole blocks.
    let finish =
        unsafe { Finish::new(conv.bias[lanes.clone()].as_ptr(), conv.mult[lanes].as_ptr(), conv.requant, conv.residual.map(|(_, p)| p)) };
    // Plain loops: closures would not be compiled for this function's instruction set.
    let sums = transform_output(outputs, product);
    for i in 0..outputs[0] {
        for j in 0..outputs[1] {
            let (y, x) = (first_y + i, first_x + j);
            let mut bytes = [0u8; OUT_LANES];
            // SAFETY: `n` channels of a pixel of the picture; the residual has the output's shape.
            unsafe {
                if let Some((residual, _)) = &conv.residual {
                    copy(arena.add(residual.at(y, x) + channel), bytes.as_mut_ptr(), n);
                }
                copy(finish.pixel(domain, sums[i][j], &bytes).as_ptr(), arena.add(dst.at(y, x) + channel), n);
            }
        }
    }
}

/// Copies up to [`OUT_LANES`] bytes, all of them in one move.
///
/// # Safety
/// `from` is readable and `to` writable for `n` bytes.
#[inline(always)]
unsafe fn copy(from: *const u8, to: *mut u8, n: usize) {
    // SAFETY: as promised.
    unsafe {
        if n == OUT_LANES {
            to.cast::<[u8; OUT_LANES]>().write_unaligned(from.cast::<[u8; OUT_LANES]>().read_unaligned());
        } else {
            std::ptr::copy_nonoverlapping(from, to, n);
        }
    }
}
