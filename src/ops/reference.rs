//! What definitions are written in: no layouts, halos, packing, zero-point folding or domains; integers are i64, one value at a time.
//!
//! Beside the arithmetic that is defined, in f32, each result is computed in exact real arithmetic: what another runtime may differ by is then
//! told from what it may not.

use super::Graph;
use crate::graph::{Clamp, QuantParams, Shape, Tensor, Window};
use std::collections::HashMap;

/// A quantized tensor, C×H×W.
#[derive(Debug, Clone)]
pub struct Value {
    /// Its shape.
    pub shape: Shape,
    /// Quantized values.
    pub q: Vec<i64>,
    /// The real-arithmetic results before the last rounding and saturation, in output steps, zero point included.
    pub exact: Vec<f64>,
}

impl Value {
    /// The quantized value of a channel at (y, x).
    pub fn at(&self, c: usize, y: usize, x: usize) -> i64 {
        let [h, w, _] = self.shape.hwc;
        self.q[(c * h + y) * w + x]
    }
}

/// A float source.
pub struct Source<'a> {
    /// Its shape.
    pub shape: Shape,
    /// Its values, C×H×W.
    pub data: &'a [f32],
}

/// What an operation gets.
pub struct Inputs<'a> {
    pub(super) values: Vec<&'a Value>,
    pub(super) quants: Vec<QuantParams>,
    pub(super) out: Option<&'a Tensor>,
    pub(super) sources: &'a HashMap<&'a str, Source<'a>>,
}

/// What an operation makes.
pub enum Results {
    /// A quantized tensor.
    Tensor(Value),
    /// The values of a float target, C×H×W.
    Float(Vec<f32>),
}

impl Inputs<'_> {
    /// A quantized value's distance from its zero point.
    pub(super) fn centred(&self, i: usize, q: i64) -> i64 {
        q - i64::from(self.quants[i].zero_point)
    }

    /// All values of an input, as distances from the zero point.
    pub(super) fn all(&self, i: usize) -> impl Iterator<Item = i64> + '_ {
        self.values[i].q.iter().map(move |&q| self.centred(i, q))
    }

    /// Input scale over output scale, in f32 and exactly.
    pub(super) fn ratio(&self, i: usize, y: f32) -> (f32, f64) {
        (self.quants[i].scale / y, f64::from(self.quants[i].scale) / f64::from(y))
    }

    /// Collects the output.
    pub(super) fn sink(&self, clamp: Clamp, shape: Shape) -> Sink {
        let quant = self.out.map(|t| t.quant).expect("an operation with a quantized output");
        let (min, max) = quant.dtype.range();
        let bound = |real: f32, otherwise: i32| match real.is_finite() {
            true => (f64::from((real / quant.scale).round_ties_even()) + f64::from(quant.zero_point)).clamp(min.into(), max.into()),
            false => otherwise.into(),
        };
        let (lo, hi) = (bound(clamp.lo, min), bound(clamp.hi, max));
        Sink { quant, lo, hi, value: Value { shape, q: vec![], exact: vec![] } }
    }
}

/// Collects one output tensor: f32 arithmetic as defined, and exact arithmetic beside it.
pub(super) struct Sink {
    pub quant: QuantParams,
    lo: f64,
    hi: f64,
    value: Value,
}

impl Sink {
    /// `v` is in output steps, without the zero point. What is no number, as a negative one's logarithm, becomes the smallest value.
    pub fn push(&mut self, v: f32, exact: f64) {
        let q = f64::from(v.round_ties_even()) + f64::from(self.quant.zero_point);
        self.value.q.push(if q.is_nan() { self.lo } else { q.clamp(self.lo, self.hi) } as i64);
        self.value.exact.push(exact + f64::from(self.quant.zero_point));
    }

    /// The whole tensor.
    pub fn done(self) -> Results {
        debug_assert_eq!(self.value.q.len(), self.value.shape.values());
        Results::Tensor(self.value)
    }
}

/// Calls `f(dy·KW + dx, y, x)` for the taps inside the picture.
pub(super) fn taps(window: &Window, hw: [usize; 2], oy: usize, ox: usize, mut f: impl FnMut(usize, usize, usize)) {
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

/// Results of a region: float targets by name, and every tensor.
pub struct Region {
    /// In order.
    pub targets: Vec<(String, Vec<f32>)>,
    /// As in [`Graph::tensors`].
    pub tensors: Vec<Option<Value>>,
}

/// Runs a region by its definition. After each tensor (given with its index) is computed, `force` may replace its values for what follows.
/// The graph's shapes must fit.
pub fn run(graph: &Graph, sources: &HashMap<&str, Source<'_>>, mut force: impl FnMut(usize, &mut Value)) -> Region {
    let mut tensors: Vec<Option<Value>> = vec![None; graph.tensors.len()];
    let mut targets = Vec::new();
    for node in &graph.nodes {
        let inputs = Inputs {
            values: node.inputs.iter().map(|&t| tensors[t].as_ref().expect("nodes come in order")).collect(),
            quants: node.inputs.iter().map(|&t| graph.tensors[t].quant).collect(),
            out: node.output.map(|t| &graph.tensors[t]),
            sources,
        };
        let operator = node.op.operator();
        match (operator.reference(&inputs), node.output, operator.target()) {
            (Results::Tensor(mut value), Some(id), _) => {
                force(id, &mut value);
                tensors[id] = Some(value);
            }
            (Results::Float(values), _, Some(name)) => targets.push((name.to_owned(), values)),
            _ => unreachable!("{} makes either a tensor or a float target", node.name),
        }
    }
    Region { targets, tensors }
}
