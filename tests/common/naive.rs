//! The definition of every operation (docs of `edge_infer::kernels`), written a second time without any of the
//! product's machinery: no layouts, halos, packing, zero-point folding or domains; integers are i64, one loop per index.

use edge_infer::graph::{Clamp, Graph, Op, QuantParams, Weights, Window};
use std::collections::HashMap;

/// A quantized tensor, C×H×W.
#[derive(Debug, Clone)]
pub struct Value {
    pub shape: [usize; 3],
    pub q: Vec<i64>,
    /// The real-arithmetic result before the last rounding and saturation, in output steps, zero point included.
    pub exact: Vec<f64>,
}

impl Value {
    fn at(&self, c: usize, y: usize, x: usize) -> i64 {
        self.q[(c * self.shape[1] + y) * self.shape[2] + x]
    }
}

/// A float source, ONNX shape without the batch.
pub struct Source<'a> {
    pub shape: [usize; 3],
    pub data: &'a [f32],
}

/// Results of a region: float targets by name, and every tensor.
pub struct Results {
    pub targets: Vec<(String, Vec<f32>)>,
    pub tensors: Vec<Option<Value>>,
}

/// Collects one output tensor: f32 arithmetic as defined, and exact arithmetic beside it.
struct Sink {
    quant: QuantParams,
    lo: f64,
    hi: f64,
    value: Value,
}

impl Sink {
    fn new(quant: QuantParams, clamp: Clamp, shape: [usize; 3]) -> Self {
        let (min, max) = quant.dtype.range();
        let bound = |real: f32, otherwise: i32| match real.is_finite() {
            true => (f64::from((real / quant.scale).round_ties_even()) + f64::from(quant.zero_point)).clamp(min.into(), max.into()),
            false => otherwise.into(),
        };
        let (lo, hi) = (bound(clamp.lo, min), bound(clamp.hi, max));
        Sink { quant, lo, hi, value: Value { shape, q: vec![], exact: vec![] } }
    }

    /// `v` is in output steps, without the zero point.
    fn push(&mut self, v: f32, exact: f64) {
        let q = f64::from(v.round_ties_even()) + f64::from(self.quant.zero_point);
        self.value.q.push(q.clamp(self.lo, self.hi) as i64);
        self.value.exact.push(exact + f64::from(self.quant.zero_point));
    }
}

/// Calls `f(dy·KW + dx, y, x)` for the taps inside the picture.
fn taps(window: &Window, hw: [usize; 2], oy: usize, ox: usize, mut f: impl FnMut(usize, usize, usize)) {
    for ky in 0..window.kernel[0] {
        for kx in 0..window.kernel[1] {
            let y = (oy * window.stride[0] + ky * window.dilation[0]) as i64 - window.pad[0] as i64;
            let x = (ox * window.stride[1] + kx * window.dilation[1]) as i64 - window.pad[1] as i64;
            if (0..hw[0] as i64).contains(&y) && (0..hw[1] as i64).contains(&x) {
                f(ky * window.kernel[1] + kx, y as usize, x as usize);
            }
        }
    }
}

/// Σ (x − zp)·w + bias for one output.
fn accumulate(weights: &Weights, o: usize, terms: impl Iterator<Item = (i64, usize)>) -> i64 {
    i64::from(weights.bias[o]) + terms.map(|(x, k)| x * i64::from(weights.data[o * weights.per_out + k])).sum::<i64>()
}

/// Runs a region.
pub fn run(graph: &Graph, sources: &HashMap<&str, Source<'_>>) -> Results {
    run_forced(graph, sources, |_, _| {})
}

/// Runs a region; after each tensor (given with its index) is computed, `force` may replace its values for what follows.
pub fn run_forced(graph: &Graph, sources: &HashMap<&str, Source<'_>>, mut force: impl FnMut(usize, &mut Value)) -> Results {
    let mut tensors: Vec<Option<Value>> = vec![None; graph.tensors.len()];
    let mut targets = Vec::new();
    for node in &graph.nodes {
        let value = |i: usize| tensors[node.inputs[i]].as_ref().expect("nodes come in order");
        let quant = |i: usize| graph.tensors[node.inputs[i]].quant;
        let centred = |i: usize, q: i64| q - i64::from(quant(i).zero_point);
        let sink = |clamp: Clamp, shape| Sink::new(graph.tensors[node.output.unwrap()].quant, clamp, shape);
        let ratio = |i: usize, y: f32| (quant(i).scale / y, f64::from(quant(i).scale) / f64::from(y));
        let out = match &node.op {
            Op::Quantize { source } => {
                let s = &sources[source.as_str()];
                let mut out = sink(Clamp::default(), s.shape);
                for &v in s.data {
                    out.push(v / out.quant.scale, f64::from(v) / f64::from(out.quant.scale));
                }
                out
            }
            Op::Conv { weights, window, groups, residual, clamp } => {
                let x = value(0);
                let [h, w] = window.output([x.shape[1], x.shape[2]]).unwrap();
                let mut out = sink(*clamp, [weights.out, h, w]);
                let y = out.quant.scale;
                let (inputs, outputs) = (x.shape[0] / groups, weights.out / groups);
                for o in 0..weights.out {
                    let mult = quant(0).scale * weights.scale[o] / y;
                    let exact_mult = f64::from(quant(0).scale) * f64::from(weights.scale[o]) / f64::from(y);
                    for oy in 0..h {
                        for ox in 0..w {
                            let mut terms = Vec::new();
                            taps(window, [x.shape[1], x.shape[2]], oy, ox, |tap, iy, ix| {
                                let size = window.kernel[0] * window.kernel[1];
                                let channel = |c: usize| centred(0, x.at(o / outputs * inputs + c % inputs, iy, ix));
                                // Of both kernels, where there are two.
                                terms.extend((0..weights.per_out / size).map(|c| (channel(c), c * size + tap)));
                            });
                            let acc = accumulate(weights, o, terms.into_iter());
                            let (mut v, mut exact) = (acc as f32 * mult, acc as f64 * exact_mult);
                            if *residual {
                                let (r, (m, exact_m)) = (centred(1, value(1).at(o, oy, ox)), ratio(1, y));
                                v += r as f32 * m;
                                exact += r as f64 * exact_m;
                            }
                            out.push(v, exact);
                        }
                    }
                }
                out
            }
            Op::Gemm { weights, clamp, float_output } => {
                let acc: Vec<i64> = (0..weights.out)
                    .map(|o| accumulate(weights, o, value(0).q.iter().enumerate().map(|(k, &q)| (centred(0, q), k))))
                    .collect();
                if let Some(name) = float_output {
                    let scales = weights.scale.iter().map(|s| quant(0).scale * s);
                    targets.push((name.clone(), acc.iter().zip(scales).map(|(&a, s)| a as f32 * s).collect()));
                    continue;
                }
                let mut out = sink(*clamp, [weights.out, 1, 1]);
                let y = out.quant.scale;
                for (&a, &s) in acc.iter().zip(&weights.scale) {
                    out.push(a as f32 * (quant(0).scale * s / y), a as f64 * f64::from(quant(0).scale) * f64::from(s) / f64::from(y));
                }
                out
            }
            Op::MaxPool { window } | Op::AveragePool { window: Some(window), .. } => {
                let x = value(0);
                let [h, w] = window.output([x.shape[1], x.shape[2]]).unwrap();
                pool(&node.op, window, x, &quant(0), sink(clamp_of(&node.op), [x.shape[0], h, w]))
            }
            Op::AveragePool { window: None, .. } => {
                let x = value(0);
                let kernel = [x.shape[1], x.shape[2]];
                let window = Window { kernel, stride: [1, 1], dilation: [1, 1], pad: [0; 4], ceil: false };
                pool(&node.op, &window, x, &quant(0), sink(clamp_of(&node.op), [x.shape[0], 1, 1]))
            }
            Op::Add { clamp } => {
                let mut out = sink(*clamp, value(0).shape);
                let ((ma, ea), (mb, eb)) = (ratio(0, out.quant.scale), ratio(1, out.quant.scale));
                for (&a, &b) in value(0).q.iter().zip(&value(1).q) {
                    let (a, b) = (centred(0, a), centred(1, b));
                    out.push(a as f32 * ma + b as f32 * mb, a as f64 * ea + b as f64 * eb);
                }
                out
            }
            Op::Requantize { clamp } => {
                let mut out = sink(*clamp, value(0).shape);
                requantize(&mut out, value(0), quant(0));
                out
            }
            Op::Map { map, clamp } => {
                let mut out = sink(*clamp, value(0).shape);
                for &q in &value(0).q {
                    let v = map.at(centred(0, q) as f32 * quant(0).scale) / out.quant.scale;
                    out.push(v, f64::from(v));
                }
                out
            }
            Op::Concat => {
                let channels = (0..node.inputs.len()).map(|i| value(i).shape[0]).sum();
                let mut out = sink(Clamp::default(), [channels, value(0).shape[1], value(0).shape[2]]);
                for i in 0..node.inputs.len() {
                    requantize(&mut out, value(i), quant(i));
                }
                out
            }
            Op::Dequantize { target } => {
                let data = value(0).q.iter().map(|&q| centred(0, q) as f32 * quant(0).scale).collect();
                targets.push((target.clone(), data));
                continue;
            }
        };
        assert_eq!(out.value.q.len(), out.value.shape.iter().product::<usize>());
        let (id, mut value) = (node.output.unwrap(), out.value);
        force(id, &mut value);
        tensors[id] = Some(value);
    }
    Results { targets, tensors }
}

fn clamp_of(op: &Op) -> Clamp {
    match op {
        Op::AveragePool { clamp, .. } => *clamp,
        _ => Clamp::default(),
    }
}

fn requantize(out: &mut Sink, x: &Value, quant: QuantParams) {
    let y = out.quant.scale;
    for &q in &x.q {
        let q = q - i64::from(quant.zero_point);
        out.push(q as f32 * quant.scale / y, q as f64 * f64::from(quant.scale) / f64::from(y));
    }
}

fn pool(op: &Op, window: &Window, x: &Value, quant: &QuantParams, mut out: Sink) -> Sink {
    let [channels, h, w] = out.value.shape;
    for c in 0..channels {
        for oy in 0..h {
            for ox in 0..w {
                let mut values = Vec::new();
                taps(window, [x.shape[1], x.shape[2]], oy, ox, |_, iy, ix| values.push(x.at(c, iy, ix) - i64::from(quant.zero_point)));
                if let Op::AveragePool { count_include_pad, .. } = op {
                    let count = if *count_include_pad { window.kernel[0] * window.kernel[1] } else { values.len() };
                    let sum: i64 = values.iter().sum();
                    let y = out.quant.scale;
                    let exact = sum as f64 * f64::from(quant.scale) / (f64::from(y) * count as f64);
                    out.push(sum as f32 * (quant.scale / (y * count as f32)), exact);
                } else {
                    let max = *values.iter().max().expect("a window covers a pixel");
                    out.push(max as f32, max as f64);
                }
            }
        }
    }
    out
}
