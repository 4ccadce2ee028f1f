//! Old and odd spellings of networks: their canonical form computes, in ONNX Runtime without optimizations, what the file
//! itself does; and the runtime's int8 part takes the quantized ones whole.

mod common;

use common::{python, run_python, tests_folder};
use edge_infer::import::canonical::opset::{NEWEST, STEPS};
use edge_infer::import::canonical::{Interface, canonicalize, write_older};
use edge_infer::import::{lower, onnx};
use prost::Message;
use std::collections::HashSet;
use std::path::Path;

/// Quantized networks that must become one region, from the input to the output.
const WHOLE: &[&str] = &[
    "plain_qdq",
    "qdq_on_float_weights",
    "weights_of_shape_1",
    "zero_points_missing",
    "zero_points_computed",
    "com_microsoft",
    "clip_between",
    "relu_between",
    "same_grid_again",
    "weights_turned",
    "qlinear_matmul",
    "float16_scales",
    "four_bit_weights",
];

fn canonical(path: &Path) -> onnx::ModelProto {
    let mut model = onnx::load(path).unwrap();
    canonicalize(&mut model, &Interface { real_outputs: true, ..Default::default() }).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    model
}

#[test]
fn every_spelling_keeps_its_values() {
    let Some(python) = python("numpy, onnx, onnxruntime") else { return };
    let folder = tempfile::tempdir().unwrap();
    let listing = run_python(&python, "canonical.py", &["make".as_ref(), folder.path().as_os_str()]);
    let mut count = 0;
    for name in listing.lines() {
        let mut model = canonical(&folder.path().join(format!("{name}.onnx")));
        assert_eq!(onnx::opset(&model), NEWEST, "{name}");
        // It stays as it is, and the older form that is written means the same.
        let mut again = model.clone();
        canonicalize(&mut again, &Interface::default()).unwrap();
        assert_eq!(onnx::graph(&again).unwrap().node.len(), onnx::graph(&model).unwrap().node.len(), "{name}");
        std::fs::write(folder.path().join(format!("{name}.canonical.onnx")), model.encode_to_vec()).unwrap();
        let older = write_older(&mut model, 13).unwrap();
        assert!((13..=NEWEST).contains(&older));
        std::fs::copy(folder.path().join(format!("{name}.npz")), folder.path().join(format!("{name}.older.npz"))).unwrap();
        std::fs::copy(folder.path().join(format!("{name}.onnx")), folder.path().join(format!("{name}.older.onnx"))).unwrap();
        std::fs::write(folder.path().join(format!("{name}.older.canonical.onnx")), model.encode_to_vec()).unwrap();
        count += 1;
    }
    println!("{count} spellings: {}", run_python(&python, "canonical.py", &["check".as_ref(), folder.path().as_os_str()]));
    for name in WHOLE {
        let lowered = lower::lower(&canonical(&folder.path().join(format!("{name}.onnx"))), &Default::default()).unwrap();
        assert!(lowered.regions.len() == 1 && lowered.fallbacks.is_empty(), "{name}: {:?}", lowered.fallbacks);
    }
}

/// The table of steps knows every change that the installed package's schemas show.
#[test]
fn the_table_is_complete() {
    let Some(python) = python("onnx") else { return };
    let listing = run_python(&python, "canonical.py", &["schemas".as_ref()]);
    let steps: HashSet<(&str, i64)> = STEPS.iter().flat_map(|s| s.ops.iter().map(move |op| (*op, s.version))).collect();
    let mut missing = Vec::new();
    for line in listing.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            [op, "changed", version] => {
                let version: i64 = version.parse().unwrap();
                if !steps.contains(&(op, version)) {
                    missing.push(line.to_owned());
                }
            }
            ["newest", version] => assert!(version.parse::<i64>().unwrap() >= NEWEST),
            _ => {}
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
}

#[test]
fn refusals_name_the_node_and_the_way_out() {
    let path = tests_folder().join("golden/conv_relu.onnx");
    let mut model = onnx::load(&path).unwrap();
    onnx::set_opset(&mut model, NEWEST + 1);
    let text = canonicalize(&mut model, &Interface::default()).unwrap_err().to_string();
    assert!(text.contains(&format!("export with opset {NEWEST} or older")), "{text}");
    let mut model = onnx::load(&path).unwrap();
    let interface = Interface { outputs: vec!["other".into()], ..Default::default() };
    let text = canonicalize(&mut model, &interface).unwrap_err().to_string();
    assert!(text.contains("no output `other`"), "{text}");
    let interface = Interface { size: Some([7, 9]), ..Default::default() };
    let text = canonicalize(&mut model, &interface).unwrap_err().to_string();
    assert!(text.contains("is fixed at"), "{text}");
}
