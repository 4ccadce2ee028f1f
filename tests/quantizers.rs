//! Files of ONNX Runtime's own quantizer, QDQ and QOperator, all weight and activation types, per tensor and per channel:
//! wholly in int8 here, with ONNX Runtime's results.

mod common;

use common::{load, python, read_f32, run_python, tests_folder};

/// Smallest distance between two different values: results are multiples of it.
fn step(values: &[f32]) -> f32 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f32::total_cmp);
    sorted.windows(2).map(|w| w[1] - w[0]).filter(|d| *d > 1e-6).fold(f32::INFINITY, f32::min)
}

fn argmax(v: &[f32]) -> usize {
    (0..v.len()).fold(0, |best, i| if v[i] > v[best] { i } else { best })
}

#[test]
fn quantized_by_onnx_runtime() {
    let Some(python) = python("numpy, onnx, onnxruntime.quantization") else { return };
    let folder = tempfile::tempdir().unwrap();
    let thin = tests_folder().join("../models/thin.onnx");
    let listing = run_python(&python, "quantizers.py", &[folder.path().as_os_str(), thin.as_os_str()]);
    let (mut files, mut equal, mut values, mut different) = (0, 0, 0, 0);
    for line in listing.lines() {
        let (name, unsure) = line.split_once('\t').unwrap();
        let path = folder.path().join(format!("{name}.onnx"));
        let beside = |end: &str| read_f32(&folder.path().join(format!("{name}.{end}.f32")));
        let (inputs, theirs, plain) = (beside("in"), beside("out"), beside("plain"));
        let mut model = load(&path, None, 2);
        let report = model.report();
        let left: Vec<_> = report.nodes.iter().filter(|n| n.why.is_some()).collect();
        assert!(left.is_empty() && report.regions == 1, "{name}: parts stay in float: {left:?}");
        let shape: usize = model.input_shape().iter().product();
        let step = step(&theirs);
        let mut off = 0;
        for ((x, y), p) in inputs.chunks(shape).zip(theirs.chunks(10)).zip(plain.chunks(10)) {
            let ours = model.run(x).unwrap();
            for ((o, y), p) in ours.iter().zip(y).zip(p) {
                // ONNX Runtime with its optimizations or without: they differ from each other by a step as well.
                let far = (o - y).abs().min((o - p).abs());
                assert!(far < 1.01 * step, "{name}: {o} where ONNX Runtime has {y} or {p}, a step is {step}");
                off += usize::from(o != y);
            }
            let tie = |v: &[f32]| v[argmax(ours)] >= v[argmax(v)] - 1.01 * step;
            assert!(tie(y) || tie(p), "{name}: {ours:?} {y:?}");
        }
        println!("{name}: {off} of {} logits differ by a step; {unsure} between ONNX Runtime's own two ways", theirs.len());
        (files, equal, values, different) = (files + 1, equal + usize::from(off == 0), values + theirs.len(), different + off);
    }
    println!("{files} files: {equal} equal bit for bit; {different} of {values} logits differ by one step");
    assert_eq!(files, 24);
    assert!(equal >= 12 && different * 20 < values, "{equal} files equal, {different} of {values} logits differ");
}
