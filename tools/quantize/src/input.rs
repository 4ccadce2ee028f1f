//! Float models as they arrive: reading, and what this program asks of one beyond ONNX's own rules.

use crate::onnx::{self, ModelProto, node_error};
use crate::{Error, Result, opset, simplify};
use std::path::Path;

/// Operator sets that are read.
pub const OPSETS: std::ops::RangeInclusive<i64> = 9..=24;

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
    "HardSigmoid",
    "HardSwish",
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

/// Reads a model file, checks it, and brings it to the form the other stages work on.
pub fn load(path: &Path) -> Result<ModelProto> {
    prepare(onnx::load(path)?)
}

/// As [`load`], of bytes.
pub fn decode(bytes: &[u8]) -> Result<ModelProto> {
    prepare(onnx::decode(bytes)?)
}

fn prepare(mut model: ModelProto) -> Result<ModelProto> {
    check(&model)?;
    opset::raise(&mut model)?;
    simplify::simplify(&mut model)?;
    Ok(model)
}

/// Checks a valid model for what the stages here rely on.
fn check(model: &ModelProto) -> Result<()> {
    let (version, first, last) = (onnx::opset(model), OPSETS.start(), OPSETS.end());
    if !OPSETS.contains(&version) {
        return Err(Error::UnsupportedModel(format!("operator set {version} of ai.onnx; export with opset {first} to {last}")));
    }
    if !model.functions.is_empty() {
        return Err(Error::UnsupportedModel(format!(
            "it defines functions of its own ({}); inline them: onnx.inliner.inline_local_functions(model)",
            model.functions[0].name()
        )));
    }
    let present = |names: &[String]| names.first().is_some_and(|s| !s.is_empty());
    let odd = |n: &&onnx::NodeProto| TAKES_DATA.contains(&n.op_type.as_str()) && !(present(&n.input) && present(&n.output));
    match onnx::graph(model)?.node.iter().find(odd) {
        Some(node) => Err(node_error(node, "its first input or output is missing")),
        None => Ok(()),
    }
}
