//! What one thread does of one step.

use super::{Memory, Pixels, winograd};
use crate::graph::Window;
#[cfg(target_arch = "x86_64")]
use crate::kernels::SimdLevel;
use crate::kernels::{ConvKernel, Domain, MAX_MR, Requant, TileArgs};
use crate::plan::{Buffer, Conv, GATHER_STEP, Gather, GemmOutput, PooledConv, Step};
use std::ops::Range;

/// The share of `total` units that `thread` takes.
pub fn share(total: usize, thread: usize, threads: usize) -> Range<usize> {
    total * thread / threads..total * (thread + 1) / threads
}

/// # Safety
/// The step belongs to a program whose arena, sources and targets `memory` holds, and all threads run the same step;
/// the processor supports `kernel`.
pub unsafe fn run(kernel: &ConvKernel, step: &Step, memory: &Memory, thread: usize, threads: usize) {
    // SAFETY: a supported kernel's level is supported too.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        match kernel.level {
            SimdLevel::Avx512 => return run_avx512(kernel, step, memory, thread, threads),
            SimdLevel::Avx2 => return run_avx2(kernel, step, memory, thread, threads),
            SimdLevel::Baseline => {}
        }
        run_plain(kernel, step, memory, thread, threads)
    }
}

/// [`run_plain`], compiled for AVX-512.
///
/// # Safety
/// As [`run`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
unsafe fn run_avx512(kernel: &ConvKernel, step: &Step, memory: &Memory, thread: usize, threads: usize) {
    // SAFETY: the contract is the same.
    unsafe { run_plain(kernel, step, memory, thread, threads) }
}

/// [`run_plain`], compiled for AVX2.
///
/// # Safety
/// As [`run`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn run_avx2(kernel: &ConvKernel, step: &Step, memory: &Memory, thread: usize, threads: usize) {
    // SAFETY: the contract is the same.
    unsafe { run_plain(kernel, step, memory, thread, threads) }
}

/// # Safety
/// As [`run`].
#[inline(always)]
unsafe fn run_plain(kernel: &ConvKernel, step: &Step, memory: &Memory, thread: usize, threads: usize) {
    let domain = kernel.domain;
    let share = |total| share(total, thread, threads);
    // SAFETY (all blocks below): buffers lie in the arena; threads write disjoint rows or channels of `dst`,
    // and nothing else writes `src` during the step.
    unsafe {
        if let Some(dst) = step.dst()
            && thread == 0
        {
            fill_halo(memory.arena, dst);
        }
        match step {
            Step::Quantize { dst, scale, requant, .. } if !memory.pixels.is_null() => {
                let [h, w, c] = dst.shape;
                let row = |y: usize| std::slice::from_raw_parts_mut(memory.arena.add(dst.at(y, 0)), w * c);
                quantize_pixels(&*memory.pixels, share(h), row, *scale, requant);
            }
            Step::Quantize { source, dst, scale, requant } => {
                let input = *memory.inputs.add(*source);
                let [h, w, c] = dst.shape;
                for y in share(h) {
                    let out = std::slice::from_raw_parts_mut(memory.arena.add(dst.at(y, 0)), w * c);
                    let row = |ch: usize| &input[(ch * h + y) * w..][..w];
                    match c {
                        1 => quantize_row([row(0)], out, *scale, requant),
                        3 => quantize_row([row(0), row(1), row(2)], out, *scale, requant),
                        _ => (0..c).for_each(|ch| {
                            row(ch).iter().enumerate().for_each(|(x, &v)| out[x * c + ch] = quantize(v, *scale, requant));
                        }),
                    }
                }
            }
            Step::Conv(conv) => {
                let pixels = conv.dst.shape[0] * conv.dst.shape[1];
                run_conv(kernel, conv, memory, memory.arena, 0..pixels, share(conv_units(kernel, conv, pixels)));
            }
            Step::PooledConv(pooled) => run_pooled_conv(kernel, pooled, memory, share(pooled.dst.shape[0])),
            Step::Winograd(conv) => winograd::run(domain, conv, memory.arena, memory.scratch, thread, threads),
            Step::Gemm { src, weights, bias, scale, output } => {
                let x = std::slice::from_raw_parts(memory.arena.add(src.base), src.len());
                let range = share(bias.len());
                for o in range {
                    let w = &weights[o * x.len()..][..x.len()];
                    let v = (bias[o] + dot(domain, x, w)) as f32 * scale[o];
                    match output {
                        GemmOutput::Float { target } => *(*memory.outputs.add(*target)).as_mut_ptr().add(o) = v,
                        GemmOutput::Quantized { dst, requant } => *memory.arena.add(dst.at(0, 0) + o) = requant.quantize(v),
                    }
                }
            }
            Step::MaxPool { src, dst, window } => {
                for y in share(dst.shape[0]) {
                    let rows = Taps::new(src, window, 0, y);
                    let row = |r: usize| memory.arena.add(src.at(r, 0)).cast_const();
                    max_pool_row(domain, &rows, row, src, window, memory.arena.add(dst.at(y, 0)), dst);
                }
            }
            Step::AveragePool { src, dst, window, count_include_pad, scales, requant } => {
                // Channels are shared out, since a global pool has one pixel only.
                let channels = share(dst.shape[2]);
                let mut sums = [0i32; 64];
                for y in 0..dst.shape[0] {
                    let rows = Taps::new(src, window, 0, y);
                    for x in 0..dst.shape[1] {
                        let columns = Taps::new(src, window, 1, x);
                        for first in channels.clone().step_by(sums.len()) {
                            let n = sums.len().min(channels.end - first);
                            let sums = &mut sums[..n];
                            sums.fill(0);
                            each_tap(&rows, &columns, |iy, ix| {
                                let tap = std::slice::from_raw_parts(memory.arena.add(src.at(iy, ix) + first), n);
                                sums.iter_mut().zip(tap).for_each(|(s, &t)| *s += domain.decode(t) - src.zero_point);
                            });
                            let inside = rows.count * columns.count;
                            let count = if *count_include_pad { window.kernel[0] * window.kernel[1] } else { inside.max(1) };
                            let mult = scales[0] / (scales[1] * count as f32);
                            let out = memory.arena.add(dst.at(y, x) + first);
                            sums.iter().enumerate().for_each(|(i, &s)| *out.add(i) = requant.quantize(s as f32 * mult));
                        }
                    }
                }
            }
            Step::Add { src: [a, b], mult, dst, requant } => {
                let n = dst.shape[1] * dst.shape[2];
                for y in share(dst.shape[0]) {
                    let pa = std::slice::from_raw_parts(memory.arena.add(a.at(y, 0)), n);
                    let pb = std::slice::from_raw_parts(memory.arena.add(b.at(y, 0)), n);
                    let out = std::slice::from_raw_parts_mut(memory.arena.add(dst.at(y, 0)), n);
                    for ((o, &qa), &qb) in out.iter_mut().zip(pa).zip(pb) {
                        let va = (domain.decode(qa) - a.zero_point) as f32 * mult[0];
                        let vb = (domain.decode(qb) - b.zero_point) as f32 * mult[1];
                        *o = requant.quantize(va + vb);
                    }
                }
            }
            Step::Lookup { src, dst, channel, table } => {
                for y in share(dst.shape[0]) {
                    for x in 0..dst.shape[1] {
                        let tap = std::slice::from_raw_parts(memory.arena.add(src.at(y, x)), src.shape[2]);
                        let out = std::slice::from_raw_parts_mut(memory.arena.add(dst.at(y, x) + channel), src.shape[2]);
                        out.iter_mut().zip(tap).for_each(|(o, &t)| *o = table[usize::from(t)]);
                    }
                }
            }
            Step::Dequantize { src, target, scale } => {
                let [h, w, c] = src.shape;
                let out = (*memory.outputs.add(*target)).as_mut_ptr();
                for y in share(h) {
                    for x in 0..w {
                        for ch in 0..c {
                            let q = domain.decode(*memory.arena.add(src.at(y, x) + ch));
                            *out.add((ch * h + y) * w + x) = (q - src.zero_point) as f32 * scale;
                        }
                    }
                }
            }
        }
    }
}

/// One row of a max-pool, its first byte at `out`; `row` tells where a row of the input starts.
///
/// # Safety
/// Rows of `src` that lie in `rows` are readable, and nobody writes them meanwhile; a row of `dst` is writable.
#[inline(always)]
unsafe fn max_pool_row(
    domain: Domain,
    rows: &Taps,
    row: impl Fn(usize) -> *const u8,
    src: &Buffer,
    window: &Window,
    out: *mut u8,
    dst: &Buffer,
) {
    let channels = dst.shape[2];
    // SAFETY: as promised.
    unsafe {
        let out = std::slice::from_raw_parts_mut(out, dst.shape[1] * channels);
        out.fill(domain.range().0 as u8);
        for r in 0..rows.count {
            let row = row(rows.first + r * rows.step);
            for (x, out) in out.chunks_exact_mut(channels).enumerate() {
                let columns = Taps::new(src, window, 1, x);
                let tap = |c: usize| row.add((columns.first + c * columns.step) * channels);
                // Blocks that stay in registers over the row's taps.
                let (blocks, rest) = out.as_chunks_mut::<64>();
                for (index, block) in blocks.iter_mut().enumerate() {
                    let mut largest = *block;
                    for c in 0..columns.count {
                        max(domain, &mut largest, &*tap(c).add(64 * index).cast::<[u8; 64]>());
                    }
                    *block = largest;
                }
                if !rest.is_empty() {
                    for c in 0..columns.count {
                        max(domain, rest, std::slice::from_raw_parts(tap(c).add(64 * blocks.len()), rest.len()));
                    }
                }
            }
        }
    }
}

/// Rows `rows` of a pooled convolution's output.
///
/// # Safety
/// As [`run`]; the rows are this thread's.
#[inline(always)]
unsafe fn run_pooled_conv(kernel: &ConvKernel, p: &PooledConv, memory: &Memory, rows: Range<usize>) {
    let (between, group) = (&p.conv.dst, p.window.stride[0]);
    let [height, width, _] = between.shape;
    let (strip, row_bytes) = (p.strip_rows(), p.row_bytes());
    // SAFETY: the scratch holds the strip and what the convolution needs itself.
    let beyond = Memory { scratch: unsafe { memory.scratch.add(p.strip_bytes()) }, ..*memory };
    // Rows of the convolution below it have been made.
    let mut made = 0;
    for y in rows {
        let taps = Taps::new(between, &p.window, 0, y);
        let mut from = made.max(taps.first);
        while from < taps.first + taps.count {
            let to = ((from / group + 1) * group).min(height);
            let pixels = from * width..to * width;
            let units = conv_units(kernel, &p.conv, pixels.len());
            // SAFETY: rows `from..to` are neighbours in the strip, since it holds whole groups, and no tap needs what was there.
            unsafe {
                let origin = memory.scratch.add(from % strip * row_bytes).wrapping_sub(between.at(from, 0));
                run_conv(kernel, &p.conv, &beyond, origin, pixels, 0..units);
            }
            from = to;
        }
        made = from;
        // SAFETY: the rows were made by this thread.
        unsafe {
            let row = |r: usize| memory.scratch.add(r % strip * row_bytes).cast_const();
            max_pool_row(kernel.domain, &taps, row, between, &p.window, memory.arena.add(p.dst.at(y, 0)), &p.dst);
        }
    }
}

/// Sum of products. The domain is told apart outside the loops: compilers multiply bytes faster than what may be either.
#[inline(always)]
fn dot(domain: Domain, x: &[u8], w: &[i8]) -> i32 {
    match domain {
        Domain::U8 => x.iter().zip(w).map(|(&x, &w)| i32::from(x) * i32::from(w)).sum(),
        Domain::S8 => x.iter().zip(w).map(|(&x, &w)| i32::from(x as i8) * i32::from(w)).sum(),
    }
}

/// `out = max(out, tap)`, byte by byte.
#[inline(always)]
fn max(domain: Domain, out: &mut [u8], tap: &[u8]) {
    match domain {
        Domain::U8 => out.iter_mut().zip(tap).for_each(|(o, &t)| *o = (*o).max(t)),
        Domain::S8 => out.iter_mut().zip(tap).for_each(|(o, &t)| *o = (*o as i8).max(t as i8) as u8),
    }
}

/// Quantizes one picture row of C planes and interleaves them.
#[inline(always)]
fn quantize_row<const C: usize>(planes: [&[f32]; C], out: &mut [u8], scale: f32, requant: &Requant) {
    const BLOCK: usize = 64;
    let mut bytes = [[0u8; BLOCK]; C];
    for (block, out) in out.chunks_mut(BLOCK * C).enumerate() {
        let n = out.len() / C;
        for (bytes, plane) in bytes.iter_mut().zip(planes) {
            for (b, &v) in bytes.iter_mut().zip(&plane[block * BLOCK..][..n]) {
                *b = quantize(v, scale, requant);
            }
        }
        for (x, pixel) in out.as_chunks_mut::<C>().0.iter_mut().enumerate() {
            *pixel = std::array::from_fn(|ch| bytes[ch][x]);
        }
    }
}

/// Quantizes rows `rows` of a picture: each byte becomes the byte that its value is quantized to.
#[inline(always)]
fn quantize_pixels<'a>(pixels: &Pixels<'_>, rows: Range<usize>, out: impl Fn(usize) -> &'a mut [u8], scale: f32, requant: &Requant) {
    for (channel, (byte, values)) in pixels.channels.iter().enumerate() {
        let mut table = [0u8; 256];
        table.iter_mut().zip(values).for_each(|(q, &v)| *q = quantize(v, scale, requant));
        for y in rows.clone() {
            let row = pixels.bytes[y * pixels.row_stride..].iter().skip(*byte).step_by(pixels.channels.len());
            out(y).iter_mut().skip(channel).step_by(pixels.channels.len()).zip(row).for_each(|(q, &v)| *q = table[usize::from(v)]);
        }
    }
}

/// ONNX `QuantizeLinear`: `saturate(round_half_even(x / scale) + zero_point)`; NaN becomes the zero point.
#[inline(always)]
fn quantize(v: f32, scale: f32, requant: &Requant) -> u8 {
    let v = v / scale;
    requant.quantize(if v.is_nan() { 0.0 } else { v })
}

/// Taps of a pooling window along one side that lie in the picture.
struct Taps {
    /// The first one's coordinate.
    first: usize,
    /// From one to the next.
    step: usize,
    count: usize,
}

impl Taps {
    /// `side` is 0 for rows and 1 for columns; `position` counts outputs along it.
    #[inline(always)]
    fn new(src: &Buffer, window: &Window, side: usize, position: usize) -> Self {
        let (start, step, pad) = (position * window.stride[side], window.dilation[side], window.pad[side]);
        // Hardly any window is dilated, and small cores divide slowly.
        let steps = |n: usize| if step == 1 { n } else { n.div_ceil(step) };
        let first = steps(pad.saturating_sub(start));
        let end = steps((src.shape[side] + pad).saturating_sub(start)).min(window.kernel[side]);
        Taps { first: (start + first * step).saturating_sub(pad), step, count: end.saturating_sub(first) }
    }
}

/// Calls `f(y, x)` for every tap that lies in the picture.
#[inline(always)]
fn each_tap(rows: &Taps, columns: &Taps, mut f: impl FnMut(usize, usize)) {
    for row in 0..rows.count {
        for column in 0..columns.count {
            f(rows.first + row * rows.step, columns.first + column * columns.step);
        }
    }
}

/// # Safety
/// `dst` lies in the arena, and no other thread touches its halo.
unsafe fn fill_halo(arena: *mut u8, dst: &Buffer) {
    if dst.halo == [0; 4] {
        return;
    }
    let (stride, c, zero_point) = (dst.row_stride(), dst.shape[2], dst.zero_point as u8);
    let (left, right) = (dst.halo[1] * c, dst.halo[3] * c);
    // SAFETY: all ranges lie within the buffer.
    unsafe {
        let base = arena.add(dst.base);
        base.write_bytes(zero_point, dst.halo[0] * stride);
        base.add((dst.halo[0] + dst.shape[0]) * stride).write_bytes(zero_point, dst.halo[2] * stride);
        for y in dst.halo[0]..dst.halo[0] + dst.shape[0] {
            base.add(y * stride).write_bytes(zero_point, left);
            base.add((y + 1) * stride - right).write_bytes(zero_point, right);
        }
    }
}

/// Points a tile's rows at pixels `first..first + m` of the output, which lies at `origin` as in an arena, and inputs of the
/// group that starts at channel `group`;
/// rows past `m` repeat the last pixel. One division: on small cores they cost more than all else here.
///
/// # Safety
/// The pixels lie in the convolution's slots of the arena.
unsafe fn locate(args: &mut TileArgs<'_>, conv: &Conv, arena: *mut u8, origin: *mut u8, mr: usize, first: usize, group: usize) {
    let (width, step) = (conv.dst.shape[1], conv.stride[1] * conv.src.shape[2]);
    let (mut y, mut x) = (first / width, first % width);
    // First tap, output and residual. The halo covers the padding, so none lies below its slot.
    let at = |y: usize, x: usize| {
        let tap = (y * conv.stride[0] + conv.src.halo[0] - conv.pad[0]) * conv.src.row_stride()
            + (conv.src.halo[1] - conv.pad[1]) * conv.src.shape[2]
            + x * step;
        (conv.src.base + tap + group, conv.dst.at(y, x), conv.residual.map_or(0, |(r, _)| r.at(y, x)))
    };
    let (mut tap, mut out, mut residual) = at(y, x);
    for i in 0..mr {
        // SAFETY: as promised.
        unsafe {
            args.rows[i] = arena.add(tap);
            args.out[i] = origin.wrapping_add(out);
            args.residual[i] = arena.add(residual);
        }
        if i + 1 < args.m {
            x += 1;
            if x == width {
                (y, x) = (y + 1, 0);
                (tap, out, residual) = at(y, x);
            } else {
                (tap, out, residual) = (tap + step, out + conv.dst.shape[2], residual + conv.dst.shape[2]);
            }
        }
    }
}

/// Copies what a tile's pixels read to `scratch`, and points its rows there.
///
/// # Safety
/// The tile is located, and the scratch, which is this thread's alone, takes a row of every pixel.
unsafe fn gather_rows(gather: &Gather, args: &mut TileArgs<'_>, scratch: *mut u8, mr: usize) {
    for i in 0..mr {
        // Rows past m repeat the last pixel.
        let row = scratch.wrapping_add(i.min(args.m - 1) * gather.row);
        if i < args.m {
            let mut to = row;
            for piece in &gather.pieces {
                // SAFETY: pieces lie in the input's slot, and rows in the scratch, in whole steps.
                unsafe {
                    let from = args.rows[i].add(*piece);
                    for at in (0..gather.len).step_by(GATHER_STEP) {
                        let bytes = from.add(at).cast::<[u8; GATHER_STEP]>().read();
                        to.add(at).cast::<[u8; GATHER_STEP]>().write(bytes);
                    }
                    to = to.add(gather.len);
                }
            }
        }
        args.rows[i] = row;
    }
}

/// Tiles of `pixels` pixels, times blocks of channels.
fn conv_units(kernel: &ConvKernel, conv: &Conv, pixels: usize) -> usize {
    pixels.div_ceil(kernel.mr) * conv_blocks(kernel, conv) * conv.groups
}

/// Blocks of channels of a group.
fn conv_blocks(kernel: &ConvKernel, conv: &Conv) -> usize {
    (conv.dst.shape[2] / conv.groups).div_ceil(kernel.nr)
}

/// `units` of those of a convolution that `pixels` of its output make. The output lies at `origin` as in an arena.
///
/// # Safety
/// As [`run`]; the units are this thread's alone, and what they write is there.
#[inline(never)]
unsafe fn run_conv(kernel: &ConvKernel, conv: &Conv, memory: &Memory, origin: *mut u8, pixels: Range<usize>, units: Range<usize>) {
    if units.is_empty() {
        return;
    }
    let out_per_group = conv.dst.shape[2] / conv.groups;
    let in_per_group = conv.src.shape[2] / conv.groups;
    let blocks = conv_blocks(kernel, conv);
    let all_blocks = blocks * conv.groups;
    let (mr, nr) = (kernel.mr, kernel.nr);
    let tiles = pixels.len().div_ceil(mr);
    // `width` blocks from `first_block` on take turns at each tile.
    let mut first_block = units.start / (conv.together * tiles) * conv.together;
    let mut width = conv.together.min(all_blocks - first_block);
    let at = units.start - first_block * tiles;
    let (mut tile, mut turn) = (at / width, at % width);
    let mut located = None;
    let mut args = TileArgs {
        rows: [std::ptr::null(); MAX_MR],
        residual: [std::ptr::null(); MAX_MR],
        out: [std::ptr::null_mut(); MAX_MR],
        channel: 0,
        runs: &conv.runs,
        weights: &[],
        excess: None,
        narrow: conv.narrow,
        saturates: conv.saturates,
        bias: &[],
        mult: &[],
        requant: conv.requant,
        residual_params: conv.residual.map(|(_, p)| p),
        m: 0,
        n: 0,
    };
    for _ in units {
        let block = first_block + turn;
        let group = if conv.groups == 1 { 0 } else { block / blocks };
        // SAFETY: addresses lie in their slots; the tile's pixels and channels are this thread's alone.
        unsafe {
            if located != Some((tile, group)) {
                located = Some((tile, group));
                let first = pixels.start + tile * mr;
                args.m = mr.min(pixels.end - first);
                locate(&mut args, conv, memory.arena, origin, mr, first, group * in_per_group);
                if let Some(gather) = &conv.gather {
                    gather_rows(gather, &mut args, memory.scratch, mr);
                }
            }
            let first = (block - group * blocks) * nr;
            args.channel = group * out_per_group + first;
            args.n = nr.min(out_per_group - first);
            args.weights = &conv.weights[block * conv.block_len..][..conv.block_len];
            args.excess = conv.excess.as_ref().map(|e| e.of_block(block));
            args.bias = &conv.bias[block * nr..][..nr];
            args.mult = &conv.mult[block * nr..][..nr];
            (kernel.run)(&args);
        }
        turn += 1;
        if turn == width {
            (turn, tile) = (0, tile + 1);
            if tile == tiles {
                (tile, first_block) = (0, first_block + conv.together);
                width = conv.together.min(all_blocks.saturating_sub(first_block));
            }
        }
    }
}
