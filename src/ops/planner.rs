//! What operators plan with: shapes, places and quantizations of their tensors, and where their steps go.

use super::Step;
use crate::graph::{Clamp, DType, Port, QuantParams, Shape, Tensor, TensorId, Weights};
use crate::kernels::{ConvKernel, Domain, Requant};
use crate::program::{Blob, Buffer};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// Which algorithm 3×3 convolutions take. Results are the same, bit for bit, but for [`Policy::Tract`]'s.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Policy {
    /// Whichever the cost model finds faster.
    #[default]
    Fastest,
    /// Never Winograd.
    Direct,
    /// Winograd wherever it is exact.
    Winograd,
    /// No integer kernels at all: tract runs the whole model, quantized or not. What ours are compared with.
    Tract,
}

/// What `inspect` says of one step.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct StepInfo {
    /// ONNX node name.
    pub name: String,
    /// Operator.
    pub op: String,
    /// Kernel that runs it.
    pub kernel: String,
    /// Input shapes, NCHW.
    pub inputs: Vec<Vec<usize>>,
    /// Output shape, NCHW.
    pub output: Vec<usize>,
    /// Output scale and zero point as in the model file.
    pub quant: Option<(f32, i32)>,
    /// Multiply-accumulates.
    pub macs: u64,
    /// Packed weights, bias and multipliers.
    pub weight_bytes: u64,
}

/// What a step costs.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Cost {
    /// Multiply-accumulates.
    pub macs: u64,
    /// Bytes of packed numbers.
    pub weight_bytes: u64,
}

/// One operation's place in the graph.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Site<'a> {
    /// ONNX node name.
    pub name: &'a str,
    /// The operator's name.
    pub op: &'static str,
    /// Quantized inputs.
    pub inputs: &'a [TensorId],
    /// Quantized output.
    pub output: Option<TensorId>,
}

impl Site<'_> {
    /// An error about shapes.
    pub fn shape_error(&self, reason: impl std::fmt::Display) -> Error {
        Error::Shape(format!("node `{}` ({}): {reason}", self.name, self.op))
    }

    /// The quantized output, of an operation that has one.
    pub fn out(&self) -> Result<TensorId> {
        self.output.ok_or_else(|| self.shape_error("it has no output"))
    }

    /// Multipliers so large that a 32-bit accumulator times one overflows f32 come from broken scales.
    pub fn check_multipliers(&self, mult: &[f32]) -> Result<()> {
        match mult.iter().find(|m| !(m.is_finite() && **m <= 1e20)) {
            Some(m) => Err(Error::UnsupportedModel(format!(
                "node `{}`: scales give the multiplier {m}; check scales of inputs, weights and output",
                self.name
            ))),
            None => Ok(()),
        }
    }

    /// Bias minus the input's zero point times the sum of weights; refuses sums that could leave 32 bits.
    pub fn fold_bias(&self, weights: &Weights, out: usize, zero_point: i32) -> Result<i32> {
        let row = weights.row(out);
        let sum: i64 = row.iter().map(|&w| i64::from(w)).sum();
        let magnitude: i64 = row.iter().map(|&w| i64::from(w).abs()).sum();
        let bias = i64::from(weights.bias[out]) - i64::from(zero_point) * sum;
        if bias.abs() + 255 * magnitude > i64::from(i32::MAX) {
            return Err(Error::UnsupportedModel(format!(
                "node `{}`: the accumulator of output channel {out} can exceed 32 bits; check its bias and scales",
                self.name
            )));
        }
        Ok(bias as i32)
    }
}

/// A program in the making.
pub(crate) struct Planner<'a> {
    /// Kernels.
    pub kernel: &'static ConvKernel,
    /// Algorithms.
    pub policy: Policy,
    /// Threads that will run it.
    pub threads: usize,
    /// Quantized activations.
    pub tensors: &'a [Tensor],
    /// Their shapes.
    pub shapes: &'a [Shape],
    /// Their places.
    pub buffers: &'a [Buffer],
    /// Float inputs.
    pub sources: &'a [Port],
    /// Float outputs so far.
    pub targets: Vec<Port>,
    /// Steps so far.
    pub steps: Vec<Step>,
    /// One for each step.
    pub info: Vec<StepInfo>,
}

impl Planner<'_> {
    /// Quantization of a tensor.
    pub fn quant(&self, t: TensorId) -> QuantParams {
        self.tensors[t].quant
    }

    /// Place of the input with this index.
    pub fn src(&self, site: &Site<'_>, i: usize) -> Buffer {
        self.buffers[site.inputs[i]]
    }

    /// The tail of an operation that makes `out`.
    pub fn requant(&self, out: TensorId, clamp: Clamp) -> Requant {
        let q = self.quant(out);
        let (min, max) = q.dtype.range();
        // Rounding is monotone: clamping real values and then rounding equals clamping rounded values.
        let bound = |real: f32, otherwise: i32| {
            if real.is_finite() {
                ((real / q.scale).round_ties_even() as i32).saturating_add(q.zero_point).clamp(min, max)
            } else {
                otherwise
            }
        };
        let (lo, hi) = (bound(clamp.lo, min), bound(clamp.hi, max));
        Requant { zero_point: self.buffers[out].zero_point, lo: (lo - q.zero_point) as f32, hi: (hi - q.zero_point) as f32 }
    }

    /// `q ↦ quantize(f(dequantize(q)))` for every byte, computed as QuantizeLinear(f(DequantizeLinear(q))) does.
    pub fn table(&self, from: TensorId, to: TensorId, clamp: Clamp, f: impl Fn(f32) -> f32) -> Blob<u8> {
        let (zero_point, scale, y) = (self.buffers[from].zero_point, self.quant(from).scale, self.quant(to).scale);
        let requant = self.requant(to, clamp);
        let domain = self.kernel.domain;
        (0..=255).map(|b| requant.quantize(f((domain.decode(b) - zero_point) as f32 * scale) / y)).collect::<Vec<u8>>().into()
    }

    /// Index of a float input.
    pub fn source(&self, site: &Site<'_>, name: &str) -> Result<usize> {
        self.sources.iter().position(|p| p.name == name).ok_or_else(|| site.shape_error("unknown source"))
    }

    /// Index of a new float output.
    pub fn target(&mut self, name: &str, shape: Vec<usize>) -> usize {
        self.targets.push(Port { name: name.to_owned(), shape });
        self.targets.len() - 1
    }

    /// Adds a step; `kernel` is what reports call it.
    pub fn emit(&mut self, site: &Site<'_>, step: Step, kernel: &str, cost: Cost) {
        let output = match site.output {
            Some(t) => self.shapes[t].onnx(),
            None => self.targets.last().map(|p| p.shape.clone()).unwrap_or_default(),
        };
        let inputs = match &step {
            Step::Quantize(q) => self.sources.get(q.source).map(|p| vec![p.shape.clone()]).unwrap_or_default(),
            _ => site.inputs.iter().map(|&t| self.shapes[t].onnx()).collect(),
        };
        self.steps.push(step);
        self.info.push(StepInfo {
            name: site.name.to_owned(),
            op: site.op.to_owned(),
            kernel: kernel.to_owned(),
            inputs,
            output,
            quant: site.output.map(|t| (self.quant(t).scale, self.quant(t).zero_point)),
            macs: cost.macs,
            weight_bytes: cost.weight_bytes,
        });
    }
}

/// What to add to a value of `dtype` to have it in `domain`.
pub(crate) fn domain_shift(dtype: DType, domain: Domain) -> i32 {
    match (dtype, domain) {
        (DType::U8, Domain::U8) | (DType::I8, Domain::S8) => 0,
        (DType::I8, Domain::U8) => 128,
        (DType::U8, Domain::S8) => -128,
    }
}
