//! From a float network to a QDQ file: its form, its values, and the command line around it.
mod common;
use assert_cmd::Command;
use common::*;
use edge_infer::metadata::{LABELS_KEY, OUTPUTS_KEY, PREPROCESS_KEY, Preprocess, TASK_KEY};
use edge_quantize::data::Inputs;
use edge_quantize::observe::Calibrator;
use edge_quantize::onnx::*;
use edge_quantize::pipeline::{Options, quantize};
use edge_quantize::plan::Residual;
use edge_quantize::report::Report;
use edge_quantize::scheme::ActivationType;
use std::collections::HashMap;

const SHAPE: [usize; 4] = [1, 3, 16, 16];

fn default() -> Options {
    Options::default()
}

fn quantized(model: &ModelProto, options: Options) -> (ModelProto, Report) {
    let dir = tempfile::tempdir().unwrap();
    let npy = dir.path().join("x.npy");
    write_npy(&npy, 20);
    let inputs = Inputs::collect(&[npy], &SHAPE, None).unwrap();
    assert_eq!(inputs.len(), 20);
    let model = &edge_quantize::input::decode(&bytes(model)).unwrap();
    let (bytes, report) = quantize(model, &SHAPE, &inputs, &options, &|_, _| Box::new(|| {})).unwrap();
    (decode(&bytes).unwrap(), report)
}

fn producers(g: &GraphProto) -> HashMap<&str, &NodeProto> {
    g.node.iter().flat_map(|n| outputs(n).map(move |o| (o, n))).collect()
}

/// The operator behind each data input of the node that computes `tensor`.
fn feeding(g: &GraphProto, op: &str) -> Vec<Vec<String>> {
    let p = producers(g);
    let of = |t: &String| p.get(t.as_str()).map_or("-".to_string(), |n| n.op_type.clone());
    g.node.iter().filter(|n| n.op_type == op).map(|n| n.input.iter().map(of).collect()).collect()
}

#[test]
fn the_graph_has_the_promised_form() {
    let (m, report) = quantized(&resnet(17), default());
    let g = graph(&m).unwrap();
    let dq = "DequantizeLinear".to_string();
    assert!(g.node.iter().all(|n| n.op_type != "Relu" && n.op_type != "BatchNormalization"));
    for inputs in feeding(g, "Conv") {
        assert_eq!(inputs, vec![dq.clone(); 3]);
    }
    // Of the two convs the branch's enters the sum unrounded, the downsample path's does not.
    assert_eq!(feeding(g, "Add"), [["Conv".to_string(), dq.clone()]]);
    assert_eq!(feeding(g, "Gemm"), [["Flatten".to_string(), dq.clone(), dq.clone()]]);
    assert_eq!(feeding(g, "MaxPool"), [[dq.clone()]]);
    assert_eq!(feeding(g, "GlobalAveragePool"), [[dq.clone()]]);
    assert_eq!(g.node[0].op_type, "QuantizeLinear");
    assert_eq!(g.node[0].input[0], "x");
    assert_eq!(producers(g)["logits"].op_type, "Gemm");
    let p: HashMap<_, _> = report.tensors.iter().map(|t| (t.tensor.as_str(), t.parameters)).collect();
    assert_eq!(p["pool"], p["stem.relu"]);
    assert!(report.float_nodes.is_empty(), "{:?}", report.float_nodes);
    for t in &g.initializer {
        if t.name.ends_with(".w.q") {
            assert!(t.raw_data.iter().all(|&b| b as i8 != -128), "{}", t.name);
        }
    }
}

#[test]
fn every_setting_stays_close_to_float() {
    for calibrator in [Calibrator::Mse, Calibrator::Minmax, Calibrator::MovingAverage, Calibrator::Percentile, Calibrator::Entropy] {
        for activations in [ActivationType::Uint8, ActivationType::Int8] {
            for residual in [Residual::Fused, Residual::Qdq] {
                for opset in [11, 17] {
                    let (m, report) = quantized(&resnet(opset), Options { calibrator, activations, residual, ..default() });
                    assert!(report.evaluation.logit_sqnr_db > 25.0, "{report}");
                    let adds = feeding(graph(&m).unwrap(), "Add");
                    let convs = adds[0].iter().filter(|o| *o == "Conv").count();
                    assert_eq!(convs, usize::from(residual == Residual::Fused));
                    assert!(edge_quantize::onnx::opset(&m) >= 13);
                }
            }
        }
    }
}

#[test]
fn the_report_measures_the_file() {
    // An independent computation of the logit SQNR over the same held-back inputs.
    let float = resnet(17);
    let (int8, report) = quantized(&float, default());
    let all = noise(99, 20 * 768);
    let (mut signal, mut error) = (0f64, 0f64);
    for i in (4..20).step_by(5) {
        let x = &all[i * 768..(i + 1) * 768];
        for (w, g) in run(&float, &SHAPE, x).iter().zip(run(&int8, &SHAPE, x)) {
            signal += f64::from(*w).powi(2);
            error += f64::from(w - g).powi(2);
        }
    }
    let db = 10.0 * (signal / error).log10();
    assert_eq!(report.evaluation.images, 4);
    assert!((db - report.evaluation.logit_sqnr_db).abs() < 0.2, "{db} {report}");
}

#[test]
fn a_matmul_head_becomes_gemm() {
    let gemm = resnet(17);
    let mut matmul = gemm.clone();
    let g = graph_mut(&mut matmul).unwrap();
    let w = f32_data(g.initializer.iter().find(|t| t.name == "fc.w").unwrap()).unwrap();
    let turned: Vec<f32> = (0..16).flat_map(|k| (0..5).map(move |n| (n, k))).map(|(n, k)| w[n * 16 + k]).collect();
    g.initializer.push(f32_tensor("fc.t", &[16, 5], &turned));
    g.node.pop();
    g.node.push(make_node("MatMul", &["flat", "fc.t"], "product", vec![]));
    g.node.push(make_node("Add", &["fc.b", "product"], "logits", vec![]));
    let x = noise(3, 768);
    let (a, b) = (quantized(&gemm, default()).0, quantized(&matmul, default()).0);
    assert_eq!(feeding(graph(&b).unwrap(), "MatMul").len(), 0);
    assert_eq!(run(&a, &SHAPE, &x), run(&b, &SHAPE, &x));
}

#[test]
fn unknown_operators_stay_float_and_are_named() {
    let mut m = resnet(17);
    let g = graph_mut(&mut m).unwrap();
    g.node.iter_mut().find(|n| n.output[0] == "mean").unwrap().input[0] = "s".into();
    let at = g.node.iter().position(|n| n.output[0] == "mean").unwrap();
    g.node.insert(at, make_node("Sin", &["block"], "s", vec![]));
    let (_, report) = quantized(&m, default());
    assert_eq!(report.float_nodes.len(), 1);
    assert!(report.float_nodes[0].node.contains("Sin"));
}

/// conv → SiLU → squeeze and excite → conv → HardSwish as exporters write it → mean → Gemm.
#[test]
fn squeeze_and_excite_with_silu_becomes_one_int8_region() {
    let mut n = Net::default();
    n.graph.name = "se".into();
    n.graph.input.push(value("x", &[-1, 3, 16, 16]));
    n.graph.output.push(value("logits", &[-1, 5]));
    n.conv_bn("stem", "x", [8, 3, 3], 2, true);
    n.op("Sigmoid", &["stem"], "stem.gate", vec![]);
    n.op("Mul", &["stem", "stem.gate"], "silu", vec![]);
    n.op("GlobalAveragePool", &["silu"], "squeezed", vec![]);
    n.conv_bn("reduce", "squeezed", [4, 8, 1], 1, true);
    n.op("Relu", &["reduce"], "reduced", vec![]);
    n.conv_bn("expand", "reduced", [8, 4, 1], 1, true);
    n.op("Sigmoid", &["expand"], "gate", vec![]);
    n.op("Mul", &["gate", "silu"], "excited", vec![]);
    n.conv_bn("last", "excited", [16, 8, 1], 1, true);
    for (name, v) in [("three", 3.0), ("zero", 0.0), ("six", 6.0)] {
        n.graph.initializer.push(f32_tensor(name, &[], &[v]));
    }
    n.op("Add", &["last", "three"], "shifted", vec![]);
    n.op("Clip", &["shifted", "zero", "six"], "clipped", vec![]);
    n.op("Mul", &["last", "clipped"], "product", vec![]);
    n.op("Div", &["product", "six"], "swish", vec![]);
    n.op("GlobalAveragePool", &["swish"], "mean", vec![]);
    n.op("Flatten", &["mean"], "flat", vec![]);
    n.random("fc.w", &[5, 16], 1.0, 0.0);
    n.op("Gemm", &["flat", "fc.w"], "logits", vec![int_attribute("transB", 1)]);
    let (m, report) = quantized(&model(17, n.graph), default());
    assert!(report.float_nodes.is_empty(), "{:?}", report.float_nodes);
    assert!(report.evaluation.logit_sqnr_db > 20.0, "{report}");
    let lowered = edge_infer::import::lower::lower(&m, &Default::default()).unwrap();
    assert!(lowered.fallbacks.is_empty(), "{:?}", lowered.fallbacks);
    assert_eq!(lowered.regions.len(), 1);
    let names: Vec<&str> = lowered.regions[0].nodes.iter().map(|n| n.op.name()).collect();
    // Each activation is one table, whatever it was composed of; only the gate's product reads two tensors.
    assert_eq!(names.iter().filter(|n| **n == "SiLU").count(), 1, "{names:?}");
    assert_eq!(names.iter().filter(|n| **n == "Sigmoid").count(), 1, "{names:?}");
    assert_eq!(names.iter().filter(|n| **n == "Function").count(), 1, "{names:?}");
    assert_eq!(names.iter().filter(|n| **n == "Mul").count(), 1, "{names:?}");
    assert!(!names.contains(&"Add") && !names.contains(&"Requantize"), "{names:?}");
}

#[test]
fn a_clip_above_the_range_is_left_out_and_one_inside_kept() {
    for (top, left) in [(6.0, 0), (1e-3, 0)] {
        let mut m = resnet(17);
        let g = graph_mut(&mut m).unwrap();
        g.initializer.push(f32_tensor("lo", &[], &[0.0]));
        g.initializer.push(f32_tensor("hi", &[], &[top]));
        let relu = g.node.iter_mut().find(|n| n.output[0] == "c1.relu").unwrap();
        relu.op_type = "Clip".into();
        relu.input.extend(["lo".into(), "hi".into()]);
        let (m, report) = quantized(&m, default());
        assert_eq!(feeding(graph(&m).unwrap(), "Clip").len(), left);
        let t = report.tensors.iter().find(|t| t.tensor == "c1.relu").unwrap();
        assert!(t.range.1 <= f64::from(top) && t.range.0 == 0.0);
    }
    // A negative lower bound lies inside the range: the clamp must stay.
    let mut m = resnet(17);
    let g = graph_mut(&mut m).unwrap();
    g.initializer.push(f32_tensor("lo", &[], &[0.5]));
    let relu = g.node.iter_mut().find(|n| n.output[0] == "c1.relu").unwrap();
    relu.op_type = "Clip".into();
    relu.input.push("lo".into());
    assert_eq!(feeding(graph(&quantized(&m, default()).0).unwrap(), "Clip").len(), 1);
}

fn command() -> Command {
    Command::cargo_bin("edge-quantize").unwrap()
}

#[test]
fn the_command_reads_pictures_and_records_metadata() {
    let dir = tempfile::tempdir().unwrap();
    let at = |n: &str| dir.path().join(n).display().to_string();
    std::fs::write(at("m.onnx"), bytes(&resnet(17))).unwrap();
    std::fs::create_dir(at("pictures")).unwrap();
    for i in 0..6u32 {
        let picture = image::RgbImage::from_fn(24, 20, |x, y| image::Rgb([(x * i * 9) as u8, (y * 12) as u8, (x * y) as u8]));
        picture.save(at(&format!("pictures/{i}.png"))).unwrap();
    }
    let out = command()
        .args([&at("m.onnx"), "-o", &at("q.onnx"), "--calib", &at("pictures"), "--images", "5", "--json"])
        .args(["--resize", "short:18", "--mean", "0.5", "--std", "0.25", "--labels", "a,b,c,d,e", "--jobs", "1"])
        .assert()
        .success();
    let report: serde_json::Value = serde_json::from_slice(&out.get_output().stdout).unwrap();
    assert_eq!(report["evaluation"]["images"], 1);
    assert_eq!(report["calibration_images"], 4);
    let m = load(at("q.onnx").as_ref()).unwrap();
    let p: Preprocess = serde_json::from_str(metadata(&m, PREPROCESS_KEY).unwrap()).unwrap();
    assert_eq!((p.width, p.mean.as_slice()), (16, &[0.5; 3][..]));
    assert_eq!(metadata(&m, LABELS_KEY).unwrap(), r#"["a","b","c","d","e"]"#);

    assert!(!p.ignore_exif && !metadata(&m, PREPROCESS_KEY).unwrap().contains("ignore_exif"));

    // The same labels as a file from Windows and as JSON of numbers and names; EXIF ignored, and recorded as such.
    std::fs::write(at("crlf.txt"), "\u{FEFF}a\r\nb\r\nc\r\nd\r\ne\r\n").unwrap();
    std::fs::write(at("imagenet.json"), r#"{"0": ["n0", "a"], "1": ["n1", "b"], "2": ["n2", "c"], "4": ["n4", "e"], "3": ["n3", "d"]}"#)
        .unwrap();
    for labels in ["crlf.txt", "imagenet.json"] {
        let arguments = [&at("m.onnx"), "-o", &at("q.onnx"), "--calib", &at("pictures"), "--labels", &at(labels), "--ignore-exif"];
        command().args(arguments).args(["--recipe", "fast", "--jobs", "1"]).assert().success();
        let m = load(at("q.onnx").as_ref()).unwrap();
        assert_eq!(metadata(&m, LABELS_KEY).unwrap(), r#"["a","b","c","d","e"]"#, "{labels}");
        let p: Preprocess = serde_json::from_str(metadata(&m, PREPROCESS_KEY).unwrap()).unwrap();
        assert!(p.ignore_exif);
    }
    // What the network is for, if its outputs allow that.
    let with_task = |task: &str, output: &str| {
        let arguments = [&at("m.onnx"), "-o", &at(output), "--calib", &at("pictures"), "--task", task, "--recipe", "fast", "--jobs", "1"];
        command().args(arguments).args(["--heads", &graph(&resnet(17)).unwrap().output[0].name]).assert()
    };
    with_task("multi-label", "q.onnx").success();
    let m = load(at("q.onnx").as_ref()).unwrap();
    assert_eq!(metadata(&m, TASK_KEY).unwrap(), r#"{"task":"multi-label","threshold":0.5}"#);
    let heads: Vec<String> = serde_json::from_str(metadata(&m, OUTPUTS_KEY).unwrap()).unwrap();
    assert_eq!(heads, [graph(&m).unwrap().output[0].name.clone()]);
    let out = with_task("detect:yolov8", "no.onnx").code(2);
    let text = String::from_utf8_lossy(&out.get_output().stderr).into_owned();
    assert!(text.contains("--task") && text.contains("Yolov8") && !dir.path().join("no.onnx").exists(), "{text}");
    std::fs::write(at("gap.json"), r#"{"0": "a", "2": "c"}"#).unwrap();
    let arguments = [&at("m.onnx"), "-o", &at("no.onnx"), "--calib", &at("pictures"), "--labels", &at("gap.json")];
    let out = command().args(arguments).assert().code(1);
    let text = String::from_utf8_lossy(&out.get_output().stderr).into_owned();
    assert!(text.contains("gap.json") && text.contains("class 1 is missing"), "{text}");

    command().args(["fold", &at("m.onnx"), "-o", &at("f.onnx")]).assert().success();
    let folded = load(at("f.onnx").as_ref()).unwrap();
    assert!(graph(&folded).unwrap().node.iter().all(|n| n.op_type != "BatchNormalization"));
}

#[test]
fn failures_have_their_exit_code_and_write_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let at = |n: &str| dir.path().join(n).display().to_string();
    let model = bytes(&resnet(17));
    std::fs::write(at("m.onnx"), &model).unwrap();
    std::fs::write(at("cut.onnx"), &model[..model.len() - 9]).unwrap();
    std::fs::write(at("empty.png"), b"").unwrap();
    std::fs::create_dir(at("none")).unwrap();
    write_npy(at("x.npy").as_ref(), 3);
    std::fs::write(at("cut.npy"), &std::fs::read(at("x.npy")).unwrap()[..4000]).unwrap();
    let (m, cut, npy) = (at("m.onnx"), at("cut.onnx"), at("x.npy"));
    let cases: [(i32, Vec<&str>); 8] = [
        (1, vec![&cut, "--calib", &npy]),
        (1, vec![&m, "--calib", "/no/such/folder"]),
        (2, vec![&m]),
        (2, vec![&m, "--calib", &npy, "--size", "20"]),
        (2, vec![&m, "--calib", &npy, "--labels", "a,b"]),
        (2, vec![&m, "--calib", &npy, "--calibrator", "guess"]),
        (2, vec![&m, "--calib", &npy, "--std", "0"]),
        (1, vec!["/no/such/model.onnx", "--calib", &npy]),
    ];
    for (code, args) in cases {
        command().args(&args).args(["-o", &at("q.onnx")]).assert().code(code);
    }
    for (code, data) in [(1, "empty.png"), (1, "cut.npy"), (2, "none")] {
        command().args([&m, "-o", &at("q.onnx"), "--calib", &at(data)]).assert().code(code);
    }
    assert!(!std::path::Path::new(&at("q.onnx")).exists());
}
