//! Inputs and outputs as a file has them, and as a caller uses them: real values in, real values out.
//!
//! An input of float16, bfloat16, float64 or of integers becomes float32. Where an integer input is dequantized by
//! constant parameters (TensorFlow Lite), the float32 values are the *real* ones, and a QuantizeLinear at the entry makes
//! exactly the integers that the file wants. Where it is used as it is (`uint8` pictures that the model casts), the
//! float32 values are those numbers. Outputs of integers become real values the same way.

use super::facts::{Constants, stated};
use super::fold::pinned;
use super::quantized::VIEWS;
use super::tensor::*;
use crate::import::onnx::*;
use crate::{Error, Result};
use std::collections::{HashMap, HashSet};
use tract_onnx::pb::tensor_shape_proto::dimension::Value as Dim;
use tract_onnx::pb::type_proto::Value as Type;

/// What a caller wants of a file's inputs and outputs.
#[derive(Debug, Clone, Default)]
pub struct Interface {
    /// Height and width, where the file leaves them open.
    pub size: Option<[usize; 2]>,
    /// The outputs that are computed, by name and in this order; none: as the file has them.
    pub outputs: Vec<String>,
    /// Integer outputs become real values.
    pub real_outputs: bool,
}

fn elem_type(value: &tract_onnx::pb::ValueInfoProto) -> i32 {
    stated(value.r#type.as_ref()).map_or(0, |s| s.0)
}

fn set_elem_type(value: &mut tract_onnx::pb::ValueInfoProto, to: i32) {
    if let Some(Type::TensorType(t)) = value.r#type.as_mut().and_then(|t| t.value.as_mut()) {
        t.elem_type = to;
    }
}

/// Keeps these outputs of a graph.
pub fn choose_outputs(graph: &mut GraphProto, names: &[String]) -> Result<()> {
    let mut kept = Vec::new();
    for name in names {
        let Some(output) = graph.output.iter().find(|o| o.name == *name) else {
            let names: Vec<&str> = graph.output.iter().map(|o| o.name.as_str()).collect();
            return Err(Error::Usage(format!("the model has no output `{name}`; it has `{}`", names.join("`, `"))));
        };
        if kept.contains(output) {
            return Err(Error::Usage(format!("output `{name}` is chosen twice")));
        }
        kept.push(output.clone());
    }
    graph.output = kept;
    Ok(())
}

/// Floats of other widths become float32 in inputs, outputs, attributes and casts.
pub fn widen(graph: &mut GraphProto) -> Result<()> {
    for value in graph.input.iter_mut().chain(&mut graph.output) {
        if is_other_float(elem_type(value)) {
            set_elem_type(value, FLOAT);
        }
    }
    widen_nodes(graph)
}

fn widen_nodes(graph: &mut GraphProto) -> Result<()> {
    for node in &mut graph.node {
        for a in &mut node.attribute {
            a.t.iter_mut().try_for_each(to_f32)?;
            for inner in a.g.iter_mut().chain(&mut a.graphs) {
                inner.initializer.iter_mut().try_for_each(to_f32)?;
                widen_nodes(inner)?;
            }
            if ["to", "dtype", "output_dtype"].contains(&a.name.as_str()) && is_other_float(a.i as i32) {
                a.i = i64::from(FLOAT);
            }
        }
        // In which width scales are multiplied has no meaning any more.
        if node.op_type == "DequantizeLinear" || node.op_type == "QuantizeLinear" {
            node.attribute.retain(|a| a.name != "precision" && !(a.name == "output_dtype" && node.op_type == "DequantizeLinear"));
        }
    }
    Ok(())
}

/// Writes height and width into the picture input where the file leaves them open.
pub fn fix_size(graph: &mut GraphProto, size: [usize; 2]) -> Result<()> {
    let (name, _, dims) = picture_input(graph)?;
    let Some(at) = sides(&dims) else {
        return Err(Error::Usage(format!("the size cannot be set: input `{name}` is no picture, it has {} dimensions", dims.len())));
    };
    for (at, size) in at.into_iter().zip(size) {
        if let Some(fixed) = dims[at].filter(|d| *d != size) {
            return Err(Error::Usage(format!(
                "dimension {at} of input `{name}` is fixed at {fixed} and cannot be {size}; export the model with a dynamic size"
            )));
        }
    }
    let Some(input) = graph.input.iter_mut().find(|i| i.name == name) else { return Ok(()) };
    if let Some(Type::TensorType(t)) = input.r#type.as_mut().and_then(|t| t.value.as_mut())
        && let Some(shape) = &mut t.shape
    {
        for (at, size) in at.into_iter().zip(size) {
            shape.dim[at].value = Some(Dim::DimValue(size as i64));
        }
    }
    Ok(())
}

/// Where height and width are among a picture's dimensions.
fn sides(dims: &[Option<usize>]) -> Option<[usize; 2]> {
    (dims.len() == 4).then(|| if channels_last(dims) { [1, 2] } else { [2, 3] })
}

/// Height and width for an input that leaves them open; `None` where it does not, or is no picture.
pub fn open_size(graph: &GraphProto, otherwise: [usize; 2]) -> Result<Option<[usize; 2]>> {
    let (_, _, dims) = picture_input(graph)?;
    let found = sides(&dims).map(|at| [dims[at[0]], dims[at[1]]]).filter(|size| size.contains(&None));
    Ok(found.map(|[h, w]| [h.unwrap_or(otherwise[0]), w.unwrap_or(otherwise[1])]))
}

/// True for N×H×W×C dimensions of a picture.
pub fn channels_last(dims: &[Option<usize>]) -> bool {
    let few = |d: Option<usize>| matches!(d, Some(1 | 3 | 4));
    dims.len() == 4 && few(dims[3]) && !few(dims[1])
}

struct Constant<'a>(HashMap<&'a str, &'a TensorProto>);

impl Constants for Constant<'_> {
    fn constant(&self, name: &str) -> Option<&TensorProto> {
        self.0.get(name).copied()
    }
}

/// Makes integer inputs float32. True if the graph changed.
pub fn real_inputs(graph: &mut GraphProto) -> bool {
    let initializers: HashSet<&str> = graph.initializer.iter().map(|t| t.name.as_str()).collect();
    let integers: Vec<(String, i32)> = graph
        .input
        .iter()
        .filter(|i| !initializers.contains(i.name.as_str()))
        .map(|i| (i.name.clone(), elem_type(i)))
        .filter(|(_, kind)| range(*kind).is_some() && width(*kind).is_some())
        .collect();
    let captured = captured_names(graph);
    let mut names = all_names(graph);
    let mut changed = false;
    for (name, kind) in integers {
        if captured.contains(&name) || graph.output.iter().any(|o| o.name == name) {
            continue;
        }
        let integer = fresh_name(&mut names, &format!("{name}.integers"));
        let entry = match dequantization(graph, &name) {
            Some((scale, zero)) => {
                let zero = zero.unwrap_or_else(|| {
                    let zero = fresh_name(&mut names, &format!("{name}.zero"));
                    graph.initializer.extend(encode(&zero, &[], kind, &Numbers::Whole(vec![0])));
                    zero
                });
                make_node("QuantizeLinear", &[&name, &scale, &zero], &integer, vec![])
            }
            None => make_node("Cast", &[&name], &integer, vec![int_attribute("to", i64::from(kind))]),
        };
        // A cast to float hands the numbers on.
        for node in &mut graph.node {
            let hands_on = is_op(node, "Cast") && attr_int(node, "to", 0) == i64::from(FLOAT);
            for input in node.input.iter_mut().filter(|i| **i == name && !hands_on) {
                input.clone_from(&integer);
            }
        }
        graph.node.insert(0, entry);
        graph.input.iter_mut().filter(|i| i.name == name).for_each(|i| set_elem_type(i, FLOAT));
        changed = true;
    }
    changed
}

/// Scale and zero point of the DequantizeLinear nodes that read `name`, perhaps through views; `None` unless they agree and
/// nothing else reads it.
fn dequantization(graph: &GraphProto, name: &str) -> Option<(String, Option<String>)> {
    let constants = Constant(graph.initializer.iter().map(|t| (t.name.as_str(), t)).collect());
    let results = pinned(graph);
    let mut readers: HashMap<&str, Vec<&NodeProto>> = HashMap::new();
    for node in &graph.node {
        inputs(node).for_each(|i| readers.entry(i).or_default().push(node));
    }
    let mut todo = vec![name];
    let mut found: Option<(String, Option<String>)> = None;
    while let Some(name) = todo.pop() {
        if results.contains(name) {
            return None;
        }
        for node in readers.get(name)? {
            if VIEWS.contains(&node.op_type.as_str()) && node.input.first().is_some_and(|i| i == name) {
                todo.extend(outputs(node));
            } else if is_op(node, "DequantizeLinear") && node.input.first().is_some_and(|i| i == name) {
                let scale = node.input.get(1)?;
                let zero = node.input.get(2).filter(|z| !z.is_empty());
                let one = constants.constant(scale)?;
                if one.dims.iter().product::<i64>() != 1 {
                    return None;
                }
                let same =
                    |a: &str, b: &str| constants.constant(a).zip(constants.constant(b)).is_some_and(|(a, b)| a.raw_data == b.raw_data);
                match &found {
                    None => found = Some((scale.clone(), zero.cloned())),
                    Some((s, z)) if same(s, scale) && (z.as_ref() == zero || z.as_ref().zip(zero).is_some_and(|(a, b)| same(a, b))) => {}
                    _ => return None,
                }
            } else {
                return None;
            }
        }
    }
    found
}

/// Makes integer outputs float32. True if the graph changed.
pub fn real_outputs(graph: &mut GraphProto, data_type: impl Fn(&str) -> i32) -> bool {
    let producer: HashMap<&str, &NodeProto> = graph.node.iter().flat_map(|n| outputs(n).map(move |o| (o, n))).collect();
    let mut ends = Vec::new();
    for (i, output) in graph.output.iter().enumerate() {
        let kind = match data_type(&output.name) {
            0 => elem_type(output),
            kind => kind,
        };
        if range(kind).is_none() || !producer.contains_key(output.name.as_str()) {
            continue;
        }
        let mut at = output.name.as_str();
        while let Some(node) = producer.get(at).filter(|n| VIEWS.contains(&n.op_type.as_str())) {
            let Some(before) = node.input.first() else { break };
            at = before;
        }
        let made = producer.get(at).filter(|n| is_op(n, "QuantizeLinear") && n.input.len() > 1);
        ends.push((i, made.map(|n| n.input[1..].to_vec())));
    }
    let mut names = all_names(graph);
    let changed = !ends.is_empty();
    for (i, params) in ends {
        let name = graph.output[i].name.clone();
        let integer = fresh_name(&mut names, &format!("{name}.integers"));
        graph
            .node
            .iter_mut()
            .flat_map(|n| n.input.iter_mut().chain(&mut n.output))
            .filter(|n| **n == name)
            .for_each(|n| n.clone_from(&integer));
        let mut exit = match params {
            Some(params) => {
                let mut node = make_node("DequantizeLinear", &[&integer], &name, vec![]);
                node.input.extend(params);
                node
            }
            None => make_node("Cast", &[&integer], &name, vec![int_attribute("to", i64::from(FLOAT))]),
        };
        exit.name = format!("{name}/real");
        graph.node.push(exit);
        set_elem_type(&mut graph.output[i], FLOAT);
    }
    changed
}
