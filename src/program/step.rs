//! The contract of a step: what it touches, and how a thread does its share.

use super::{AnyBlob, Buffer, Context};
use crate::graph::{Port, Window};
use crate::kernels::{ConvKernel, Requant, ResidualParams, SLACK};

/// No dimension, stride, dilation or padding is larger, so that their products fit 64 bits.
pub(crate) const MAX_DIM: usize = 1 << 15;
/// Largest arena a program may ask for, bytes.
pub(crate) const MAX_ARENA: usize = 1 << 30;

/// Nothing, or what is wrong with a step.
pub(crate) type Check = Result<(), String>;

/// Fails with `what` unless `condition` holds.
pub(crate) fn ensure(condition: bool, what: &str) -> Check {
    if condition { Ok(()) } else { Err(what.to_owned()) }
}

/// One step of a program. Quantities are in the kernels' domain.
pub(crate) trait StepOp {
    /// Proves that every address which [`StepOp::run`] can form lies in the arena, the scratch or a float port; or says which does not.
    /// Programs come from files: nothing that the step holds may be trusted before.
    fn check(&self, checker: &Checker<'_>) -> Check;

    /// One thread's share. Inlined into a copy for each instruction set that plain loops are compiled for.
    ///
    /// # Safety
    /// The step has passed [`StepOp::check`] for the program whose memory the context holds; all threads run this step, and none
    /// another one before all have returned; the processor supports the context's kernels.
    #[allow(unsafe_code)]
    unsafe fn run(&self, cx: &Context<'_>);

    /// The quantized tensor it writes.
    fn dst(&self) -> Option<&Buffer>;

    /// Its arrays of numbers, in a fixed order.
    fn blobs(&mut self) -> Vec<&mut dyn AnyBlob> {
        vec![]
    }

    /// Those of them that addresses are made of. They are copied out of a mapped file, which somebody may change after the check.
    fn addresses(&mut self) -> Vec<&mut dyn AnyBlob> {
        vec![]
    }

    /// What each thread needs beside the arena.
    fn scratch_bytes(&self) -> usize {
        0
    }
}

/// What steps are checked against.
pub(crate) struct Checker<'a> {
    /// Kernels of the program.
    pub kernel: &'a ConvKernel,
    /// Size of the arena.
    pub arena_bytes: usize,
    /// Float inputs.
    pub sources: &'a [Port],
    /// Float outputs.
    pub targets: &'a [Port],
}

impl Checker<'_> {
    /// A buffer that lies in the arena, with its slack.
    pub fn buffer(&self, b: &Buffer) -> Check {
        let dims = b.shape.iter().chain(&b.halo);
        ensure(dims.clone().all(|&d| d <= MAX_DIM) && !b.shape.contains(&0), "a tensor's shape is out of range")?;
        ensure((b.shape[2]..=MAX_DIM).contains(&b.pixel), "a tensor's pixels overlap, or lie too far apart")?;
        let (lo, hi) = self.kernel.domain.range();
        ensure((lo..=hi).contains(&b.zero_point), "a zero point is out of range")?;
        ensure(b.base <= self.arena_bytes && b.len() + SLACK <= self.arena_bytes - b.base, "a tensor lies outside the arena")
    }

    /// What a step writes, with whatever it reads: all of it in the arena, nothing that is read ever written.
    pub fn buffers(&self, dst: &Buffer, sources: &[&Buffer]) -> Check {
        self.buffer(dst)?;
        for src in sources {
            self.buffer(src)?;
            ensure(apart(dst, src), "its output overlaps an input")?;
        }
        Ok(())
    }

    /// A float input or output of so many values.
    pub fn port(ports: &[Port], index: usize, values: usize) -> Check {
        let port = ports.get(index).ok_or("a float port is missing")?;
        ensure(port.values() == values, "a float port has another size")
    }

    /// A window over all channels of `src`, taps outside the picture skipped.
    pub fn window(&self, src: &Buffer, dst: &Buffer, window: &Window) -> Check {
        ensure(src.channels() == dst.channels(), "input and output differ in channels")?;
        let mut numbers = window.kernel.iter().chain(&window.stride).chain(&window.dilation).chain(&window.pad);
        let mut steps = window.stride.iter().chain(&window.dilation);
        ensure(numbers.all(|&n| n <= MAX_DIM) && !steps.any(|&n| n == 0), "its window is out of range")?;
        // Taps outside the picture are skipped one by one: a window far larger than it would take for ever.
        let fits = |side: usize| window.kernel[side] <= src.shape[side] + window.pad[side] + window.pad[side + 2];
        ensure(fits(0) && fits(1), "its window is larger than its padded input")
    }

    /// What all kinds of convolutions have. Their kernels read a few bytes beyond a pixel's channels: not even a view of other channels
    /// may lie there while it is written.
    pub fn filter(
        &self,
        src: &Buffer,
        dst: &Buffer,
        residual: Option<&(Buffer, ResidualParams)>,
        pad: [usize; 2],
        requant: &Requant,
    ) -> Check {
        self.buffers(dst, &[src])?;
        ensure(in_other_slots(dst, src), "its output lies between its input's channels")?;
        self.requant(requant)?;
        ensure(pad[0] <= src.halo[0] && pad[1] <= src.halo[1], "its padding is larger than the input's halo")?;
        let Some((residual, _)) = residual else { return Ok(()) };
        self.buffers(dst, &[residual])?;
        ensure(residual.shape == dst.shape, "its residual has another shape")
    }

    /// An output range whose conversions to integers are defined.
    pub fn requant(&self, r: &Requant) -> Check {
        let bounded = |v: f32| (-255.0..=255.0).contains(&v);
        ensure(bounded(r.lo) && bounded(r.hi) && (-128..=255).contains(&r.zero_point), "its output range is out of range")
    }
}

/// All bytes of one, slack included, come before those of the other.
fn in_other_slots(a: &Buffer, b: &Buffer) -> bool {
    a.base + a.len() + SLACK <= b.base || b.base + b.len() + SLACK <= a.base
}

/// Neither touches a byte of the other: they lie in different slots, or are views of different channels of one.
fn apart(a: &Buffer, b: &Buffer) -> bool {
    if in_other_slots(a, b) {
        return true;
    }
    // Views of one buffer agree in everything but the first channel and their number.
    let alike = a.shape[..2] == b.shape[..2] && a.halo == b.halo && a.pixel == b.pixel;
    let (first, second) = if a.base <= b.base { (a, b) } else { (b, a) };
    let distance = second.base - first.base;
    alike && distance >= first.channels() && distance + second.channels() <= a.pixel
}
