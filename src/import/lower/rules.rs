//! One table of the operators that run in int8: what the runtime makes of a node between DequantizeLinear and QuantizeLinear, and when
//! `edge-quantize` may put them there. Both read this table, so that nothing is quantized which the runtime then leaves to tract.

use super::operators::{clamp_bounds, function, is_per_channel, is_spatial_mean};
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
    /// It computes each value from those at the same place: of functions of one tensor nothing is rounded in between.
    pub composes: bool,
}

const PLAIN: Rule = Rule {
    op: "",
    lower: |_, _| Err("it has no int8 form".into()),
    quantizable: |_, _| Ok(()),
    params: Params::Own,
    weighted: false,
    fuses_clamp: false,
    composes: false,
};

/// A function of each value.
const UNARY: Rule =
    Rule { lower: |l, n| l.map(n, function(n).ok_or("its attributes are unknown")?), quantizable: unary, composes: true, ..PLAIN };

/// Every operator that runs in int8.
pub const RULES: &[Rule] = &[
    Rule { op: "Conv", lower: |l, n| l.conv(n), quantizable: conv, weighted: true, fuses_clamp: true, ..PLAIN },
    Rule {
        op: "ConvTranspose",
        lower: |l, n| l.conv_transpose(n),
        quantizable: conv_transpose,
        weighted: true,
        fuses_clamp: true,
        ..PLAIN
    },
    Rule { op: "Gemm", lower: |l, n| l.gemm(n), quantizable: gemm, weighted: true, fuses_clamp: true, ..PLAIN },
    // The quantizer makes a Gemm of it first.
    Rule { op: "MatMul", lower: |l, n| l.mat_mul(n), quantizable: |_, _| Err("it is no product with a constant matrix".into()), ..PLAIN },
    Rule { op: "MaxPool", lower: |l, n| l.pool(n, true), quantizable: max_pool, params: Params::OfInput, ..PLAIN },
    Rule { op: "AveragePool", lower: |l, n| l.pool(n, false), quantizable: average_pool, ..PLAIN },
    Rule { op: "GlobalAveragePool", lower: |l, n| l.global_average_pool(n), ..PLAIN },
    Rule { op: "GlobalMaxPool", lower: |l, n| l.global_max_pool(n), quantizable: picture, params: Params::OfInput, ..PLAIN },
    Rule { op: "ReduceMean", lower: |l, n| l.reduce(n, mean), quantizable: reduce, ..PLAIN },
    Rule { op: "ReduceSum", lower: |l, n| l.reduce(n, |x| Base::ReduceSum { x }), quantizable: reduce, ..PLAIN },
    Rule {
        op: "ReduceMax",
        lower: |l, n| l.reduce(n, |x| Base::GlobalMaxPool { x }),
        quantizable: reduce,
        params: Params::OfInput,
        ..PLAIN
    },
    Rule { op: "Add", lower: |l, n| l.add(n), quantizable: binary, fuses_clamp: true, composes: true, ..PLAIN },
    Rule { op: "Sub", lower: |l, n| l.arithmetic(n, Arithmetic::Sub), quantizable: binary, fuses_clamp: true, composes: true, ..PLAIN },
    Rule { op: "Mul", lower: |l, n| l.arithmetic(n, Arithmetic::Mul), quantizable: binary, fuses_clamp: true, composes: true, ..PLAIN },
    Rule { op: "Div", lower: |l, n| l.arithmetic(n, Arithmetic::Div), quantizable: with_scalar, composes: true, ..PLAIN },
    Rule { op: "Pow", lower: |l, n| l.arithmetic(n, Arithmetic::Pow), quantizable: with_scalar, composes: true, ..PLAIN },
    Rule { op: "Relu", lower: |l, n| l.clamp(n, 0.0, f32::INFINITY), composes: true, ..PLAIN },
    Rule { op: "Clip", lower: |l, n| l.clip(n), quantizable: clip, composes: true, ..PLAIN },
    Rule { op: "Concat", lower: |l, n| l.concat(n), quantizable: concat, params: Params::Joint, ..PLAIN },
    Rule { op: "Slice", lower: |l, n| l.slice(n), quantizable: slice, params: Params::OfInput, ..PLAIN },
    // Lowered output by output, before this table is asked.
    Rule { op: "Split", quantizable: split, params: Params::OfInput, ..PLAIN },
    Rule { op: "Pad", lower: |l, n| l.pad(n), quantizable: pad, params: Params::OfInput, ..PLAIN },
    Rule { op: "DepthToSpace", lower: |l, n| l.depth_to_space(n), quantizable: picture, params: Params::OfInput, ..PLAIN },
    Rule { op: "SpaceToDepth", lower: |l, n| l.space_to_depth(n), quantizable: picture, params: Params::OfInput, ..PLAIN },
    Rule { op: "Resize", lower: |l, n| l.resize(n), quantizable: resize, params: Params::OfInput, ..PLAIN },
    Rule { op: "Abs", ..UNARY },
    Rule { op: "Celu", ..UNARY },
    Rule { op: "Elu", ..UNARY },
    Rule { op: "Erf", ..UNARY },
    Rule { op: "Exp", ..UNARY },
    Rule { op: "Gelu", ..UNARY },
    Rule { op: "HardSigmoid", ..UNARY },
    Rule { op: "LeakyRelu", ..UNARY },
    Rule { op: "Log", ..UNARY },
    Rule { op: "Mish", ..UNARY },
    Rule { op: "Neg", ..UNARY },
    Rule { op: "Reciprocal", ..UNARY },
    Rule { op: "Selu", ..UNARY },
    Rule { op: "Sigmoid", ..UNARY },
    Rule { op: "Softplus", ..UNARY },
    Rule { op: "Softsign", ..UNARY },
    Rule { op: "Sqrt", ..UNARY },
    Rule { op: "Tanh", ..UNARY },
    Rule { op: "HardSwish", lower: |l, n| l.hard_swish(n), ..UNARY },
    Rule { op: "PRelu", lower: |l, n| l.prelu(n), quantizable: prelu, ..PLAIN },
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
    let activation = |n: &String| !facts.constants.contains_key(n.as_str()) && facts.shapes.contains_key(n);
    let rule = rule(node);
    // Arithmetic has its constant on either side.
    let reads = if rule.is_some_and(|r| r.composes) { node.input.len() } else { 1 };
    if !node.input.iter().take(reads).any(activation) {
        return Err("its first input is no float activation".into());
    }
    let rule = rule.ok_or_else(|| format!("{} has no int8 form here", node.op_type))?;
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

fn conv_transpose(node: &NodeProto, f: &Facts<'_>) -> Result<(), String> {
    conv(node, f)?;
    let Some(&[_, _, h, w]) = f.constant(node, 1).map(|t| t.dims.as_slice()) else { return Err("its weights are no pictures".into()) };
    let kernel = [h, w].map(|n| usize::try_from(n).unwrap_or(0));
    if kernel.contains(&0) { Err("its kernel is empty".into()) } else { super::transposed::sides(node, kernel).map(|_| ()) }
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

fn mean(x: TensorId) -> Base {
    Base::AveragePool { x, window: None, count_include_pad: false }
}

/// Whether the runtime has a layout for this shape.
fn has_layout(shape: Option<&[usize]>) -> bool {
    matches!(shape, Some([1, _] | [1, _, _, _]))
}

fn picture(node: &NodeProto, f: &Facts<'_>) -> Result<(), String> {
    match f.shape(node, 0) {
        Some([1, _, _, _]) => Ok(()),
        other => Err(format!("its input {other:?} is no picture [1, C, H, W]")),
    }
}

fn unary(node: &NodeProto, f: &Facts<'_>) -> Result<(), String> {
    if node.op_type != "HardSwish" && function(node).is_none() {
        return Err("its attributes are unknown".into());
    }
    if !has_layout(f.shape(node, 0)) { Err("its input is neither a picture nor a vector".into()) } else { Ok(()) }
}

/// Arithmetic with one number.
fn with_scalar(node: &NodeProto, f: &Facts<'_>) -> Result<(), String> {
    for (i, other) in [(0, 1), (1, 0)] {
        let Some(t) = f.constant(node, other) else { continue };
        let shape = f.shape(node, i);
        let float = t.data_type == DataType::Float as i32;
        if float && has_layout(shape) && t.dims.iter().all(|&d| d == 1) && shape.is_some_and(|s| t.dims.len() <= s.len()) {
            return Ok(());
        }
    }
    Err("not of an activation and one float32 number".into())
}

/// Arithmetic with one number, or of two activations.
fn binary(node: &NodeProto, f: &Facts<'_>) -> Result<(), String> {
    if node.input.iter().any(|n| f.constants.contains_key(n.as_str())) {
        return with_scalar(node, f);
    }
    let (a, b) = (f.shape(node, 0), f.shape(node, 1));
    let fits = match (a, b) {
        (Some([_, a @ ..]), Some([_, b @ ..])) if a.len() == 3 && b.len() == 3 => {
            a.iter().zip(b).all(|(&x, &y)| x == y || x == 1 || y == 1)
        }
        (a, b) => a.is_some() && a == b,
    };
    if fits && has_layout(a) { Ok(()) } else { Err("its operands are not two activations of one shape, or of shapes that fit".into()) }
}

fn prelu(node: &NodeProto, f: &Facts<'_>) -> Result<(), String> {
    let slope = f.constant(node, 1).filter(|t| t.data_type == DataType::Float as i32);
    match (slope, f.shape(node, 0)) {
        (Some(t), shape) if has_layout(shape) && t.dims.iter().all(|&d| d == 1) => Ok(()),
        (Some(t), Some(&[1, c, _, _])) if is_per_channel(&t.dims) && t.dims.contains(&(c as i64)) => Ok(()),
        _ => Err("its slope is no constant with one number, or with one for each channel".into()),
    }
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

fn reduce(node: &NodeProto, f: &Facts<'_>) -> Result<(), String> {
    let spatial = is_spatial_mean(node, f.constant(node, 1), f.shape(node, 0).map(<[usize]>::len));
    if spatial { Ok(()) } else { Err("not over height and width".into()) }
}

fn clip(node: &NodeProto, f: &Facts<'_>) -> Result<(), String> {
    clamp_bounds(node, |name| f.constants.get(name).copied()).map(|_| ()).ok_or_else(|| "its bounds are computed".into())
}

fn constants(node: &NodeProto, f: &Facts<'_>, operands: std::ops::Range<usize>) -> Result<(), String> {
    let computed = operands.into_iter().find(|&i| !Facts::absent(node, i) && f.constant(node, i).is_none());
    computed.map_or(Ok(()), |i| Err(format!("its input {i} is computed")))
}

/// Along channels, height or width, by constants; the batch stays.
fn slice(node: &NodeProto, f: &Facts<'_>) -> Result<(), String> {
    picture(node, f)?;
    constants(node, f, 1..5)?;
    let axes = f.constant(node, 3).and_then(|t| i64_data(t).ok());
    match axes {
        Some(axes) if axes.iter().all(|a| matches!(a, 1..=3 | -3..=-1)) => Ok(()),
        _ => Err("its axes are not channels, height or width".into()),
    }
}

fn split(node: &NodeProto, f: &Facts<'_>) -> Result<(), String> {
    picture(node, f)?;
    constants(node, f, 1..2)?;
    if matches!(attr_int(node, "axis", 0), 1..=3 | -3..=-1) { Ok(()) } else { Err("its axis is not channels, height or width".into()) }
}

fn pad(node: &NodeProto, f: &Facts<'_>) -> Result<(), String> {
    picture(node, f)?;
    constants(node, f, 1..4)?;
    let zero = f.constant(node, 2).is_none_or(|t| f32_data(t).is_ok_and(|v| v.iter().all(|&v| v == 0.0)));
    let constant = attr(node, "mode").is_none_or(|a| a.s == b"constant");
    if zero || !constant { Ok(()) } else { Err("it pads with other numbers than zero".into()) }
}

fn resize(node: &NodeProto, f: &Facts<'_>) -> Result<(), String> {
    picture(node, f)?;
    constants(node, f, 2..4)?;
    super::movers::resize_attributes(node)
}

fn concat(node: &NodeProto, f: &Facts<'_>) -> Result<(), String> {
    let pictures = inputs(node).all(|n| f.shapes.get(n).is_some_and(|s| s.len() == 4) && !f.constants.contains_key(n));
    if !pictures || !matches!(attr_int(node, "axis", 0), 1..=3 | -3..=-1) {
        return Err("it does not join channels, rows or columns of activations".into());
    }
    Ok(())
}
