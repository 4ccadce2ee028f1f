//! Finds the quantized part of an ONNX graph and takes it out.
//!
//! Matching happens on ONNX's own nodes, before tract sees them: the standard fixes their meaning, whereas tract
//! expands per-axis DequantizeLinear, Gemm and pooling into primitive operators that change between versions.
//! A float value is *real* if it is the DequantizeLinear of a quantized tensor, *pending* if it is an operation on
//! real values whose result awaits its QuantizeLinear; everything else stays with tract.
//!
//! Regions are numbered by level: a QuantizeLinear of a float that depends on region `n` opens region `n + 1`, so that
//! regions and float islands between them never wait for each other in a circle.

mod integer;
mod movers;
mod operators;
mod quantization;
mod regions;
pub mod rules;
mod transposed;
mod weights;

pub use operators::{clamp_bounds, is_spatial_mean};

use super::onnx::*;
use crate::graph::{Clamp, DType, QuantParams, Tensor, TensorId, Weights, Window};
use crate::ops::{
    Add, Arithmetic, AveragePool, Concat, Conv, Dequantize, Expression, Function, Gemm, GlobalMaxPool, Graph, MAX_NODES, Map, MaxPool, Mul,
    Node, Op, PRelu, Quantize, ReduceSum, Requantize, Sub,
};
use crate::ops::{
    Border, Coordinates, DepthToSpace, Extent, Groups, Join, Nearest, Pad, Rearrange, Resize, ResizeLinear, ResizeNearest, ResizeTo, Slice,
    SpaceToDepth, View,
};
use crate::{Error, Result};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use tract_onnx::pb::tensor_proto::DataType;
use weights::signed_bytes;

/// `op_type` of the node that stands for a region in the remaining graph.
pub const REGION_OP: &str = "EdgeInt8Region";

/// Operators on integer tensors, by domain: ONNX's, and those that ONNX Runtime's quantizer writes.
const INTEGER_OPS: &[(&str, &str)] = &[
    ("", "QLinearConv"),
    ("", "QLinearMatMul"),
    ("com.microsoft", "QLinearAdd"),
    ("com.microsoft", "QLinearMul"),
    ("com.microsoft", "QLinearSigmoid"),
    ("com.microsoft", "QLinearLeakyRelu"),
    ("com.microsoft", "QLinearAveragePool"),
    ("com.microsoft", "QLinearGlobalAveragePool"),
    ("com.microsoft", "QGemm"),
];

/// A model split into int8 regions and the rest.
#[derive(Debug)]
pub struct Lowered {
    /// The regions; `None` where nothing of a level survived.
    pub regions: Vec<Graph>,
    /// What tract runs: kept nodes, and one [`REGION_OP`] node per region, in order, reading [`Graph::sources`] and
    /// making [`Graph::targets`].
    pub rest: ModelProto,
    /// Nodes left to tract, and why.
    pub fallbacks: Vec<Fallback>,
}

/// A node left to tract.
#[derive(Debug, Clone)]
pub struct Fallback {
    /// Node name.
    pub name: String,
    /// Operator.
    pub op: String,
    /// Why it does not run in int8.
    pub why: String,
}

impl Fallback {
    fn new(node: &NodeProto, why: String) -> Self {
        Fallback { name: label(node).to_owned(), op: node.op_type.clone(), why }
    }
}

/// Quantization of a constant.
#[derive(Clone)]
struct ConstQuant<'a> {
    tensor: &'a TensorProto,
    scale: Vec<f32>,
    zero_point: Vec<i32>,
    axis: i64,
}

#[derive(Clone)]
enum Base {
    Conv {
        x: TensorId,
        weights: Arc<Weights>,
        window: Window,
        groups: usize,
    },
    /// One output for each phase of the stride, which `spread` makes pixels of.
    ConvTranspose {
        x: TensorId,
        weights: Arc<Weights>,
        window: Window,
        groups: usize,
        spread: DepthToSpace,
    },
    Gemm {
        x: TensorId,
        weights: Arc<Weights>,
        twice: bool,
    },
    MaxPool {
        x: TensorId,
        window: Window,
    },
    AveragePool {
        x: TensorId,
        window: Option<Window>,
        count_include_pad: bool,
    },
    GlobalMaxPool {
        x: TensorId,
    },
    ReduceSum {
        x: TensorId,
    },
    Add {
        a: TensorId,
        b: TensorId,
    },
    Sub {
        a: TensorId,
        b: TensorId,
    },
    Mul {
        a: TensorId,
        b: TensorId,
    },
    Same {
        x: TensorId,
    },
    Map {
        x: TensorId,
        function: Expression,
    },
    PRelu {
        x: TensorId,
        slope: Arc<[f32]>,
    },
    Concat {
        xs: Vec<TensorId>,
    },
    /// Concatenation along height or width.
    Join {
        xs: Vec<TensorId>,
        side: usize,
    },
    /// Values that are only moved keep their quantization.
    Move {
        x: TensorId,
        op: Op,
    },
    ResizeLinear {
        x: TensorId,
        resize: Resize,
    },
}

#[derive(Clone)]
struct Pending {
    node: String,
    base: Base,
    residual: Option<TensorId>,
    clamp: Clamp,
    flat: bool,
}

enum Value<'a> {
    Constant(&'a TensorProto),
    DequantizedConstant(ConstQuant<'a>),
    Quantized(TensorId),
    Real { tensor: TensorId, flat: bool },
    Pending(Pending),
}

/// Scales and, where given, the integer type with its zero points.
type ScaleAndZeroPoint = (Vec<f32>, Option<(DataType, Vec<i32>)>);

/// Weights, the dimensions they have in the file, and whether each row holds two kernels whose sum they are: a Conv takes them so,
/// a Gemm gets its input twice.
type Stored = (Weights, Vec<usize>, bool);

/// An operation or the reason why it stays with tract.
type Match<T> = std::result::Result<T, String>;

#[derive(Default)]
struct Lowering<'a> {
    values: HashMap<&'a str, Value<'a>>,
    /// 1 + the highest region a float value depends on; absent: 0.
    float_level: HashMap<&'a str, usize>,
    tensors: Vec<Tensor>,
    level: Vec<usize>,
    /// A DequantizeLinear output of each tensor.
    real_name: Vec<Option<&'a str>>,
    nodes: Vec<Node>,
    bridges: HashMap<(TensorId, usize), TensorId>,
    why: HashMap<usize, String>,
}

/// Nodes that are to stay with tract, by label, and why.
pub type Excluded = BTreeMap<String, String>;

/// What a node is called in regions and reports: its name, or that of its first output.
fn label(node: &NodeProto) -> &str {
    if node.name.is_empty() { node.output.first().map_or("", String::as_str) } else { &node.name }
}

/// Splits a validated model. Nodes of `excluded` stay in float.
pub fn lower(model: &ModelProto, excluded: &Excluded) -> Result<Lowered> {
    let graph = graph(model)?;
    let mut l = Lowering::default();
    for t in &graph.initializer {
        l.values.insert(&t.name, Value::Constant(t));
    }
    for (index, node) in graph.node.iter().enumerate() {
        let visited = match excluded.get(label(node)) {
            Some(why) => Err(why.clone()),
            None => l.visit(node)?,
        };
        match visited {
            Ok(Some(value)) => {
                l.values.insert(&node.output[0], value);
            }
            Ok(None) => {}
            Err(why) => {
                l.why.insert(index, why);
            }
        }
        let level = l.node_level(node);
        for name in outputs(node) {
            l.float_level.insert(name, level);
        }
    }
    l.finish(model, graph)
}

/// Leaves a whole model to tract.
pub fn keep(model: ModelProto, why: &str) -> Result<Lowered> {
    let fallbacks = graph(&model)?.node.iter().map(|node| Fallback::new(node, why.to_owned())).collect();
    Ok(Lowered { regions: vec![], rest: model, fallbacks })
}

impl<'a> Lowering<'a> {
    /// What the node's first output is; `Ok(Ok(None))` for a plain float operator, `Ok(Err(why))` for a near miss.
    fn visit(&mut self, node: &'a NodeProto) -> Result<Match<Option<Value<'a>>>> {
        if INTEGER_OPS.contains(&(if is_default_domain(&node.domain) { "" } else { &node.domain }, &node.op_type)) {
            return self.integer_op(node);
        }
        if !is_default_domain(&node.domain) || node.output.first().is_none_or(|o| o.is_empty()) {
            return Ok(Err(format!("operator {} of domain {:?} has no int8 form", node.op_type, node.domain)));
        }
        if rules::rule(node).is_some() {
            self.settle_moved(node);
        }
        Ok(match node.op_type.as_str() {
            "Constant" => Ok(attr(node, "value").and_then(|a| a.t.as_ref()).map(Value::Constant)),
            "QuantizeLinear" => return self.quantize(node),
            "DequantizeLinear" => return self.dequantize(node),
            // Of integers, as QOperator models have it.
            "MaxPool" | "Flatten" if matches!(self.value(node, 0), Some(Value::Quantized(_))) => return self.integer_view(node),
            "Flatten" | "Reshape" | "Identity" | "Dropout" | "Squeeze" | "Transpose" | "Unsqueeze" => {
                Ok(self.view(node).or_else(|| self.rearrange(node).map(Value::Pending)))
            }
            "Split" => self.split(node).map(|parts| {
                let mut parts = node.output.iter().zip(parts);
                let first = parts.next();
                for (output, part) in parts.filter(|(o, _)| !o.is_empty()) {
                    self.values.insert(output, Value::Pending(part));
                }
                first.map(|(_, part)| Value::Pending(part))
            }),
            op => match rules::rule(node) {
                Some(rule) => (rule.lower)(self, node).map(|p| Some(Value::Pending(p))),
                None => Err(format!("operator {op} has no int8 form")),
            },
        })
    }

    /// Inputs that were only moved are quantized as they were before: no QuantizeLinear has to say so, and the canonical form has none there.
    fn settle_moved(&mut self, node: &'a NodeProto) {
        for name in inputs(node) {
            let Some(Value::Pending(p @ Pending { base: Base::Move { x, .. }, residual: None, .. })) = self.values.get(name) else {
                continue;
            };
            if p.clamp != Clamp::default() {
                continue;
            }
            let (p, quant, flat) = (p.clone(), self.tensors[*x].quant, p.flat);
            let tensor = self.emit(p, name, quant);
            self.real_name[tensor] = Some(name);
            self.values.insert(name, Value::Real { tensor, flat });
        }
    }

    fn value(&self, node: &NodeProto, i: usize) -> Option<&Value<'a>> {
        self.values.get(node.input.get(i).filter(|s| !s.is_empty())?.as_str())
    }

    fn constant(&self, node: &NodeProto, i: usize) -> Option<&'a TensorProto> {
        match self.value(node, i)? {
            Value::Constant(t) => Some(t),
            _ => None,
        }
    }

    /// The quantized tensor behind input `i`, and whether it is seen as a vector.
    fn real(&self, node: &NodeProto, i: usize) -> Match<(TensorId, bool)> {
        match self.value(node, i) {
            Some(Value::Real { tensor, flat }) => Ok((*tensor, *flat || self.tensors[*tensor].flat)),
            _ => Err(format!("input {i} is not quantized")),
        }
    }

    fn picture(&self, node: &NodeProto, i: usize) -> Match<TensorId> {
        match self.real(node, i)? {
            (t, false) => Ok(t),
            (_, true) => Err(format!("input {i} is a vector")),
        }
    }

    fn pending(&self, node: &NodeProto, base: Base) -> Pending {
        Pending { node: label(node).to_owned(), base, residual: None, clamp: Clamp::default(), flat: false }
    }

    fn node_level(&self, node: &NodeProto) -> usize {
        let of = |name: &str| match self.values.get(name) {
            Some(Value::Quantized(t) | Value::Real { tensor: t, .. }) => self.level[*t] + 1,
            Some(Value::Constant(_) | Value::DequantizedConstant(_)) => 0,
            _ => self.float_level.get(name).copied().unwrap_or(0),
        };
        inputs(node).map(of).max().unwrap_or(0)
    }

    fn new_tensor(&mut self, name: &str, quant: QuantParams, flat: bool, level: usize) -> TensorId {
        self.tensors.push(Tensor { name: name.to_owned(), quant, flat });
        self.level.push(level);
        self.real_name.push(None);
        self.tensors.len() - 1
    }
}
