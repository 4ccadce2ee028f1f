//! Convolutions of sequences [1, C, L], such as those over channels (ECA, Wang et al. 2020), become convolutions of pictures one row high.

use crate::float::Shapes;
use crate::onnx::*;
use crate::{Error, Result};
use edge_infer::import::lower::rules;

/// A row of values between two Reshapes, which stand as far apart as functions of each value allow. Tensors keep their names and shapes.
pub fn to_pictures(graph: &mut GraphProto, shapes: &mut Shapes) -> Result<()> {
    let mut names = all_names(graph);
    let mut at = 0;
    while at < graph.node.len() {
        let node = graph.node[at].clone();
        let shape = |name: &String| shapes.get(name).map(Vec::as_slice);
        let (Some(x), Some(y)) = (node.input.first(), node.output.first()) else {
            at += 1;
            continue;
        };
        let sides = (shape(x), shape(y));
        let (Some(&[1, c, l]), Some(&[1, out, length])) = sides else {
            at += 1;
            continue;
        };
        let Some(mut inner) = convolution(graph, &node, &mut names)?.or_else(|| function(graph, &node, shapes)) else {
            at += 1;
            continue;
        };
        let [to, from, source, result] = ["row", "sequence", "in", "out"].map(|part| fresh_name(&mut names, &format!("{y}.{part}")));
        graph.initializer.push(i64_tensor(&to, &[4], &[1, c as i64, 1, l as i64]));
        graph.initializer.push(i64_tensor(&from, &[3], &[1, out as i64, length as i64]));
        let (before, after) = (make_node("Reshape", &[x, &to], &source, vec![]), make_node("Reshape", &[&result, &from], y, vec![]));
        inner.input.iter_mut().filter(|i| *i == x).for_each(|i| i.clone_from(&source));
        inner.output[0].clone_from(&result);
        shapes.insert(source, vec![1, c, 1, l]);
        shapes.insert(result, vec![1, out, 1, length]);
        graph.node.splice(at..=at, [before, inner, after]);
        at += 3;
    }
    Ok(())
}

/// A Conv of a sequence, as one of a picture.
fn convolution(graph: &mut GraphProto, node: &NodeProto, names: &mut std::collections::HashSet<String>) -> Result<Option<NodeProto>> {
    let weight = node.input.get(1).and_then(|w| graph.initializer.iter().find(|t| t.name == *w && t.data_type == 1));
    let Some(weight) = weight.filter(|_| is_op(node, "Conv")) else { return Ok(None) };
    let [o, i, k] = tensor_dims(weight)?[..] else { return Ok(None) };
    let name = fresh_name(names, &format!("{}.row", weight.name));
    let tensor = f32_tensor(&name, &[o, i, 1, k], &f32_data(weight)?);
    graph.initializer.push(tensor);
    let mut conv = node.clone();
    conv.input[1] = name;
    for a in &mut conv.attribute {
        a.ints = match (a.name.as_str(), &a.ints[..]) {
            ("kernel_shape" | "strides" | "dilations", &[n]) => vec![1, n],
            ("pads", &[a, b]) => vec![0, a, 0, b],
            ("kernel_shape" | "strides" | "dilations" | "pads", other) => {
                return Err(Error::InvalidModel(format!("node {}: {} {other:?} is not of one dimension", node_name(node), a.name)));
            }
            (_, other) => other.to_vec(),
        };
    }
    Ok(Some(conv))
}

/// A function of each value of a sequence that was a row before.
fn function(graph: &GraphProto, node: &NodeProto, shapes: &Shapes) -> Option<NodeProto> {
    let constant = |name: &str| graph.initializer.iter().any(|t| t.name == name && t.dims.iter().all(|&d| d == 1) && t.dims.len() < 4);
    let computed: Vec<&str> = inputs(node).filter(|n| !constant(n)).collect();
    let [x] = computed[..] else { return None };
    let row = |name: &String| matches!(shapes.get(name).map(Vec::as_slice), Some([1, _, 1, _]));
    let was_row = graph.node.iter().any(|n| n.output[0] == x && is_op(n, "Reshape") && row(&n.input[0]));
    (rules::rule(node)?.composes && was_row).then(|| node.clone())
}
