//! Scales and zero points; QuantizeLinear and DequantizeLinear.

use super::*;

impl<'a> Lowering<'a> {
    /// Scale (input `i`) and zero point (the next) of a tensor: one per channel or one at all.
    pub(super) fn params(&self, node: &'a NodeProto, i: usize) -> Result<Match<ScaleAndZeroPoint>> {
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
    pub(super) fn quant_params(&self, node: &'a NodeProto, i: usize) -> Result<Match<QuantParams>> {
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

    pub(super) fn quantize(&mut self, node: &'a NodeProto) -> Result<Match<Option<Value<'a>>>> {
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
                    name: label(node).to_owned(),
                    op: Quantize { source: source.clone() }.into(),
                    inputs: vec![],
                    output: Some(id),
                });
                id
            }
        };
        Ok(Ok(Some(Value::Quantized(id))))
    }

    pub(super) fn dequantize(&mut self, node: &'a NodeProto) -> Result<Match<Option<Value<'a>>>> {
        let (scale, zero_point) = match self.params(node, 1)? {
            Ok(p) => p,
            Err(why) => return Ok(Err(why)),
        };
        Ok(match self.value(node, 0) {
            Some(Value::Constant(tensor)) => {
                let zero_point = zero_points(node, tensor, &scale, zero_point)?;
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
}

/// Zero points of a constant: of its own type, as ONNX wants them, so that distances from them fit.
pub(super) fn zero_points(node: &NodeProto, tensor: &TensorProto, scale: &[f32], found: Option<(DataType, Vec<i32>)>) -> Result<Vec<i32>> {
    match found {
        None => Ok(vec![0; scale.len()]),
        Some((dtype, values)) if dtype as i32 == tensor.data_type => Ok(values),
        Some((dtype, _)) => Err(node_error(node, format!("its zero point is {dtype:?}, which the tensor `{}` is not", tensor.name))),
    }
}

/// The values of an int8, uint8 or int32 tensor; `None` for other types.
pub(super) fn int_data(t: &TensorProto) -> Result<Option<(DataType, Vec<i32>)>> {
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
