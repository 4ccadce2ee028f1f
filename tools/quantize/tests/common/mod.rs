//! A small residual network built in code, with BatchNorm, every quantized operator, and odd constants.
#![allow(dead_code)] // each test file uses its part

use edge_quantize::onnx::*;
use prost::Message;
use tract_onnx::pb::tensor_shape_proto::{Dimension, dimension::Value as Dim};
use tract_onnx::pb::type_proto::{Tensor, Value};
use tract_onnx::pb::{TensorShapeProto, TypeProto, ValueInfoProto};

/// Deterministic values in −1 … 1.
pub fn noise(seed: u32, n: usize) -> Vec<f32> {
    let mut s = seed.wrapping_mul(2_654_435_761).wrapping_add(12_345);
    let mut next = || {
        s ^= s << 13;
        s ^= s >> 17;
        s ^= s << 5;
        s as f32 / u32::MAX as f32 * 2.0 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

pub fn value(name: &str, dims: &[i64]) -> ValueInfoProto {
    let dim = |&d: &i64| Dimension { value: Some(if d < 0 { Dim::DimParam("n".into()) } else { Dim::DimValue(d) }), ..Default::default() };
    let shape = TensorShapeProto { dim: dims.iter().map(dim).collect() };
    let t = TypeProto { value: Some(Value::TensorType(Tensor { elem_type: 1, shape: Some(shape) })), ..Default::default() };
    ValueInfoProto { name: name.into(), r#type: Some(t), ..Default::default() }
}

pub fn ints(name: &str, ints: &[i64]) -> AttributeProto {
    AttributeProto { name: name.into(), r#type: 7, ints: ints.to_vec(), ..Default::default() }
}

pub fn model(opset: i64, graph: GraphProto) -> ModelProto {
    let mut m = ModelProto { ir_version: 8, graph: Some(graph), ..Default::default() };
    set_opset(&mut m, opset);
    m
}

#[derive(Default)]
pub struct Net {
    pub graph: GraphProto,
    seed: u32,
}

impl Net {
    pub fn random(&mut self, name: &str, dims: &[usize], gain: f32, offset: f32) {
        self.seed += 1;
        let v: Vec<f32> = noise(self.seed, dims.iter().product()).iter().map(|v| v * gain + offset).collect();
        self.graph.initializer.push(f32_tensor(name, dims, &v));
    }
    pub fn op(&mut self, op: &str, inputs: &[&str], output: &str, attributes: Vec<AttributeProto>) {
        self.graph.node.push(make_node(op, inputs, output, attributes));
    }
    /// Conv → BatchNorm; output `name`.
    pub fn conv_bn(&mut self, name: &str, input: &str, [o, i, k]: [usize; 3], stride: i64, bias: bool) {
        let [w, b, y, g, be, m, v] = ["w", "b", "y", "g", "be", "m", "v"].map(|s| format!("{name}.{s}"));
        self.random(&w, &[o, i, k, k], 1.0 / (i * k * k) as f32, 0.0);
        let mut inputs = vec![input, &w];
        if bias {
            self.random(&b, &[o], 0.2, 0.0);
            inputs.push(&b);
        }
        let pad = (k / 2) as i64;
        let attributes = vec![ints("kernel_shape", &[k as i64; 2]), ints("pads", &[pad; 4]), ints("strides", &[stride; 2])];
        self.op("Conv", &inputs, &y, attributes);
        self.random(&g, &[o], 0.5, 1.0);
        self.random(&be, &[o], 0.3, 0.1);
        self.random(&m, &[o], 0.1, 0.0);
        self.random(&v, &[o], 0.04, 0.05);
        self.op("BatchNormalization", &[&y, &g, &be, &m, &v], name, vec![]);
    }
}

/// conv → pool → one residual block with a downsample path → mean → Gemm; input 1×3×16×16, 5 classes.
pub fn resnet(opset: i64) -> ModelProto {
    let mut n = Net::default();
    n.graph.name = "net".into();
    n.graph.input.push(value("x", &[-1, 3, 16, 16]));
    n.graph.output.push(value("logits", &[-1, 5]));
    n.conv_bn("stem", "x", [8, 3, 3], 1, true);
    n.op("Relu", &["stem"], "stem.relu", vec![]);
    n.op("MaxPool", &["stem.relu"], "pool", vec![ints("kernel_shape", &[2, 2]), ints("strides", &[2, 2])]);
    n.conv_bn("c1", "pool", [16, 8, 3], 2, false);
    n.op("Relu", &["c1"], "c1.relu", vec![]);
    n.conv_bn("c2", "c1.relu", [16, 16, 3], 1, false);
    n.conv_bn("down", "pool", [16, 8, 1], 2, false);
    n.op("Add", &["c2", "down"], "sum", vec![]);
    n.op("Relu", &["sum"], "block", vec![]);
    n.op("GlobalAveragePool", &["block"], "mean", vec![]);
    n.op("Flatten", &["mean"], "flat", vec![]);
    n.random("fc.w", &[5, 16], 1.0, 0.0);
    n.random("fc.b", &[5], 0.5, 0.0);
    n.op("Gemm", &["flat", "fc.w", "fc.b"], "logits", vec![int_attribute("transB", 1)]);
    model(opset, n.graph)
}

pub fn bytes(model: &ModelProto) -> Vec<u8> {
    model.encode_to_vec()
}

/// Output 0 of a model for one input.
pub fn run(model: &ModelProto, shape: &[usize], input: &[f32]) -> Vec<f32> {
    let mut out = Vec::new();
    let runner = edge_quantize::float::Runner::new(model, shape, &[]).unwrap();
    runner
        .run(input, |i, _, v| {
            if i == 0 {
                out = v.to_vec()
            }
        })
        .unwrap();
    out
}

/// A `.npy` file of N×3×16×16.
pub fn write_npy(path: &std::path::Path, n: usize) {
    let header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({n}, 3, 16, 16), }}");
    let pad = 64 - (10 + header.len() + 1) % 64;
    let header = header + &" ".repeat(pad) + "\n";
    let mut out = b"\x93NUMPY\x01\x00".to_vec();
    out.extend((header.len() as u16).to_le_bytes());
    out.extend(header.as_bytes());
    for v in noise(99, n * 768) {
        out.extend(v.to_le_bytes());
    }
    std::fs::write(path, out).unwrap();
}
