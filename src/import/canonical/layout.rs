//! Moves Transposes towards the outputs until they meet their inverse, as converters from N×H×W×C frameworks write them.
//!
//! A value may be known as `transpose(source, perm)` (ONNX: its dimension `i` is the source's dimension `perm[i]`).
//! Elementwise operators, reductions, paddings and concatenations then work on the source; any other reader gets
//! the Transpose back. An N×H×W×C graph input becomes N×C×H×W.

use super::facts::ELEMENTWISE;
use super::interface::channels_last;
use crate::Result;
use crate::import::onnx::*;
use std::collections::{HashMap, HashSet};
use tract_onnx::pb::type_proto::Value as Type;

/// Elementwise operators with parameters that hold for the whole tensor.
const UNIFORM: &[&str] = &["Cast", "DequantizeLinear", "Dropout", "Identity", "QuantizeLinear"];
const BINARY: &[&str] = &["Add", "Sub", "Mul", "Div", "Max", "Min", "PRelu", "Pow"];
const REDUCTIONS: &[&str] = &["ReduceMean", "ReduceMax", "ReduceSum", "ReduceMin"];
const TO_CHANNELS_FIRST: [i64; 4] = [0, 3, 1, 2];
/// An input of this height and width, with few values last, is a picture.
const PICTURE: usize = 16;

/// True for a node whose result at each place depends on the first input at that place alone.
fn is_elementwise(node: &NodeProto, scalar: impl Fn(&str) -> bool) -> bool {
    let op = node.op_type.as_str();
    ELEMENTWISE.contains(&op) || UNIFORM.contains(&op) && (!op.ends_with("Linear") || node.input.get(1).is_some_and(|s| scalar(s)))
}

type Initializers<'a> = HashMap<&'a str, &'a TensorProto>;

#[derive(Clone)]
struct Turned {
    source: String,
    perm: Vec<usize>,
}

struct Pass {
    turned: HashMap<String, Turned>,
    /// Tensors known to be N×C×1×1.
    points: HashSet<String>,
    alias: HashMap<String, String>,
    /// Transposes that had to be written after all.
    written: HashSet<String>,
    names: HashSet<String>,
    nodes: Vec<NodeProto>,
    constants: Vec<TensorProto>,
}

/// Rewrites the graph.
pub fn remove_transposes(graph: &mut GraphProto) -> Result<()> {
    let picture = channels_last_input(graph);
    if picture.is_none() && !graph.node.iter().any(|n| is_op(n, "Transpose")) {
        return Ok(());
    }
    let mut pass = Pass {
        turned: HashMap::new(),
        points: HashSet::new(),
        alias: HashMap::new(),
        written: HashSet::new(),
        names: all_names(graph),
        nodes: Vec::new(),
        constants: Vec::new(),
    };
    if let Some(input) = picture {
        turn_input(graph, &input);
        // Nodes so far mean the turned value by this name; from here on it is the graph input's.
        let old = fresh_name(&mut pass.names, &format!("{input}.channels_last"));
        graph.node.iter_mut().flat_map(|n| &mut n.input).filter(|n| **n == input).for_each(|n| *n = old.clone());
        pass.turned.insert(old, Turned { source: input, perm: vec![0, 2, 3, 1] });
    }
    let pinned: HashSet<String> = graph.output.iter().map(|o| o.name.clone()).chain(captured_names(graph)).collect();
    let nodes = std::mem::take(&mut graph.node);
    let initializers: HashMap<&str, &TensorProto> = graph.initializer.iter().map(|t| (t.name.as_str(), t)).collect();
    for node in nodes {
        pass.visit(node, &initializers, &pinned)?;
    }
    graph.node = pass.nodes;
    graph.initializer.extend(pass.constants);
    graph.value_info.clear();
    Ok(())
}

/// An N×H×W×C input: a picture by its dimensions, or one that some Transpose takes, perhaps after elementwise operators, to
/// channels first.
fn channels_last_input(graph: &GraphProto) -> Option<String> {
    let (input, dims) = data_input(graph).ok()?;
    if !channels_last(&dims) {
        return None;
    }
    let large = |d: Option<usize>| d.is_none_or(|d| d >= PICTURE);
    if large(dims[1]) && large(dims[2]) {
        return Some(input);
    }
    let producer: HashMap<&str, &NodeProto> = graph.node.iter().flat_map(|n| outputs(n).map(move |o| (o, n))).collect();
    let reaches = |node: &NodeProto| {
        let mut at = node.input.first()?.as_str();
        while at != input {
            let before = producer.get(at).filter(|n| is_elementwise(n, |_| true) || BINARY.contains(&n.op_type.as_str()))?;
            let constant = |s: &&String| !producer.contains_key(s.as_str()) && **s != input;
            at = before.input.iter().find(|s| !constant(s))?;
        }
        Some(())
    };
    let found = graph.node.iter().any(|n| is_op(n, "Transpose") && attr_ints(n, "perm") == TO_CHANNELS_FIRST && reaches(n).is_some());
    found.then_some(input)
}

fn turn_input(graph: &mut GraphProto, name: &str) {
    for input in graph.input.iter_mut().filter(|i| i.name == name) {
        if let Some(Type::TensorType(t)) = input.r#type.as_mut().and_then(|t| t.value.as_mut())
            && let Some(shape) = &mut t.shape
        {
            shape.dim[1..].rotate_right(1);
        }
    }
}

fn inverse(perm: &[usize]) -> Vec<usize> {
    let mut inverse = vec![0; perm.len()];
    perm.iter().enumerate().for_each(|(i, &p)| inverse[p] = i);
    inverse
}

fn is_identity(perm: &[usize]) -> bool {
    perm.iter().enumerate().all(|(i, &p)| i == p)
}

/// Non-negative axes of a reduction or Squeeze, from its attribute or constant input.
fn axes(node: &NodeProto, constants: &Initializers<'_>, rank: usize) -> Option<Vec<usize>> {
    let list = match node.input.get(1).filter(|s| !s.is_empty()) {
        Some(name) => i64_data(constants.get(name.as_str())?).ok()?,
        None => attr_ints(node, "axes").to_vec(),
    };
    let wrap = |&a: &i64| usize::try_from(if a < 0 { a + rank as i64 } else { a }).ok().filter(|&a| a < rank);
    list.iter().map(wrap).collect::<Option<Vec<_>>>().filter(|l| !l.is_empty())
}

impl Pass {
    fn visit(&mut self, mut node: NodeProto, constants: &Initializers<'_>, pinned: &HashSet<String>) -> Result<()> {
        for input in &mut node.input {
            if let Some(source) = self.alias.get(input) {
                *input = source.clone();
            }
        }
        let rewritten = is_default_domain(&node.domain)
            && node.output.len() == 1
            && node
                .input
                .first()
                .is_some_and(|s| !s.is_empty() && !constants.contains_key(s.as_str()) || BINARY.contains(&node.op_type.as_str()))
            && self.rewrite(&node, constants, pinned)?;
        if rewritten {
            return Ok(());
        }
        for input in node.input.iter().filter(|i| !i.is_empty()) {
            if self.turned.contains_key(input) {
                self.write(input);
            }
        }
        self.note_points(&node, constants);
        self.nodes.push(node);
        Ok(())
    }

    /// N×C×1×1 tensors have the same elements in any order of their dimensions.
    fn note_points(&mut self, node: &NodeProto, constants: &Initializers<'_>) {
        let spatial = |node: &NodeProto| {
            REDUCTIONS.contains(&node.op_type.as_str())
                && attr_int(node, "keepdims", 1) != 0
                && axes(node, constants, 4).is_some_and(|mut a| {
                    a.sort_unstable();
                    a == [2, 3]
                })
        };
        let kept = is_elementwise(node, |_| true) && node.input.first().is_some_and(|s| self.points.contains(s));
        if node.op_type == "GlobalAveragePool" || node.op_type == "GlobalMaxPool" || spatial(node) || kept {
            self.points.extend(node.output.first().cloned());
        }
    }

    /// Emits `node` on the source; its value is the source's, turned by `perm`.
    fn emit(&mut self, mut node: NodeProto, perm: Vec<usize>, pinned: &HashSet<String>, constants: &Initializers<'_>) {
        let output = node.output[0].clone();
        if is_identity(&perm) {
            self.note_points(&node, constants);
            self.nodes.push(node);
            return;
        }
        let source = fresh_name(&mut self.names, &format!("{output}.turned"));
        node.output[0] = source.clone();
        self.note_points(&node, constants);
        self.nodes.push(node);
        self.turn(output, Turned { source, perm }, pinned);
    }

    fn turn(&mut self, output: String, turned: Turned, pinned: &HashSet<String>) {
        if pinned.contains(&output) {
            self.nodes.push(transpose(&turned, &output));
        } else {
            self.turned.insert(output, turned);
        }
    }

    /// Computes a turned value after all, by a Transpose.
    fn write(&mut self, name: &str) {
        if self.written.contains(name) {
            return;
        }
        self.nodes.push(transpose(&self.turned[name], name));
        self.written.insert(name.to_string());
    }

    /// True if the node was replaced.
    fn rewrite(&mut self, node: &NodeProto, constants: &Initializers<'_>, pinned: &HashSet<String>) -> Result<bool> {
        let (op, output) = (node.op_type.as_str(), node.output[0].clone());
        let turned = self.turned.get(&node.input[0]).cloned();
        let with_source = |t: &Turned| {
            let mut node = node.clone();
            node.input[0] = t.source.clone();
            node
        };
        match (op, turned) {
            ("Transpose", before) => {
                let (source, inner) = before.map_or((node.input[0].clone(), None), |t| (t.source, Some(t.perm)));
                let outer: Vec<usize> = attr_ints(node, "perm").iter().filter_map(|&p| usize::try_from(p).ok()).collect();
                let rank = outer.len();
                let mut sorted = outer.clone();
                sorted.sort_unstable();
                if !is_identity(&sorted) || rank == 0 || inner.as_ref().is_some_and(|i| i.len() != rank) {
                    return Ok(false);
                }
                let perm: Vec<usize> = inner.map_or(outer.clone(), |inner| outer.iter().map(|&o| inner[o]).collect());
                if is_identity(&perm) && !pinned.contains(&output) {
                    self.alias.insert(output, source);
                } else {
                    self.turn(output, Turned { source, perm }, pinned);
                }
                Ok(true)
            }
            (_, Some(t)) if is_elementwise(node, |s| constants.get(s).is_some_and(|t| t.dims.iter().product::<i64>() == 1)) => {
                self.emit(with_source(&t), t.perm, pinned, constants);
                Ok(true)
            }
            ("Flatten", Some(t)) if self.points.contains(&t.source) && t.perm[0] == 0 && attr_int(node, "axis", 1) == 1 => {
                self.nodes.push(with_source(&t));
                Ok(true)
            }
            ("Reshape", Some(t)) if self.points.contains(&t.source) && t.perm[0] == 0 => {
                let flat =
                    node.input.get(1).and_then(|n| constants.get(n.as_str())).and_then(|t| i64_data(t).ok()).is_some_and(|s| s.len() == 2);
                if flat {
                    self.nodes.push(with_source(&t));
                }
                Ok(flat)
            }
            (op, Some(t)) if op == "Squeeze" || REDUCTIONS.contains(&op) => {
                let Some(axes) = axes(node, constants, t.perm.len()) else { return Ok(false) };
                let mapped: Vec<i64> = axes.iter().map(|&a| t.perm[a] as i64).collect();
                let mut new = with_source(&t);
                if new.input.len() > 1 {
                    let name = fresh_name(&mut self.names, &format!("{output}.axes"));
                    self.constants.push(i64_tensor(&name, &[mapped.len()], &mapped));
                    new.input[1] = name;
                } else if let Some(a) = new.attribute.iter_mut().find(|a| a.name == "axes") {
                    a.ints = mapped;
                }
                let keeps = op != "Squeeze" && attr_int(node, "keepdims", 1) != 0;
                let rest: Vec<usize> = (0..t.perm.len()).filter(|i| keeps || !axes.contains(i)).map(|i| t.perm[i]).collect();
                let mut order = rest.clone();
                order.sort_unstable();
                let perm = rest.iter().map(|p| order.partition_point(|o| o < p)).collect();
                self.emit(new, perm, pinned, constants);
                Ok(true)
            }
            ("Pad", Some(t)) => {
                let rank = t.perm.len();
                let list = match node.input.get(1) {
                    Some(name) => constants.get(name.as_str()).and_then(|t| i64_data(t).ok()),
                    None => Some(attr_ints(node, "pads").to_vec()),
                };
                let Some(list) = list.filter(|l| l.len() == 2 * rank && node.input.get(3).is_none_or(|s| s.is_empty())) else {
                    return Ok(false);
                };
                let mut pads = vec![0; 2 * rank];
                for (i, &p) in t.perm.iter().enumerate() {
                    (pads[p], pads[p + rank]) = (list[i], list[i + rank]);
                }
                let mut new = with_source(&t);
                if new.input.len() > 1 {
                    let name = fresh_name(&mut self.names, &format!("{output}.pads"));
                    self.constants.push(i64_tensor(&name, &[pads.len()], &pads));
                    new.input[1] = name;
                } else if let Some(a) = new.attribute.iter_mut().find(|a| a.name == "pads") {
                    a.ints = pads;
                }
                self.emit(new, t.perm, pinned, constants);
                Ok(true)
            }
            ("Softmax" | "LogSoftmax", Some(t)) => {
                let axis = attr_int(node, "axis", -1);
                let axis = usize::try_from(if axis < 0 { axis + t.perm.len() as i64 } else { axis }).unwrap_or(usize::MAX);
                let Some(&source_axis) = t.perm.get(axis) else { return Ok(false) };
                let mut new = with_source(&t);
                new.attribute.retain(|a| a.name != "axis");
                new.attribute.push(int_attribute("axis", source_axis as i64));
                self.emit(new, t.perm, pinned, constants);
                Ok(true)
            }
            ("Slice", Some(t)) => {
                let list =
                    node.input.get(3).filter(|n| !n.is_empty()).and_then(|n| constants.get(n.as_str())).and_then(|t| i64_data(t).ok());
                let wrap = |&a: &i64| usize::try_from(if a < 0 { a + t.perm.len() as i64 } else { a }).ok();
                let mapped: Option<Vec<i64>> = list.and_then(|l| l.iter().map(|a| Some(*t.perm.get(wrap(a)?)? as i64)).collect());
                let Some(mapped) = mapped else { return Ok(false) };
                let mut new = with_source(&t);
                let name = fresh_name(&mut self.names, &format!("{output}.axes"));
                self.constants.push(i64_tensor(&name, &[mapped.len()], &mapped));
                new.input[3] = name;
                self.emit(new, t.perm, pinned, constants);
                Ok(true)
            }
            ("Resize", Some(t)) if attr(node, "axes").is_none() && node.input.get(1).is_none_or(|s| s.is_empty()) => {
                let at = node.input.len() - 1;
                let Some(list) = constants.get(node.input[at].as_str()).filter(|l| at >= 2 && l.dims == [t.perm.len() as i64]) else {
                    return Ok(false);
                };
                let name = fresh_name(&mut self.names, &format!("{}.turned", node.input[at]));
                let back = inverse(&t.perm);
                self.constants.push(if list.data_type == 1 {
                    let v = f32_data(list)?;
                    f32_tensor(&name, &[v.len()], &back.iter().map(|&i| v[i]).collect::<Vec<_>>())
                } else {
                    let v = i64_data(list)?;
                    i64_tensor(&name, &[v.len()], &back.iter().map(|&i| v[i]).collect::<Vec<_>>())
                });
                let mut new = with_source(&t);
                new.input[at] = name;
                self.emit(new, t.perm, pinned, constants);
                Ok(true)
            }
            (op, _) if BINARY.contains(&op) || op == "Concat" => self.rewrite_many(node, constants, pinned),
            _ => Ok(false),
        }
    }

    /// Operators on several values: all turned alike, or constant.
    fn rewrite_many(&mut self, node: &NodeProto, constants: &Initializers<'_>, pinned: &HashSet<String>) -> Result<bool> {
        let Some(perm) = node.input.iter().find_map(|n| self.turned.get(n)).map(|t| t.perm.clone()) else { return Ok(false) };
        let concat = node.op_type == "Concat";
        let fits = node.input.iter().all(|n| match (self.turned.get(n), constants.get(n.as_str())) {
            (Some(t), _) => t.perm == perm,
            (None, Some(c)) => !concat && c.data_type == 1 && c.dims.len() <= perm.len(),
            _ => false,
        });
        if !fits {
            return Ok(false);
        }
        let mut new = node.clone();
        for input in &mut new.input {
            if let Some(t) = self.turned.get(input) {
                *input = t.source.clone();
                continue;
            }
            let constant = constants[input.as_str()];
            let mut dims = vec![1; perm.len() - constant.dims.len()];
            dims.extend(tensor_dims(constant)?);
            let name = fresh_name(&mut self.names, &format!("{input}.turned"));
            self.constants.push(turned_constant(&name, &f32_data(constant)?, &dims, &inverse(&perm)));
            *input = name;
        }
        if concat {
            let axis = attr_int(node, "axis", 0);
            let axis = usize::try_from(if axis < 0 { axis + perm.len() as i64 } else { axis }).unwrap_or(usize::MAX);
            let Some(&source_axis) = perm.get(axis) else { return Ok(false) };
            new.attribute.retain(|a| a.name != "axis");
            new.attribute.push(int_attribute("axis", source_axis as i64));
        }
        self.emit(new, perm, pinned, constants);
        Ok(true)
    }
}

fn transpose(turned: &Turned, output: &str) -> NodeProto {
    let perm = turned.perm.iter().map(|&p| p as i64).collect();
    let attribute = AttributeProto { name: "perm".into(), r#type: 7, ints: perm, ..Default::default() };
    make_node("Transpose", &[&turned.source], output, vec![attribute])
}

/// `values` of `dims` with dimension `i` of the result being dimension `perm[i]`.
fn turned_constant(name: &str, values: &[f32], dims: &[usize], perm: &[usize]) -> TensorProto {
    let out: Vec<usize> = perm.iter().map(|&p| dims[p]).collect();
    let stride = |d: usize| dims[d + 1..].iter().product::<usize>();
    let strides: Vec<usize> = perm.iter().map(|&p| stride(p)).collect();
    let element = |mut i: usize| {
        let mut at = 0;
        for d in (0..out.len()).rev() {
            at += i % out[d] * strides[d];
            i /= out[d];
        }
        values[at]
    };
    f32_tensor(name, &out, &(0..values.len()).map(element).collect::<Vec<_>>())
}
