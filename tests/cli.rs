//! The binary on bad input: a message that names the culprit, exit code 1 (input) or 2 (usage), nothing written, no panic.

mod common;

use assert_cmd::Command;
use common::{golden, read_f32};
use edge_infer::import::onnx::{self, GraphProto, ModelProto, TensorProto};
use prost::Message;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// A folder with a good model, its input, and a picture.
struct Desk {
    folder: TempDir,
}

impl Desk {
    fn new() -> Self {
        let desk = Desk { folder: tempfile::tempdir().unwrap() };
        let mut model = good();
        // 3×9×9, so that pictures can be classified.
        let record = r#"{"width":9,"height":9,"resize":"stretch","color":"rgb","mean":[0.5,0.5,0.5],"std":[0.25,0.25,0.25]}"#;
        onnx::set_metadata(&mut model, edge_infer::metadata::PREPROCESS_KEY, record.into());
        desk.write("good.onnx", &model.encode_to_vec());
        desk.write("x.f32", &std::fs::read(golden("conv_relu").with_extension("in.f32")).unwrap());
        desk.write("picture.ppm", &[b"P6 2 2 255\n".as_slice(), &[90; 12]].concat());
        desk
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        std::fs::write(self.path(name), bytes).unwrap();
        self.path(name)
    }

    /// Runs the binary, expects `code` and all `words` on standard error.
    fn fails(&self, code: i32, args: &[&str], words: &[&str]) {
        let out = Command::cargo_bin("edge-infer").unwrap().current_dir(&self.folder).args(args).output().unwrap();
        let text = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(code), "{args:?}: {text}");
        assert!(words.iter().all(|w| text.contains(w)), "{args:?} should mention {words:?}:\n{text}");
        assert!(!text.contains("panicked"), "{args:?}: {text}");
        assert!(out.stdout.is_empty(), "{args:?} printed {}", String::from_utf8_lossy(&out.stdout));
    }

    /// A model that must be refused, by every command that loads one; `tensor` must not leave an output file.
    fn refuses(&self, bytes: &[u8], words: &[&str]) {
        self.write("bad.onnx", bytes);
        let words = [&["error: ", "bad.onnx"], words].concat();
        self.fails(1, &["--model", "bad.onnx", "--image", "picture.ppm"], &words);
        self.fails(1, &["inspect", "bad.onnx"], &words);
        self.fails(1, &["compare", "good.onnx", "bad.onnx", "picture.ppm"], &words);
        self.fails(1, &["tensor", "--model", "bad.onnx", "--input", "x.f32", "--output", "y.f32"], &words);
        assert!(!self.path("y.f32").exists());
    }
}

fn good() -> ModelProto {
    onnx::load(&golden("conv_relu")).unwrap()
}

fn tensor<'a>(g: &'a mut GraphProto, what: &str) -> &'a mut TensorProto {
    g.initializer.iter_mut().find(|t| t.name.starts_with(what)).unwrap()
}

/// The initializer that a node of this type reads as input `i`.
fn input_of<'a>(g: &'a mut GraphProto, op: &str, i: usize) -> &'a mut TensorProto {
    let name = g.node.iter().find(|n| n.op_type == op).unwrap().input[i].clone();
    g.initializer.iter_mut().find(|t| t.name == name).unwrap()
}

fn broken(change: impl FnOnce(&mut GraphProto)) -> Vec<u8> {
    let mut model = good();
    change(onnx::graph_mut(&mut model).unwrap());
    model.encode_to_vec()
}

#[test]
fn the_desk_itself_is_good() {
    let desk = Desk::new();
    let run = |args: &[&str]| Command::cargo_bin("edge-infer").unwrap().current_dir(&desk.folder).args(args).assert().success();
    // 8×9×9 values are logits as good as any.
    run(&["--model", "good.onnx", "--image", "picture.ppm", "--json"]);
    run(&["tensor", "--model", "good.onnx", "--input", "x.f32", "--output", "y.f32"]);
    assert_eq!(read_f32(&desk.path("y.f32")).len(), 8 * 9 * 9);
}

#[test]
fn files_that_are_no_models() {
    let desk = Desk::new();
    let whole = good().encode_to_vec();
    desk.refuses(b"", &["the file holds no graph"]);
    desk.refuses(b"not a model at all", &["not an ONNX file, or truncated"]);
    desk.refuses(&whole[..whole.len() / 2], &["truncated"]);
    desk.refuses(&whole[..whole.len() - 1], &["truncated"]);
}

#[test]
fn broken_graphs() {
    let desk = Desk::new();
    let last = |g: &GraphProto| g.node.last().unwrap().output[0].clone();
    desk.refuses(&broken(|g| g.node[0].input[0] = last(g)), &["quantizelinear", "cycle"]);
    desk.refuses(&broken(|g| g.node[0].input[0] = "nowhere".into()), &["`nowhere` is computed nowhere"]);
    desk.refuses(&broken(|g| g.node[0].input.truncate(1)), &["scale is missing"]);
    desk.refuses(&broken(|g| g.node[1].input[1].clear()), &["scale is missing"]);
    desk.refuses(&broken(|g| g.output.clear()), &["no output"]);
    let pads = |g: &mut GraphProto, v| g.node.iter_mut().flat_map(|n| &mut n.attribute).find(|a| a.name == "pads").unwrap().ints[2] = v;
    desk.refuses(&broken(|g| pads(g, 1 << 40)), &["n.conv.4", "pads", "1099511627776"]);
    desk.refuses(&broken(|g| pads(g, -1)), &["n.conv.4", "pads", "-1"]);
    desk.refuses(&broken(|g| g.input.clear()), &["computed nowhere"]);
    desk.refuses(
        &broken(|g| {
            let node = g.node.iter_mut().find(|n| n.op_type == "Relu").unwrap();
            (node.op_type, node.domain) = ("Mystery".into(), "org.example".into());
        }),
        &["Mystery"],
    );
}

#[test]
fn broken_tensors() {
    let desk = Desk::new();
    for (value, word) in [(0.0, "0.0"), (-0.5, "-0.5"), (f32::NAN, "NaN"), (f32::INFINITY, "infinity"), (1e-42, "1e-42")] {
        let scale = |t: &mut TensorProto| {
            let n = t.raw_data.len().max(4) / 4;
            (t.raw_data, t.float_data) = ([value.to_le_bytes()].concat().repeat(n), vec![]);
        };
        // Of an activation, and of weights.
        desk.refuses(&broken(|g| scale(input_of(g, "QuantizeLinear", 1))), &[word]);
        desk.refuses(&broken(|g| scale(tensor(g, "s.3"))), &[word]);
    }
    desk.refuses(&broken(|g| tensor(g, "w.").dims[0] = 9), &["w.", "243", "216"]);
    desk.refuses(&broken(|g| tensor(g, "w.").dims = vec![i64::MAX, i64::MAX]), &["w.", "dimensions"]);
    desk.refuses(&broken(|g| tensor(g, "w.").dims[0] = -8), &["w.", "dimensions"]);
    // A zero point of another type than its weights, so far away that the distance would not fit.
    let far = |t: &mut TensorProto| (t.data_type, t.raw_data) = (6, i32::MIN.to_le_bytes().repeat(8));
    desk.refuses(&broken(|g| far(tensor(g, "z.4"))), &["n.dequantizelinear.2", "zero point", "w.2"]);
    // Right in itself, wrong for its place: 3 channels come, 27 or 1 are wanted.
    desk.refuses(&broken(|g| tensor(g, "w.").dims = vec![8, 27, 1, 1]), &["n.conv.4"]);
    desk.refuses(&broken(|g| tensor(g, "w.").dims = vec![8, 1, 9, 3]), &["n.conv.4"]);
    // NaN weights: a float model.
    let mut model = onnx::load(&golden("float_conv_of_dequantized_weights")).unwrap();
    let graph = onnx::graph_mut(&mut model).unwrap();
    tensor(graph, "s.").raw_data[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    desk.refuses(&model.encode_to_vec(), &["s.", "NaN"]);
}

#[test]
fn bad_metadata() {
    let desk = Desk::new();
    let mut model = good();
    onnx::set_metadata(&mut model, edge_infer::metadata::LABELS_KEY, "{".into());
    desk.refuses(&model.encode_to_vec(), &["edge_infer.labels"]);
}

#[test]
fn bad_pictures() {
    let desk = Desk::new();
    let classify = |path: &str, words: &[&str]| desk.fails(1, &["--model", "good.onnx", "--image", path], words);
    desk.write("empty.png", b"");
    classify("empty.png", &["empty.png"]);
    desk.write("empty.jpg", b"");
    classify("empty.jpg", &["empty.jpg"]);
    desk.write("text.png", b"this is text");
    classify("text.png", &["text.png", "PNG, JPEG, BMP and PNM"]);
    // A header that promises 20000×20000 pixels, its checksum right.
    let mut png = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\x4e\x20\0\0\x4e\x20\x08\x02\0\0\0".to_vec();
    png.extend(crc32(&png[12..]).to_be_bytes());
    png.extend(b"\0\0\0\0IDAT\x35\xaf\x06\x1e\0\0\0\0IEND\xae\x42\x60\x82");
    desk.write("huge.png", &png);
    classify("huge.png", &["huge.png", "20000×20000"]);
    classify("missing.png", &["missing.png", "No such file"]);
    std::fs::create_dir(desk.path("none")).unwrap();
    desk.write("none/notes.txt", b"");
    desk.fails(2, &["--model", "good.onnx", "--image", "none"], &["no pictures in none"]);
    desk.fails(1, &["compare", "good.onnx", "good.onnx", "huge.png"], &["20000×20000"]);
}

/// PNG's checksum, bit by bit.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, &b| (0..8).fold(crc ^ u32::from(b), |c, _| (c >> 1) ^ (0xedb8_8320 * (c & 1))))
}

/// Labels and names of nodes come from the model's file: no terminal may obey them.
#[test]
fn a_model_cannot_command_the_terminal() {
    let desk = Desk::new();
    let mut model = onnx::decode(&std::fs::read(desk.path("good.onnx")).unwrap()).unwrap();
    let labels: Vec<String> = (0..8 * 9 * 9).map(|i| format!("a\u{1b}[2J\u{9b}31m\r{i}\u{202e}")).collect();
    onnx::set_metadata(&mut model, edge_infer::metadata::LABELS_KEY, serde_json::to_string(&labels).unwrap());
    for node in &mut onnx::graph_mut(&mut model).unwrap().node {
        node.name = format!("\u{1b}]0;{}\u{7}", node.name);
    }
    desk.write("evil.onnx", &model.encode_to_vec());
    let clean = |args: &[&str]| {
        let out = Command::cargo_bin("edge-infer").unwrap().current_dir(&desk.folder).args(args).output().unwrap();
        for bytes in [&out.stdout, &out.stderr] {
            let text = String::from_utf8_lossy(bytes);
            assert!(!text.contains(|c: char| c.is_control() && c != '\n' || c == '\u{202e}'), "{args:?}: {text:?}");
        }
        assert!(!out.stdout.is_empty() && out.status.success(), "{args:?}");
    };
    clean(&["--model", "evil.onnx", "--image", "picture.ppm"]);
    clean(&["--model", "evil.onnx", "--image", "picture.ppm", "--json"]);
    clean(&["inspect", "evil.onnx"]);
    clean(&["bench", "--model", "evil.onnx", "--runs", "1", "--layers"]);
    // In an error message, too.
    onnx::graph_mut(&mut model).unwrap().node[0].input[0] = "\u{1b}[2J".into();
    desk.write("worse.onnx", &model.encode_to_vec());
    desk.fails(1, &["inspect", "worse.onnx"], &["\u{FFFD}[2J"]);
}

#[cfg(unix)]
#[test]
fn a_compiled_model_may_be_read_by_others() {
    use std::os::unix::fs::PermissionsExt;
    let desk = Desk::new();
    Command::cargo_bin("edge-infer").unwrap().current_dir(&desk.folder).args(["compile", "good.onnx"]).assert().success();
    let mode = |name: &str| std::fs::metadata(desk.path(name)).unwrap().permissions().mode() & 0o777;
    // As any file that this process makes.
    assert_eq!(mode("good.edge"), mode("x.f32"));
}

/// One bad picture must not lose the answers for the others, but must show in the exit code.
#[test]
fn good_pictures_beside_bad_ones() {
    let desk = Desk::new();
    desk.write("empty.png", b"");
    let mut command = Command::cargo_bin("edge-infer").unwrap();
    command.current_dir(&desk.folder).args(["--model", "good.onnx", "--json", "--image", "empty.png", "picture.ppm"]);
    let out = command.output().unwrap();
    assert_eq!(out.status.code(), Some(1));
    assert_eq!(String::from_utf8_lossy(&out.stdout).lines().count(), 1);
    assert!(String::from_utf8_lossy(&out.stderr).contains("empty.png"));
}

#[test]
fn bad_paths_and_flags() {
    let desk = Desk::new();
    desk.fails(1, &["inspect", "missing.onnx"], &["missing.onnx", "No such file"]);
    desk.fails(1, &["inspect", "."], &["."]);
    desk.fails(1, &["tensor", "--model", "good.onnx", "--input", "missing.f32", "--output", "y.f32"], &["missing.f32"]);
    desk.write("short.f32", &[0; 12]);
    desk.fails(1, &["tensor", "--model", "good.onnx", "--input", "short.f32", "--output", "y.f32"], &["12 bytes", "972"]);
    desk.fails(1, &["tensor", "--model", "good.onnx", "--input", "x.f32", "--output", "no/folder/y.f32"], &["no/folder"]);
    assert!(!desk.path("y.f32").exists());
    desk.fails(2, &[], &[""]);
    desk.fails(2, &["--model", "good.onnx"], &["--image"]);
    desk.fails(2, &["--image", "picture.ppm"], &["--model"]);
    desk.fails(2, &["--model", "good.onnx", "--image", "picture.ppm", "--top", "0"], &["--top"]);
    desk.fails(2, &["--model", "good.onnx", "--image", "picture.ppm", "--logits"], &["--json"]);
    for threads in ["0", "257", "-1", "many"] {
        desk.fails(2, &["inspect", "good.onnx", &format!("--threads={threads}")], &["--threads"]);
    }
    desk.fails(2, &["inspect", "good.onnx", "--fast"], &["--fast"]);
    desk.fails(2, &["frobnicate"], &["frobnicate"]);
    let mut command = Command::cargo_bin("edge-infer").unwrap();
    let out = command.current_dir(&desk.folder).env("EDGE_ISA", "mmx").args(["inspect", "good.onnx"]).output().unwrap();
    assert_eq!(out.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&out.stderr).contains("\"mmx\" is not available"));
}

/// A file that may not be read. Root reads everything, so this shows nothing there.
#[cfg(unix)]
#[test]
fn unreadable_files() {
    use std::os::unix::fs::PermissionsExt;
    let desk = Desk::new();
    let lock = |path: &Path| std::fs::set_permissions(path, PermissionsExt::from_mode(0o000)).unwrap();
    for name in ["good.onnx", "picture.ppm"] {
        lock(&desk.path(name));
    }
    if std::fs::read(desk.path("good.onnx")).is_ok() {
        eprintln!("SKIPPED: this user may read everything");
        return;
    }
    desk.fails(1, &["inspect", "good.onnx"], &["good.onnx", "ermission denied"]);
}
