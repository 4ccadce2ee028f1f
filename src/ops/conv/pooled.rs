//! A convolution and the max-pool that alone reads it, row by row: of the convolution's output a thread keeps as many rows as a window needs,
//! in its scratch. A stem's output is the largest tensor of its network.
#![allow(unsafe_code)]

use super::direct::{self, DirectConv};
use super::{Conv, Layer};
use crate::graph::{Shape, Window};
use crate::ops::max_pool::{MaxPool, max_pool_row};
use crate::ops::taps::Taps;
use crate::ops::{Graph, Node, Op, Planner, Site, Step};
use crate::program::{AnyBlob, Buffer, Check, Checker, Context, MAX_DIM, Memory, StepOp, ensure};
use serde::{Deserialize, Serialize};

/// Rows between a convolution and its max-pool that fit a second-level cache beside weights and input.
const POOLED_BYTES: usize = 128 << 10;

/// Convolution and max-pool in one.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct PooledConv {
    /// Convolution without residual; `dst` has the shape of its output, but no place in the arena.
    pub conv: DirectConv,
    /// Pooling window, not dilated.
    pub window: Window,
    /// Output.
    pub dst: Buffer,
}

/// Rows of the convolution that a thread keeps. It makes `stride` of them at a time, from a multiple of `stride` on, and a window may begin in
/// the middle of such a group.
fn strip_rows(window: &Window) -> usize {
    let (kernel, stride) = (window.kernel[0], window.stride[0].max(1));
    (kernel.saturating_sub(1).div_ceil(stride) + 1) * stride
}

/// Convolutions, and the max-pools that alone read them, that run as one: indices of both nodes.
pub(crate) fn pairs(graph: &Graph, shapes: &[Shape]) -> Vec<(usize, usize)> {
    let pair = |(pool, node): (usize, &Node)| {
        let (Op::MaxPool(MaxPool { window }), Some(out)) = (&node.op, node.output) else { return None };
        let between = node.inputs[0];
        let conv = graph.nodes.iter().position(|n| n.output == Some(between))?;
        let Op::Conv(Conv { window: taps, groups: 1, residual: false, .. }) = &graph.nodes[conv].op else { return None };
        let [h, w, c] = shapes[between].hwc;
        let rows = strip_rows(window);
        let plain = window.dilation == [1, 1] && graph.tensors[between].quant == graph.tensors[out].quant;
        // Those that could be Winograd's gain more by that.
        let direct = taps.kernel != [3, 3] || taps.stride != [1, 1];
        (graph.reads(between) == 1 && plain && direct && 2 * rows <= h && rows * w * c <= POOLED_BYTES).then_some((conv, pool))
    };
    graph.nodes.iter().enumerate().filter_map(pair).collect()
}

/// Emits the step of such a pair, at the place of the pool.
pub(crate) fn plan(conv: &Node, pool: &Node, p: &mut Planner<'_>) -> crate::Result<()> {
    let inner = Site { name: &conv.name, op: conv.op.name(), inputs: &conv.inputs, output: conv.output };
    let (Op::Conv(definition), Op::MaxPool(MaxPool { window })) = (&conv.op, &pool.op) else {
        return Err(inner.shape_error("it is no convolution before a pool"));
    };
    let (mut step, cost) = direct::build(&Layer::new(definition, &inner, p)?, &inner, p)?;
    step.dst.base = 0;
    let name = format!("{} + {}", conv.name, pool.name);
    let outer = Site { name: &name, output: pool.output, ..inner };
    let step = PooledConv { conv: step, window: *window, dst: p.buffers[outer.out()?] };
    let kernel = step.conv.kernel(p.kernel).name;
    p.emit(&outer, Step::PooledConv(Box::new(step)), kernel, cost);
    if let Some(info) = p.info.last_mut() {
        info.op = format!("{}+{}", inner.op, pool.op.name());
    }
    Ok(())
}

impl PooledConv {
    /// Rows of the convolution that a thread keeps.
    fn strip_rows(&self) -> usize {
        strip_rows(&self.window)
    }

    /// Bytes of those rows, in whole cache lines.
    fn strip_bytes(&self) -> usize {
        (self.strip_rows() * self.row_bytes()).next_multiple_of(64)
    }

    /// Bytes of a row of the convolution's output.
    fn row_bytes(&self) -> usize {
        self.conv.dst.shape[1] * self.conv.dst.shape[2]
    }
}

impl StepOp for PooledConv {
    fn check(&self, c: &Checker<'_>) -> Check {
        // Other threads read the input while this one writes the output; what is between lies in the scratch, whose size follows from it.
        c.filter(&self.conv.src, &self.dst, None, self.conv.pad, &self.conv.requant)?;
        let between = &self.conv.dst;
        let in_range = between.shape.iter().all(|d| (1..=MAX_DIM).contains(d)) && between.halo == [0; 4] && between.base == 0;
        ensure(in_range && !between.is_view() && self.conv.residual.is_none(), "what it pools is out of range")?;
        c.window(between, &self.dst, &self.window)?;
        ensure(self.window.dilation == [1, 1], "its window is out of range")?;
        self.conv.check_reads(c)
    }

    #[inline(always)]
    unsafe fn run(&self, cx: &Context<'_>) {
        let (kernel, between, group) = (cx.kernel, &self.conv.dst, self.window.stride[0]);
        let [height, width, _] = between.shape;
        let (strip, row_bytes) = (self.strip_rows(), self.row_bytes());
        // SAFETY: the scratch holds the strip and what the convolution needs itself.
        let beyond = Memory { scratch: unsafe { cx.memory.scratch.add(self.strip_bytes()) }, ..cx.memory };
        // Rows of the convolution below it have been made.
        let mut made = 0;
        for y in cx.share(self.dst.shape[0]) {
            let taps = Taps::new(between, &self.window, 0, y);
            let mut from = made.max(taps.first);
            while from < taps.first + taps.count {
                let to = ((from / group + 1) * group).min(height);
                let pixels = from * width..to * width;
                let units = self.conv.units(kernel, pixels.len());
                // SAFETY: rows `from..to` are neighbours in the strip, since it holds whole groups, and no tap needs what was there.
                unsafe {
                    let origin = cx.memory.scratch.add(from % strip * row_bytes).wrapping_sub(between.at(from, 0));
                    direct::run_units(kernel, &self.conv, &beyond, origin, pixels, 0..units);
                }
                from = to;
            }
            made = from;
            // SAFETY: the rows were made by this thread.
            unsafe {
                let row = |r: usize| cx.memory.scratch.add(r % strip * row_bytes).cast_const();
                max_pool_row(kernel.domain, &taps, row, between, &self.window, cx.at(&self.dst, y, 0), &self.dst);
            }
        }
    }

    fn dst(&self) -> Option<&Buffer> {
        Some(&self.dst)
    }

    fn blobs(&mut self) -> Vec<&mut dyn AnyBlob> {
        self.conv.blobs()
    }

    fn addresses(&mut self) -> Vec<&mut dyn AnyBlob> {
        self.conv.addresses()
    }

    fn scratch_bytes(&self) -> usize {
        self.strip_bytes() + self.conv.scratch_bytes()
    }
}
