//! What is not computation: constants written as nodes, defaults of inputs, a batch size other than one, dead nodes.

use super::fold::pinned;
use super::tensor::{to_f32, to_raw};
use crate::Result;
use crate::import::onnx::*;
use std::collections::HashSet;
use tract_onnx::pb::tensor_shape_proto::dimension::Value as Dim;
use tract_onnx::pb::type_proto::Value as Type;

/// `Constant` nodes become initializers, and initializers (of IR version 3) are no graph inputs. Data is raw, real numbers
/// are float32.
pub fn constants(graph: &mut GraphProto) -> Result<()> {
    let initializers: HashSet<&str> = graph.initializer.iter().map(|t| t.name.as_str()).collect();
    graph.input.retain(|i| !initializers.contains(i.name.as_str()));
    let mut kept = Vec::with_capacity(graph.node.len());
    for mut node in std::mem::take(&mut graph.node) {
        let is_constant = is_op(&node, "Constant") && node.output.len() == 1;
        match if is_constant { constant_value(&mut node) } else { None } {
            Some(t) => graph.initializer.push(t),
            None => kept.push(node),
        }
    }
    graph.node = kept;
    for t in &mut graph.initializer {
        to_f32(t)?;
        to_raw(t);
    }
    Ok(())
}

fn constant_value(node: &mut NodeProto) -> Option<TensorProto> {
    let name = node.output[0].clone();
    let a = node.attribute.first_mut()?;
    Some(match a.name.as_str() {
        "value" => TensorProto { name, ..a.t.take()? },
        "value_float" => f32_tensor(&name, &[], &[a.f]),
        "value_floats" => f32_tensor(&name, &[a.floats.len()], &a.floats),
        "value_int" => i64_tensor(&name, &[], &[a.i]),
        "value_ints" => i64_tensor(&name, &[a.ints.len()], &a.ints),
        _ => return None,
    })
}

/// A fixed batch of N > 1 becomes free, and with it the reshapes that repeat N.
pub fn free_batch(graph: &mut GraphProto) {
    let mut batch = None;
    let mut values = graph.input.iter_mut().chain(&mut graph.output);
    let mut first = |rank4: bool, value: Option<&mut tract_onnx::pb::ValueInfoProto>| {
        let Some(Type::TensorType(t)) = value.and_then(|v| v.r#type.as_mut()).and_then(|t| t.value.as_mut()) else { return };
        let dims = &mut t.shape.get_or_insert_default().dim;
        if rank4 && dims.len() != 4 {
            return;
        }
        if let Some(Some(Dim::DimValue(n))) = dims.first_mut().map(|d| &mut d.value)
            && (batch.is_none() || batch == Some(*n))
            && *n > 1
        {
            batch = Some(*n);
            dims[0].value = Some(Dim::DimParam("batch".into()));
        }
    };
    first(true, values.next());
    for value in values {
        first(false, Some(value));
    }
    let Some(n) = batch else { return };
    let shapes: HashSet<&str> =
        graph.node.iter().filter(|n| is_op(n, "Reshape")).filter_map(|n| n.input.get(1).map(String::as_str)).collect();
    for t in graph.initializer.iter_mut().filter(|t| shapes.contains(t.name.as_str())) {
        let Ok(mut shape) = i64_data(t) else { continue };
        if shape.first() == Some(&n) {
            shape[0] = if shape.contains(&-1) { 0 } else { -1 }; // 0 copies the input's batch
            *t = i64_tensor(&t.name, &[shape.len()], &shape);
        }
    }
}

/// Removes nodes that nothing reads, and then constants that nothing reads.
pub fn remove_dead(graph: &mut GraphProto) {
    let mut live = pinned(graph);
    let mut kept: Vec<NodeProto> = Vec::with_capacity(graph.node.len());
    for node in std::mem::take(&mut graph.node).into_iter().rev() {
        if outputs(&node).any(|o| live.contains(o)) {
            live.extend(inputs(&node).map(String::from));
            kept.push(node);
        }
    }
    kept.reverse();
    graph.node = kept;
    prune(graph);
}
