//! Golden files: ONNX Runtime's results on small QDQ models (`golden/generate.py`), and live runs where Python has it.
//!
//! Each golden case has two results of ONNX Runtime: `fused`, as users have it (QLinearConv and its kin), and `float`,
//! the file executed node by node as it is written. Where the fused operator requantizes as our definition does, bits
//! must be equal. Where float arithmetic is arranged differently, results may differ by one step where the exact value
//! lies so close to the middle of two steps that float rounding decides; the test asserts exactly that, with the exact
//! value from the reference.

mod common;

use common::{argmax, golden, isas, load, python, read_f32, run_python, tests_folder, write_f32};
use edge_infer::graph::Shape;
use edge_infer::import::canonical::{Interface, canonicalize};
use edge_infer::import::{lower, onnx};
use edge_infer::ops::reference::{self, Source};
use edge_infer::ops::{Graph, Op};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

/// How our result relates to one of ONNX Runtime's.
#[derive(Debug, Clone, Copy)]
enum Is {
    /// Bit for bit.
    Equal,
    /// At most one step off, and only where the exact value is this close (in steps) to a tie.
    NearTies(f64),
    /// At most one step off: an earlier tensor's near tie passes through later layers.
    OneStep,
    /// Floats whose arithmetic is ordered differently: relative to the largest value.
    Relative(f32),
}
use Is::*;

/// f32 sums of products, with the whole sum's rounding errors, in steps of a 256-step output.
const FLOAT: Is = NearTies(1e-3);
/// A multiplication or two in another order.
const ORDER: Is = NearTies(1e-4);

/// Case, ours against `fused`, ours against `float`, and whether all of it must lower to one int8 region.
const CASES: &[(&str, Is, Is, bool)] = &[
    // QLinearConv: i32 sum, f32 multiplier x·w/y, half to even: our definition. Float: the sum rounds.
    ("conv_u8_per_channel", Equal, FLOAT, true),
    ("conv_s8_per_channel", Equal, FLOAT, true),
    ("conv_u8_per_tensor", Equal, FLOAT, true),
    ("conv_every_channel_scale", Equal, FLOAT, true),
    ("conv_grouped", Equal, FLOAT, true),
    ("conv_depthwise", Equal, FLOAT, true),
    ("conv_dilated", Equal, FLOAT, true),
    ("conv_strided", Equal, FLOAT, true),
    ("conv_asymmetric_padding", Equal, FLOAT, true),
    ("conv_relu", Equal, FLOAT, true),
    // A Relu or Clip that saturation does not imply, and a sum of unquantized operands, keep ONNX Runtime's Conv in float.
    ("conv_relu_above_zero_point", FLOAT, FLOAT, true),
    ("conv_clip", FLOAT, FLOAT, true),
    ("residual_bare_u8", FLOAT, FLOAT, true),
    ("residual_bare_s8", FLOAT, FLOAT, true),
    // QLinearAdd folds both zero points into one constant before it adds: another order, and the first rounding is Conv's.
    ("residual_quantized", ORDER, OneStep, true),
    // Scales are powers of two: float arithmetic is exact in any order, ties are many, and all must round them to even.
    ("residual_ties", Equal, Equal, true),
    ("conv_ties", Equal, Equal, true),
    ("add", ORDER, ORDER, true),
    // QLinearConcat uses a table of 256 values per input, as we do.
    ("concat", Equal, Equal, true),
    ("relu_alone", Equal, Equal, true),
    ("max_pool_padded", Equal, Equal, true),
    ("max_pool_ceil", Equal, Equal, true),
    ("max_pool_requantized", Equal, Equal, true),
    // Both dequantize before they average.
    ("average_pool", FLOAT, FLOAT, true),
    ("average_pool_counts_padding", FLOAT, FLOAT, true),
    // Fused: i32 sum, one multiplier; its two factors are multiplied in another order.
    ("global_average_pool", ORDER, FLOAT, true),
    ("global_average_pool_s8", ORDER, FLOAT, true),
    // QGemm: i32 sum, f32 multiplier x·w, as defined. Without Q/DQ after Flatten, ONNX Runtime does not fuse.
    ("gemm_float_output", Equal, Relative(1e-6), true),
    ("gemm_after_plain_flatten", Relative(1e-6), Relative(1e-6), true),
    ("gemm_quantized_output", Equal, FLOAT, true),
    ("gemm_not_transposed", Equal, FLOAT, true),
    ("mat_mul_add", Equal, FLOAT, true),
    ("float_island", OneStep, OneStep, false),
    // A table of 256 values.
    ("sigmoid", Equal, Equal, true),
    ("hard_sigmoid", Equal, Equal, true),
    ("hard_swish", Equal, Equal, true),
    ("silu", Equal, Equal, true),
    ("silu_quantized_gate", Equal, Equal, true),
    // Twice two products in another order, or a difference that is not fused.
    ("sub", ORDER, ORDER, true),
    // QLinearMul: our definition.
    ("mul", Equal, ORDER, true),
    ("mul_by_gate", Equal, ORDER, true),
    ("add_of_gate", ORDER, ORDER, true),
    ("squeeze_excite", OneStep, OneStep, true),
    ("functions_rectifiers", Equal, Equal, true),
    ("functions_smooth", Equal, Equal, true),
    ("functions_arithmetic", Equal, Equal, true),
    ("functions_with_constants", Equal, Equal, true),
    ("functions_composed", Equal, Equal, true),
    ("prelu_one_slope", Equal, Equal, true),
    ("prelu_per_channel", ORDER, ORDER, true),
    ("global_max_pool", Equal, Equal, true),
    ("reduce_max_requantized", Equal, Equal, true),
    // Sums in float.
    ("reduce_mean_to_vector", FLOAT, FLOAT, true),
    ("reduce_sum", FLOAT, FLOAT, true),
    ("q_operators_mul", OneStep, OneStep, true),
    ("float_conv_of_dequantized_weights", Relative(1e-6), Relative(1e-6), false),
    ("resnet_bare", OneStep, OneStep, true),
    ("resnet_quantized_branches", OneStep, OneStep, true),
    // QOperator form: QLinearConv, QLinearAdd, QLinearGlobalAveragePool, QGemm on integer tensors.
    ("q_operators_resnet", OneStep, OneStep, true),
    ("q_operators_average_pool", FLOAT, FLOAT, true),
];

/// Lowers a file; `None` if it is not one region.
fn region(path: &Path) -> Option<(Graph, Vec<lower::Fallback>)> {
    region_of(&onnx::load(path).unwrap())
}

fn region_of(model: &onnx::ModelProto) -> Option<(Graph, Vec<lower::Fallback>)> {
    let lowered = lower::lower(model, &Default::default()).unwrap();
    let mut regions = lowered.regions;
    (regions.len() == 1).then(|| (regions.remove(0), lowered.fallbacks))
}

/// The reference's float result and, where that comes from a quantized tensor, its exact values in steps.
struct Reference {
    result: Vec<f32>,
    exact: Option<Vec<f64>>,
}

/// Runs the reference on a file's region; `None` if it is not one, or not all.
fn run_reference(region: Option<(Graph, Vec<lower::Fallback>)>, shape: &[usize], input: &[f32]) -> Option<Reference> {
    let (graph, fallbacks) = region?;
    let source = Source { shape: Shape::of_onnx(shape).unwrap(), data: input };
    let mut results = reference::run(&graph, &HashMap::from([("x", source)]), |_, _| {});
    let exact = match graph.nodes.last().map(|n| (&n.op, n.inputs[0])) {
        Some((Op::Dequantize(_), t)) => results.tensors[t].take().map(|v| v.exact),
        _ => None,
    };
    fallbacks.is_empty().then(|| Reference { result: results.targets.remove(0).1, exact })
}

/// Asserts the relation and returns how many values differ.
fn compare(name: &str, is: Is, ours: &[f32], theirs: &[f32], exact: Option<&[f64]>, step: f32) -> usize {
    assert_eq!(ours.len(), theirs.len(), "{name}");
    let largest = theirs.iter().fold(0f32, |m, v| m.max(v.abs()));
    let mut different = 0;
    for (i, (&a, &b)) in ours.iter().zip(theirs).enumerate().filter(|(_, (a, b))| a.to_bits() != b.to_bits()) {
        different += 1;
        match is {
            Equal => panic!("{name}: value {i} is {a:e}, ONNX Runtime says {b:e}"),
            Relative(r) => assert!((a - b).abs() <= r * largest, "{name}: value {i} is {a:e}, ONNX Runtime says {b:e}"),
            OneStep => assert!((a - b).abs() <= step * 1.001, "{name}: value {i} is {a:e}, ONNX Runtime says {b:e}, the step is {step:e}"),
            NearTies(margin) => {
                let exact = exact.expect("near ties need a quantized result");
                let distance = ((exact[i] - exact[i].floor()) - 0.5).abs();
                assert!((a - b).abs() <= step * 1.001, "{name}: value {i} is {a:e}, ONNX Runtime says {b:e}, the step is {step:e}");
                assert!(distance <= margin, "{name}: value {i} differs ({a:e}, {b:e}), but {} is no tie", exact[i]);
            }
        }
    }
    different
}

/// Scale of the last quantized tensor; NaN (which fails every comparison) where there is none.
fn last_step(path: &Path) -> f32 {
    let model = onnx::load(path).unwrap();
    let graph = onnx::graph(&model).unwrap();
    let last = graph.node.iter().rev().find_map(|n| match n.op_type.as_str() {
        "QuantizeLinear" | "DequantizeLinear" => graph.initializer.iter().find(|t| t.name == n.input[1] && t.dims.is_empty()),
        _ => None,
    });
    last.map_or(f32::NAN, |t| onnx::f32_data(t).unwrap()[0])
}

#[test]
fn golden_files_and_table_name_the_same_cases() {
    let files: BTreeSet<String> = std::fs::read_dir(tests_folder().join("golden"))
        .unwrap()
        .filter_map(|e| e.unwrap().file_name().to_str()?.strip_suffix(".onnx").map(String::from))
        .collect();
    assert_eq!(files, CASES.iter().map(|c| c.0.to_string()).collect());
}

#[test]
fn golden_models_equal_onnx_runtime() {
    let mut report = BTreeMap::new();
    for &(name, fused_is, float_is, whole) in CASES {
        let path = golden(name);
        let input = read_f32(&path.with_extension("in.f32"));
        let theirs = read_f32(&path.with_extension("out.f32"));
        let (fused, float) = theirs.split_at(theirs.len() / 2);
        let mut model = load(&path, None, 1);
        let ours = model.run(&input).unwrap().to_vec();

        let defined = run_reference(region(&path), model.input_shape(), &input);
        assert_eq!(defined.is_some(), whole, "{name}: {:?}", model.report().nodes);
        if let Some(defined) = &defined {
            assert!(defined.result.iter().zip(&ours).all(|(a, b)| a.to_bits() == b.to_bits()), "{name}: the definition differs");
        }
        let exact = defined.as_ref().and_then(|n| n.exact.as_deref());
        let step = last_step(&path);
        let different = [(fused_is, fused), (float_is, float)].map(|(is, theirs)| compare(name, is, &ours, theirs, exact, step));
        report.insert(name, different);

        for isa in isas() {
            for threads in [1, 2] {
                let mut model = load(&path, Some(isa), threads);
                for _ in 0..2 {
                    assert_eq!(model.run(&input).unwrap(), ours, "{name}: {isa}, {threads} threads");
                }
            }
        }
    }
    println!("values that differ from ONNX Runtime (fused, float): {:?}", report.iter().filter(|(_, d)| **d != [0, 0]).collect::<Vec<_>>());
}

/// tract up to 0.23.5 took channel 0's scale for all: the int8 path and tract's float path must use each channel's own.
#[test]
fn per_channel_dequantize_uses_every_scale() {
    for (name, fallback) in [("conv_every_channel_scale", false), ("float_conv_of_dequantized_weights", true)] {
        let path = golden(name);
        let input = read_f32(&path.with_extension("in.f32"));
        let mut proto = onnx::load(&path).unwrap();
        let mut model = load(&path, None, 1);
        assert_eq!(model.report().nodes.iter().any(|n| n.op == "Conv" && n.runs_on == "tract"), fallback, "{name}");
        let before = model.run(&input).unwrap().to_vec();
        // Halving one channel's scale (the largest: its values use many steps) changes that channel and no other.
        let weights = proto.graph.as_ref().unwrap().node.iter().find(|n| n.op_type == "Conv").unwrap().input[1].clone();
        let graph = onnx::graph_mut(&mut proto).unwrap();
        let scale = graph.node.iter().find(|n| n.output[0] == weights).unwrap().input[1].clone();
        let scale = graph.initializer.iter_mut().find(|t| t.name == scale).unwrap();
        let mut values = onnx::f32_data(scale).unwrap();
        let (channels, chosen) = (values.len(), argmax(&values));
        assert!(chosen > 0, "{name}: channel 0 would prove nothing");
        values[chosen] *= 0.5;
        *scale = onnx::f32_tensor(&scale.name.clone(), &[channels], &values);
        let changed = tempfile::NamedTempFile::with_suffix(".onnx").unwrap();
        onnx::write_atomically(changed.path(), &prost::Message::encode_to_vec(&proto)).unwrap();
        let mut model = load(changed.path(), None, 1);
        let after = model.run(&input).unwrap();
        let plane = before.len() / channels;
        for (channel, (a, b)) in before.chunks(plane).zip(after.chunks(plane)).enumerate() {
            let different = a.iter().zip(b).filter(|(a, b)| a != b).count();
            assert!(if channel == chosen { different > plane / 2 } else { different == 0 }, "{name}: {different} of channel {channel}");
        }
    }
}

/// Compares every image of a model that `live.py` wrote; returns images, values, and how many values differ.
fn compare_live(folder: &Path, name: &str, is: Is) -> [usize; 3] {
    let path = folder.join(name).with_extension("onnx");
    let mut model = load(&path, None, 2);
    let report = model.report();
    assert!(report.nodes.iter().all(|n| n.why.is_none()), "{name}: parts stay in float: {:?}", report.nodes);
    let step = last_step(&path);
    let inputs = read_f32(&path.with_extension("in.f32"));
    let expected = read_f32(&path.with_extension("out.f32"));
    let classes = model.output_len();
    let mut count = [0; 3];
    for (input, theirs) in inputs.chunks_exact(model.input_shape().iter().product()).zip(expected.chunks_exact(classes)) {
        let ours = model.run(input).unwrap();
        let different = compare(name, is, ours, theirs, None, step);
        assert_eq!(argmax(ours), argmax(theirs), "{name}: image {}: {ours:?} {theirs:?}", count[0]);
        count = [count[0] + 1, count[1] + classes, count[2] + different];
    }
    count
}

/// Gives every operation ONNX Runtime's own inputs: each of its results equals the definition, or lies one step off where
/// the exact value is nearly a tie. Whatever differs at the end is thus such ties, carried on. Returns values and ties.
fn explain_live(folder: &Path, name: &str) -> [usize; 2] {
    let path = folder.join(name).with_extension("onnx");
    let (graph, _) = region(&path).expect("one region");
    let model = onnx::load(&path).unwrap();
    let (source, dims) = onnx::data_input(onnx::graph(&model).unwrap()).unwrap();
    let shape = Shape::picture([dims[2].unwrap(), dims[3].unwrap()], dims[1].unwrap());
    let input = read_f32(&path.with_extension("in.f32"));
    let listing = std::fs::read_to_string(path.with_extension("steps")).unwrap();
    let files: HashMap<&str, usize> = listing.lines().enumerate().map(|(i, tensor)| (tensor, i)).collect();
    let mut count = [0; 2];
    let sources = HashMap::from([(source.as_str(), Source { shape, data: &input[..shape.values()] })]);
    reference::run(&graph, &sources, |id, value| {
        let tensor = graph.tensors[id].name.as_str();
        let Some(i) = files.get(tensor) else { return }; // made by the lowering, not in the file
        let theirs = read_f32(&path.with_extension(format!("step{i}.f32")));
        assert_eq!(theirs.len(), value.q.len(), "{name}: {tensor}");
        for ((q, &t), exact) in value.q.iter_mut().zip(&theirs).zip(&value.exact) {
            let distance = ((exact - exact.floor()) - 0.5).abs();
            assert!(
                *q == t as i64 || (*q - t as i64).abs() == 1 && distance < 1e-3,
                "{name}: `{tensor}`: {q}, {t} in ONNX Runtime, {exact}"
            );
            count = [count[0] + 1, count[1] + usize::from(*q != t as i64)];
            *q = t as i64;
        }
    });
    count
}

/// Random networks from seeds, and ResNet-18's topology, against the ONNX Runtime that Python has.
#[test]
fn live_onnx_runtime_agrees_within_one_step() {
    let Some(python) = python("numpy, onnx, onnxruntime") else { return };
    let folder = tempfile::tempdir().unwrap();
    let listing = run_python(&python, "live.py", &[folder.path().as_os_str()]);
    let counts: Vec<_> = listing.lines().map(|name| compare_live(folder.path(), name, OneStep)).collect();
    let [images, values, different] = [0, 1, 2].map(|i| counts.iter().map(|c| c[i]).sum::<usize>());
    println!("{} models, {images} images: {different} of {values} values differ from ONNX Runtime by one step", counts.len());
    assert_eq!((counts.len(), images), (48, 240));
    let ties: Vec<_> = listing.lines().map(|name| explain_live(folder.path(), name)).collect();
    let [values, ties] = [0, 1].map(|i| ties.iter().map(|c| c[i]).sum::<usize>());
    println!("node by node: {ties} of {values} values differ, all within 0.001 steps of a tie");
    assert!(values > 100_000 && ties * 1000 < values);
}

/// Operators whose geometry has many cases, one by one, on every instruction set. Scales are powers of two, so that ONNX Runtime's float
/// arithmetic is exact.
#[test]
fn live_single_operators_equal_onnx_runtime() {
    let Some(python) = python("numpy, onnx, onnxruntime") else { return };
    let folder = tempfile::tempdir().unwrap();
    let listing = run_python(&python, "operators.py", &[folder.path().as_os_str(), "240".as_ref()]);
    let mut values = 0;
    for name in listing.lines() {
        let path = folder.path().join(name).with_extension("onnx");
        let input = read_f32(&path.with_extension("in.f32"));
        let theirs = read_f32(&path.with_extension("out.f32"));
        for isa in isas() {
            let mut model = load(&path, Some(isa), 2);
            let report = model.report();
            assert!(report.nodes.iter().all(|n| n.why.is_none()), "{name}: parts stay in float: {:?}", report.nodes);
            compare(&format!("{name} on {isa}"), Equal, model.run(&input).unwrap(), &theirs, None, f32::NAN);
        }
        let mut file = onnx::load(&path).unwrap();
        canonicalize(&mut file, &Interface::default()).unwrap();
        let shape = load(&path, None, 1).input_shape().to_vec();
        let defined = run_reference(region_of(&file), &shape, &input).unwrap_or_else(|| panic!("{name}: not one region"));
        compare(&format!("the definition of {name}"), Equal, &defined.result, &theirs, None, f32::NAN);
        values += theirs.len();
    }
    println!("{} models, {values} values: all equal ONNX Runtime's", listing.lines().count());
    assert_eq!(listing.lines().count(), 240);
}

/// The trained thin ResNet-18. Its logits are float, so near ties within the network show: they may move a logit by as much
/// as a few last steps, but not another class to the top.
#[test]
fn live_trained_model_agrees_with_onnx_runtime() {
    let Some(python) = python("numpy, onnx, onnxruntime") else { return };
    let folder = tempfile::tempdir().unwrap();
    let model = tests_folder().join("../models/thinq.onnx");
    run_python(&python, "live.py", &[folder.path().as_os_str(), model.as_os_str()]);
    let [images, values, different] = compare_live(folder.path(), "model", Relative(0.02));
    println!("{images} images: {different} of {values} logits differ from ONNX Runtime");
    assert_eq!(images, 200);
    let [values, ties] = explain_live(folder.path(), "model");
    println!("node by node: {ties} of {values} values differ, all within 0.001 steps of a tie");
}

/// Raw tensors through the binary give what the library gives.
#[test]
fn the_tensor_command_equals_the_library() {
    let folder = tempfile::tempdir().unwrap();
    let path = golden("resnet_bare");
    let input = read_f32(&path.with_extension("in.f32"));
    let (batch, result) = (folder.path().join("batch.f32"), folder.path().join("result.f32"));
    write_f32(&batch, &[&input[..], &input[..]].concat());
    let mut command = assert_cmd::Command::cargo_bin("edge-infer").unwrap();
    command.args(["tensor", "--threads", "2", "--model"]).arg(&path).arg("--input").arg(&batch).arg("--output").arg(&result);
    command.assert().success();
    let expected = load(&path, None, 1).run(&input).unwrap().to_vec();
    assert_eq!(read_f32(&result), [&expected[..], &expected[..]].concat());
}
