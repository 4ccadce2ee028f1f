//! Operators between DequantizeLinear and QuantizeLinear.

use super::quantization::int_data;
use super::*;

impl<'a> Lowering<'a> {
    pub(super) fn conv(&self, node: &NodeProto) -> Match<Pending> {
        let x = self.picture(node, 0)?;
        let (mut weights, dims, _) = self.weights(node, 4, 0)?;
        let window = window(node, Some([dims[2], dims[3]]))?;
        self.bias(node, 2, self.tensors[x].quant.scale, &mut weights)?;
        let groups = groups(node, &weights)?;
        Ok(self.pending(node, Base::Conv { x, weights: Arc::new(weights), window, groups }))
    }

    pub(super) fn gemm(&self, node: &NodeProto) -> Match<Pending> {
        let (x, flat) = self.real(node, 0)?;
        // What a float operator made may be a vector: a Gemm takes nothing else.
        let entry = || self.nodes.iter().any(|n| n.output == Some(x) && matches!(n.op, Op::Quantize(_)));
        if !flat && !entry() {
            return Err("its input is not known to be a vector".into());
        }
        if attr_int(node, "transA", 0) != 0 || attr_float(node, "alpha", 1.0) != 1.0 || attr_float(node, "beta", 1.0) != 1.0 {
            return Err("transA, alpha or beta are set".into());
        }
        let (mut weights, _, twice) = self.weights(node, 2, if attr_int(node, "transB", 0) != 0 { 0 } else { 1 })?;
        self.bias(node, 2, self.tensors[x].quant.scale, &mut weights)?;
        Ok(Pending { flat: true, ..self.pending(node, Base::Gemm { x, weights: Arc::new(weights), twice }) })
    }

    pub(super) fn mat_mul(&self, node: &NodeProto) -> Match<Pending> {
        let (x, flat) = self.real(node, 0)?;
        if !flat {
            return Err("its input is not known to be a vector".into());
        }
        let (weights, _, twice) = self.weights(node, 2, 1)?;
        Ok(Pending { flat: true, ..self.pending(node, Base::Gemm { x, weights: Arc::new(weights), twice }) })
    }

    pub(super) fn pool(&self, node: &NodeProto, max: bool) -> Match<Pending> {
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

    pub(super) fn global_average_pool(&self, node: &NodeProto) -> Match<Pending> {
        let (x, _) = self.real(node, 0)?;
        Ok(self.pending(node, Base::AveragePool { x, window: None, count_include_pad: false }))
    }

    pub(super) fn global_max_pool(&self, node: &NodeProto) -> Match<Pending> {
        let x = self.picture(node, 0)?;
        Ok(self.pending(node, Base::GlobalMaxPool { x }))
    }

    /// A reduction over height and width.
    pub(super) fn reduce(&self, node: &NodeProto, base: impl Fn(TensorId) -> Base) -> Match<Pending> {
        let x = self.picture(node, 0)?;
        if !is_spatial_mean(node, self.constant(node, 1), Some(4)) {
            return Err("it reduces other axes than height and width".into());
        }
        let flat = attr_int(node, "keepdims", 1) == 0;
        Ok(Pending { flat, ..self.pending(node, base(x)) })
    }

    pub(super) fn add(&self, node: &NodeProto) -> Match<Pending> {
        match (self.value(node, 0), self.value(node, 1)) {
            (Some(Value::Pending(p @ Pending { base: Base::Conv { .. }, .. })), Some(&Value::Real { tensor, flat: false }))
            | (Some(&Value::Real { tensor, flat: false }), Some(Value::Pending(p @ Pending { base: Base::Conv { .. }, .. }))) => {
                if p.residual.is_some() || p.clamp != Clamp::default() {
                    return Err("only a convolution's plain result is added without its own quantization".into());
                }
                Ok(Pending { residual: Some(tensor), ..p.clone() })
            }
            (Some(Value::Pending(p @ Pending { base: Base::Gemm { .. }, .. })), Some(_)) => self.add_bias(node, p, 1),
            (Some(_), Some(Value::Pending(p @ Pending { base: Base::Gemm { .. }, .. }))) => self.add_bias(node, p, 0),
            _ => self.arithmetic(node, Arithmetic::Add),
        }
    }

    /// MatMul + Add of a constant is a Gemm with bias.
    pub(super) fn add_bias(&self, node: &NodeProto, p: &Pending, i: usize) -> Match<Pending> {
        match &p.base {
            Base::Gemm { x, weights, twice } if p.clamp == Clamp::default() && weights.bias.iter().all(|&b| b == 0) => {
                let mut weights = Weights::clone(weights);
                self.bias(node, i, self.tensors[*x].quant.scale, &mut weights)?;
                Ok(Pending { base: Base::Gemm { x: *x, weights: Arc::new(weights), twice: *twice }, ..p.clone() })
            }
            _ => Err("an operand is not quantized".into()),
        }
    }

    pub(super) fn clamp(&self, node: &NodeProto, lo: f32, hi: f32) -> Match<Pending> {
        let p = match self.value(node, 0) {
            Some(Value::Pending(p)) => p.clone(),
            Some(&Value::Real { tensor, flat }) => Pending { flat, ..self.pending(node, Base::Same { x: tensor }) },
            _ => return Err("its input is not quantized".into()),
        };
        // clamp(clamp(x, a, b), c, d) with ONNX's max-then-min order
        let bound = |v: f32| v.max(lo).min(hi);
        Ok(Pending { clamp: Clamp { lo: bound(p.clamp.lo), hi: bound(p.clamp.hi) }, ..p })
    }

    /// Input `i` as a function of one quantized tensor, and whether it is a vector.
    fn expression(&self, node: &NodeProto, i: usize) -> Match<(TensorId, bool, Expression)> {
        let (x, flat, e, clamp) = match self.value(node, i) {
            Some(&Value::Real { tensor, flat }) => {
                return Ok((tensor, flat || self.tensors[tensor].flat, Expression::X));
            }
            Some(Value::Pending(Pending { base: Base::Map { x, function }, flat, clamp, .. })) => (*x, *flat, function.clone(), *clamp),
            Some(Value::Pending(Pending { base: Base::Same { x }, flat, clamp, .. })) => (*x, *flat, Expression::X, *clamp),
            _ => return Err(format!("input {i} is not quantized")),
        };
        Ok((x, flat || self.tensors[x].flat, clamped(e, clamp)))
    }

    fn of_one(&self, node: &NodeProto, x: TensorId, flat: bool, function: Expression) -> Match<Pending> {
        if function.nodes() > MAX_NODES {
            return Err(format!("too many functions of one tensor ({MAX_NODES}) without a quantization in between"));
        }
        Ok(Pending { flat, ..self.pending(node, Base::Map { x, function }) })
    }

    pub(super) fn map(&self, node: &NodeProto, function: Function) -> Match<Pending> {
        let (x, flat, e) = self.expression(node, 0)?;
        self.of_one(node, x, flat, Expression::Of(function, Box::new(e)))
    }

    pub(super) fn hard_swish(&self, node: &NodeProto) -> Match<Pending> {
        let (x, flat) = self.real(node, 0)?;
        self.of_one(node, x, flat, Expression::hard_swish())
    }

    /// Input `i` as a constant that holds one number, with its rank.
    fn scalar(&self, node: &NodeProto, i: usize) -> Option<(f32, usize)> {
        let (values, tensor) = match self.value(node, i)? {
            Value::Constant(t) if t.data_type == DataType::Float as i32 => (f32_data(t).ok()?, *t),
            Value::Constant(t) if t.data_type == DataType::Int64 as i32 => (i64_data(t).ok()?.into_iter().map(|v| v as f32).collect(), *t),
            Value::DequantizedConstant(q) if q.scale.len() == 1 => {
                let (_, values) = int_data(q.tensor).ok()??;
                (values.into_iter().map(|v| (v - q.zero_point[0]) as f32 * q.scale[0]).collect(), q.tensor)
            }
            _ => return None,
        };
        let [value] = values[..] else { return None };
        Some((value, tensor.dims.len()))
    }

    /// Arithmetic on two tensors, or on functions of one.
    pub(super) fn arithmetic(&self, node: &NodeProto, op: Arithmetic) -> Match<Pending> {
        let rank = |flat: bool| if flat { 2 } else { 4 };
        for (i, other) in [(0, 1), (1, 0)] {
            if let Some((c, dims)) = self.scalar(node, other) {
                let (x, flat, e) = self.expression(node, i)?;
                if dims > rank(flat) {
                    return Err("its constant has more dimensions than its input".into());
                }
                let c = Expression::Constant(c);
                let e = if i == 0 { Expression::pair(op, e, c) } else { Expression::pair(op, c, e) };
                return self.of_one(node, x, flat, e);
            }
        }
        let ((a, flat, ea), (b, flat_b, eb)) = (self.expression(node, 0)?, self.expression(node, 1)?);
        if flat != flat_b {
            return Err("one operand is a vector, the other a picture".into());
        }
        if a == b {
            return self.of_one(node, a, flat, Expression::pair(op, ea, eb));
        }
        if ea != Expression::X || eb != Expression::X {
            return Err("an operand is not quantized".into());
        }
        // A tensor times its own sigmoid, which is quantized in between: still a function of one.
        for (x, gate) in [(a, b), (b, a)].into_iter().filter(|_| op == Arithmetic::Mul) {
            if let Some(Node { op: Op::Map(Map { function, clamp }), inputs, .. }) = self.nodes.iter().find(|n| n.output == Some(gate))
                && *inputs == [x]
            {
                let gate = Expression::Rounded(self.tensors[gate].quant, Box::new(clamped(function.clone(), *clamp)));
                return self.of_one(node, x, flat, Expression::pair(Arithmetic::Mul, Expression::X, gate));
            }
        }
        let base = match op {
            Arithmetic::Add => Base::Add { a, b },
            Arithmetic::Sub => Base::Sub { a, b },
            Arithmetic::Mul => Base::Mul { a, b },
            Arithmetic::Div | Arithmetic::Pow => return Err("of two tensors it has no int8 form".into()),
        };
        Ok(Pending { flat, ..self.pending(node, base) })
    }

    pub(super) fn prelu(&self, node: &NodeProto) -> Match<Pending> {
        if let Some((alpha, _)) = self.scalar(node, 1) {
            return self.map(node, Function::LeakyRelu { alpha });
        }
        let x = self.picture(node, 0)?;
        let slope = self.constant(node, 1).filter(|t| is_per_channel(&t.dims)).and_then(|t| f32_data(t).ok());
        let slope = slope.ok_or("its slope is no constant with one number for each channel")?;
        Ok(self.pending(node, Base::PRelu { x, slope: slope.into() }))
    }

    pub(super) fn clip(&self, node: &NodeProto) -> Match<Pending> {
        let constant = |name: &str| match self.values.get(name) {
            Some(Value::Constant(t)) => Some(*t),
            _ => None,
        };
        let (lo, hi) = clamp_bounds(node, constant).ok_or("its bounds are computed")?;
        if lo > hi {
            return Err("its lower bound is above its upper one".into());
        }
        self.clamp(node, lo, hi)
    }

    pub(super) fn concat(&self, node: &NodeProto) -> Match<Pending> {
        let axis = attr_int(node, "axis", 0);
        let xs = (0..node.input.len()).map(|i| self.picture(node, i)).collect::<Match<Vec<_>>>()?;
        let base = match if axis < 0 { axis + 4 } else { axis } {
            1 => Base::Concat { xs },
            side @ (2 | 3) => Base::Join { xs, side: side as usize - 2 },
            _ => return Err("it joins neither channels nor rows nor columns".into()),
        };
        Ok(self.pending(node, base))
    }

    /// Operators that only change how a value is seen.
    pub(super) fn view(&self, node: &NodeProto) -> Option<Value<'a>> {
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
}

fn clamped(e: Expression, Clamp { lo, hi }: Clamp) -> Expression {
    if (Clamp { lo, hi }) == Clamp::default() { e } else { Expression::Of(Function::Clip { lo, hi }, Box::new(e)) }
}

/// Dimensions of a constant that has one number for each channel of a picture.
pub(super) fn is_per_channel(dims: &[i64]) -> bool {
    matches!(dims, [_, 1, 1] | [1, _, 1, 1])
}

/// The function of a unary operator; its attributes are bound to it.
pub(super) fn function(node: &NodeProto) -> Option<Function> {
    let alpha = |otherwise: f32| attr_float(node, "alpha", otherwise);
    Some(match node.op_type.as_str() {
        "Abs" => Function::Abs,
        "Celu" => Function::Celu { alpha: alpha(1.0) },
        "Elu" => Function::Elu { alpha: alpha(1.0) },
        "Erf" => Function::Erf,
        "Exp" => Function::Exp,
        "Gelu" => match attr(node, "approximate").map_or(&b"none"[..], |a| &a.s) {
            b"none" => Function::Gelu,
            b"tanh" => Function::GeluTanh,
            _ => return None,
        },
        "HardSigmoid" => Function::HardSigmoid { alpha: alpha(0.2), beta: attr_float(node, "beta", 0.5) },
        "LeakyRelu" => Function::LeakyRelu { alpha: alpha(0.01) },
        "Log" => Function::Log,
        "Mish" => Function::Mish,
        "Neg" => Function::Neg,
        "Reciprocal" => Function::Reciprocal,
        // The standard's numbers, in full.
        "Selu" => Function::Selu { alpha: alpha(1.673_263_2), gamma: attr_float(node, "gamma", 1.050_701) },
        "Sigmoid" => Function::Sigmoid,
        "Softplus" => Function::Softplus,
        "Softsign" => Function::Softsign,
        "Sqrt" => Function::Sqrt,
        "Tanh" => Function::Tanh,
        _ => return None,
    })
}

/// Relu's bounds, or Clip's where they are constants.
pub fn clamp_bounds<'t>(node: &NodeProto, constant: impl Fn(&str) -> Option<&'t TensorProto>) -> Option<(f32, f32)> {
    if is_op(node, "Relu") {
        return Some((0.0, f32::INFINITY));
    }
    if !is_op(node, "Clip") {
        return None;
    }
    let bound = |i: usize, name: &str, otherwise: f32| match node.input.get(i).filter(|s| !s.is_empty()) {
        None => Some(attr(node, name).map_or(otherwise, |a| a.f)),
        Some(name) => f32_data(constant(name)?).ok()?.first().copied(),
    };
    Some((bound(1, "min", f32::NEG_INFINITY)?, bound(2, "max", f32::INFINITY)?))
}

/// Whether a ReduceMean of a tensor of this rank takes the mean over height and width. `axes` is its second input, if it has one.
pub fn is_spatial_mean(node: &NodeProto, axes: Option<&TensorProto>, rank: Option<usize>) -> bool {
    let from_input = axes.and_then(|t| i64_data(t).ok());
    let mut axes = from_input.unwrap_or_else(|| attr_ints(node, "axes").to_vec());
    axes.iter_mut().filter(|a| **a < 0).for_each(|a| *a += 4);
    axes.sort_unstable();
    rank == Some(4) && axes == [2, 3]
}

pub(super) fn groups(node: &NodeProto, weights: &Weights) -> Match<usize> {
    groups_of(node, weights.out)
}

/// Groups of `channels` channels.
pub(super) fn groups_of(node: &NodeProto, channels: usize) -> Match<usize> {
    let groups = usize::try_from(attr_int(node, "group", 1)).ok();
    groups.filter(|&g| g > 0 && channels.is_multiple_of(g)).ok_or_else(|| "its group attribute is wrong".into())
}

/// Geometry from a node's attributes; `kernel` where the weights give it.
pub(super) fn window(node: &NodeProto, kernel: Option<[usize; 2]>) -> Match<Window> {
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
