//! Convolution product by product: tiles of pixels × channels by the processor's microkernel.
#![allow(unsafe_code)]

use super::Layer;
use crate::kernels::{ConvKernel, MAX_MR, Requant, ResidualParams, Run, SLACK, TileArgs, excess, pack_weights};
use crate::ops::{Cost, Planner, Site, Step};
use crate::program::{AnyBlob, Blob, Buffer, Check, Checker, Context, MAX_ARENA, MAX_DIM, Memory, StepOp, ensure};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// Channels of a cache line.
const LINE: usize = 64;
/// Weights that stay in the first-level cache beside what else a tile needs.
const TOGETHER_BYTES: usize = 20 << 10;
/// Runs from this length on are as fast where they lie as in one.
const LONG_RUN: usize = 64;
/// What is gathered of a pixel, at most: sixteen pixels' take half of a small core's first-level cache.
const GATHERED_BYTES: usize = 1024;
/// Bytes that are copied at once.
const GATHER_STEP: usize = 16;

/// A convolution, ready to run.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct DirectConv {
    /// Input; its halo covers the padding.
    pub src: Buffer,
    /// Output.
    pub dst: Buffer,
    /// Residual of the output's shape.
    pub residual: Option<(Buffer, ResidualParams)>,
    /// Padding at the top and left.
    pub pad: [usize; 2],
    /// Vertical and horizontal step.
    pub stride: [usize; 2],
    /// Channel groups.
    pub groups: usize,
    /// What one output pixel reads, from its first tap, or where that is gathered.
    pub runs: Vec<Run>,
    /// Copies a pixel's input together, where it lies in many short pieces.
    pub gather: Option<Gather>,
    /// `[group][block]` packed weights.
    #[serde(skip)]
    pub weights: Blob<i8>,
    /// What was taken out of them, if it was.
    pub excess: Option<Excess>,
    /// No weight is −128.
    pub narrow: bool,
    /// See [`Requant::saturates`].
    pub saturates: bool,
    /// Bytes of one packed block.
    pub block_len: usize,
    /// `[group][block][nr]`, zero-point correction included.
    #[serde(skip)]
    pub bias: Blob<i32>,
    /// `[group][block][nr]`.
    #[serde(skip)]
    pub mult: Blob<f32>,
    /// Requantization.
    pub requant: Requant,
    /// Blocks of channels that are computed for a tile of pixels before the next tile; tiles run before further blocks.
    pub blocks_per_tile: usize,
    /// The program's kernel leaves this to [`ConvKernel::small`].
    pub small: bool,
}

/// What a kernel reads of a pixel, if it is copied together first: a stem's seven pieces of 21 bytes are one run of 147.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Gather {
    /// Where the pieces lie, from the pixel's first tap.
    pub pieces: Vec<usize>,
    /// Bytes of each. They are copied one after another, in whole steps of 16 bytes; the next piece overwrites what is too much.
    pub len: usize,
    /// Bytes from one pixel to the next.
    pub row: usize,
}

/// [`excess::Excess`], owned or mapped.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Excess {
    /// Where the entries of each half of a block end.
    #[serde(skip)]
    pub ends: Blob<i32>,
    /// Bytes from an output pixel's first tap.
    #[serde(skip)]
    pub offsets: Blob<i32>,
    /// Weights.
    #[serde(skip)]
    pub weights: Blob<i8>,
}

impl Excess {
    /// Entries of a block.
    fn of_block(&self, block: usize) -> excess::BlockExcess<'_> {
        excess::of_block(&self.ends, &self.offsets, &self.weights, block)
    }

    /// Bytes of all of it.
    fn bytes(&self) -> usize {
        4 * (self.ends.len() + self.offsets.len()) + self.weights.len()
    }
}

impl From<excess::Excess> for Excess {
    fn from(e: excess::Excess) -> Self {
        Excess { ends: e.ends.into(), offsets: e.offsets.into(), weights: e.weights.into() }
    }
}

/// Runs of `len` bytes each as one, which is gathered from them.
fn join(runs: &[Run], len: usize, kr: usize) -> (Vec<Run>, Option<Gather>) {
    let steps = (runs.len() * len).div_ceil(kr);
    let row = (steps * kr).max((runs.len() - 1) * len + len.next_multiple_of(GATHER_STEP)).next_multiple_of(GATHER_STEP);
    (vec![Run { offset: 0, steps }], Some(Gather { pieces: runs.iter().map(|r| r.offset).collect(), len, row }))
}

/// Emits the step of a layer.
pub(super) fn plan(layer: &Layer<'_>, site: &Site<'_>, p: &mut Planner<'_>) -> crate::Result<()> {
    let (step, cost) = build(layer, site, p)?;
    let name = step.kernel(p.kernel).name;
    p.emit(site, Step::Conv(Box::new(step)), name, cost);
    Ok(())
}

/// The step of a layer, and what it costs.
pub(super) fn build(layer: &Layer<'_>, site: &Site<'_>, p: &Planner<'_>) -> crate::Result<(DirectConv, Cost)> {
    let (conv, src, dst) = (layer.conv, layer.src, layer.dst);
    let (weights, window, groups, [kh, kw]) = (&*conv.weights, &conv.window, conv.groups, conv.window.kernel);
    let channels = src.channels() / groups;
    let out_per_group = weights.out / groups;
    // Taps of a kernel row are neighbours in memory if nothing lies between them.
    let merged = groups == 1 && window.dilation[1] == 1 && !src.is_view();
    let (runs_x, taps_per_run) = if merged { (1, kw) } else { (kw, 1) };
    let run_len = taps_per_run * channels;
    // Where a row of weights holds two kernels, the same inputs are read twice.
    let kernels = weights.per_out / (channels * kh * kw);
    let short = kernels * kh * runs_x > 1 && run_len < LONG_RUN && kernels * kh * runs_x * run_len <= GATHERED_BYTES;
    let lens = if short { vec![kernels * kh * runs_x * run_len] } else { vec![run_len; kernels * kh * runs_x] };
    let small = p.kernel.smaller(dst.shape[0] * dst.shape[1], &lens);
    let kernel = small.unwrap_or(p.kernel);
    let runs: Vec<Run> = (0..kernels * kh)
        .flat_map(|row| (0..runs_x).map(move |kx| (row % kh, kx)))
        .map(|(ky, kx)| Run {
            offset: ky * window.dilation[0] * src.row_stride() + kx * window.dilation[1] * src.pixel,
            steps: run_len.div_ceil(kernel.kr),
        })
        .collect();
    // A step of a whole line of bytes is wasted on short pieces. Other kernels gain where several blocks of channels read them.
    let worth = groups == 1 && (kernel.kr >= LONG_RUN || kernel.unroll > 1 && out_per_group >= 2 * kernel.nr);
    let (runs, gather) = if short && worth { join(&runs, run_len, kernel.kr) } else { (runs, None) };
    let pieces = gather.as_ref().map_or(1, |g| g.pieces.len());
    let run_lens = vec![pieces * run_len; runs.len()];
    let blocks = out_per_group.div_ceil(kernel.nr);
    let (mut packed, mut bias, mut mult) = (Vec::new(), Vec::new(), Vec::new());
    for group in 0..groups {
        packed.extend(pack_weights(kernel, out_per_group, &run_lens, |o, run, byte| {
            let (run, byte) = (run * pieces + byte / run_len, byte % run_len);
            let (row, kx, c) = (run / runs_x, run % runs_x + byte / channels, byte % channels);
            let of_kernel = row / kh * (channels * kh * kw);
            weights.row(group * out_per_group + o)[of_kernel + (c * kh + row % kh) * kw + kx]
        }));
        let (group_bias, group_mult) = layer.per_channel(site, p, kernel.nr, group * out_per_group, out_per_group)?;
        bias.extend(group_bias);
        mult.extend(group_mult);
    }
    let narrow = !packed.contains(&i8::MIN);
    let excess = if gather.is_some() { None } else { excess::Excess::take(kernel, &mut packed, &runs).map(Excess::from) };
    let excess_bytes = excess.as_ref().map_or(0, Excess::bytes);
    let weight_bytes = (packed.len() + excess_bytes + 4 * bias.len() + 4 * mult.len()) as u64;
    let block_len = packed.len() / (groups * blocks).max(1);
    // Whatever is smaller, pixels or weights, is walked in the inner loop and stays in a cache. Weights of so many blocks at once as fit the
    // first level, and as make whole cache lines of output.
    let few = (LINE.div_ceil(kernel.nr)).min(TOGETHER_BYTES / block_len.max(1)).clamp(1, (groups * blocks).max(1));
    let step = DirectConv {
        src,
        dst,
        residual: layer.residual,
        pad: [window.pad[0], window.pad[1]],
        stride: window.stride,
        groups,
        block_len,
        blocks_per_tile: if packed.len() > src.len() { few } else { groups * blocks },
        runs,
        gather,
        excess,
        narrow,
        saturates: layer.requant.saturates(kernel.domain, &mult, layer.residual.as_ref().map(|(_, p)| p)),
        weights: packed.into(),
        bias: bias.into(),
        mult: mult.into(),
        requant: layer.requant,
        small: small.is_some(),
    };
    Ok((step, Cost { macs: layer.macs, weight_bytes }))
}

impl DirectConv {
    /// Bytes from the input's base to the first tap of output pixel (y, x), first channel. The halo covers the padding, so none lies before.
    #[inline(always)]
    fn first_tap(&self, y: usize, x: usize) -> usize {
        (y * self.stride[0] + self.src.halo[0] - self.pad[0]) * self.src.row_stride()
            + (x * self.stride[1] + self.src.halo[1] - self.pad[1]) * self.src.pixel
    }

    /// The kernel that runs it, in a program of this one.
    pub fn kernel<'k>(&self, program: &'k ConvKernel) -> &'k ConvKernel {
        program.small.filter(|_| self.small).map_or(program, |s| s.kernel)
    }

    /// Blocks of channels of a group.
    fn blocks(&self, kernel: &ConvKernel) -> usize {
        (self.dst.channels() / self.groups).div_ceil(kernel.nr)
    }

    /// Tiles of `pixels` pixels, times blocks of channels.
    pub fn units(&self, program: &ConvKernel, pixels: usize) -> usize {
        let kernel = self.kernel(program);
        pixels.div_ceil(kernel.mr) * self.blocks(kernel) * self.groups
    }

    /// All but where it writes.
    pub fn check_reads(&self, checker: &Checker<'_>) -> Check {
        let ([h, w, out], channels, kernel) = (self.dst.shape, self.src.channels(), self.kernel(checker.kernel));
        let divided = self.groups > 0 && channels.is_multiple_of(self.groups) && out.is_multiple_of(self.groups);
        ensure(divided, "its groups do not divide the channels")?;
        ensure(self.stride.iter().all(|&s| s <= MAX_DIM), "its stride is out of range")?;
        ensure((1..=MAX_DIM).contains(&self.blocks_per_tile), "it computes no blocks")?;
        let (nr, kr) = (kernel.nr, kernel.kr);
        // The last pixel's first tap, in the last group, plus the longest run with what a kernel reads beyond it.
        let first = self.first_tap(h - 1, w - 1) + channels / self.groups * (self.groups - 1);
        let mut steps = 0usize;
        for run in &self.runs {
            ensure(run.offset <= MAX_ARENA && run.steps <= MAX_ARENA, "a run is out of range")?;
            let inside = match &self.gather {
                None => first + run.offset + run.steps * kr <= self.src.len() + SLACK,
                Some(gather) => run.offset + run.steps * kr <= gather.row,
            };
            ensure(inside, "it reads outside its input")?;
            steps += run.steps;
        }
        if let Some(Gather { pieces, len, row }) = &self.gather {
            let in_range = [*len, *row, pieces.len()].iter().all(|&n| (1..=MAX_DIM).contains(&n));
            ensure(self.groups == 1 && in_range, "what it gathers is out of range")?;
            let copied = len.next_multiple_of(GATHER_STEP);
            ensure((pieces.len() - 1) * len + copied <= *row, "what it gathers has no room")?;
            let inside = pieces.iter().all(|&p| p <= MAX_ARENA && first + p + copied <= self.src.len() + SLACK);
            ensure(inside, "it gathers from outside its input")?;
        }
        let blocks = self.groups * self.blocks(kernel);
        ensure(self.block_len == steps * nr * kr && self.weights.len() == blocks * self.block_len, "its weights have another size")?;
        ensure(self.bias.len() == blocks * nr && self.mult.len() == blocks * nr, "its channels have another number")?;
        let Some(Excess { ends, offsets, weights }) = &self.excess else { return Ok(()) };
        let in_order =
            ends.iter().try_fold(0, |last, &end| (last <= end).then_some(end)).is_some_and(|last| last as usize == offsets.len());
        ensure(
            // Offsets count from a pixel's first tap: what is gathered lies elsewhere.
            self.gather.is_none() && kernel.pairs && ends.len() == 2 * blocks && in_order && weights.len() == offsets.len() * excess::ENTRY,
            "its weights that are kept apart have another size",
        )?;
        let inside = |&offset: &i32| usize::try_from(offset).is_ok_and(|o| first + o + kr <= self.src.len() + SLACK);
        ensure(offsets.iter().all(inside), "it reads outside its input")
    }
}

impl StepOp for DirectConv {
    fn check(&self, c: &Checker<'_>) -> Check {
        c.filter(&self.src, &self.dst, self.residual.as_ref(), self.pad, &self.requant)?;
        self.check_reads(c)
    }

    #[inline(always)]
    unsafe fn run(&self, cx: &Context<'_>) {
        let pixels = self.dst.shape[0] * self.dst.shape[1];
        let units = cx.share(self.units(cx.kernel, pixels));
        // SAFETY: units are shared out, and the output lies in the arena.
        unsafe { run_units(cx.kernel, self, &cx.memory, cx.memory.arena, 0..pixels, units) }
    }

    fn dst(&self) -> Option<&Buffer> {
        Some(&self.dst)
    }

    fn blobs(&mut self) -> Vec<&mut dyn AnyBlob> {
        let mut blobs: Vec<&mut dyn AnyBlob> = vec![&mut self.weights, &mut self.bias, &mut self.mult];
        if let Some(Excess { ends, offsets, weights }) = &mut self.excess {
            blobs.extend([ends as &mut dyn AnyBlob, offsets, weights]);
        }
        blobs
    }

    fn addresses(&mut self) -> Vec<&mut dyn AnyBlob> {
        match &mut self.excess {
            Some(Excess { ends, offsets, .. }) => vec![ends, offsets],
            None => vec![],
        }
    }

    fn scratch_bytes(&self) -> usize {
        self.gather.as_ref().map_or(0, |g| MAX_MR * g.row + SLACK)
    }
}

/// Points a tile's rows at pixels `first..first + m` of the output, which lies at `origin` as in an arena, and inputs of the group that starts
/// at channel `group`; rows past `m` repeat the last pixel. One division: on small cores they cost more than all else here.
///
/// # Safety
/// The pixels lie in the convolution's slots of the arena.
unsafe fn locate(args: &mut TileArgs<'_>, conv: &DirectConv, arena: *mut u8, origin: *mut u8, mr: usize, first: usize, group: usize) {
    let width = conv.dst.shape[1];
    let (tap_step, residual_step) = (conv.stride[1] * conv.src.pixel, conv.residual.map_or(0, |(r, _)| r.pixel));
    let (mut y, mut x) = (first / width, first % width);
    // First tap, output and residual.
    let at = |y: usize, x: usize| {
        (conv.src.base + conv.first_tap(y, x) + group, conv.dst.at(y, x), conv.residual.map_or(0, |(r, _)| r.at(y, x)))
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
                (tap, out, residual) = (tap + tap_step, out + conv.dst.pixel, residual + residual_step);
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

/// `units` of those of a convolution that `pixels` of its output make. The output lies at `origin` as in an arena.
///
/// # Safety
/// As [`StepOp::run`]; the units are this thread's alone, and what they write is there.
#[inline(never)]
pub(super) unsafe fn run_units(
    program: &ConvKernel,
    conv: &DirectConv,
    memory: &Memory,
    origin: *mut u8,
    pixels: Range<usize>,
    units: Range<usize>,
) {
    if units.is_empty() {
        return;
    }
    let kernel = conv.kernel(program);
    let out_per_group = conv.dst.channels() / conv.groups;
    let in_per_group = conv.src.channels() / conv.groups;
    let blocks = conv.blocks(kernel);
    let all_blocks = blocks * conv.groups;
    let (mr, nr) = (kernel.mr, kernel.nr);
    let tiles = pixels.len().div_ceil(mr);
    // `width` blocks from `first_block` on take turns at each tile.
    let mut first_block = units.start / (conv.blocks_per_tile * tiles) * conv.blocks_per_tile;
    let mut width = conv.blocks_per_tile.min(all_blocks - first_block);
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
                (tile, first_block) = (0, first_block + conv.blocks_per_tile);
                width = conv.blocks_per_tile.min(all_blocks.saturating_sub(first_block));
            }
        }
    }
}
