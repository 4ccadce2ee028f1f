//! From a [`crate::graph::Graph`] to a [`Program`]: shapes, layouts, packed weights and arena addresses, all decided at load.

mod arena;
mod blob;
mod build;
mod check;
mod file;

pub use blob::Blob;
pub use build::{Policy, build, target_shapes};
pub use file::{Compiled, Fingerprint, is_compiled, open, save};

use crate::graph::Window;
use crate::kernels::winograd::{PATCH, POINTS, TILE, WinogradKernel, points};
use crate::kernels::{ConvKernel, MAX_MR, Requant, ResidualParams, Run, SLACK, excess};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// A tensor's place in the arena: NHWC (batch 1), with a halo of zero-point pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Buffer {
    /// Byte offset of the slot, halo included.
    pub base: usize,
    /// Height, width, channels without the halo.
    pub shape: [usize; 3],
    /// Halo pixels: top, left, bottom, right.
    pub halo: [usize; 4],
    /// Zero point, in the kernel's domain.
    pub zero_point: i32,
}

impl Buffer {
    /// Bytes from one pixel row to the next.
    pub fn row_stride(&self) -> usize {
        (self.shape[1] + self.halo[1] + self.halo[3]) * self.shape[2]
    }

    /// Pixel rows, halo included.
    pub fn rows(&self) -> usize {
        self.shape[0] + self.halo[0] + self.halo[2]
    }

    /// Bytes, halo included, slack excluded.
    pub fn len(&self) -> usize {
        self.rows() * self.row_stride()
    }

    /// True for a tensor without values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Byte offset in the arena of pixel (y, x) of the picture.
    pub fn at(&self, y: usize, x: usize) -> usize {
        self.base + (y + self.halo[0]) * self.row_stride() + (x + self.halo[1]) * self.shape[2]
    }
}

/// A convolution, ready to run.
#[derive(Debug, Serialize, Deserialize)]
pub struct Conv {
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
    pub together: usize,
}

impl Conv {
    /// What each thread needs for gathered input.
    fn scratch_bytes(&self) -> usize {
        self.gather.as_ref().map_or(0, |g| MAX_MR * g.row + SLACK)
    }

    /// See [`Step::blobs`].
    fn blobs(&mut self) -> Vec<&mut dyn blob::AnyBlob> {
        let mut blobs: Vec<&mut dyn blob::AnyBlob> = vec![&mut self.weights, &mut self.bias, &mut self.mult];
        if let Some(Excess { ends, offsets, weights }) = &mut self.excess {
            blobs.extend([ends as &mut dyn blob::AnyBlob, offsets, weights]);
        }
        blobs
    }
}

/// What a kernel reads of a pixel, if it is copied together first: a stem's seven pieces of 21 bytes are one run of 147.
#[derive(Debug, Serialize, Deserialize)]
pub struct Gather {
    /// Where the pieces lie, from the pixel's first tap.
    pub pieces: Vec<usize>,
    /// Bytes of each. They are copied one after another, in whole steps of [`GATHER_STEP`], of which the next piece overwrites
    /// what is too much.
    pub len: usize,
    /// Bytes from one pixel to the next.
    pub row: usize,
}

/// Bytes that are copied at once.
pub const GATHER_STEP: usize = 16;

/// [`excess::Excess`], owned or mapped.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Excess {
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
    pub fn of_block(&self, block: usize) -> excess::BlockExcess<'_> {
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

/// A convolution and the max-pool that alone reads it, row by row: of the convolution's output a thread keeps as many rows as
/// a window needs, in its scratch. A stem's output is the largest tensor of its network.
#[derive(Debug, Serialize, Deserialize)]
pub struct PooledConv {
    /// Convolution without residual; `dst` has the shape of its output, but no place in the arena.
    pub conv: Conv,
    /// Pooling window, not dilated.
    pub window: Window,
    /// Output.
    pub dst: Buffer,
}

impl PooledConv {
    /// Rows of the convolution that a thread keeps. It makes `stride` of them at a time, from a multiple of `stride` on, and a
    /// window may begin in the middle of such a group.
    pub fn strip_rows(&self) -> usize {
        strip_rows(&self.window)
    }

    /// Bytes of those rows, in whole cache lines.
    pub fn strip_bytes(&self) -> usize {
        (self.strip_rows() * self.row_bytes()).next_multiple_of(64)
    }

    /// Bytes of a row of the convolution's output.
    pub fn row_bytes(&self) -> usize {
        self.conv.dst.shape[1] * self.conv.dst.shape[2]
    }
}

/// See [`PooledConv::strip_rows`].
fn strip_rows(window: &Window) -> usize {
    let (kernel, stride) = (window.kernel[0], window.stride[0].max(1));
    (kernel.saturating_sub(1).div_ceil(stride) + 1) * stride
}

/// A 3×3 convolution with step 1, by exact F(4×4, 3×3) (see [`crate::kernels::winograd`]).
#[derive(Debug, Serialize, Deserialize)]
pub struct Winograd {
    /// The matrix product.
    #[serde(with = "file::winograd_kernel")]
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

impl Winograd {
    /// Whole tiles down and across.
    fn whole(&self) -> [usize; 2] {
        [self.dst.shape[0] / TILE, self.dst.shape[1] / TILE]
    }

    /// Row and column of tile `index`. Those cut by the right edge come first, then whole ones, then those cut by the bottom,
    /// then the corner: whatever points a tile needs, those that need it are neighbours.
    pub fn tile(&self, index: usize) -> [usize; 2] {
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
    pub fn outputs(&self, tile: [usize; 2]) -> [usize; 2] {
        [0, 1].map(|side| TILE.min(self.dst.shape[side] - tile[side] * TILE))
    }

    /// Indices of the tiles that need `point`.
    pub fn needing(&self, point: usize) -> Range<usize> {
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

    /// What each thread needs for transformed inputs and products.
    pub fn scratch_bytes(&self) -> usize {
        POINTS * (2 * self.strip * self.depth + 4 * self.batch * self.kernel.nr)
    }
}

/// What a fully connected layer makes.
#[derive(Debug, Serialize, Deserialize)]
pub enum GemmOutput {
    /// `f32(acc) · scale[c]` into a float target.
    Float {
        /// Index of the target.
        target: usize,
    },
    /// Requantized with `scale[c]` as multiplier.
    Quantized {
        /// Output.
        dst: Buffer,
        /// Requantization.
        requant: Requant,
    },
}

/// One step of a program. Quantities are in the kernel's domain.
#[derive(Debug, Serialize, Deserialize)]
pub enum Step {
    /// f32 NCHW source → bytes.
    Quantize {
        /// Index of the source.
        source: usize,
        /// Output.
        dst: Buffer,
        /// Divides before rounding.
        scale: f32,
        /// Requantization.
        requant: Requant,
    },
    /// Convolution.
    Conv(Box<Conv>),
    /// Convolution and max-pool.
    PooledConv(Box<PooledConv>),
    /// 3×3 convolution with fewer multiplications.
    Winograd(Box<Winograd>),
    /// Fully connected.
    Gemm {
        /// Input, without halo.
        src: Buffer,
        /// `[out][in]`, input order HWC.
        #[serde(skip)]
        weights: Blob<i8>,
        /// Zero-point correction included.
        #[serde(skip)]
        bias: Blob<i32>,
        /// One per output.
        #[serde(skip)]
        scale: Blob<f32>,
        /// Result.
        output: GemmOutput,
    },
    /// Largest value of each window.
    MaxPool {
        /// Input.
        src: Buffer,
        /// Output.
        dst: Buffer,
        /// Geometry.
        window: Window,
    },
    /// Mean of each window: `f32(Σ(x − zp)) · (s_x / (s_y · count))`.
    AveragePool {
        /// Input.
        src: Buffer,
        /// Output.
        dst: Buffer,
        /// Geometry.
        window: Window,
        /// Divide by the window's size even where it is partly padding.
        count_include_pad: bool,
        /// Input and output scale.
        scales: [f32; 2],
        /// Requantization.
        requant: Requant,
    },
    /// `f32(a − zp_a)·m_a + f32(b − zp_b)·m_b`.
    Add {
        /// Inputs.
        src: [Buffer; 2],
        /// Input scale over output scale.
        mult: [f32; 2],
        /// Output.
        dst: Buffer,
        /// Requantization.
        requant: Requant,
    },
    /// Any function of one byte, into channels `channel..` of the output.
    Lookup {
        /// Input.
        src: Buffer,
        /// Output.
        dst: Buffer,
        /// First output channel.
        channel: usize,
        /// Result of each byte.
        #[serde(skip)]
        table: Blob<u8>,
    },
    /// Bytes → f32 NCHW target.
    Dequantize {
        /// Input.
        src: Buffer,
        /// Index of the target.
        target: usize,
        /// Scale.
        scale: f32,
    },
}

impl Step {
    /// Its arrays of numbers, in a fixed order.
    fn blobs(&mut self) -> Vec<&mut dyn blob::AnyBlob> {
        match self {
            Step::Conv(c) => c.blobs(),
            Step::PooledConv(p) => p.conv.blobs(),
            Step::Winograd(c) => vec![&mut c.weights, &mut c.bias, &mut c.mult],
            Step::Gemm { weights, bias, scale, .. } => vec![weights, bias, scale],
            Step::Lookup { table, .. } => vec![table],
            Step::Quantize { .. } | Step::MaxPool { .. } | Step::AveragePool { .. } | Step::Add { .. } | Step::Dequantize { .. } => vec![],
        }
    }

    /// What each thread needs beside the arena.
    fn scratch_bytes(&self) -> usize {
        match self {
            Step::Winograd(conv) => conv.scratch_bytes(),
            Step::Conv(conv) => conv.scratch_bytes(),
            Step::PooledConv(p) => p.strip_bytes() + p.conv.scratch_bytes(),
            _ => 0,
        }
    }

    /// The quantized tensor this step writes.
    pub fn dst(&self) -> Option<&Buffer> {
        match self {
            Step::Conv(c) => Some(&c.dst),
            Step::PooledConv(p) => Some(&p.dst),
            Step::Winograd(c) => Some(&c.dst),
            Step::Quantize { dst, .. }
            | Step::MaxPool { dst, .. }
            | Step::AveragePool { dst, .. }
            | Step::Add { dst, .. }
            | Step::Lookup { dst, .. }
            | Step::Gemm { output: GemmOutput::Quantized { dst, .. }, .. } => Some(dst),
            Step::Gemm { .. } | Step::Dequantize { .. } => None,
        }
    }
}

/// What `inspect` says of one step.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StepInfo {
    /// ONNX node name.
    pub name: String,
    /// Operator.
    pub op: String,
    /// Kernel that runs it.
    pub kernel: String,
    /// Input shapes, NCHW.
    pub inputs: Vec<Vec<usize>>,
    /// Output shape, NCHW.
    pub output: Vec<usize>,
    /// Output scale and zero point as in the model file.
    pub quant: Option<(f32, i32)>,
    /// Multiply-accumulates.
    pub macs: u64,
    /// Packed weights, bias and multipliers.
    pub weight_bytes: u64,
}

/// A float value that enters or leaves a region.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// ONNX name.
    pub name: String,
    /// ONNX shape, batch 1.
    pub shape: Vec<usize>,
}

/// A region, ready to run.
#[derive(Debug, Serialize, Deserialize)]
pub struct Program {
    /// Convolution kernel.
    #[serde(with = "file::conv_kernel")]
    pub kernel: &'static ConvKernel,
    /// In execution order.
    pub steps: Vec<Step>,
    /// One per step.
    pub info: Vec<StepInfo>,
    /// Size of the arena, slack included.
    pub arena_bytes: usize,
    /// Scratch of each thread.
    pub scratch_bytes: usize,
    /// Float inputs.
    pub sources: Vec<Port>,
    /// Float outputs.
    pub targets: Vec<Port>,
}
