//! Every depthwise kernel against the scalar definition, on random layers.

use super::*;
use crate::kernels::{SLACK, tests::random};

/// A random layer in terms no kernel knows.
#[derive(Debug, Clone)]
struct Problem {
    filter: [usize; 2],
    stride: [usize; 2],
    dilation: [usize; 2],
    size: [usize; 2],
    channels: usize,
    /// Channels of the tensors beyond the layer's.
    beyond: [usize; 3],
    seed: u64,
    extreme: bool,
    residual: bool,
    mult: f32,
    zero_point: i32,
    clamp: Option<(i32, i32)>,
}

impl Problem {
    fn random(seed: u64) -> Self {
        let state = &mut (seed << 8);
        let mut below = |n: usize| random(state) as usize % n;
        let any = [1 + below(5), 1 + below(5)];
        let filter = [[3, 3], [3, 3], [3, 3], [5, 5], [5, 5], [7, 7], [1, 1], any][below(8)];
        let mut step = || [1, 1, 1, 2, 2, 3][below(6)];
        let stride = [step(), step()];
        let dilation = [[1, 1], [1, 1], [1, 1], [2, 1], [1, 2], [2, 2]][below(6)];
        let mut few = || if below(2) == 0 { 0 } else { below(20) };
        let beyond = [few(), few(), few()];
        let clamp = [below(256) as i32, below(256) as i32];
        Problem {
            filter,
            stride,
            dilation,
            size: [1 + below(3), 1 + below(9)],
            channels: 1 + if below(5) < 3 { below(20) } else { below(140) },
            beyond,
            seed,
            extreme: below(2) == 0,
            residual: below(3) == 0,
            mult: [1e-6, 1e-4, 0.001, 0.05, 0.5, 1.0, 4096.0][below(7)],
            zero_point: below(256) as i32,
            clamp: (below(2) == 0).then_some((clamp[0].min(clamp[1]), clamp[0].max(clamp[1]))),
        }
    }
}

/// The layer's output by `kernel`, in unsigned bytes; whatever else lies in its tensor must stay untouched.
fn solve(p: &Problem, kernel: &DepthwiseKernel) -> Vec<u8> {
    let mut state = p.seed;
    let (flip, shift) = match kernel.domain {
        Domain::U8 => (0, 0),
        Domain::S8 => (0x80, 128),
    };
    let byte = |state: &mut u64, extremes: [u8; 2]| {
        let r = random(state);
        if p.extreme && r >> 62 != 0 { extremes[usize::from(r & 15 == 0)] } else { r as u8 }
    };
    let pixel = p.beyond.map(|beyond| p.channels + beyond);
    let side = |i: usize| (p.size[i] - 1) * p.stride[i] + (p.filter[i] - 1) * p.dilation[i] + 1;
    let row = side(1) * pixel[0];
    let mut bytes = |n: usize| -> Vec<u8> { (0..n).map(|_| byte(&mut state, [0, 255]) ^ flip).collect() };
    let input = bytes(side(0) * row + SLACK);
    let residual = bytes(p.size[0] * p.size[1] * pixel[1] + SLACK);
    let taps: Vec<usize> = (0..p.filter[0])
        .flat_map(|y| (0..p.filter[1]).map(move |x| (y, x)))
        .map(|(y, x)| y * p.dilation[0] * row + x * p.dilation[1] * pixel[0])
        .collect();
    let weights: Vec<i8> = (0..p.channels * taps.len()).map(|_| byte(&mut state, [0x80, 0x7f]) as i8).collect();
    // Half of the layers are like those of our quantizer.
    let weights: Vec<i8> = if p.seed & 1 == 0 { weights } else { weights.iter().map(|&w| w.max(-127)).collect() };
    let bias: Vec<i32> = weights
        .chunks(taps.len())
        .map(|w| random(&mut state) as i16 as i32 * 8 + shift * w.iter().map(|&w| i32::from(w)).sum::<i32>())
        .collect();
    let mult: Vec<f32> = (0..p.channels).map(|_| p.mult * (0.5 + (random(&mut state) % 1001) as f32 / 2000.0)).collect();
    let filter = Filter { size: p.filter, stride: p.stride[1], dilation: p.dilation[1] };
    let packed = kernel.pack(filter, |c, t| weights[c * taps.len() + t], &bias, &mult);
    let (lo, hi) = p.clamp.unwrap_or((0, 255));
    let requant = Requant { zero_point: p.zero_point - shift, lo: (lo - p.zero_point) as f32, hi: (hi - p.zero_point) as f32 };
    let params = p.residual.then_some(ResidualParams { zero_point: 255 - p.zero_point - shift, mult: 0.37 });
    let guard = 64;
    let mut out = vec![0xa5u8; guard + p.size[0] * p.size[1] * pixel[2] + guard];
    let args = DepthwiseArgs {
        input: input.as_ptr(),
        input_step: [p.stride[0] * row, p.stride[1] * pixel[0]],
        output: out.as_mut_ptr().wrapping_add(guard),
        output_step: [p.size[1] * pixel[2], pixel[2]],
        residual: params.map(|params| (residual.as_ptr(), [p.size[1] * pixel[1], pixel[1]], params)),
        columns: p.size[1],
        channels: p.channels,
        taps: &taps,
        order: packed.order,
        weights: &packed.weights,
        bias: &packed.bias,
        mult: &packed.mult,
        narrow: packed.narrow,
        bounded: packed.bounded,
        requant,
    };
    // As two threads would share it.
    let (cut, blocks) = (p.seed as usize / 2 % (p.size[0] + 1), kernel.blocks(p.channels));
    for (rows, blocks) in [(0..cut, 0..blocks), (cut..p.size[0], 0..blocks / 2), (cut..p.size[0], blocks / 2..blocks)] {
        // SAFETY: supported kernels only; buffers are sized for all pixels, taps and slack.
        unsafe { kernel.run(&args, rows, blocks) };
    }
    let pixels = &out[guard..out.len() - guard];
    let untouched = pixels.chunks(pixel[2]).flat_map(|pixel| &pixel[p.channels..]);
    assert!(out[..guard].iter().chain(&out[out.len() - guard..]).chain(untouched).all(|&b| b == 0xa5), "{}: wrote too much", kernel.name);
    pixels.chunks(pixel[2]).flat_map(|pixel| pixel[..p.channels].iter().map(|b| b ^ flip)).collect()
}

#[test]
fn depthwise_kernels_equal_the_reference() {
    // Emulators take a hundred times as long.
    for seed in 0..if cfg!(target_arch = "x86_64") { 20_000 } else { 20 } {
        let p = Problem::random(seed);
        let expected = solve(&p, of_isa("scalar"));
        for kernel in registry().iter().filter(|k| (k.supported)() && k.isa != "scalar") {
            assert!(solve(&p, kernel) == expected, "{}: {p:?}", kernel.name);
        }
    }
}

#[test]
fn every_convolution_kernel_has_a_depthwise_one() {
    for conv in crate::kernels::registry() {
        let kernel = of_isa(conv.isa);
        assert_eq!((kernel.isa, kernel.domain), (conv.isa, conv.domain));
        assert_eq!((kernel.supported)(), (conv.supported)());
    }
}
