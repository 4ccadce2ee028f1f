//! What is known of each value before anything runs: its type, its dimensions, and small integers that are computed
//! from dimensions.
//!
//! A dimension that the file leaves open (a dynamic batch) is a symbol: two equal symbols are the same number.

use super::tensor::*;
use crate::import::onnx::*;
use std::collections::HashMap;
use tract_onnx::pb::tensor_shape_proto::dimension::Value as DimValue;
use tract_onnx::pb::type_proto::Value as Type;
use tract_onnx::pb::{TypeProto, ValueInfoProto};

/// One dimension, or one integer computed from dimensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dim {
    /// A number.
    Known(i64),
    /// An unknown number; the same symbol is the same number.
    Symbol(u32),
}

impl Dim {
    /// The number, if known.
    pub fn known(self) -> Option<i64> {
        match self {
            Dim::Known(n) => Some(n),
            Dim::Symbol(_) => None,
        }
    }
}

/// Most elements of an integer tensor whose elements are followed.
const FOLLOWED: usize = 64;

/// No dimension is as large: arithmetic on dimensions cannot overflow.
const LARGEST: i64 = 1 << 40;

/// What is known of one value.
#[derive(Debug, Clone, Default)]
pub struct Fact {
    /// ONNX element type; 0: unknown.
    pub data_type: i32,
    /// Dimensions, if the rank is known.
    pub dims: Option<Vec<Dim>>,
    /// Elements of a small integer tensor of rank 0 or 1.
    pub value: Option<Vec<Dim>>,
}

/// Where the constants of a graph are found by name.
pub trait Constants {
    /// The constant of this name.
    fn constant(&self, name: &str) -> Option<&TensorProto>;

    /// The whole numbers of a constant input of a node.
    fn whole_input(&self, node: &NodeProto, i: usize) -> Option<Vec<i64>> {
        whole(self.constant(node.input.get(i).filter(|s| !s.is_empty())?)?)
    }
}

/// What is known of every value of a graph so far.
#[derive(Debug, Default)]
pub struct Facts {
    map: HashMap<String, Fact>,
    symbols: HashMap<String, u32>,
    next: u32,
}

/// Element type and dimensions that a file states.
pub fn stated(t: Option<&TypeProto>) -> Option<(i32, Option<Vec<Option<&DimValue>>>)> {
    let Type::TensorType(t) = t?.value.as_ref()?;
    Some((t.elem_type, t.shape.as_ref().map(|s| s.dim.iter().map(|d| d.value.as_ref()).collect())))
}

impl Facts {
    /// An unknown dimension of its own.
    pub fn fresh(&mut self) -> Dim {
        self.next += 1;
        Dim::Symbol(self.next)
    }

    /// Notes a graph input.
    pub fn input(&mut self, input: &ValueInfoProto) {
        let Some((data_type, dims)) = stated(input.r#type.as_ref()) else { return };
        let dims = dims.map(|dims| {
            dims.into_iter()
                .map(|d| match d {
                    Some(DimValue::DimValue(n)) if (1..LARGEST).contains(n) => Dim::Known(*n),
                    Some(DimValue::DimParam(name)) if !name.is_empty() => match self.symbols.get(name) {
                        Some(&s) => Dim::Symbol(s),
                        None => {
                            self.next += 1;
                            self.symbols.insert(name.clone(), self.next);
                            Dim::Symbol(self.next)
                        }
                    },
                    _ => self.fresh(),
                })
                .collect()
        });
        self.map.insert(input.name.clone(), Fact { data_type, dims, value: None });
    }

    /// Notes a constant.
    pub fn constant(&mut self, t: &TensorProto) {
        let small = t.dims.len() < 2 && t.dims.iter().product::<i64>() <= FOLLOWED as i64;
        let value = if small && t.data_type != FLOAT { whole(t).map(|v| v.into_iter().map(Dim::Known).collect()) } else { None };
        let dims = t.dims.iter().map(|&d| Dim::Known(d)).collect();
        self.map.insert(t.name.clone(), Fact { data_type: t.data_type, dims: Some(dims), value });
    }

    /// What is known of a value.
    pub fn get(&self, name: &str) -> Option<&Fact> {
        self.map.get(name)
    }

    /// Dimensions of a value.
    pub fn dims(&self, name: &str) -> Option<&[Dim]> {
        self.map.get(name)?.dims.as_deref()
    }

    /// Rank of a value.
    pub fn rank(&self, name: &str) -> Option<usize> {
        self.dims(name).map(<[Dim]>::len)
    }

    /// Dimensions of a value, if all are numbers.
    pub fn known(&self, name: &str) -> Option<Vec<i64>> {
        self.dims(name)?.iter().map(|d| d.known()).collect()
    }

    /// Element type of a value; 0: unknown.
    pub fn data_type(&self, name: &str) -> i32 {
        self.map.get(name).map_or(0, |f| f.data_type)
    }

    /// Notes a value.
    pub fn set(&mut self, name: &str, fact: Fact) {
        self.map.insert(name.into(), fact);
    }

    /// Notes the outputs of a node whose inputs are noted.
    pub fn visit(&mut self, node: &NodeProto, constants: &impl Constants) {
        if !is_default_domain(&node.domain) {
            return;
        }
        let value = self.value_of(node, constants);
        let dims = match &value {
            Some((v, rank)) => vec![Some(if *rank == 0 { vec![] } else { vec![Dim::Known(v.len() as i64)] })],
            None => self.dims_of(node, constants).unwrap_or_default(),
        };
        let mut value = value.map(|v| v.0).filter(|v| v.len() <= FOLLOWED);
        for (i, name) in node.output.iter().enumerate().filter(|(_, n)| !n.is_empty()) {
            let dims = dims.get(i).cloned().flatten().filter(|d| d.iter().all(|d| d.known().is_none_or(|n| (0..LARGEST).contains(&n))));
            let fact = Fact { data_type: self.type_of(node, i, constants), dims, value: if i == 0 { value.take() } else { None } };
            self.map.insert(name.clone(), fact);
        }
    }

    fn type_of(&self, node: &NodeProto, output: usize, constants: &impl Constants) -> i32 {
        let of = |i: usize| node.input.get(i).map_or(0, |n| self.data_type(n));
        match node.op_type.as_str() {
            "Cast" => attr_int(node, "to", 0) as i32,
            "CastLike" => of(1),
            "QuantizeLinear" if node.input.get(2).is_some_and(|s| !s.is_empty()) => of(2),
            "QuantizeLinear" => match attr_int(node, "output_dtype", 0) as i32 {
                0 => UINT8,
                t => t,
            },
            "DequantizeLinear" => match attr_int(node, "output_dtype", 0) as i32 {
                0 => of(1),
                t => t,
            },
            "ConvInteger" | "MatMulInteger" => INT32,
            "DynamicQuantizeLinear" => [UINT8, FLOAT, UINT8].get(output).copied().unwrap_or(0),
            "Shape" | "Size" | "ArgMax" | "ArgMin" | "NonZero" | "NonMaxSuppression" => INT64,
            "TopK" if output == 1 => INT64,
            "MaxPool" if output == 1 => INT64,
            "Equal" | "Less" | "Greater" | "LessOrEqual" | "GreaterOrEqual" | "Not" | "And" | "Or" | "Xor" | "IsNaN" | "IsInf" => BOOL,
            "Where" => of(1),
            "ConstantOfShape" => attr(node, "value").and_then(|a| a.t.as_ref()).map_or(FLOAT, |t| t.data_type),
            "Dropout" if output == 1 => BOOL,
            "If" | "Loop" | "Scan" | "Unique" | "Optional" | "SequenceAt" => 0,
            "OneHot" => of(2),
            _ => match node.input.first() {
                Some(name) => constants.constant(name).map_or_else(|| self.data_type(name), |t| t.data_type),
                None => 0,
            },
        }
    }

    /// Integers computed from dimensions, and their rank.
    fn value_of(&self, node: &NodeProto, constants: &impl Constants) -> Option<(Vec<Dim>, usize)> {
        let value = |i: usize| self.map.get(node.input.get(i)?.as_str())?.value.clone();
        let rank = |i: usize| self.rank(node.input.get(i)?);
        Some(match node.op_type.as_str() {
            "Shape" => {
                let dims = self.dims(node.input.first()?)?;
                let n = dims.len() as i64;
                let clip = |v: i64| (if v < 0 { v + n } else { v }).clamp(0, n) as usize;
                let (start, end) = (clip(attr_int(node, "start", 0)), clip(attr(node, "end").map_or(n, |a| a.i)));
                (dims[start..end.max(start)].to_vec(), 1)
            }
            "Cast" if range(attr_int(node, "to", 0) as i32).is_some_and(|r| r.1 >= i64::from(i32::MAX)) => (value(0)?, rank(0)?),
            "Identity" => (value(0)?, rank(0)?),
            "Gather" if attr_int(node, "axis", 0) == 0 && rank(0)? == 1 => {
                let (data, at) = (value(0)?, value(1)?);
                let pick = |i: &Dim| {
                    let i = i.known()?;
                    data.get(usize::try_from(if i < 0 { i + data.len() as i64 } else { i }).ok()?).copied()
                };
                (at.iter().map(pick).collect::<Option<_>>()?, rank(1)?)
            }
            "Unsqueeze" if rank(0)? == 0 => (value(0)?, 1),
            "Squeeze" if rank(0)? == 1 && value(0)?.len() == 1 => (value(0)?, 0),
            "Reshape" if rank(0)? < 2 => {
                let shape = value(1)?;
                (value(0)?, if shape.len() < 2 { shape.len() } else { return None })
            }
            "Concat" => {
                let mut all = Vec::new();
                for i in 0..node.input.len() {
                    all.extend(value(i).filter(|_| rank(i) == Some(1))?);
                }
                (all, 1)
            }
            "Slice" if rank(0)? == 1 => {
                let data = value(0)?;
                let n = data.len() as i64;
                let whole = |i: usize| constants.whole_input(node, i);
                let one = |v: Vec<i64>| if v.len() == 1 { Some(v[0]) } else { None };
                let step = if node.input.get(4).is_some_and(|s| !s.is_empty()) { one(whole(4)?)? } else { 1 };
                let wrap = |v: i64| (if v < 0 { v.saturating_add(n) } else { v }).clamp(0, n) as usize;
                let (start, end) = (wrap(one(whole(1)?)?), wrap(one(whole(2)?)?));
                if step != 1 {
                    return None;
                }
                (data[start..end.max(start)].to_vec(), 1)
            }
            _ => return None,
        })
    }

    fn broadcast(&mut self, shapes: Vec<Vec<Dim>>) -> Option<Vec<Dim>> {
        let rank = shapes.iter().map(Vec::len).max()?;
        let mut out = Vec::with_capacity(rank);
        for i in 0..rank {
            let mut dim = Dim::Known(1);
            for s in &shapes {
                let Some(&d) = (i + s.len()).checked_sub(rank).and_then(|at| s.get(at)) else { continue };
                dim = match (dim, d) {
                    (Dim::Known(1), d) => d,
                    (dim, Dim::Known(1)) => dim,
                    (a, b) if a == b => a,
                    (Dim::Known(n), Dim::Symbol(_)) | (Dim::Symbol(_), Dim::Known(n)) => Dim::Known(n),
                    (Dim::Symbol(_), Dim::Symbol(_)) => self.fresh(),
                    _ => return None, // they do not fit
                };
            }
            out.push(dim);
        }
        Some(out)
    }

    /// Dimensions of each output.
    fn dims_of(&mut self, node: &NodeProto, constants: &impl Constants) -> Option<Vec<Option<Vec<Dim>>>> {
        let op = node.op_type.as_str();
        let dims = |f: &Facts, i: usize| f.dims(node.input.get(i)?).map(<[Dim]>::to_vec);
        let wrap = |axis: i64, rank: usize| usize::try_from(if axis < 0 { axis + rank as i64 } else { axis }).ok().filter(|&a| a < rank);
        let axes =
            |i: usize, rank: usize| -> Option<Vec<usize>> { constants.whole_input(node, i)?.into_iter().map(|a| wrap(a, rank)).collect() };
        let given = |i: usize| node.input.get(i).is_some_and(|s| !s.is_empty());
        let one = |d: Vec<Dim>| Some(vec![Some(d)]);
        match op {
            "Add" | "Sub" | "Mul" | "Div" | "Pow" | "Max" | "Min" | "Sum" | "Mean" | "And" | "Or" | "Xor" | "Equal" | "Less"
            | "Greater" | "LessOrEqual" | "GreaterOrEqual" | "Where" | "Mod" | "BitShift" => {
                let shapes = (0..node.input.len()).map(|i| dims(self, i)).collect::<Option<Vec<_>>>()?;
                one(self.broadcast(shapes)?)
            }
            "Conv" | "ConvInteger" | "MaxPool" | "AveragePool" | "LpPool" | "ConvTranspose" => {
                let x = dims(self, 0)?;
                let conv = op.starts_with("Conv");
                let w = if conv { Some(dims(self, 1)?) } else { None };
                let spatial = x.len().checked_sub(2)?;
                let kernel: Vec<i64> = match (attr_ints(node, "kernel_shape"), &w) {
                    ([], Some(w)) => w.get(2..)?.iter().map(|d| d.known()).collect::<Option<_>>()?,
                    (k, _) => k.to_vec(),
                };
                let list = |name: &str, n: usize, otherwise: i64| match attr_ints(node, name) {
                    [] => Some(vec![otherwise; n]),
                    v if v.len() == n => Some(v.to_vec()),
                    _ => None,
                };
                let (strides, dilations, pads) =
                    (list("strides", spatial, 1)?, list("dilations", spatial, 1)?, list("pads", 2 * spatial, 0)?);
                if kernel.len() != spatial || strides.iter().chain(&dilations).any(|&s| s < 1) {
                    return None;
                }
                let mode = attr(node, "auto_pad").map_or(&b""[..], |a| &a.s);
                let channels = match (&w, op) {
                    (Some(w), "ConvTranspose") => w.get(1)?.known().map(|m| Dim::Known(m.saturating_mul(attr_int(node, "group", 1)))),
                    (Some(w), _) => w.first().copied(),
                    _ => x.get(1).copied(),
                }?;
                let mut out = vec![x[0], channels];
                for i in 0..spatial {
                    let Some(n) = x[i + 2].known() else {
                        let dim = self.fresh();
                        out.push(dim);
                        continue;
                    };
                    let reach = kernel[i].checked_sub(1)?.checked_mul(dilations[i])?.checked_add(1)?;
                    let size = if op == "ConvTranspose" {
                        let extra = list("output_padding", spatial, 0)?[i];
                        match (attr_ints(node, "output_shape"), mode) {
                            ([], b"" | b"NOTSET" | b"VALID") => {
                                let border = reach.checked_add(extra)?.checked_sub(pads[i])?.checked_sub(pads[i + spatial])?;
                                (n - 1).checked_mul(strides[i])?.checked_add(border)?
                            }
                            ([], _) => n.checked_mul(strides[i])?,
                            (shape, _) => *shape.get(i)?,
                        }
                    } else {
                        match mode {
                            b"SAME_UPPER" | b"SAME_LOWER" => n.div_euclid(strides[i]) + i64::from(n % strides[i] != 0),
                            _ => {
                                let padding = if mode == b"VALID" { 0 } else { pads[i].checked_add(pads[i + spatial])? };
                                let room = n.checked_add(padding)?.checked_sub(reach).filter(|r| *r >= 0)?;
                                let ceil = attr_int(node, "ceil_mode", 0) != 0;
                                let mut size = room / strides[i] + 1 + i64::from(ceil && room % strides[i] != 0);
                                // A window that would start in the padding behind does not count.
                                if ceil && (size - 1).saturating_mul(strides[i]) >= n.saturating_add(pads[i]) {
                                    size -= 1;
                                }
                                size
                            }
                        }
                    };
                    out.push(Dim::Known(size));
                }
                let second = (op == "MaxPool" && node.output.len() > 1).then(|| out.clone());
                Some(vec![Some(out), second])
            }
            "GlobalAveragePool" | "GlobalMaxPool" | "GlobalLpPool" => {
                let mut x = dims(self, 0)?;
                x.iter_mut().skip(2).for_each(|d| *d = Dim::Known(1));
                one(x)
            }
            "Reshape" => {
                let x = dims(self, 0)?;
                let shape = self.map.get(node.input.get(1)?.as_str())?.value.clone()?;
                let keep_zero = attr_int(node, "allowzero", 0) != 0;
                let mut out: Vec<Dim> = Vec::with_capacity(shape.len());
                for (i, &d) in shape.iter().enumerate() {
                    out.push(match d {
                        Dim::Known(0) if !keep_zero => *x.get(i)?,
                        d => d,
                    });
                }
                if let Some(at) = out.iter().position(|d| *d == Dim::Known(-1)) {
                    out.remove(at);
                    let rest = quotient(&x, &out).unwrap_or_else(|| self.fresh());
                    out.insert(at, rest);
                }
                one(out)
            }
            "Flatten" => {
                let x = dims(self, 0)?;
                let axis = attr_int(node, "axis", 1);
                let axis = usize::try_from(if axis < 0 { axis + x.len() as i64 } else { axis }).ok().filter(|&a| a <= x.len())?;
                let (a, b) = x.split_at(axis);
                let (a, b) = (product(a).unwrap_or_else(|| self.fresh()), product(b).unwrap_or_else(|| self.fresh()));
                one(vec![a, b])
            }
            "Squeeze" => {
                let x = dims(self, 0)?;
                let axes = if given(1) { axes(1, x.len())? } else { return None };
                one(x.iter().enumerate().filter(|(i, _)| !axes.contains(i)).map(|(_, d)| *d).collect())
            }
            "Unsqueeze" => {
                let x = dims(self, 0)?;
                let rank = x.len() + constants.whole_input(node, 1)?.len();
                let axes = axes(1, rank)?;
                let mut rest = x.into_iter();
                one((0..rank).map(|i| if axes.contains(&i) { Some(Dim::Known(1)) } else { rest.next() }).collect::<Option<_>>()?)
            }
            "Transpose" => {
                let x = dims(self, 0)?;
                match attr_ints(node, "perm") {
                    [] => one(x.into_iter().rev().collect()),
                    perm if perm.len() == x.len() => {
                        one(perm.iter().map(|&p| x.get(usize::try_from(p).ok()?).copied()).collect::<Option<_>>()?)
                    }
                    _ => None,
                }
            }
            "Concat" => {
                let mut out = dims(self, 0)?;
                let axis = wrap(attr_int(node, "axis", 1), out.len())?;
                let mut sum = Some(0i64);
                for i in 0..node.input.len() {
                    let x = dims(self, i).filter(|x| x.len() == out.len())?;
                    sum = sum.zip(x[axis].known()).and_then(|(a, b)| a.checked_add(b));
                    for (o, d) in out.iter_mut().zip(&x) {
                        if o.known().is_none() && d.known().is_some() {
                            *o = *d;
                        }
                    }
                }
                out[axis] = sum.map_or_else(|| self.fresh(), Dim::Known);
                one(out)
            }
            "Split" => {
                let x = dims(self, 0)?;
                let axis = wrap(attr_int(node, "axis", 0), x.len())?;
                let n = node.output.len() as i64;
                let sizes: Option<Vec<i64>> = if given(1) {
                    constants.whole_input(node, 1)
                } else {
                    x[axis].known().map(|d| {
                        let part = d / n.max(1) + i64::from(d % n.max(1) != 0);
                        (0..n).map(|i| part.min(d - i * part)).collect()
                    })
                };
                let sizes = sizes.filter(|s| s.len() == node.output.len());
                let mut outs = Vec::new();
                for i in 0..node.output.len() {
                    let mut out = x.clone();
                    out[axis] = sizes.as_ref().map_or_else(|| self.fresh(), |s| Dim::Known(s[i]));
                    outs.push(Some(out));
                }
                Some(outs)
            }
            "Slice" => {
                let mut x = dims(self, 0)?;
                let (starts, ends) = (constants.whole_input(node, 1), constants.whole_input(node, 2));
                let axes = if given(3) { axes(3, x.len())? } else { (0..starts.as_ref().map_or(x.len(), Vec::len)).collect() };
                let steps = if given(4) { constants.whole_input(node, 4)? } else { vec![1; axes.len()] };
                for (i, &axis) in axes.iter().enumerate() {
                    let bounds = (|| Some((x.get(axis)?.known()?, *starts.as_ref()?.get(i)?, *ends.as_ref()?.get(i)?, *steps.get(i)?)))();
                    let size = bounds.and_then(|(n, start, end, step)| slice_len(n, start, end, step));
                    *x.get_mut(axis)? = size.map_or_else(|| self.fresh(), Dim::Known);
                }
                one(x)
            }
            "Gather" => {
                let (x, at) = (dims(self, 0)?, dims(self, 1)?);
                let axis = wrap(attr_int(node, "axis", 0), x.len())?;
                one(x[..axis].iter().chain(&at).chain(&x[axis + 1..]).copied().collect())
            }
            "GatherElements" => one(dims(self, 1)?),
            "Pad" => {
                let mut x = dims(self, 0)?;
                let pads = constants.whole_input(node, 1)?;
                let axes = if given(3) { axes(3, x.len())? } else { (0..x.len()).collect() };
                if pads.len() != 2 * axes.len() {
                    return None;
                }
                for (i, &axis) in axes.iter().enumerate() {
                    if let Some(n) = x[axis].known() {
                        x[axis] = Dim::Known(n.checked_add(pads[i])?.checked_add(pads[i + axes.len()])?);
                    } else if pads[i] != 0 || pads[i + axes.len()] != 0 {
                        x[axis] = self.fresh();
                    }
                }
                one(x)
            }
            "Tile" => {
                let (mut x, repeats) = (dims(self, 0)?, constants.whole_input(node, 1)?);
                for (d, &r) in x.iter_mut().zip(&repeats) {
                    *d = match d.known() {
                        Some(n) => Dim::Known(n.checked_mul(r)?),
                        None if r == 1 => *d,
                        None => self.fresh(),
                    };
                }
                one(x)
            }
            "Expand" => {
                let x = dims(self, 0)?;
                let shape = self.map.get(node.input.get(1)?.as_str())?.value.clone()?;
                one(self.broadcast(vec![x, shape])?)
            }
            "ConstantOfShape" => one(self.map.get(node.input.first()?.as_str())?.value.clone()?),
            "Resize" => {
                let mut x = dims(self, 0)?;
                let axes: Vec<usize> = match attr_ints(node, "axes") {
                    [] => (0..x.len()).collect(),
                    list => list.iter().map(|&a| wrap(a, x.len())).collect::<Option<_>>()?,
                };
                if attr(node, "keep_aspect_ratio_policy").is_some_and(|a| a.s != b"stretch") {
                    return None;
                }
                if given(3) {
                    let sizes = self.map.get(node.input[3].as_str())?.value.clone().filter(|s| s.len() == axes.len())?;
                    for (&axis, &size) in axes.iter().zip(&sizes) {
                        x[axis] = size;
                    }
                } else {
                    let Some(Numbers::Real(scales)) = numbers(constants.constant(node.input.get(2)?)?) else { return None };
                    if scales.len() != axes.len() {
                        return None;
                    }
                    for (&axis, &scale) in axes.iter().zip(&scales) {
                        x[axis] = match x[axis].known() {
                            Some(n) => Dim::Known((n as f32 * scale).floor() as i64),
                            None if scale == 1.0 => x[axis],
                            None => self.fresh(),
                        };
                    }
                }
                one(x)
            }
            "DepthToSpace" | "SpaceToDepth" => {
                let x = dims(self, 0).filter(|x| x.len() == 4)?;
                let b = Some(attr_int(node, "blocksize", 0)).filter(|b| (1..=4096).contains(b))?;
                let known = |d: Dim| d.known();
                let (c, h, w) = (known(x[1])?, known(x[2])?, known(x[3])?);
                let new = if op == "DepthToSpace" { [c / (b * b), h * b, w * b] } else { [c * b * b, h / b, w / b] };
                one(std::iter::once(x[0]).chain(new.map(Dim::Known)).collect())
            }
            "MatMul" | "MatMulInteger" => {
                let (a, b) = (dims(self, 0)?, dims(self, 1)?);
                match (a.len(), b.len()) {
                    (0, _) | (_, 0) => None,
                    (1, 1) => one(vec![]),
                    (1, n) => one(b.iter().enumerate().filter(|(i, _)| *i != n - 2).map(|(_, d)| *d).collect()),
                    (m, 1) => one(a[..m - 1].to_vec()),
                    (m, n) => {
                        let mut out = self.broadcast(vec![a[..m - 2].to_vec(), b[..n - 2].to_vec()])?;
                        out.extend([a[m - 2], b[n - 1]]);
                        one(out)
                    }
                }
            }
            "Gemm" => {
                let (a, b) = (dims(self, 0)?, dims(self, 1)?);
                let (m, n) = (usize::from(attr_int(node, "transA", 0) != 0), usize::from(attr_int(node, "transB", 0) == 0));
                one(vec![*a.get(m)?, *b.get(n)?])
            }
            "ArgMax" | "ArgMin" => {
                let mut x = dims(self, 0)?;
                let axis = wrap(attr_int(node, "axis", 0), x.len())?;
                if attr_int(node, "keepdims", 1) != 0 {
                    x[axis] = Dim::Known(1);
                } else {
                    x.remove(axis);
                }
                one(x)
            }
            "TopK" => {
                let mut x = dims(self, 0)?;
                let axis = wrap(attr_int(node, "axis", -1), x.len())?;
                let k = constants.whole_input(node, 1).and_then(|k| k.first().copied());
                x[axis] = k.map_or_else(|| self.fresh(), Dim::Known);
                Some(vec![Some(x.clone()), Some(x)])
            }
            "Size" => one(vec![]),
            "PRelu"
            | "LRN"
            | "Softmax"
            | "LogSoftmax"
            | "Hardmax"
            | "BatchNormalization"
            | "InstanceNormalization"
            | "LayerNormalization"
            | "GroupNormalization"
            | "RMSNormalization"
            | "LpNormalization"
            | "MeanVarianceNormalization"
            | "QuantizeLinear"
            | "DequantizeLinear"
            | "Cast"
            | "CastLike"
            | "Identity"
            | "Dropout"
            | "CumSum"
            | "Trilu"
            | "ScatterElements"
            | "ScatterND" => one(dims(self, 0)?),
            _ if op.starts_with("Reduce") => {
                let x = dims(self, 0)?;
                let keep = attr_int(node, "keepdims", 1) != 0;
                let axes = if given(1) {
                    axes(1, x.len())?
                } else if !attr_ints(node, "axes").is_empty() {
                    attr_ints(node, "axes").iter().map(|&a| wrap(a, x.len())).collect::<Option<_>>()?
                } else if attr_int(node, "noop_with_empty_axes", 0) != 0 {
                    vec![]
                } else {
                    (0..x.len()).collect()
                };
                let reduced = |i: &usize| axes.contains(i);
                one(x
                    .iter()
                    .enumerate()
                    .filter(|(i, _)| keep || !reduced(i))
                    .map(|(i, d)| if reduced(&i) { Dim::Known(1) } else { *d })
                    .collect())
            }
            _ if ELEMENTWISE.contains(&op) => one(dims(self, 0)?),
            _ => None,
        }
    }
}

/// Operators of one input whose result has its dimensions.
pub const ELEMENTWISE: &[&str] = &[
    "Abs",
    "Acos",
    "Acosh",
    "Asin",
    "Asinh",
    "Atan",
    "Atanh",
    "BitwiseNot",
    "Ceil",
    "Celu",
    "Clip",
    "Cos",
    "Cosh",
    "Elu",
    "Erf",
    "Exp",
    "Floor",
    "Gelu",
    "HardSigmoid",
    "HardSwish",
    "IsInf",
    "IsNaN",
    "LeakyRelu",
    "Log",
    "Mish",
    "Neg",
    "Not",
    "Reciprocal",
    "Relu",
    "Round",
    "Selu",
    "Shrink",
    "Sigmoid",
    "Sign",
    "Sin",
    "Sinh",
    "Softplus",
    "Softsign",
    "Sqrt",
    "Swish",
    "Tan",
    "Tanh",
    "ThresholdedRelu",
];

/// The product of dimensions, if it is a number or one symbol.
fn product(dims: &[Dim]) -> Option<Dim> {
    quotient(dims, &[])
}

/// The product of `a` over that of `b`, if it is a number or one symbol.
pub fn quotient(a: &[Dim], b: &[Dim]) -> Option<Dim> {
    let mut symbols: Vec<u32> = Vec::new();
    let mut above = 1i64;
    for d in a {
        match d {
            Dim::Known(n) => above = above.checked_mul(*n)?,
            Dim::Symbol(s) => symbols.push(*s),
        }
    }
    let mut below = 1i64;
    for d in b {
        match d {
            Dim::Known(n) => below = below.checked_mul(*n)?,
            Dim::Symbol(s) => {
                let at = symbols.iter().position(|x| x == s)?;
                symbols.swap_remove(at);
            }
        }
    }
    match symbols[..] {
        [] if below != 0 && above % below == 0 => Some(Dim::Known(above / below)),
        [s] if above == below && above != 0 => Some(Dim::Symbol(s)),
        _ => None,
    }
}

/// Elements that ONNX `Slice` takes of `n`.
pub fn slice_len(n: i64, start: i64, end: i64, step: i64) -> Option<i64> {
    let wrap = |v: i64| if v < 0 { v.saturating_add(n) } else { v };
    match step {
        0 => None,
        1.. => {
            let (a, b) = (wrap(start).clamp(0, n), wrap(end).clamp(0, n));
            Some(if b > a { (b - a - 1) / step + 1 } else { 0 })
        }
        _ => {
            let (a, b) = (wrap(start).clamp(-1, n - 1), wrap(end).clamp(-1, n - 1));
            Some(if a > b { (a - b - 1) / step.checked_neg()? + 1 } else { 0 })
        }
    }
}
