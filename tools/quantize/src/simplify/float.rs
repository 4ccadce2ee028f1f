//! float16, bfloat16 and float64 become float32, in weights, inputs, outputs and Casts.

use crate::onnx::*;
use crate::{Error, Result};
use half::{bf16, f16};
use std::collections::{HashMap, HashSet};
use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::type_proto::Value as Type;

const FLOAT: i32 = DataType::Float as i32;

fn is_other_float(data_type: i32) -> bool {
    [DataType::Float16, DataType::Bfloat16, DataType::Double].iter().any(|t| *t as i32 == data_type)
}

/// Rewrites the graph; every real number in it is float32 then.
pub fn to_f32(graph: &mut GraphProto) -> Result<()> {
    for t in &mut graph.initializer {
        convert(t)?;
    }
    for node in &mut graph.node {
        for a in &mut node.attribute {
            a.t.iter_mut().try_for_each(convert)?;
        }
        let to = node.attribute.iter_mut().find(|a| a.name == "to");
        if let Some(a) = to.filter(|a| node.op_type == "Cast" && is_other_float(a.i as i32)) {
            a.i = i64::from(FLOAT);
        }
    }
    for value in graph.input.iter_mut().chain(&mut graph.output) {
        if let Some(Type::TensorType(t)) = value.r#type.as_mut().and_then(|t| t.value.as_mut())
            && is_other_float(t.elem_type)
        {
            t.elem_type = FLOAT;
            graph.value_info.clear(); // tells the old types
        }
    }
    casts_to_identities(graph);
    Ok(())
}

/// A Cast from float to float hands its input on. Types follow from initializers and the operators that make integers.
fn casts_to_identities(graph: &mut GraphProto) {
    let mut whole: HashSet<String> = graph.initializer.iter().filter(|t| t.data_type != FLOAT).map(|t| t.name.clone()).collect();
    let is_float: HashMap<&str, bool> = graph
        .input
        .iter()
        .filter_map(|i| {
            let Type::TensorType(t) = i.r#type.as_ref()?.value.as_ref()?;
            Some((i.name.as_str(), t.elem_type == FLOAT))
        })
        .collect();
    whole.extend(is_float.iter().filter(|(_, f)| !**f).map(|(n, _)| n.to_string()));
    for node in &mut graph.node {
        let to_float = attr_int(node, "to", 0) == i64::from(FLOAT);
        let makes_integers = match node.op_type.as_str() {
            "Cast" => !to_float,
            "Shape" | "Size" | "ArgMax" | "ArgMin" | "NonZero" | "QuantizeLinear" | "Equal" | "Less" | "Greater" | "Not" => true,
            "DequantizeLinear" => false,
            _ => node.input.first().is_some_and(|n| whole.contains(n)),
        };
        if node.op_type == "CastLike" && inputs(node).all(|n| !whole.contains(n)) {
            node.op_type = "Identity".into();
            node.input.truncate(1);
        }
        if makes_integers {
            whole.extend(outputs(node).map(String::from));
        } else if node.op_type == "Cast" && node.input.first().is_some_and(|n| !whole.contains(n)) {
            node.op_type = "Identity".into();
            node.attribute.clear();
        }
    }
}

fn convert(t: &mut TensorProto) -> Result<()> {
    let widened: Vec<f32> = match DataType::try_from(t.data_type) {
        Ok(kind @ (DataType::Float16 | DataType::Bfloat16)) => {
            let bits: Vec<u16> = if t.raw_data.is_empty() {
                t.int32_data.iter().map(|&v| v as u16).collect()
            } else {
                t.raw_data.as_chunks::<2>().0.iter().map(|b| u16::from_le_bytes(*b)).collect()
            };
            let wide = |b: &u16| if kind == DataType::Float16 { f16::from_bits(*b).to_f32() } else { bf16::from_bits(*b).to_f32() };
            bits.iter().map(wide).collect()
        }
        Ok(DataType::Double) if t.raw_data.is_empty() => t.double_data.iter().map(|&v| v as f32).collect(),
        Ok(DataType::Double) => t.raw_data.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b) as f32).collect(),
        _ => return Ok(()),
    };
    if widened.iter().any(|v| !v.is_finite()) {
        return Err(Error::tensor(&t.name, "it holds values that float32 does not; the training probably diverged"));
    }
    *t = f32_tensor(&t.name, &tensor_dims(t)?, &widened);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_weights_keep_their_values() {
        let raw_data = [0x3c00u16, 0xc000, 0x0001].iter().flat_map(|v| v.to_le_bytes()).collect();
        let mut t = TensorProto { name: "w".into(), dims: vec![3], data_type: DataType::Float16 as i32, raw_data, ..Default::default() };
        convert(&mut t).unwrap();
        assert_eq!(f32_data(&t).unwrap(), [1.0, -2.0, 2f32.powi(-24)]);
        let mut t = TensorProto { dims: vec![1], data_type: DataType::Bfloat16 as i32, int32_data: vec![0x3fc0], ..Default::default() };
        convert(&mut t).unwrap();
        assert_eq!(f32_data(&t).unwrap(), [1.5]);
        let mut t = TensorProto { dims: vec![1], data_type: DataType::Double as i32, double_data: vec![1e300], ..Default::default() };
        assert!(convert(&mut t).is_err());
    }
}
