//! What is not computation: constants written as nodes, identities, a batch size other than one.

use crate::onnx::*;
use std::collections::{HashMap, HashSet};
use tract_onnx::pb::tensor_shape_proto::dimension::Value as Dim;
use tract_onnx::pb::type_proto::Value as Type;

/// `Constant` nodes become initializers; initializers are no graph inputs.
pub fn constants_to_initializers(graph: &mut GraphProto) {
    let constants: HashSet<String> = graph.initializer.iter().map(|t| t.name.clone()).collect();
    graph.input.retain(|i| !constants.contains(&i.name));
    let mut kept = Vec::with_capacity(graph.node.len());
    for node in std::mem::take(&mut graph.node) {
        let value = if is_op(&node, "Constant") && node.output.len() == 1 { constant_value(&node) } else { None };
        match value {
            Some(t) => graph.initializer.push(t),
            None => kept.push(node),
        }
    }
    graph.node = kept;
}

fn constant_value(node: &NodeProto) -> Option<TensorProto> {
    let name = node.output[0].as_str();
    let a = node.attribute.first()?;
    Some(match a.name.as_str() {
        "value" => TensorProto { name: name.into(), ..a.t.clone()? },
        "value_float" => f32_tensor(name, &[], &[a.f]),
        "value_floats" => f32_tensor(name, &[a.floats.len()], &a.floats),
        "value_int" => i64_tensor(name, &[], &[a.i]),
        "value_ints" => i64_tensor(name, &[a.ints.len()], &a.ints),
        _ => return None,
    })
}

/// True for nodes whose first output is their first input: `Identity`, and `Dropout` at inference.
fn is_transparent(node: &NodeProto, graph_constants: &HashMap<String, bool>) -> bool {
    let not_training = || {
        let flag = node.input.get(2).filter(|s| !s.is_empty());
        flag.is_none_or(|name| graph_constants.get(name) == Some(&false))
    };
    is_op(node, "Identity") || (is_op(node, "Dropout") && not_training())
}

/// Removes nodes that hand their input on. One that makes a graph output gives its name to the node before it.
pub fn remove_identities(graph: &mut GraphProto) {
    let captured = captured_names(graph);
    let results: HashSet<String> = graph.output.iter().map(|o| o.name.clone()).collect();
    let used = use_counts(graph);
    let booleans = graph.initializer.iter().filter(|t| t.data_type == 9);
    let truth = |t: &TensorProto| t.raw_data.iter().any(|&b| b != 0) || t.int32_data.iter().any(|&b| b != 0);
    let booleans: HashMap<String, bool> = booleans.map(|t| (t.name.clone(), truth(t))).collect();
    let computed: HashSet<String> = graph.node.iter().flat_map(|n| outputs(n).map(String::from)).collect();
    let mut alias: HashMap<String, String> = HashMap::new();
    let mut renamed: HashMap<String, String> = HashMap::new();
    graph.node.retain_mut(|node| {
        for input in &mut node.input {
            if let Some(source) = alias.get(input) {
                *input = source.clone();
            }
        }
        let only_output = outputs(node).skip(1).all(|o| !used.contains_key(o));
        let (Some(input), Some(output)) = (node.input.first(), node.output.first()) else {
            return true;
        };
        if !is_transparent(node, &booleans) || !only_output || captured.contains(output) || input.is_empty() {
            return true;
        }
        if results.contains(output) {
            let free = computed.contains(input) && !results.contains(input) && !captured.contains(input);
            if !free || renamed.contains_key(input) {
                return true;
            }
            renamed.insert(input.clone(), output.clone());
            return false;
        }
        alias.insert(output.clone(), input.clone());
        false
    });
    for node in &mut graph.node {
        for name in node.input.iter_mut().chain(&mut node.output) {
            if let Some(new) = renamed.get(name) {
                *name = new.clone();
            }
        }
    }
}

/// A fixed batch of N > 1 becomes free, and with it the reshapes that repeat N.
pub fn free_batch(graph: &mut GraphProto) {
    let constants: HashSet<String> = graph.initializer.iter().map(|t| t.name.clone()).collect();
    let mut batch = None;
    let mut values = graph.input.iter_mut().filter(|i| !constants.contains(&i.name)).chain(&mut graph.output);
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
    graph.value_info.clear();
    let shapes: HashSet<String> = graph.node.iter().filter(|n| is_op(n, "Reshape")).filter_map(|n| n.input.get(1).cloned()).collect();
    for t in graph.initializer.iter_mut().filter(|t| shapes.contains(&t.name)) {
        let Ok(mut shape) = i64_data(t) else { continue };
        if shape.first() == Some(&n) {
            shape[0] = if shape.contains(&-1) { 0 } else { -1 }; // 0 copies the input's batch
            *t = i64_tensor(&t.name, &[shape.len()], &shape);
        }
    }
}

/// Writes height, width and channels into the data input; the batch stays as it is.
pub fn fix_size(graph: &mut GraphProto, name: &str, shape: &[usize]) {
    let Some(input) = graph.input.iter_mut().find(|i| i.name == name) else { return };
    if let Some(Type::TensorType(t)) = input.r#type.as_mut().and_then(|t| t.value.as_mut()) {
        for (dim, &size) in t.shape.get_or_insert_default().dim.iter_mut().zip(shape).skip(1) {
            dim.value = Some(Dim::DimValue(size as i64));
        }
    }
}
