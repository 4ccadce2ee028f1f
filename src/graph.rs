//! The words in which a quantized computation is described: types, quantizations, shapes and windows. No layouts, no addresses.
//!
//! The operators themselves, and the graph they form, are in [`crate::ops`].

use serde::{Deserialize, Serialize};

/// Index of a tensor in [`Graph::tensors`](crate::ops::Graph::tensors).
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

/// The shape of one image's activation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Height, width, channels.
    pub hwc: [usize; 3],
    /// ONNX sees `[1, values]`.
    pub flat: bool,
}

impl Shape {
    /// A picture of this height and width.
    pub fn picture([h, w]: [usize; 2], channels: usize) -> Self {
        Shape { hwc: [h, w, channels], flat: false }
    }

    /// A vector.
    pub fn vector(values: usize) -> Self {
        Shape { hwc: [1, 1, values], flat: true }
    }

    /// Height and width.
    pub fn hw(&self) -> [usize; 2] {
        [self.hwc[0], self.hwc[1]]
    }

    /// Channels.
    pub fn channels(&self) -> usize {
        self.hwc[2]
    }

    /// Number of values.
    pub fn values(&self) -> usize {
        self.hwc.iter().product()
    }

    /// Its dimensions in ONNX, batch 1.
    pub fn onnx(&self) -> Vec<usize> {
        let [h, w, c] = self.hwc;
        if self.flat { vec![1, h * w * c] } else { vec![1, c, h, w] }
    }

    /// The shape of ONNX dimensions, where it is one: `[1, C, H, W]` or `[1, C]`, nothing of it empty.
    pub fn of_onnx(dims: &[usize]) -> Option<Self> {
        match *dims {
            [1, c, h, w] if c * h * w > 0 => Some(Shape::picture([h, w], c)),
            [1, c] if c > 0 => Some(Shape::vector(c)),
            _ => None,
        }
    }
}

/// A float value that enters or leaves a region.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// ONNX name.
    pub name: String,
    /// ONNX shape, batch 1.
    pub shape: Vec<usize>,
}

impl Port {
    /// Number of values; saturates, so that a broken shape is refused wherever a size is checked.
    pub fn values(&self) -> usize {
        self.shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).unwrap_or(usize::MAX)
    }
}

/// Window of a convolution or pooling (ONNX `Conv`, `MaxPool`, `AveragePool`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
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
    /// The window that covers a whole picture.
    pub fn whole(hw: [usize; 2]) -> Self {
        Window { kernel: hw, stride: [1; 2], dilation: [1; 2], pad: [0; 4], ceil: false }
    }

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

    /// Positions of the window at output `position` along `side` (0: rows, 1: columns) that lie in the picture or its padding.
    /// With `ceil`, the last window may reach beyond both.
    pub fn positions(&self, side: usize, position: usize, size: usize) -> usize {
        let room = (size + self.pad[side] + self.pad[side + 2]).saturating_sub(position * self.stride[side]);
        room.div_ceil(self.dilation[side].max(1)).min(self.kernel[side])
    }

    /// The shape of its output over `x`, or why there is none.
    pub fn shape(&self, x: &Shape, channels: usize) -> Result<Shape, String> {
        if x.flat {
            return Err("a picture [1, C, H, W] is needed, not a vector".into());
        }
        let hw = self.output(x.hw()).ok_or_else(|| format!("the window {:?} does not fit an input of {:?}", self.kernel, x.onnx()))?;
        Ok(Shape::picture(hw, channels))
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
    /// ONNX order: `[out, in / groups, kernel height, kernel width]`, or `[out, in]` of a fully connected layer. A convolution's
    /// rows may hold two such kernels, the sum of which is meant: `[out, 2, in / groups, …]`.
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

impl Weights {
    /// The weights of output `out`.
    pub fn row(&self, out: usize) -> &[i8] {
        &self.data[out * self.per_out..][..self.per_out]
    }
}
