//! Operators on integers become operators on real values between DequantizeLinear and QuantizeLinear.
//!
//! ONNX's `QLinearConv` and `QLinearMatMul`, and what ONNX Runtime's quantizer and optimizer write in the domain
//! `com.microsoft` (its `docs/ContribOperators.md`): QuantizeLinear, DequantizeLinear, QLinearAdd, QLinearMul,
//! QLinearConcat, QLinearAveragePool, QLinearGlobalAveragePool, QLinearLeakyRelu, QLinearSigmoid, QLinearSoftmax,
//! QLinearReduceMean, QLinearWhere, QGemm and FusedConv. All of them are defined as that: dequantize, compute, quantize.

use super::facts::Constants;
use super::fold::Store;
use super::tensor::*;
use crate::Result;
use crate::import::onnx::*;
use std::collections::HashSet;
use tract_onnx::pb::attribute_proto::AttributeType;

const MICROSOFT: &str = "com.microsoft";

struct Pass {
    store: Store,
    names: HashSet<String>,
    nodes: Vec<NodeProto>,
}

/// Rewrites a graph whose constants are initializers.
pub fn expand(graph: &mut GraphProto) -> Result<()> {
    let known = |n: &NodeProto| n.domain == MICROSOFT || n.op_type.starts_with("QLinear");
    if !graph.node.iter().any(known) {
        return Ok(());
    }
    let names = all_names(graph);
    let mut pass = Pass { store: Store::take(graph), names, nodes: Vec::with_capacity(graph.node.len()) };
    for node in std::mem::take(&mut graph.node) {
        if known(&node) {
            pass.visit(node)?;
        } else {
            pass.nodes.push(node);
        }
    }
    pass.store.give(graph);
    graph.node = pass.nodes;
    Ok(())
}

fn int_list(name: &str, ints: &[i64]) -> AttributeProto {
    AttributeProto { name: name.into(), r#type: AttributeType::Ints as i32, ints: ints.to_vec(), ..Default::default() }
}

impl Pass {
    fn visit(&mut self, mut node: NodeProto) -> Result<()> {
        let ours = if is_default_domain(&node.domain) { "" } else { node.domain.as_str() };
        match (ours, node.op_type.as_str()) {
            (MICROSOFT, "QuantizeLinear" | "DequantizeLinear") => {
                node.domain.clear();
                self.nodes.push(node);
            }
            ("", "QLinearConv") => {
                let x = self.real(&node, 0, None)?;
                let w = self.real(&node, 3, Some(0))?;
                let mut inputs = vec![x, w];
                if node.input.get(8).is_some_and(|s| !s.is_empty()) {
                    inputs.push(self.bias(&node, 8, 1, 4, 1.0)?);
                }
                self.finish(&node, "Conv", inputs, 6, &[])?;
            }
            ("", "QLinearMatMul") => {
                let inputs = vec![self.real(&node, 0, Some(-2))?, self.real(&node, 3, Some(-1))?];
                self.finish(&node, "MatMul", inputs, 6, &[])?;
            }
            (MICROSOFT, "QGemm") => {
                let flipped = attr_int(&node, "transB", 0) != 0;
                let mut inputs = vec![self.real(&node, 0, None)?, self.real(&node, 3, Some(if flipped { 0 } else { 1 }))?];
                if node.input.get(6).is_some_and(|s| !s.is_empty()) {
                    inputs.push(self.bias(&node, 6, 1, 4, attr_float(&node, "alpha", 1.0))?);
                }
                if node.input.get(7).is_some_and(|s| !s.is_empty()) {
                    self.finish(&node, "Gemm", inputs, 7, &[])?;
                } else {
                    let new = NodeProto { op_type: "Gemm".into(), domain: String::new(), input: inputs, ..node };
                    self.nodes.push(new);
                }
            }
            (MICROSOFT, op @ ("QLinearAdd" | "QLinearMul")) => {
                let inputs = vec![self.real(&node, 0, None)?, self.real(&node, 3, None)?];
                self.finish(&node, &op[7..], inputs, 6, &[])?;
            }
            (MICROSOFT, "QLinearConcat") => {
                let inputs = (2..node.input.len()).step_by(3).map(|i| self.real(&node, i, None)).collect::<Result<Vec<_>>>()?;
                self.finish(&node, "Concat", inputs, 0, &[])?;
            }
            (MICROSOFT, op @ ("QLinearSigmoid" | "QLinearLeakyRelu" | "QLinearReduceMean")) => {
                let mut inputs = vec![self.real(&node, 0, None)?];
                if !attr_ints(&node, "axes").is_empty() {
                    let axes = attr_ints(&node, "axes").to_vec();
                    let name = fresh_name(&mut self.names, &format!("{}.axes", node.output[0]));
                    self.store.insert(i64_tensor(&name, &[axes.len()], &axes));
                    inputs.push(name);
                }
                self.finish(&node, &op[7..], inputs, 3, &["axes"])?;
            }
            // Its `opset` says which meaning `axis` has; before 13, it is that of the last dimension alone where we take it.
            (MICROSOFT, "QLinearSoftmax") if attr_int(&node, "opset", 13) >= 13 || attr_int(&node, "axis", -1) == -1 => {
                let inputs = vec![self.real(&node, 0, None)?];
                self.finish(&node, "Softmax", inputs, 3, &["opset"])?;
            }
            (MICROSOFT, op @ ("QLinearAveragePool" | "QLinearGlobalAveragePool")) => {
                let op = op[7..].to_owned();
                let mut x = self.real(&node, 0, None)?;
                if attr_int(&node, "channels_last", 0) == 0 {
                    self.finish(&node, &op, vec![x], 3, &["channels_last"])?;
                } else {
                    let output = node.output[0].clone();
                    let turned = fresh_name(&mut self.names, &format!("{output}.channels_first"));
                    self.nodes.push(make_node("Transpose", &[&x], &turned, vec![int_list("perm", &[0, 3, 1, 2])]));
                    x = turned;
                    let pooled = fresh_name(&mut self.names, &format!("{output}.pooled"));
                    let mut attribute = node.attribute.clone();
                    attribute.retain(|a| a.name != "channels_last");
                    self.nodes.push(NodeProto { name: node.name.clone(), ..make_node(&op, &[&x], &pooled, attribute) });
                    let back = NodeProto { attribute: vec![int_list("perm", &[0, 2, 3, 1])], ..node };
                    self.finish(&back, "Transpose", vec![pooled], 3, &[])?;
                }
            }
            (MICROSOFT, "QLinearWhere") => {
                let condition = node.input.first().cloned().unwrap_or_default();
                let inputs = vec![condition, self.real(&node, 1, None)?, self.real(&node, 4, None)?];
                self.finish(&node, "Where", inputs, 7, &[])?;
            }
            (MICROSOFT, "FusedConv") => self.fused_conv(node),
            _ => self.nodes.push(node),
        }
        Ok(())
    }

    fn input<'a>(&self, node: &'a NodeProto, i: usize) -> Result<&'a str> {
        node.input.get(i).map(String::as_str).filter(|s| !s.is_empty()).ok_or_else(|| node_error(node, format!("its input {i} is missing")))
    }

    /// Input `i`, dequantized by the two after it; along `axis` where there is one scale per channel.
    fn real(&mut self, node: &NodeProto, i: usize, axis: Option<i64>) -> Result<String> {
        let (x, scale) = (self.input(node, i)?.to_owned(), self.input(node, i + 1)?.to_owned());
        let zero = node.input.get(i + 2).cloned().unwrap_or_default();
        let per_axis = self.store.constant(&scale).is_some_and(|t| t.dims.iter().product::<i64>() > 1);
        let attribute = axis.filter(|_| per_axis).map(|a| int_attribute("axis", a)).into_iter().collect();
        let name = fresh_name(&mut self.names, &format!("{x}.real"));
        let mut dequantize = make_node("DequantizeLinear", &[&x, &scale], &name, attribute);
        if !zero.is_empty() {
            dequantize.input.push(zero);
        }
        self.nodes.push(dequantize);
        Ok(name)
    }

    /// An int32 bias at the product of two scales.
    fn bias(&mut self, node: &NodeProto, i: usize, a: usize, b: usize, factor: f32) -> Result<String> {
        let (bias, a, b) = (self.input(node, i)?.to_owned(), self.input(node, a)?.to_owned(), self.input(node, b)?.to_owned());
        let scale = fresh_name(&mut self.names, &format!("{bias}.scale"));
        let real = |name: &str| match self.store.constant(name).and_then(numbers) {
            Some(Numbers::Real(v)) => Some(v),
            _ => None,
        };
        let mut count = 1;
        if let (Some(a), Some(b)) = (real(&a).filter(|a| a.len() == 1), real(&b)) {
            let product: Vec<f32> = b.iter().map(|b| a[0] * b * factor).collect();
            count = product.len();
            let dims: &[usize] = if count == 1 { &[] } else { &[count] };
            self.store.insert(f32_tensor(&scale, dims, &product));
        } else if factor == 1.0 {
            self.nodes.push(make_node("Mul", &[&a, &b], &scale, vec![]));
        } else {
            return Err(node_error(node, "its scales are computed; export the model with constant ones"));
        }
        let name = fresh_name(&mut self.names, &format!("{bias}.real"));
        let attribute = if count == 1 { vec![] } else { vec![int_attribute("axis", 0)] };
        self.nodes.push(make_node("DequantizeLinear", &[&bias, &scale], &name, attribute));
        Ok(name)
    }

    /// The operator, and the quantization of its result by inputs `at` and the next.
    fn finish(&mut self, node: &NodeProto, op: &str, inputs: Vec<String>, at: usize, without: &[&str]) -> Result<()> {
        let output = node.output.first().cloned().unwrap_or_default();
        let real = fresh_name(&mut self.names, &format!("{output}.real"));
        let inner: Vec<&str> = inputs.iter().map(String::as_str).collect();
        let mut attribute = node.attribute.clone();
        attribute.retain(|a| !without.contains(&a.name.as_str()));
        let name = node_name(node).rsplit_once(" (").map_or_else(String::new, |n| n.0.to_owned());
        self.nodes.push(NodeProto { name, ..make_node(op, &inner, &real, attribute) });
        let scale = self.input(node, at)?.to_owned();
        let mut quantize = make_node("QuantizeLinear", &[&real, &scale], &output, vec![]);
        if let Some(zero) = node.input.get(at + 1).filter(|s| !s.is_empty()) {
            quantize.input.push(zero.clone());
        }
        self.nodes.push(quantize);
        Ok(())
    }

    /// Conv, then the sum with a fourth input, then an activation.
    fn fused_conv(&mut self, mut node: NodeProto) {
        let activation = attr(&node, "activation").map(|a| String::from_utf8_lossy(&a.s).into_owned());
        let params = attr(&node, "activation_params").map_or(vec![], |a| a.floats.clone());
        let known = match activation.as_deref() {
            None | Some("Relu" | "Sigmoid" | "Tanh") => true,
            Some("LeakyRelu") => params.len() == 1,
            Some("Clip" | "HardSigmoid") => params.len() == 2,
            _ => false,
        };
        if !known || node.output.is_empty() {
            return self.nodes.push(node);
        }
        let output = node.output[0].clone();
        node.domain.clear();
        node.op_type = "Conv".into();
        node.attribute.retain(|a| !a.name.starts_with("activation"));
        let mut steps: Vec<(String, Option<String>)> = Vec::new();
        if node.input.len() > 3 {
            steps.extend(node.input.drain(3..).next().filter(|s| !s.is_empty()).map(|z| ("Add".to_owned(), Some(z))));
        }
        steps.extend(activation.map(|a| (a, None)));
        let mut at = if steps.is_empty() { output.clone() } else { fresh_name(&mut self.names, &format!("{output}.conv")) };
        node.output[0] = at.clone();
        self.nodes.push(node);
        let count = steps.len();
        for (i, (op, other)) in steps.into_iter().enumerate() {
            let to = if i + 1 == count { output.clone() } else { fresh_name(&mut self.names, &format!("{output}.{op}")) };
            let mut next = make_node(&op, &[&at], &to, vec![]);
            next.input.extend(other);
            let float =
                |name: &str, f: f32| AttributeProto { name: name.into(), r#type: AttributeType::Float as i32, f, ..Default::default() };
            match op.as_str() {
                "LeakyRelu" => next.attribute.push(float("alpha", params[0])),
                "HardSigmoid" => next.attribute.extend([float("alpha", params[0]), float("beta", params[1])]),
                "Clip" => {
                    for (part, value) in [("min", params[0]), ("max", params[1])] {
                        let name = fresh_name(&mut self.names, &format!("{to}.{part}"));
                        self.store.insert(f32_tensor(&name, &[], &[value]));
                        next.input.push(name);
                    }
                }
                _ => {}
            }
            self.nodes.push(next);
            at = to;
        }
    }
}
