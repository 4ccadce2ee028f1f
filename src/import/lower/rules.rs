//! One table of the operators that run in int8: what the runtime makes of a node between DequantizeLinear and QuantizeLinear, and when
//! `edge-quantize` may put them there. Both read this table, so that nothing is quantized which the runtime then leaves to tract.

use super::operators::{clamp_bounds, hard_sigmoid, is_spatial_mean};
use super::*;

/// Shape of every f32 tensor of a graph, batch 1.
pub type Shapes = HashMap<String, Vec<usize>>;

/// What the quantizer knows of a float graph.
pub struct Facts<'a> {
    /// Initializers by name.
    pub constants: &'a HashMap<&'a str, &'a TensorProto>,
    /// Shapes of activations.
    pub shapes: &'a Shapes,
    /// How often each tensor is read.
    pub used: &'a HashMap<String, usize>,
}

impl Facts<'_> {
    fn constant(&self, node: &NodeProto, i: usize) -> Option<&TensorProto> {
        self.constants.get(node.input.get(i)?.as_str()).copied()
    }

    fn constant_f32(&self, node: &NodeProto, i: usize) -> bool {
        self.constant(node, i).is_some_and(|t| t.data_type == DataType::Float as i32)
    }

    fn absent(node: &NodeProto, i: usize) -> bool {
        node.input.get(i).is_none_or(|s| s.is_empty())
    }

    fn shape(&self, node: &NodeProto, i: usize) -> Option<&[usize]> {
        self.shapes.get(node.input.get(i)?).map(Vec::as_slice)
    }
}

/// Where an output's scale and zero point come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Params {
    /// From its own range.
    Own,
    /// Those of its first input: it holds no other values.
    OfInput,
    /// Best the same as those of all its inputs: then nothing needs to be moved.
    Joint,
}

type Lower = for<'a> fn(&Lowering<'a>, &NodeProto) -> Match<Pending>;
type Quantizable = fn(&NodeProto, &Facts<'_>) -> Result<(), String>;

/// An operator that runs in int8.
pub struct Rule {
    /// ONNX's name.
    pub op: &'static str,
    /// What the runtime makes of it.
    pub(super) lower: Lower,
    /// Why a float node cannot be quantized, if it cannot. Its first input is known to be a float activation.
    pub quantizable: Quantizable,
    /// Scale and zero point of the output.
    pub params: Params,
    /// Its second input, and its third, are weights and bias.
    pub weighted: bool,
    /// A Relu or Clip after it needs no rounding in between.
    pub fuses_clamp: bool,
}

const PLAIN: Rule = Rule {
    op: "",
    lower: |_, _| Err("it has no int8 form".into()),
    quantizable: |_, _| Ok(()),
    params: Params::Own,
    weighted: false,
    fuses_clamp: false,
};

/// Every operator that runs in int8.
pub const RULES: &[Rule] = &[
    Rule { op: "Conv", lower: |l, n| l.conv(n), quantizable: conv, weighted: true, fuses_clamp: true, ..PLAIN },
    Rule { op: "Gemm", lower: |l, n| l.gemm(n), quantizable: gemm, weighted: true, fuses_clamp: true, ..PLAIN },
    // The quantizer makes a Gemm of it first.
    Rule { op: "MatMul", lower: |l, n| l.mat_mul(n), quantizable: |_, _| Err("it is no product with a constant matrix".into()), ..PLAIN },
    Rule { op: "MaxPool", lower: |l, n| l.pool(n, true), quantizable: max_pool, params: Params::OfInput, ..PLAIN },
    Rule { op: "AveragePool", lower: |l, n| l.pool(n, false), quantizable: average_pool, ..PLAIN },
    Rule { op: "GlobalAveragePool", lower: |l, n| l.global_average_pool(n), ..PLAIN },
    Rule { op: "ReduceMean", lower: |l, n| l.reduce_mean(n), quantizable: reduce_mean, ..PLAIN },
    Rule { op: "Add", lower: |l, n| l.add(n), quantizable: add, fuses_clamp: true, ..PLAIN },
    Rule { op: "Relu", lower: |l, n| l.clamp(n, 0.0, f32::INFINITY), ..PLAIN },
    Rule { op: "Clip", lower: |l, n| l.clip(n), quantizable: clip, ..PLAIN },
    Rule { op: "Concat", lower: |l, n| l.concat(n), quantizable: concat, params: Params::Joint, ..PLAIN },
    Rule { op: "Sigmoid", lower: |l, n| l.map(n, Function::Sigmoid, false), ..PLAIN },
    Rule { op: "HardSigmoid", lower: |l, n| l.map(n, hard_sigmoid(n), false), ..PLAIN },
    Rule { op: "HardSwish", lower: |l, n| l.map(n, Function::HardSigmoid { alpha: 1.0 / 6.0, beta: 0.5 }, true), ..PLAIN },
    // Of a value and its own sigmoid; the quantizer leaves it in float.
    Rule { op: "Mul", lower: |l, n| l.gate(n), quantizable: |_, _| Err("Mul has no int8 form here".into()), ..PLAIN },
];

/// The rule of a node of ONNX's own operators, if it has one.
pub fn rule(node: &NodeProto) -> Option<&'static Rule> {
    RULES.iter().find(|r| is_op(node, r.op))
}

/// The rule of a float node that may be quantized, or why it may not.
pub fn quantizable(node: &NodeProto, facts: &Facts<'_>) -> Result<&'static Rule, String> {
    if !is_default_domain(&node.domain) {
        return Err(format!("operator of domain {}", node.domain));
    }
    if node.input.first().is_none_or(|n| facts.constants.contains_key(n.as_str()) || !facts.shapes.contains_key(n)) {
        return Err("its first input is no float activation".into());
    }
    let rule = rule(node).ok_or_else(|| format!("{} has no int8 form here", node.op_type))?;
    (rule.quantizable)(node, facts)?;
    Ok(rule)
}

fn conv(node: &NodeProto, f: &Facts<'_>) -> Result<(), String> {
    if !f.constant_f32(node, 1) {
        return Err("its weights are computed or not float32".into());
    }
    if !Facts::absent(node, 2) && !f.constant_f32(node, 2) {
        return Err("its bias is computed or not float32".into());
    }
    match f.shape(node, 0) {
        Some([_, _, _, _]) => Ok(()),
        other => Err(format!("its input {other:?} is no picture [1, C, H, W]")),
    }
}

fn gemm(node: &NodeProto, f: &Facts<'_>) -> Result<(), String> {
    let canonical = attr_int(node, "transA", 0) == 0
        && attr_int(node, "transB", 0) == 1
        && attr_float(node, "alpha", 1.0) == 1.0
        && attr_float(node, "beta", 1.0) == 1.0;
    if !canonical || !f.constant_f32(node, 1) || (!Facts::absent(node, 2) && !f.constant_f32(node, 2)) {
        return Err("its weights or bias are computed, or its first input is transposed".into());
    }
    Ok(())
}

fn add(node: &NodeProto, f: &Facts<'_>) -> Result<(), String> {
    let (a, b) = (f.shape(node, 0), f.shape(node, 1));
    let constant = node.input.iter().any(|n| f.constants.contains_key(n.as_str()));
    if constant || a.is_none() || a != b { Err("not a sum of two activations of equal shape".into()) } else { Ok(()) }
}

fn max_pool(node: &NodeProto, f: &Facts<'_>) -> Result<(), String> {
    if outputs(node).skip(1).any(|o| f.used.contains_key(o)) { Err("its indices are used".into()) } else { Ok(()) }
}

fn average_pool(node: &NodeProto, _: &Facts<'_>) -> Result<(), String> {
    match attr(node, "auto_pad") {
        Some(a) if !matches!(a.s.as_slice(), b"" | b"NOTSET" | b"VALID") => Err("its padding is automatic".into()),
        _ => Ok(()),
    }
}

fn reduce_mean(node: &NodeProto, f: &Facts<'_>) -> Result<(), String> {
    let spatial = is_spatial_mean(node, f.constant(node, 1), f.shape(node, 0).map(<[usize]>::len));
    if spatial { Ok(()) } else { Err("not a mean over height and width".into()) }
}

fn clip(node: &NodeProto, f: &Facts<'_>) -> Result<(), String> {
    clamp_bounds(node, |name| f.constants.get(name).copied()).map(|_| ()).ok_or_else(|| "its bounds are computed".into())
}

fn concat(node: &NodeProto, f: &Facts<'_>) -> Result<(), String> {
    let pictures = inputs(node).all(|n| f.shapes.get(n).is_some_and(|s| s.len() == 4) && !f.constants.contains_key(n));
    if !pictures || attr_int(node, "axis", 0) != 1 { Err("it does not join the channels of activations".into()) } else { Ok(()) }
}
