//! Float models as they arrive: reading, and what this program asks of one beyond ONNX's own rules.

use crate::onnx::{self, ModelProto, node_error, opset};
use crate::{Error, Result};
use std::path::Path;

/// Operator sets that are read.
pub const OPSETS: std::ops::RangeInclusive<i64> = 11..=21;

/// Operators that are rewritten, and so must have the input and output every one of them has.
const TAKES_DATA: &[&str] = &[
    "Add",
    "BatchNormalization",
    "Clip",
    "Conv",
    "Dropout",
    "Flatten",
    "Gemm",
    "GlobalAveragePool",
    "Identity",
    "LogSoftmax",
    "MatMul",
    "MaxPool",
    "ReduceMean",
    "Relu",
    "Reshape",
    "Sigmoid",
    "Softmax",
    "Squeeze",
    "Unsqueeze",
];

/// Reads a model file and checks it.
pub fn load(path: &Path) -> Result<ModelProto> {
    let model = onnx::load(path)?;
    check(&model)?;
    Ok(model)
}

/// Decodes a model and checks it.
pub fn decode(bytes: &[u8]) -> Result<ModelProto> {
    let model = onnx::decode(bytes)?;
    check(&model)?;
    Ok(model)
}

/// Checks a valid model for what the stages here rely on.
fn check(model: &ModelProto) -> Result<()> {
    let (version, first, last) = (opset(model), OPSETS.start(), OPSETS.end());
    if !OPSETS.contains(&version) {
        return Err(Error::UnsupportedModel(format!("operator set {version} of ai.onnx; export with opset {first} to {last}")));
    }
    let present = |names: &[String]| names.first().is_some_and(|s| !s.is_empty());
    let odd = |n: &&onnx::NodeProto| TAKES_DATA.contains(&n.op_type.as_str()) && !(present(&n.input) && present(&n.output));
    match onnx::graph(model)?.node.iter().find(odd) {
        Some(node) => Err(node_error(node, "its first input or output is missing")),
        None => Ok(()),
    }
}
