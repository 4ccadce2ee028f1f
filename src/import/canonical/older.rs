//! A canonical model in an older operator set, for readers that know no newer one.

use super::facts::Constants;
use super::fold::Store;
use super::opset::NEWEST;
use crate::Result;
use crate::import::onnx::*;
use std::collections::HashMap;
use tract_onnx::pb::attribute_proto::AttributeType;

/// The oldest operator set that is written: the first with a scale per channel.
pub const OLDEST_WRITTEN: i64 = 13;

/// Operators that came after opset 13, and with which (`onnx.defs`, `since_version` of the first schema; for
/// GroupNormalization, of the form that is written).
const INTRODUCED: &[(i64, &[&str])] = &[
    (14, &["HardSwish", "Trilu"]),
    (15, &["Bernoulli", "CastLike", "Optional", "OptionalGetElement", "OptionalHasElement"]),
    (16, &["GridSample"]),
    (17, &["BlackmanWindow", "HammingWindow", "HannWindow", "LayerNormalization", "MelWeightMatrix", "STFT", "SequenceMap"]),
    (18, &["BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor", "CenterCropPad", "Col2Im", "Mish"]),
    (19, &["DeformConv"]),
    (20, &["AffineGrid", "DFT", "Gelu", "ImageDecoder", "RegexFullMatch", "StringConcat", "StringSplit"]),
    (21, &["GroupNormalization"]),
    (23, &["Attention", "RMSNormalization", "RotaryEmbedding"]),
    (24, &["Swish", "TensorScatter"]),
    (26, &["BitCast", "CumProd"]),
    (27, &["CausalConvWithState", "LinearAttention"]),
    (28, &["SwiGLU"]),
];

/// Attributes that came after opset 13, with the value that means the same without them.
const ADDED: &[(i64, &str, &str, i64)] = &[
    (14, "BatchNormalization", "training_mode", 0),
    (14, "Reshape", "allowzero", 0),
    (15, "Shape", "start", 0),
    (18, "LpPool", "ceil_mode", 0),
    (18, "Resize", "antialias", 0),
    (19, "Cast", "saturate", 1),
    (19, "QuantizeLinear", "saturate", 1),
    (21, "DequantizeLinear", "block_size", 0),
    (21, "QuantizeLinear", "block_size", 0),
    (21, "QuantizeLinear", "output_dtype", 0),
    (23, "DequantizeLinear", "output_dtype", 0),
    (23, "QuantizeLinear", "precision", 0),
    (28, "SpaceToDepth", "mode", 0),
];
/// Attributes that came after opset 13 and always mean something.
const MEANT: &[(i64, &str, &str)] = &[
    (15, "Shape", "end"),
    (16, "RoiAlign", "coordinate_transformation_mode"),
    (16, "ScatterElements", "reduction"),
    (16, "ScatterND", "reduction"),
    (18, "Resize", "axes"),
    (18, "Resize", "keep_aspect_ratio_policy"),
    (18, "LpPool", "dilations"),
    (19, "AveragePool", "dilations"),
];

/// Rewrites a canonical model in the oldest operator set, not below `wanted`, that has all it uses. Returns that.
pub fn write_older(model: &mut ModelProto, wanted: i64) -> Result<i64> {
    let graph = graph_mut(model)?;
    let store = Store::take(graph);
    let mut constants: HashMap<String, Vec<i64>> = HashMap::new();
    axes_of(graph, &store, &mut constants);
    let version = needed(graph, &constants).max(wanted).clamp(OLDEST_WRITTEN, NEWEST);
    rewrite(graph, version, &constants);
    store.give(graph);
    prune(graph);
    set_opset(model, version);
    Ok(version)
}

fn is_reduction(node: &NodeProto) -> bool {
    is_default_domain(&node.domain) && node.op_type.starts_with("Reduce") && node.op_type != "ReduceSum"
}

/// Constant axes of reductions.
fn axes_of(graph: &GraphProto, store: &Store, out: &mut HashMap<String, Vec<i64>>) {
    for node in &graph.node {
        if is_reduction(node)
            && let Some(axes) = store.whole_input(node, 1)
        {
            out.insert(node.input[1].clone(), axes);
        }
        node.attribute.iter().flat_map(|a| a.g.iter().chain(&a.graphs)).for_each(|g| axes_of(g, store, out));
    }
}

fn needed(graph: &GraphProto, axes: &HashMap<String, Vec<i64>>) -> i64 {
    let given = |n: &NodeProto, i: usize| n.input.get(i).is_some_and(|s| !s.is_empty());
    let of = |node: &NodeProto| {
        let inner = node.attribute.iter().flat_map(|a| a.g.iter().chain(&a.graphs)).map(|g| needed(g, axes)).max().unwrap_or(0);
        if !is_default_domain(&node.domain) {
            return inner;
        }
        let op = node.op_type.as_str();
        let operator = INTRODUCED.iter().find(|(_, ops)| ops.contains(&op)).map_or(0, |i| i.0);
        let added = ADDED
            .iter()
            .filter(|(_, o, a, same)| *o == op && attr(node, a).is_some_and(|a| a.i != *same || !a.s.is_empty()))
            .map(|a| a.0)
            .max();
        let meant = MEANT.iter().filter(|(_, o, a)| *o == op && attr(node, a).is_some()).map(|a| a.0).max();
        let form = match op {
            "Pad" if attr(node, "mode").is_some_and(|a| a.s == b"wrap") => 19,
            "Pad" if given(node, 3) => 18,
            _ if is_reduction(node) && given(node, 1) && axes.get(&node.input[1]).is_none_or(Vec::is_empty) => 18,
            _ if is_reduction(node) && attr_int(node, "noop_with_empty_axes", 0) != 0 => 18,
            _ => 0,
        };
        operator.max(inner).max(form).max(added.unwrap_or(0)).max(meant.unwrap_or(0))
    };
    graph.node.iter().map(of).max().unwrap_or(0)
}

fn rewrite(graph: &mut GraphProto, version: i64, axes: &HashMap<String, Vec<i64>>) {
    for node in &mut graph.node {
        node.attribute.iter_mut().flat_map(|a| a.g.iter_mut().chain(&mut a.graphs)).for_each(|g| rewrite(g, version, axes));
        if !is_default_domain(&node.domain) {
            continue;
        }
        let later = |since: i64| since > version;
        let op = node.op_type.clone();
        node.attribute.retain(|a| !ADDED.iter().any(|(since, o, name, _)| later(*since) && *o == op && *name == a.name));
        if later(18) && is_reduction(node) {
            node.attribute.retain(|a| a.name != "noop_with_empty_axes");
            if node.input.len() > 1 {
                let list = node.input.drain(1..).next().and_then(|name| axes.get(&name).cloned());
                if let Some(ints) = list {
                    node.attribute.push(AttributeProto {
                        name: "axes".into(),
                        r#type: AttributeType::Ints as i32,
                        ints,
                        ..Default::default()
                    });
                }
            }
        }
        if later(18) && op == "Split" {
            node.attribute.retain(|a| a.name != "num_outputs");
        }
        if later(20)
            && op == "GridSample"
            && let Some(mode) = node.attribute.iter_mut().find(|a| a.name == "mode")
        {
            mode.s = match mode.s.as_slice() {
                b"linear" => b"bilinear".to_vec(),
                b"cubic" => b"bicubic".to_vec(),
                other => other.to_vec(),
            };
        }
    }
}
