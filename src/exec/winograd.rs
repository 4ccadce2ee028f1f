//! Runs a Winograd convolution: strips of tiles, each transformed, multiplied and transformed back by one thread.

use super::steps::share;
use crate::kernels::Domain;
use crate::kernels::winograd::{LANES, OUT_LANES, PATCH, POINTS, TILE, transform_input, transform_output};
use crate::plan::Winograd;
use std::ops::Range;

/// # Safety
/// The arena holds the step's buffers and `scratch` its [`Winograd::scratch_bytes`], 64-byte aligned, this thread's alone;
/// the processor supports the kernel.
#[inline(always)]
pub unsafe fn run(domain: Domain, conv: &Winograd, arena: *mut u8, scratch: *mut u8, thread: usize, threads: usize) {
    let tiles = share(conv.tiles[0] * conv.tiles[1], thread, threads);
    let (mr, nr, depth) = (conv.kernel.mr, conv.kernel.nr, conv.depth);
    let v = scratch.cast::<i16>();
    // SAFETY (all blocks below): `v` takes a strip of every point, `m` one block of every point; both lie in the scratch.
    let m = unsafe { v.add(POINTS * conv.strip * depth) }.cast::<i32>();
    for first in tiles.clone().step_by(conv.strip) {
        let strip = first..(first + conv.strip).min(tiles.end);
        for (row, tile) in strip.clone().enumerate() {
            unsafe { load_tile(domain, conv, arena, tile, v.add(row * depth)) };
        }
        let panel = depth * nr;
        for (block, weights) in conv.weights.chunks_exact(POINTS * panel).enumerate() {
            for row in (0..strip.len()).step_by(mr) {
                let rows = mr.min(strip.len() - row);
                for point in 0..POINTS {
                    let v = unsafe { v.add((point * conv.strip + row) * depth) };
                    unsafe { (conv.kernel.run)(v, weights.as_ptr().add(point * panel), m.add(point * mr * nr), depth, rows) };
                }
                for i in 0..rows {
                    for channel in (0..nr).step_by(OUT_LANES) {
                        let product = |point: usize| unsafe { &*m.add((point * mr + i) * nr + channel).cast::<[i32; OUT_LANES]>() };
                        unsafe { store_tile(domain, conv, arena, first + row + i, block * nr + channel, product) };
                    }
                }
            }
        }
    }
}

/// The bytes of [`LANES`] channels as numbers.
#[inline(always)]
fn widen(domain: Domain, bytes: &[u8; LANES], out: &mut [i16; LANES]) {
    for i in 0..LANES {
        out[i] = match domain {
            Domain::U8 => i16::from(bytes[i]),
            Domain::S8 => i16::from(bytes[i] as i8),
        };
    }
}

/// Transforms one input tile into row 0 of every point of `v`.
///
/// # Safety
/// As [`run`]; `v` has a row to write at every point.
#[inline(always)]
unsafe fn load_tile(domain: Domain, conv: &Winograd, arena: *const u8, tile: usize, v: *mut i16) {
    let (src, point_stride) = (&conv.src, conv.strip * conv.depth);
    let (ty, tx) = (tile / conv.tiles[1], tile % conv.tiles[1]);
    // A partial tile at the bottom or right reads pixels that only outputs outside the picture would use: any will do.
    let rows = src.rows() - 1;
    let columns = src.shape[1] + src.halo[1] + src.halo[3] - 1;
    let y: [usize; PATCH] = std::array::from_fn(|i| (ty * TILE + i + src.halo[0] - conv.pad[0]).min(rows));
    let x: [usize; PATCH] = std::array::from_fn(|j| (tx * TILE + j + src.halo[1] - conv.pad[1]).min(columns));
    for channel in (0..src.shape[2]).step_by(LANES) {
        let pixel = |i: usize, j: usize| src.base + y[i] * src.row_stride() + x[j] * src.shape[2] + channel;
        // Plain loops: closures in `from_fn` would not be compiled for this function's instruction set.
        let mut d = [[[0; LANES]; PATCH]; PATCH];
        for i in 0..PATCH {
            for j in 0..PATCH {
                // SAFETY: pixels lie in the slot; the last channels may read up to LANES − 1 bytes of its slack, or of the
                // next pixel, which meet zero weights.
                widen(domain, unsafe { &*arena.add(pixel(i, j)).cast() }, &mut d[i][j]);
            }
        }
        transform_input(&d, |point, lanes| unsafe { v.add(point * point_stride + channel).cast::<[i16; LANES]>().write_unaligned(*lanes) });
    }
}

/// Transforms one tile of [`OUT_LANES`] channels back, requantizes and stores it.
///
/// # Safety
/// As [`run`].
#[inline(always)]
unsafe fn store_tile<'a>(
    domain: Domain,
    conv: &Winograd,
    arena: *mut u8,
    tile: usize,
    channel: usize,
    product: impl Fn(usize) -> &'a [i32; OUT_LANES],
) {
    let (dst, channels) = (&conv.dst, conv.dst.shape[2]);
    if channel >= channels {
        return;
    }
    let n = OUT_LANES.min(channels - channel);
    let inside = |tile: usize, size: usize| -> Range<usize> { tile * TILE..(tile * TILE + TILE).min(size) };
    let (ys, xs) = (inside(tile / conv.tiles[1], dst.shape[0]), inside(tile % conv.tiles[1], dst.shape[1]));
    let mut sums = [[[0; OUT_LANES]; TILE]; TILE];
    transform_output(product, &mut sums);
    let lanes = channel..channel + OUT_LANES;
    let (Ok(bias), Ok(mult)) = (<&[i32; OUT_LANES]>::try_from(&conv.bias[lanes.clone()]), <&[f32; OUT_LANES]>::try_from(&conv.mult[lanes]))
    else {
        return;
    };
    for y in ys.clone() {
        for x in xs.clone() {
            let sums = &sums[y - ys.start][x - xs.start];
            let mut real = [0f32; OUT_LANES];
            for i in 0..OUT_LANES {
                real[i] = sums[i].wrapping_add(bias[i]) as f32 * mult[i];
            }
            // SAFETY: `n` channels of a pixel of the picture; the residual has the output's shape.
            unsafe {
                if let Some((residual, params)) = &conv.residual {
                    let mut bytes = [0u8; OUT_LANES];
                    copy(arena.add(residual.at(y, x) + channel), bytes.as_mut_ptr(), n);
                    for i in 0..OUT_LANES {
                        real[i] += (domain.decode(bytes[i]) - params.zero_point) as f32 * params.mult;
                    }
                }
                let mut bytes = [0u8; OUT_LANES];
                for i in 0..OUT_LANES {
                    bytes[i] = conv.requant.quantize(real[i]);
                }
                copy(bytes.as_ptr(), arena.add(dst.at(y, x) + channel), n);
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
