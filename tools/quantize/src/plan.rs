//! Decides which tensors carry QuantizeLinear → DequantizeLinear.
//!
//! Every operator of the int8 set reads and writes quantized tensors, except that
//! - a Conv or Add followed by one Relu or Clip is quantized after it,
//! - MaxPool keeps its input's parameters, Flatten and Reshape pass them through,
//! - a graph output stays float, unless a convolution makes it,
//! - functions of one tensor (SiLU, Gelu, whatever exporters compose of unary operators and numbers) are quantized at their end,
//! - in [`Residual::Fused`], a residual branch's last Conv goes into its Add unrounded.

use crate::float::Shapes;
use crate::onnx::*;
use crate::sensitivity::short_name;
use crate::{Error, Result};
use edge_infer::import::lower;
use edge_infer::import::lower::rules::{self, Facts, Params, Rule};
use edge_infer::ops;
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
    /// Tensors that are best given one range, so that joining them moves no byte: inputs and output of a Concat, and of those it is joined to.
    pub joint: Vec<Vec<String>>,
    /// Relu/Clip nodes fused with their producer: output tensor → input tensor.
    pub fused: HashMap<String, String>,
    /// Positions of Conv and Gemm nodes with int8 weights, and the quantized tensor each one reads.
    pub weighted: HashMap<usize, String>,
    /// Nodes that stay float.
    pub float: Vec<FloatNode>,
}

impl Plan {
    /// The tensor whose own parameters `tensor` has.
    fn source(&self, mut tensor: String) -> String {
        while let Some(source) = self.shared.get(&tensor) {
            tensor = source.clone();
        }
        tensor
    }
}

fn is_transparent(node: &NodeProto) -> bool {
    ["Flatten", "Reshape", "Transpose", "Unsqueeze"].iter().any(|op| is_op(node, op))
}

fn is_clamp(node: &NodeProto) -> bool {
    is_op(node, "Relu") || is_op(node, "Clip")
}

/// Clip's constant bounds, or Relu's.
pub fn clamp_bounds(node: &NodeProto, constants: &HashMap<&str, &TensorProto>) -> Option<(f64, f64)> {
    lower::clamp_bounds(node, |name| constants.get(name).copied()).map(|(lo, hi)| (lo.into(), hi.into()))
}

/// Initializers by name.
pub fn constants(graph: &GraphProto) -> HashMap<&str, &TensorProto> {
    graph.initializer.iter().map(|t| (t.name.as_str(), t)).collect()
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

/// Results that need no rounding, since only functions of the same one tensor read them: the whole of it is one function of that tensor.
fn composed(
    graph: &GraphProto,
    int8: &[Option<&Rule>],
    used: &HashMap<String, usize>,
    results: &HashSet<&str>,
    activation: &impl Fn(&str) -> bool,
    fuses: &impl Fn(&str) -> bool,
) -> HashSet<String> {
    let composes = |i: usize| int8[i].is_some_and(|rule| rule.composes);
    let mut readers: HashMap<&str, Vec<usize>> = HashMap::new();
    for (i, node) in graph.node.iter().enumerate() {
        inputs(node).for_each(|n| readers.entry(n).or_default().push(i));
    }
    // Those that may be: all that read them are known, and compose as well. Then whatever turns out to read two tensors stays out.
    let candidate = |i: usize, o: &&str| {
        let read = readers.get(*o);
        composes(i) && !results.contains(*o) && read.is_some_and(|r| used.get(*o) == Some(&r.len()) && r.iter().all(|&i| composes(i)))
    };
    let makers = graph.node.iter().enumerate();
    let mut found: HashSet<&str> = makers.flat_map(|(i, n)| outputs(n).filter(move |o| candidate(i, o))).collect();
    loop {
        // Of each candidate: the one tensor that it is a function of, and how large the function is.
        let mut of: HashMap<&str, (&str, usize)> = HashMap::new();
        let mut refused: Vec<&str> = Vec::new();
        for (_, node) in graph.node.iter().enumerate().filter(|(i, _)| composes(*i)) {
            let one = |n| if activation(n) { of.get(n).copied().unwrap_or((n, 1)) } else { ("", 1) };
            let read: Vec<(&str, usize)> = inputs(node).map(one).collect();
            // A clamp that is a layer's last part is quantized with it.
            let ends_layer = is_clamp(node) && !found.contains(node.input[0].as_str()) && fuses(&node.input[0]);
            let size = 1 + read.iter().map(|r| r.1).sum::<usize>();
            let mut tensors = read.iter().map(|r| r.0).filter(|t| !t.is_empty());
            let first = tensors.next().unwrap_or_default();
            if !ends_layer && tensors.all(|t| t == first) && size <= ops::MAX_NODES {
                of.extend(outputs(node).filter(|o| found.contains(o)).map(|o| (o, (first, size))));
            } else {
                refused.extend(inputs(node).chain(outputs(node)).filter(|t| found.contains(t)));
            }
        }
        if refused.is_empty() {
            return found.into_iter().map(String::from).collect();
        }
        refused.iter().for_each(|t| {
            found.remove(t);
        });
    }
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
    let facts = Facts { constants: &constants, shapes, used: &used };
    let mut int8: Vec<Option<&Rule>> = vec![None; graph.node.len()];
    let mut depth: HashMap<&str, usize> = HashMap::new();
    for (i, node) in graph.node.iter().enumerate() {
        let before = inputs(node).filter_map(|n| depth.get(n)).max().copied().unwrap_or(0);
        outputs(node).for_each(|o| {
            depth.insert(o, before + usize::from(is_op(node, "Conv")));
        });
        if is_transparent(node) {
            continue;
        }
        let constant = || inputs(node).take(2).all(|n| constants.contains_key(root(n).as_str()));
        // A clamp belongs to the layer before it.
        let clamped = is_clamp(node)
            && producer_of(&node.input[0]).is_some_and(|(p, n)| int8[p].is_none() && asked(n) && used.get(&node.input[0]) == Some(&1));
        let kept = (asked(node) || clamped).then(|| "kept in float, as asked".to_string());
        let found = match kept {
            Some(reason) => Err(reason),
            None => rules::quantizable(node, &facts).and_then(|rule| match constant() {
                true => Err("its input is constant".to_string()),
                false => Ok(rule),
            }),
        };
        match found {
            Ok(rule) => int8[i] = Some(rule),
            // Shape arithmetic is not worth a word.
            Err(_) if !node.output.first().is_some_and(|o| shapes.contains_key(o)) => {}
            Err(reason) => plan.float.push(FloatNode { node: node_name(node), reason }),
        }
    }
    let mut read_in_int8: HashSet<&str> = HashSet::new();
    for (i, node) in graph.node.iter().enumerate().rev() {
        let passes_on = is_transparent(node) && outputs(node).any(|o| read_in_int8.contains(o));
        if int8[i].is_some() || passes_on {
            read_in_int8.extend(inputs(node));
        }
    }
    let activation = |n: &str| !constants.contains_key(n) && shapes.contains_key(n);
    let fuses = |t: &str| used.get(t) == Some(&1) && producer_of(t).is_some_and(|(p, _)| int8[p].is_some_and(|before| before.fuses_clamp));
    let composed = composed(graph, &int8, &used, &results, &activation, &fuses);
    unrounded.extend(composed.iter().cloned());
    // Results of convolutions, and of what is computed with them before anything is rounded.
    let mut convolved: HashSet<&str> = HashSet::new();
    for (i, node) in graph.node.iter().enumerate() {
        let Some(rule) = int8[i] else { continue };
        let output = &node.output[0];
        if is_clamp(node) && !composed.contains(&node.input[0]) && fuses(&node.input[0]) {
            plan.fused.insert(output.clone(), node.input[0].clone());
            unrounded.insert(node.input[0].clone());
        } else {
            wanted.extend(inputs(node).filter(|n| activation(n)).map(root));
        }
        if is_op(node, "Add") && inputs(node).all(activation) {
            let candidates = node.input[..2]
                .iter()
                .filter(|t| producer_of(t).is_some_and(|(p, n)| int8[p].is_some() && is_op(n, "Conv")) && used.get(*t) == Some(&1));
            // Of two convs, the deeper one ends the branch, the other is the downsample path.
            let branch = candidates.max_by_key(|t| (depth.get(t.as_str()), producer.get(t.as_str())));
            if let (Residual::Fused, Some(branch)) = (residual, branch) {
                unrounded.insert(branch.clone());
            }
        }
        if rule.weighted {
            plan.weighted.insert(i, root(&node.input[0]));
        }
        match rule.params {
            Params::Own => {}
            Params::OfInput => plan.shared.extend(outputs(node).map(|o| (o.to_owned(), root(&node.input[0])))),
            Params::Joint => {
                let mut group: Vec<String> = inputs(node).map(|n| plan.source(root(n))).chain([output.clone()]).collect();
                // Whatever has a member in common is one group.
                let (touching, apart): (Vec<_>, Vec<_>) =
                    std::mem::take(&mut plan.joint).into_iter().partition(|g| g.iter().any(|t| group.contains(t)));
                group.extend(touching.into_iter().flatten());
                group.sort_unstable();
                group.dedup();
                plan.joint = apart;
                plan.joint.push(group);
            }
        }
        // Logits that only float operators read (Softmax) leave the integers unrounded.
        let logits = is_op(node, "Gemm") && !read_in_int8.contains(output.as_str());
        // A convolution computes in int8 only if its end is quantized, be it the graph's.
        let ends = rule.weighted && !is_op(node, "Gemm") || inputs(node).any(|t| unrounded.contains(t) && convolved.contains(t));
        if ends {
            convolved.extend(outputs(node));
        }
        if !logits {
            wanted.extend(outputs(node).filter(|o| (ends || !results.contains(o)) && shapes.contains_key(*o)).map(String::from));
        }
    }
    // Reshapes and transpositions in a row that end with a picture (a channel shuffle) move integers.
    let picture = |t: &str| shapes.get(t).is_some_and(|s| s.len() == 4);
    for node in graph.node.iter().filter(|n| is_op(n, "Reshape") || is_op(n, "Transpose")) {
        let (output, source) = (node.output[0].as_str(), root(&node.output[0]));
        if picture(output) && picture(&source) && read_in_int8.contains(output) && wanted.contains(&source) && !results.contains(output) {
            plan.shared.insert(output.to_owned(), source);
            wanted.insert(output.to_owned());
        }
    }
    if plan.weighted.is_empty() {
        return Err(Error::UnsupportedModel(
            "it has no Conv or Gemm with constant float32 weights, so there is nothing to quantize; edge-infer runs it as it is".into(),
        ));
    }
    let inputs = graph.input.iter().map(|i| i.name.as_str());
    let computed = graph.node.iter().flat_map(outputs);
    plan.tensors = inputs.chain(computed).filter(|t| wanted.contains(*t) && !unrounded.contains(*t)).map(String::from).collect();
    Ok(plan)
}
