//! One filter per channel, channels in lanes: MobileNets' convolutions, and per-channel scalings (1×1).
#![allow(unsafe_code)]

use super::Layer;
use crate::graph::Window;
use crate::kernels::depthwise::{DepthwiseArgs, DepthwiseKernel, Filter, TapOrder, of_isa};
use crate::kernels::{Requant, ResidualParams, SLACK};
use crate::ops::{Cost, Planner, Site, Step};
use crate::program::{AnyBlob, Blob, Buffer, Check, Checker, Context, MAX_DIM, StepOp, ensure};
use serde::{Deserialize, Serialize};

/// A depthwise convolution, ready to run.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Depthwise {
    /// Input; its halo covers the padding.
    pub src: Buffer,
    /// Output.
    pub dst: Buffer,
    /// Residual of the output's shape.
    pub residual: Option<(Buffer, ResidualParams)>,
    /// Geometry.
    pub window: Window,
    /// Byte offset of each tap from the first, row by row.
    pub taps: Vec<usize>,
    /// Their order in the weights.
    pub order: TapOrder,
    /// Packed by the kernel.
    #[serde(skip)]
    pub weights: Blob<i8>,
    /// Packed by the kernel, zero-point correction included.
    #[serde(skip)]
    pub bias: Blob<i32>,
    /// Packed by the kernel.
    #[serde(skip)]
    pub mult: Blob<f32>,
    /// No weight is −128.
    pub narrow: bool,
    /// No multiplier is above ½.
    pub bounded: bool,
    /// Requantization.
    pub requant: Requant,
}

/// True if the layer has one filter per channel.
pub(super) fn fits(layer: &Layer<'_>) -> bool {
    let (channels, conv) = (layer.src.channels(), layer.conv);
    let taps = conv.window.kernel[0] * conv.window.kernel[1];
    conv.groups == channels && conv.weights.out == channels && conv.weights.per_out == taps
}

fn filter(window: &Window) -> Filter {
    Filter { size: window.kernel, stride: window.stride[1], dilation: window.dilation[1] }
}

/// Byte offset of each tap from the first.
fn taps(window: &Window, src: &Buffer) -> Vec<usize> {
    let ([kh, kw], [down, across]) = (window.kernel, window.dilation);
    (0..kh).flat_map(|y| (0..kw).map(move |x| y * down * src.row_stride() + x * across * src.pixel)).collect()
}

/// Emits the step of a layer.
pub(super) fn plan(layer: &Layer<'_>, site: &Site<'_>, p: &mut Planner<'_>) -> crate::Result<()> {
    let (kernel, window, weights, channels) = (of_isa(p.kernel.isa), &layer.conv.window, &*layer.conv.weights, layer.src.channels());
    let (bias, mult) = layer.per_channel(site, p, 1, 0, channels)?;
    let packed = kernel.pack(filter(window), |channel, tap| weights.row(channel)[tap], &bias, &mult);
    let weight_bytes = (packed.weights.len() + 4 * packed.bias.len() + 4 * packed.mult.len()) as u64;
    let step = Depthwise {
        src: layer.src,
        dst: layer.dst,
        residual: layer.residual,
        window: *window,
        taps: taps(window, &layer.src),
        order: packed.order,
        weights: packed.weights.into(),
        bias: packed.bias.into(),
        mult: packed.mult.into(),
        narrow: packed.narrow,
        bounded: packed.bounded,
        requant: layer.requant,
    };
    p.emit(site, Step::Depthwise(Box::new(step)), kernel.name, Cost { macs: layer.macs, weight_bytes });
    Ok(())
}

impl Depthwise {
    /// Bytes from the input's base to the first tap of the first output pixel.
    fn first_tap(&self) -> usize {
        let [top, left, ..] = self.window.pad;
        (self.src.halo[0] - top) * self.src.row_stride() + (self.src.halo[1] - left) * self.src.pixel
    }

    /// Bytes from an output pixel's first tap to that of the pixel below it, and beside it.
    fn input_step(&self) -> [usize; 2] {
        [self.window.stride[0] * self.src.row_stride(), self.window.stride[1] * self.src.pixel]
    }
}

impl StepOp for Depthwise {
    fn check(&self, c: &Checker<'_>) -> Check {
        let w = &self.window;
        c.filter(&self.src, &self.dst, self.residual.as_ref(), [w.pad[0], w.pad[1]], &self.requant)?;
        ensure(self.src.channels() == self.dst.channels(), "input and output differ in channels")?;
        let mut numbers = w.kernel.iter().chain(&w.stride).chain(&w.dilation);
        ensure(numbers.all(|&n| (1..=MAX_DIM).contains(&n)) && w.kernel[0] * w.kernel[1] <= MAX_DIM, "its window is out of range")?;
        let (kernel, channels) = (of_isa(c.kernel.isa), self.src.channels());
        ensure(self.taps == taps(w, &self.src) && self.order == filter(w).order(kernel), "its taps are not those of its window")?;
        let [h, width, _] = self.dst.shape;
        let [down, across] = self.input_step();
        let last = self.first_tap() + (h - 1) * down + (width - 1) * across + self.taps.last().copied().unwrap_or(0);
        ensure(last + channels <= self.src.len(), "it reads outside its input")?;
        let sizes = kernel.sizes(channels, self.order, self.taps.len());
        ensure(sizes == [self.weights.len(), self.bias.len()] && self.mult.len() == self.bias.len(), "its weights have another size")
    }

    #[inline(always)]
    unsafe fn run(&self, cx: &Context<'_>) {
        let kernel: &DepthwiseKernel = of_isa(cx.kernel.isa);
        let [rows, columns, channels] = self.dst.shape;
        let arena = cx.memory.arena;
        // SAFETY: the check has proven that taps, residual and output lie in their buffers, which overlap neither; what kernels read beyond
        // them is slack. Rows, or blocks of channels where there are fewer rows than threads, are shared out.
        unsafe {
            let args = DepthwiseArgs {
                input: arena.add(self.src.base + self.first_tap()),
                input_step: self.input_step(),
                output: cx.at(&self.dst, 0, 0),
                output_step: [self.dst.row_stride(), self.dst.pixel],
                residual: self.residual.as_ref().map(|(r, p)| (cx.at(r, 0, 0).cast_const(), [r.row_stride(), r.pixel], *p)),
                columns,
                channels,
                taps: &self.taps,
                order: self.order,
                weights: &self.weights,
                bias: &self.bias,
                mult: &self.mult,
                narrow: self.narrow,
                bounded: self.bounded,
                requant: self.requant,
            };
            let blocks = kernel.blocks(channels);
            if rows >= cx.threads {
                kernel.run(&args, cx.share(rows), 0..blocks);
            } else {
                kernel.run(&args, 0..rows, cx.share(blocks));
            }
        }
    }

    fn dst(&self) -> Option<&Buffer> {
        Some(&self.dst)
    }

    fn blobs(&mut self) -> Vec<&mut dyn AnyBlob> {
        vec![&mut self.weights, &mut self.bias, &mut self.mult]
    }
}

/// Kernels read at most one register beyond a pixel's channels.
const _: () = assert!(SLACK >= 64);
