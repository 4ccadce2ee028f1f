//! Converters of single operators from one version to the next; see [`super::opset`].

use super::facts::Constants;
use super::opset::Rewriter;
use super::tensor::{FLOAT, Numbers, numbers};
use crate::import::onnx::*;
use crate::{Error, Result};
use tract_onnx::pb::attribute_proto::AttributeType;

type Nodes = Result<Vec<NodeProto>>;

fn one(node: NodeProto) -> Nodes {
    Ok(vec![node])
}

/// Takes an attribute away.
fn take(node: &mut NodeProto, name: &str) -> Option<AttributeProto> {
    let at = node.attribute.iter().position(|a| a.name == name)?;
    Some(node.attribute.remove(at))
}

fn drop_attributes(node: &mut NodeProto, names: &[&str]) {
    node.attribute.retain(|a| !names.contains(&a.name.as_str()));
}

fn text_attribute(name: &str, text: &str) -> AttributeProto {
    AttributeProto { name: name.into(), r#type: AttributeType::String as i32, s: text.into(), ..Default::default() }
}

fn float_attribute(name: &str, f: f32) -> AttributeProto {
    AttributeProto { name: name.into(), r#type: AttributeType::Float as i32, f, ..Default::default() }
}

fn input(node: &NodeProto, i: usize) -> Result<&str> {
    node.input.get(i).map(String::as_str).filter(|s| !s.is_empty()).ok_or_else(|| node_error(node, format!("its input {i} is missing")))
}

fn output(node: &NodeProto) -> Result<String> {
    node.output.first().filter(|s| !s.is_empty()).cloned().ok_or_else(|| node_error(node, "its output is missing"))
}

/// Sets input `i`, with empty ones before it.
fn set_input(node: &mut NodeProto, i: usize, name: String) {
    if node.input.len() <= i {
        node.input.resize(i + 1, String::new());
    }
    node.input[i] = name;
}

fn unsupported(node: &NodeProto, why: impl std::fmt::Display) -> Error {
    Error::UnsupportedModel(format!("node {}: {why}", node_name(node)))
}

/// What no converter writes in today's operators.
pub fn refuse(r: &mut Rewriter, node: NodeProto) -> Nodes {
    let version = r.version;
    Err(unsupported(&node, format!("the form it has in operator set {version} is not supported; export with opset 13 or later")))
}

pub fn drop_consumed(_: &mut Rewriter, mut node: NodeProto) -> Nodes {
    drop_attributes(&mut node, &["consumed_inputs"]);
    one(node)
}

/// Inference is what is run, whatever the attribute says.
pub fn drop_is_test(_: &mut Rewriter, mut node: NodeProto) -> Nodes {
    drop_attributes(&mut node, &["is_test"]);
    one(node)
}

pub fn drop_output_sequence(_: &mut Rewriter, mut node: NodeProto) -> Nodes {
    drop_attributes(&mut node, &["output_sequence"]);
    one(node)
}

pub fn concat_axis(_: &mut Rewriter, mut node: NodeProto) -> Nodes {
    if attr(&node, "axis").is_none() {
        node.attribute.push(int_attribute("axis", 1));
    }
    one(node)
}

pub fn split_default(_: &mut Rewriter, mut node: NodeProto) -> Nodes {
    if attr(&node, "axis").is_none() {
        node.attribute.push(int_attribute("axis", 0));
    }
    one(node)
}

/// The default direction was misspelt once.
pub fn gru_direction(_: &mut Rewriter, mut node: NodeProto) -> Nodes {
    if attr(&node, "direction").is_some_and(|a| a.s == b"foward") {
        drop_attributes(&mut node, &["direction"]);
    }
    one(node)
}

pub fn reshape_input(r: &mut Rewriter, mut node: NodeProto) -> Nodes {
    drop_attributes(&mut node, &["consumed_inputs"]);
    if let Some(shape) = take(&mut node, "shape") {
        let shape = r.list(&format!("{}.shape", output(&node)?), &shape.ints);
        set_input(&mut node, 1, shape);
    }
    one(node)
}

/// Names of `TensorProto.DataType`, by number.
const TYPE_NAMES: [&str; 14] =
    ["UNDEFINED", "FLOAT", "UINT8", "INT8", "UINT16", "INT16", "INT32", "INT64", "STRING", "BOOL", "FLOAT16", "DOUBLE", "UINT32", "UINT64"];

/// `to` was a name.
pub fn cast_number(_: &mut Rewriter, mut node: NodeProto) -> Nodes {
    if let Some(to) = take(&mut node, "to") {
        let name = String::from_utf8_lossy(&to.s).to_uppercase();
        let at = TYPE_NAMES.iter().position(|n| *n == name);
        let at = at.ok_or_else(|| node_error(&node, format!("it casts to {name:?}, which is no type")))?;
        node.attribute.push(int_attribute("to", at as i64));
    }
    one(node)
}

pub fn selu_constants(_: &mut Rewriter, mut node: NodeProto) -> Nodes {
    drop_attributes(&mut node, &["consumed_inputs"]);
    for (name, value) in [("alpha", 1.6732), ("gamma", 1.0507)] {
        if attr(&node, name).is_none() {
            node.attribute.push(float_attribute(name, value));
        }
    }
    one(node)
}

/// `tiles` along one `axis` became one number for each dimension.
pub fn tile_repeats(r: &mut Rewriter, mut node: NodeProto) -> Nodes {
    let known = (|| Some((r.facts.rank(node.input.first()?)?, *r.whole_input(&node, 1)?.first()?, *r.whole_input(&node, 2)?.first()?)))();
    let Some((rank, tiles, axis)) = known.filter(|&(rank, _, axis)| (0..rank as i64).contains(&axis)) else {
        return refuse(r, node);
    };
    let mut repeats = vec![1; rank];
    repeats[axis as usize] = tiles;
    let repeats = r.list(&format!("{}.repeats", output(&node)?), &repeats);
    node.input.truncate(1);
    node.input.push(repeats);
    one(node)
}

pub fn lp_norm_number(r: &mut Rewriter, mut node: NodeProto) -> Nodes {
    let p = take(&mut node, "p").map_or(2.0, |a| a.f);
    if p.fract() != 0.0 || !(1.0..=64.0).contains(&p) {
        return refuse(r, node);
    }
    node.attribute.push(int_attribute("p", p as i64));
    one(node)
}

pub fn pad_name(_: &mut Rewriter, mut node: NodeProto) -> Nodes {
    node.attribute.iter_mut().filter(|a| a.name == "paddings").for_each(|a| a.name = "pads".into());
    one(node)
}

/// Before version 7, the second operand was laid along the first from `axis` on; now dimensions meet at the end.
pub fn numpy_broadcast(r: &mut Rewriter, mut node: NodeProto) -> Nodes {
    let broadcast = take(&mut node, "broadcast").is_some_and(|a| a.i != 0);
    let Some(axis) = take(&mut node, "axis").filter(|_| broadcast).map(|a| a.i) else { return one(node) };
    let (a, b) = (input(&node, 0)?.to_owned(), input(&node, 1)?.to_owned());
    let (Some(whole), Some(part)) = (r.facts.rank(&a), r.facts.rank(&b)) else {
        return Err(unsupported(
            &node,
            format!("it broadcasts along axis {axis}, and its operands' dimensions are not known; export with opset 7 or later"),
        ));
    };
    let axis = if axis < 0 { axis + whole as i64 } else { axis };
    let Some(missing) = usize::try_from(axis).ok().and_then(|axis| whole.checked_sub(axis + part)) else {
        return Err(node_error(&node, format!("its operand of rank {part} does not fit rank {whole} from axis {axis} on")));
    };
    if missing == 0 {
        return one(node);
    }
    let laid = r.fresh(&format!("{b}.laid"));
    let axes: Vec<i64> = (part..part + missing).map(|a| a as i64).collect();
    let axes = r.list(&format!("{laid}.axes"), &axes);
    node.input[1] = laid.clone();
    Ok(vec![make_node("Unsqueeze", &[&b, &axes], &laid, vec![]), node])
}

pub fn gemm_broadcast(_: &mut Rewriter, mut node: NodeProto) -> Nodes {
    drop_attributes(&mut node, &["broadcast"]);
    one(node)
}

/// One slope per channel became a tensor that meets the input's dimensions at the end.
pub fn prelu_slope(r: &mut Rewriter, mut node: NodeProto) -> Nodes {
    let (x, slope) = (input(&node, 0)?.to_owned(), input(&node, 1)?.to_owned());
    let single = r.facts.known(&slope).is_some_and(|d| d.iter().product::<i64>() == 1);
    if single || r.facts.rank(&slope) != Some(1) {
        return one(node);
    }
    let Some(rank) = r.facts.rank(&x) else {
        return Err(unsupported(&node, "its slopes are per channel, and its input's rank is not known; export with opset 7 or later"));
    };
    if rank < 3 {
        return one(node);
    }
    let laid = r.fresh(&format!("{slope}.laid"));
    let axes: Vec<i64> = (1..rank as i64 - 1).collect();
    let axes = r.list(&format!("{laid}.axes"), &axes);
    node.input[1] = laid.clone();
    Ok(vec![make_node("Unsqueeze", &[&slope, &axes], &laid, vec![]), node])
}

pub fn upsample_scales(_: &mut Rewriter, mut node: NodeProto) -> Nodes {
    let (h, w) = (take(&mut node, "height_scale").map_or(1.0, |a| a.f), take(&mut node, "width_scale").map_or(1.0, |a| a.f));
    let floats = vec![1.0, 1.0, h, w];
    node.attribute.push(AttributeProto { name: "scales".into(), r#type: AttributeType::Floats as i32, floats, ..Default::default() });
    one(node)
}

pub fn upsample_input(r: &mut Rewriter, mut node: NodeProto) -> Nodes {
    if let Some(scales) = take(&mut node, "scales") {
        let scales = r.add(&format!("{}.scales", output(&node)?), |name| f32_tensor(name, &[scales.floats.len()], &scales.floats));
        set_input(&mut node, 1, scales);
    }
    one(node)
}

pub fn upsample_to_resize(_: &mut Rewriter, mut node: NodeProto) -> Nodes {
    node.op_type = "Resize".into();
    one(node)
}

/// Positions were the output's divided by the scale; the nearest was the one below, or above where the picture shrinks
/// (as ONNX Runtime computes versions 7 to 10).
pub fn resize_modes(r: &mut Rewriter, mut node: NodeProto) -> Nodes {
    let mode = take(&mut node, "mode").map_or(b"nearest".to_vec(), |a| a.s);
    let mode = if mode == b"bilinear" { b"linear".to_vec() } else { mode };
    let scales = input(&node, 1)?.to_owned();
    let shrinks = match r.constant(&scales).and_then(numbers) {
        Some(Numbers::Real(v)) => v.iter().any(|s| *s < 1.0),
        _ => false,
    };
    node.attribute.push(text_attribute("coordinate_transformation_mode", "asymmetric"));
    if mode == b"nearest" {
        node.attribute.push(text_attribute("nearest_mode", if shrinks { "ceil" } else { "floor" }));
    }
    node.attribute.push(text_attribute("mode", &String::from_utf8_lossy(&mode)));
    node.input.truncate(1);
    node.input.extend([String::new(), scales]);
    one(node)
}

/// With `spatial` = 0 there is one mean for every value of a picture: plain arithmetic now.
pub fn batch_norm_spatial(r: &mut Rewriter, mut node: NodeProto) -> Nodes {
    if take(&mut node, "spatial").is_none_or(|a| a.i != 0) {
        return one(node);
    }
    let y = output(&node)?;
    let epsilon = attr_float(&node, "epsilon", 1e-5);
    let epsilon = r.add(&format!("{y}.epsilon"), |name| f32_tensor(name, &[], &[epsilon]));
    let parts = ["centred", "variance", "deviation", "normal", "scaled"].map(|part| r.fresh(&format!("{y}.{part}")));
    let [centred, variance, deviation, normal, scaled] = &parts;
    let [x, scale, bias, mean, var] = [0, 1, 2, 3, 4].map(|i| input(&node, i).map(String::from));
    let (x, scale, bias, mean, var) = (x?, scale?, bias?, mean?, var?);
    Ok(vec![
        make_node("Sub", &[&x, &mean], centred, vec![]),
        make_node("Add", &[&var, &epsilon], variance, vec![]),
        make_node("Sqrt", &[variance], deviation, vec![]),
        make_node("Div", &[centred, deviation], normal, vec![]),
        make_node("Mul", &[normal, &scale], scaled, vec![]),
        make_node("Add", &[scaled, &bias], &y, vec![]),
    ])
}

/// Naming the outputs of statistics is what asked for the batch's own mean and variance, as in training. Of one picture, and
/// one is what is run, those are the picture's.
pub fn batch_norm_outputs(r: &mut Rewriter, mut node: NodeProto) -> Nodes {
    if let Some(name) = node.output.iter().skip(1).find(|o| r.uses.contains_key(*o)) {
        return Err(unsupported(&node, format!("its statistics `{name}` are read, as in training; export the model for inference")));
    }
    if node.output.drain(1..).any(|o| !o.is_empty()) {
        node.op_type = "InstanceNormalization".into();
        node.input.truncate(3);
        node.attribute.retain(|a| a.name == "epsilon");
    }
    one(node)
}

/// Operators of early exporters that never became ONNX's: `scale` and `bias` for each channel, or for all.
pub fn experimental(r: &mut Rewriter, node: NodeProto) -> Nodes {
    let y = output(&node)?;
    let (scale, bias, dims): (f32, Vec<f32>, Vec<usize>) = if node.op_type == "Affine" {
        (attr_float(&node, "alpha", 1.0), vec![attr_float(&node, "beta", 0.0)], vec![])
    } else {
        let bias = attr(&node, "bias").map_or(vec![0.0], |a| a.floats.clone());
        let dims = vec![bias.len(), 1, 1];
        (attr_float(&node, "scale", 1.0), bias, dims)
    };
    let scale = r.add(&format!("{y}.scale"), |name| f32_tensor(name, &[], &[scale]));
    let bias = r.add(&format!("{y}.bias"), |name| f32_tensor(name, &dims, &bias));
    let scaled = r.fresh(&format!("{y}.scaled"));
    Ok(vec![make_node("Mul", &[input(&node, 0)?, &scale], &scaled, vec![]), make_node("Add", &[&scaled, &bias], &y, vec![])])
}

pub fn slice_inputs(r: &mut Rewriter, mut node: NodeProto) -> Nodes {
    let y = output(&node)?;
    let mut list = |name: &str| take(&mut node, name).map(|a| a.ints);
    let (starts, ends, axes) = (list("starts").unwrap_or_default(), list("ends").unwrap_or_default(), list("axes"));
    let axes = axes.unwrap_or_else(|| (0..starts.len() as i64).collect());
    node.input.truncate(1);
    for (part, values) in [("starts", starts), ("ends", ends), ("axes", axes)] {
        let name = r.list(&format!("{y}.{part}"), &values);
        node.input.push(name);
    }
    one(node)
}

pub fn top_k_input(r: &mut Rewriter, mut node: NodeProto) -> Nodes {
    if let Some(k) = take(&mut node, "k") {
        let k = r.list(&format!("{}.k", output(&node)?), &[k.i]);
        set_input(&mut node, 1, k);
    }
    one(node)
}

pub fn clip_inputs(r: &mut Rewriter, mut node: NodeProto) -> Nodes {
    let y = output(&node)?;
    node.input.truncate(1);
    for (i, bound) in ["min", "max"].into_iter().enumerate() {
        if let Some(value) = take(&mut node, bound) {
            let name = r.add(&format!("{y}.{bound}"), |name| f32_tensor(name, &[], &[value.f]));
            set_input(&mut node, i + 1, name);
        }
    }
    one(node)
}

pub fn pad_inputs(r: &mut Rewriter, mut node: NodeProto) -> Nodes {
    let y = output(&node)?;
    let pads = take(&mut node, "pads").map(|a| a.ints).unwrap_or_default();
    let value = take(&mut node, "value").map_or(0.0, |a| a.f);
    let constant = attr(&node, "mode").is_none_or(|a| a.s == b"constant");
    let pads = r.list(&format!("{y}.pads"), &pads);
    node.input.truncate(1);
    node.input.push(pads);
    if constant {
        let value = r.add(&format!("{y}.value"), |name| f32_tensor(name, &[], &[value]));
        node.input.push(value);
    }
    one(node)
}

pub fn scatter_elements(_: &mut Rewriter, mut node: NodeProto) -> Nodes {
    node.op_type = "ScatterElements".into();
    one(node)
}

/// How much is dropped in training is of no use.
pub fn dropout_ratio(_: &mut Rewriter, mut node: NodeProto) -> Nodes {
    drop_attributes(&mut node, &["ratio"]);
    one(node)
}

/// Dimensions from `axis` on were one: Flatten, the operator along the last axis, and the old dimensions again.
pub fn softmax_axis(r: &mut Rewriter, mut node: NodeProto) -> Nodes {
    let axis = take(&mut node, "axis").map_or(1, |a| a.i);
    let (x, y) = (input(&node, 0)?.to_owned(), output(&node)?);
    let rank = r.facts.rank(&x);
    let last = rank.is_some_and(|rank| axis == rank as i64 - 1 || axis == -1) || (axis == -1);
    // Trailing dimensions of 1 change nothing.
    let ones = |axis: i64| {
        r.facts.dims(&x).and_then(|d| d.get(usize::try_from(axis).ok()? + 1..)).is_some_and(|d| d.iter().all(|d| d.known() == Some(1)))
    };
    if last || (axis >= 0 && ones(axis)) {
        node.attribute.push(int_attribute("axis", if last { -1 } else { axis }));
        return one(node);
    }
    let [flat, soft, shape] = ["flat", "soft", "shape"].map(|part| r.fresh(&format!("{y}.{part}")));
    let flatten = make_node("Flatten", &[&x], &flat, vec![int_attribute("axis", axis)]);
    let shape_of = make_node("Shape", &[&x], &shape, vec![]);
    let reshape = make_node("Reshape", &[&soft, &shape], &y, vec![]);
    node.input[0] = flat;
    node.output[0] = soft;
    node.attribute.push(int_attribute("axis", -1));
    Ok(vec![flatten, node, shape_of, reshape])
}

pub fn axes_input(r: &mut Rewriter, mut node: NodeProto) -> Nodes {
    if let Some(axes) = take(&mut node, "axes").map(|a| a.ints).filter(|a| !a.is_empty()) {
        let axes = r.list(&format!("{}.axes", output(&node)?), &axes);
        set_input(&mut node, 1, axes);
    }
    one(node)
}

pub fn split_input(r: &mut Rewriter, mut node: NodeProto) -> Nodes {
    if let Some(split) = take(&mut node, "split").filter(|a| !a.ints.is_empty()) {
        let split = r.list(&format!("{}.split", output(&node)?), &split.ints);
        set_input(&mut node, 1, split);
    }
    one(node)
}

pub fn split_outputs(_: &mut Rewriter, mut node: NodeProto) -> Nodes {
    if node.input.get(1).is_none_or(|s| s.is_empty()) && attr(&node, "num_outputs").is_none() {
        let count = node.output.len() as i64;
        node.attribute.push(int_attribute("num_outputs", count));
    }
    one(node)
}

pub fn roi_align_mode(_: &mut Rewriter, mut node: NodeProto) -> Nodes {
    if attr(&node, "coordinate_transformation_mode").is_none() {
        node.attribute.push(text_attribute("coordinate_transformation_mode", "output_half_pixel"));
    }
    one(node)
}

pub fn dft_axis(r: &mut Rewriter, mut node: NodeProto) -> Nodes {
    let axis = take(&mut node, "axis").map_or(1, |a| a.i);
    let axis = r.add(&format!("{}.axis", output(&node)?), |name| i64_tensor(name, &[], &[axis]));
    set_input(&mut node, 2, axis);
    one(node)
}

pub fn grid_sample_mode(_: &mut Rewriter, mut node: NodeProto) -> Nodes {
    if let Some(a) = node.attribute.iter_mut().find(|a| a.name == "mode") {
        a.s = match a.s.as_slice() {
            b"bilinear" => b"linear".to_vec(),
            b"bicubic" => b"cubic".to_vec(),
            other => other.to_vec(),
        };
    }
    one(node)
}

/// Scale and bias were one per group, and are one per channel.
pub fn group_norm_channels(r: &mut Rewriter, mut node: NodeProto) -> Nodes {
    let groups = attr_int(&node, "num_groups", 0);
    let channels = r.facts.dims(input(&node, 0)?).and_then(|d| d.get(1)?.known());
    let Some(each) = channels.filter(|c| groups > 0 && c % groups == 0).map(|c| (c / groups) as usize) else {
        return refuse(r, node);
    };
    for i in [1, 2] {
        let values = match r.constant(input(&node, i)?).filter(|t| t.data_type == FLOAT).and_then(numbers) {
            Some(Numbers::Real(v)) if v.len() as i64 == groups => v,
            _ => return refuse(r, node),
        };
        let spread: Vec<f32> = values.iter().flat_map(|v| std::iter::repeat_n(*v, each)).collect();
        let wanted = format!("{}.channels", node.input[i]);
        node.input[i] = r.add(&wanted, |name| f32_tensor(name, &[spread.len()], &spread));
    }
    one(node)
}
