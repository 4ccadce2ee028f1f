//! Every depthwise kernel against the scalar definition, on random layers.

use super::*;
use crate::kernels::SLACK;
use proptest::prelude::*;

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

fn problems() -> impl Strategy<Value = Problem> {
    let filter = prop_oneof![
        4 => Just([3, 3]), 2 => Just([5, 5]), 1 => Just([7, 7]), 1 => Just([1, 1]), 2 => [1usize..6, 1usize..6],
    ];
    let step = || prop_oneof![3 => Just(1usize), 2 => Just(2), 1 => Just(3)];
    (
        (filter, [step(), step()], [prop_oneof![4 => Just(1usize), 1 => Just(2)], prop_oneof![4 => Just(1usize), 1 => Just(2)]]),
        [1usize..4, 1usize..10],
        prop_oneof![3 => 1usize..=20, 2 => 1usize..=140],
        [prop_oneof![Just(0usize), 1usize..20], prop_oneof![Just(0usize), 1usize..20], prop_oneof![Just(0usize), 1usize..20]],
        any::<u64>(),
        any::<(bool, bool)>(),
        prop_oneof![1e-7f32..1e-4, 1e-4f32..0.05, Just(0.5f32), Just(1.0), Just(4096.0)],
        0i32..=255,
        proptest::option::of((0i32..=255, 0i32..=255)),
    )
        .prop_map(|((filter, stride, dilation), size, channels, beyond, seed, (extreme, residual), mult, zero_point, clamp)| Problem {
            filter,
            stride,
            dilation,
            size,
            channels,
            beyond,
            seed,
            extreme,
            residual,
            mult,
            zero_point,
            clamp: clamp.map(|(a, b)| (a.min(b), a.max(b))),
        })
}

fn random(state: &mut u64) -> u64 {
    crate::kernels::tests::random(state)
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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]
    #[test]
    fn depthwise_kernels_equal_the_reference(p in problems()) {
        let expected = solve(&p, of_isa("scalar"));
        for kernel in registry().iter().filter(|k| (k.supported)() && k.isa != "scalar") {
            prop_assert_eq!(&solve(&p, kernel), &expected, "{}", kernel.name);
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
