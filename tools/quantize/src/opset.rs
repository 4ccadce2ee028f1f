//! Raises opset 11 and 12 models to 13, the first with per-channel DequantizeLinear.

use crate::Result;
use crate::onnx::*;
use std::collections::HashSet;

/// First operator set whose DequantizeLinear takes an axis.
pub const QDQ_OPSET: i64 = 13;

/// Operators whose meaning and form are equal in opsets 11, 12 and 13 (for float32 inference).
const UNCHANGED: &[&str] = &[
    "Add",
    "ArgMax",
    "AveragePool",
    "BatchNormalization",
    "Cast",
    "Clip",
    "Concat",
    "Constant",
    "Conv",
    "Div",
    "Exp",
    "Flatten",
    "Gather",
    "Gemm",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "HardSigmoid",
    "Identity",
    "LeakyRelu",
    "MatMul",
    "Max",
    "MaxPool",
    "Min",
    "Mul",
    "PRelu",
    "Pad",
    "Pow",
    "ReduceMax",
    "ReduceMean",
    "Relu",
    "Reshape",
    "Shape",
    "Sigmoid",
    "Slice",
    "Sqrt",
    "Sub",
    "Tanh",
    "Transpose",
];

/// Raises the model to opset 13 where it is lower; fails, naming the node, where that could change its meaning.
pub fn raise(model: &mut ModelProto) -> Result<()> {
    if opset(model) >= QDQ_OPSET {
        return Ok(());
    }
    let graph = graph_mut(model)?;
    let mut names = all_names(graph);
    let mut rank2: HashSet<String> = HashSet::new();
    let mut added = Vec::new();
    for node in &mut graph.node {
        let op = node.op_type.clone();
        match op.as_str() {
            _ if !is_default_domain(&node.domain) => {} // has its own version
            "Squeeze" | "Unsqueeze" => {
                if let Some(at) = node.attribute.iter().position(|a| a.name == "axes") {
                    let axes = node.attribute.remove(at).ints;
                    let name = fresh_name(&mut names, &format!("{}.axes", node.output[0]));
                    added.push(i64_tensor(&name, &[axes.len()], &axes));
                    node.input.push(name);
                }
            }
            "Softmax" | "LogSoftmax" => {
                // Before 13, dimensions from `axis` on were one; equal only where that is the last one.
                let axis = attr_int(node, "axis", 1);
                if axis != -1 && !(axis == 1 && rank2.contains(&node.input[0])) {
                    return Err(node_error(node, "its meaning changes with opset 13; export the model with opset 13"));
                }
                node.attribute.retain(|a| a.name != "axis");
                node.attribute.push(int_attribute("axis", -1));
            }
            op if UNCHANGED.contains(&op) => {}
            _ => {
                return Err(node_error(node, "cannot be raised to opset 13; export the model with opset 13 or later"));
            }
        }
        let elementwise = matches!(op.as_str(), "Relu" | "Identity" | "Sigmoid");
        if matches!(op.as_str(), "Gemm" | "Flatten") || (elementwise && rank2.contains(&node.input[0])) {
            rank2.insert(node.output[0].clone());
        }
    }
    graph.initializer.extend(added);
    set_opset(model, QDQ_OPSET);
    Ok(())
}
