//! The quantized graph of one int8 region: what to compute, with no layouts, addresses or shapes yet.
//!
//! Tensors are quantized activations (per-tensor scale and zero point); nodes are the operations the integer
//! kernels know. A [`Graph`] is made by [`crate::import`] and turned into a program by [`crate::plan`].

use std::sync::Arc;

/// Index of a tensor in [`Graph::tensors`].
pub type TensorId = usize;

/// Storage type of a quantized tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DType {
    /// 0..=255
    U8,
    /// −128..=127
    I8,
}

impl DType {
    /// Smallest and largest value.
    pub fn range(self) -> (i32, i32) {
        match self {
            DType::U8 => (0, 255),
            DType::I8 => (-128, 127),
        }
    }
}

/// Per-tensor affine quantization, `real = (q − zero_point) · scale` (ONNX `DequantizeLinear`).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct QuantParams {
    /// Storage type.
    pub dtype: DType,
    /// Positive, finite.
    pub scale: f32,
    /// In the range of `dtype`.
    pub zero_point: i32,
}

/// One quantized activation.
#[derive(Debug, Clone)]
pub struct Tensor {
    /// The ONNX value name of the QuantizeLinear's output.
    pub name: String,
    /// Quantization.
    pub quant: QuantParams,
    /// ONNX sees `[1, values]`, channels first, instead of `[1, C, H, W]`.
    pub flat: bool,
}

/// Window of a convolution or pooling (ONNX `Conv`, `MaxPool`, `AveragePool`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Window {
    /// Height and width.
    pub kernel: [usize; 2],
    /// Vertical and horizontal step.
    pub stride: [usize; 2],
    /// Distance between taps.
    pub dilation: [usize; 2],
    /// Top, left, bottom, right.
    pub pad: [usize; 4],
    /// Round the output size up instead of down (pooling only).
    pub ceil: bool,
}

impl Window {
    /// Output height and width for an input of `hw`; `None` if the window does not fit.
    pub fn output(&self, hw: [usize; 2]) -> Option<[usize; 2]> {
        let mut out = [0; 2];
        for d in 0..2 {
            let extent = (self.kernel[d].checked_sub(1)?).checked_mul(self.dilation[d])?.checked_add(1)?;
            let padded = hw[d].checked_add(self.pad[d])?.checked_add(self.pad[d + 2])?;
            let room = padded.checked_sub(extent)?;
            out[d] = if self.ceil { room.div_ceil(self.stride[d]) } else { room / self.stride[d] } + 1;
            // A window that would start in the bottom padding does not count (ONNX, ceil_mode).
            if self.ceil && (out[d] - 1) * self.stride[d] >= hw[d] + self.pad[d] {
                out[d] -= 1;
            }
        }
        Some(out)
    }
}

/// Range of real values a fused activation lets through (ReLU: 0..∞).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Clamp {
    /// Lower bound.
    pub lo: f32,
    /// Upper bound.
    pub hi: f32,
}

impl Default for Clamp {
    fn default() -> Self {
        Clamp { lo: f32::NEG_INFINITY, hi: f32::INFINITY }
    }
}

/// Weights of a convolution or a fully connected layer: signed bytes, symmetric per output channel.
#[derive(Debug, Clone)]
pub struct Weights {
    /// ONNX order: `[out, in / groups, kernel height, kernel width]`, or `[out, in]` for [`Op::Gemm`]. A convolution's rows may hold
    /// two such kernels, the sum of which is meant: `[out, 2, in / groups, …]`.
    pub data: Vec<i8>,
    /// Output channels.
    pub out: usize,
    /// Weights of one output, `data.len() / out`.
    pub per_out: usize,
    /// One per output channel.
    pub scale: Vec<f32>,
    /// One per output channel, at scale `input scale · weight scale`.
    pub bias: Vec<i32>,
}

/// A function of one real value, computed in f32.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Function {
    /// 1 / (1 + e⁻ˣ)
    Sigmoid,
    /// max(0, min(1, alpha · x + beta))
    HardSigmoid {
        /// Slope.
        alpha: f32,
        /// Value at 0.
        beta: f32,
    },
}

/// What [`Op::Map`] does to each real value: g(x), or x · g(x).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Map {
    /// g.
    pub function: Function,
    /// Multiply by x (SiLU, HardSwish).
    pub gated: bool,
    /// How g's value is rounded before it is multiplied, if it is.
    pub rounded: Option<QuantParams>,
}

impl Map {
    /// Its value at `x`.
    pub fn at(&self, x: f32) -> f32 {
        let g = match self.function {
            Function::Sigmoid => (1.0 / (1.0 + f64::from(-x).exp())) as f32,
            Function::HardSigmoid { alpha, beta } => (alpha * x + beta).clamp(0.0, 1.0),
        };
        let g = self.rounded.map_or(g, |q| {
            let (min, max) = q.dtype.range();
            let zero = q.zero_point as f32;
            (((g / q.scale).round_ties_even() + zero).clamp(min as f32, max as f32) - zero) * q.scale
        });
        if self.gated { x * g } else { g }
    }
}

/// An operation on quantized tensors.
#[derive(Debug, Clone)]
pub enum Op {
    /// A float value from outside the region is quantized (ONNX `QuantizeLinear`).
    Quantize {
        /// ONNX name of the float value.
        source: String,
    },
    /// Convolution, optionally plus a residual, then a clamp, then one requantization.
    /// Inputs: activation, and the residual if `residual`.
    Conv {
        /// Weights.
        weights: Arc<Weights>,
        /// Geometry.
        window: Window,
        /// Channel groups.
        groups: usize,
        /// A second input is added in real values before requantization.
        residual: bool,
        /// Fused activation.
        clamp: Clamp,
    },
    /// Fully connected layer over all values of one image.
    Gemm {
        /// Weights.
        weights: Arc<Weights>,
        /// Fused activation of a quantized result.
        clamp: Clamp,
        /// ONNX name of the float result, if it leaves the region unquantized.
        float_output: Option<String>,
    },
    /// Largest value of each window; same quantization in and out.
    MaxPool {
        /// Geometry; padding is ignored.
        window: Window,
    },
    /// Mean of each window.
    AveragePool {
        /// Geometry; `None` takes the whole picture (ONNX `GlobalAveragePool`).
        window: Option<Window>,
        /// Padding counts as zeros.
        count_include_pad: bool,
        /// Fused activation.
        clamp: Clamp,
    },
    /// Sum of two tensors in real values.
    Add {
        /// Fused activation.
        clamp: Clamp,
    },
    /// Another scale, zero point or range for the same values.
    Requantize {
        /// Fused activation.
        clamp: Clamp,
    },
    /// A function of each value.
    Map {
        /// The function.
        map: Map,
        /// Fused activation.
        clamp: Clamp,
    },
    /// Concatenation along channels.
    Concat,
    /// A quantized tensor leaves the region as floats (ONNX `DequantizeLinear`).
    Dequantize {
        /// ONNX name of the float value.
        target: String,
    },
}

impl Op {
    /// The operator's name in reports.
    pub fn name(&self) -> &'static str {
        match self {
            Op::Quantize { .. } => "Quantize",
            Op::Conv { residual: true, .. } => "Conv+Add",
            Op::Conv { .. } => "Conv",
            Op::Gemm { .. } => "Gemm",
            Op::MaxPool { .. } => "MaxPool",
            Op::AveragePool { window: None, .. } => "GlobalAveragePool",
            Op::AveragePool { .. } => "AveragePool",
            Op::Add { .. } => "Add",
            Op::Requantize { .. } => "Requantize",
            Op::Map { map: Map { function: Function::Sigmoid, gated: false, .. }, .. } => "Sigmoid",
            Op::Map { map: Map { function: Function::Sigmoid, .. }, .. } => "SiLU",
            Op::Map { map: Map { gated: false, .. }, .. } => "HardSigmoid",
            Op::Map { .. } => "HardSwish",
            Op::Concat => "Concat",
            Op::Dequantize { .. } => "Dequantize",
        }
    }
}

/// One operation.
#[derive(Debug, Clone)]
pub struct Node {
    /// ONNX node name.
    pub name: String,
    /// What to compute.
    pub op: Op,
    /// Quantized inputs.
    pub inputs: Vec<TensorId>,
    /// Quantized output; `None` if the result is float.
    pub output: Option<TensorId>,
}

/// An int8 region: nodes in execution order.
#[derive(Debug, Clone, Default)]
pub struct Graph {
    /// Quantized activations.
    pub tensors: Vec<Tensor>,
    /// Operations, each after those it reads.
    pub nodes: Vec<Node>,
}

impl Graph {
    /// ONNX names of the float values the region reads, in order, each once.
    pub fn sources(&self) -> Vec<&str> {
        let mut names = Vec::new();
        for node in &self.nodes {
            if let Op::Quantize { source } = &node.op
                && !names.contains(&source.as_str())
            {
                names.push(source);
            }
        }
        names
    }

    /// ONNX names of the float values the region makes, in order.
    pub fn targets(&self) -> Vec<&str> {
        self.nodes
            .iter()
            .filter_map(|node| match &node.op {
                Op::Dequantize { target } | Op::Gemm { float_output: Some(target), .. } => Some(target.as_str()),
                _ => None,
            })
            .collect()
    }
}
