//! What `edge-infer inspect` says of a loaded model.

use serde::Serialize;

/// A loaded model.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Path of the file.
    pub model: String,
    /// Instruction set of the convolution kernel.
    pub isa: String,
    /// Threads.
    pub threads: usize,
    /// Multiply-accumulates in int8 regions.
    pub int8_macs: u64,
    /// Multiply-accumulates that tract does in float.
    pub float_macs: u64,
    /// Packed weights of the regions, bytes.
    pub weight_bytes: u64,
    /// Activations of the regions, bytes.
    pub arena_bytes: u64,
    /// Number of int8 regions.
    pub regions: usize,
    /// Operations in execution order, regions first, then tract's.
    pub nodes: Vec<NodeReport>,
}

impl Report {
    /// Share of the multiply-accumulates that run in int8, in percent. A model without any counts as float.
    pub fn int8_percent(&self) -> f64 {
        let all = self.int8_macs + self.float_macs;
        if all == 0 { 0.0 } else { 100.0 * self.int8_macs as f64 / all as f64 }
    }

    /// The first node that runs in float, and why.
    pub fn first_in_float(&self) -> Option<(&NodeReport, &str)> {
        self.nodes.iter().find_map(|n| Some((n, n.why.as_deref()?)))
    }
}

/// One operation.
#[derive(Debug, Clone, Serialize)]
pub struct NodeReport {
    /// ONNX node name.
    pub name: String,
    /// Operator.
    pub op: String,
    /// Kernel name, or `tract`.
    pub runs_on: String,
    /// ONNX shapes.
    pub input_shapes: Vec<Vec<usize>>,
    /// ONNX shape.
    pub output_shape: Vec<usize>,
    /// Scale of a quantized output.
    pub scale: Option<f32>,
    /// Zero point of a quantized output.
    pub zero_point: Option<i32>,
    /// Multiply-accumulates.
    pub macs: u64,
    /// Bytes of packed weights.
    pub weight_bytes: u64,
    /// Why tract runs it.
    pub why: Option<String>,
}
