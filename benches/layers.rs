//! Every shape of convolution in ResNet-18, 34 and 50, alone, on one thread of this machine's best kernels (or of `EDGE_ISA`'s):
//! `cargo bench --bench layers`, `cargo bench --bench layers -- 3x3s1`. Times are the convolution's, without what feeds it.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use edge_infer::exec::{Executor, Pool};
use edge_infer::graph::{Clamp, DType, QuantParams, Tensor, Weights, Window};
use edge_infer::kernels;
use edge_infer::model::ISA_VARIABLE;
use edge_infer::ops::{AveragePool, Conv, Dequantize, Graph, Node, Quantize};
use edge_infer::plan::{self, Policy};
use std::sync::Arc;
use std::time::Duration;

/// Input channels, input side, kernel side, stride, output channels, whether a residual is added.
type Shape = (usize, usize, usize, usize, usize, bool);

const SHAPES: &[Shape] = &[
    // All of them begin so.
    (3, 224, 7, 2, 64, false),
    // ResNet-18 and 34.
    (64, 56, 3, 1, 64, false),
    (64, 56, 3, 1, 64, true),
    (64, 56, 3, 2, 128, false),
    (64, 56, 1, 2, 128, false),
    (128, 28, 3, 1, 128, false),
    (128, 28, 3, 1, 128, true),
    (128, 28, 3, 2, 256, false),
    (128, 28, 1, 2, 256, false),
    (256, 14, 3, 1, 256, false),
    (256, 14, 3, 1, 256, true),
    (256, 14, 3, 2, 512, false),
    (256, 14, 1, 2, 512, false),
    (512, 7, 3, 1, 512, false),
    (512, 7, 3, 1, 512, true),
    // ResNet-50, beside the 3×3 ones above.
    (64, 56, 1, 1, 64, false),
    (64, 56, 1, 1, 256, true),
    (256, 56, 1, 1, 64, false),
    (256, 56, 1, 1, 128, false),
    (128, 56, 3, 2, 128, false),
    (256, 56, 1, 2, 512, false),
    (128, 28, 1, 1, 512, true),
    (512, 28, 1, 1, 128, false),
    (512, 28, 1, 1, 256, false),
    (256, 28, 3, 2, 256, false),
    (512, 28, 1, 2, 1024, false),
    (256, 14, 1, 1, 1024, true),
    (1024, 14, 1, 1, 256, false),
    (1024, 14, 1, 1, 512, false),
    (512, 14, 3, 2, 512, false),
    (1024, 14, 1, 2, 2048, false),
    (512, 7, 1, 1, 2048, true),
    (2048, 7, 1, 1, 512, false),
];

/// A graph of one convolution between a quantization and a pool; the convolution is node 1, or 2 behind a residual's quantization.
fn graph((channels, _, kernel, stride, out, residual): Shape) -> Graph {
    let quant = QuantParams { dtype: DType::U8, scale: 0.05, zero_point: 0 };
    let tensor = |name: &str, flat| Tensor { name: name.into(), quant, flat };
    let per_out = channels * kernel * kernel;
    // Weights of a trained network's spread, so that Winograd is chosen where it would be.
    let data = (0..out * per_out).map(|i| ((i * 7919 + i / 13) % 61) as i8 - 30).collect();
    let weights = Arc::new(Weights { data, out, per_out, scale: vec![0.001; out], bias: vec![0; out] });
    let window = Window { kernel: [kernel; 2], stride: [stride; 2], dilation: [1; 2], pad: [kernel / 2; 4], ceil: false };
    let node = |name: &str, op, inputs, output| Node { name: name.into(), op, inputs, output: Some(output) };
    let relu = Clamp { lo: 0.0, hi: f32::INFINITY };
    let mut tensors = vec![tensor("x", false)];
    let mut nodes = vec![node("x", Quantize { source: "x".into() }.into(), vec![], 0)];
    let mut inputs = vec![0];
    if residual {
        tensors.push(tensor("r", false));
        nodes.push(node("r", Quantize { source: "r".into() }.into(), vec![], 1));
        inputs.push(1);
    }
    let y = tensors.len();
    tensors.extend([tensor("y", false), tensor("pooled", true)]);
    nodes.extend([
        node("conv", Conv { weights, window, groups: 1, residual, clamp: relu }.into(), inputs, y),
        node("pool", AveragePool { window: None, count_include_pad: false, clamp: Clamp::default() }.into(), vec![y], y + 1),
        Node { name: "out".into(), op: Dequantize { target: "out".into() }.into(), inputs: vec![y + 1], output: None },
    ]);
    Graph { tensors, nodes }
}

fn layers(c: &mut Criterion) {
    let kernel = kernels::select(std::env::var(ISA_VARIABLE).ok().as_deref()).expect("EDGE_ISA names kernels of this machine");
    let pool = Arc::new(Pool::new(1).expect("a thread"));
    let mut group = c.benchmark_group(kernel.isa);
    group.sample_size(30).warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_millis(600));
    for &shape @ (channels, side, k, stride, out, residual) in SHAPES {
        let graph = graph(shape);
        let out_side = side.div_ceil(stride);
        let source = |name: &str| Ok(if name == "x" { vec![1, channels, side, side] } else { vec![1, out, out_side, out_side] });
        let program = plan::build(&graph, kernel, Policy::Fastest, 1, source).expect("a plan");
        let step = graph.nodes.iter().position(|n| n.name == "conv").expect("the convolution");
        let name = format!(
            "{channels}x{side} {k}x{k}s{stride} {out}{} {}",
            if residual { " +res" } else { "" },
            program.kernels().nth(step).unwrap_or_default()
        );
        let mut executor = Executor::new(Arc::new(program), pool.clone());
        let sizes = [channels * side * side, out * out_side * out_side];
        let data = sizes.map(|n| (0..n).map(|i| ((i * 31) % 257) as f32 * 0.05).collect::<Vec<f32>>());
        let inputs: Vec<&[f32]> = data[..1 + usize::from(residual)].iter().map(Vec::as_slice).collect();
        group.throughput(Throughput::Elements((out_side * out_side * out * channels * k * k) as u64));
        let mut times = Vec::new();
        group.bench_function(name, |b| {
            b.iter_custom(|iterations| {
                (0..iterations)
                    .map(|_| {
                        executor.run_profiled(&inputs, &mut times).expect("an inference");
                        times[step]
                    })
                    .sum()
            });
        });
    }
    group.finish();
}

criterion_group!(benches, layers);
criterion_main!(benches);
