//! Writes a planned graph in QDQ form.

use crate::Result;
use crate::onnx::*;
use crate::pipeline::Measured;
use crate::plan::{Plan, clamp_bounds, constants};
use crate::rows::Rows;
use crate::scheme::{ActivationType, Affine, Correction, InputMeans, WeightRange, Weights, grid, quantize_weights};
use serde::Serialize;
use std::collections::{HashMap, HashSet};

/// Quantization of one node's weights.
#[derive(Debug, Clone, Serialize)]
pub struct LayerReport {
    /// The node.
    pub node: String,
    /// Dimensions of the weights.
    pub weight_dims: Vec<usize>,
    /// Smallest and largest weight scale of its output channels.
    pub weight_scales: (f32, f32),
    /// Signal to quantization noise of the weights, dB; null where exact.
    pub weight_sqnr_db: f64,
    /// Output channels whose scale was enlarged so that the bias fits int32.
    pub enlarged_channels: usize,
}

/// Names of the dequantized tensors, and what was done to weights.
#[derive(Debug, Default)]
pub struct Written {
    /// Tensor → its DequantizeLinear output.
    pub dequantized: HashMap<String, String>,
    /// One per Conv or Gemm.
    pub layers: Vec<LayerReport>,
}

struct Writer {
    names: HashSet<String>,
    nodes: Vec<NodeProto>,
    constants: Vec<TensorProto>,
    written: Written,
}

impl Writer {
    fn name(&mut self, wanted: String) -> String {
        fresh_name(&mut self.names, &wanted)
    }

    /// `source` → QuantizeLinear → DequantizeLinear, as `tensor`.
    fn quantize(&mut self, source: &str, tensor: &str, p: Affine) {
        let dq = self.name(format!("{tensor}.dq"));
        self.quantize_as(source, tensor, dq, p);
    }

    fn quantize_as(&mut self, source: &str, tensor: &str, dq: String, p: Affine) {
        let scale = self.name(format!("{tensor}.scale"));
        let zero = self.name(format!("{tensor}.zero_point"));
        let q = self.name(format!("{tensor}.q"));
        self.constants.push(f32_tensor(&scale, &[], &[p.scale]));
        self.constants.push(match p.dtype {
            ActivationType::Uint8 => u8_tensor(&zero, &[], &[p.zero_point as u8]),
            ActivationType::Int8 => i8_tensor(&zero, &[], &[p.zero_point as i8]),
        });
        self.nodes.push(make_node("QuantizeLinear", &[source, &scale, &zero], &q, vec![]));
        self.nodes.push(make_node("DequantizeLinear", &[&q, &scale, &zero], &dq, vec![]));
        self.written.dequantized.insert(tensor.into(), dq);
    }

    /// DequantizeLinear along an axis of a stored integer tensor; returns its output.
    fn stored(
        &mut self,
        base: &str,
        values: impl FnOnce(&str) -> TensorProto,
        zero: impl FnOnce(&str) -> TensorProto,
        (axis, scales): (usize, &[f32]),
    ) -> String {
        let [q, s, z, dq] = ["q", "scale", "zero_point", "dq"].map(|part| self.name(format!("{base}.{part}")));
        self.constants.extend([values(&q), f32_tensor(&s, &[scales.len()], scales), zero(&z)]);
        self.nodes.push(make_node("DequantizeLinear", &[&q, &s, &z], &dq, vec![int_attribute("axis", axis as i64)]));
        dq
    }
}

/// Rewrites the graph. `measured` has parameters for every tensor of the plan.
pub fn write(graph: &mut GraphProto, plan: &Plan, measured: &Measured, range: WeightRange) -> Result<Written> {
    let params: HashMap<&str, Affine> = measured.params.iter().map(|(t, p)| (t.as_str(), p.0)).collect();
    let nodes = std::mem::take(&mut graph.node);
    let mut w = Writer { names: HashSet::new(), nodes: Vec::new(), constants: Vec::new(), written: Written::default() };
    w.names = all_names(graph);
    w.names.extend(nodes.iter().flat_map(|n| outputs(n).map(String::from)));
    let constants = constants(graph);
    let results: HashSet<String> = graph.output.iter().map(|o| o.name.clone()).collect();
    let mut pinned: HashSet<String> = graph.output.iter().map(|o| o.name.clone()).collect();
    for node in &nodes {
        let sub = GraphProto { node: vec![node.clone()], ..Default::default() };
        pinned.extend(captured_names(&sub));
    }
    let planned: HashSet<&str> = plan.tensors.iter().map(String::as_str).collect();
    for input in graph.input.iter().filter(|i| planned.contains(i.name.as_str())) {
        w.quantize(&input.name, &input.name, params[input.name.as_str()]);
    }
    for (i, mut node) in nodes.into_iter().enumerate() {
        let tensor = node.output.first().cloned().unwrap_or_default();
        // A clamp that its QuantizeLinear performs anyway is left out.
        if let (Some(before), Some(p)) =
            (plan.fused.get(&tensor), params.get(tensor.as_str()).filter(|_| planned.contains(tensor.as_str())))
        {
            let (lo, hi) = clamp_bounds(&node, &constants).unwrap_or((f64::INFINITY, f64::NEG_INFINITY));
            let (bottom, top) = p.range();
            // One part in a million: the rounding of the f32 scale.
            if !pinned.contains(&tensor) && bottom >= lo && top <= hi + hi.abs() * 1e-6 {
                w.quantize(before, &tensor, *p);
                continue;
            }
        }
        for name in &mut node.input {
            if let Some(dq) = w.written.dequantized.get(name) {
                *name = dq.clone();
            }
        }
        if let Some(source) = plan.weighted.get(&i) {
            let weight = constants[node.input[1].as_str()];
            let dims = tensor_dims(weight)?;
            let mut bias_name = node.input.get(2).filter(|s| !s.is_empty()).cloned();
            let mut bias = bias_name.as_ref().map_or(Ok(vec![]), |b| f32_data(constants[b.as_str()]))?;
            let layout = Rows::of(&node, &dims);
            let channels = layout.outputs;
            if channels == 0 || !(bias.is_empty() || bias.len() == channels) {
                return Err(node_error(&node, format!("{channels} output channels, but {} bias values", bias.len())));
            }
            if let Some((_, center)) = measured.center.as_ref().filter(|c| c.0 == i && c.1.len() == bias.len()) {
                bias.iter_mut().zip(center).for_each(|(b, c)| *b += *c as f32);
            }
            let (rounded, means) = (measured.rounded.get(&i), measured.means.get(source).filter(|m| !m.is_empty()));
            // What several outputs share cannot make up for the error of one.
            let means = means.filter(|_| layout.rows == channels).map(|m| seen_by_each_output(&node, m));
            if (rounded.is_some() || means.is_some()) && bias_name.is_none() {
                (bias, bias_name) = (vec![0.0; channels], Some(format!("{}.bias", node.input[1])));
                node.input.resize(3, String::new());
            }
            let groups = usize::try_from(attr_int(&node, "group", 1)).unwrap_or(1).max(1);
            let inputs = dims.get(1).copied().unwrap_or(1) * groups;
            // A Gemm behind a Flatten of pictures sees one mean per channel as well: `taps` are the pixels.
            let inputs = means.as_ref().map(|m| InputMeans {
                means: m,
                groups,
                taps: match dims.len() {
                    2 => (inputs / m.len()).max(1),
                    _ => dims[2..].iter().product(),
                },
            });
            let correction = match (rounded, &inputs) {
                (Some(r), _) => Correction::Rounded(r),
                (None, Some(means)) => Correction::Means(means),
                (None, None) => Correction::None,
            };
            let (values, scale) = (layout.gather(&f32_data(weight)?), params[source.as_str()].scale);
            // The largest bias of a row has to fit.
            let mut largest = vec![0f32; if bias.is_empty() { 0 } else { layout.rows }];
            bias.iter().enumerate().for_each(|(o, b)| {
                let row = &mut largest[layout.row(o)];
                *row = row.max(b.abs());
            });
            let steps = grid(&values, &largest, layout.rows, scale, range);
            let mut q = quantize_weights(&values, if layout.rows == channels { &bias } else { &[] }, steps, scale, correction);
            if layout.rows != channels {
                q.share(&bias, |o| layout.row(o));
            }
            w.written.layers.push(layer_report(&node, &dims, &q));
            let stored = layout.scatter(&q.values);
            node.input[1] = w.stored(
                &node.input[1],
                |n| i8_tensor(n, &dims, &stored),
                |n| i8_tensor(n, &[layout.rows], &vec![0; layout.rows]),
                (layout.axis, &q.scales),
            );
            if let Some(name) = bias_name {
                node.input[2] = w.stored(
                    &name,
                    |n| i32_tensor(n, &[channels], &q.bias),
                    |n| i32_tensor(n, &[channels], &vec![0; channels]),
                    (0, &q.bias_scales),
                );
            }
        }
        let produced: Vec<String> = outputs(&node).filter(|o| planned.contains(o)).map(String::from).collect();
        // A result keeps its name, which its dequantized values have then.
        let mut sources = produced.clone();
        for source in sources.iter_mut().filter(|t| results.contains(t.as_str())) {
            let float = w.name(format!("{source}.float"));
            node.output.iter_mut().filter(|o| *o == source).for_each(|o| o.clone_from(&float));
            *source = float;
        }
        w.nodes.push(node);
        for (t, source) in produced.into_iter().zip(sources) {
            let dq = if source == t { w.name(format!("{t}.dq")) } else { t.clone() };
            w.quantize_as(&source, &t, dq, params[t.as_str()]);
        }
    }
    graph.node = w.nodes;
    graph.initializer.extend(w.constants);
    graph.value_info.clear(); // many tensors are gone; runtimes infer shapes anyway
    prune(graph);
    Ok(w.written)
}

/// Means of a layer's input channels, as much of them as reaches each of its outputs: of a ConvTranspose with a stride every phase meets a part of
/// the taps.
fn seen_by_each_output(node: &NodeProto, means: &[f64]) -> Vec<f64> {
    let phases = if is_op(node, "ConvTranspose") { attr_ints(node, "strides").iter().product::<i64>().max(1) } else { 1 };
    means.iter().map(|m| m / phases as f64).collect()
}

fn layer_report(node: &NodeProto, dims: &[usize], q: &Weights) -> LayerReport {
    let fold = |start, f: fn(f32, f32) -> f32| q.scales.iter().copied().fold(start, f);
    LayerReport {
        node: node_name(node),
        weight_dims: dims.to_vec(),
        weight_scales: (fold(f32::INFINITY, f32::min), fold(0.0, f32::max)),
        weight_sqnr_db: q.sqnr_db,
        enlarged_channels: q.enlarged,
    }
}
