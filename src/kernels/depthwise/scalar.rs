//! The scalar definition of depthwise convolution: the specification that every other kernel equals bit for bit.

use super::{Block, DepthwiseKernel, QUAD};
use crate::kernels::{Domain, reference::requantize};

/// The reference, as a kernel of its own.
pub const SCALAR: DepthwiseKernel = DepthwiseKernel {
    name: "scalar-depthwise-c1",
    isa: "scalar",
    domain: Domain::U8,
    widths: &[1],
    weight_bytes: 1,
    weight_index: |_, _, tap| tap,
    channel_index: |_, _| 0,
    columns: false,
    supported: || true,
    run: scalar_block,
};

/// # Safety
/// See [`DepthwiseKernel::run`].
unsafe fn scalar_block(b: &Block<'_>) {
    debug_assert!(b.weights.len() == b.taps.len().next_multiple_of(QUAD) && b.width == 1);
    let domain = SCALAR.domain;
    for (y, x) in (0..b.size[0]).flat_map(|y| (0..b.size[1]).map(move |x| (y, x))) {
        let at = |step: [usize; 2]| y * step[0] + x * step[1];
        // SAFETY: every pixel's taps, residual and output are there.
        unsafe {
            let mut acc = b.bias[0];
            for (&tap, &w) in b.taps.iter().zip(b.weights) {
                acc = acc.wrapping_add(domain.decode(*b.input.add(at(b.input_step) + tap)) * i32::from(w));
            }
            let residual = b.residual_params.map(|p| (domain.decode(*b.residual.add(at(b.residual_step))), p));
            *b.output.add(at(b.output_step)) = requantize(acc, b.mult[0], residual, &b.requant);
        }
    }
}
