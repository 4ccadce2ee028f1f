//! Depthwise convolution: one filter per channel, channels in SIMD lanes. A per-channel BatchNorm is the 1×1 case.
//!
//! The definition, for output pixel (y, x) and channel c, in the kernel's [`Domain`]:
//! ```text
//! acc = bias[c] + Σ_t input[y·step_y + x·step_x + taps[t] + c] · weight[c][t]      i32, zero-point correction in the bias
//! out = requantized as the module documentation of [`super`] says, with mult[c] and an optional residual
//! ```
//! Layouts are those of [`super`]: NHWC bytes with a halo. A pixel may be wider than the layer's channels.
//!
//! # Weights
//! Channels are cut into blocks: whole blocks of the kernel's largest width, then one of the smallest width that holds the rest.
//! A block's weights lie in *quads*: four taps of every channel. Where the kernel shares the work on one input column among the
//! outputs that read it ([`TapOrder::Columns`]), a quad is four taps below each other; otherwise four taps in sequence. A quad's
//! missing taps have zero weights.

mod portable;
mod scalar;
pub(crate) mod sweep;

use super::{Domain, Requant, ResidualParams};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// Taps of a quad.
pub const QUAD: usize = 4;

/// Bytes of input that one call reads again and again: what a small core's first-level cache holds beside weights and output.
const STRIP_BYTES: usize = 24 << 10;

/// The order of a layer's taps in its packed weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum TapOrder {
    /// Quads of four taps in row-major sequence.
    Sequence,
    /// Quads of four taps below each other: `[⌈rows / 4⌉][columns]`. Outputs lie `step` tap columns apart.
    Columns {
        /// Rows and columns of the filter.
        size: usize,
        /// Horizontal stride.
        step: usize,
    },
}

/// A depthwise kernel of one instruction set.
#[derive(Debug, Clone, Copy)]
pub struct DepthwiseKernel {
    /// `isa-depthwise-cCHANNELS`.
    pub name: &'static str,
    /// The [`super::ConvKernel::isa`] it belongs to.
    pub isa: &'static str,
    /// How it reads activation bytes.
    pub domain: Domain,
    /// Widths of blocks in channels, largest first.
    pub widths: &'static [usize],
    /// Bytes of a weight: 1, or 2 where the kernel wants them widened.
    pub weight_bytes: usize,
    /// Index, in weights, of a channel's tap in a quad of a block: `(width, channel, tap)`.
    pub weight_index: fn(usize, usize, usize) -> usize,
    /// Index of a channel's bias and multiplier in a block: `(width, channel)`.
    pub channel_index: fn(usize, usize) -> usize,
    /// It has paths for [`TapOrder::Columns`].
    pub columns: bool,
    /// True where this processor can run it.
    pub supported: fn() -> bool,
    /// Computes one block of channels for a rectangle of output pixels.
    ///
    /// # Safety
    /// The processor supports the kernel. Every pixel's taps are readable for `width` bytes, residual pixels too, and output
    /// pixels are writable for `n` bytes; nothing that is read is written meanwhile, by this call or others; slices and `taps`
    /// are as [`Block`] says.
    pub run: unsafe fn(&Block<'_>),
}

/// One block of channels of a rectangle of output pixels. Pointers are those of the block's first channel.
#[derive(Debug, Clone, Copy)]
pub struct Block<'a> {
    /// First tap of the first output pixel.
    pub input: *const u8,
    /// Bytes from one output pixel's first tap to that of the pixel below it, and beside it.
    pub input_step: [usize; 2],
    /// First output pixel.
    pub output: *mut u8,
    /// Bytes to the output pixel below, and beside.
    pub output_step: [usize; 2],
    /// Residual of the first output pixel; not read without `residual_params`.
    pub residual: *const u8,
    /// Bytes to the residual pixel below, and beside.
    pub residual_step: [usize; 2],
    /// Output pixels: rows and columns, neither of them zero.
    pub size: [usize; 2],
    /// Byte offset of each tap from the first, row by row of the filter; at least one.
    pub taps: &'a [usize],
    /// Their order in `weights`.
    pub order: TapOrder,
    /// Channels of the block: one of the kernel's widths.
    pub width: usize,
    /// Channels to write, `1..=width`.
    pub n: usize,
    /// Quads of weights.
    pub weights: &'a [i8],
    /// `width` biases, by [`DepthwiseKernel::channel_index`].
    pub bias: &'a [i32],
    /// `width` multipliers, by [`DepthwiseKernel::channel_index`].
    pub mult: &'a [f32],
    /// No weight is −128.
    pub narrow: bool,
    /// No multiplier is above ½: no real value leaves i32.
    pub bounded: bool,
    /// Requantization; its clamps are whole numbers.
    pub requant: Requant,
    /// Residual parameters, if a residual is added.
    pub residual_params: Option<ResidualParams>,
}

/// A layer's parameters as its kernel reads them.
#[derive(Debug, Clone, PartialEq)]
pub struct Packed {
    /// Order of taps.
    pub order: TapOrder,
    /// `[block][quad]`.
    pub weights: Vec<i8>,
    /// `[block][channel]`.
    pub bias: Vec<i32>,
    /// `[block][channel]`.
    pub mult: Vec<f32>,
    /// No weight is −128.
    pub narrow: bool,
    /// No multiplier is above ½: no real value leaves i32, so that clamping may follow rounding.
    pub bounded: bool,
}

/// The geometry of a layer that its kernel must know when weights are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Filter {
    /// Rows and columns.
    pub size: [usize; 2],
    /// Horizontal stride.
    pub stride: usize,
    /// Horizontal dilation.
    pub dilation: usize,
}

/// A whole layer, and where its tensors lie. Pointers are those of channel 0 of output pixel (0, 0).
#[derive(Debug, Clone, Copy)]
pub struct DepthwiseArgs<'a> {
    /// First tap.
    pub input: *const u8,
    /// Bytes from one output pixel's first tap to that of the pixel below it, and beside it.
    pub input_step: [usize; 2],
    /// Output.
    pub output: *mut u8,
    /// Bytes to the output pixel below, and beside.
    pub output_step: [usize; 2],
    /// Residual, and the bytes to the pixel below and beside.
    pub residual: Option<(*const u8, [usize; 2], ResidualParams)>,
    /// Output columns.
    pub columns: usize,
    /// Channels.
    pub channels: usize,
    /// Byte offset of each tap from the first, row by row of the filter.
    pub taps: &'a [usize],
    /// [`Packed::order`].
    pub order: TapOrder,
    /// [`Packed::weights`].
    pub weights: &'a [i8],
    /// [`Packed::bias`].
    pub bias: &'a [i32],
    /// [`Packed::mult`].
    pub mult: &'a [f32],
    /// [`Packed::narrow`].
    pub narrow: bool,
    /// [`Packed::bounded`].
    pub bounded: bool,
    /// Requantization; its clamps are whole numbers.
    pub requant: Requant,
}

/// Every depthwise kernel compiled into this program, best first.
pub fn registry() -> &'static [DepthwiseKernel] {
    static KERNELS: &[DepthwiseKernel] = &[
        #[cfg(target_arch = "x86_64")]
        super::x86::AMX_DEPTHWISE,
        #[cfg(target_arch = "x86_64")]
        super::x86::VNNI512_DEPTHWISE,
        #[cfg(target_arch = "x86_64")]
        super::x86::VNNI256_DEPTHWISE,
        #[cfg(target_arch = "x86_64")]
        super::x86::AVX2_DEPTHWISE,
        #[cfg(target_arch = "aarch64")]
        super::aarch64::I8MM_DEPTHWISE,
        #[cfg(target_arch = "aarch64")]
        super::aarch64::DOTPROD_DEPTHWISE,
        #[cfg(target_arch = "aarch64")]
        super::aarch64::NEON_DEPTHWISE,
        portable::PORTABLE,
        scalar::SCALAR,
    ];
    KERNELS
}

/// The kernel beside the convolution kernel `isa`.
pub fn of_isa(isa: &str) -> &'static DepthwiseKernel {
    registry().iter().find(|k| k.isa == isa).unwrap_or(&scalar::SCALAR)
}

impl Filter {
    /// The order of its taps in weights for `kernel`.
    pub fn order(&self, kernel: &DepthwiseKernel) -> TapOrder {
        let [rows, columns] = self.size;
        let shared = matches!((rows, self.stride), (3 | 5 | 7, 1 | 2)) && self.dilation == 1;
        if kernel.columns && rows == columns && (shared || rows == 1) {
            TapOrder::Columns { size: rows, step: if rows == 1 { 1 } else { self.stride } }
        } else {
            TapOrder::Sequence
        }
    }
}

impl TapOrder {
    /// Quads of `taps` taps.
    pub fn quads(self, taps: usize) -> usize {
        match self {
            TapOrder::Sequence => taps.div_ceil(QUAD),
            TapOrder::Columns { size, .. } => size.div_ceil(QUAD) * size,
        }
    }

    /// The tap at place `i` of a quad, if there is one.
    fn tap(self, taps: usize, quad: usize, i: usize) -> Option<usize> {
        match self {
            TapOrder::Sequence => Some(quad * QUAD + i).filter(|&t| t < taps),
            TapOrder::Columns { size, .. } => {
                let (row, column) = (quad / size * QUAD + i, quad % size);
                (row < size).then_some(row * size + column)
            }
        }
    }
}

impl DepthwiseKernel {
    /// Blocks of `channels` channels.
    pub fn blocks(&self, channels: usize) -> usize {
        channels.div_ceil(self.widths[0])
    }

    /// The width of block `index`, which begins at channel `index · widths[0]`.
    fn width(&self, channels: usize, index: usize) -> usize {
        let rest = channels - index * self.widths[0];
        *self.widths.iter().rfind(|&&w| w >= rest).unwrap_or(&self.widths[0])
    }

    /// Numbers of packed weights, and of biases, of a layer of `channels` channels and `taps` taps.
    pub fn sizes(&self, channels: usize, order: TapOrder, taps: usize) -> [usize; 2] {
        let lanes: usize = (0..self.blocks(channels)).map(|block| self.width(channels, block)).sum();
        [lanes * order.quads(taps) * QUAD * self.weight_bytes, lanes]
    }

    /// Packs a layer of `bias.len()` channels; `weight(channel, tap)` gives its weights, taps row by row of the filter.
    pub fn pack(&self, filter: Filter, weight: impl Fn(usize, usize) -> i8, bias: &[i32], mult: &[f32]) -> Packed {
        let (order, taps, channels) = (filter.order(self), filter.size[0] * filter.size[1], bias.len());
        let mut packed =
            Packed { order, weights: vec![], bias: vec![], mult: vec![], narrow: true, bounded: mult.iter().all(|m| m.abs() <= 0.5) };
        for block in 0..self.blocks(channels) {
            let (first, width) = (block * self.widths[0], self.width(channels, block));
            let n = width.min(channels - first);
            let at = packed.bias.len();
            packed.bias.resize(at + width, 0);
            packed.mult.resize(at + width, 0.0);
            for c in 0..n {
                packed.bias[at + (self.channel_index)(width, c)] = bias[first + c];
                packed.mult[at + (self.channel_index)(width, c)] = mult[first + c];
            }
            for quad in 0..order.quads(taps) {
                let at = packed.weights.len();
                packed.weights.resize(at + QUAD * width * self.weight_bytes, 0);
                for (c, i) in (0..n).flat_map(|c| (0..QUAD).map(move |i| (c, i))) {
                    let Some(tap) = order.tap(taps, quad, i) else { continue };
                    let w = weight(first + c, tap);
                    packed.narrow &= w != i8::MIN;
                    let to = at + (self.weight_index)(width, c, i) * self.weight_bytes;
                    // The sign, where the weight is widened, is the second of its bytes.
                    packed.weights[to] = w;
                    packed.weights[to + 1..to + self.weight_bytes].fill(w >> 7);
                }
            }
        }
        packed
    }

    /// Computes rows `rows` of blocks `blocks` of a layer. Rows are made a few at a time, all blocks of them before the next, so
    /// that input which rows and blocks share is read from the first-level cache.
    ///
    /// # Safety
    /// The processor supports the kernel. Every tap of these rows is readable, with [`super::SLACK`] bytes behind the last, as is
    /// the residual; the output is writable and overlaps neither; no other thread writes what is read or touches what is written.
    /// Parameters come from [`Self::pack`], and `taps` and steps agree with its [`Filter`].
    pub unsafe fn run(&self, a: &DepthwiseArgs<'_>, rows: Range<usize>, blocks: Range<usize>) {
        if a.columns == 0 {
            return;
        }
        let (quads, reach) = (a.order.quads(a.taps.len()), a.taps.last().map_or(0, |t| t + a.input_step[1]));
        let per_strip = (STRIP_BYTES.saturating_sub(reach) / a.input_step[0].max(1)).max(1);
        let (residual, residual_step, residual_params) = match a.residual {
            Some((pixels, step, params)) => (pixels, step, Some(params)),
            None => (std::ptr::null(), [0; 2], None),
        };
        for first in rows.clone().step_by(per_strip) {
            for index in blocks.clone() {
                let (channel, width) = (index * self.widths[0], self.width(a.channels, index));
                let quad_bytes = QUAD * self.weight_bytes;
                let block = Block {
                    input: a.input.wrapping_add(first * a.input_step[0] + channel),
                    input_step: a.input_step,
                    output: a.output.wrapping_add(first * a.output_step[0] + channel),
                    output_step: a.output_step,
                    residual: residual.wrapping_add(first * residual_step[0] + channel),
                    residual_step,
                    size: [per_strip.min(rows.end - first), a.columns],
                    taps: a.taps,
                    order: a.order,
                    width,
                    n: width.min(a.channels - channel),
                    weights: &a.weights[channel * quads * quad_bytes..][..width * quads * quad_bytes],
                    bias: &a.bias[channel..][..width],
                    mult: &a.mult[channel..][..width],
                    narrow: a.narrow,
                    bounded: a.bounded,
                    requant: a.requant,
                    residual_params,
                };
                // SAFETY: the caller's contract, for a part of the layer. A block reads at most `SLACK` bytes too many.
                unsafe { (self.run)(&block) };
            }
        }
    }
}

/// Index of a channel among lanes of 32 bits after two steps of interleaving, which work by 16 bytes: `[4][width / 4]`.
pub(crate) const fn interleaved(width: usize, channel: usize) -> usize {
    let (part, c) = (channel / 16, channel % 16);
    c / 4 * (width / 4) + part * 4 + c % 4
}

#[cfg(test)]
mod tests;
