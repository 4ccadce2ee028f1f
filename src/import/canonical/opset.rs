//! Operator sets: every version of ONNX's own operators becomes the newest form.
//!
//! [`STEPS`] is the one table: operators, the version in which their form or meaning changed, and a small converter
//! that rewrites a node of the version before. Where a version only added optional parts, or types, there is no step:
//! a node of the old version means the same in the new one. The facts are those of the operator schemas of the `onnx`
//! package 1.23 (`onnx.defs.get_all_schemas_with_history()`, opset 28): its attributes, inputs and outputs, version
//! by version. A test compares the table with the schemas of the package that is installed.

use super::facts::{Constants, Facts};
use super::steps::*;
use crate::import::onnx::*;
use crate::{Error, Result};
use std::collections::{HashMap, HashSet};

/// The newest operator set that is known: the one that all models are raised to.
pub const NEWEST: i64 = 28;

/// Rewrites a node; the nodes it returns take its place.
pub type Converter = fn(&mut Rewriter, NodeProto) -> Result<Vec<NodeProto>>;

/// What changed with one version.
pub struct Step {
    /// Operators of ONNX's own set.
    pub ops: &'static [&'static str],
    /// The version that changed them.
    pub version: i64,
    /// Raises a node of an older version to this one.
    pub convert: Converter,
}

const fn step(version: i64, ops: &'static [&'static str], convert: Converter) -> Step {
    Step { ops, version, convert }
}

/// Every change of form or meaning, from opset 1 on.
pub const STEPS: &[Step] = &[
    step(4, &["Concat"], concat_axis),
    step(5, &["Reshape"], reshape_input),
    step(6, &["Cast"], cast_number),
    step(6, &["BatchNormalization", "InstanceNormalization", "Dropout"], drop_consumed),
    step(6, &["Abs", "Ceil", "Clip", "Elu", "Exp", "Floor", "HardSigmoid", "LeakyRelu", "Log", "Neg", "PRelu"], drop_consumed),
    step(6, &["Reciprocal", "Relu", "Sigmoid", "Sqrt", "Tanh", "Max", "Mean", "Min", "Sum"], drop_consumed),
    step(6, &["Add", "Div", "Mul", "Sub"], drop_consumed),
    step(6, &["Selu"], selu_constants),
    step(6, &["Tile"], tile_repeats),
    step(2, &["GlobalLpPool", "LpPool"], lp_norm_number),
    step(2, &["Pad"], pad_name),
    step(2, &["Split"], split_default),
    step(3, &["GRU"], gru_direction),
    step(7, &["GRU", "LSTM", "RNN"], drop_output_sequence),
    step(7, &["Add", "And", "Div", "Equal", "Greater", "Less", "Mul", "Or", "Pow", "Sub", "Xor"], numpy_broadcast),
    step(7, &["BatchNormalization", "Dropout"], drop_is_test),
    step(7, &["Gemm"], gemm_broadcast),
    step(7, &["PRelu"], prelu_slope),
    step(7, &["Upsample"], upsample_scales),
    step(9, &["BatchNormalization"], batch_norm_spatial),
    step(9, &["Scan"], refuse),
    step(9, &["Upsample"], upsample_input),
    step(10, &["Affine", "ImageScaler"], experimental),
    step(10, &["Slice"], slice_inputs),
    step(10, &["TopK"], top_k_input),
    step(10, &["Upsample"], upsample_to_resize),
    step(11, &["Clip"], clip_inputs),
    step(11, &["Pad"], pad_inputs),
    step(11, &["Resize"], resize_modes),
    step(11, &["Scatter"], scatter_elements),
    step(12, &["Dropout"], dropout_ratio),
    step(13, &["Hardmax", "LogSoftmax", "Softmax"], softmax_axis),
    step(13, &["ReduceSum", "Squeeze", "Unsqueeze"], axes_input),
    step(13, &["Split"], split_input),
    step(14, &["BatchNormalization"], batch_norm_outputs),
    step(16, &["RoiAlign"], roi_align_mode),
    step(18, &["ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax"], axes_input),
    step(18, &["ReduceMean", "ReduceMin", "ReduceProd", "ReduceSumSquare"], axes_input),
    step(18, &["Split"], split_outputs),
    step(20, &["DFT"], dft_axis),
    step(20, &["GridSample"], grid_sample_mode),
    step(21, &["GroupNormalization"], group_norm_channels),
];

/// What converters need beside the node.
#[derive(Default)]
pub struct Rewriter {
    /// What is known of the values before the node.
    pub facts: Facts,
    names: HashSet<String>,
    constants: HashMap<String, TensorProto>,
    added: Vec<TensorProto>,
    /// The operator set that the file is written in.
    pub version: i64,
    /// How often each value is read in the whole model.
    pub uses: HashMap<String, usize>,
}

impl Constants for Rewriter {
    fn constant(&self, name: &str) -> Option<&TensorProto> {
        self.constants.get(name)
    }
}

impl Rewriter {
    /// A value name that nothing has.
    pub fn fresh(&mut self, wanted: &str) -> String {
        fresh_name(&mut self.names, wanted)
    }

    /// Adds a constant under a fresh name like `wanted`.
    pub fn add(&mut self, wanted: &str, make: impl FnOnce(&str) -> TensorProto) -> String {
        let name = self.fresh(wanted);
        let tensor = make(&name);
        self.facts.constant(&tensor);
        self.constants.insert(name.clone(), tensor.clone());
        self.added.push(tensor);
        name
    }

    /// Adds a list of integers.
    pub fn list(&mut self, wanted: &str, values: &[i64]) -> String {
        self.add(wanted, |name| i64_tensor(name, &[values.len()], values))
    }
}

/// Raises a model to [`NEWEST`], subgraphs too.
pub fn raise(model: &mut ModelProto) -> Result<()> {
    let version = opset(model);
    if !(1..=NEWEST).contains(&version) {
        let reason = if version == 0 {
            "it does not say which operator set of ai.onnx it uses; export it again".to_owned()
        } else {
            format!("operator set {version} of ai.onnx is not known; export with opset {NEWEST} or older")
        };
        return Err(Error::UnsupportedModel(reason));
    }
    let mut rewriter = Rewriter { version, ..Default::default() };
    let graph = graph_mut(model)?;
    note_names(graph, &mut rewriter);
    rewriter.uses = use_counts(graph);
    raise_graph(graph, &mut rewriter)?;
    set_opset(model, NEWEST);
    Ok(())
}

/// Names everywhere, and small constants that converters may read.
fn note_names(graph: &GraphProto, r: &mut Rewriter) {
    for t in &graph.initializer {
        note_constant(t, r);
    }
    r.names.extend(graph.input.iter().map(|i| i.name.clone()));
    for node in &graph.node {
        r.names.extend(outputs(node).map(String::from));
        r.names.extend(inputs(node).map(String::from));
        if is_op(node, "Constant")
            && let (Some(name), Some(t)) = (node.output.first(), attr(node, "value").and_then(|a| a.t.as_ref()))
            && t.dims.iter().product::<i64>() <= SMALL
        {
            note_constant(&TensorProto { name: name.clone(), ..t.clone() }, r);
        }
        for a in &node.attribute {
            a.g.iter().chain(&a.graphs).for_each(|g| note_names(g, r));
        }
    }
}

/// Elements of constants that converters may read: sizes, axes, one value per channel.
const SMALL: i64 = 1 << 16;

fn note_constant(t: &TensorProto, r: &mut Rewriter) {
    r.names.insert(t.name.clone());
    let mut known = TensorProto { name: t.name.clone(), dims: t.dims.clone(), data_type: t.data_type, ..Default::default() };
    if t.dims.iter().try_fold(1i64, |n, &d| n.checked_mul(d)).is_some_and(|n| n <= SMALL) {
        known = t.clone();
        super::tensor::to_raw(&mut known);
        r.constants.insert(t.name.clone(), known.clone());
    }
    r.facts.constant(&known);
}

fn raise_graph(graph: &mut GraphProto, r: &mut Rewriter) -> Result<()> {
    let constants: HashSet<String> = graph.initializer.iter().map(|t| t.name.clone()).collect();
    for input in graph.input.iter().filter(|i| !constants.contains(&i.name)) {
        r.facts.input(input);
    }
    let outer = std::mem::take(&mut r.added);
    let nodes = std::mem::take(&mut graph.node);
    let mut raised = Vec::with_capacity(nodes.len());
    for mut node in nodes {
        for a in &mut node.attribute {
            a.g.iter_mut().chain(&mut a.graphs).try_for_each(|g| raise_graph(g, r))?;
        }
        if is_default_domain(&node.domain) {
            node.domain.clear();
            let version = r.version;
            raise_node(node, version, r, &mut raised)?;
        } else {
            raised.push(node);
        }
    }
    graph.node = raised;
    graph.initializer.extend(std::mem::replace(&mut r.added, outer));
    Ok(())
}

fn raise_node(node: NodeProto, from: i64, r: &mut Rewriter, raised: &mut Vec<NodeProto>) -> Result<()> {
    let later = STEPS.iter().filter(|s| s.version > from && s.ops.contains(&node.op_type.as_str()));
    match later.min_by_key(|s| s.version) {
        Some(step) => {
            for new in (step.convert)(r, node)? {
                raise_node(new, step.version, r, raised)?;
            }
        }
        None => {
            // Nodes in between are needed too, so that the next one's converter knows its inputs.
            let facts = std::mem::take(&mut r.facts);
            r.facts = facts_after(facts, &node, r);
            raised.push(node);
        }
    }
    Ok(())
}

fn facts_after(mut facts: Facts, node: &NodeProto, r: &Rewriter) -> Facts {
    facts.visit(node, r);
    facts
}
