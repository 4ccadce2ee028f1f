//! Operators on integers (QOperator form): DequantizeLinear, operator and QuantizeLinear in one node.

use super::operators::{groups, window};
use super::*;

impl<'a> Lowering<'a> {
    /// The quantized tensor at input `i`; the node must state its own scale and zero point.
    pub(super) fn integer(&self, node: &'a NodeProto, i: usize) -> Result<Match<TensorId>> {
        Ok(match (self.value(node, i), self.quant_params(node, i + 1)?) {
            (Some(&Value::Quantized(t)), Ok(q)) if q == self.tensors[t].quant => Ok(t),
            (Some(Value::Quantized(_)), Ok(_)) => Err(format!("the scale or zero point of input {i} differ from those it was made with")),
            (_, Err(why)) => Err(why),
            _ => Err(format!("input {i} is not quantized")),
        })
    }

    pub(super) fn integer_op(&mut self, node: &'a NodeProto) -> Result<Match<Option<Value<'a>>>> {
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
            "QLinearMul" => {
                let (a, b) = (need!(self.integer(node, 0)?), need!(self.integer(node, 3)?));
                (Pending { flat: flat(self, a) && flat(self, b), ..self.pending(node, Base::Mul { a, b }) }, 6)
            }
            op @ ("QLinearSigmoid" | "QLinearLeakyRelu") => {
                let x = need!(self.integer(node, 0)?);
                let function = match op {
                    "QLinearSigmoid" => Function::Sigmoid,
                    _ => Function::LeakyRelu { alpha: attr_float(node, "alpha", 0.01) },
                };
                let base = Base::Map { x, function: Expression::of(function) };
                (Pending { flat: flat(self, x), ..self.pending(node, base) }, 3)
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
    pub(super) fn integer_view(&mut self, node: &'a NodeProto) -> Result<Match<Option<Value<'a>>>> {
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
}
