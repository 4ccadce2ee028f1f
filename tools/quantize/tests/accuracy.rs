//! Accuracy on labelled folders, mixed precision, and the web page, through the command line.
mod common;
use assert_cmd::Command;
use common::*;
use edge_infer::model::{LoadOptions, Model};
use serde_json::Value;
use std::path::Path;

const NAMES: [&str; 5] = ["n01440764", "n01443537", "n01484850", "n01491361", "n01494475"];

/// The test network, and a folder in ImageNet's layout: `val/nXXXXXXXX/*.png`.
fn setup() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("m.onnx"), bytes(&resnet(17))).unwrap();
    for (c, name) in NAMES.iter().enumerate() {
        let folder = dir.path().join("val").join(name);
        std::fs::create_dir_all(&folder).unwrap();
        for i in 0..4u32 {
            let seed = c as u32 * 4 + i;
            let v = noise(seed + 1, 16 * 16 * 3);
            let at = |x: u32, y: u32, k: u32| (127.0 + 120.0 * v[((y / 2 * 2 * 16 + x / 2 * 2) * 3 + k) as usize]) as u8;
            let picture = image::RgbImage::from_fn(16, 16, |x, y| image::Rgb([at(x, y, 0), at(x, y, 1), at(x, y, 2)]));
            picture.save(folder.join(format!("{i}.png"))).unwrap();
        }
    }
    dir
}

fn tool(dir: &Path, args: &[&str]) -> assert_cmd::assert::Assert {
    Command::cargo_bin("edge-quantize").unwrap().current_dir(dir).args(args).assert()
}

fn json(assert: assert_cmd::assert::Assert) -> Value {
    serde_json::from_slice(&assert.success().get_output().stdout).unwrap()
}

const QUANTIZE: [&str; 10] = ["m.onnx", "--calib", "val", "--resize", "stretch", "--mean", "0.5", "--std", "0.25", "--json"];

fn quantize(dir: &Path, output: &str, more: &[&str]) -> Value {
    json(tool(dir, &[&QUANTIZE[..], &["-o", output], more].concat()))
}

#[test]
fn eval_counts_resumes_and_compares() {
    let dir = setup();
    let path = dir.path();
    quantize(path, "q.onnx", &[]);
    let eval = ["eval", "q.onnx", "val", "--float", "m.onnx", "--json", "--jobs", "2"];
    let whole = json(tool(path, &eval));
    assert_eq!(whole["images"], 20);
    let share = |r: &Value, side: &str, top: &str| r[side][top]["share"].as_f64().unwrap();
    // Five classes: the first five always hold the right one. Untrained: the interval is wide.
    assert_eq!(share(&whole, "model", "top5"), 1.0);
    let top1 = &whole["model"]["top1"];
    assert!(
        top1["low"].as_f64().unwrap() < share(&whole, "model", "top1") && share(&whole, "model", "top1") < top1["high"].as_f64().unwrap()
    );
    assert!(whole["top1_agreement"].as_f64().unwrap() >= 0.9 && whole["logit_sqnr_db"].as_f64().unwrap() > 25.0, "{whole}");
    // The library says the same.
    let mut model = Model::load(&path.join("q.onnx"), &LoadOptions { threads: 1, ..Default::default() }).unwrap();
    let preprocess = model.metadata().preprocess.clone().unwrap();
    let mut right = 0;
    for (c, name) in NAMES.iter().enumerate() {
        for i in 0..4 {
            let x = edge_infer::image::load_tensor(&path.join(format!("val/{name}/{i}.png")), &preprocess).unwrap();
            right += usize::from(edge_quantize::report::argmax(model.run(&x).unwrap()) == c);
        }
    }
    assert_eq!(share(&whole, "model", "top1"), right as f64 / 20.0);

    // Cut off within the ninth line: eight results (after the header) are kept, twelve are made again.
    let with_state = [&eval[..], &["--state", "s.jsonl"]].concat();
    json(tool(path, &with_state));
    let text = std::fs::read_to_string(path.join("s.jsonl")).unwrap();
    let cut: usize = text.lines().take(9).map(|l| l.len() + 1).sum();
    std::fs::write(path.join("s.jsonl"), &text[..cut + 20]).unwrap();
    let mut again = json(tool(path, &with_state));
    assert_eq!(again["resumed"], 8);
    for key in ["resumed", "seconds"] {
        again[key] = whole[key].clone();
    }
    assert_eq!(again["model"], whole["model"]);
    assert_eq!(again["changes"], whole["changes"]);
    assert_eq!(std::fs::read_to_string(path.join("s.jsonl")).unwrap().lines().count(), 21);
    // Another model's results are not taken.
    let other = ["eval", "m.onnx", "val", "--float", "q.onnx", "--state", "s.jsonl"];
    let text = String::from_utf8(tool(path, &other).code(1).get_output().stderr.clone()).unwrap();
    assert!(text.contains("other models") && text.contains("--state"), "{text}");
    let labels = "n01440764 0\nn01443537 1\nn01484850 2\nn01491361 3\n";
    std::fs::write(path.join("labels.txt"), labels).unwrap();
    let text = String::from_utf8(tool(path, &["eval", "q.onnx", "val", "--labels", "labels.txt"]).code(1).get_output().stderr.clone());
    assert!(text.unwrap().contains("n01494475"));
}

#[test]
fn layers_stay_float_by_name_or_by_cost() {
    let dir = setup();
    let path = dir.path();
    let all = quantize(path, "q.onnx", &["--sensitivity"]);
    let costs = all["sensitivity"].as_array().unwrap();
    assert_eq!(costs.len(), 5, "{costs:?}");
    let macs: u64 = costs.iter().map(|c| c["macs"].as_u64().unwrap()).sum();
    let load = |name: &str| Model::load(&path.join(name), &LoadOptions { threads: 1, ..Default::default() }).unwrap().report();
    assert_eq!(load("q.onnx").int8_macs, macs);
    // One layer alone costs hardly more than all of them together, whose errors may cancel a little.
    let together = all["evaluation"]["logit_sqnr_db"].as_f64().unwrap();
    assert!(costs.iter().all(|c| c["logit_sqnr_db"].as_f64().unwrap() > together - 3.0), "{costs:?} {together}");

    // A float island between two int8 regions.
    let kept = quantize(path, "kept.onnx", &["--keep-float", "c1.y/Conv"]);
    let names: Vec<&str> = kept["float_nodes"].as_array().unwrap().iter().map(|n| n["node"].as_str().unwrap()).collect();
    assert!(names[0].starts_with("c1.y/Conv"), "{names:?}");
    let report = load("kept.onnx");
    let c1 = costs.iter().find(|c| c["name"] == "c1.y/Conv").unwrap()["macs"].as_u64().unwrap();
    assert_eq!((report.int8_macs, report.regions), (macs - c1, 2), "{names:?}");
    json(tool(path, &["eval", "kept.onnx", "val", "--float", "m.onnx", "--json"]));

    let mixed = quantize(path, "mixed.onnx", &["--auto-mixed", "40"]);
    let left = load("mixed.onnx").int8_macs;
    assert!(left < macs && left as f64 >= 0.6 * macs as f64, "{left} of {macs}");
    let better = mixed["evaluation"]["logit_sqnr_db"].as_f64().unwrap();
    assert!(better > together, "{better} {together}");
    let text = tool(path, &[&QUANTIZE[..], &["-o", "x.onnx", "--keep-float", "nowhere"]].concat()).code(2).get_output().stderr.clone();
    let text = String::from_utf8(text).unwrap();
    assert!(text.contains("nowhere") && text.contains("c1.y/Conv"), "{text}");
}

#[test]
fn the_page_holds_everything_and_needs_nothing() {
    let dir = setup();
    let path = dir.path();
    let report = quantize(path, "q.onnx", &["--html", "r.html", "--recipe", "best", "--labels", "a<b,b,c,d,e", "--sensitivity"]);
    let page = std::fs::read_to_string(path.join("r.html")).unwrap();
    for t in report["tensors"].as_array().unwrap() {
        assert!(page.contains(t["tensor"].as_str().unwrap()));
    }
    // All but the pool, which shares its input's parameters.
    let drawn = report["tensors"].as_array().unwrap().iter().filter(|t| t["histogram"]["counts"].as_array().is_some_and(|c| c.len() == 64));
    assert_eq!(drawn.count() + 1, report["tensors"].as_array().unwrap().len());
    for words in ["logit SQNR", "Cost of each layer alone", "Changed classes", "bias correction", "<svg"] {
        assert!(page.contains(words), "{words}");
    }
    assert!(page.starts_with("<!doctype html>") && page.trim_end().ends_with("</html>"));
    for outside in ["http:", "https:", "<script", "<link", "src="] {
        assert!(!page.contains(outside), "{outside}: the page should need nothing else");
    }
    assert!(!page.contains("a<b"));
}
