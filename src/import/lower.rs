//! Finds the quantized part of an ONNX graph and takes it out.
//!
//! Matching happens on ONNX's own nodes, before tract sees them: the standard fixes their meaning, whereas tract
//! expands per-axis DequantizeLinear, Gemm and pooling into primitive operators that change between versions.
//! A float value is *real* if it is the DequantizeLinear of a quantized tensor, *pending* if it is an operation on
//! real values whose result awaits its QuantizeLinear; everything else stays with tract.
//!
//! Regions are numbered by level: a QuantizeLinear of a float that depends on region `n` opens region `n + 1`, so that
//! regions and float islands between them never wait for each other in a circle.

use super::onnx::*;
use crate::graph::{Clamp, DType, Function, Graph, Map, Node, Op, QuantParams, Tensor, TensorId, Weights, Window};
use crate::{Error, Result};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use tract_onnx::pb::tensor_proto::DataType;

/// `op_type` of the node that stands for a region in the remaining graph.
pub const REGION_OP: &str = "EdgeInt8Region";

/// Operators on integer tensors, by domain: ONNX's, and those that ONNX Runtime's quantizer writes.
const INTEGER_OPS: &[(&str, &str)] = &[
    ("", "QLinearConv"),
    ("", "QLinearMatMul"),
    ("com.microsoft", "QLinearAdd"),
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
        let name = if node.name.is_empty() { node.output.first().cloned().unwrap_or_default() } else { node.name.clone() };
        Fallback { name, op: node.op_type.clone(), why }
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
    Conv { x: TensorId, weights: Arc<Weights>, window: Window, groups: usize },
    Gemm { x: TensorId, weights: Arc<Weights>, twice: bool },
    MaxPool { x: TensorId, window: Window },
    AveragePool { x: TensorId, window: Option<Window>, count_include_pad: bool },
    Add { a: TensorId, b: TensorId },
    Same { x: TensorId },
    Map { x: TensorId, map: Map },
    Concat { xs: Vec<TensorId> },
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

/// Splits a validated model.
pub fn lower(model: &ModelProto) -> Result<Lowered> {
    let graph = graph(model)?;
    let mut l = Lowering::default();
    for t in &graph.initializer {
        l.values.insert(&t.name, Value::Constant(t));
    }
    for (index, node) in graph.node.iter().enumerate() {
        match l.visit(node)? {
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
        let some = |p: Match<Pending>| p.map(|p| Some(Value::Pending(p)));
        Ok(match node.op_type.as_str() {
            "Constant" => Ok(attr(node, "value").and_then(|a| a.t.as_ref()).map(Value::Constant)),
            "QuantizeLinear" => return self.quantize(node),
            "DequantizeLinear" => return self.dequantize(node),
            "Conv" => some(self.conv(node)),
            "Gemm" => some(self.gemm(node)),
            "MatMul" => some(self.mat_mul(node)),
            // Of integers, as QOperator models have it.
            "MaxPool" | "Flatten" if matches!(self.value(node, 0), Some(Value::Quantized(_))) => return self.integer_view(node),
            "MaxPool" => some(self.pool(node, true)),
            "AveragePool" => some(self.pool(node, false)),
            "GlobalAveragePool" => {
                some(self.real(node, 0).map(|(x, _)| self.pending(node, Base::AveragePool { x, window: None, count_include_pad: false })))
            }
            "ReduceMean" => some(self.reduce_mean(node)),
            "Add" => some(self.add(node)),
            "Relu" => some(self.clamp(node, 0.0, f32::INFINITY)),
            "Clip" => some(self.clip(node)),
            "Concat" => some(self.concat(node)),
            "Sigmoid" => some(self.map(node, Function::Sigmoid, false)),
            "HardSigmoid" => some(self.map(node, hard_sigmoid(node), false)),
            "HardSwish" => some(self.map(node, Function::HardSigmoid { alpha: 1.0 / 6.0, beta: 0.5 }, true)),
            "Mul" => some(self.gate(node)),
            "Flatten" | "Reshape" | "Identity" | "Dropout" | "Squeeze" => Ok(self.view(node)),
            op => Err(format!("operator {op} has no int8 form")),
        })
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
        Pending {
            node: if node.name.is_empty() { node.output[0].clone() } else { node.name.clone() },
            base,
            residual: None,
            clamp: Clamp::default(),
            flat: false,
        }
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

    // ---- Q and DQ ----

    /// Scale (input `i`) and zero point (the next) of a tensor: one per channel or one at all.
    fn params(&self, node: &'a NodeProto, i: usize) -> Result<Match<ScaleAndZeroPoint>> {
        if attr_int(node, "block_size", 0) != 0 {
            return Ok(Err("blocked quantization is not supported".into()));
        }
        let Some(scale) = self.constant(node, i) else {
            if node.input.get(i).is_none_or(|s| s.is_empty()) {
                return Err(node_error(node, "its scale is missing"));
            }
            return Ok(Err("its scale is computed".into()));
        };
        if scale.data_type != DataType::Float as i32 {
            return Ok(Err("its scale is not float32".into()));
        }
        let scale = f32_data(scale)?;
        if scale.is_empty() || scale.iter().any(|s| !(s.is_normal() && *s > 0.0)) {
            return Err(node_error(
                node,
                format!("its scale must be positive and finite, not {:?}", scale.iter().find(|s| !(s.is_normal() && **s > 0.0))),
            ));
        }
        let zero_point = match (node.input.get(i + 1).filter(|s| !s.is_empty()), self.constant(node, i + 1)) {
            (None, _) => None,
            (Some(_), None) => return Ok(Err("its zero point is computed".into())),
            (Some(_), Some(t)) => match int_data(t)? {
                Some(values) => Some(values),
                None => return Ok(Err("its type is not int8, uint8 or int32".into())),
            },
        };
        if let Some((_, z)) = &zero_point
            && z.len() != scale.len()
        {
            return Err(node_error(node, format!("{} scales but {} zero points", scale.len(), z.len())));
        }
        Ok(Ok((scale, zero_point)))
    }

    /// Quantization of an activation whose scale is input `i`.
    fn quant_params(&self, node: &'a NodeProto, i: usize) -> Result<Match<QuantParams>> {
        let (scale, zero_point) = match self.params(node, i)? {
            Ok(p) => p,
            Err(why) => return Ok(Err(why)),
        };
        let (dtype, zero_point) = match zero_point {
            Some((DataType::Uint8, z)) => (DType::U8, z),
            Some((DataType::Int8, z)) => (DType::I8, z),
            None => match attr_int(node, "output_dtype", 0) {
                0 | 2 => (DType::U8, vec![0]),
                3 => (DType::I8, vec![0]),
                _ => return Ok(Err("its type is not int8 or uint8".into())),
            },
            _ => return Ok(Err("its type is not int8 or uint8".into())),
        };
        if scale.len() != 1 {
            return Ok(Err("activations quantized per channel are not supported".into()));
        }
        Ok(Ok(QuantParams { dtype, scale: scale[0], zero_point: zero_point[0] }))
    }

    fn quantize(&mut self, node: &'a NodeProto) -> Result<Match<Option<Value<'a>>>> {
        let quant = match self.quant_params(node, 1)? {
            Ok(q) => q,
            Err(why) => return Ok(Err(why)),
        };
        let Some(source) = node.input.first() else { return Err(node_error(node, "its input is missing")) };
        let output = node.output[0].as_str();
        let pending = match self.values.get(source.as_str()) {
            Some(Value::Constant(_) | Value::DequantizedConstant(_)) => return Ok(Err("it quantizes a constant".into())),
            Some(Value::Quantized(_)) => return Err(node_error(node, "its input is an integer tensor")),
            Some(Value::Real { tensor, flat }) => {
                let flat = *flat;
                Some(Pending { flat, ..self.pending(node, Base::Same { x: *tensor }) })
            }
            Some(Value::Pending(p)) => Some(p.clone()),
            None => None,
        };
        let id = match pending {
            Some(p) => self.emit(p, output, quant),
            None => {
                let level = self.float_level.get(source.as_str()).copied().unwrap_or(0);
                let id = self.new_tensor(output, quant, false, level);
                self.nodes.push(Node {
                    name: node.name.clone(),
                    op: Op::Quantize { source: source.clone() },
                    inputs: vec![],
                    output: Some(id),
                });
                id
            }
        };
        Ok(Ok(Some(Value::Quantized(id))))
    }

    fn dequantize(&mut self, node: &'a NodeProto) -> Result<Match<Option<Value<'a>>>> {
        let (scale, zero_point) = match self.params(node, 1)? {
            Ok(p) => p,
            Err(why) => return Ok(Err(why)),
        };
        Ok(match self.value(node, 0) {
            Some(Value::Constant(tensor)) => {
                let zero_point = zero_point.map_or(vec![0; scale.len()], |(_, z)| z);
                Ok(Some(Value::DequantizedConstant(ConstQuant { tensor, scale, zero_point, axis: attr_int(node, "axis", 1) })))
            }
            Some(&Value::Quantized(t)) => {
                let q = self.tensors[t].quant;
                if scale != [q.scale] || zero_point.map_or(0, |(_, z)| z[0]) != q.zero_point {
                    return Ok(Err("its scale or zero point differ from the QuantizeLinear before it".into()));
                }
                self.real_name[t].get_or_insert(node.output[0].as_str());
                Ok(Some(Value::Real { tensor: t, flat: false }))
            }
            _ => Err("its input is not a quantized tensor".into()),
        })
    }

    // ---- operators on integers (QOperator form): DequantizeLinear, operator and QuantizeLinear in one node ----

    /// The quantized tensor at input `i`; the node must state its own scale and zero point.
    fn integer(&self, node: &'a NodeProto, i: usize) -> Result<Match<TensorId>> {
        Ok(match (self.value(node, i), self.quant_params(node, i + 1)?) {
            (Some(&Value::Quantized(t)), Ok(q)) if q == self.tensors[t].quant => Ok(t),
            (Some(Value::Quantized(_)), Ok(_)) => Err(format!("the scale or zero point of input {i} differ from those it was made with")),
            (_, Err(why)) => Err(why),
            _ => Err(format!("input {i} is not quantized")),
        })
    }

    /// The weights at input `i`, their scale and zero point next, and an int32 bias at input `bias`.
    fn integer_weights(&self, node: &'a NodeProto, i: usize, rank: usize, out_axis: usize, bias: usize) -> Result<Match<Stored>> {
        let (scale, zero_point) = match self.params(node, i + 1)? {
            Ok(p) => p,
            Err(why) => return Ok(Err(why)),
        };
        let Some(tensor) = self.constant(node, i) else { return Ok(Err("its weights are computed".into())) };
        let zero_point = zero_point.map_or(vec![0; scale.len()], |(_, z)| z);
        let (mut weights, dims, twice) =
            match Self::constant_weights(&ConstQuant { tensor, scale, zero_point, axis: out_axis as i64 }, rank, out_axis) {
                Ok(w) => w,
                Err(why) => return Ok(Err(why)),
            };
        if node.input.get(bias).is_some_and(|s| !s.is_empty()) {
            match self.constant(node, bias).map(int_data).transpose()?.flatten() {
                Some((DataType::Int32, values)) if values.len() == weights.out => weights.bias = values,
                _ => return Ok(Err("its bias is not one int32 constant per channel".into())),
            }
        }
        Ok(Ok((weights, dims, twice)))
    }

    fn integer_op(&mut self, node: &'a NodeProto) -> Result<Match<Option<Value<'a>>>> {
        macro_rules! need {
            ($result:expr) => {
                match $result {
                    Ok(value) => value,
                    Err(why) => return Ok(Err(why.into())),
                }
            };
        }
        let flat = |l: &Self, t: TensorId| l.tensors[t].flat;
        let (pending, quant_at) = match node.op_type.as_str() {
            "QLinearConv" => {
                let x = need!(self.integer(node, 0)?);
                let (weights, dims, _) = need!(self.integer_weights(node, 3, 4, 0, 8)?);
                if flat(self, x) {
                    return Ok(Err("input 0 is a vector".into()));
                }
                let (window, groups) = (need!(window(node, Some([dims[2], dims[3]]))), need!(groups(node, &weights)));
                (self.pending(node, Base::Conv { x, weights: Arc::new(weights), window, groups }), 6)
            }
            "QLinearMatMul" | "QGemm" => {
                let x = need!(self.integer(node, 0)?);
                if !flat(self, x) || attr_int(node, "transA", 0) != 0 || attr_float(node, "alpha", 1.0) != 1.0 {
                    return Ok(Err("its input is not known to be a vector, or transA or alpha are set".into()));
                }
                let gemm = node.op_type == "QGemm";
                let out_axis = if gemm && attr_int(node, "transB", 0) != 0 { 0 } else { 1 };
                let (weights, _, twice) = need!(self.integer_weights(node, 3, 2, out_axis, if gemm { 6 } else { usize::MAX })?);
                let p = Pending { flat: true, ..self.pending(node, Base::Gemm { x, weights: Arc::new(weights), twice }) };
                if gemm && node.input.get(7).is_none_or(|s| s.is_empty()) {
                    return Ok(Ok(Some(Value::Pending(p)))); // its result is float
                }
                (p, if gemm { 7 } else { 6 })
            }
            "QLinearAdd" => {
                let (a, b) = (need!(self.integer(node, 0)?), need!(self.integer(node, 3)?));
                (Pending { flat: flat(self, a) && flat(self, b), ..self.pending(node, Base::Add { a, b }) }, 6)
            }
            _ => {
                let x = need!(self.integer(node, 0)?);
                if attr_int(node, "channels_last", 0) != 0 {
                    return Ok(Err("its channels come last".into()));
                }
                let window = if node.op_type == "QLinearAveragePool" { Some(need!(window(node, None))) } else { None };
                let count_include_pad = attr_int(node, "count_include_pad", 0) != 0;
                (self.pending(node, Base::AveragePool { x, window, count_include_pad }), 3)
            }
        };
        let quant = need!(self.quant_params(node, quant_at)?);
        Ok(Ok(Some(Value::Quantized(self.emit(pending, &node.output[0], quant)))))
    }

    /// MaxPool and Flatten keep the quantization of the integers they get.
    fn integer_view(&mut self, node: &'a NodeProto) -> Result<Match<Option<Value<'a>>>> {
        let Some(&Value::Quantized(x)) = self.value(node, 0) else { return Ok(Ok(None)) };
        let pending = if node.op_type == "MaxPool" {
            match window(node, None) {
                Ok(window) if node.output.len() == 1 => self.pending(node, Base::MaxPool { x, window }),
                Ok(_) => return Ok(Err("indices are asked for".into())),
                Err(why) => return Ok(Err(why)),
            }
        } else if attr_int(node, "axis", 1) == 1 {
            Pending { flat: true, ..self.pending(node, Base::Same { x }) }
        } else {
            return Ok(Err("it flattens another axis than the first".into()));
        };
        let quant = self.tensors[x].quant;
        Ok(Ok(Some(Value::Quantized(self.emit(pending, &node.output[0], quant)))))
    }

    // ---- operators ----

    /// Weights of an operator in QDQ form.
    fn weights(&self, node: &NodeProto, rank: usize, out_axis: usize) -> Match<Stored> {
        match self.value(node, 1) {
            Some(Value::DequantizedConstant(w)) => Self::constant_weights(w, rank, out_axis),
            _ => Err("its weights are not a quantized constant".into()),
        }
    }

    /// Weights with `out_axis` as output channels: `[out, …]` signed bytes, and one scale each.
    fn constant_weights(w: &ConstQuant<'_>, rank: usize, out_axis: usize) -> Match<Stored> {
        let dims = tensor_dims(w.tensor).map_err(|e| e.to_string())?;
        let (dtype, values) = int_data(w.tensor).map_err(|e| e.to_string())?.ok_or("its weights are not integers")?;
        if dims.len() != rank || dims.contains(&0) {
            return Err(format!("its weights have shape {dims:?}"));
        }
        let out = dims[out_axis];
        let axis = if w.axis < 0 { w.axis + rank as i64 } else { w.axis };
        if w.scale.len() != 1 && (axis != out_axis as i64 || w.scale.len() != out) {
            return Err(format!("its weights are quantized along axis {axis}, not per output channel"));
        }
        if !matches!(dtype, DataType::Int8 | DataType::Uint8) || ![1, out].contains(&w.zero_point.len()) {
            return Err("its weights are not 8-bit, or their zero points do not match".into());
        }
        let per_out = values.len() / out;
        // Distances from the zero point, output channels outermost.
        let at = |o: usize, k: usize| values[if out_axis == 0 { o * per_out + k } else { k * out + o }];
        let zero = |o: usize| w.zero_point[if w.zero_point.len() == 1 { 0 } else { o }];
        let distances = || (0..out).flat_map(|o| (0..per_out).map(move |k| (o, k))).map(|(o, k)| at(o, k) - zero(o));
        let byte = |d: i32| i8::try_from(d).ok();
        let (data, twice) = match distances().map(byte).collect::<Option<Vec<i8>>>() {
            Some(data) => (data, false),
            // Asymmetric weights need nine bits: the sum of two signed bytes, each multiplied with the same input.
            None if distances().all(|d| d.abs() <= 254) => {
                let rows = (0..out).flat_map(|o| {
                    let half = move |k: usize| (at(o, k) - zero(o)) / 2;
                    (0..per_out).map(half).chain((0..per_out).map(move |k| at(o, k) - zero(o) - half(k)))
                });
                (rows.map(|d| d as i8).collect(), true)
            }
            None => return Err("its weights reach 255 steps from their zero point; quantize them symmetrically".into()),
        };
        let per_out = data.len() / out;
        let scale = if w.scale.len() == 1 { vec![w.scale[0]; out] } else { w.scale.clone() };
        Ok((Weights { data, out, per_out, scale, bias: vec![0; out] }, dims, twice))
    }

    /// Bias as integers at scale `x · w`. A float bias, or one at another scale, is rounded to it.
    fn bias(&self, node: &NodeProto, i: usize, x_scale: f32, weights: &mut Weights) -> Match<()> {
        let out = weights.out;
        let step = |o: usize| x_scale * weights.scale[o];
        let rounded = |o: usize, real: f64| {
            let v = (real / f64::from(step(o))).round_ties_even();
            (v.abs() <= f64::from(i32::MAX))
                .then_some(v as i32)
                .ok_or_else(|| format!("bias {o} does not fit 32 bits at scale {}", step(o)))
        };
        weights.bias = match self.value(node, i) {
            None if node.input.get(i).is_none_or(|s| s.is_empty()) => vec![0; out],
            Some(Value::DequantizedConstant(b)) => {
                let (_, values) = int_data(b.tensor).map_err(|e| e.to_string())?.ok_or("its bias is not an integer tensor")?;
                if values.len() != out || (b.scale.len() != 1 && b.scale.len() != out) {
                    return Err(format!("its bias has {} values for {out} channels", values.len()));
                }
                let mut bias = Vec::with_capacity(out);
                for (o, &v) in values.iter().enumerate() {
                    let (s, z) = if b.scale.len() == 1 { (b.scale[0], b.zero_point[0]) } else { (b.scale[o], b.zero_point[o]) };
                    // Writers compute the product in f32 or f64: both mean the same scale.
                    let same = (s - step(o)).abs() <= 1e-6 * s;
                    let q = i64::from(v) - i64::from(z);
                    bias.push(if same {
                        i32::try_from(q).map_err(|_| "its bias does not fit 32 bits")?
                    } else {
                        rounded(o, q as f64 * f64::from(s))?
                    });
                }
                bias
            }
            Some(Value::Constant(t)) if t.data_type == DataType::Float as i32 => {
                let real = f32_data(t).map_err(|e| e.to_string())?;
                if real.len() != out {
                    return Err(format!("its bias has {} values for {out} channels", real.len()));
                }
                real.iter().enumerate().map(|(o, &b)| rounded(o, f64::from(b))).collect::<Match<_>>()?
            }
            _ => return Err("its bias is computed".into()),
        };
        Ok(())
    }

    fn conv(&self, node: &NodeProto) -> Match<Pending> {
        let x = self.picture(node, 0)?;
        let (mut weights, dims, _) = self.weights(node, 4, 0)?;
        let window = window(node, Some([dims[2], dims[3]]))?;
        self.bias(node, 2, self.tensors[x].quant.scale, &mut weights)?;
        let groups = groups(node, &weights)?;
        Ok(self.pending(node, Base::Conv { x, weights: Arc::new(weights), window, groups }))
    }

    fn gemm(&self, node: &NodeProto) -> Match<Pending> {
        let (x, flat) = self.real(node, 0)?;
        if !flat {
            return Err("its input is not known to be a vector".into());
        }
        if attr_int(node, "transA", 0) != 0 || attr_float(node, "alpha", 1.0) != 1.0 || attr_float(node, "beta", 1.0) != 1.0 {
            return Err("transA, alpha or beta are set".into());
        }
        let (mut weights, _, twice) = self.weights(node, 2, if attr_int(node, "transB", 0) != 0 { 0 } else { 1 })?;
        self.bias(node, 2, self.tensors[x].quant.scale, &mut weights)?;
        Ok(Pending { flat: true, ..self.pending(node, Base::Gemm { x, weights: Arc::new(weights), twice }) })
    }

    fn mat_mul(&self, node: &NodeProto) -> Match<Pending> {
        let (x, flat) = self.real(node, 0)?;
        if !flat {
            return Err("its input is not known to be a vector".into());
        }
        let (weights, _, twice) = self.weights(node, 2, 1)?;
        Ok(Pending { flat: true, ..self.pending(node, Base::Gemm { x, weights: Arc::new(weights), twice }) })
    }

    fn pool(&self, node: &NodeProto, max: bool) -> Match<Pending> {
        let x = self.picture(node, 0)?;
        if node.output.iter().skip(1).any(|o| !o.is_empty()) || attr_int(node, "storage_order", 0) != 0 {
            return Err("indices are asked for".into());
        }
        let window = window(node, None)?;
        let base = if max {
            Base::MaxPool { x, window }
        } else {
            Base::AveragePool { x, window: Some(window), count_include_pad: attr_int(node, "count_include_pad", 0) != 0 }
        };
        Ok(self.pending(node, base))
    }

    fn reduce_mean(&self, node: &NodeProto) -> Match<Pending> {
        let x = self.picture(node, 0)?;
        let mut axes = match self.constant(node, 1) {
            Some(t) => i64_data(t).map_err(|e| e.to_string())?,
            None => attr_ints(node, "axes").to_vec(),
        };
        axes.iter_mut().for_each(|a| *a += if *a < 0 { 4 } else { 0 });
        axes.sort_unstable();
        if axes != [2, 3] {
            return Err(format!("it reduces axes {axes:?}, not height and width"));
        }
        let flat = attr_int(node, "keepdims", 1) == 0;
        Ok(Pending { flat, ..self.pending(node, Base::AveragePool { x, window: None, count_include_pad: false }) })
    }

    fn add(&self, node: &NodeProto) -> Match<Pending> {
        let operands = (self.value(node, 0), self.value(node, 1));
        match operands {
            (Some(&Value::Real { tensor: a, flat: fa }), Some(&Value::Real { tensor: b, flat: fb })) => {
                Ok(Pending { flat: fa && fb, ..self.pending(node, Base::Add { a, b }) })
            }
            (Some(Value::Pending(p)), Some(&Value::Real { tensor, flat: false }))
            | (Some(&Value::Real { tensor, flat: false }), Some(Value::Pending(p))) => {
                if !matches!(p.base, Base::Conv { .. }) || p.residual.is_some() || p.clamp != Clamp::default() {
                    return Err("only a convolution's plain result is added without its own quantization".into());
                }
                Ok(Pending { residual: Some(tensor), ..p.clone() })
            }
            (Some(Value::Pending(p)), Some(_)) => self.add_bias(node, p, 1),
            (Some(_), Some(Value::Pending(p))) => self.add_bias(node, p, 0),
            _ => Err("an operand is not quantized".into()),
        }
    }

    /// MatMul + Add of a constant is a Gemm with bias.
    fn add_bias(&self, node: &NodeProto, p: &Pending, i: usize) -> Match<Pending> {
        match &p.base {
            Base::Gemm { x, weights, twice } if p.clamp == Clamp::default() && weights.bias.iter().all(|&b| b == 0) => {
                let mut weights = Weights::clone(weights);
                self.bias(node, i, self.tensors[*x].quant.scale, &mut weights)?;
                Ok(Pending { base: Base::Gemm { x: *x, weights: Arc::new(weights), twice: *twice }, ..p.clone() })
            }
            _ => Err("an operand is not quantized".into()),
        }
    }

    fn clamp(&self, node: &NodeProto, lo: f32, hi: f32) -> Match<Pending> {
        let p = match self.value(node, 0) {
            Some(Value::Pending(p)) => p.clone(),
            Some(&Value::Real { tensor, flat }) => Pending { flat, ..self.pending(node, Base::Same { x: tensor }) },
            _ => return Err("its input is not quantized".into()),
        };
        // clamp(clamp(x, a, b), c, d) with ONNX's max-then-min order
        let bound = |v: f32| v.max(lo).min(hi);
        Ok(Pending { clamp: Clamp { lo: bound(p.clamp.lo), hi: bound(p.clamp.hi) }, ..p })
    }

    fn map(&self, node: &NodeProto, function: Function, gated: bool) -> Match<Pending> {
        let (x, flat) = self.real(node, 0)?;
        Ok(Pending { flat, ..self.pending(node, Base::Map { x, map: Map { function, gated, rounded: None } }) })
    }

    /// Mul of a tensor with a function of itself, which may have been quantized in between.
    fn gate(&self, node: &NodeProto) -> Match<Pending> {
        for (i, other) in [(0, 1), (1, 0)] {
            let Ok((x, flat)) = self.real(node, i) else { continue };
            let map = match self.value(node, other) {
                Some(Value::Pending(Pending { base: Base::Map { x: of, map }, clamp, .. })) if *of == x && *clamp == Clamp::default() => {
                    *map
                }
                Some(&Value::Real { tensor, .. }) => match self.nodes.iter().find(|n| n.output == Some(tensor)) {
                    Some(Node { op: Op::Map { map, clamp }, inputs, .. }) if *inputs == [x] && *clamp == Clamp::default() => {
                        Map { rounded: Some(self.tensors[tensor].quant), ..*map }
                    }
                    _ => continue,
                },
                _ => continue,
            };
            if !map.gated {
                return Ok(Pending { flat, ..self.pending(node, Base::Map { x, map: Map { gated: true, ..map } }) });
            }
        }
        Err("it is no product of a tensor and its own sigmoid".into())
    }

    fn clip(&self, node: &NodeProto) -> Match<Pending> {
        let bound = |i: usize, name: &str, otherwise: f32| match node.input.get(i).filter(|s| !s.is_empty()) {
            None => Ok(attr(node, name).map_or(otherwise, |a| a.f)),
            Some(_) => {
                self.constant(node, i).and_then(|t| f32_data(t).ok()).and_then(|v| v.first().copied()).ok_or("its bounds are computed")
            }
        };
        let (lo, hi) = (bound(1, "min", f32::NEG_INFINITY)?, bound(2, "max", f32::INFINITY)?);
        if lo > hi {
            return Err("its lower bound is above its upper one".into());
        }
        self.clamp(node, lo, hi)
    }

    fn concat(&self, node: &NodeProto) -> Match<Pending> {
        if attr_int(node, "axis", 0) != 1 {
            return Err("it does not join channels".into());
        }
        let xs = (0..node.input.len()).map(|i| self.picture(node, i)).collect::<Match<Vec<_>>>()?;
        Ok(self.pending(node, Base::Concat { xs }))
    }

    /// Operators that only change how a value is seen.
    fn view(&self, node: &NodeProto) -> Option<Value<'a>> {
        let flattens = match node.op_type.as_str() {
            "Identity" => false,
            "Dropout" if node.input.get(2).is_none_or(|s| s.is_empty()) && node.output.iter().skip(1).all(|o| o.is_empty()) => false,
            "Flatten" => attr_int(node, "axis", 1) == 1,
            "Reshape" => {
                let shape = i64_data(self.constant(node, 1)?).ok()?;
                if shape.len() != 2 || !(shape[1] == -1 || shape[0] == 1) {
                    return None;
                }
                true
            }
            // Only [1, C, 1, 1] → [1, C]; other axes would change what follows.
            "Squeeze" => {
                let axes = self.constant(node, 1).and_then(|t| i64_data(t).ok()).unwrap_or_else(|| attr_ints(node, "axes").to_vec());
                if axes.len() != 2 || axes.iter().any(|a| ![2, 3, -1, -2].contains(a)) {
                    return None;
                }
                true
            }
            _ => return None,
        };
        if node.op_type == "Flatten" && !flattens {
            return None;
        }
        match self.value(node, 0)? {
            Value::Constant(t) if node.op_type == "Identity" => Some(Value::Constant(t)),
            Value::DequantizedConstant(q) if node.op_type == "Identity" => Some(Value::DequantizedConstant(q.clone())),
            Value::Quantized(t) if !flattens => Some(Value::Quantized(*t)),
            Value::Real { tensor, flat } => Some(Value::Real { tensor: *tensor, flat: *flat || flattens }),
            Value::Pending(p) => Some(Value::Pending(Pending { flat: p.flat || flattens, ..p.clone() })),
            _ => None,
        }
    }

    // ---- emission ----

    /// `tensor` as seen in region `level`: itself, or its values quantized again at that region's entry, which is exact.
    fn at_level(&mut self, tensor: TensorId, level: usize) -> TensorId {
        if self.level[tensor] == level {
            return tensor;
        }
        if let Some(&t) = self.bridges.get(&(tensor, level)) {
            return t;
        }
        let Tensor { name, quant, flat } = self.tensors[tensor].clone();
        // Only real values are ever inputs of operations, so the name exists.
        let source = self.real_name[tensor].unwrap_or_default().to_owned();
        let id = self.new_tensor(&name, quant, flat, level);
        self.nodes.push(Node { name: format!("{name}/bridge"), op: Op::Quantize { source }, inputs: vec![], output: Some(id) });
        self.bridges.insert((tensor, level), id);
        id
    }

    /// `x` with its channels written twice, for weights that are the sum of two.
    fn doubled(&mut self, x: TensorId, node: &str) -> TensorId {
        let Tensor { name, quant, flat } = self.tensors[x].clone();
        let id = self.new_tensor(&format!("{name}/twice"), quant, flat, self.level[x]);
        self.nodes.push(Node { name: format!("{node}/twice"), op: Op::Concat, inputs: vec![x, x], output: Some(id) });
        id
    }

    /// Adds the operation that makes `name`.
    fn emit(&mut self, p: Pending, name: &str, quant: QuantParams) -> TensorId {
        let mut xs = match &p.base {
            Base::Conv { x, .. }
            | Base::Gemm { x, .. }
            | Base::MaxPool { x, .. }
            | Base::AveragePool { x, .. }
            | Base::Same { x }
            | Base::Map { x, .. } => {
                vec![*x]
            }
            Base::Add { a, b } => vec![*a, *b],
            Base::Concat { xs } => xs.clone(),
        };
        xs.extend(p.residual);
        let level = xs.iter().map(|&t| self.level[t]).max().unwrap_or(0);
        let mut inputs: Vec<TensorId> = xs.iter().map(|&t| self.at_level(t, level)).collect();
        if let Base::Gemm { twice: true, .. } = &p.base {
            inputs[0] = self.doubled(inputs[0], &p.node);
        }
        let clamp = p.clamp;
        let residual = p.residual.is_some();
        let op = match p.base {
            Base::Conv { weights, window, groups, .. } => Op::Conv { weights, window, groups, residual, clamp },
            Base::Gemm { weights, .. } => Op::Gemm { weights, clamp, float_output: None },
            Base::AveragePool { window, count_include_pad, .. } => Op::AveragePool { window, count_include_pad, clamp },
            Base::Add { .. } => Op::Add { clamp },
            Base::Same { .. } => Op::Requantize { clamp },
            Base::Map { map, .. } => Op::Map { map, clamp },
            Base::Concat { .. } if clamp == Clamp::default() => Op::Concat,
            base @ (Base::MaxPool { .. } | Base::Concat { .. }) => {
                // Pool (or join) at the input's quantization, then requantize.
                let same = self.tensors[inputs[0]].quant;
                let (op, inner) = match base {
                    Base::MaxPool { window, .. } => (Op::MaxPool { window }, same),
                    _ => (Op::Concat, quant),
                };
                if inner == quant && clamp == Clamp::default() {
                    op
                } else {
                    let mid = self.new_tensor(&format!("{name}/inner"), inner, false, level);
                    self.nodes.push(Node { name: p.node.clone(), op, inputs, output: Some(mid) });
                    inputs = vec![mid];
                    Op::Requantize { clamp }
                }
            }
        };
        let id = self.new_tensor(name, quant, p.flat, level);
        self.nodes.push(Node { name: p.node, op, inputs, output: Some(id) });
        id
    }

    /// Keeps what the graph's outputs need: region nodes, and float nodes for tract.
    fn finish(mut self, model: &ModelProto, graph: &'a GraphProto) -> Result<Lowered> {
        let producer: HashMap<&str, usize> = graph.node.iter().enumerate().flat_map(|(i, n)| outputs(n).map(move |o| (o, i))).collect();
        // Gemms whose result may leave as floats, and the inputs they need written twice.
        let (mut logits, mut asymmetric) = (HashMap::new(), Vec::new());
        for (&name, value) in &self.values {
            if let Value::Pending(Pending { node, base: Base::Gemm { x, weights, twice }, clamp, .. }) = value {
                logits.insert(name, Op::Gemm { weights: weights.clone(), clamp: *clamp, float_output: Some(name.to_owned()) });
                if *twice {
                    asymmetric.push((name, *x, node.clone()));
                }
            }
        }
        let doubled: HashMap<&str, TensorId> = asymmetric.into_iter().map(|(name, x, node)| (name, self.doubled(x, &node))).collect();
        let maker: HashMap<TensorId, usize> = self.nodes.iter().enumerate().filter_map(|(i, n)| Some((n.output?, i))).collect();
        let mut kept: HashSet<usize> = HashSet::new();
        let mut live = vec![false; self.nodes.len()];
        let mut exits: Vec<(usize, Node)> = Vec::new();
        let mut seen: HashSet<String> = HashSet::new();
        let mut todo: Vec<String> = graph.output.iter().map(|o| o.name.clone()).chain(captured_names(graph)).collect();
        while let Some(name) = todo.pop() {
            if !seen.insert(name.clone()) {
                continue;
            }
            let mut tensors = Vec::new();
            match self.values.get(name.as_str()) {
                Some(&Value::Real { tensor, flat: false }) => {
                    exits.push((
                        self.level[tensor],
                        Node {
                            name: format!("{name}/exit"),
                            op: Op::Dequantize { target: name.clone() },
                            inputs: vec![tensor],
                            output: None,
                        },
                    ));
                    tensors.push(tensor);
                }
                Some(Value::Pending(Pending { node, base: Base::Gemm { x, .. }, clamp, .. })) if *clamp == Clamp::default() => {
                    let Some(op) = logits.remove(name.as_str()) else { continue };
                    let x = doubled.get(name.as_str()).copied().unwrap_or(*x);
                    exits.push((self.level[x], Node { name: node.clone(), op, inputs: vec![x], output: None }));
                    tensors.push(x);
                }
                _ => {
                    if let Some(&index) = producer.get(name.as_str()) {
                        kept.insert(index);
                        todo.extend(inputs(&graph.node[index]).map(String::from));
                    }
                }
            }
            while let Some(t) = tensors.pop() {
                let Some(&index) = maker.get(&t) else { continue };
                if std::mem::replace(&mut live[index], true) {
                    continue;
                }
                tensors.extend(&self.nodes[index].inputs);
                if let Op::Quantize { source } = &self.nodes[index].op {
                    todo.push(source.clone());
                }
            }
        }

        // Renumber tensors per region.
        let mut regions: BTreeMap<usize, (Graph, HashMap<TensorId, TensorId>)> = BTreeMap::new();
        let nodes = std::mem::take(&mut self.nodes).into_iter().zip(live).filter(|(_, live)| *live);
        let nodes = nodes.filter_map(|(n, _)| Some((self.level[n.output?], n))).chain(exits);
        for (level, mut node) in nodes {
            let (region, ids) = regions.entry(level).or_default();
            for id in node.inputs.iter_mut().chain(&mut node.output) {
                let tensors = &self.tensors;
                *id = *ids.entry(*id).or_insert_with(|| {
                    region.tensors.push(tensors[*id].clone());
                    region.tensors.len() - 1
                });
            }
            region.nodes.push(node);
        }
        let regions: Vec<Graph> = regions.into_values().map(|(g, _)| g).collect();

        let mut fallbacks = Vec::new();
        let mut rest = GraphProto { name: graph.name.clone(), output: graph.output.clone(), ..Default::default() };
        for (index, node) in graph.node.iter().enumerate().filter(|(i, _)| kept.contains(i)) {
            rest.node.push(node.clone());
            let why = self.why.get(&index).cloned().unwrap_or_else(|| "its result is needed in float".into());
            let why = if regions.is_empty() { "the model is not quantized".into() } else { why };
            fallbacks.push(Fallback::new(node, why));
        }
        for (index, region) in regions.iter().enumerate() {
            rest.node.push(NodeProto {
                name: format!("int8_region_{index}"),
                op_type: REGION_OP.into(),
                attribute: vec![int_attribute("region", index as i64)],
                input: region.sources().into_iter().map(String::from).collect(),
                output: region.targets().into_iter().map(String::from).collect(),
                ..Default::default()
            });
        }
        let used: HashSet<&str> = rest.node.iter().flat_map(inputs).chain(graph.output.iter().map(|o| o.name.as_str())).collect();
        let captured = captured_names(graph);
        let initializers: HashSet<&str> = graph.initializer.iter().map(|t| t.name.as_str()).collect();
        let initializer =
            graph.initializer.iter().filter(|t| used.contains(t.name.as_str()) || captured.contains(&t.name)).cloned().collect();
        rest.input = graph.input.iter().filter(|i| !initializers.contains(i.name.as_str())).cloned().collect();
        rest.initializer = initializer;
        let rest =
            ModelProto { ir_version: model.ir_version, opset_import: model.opset_import.clone(), graph: Some(rest), ..Default::default() };
        // Integers that only our kernels compute: tract has no such operator to fall back on. The first such node is the cause.
        let integer = |op: &str, foreign: bool| INTEGER_OPS.iter().any(|(domain, o)| *o == op && !(foreign && domain.is_empty()));
        let mut refused = graph.node.iter().enumerate().filter(|(i, n)| kept.contains(i) && integer(&n.op_type, false));
        if fallbacks.iter().any(|f| integer(&f.op, true))
            && let Some((node, why)) = refused.find_map(|(i, n)| Some((n, self.why.get(&i)?)))
        {
            return Err(Error::UnsupportedModel(format!(
                "node {} does not run in int8: {why}; or quantize the float model with edge-quantize, or in QDQ format",
                node_name(node)
            )));
        }
        if regions.iter().flat_map(|r| r.sources()).any(str::is_empty) {
            return Err(Error::UnsupportedModel("a quantized tensor crosses regions without a DequantizeLinear".into()));
        }
        Ok(Lowered { regions, rest, fallbacks })
    }
}

/// The values of an int8, uint8 or int32 tensor; `None` for other types.
fn int_data(t: &TensorProto) -> Result<Option<(DataType, Vec<i32>)>> {
    let raw = !t.raw_data.is_empty();
    let (dtype, values): (_, Vec<i32>) = match DataType::try_from(t.data_type) {
        Ok(d @ DataType::Int8) if raw => (d, t.raw_data.iter().map(|&b| i32::from(b as i8)).collect()),
        Ok(d @ DataType::Uint8) if raw => (d, t.raw_data.iter().map(|&b| i32::from(b)).collect()),
        Ok(d @ DataType::Int32) if raw => (d, t.raw_data.as_chunks::<4>().0.iter().map(|b| i32::from_le_bytes(*b)).collect()),
        Ok(d @ DataType::Int8) if t.int32_data.iter().all(|v| i8::try_from(*v).is_ok()) => (d, t.int32_data.clone()),
        Ok(d @ DataType::Uint8) if t.int32_data.iter().all(|v| u8::try_from(*v).is_ok()) => (d, t.int32_data.clone()),
        Ok(d @ DataType::Int32) => (d, t.int32_data.clone()),
        Ok(DataType::Int8 | DataType::Uint8) => return Err(Error::tensor(&t.name, "it holds values that do not fit 8 bits")),
        _ => return Ok(None),
    };
    if values.len() != tensor_dims(t)?.iter().product::<usize>() {
        return Err(Error::tensor(&t.name, "its data does not fill its dimensions"));
    }
    Ok(Some((dtype, values)))
}

fn groups(node: &NodeProto, weights: &Weights) -> Match<usize> {
    let groups = usize::try_from(attr_int(node, "group", 1)).ok();
    groups.filter(|&g| g > 0 && weights.out.is_multiple_of(g)).ok_or_else(|| "its group attribute is wrong".into())
}

fn hard_sigmoid(node: &NodeProto) -> Function {
    Function::HardSigmoid { alpha: attr_float(node, "alpha", 0.2), beta: attr_float(node, "beta", 0.5) }
}

/// Geometry from a node's attributes; `kernel` where the weights give it.
fn window(node: &NodeProto, kernel: Option<[usize; 2]>) -> Match<Window> {
    let auto_pad = attr(node, "auto_pad").map_or(&b"NOTSET"[..], |a| &a.s);
    if !matches!(auto_pad, b"NOTSET" | b"VALID" | b"") {
        return Err(format!("auto_pad {} is not supported; export explicit pads", String::from_utf8_lossy(auto_pad)));
    }
    let pair = |name: &str, otherwise: [usize; 2]| -> Match<[usize; 2]> {
        match attr_ints(node, name) {
            [] => Ok(otherwise),
            &[a, b] if (1..=65536).contains(&a) && (1..=65536).contains(&b) => Ok([a as usize, b as usize]),
            other => Err(format!("{name} {other:?} is not a pair of positive numbers")),
        }
    };
    let kernel = match kernel {
        Some(k) => {
            if pair("kernel_shape", k)? != k {
                return Err("kernel_shape does not match the weights".into());
            }
            k
        }
        None => pair("kernel_shape", [0, 0])?,
    };
    let pad = match attr_ints(node, "pads") {
        [] => [0; 4],
        &[a, b, c, d] if [a, b, c, d].iter().all(|p| (0..=65536).contains(p)) => [a, b, c, d].map(|p| p as usize),
        other => return Err(format!("pads {other:?} are not four numbers ≥ 0")),
    };
    Ok(Window {
        kernel,
        stride: pair("strides", [1, 1])?,
        dilation: pair("dilations", [1, 1])?,
        pad,
        ceil: attr_int(node, "ceil_mode", 0) != 0,
    })
}
