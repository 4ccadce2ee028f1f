//! Float models as they arrive: reading, and what this program asks of one beyond ONNX's own rules.

use crate::Result;
use crate::onnx::{self, ModelProto, node_error};
use edge_infer::import::canonical::{Interface, canonicalize, write_older};
use std::path::Path;

/// An operator set that today's readers know.
const READ_EVERYWHERE: i64 = 21;

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
    load_sized(path, None)
}

/// As [`load`], with height and width for a file that leaves them open.
pub fn load_sized(path: &Path, size: Option<[usize; 2]>) -> Result<ModelProto> {
    prepare(onnx::load(path)?, size)
}

/// As [`load`], of bytes.
pub fn decode(bytes: &[u8]) -> Result<ModelProto> {
    prepare(onnx::decode(bytes)?, None)
}

/// A canonical model, in the operator set it came in or the oldest that is written: readers of the result may know no newer one.
fn prepare(mut model: ModelProto, size: Option<[usize; 2]>) -> Result<ModelProto> {
    check(&model)?;
    let version = onnx::opset(&model);
    canonicalize(&mut model, &Interface { size, ..Default::default() })?;
    write_older(&mut model, version.min(READ_EVERYWHERE))?;
    Ok(model)
}

/// Checks a valid model for what the stages here rely on.
fn check(model: &ModelProto) -> Result<()> {
    let present = |names: &[String]| names.first().is_some_and(|s| !s.is_empty());
    let odd = |n: &&onnx::NodeProto| TAKES_DATA.contains(&n.op_type.as_str()) && !(present(&n.input) && present(&n.output));
    match onnx::graph(model)?.node.iter().find(odd) {
        Some(node) => Err(node_error(node, "its first input or output is missing")),
        None => Ok(()),
    }
}
