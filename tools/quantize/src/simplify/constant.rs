//! Computes, through tract, the nodes that depend on constants only: a transposed head, a reshaped weight.

use crate::Result;
use crate::onnx::*;
use edge_infer::import::guarded;
use std::collections::HashSet;
use tract_onnx::prelude::*;

/// Operators whose result is about as large as their operands: a broken file cannot make them take much memory.
const FOLDED: &[&str] = &[
    "Transpose",
    "Reshape",
    "Unsqueeze",
    "Squeeze",
    "Flatten",
    "Identity",
    "Cast",
    "Concat",
    "Gather",
    "Neg",
    "Sqrt",
    "Reciprocal",
    "Relu",
    "Shape",
];

/// Elementwise operators, folded where one operand is a single value or both have the same dimensions.
const ELEMENTWISE: &[&str] = &["Add", "Sub", "Mul", "Div"];

/// Passes over the graph: the size that an `Expand` makes may itself be computed from constants, as in a bias of zeros
/// `Expand(0, Shape(weight))`.
const PASSES: usize = 4;
/// Values that all `Expand`s of a pass may make together: named sizes are bounded before anything is allocated.
const EXPANDED: i64 = 1 << 20;

/// Replaces constant nodes by initializers. What tract cannot compute stays as it is.
pub fn fold(model: &mut ModelProto) -> Result<()> {
    for _ in 0..PASSES {
        if !pass(model)? {
            break;
        }
    }
    Ok(())
}

/// Whether anything was folded.
fn pass(model: &mut ModelProto) -> Result<bool> {
    let graph = graph(model)?;
    let mut constant: HashSet<&str> = graph.initializer.iter().map(|t| t.name.as_str()).collect();
    let dims = |name: &str| graph.initializer.iter().find(|t| t.name == name).map(|t| &t.dims);
    let captured = captured_names(graph);
    let results: HashSet<&str> = graph.output.iter().map(|o| o.name.as_str()).collect();
    let mut chosen: Vec<usize> = Vec::new();
    let mut room = EXPANDED;
    for (i, node) in graph.node.iter().enumerate() {
        let op = node.op_type.as_str();
        let alike = || {
            let d: Vec<_> = inputs(node).map(dims).collect();
            d.len() == 2 && d.iter().all(Option::is_some) && (d[0] == d[1] || d.iter().flatten().any(|d| d.iter().product::<i64>() == 1))
        };
        let mut small = || {
            let shape = node.input.get(1).and_then(|n| graph.initializer.iter().find(|t| t.name == *n)).and_then(|t| i64_data(t).ok());
            let size = shape.and_then(|s| s.iter().try_fold(1i64, |n, &d| n.checked_mul(d.max(1))));
            size.filter(|&n| n <= room).inspect(|n| room -= n).is_some()
        };
        let known = is_default_domain(&node.domain)
            && (op == "Expand" && small() || FOLDED.contains(&op) || (ELEMENTWISE.contains(&op) && alike()));
        let free = node.output.len() == 1 && outputs(node).all(|o| !captured.contains(o) && !results.contains(o));
        if known && free && inputs(node).next().is_some() && inputs(node).all(|n| constant.contains(n)) {
            constant.extend(outputs(node));
            chosen.push(i);
        }
    }
    if chosen.is_empty() {
        return Ok(false);
    }
    let needed: HashSet<&str> = chosen.iter().flat_map(|&i| inputs(&graph.node[i])).collect();
    let mut part = GraphProto { name: "constants".into(), ..Default::default() };
    part.initializer = graph.initializer.iter().filter(|t| needed.contains(t.name.as_str())).cloned().collect();
    part.node = chosen.iter().map(|&i| graph.node[i].clone()).collect();
    let names: Vec<String> = part.node.iter().map(|n| n.output[0].clone()).collect();
    names.iter().for_each(|n| expose(&mut part, n));
    let proto =
        ModelProto { ir_version: model.ir_version, opset_import: model.opset_import.clone(), graph: Some(part), ..Default::default() };
    let values =
        guarded(|| tract_onnx::onnx().model_for_proto_model(&proto)?.into_typed()?.into_decluttered()?.into_runnable()?.run(tvec!()));
    let Ok(values) = values else { return Ok(false) };
    let mut made = Vec::with_capacity(names.len());
    for (name, value) in names.iter().zip(&values) {
        let tensor = guarded(|| {
            let shape = value.shape().to_vec();
            if value.datum_type() == f32::datum_type() {
                let view = value.to_plain_array_view::<f32>()?;
                return Ok(f32_tensor(name, &shape, view.as_standard_layout().as_slice().unwrap_or_default()));
            }
            // Shape arithmetic may be in tract's own dimension type.
            let whole = value.cast_to::<i64>()?;
            let view = whole.to_plain_array_view::<i64>()?;
            Ok(i64_tensor(name, &shape, view.as_standard_layout().as_slice().unwrap_or_default()))
        });
        // int32, int8 and the like keep their nodes: their type would be lost.
        let kind = value.datum_type();
        made.push(tensor.ok().filter(|_| [f32::datum_type(), i64::datum_type(), TDim::datum_type()].contains(&kind)));
    }
    let graph = graph_mut(model)?;
    let mut position = 0;
    let mut at = 0;
    graph.node.retain(|_| {
        let fold = chosen.get(at).is_some_and(|&i| i == position);
        position += 1;
        if !fold {
            return true;
        }
        at += 1;
        made[at - 1].is_none()
    });
    let initializers = graph.initializer.len();
    graph.initializer.extend(made.into_iter().flatten());
    Ok(graph.initializer.len() > initializers)
}
