//! ONNX's own node cases for the operators we implement, from the `onnx` package of whatever Python there is.

mod common;

use common::{python, read_f32, run_python};
use edge_infer::model::{LoadOptions, Model};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

#[derive(Deserialize)]
struct Listing {
    onnx: String,
    cases: Vec<Case>,
    skipped: Vec<Skipped>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    op: String,
    form: String,
    atol: f32,
    rtol: f32,
}

#[derive(Deserialize)]
struct Skipped {
    name: String,
    form: String,
    why: String,
}

/// Cases that are refused, with a word of the message. Everything here is refused with an error, not answered wrongly.
const REFUSED: &[(&str, &str)] = &[
    ("test_batchnorm_example_training_mode.whole", "Wrong number of outputs"),
    ("test_batchnorm_epsilon_training_mode.whole", "Wrong number of outputs"),
    // tract has no 16-bit and no blocked quantization.
    ("test_dequantizelinear_uint16.whole", "tensor is U16"),
    ("test_dequantizelinear_int16.whole", "tensor is I16"),
    ("test_dequantizelinear_blocked.whole", "blocked quantization is not supported"),
    ("test_quantizelinear_uint16.whole", "tensor is U16"),
    ("test_quantizelinear_int16.whole", "tensor is I16"),
    ("test_quantizelinear_blocked_asymmetric.whole", "blocked quantization is not supported"),
];

/// Cases in `int8` form that stay with tract, with a word of the reason.
const IN_TRACT: &[(&str, &str)] = &[
    ("test_maxpool_with_argmax_2d_precomputed_pads.int8", "indices are asked for"),
    ("test_maxpool_with_argmax_2d_precomputed_strides.int8", "indices are asked for"),
    ("test_clip_min_greater_than_max.int8", "its lower bound is above its upper one"),
];

/// Element types without an exact f32 form, in `whole` form; the rest of what is skipped are `int8` forms of other shapes.
const SKIPPED_TYPES: [&str; 3] = ["uint32", "uint64", "float16"];

fn run(folder: &Path, case: &Case) -> Result<Vec<String>, String> {
    let path = folder.join(format!("{}.onnx", case.name));
    let mut model = Model::load(&path, &LoadOptions { threads: 2, ..Default::default() }).map_err(|e| e.to_string())?;
    let input = read_f32(&folder.join(format!("{}.in.f32", case.name)));
    let expected = read_f32(&folder.join(format!("{}.out.f32", case.name)));
    let ours = model.run(&input).map_err(|e| e.to_string())?;
    assert_eq!(ours.len(), expected.len(), "{}", case.name);
    for (i, (&a, &b)) in ours.iter().zip(&expected).enumerate() {
        let close = (a - b).abs() <= case.atol + case.rtol * b.abs();
        assert!(close, "{}: value {i} is {a}, {b} ± ({} + {} relative) is expected", case.name, case.atol, case.rtol);
    }
    // What kept the operator itself out of the int8 region.
    Ok(model.report().nodes.iter().filter(|n| n.name == "case" && n.runs_on == "tract").filter_map(|n| n.why.clone()).collect())
}

#[test]
fn node_cases_of_onnx_itself() {
    let Some(python) = python("numpy, onnx") else { return };
    let folder = tempfile::tempdir().unwrap();
    let listing: Listing = serde_json::from_str(&run_python(&python, "backend.py", &[folder.path().as_os_str()])).unwrap();
    let (mut ran, mut failures) = (BTreeMap::<(&str, &str), u32>::new(), Vec::new());
    let (mut refused, mut in_tract) = (BTreeSet::new(), BTreeSet::new());
    for case in &listing.cases {
        let result = std::panic::catch_unwind(|| run(folder.path(), case));
        match result {
            Ok(Ok(why)) => {
                *ran.entry((&case.op, &case.form)).or_default() += 1;
                if case.form == "int8" && !why.is_empty() {
                    in_tract.insert(case.name.as_str());
                    if !IN_TRACT.iter().any(|(name, word)| *name == case.name && why[0].contains(word)) {
                        failures.push(format!("{} stays with tract: {}", case.name, why[0]));
                    }
                }
            }
            Ok(Err(message)) => {
                refused.insert(case.name.as_str());
                if !REFUSED.iter().any(|(name, word)| *name == case.name && message.contains(word)) {
                    failures.push(format!("{}: {message}", case.name));
                }
            }
            Err(panic) => failures.push(panic.downcast_ref::<String>().cloned().unwrap_or_else(|| format!("{} panicked", case.name))),
        }
    }
    println!("onnx {}: {} cases of {} ran: {ran:?}", listing.onnx, ran.values().sum::<u32>(), listing.cases.len());
    for s in &listing.skipped {
        println!("not run: {}: {}", s.name, s.why);
        let typed = s.why.contains("object") || SKIPPED_TYPES.iter().any(|t| s.why.contains(t));
        if !(typed || s.form == "int8" && s.why.contains("pictures in batches of one")) {
            failures.push(format!("{} was skipped: {}", s.name, s.why));
        }
    }
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
    // The lists are exact: what begins to work must leave them.
    let known = |list: &[(&'static str, &str)]| list.iter().map(|c| c.0).collect::<BTreeSet<_>>();
    let here =
        |list: BTreeSet<&'static str>| list.into_iter().filter(|n| listing.cases.iter().any(|c| c.name == *n)).collect::<BTreeSet<_>>();
    assert_eq!(refused, here(known(REFUSED)), "refused");
    assert_eq!(in_tract, here(known(IN_TRACT)), "left to tract");
    if listing.onnx == "1.23.2" {
        assert_eq!(ran.values().sum::<u32>() as usize + REFUSED.len(), 160, "cases of onnx 1.23.2");
    }
}
