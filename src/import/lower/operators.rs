//! Operators between DequantizeLinear and QuantizeLinear.

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

    pub(super) fn reduce_mean(&self, node: &NodeProto) -> Match<Pending> {
        let x = self.picture(node, 0)?;
        if !is_spatial_mean(node, self.constant(node, 1), Some(4)) {
            return Err("it reduces other axes than height and width".into());
        }
        let flat = attr_int(node, "keepdims", 1) == 0;
        Ok(Pending { flat, ..self.pending(node, Base::AveragePool { x, window: None, count_include_pad: false }) })
    }

    pub(super) fn add(&self, node: &NodeProto) -> Match<Pending> {
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

    pub(super) fn map(&self, node: &NodeProto, function: Function, gated: bool) -> Match<Pending> {
        let (x, flat) = self.real(node, 0)?;
        Ok(Pending { flat, ..self.pending(node, Base::Map { x, map: Mapping { function, gated, rounded: None } }) })
    }

    /// Mul of a tensor with a function of itself, which may have been quantized in between.
    pub(super) fn gate(&self, node: &NodeProto) -> Match<Pending> {
        for (i, other) in [(0, 1), (1, 0)] {
            let Ok((x, flat)) = self.real(node, i) else { continue };
            let map = match self.value(node, other) {
                Some(Value::Pending(Pending { base: Base::Map { x: of, map }, clamp, .. })) if *of == x && *clamp == Clamp::default() => {
                    *map
                }
                Some(&Value::Real { tensor, .. }) => match self.nodes.iter().find(|n| n.output == Some(tensor)) {
                    Some(Node { op: Op::Map(Map { map, clamp }), inputs, .. }) if *inputs == [x] && *clamp == Clamp::default() => {
                        Mapping { rounded: Some(self.tensors[tensor].quant), ..*map }
                    }
                    _ => continue,
                },
                _ => continue,
            };
            if !map.gated {
                return Ok(Pending { flat, ..self.pending(node, Base::Map { x, map: Mapping { gated: true, ..map } }) });
            }
        }
        Err("it is no product of a tensor and its own sigmoid".into())
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
        if attr_int(node, "axis", 0) != 1 {
            return Err("it does not join channels".into());
        }
        let xs = (0..node.input.len()).map(|i| self.picture(node, i)).collect::<Match<Vec<_>>>()?;
        Ok(self.pending(node, Base::Concat { xs }))
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
    let groups = usize::try_from(attr_int(node, "group", 1)).ok();
    groups.filter(|&g| g > 0 && weights.out.is_multiple_of(g)).ok_or_else(|| "its group attribute is wrong".into())
}

pub(super) fn hard_sigmoid(node: &NodeProto) -> Function {
    Function::HardSigmoid { alpha: attr_float(node, "alpha", 0.2), beta: attr_float(node, "beta", 0.5) }
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
