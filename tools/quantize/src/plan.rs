//! Decides which tensors carry QuantizeLinear → DequantizeLinear.
//!
//! Every operator of the int8 set reads and writes quantized tensors, except that
//! - a Conv or Add followed by one Relu or Clip is quantized after it,
//! - MaxPool keeps its input's parameters, Flatten and Reshape pass them through,
//! - a graph output stays float,
//! - in [`Residual::Fused`], a residual branch's last Conv goes into its Add unrounded.

use crate::float::Shapes;
use crate::onnx::*;
use crate::sensitivity::short_name;
use crate::{Error, Result};
use serde::Serialize;
use std::collections::{HashMap, HashSet};

/// What stands between a residual branch's last Conv and its Add.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Residual {
    /// Nothing: one rounding after the Add.
    Fused,
    /// QuantizeLinear and DequantizeLinear, which some runtimes need for an integer Add.
    Qdq,
}

/// A node left in float.
#[derive(Debug, Clone, Serialize)]
pub struct FloatNode {
    /// The node.
    pub node: String,
    /// Why.
    pub reason: String,
}

/// The decision for one graph; node positions are those of the graph it was made for.
#[derive(Debug, Default)]
pub struct Plan {
    /// Tensors that get Q/DQ, in order of computation.
    pub tensors: Vec<String>,
    /// Tensors whose parameters are another's.
    pub shared: HashMap<String, String>,
    /// Relu/Clip nodes fused with their producer: output tensor → input tensor.
    pub fused: HashMap<String, String>,
    /// Positions of Conv and Gemm nodes with int8 weights, and the quantized tensor each one reads.
    pub weighted: HashMap<usize, String>,
    /// Nodes that stay float.
    pub float: Vec<FloatNode>,
}

fn is_transparent(node: &NodeProto) -> bool {
    is_op(node, "Flatten") || is_op(node, "Reshape")
}

/// Clip's constant bounds, or Relu's.
pub fn clamp_bounds(node: &NodeProto, constants: &HashMap<&str, &TensorProto>) -> Option<(f64, f64)> {
    if is_op(node, "Relu") {
        return Some((0.0, f64::INFINITY));
    }
    if !is_op(node, "Clip") {
        return None;
    }
    let bound = |i: usize, default: f64| match node.input.get(i).filter(|s| !s.is_empty()) {
        None => Some(default),
        Some(name) => Some(f64::from(*f32_data(constants.get(name.as_str())?).ok()?.first()?)),
    };
    Some((bound(1, f64::NEG_INFINITY)?, bound(2, f64::INFINITY)?))
}

/// Initializers by name.
pub fn constants(graph: &GraphProto) -> HashMap<&str, &TensorProto> {
    graph.initializer.iter().map(|t| (t.name.as_str(), t)).collect()
}

/// Whether a ReduceMean of a tensor of this rank takes the mean over height and width.
pub fn is_spatial_mean(node: &NodeProto, constants: &HashMap<&str, &TensorProto>, rank: Option<usize>) -> bool {
    let from_input = node.input.get(1).and_then(|n| constants.get(n.as_str())).and_then(|t| i64_data(t).ok());
    let mut axes = from_input.unwrap_or_else(|| attr_ints(node, "axes").to_vec());
    axes.iter_mut().filter(|a| **a < 0).for_each(|a| *a += 4);
    axes.sort_unstable();
    rank == Some(4) && axes == [2, 3]
}

/// Why a node cannot be int8, `None` if it can.
fn obstacle(node: &NodeProto, constants: &HashMap<&str, &TensorProto>, shapes: &Shapes, used: &HashMap<String, usize>) -> Option<String> {
    if !is_default_domain(&node.domain) {
        return Some(format!("operator of domain {}", node.domain));
    }
    let constant_f32 = |i: usize| {
        let name = node.input.get(i).filter(|s| !s.is_empty());
        name.is_some_and(|n| constants.get(n.as_str()).is_some_and(|t| t.data_type == 1))
    };
    let absent = |i: usize| node.input.get(i).is_none_or(|s| s.is_empty());
    if node.input.first().is_none_or(|n| constants.contains_key(n.as_str()) || !shapes.contains_key(n)) {
        return Some("its first input is no float activation".into());
    }
    match node.op_type.as_str() {
        "Conv" if !constant_f32(1) => Some("its weights are computed or not float32".into()),
        "Conv" if !absent(2) && !constant_f32(2) => Some("its bias is computed or not float32".into()),
        "Gemm" if !is_canonical_gemm(node) || !constant_f32(1) || (!absent(2) && !constant_f32(2)) => {
            Some("its weights or bias are computed, or its first input is transposed".into())
        }
        "Add" => {
            let (a, b) = (shapes.get(&node.input[0]), node.input.get(1).and_then(|n| shapes.get(n)));
            let constant = node.input.iter().any(|n| constants.contains_key(n.as_str()));
            (constant || a.is_none() || a != b).then(|| "not a sum of two activations of equal shape".into())
        }
        "MaxPool" => outputs(node).skip(1).any(|o| used.contains_key(o)).then(|| "its indices are used".into()),
        "ReduceMean" => {
            let rank = shapes.get(&node.input[0]).map(Vec::len);
            (!is_spatial_mean(node, constants, rank)).then(|| "not a mean over height and width".into())
        }
        "Clip" => clamp_bounds(node, constants).is_none().then(|| "its bounds are computed".into()),
        "AveragePool" if attr(node, "auto_pad").is_some_and(|a| !matches!(a.s.as_slice(), b"" | b"NOTSET" | b"VALID")) => {
            Some("its padding is automatic".into())
        }
        "Concat" => {
            let pictures = inputs(node).all(|n| shapes.get(n).is_some_and(|s| s.len() == 4) && !constants.contains_key(n));
            (!pictures || attr_int(node, "axis", 0) != 1).then(|| "it does not join the channels of activations".into())
        }
        "AveragePool" | "Conv" | "Gemm" | "GlobalAveragePool" | "HardSigmoid" | "HardSwish" | "Relu" | "Sigmoid" => None,
        op => Some(format!("{op} has no int8 form here")),
    }
}

fn is_canonical_gemm(node: &NodeProto) -> bool {
    attr_int(node, "transA", 0) == 0
        && attr_int(node, "transB", 0) == 1
        && attr_float(node, "alpha", 1.0) == 1.0
        && attr_float(node, "beta", 1.0) == 1.0
}

/// MatMul + Add → Gemm, and every Gemm with constant operands → transB = 1, alpha = beta = 1, bias of N elements:
/// then the output channel is axis 0 of all weights.
pub fn canonicalize_heads(graph: &mut GraphProto, shapes: &Shapes) -> Result<()> {
    let used = use_counts(graph);
    let mut names = all_names(graph);
    let mut at = 0;
    while at < graph.node.len() {
        let node = graph.node[at].clone();
        let rank2 = node.input.first().and_then(|n| shapes.get(n)).is_some_and(|s| s.len() == 2);
        let matmul = is_op(&node, "MatMul") && rank2;
        let gemm = is_op(&node, "Gemm") && attr_int(&node, "transA", 0) == 0;
        at += 1;
        if !(matmul || gemm) {
            continue;
        }
        let constants = constants(graph);
        let Some(weight) = node.input.get(1).and_then(|n| constants.get(n.as_str())).filter(|t| t.data_type == 1) else {
            continue;
        };
        let dims = tensor_dims(weight)?;
        let [rows, cols] = dims[..] else { continue };
        let transposed = gemm && attr_int(&node, "transB", 0) == 1;
        let (n, k) = if transposed { (rows, cols) } else { (cols, rows) };
        // The bias: Gemm's own, or that of an Add which is the MatMul's only reader.
        let mut output = node.output[0].clone();
        let mut bias_name = node.input.get(2).filter(|s| !s.is_empty() && gemm).cloned();
        let mut absorbed = None;
        if matmul && used.get(&output) == Some(&1) {
            let add = graph.node.iter().position(|m| is_op(m, "Add") && m.input.contains(&output));
            if let Some(i) = add {
                let other = graph.node[i].input.iter().find(|s| **s != output);
                if let Some(b) = other.filter(|b| constants.contains_key(b.as_str())) {
                    bias_name = Some(b.clone());
                    absorbed = Some(i);
                }
            }
        }
        let (alpha, beta) = if gemm { (attr_float(&node, "alpha", 1.0), attr_float(&node, "beta", 1.0)) } else { (1.0, 1.0) };
        let bias = match &bias_name {
            None => None,
            Some(b) => {
                let Some(t) = constants.get(b.as_str()).filter(|t| t.data_type == 1) else {
                    continue;
                };
                let (values, dims) = (f32_data(t)?, tensor_dims(t)?);
                let full = match (values.len(), dims.last()) {
                    (1, _) => vec![values[0]; n],
                    (len, Some(&last)) if len == n && last == n && dims.len() <= 2 => values,
                    _ => continue,
                };
                Some(full.into_iter().map(|v| v * beta).collect::<Vec<_>>())
            }
        };
        let values = f32_data(weight)?;
        let mut turned = Vec::with_capacity(values.len());
        for i in 0..n {
            turned.extend((0..k).map(|j| alpha * if transposed { values[i * k + j] } else { values[j * n + i] }));
        }
        if turned.iter().chain(bias.iter().flatten()).any(|v| !v.is_finite()) {
            return Err(node_error(&node, "alpha or beta takes its weights out of range"));
        }
        let weight_name = fresh_name(&mut names, &format!("{}.rows", node.input[1]));
        let mut inputs = vec![node.input[0].clone(), weight_name.clone()];
        graph.initializer.push(f32_tensor(&weight_name, &[n, k], &turned));
        if let Some(bias) = bias {
            let name = fresh_name(&mut names, &format!("{}.vector", bias_name.unwrap_or_default()));
            graph.initializer.push(f32_tensor(&name, &[n], &bias));
            inputs.push(name);
        }
        let mut place = at - 1;
        if let Some(add) = absorbed {
            output = graph.node[add].output[0].clone();
            graph.node.remove(add);
            place = place.min(graph.node.len() - 1);
        }
        let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
        let mut new = make_node("Gemm", &inputs, &output, vec![int_attribute("transB", 1)]);
        if !node.name.is_empty() {
            new.name = node.name;
        }
        graph.node[place] = new;
    }
    prune(graph);
    Ok(())
}

/// Makes the plan for a folded, canonical graph; nodes whose name or output is in `keep_float` stay float.
pub fn plan(graph: &GraphProto, shapes: &Shapes, residual: Residual, keep_float: &[String]) -> Result<Plan> {
    let asked = |node: &NodeProto| keep_float.iter().any(|k| *k == node.name || node.output.contains(k));
    if let Some(unknown) = keep_float.iter().find(|k| !graph.node.iter().any(|n| n.name == **k || n.output.contains(k))) {
        let names: Vec<&str> = graph.node.iter().filter(|n| is_op(n, "Conv") || is_op(n, "Gemm")).map(short_name).collect();
        return Err(Error::Usage(format!("--keep-float {unknown}: no such layer; there are {}", names.join(", "))));
    }
    let constants = constants(graph);
    let used = use_counts(graph);
    let results: HashSet<&str> = graph.output.iter().map(|o| o.name.as_str()).collect();
    let producer: HashMap<&str, usize> = graph.node.iter().enumerate().flat_map(|(i, n)| outputs(n).map(move |o| (o, i))).collect();
    let producer_of = |t: &str| producer.get(t).map(|&i| (i, &graph.node[i]));
    // The tensor whose parameters `t` has: through reshapes, whose shape input carries no data.
    let root = |t: &str| -> String {
        let mut t = t.to_string();
        while let Some((_, n)) = producer_of(&t).filter(|(_, n)| is_transparent(n)) {
            t = n.input[0].clone();
        }
        t
    };
    let mut plan = Plan::default();
    let mut wanted: HashSet<String> = HashSet::new();
    let mut unrounded: HashSet<String> = HashSet::new();
    let mut int8 = vec![false; graph.node.len()];
    let mut depth: HashMap<&str, usize> = HashMap::new();
    for (i, node) in graph.node.iter().enumerate() {
        let before = inputs(node).filter_map(|n| depth.get(n)).max().copied().unwrap_or(0);
        outputs(node).for_each(|o| {
            depth.insert(o, before + usize::from(is_op(node, "Conv")));
        });
        if is_transparent(node) {
            continue;
        }
        let constant = || constants.contains_key(root(&node.input[0]).as_str());
        // A clamp belongs to the layer before it.
        let clamped = (is_op(node, "Relu") || is_op(node, "Clip"))
            && producer_of(&node.input[0]).is_some_and(|(p, n)| !int8[p] && asked(n) && used.get(&node.input[0]) == Some(&1));
        let kept = (asked(node) || clamped).then(|| "kept in float, as asked".to_string());
        let reason =
            kept.or_else(|| obstacle(node, &constants, shapes, &used)).or_else(|| constant().then(|| "its input is constant".to_string()));
        match reason {
            None => int8[i] = true,
            // Shape arithmetic is not worth a word.
            Some(_) if !node.output.first().is_some_and(|o| shapes.contains_key(o)) => {}
            Some(reason) => plan.float.push(FloatNode { node: node_name(node), reason }),
        }
    }
    let mut read_in_int8: HashSet<&str> = HashSet::new();
    for (i, node) in graph.node.iter().enumerate().rev() {
        let passes_on = is_transparent(node) && outputs(node).any(|o| read_in_int8.contains(o));
        if int8[i] || passes_on {
            read_in_int8.extend(inputs(node));
        }
    }
    for (i, node) in graph.node.iter().enumerate().filter(|(i, _)| int8[*i]) {
        let output = &node.output[0];
        let is_clamp = is_op(node, "Relu") || is_op(node, "Clip");
        let fusable = |t: &str| {
            used.get(t) == Some(&1) && producer_of(t).is_some_and(|(p, n)| int8[p] && matches!(n.op_type.as_str(), "Conv" | "Add" | "Gemm"))
        };
        if is_clamp && fusable(&node.input[0]) {
            plan.fused.insert(output.clone(), node.input[0].clone());
            unrounded.insert(node.input[0].clone());
        } else {
            wanted.insert(root(&node.input[0]));
        }
        if is_op(node, "Concat") {
            wanted.extend(inputs(node).skip(1).map(root));
        }
        if is_op(node, "Add") {
            wanted.insert(root(&node.input[1]));
            let candidates = node.input[..2]
                .iter()
                .filter(|t| producer_of(t).is_some_and(|(p, n)| int8[p] && is_op(n, "Conv")) && used.get(*t) == Some(&1));
            // Of two convs, the deeper one ends the branch, the other is the downsample path.
            let branch = candidates.max_by_key(|t| (depth.get(t.as_str()), producer.get(t.as_str())));
            if let (Residual::Fused, Some(branch)) = (residual, branch) {
                unrounded.insert(branch.clone());
            }
        }
        if matches!(node.op_type.as_str(), "Conv" | "Gemm") {
            plan.weighted.insert(i, root(&node.input[0]));
        }
        if is_op(node, "MaxPool") {
            plan.shared.insert(output.clone(), root(&node.input[0]));
        }
        // Logits that only float operators read (Softmax) leave the integers unrounded.
        let logits = is_op(node, "Gemm") && !read_in_int8.contains(output.as_str());
        if !results.contains(output.as_str()) && !logits {
            wanted.insert(output.clone());
        }
    }
    if plan.weighted.is_empty() {
        return Err(Error::UnsupportedModel("it has no Conv or Gemm with constant float32 weights: nothing to quantize".into()));
    }
    let inputs = graph.input.iter().map(|i| i.name.as_str());
    let computed = graph.node.iter().flat_map(outputs);
    plan.tensors = inputs.chain(computed).filter(|t| wanted.contains(*t) && !unrounded.contains(*t)).map(String::from).collect();
    Ok(plan)
}
