//! One network in the forms exporters write: each is quantized, runs wholly in int8, and classifies as the original does.
mod common;
use common::*;
use edge_infer::model::{LoadOptions, Model};
use edge_quantize::data::Inputs;
use edge_quantize::input;
use edge_quantize::onnx::*;
use edge_quantize::pipeline::{Options, quantize};
use std::path::Path;
use std::process::Command;

const SHAPE: [usize; 4] = [1, 3, 16, 16];
const IMAGES: usize = 20;

type Change = Box<dyn Fn(&mut ModelProto)>;

fn edit(f: impl Fn(&mut GraphProto) + 'static) -> Change {
    Box::new(move |m| f(graph_mut(m).unwrap()))
}

fn at(g: &GraphProto, output: &str) -> usize {
    g.node.iter().position(|n| n.output[0] == output).unwrap()
}

fn tensor(g: &GraphProto, name: &str) -> Vec<f32> {
    f32_data(g.initializer.iter().find(|t| t.name == name).unwrap()).unwrap()
}

/// Replaces mean → Flatten → Gemm's input by other nodes that end in `flat`.
fn head(g: &mut GraphProto, nodes: Vec<NodeProto>) {
    let (a, b) = (at(g, "mean"), at(g, "flat"));
    g.node.splice(a..=b, nodes);
}

fn transposed_fc(g: &mut GraphProto) {
    let w = tensor(g, "fc.w");
    let turned: Vec<f32> = (0..16).flat_map(|k| (0..5).map(move |n| n * 16 + k)).map(|i| w[i]).collect();
    g.initializer.push(f32_tensor("fc.t", &[16, 5], &turned));
}

fn half(t: &mut TensorProto) {
    if t.data_type == 1 {
        let values = f32_data(t).unwrap();
        t.raw_data = values.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect();
        t.data_type = 10;
    }
}

/// x → Transpose to N×C×H×W, and every padded Conv with its padding as Pad between two Transposes, bias as Add, mean over
/// the channels-last axes, MatMul: as converters from TensorFlow write it.
fn channels_last(g: &mut GraphProto) {
    let nodes = std::mem::take(&mut g.node);
    let perm = |name: &str, x: &str, y: &str| {
        make_node("Transpose", &[x], y, vec![ints("perm", if name == "last" { &[0, 2, 3, 1] } else { &[0, 3, 1, 2] })])
    };
    g.node.push(perm("first", "x", "x.first"));
    for mut n in nodes {
        n.input.iter_mut().filter(|i| *i == "x").for_each(|i| *i = "x.first".into());
        match (n.op_type.as_str(), n.output[0].clone()) {
            ("Conv", y) => {
                let p = attr_ints(&n, "pads").to_vec();
                if p[0] > 0 {
                    let pads = format!("{y}.pads");
                    g.initializer.push(i64_tensor(&pads, &[8], &[0, p[0], p[1], 0, 0, p[2], p[3], 0]));
                    let [a, b, c] = ["a", "b", "c"].map(|s| format!("{y}.{s}"));
                    g.node.extend([perm("last", &n.input[0], &a), make_node("Pad", &[&a, &pads], &b, vec![]), perm("first", &b, &c)]);
                    n.attribute.retain(|a| a.name != "pads");
                    n.input[0] = c;
                }
                let bias = n.input.get(2).cloned();
                n.input.truncate(2);
                if let Some(bias) = bias {
                    let spread = format!("{bias}.spread");
                    let values = tensor(g, &bias);
                    g.initializer.push(f32_tensor(&spread, &[1, values.len(), 1, 1], &values));
                    n.output[0] = format!("{y}.plain");
                    let plain = n.output[0].clone();
                    g.node.extend([n, make_node("Add", &[&spread, &plain], &y, vec![])]);
                } else {
                    g.node.push(n);
                }
            }
            ("GlobalAveragePool", _) => {
                g.node.push(perm("last", "block", "block.last"));
                g.node.push(make_node("ReduceMean", &["block.last"], "flat", vec![ints("axes", &[1, 2]), int_attribute("keepdims", 0)]));
            }
            ("Flatten", _) => {}
            ("Gemm", _) => {
                transposed_fc(g);
                g.node.push(make_node("MatMul", &["flat", "fc.t"], "product", vec![]));
                g.node.push(make_node("Add", &["product", "fc.b"], "logits", vec![]));
            }
            _ => g.node.push(n),
        }
    }
    g.input[0] = value("x", &[-1, 16, 16, 3]);
}

/// Name, operator set, and what is done to the network.
fn variants() -> Vec<(&'static str, i64, Change)> {
    let mut all: Vec<(&'static str, i64, Change)> = Vec::new();
    for opset in 7..=28 {
        all.push(("as it is", opset, edit(|_| {})));
    }
    all.push((
        "BatchNorm already folded",
        17,
        Box::new(|m| {
            edge_quantize::fold::fold(m).unwrap();
        }),
    ));
    let constants = |g: &mut GraphProto| {
        let nodes = std::mem::take(&mut g.initializer).into_iter().map(|t| {
            let name = t.name.clone();
            make_node("Constant", &[], &name, vec![AttributeProto { name: "value".into(), r#type: 4, t: Some(t), ..Default::default() }])
        });
        let nodes: Vec<NodeProto> = nodes.collect();
        g.node.splice(0..0, nodes);
    };
    all.push(("weights as Constant nodes", 17, edit(constants)));
    all.push((
        "weights and result through Identity, a Dropout",
        17,
        edit(|g| {
            let convs: Vec<String> = g.node.iter().filter(|n| n.op_type == "Conv").map(|n| n.input[1].clone()).collect();
            g.node.iter_mut().filter(|n| n.op_type == "Conv").for_each(|n| n.input[1] += ".id");
            let ids: Vec<NodeProto> = convs.iter().map(|w| make_node("Identity", &[w], &format!("{w}.id"), vec![])).collect();
            g.node.splice(0..0, ids);
            let flat = at(g, "flat");
            g.node[flat].output[0] = "flat0".into();
            g.node.insert(flat + 1, make_node("Dropout", &["flat0"], "flat", vec![]));
            g.node.last_mut().unwrap().output[0] = "logits0".into();
            g.node.push(make_node("Identity", &["logits0"], "logits", vec![]));
        }),
    ));
    all.push((
        "batch of 8 with a Reshape that says so",
        17,
        edit(|g| {
            g.input[0] = value("x", &[8, 3, 16, 16]);
            g.output[0] = value("logits", &[8, 5]);
            g.initializer.push(i64_tensor("shape", &[2], &[8, 16]));
            let flat = at(g, "flat");
            g.node[flat] = make_node("Reshape", &["mean", "shape"], "flat", vec![]);
        }),
    ));
    all.push(("symbolic height and width", 17, edit(|g| g.input[0] = value("x", &[-1, 3, -1, -1]))));
    for (name, shape) in [("Reshape to [1, -1]", [1, -1]), ("Reshape to [-1, 16]", [-1, 16]), ("Reshape to [0, -1]", [0, -1])] {
        all.push((
            name,
            17,
            edit(move |g| {
                g.initializer.push(i64_tensor("shape", &[2], &shape));
                let flat = at(g, "flat");
                g.node[flat] = make_node("Reshape", &["mean", "shape"], "flat", vec![]);
            }),
        ));
    }
    all.push((
        "Reshape to a shape that is computed",
        17,
        edit(|g| {
            g.initializer.extend([i64_tensor("zero", &[], &[0]), i64_tensor("minus", &[1], &[-1]), i64_tensor("axis", &[1], &[0])]);
            head(
                g,
                vec![
                    make_node("GlobalAveragePool", &["block"], "mean", vec![]),
                    make_node("Shape", &["mean"], "shape", vec![]),
                    make_node("Gather", &["shape", "zero"], "n", vec![]),
                    make_node("Unsqueeze", &["n", "axis"], "n1", vec![]),
                    make_node("Concat", &["n1", "minus"], "to", vec![int_attribute("axis", 0)]),
                    make_node("Reshape", &["mean", "to"], "flat", vec![]),
                ],
            );
        }),
    ));
    all.push((
        "two Squeezes",
        11,
        edit(|g| {
            head(
                g,
                vec![
                    make_node("GlobalAveragePool", &["block"], "mean", vec![]),
                    make_node("Squeeze", &["mean"], "s", vec![ints("axes", &[3])]),
                    make_node("Squeeze", &["s"], "flat", vec![ints("axes", &[2])]),
                ],
            );
        }),
    ));
    all.push((
        "ReduceMean, axes as attribute",
        13,
        edit(|g| {
            let mean = make_node("ReduceMean", &["block"], "flat", vec![ints("axes", &[2, 3]), int_attribute("keepdims", 0)]);
            head(g, vec![mean]);
        }),
    ));
    all.push((
        "ReduceMean, axes as input",
        18,
        edit(|g| {
            g.initializer.push(i64_tensor("axes", &[2], &[-1, -2]));
            head(g, vec![make_node("ReduceMean", &["block", "axes"], "mean", vec![]), make_node("Flatten", &["mean"], "flat", vec![])]);
        }),
    ));
    all.push((
        "AveragePool over everything",
        17,
        edit(|g| {
            let pool = make_node("AveragePool", &["block"], "mean", vec![ints("kernel_shape", &[4, 4])]);
            head(g, vec![pool, make_node("Flatten", &["mean"], "flat", vec![])]);
        }),
    ));
    all.push((
        "MatMul and Add",
        17,
        edit(|g| {
            transposed_fc(g);
            g.node.pop();
            g.node.push(make_node("MatMul", &["flat", "fc.t"], "product", vec![]));
            g.node.push(make_node("Add", &["fc.b", "product"], "logits", vec![]));
        }),
    ));
    all.push((
        "MatMul with weights transposed by a node",
        17,
        edit(|g| {
            g.node.pop();
            g.node.push(make_node("Transpose", &["fc.w"], "fc.t", vec![ints("perm", &[1, 0])]));
            g.node.push(make_node("MatMul", &["flat", "fc.t"], "product", vec![]));
            g.node.push(make_node("Add", &["product", "fc.b"], "logits", vec![]));
        }),
    ));
    all.push((
        "head as a 1×1 Conv",
        17,
        edit(|g| {
            let w = tensor(g, "fc.w");
            g.initializer.push(f32_tensor("fc.conv", &[5, 16, 1, 1], &w));
            g.node.truncate(at(g, "flat"));
            g.node.push(make_node("Conv", &["mean", "fc.conv", "fc.b"], "maps", vec![]));
            g.node.push(make_node("Flatten", &["maps"], "logits", vec![]));
        }),
    ));
    all.push((
        "Clip instead of ReLU, bounds as attributes",
        9,
        edit(|g| {
            for n in g.node.iter_mut().filter(|n| n.op_type == "Relu") {
                n.op_type = "Clip".into();
                let bound = |name: &str, f| AttributeProto { name: name.into(), r#type: 1, f, ..Default::default() };
                n.attribute = vec![bound("min", 0.0), bound("max", 1000.0)];
            }
        }),
    ));
    all.push((
        "automatic padding",
        17,
        edit(|g| {
            for n in g.node.iter_mut().filter(|n| n.op_type == "Conv" && attr_ints(n, "strides") == [1, 1]) {
                n.attribute.retain(|a| a.name != "pads");
                n.attribute.push(AttributeProto { name: "auto_pad".into(), r#type: 3, s: b"SAME_UPPER".to_vec(), ..Default::default() });
            }
        }),
    ));
    all.push(("channels last, as TensorFlow's converter writes it", 13, edit(channels_last)));
    all.push((
        "scale and shift instead of BatchNorm",
        17,
        Box::new(|m| {
            let g = graph_mut(m).unwrap();
            let i = at(g, "c1");
            let [gamma, beta, mean, variance] = ["g", "be", "m", "v"].map(|p| tensor(g, &format!("c1.{p}")));
            let k: Vec<f32> = gamma.iter().zip(&variance).map(|(g, v)| g / (v + 1e-5).sqrt()).collect();
            let b: Vec<f32> = (0..16).map(|c| beta[c] - mean[c] * k[c]).collect();
            g.initializer.extend([f32_tensor("c1.k", &[16, 1, 1], &k), f32_tensor("c1.o", &[1, 16, 1, 1], &b)]);
            g.node[i] = make_node("Mul", &["c1.y", "c1.k"], "c1.scaled", vec![]);
            g.node.insert(i + 1, make_node("Add", &["c1.scaled", "c1.o"], "c1", vec![]));
        }),
    ));
    all.push((
        "weights in float16",
        17,
        edit(|g| {
            g.initializer.iter_mut().for_each(half);
            let g_in = "x16";
            g.node.iter_mut().flat_map(|n| &mut n.input).filter(|i| *i == "x").for_each(|i| *i = g_in.into());
            g.node.last_mut().unwrap().output[0] = "logits16".into();
            g.node.insert(0, make_node("Cast", &["x"], g_in, vec![int_attribute("to", 10)]));
            g.node.push(make_node("Cast", &["logits16"], "logits", vec![int_attribute("to", 1)]));
        }),
    ));
    all.push((
        "biases of zeros, as large as their weights say",
        18,
        edit(|g| {
            g.initializer.extend([i64_tensor("whole", &[1], &[-1]), f32_tensor("nought", &[], &[0.0])]);
            let mut nodes = vec![];
            for mut n in std::mem::take(&mut g.node) {
                if n.op_type == "Conv" && n.input.len() == 2 {
                    let [shape, same, zero, bias] = ["shape", "same", "zero", "bias"].map(|s| format!("{}.{s}", n.output[0]));
                    let channels = vec![int_attribute("start", 0), int_attribute("end", 1)];
                    nodes.extend([
                        make_node("Shape", &[&n.input[1]], &shape, channels),
                        make_node("Reshape", &[&shape, "whole"], &same, vec![]),
                        make_node("CastLike", &["nought", &n.input[0]], &zero, vec![]),
                        make_node("Expand", &[&zero, &same], &bias, vec![]),
                    ]);
                    n.input.push(bias);
                }
                nodes.push(n);
            }
            g.node = nodes;
        }),
    ));
    all.push((
        "initializers listed as inputs",
        9,
        edit(|g| {
            let values: Vec<_> = g.initializer.iter().map(|t| value(&t.name, &t.dims)).collect();
            g.input.extend(values);
        }),
    ));
    all
}

fn argmax(v: &[f32]) -> usize {
    (0..v.len()).max_by(|&a, &b| v[a].total_cmp(&v[b])).unwrap()
}

fn int8(model: &ModelProto, inputs: &Inputs, path: &Path) -> Model {
    let (bytes, _) = quantize(model, &SHAPE, inputs, &Options::default(), &|_, _| Box::new(|| {})).unwrap();
    std::fs::write(path, bytes).unwrap();
    Model::load(path, &LoadOptions { threads: 1, ..Default::default() }).unwrap()
}

#[test]
fn every_form_runs_in_int8_and_classifies_alike() {
    let dir = tempfile::tempdir().unwrap();
    let npy = dir.path().join("x.npy");
    write_npy(&npy, IMAGES);
    let inputs = Inputs::collect(&[npy], &SHAPE, None).unwrap();
    let pictures: Vec<Vec<f32>> = (0..IMAGES).map(|i| inputs.load(i).unwrap()).collect();
    let original = resnet(17);
    let float: Vec<Vec<f32>> = pictures.iter().map(|x| run(&original, &SHAPE, x)).collect();
    let mut reference = int8(&input::decode(&bytes(&original)).unwrap(), &inputs, &dir.path().join("q.onnx"));
    let want: Vec<Vec<f32>> = pictures.iter().map(|x| reference.run(x).unwrap().to_vec()).collect();
    let macs = reference.report().int8_macs;
    let span = want.iter().flatten().fold(0f32, |m, v| m.max(v.abs()));
    let mut listing = String::new();
    for (i, (name, opset, change)) in variants().into_iter().enumerate() {
        let mut model = resnet(opset);
        change(&mut model);
        let path = dir.path().join(format!("{i}.onnx"));
        let model = input::decode(&bytes(&model)).unwrap_or_else(|e| panic!("{name}, opset {opset}: {e}"));
        let mut model = int8(&model, &inputs, &path);
        let report = model.report();
        let left: Vec<_> = report.nodes.iter().filter(|n| n.why.is_some() && n.op != "Flatten").collect();
        assert!(left.is_empty() && report.int8_macs == macs, "{name}, opset {opset}: {left:?}");
        for (k, x) in pictures.iter().enumerate() {
            let got = model.run(x).unwrap();
            assert_eq!(argmax(got), argmax(&float[k]), "{name}, opset {opset}: picture {k}: {got:?}, float {:?}", float[k]);
            let off = got.iter().zip(&want[k]).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
            assert!(off < 0.03 * span, "{name}, opset {opset}: picture {k}: {got:?}, {:?} in the usual form", want[k]);
        }
        listing += &format!("{}\t{name}, opset {opset}\n", path.display());
    }
    load_elsewhere(dir.path(), &listing);
}

/// Every file loads in ONNX Runtime and gives five finite numbers, where Python has it.
fn load_elsewhere(dir: &Path, listing: &str) {
    let list = dir.join("list.tsv");
    std::fs::write(&list, listing).unwrap();
    let script = "
import sys
try:
    import numpy, onnxruntime
except ImportError as e:
    print('skipped:', e); sys.exit(77)
for line in open(sys.argv[1]):
    path, name = line.rstrip('\\n').split('\\t')
    s = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    y = s.run(None, {s.get_inputs()[0].name: numpy.ones((1, 3, 16, 16), numpy.float32)})[0]
    assert y.shape == (1, 5) and numpy.isfinite(y).all(), name
";
    let python = std::env::var("EDGE_PYTHON").unwrap_or("python3".into());
    match Command::new(python).args(["-c", script]).arg(&list).output() {
        Ok(out) if out.status.code() == Some(77) => eprintln!("SKIPPED: {}", String::from_utf8_lossy(&out.stdout).trim()),
        Ok(out) => assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr)),
        Err(e) => eprintln!("SKIPPED: python3: {e}"),
    }
}

#[test]
fn external_data_is_read_and_never_from_elsewhere() {
    let dir = tempfile::tempdir().unwrap();
    let whole = resnet(17);
    let mut apart = whole.clone();
    let mut data = Vec::new();
    let entry = |key: &str, value: String| tract_onnx::pb::StringStringEntryProto { key: key.into(), value };
    for t in &mut graph_mut(&mut apart).unwrap().initializer {
        t.external_data = vec![
            entry("location", "weights/m.bin".into()),
            entry("offset", data.len().to_string()),
            entry("length", t.raw_data.len().to_string()),
        ];
        t.data_location = Some(1);
        data.append(&mut t.raw_data);
    }
    std::fs::create_dir(dir.path().join("weights")).unwrap();
    std::fs::write(dir.path().join("weights/m.bin"), &data).unwrap();
    let path = dir.path().join("m.onnx");
    let read = |m: &ModelProto| {
        std::fs::write(&path, bytes(m)).unwrap();
        input::load(&path)
    };
    let x = noise(5, 768);
    assert_eq!(run(&read(&apart).unwrap(), &SHAPE, &x), run(&input::decode(&bytes(&whole)).unwrap(), &SHAPE, &x));
    for (key, value, word) in [
        ("location", "../m.bin", "not a file below"),
        ("location", "/etc/passwd", "not a file below"),
        ("location", "gone.bin", "beside the model"),
        ("offset", "999999999", "copy it again"),
        ("length", "18446744073709551615", "copy it again"),
        ("offset", "-1", "not a number"),
    ] {
        let mut bad = apart.clone();
        let t = &mut graph_mut(&mut bad).unwrap().initializer[3];
        t.external_data.iter_mut().find(|e| e.key == key).unwrap().value = value.into();
        let text = read(&bad).unwrap_err().to_string();
        assert!(text.contains(word) && text.contains(&t_name(&bad)), "{key} {value}: {text}");
    }
}

fn t_name(m: &ModelProto) -> String {
    graph(m).unwrap().initializer[3].name.clone()
}

/// conv → (BN → ReLU → Conv)×2 + shortcut: no Conv before the BatchNorm could take it up.
#[test]
fn pre_activation_and_plain_networks_run_in_int8() {
    let dir = tempfile::tempdir().unwrap();
    let npy = dir.path().join("x.npy");
    write_npy(&npy, IMAGES);
    let inputs = Inputs::collect(&[npy], &SHAPE, None).unwrap();
    let bn = |n: &mut Net, name: &str, x: &str, c: usize| {
        let parts = ["g", "b", "m", "v"].map(|p| format!("{name}.{p}"));
        for (part, (gain, offset)) in parts.iter().zip([(0.3, 1.0), (0.2, 0.0), (0.1, 0.0), (0.1, 0.5)]) {
            n.random(part, &[c], gain, offset);
        }
        let [g, b, m, v] = &parts;
        n.op("BatchNormalization", &[x, g, b, m, v], name, vec![]);
    };
    let conv = |n: &mut Net, y: &str, x: &str, [o, i, k]: [usize; 3]| {
        let w = format!("{y}.w");
        n.random(&w, &[o, i, k, k], 2.0 / (i * k * k) as f32, 0.0);
        n.op("Conv", &[x, &w], y, vec![ints("pads", &[(k / 2) as i64; 4])]);
    };
    let finish = |mut n: Net, last: &str, c: usize| {
        n.op("GlobalAveragePool", &[last], "mean", vec![]);
        n.op("Flatten", &["mean"], "flat", vec![]);
        n.random("fc.w", &[5, c], 1.0, 0.0);
        n.op("Gemm", &["flat", "fc.w"], "logits", vec![int_attribute("transB", 1)]);
        n.op("Softmax", &["logits"], "p", vec![int_attribute("axis", -1)]);
        n.graph.input.push(value("x", &[1, 3, 16, 16]));
        n.graph.output.push(value("p", &[1, 5]));
        model(17, n.graph)
    };
    let mut pre = Net::default();
    conv(&mut pre, "stem", "x", [8, 3, 3]);
    bn(&mut pre, "b1", "stem", 8);
    pre.op("Relu", &["b1"], "r1", vec![]);
    conv(&mut pre, "c1", "r1", [8, 8, 3]);
    bn(&mut pre, "b2", "c1", 8);
    pre.op("Relu", &["b2"], "r2", vec![]);
    conv(&mut pre, "c2", "r2", [8, 8, 3]);
    pre.op("Add", &["c2", "stem"], "sum", vec![]);
    bn(&mut pre, "b3", "sum", 8);
    let mut plain = Net::default();
    conv(&mut plain, "a", "x", [8, 3, 3]);
    plain.op("Relu", &["a"], "ar", vec![]);
    plain.op("MaxPool", &["ar"], "ap", vec![ints("kernel_shape", &[2, 2]), ints("strides", &[2, 2])]);
    conv(&mut plain, "b", "ap", [8, 8, 3]);
    conv(&mut plain, "c", "ap", [4, 8, 1]);
    plain.op("Concat", &["b", "c"], "joined", vec![int_attribute("axis", 1)]);
    plain.op("Relu", &["joined"], "jr", vec![]);
    plain.op("AveragePool", &["jr"], "avg", vec![ints("kernel_shape", &[2, 2]), ints("strides", &[2, 2])]);
    let mut smooth = Net::default();
    conv(&mut smooth, "s", "x", [8, 3, 3]);
    smooth.op("HardSwish", &["s"], "swish", vec![]);
    conv(&mut smooth, "t", "swish", [8, 8, 3]);
    smooth.op("Sigmoid", &["t"], "sigmoid", vec![]);
    conv(&mut smooth, "u", "sigmoid", [8, 8, 1]);
    smooth.op("HardSigmoid", &["u"], "hard", vec![AttributeProto { name: "alpha".into(), r#type: 1, f: 0.3, ..Default::default() }]);
    let macs = [16 * 16 * (27 * 8 + 8 + 72 * 8 * 2 + 8) + 40, 256 * 27 * 8 + 64 * (72 * 8 + 32) + 60, 256 * (27 + 72 + 8) * 8 + 40];
    let nets = [finish(pre, "b3", 8), finish(plain, "avg", 12), finish(smooth, "hard", 8)];
    for ((m, macs), name) in nets.iter().zip(macs).zip(["pre-activation", "plain", "smooth"]) {
        let read = input::decode(&bytes(m)).unwrap();
        let mut quantized = int8(&read, &inputs, &dir.path().join(format!("{name}.onnx")));
        let report = quantized.report();
        let left: Vec<_> = report.nodes.iter().filter(|n| n.why.is_some()).map(|n| n.op.as_str()).collect();
        assert_eq!((left, report.int8_macs), (vec!["Softmax"], macs), "{name}");
        for i in 0..IMAGES {
            let x = inputs.load(i).unwrap();
            let (want, got) = (run(m, &SHAPE, &x), quantized.run(&x).unwrap());
            let off = want.iter().zip(got).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
            assert!(off < 0.02, "{name}: picture {i}: {want:?} {got:?}");
        }
    }
}

/// Transposed convolutions of all kinds, attention by place, squeeze and excitation by vectors, a mirrored border, a BatchNorm of vectors, and
/// results that convolutions make: all in int8.
#[test]
fn decoders_and_attention_run_in_int8() {
    let dir = tempfile::tempdir().unwrap();
    let npy = dir.path().join("x.npy");
    write_npy(&npy, IMAGES);
    let inputs = Inputs::collect(&[npy], &SHAPE, None).unwrap();
    let bn = |n: &mut Net, y: &str, x: &str, c: usize| {
        let parts = ["g", "b", "m", "v"].map(|p| format!("{y}.{p}"));
        for (part, (gain, offset)) in parts.iter().zip([(0.3, 1.0), (0.2, 0.0), (0.1, 0.0), (0.1, 0.5)]) {
            n.random(part, &[c], gain, offset);
        }
        let [g, b, m, v] = &parts;
        n.op("BatchNormalization", &[x, g, b, m, v], y, vec![]);
    };
    let conv = |n: &mut Net, y: &str, x: &str, [o, i, k]: [usize; 3], stride: i64| {
        let w = format!("{y}.w");
        n.random(&w, &[o, i, k, k], 2.0 / (i * k * k) as f32, 0.0);
        n.op("Conv", &[x, &w], y, vec![ints("pads", &[(k / 2) as i64; 4]), ints("strides", &[stride; 2])]);
    };
    // Twice the height and width.
    let up = |n: &mut Net, y: &str, x: &str, [i, o, groups]: [usize; 3]| {
        let (w, b) = (format!("{y}.w"), format!("{y}.b"));
        n.random(&w, &[i, o / groups, 4, 4], 4.0 / (i / groups * 16) as f32, 0.0);
        n.random(&b, &[o], 0.2, 0.0);
        let window = vec![ints("pads", &[1; 4]), ints("strides", &[2, 2]), int_attribute("group", groups as i64)];
        n.op("ConvTranspose", &[x, &w, &b], y, window);
    };
    let finish = |mut n: Net, y: &str, dims: &[i64]| {
        n.graph.input.push(value("x", &[1, 3, 16, 16]));
        n.graph.output.push(value(y, dims));
        model(17, n.graph)
    };
    let mut decoder = Net::default();
    conv(&mut decoder, "a", "x", [8, 3, 3], 4);
    decoder.op("Relu", &["a"], "ar", vec![]);
    up(&mut decoder, "u1", "ar", [8, 6, 1]);
    bn(&mut decoder, "b1", "u1", 6);
    decoder.op("Relu", &["b1"], "r1", vec![]);
    up(&mut decoder, "u2", "r1", [6, 6, 6]);
    up(&mut decoder, "u3", "u2", [6, 4, 2]);
    bn(&mut decoder, "y", "u3", 4);

    let mut attention = Net::default();
    conv(&mut attention, "a", "x", [8, 3, 3], 1);
    attention.op("Relu", &["a"], "ar", vec![]);
    attention.op("GlobalAveragePool", &["ar"], "mean", vec![]);
    attention.op("Flatten", &["mean"], "flat", vec![]);
    attention.random("squeeze.w", &[4, 8], 1.0, 0.0);
    attention.random("excite.w", &[8, 4], 1.0, 0.0);
    attention.op("Gemm", &["flat", "squeeze.w"], "squeeze", vec![int_attribute("transB", 1)]);
    attention.op("Relu", &["squeeze"], "sr", vec![]);
    attention.op("Gemm", &["sr", "excite.w"], "excite", vec![int_attribute("transB", 1)]);
    attention.op("Sigmoid", &["excite"], "gate", vec![]);
    attention.graph.initializer.push(i64_tensor("axes", &[2], &[2, 3]));
    attention.op("Unsqueeze", &["gate", "axes"], "gates", vec![]);
    attention.op("Mul", &["ar", "gates"], "gated", vec![]);
    attention.op("ReduceMean", &["gated"], "mean1", vec![ints("axes", &[1])]);
    attention.op("ReduceMax", &["gated"], "max1", vec![ints("axes", &[1])]);
    attention.op("Concat", &["mean1", "max1"], "both", vec![int_attribute("axis", 1)]);
    conv(&mut attention, "place", "both", [1, 2, 7], 1);
    attention.op("Sigmoid", &["place"], "places", vec![]);
    attention.op("Mul", &["gated", "places"], "placed", vec![]);
    attention.graph.initializer.push(i64_tensor("border", &[8], &[0, 0, 2, 1, 0, 0, 1, 2]));
    let mirror = AttributeProto { name: "mode".into(), r#type: 3, s: b"reflect".to_vec(), ..Default::default() };
    attention.op("Pad", &["placed", "border"], "mirrored", vec![mirror]);
    conv(&mut attention, "c", "mirrored", [4, 8, 3], 1);
    attention.op("Relu", &["c"], "y", vec![]);

    let mut face = Net::default();
    conv(&mut face, "a", "x", [8, 3, 3], 4);
    face.op("Flatten", &["a"], "flat", vec![]);
    face.random("fc.w", &[128, 6], 0.1, 0.0);
    face.random("fc.b", &[6], 0.1, 0.0);
    face.op("Gemm", &["flat", "fc.w", "fc.b"], "features", vec![]);
    bn(&mut face, "y", "features", 6);

    let nets = [
        ("decoder", finish(decoder, "y", &[1, 4, 32, 32])),
        ("attention", finish(attention, "y", &[1, 4, 19, 19])),
        ("face", finish(face, "y", &[1, 6])),
    ];
    for (name, m) in &nets {
        let read = input::decode(&bytes(m)).unwrap();
        let path = dir.path().join(format!("{name}.onnx"));
        let mut quantized = int8(&read, &inputs, &path);
        let report = quantized.report();
        let left: Vec<_> = report.nodes.iter().filter_map(|n| Some((n.op.as_str(), n.why.clone()?))).collect();
        assert!(left.is_empty(), "{name}: {left:?}");
        let file = decode(&std::fs::read(&path).unwrap()).unwrap();
        for i in 0..IMAGES {
            let x = inputs.load(i).unwrap();
            let (want, defined, got) = (run(m, &SHAPE, &x), run(&file, &SHAPE, &x), quantized.run(&x).unwrap());
            let largest = want.iter().fold(0f32, |m, v| m.max(v.abs()));
            let off = |theirs: &[f32]| theirs.iter().zip(got).fold(0f32, |m, (a, b)| m.max((a - b).abs())) / largest;
            // One step of 255, and rounding errors that pass through later layers; and what eight bits cost.
            assert!(off(&defined) < 0.02 && off(&want) < 0.15, "{name}: picture {i}: {} {}", off(&defined), off(&want));
        }
    }
}

#[test]
fn what_is_not_supported_is_named_with_a_way_out() {
    let refuse = |change: &dyn Fn(&mut ModelProto), words: &[&str]| {
        let mut m = resnet(17);
        change(&mut m);
        let text = input::decode(&bytes(&m)).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(words.iter().all(|w| text.contains(w)), "{text}");
    };
    refuse(&|m| set_opset(m, 99), &["operator set 99", "export with opset"]);
    refuse(
        &|m| m.functions.push(tract_onnx::pb::FunctionProto { name: Some("Block".into()), ..Default::default() }),
        &["Block", "inline_local_functions"],
    );
    let mut training = resnet(17);
    let g = graph_mut(&mut training).unwrap();
    let i = at(g, "c1");
    g.node[i].attribute.push(int_attribute("training_mode", 1));
    let mut m = input::decode(&bytes(&training)).unwrap();
    let report = edge_quantize::fold::fold(&mut m).unwrap();
    assert!(report.kept[0].node.contains("c1") && report.kept[0].reason.contains("model.eval()"), "{:?}", report.kept);
}
