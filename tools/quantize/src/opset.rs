//! Raises opset 9 to 12 models to 13, the first with per-channel DequantizeLinear.

use crate::Result;
use crate::onnx::*;
use std::collections::HashSet;

/// First operator set whose DequantizeLinear takes an axis.
pub const QDQ_OPSET: i64 = 13;

/// Operators whose meaning and form are equal in opsets 9 to 13 (for float32 inference).
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
    let version = opset(model);
    if version >= QDQ_OPSET {
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
            "Dropout" => node.attribute.retain(|a| a.name != "ratio"), // inference ignores it
            "Clip" if version < 11 => {
                for (bound, default) in [("min", f32::MIN), ("max", f32::MAX)] {
                    let name = fresh_name(&mut names, &format!("{}.{bound}", node.output[0]));
                    added.push(f32_tensor(&name, &[], &[attr_float(node, bound, default)]));
                    node.input.push(name);
                }
                node.attribute.clear();
            }
            "Pad" if version < 11 => {
                let pads = attr_ints(node, "pads").to_vec();
                let value = attr_float(node, "value", 0.0);
                let [p, v] = ["pads", "value"].map(|part| fresh_name(&mut names, &format!("{}.{part}", node.output[0])));
                added.extend([i64_tensor(&p, &[pads.len()], &pads), f32_tensor(&v, &[], &[value])]);
                node.input.extend([p, v]);
                node.attribute.retain(|a| a.name == "mode");
            }
            "Slice" if version < 10 => {
                let output = node.output[0].clone();
                let list = |name: &str| attr_ints(node, name).to_vec();
                let (starts, ends, mut axes) = (list("starts"), list("ends"), list("axes"));
                if axes.is_empty() {
                    axes = (0..starts.len() as i64).collect();
                }
                for (part, values) in [("starts", starts), ("ends", ends), ("axes", axes)] {
                    let name = fresh_name(&mut names, &format!("{output}.{part}"));
                    added.push(i64_tensor(&name, &[values.len()], &values));
                    node.input.push(name);
                }
                node.attribute.clear();
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
