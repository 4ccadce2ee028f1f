//! Random whole graphs: every instruction set and thread count gives the same bits, and they are those of the reference.

mod common;

use common::Rng;
use edge_infer::exec::{Executor, Pool};
use edge_infer::graph::{Clamp, DType, QuantParams, Shape, Tensor, TensorId, Weights, Window};
use edge_infer::kernels;
use edge_infer::ops::reference::{self, Source};
use edge_infer::ops::{
    Add, Arithmetic, AveragePool, Border, Concat, Conv, DepthToSpace, Dequantize, Expression, Extent, Function, Gemm, GlobalMaxPool, Graph,
    Groups, Map, MaxPool, Mul, Node, Op, PRelu, Pad, Quantize, ReduceSum, Requantize, Slice, SpaceToDepth, Sub,
};
use edge_infer::plan::{self, Policy};
use proptest::prelude::*;
use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

/// A graph under construction, with the shapes (C×H×W) of its tensors.
struct Builder {
    rng: Rng,
    graph: Graph,
    shapes: Vec<[usize; 3]>,
}

impl Builder {
    fn quant(&mut self, scale: f32) -> QuantParams {
        let dtype = if self.rng.chance(2) { DType::U8 } else { DType::I8 };
        let (min, max) = dtype.range();
        let zero_point = match self.rng.below(4) {
            0 => min,
            1 => max,
            _ => min + self.rng.below(256) as i32,
        };
        // A quarter of the scales are powers of two: exact arithmetic, many ties.
        let scale = if self.rng.chance(4) { scale.log2().round().exp2() } else { scale };
        QuantParams { dtype, scale, zero_point }
    }

    /// Now and then that of an earlier tensor: what shares a quantization may share memory.
    fn maybe_shared(&mut self, quant: QuantParams) -> QuantParams {
        if self.rng.chance(3) {
            let earlier = self.rng.below(self.graph.tensors.len());
            self.graph.tensors[earlier].quant
        } else {
            quant
        }
    }

    fn push(&mut self, op: impl Into<Op>, inputs: Vec<TensorId>, shape: [usize; 3], quant: QuantParams) -> TensorId {
        let id = self.graph.tensors.len();
        self.graph.tensors.push(Tensor { name: format!("t{id}"), quant, flat: false });
        self.shapes.push(shape);
        self.graph.nodes.push(Node { name: format!("n{id}"), op: op.into(), inputs, output: Some(id) });
        id
    }

    fn scale(&self, t: TensorId) -> f32 {
        self.graph.tensors[t].quant.scale
    }

    fn pick(&mut self) -> TensorId {
        // Recent tensors more often: chains as well as bushes.
        let n = self.graph.tensors.len();
        if self.rng.chance(3) { self.rng.below(n) } else { n - 1 }
    }

    fn clamp(&mut self, step: f32) -> Clamp {
        match self.rng.below(4) {
            0 => Clamp { lo: 0.0, hi: f32::INFINITY },
            1 => Clamp { lo: self.rng.real(-60.0, 0.0) * step, hi: self.rng.real(0.0, 90.0) * step },
            _ => Clamp::default(),
        }
    }

    fn weights(&mut self, out: usize, per_out: usize) -> Weights {
        // Extremes only, all values alike, or mostly small ones, as a trained network's.
        let kind = self.rng.below(5);
        let uniform = |rng: &mut Rng| rng.between(0, 254) as i32 - 127;
        let weight = |rng: &mut Rng| match kind {
            0 => [-127, 127][rng.below(2)],
            1 | 2 => uniform(rng),
            _ => uniform(rng) * uniform(rng) * uniform(rng) / (127 * 127),
        };
        let data = (0..out * per_out).map(|_| weight(&mut self.rng) as i8).collect();
        let base = self.rng.real(0.001, 0.02);
        Weights {
            data,
            out,
            per_out,
            scale: (0..out).map(|_| base * self.rng.real(0.3, 3.0)).collect(),
            bias: (0..out).map(|_| self.rng.between(0, 20_000) as i32 - 10_000).collect(),
        }
    }

    fn window(&mut self, [_, h, w]: [usize; 3], pooling: bool) -> Option<(Window, [usize; 2])> {
        let mut win = Window { kernel: [1; 2], stride: [1; 2], dilation: [1; 2], pad: [0; 4], ceil: pooling && self.rng.chance(3) };
        if self.rng.chance(3) {
            // The commonest of all: 3×3, same size.
            (win.kernel, win.pad) = ([3; 2], [1; 4]);
            win.stride = [1 + usize::from(self.rng.chance(3)); 2];
        } else {
            for d in 0..2 {
                win.kernel[d] = self.rng.between(1, 5);
                win.stride[d] = self.rng.between(1, 3);
                win.dilation[d] = if self.rng.chance(4) { 2 } else { 1 };
                for side in [d, d + 2] {
                    let most = if pooling { (win.kernel[d] - 1).min(win.kernel[d] / 2) } else { 3 };
                    win.pad[side] = self.rng.between(0, most);
                }
            }
        }
        let out = win.output([h, w])?;
        // Pools must not have windows of padding only.
        let meets = |d: usize, o: usize| {
            (0..win.kernel[d]).any(|k| (win.pad[d]..[h, w][d] + win.pad[d]).contains(&(o * win.stride[d] + k * win.dilation[d])))
        };
        if pooling && (0..2).any(|d| (0..out[d]).any(|o| !meets(d, o))) {
            return None;
        }
        (out[0] * out[1] <= 900).then_some((win, out))
    }

    /// A second operand for `x`: of its shape, or with sides of 1 on either part; the result's shape, quantization and clamp. `scale` gives
    /// about the scale that the result needs.
    fn pair(&mut self, x: TensorId, scale: impl Fn(&Self, TensorId) -> f32) -> (TensorId, [usize; 3], QuantParams, Clamp) {
        let fits = |a: [usize; 3], b: [usize; 3]| a.iter().zip(&b).all(|(&a, &b)| a == b || a == 1 || b == 1);
        let shape = self.shapes[x];
        let others: Vec<TensorId> = (0..self.shapes.len()).filter(|&t| fits(self.shapes[t], shape)).collect();
        let other = others[self.rng.below(others.len())];
        let of_other = self.shapes[other];
        let out = [0, 1, 2].map(|d| shape[d].max(of_other[d]));
        let scale = scale(self, other) * self.rng.real(0.3, 1.2);
        let quant = self.quant(scale);
        let quant = self.maybe_shared(quant);
        let clamp = self.clamp(quant.scale);
        (other, out, quant, clamp)
    }

    fn add_node(&mut self) -> Option<TensorId> {
        let x = self.pick();
        let shape @ [c, h, w] = self.shapes[x];
        let x_scale = self.scale(x);
        match self.rng.below(19) {
            16.. => self.moved(x),
            0..=3 => {
                let (window, [oh, ow]) = self.window(shape, false)?;
                let groups = match self.rng.below(5) {
                    0 => c,
                    1 if c.is_multiple_of(2) => 2,
                    _ => 1,
                };
                let residual = (0..self.shapes.len()).filter(|&t| self.shapes[t][1..] == [oh, ow]).nth(self.rng.below(3));
                let residual = residual.filter(|&t| self.shapes[t][0].is_multiple_of(groups));
                let out = residual.map_or_else(|| groups * self.rng.between(1, 40usize.div_ceil(groups)), |r| self.shapes[r][0]);
                let per_out = c / groups * window.kernel[0] * window.kernel[1];
                let weights = self.weights(out, per_out);
                // Standard deviations: about 73 for each factor.
                let scale = x_scale * weights.scale[0] * (per_out as f32).sqrt() * self.rng.real(20.0, 200.0);
                let quant = self.quant(scale);
                let quant = self.maybe_shared(quant);
                let clamp = self.clamp(quant.scale);
                let op = Conv { weights: Arc::new(weights), window, groups, residual: residual.is_some(), clamp };
                Some(self.push(op, [x].into_iter().chain(residual).collect(), [out, oh, ow], quant))
            }
            4 => {
                let scale = |b: &Self, other| x_scale + b.scale(other);
                let (other, out, quant, clamp) = self.pair(x, scale);
                let inputs = if self.rng.chance(2) { vec![x, other] } else { vec![other, x] };
                let op: Op = if self.rng.chance(2) { Add { clamp }.into() } else { Sub { clamp }.into() };
                Some(self.push(op, inputs, out, quant))
            }
            11 => {
                let scale = |b: &Self, other| x_scale * b.scale(other) * 100.0;
                let (other, out, quant, clamp) = self.pair(x, scale);
                let inputs = if self.rng.chance(2) { vec![x, other] } else { vec![other, x] };
                Some(self.push(Mul { clamp }, inputs, out, quant))
            }
            12 => {
                let quant = self.quant(x_scale);
                let clamp = self.clamp(quant.scale);
                let slope = (0..c).map(|_| self.rng.real(-1.5, 1.5)).collect();
                Some(self.push(PRelu { slope, clamp }, vec![x], shape, quant))
            }
            13 => {
                let quant = self.graph.tensors[x].quant;
                Some(self.push(GlobalMaxPool, vec![x], [c, 1, 1], quant))
            }
            14 => {
                let quant = self.quant(x_scale * ((h * w) as f32).sqrt());
                let clamp = self.clamp(quant.scale);
                Some(self.push(ReduceSum { clamp }, vec![x], [c, 1, 1], quant))
            }
            5 => {
                let others: Vec<_> = (0..self.shapes.len()).filter(|&t| self.shapes[t][1..] == [h, w]).collect();
                let inputs: Vec<_> = (0..self.rng.between(1, 3)).map(|_| others[self.rng.below(others.len())]).collect();
                let channels = inputs.iter().map(|&t| self.shapes[t][0]).sum();
                // Of an input's quantization: the planner makes that one in place.
                let quant = if self.rng.chance(2) { self.graph.tensors[inputs[0]].quant } else { self.quant(x_scale * 1.1) };
                (channels <= 96).then(|| self.push(Concat, inputs, [channels, h, w], quant))
            }
            6 => {
                let (window, [oh, ow]) = self.window(shape, true)?;
                let quant = self.graph.tensors[x].quant;
                Some(self.push(MaxPool { window }, vec![x], [c, oh, ow], quant))
            }
            7 => {
                let (window, [oh, ow]) = self.window(shape, true)?;
                let count_include_pad = self.rng.chance(2);
                let quant = self.quant(x_scale * 0.7);
                let clamp = self.clamp(quant.scale);
                Some(self.push(AveragePool { window: Some(window), count_include_pad, clamp }, vec![x], [c, oh, ow], quant))
            }
            8 => {
                let quant = self.quant(x_scale * 0.5);
                Some(self.push(AveragePool { window: None, count_include_pad: false, clamp: Clamp::default() }, vec![x], [c, 1, 1], quant))
            }
            9 => {
                let gate = match self.rng.below(2) {
                    0 => Function::Sigmoid,
                    _ => Function::HardSigmoid { alpha: self.rng.real(0.1, 0.3), beta: 0.5 },
                };
                let (function, scale) = match self.rng.below(4) {
                    0 => (Expression::of(gate), 1.0 / 255.0),
                    1 => (Expression::pair(Arithmetic::Mul, Expression::X, Expression::of(gate)), x_scale),
                    2 => {
                        let rounded = Expression::Rounded(self.quant(1.0 / 255.0), Box::new(Expression::of(gate)));
                        (Expression::pair(Arithmetic::Mul, Expression::X, rounded), x_scale)
                    }
                    // Some have poles, or no value below 0.
                    _ => {
                        let alpha = self.rng.real(0.1, 2.0);
                        let functions = [
                            Function::Abs,
                            Function::Celu { alpha },
                            Function::Elu { alpha },
                            Function::Erf,
                            Function::Exp,
                            Function::Gelu,
                            Function::GeluTanh,
                            Function::LeakyRelu { alpha },
                            Function::Log,
                            Function::Mish,
                            Function::Neg,
                            Function::Reciprocal,
                            Function::Selu { alpha, gamma: 1.1 },
                            Function::Softplus,
                            Function::Softsign,
                            Function::Sqrt,
                            Function::Tanh,
                        ];
                        let function = Expression::of(functions[self.rng.below(functions.len())]);
                        let constant = Expression::Constant(self.rng.real(-2.0, 2.0));
                        let pair = [Arithmetic::Add, Arithmetic::Sub, Arithmetic::Mul, Arithmetic::Div, Arithmetic::Pow][self.rng.below(5)];
                        let function = if self.rng.chance(2) { function } else { Expression::pair(pair, function, constant) };
                        (function, x_scale)
                    }
                };
                let quant = self.quant(scale);
                let clamp = self.clamp(quant.scale);
                Some(self.push(Map { function, clamp }, vec![x], shape, quant))
            }
            _ => {
                let scale = x_scale * self.rng.real(0.5, 2.0);
                let quant = self.quant(scale);
                let clamp = self.clamp(quant.scale);
                Some(self.push(Requantize { clamp }, vec![x], shape, quant))
            }
        }
    }

    /// Values of `x` elsewhere, with its quantization.
    fn moved(&mut self, x: TensorId) -> Option<TensorId> {
        let shape @ [c, h, w] = self.shapes[x];
        let quant = self.graph.tensors[x].quant;
        let (op, shape): (Op, _) = match self.rng.below(4) {
            0 => {
                let border = [Border::Constant(self.rng.real(-9.0, 9.0) * quant.scale), Border::Reflect, Border::Edge, Border::Wrap];
                let border = border[self.rng.below(4)];
                let most = if border == Border::Reflect { 1 } else { 0 };
                let amounts = shape.map(|size| [0, 1].map(|_| self.rng.below((size + 1 - most).min(4)) as i64));
                let padded = [0, 1, 2].map(|d| shape[d] + (amounts[d][0] + amounts[d][1]) as usize);
                (Pad { amounts, border }.into(), padded)
            }
            1 => {
                let step = self.rng.between(1, 2);
                let starts = shape.map(|size| self.rng.below(size));
                let extents = starts.map(|start| Extent::Range { start: start as i64, end: i64::MAX, step: step as i64 });
                (Slice { extents }.into(), [0, 1, 2].map(|d| (shape[d] - starts[d]).div_ceil(step)))
            }
            2 => {
                let block = [self.rng.between(1, 3), self.rng.between(1, 3)];
                let channels = Some(c / (block[0] * block[1])).filter(|n| n * block[0] * block[1] == c && *n > 0)?;
                let groups = match self.rng.below(3) {
                    0 => Groups::EachChannel,
                    1 if channels.is_multiple_of(2) => Groups::Of(2),
                    _ => Groups::Of(1),
                };
                let sides = [h * block[0], w * block[1]];
                let crop = [sides[0], sides[1], sides[0], sides[1]].map(|side| self.rng.below(side.div_ceil(2).min(4)));
                (DepthToSpace { block, groups, crop }.into(), [channels, sides[0] - crop[0] - crop[2], sides[1] - crop[1] - crop[3]])
            }
            _ => {
                let block = self.rng.between(1, 3);
                let [y, x] = [h, w].map(|side| Some(side / block).filter(|n| n * block == side));
                (SpaceToDepth { block }.into(), [c * block * block, y?, x?])
            }
        };
        let [c, h, w] = shape;
        (c <= 96 && h * w <= 900).then(|| self.push(op, vec![x], shape, quant))
    }

    /// A fully connected layer; not over a tensor that a convolution pads, which the planner refuses.
    fn add_gemm(&mut self, quantized: bool) {
        let mean = AveragePool { window: None, count_include_pad: false, clamp: Clamp::default() };
        let mut x = self.graph.tensors.len() - 1;
        if self.shapes[x].iter().product::<usize>() > 2000 {
            let quant = self.quant(self.scale(x) * 0.5);
            x = self.push(mean, vec![x], [self.shapes[x][0], 1, 1], quant);
        }
        let weights = self.rng.between(1, 40);
        let weights = Arc::new(self.weights(weights, self.shapes[x].iter().product()));
        if quantized {
            let scale = self.scale(x) * weights.scale[0] * (weights.per_out as f32).sqrt() * 60.0;
            let quant = self.quant(scale);
            let clamp = self.clamp(quant.scale);
            let shape = [weights.out, 1, 1];
            self.push(Gemm { weights, clamp, float_output: None }, vec![x], shape, quant);
        } else {
            let op = Gemm { weights, clamp: Clamp::default(), float_output: Some("logits".into()) }.into();
            self.graph.nodes.push(Node { name: "fc".into(), op, inputs: vec![x], output: None });
        }
    }
}

/// A graph and the shape of its one source.
fn random_graph(seed: u64, nodes: usize) -> (Graph, [usize; 3]) {
    let mut b = Builder { rng: Rng(seed), graph: Graph::default(), shapes: vec![] };
    let shape = [b.rng.between(1, 34), b.rng.between(1, 15), b.rng.between(1, 15)];
    let quant = b.quant(0.02);
    b.push(Quantize { source: "x".into() }, vec![], shape, quant);
    for _ in 0..nodes {
        b.add_node();
    }
    if b.rng.chance(2) {
        b.add_gemm(true);
    }
    if b.rng.chance(2) {
        b.add_gemm(false);
    }
    // Every tensor that nothing reads leaves the region, and now and then one that something does.
    let mut graph = b.graph;
    for t in 0..graph.tensors.len() {
        if !graph.nodes.iter().any(|n| n.inputs.contains(&t)) || b.rng.chance(8) {
            let op = Dequantize { target: format!("y{t}") }.into();
            graph.nodes.push(Node { name: format!("y{t}"), op, inputs: vec![t], output: None });
        }
    }
    (graph, shape)
}

/// A convolution and the max-pool that alone reads it, of sizes at which both run as one step.
fn random_stem(seed: u64) -> (Graph, [usize; 3]) {
    let mut b = Builder { rng: Rng(seed), graph: Graph::default(), shapes: vec![] };
    let shape = [b.rng.between(1, 5), b.rng.between(24, 40), b.rng.between(3, 40)];
    let quant = b.quant(0.02);
    b.push(Quantize { source: "x".into() }, vec![], shape, quant);
    let kernel = [b.rng.between(1, 7), b.rng.between(1, 3)];
    let window = Window { kernel, stride: [2; 2], dilation: [1; 2], pad: [kernel[0] / 2, 0, kernel[0] / 2, 1], ceil: false };
    let out = b.rng.between(1, 70);
    let weights = b.weights(out, shape[0] * kernel[0] * kernel[1]);
    let quant = b.quant(0.02 * weights.scale[0] * (weights.per_out as f32).sqrt() * 60.0);
    let clamp = b.clamp(quant.scale);
    let [h, w] = window.output([shape[1], shape[2]]).unwrap();
    let op = Conv { weights: Arc::new(weights), window, groups: 1, residual: false, clamp };
    b.push(op, vec![0], [out, h, w], quant);
    let (kernel, stride) = ([b.rng.between(1, 4), b.rng.between(1, w.min(2))], [b.rng.between(1, 3), b.rng.between(1, 3)]);
    let pad = [b.rng.below(kernel[0].min(2)), 0, b.rng.below(kernel[0].min(2)), b.rng.below(kernel[1])];
    let window = Window { kernel, stride, dilation: [1; 2], pad, ceil: b.rng.chance(3) };
    let [h, w] = window.output([h, w]).unwrap();
    b.push(MaxPool { window }, vec![1], [out, h, w], quant);
    b.graph.nodes.push(Node { name: "y2".into(), op: Dequantize { target: "y2".into() }.into(), inputs: vec![2], output: None });
    (b.graph, shape)
}

fn pools() -> &'static [Arc<Pool>] {
    static POOLS: OnceLock<Vec<Arc<Pool>>> = OnceLock::new();
    POOLS.get_or_init(|| [1, 2, 3].map(|n| Arc::new(Pool::new(n).unwrap())).into())
}

/// With `fused`, a convolution must run with its pool.
fn check(seed: u64, (graph, shape): (Graph, [usize; 3]), fused: bool) {
    let ([c, h, w], nodes) = (shape, graph.nodes.len());
    let mut rng = Rng(seed ^ 0x55);
    let input: Vec<f32> = (0..c * h * w).map(|_| rng.real(-4.0, 4.0)).collect();
    let source = Source { shape: Shape::picture([h, w], c), data: &input };
    let expected = reference::run(&graph, &HashMap::from([("x", source)]), |_, _| {});
    let bits = |data: &[f32]| data.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    let kernels = kernels::registry().iter().filter(|k| (k.supported)());
    for (kernel, policy) in kernels.flat_map(|k| [(k, Policy::Direct), (k, Policy::Winograd)]) {
        if policy == Policy::Winograd && kernel.winograd.is_none() {
            continue;
        }
        let program = Arc::new(plan::build(&graph, kernel, policy, 1, |_| Ok(vec![1, c, h, w])).unwrap());
        assert!(!fused || program.operators().any(|op| op == "Conv+MaxPool"));
        for pool in pools() {
            let mut executor = Executor::new(program.clone(), pool.clone());
            // Twice: the second inference finds the first one's leftovers in the arena.
            for turn in 0..2 {
                let outputs = executor.run(&[&input]).unwrap();
                for ((name, want), got) in expected.targets.iter().zip(outputs) {
                    let maker = graph.nodes.iter().find(|n| format!("y{}", n.output.unwrap_or(usize::MAX)) == *name);
                    assert!(
                        bits(want) == bits(got),
                        "{} ({policy:?}) with {} threads, run {turn}, seed {seed}, {nodes} nodes: `{name}` differs at {:?}\nmade by {maker:?}",
                        kernel.name,
                        pool.threads(),
                        want.iter().zip(got).position(|(a, b)| a.to_bits() != b.to_bits()),
                    );
                }
                assert_eq!(expected.targets.len(), outputs.len());
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 120, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn random_graphs_equal_the_reference_on_every_isa(seed in any::<u64>(), nodes in 1usize..14) {
        check(seed, random_graph(seed, nodes), false);
    }

    #[test]
    fn convolutions_with_their_pools_equal_the_reference_on_every_isa(seed in any::<u64>()) {
        check(seed, random_stem(seed), true);
    }
}

/// Values that are no numbers, and what failed beside them.
#[test]
fn graphs_that_failed_once_equal_the_reference_on_every_isa() {
    for seed in [6_432_725_375_716_968_264, 14_524_307_089_231_359_542, 14_524_307_089_231_359_545] {
        for nodes in 1..14 {
            check(seed, random_graph(seed, nodes), false);
        }
    }
}
