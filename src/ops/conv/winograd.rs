//! 3×3 convolutions with step 1 by exact F(4×4, 3×3) (see [`crate::kernels::winograd`]): strips of tiles, each transformed, multiplied and
//! transformed back by one thread.
#![allow(unsafe_code)]

use super::Layer;
use crate::kernels::winograd::{
    Finish, LANES, OUT_LANES, PATCH, POINTS, Product, Sums, TILE, Values, WinogradKernel, is_exact, pack, points, transform_input,
    transform_output,
};
use crate::kernels::{self, Domain, Requant, ResidualParams};
use crate::ops::{Cost, Planner, Policy, Site, Step};
use crate::program::{AnyBlob, Blob, Buffer, Check, Checker, Context, MAX_DIM, StepOp, ensure};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// Transformed inputs of a strip of tiles: half of a common second-level cache.
const STRIP_BYTES: usize = 256 << 10;
/// Products of a batch of them: more of them reuse a panel of weights more often, but leave the first-level cache.
const BATCH_BYTES: usize = 72 << 10;

/// A 3×3 convolution with step 1.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Winograd {
    /// The matrix product.
    #[serde(with = "kernel_name")]
    pub kernel: &'static WinogradKernel,
    /// Input; its halo covers the padding.
    pub src: Buffer,
    /// Output.
    pub dst: Buffer,
    /// Residual of the output's shape.
    pub residual: Option<(Buffer, ResidualParams)>,
    /// Padding at the top and left.
    pub pad: [usize; 2],
    /// Tiles down and across.
    pub tiles: [usize; 2],
    /// Input channels, padded to whole lanes.
    pub depth: usize,
    /// Tiles that a thread transforms before it multiplies.
    pub strip: usize,
    /// Of those, how many it multiplies before it transforms back: whole heights of the product.
    pub batch: usize,
    /// Transformed: `[block][point][depth / kr][nr][kr]`.
    #[serde(skip)]
    pub weights: Blob<i16>,
    /// `[block][nr]`, zero-point correction included.
    #[serde(skip)]
    pub bias: Blob<i32>,
    /// `[block][nr]`.
    #[serde(skip)]
    pub mult: Blob<f32>,
    /// Requantization.
    pub requant: Requant,
}

/// The kernel, if the layer has its form, the result is proven exact, and it is faster or asked for.
pub(super) fn choose(layer: &Layer<'_>, p: &Planner<'_>) -> Option<&'static WinogradKernel> {
    let kernel = p.kernel.winograd.as_ref().filter(|_| !matches!(p.policy, Policy::Direct | Policy::Tract))?;
    let (window, weights) = (&layer.conv.window, &*layer.conv.weights);
    let form = window.kernel == [3, 3] && window.stride == [1, 1] && window.dilation == [1, 1] && layer.conv.groups == 1;
    if !form || weights.per_out != 9 * layer.src.channels() {
        return None;
    }
    let [h, w, out] = layer.dst.shape;
    let (tiles, depth) = (h.div_ceil(TILE) * w.div_ceil(TILE), layer.src.channels().next_multiple_of(LANES));
    let product = POINTS * depth * out.next_multiple_of(kernel.nr);
    let transforms = kernel.transform_cost[0] * depth as f64 + kernel.transform_cost[1] * out as f64;
    let bytes = 2 * product;
    let cost = tiles as f64 * (product as f64 / kernel.relative_speed + transforms) + bytes as f64 * (kernel.byte_cost)();
    let direct = (h * w * weights.data.len()) as f64;
    let pays = cost < 0.9 * direct && bytes * p.threads <= (kernel.max_weight_bytes)();
    ((pays || p.policy == Policy::Winograd) && weights.data.chunks_exact(weights.per_out).all(|filter| is_exact(p.kernel.domain, filter)))
        .then_some(kernel)
}

/// Emits the step of a layer.
pub(super) fn plan(layer: &Layer<'_>, kernel: &'static WinogradKernel, site: &Site<'_>, p: &mut Planner<'_>) -> crate::Result<()> {
    let (src, dst, weights) = (layer.src, layer.dst, &*layer.conv.weights);
    let depth = src.channels().next_multiple_of(LANES);
    let tiles = [dst.shape[0].div_ceil(TILE), dst.shape[1].div_ceil(TILE)];
    let (bias, mult) = layer.per_channel(site, p, kernel.nr, 0, weights.out)?;
    let packed = pack(kernel, &weights.data, weights.out, src.channels());
    let weight_bytes = (2 * packed.len() + 4 * bias.len() + 4 * mult.len()) as u64;
    let most = (tiles[0] * tiles[1]).next_multiple_of(kernel.mr);
    let whole_heights = |tiles: usize| (tiles / kernel.mr * kernel.mr).clamp(kernel.mr, most);
    let step = Winograd {
        kernel,
        src,
        dst,
        residual: layer.residual,
        pad: [layer.conv.window.pad[0], layer.conv.window.pad[1]],
        tiles,
        depth,
        strip: whole_heights(STRIP_BYTES / (POINTS * 2 * depth)),
        batch: whole_heights(BATCH_BYTES / (POINTS * 4 * kernel.nr)),
        weights: packed.into(),
        bias: bias.into(),
        mult: mult.into(),
        requant: layer.requant,
    };
    p.emit(site, Step::Winograd(Box::new(step)), kernel.name, Cost { macs: layer.macs, weight_bytes });
    Ok(())
}

impl Winograd {
    /// Whole tiles down and across.
    fn whole(&self) -> [usize; 2] {
        [self.dst.shape[0] / TILE, self.dst.shape[1] / TILE]
    }

    /// Row and column of tile `index`. Those cut by the right edge come first, then whole ones, then those cut by the bottom,
    /// then the corner: whatever points a tile needs, those that need it are neighbours.
    fn tile(&self, index: usize) -> [usize; 2] {
        let ([h, w], right) = (self.whole(), self.right());
        if index < right {
            [index, w]
        } else if index < right + h * w {
            [(index - right) / w, (index - right) % w]
        } else {
            // Without a bottom edge there are none left.
            [h, index - right - h * w]
        }
    }

    /// Number of tiles cut by the right edge only.
    fn right(&self) -> usize {
        let [h, w] = self.whole();
        if self.tiles[1] > w { h } else { 0 }
    }

    /// Outputs of a tile down and across.
    fn outputs(&self, tile: [usize; 2]) -> [usize; 2] {
        [0, 1].map(|side| TILE.min(self.dst.shape[side] - tile[side] * TILE))
    }

    /// Indices of the tiles that need `point`.
    fn needing(&self, point: usize) -> Range<usize> {
        let ([h, w], right) = (self.whole(), self.right());
        let skipped = |side: usize, point: usize| {
            let cut = self.dst.shape[side] % TILE;
            cut != 0 && !points(cut).contains(&point)
        };
        let (skips_bottom, skips_right) = (skipped(0, point / PATCH), skipped(1, point % PATCH));
        let start = if skips_right { right } else { 0 };
        let end = match (skips_bottom, skips_right) {
            (true, _) => right + h * w,
            // All but the corner.
            (false, true) => right + self.tiles[0] * w,
            (false, false) => self.tiles[0] * self.tiles[1],
        };
        start..end
    }
}

impl StepOp for Winograd {
    fn check(&self, c: &Checker<'_>) -> Check {
        c.filter(&self.src, &self.dst, self.residual.as_ref(), self.pad, &self.requant)?;
        let [h, w, out] = self.dst.shape;
        let (mr, nr) = (self.kernel.mr, self.kernel.nr);
        ensure(c.kernel.winograd.as_ref().is_some_and(|k| k.name == self.kernel.name), "its kernel belongs to another instruction set")?;
        let covered = self.tiles == [h.div_ceil(TILE), w.div_ceil(TILE)] && self.depth == self.src.channels().next_multiple_of(LANES);
        ensure(covered, "its tiles do not cover the output")?;
        let whole = [self.strip, self.batch].iter().all(|&n| n > 0 && n <= MAX_DIM && n.is_multiple_of(mr));
        ensure(whole, "its strips are not whole products")?;
        let blocks = out.div_ceil(nr);
        ensure(self.weights.len() == blocks * POINTS * self.depth * nr + self.kernel.read_ahead, "its weights have another size")?;
        ensure(self.bias.len() == blocks * nr && self.mult.len() == blocks * nr, "its channels have another number")
    }

    #[inline(always)]
    unsafe fn run(&self, cx: &Context<'_>) {
        // SAFETY: the contract is the same.
        unsafe { run(cx, self) }
    }

    fn dst(&self) -> Option<&Buffer> {
        Some(&self.dst)
    }

    fn blobs(&mut self) -> Vec<&mut dyn AnyBlob> {
        vec![&mut self.weights, &mut self.bias, &mut self.mult]
    }

    /// Transformed inputs and products.
    fn scratch_bytes(&self) -> usize {
        POINTS * (2 * self.strip * self.depth + 4 * self.batch * self.kernel.nr)
    }
}

/// Kernels by name, in files.
mod kernel_name {
    use super::*;
    use serde::{Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(kernel: &&'static WinogradKernel, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(kernel.name)
    }

    pub fn deserialize<'d, D: Deserializer<'d>>(d: D) -> Result<&'static WinogradKernel, D::Error> {
        let name = String::deserialize(d)?;
        let mut known = kernels::registry().iter().filter_map(|k| k.winograd.as_ref());
        known.find(|k| k.name == name).ok_or_else(|| D::Error::custom(format!("unknown kernel {name:?}")))
    }
}

/// # Safety
/// The arena holds the step's buffers and `scratch` its [`Winograd::scratch_bytes`], 64-byte aligned, this thread's alone;
/// the processor supports the kernel.
#[inline(always)]
unsafe fn run(cx: &Context<'_>, conv: &Winograd) {
    let (domain, arena, scratch, threads) = (cx.kernel.domain, cx.memory.arena, cx.memory.scratch, cx.threads);
    let (mr, nr, depth) = (conv.kernel.mr, conv.kernel.nr, conv.depth);
    let (all_tiles, all_blocks) = (conv.tiles[0] * conv.tiles[1], conv.bias.len() / nr);
    // Few tiles are not worth dividing: each thread transforms all of them, and reads its share of the weights only.
    let (tiles, blocks) = if all_tiles < 2 * mr * threads && all_blocks >= threads {
        (0..all_tiles, cx.share(all_blocks))
    } else {
        (cx.share(all_tiles), 0..all_blocks)
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
    let x: [usize; PATCH] = std::array::from_fn(|j| (tx * TILE + j + src.halo[1] - conv.pad[1]).min(columns) * src.pixel);
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
        Pixels { first: unsafe { arena.add(buffer.at(y * TILE, x * TILE) + channel) }, step: [buffer.row_stride(), buffer.pixel] }
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
