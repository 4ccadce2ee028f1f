//! Answers of every kind: what `edge_infer` makes of outputs, against PyTorch, torchvision and ONNX Runtime; and the command line and the
//! service with networks whose outputs are known.

mod common;
mod streams;

use common::{python, run_python, tests_folder};
use edge_infer::answer::{Answer, Reader, Task};
use edge_infer::image::{Picture, Preprocessor};
use edge_infer::import::onnx::{self, GraphProto, ModelProto};
use edge_infer::metadata::{Color, LABELS_KEY, PREPROCESS_KEY, Preprocess, Resize, TASK_KEY};
use edge_infer::task::Output;
use prost::Message;
use serde::Deserialize;
use serde_json::{Value, json};
use std::ffi::OsStr;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use streams::{Running, answers, edge_infer};
use tempfile::TempDir;

/// What `answers.py` prints.
#[derive(Deserialize)]
struct Case {
    name: String,
    task: Task,
    resize: Resize,
    input: usize,
    picture: [u32; 2],
    scale: [f32; 2],
    offset: [f32; 2],
    outputs: Vec<Tensor>,
    expected: Value,
}

#[derive(Deserialize)]
struct Tensor {
    name: String,
    shape: Vec<usize>,
    values: Vec<f32>,
}

#[derive(Deserialize)]
struct Expected {
    index: usize,
    score: f32,
    #[serde(rename = "box", default)]
    corners: [f32; 4],
}

fn preprocess(side: u32, resize: Resize) -> Preprocess {
    Preprocess { width: side, height: side, resize, color: Color::Rgb, mean: vec![0.0; 3], std: vec![1.0; 3], ignore_exif: false }
}

/// Decodings without a sigmoid or an exponential are the same to the bit; the others are as near as those functions are.
fn check(case: &Case) {
    let name = &case.name;
    let exact = ["yolov8", "yolov5", "boxes", "relative boxes"].contains(&name.as_str());
    let near = |a: f32, b: f32| if exact { a == b } else { (a - b).abs() <= 1e-5 * (1.0 + b.abs()) };
    let view = Preprocessor::new(preprocess(case.input as u32, case.resize)).unwrap().view(case.picture[0], case.picture[1]);
    assert_eq!((view.scale, view.offset), (case.scale, case.offset), "{name}");
    let outputs: Vec<Output> = case.outputs.iter().map(|o| Output { name: o.name.clone(), shape: o.shape.clone() }).collect();
    let values: Vec<Vec<f32>> = case.outputs.iter().map(|o| o.values.clone()).collect();
    let mut reader = Reader::new(Some(&case.task), &outputs, [case.input; 2], &[]).unwrap();
    // Twice: nothing is left over from the first picture.
    for _ in 0..2 {
        match reader.read(&values, &view, 5).unwrap() {
            Answer::Boxes { boxes } => {
                let expected: Vec<Expected> = serde_json::from_value(case.expected.clone()).unwrap();
                assert_eq!(boxes.len(), expected.len(), "{name}");
                for (ours, theirs) in boxes.iter().zip(&expected) {
                    assert!(ours.index == theirs.index && near(ours.score, theirs.score), "{name}: {ours:?} {}", theirs.score);
                    let same = ours.corners.iter().zip(theirs.corners).all(|(a, b)| near(*a, b));
                    assert!(same, "{name}: {ours:?} {:?}", theirs.corners);
                }
            }
            Answer::Mask { map, classes } => {
                let expected: Vec<i32> = serde_json::from_value(case.expected.clone()).unwrap();
                assert_eq!((map.width, map.height, map.classes.len()), (case.picture[0], case.picture[1], expected.len()));
                // −1: two classes are too near each other for a verdict.
                let wrong = map.classes.iter().zip(&expected).filter(|(a, b)| **b >= 0 && i32::from(**a) != **b).count();
                assert_eq!(wrong, 0, "{name} of {} pixels", expected.len());
                let all: f32 = classes.iter().map(|c| c.share).sum();
                assert!((all - 1.0).abs() < 1e-5 && classes.is_sorted_by(|a, b| a.share >= b.share));
            }
            Answer::Vector { embedding, .. } => {
                let expected: Vec<f32> = serde_json::from_value(case.expected.clone()).unwrap();
                assert!(embedding.iter().zip(&expected).all(|(a, b)| near(*a, *b)), "{embedding:?} {expected:?}");
            }
            Answer::Labels { labels } => {
                let expected: Vec<Expected> = serde_json::from_value(case.expected.clone()).unwrap();
                let same = |(a, b): (&edge_infer::answer::Class, &Expected)| a.index == b.index && near(a.probability, b.score);
                assert!(labels.len() == expected.len() && labels.iter().zip(&expected).all(same), "{labels:?}");
            }
            other => panic!("{name}: {other:?}"),
        }
    }
}

#[test]
fn stored_outputs_give_stored_answers() {
    let text = std::fs::read_to_string(tests_folder().join("answers.json")).unwrap();
    let cases: Vec<Case> = serde_json::from_str(&text).unwrap();
    assert_eq!(cases.len(), 10);
    cases.iter().for_each(check);
}

#[test]
fn random_outputs_give_the_answers_of_torchvision() {
    let Some(python) = python("torchvision, onnxruntime, onnx") else { return };
    for (seed, side, count) in [("7", "64", "6"), ("8", "320", "1")] {
        let text = run_python(&python, "answers.py", &[seed, side, count].map(OsStr::new));
        let cases: Vec<Case> = serde_json::from_str(&text).unwrap();
        cases.iter().for_each(check);
    }
}

#[test]
fn letterboxes_keep_proportions_and_boxes_find_back() {
    let picture = Picture { width: 8, height: 4, data: [200, 100, 50].repeat(32), channels: 3 };
    let mut out = Vec::new();
    for (corner, top) in [(false, 1), (true, 0)] {
        let mut preprocessor = Preprocessor::new(preprocess(4, Resize::Letterbox { fill: 114, corner })).unwrap();
        preprocessor.run(&picture, &mut out).unwrap();
        for (y, row) in out[..16].chunks(4).enumerate() {
            let value = if (top..top + 2).contains(&y) { 200.0 } else { 114.0 };
            assert_eq!(row, [value / 255.0; 4], "{y}");
        }
        let view = preprocessor.view(8, 4);
        assert_eq!(view.to_picture([0.0, top as f32, 4.0, top as f32 + 2.0]), [0.0, 0.0, 8.0, 4.0]);
        assert_eq!(view.to_picture([1.0, top as f32 + 0.5, 9.0, 9.0]), [2.0, 1.0, 8.0, 4.0]);
    }
    // A crop: the corner of the input is inside of the picture.
    let view = Preprocessor::new(preprocess(4, Resize::ShortSide(4))).unwrap().view(16, 8);
    assert_eq!(view.to_picture([0.0, 0.0, 4.0, 4.0]), [4.0, 0.0, 12.0, 8.0]);
}

#[test]
fn outputs_that_do_not_fit_are_named() {
    let output = |name: &str, shape: &[usize]| Output { name: name.into(), shape: shape.into() };
    for (task, outputs, word) in [
        ("detect:yolov8", vec![output("y", &[1, 1000])], "`y` [1, 1000]"),
        ("detect:yolox", vec![output("y", &[1, 20, 7])], "Yolox"),
        ("detect:yolov5", vec![output("a", &[1, 18, 8, 8])], "`a` [1, 18, 8, 8]"),
        ("detect:boxes", vec![output("boxes", &[1, 9, 4]), output("scores", &[1, 8, 3])], "[1, 8, 3]"),
        ("detect", vec![output("y", &[1, 1000])], "--task detect:yolov8"),
        ("segment", vec![output("y", &[1, 300, 8, 8])], "up to 255"),
        ("embed", vec![output("a", &[1, 8]), output("b", &[1, 8])], "--head"),
    ] {
        let error = Reader::new(Some(&task.parse().unwrap()), &outputs, [64, 64], &[]).unwrap_err().to_string();
        assert!(error.contains(word), "{task}: {error}");
    }
    let mut reader = Reader::new(Some(&Task::Classify), &[output("y", &[1, 8])], [64, 64], &[]).unwrap();
    let view = Preprocessor::new(preprocess(4, Resize::Stretch)).unwrap().view(4, 4);
    assert!(reader.read(&[vec![0.0; 7]], &view, 5).is_err() && reader.read(&[], &view, 5).is_err());
}

/// A network with an input of 16 × 16 pixels whose outputs are these, whatever the picture.
fn network(outputs: &[(&str, &[usize], &[f32])]) -> ModelProto {
    let mut model = onnx::load(&common::golden("conv_relu")).unwrap();
    let graph = onnx::graph_mut(&mut model).unwrap();
    let (input, _) = onnx::data_input(graph).unwrap();
    onnx::set_input_dims(graph, &input, &[1, 3, 16, 16]);
    *graph = GraphProto { name: "known".into(), input: std::mem::take(&mut graph.input), ..Default::default() };
    graph.node.push(onnx::make_node("GlobalAveragePool", &[&input], "means", vec![]));
    graph.node.push(onnx::make_node("Flatten", &["means"], "flat", vec![onnx::int_attribute("axis", 1)]));
    graph.initializer.push(onnx::f32_tensor("nothing", &[3, 1], &[0.0; 3]));
    graph.node.push(onnx::make_node("MatMul", &["flat", "nothing"], "zero", vec![]));
    for (name, shape, values) in outputs {
        let (ones, constant, zero) = (format!("{name}.ones"), format!("{name}.values"), format!("{name}.zero"));
        graph.initializer.push(onnx::i64_tensor(&ones, &[shape.len()], &vec![1; shape.len()]));
        graph.initializer.push(onnx::f32_tensor(&constant, shape, values));
        graph.node.push(onnx::make_node("Reshape", &["zero", &ones], &zero, vec![]));
        graph.node.push(onnx::make_node("Add", &[&zero, &constant], name, vec![]));
        onnx::expose(graph, name);
    }
    model
}

struct Desk(TempDir);

impl Desk {
    fn new() -> Self {
        let desk = Desk(tempfile::tempdir().unwrap());
        // 64 × 32 pixels: in a letterbox of 16 × 16, a quarter of the size and 4 pixels down.
        std::fs::write(desk.path("street.ppm"), [b"P6 64 32 255\n".as_slice(), &[90; 64 * 32 * 3]].concat()).unwrap();
        desk
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn model(&self, name: &str, outputs: &[(&str, &[usize], &[f32])], resize: Resize, labels: &[&str], task: Option<Value>) -> PathBuf {
        let mut model = network(outputs);
        onnx::set_metadata(&mut model, PREPROCESS_KEY, serde_json::to_string(&preprocess(16, resize)).unwrap());
        onnx::set_metadata(&mut model, LABELS_KEY, serde_json::to_string(labels).unwrap());
        if let Some(task) = task {
            onnx::set_metadata(&mut model, TASK_KEY, task.to_string());
        }
        std::fs::write(self.path(name), model.encode_to_vec()).unwrap();
        self.path(name)
    }

    /// Two boxes of a cat, of which one is suppressed, and a dog.
    fn detector(&self) -> PathBuf {
        let boxes = [2.0, 6.0, 10.0, 10.0, 2.5, 6.0, 10.0, 10.0, 12.0, 4.0, 16.0, 8.0];
        let scores = [0.8, 0.1, 0.7, 0.1, 0.1, 0.9];
        let outputs = [("boxes", [1, 3, 4].as_slice(), boxes.as_slice()), ("scores", &[1, 3, 2], &scores)];
        self.model("detector.onnx", &outputs, Resize::Letterbox { fill: 114, corner: false }, &["cat", "dog"], None)
    }

    fn answer(&self, model: &Path, more: &[&str]) -> Value {
        let mut command = edge_infer();
        command.arg("--model").arg(model).arg("--json").arg("--image").arg(self.path("street.ppm")).args(more);
        let mut answers = answers(command);
        assert_eq!(answers.code, 0, "{}", answers.stderr);
        answers.lines.pop().unwrap()
    }
}

fn found() -> Value {
    json!([
        { "index": 1, "label": "dog", "score": 0.9f32, "box": [48.0, 0.0, 64.0, 16.0] },
        { "index": 0, "label": "cat", "score": 0.8f32, "box": [8.0, 8.0, 40.0, 24.0] },
    ])
}

/// Numbers as f32, whatever the width they were printed with.
fn rounded(value: &Value) -> Value {
    match value {
        Value::Number(n) => json!(n.as_f64().unwrap() as f32),
        Value::Array(all) => all.iter().map(rounded).collect(),
        Value::Object(all) => all.iter().map(|(k, v)| (k.clone(), rounded(v))).collect::<serde_json::Map<_, _>>().into(),
        other => other.clone(),
    }
}

#[test]
fn boxes_are_printed_and_drawn() {
    let desk = Desk::new();
    let model = desk.detector();
    let drawings = desk.path("drawn");
    let answer = desk.answer(&model, &["--annotate", drawings.to_str().unwrap()]);
    assert_eq!(rounded(&answer["boxes"]), rounded(&found()));
    assert!(answer["top"].is_null());
    let drawn = image::open(drawings.join("street.png")).unwrap().into_rgb8();
    let dog = [0, 128, 0];
    assert_eq!((drawn.dimensions(), drawn.get_pixel(63, 15).0, drawn.get_pixel(44, 28).0), ((64, 32), dog, [90; 3]));
    let few = desk.answer(&model, &["--confidence", "0.85"]);
    assert_eq!(few["boxes"].as_array().unwrap().len(), 1);
    let all = desk.answer(&model, &["--iou", "1"]);
    assert_eq!(all["boxes"].as_array().unwrap().len(), 3);
    let mut command = edge_infer();
    command.arg("--model").arg(&model).arg("--image").arg(desk.path("street.ppm"));
    let text = String::from_utf8(command.output().unwrap().stdout).unwrap();
    assert!(text.contains("  dog   90.00 %  48.0,0.0 to 64.0,16.0"), "{text}");
}

#[test]
fn maps_are_printed_and_drawn() {
    let desk = Desk::new();
    // Class 1 on the right half.
    let logits = [vec![0.0; 16], [-1.0, -1.0, 1.0, 1.0].repeat(4)].concat();
    let model = desk.model("map.onnx", &[("out", &[1, 2, 4, 4], &logits)], Resize::Stretch, &["road", "sky"], None);
    let drawings = desk.path("drawn");
    let answer = desk.answer(&model, &["--annotate", drawings.to_str().unwrap()]);
    let classes = json!([{ "index": 0, "label": "road", "share": 0.5 }, { "index": 1, "label": "sky", "share": 0.5 }]);
    assert_eq!(rounded(&answer["classes"]), rounded(&classes));
    let map = image::open(drawings.join("street.classes.png")).unwrap().into_luma8();
    assert_eq!((map.get_pixel(31, 7).0, map.get_pixel(32, 7).0), ([0], [1]));
    let drawn = image::open(drawings.join("street.png")).unwrap().into_rgb8();
    assert_eq!((drawn.get_pixel(31, 7).0, drawn.get_pixel(32, 7).0), ([90; 3], [109, 45, 45]));
}

#[test]
fn heads_labels_and_vectors_are_printed() {
    let desk = Desk::new();
    let outputs: [(&str, &[usize], &[f32]); 2] = [("colour", &[1, 3], &[0.0, 9.0, 0.0]), ("kind", &[1, 2], &[2.0, -2.0])];
    let model = desk.model("two.onnx", &outputs, Resize::Stretch, &["a", "b"], None);
    assert_eq!(desk.answer(&model, &[])["top"][0]["label"], "b");
    let both = desk.answer(&model, &["--head", "kind,colour"]);
    assert_eq!((&both["heads"][0]["head"], &both["heads"][0]["classes"][0]["label"]), (&"kind".into(), &"a".into()));
    assert_eq!((&both["heads"][1]["head"], &both["heads"][1]["classes"][0]["index"]), (&"colour".into(), &1.into()));
    let several = desk.answer(&model, &["--head", "kind", "--task", "multi-label", "--threshold", "0.1"]);
    let (labels, list) = (&several["labels"], several["labels"].as_array().unwrap().len());
    assert!(list == 2 && labels[0]["label"] == "a" && labels[1]["label"] == "b", "{several}");
    let gallery = desk.path("people");
    std::fs::create_dir_all(gallery.join("Ada")).unwrap();
    std::fs::copy(desk.path("street.ppm"), gallery.join("Ada/1.ppm")).unwrap();
    let near = desk.answer(&model, &["--task", "embed", "--gallery", gallery.to_str().unwrap()]);
    assert_eq!(rounded(&near["embedding"]), rounded(&json!([0.0, 1.0, 0.0])));
    assert_eq!(near["nearest"][0]["name"], "Ada");
    let fails = |more: &[&str], code, words: &str| {
        let mut command = edge_infer();
        let output = command.arg("--model").arg(&model).arg("--image").arg(desk.path("street.ppm")).args(more).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(code) && text.contains(words), "{more:?}: {text}");
    };
    fails(&["--head", "size"], 2, "no output `size`");
    fails(&["--confidence", "0.5"], 2, "detectors");
    fails(&["--gallery", "."], 2, "--task embed");
    fails(&["--task", "detect"], 1, "detect:yolov8");
    fails(&["--task", "paint"], 2, "multi-label");
}

/// Sends one request to a service on this address; gives the answer's body.
fn request(address: &str, head: &str, body: &[u8]) -> Value {
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    let head = format!("{head} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all(&[head.as_bytes(), body].concat()).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let start = answer.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
    serde_json::from_slice(&answer[start..]).unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&answer)))
}

#[test]
fn cameras_and_the_service_answer_by_task() {
    let desk = Desk::new();
    let model = desk.detector();
    let stream = desk.path("street.frames");
    assert!(edge_infer().args(["record", "-o"]).arg(&stream).arg(desk.path("street.ppm")).status().unwrap().success());
    let mut command = edge_infer();
    let kept = desk.path("kept");
    command.arg("--model").arg(&model).arg("--frames").arg(&stream).arg("--json").arg("--save").arg(&kept);
    let frames = answers(command);
    assert_eq!(rounded(&frames.lines[0]["boxes"]), rounded(&found()), "{}", frames.stderr);
    let name = std::fs::read_dir(&kept).unwrap().next().unwrap().unwrap().file_name();
    assert!(name.to_string_lossy().contains("-dog."), "{name:?}");

    let mut command: Command = edge_infer();
    command.args(["serve", "--listen", "127.0.0.1:0", "--model"]).arg(&model).arg("--camera").arg(&stream);
    let mut running = Running::start(command);
    let line = running.says("http://");
    let address = line["http://".len()..].split(' ').next().unwrap();
    let posted = request(address, "POST /v1/classify", &std::fs::read(desk.path("street.ppm")).unwrap());
    assert_eq!((rounded(&posted["boxes"]), &posted["width"]), (rounded(&found()), &64.into()));
    let deadline = std::time::Instant::now() + streams::PATIENCE;
    loop {
        let state = request(address, "GET /v1/state", b"");
        assert_eq!(state["top"], json!([]));
        if !state["boxes"].is_null() {
            assert_eq!(rounded(&state["boxes"]), rounded(&found()));
            break;
        }
        assert!(std::time::Instant::now() < deadline, "{state}");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}
