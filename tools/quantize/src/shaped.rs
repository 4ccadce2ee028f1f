//! Rewritings that need shapes: reshapes that flatten, automatic paddings, Pad before Conv, lone BatchNorms.

use crate::float::Shapes;
use crate::fold::{Scaling, scaling_of};
use crate::onnx::*;
use crate::{Error, Result, sequences};
use edge_infer::import::canonical::explicit_window;
use std::collections::{HashMap, HashSet};

/// All of them. Tensors keep their names and shapes; those of new ones are added.
pub fn apply(graph: &mut GraphProto, shapes: &mut Shapes) -> Result<()> {
    flatten(graph, shapes);
    leave_out_expands(graph, shapes);
    sequences::to_pictures(graph, shapes)?;
    pointwise_heads(graph, shapes)?;
    explicit_pads(graph, shapes);
    merge_pads(graph, shapes)?;
    for node in graph.node.iter_mut().filter(|n| is_op(n, "GlobalMaxPool")) {
        if let Some(&[_, _, h, w]) = shapes.get(&node.input[0]).map(Vec::as_slice) {
            node.op_type = "MaxPool".into();
            node.attribute.push(ints("kernel_shape", &[h as i64, w as i64]));
        }
    }
    channel_reductions(graph, shapes)?;
    scalings_to_convs(graph, shapes)?;
    prune(graph);
    Ok(())
}

fn ints(name: &str, ints: &[i64]) -> AttributeProto {
    AttributeProto { name: name.into(), r#type: 7, ints: ints.to_vec(), ..Default::default() }
}

fn set_ints(node: &mut NodeProto, name: &str, values: &[i64]) {
    node.attribute.retain(|a| a.name != name);
    node.attribute.push(ints(name, values));
}

/// Operators, or chains of them, that turn [1, C, H, W] into [1, C·H·W] are a Flatten, however they say so.
fn flatten(graph: &mut GraphProto, shapes: &Shapes) {
    let is_view = |n: &NodeProto| ["Reshape", "Squeeze", "Unsqueeze", "Flatten"].iter().any(|op| is_op(n, op));
    let shape = |name: &str| shapes.get(name).map(Vec::as_slice);
    let mut views: HashMap<String, String> = HashMap::new(); // output → input
    for node in &mut graph.node {
        let (Some(x), Some(y)) = (node.input.first().cloned(), node.output.first().cloned()) else { continue };
        if !is_view(node) {
            continue;
        }
        views.insert(y.clone(), x);
        let Some(&[1, n]) = shape(&y) else { continue };
        let mut at = &y;
        while let Some(before) = views.get(at) {
            at = before;
            if matches!(shape(at), Some(&[1, c, h, w]) if c * h * w == n) {
                *node = make_node("Flatten", &[at], &y, vec![int_attribute("axis", 1)]);
                break;
            }
        }
    }
    remove_unread(graph);
}

/// An Expand to the shape of the other operand is what arithmetic does by itself.
fn leave_out_expands(graph: &mut GraphProto, shapes: &Shapes) {
    let shape = |name: &String| shapes.get(name).map(Vec::as_slice);
    let expands: HashMap<String, String> = graph
        .node
        .iter()
        .filter(|n| is_op(n, "Expand") && shape(&n.input[0]).map(<[usize]>::len) == shape(&n.output[0]).map(<[usize]>::len))
        .map(|n| (n.output[0].clone(), n.input[0].clone()))
        .collect();
    for node in graph.node.iter_mut().filter(|n| ["Add", "Sub", "Mul", "Div"].iter().any(|op| is_op(n, op)) && n.input.len() == 2) {
        for (i, other) in [(0, 1), (1, 0)] {
            if let Some(source) = expands.get(&node.input[i]).filter(|_| shape(&node.input[i]) == shape(&node.input[other])) {
                node.input[i].clone_from(source);
            }
        }
    }
    remove_unread(graph);
}

/// Nodes whose outputs nothing reads any more.
fn remove_unread(graph: &mut GraphProto) {
    loop {
        let (used, before) = (use_counts(graph), graph.node.len());
        graph.node.retain(|n| outputs(n).any(|o| used.contains_key(o)));
        if graph.node.len() == before {
            return;
        }
    }
}

/// A 1×1 Conv of [1, C, 1, 1] that is flattened is a Gemm, whose result need not be rounded.
fn pointwise_heads(graph: &mut GraphProto, shapes: &mut Shapes) -> Result<()> {
    let used = use_counts(graph);
    let mut names = all_names(graph);
    for at in 0..graph.node.len() {
        let flat = graph.node[at].clone();
        let Some(conv_at) =
            graph.node[..at].iter().position(|n| is_op(n, "Conv") && is_op(&flat, "Flatten") && n.output[0] == flat.input[0])
        else {
            continue;
        };
        let conv = graph.node[conv_at].clone();
        let plain = attr_int(&conv, "group", 1) == 1 && attr_ints(&conv, "pads").iter().all(|&p| p == 0);
        let weight = graph.initializer.iter().find(|t| t.name == conv.input[1] && t.data_type == 1);
        let (Some(&[1, c, 1, 1]), Some(weight)) = (shapes.get(&conv.input[0]).map(Vec::as_slice), weight) else { continue };
        let [o, i, 1, 1] = tensor_dims(weight)?[..] else { continue };
        if !plain || i != c || used.get(&conv.output[0]) != Some(&1) {
            continue;
        }
        let rows = fresh_name(&mut names, &format!("{}.rows", weight.name));
        let vector = fresh_name(&mut names, &format!("{}.vector", conv.input[0]));
        let matrix = f32_tensor(&rows, &[o, i], &f32_data(weight)?);
        graph.initializer.push(matrix);
        let mut gemm = make_node("Gemm", &[&vector, &rows], &flat.output[0], vec![int_attribute("transB", 1)]);
        shapes.insert(vector.clone(), vec![1, c]);
        gemm.input.extend(conv.input.get(2).cloned());
        gemm.name = if conv.name.is_empty() { gemm.name } else { conv.name };
        graph.node[conv_at] = make_node("Flatten", &[&conv.input[0]], &vector, vec![int_attribute("axis", 1)]);
        graph.node[at] = gemm;
    }
    Ok(())
}

/// Kernel height and width of a Conv or pool.
fn kernel(node: &NodeProto, shapes_of_weights: &HashMap<String, Vec<i64>>) -> Option<[i64; 2]> {
    match (attr_ints(node, "kernel_shape"), node.input.get(1).and_then(|w| shapes_of_weights.get(w))) {
        (&[h, w], _) => Some([h, w]),
        (_, Some(d)) if d.len() == 4 => Some([d[2], d[3]]),
        _ => None,
    }
}

/// `auto_pad` and `output_shape` become numbers: a file that leaves the size open is quantized for one size.
fn explicit_pads(graph: &mut GraphProto, shapes: &Shapes) {
    let weights: HashMap<String, Vec<i64>> = graph.initializer.iter().map(|t| (t.name.clone(), t.dims.clone())).collect();
    for node in graph.node.iter_mut().filter(|n| ["Conv", "ConvTranspose", "MaxPool", "AveragePool"].contains(&n.op_type.as_str())) {
        if let (Some(&[_, _, h, w]), Some(kernel)) = (shapes.get(&node.input[0]).map(Vec::as_slice), kernel(node, &weights)) {
            explicit_window(node, kernel, [h as i64, w as i64]);
        }
    }
}

/// Zero padding before a Conv, or before a MaxPool of values that are never negative, becomes its own padding.
fn merge_pads(graph: &mut GraphProto, shapes: &Shapes) -> Result<()> {
    let constants: HashMap<String, TensorProto> =
        graph.initializer.iter().filter(|t| t.dims.iter().product::<i64>() <= 16).map(|t| (t.name.clone(), t.clone())).collect();
    let weights: HashMap<String, Vec<i64>> = graph.initializer.iter().map(|t| (t.name.clone(), t.dims.clone())).collect();
    let pinned: HashSet<String> = graph.output.iter().map(|o| o.name.clone()).chain(captured_names(graph)).collect();
    let mut at = 0;
    while at < graph.node.len() {
        let node = graph.node[at].clone();
        at += 1;
        let Some(pads) = zero_padding(&node, &constants).filter(|_| !pinned.contains(&node.output[0])) else { continue };
        let source = node.input[0].clone();
        let positive = graph.node.iter().any(|n| {
            let clip =
                || n.input.get(1).and_then(|lo| constants.get(lo)).and_then(|t| f32_data(t).ok()).is_some_and(|v| v[..] >= [0.0][..]);
            n.output.first() == Some(&source) && (is_op(n, "Relu") || is_op(n, "Sigmoid") || (is_op(n, "Clip") && clip()))
        });
        let readers: Vec<usize> = (0..graph.node.len()).filter(|&i| graph.node[i].input.contains(&node.output[0])).collect();
        let takes = |n: &NodeProto| {
            let k = kernel(n, &weights);
            // No window may lie in the padding alone: its maximum would be −∞.
            let inside = k.is_some_and(|k| (0..4).all(|i| pads[i] + attr_ints(n, "pads").get(i).copied().unwrap_or(0) < k[i % 2]));
            let whole = attr(n, "auto_pad").is_none_or(|a| a.s.is_empty() || a.s == b"NOTSET");
            n.input[0] == node.output[0]
                && whole
                && (is_op(n, "AveragePool") && attr_ints(n, "pads").iter().all(|&p| p == 0) && attr_int(n, "ceil_mode", 0) == 0
                    || is_op(n, "Conv") && n.input.iter().skip(1).all(|i| *i != node.output[0])
                    || is_op(n, "MaxPool") && positive && inside && n.output.len() == 1)
        };
        if pads == [0; 4] {
            graph.node.iter_mut().flat_map(|n| &mut n.input).filter(|n| **n == node.output[0]).for_each(|n| *n = source.clone());
            at -= 1;
            graph.node.remove(at);
            continue;
        }
        if readers.is_empty() || shapes.get(&source).map(Vec::len) != Some(4) || !readers.iter().all(|&i| takes(&graph.node[i])) {
            continue;
        }
        for i in readers {
            let reader = &mut graph.node[i];
            let own = attr_ints(reader, "pads").to_vec();
            let sum: Vec<i64> = (0..4).map(|i| pads[i] + own.get(i).copied().unwrap_or(0)).collect();
            set_ints(reader, "pads", &sum);
            if reader.op_type == "AveragePool" {
                reader.attribute.retain(|a| a.name != "count_include_pad");
                reader.attribute.push(int_attribute("count_include_pad", 1));
            }
            reader.input[0] = source.clone();
        }
        at -= 1;
        graph.node.remove(at);
    }
    Ok(())
}

/// Top, left, bottom, right of a Pad with zeros in height and width alone.
fn zero_padding(node: &NodeProto, constants: &HashMap<String, TensorProto>) -> Option<[i64; 4]> {
    let mode = attr(node, "mode").map_or(&b"constant"[..], |a| &a.s);
    if !is_op(node, "Pad") || mode != b"constant" || node.input.get(3).is_some_and(|s| !s.is_empty()) {
        return None;
    }
    let zero = match node.input.get(2).filter(|s| !s.is_empty()) {
        Some(name) => f32_data(constants.get(name)?).ok()?.iter().all(|&v| v == 0.0),
        None => true,
    };
    match i64_data(constants.get(node.input.get(1)?)?).ok()?[..] {
        [0, 0, a, b, 0, 0, c, d] if zero && [a, b, c, d].iter().all(|p| (0..=64).contains(p)) => Some([a, b, c, d]),
        _ => None,
    }
}

/// The mean over channels is a 1×1 Conv, and the maximum over channels a MaxPool along them, as rows of a picture.
fn channel_reductions(graph: &mut GraphProto, shapes: &mut Shapes) -> Result<()> {
    let mut names = all_names(graph);
    let mut at = 0;
    while at < graph.node.len() {
        let node = graph.node[at].clone();
        at += 1;
        let mean = is_op(&node, "ReduceMean");
        if !(mean || is_op(&node, "ReduceMax")) || attr_int(&node, "keepdims", 1) != 1 {
            continue;
        }
        let given = node.input.get(1).and_then(|a| graph.initializer.iter().find(|t| t.name == *a)).map(i64_data).transpose()?;
        let axes = given.unwrap_or_else(|| attr_ints(&node, "axes").to_vec());
        let Some(&[1, c, h, w]) = shapes.get(&node.input[0]).map(Vec::as_slice) else { continue };
        if !matches!(axes[..], [1 | -3]) || c > 4096 {
            continue;
        }
        let (x, y) = (node.input[0].as_str(), node.output[0].as_str());
        let [first, second, third] = ["a", "b", "c"].map(|part| fresh_name(&mut names, &format!("{y}.{part}")));
        let mut new = if mean {
            graph.initializer.push(f32_tensor(&first, &[1, c, 1, 1], &vec![1.0 / c as f32; c]));
            vec![make_node("Conv", &[x, &first], y, vec![ints("kernel_shape", &[1, 1])])]
        } else {
            let [rows, picture] = ["rows", "picture"].map(|part| fresh_name(&mut names, &format!("{y}.{part}")));
            graph.initializer.push(i64_tensor(&rows, &[4], &[1, 1, c as i64, (h * w) as i64]));
            graph.initializer.push(i64_tensor(&picture, &[4], &[1, 1, h as i64, w as i64]));
            shapes.insert(second.clone(), vec![1, 1, c, h * w]);
            shapes.insert(third.clone(), vec![1, 1, 1, h * w]);
            vec![
                make_node("Reshape", &[x, &rows], &second, vec![]),
                make_node("MaxPool", &[&second], &third, vec![ints("kernel_shape", &[c as i64, 1])]),
                make_node("Reshape", &[&third, &picture], y, vec![]),
            ]
        };
        if let (Some(last), false) = (new.last_mut(), node.name.is_empty()) {
            last.name.clone_from(&node.name);
        }
        graph.node.splice(at - 1..at, new);
    }
    Ok(())
}

/// A BatchNorm (or per-channel Mul, Add …) that no Conv absorbed becomes a 1×1 Conv with one channel per group,
/// so that the network stays integer around it. Its weights are exact in int8.
fn scalings_to_convs(graph: &mut GraphProto, shapes: &Shapes) -> Result<()> {
    let mut names = all_names(graph);
    // What happens to the input before its first layer.
    let mut prologue: HashSet<String> = graph.input.iter().map(|i| i.name.clone()).collect();
    let results: HashSet<String> = graph.output.iter().map(|o| o.name.clone()).collect();
    for at in 0..graph.node.len() {
        let node = graph.node[at].clone();
        let Some(Ok((Scaling { scale, offset }, x))) = scaling_of(graph, &node, 15) else { continue };
        let Some(&[_, c, _, _]) = shapes.get(&x).map(Vec::as_slice) else { continue };
        // A number for all channels is a function of each value: it becomes a table, with whatever functions stand beside it.
        if !is_op(&node, "BatchNormalization") && scale.len() == 1 && offset.len() == 1 && !prologue.contains(&x) {
            continue;
        }
        // Normalization of the input itself stays float, before the first quantization.
        if prologue.contains(&x) {
            prologue.insert(node.output[0].clone());
            continue;
        }
        let fits = scale.len() == c || scale.len() == 1;
        if results.contains(&node.output[0]) || !fits || shapes.get(&node.output[0]) != shapes.get(&x) {
            continue;
        }
        let spread = |v: &[f64]| (0..c).map(|i| v[if v.len() == 1 { 0 } else { i }] as f32).collect::<Vec<f32>>();
        let (w, b) = (spread(&scale), spread(&offset));
        if w.iter().chain(&b).any(|v| !v.is_finite()) {
            return Err(Error::InvalidModel(format!("node {}: it scales by NaN or infinity", node_name(&node))));
        }
        let weight = fresh_name(&mut names, &format!("{}.scale_weight", node.output[0]));
        let bias = fresh_name(&mut names, &format!("{}.scale_bias", node.output[0]));
        graph.initializer.push(f32_tensor(&weight, &[c, 1, 1, 1], &w));
        graph.initializer.push(f32_tensor(&bias, &[c], &b));
        let attributes = vec![int_attribute("group", c as i64), ints("kernel_shape", &[1, 1])];
        let mut conv = make_node("Conv", &[&x, &weight, &bias], &node.output[0], attributes);
        if !node.name.is_empty() {
            conv.name = node.name;
        }
        graph.node[at] = conv;
    }
    Ok(())
}
