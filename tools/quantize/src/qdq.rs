//! Writes a planned graph in QDQ form.

use crate::Result;
use crate::onnx::*;
use crate::pipeline::Measured;
use crate::plan::{Plan, clamp_bounds, constants};
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
        let scale = self.name(format!("{tensor}.scale"));
        let zero = self.name(format!("{tensor}.zero_point"));
        let (q, dq) = (self.name(format!("{tensor}.q")), self.name(format!("{tensor}.dq")));
        self.constants.push(f32_tensor(&scale, &[], &[p.scale]));
        self.constants.push(match p.dtype {
            ActivationType::Uint8 => u8_tensor(&zero, &[], &[p.zero_point as u8]),
            ActivationType::Int8 => i8_tensor(&zero, &[], &[p.zero_point as i8]),
        });
        self.nodes.push(make_node("QuantizeLinear", &[source, &scale, &zero], &q, vec![]));
        self.nodes.push(make_node("DequantizeLinear", &[&q, &scale, &zero], &dq, vec![]));
        self.written.dequantized.insert(tensor.into(), dq);
    }

    /// DequantizeLinear along axis 0 of a stored integer tensor; returns its output.
    fn stored(
        &mut self,
        base: &str,
        values: impl FnOnce(&str) -> TensorProto,
        zero: impl FnOnce(&str) -> TensorProto,
        scales: &[f32],
    ) -> String {
        let [q, s, z, dq] = ["q", "scale", "zero_point", "dq"].map(|part| self.name(format!("{base}.{part}")));
        self.constants.extend([values(&q), f32_tensor(&s, &[scales.len()], scales), zero(&z)]);
        self.nodes.push(make_node("DequantizeLinear", &[&q, &s, &z], &dq, vec![int_attribute("axis", 0)]));
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
            let channels = dims.first().copied().unwrap_or(0);
            if channels == 0 || !(bias.is_empty() || bias.len() == channels) {
                return Err(node_error(&node, format!("{channels} output channels, but {} bias values", bias.len())));
            }
            if let Some((_, center)) = measured.center.as_ref().filter(|c| c.0 == i && c.1.len() == bias.len()) {
                bias.iter_mut().zip(center).for_each(|(b, c)| *b += *c as f32);
            }
            let (rounded, means) = (measured.rounded.get(&i), measured.means.get(source).filter(|m| !m.is_empty()));
            if (rounded.is_some() || means.is_some()) && bias_name.is_none() {
                (bias, bias_name) = (vec![0.0; channels], Some(format!("{}.bias", node.input[1])));
                node.input.resize(3, String::new());
            }
            let groups = usize::try_from(attr_int(&node, "group", 1)).unwrap_or(1).max(1);
            let inputs = dims.get(1).copied().unwrap_or(1) * groups;
            // A Gemm behind a Flatten of pictures sees one mean per channel as well: `taps` are the pixels.
            let inputs = means.map(|m| InputMeans {
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
            let (values, scale) = (f32_data(weight)?, params[source.as_str()].scale);
            let q = quantize_weights(&values, &bias, grid(&values, &bias, channels, scale, range), scale, correction);
            w.written.layers.push(layer_report(&node, &dims, &q));
            node.input[1] =
                w.stored(&node.input[1], |n| i8_tensor(n, &dims, &q.values), |n| i8_tensor(n, &[channels], &vec![0; channels]), &q.scales);
            if let Some(name) = bias_name {
                node.input[2] = w.stored(
                    &name,
                    |n| i32_tensor(n, &[channels], &q.bias),
                    |n| i32_tensor(n, &[channels], &vec![0; channels]),
                    &q.bias_scales,
                );
            }
        }
        let produced: Vec<String> = outputs(&node).filter(|o| planned.contains(o)).map(String::from).collect();
        w.nodes.push(node);
        for t in produced {
            w.quantize(&t, &t, params[t.as_str()]);
        }
    }
    graph.node = w.nodes;
    graph.initializer.extend(w.constants);
    graph.value_info.clear(); // many tensors are gone; runtimes infer shapes anyway
    prune(graph);
    Ok(w.written)
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
