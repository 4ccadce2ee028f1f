//! One walk over the nodes in order: what depends on constants only is computed, what hands its input on is left out,
//! and sizes that were computed from dimensions become numbers.
//!
//! After it, no Identity, no inference Dropout, no Cast to the own type and no `If` of a constant is left, a Reshape has
//! a constant shape wherever at most one dimension is open, and `Reshape` to `[batch, everything]` is a Flatten.

use super::evaluate::{Budget, evaluate};
use super::facts::{Constants, Dim, Fact, Facts, quotient};
use super::tensor::*;
use crate::import::onnx::*;
use crate::{Error, Result};
use std::collections::{HashMap, HashSet, VecDeque};

/// Most elements of one tensor while the model runs: far beyond any network's.
const MAX_ELEMENTS: i64 = 1 << 28;
/// Most nodes that `If`s of constants may put in.
const MAX_INLINED: usize = 1 << 20;

/// Constants of a graph, by name, in order.
#[derive(Default)]
pub struct Store {
    tensors: Vec<Option<TensorProto>>,
    at: HashMap<String, usize>,
}

impl Constants for Store {
    fn constant(&self, name: &str) -> Option<&TensorProto> {
        self.tensors[*self.at.get(name)?].as_ref()
    }
}

impl Store {
    /// Takes a graph's initializers.
    pub fn take(graph: &mut GraphProto) -> Store {
        let mut store = Store::default();
        std::mem::take(&mut graph.initializer).into_iter().for_each(|t| store.insert(t));
        store
    }

    /// Adds a constant.
    pub fn insert(&mut self, t: TensorProto) {
        self.at.insert(t.name.clone(), self.tensors.len());
        self.tensors.push(Some(t));
    }

    /// Gives them back.
    pub fn give(self, graph: &mut GraphProto) {
        graph.initializer = self.tensors.into_iter().flatten().collect();
    }
}

/// Names that must stay: graph outputs, and what subgraphs read.
pub fn pinned(graph: &GraphProto) -> HashSet<String> {
    graph.output.iter().map(|o| o.name.clone()).chain(captured_names(graph)).collect()
}

struct Fold {
    store: Store,
    facts: Facts,
    names: HashSet<String>,
    /// Values that are another one.
    alias: HashMap<String, String>,
    /// Computed values that take the name of a graph output.
    renamed: HashMap<String, String>,
    computed: HashSet<String>,
    results: HashSet<String>,
    captured: HashSet<String>,
    /// What anything reads.
    read: HashSet<String>,
    budget: Budget,
    inlined: usize,
    nodes: Vec<NodeProto>,
}

/// Folds a graph whose constants are [raw](to_raw) initializers. Returns what is known of its values.
pub fn fold(graph: &mut GraphProto) -> Result<Facts> {
    let budget = Budget::of(&graph.initializer);
    let names = all_names(graph);
    let mut facts = Facts::default();
    graph.input.iter().for_each(|i| facts.input(i));
    graph.initializer.iter().for_each(|t| facts.constant(t));
    let mut fold = Fold {
        facts,
        names,
        alias: HashMap::new(),
        renamed: HashMap::new(),
        computed: HashSet::new(),
        results: graph.output.iter().map(|o| o.name.clone()).collect(),
        captured: captured_names(graph),
        read: use_counts(graph).into_keys().collect(),
        budget,
        inlined: 0,
        nodes: Vec::with_capacity(graph.node.len()),
        store: Store::take(graph),
    };
    let mut todo: VecDeque<NodeProto> = std::mem::take(&mut graph.node).into();
    while let Some(node) = todo.pop_front() {
        fold.visit(node, &mut todo)?;
    }
    let Fold { store, facts, renamed, mut nodes, .. } = fold;
    if !renamed.is_empty() {
        for name in nodes.iter_mut().flat_map(|n| n.input.iter_mut().chain(&mut n.output)) {
            if let Some(new) = renamed.get(name) {
                name.clone_from(new);
            }
        }
    }
    store.give(graph);
    graph.node = nodes;
    graph.value_info.clear(); // may tell of values that are gone
    Ok(facts)
}

impl Fold {
    fn visit(&mut self, mut node: NodeProto, todo: &mut VecDeque<NodeProto>) -> Result<()> {
        for input in &mut node.input {
            if let Some(source) = self.alias.get(input) {
                input.clone_from(source);
            }
        }
        if !is_default_domain(&node.domain) {
            self.keep(node);
            return Ok(());
        }
        if node.op_type == "If" && self.choose(&node, todo)? {
            return Ok(());
        }
        self.facts.visit(&node, &self.store);
        if self.simplify(&mut node) {
            self.facts.visit(&node, &self.store);
        }
        if let Some(source) = self.handed_on(&node)
            && self.leave_out(&node, source)
        {
            return Ok(());
        }
        if self.computes(&node) {
            let inputs: Vec<Option<&TensorProto>> =
                node.input.iter().map(|n| if n.is_empty() { None } else { self.store.constant(n) }).collect();
            let made = evaluate(&node, &inputs, &mut self.budget).filter(|made| made.len() == node.output.len());
            if let Some(made) = made {
                for t in made {
                    self.facts.constant(&t);
                    self.store.insert(t);
                }
                return Ok(());
            }
        }
        self.check_size(&node)?;
        if self.number(&node) {
            return Ok(());
        }
        self.keep(node);
        Ok(())
    }

    fn keep(&mut self, node: NodeProto) {
        self.computed.extend(outputs(&node).map(String::from));
        self.nodes.push(node);
    }

    fn is_free(&self, name: &str) -> bool {
        !self.results.contains(name) && !self.captured.contains(name)
    }

    /// True if every input is a constant, and no output must stay a node's.
    fn computes(&self, node: &NodeProto) -> bool {
        inputs(node).next().is_some()
            && inputs(node).all(|n| self.store.constant(n).is_some())
            && !node.output.is_empty()
            && node.output.iter().all(|o| !o.is_empty() && self.is_free(o))
            // What is quantized stays so: it is small, and kernels want it.
            && (node.op_type != "DequantizeLinear" || self.facts.dims(&node.input[0]).is_some_and(<[Dim]>::is_empty))
    }

    /// A node whose integers are known by dimensions alone becomes a constant.
    fn number(&mut self, node: &NodeProto) -> bool {
        let [output] = &node.output[..] else { return false };
        let Some(Fact { value: Some(value), dims: Some(dims), data_type }) = self.facts.get(output) else { return false };
        let (Some(value), Some(dims)) = (known(value), known(dims)) else { return false };
        let Some(t) = self.is_free(output).then(|| encode(output, &dims, *data_type, &Numbers::Whole(value))).flatten() else {
            return false;
        };
        self.store.insert(t);
        true
    }

    fn check_size(&self, node: &NodeProto) -> Result<()> {
        for name in outputs(node) {
            let count = self.facts.dims(name).map(|d| d.iter().filter_map(|d| d.known()).try_fold(1i64, i64::checked_mul));
            if let Some(count) = count
                && count.is_none_or(|n| n > MAX_ELEMENTS)
            {
                let dims: Vec<String> =
                    self.facts.dims(name).unwrap_or_default().iter().map(|d| d.known().map_or("?".into(), |n| n.to_string())).collect();
                return Err(Error::UnsupportedModel(format!(
                    "node {}: its result has dimensions [{}]; up to {MAX_ELEMENTS} elements are supported",
                    node_name(node),
                    dims.join(", ")
                )));
            }
        }
        Ok(())
    }

    /// The value that a node hands on unchanged.
    fn handed_on(&self, node: &NodeProto) -> Option<String> {
        if outputs(node).nth(1).is_some() && node.op_type != "Dropout" {
            return None;
        }
        let x = node.input.first().filter(|s| !s.is_empty())?;
        let y = node.output.first().filter(|s| !s.is_empty())?;
        let ints = |i: usize| self.store.whole_input(node, i);
        let same_dims = || self.facts.dims(x).is_some_and(|a| self.facts.dims(y) == Some(a));
        let nothing = match node.op_type.as_str() {
            "Identity" => true,
            "Dropout" => match node.input.get(2).filter(|s| !s.is_empty()) {
                None => true,
                Some(_) => ints(2).is_some_and(|v| v == [0]),
            },
            "Cast" => self.facts.data_type(x) != 0 && i64::from(self.facts.data_type(x)) == attr_int(node, "to", 0),
            "Concat" | "Sum" | "Max" | "Min" | "Mean" => node.input.len() == 1,
            "Pad" => ints(1).is_some_and(|p| p.iter().all(|&p| p == 0)),
            "Transpose" => {
                let perm = attr_ints(node, "perm");
                !perm.is_empty() && perm.iter().enumerate().all(|(i, &p)| p == i as i64)
            }
            // Equal dimensions, where open ones are the same symbol.
            "Reshape" | "Expand" | "Flatten" | "Tile" => same_dims(),
            "Squeeze" | "Unsqueeze" => ints(1).is_some_and(|a| a.is_empty()),
            _ => false,
        };
        nothing.then(|| x.clone())
    }

    /// Leaves a node out that hands `source` on; false if its output's name must stay a node's.
    fn leave_out(&mut self, node: &NodeProto, source: String) -> bool {
        let output = &node.output[0];
        if self.captured.contains(output) || outputs(node).skip(1).any(|o| self.read.contains(o)) {
            return false;
        }
        if self.results.contains(output) {
            // A computed value may take the output's name, once.
            if !self.computed.contains(&source) || !self.is_free(&source) || self.renamed.contains_key(&source) {
                return false;
            }
            self.renamed.insert(source.clone(), output.clone());
        }
        self.alias.insert(output.clone(), source);
        true
    }

    /// Nodes with several spellings get one. True if the node is another now.
    fn simplify(&mut self, node: &mut NodeProto) -> bool {
        match node.op_type.as_str() {
            // All dimensions that are 1; an open one, the batch, is none of them.
            "Squeeze" if node.input.get(1).is_none_or(|s| s.is_empty()) => {
                let Some(dims) = node.input.first().and_then(|x| self.facts.dims(x)) else { return false };
                let axes: Vec<i64> = dims.iter().enumerate().filter(|(_, d)| **d == Dim::Known(1)).map(|(i, _)| i as i64).collect();
                node.input.truncate(1);
                let axes = self.list(node, "axes", &axes);
                node.input.push(axes);
                true
            }
            "Reshape" => self.simplify_reshape(node).is_some(),
            "Conv" | "ConvTranspose" | "MaxPool" | "AveragePool" => self.explicit_window(node).is_some(),
            "CastLike" => {
                let to = node.input.get(1).map_or(0, |like| self.facts.data_type(like));
                if to == 0 {
                    return false;
                }
                node.op_type = "Cast".into();
                node.input.truncate(1);
                node.attribute = vec![int_attribute("to", i64::from(to))];
                true
            }
            "Resize" => {
                // An empty tensor is an absent one.
                for input in node.input.iter_mut().skip(1) {
                    if self.store.constant(input).is_some_and(|t| t.dims.contains(&0)) {
                        input.clear();
                    }
                }
                while node.input.last().is_some_and(String::is_empty) {
                    node.input.pop();
                }
                true
            }
            _ => false,
        }
    }

    fn explicit_window(&self, node: &mut NodeProto) -> Option<()> {
        let [_, _, Dim::Known(h), Dim::Known(w)] = *self.facts.dims(node.input.first()?)? else { return None };
        let kernel = match *attr_ints(node, "kernel_shape") {
            [y, x] => [y, x],
            _ => self.facts.known(node.input.get(1)?)?.get(2..)?.try_into().ok()?,
        };
        super::windows::explicit(node, kernel, [h, w])
    }

    fn simplify_reshape(&mut self, node: &mut NodeProto) -> Option<()> {
        let [x, shape] = &node.input[..] else { return None };
        let wanted = self.facts.get(shape)?.value.clone()?;
        let dims = self.facts.dims(x).map(<[Dim]>::to_vec);
        // [N, C, H, W] as [N, C·H·W].
        if let (Some(dims), Some(&[first, last])) = (&dims, self.facts.dims(node.output.first()?))
            && dims.len() > 2
        {
            let rest = quotient(&dims[1..], &[]);
            let by_rest = wanted[0] == Dim::Known(-1) && wanted[1].known().is_some() && rest == Some(wanted[1]);
            if by_rest || (first == dims[0] && (wanted[1] == Dim::Known(-1) || rest == Some(last))) {
                node.op_type = "Flatten".into();
                node.input.truncate(1);
                node.attribute = vec![int_attribute("axis", 1)];
                return Some(());
            }
        }
        if self.store.constant(shape).is_some() {
            return None;
        }
        // Open dimensions: the input's own is 0, and one more is −1.
        let keep_zero = attr_int(node, "allowzero", 0) != 0;
        let mut numbers = Vec::with_capacity(wanted.len());
        for (i, d) in wanted.iter().enumerate() {
            numbers.push(match d {
                Dim::Known(n) => *n,
                d if !keep_zero && dims.as_ref().and_then(|x| x.get(i)) == Some(d) => 0,
                _ if !numbers.contains(&-1) && !wanted.contains(&Dim::Known(-1)) => -1,
                _ => return None,
            });
        }
        let shape = self.list(node, "shape", &numbers);
        node.input[1] = shape;
        Some(())
    }

    fn list(&mut self, node: &NodeProto, part: &str, values: &[i64]) -> String {
        let name = fresh_name(&mut self.names, &format!("{}.{part}", node.output.first().map_or("", |s| s)));
        let t = i64_tensor(&name, &[values.len()], values);
        self.facts.constant(&t);
        self.store.insert(t);
        name
    }

    /// An `If` of a constant becomes the nodes of its branch.
    fn choose(&mut self, node: &NodeProto, todo: &mut VecDeque<NodeProto>) -> Result<bool> {
        let Some(condition) = self.store.whole_input(node, 0).and_then(|v| v.first().copied()) else { return Ok(false) };
        let name = if condition != 0 { "then_branch" } else { "else_branch" };
        let Some(branch) = attr(node, name).and_then(|a| a.g.as_ref()) else { return Ok(false) };
        self.inlined += branch.node.len();
        let nested = branch.node.iter().any(|n| n.attribute.iter().any(|a| a.g.is_some() || !a.graphs.is_empty()));
        let fits = branch.output.len() == node.output.len() && branch.input.is_empty() && branch.sparse_initializer.is_empty();
        if nested || !fits || self.inlined > MAX_INLINED {
            return Ok(false);
        }
        let mut inner: HashMap<&str, String> = HashMap::new();
        for (o, outer) in branch.output.iter().zip(&node.output) {
            let made = branch.node.iter().any(|n| n.output.contains(&o.name));
            if made && !outer.is_empty() {
                inner.entry(&o.name).or_insert_with(|| outer.clone());
            }
        }
        for name in branch.initializer.iter().map(|t| t.name.as_str()).chain(branch.node.iter().flat_map(outputs)) {
            if !inner.contains_key(name) {
                let fresh = fresh_name(&mut self.names, name);
                inner.insert(name, fresh);
            }
        }
        let new = |name: &str| inner.get(name).cloned().unwrap_or_else(|| name.to_owned());
        for t in &branch.initializer {
            let mut t = TensorProto { name: new(&t.name), ..t.clone() };
            to_f32(&mut t)?;
            to_raw(&mut t);
            self.facts.constant(&t);
            self.store.insert(t);
        }
        let mut nodes: Vec<NodeProto> = branch.node.clone();
        for n in &mut nodes {
            n.input.iter_mut().chain(&mut n.output).filter(|s| !s.is_empty()).for_each(|s| *s = new(s));
        }
        // An output that is named twice, or is no node's, is handed on.
        for (o, outer) in branch.output.iter().zip(&node.output) {
            let source = new(&o.name);
            if !outer.is_empty() && source != *outer {
                nodes.push(make_node("Identity", &[&source], outer, vec![]));
            }
        }
        nodes.into_iter().rev().for_each(|n| todo.push_front(n));
        Ok(true)
    }
}

fn known(dims: &[Dim]) -> Option<Vec<i64>> {
    dims.iter().map(|d| d.known()).collect()
}
