//! A network and its values as an ONNX model.

use crate::network::{Network, Op, Value};
use crate::{Error, Result};
use edge_infer::import::onnx::{self, AttributeProto, GraphProto, ModelProto, f32_tensor, int_attribute, make_node};
use tract_onnx::pb::attribute_proto::AttributeType;
use tract_onnx::pb::tensor_shape_proto::{Dimension, dimension::Value as Dim};
use tract_onnx::pb::type_proto::{Tensor, Value as TypeValue};
use tract_onnx::pb::{TensorShapeProto, TypeProto, ValueInfoProto};

/// Operator sets that can be written; the operators used mean the same in all of them.
pub const OPSETS: std::ops::RangeInclusive<i64> = 9..=21;
/// Name of the graph's input.
pub const INPUT: &str = "input";
/// Name of the graph's output.
pub const OUTPUT: &str = "logits";
/// BatchNorm's ε, torchvision's.
pub const EPSILON: f32 = 1e-5;

fn ints(name: &str, values: &[usize]) -> AttributeProto {
    let ints = values.iter().map(|&v| v as i64).collect();
    AttributeProto { name: name.into(), r#type: AttributeType::Ints as i32, ints, ..Default::default() }
}

fn float(name: &str, f: f32) -> AttributeProto {
    AttributeProto { name: name.into(), r#type: AttributeType::Float as i32, f, ..Default::default() }
}

/// An f32 tensor's declaration; `batch` `None` is a symbolic `batch`.
pub(crate) fn value_info(name: &str, batch: Option<usize>, dims: &[usize]) -> ValueInfoProto {
    let fixed = |d: usize| Dim::DimValue(d as i64);
    let values = std::iter::once(batch.map_or(Dim::DimParam("batch".into()), fixed)).chain(dims.iter().map(|&d| fixed(d)));
    let dim = values.map(|v| Dimension { value: Some(v), ..Default::default() }).collect();
    let tensor = Tensor { elem_type: 1, shape: Some(TensorShapeProto { dim }) };
    let r#type = Some(TypeProto { value: Some(TypeValue::TensorType(tensor)), ..Default::default() });
    ValueInfoProto { name: name.into(), r#type, ..Default::default() }
}

/// Oldest IR version that knows the operator set.
fn ir_version(opset: i64) -> i64 {
    match opset {
        ..=9 => 4,
        10 => 5,
        11 => 6,
        12..=14 => 7,
        15..=18 => 8,
        19..=20 => 9,
        _ => 10,
    }
}

/// Writes the network down. `values` are in [`Network::parameters`] order and are consumed; a `batch` of `None` is dynamic.
pub fn to_onnx(network: &Network, values: Vec<Vec<f32>>, opset: i64, batch: Option<usize>) -> Result<ModelProto> {
    if !OPSETS.contains(&opset) {
        return Err(Error::Usage(format!("--opset {opset} is outside {OPSETS:?}")));
    }
    let size = network.config.size;
    let mut graph = GraphProto { name: network.config.arch.name(), ..Default::default() };
    graph.input.push(value_info(INPUT, batch, &[3, size, size]));
    graph.output.push(value_info(OUTPUT, batch, &[network.config.num_classes]));
    for (p, v) in network.parameters().zip(values) {
        debug_assert_eq!(p.len(), v.len());
        graph.initializer.push(f32_tensor(&p.name, &p.dims, &v));
    }
    let last = network.layers.len() - 1;
    let name_of = |v: Value| match v {
        Value::Input => INPUT,
        Value::Layer(i) if i == last => OUTPUT,
        Value::Layer(i) => network.layers[i].name.as_str(),
    };
    for (i, layer) in network.layers.iter().enumerate() {
        let mut inputs: Vec<&str> = layer.inputs.iter().map(|&v| name_of(v)).collect();
        inputs.extend(layer.parameters.iter().map(|p| p.name.as_str()));
        let (op, attributes) = match layer.op {
            Op::Conv { kernel, stride, padding, dilation, groups } => {
                let geometry = [("kernel_shape", kernel), ("strides", stride), ("dilations", dilation)];
                let mut attributes: Vec<_> = geometry.iter().map(|&(name, v)| ints(name, &[v; 2])).collect();
                attributes.push(ints("pads", &[padding; 4]));
                attributes.push(int_attribute("group", groups as i64));
                ("Conv", attributes)
            }
            Op::BatchNorm => ("BatchNormalization", vec![float("epsilon", EPSILON), float("momentum", 0.9)]),
            Op::Relu => ("Relu", vec![]),
            Op::MaxPool => ("MaxPool", vec![ints("kernel_shape", &[3; 2]), ints("strides", &[2; 2]), ints("pads", &[1; 4])]),
            Op::Add => ("Add", vec![]),
            Op::GlobalAveragePool => ("GlobalAveragePool", vec![]),
            Op::Flatten => ("Flatten", vec![int_attribute("axis", 1)]),
            Op::Linear => ("Gemm", vec![int_attribute("transB", 1)]),
        };
        graph.node.push(make_node(op, &inputs, name_of(Value::Layer(i)), attributes));
    }
    let mut model = ModelProto {
        ir_version: ir_version(opset),
        producer_name: "edge-resnet".into(),
        producer_version: env!("CARGO_PKG_VERSION").into(),
        graph: Some(graph),
        ..Default::default()
    };
    // `set_opset` raises the IR version to the quantizer's needs; older files keep theirs.
    let ir = model.ir_version;
    onnx::set_opset(&mut model, opset);
    model.ir_version = ir;
    Ok(model)
}
