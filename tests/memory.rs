//! What allocates, and how much: one test, because the allocator counts for the whole process.

#[path = "common/allocator.rs"]
mod allocator;
mod common;

use common::{Rng, golden, load, read_f32};
use edge_infer::import::onnx;
use edge_infer::model::{LoadOptions, Model};
use prost::Message;
use std::panic::{AssertUnwindSafe, catch_unwind};

#[test]
fn inference_allocates_nothing_and_broken_models_stay_within_limits() {
    // First, while nothing else runs: the harness prints (and allocates) when a test takes a minute.
    inference_allocates_nothing();
    broken_models_neither_panic_nor_take_much_memory();
}

fn inference_allocates_nothing() {
    for name in ["resnet_bare", "gemm_float_output", "concat"] {
        for threads in [1, 2] {
            let path = golden(name);
            let input = read_f32(&path.with_extension("in.f32"));
            let mut model = load(&path, None, threads);
            model.run(&input).unwrap();
            let before = allocator::calls();
            for _ in 0..50 {
                std::hint::black_box(model.run(&input).unwrap());
            }
            assert_eq!(allocator::calls() - before, 0, "{name}: allocations in 50 inferences with {threads} threads");
        }
    }
}

/// Flips bits, overwrites, removes, repeats or truncates.
fn mutate_bytes(bytes: &mut Vec<u8>, rng: &mut Rng) {
    for _ in 0..rng.between(1, 3) {
        let at = rng.below(bytes.len());
        let end = bytes.len().min(at + rng.between(1, 16));
        match rng.below(16) {
            0 => bytes.truncate(at.max(1)),
            1 => drop(bytes.drain(at..end)),
            2 => bytes.extend_from_within(at..end),
            3 => bytes[at..end].fill([0, 0x7f, 0x80, 0xff][rng.below(4)]),
            _ => bytes[at] ^= 1 << rng.below(8),
        }
        if bytes.is_empty() {
            return;
        }
    }
}

/// Changes what a valid file says: attributes, shapes, values, wiring, operators.
fn mutate_model(bytes: &[u8], rng: &mut Rng) -> Vec<u8> {
    const INTS: [i64; 12] = [0, 1, 2, 3, 7, -1, 255, 4096, 65_536, 1 << 31, 1 << 40, i64::MIN];
    const OPS: [&str; 10] = ["Conv", "Relu", "Add", "Gemm", "MaxPool", "Flatten", "QuantizeLinear", "Concat", "Identity", "Reshape"];
    let mut model = onnx::decode(bytes).unwrap();
    let graph = onnx::graph_mut(&mut model).unwrap();
    for _ in 0..rng.between(1, 2) {
        let int = INTS[rng.below(INTS.len())];
        let (n, t) = (rng.below(graph.node.len()), rng.below(graph.initializer.len()));
        let names: Vec<String> = graph.node.iter().flat_map(|n| n.input.iter().chain(&n.output)).cloned().collect();
        let (node, tensor) = (&mut graph.node[n], &mut graph.initializer[t]);
        match rng.below(6) {
            0 if !node.attribute.is_empty() => {
                let at = rng.below(node.attribute.len());
                let attribute = &mut node.attribute[at];
                attribute.i = int;
                if !attribute.ints.is_empty() {
                    let at = rng.below(attribute.ints.len());
                    attribute.ints[at] = int;
                }
            }
            1 if !node.input.is_empty() => {
                let at = rng.below(node.input.len());
                node.input[at] = names[rng.below(names.len())].clone();
            }
            2 => node.op_type = OPS[rng.below(OPS.len())].into(),
            3 if !tensor.raw_data.is_empty() => {
                let at = rng.below(tensor.raw_data.len());
                tensor.raw_data[at] ^= 1 << rng.below(8);
            }
            4 if !tensor.dims.is_empty() => {
                let at = rng.below(tensor.dims.len());
                if rng.chance(2) { tensor.dims[at] = int } else { tensor.dims.rotate_left(1) }
            }
            _ => onnx::set_input_dims(graph, "x", &[1, rng.between(1, 12), rng.between(1, 300), rng.between(1, 30)]),
        }
    }
    model.encode_to_vec()
}

fn broken_models_neither_panic_nor_take_much_memory() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("broken.onnx");
    let options = LoadOptions { threads: 1, ..Default::default() };
    let (mut loaded, mut refused) = (0, 0);
    // tract's panics are caught by the library and become errors; their messages would fill the screen.
    std::panic::set_hook(Box::new(|_| {}));
    for (seed, name) in [
        "residual_bare_u8",
        "gemm_float_output",
        "concat",
        "float_island",
        "average_pool",
        "q_operators_average_pool",
        "q_operators_resnet",
    ]
    .iter()
    .cycle()
    .take(1000)
    .enumerate()
    {
        let mut bytes = std::fs::read(golden(name)).unwrap();
        let mut rng = Rng(seed as u64);
        if seed % 2 == 0 {
            mutate_bytes(&mut bytes, &mut rng)
        } else {
            bytes = mutate_model(&bytes, &mut rng)
        }
        std::fs::write(&path, &bytes).unwrap();
        let limit = 2 * bytes.len() + (64 << 20);
        let (outcome, used) = allocator::peak(|| {
            catch_unwind(AssertUnwindSafe(|| match Model::load(&path, &options) {
                Ok(mut model) => {
                    let input = vec![0.5; model.input_shape().iter().product()];
                    model.run(&input).map(|_| ())
                }
                Err(e) => Err(e),
            }))
        });
        let fail = |what: String| {
            let _ = std::panic::take_hook();
            panic!("{name} with mutation {seed}: {what}");
        };
        match outcome {
            Ok(Ok(())) => loaded += 1,
            Ok(Err(e)) => {
                refused += 1;
                if e.to_string().len() < 10 {
                    fail(format!("the message says nothing: {e}"));
                }
            }
            Err(panic) => fail(format!("panicked: {:?}", panic.downcast_ref::<String>())),
        }
        if used > limit {
            fail(format!("took {used} bytes, the limit is {limit}"));
        }
    }
    let _ = std::panic::take_hook();
    println!("1000 mutations: {loaded} still run, {refused} refused");
    assert!(loaded > 200 && refused > 200, "{loaded} loaded, {refused} refused: the mutations test nothing");
}
