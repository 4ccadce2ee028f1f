//! Moves Transposes towards the outputs until they meet their inverse, as converters from N×H×W×C frameworks write them.
//!
//! A value may be known as `transpose(source, perm)` (ONNX: its dimension `i` is the source's dimension `perm[i]`).
//! Elementwise operators, reductions, paddings and concatenations then work on the source; any other reader gets
//! the Transpose back. An N×H×W×C graph input becomes N×C×H×W.

use crate::Result;
use crate::onnx::*;
use std::collections::{HashMap, HashSet};
use tract_onnx::pb::type_proto::Value as Type;

const ELEMENTWISE: &[&str] = &[
    "Relu",
    "Clip",
    "LeakyRelu",
    "Sigmoid",
    "HardSigmoid",
    "HardSwish",
    "Tanh",
    "Elu",
    "Identity",
    "Dropout",
    "Cast",
    "Neg",
    "Abs",
    "Exp",
    "Sqrt",
];
const BINARY: &[&str] = &["Add", "Sub", "Mul", "Div", "Max", "Min"];
const REDUCTIONS: &[&str] = &["ReduceMean", "ReduceMax", "ReduceSum", "ReduceMin"];
const TO_CHANNELS_FIRST: [i64; 4] = [0, 3, 1, 2];

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
    if !graph.node.iter().any(|n| is_op(n, "Transpose")) {
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
    if let Some(input) = channels_last_input(graph) {
        turn_input(graph, &input);
        // Nodes so far mean the turned value by this name; from here on it is the graph input's.
        let old = fresh_name(&mut pass.names, &format!("{input}.channels_last"));
        graph.node.iter_mut().flat_map(|n| &mut n.input).filter(|n| **n == input).for_each(|n| *n = old.clone());
        pass.turned.insert(old, Turned { source: input, perm: vec![0, 2, 3, 1] });
    }
    let pinned: HashSet<String> = graph.output.iter().map(|o| o.name.clone()).chain(captured_names(graph)).collect();
    let initializers: HashMap<String, TensorProto> =
        graph.initializer.iter().filter(|t| t.dims.iter().product::<i64>() <= 1 << 20).map(|t| (t.name.clone(), t.clone())).collect();
    for node in std::mem::take(&mut graph.node) {
        pass.visit(node, &initializers, &pinned)?;
    }
    graph.node = pass.nodes;
    graph.initializer.extend(pass.constants);
    graph.value_info.clear();
    Ok(())
}

/// A rank-4 input that some Transpose takes, perhaps after elementwise operators, to channels first.
fn channels_last_input(graph: &GraphProto) -> Option<String> {
    let (input, dims) = data_input(graph).ok()?;
    let few = |d: Option<usize>| matches!(d, Some(1 | 3 | 4));
    if dims.len() != 4 || !few(dims[3]) || few(dims[1]) {
        return None;
    }
    let producer: HashMap<&str, &NodeProto> = graph.node.iter().flat_map(|n| outputs(n).map(move |o| (o, n))).collect();
    let reaches = |node: &NodeProto| {
        let mut at = node.input.first()?.as_str();
        while at != input {
            let before = producer.get(at).filter(|n| ELEMENTWISE.contains(&n.op_type.as_str()) || BINARY.contains(&n.op_type.as_str()))?;
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
fn axes(node: &NodeProto, constants: &HashMap<String, TensorProto>, rank: usize) -> Option<Vec<usize>> {
    let list = match node.input.get(1).filter(|s| !s.is_empty()) {
        Some(name) => i64_data(constants.get(name)?).ok()?,
        None => attr_ints(node, "axes").to_vec(),
    };
    let wrap = |&a: &i64| usize::try_from(if a < 0 { a + rank as i64 } else { a }).ok().filter(|&a| a < rank);
    list.iter().map(wrap).collect::<Option<Vec<_>>>().filter(|l| !l.is_empty())
}

impl Pass {
    fn visit(&mut self, mut node: NodeProto, constants: &HashMap<String, TensorProto>, pinned: &HashSet<String>) -> Result<()> {
        for input in &mut node.input {
            if let Some(source) = self.alias.get(input) {
                *input = source.clone();
            }
        }
        let rewritten = is_default_domain(&node.domain)
            && node.output.len() == 1
            && node.input.first().is_some_and(|s| !s.is_empty() && !constants.contains_key(s) || BINARY.contains(&node.op_type.as_str()))
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
    fn note_points(&mut self, node: &NodeProto, constants: &HashMap<String, TensorProto>) {
        let spatial = |node: &NodeProto| {
            REDUCTIONS.contains(&node.op_type.as_str())
                && attr_int(node, "keepdims", 1) != 0
                && axes(node, constants, 4).is_some_and(|mut a| {
                    a.sort_unstable();
                    a == [2, 3]
                })
        };
        let kept = ELEMENTWISE.contains(&node.op_type.as_str()) && node.input.first().is_some_and(|s| self.points.contains(s));
        if node.op_type == "GlobalAveragePool" || node.op_type == "GlobalMaxPool" || spatial(node) || kept {
            self.points.extend(node.output.first().cloned());
        }
    }

    /// Emits `node` on the source; its value is the source's, turned by `perm`.
    fn emit(&mut self, mut node: NodeProto, perm: Vec<usize>, pinned: &HashSet<String>, constants: &HashMap<String, TensorProto>) {
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
    fn rewrite(&mut self, node: &NodeProto, constants: &HashMap<String, TensorProto>, pinned: &HashSet<String>) -> Result<bool> {
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
            (op, Some(t)) if ELEMENTWISE.contains(&op) => {
                self.emit(with_source(&t), t.perm, pinned, constants);
                Ok(true)
            }
            ("Flatten", Some(t)) if self.points.contains(&t.source) && t.perm[0] == 0 && attr_int(node, "axis", 1) == 1 => {
                self.nodes.push(with_source(&t));
                Ok(true)
            }
            ("Reshape", Some(t)) if self.points.contains(&t.source) && t.perm[0] == 0 => {
                let flat = node.input.get(1).and_then(|n| constants.get(n)).and_then(|t| i64_data(t).ok()).is_some_and(|s| s.len() == 2);
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
                    Some(name) => constants.get(name).and_then(|t| i64_data(t).ok()),
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
            (op, _) if BINARY.contains(&op) || op == "Concat" => self.rewrite_many(node, constants, pinned),
            _ => Ok(false),
        }
    }

    /// Operators on several values: all turned alike, or constant.
    fn rewrite_many(&mut self, node: &NodeProto, constants: &HashMap<String, TensorProto>, pinned: &HashSet<String>) -> Result<bool> {
        let Some(perm) = node.input.iter().find_map(|n| self.turned.get(n)).map(|t| t.perm.clone()) else { return Ok(false) };
        let concat = node.op_type == "Concat";
        let fits = node.input.iter().all(|n| match (self.turned.get(n), constants.get(n)) {
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
            let constant = &constants[input.as_str()];
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
