//! Makes BatchNorm, and other constant scaling of channels, a part of the Conv before it.
//!
//! BatchNorm (ONNX `BatchNormalization`): y = γ·(x − μ)/√(σ² + ε) + β per channel. After a Conv it is
//! W' = W·k, b' = (b − μ)·k + β with k = γ/√(σ² + ε), computed in f64 and rounded to f32 once.

use crate::onnx::*;
use crate::rows::Rows;
use crate::{Error, Result};
use serde::Serialize;
use std::collections::HashSet;

/// What folding did.
#[derive(Debug, Clone, Default, Serialize)]
pub struct FoldReport {
    /// BatchNorm nodes that became part of a Conv.
    pub folded: usize,
    /// Other constant scalings of channels (Mul, Add, Sub, Div) that became part of a Conv.
    pub affine: usize,
    /// BatchNorm nodes left in float, with the reason.
    pub kept: Vec<KeptBatchNorm>,
}

/// A BatchNorm that stays.
#[derive(Debug, Clone, Serialize)]
pub struct KeptBatchNorm {
    /// The node.
    pub node: String,
    /// Why it could not be folded.
    pub reason: String,
}

/// Folds a validated, simplified model in place. The result computes the same function.
pub fn fold(model: &mut ModelProto) -> Result<FoldReport> {
    let opset = opset(model);
    let graph = graph_mut(model)?;
    let report = fold_scalings(graph, opset)?;
    prune(graph);
    validate(model)?;
    Ok(report)
}

/// y = x·scale + offset, one value per channel or one for all.
pub struct Scaling {
    /// Factors.
    pub scale: Vec<f64>,
    /// Summands.
    pub offset: Vec<f64>,
}

/// Why a node stays as it is, or what it does to which tensor.
type Found = Result<(Scaling, String), String>;

/// Constant scaling of channels done by a node: BatchNormalization, or Add, Sub, Mul, Div with a constant that has one
/// value per channel. `None` for other nodes.
pub fn scaling_of(graph: &GraphProto, node: &NodeProto, opset: i64) -> Option<Found> {
    if is_op(node, "BatchNormalization") {
        return Some(batch_norm(graph, node, opset));
    }
    if !["Add", "Sub", "Mul", "Div"].iter().any(|op| is_op(node, op)) || node.input.len() != 2 {
        return None;
    }
    let constant = |i: usize| graph.initializer.iter().find(|t| t.name == node.input[i] && t.data_type == 1);
    let (at, t) = match (constant(0), constant(1)) {
        (None, Some(t)) => (1, t),
        (Some(t), None) => (0, t),
        _ => return None,
    };
    let dims = tensor_dims(t).ok()?;
    let per_channel = match dims[..] {
        [c, 1, 1] | [1, c, 1, 1] => c,
        _ if dims.iter().all(|&d| d == 1) => 1,
        _ => return None,
    };
    let values: Vec<f64> = f32_data(t).ok()?.iter().map(|&v| f64::from(v)).collect();
    let n = per_channel;
    let (scale, offset) = match (node.op_type.as_str(), at) {
        ("Add", _) => (vec![1.0; n], values),
        ("Sub", 1) => (vec![1.0; n], values.iter().map(|v| -v).collect()),
        ("Sub", _) => (vec![-1.0; n], values),
        ("Mul", _) => (values, vec![0.0; n]),
        ("Div", 1) => (values.iter().map(|v| 1.0 / v).collect(), vec![0.0; n]),
        _ => return None,
    };
    Some(Ok((Scaling { scale, offset }, node.input[1 - at].clone())))
}

/// γ/√(σ² + ε) and β − μ·γ/√(σ² + ε).
fn batch_norm(graph: &GraphProto, bn: &NodeProto, opset: i64) -> Found {
    let used = use_counts(graph);
    if bn.input.len() != 5 || bn.input.iter().any(String::is_empty) || bn.output.first().is_none_or(|s| s.is_empty()) {
        return Err("it does not have five inputs and an output".into());
    }
    if attr_int(bn, "training_mode", 0) != 0 {
        return Err("it is in training mode; export the model after model.eval()".into());
    }
    // Up to opset 13, asking for the running statistics is what switches training mode on.
    let extra: Vec<&str> = outputs(bn).skip(1).collect();
    if !extra.is_empty() && (opset < 14 || extra.iter().any(|o| used.contains_key(*o))) {
        return Err("its training outputs are requested; export the model after model.eval()".into());
    }
    let mut values: Vec<Vec<f64>> = Vec::new();
    for name in &bn.input[1..] {
        let Some(t) = graph.initializer.iter().find(|t| t.name == *name) else {
            return Err(format!("its parameter `{name}` is computed"));
        };
        let data = f32_data(t).map_err(|_| format!("its parameter `{name}` is not float32"))?;
        values.push(data.into_iter().map(f64::from).collect());
    }
    let channels = values[0].len();
    if values.iter().any(|v| v.len() != channels) {
        return Err("its parameters differ in length".into());
    }
    let epsilon = f64::from(attr_float(bn, "epsilon", 1e-5));
    let scale: Vec<f64> = (0..channels).map(|c| values[0][c] / (values[3][c] + epsilon).sqrt()).collect();
    let offset = (0..channels).map(|c| values[1][c] - values[2][c] * scale[c]).collect();
    Ok((Scaling { scale, offset }, bn.input[0].clone()))
}

fn fold_scalings(graph: &mut GraphProto, opset: i64) -> Result<FoldReport> {
    let mut report = FoldReport::default();
    let mut names = all_names(graph);
    let mut index = 0;
    while index < graph.node.len() {
        let node = graph.node[index].clone();
        let Some(found) = scaling_of(graph, &node, opset) else {
            index += 1;
            continue;
        };
        let batch_norm = is_op(&node, "BatchNormalization");
        let done = match found {
            Ok((scaling, x)) => fold_one(graph, index, &scaling, &x, &mut names)?,
            Err(reason) => Err(reason),
        };
        match done {
            Ok(()) => {
                graph.node.remove(index);
                report.folded += usize::from(batch_norm);
                report.affine += usize::from(!batch_norm);
            }
            Err(reason) => {
                if batch_norm {
                    report.kept.push(KeptBatchNorm { node: node_name(&node), reason });
                }
                index += 1;
            }
        }
    }
    Ok(report)
}

/// Folds the scaling of `x` at `index` into the Conv that makes `x`, or says why it stays.
fn fold_one(graph: &mut GraphProto, index: usize, scaling: &Scaling, x: &str, names: &mut HashSet<String>) -> Result<Result<(), String>> {
    let node = graph.node[index].clone();
    let used = use_counts(graph);
    macro_rules! keep {
        ($($t:tt)*) => { return Ok(Err(format!($($t)*))) };
    }
    let Some(conv_at) = graph.node.iter().position(|n| outputs(n).any(|o| o == x)) else {
        keep!("it normalizes a graph input or constant");
    };
    let conv = &graph.node[conv_at];
    // A Gemm is a layer of vectors, which only a BatchNorm scales by channels.
    let plain = || attr_int(conv, "transA", 0) == 0 && attr_float(conv, "beta", 1.0) == 1.0;
    let gemm = is_op(conv, "Gemm") && is_op(&node, "BatchNormalization") && plain();
    if !(gemm || is_op(conv, "Conv") || is_op(conv, "ConvTranspose")) || conv.input.len() < 2 {
        keep!("it follows {}, which cannot take it up", node_name(conv));
    }
    if used.get(&conv.output[0]) != Some(&1) {
        keep!("the output of {} has other readers", node_name(conv));
    }
    let constant = |name: &str| graph.initializer.iter().find(|t| t.name == name);
    let Some(weight) = constant(&conv.input[1]) else { keep!("the weights of {} are computed", node_name(conv)) };
    if weight.data_type != 1 {
        keep!("the weights of {} are not float32", node_name(conv));
    }
    let dims = tensor_dims(weight)?;
    let rows = Rows::of(conv, &dims);
    let channels = rows.outputs;
    if dims.len() != if gemm { 2 } else { 4 } || (scaling.scale.len() != channels && scaling.scale.len() != 1) {
        return Err(node_error(&node, format!("it scales {} channels, its Conv makes {channels}", scaling.scale.len())));
    }
    let bias = match conv.input.get(2).filter(|s| !s.is_empty()) {
        None => vec![0.0; channels],
        Some(name) => match constant(name) {
            Some(t) if tensor_dims(t)? == [channels] => f32_data(t)?,
            Some(t) => {
                return Err(Error::tensor(&t.name, format!("a bias of {channels} elements expected")));
            }
            None => keep!("the bias of {} is computed", node_name(conv)),
        },
    };
    let mut weights = f32_data(weight)?;
    let mut new_bias = Vec::with_capacity(channels);
    let of = |values: &[f64], c: usize| values[if values.len() == 1 { 0 } else { c }];
    let unusable = |c: usize| node_error(&node, format!("channel {c} folds to NaN or infinity: its variance is not usable"));
    for (at, w) in weights.iter_mut().enumerate() {
        let c = rows.output(at);
        *w = (f64::from(*w) * of(&scaling.scale, c)) as f32;
        if !w.is_finite() {
            return Err(unusable(c));
        }
    }
    for (c, &b) in bias.iter().enumerate() {
        let k = of(&scaling.scale, c);
        let b = (f64::from(b) * k + of(&scaling.offset, c)) as f32;
        if !k.is_finite() || !b.is_finite() {
            return Err(unusable(c));
        }
        new_bias.push(b);
    }
    // Shared tensors keep their old values for their other readers.
    let old = [Some(conv.input[1].clone()), conv.input.get(2).filter(|s| !s.is_empty()).cloned()];
    let mut name_for = |old: &Option<String>, otherwise: String| match old {
        Some(name) if used.get(name) == Some(&1) => name.clone(),
        Some(name) => fresh_name(names, &format!("{name}.folded")),
        None => fresh_name(names, &otherwise),
    };
    let weight_name = name_for(&old[0], String::new());
    let base = weight_name.strip_suffix(".weight").unwrap_or(&weight_name).to_string();
    let bias_name = name_for(&old[1], format!("{base}.bias"));
    let output = node.output[0].clone();
    graph.initializer.retain(|t| t.name != weight_name && t.name != bias_name);
    graph.initializer.push(f32_tensor(&weight_name, &dims, &weights));
    graph.initializer.push(f32_tensor(&bias_name, &[channels], &new_bias));
    let conv = &mut graph.node[conv_at];
    conv.input.truncate(2);
    conv.input[1] = weight_name;
    conv.input.push(bias_name);
    conv.output[0] = output;
    Ok(Ok(()))
}
