//! Constant weights and biases as the kernels want them: signed bytes, output channels outermost.

use super::quantization::{int_data, zero_points};
use super::*;

/// Weights by their distances from the zero point, for each output and each of its weights: signed bytes, and whether each row holds two kernels.
pub(super) fn signed_bytes(out: usize, per_out: usize, distance: impl Fn(usize, usize) -> i32) -> Match<(Vec<i8>, bool)> {
    let distance = &distance;
    let distances = || (0..out).flat_map(|o| (0..per_out).map(move |k| distance(o, k)));
    if let Some(data) = distances().map(|d| i8::try_from(d).ok()).collect::<Option<Vec<i8>>>() {
        return Ok((data, false));
    }
    if distances().any(|d| d.abs() > 254) {
        return Err("its weights reach 255 steps from their zero point; quantize them symmetrically".into());
    }
    // Asymmetric weights need nine bits: the sum of two signed bytes, each multiplied with the same input.
    let row = |o: usize| {
        let half = move |k: usize| distance(o, k) / 2;
        (0..per_out).map(half).chain((0..per_out).map(move |k| distance(o, k) - half(k)))
    };
    Ok(((0..out).flat_map(row).map(|d| d as i8).collect(), true))
}

impl<'a> Lowering<'a> {
    /// Weights of an operator in QDQ form.
    pub(super) fn weights(&self, node: &NodeProto, rank: usize, out_axis: usize) -> Match<Stored> {
        match self.value(node, 1) {
            Some(Value::DequantizedConstant(w)) => Self::constant_weights(w, rank, out_axis),
            _ => Err("its weights are not a quantized constant".into()),
        }
    }

    /// Weights with `out_axis` as output channels: `[out, …]` signed bytes, and one scale each.
    pub(super) fn constant_weights(w: &ConstQuant<'_>, rank: usize, out_axis: usize) -> Match<Stored> {
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
        let (data, twice) = signed_bytes(out, per_out, |o, k| at(o, k) - zero(o))?;
        let per_out = data.len() / out;
        let scale = if w.scale.len() == 1 { vec![w.scale[0]; out] } else { w.scale.clone() };
        Ok((Weights { data, out, per_out, scale, bias: vec![0; out] }, dims, twice))
    }

    /// Bias as integers at scale `x · w`. A float bias, or one at another scale, is rounded to it.
    pub(super) fn bias(&self, node: &NodeProto, i: usize, x_scale: f32, weights: &mut Weights) -> Match<()> {
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

    /// The weights at input `i`, their scale and zero point next, and an int32 bias at input `bias`.
    pub(super) fn integer_weights(
        &self,
        node: &'a NodeProto,
        i: usize,
        rank: usize,
        out_axis: usize,
        bias: usize,
    ) -> Result<Match<Stored>> {
        let (scale, zero_point) = match self.params(node, i + 1)? {
            Ok(p) => p,
            Err(why) => return Ok(Err(why)),
        };
        let Some(tensor) = self.constant(node, i) else { return Ok(Err("its weights are computed".into())) };
        let zero_point = zero_points(node, tensor, &scale, zero_point)?;
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
}
