//! Removes what inference does not need: constant nodes, identities, and BatchNorm after Conv.
//!
//! BatchNorm (ONNX `BatchNormalization`): y = γ·(x − μ)/√(σ² + ε) + β per channel. After a Conv it is
//! W' = W·k, b' = (b − μ)·k + β with k = γ/√(σ² + ε), computed in f64 and rounded to f32 once.

use crate::onnx::*;
use crate::{Error, Result};
use serde::Serialize;
use std::collections::{HashMap, HashSet};

/// What folding did.
#[derive(Debug, Clone, Default, Serialize)]
pub struct FoldReport {
    /// BatchNorm nodes that became part of a Conv.
    pub folded: usize,
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

/// Folds a validated model in place. The result computes the same function.
pub fn fold(model: &mut ModelProto) -> Result<FoldReport> {
    let opset = opset(model);
    // From IR version 4 on, initializers need not be graph inputs.
    model.ir_version = model.ir_version.max(4);
    let graph = graph_mut(model)?;
    if graph.name.is_empty() {
        graph.name = "graph".into(); // required by the checker
    }
    let constants: HashSet<String> = graph.initializer.iter().map(|t| t.name.clone()).collect();
    graph.input.retain(|i| !constants.contains(&i.name));
    constants_to_initializers(graph)?;
    remove_identities(graph);
    let report = fold_batch_norms(graph, opset)?;
    prune(graph);
    validate(model)?;
    Ok(report)
}

/// `Constant` nodes → initializers.
fn constants_to_initializers(graph: &mut GraphProto) -> Result<()> {
    let mut kept = Vec::with_capacity(graph.node.len());
    for node in std::mem::take(&mut graph.node) {
        let value = if is_op(&node, "Constant") && node.output.len() == 1 { constant_value(&node) } else { None };
        match value {
            Some(t) => graph.initializer.push(t),
            None => kept.push(node),
        }
    }
    graph.node = kept;
    Ok(())
}

fn constant_value(node: &NodeProto) -> Option<TensorProto> {
    let name = node.output[0].as_str();
    let a = node.attribute.first()?;
    Some(match a.name.as_str() {
        "value" => TensorProto { name: name.into(), ..a.t.clone()? },
        "value_float" => f32_tensor(name, &[], &[a.f]),
        "value_floats" => f32_tensor(name, &[a.floats.len()], &a.floats),
        "value_int" => i64_tensor(name, &[], &[a.i]),
        "value_ints" => i64_tensor(name, &[a.ints.len()], &a.ints),
        _ => return None,
    })
}

/// Readers of an `Identity` (or of an inference-time `Dropout` whose mask is unused) read its input instead.
fn remove_identities(graph: &mut GraphProto) {
    let mut pinned = captured_names(graph);
    pinned.extend(graph.output.iter().map(|o| o.name.clone()));
    let used = use_counts(graph);
    let mut alias: HashMap<String, String> = HashMap::new();
    graph.node.retain_mut(|node| {
        for input in &mut node.input {
            if let Some(source) = alias.get(input) {
                *input = source.clone();
            }
        }
        let transparent = is_op(node, "Identity")
            // A third input could switch a Dropout to training.
            || (is_op(node, "Dropout") && node.input.get(2).is_none_or(|s| s.is_empty()));
        let only_output = outputs(node).skip(1).all(|o| !used.contains_key(o));
        let (Some(input), Some(output)) = (node.input.first(), node.output.first()) else {
            return true;
        };
        if !transparent || !only_output || pinned.contains(output) || input.is_empty() {
            return true;
        }
        alias.insert(output.clone(), input.clone());
        false
    });
}

fn fold_batch_norms(graph: &mut GraphProto, opset: i64) -> Result<FoldReport> {
    let mut report = FoldReport::default();
    let mut names = all_names(graph);
    let mut index = 0;
    while index < graph.node.len() {
        if !is_op(&graph.node[index], "BatchNormalization") {
            index += 1;
            continue;
        }
        match fold_one(graph, index, opset, &mut names)? {
            Ok(()) => {
                graph.node.remove(index);
                report.folded += 1;
            }
            Err(reason) => {
                let node = node_name(&graph.node[index]);
                report.kept.push(KeptBatchNorm { node, reason });
                index += 1;
            }
        }
    }
    Ok(report)
}

/// Folds the BatchNorm at `index` into its Conv, or says why it stays.
fn fold_one(graph: &mut GraphProto, index: usize, opset: i64, names: &mut HashSet<String>) -> Result<Result<(), String>> {
    let bn = graph.node[index].clone();
    let used = use_counts(graph);
    macro_rules! keep {
        ($($t:tt)*) => { return Ok(Err(format!($($t)*))) };
    }
    if bn.input.len() != 5 || bn.input.iter().any(String::is_empty) || bn.output.first().is_none_or(|s| s.is_empty()) {
        return Err(node_error(&bn, "five inputs and an output expected"));
    }
    if attr_int(&bn, "training_mode", 0) != 0 {
        keep!("it is in training mode");
    }
    // Up to opset 13, asking for the running statistics is what switches training mode on.
    let extra: Vec<&str> = outputs(&bn).skip(1).collect();
    if !extra.is_empty() && (opset < 14 || extra.iter().any(|o| used.contains_key(*o))) {
        keep!("its training outputs are requested");
    }
    let Some(conv_at) = graph.node.iter().position(|n| outputs(n).any(|o| o == bn.input[0])) else {
        keep!("it normalizes a graph input or constant");
    };
    let conv = &graph.node[conv_at];
    if !is_op(conv, "Conv") || conv.input.len() < 2 {
        keep!("it follows {}, not a Conv", node_name(conv));
    }
    if used.get(&conv.output[0]) != Some(&1) {
        keep!("the output of {} has other readers", node_name(conv));
    }
    let constant = |name: &str| graph.initializer.iter().find(|t| t.name == name);
    let Some(weight) = constant(&conv.input[1]) else { keep!("the weights of {} are computed", node_name(conv)) };
    let dims = tensor_dims(weight)?;
    let channels = dims.first().copied().unwrap_or(0);
    let mut values = Vec::new();
    for name in &bn.input[1..] {
        let Some(t) = constant(name) else { keep!("its parameter `{name}` is computed") };
        if t.data_type != weight.data_type || t.data_type != 1 {
            keep!("its parameter `{name}` or the weights are not float32");
        }
        if tensor_dims(t)? != [channels] {
            return Err(node_error(&bn, format!("its parameter `{name}` should have {channels} elements")));
        }
        values.push(f32_data(t)?);
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
    let epsilon = f64::from(attr_float(&bn, "epsilon", 1e-5));
    let mut weights = f32_data(weight)?;
    let mut new_bias = Vec::with_capacity(channels);
    let per_channel = weights.len().checked_div(channels).unwrap_or(0);
    for c in 0..channels {
        let [gamma, beta, mean, variance] = [0, 1, 2, 3].map(|i| f64::from(values[i][c]));
        let k = gamma / (variance + epsilon).sqrt();
        let b = (f64::from(bias[c]) - mean) * k + beta;
        let row = &mut weights[c * per_channel..(c + 1) * per_channel];
        row.iter_mut().for_each(|w| *w = (f64::from(*w) * k) as f32);
        if !k.is_finite() || !(b as f32).is_finite() || row.iter().any(|w| !w.is_finite()) {
            return Err(node_error(&bn, format!("channel {c} folds to NaN or infinity: its variance is not usable")));
        }
        new_bias.push(b as f32);
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
    let output = bn.output[0].clone();
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
