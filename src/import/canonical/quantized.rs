//! One spelling of quantization.
//!
//! After it, every QuantizeLinear and DequantizeLinear with constant parameters has a float32 scale and an explicit zero
//! point of its tensor's type, both scalars unless there is one per channel; equal constants are one; equal nodes are
//! one. Operators work on real values only: what exporters write on integers (Transpose, Reshape, MaxPool, Clip …)
//! stands between a DequantizeLinear and a QuantizeLinear. A QuantizeLinear of values that lie on its grid already is
//! gone, and so is a clamp of integers: it is a clamp of the real values before they are quantized, at the bounds'
//! exact values. Weights are integers under one DequantizeLinear, which Transposes and Reshapes do not follow.
//!
//! None of it changes an integer: quantize(dequantize(q)) is q for equal parameters, and rounding is monotonic, so that a
//! clamp at values of the grid may come before it or after.

use super::evaluate::{Budget, evaluate};
use super::facts::{Constants, Facts};
use super::fold::{Store, pinned};
use super::tensor::*;
use crate::Result;
use crate::import::onnx::*;
use std::collections::{HashMap, HashSet};
use tract_onnx::pb::tensor_proto::DataType;

/// Operators that only move elements: the result lies on the input's grid.
pub const VIEWS: &[&str] = &[
    "DepthToSpace",
    "Expand",
    "Flatten",
    "Gather",
    "Identity",
    "Reshape",
    "Slice",
    "SpaceToDepth",
    "Split",
    "Squeeze",
    "Tile",
    "Transpose",
    "Unsqueeze",
];
/// Operators that choose among elements of one grid; their results are quantized again, so that kernels know them.
const CHOOSERS: &[&str] = &["Concat", "MaxPool", "ReduceMax", "ReduceMin", "GlobalMaxPool"];

/// Scale and zero point by name, and the type. `axis` where there is one for each index along it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Params {
    scale: String,
    zero: String,
    data_type: i32,
    axis: Option<i64>,
}

/// An integer tensor that a QuantizeLinear made.
#[derive(Clone)]
struct Quantized {
    params: Params,
    /// Real values that are its dequantization, if there are.
    real: Option<String>,
    /// Position of its QuantizeLinear.
    node: Option<usize>,
}

/// Real values that lie on a grid.
#[derive(Clone)]
struct OnGrid {
    params: Params,
    /// The integers that they are the dequantization of.
    of: Option<String>,
}

struct Pass<'a> {
    store: Store,
    facts: &'a Facts,
    names: HashSet<String>,
    uses: HashMap<String, usize>,
    pinned: HashSet<String>,
    nodes: Vec<NodeProto>,
    /// Nodes to put before the one at a position.
    before: HashMap<usize, Vec<NodeProto>>,
    alias: HashMap<String, String>,
    quantized: HashMap<String, Quantized>,
    grids: HashMap<String, OnGrid>,
    /// Real values that are dequantized constants: the integers and their parameters.
    weights: HashMap<String, (String, Params)>,
    interned: HashMap<(i32, Vec<i64>, Vec<u8>), String>,
    seen: HashMap<(bool, String, Params), String>,
    computed: HashSet<String>,
    budget: Budget,
}

/// Rewrites a folded graph; `facts` are those of its values.
pub fn unify(graph: &mut GraphProto, facts: &Facts) -> Result<()> {
    let is_quantized = |n: &NodeProto| is_op(n, "QuantizeLinear") || is_op(n, "DequantizeLinear");
    if !graph.node.iter().any(is_quantized) {
        return Ok(());
    }
    let mut pass = Pass {
        facts,
        names: all_names(graph),
        uses: use_counts(graph),
        pinned: pinned(graph),
        nodes: Vec::with_capacity(graph.node.len()),
        before: HashMap::new(),
        alias: HashMap::new(),
        quantized: HashMap::new(),
        grids: HashMap::new(),
        weights: HashMap::new(),
        interned: HashMap::new(),
        seen: HashMap::new(),
        computed: HashSet::new(),
        budget: Budget::of(&graph.initializer),
        store: Store::take(graph),
    };
    for node in std::mem::take(&mut graph.node) {
        pass.visit(node);
    }
    let Pass { store, nodes, mut before, .. } = pass;
    for (i, node) in nodes.into_iter().enumerate() {
        graph.node.extend(before.remove(&i).unwrap_or_default());
        graph.node.push(node);
    }
    store.give(graph);
    Ok(())
}

impl Pass<'_> {
    fn visit(&mut self, mut node: NodeProto) {
        for input in &mut node.input {
            if let Some(source) = self.alias.get(input) {
                input.clone_from(source);
            }
        }
        if !is_default_domain(&node.domain)
            || node.output.first().is_none_or(|o| o.is_empty())
            || node.input.first().is_none_or(|i| i.is_empty())
        {
            return self.keep(node);
        }
        let x = node.input[0].clone();
        match node.op_type.as_str() {
            "QuantizeLinear" => self.quantize(node),
            "DequantizeLinear" => self.dequantize(node),
            op if VIEWS.contains(&op) => {
                if self.quantized.contains_key(&x) {
                    self.view_of_integers(node)
                } else if self.weights.contains_key(&x) && self.view_of_weights(&node) {
                } else {
                    if let Some(OnGrid { params, .. }) = self.grids.get(&x).cloned() {
                        for y in outputs(&node) {
                            self.grids.insert(y.to_owned(), OnGrid { params: params.clone(), of: None });
                        }
                    }
                    self.keep(node)
                }
            }
            op if CHOOSERS.contains(&op) && self.one_grid(&node).is_some() && outputs(&node).count() == 1 => self.choose(node),
            "Clip" | "Relu" if self.quantized.contains_key(&x) && self.clamp(&node) => {}
            _ => self.keep(node),
        }
    }

    fn keep(&mut self, node: NodeProto) {
        self.computed.extend(outputs(&node).map(String::from));
        self.nodes.push(node);
    }

    fn fresh(&mut self, wanted: &str) -> String {
        fresh_name(&mut self.names, wanted)
    }

    /// The one constant of these bytes.
    fn intern(&mut self, wanted: &str, dims: &[i64], data_type: i32, values: &Numbers) -> Option<String> {
        let t = encode("", dims, data_type, values)?;
        let key = (t.data_type, t.dims.clone(), t.raw_data.clone());
        if let Some(name) = self.interned.get(&key) {
            return Some(name.clone());
        }
        // The constant itself, where it has this form already.
        let name = match self.store.constant(wanted) {
            Some(own) if (own.data_type, &own.dims, &own.raw_data) == (key.0, &key.1, &key.2) => wanted.to_owned(),
            _ => {
                let name = self.fresh(wanted);
                self.store.insert(TensorProto { name: name.clone(), ..t });
                name
            }
        };
        self.interned.insert(key, name.clone());
        Some(name)
    }

    /// Parameters of a node whose integers have `data_type`; `None` where they are not constant, or not understood.
    fn params(&mut self, node: &NodeProto, data_type: i32) -> Option<Params> {
        let scale = node.input.get(1)?.clone();
        let Numbers::Real(s) = numbers(self.store.constant(&scale)?)? else { return None };
        let (lo, hi) = range(data_type)?;
        let zero = node.input.get(2).filter(|z| !z.is_empty()).cloned();
        let z = match &zero {
            Some(zero) => whole(self.store.constant(zero)?)?,
            None => vec![0; s.len()],
        };
        // A scale or zero point that is not positive, not finite or out of range stays for the check that refuses it.
        let plain = s.iter().all(|s| s.is_normal() && *s > 0.0) && z.iter().all(|z| (lo..=hi).contains(z));
        if attr_int(node, "block_size", 0) != 0 || s.is_empty() || z.len() != s.len() || !plain || width(data_type).is_none() {
            return None;
        }
        let dims: &[i64] = if s.len() == 1 { &[] } else { &[s.len() as i64] };
        let axis = (s.len() > 1).then(|| attr_int(node, "axis", 1));
        let zero_name = zero.unwrap_or_else(|| format!("{scale}.zero"));
        let scale = self.intern(&scale, dims, FLOAT, &Numbers::Real(s))?;
        let zero = self.intern(&zero_name, dims, data_type, &Numbers::Whole(z))?;
        Some(Params { scale, zero, data_type, axis })
    }

    /// Emits a node with these parameters, or finds its equal.
    fn emit(&mut self, quantize: bool, x: &str, params: &Params, output: &str, name: String) -> String {
        let key = (quantize, x.to_owned(), params.clone());
        if !self.pinned.contains(output)
            && let Some(equal) = self.seen.get(&key).cloned()
        {
            *self.uses.entry(equal.clone()).or_default() += self.uses.get(output).copied().unwrap_or(0);
            self.alias.insert(output.to_owned(), equal.clone());
            return equal;
        }
        let op = if quantize { "QuantizeLinear" } else { "DequantizeLinear" };
        let attribute = params.axis.map(|a| int_attribute("axis", a)).into_iter().collect();
        let mut node = make_node(op, &[x, &params.scale, &params.zero], output, attribute);
        if !name.is_empty() {
            node.name = name;
        }
        self.keep(node);
        self.seen.insert(key, output.to_owned());
        output.to_owned()
    }

    fn quantize(&mut self, node: NodeProto) {
        let (x, y) = (node.input[0].clone(), node.output[0].clone());
        let zero = node.input.get(2).filter(|z| !z.is_empty()).and_then(|z| self.store.constant(z)).map(|t| t.data_type);
        let stated = attr_int(&node, "output_dtype", 0) as i32;
        let data_type = zero.unwrap_or(if stated == 0 { UINT8 } else { stated });
        let Some(params) = self.params(&node, data_type) else { return self.keep(node) };
        if params.axis.is_some() {
            self.emit(true, &x, &params, &y, node.name);
            return;
        }
        let on_grid = self.grids.get(&x).filter(|g| g.params == params).cloned();
        if let Some(OnGrid { of: Some(q), .. }) = &on_grid
            && !self.pinned.contains(&y)
        {
            *self.uses.entry(q.clone()).or_default() += self.uses.get(&y).copied().unwrap_or(0);
            self.alias.insert(y, q.clone());
            return;
        }
        let real = on_grid.map(|_| x.clone());
        let made = self.emit(true, &x, &params, &y, node.name);
        if made == y {
            self.quantized.insert(y, Quantized { params, real, node: Some(self.nodes.len() - 1) });
        }
    }

    fn dequantize(&mut self, node: NodeProto) {
        let (x, y) = (node.input[0].clone(), node.output[0].clone());
        if let Some(t) = self.store.constant(&x) {
            return self.dequantize_constant(node, t.data_type);
        }
        let known = self.quantized.get(&x).map_or_else(|| self.facts.data_type(&x), |q| q.params.data_type);
        let Some(params) = self.params(&node, known) else { return self.keep(node) };
        let found = self.quantized.get(&x).filter(|q| q.params == params).cloned();
        match found {
            Some(Quantized { real: Some(real), .. }) if !self.pinned.contains(&y) => {
                self.alias.insert(y, real);
            }
            found => {
                let made = self.emit(false, &x, &params, &y, node.name);
                if params.axis.is_none() && found.is_some() {
                    self.grids.insert(made, OnGrid { params, of: Some(x) });
                }
            }
        }
    }

    fn dequantize_constant(&mut self, mut node: NodeProto, data_type: i32) {
        // Packed integers become bytes: the same numbers.
        let packed = [DataType::Int4, DataType::Uint4].iter().find(|t| **t as i32 == data_type);
        let data_type = match packed {
            Some(kind) => {
                let wide = if *kind == DataType::Int4 { INT8 } else { UINT8 };
                let Some(t) = self.store.constant(&node.input[0]) else { return self.keep(node) };
                let Some(t) = whole(t).and_then(|v| encode("", &t.dims, wide, &Numbers::Whole(v))) else { return self.keep(node) };
                let wanted = format!("{}.bytes", node.input[0]);
                let name = self.fresh(&wanted);
                self.store.insert(TensorProto { name: name.clone(), ..t });
                node.input[0] = name;
                wide
            }
            None => data_type,
        };
        let Some(mut params) = self.params(&node, data_type) else { return self.keep(node) };
        let rank = self.store.constant(&node.input[0]).map_or(0, |t| t.dims.len() as i64);
        params.axis = params.axis.map(|a| if a < 0 { a + rank } else { a });
        let (x, y) = (node.input[0].clone(), node.output[0].clone());
        let made = self.emit(false, &x, &params, &y, node.name);
        self.weights.insert(made, (x, params));
    }

    /// The real values of an integer tensor.
    fn real(&mut self, q: &str) -> Option<(String, Params)> {
        let Quantized { params, real, .. } = self.quantized.get(q)?.clone();
        let real = match real {
            Some(real) => real,
            None => {
                let wanted = format!("{q}.real");
                let key = (false, q.to_owned(), params.clone());
                match self.seen.get(&key) {
                    Some(found) => found.clone(),
                    None => {
                        let name = self.fresh(&wanted);
                        self.emit(false, q, &params, &name, String::new())
                    }
                }
            }
        };
        self.grids.entry(real.clone()).or_insert(OnGrid { params: params.clone(), of: Some(q.to_owned()) });
        Some((real, params))
    }

    fn view_of_integers(&mut self, mut node: NodeProto) {
        let Some((real, params)) = self.real(&node.input[0].clone()) else { return self.keep(node) };
        let integers = node.output.clone();
        node.input[0] = real;
        for output in node.output.iter_mut().filter(|o| !o.is_empty()) {
            *output = fresh_name(&mut self.names, &format!("{output}.real"));
        }
        let reals = node.output.clone();
        self.keep(node);
        for (y, real) in integers.into_iter().zip(reals).filter(|(y, _)| !y.is_empty()) {
            self.grids.insert(real.clone(), OnGrid { params: params.clone(), of: None });
            self.emit(true, &real, &params, &y, String::new());
            self.quantized.insert(y, Quantized { params: params.clone(), real: Some(real), node: None });
        }
    }

    /// Moves the weights themselves. False if that cannot be computed.
    fn view_of_weights(&mut self, node: &NodeProto) -> bool {
        let Some((q, params)) = self.weights.get(&node.input[0]).cloned() else { return false };
        let [y] = &node.output[..] else { return false };
        let inputs: Option<Vec<Option<&TensorProto>>> = node
            .input
            .iter()
            .enumerate()
            .map(|(i, n)| {
                if i == 0 {
                    Some(self.store.constant(&q))
                } else if n.is_empty() {
                    Some(None)
                } else {
                    self.store.constant(n).map(Some)
                }
            })
            .collect();
        let Some(inputs) = inputs.filter(|i| i[0].is_some()) else { return false };
        let old = inputs[0].map(|t| t.dims.clone()).unwrap_or_default();
        let Some(mut made) = evaluate(node, &inputs, &mut self.budget) else { return false };
        let Some(mut t) = made.pop() else { return false };
        let axis = match params.axis {
            None => None,
            Some(axis) => match moved_axis(node, &old, &t.dims, axis) {
                Some(axis) => Some(axis),
                None => return false,
            },
        };
        t.name = fresh_name(&mut self.names, &format!("{y}.q"));
        let name = t.name.clone();
        self.store.insert(t);
        let params = Params { axis, ..params };
        let made = self.emit(false, &name, &params, y, String::new());
        self.weights.insert(made, (name, params));
        true
    }

    /// The grid that all inputs of a node are integers of.
    fn one_grid(&self, node: &NodeProto) -> Option<Params> {
        let operands = if node.op_type == "Concat" { node.input.len() } else { 1 };
        let params = &self.quantized.get(node.input.first()?)?.params;
        node.input[..operands].iter().all(|n| self.quantized.get(n).is_some_and(|q| q.params == *params)).then(|| params.clone())
    }

    fn choose(&mut self, mut node: NodeProto) {
        let Some(params) = self.one_grid(&node) else { return self.keep(node) };
        let operands = if node.op_type == "Concat" { node.input.len() } else { 1 };
        for i in 0..operands {
            let q = node.input[i].clone();
            if let Some((real, _)) = self.real(&q) {
                node.input[i] = real;
            }
        }
        let y = node.output[0].clone();
        let real = self.fresh(&format!("{y}.real"));
        node.output = vec![real.clone()];
        self.keep(node);
        self.emit(true, &real, &params, &y, String::new());
        self.quantized.insert(y, Quantized { params, real: None, node: None });
    }

    /// A clamp of integers. False if it is not understood.
    fn clamp(&mut self, node: &NodeProto) -> bool {
        let (q, y) = (node.input[0].clone(), node.output[0].clone());
        let Some(Quantized { params, node: made_by, .. }) = self.quantized.get(&q).cloned() else { return false };
        let Some((min, max)) = range(params.data_type) else { return false };
        let bound = |i: usize, otherwise: i64| match node.input.get(i).filter(|s| !s.is_empty()) {
            None => Some(otherwise),
            Some(_) => self.store.whole_input(node, i).filter(|v| v.len() == 1).map(|v| v[0]),
        };
        let bounds = if node.op_type == "Relu" { Some((0, max)) } else { bound(1, min).zip(bound(2, max)) };
        let Some((lo, hi)) = bounds.map(|(lo, hi)| (lo.clamp(min, max), hi.clamp(min, max))) else { return false };
        if (lo, hi) == (min, max) && !self.pinned.contains(&y) {
            *self.uses.entry(q.clone()).or_default() += self.uses.get(&y).copied().unwrap_or(0);
            self.alias.insert(y, q);
            return true;
        }
        let (Some(Numbers::Real(s)), Some(z)) =
            (self.store.constant(&params.scale).and_then(numbers), self.store.constant(&params.zero).and_then(whole))
        else {
            return false;
        };
        let step = |v: i64| (v - z[0]) as f32 * s[0];
        let mut bounds = vec![String::new(); 2];
        for (i, (v, end)) in [(lo, min), (hi, max)].into_iter().enumerate() {
            if v != end {
                let Some(name) = self.intern(&format!("{y}.bound"), &[], FLOAT, &Numbers::Real(vec![step(v)])) else { return false };
                bounds[i] = name;
            }
        }
        let clip = |x: &str, to: &str| {
            let mut clip = make_node("Clip", &[x, &bounds[0], &bounds[1]], to, vec![]);
            while clip.input.last().is_some_and(String::is_empty) {
                clip.input.pop();
            }
            clip
        };
        // Into the activation before, where the unclamped integers have no other reader; the picture itself has none.
        if let Some(at) = made_by
            && self.uses.get(&q).copied().unwrap_or(0) <= 1
            && !self.pinned.contains(&q)
            && !self.pinned.contains(&y)
            && self.computed.contains(&self.nodes[at].input[0])
        {
            let x = self.nodes[at].input[0].clone();
            let clamped = fresh_name(&mut self.names, &format!("{x}.clamped"));
            self.before.entry(at).or_default().push(clip(&x, &clamped));
            self.nodes[at].input[0] = clamped;
            self.seen.remove(&(true, x, params));
            *self.uses.entry(q.clone()).or_default() = self.uses.get(&y).copied().unwrap_or(0);
            self.alias.insert(y, q);
            return true;
        }
        let Some((real, params)) = self.real(&q) else { return false };
        let clamped = fresh_name(&mut self.names, &format!("{y}.real"));
        self.keep(clip(&real, &clamped));
        self.emit(true, &clamped, &params, &y, String::new());
        self.quantized.insert(y, Quantized { params, real: None, node: Some(self.nodes.len() - 1) });
        true
    }
}

/// Where `axis` of `old` is after a view that gave `new`.
fn moved_axis(node: &NodeProto, old: &[i64], new: &[i64], axis: i64) -> Option<i64> {
    let axis = usize::try_from(axis).ok().filter(|&a| a < old.len())?;
    let to = match node.op_type.as_str() {
        "Transpose" => match attr_ints(node, "perm") {
            [] => old.len() - 1 - axis,
            perm => perm.iter().position(|&p| p == axis as i64)?,
        },
        // Row-major order stays: the axis is where as many elements lie before and within it.
        "Reshape" | "Flatten" | "Squeeze" | "Unsqueeze" | "Identity" => {
            let before: i64 = old[..axis].iter().product();
            (0..new.len()).find(|&i| new[i] == old[axis] && new[..i].iter().product::<i64>() == before)?
        }
        _ => return None,
    };
    Some(to as i64)
}
