//! What one thread does of one step.

use super::{Memory, Pixels, winograd};
use crate::graph::Window;
#[cfg(target_arch = "x86_64")]
use crate::kernels::SimdLevel;
use crate::kernels::{ConvKernel, Domain, MAX_MR, Requant, TileArgs};
use crate::plan::{Buffer, Conv, GemmOutput, Step};
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
            Step::Conv(conv) => run_conv(kernel, conv, memory.arena, thread, threads),
            Step::Winograd(conv) => winograd::run(domain, conv, memory.arena, memory.scratch, thread, threads),
            Step::Gemm { src, weights, bias, scale, output } => {
                let x = std::slice::from_raw_parts(memory.arena.add(src.base), src.len());
                let range = share(bias.len());
                for o in range {
                    let w = &weights[o * x.len()..][..x.len()];
                    let acc = x.iter().zip(w).fold(bias[o], |acc, (&x, &w)| acc + domain.decode(x) * i32::from(w));
                    let v = acc as f32 * scale[o];
                    match output {
                        GemmOutput::Float { target } => *(*memory.outputs.add(*target)).as_mut_ptr().add(o) = v,
                        GemmOutput::Quantized { dst, requant } => *memory.arena.add(dst.at(0, 0) + o) = requant.quantize(v),
                    }
                }
            }
            Step::MaxPool { src, dst, window } => {
                for y in share(dst.shape[0]) {
                    let rows = Taps::new(src, window, 0, y);
                    for x in 0..dst.shape[1] {
                        let columns = Taps::new(src, window, 1, x);
                        let out = std::slice::from_raw_parts_mut(memory.arena.add(dst.at(y, x)), dst.shape[2]);
                        // Blocks that stay in registers over all taps.
                        let (blocks, rest) = out.as_chunks_mut::<64>();
                        for (index, block) in blocks.iter_mut().enumerate() {
                            *block = [domain.range().0 as u8; 64];
                            let first = memory.arena.add(64 * index);
                            each_tap(src, &rows, &columns, |at| max(domain, block, &*first.add(at).cast::<[u8; 64]>()));
                        }
                        if !rest.is_empty() {
                            rest.fill(domain.range().0 as u8);
                            let first = memory.arena.add(64 * blocks.len());
                            each_tap(src, &rows, &columns, |at| max(domain, rest, std::slice::from_raw_parts(first.add(at), rest.len())));
                        }
                    }
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
                            each_tap(src, &rows, &columns, |at| {
                                let tap = std::slice::from_raw_parts(memory.arena.add(at + first), n);
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

/// Calls `f` with the address in the arena of every tap that lies in the picture.
#[inline(always)]
fn each_tap(src: &Buffer, rows: &Taps, columns: &Taps, mut f: impl FnMut(usize)) {
    for row in 0..rows.count {
        let mut at = src.at(rows.first + row * rows.step, columns.first);
        for _ in 0..columns.count {
            f(at);
            at += columns.step * src.shape[2];
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

/// Points a tile's rows at pixels `first..first + m` of the output, and inputs of the group that starts at channel `group`;
/// rows past `m` repeat the last pixel. One division: on small cores they cost more than all else here.
///
/// # Safety
/// The pixels lie in the convolution's slots of the arena.
unsafe fn locate(args: &mut TileArgs<'_>, conv: &Conv, arena: *mut u8, mr: usize, first: usize, group: usize) {
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
            args.out[i] = arena.add(out);
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

/// # Safety
/// As [`run`].
#[inline(never)]
unsafe fn run_conv(kernel: &ConvKernel, conv: &Conv, arena: *mut u8, thread: usize, threads: usize) {
    let [oh, ow, oc] = conv.dst.shape;
    let out_per_group = oc / conv.groups;
    let in_per_group = conv.src.shape[2] / conv.groups;
    let blocks = out_per_group.div_ceil(kernel.nr);
    let all_blocks = blocks * conv.groups;
    let (pixels, mr, nr) = (oh * ow, kernel.mr, kernel.nr);
    let tiles = pixels.div_ceil(mr);
    let units = share(tiles * all_blocks, thread, threads);
    if units.is_empty() {
        return;
    }
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
                args.m = mr.min(pixels - tile * mr);
                locate(&mut args, conv, arena, mr, tile * mr, group * in_per_group);
            }
            let first = (block - group * blocks) * nr;
            args.channel = group * out_per_group + first;
            args.n = nr.min(out_per_group - first);
            args.weights = &conv.weights[block * conv.block_len..][..conv.block_len];
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
