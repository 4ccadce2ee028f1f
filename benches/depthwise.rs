//! Depthwise layers of MobileNetV2, MobileNetV3 and EfficientNet-B0, alone, on one thread, by every kernel this processor runs:
//! `cargo bench --bench depthwise`, `cargo bench --bench depthwise -- avx512vnni`. Each figure is the shortest of many runs, which other
//! programs disturb least.

use edge_infer::kernels::depthwise::{DepthwiseArgs, Filter, registry};
use edge_infer::kernels::{Domain, Requant, SLACK};
use std::time::{Duration, Instant};

/// Output side, channels, filter side, stride.
type Shape = (usize, usize, usize, usize);

const SHAPES: &[Shape] = &[
    // MobileNetV2.
    (112, 32, 3, 1),
    (56, 96, 3, 2),
    (56, 144, 3, 1),
    (28, 144, 3, 2),
    (28, 192, 3, 1),
    (14, 192, 3, 2),
    (14, 384, 3, 1),
    (14, 576, 3, 1),
    (7, 576, 3, 2),
    (7, 960, 3, 1),
    // MobileNetV3 and EfficientNet-B0.
    (112, 16, 3, 1),
    (56, 72, 3, 1),
    (28, 72, 5, 2),
    (28, 120, 5, 1),
    (28, 240, 5, 1),
    (14, 480, 5, 1),
    (14, 672, 5, 1),
    (7, 672, 5, 2),
    (7, 1152, 5, 1),
    // ConvNeXt, and a BatchNorm.
    (14, 384, 7, 1),
    (28, 256, 1, 1),
];

fn main() {
    // Cargo adds an option of its own.
    let wanted = std::env::args().skip(1).find(|a| !a.starts_with('-'));
    for kernel in registry().iter().filter(|k| (k.supported)() && wanted.as_deref().is_none_or(|w| w == k.isa)) {
        println!("{}", kernel.name);
        for &(side, channels, filter, stride) in SHAPES {
            let taps = filter * filter;
            let in_side = (side - 1) * stride + filter;
            let (row, zero) = (in_side * channels, if kernel.domain == Domain::U8 { 0 } else { -128 });
            let input = aligned((0..in_side * row + SLACK).map(|i| (i * 37 % 251) as u8));
            let mut output = aligned((0..side * side * channels).map(|_| 0));
            let (bias, mult) = (vec![100; channels], vec![0.0003; channels]);
            let weight = |c: usize, t: usize| ((c * 31 + t * 17) % 255) as u8 as i8;
            let packed = kernel.pack(Filter { size: [filter; 2], stride, dilation: 1 }, |c, t| weight(c, t).max(-127), &bias, &mult);
            let offsets: Vec<usize> = (0..taps).map(|t| t / filter * row + t % filter * channels).collect();
            let args = DepthwiseArgs {
                input: input.as_ptr().cast(),
                input_step: [stride * row, stride * channels],
                output: output.as_mut_ptr().cast(),
                output_step: [side * channels, channels],
                residual: None,
                columns: side,
                channels,
                taps: &offsets,
                order: packed.order,
                weights: &packed.weights,
                bias: &packed.bias,
                mult: &packed.mult,
                narrow: packed.narrow,
                bounded: packed.bounded,
                requant: Requant { zero_point: zero, lo: 0.0, hi: 255.0 },
            };
            // SAFETY: a supported kernel, and tensors with all their pixels and slack.
            let seconds = shortest(|| unsafe { kernel.run(&args, 0..side, 0..kernel.blocks(channels)) });
            let (outputs, macs) = (side * side * channels, side * side * channels * taps);
            println!(
                "  {side:3}×{side:<3} ×{channels:<4} {filter}×{filter} s{stride}: {:8.2} µs  {:6.1} GMAC/s  {:5.1} outputs/ns",
                seconds * 1e6,
                macs as f64 / seconds / 1e9,
                outputs as f64 / seconds / 1e9,
            );
        }
    }
}

/// Bytes at a whole cache line, as in an arena.
fn aligned(bytes: impl Iterator<Item = u8>) -> Vec<Line> {
    let bytes: Vec<u8> = bytes.collect();
    bytes.chunks(64).map(|chunk| Line(std::array::from_fn(|i| *chunk.get(i).unwrap_or(&0)))).collect()
}

#[derive(Clone, Copy)]
#[repr(align(64))]
#[expect(dead_code, reason = "read through pointers")]
struct Line([u8; 64]);

/// Seconds of the shortest call.
fn shortest(mut call: impl FnMut()) -> f64 {
    let begin = Instant::now();
    let mut times = vec![];
    while begin.elapsed() < Duration::from_millis(60) || times.len() < 5 {
        let start = Instant::now();
        call();
        times.push(start.elapsed());
    }
    times.iter().min().expect("it ran").as_secs_f64()
}
