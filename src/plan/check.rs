//! Proof that a program read from a file stays inside its memory: every address that a step can form is bounded here,
//! because steps and kernels trust the plan.

use super::build::MAX_ARENA;
use super::{Buffer, Conv, Excess, GATHER_STEP, Gather, GemmOutput, PooledConv, Port, Program, Step, Winograd};
use crate::graph::Window;
use crate::kernels::excess::ENTRY;
use crate::kernels::winograd::{LANES, POINTS, TILE};
use crate::kernels::{Requant, ResidualParams, SLACK};

/// No dimension, stride, dilation or padding is larger, so that their products fit 64 bits.
const MAX_DIM: usize = 1 << 15;
/// No thread needs more scratch.
const MAX_SCRATCH: usize = 1 << 28;

type Check = Result<(), String>;

fn ensure(condition: bool, what: &str) -> Check {
    if condition { Ok(()) } else { Err(what.to_owned()) }
}

impl Program {
    /// What a step could do outside the arena, the scratch or the float ports; `Ok` if nothing.
    pub(super) fn check(&self) -> Result<(), String> {
        ensure(self.arena_bytes <= MAX_ARENA, "its arena is too large")?;
        ensure(self.info.len() == self.steps.len(), "steps and their descriptions differ in number")?;
        for port in self.sources.iter().chain(&self.targets) {
            let values = port.shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).unwrap_or(usize::MAX);
            ensure(values <= MAX_ARENA / size_of::<f32>() && port.shape.iter().all(|&d| d > 0), "a port's shape is out of range")?;
        }
        for (step, info) in self.steps.iter().zip(&self.info) {
            self.check_step(step).map_err(|why| format!("step `{}`: {why}", info.name))?;
        }
        // The sizes that it follows from are in range by now.
        let scratch = self.steps.iter().map(Step::scratch_bytes).max().unwrap_or(0);
        ensure(self.scratch_bytes == scratch && scratch <= MAX_SCRATCH, "its scratch has another size, or is too large")
    }

    fn buffer(&self, b: &Buffer) -> Check {
        let dims = b.shape.iter().chain(&b.halo);
        ensure(dims.clone().all(|&d| d <= MAX_DIM) && !b.shape.contains(&0), "a tensor's shape is out of range")?;
        let (lo, hi) = self.kernel.domain.range();
        ensure((lo..=hi).contains(&b.zero_point), "a zero point is out of range")?;
        ensure(b.base <= self.arena_bytes && b.len() + SLACK <= self.arena_bytes - b.base, "a tensor lies outside the arena")
    }

    fn port(ports: &[Port], index: usize, values: usize) -> Check {
        let port = ports.get(index).ok_or("a float port is missing")?;
        ensure(port.shape.iter().product::<usize>() == values, "a float port has another size")
    }

    fn check_step(&self, step: &Step) -> Check {
        let values = |b: &Buffer| b.shape.iter().product::<usize>();
        match step {
            Step::Quantize { source, dst, scale, requant } => {
                self.buffer(dst)?;
                check_requant(requant)?;
                ensure(scale.is_finite() && *scale > 0.0, "its scale is not positive")?;
                Self::port(&self.sources, *source, values(dst))
            }
            Step::Conv(conv) => {
                self.filter(&conv.src, &conv.dst, conv.residual.as_ref(), conv.pad, &conv.requant)?;
                self.conv(conv)
            }
            Step::PooledConv(pooled) => self.pooled_conv(pooled),
            Step::Winograd(conv) => self.winograd(conv),
            Step::Gemm { src, weights, bias, scale, output } => {
                self.buffer(src)?;
                ensure(
                    src.halo == [0; 4] && weights.len() == bias.len() * src.len() && scale.len() == bias.len(),
                    "its weights have another size",
                )?;
                match output {
                    GemmOutput::Float { target } => Self::port(&self.targets, *target, bias.len()),
                    GemmOutput::Quantized { dst, requant } => {
                        self.buffer(dst)?;
                        check_requant(requant)?;
                        apart(dst, src)?;
                        ensure(values(dst) == bias.len() && dst.shape[2] == bias.len(), "its output has another size")
                    }
                }
            }
            Step::MaxPool { src, dst, window } => self.pool(src, dst, window),
            Step::AveragePool { src, dst, window, requant, .. } => {
                check_requant(requant)?;
                self.pool(src, dst, window)
            }
            Step::Add { src: [a, b], dst, requant, .. } => {
                check_requant(requant)?;
                for b in [a, b, dst] {
                    self.buffer(b)?;
                }
                apart(dst, a)?;
                apart(dst, b)?;
                ensure(a.shape == dst.shape && b.shape == dst.shape, "its inputs differ in shape")
            }
            Step::Lookup { src, dst, channel, table } => {
                self.buffer(src)?;
                self.buffer(dst)?;
                apart(dst, src)?;
                ensure(table.len() == 256, "its table has no 256 entries")?;
                ensure(
                    src.shape[..2] == dst.shape[..2] && *channel <= MAX_DIM && channel + src.shape[2] <= dst.shape[2],
                    "its channels lie outside the output",
                )
            }
            Step::Dequantize { src, target, .. } => {
                self.buffer(src)?;
                Self::port(&self.targets, *target, values(src))
            }
        }
    }

    fn pool(&self, src: &Buffer, dst: &Buffer, window: &Window) -> Check {
        self.buffer(src)?;
        self.buffer(dst)?;
        apart(dst, src)?;
        Self::window(src, dst, window)
    }

    fn window(src: &Buffer, dst: &Buffer, window: &Window) -> Check {
        ensure(src.shape[2] == dst.shape[2], "input and output differ in channels")?;
        let mut numbers = window.kernel.iter().chain(&window.stride).chain(&window.dilation).chain(&window.pad);
        let mut steps = window.stride.iter().chain(&window.dilation);
        ensure(numbers.all(|&n| n <= MAX_DIM) && !steps.any(|&n| n == 0), "its window is out of range")?;
        // Taps outside the picture are skipped one by one: a window far larger than it would take for ever.
        let fits = |side: usize| window.kernel[side] <= src.shape[side] + window.pad[side] + window.pad[side + 2];
        ensure(fits(0) && fits(1), "its window is larger than its padded input")
    }

    /// What both kinds of convolutions have.
    fn filter(&self, src: &Buffer, dst: &Buffer, residual: Option<&(Buffer, ResidualParams)>, pad: [usize; 2], requant: &Requant) -> Check {
        self.buffer(src)?;
        self.buffer(dst)?;
        apart(dst, src)?;
        check_requant(requant)?;
        ensure(pad[0] <= src.halo[0] && pad[1] <= src.halo[1], "its padding is larger than the input's halo")?;
        let Some((residual, _)) = residual else { return Ok(()) };
        self.buffer(residual)?;
        apart(dst, residual)?;
        ensure(residual.shape == dst.shape, "its residual has another shape")
    }

    fn pooled_conv(&self, p: &PooledConv) -> Check {
        // Other threads read the input while this one writes the output; what is between lies in the scratch, whose size
        // follows from it.
        self.filter(&p.conv.src, &p.dst, None, p.conv.pad, &p.conv.requant)?;
        let between = &p.conv.dst;
        let in_range = between.shape.iter().all(|d| (1..=MAX_DIM).contains(d)) && between.halo == [0; 4] && between.base == 0;
        ensure(in_range && p.conv.residual.is_none(), "what it pools is out of range")?;
        Self::window(between, &p.dst, &p.window)?;
        ensure(p.window.dilation == [1, 1] && p.window.stride[0] > 0, "its window is out of range")?;
        self.conv(&p.conv)
    }

    /// All but where it writes.
    fn conv(&self, c: &Conv) -> Check {
        let ([h, w, out], channels) = (c.dst.shape, c.src.shape[2]);
        ensure(c.groups > 0 && channels.is_multiple_of(c.groups) && out.is_multiple_of(c.groups), "its groups do not divide the channels")?;
        ensure(c.stride.iter().all(|&s| s <= MAX_DIM), "its stride is out of range")?;
        ensure((1..=MAX_DIM).contains(&c.together), "it computes no blocks")?;
        let (nr, kr) = (self.kernel.nr, self.kernel.kr);
        // The last pixel's first tap, in the last group, plus the longest run with what a kernel reads beyond it.
        let row = (h - 1) * c.stride[0] + c.src.halo[0] - c.pad[0];
        let column = (w - 1) * c.stride[1] + c.src.halo[1] - c.pad[1];
        let first = row * c.src.row_stride() + column * channels + channels / c.groups * (c.groups - 1);
        let mut steps = 0usize;
        for run in &c.runs {
            ensure(run.offset <= MAX_ARENA && run.steps <= MAX_ARENA, "a run is out of range")?;
            let inside = match &c.gather {
                None => first + run.offset + run.steps * kr <= c.src.len() + SLACK,
                Some(gather) => run.offset + run.steps * kr <= gather.row,
            };
            ensure(inside, "it reads outside its input")?;
            steps += run.steps;
        }
        if let Some(Gather { pieces, len, row }) = &c.gather {
            ensure(
                c.groups == 1 && [*len, *row, pieces.len()].iter().all(|&n| (1..=MAX_DIM).contains(&n)),
                "what it gathers is out of range",
            )?;
            let copied = len.next_multiple_of(GATHER_STEP);
            ensure((pieces.len() - 1) * len + copied <= *row, "what it gathers has no room")?;
            let inside = pieces.iter().all(|&p| p <= MAX_ARENA && first + p + copied <= c.src.len() + SLACK);
            ensure(inside, "it gathers from outside its input")?;
        }
        let blocks = c.groups * (out / c.groups).div_ceil(nr);
        ensure(c.block_len == steps * nr * kr && c.weights.len() == blocks * c.block_len, "its weights have another size")?;
        ensure(c.bias.len() == blocks * nr && c.mult.len() == blocks * nr, "its channels have another number")?;
        let Some(Excess { ends, offsets, weights }) = &c.excess else { return Ok(()) };
        let in_order =
            ends.iter().try_fold(0, |last, &end| (last <= end).then_some(end)).is_some_and(|last| last as usize == offsets.len());
        ensure(
            self.kernel.pairs && ends.len() == 2 * blocks && in_order && weights.len() == offsets.len() * ENTRY,
            "its weights that are kept apart have another size",
        )?;
        let inside = |&offset: &i32| usize::try_from(offset).is_ok_and(|o| first + o + kr <= c.src.len() + SLACK);
        ensure(offsets.iter().all(inside), "it reads outside its input")
    }

    fn winograd(&self, c: &Winograd) -> Check {
        self.filter(&c.src, &c.dst, c.residual.as_ref(), c.pad, &c.requant)?;
        let [h, w, out] = c.dst.shape;
        let (mr, nr) = (c.kernel.mr, c.kernel.nr);
        ensure(self.kernel.winograd.as_ref().is_some_and(|k| k.name == c.kernel.name), "its kernel belongs to another instruction set")?;
        ensure(
            c.tiles == [h.div_ceil(TILE), w.div_ceil(TILE)] && c.depth == c.src.shape[2].next_multiple_of(LANES),
            "its tiles do not cover the output",
        )?;
        ensure([c.strip, c.batch].iter().all(|&n| n > 0 && n <= MAX_DIM && n.is_multiple_of(mr)), "its strips are not whole products")?;
        let blocks = out.div_ceil(nr);
        ensure(c.weights.len() == blocks * POINTS * c.depth * nr + c.kernel.read_ahead, "its weights have another size")?;
        ensure(c.bias.len() == blocks * nr && c.mult.len() == blocks * nr, "its channels have another number")
    }
}

/// Slots that one step writes and reads do not overlap.
fn apart(dst: &Buffer, src: &Buffer) -> Check {
    ensure(dst.base + dst.len() + SLACK <= src.base || src.base + src.len() + SLACK <= dst.base, "its output overlaps an input")
}

fn check_requant(r: &Requant) -> Check {
    let bounded = |v: f32| (-255.0..=255.0).contains(&v);
    ensure(bounded(r.lo) && bounded(r.hi) && (-128..=255).contains(&r.zero_point), "its output range is out of range")
}
