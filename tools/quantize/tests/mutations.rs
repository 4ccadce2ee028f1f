//! 1,000 broken files: none panics, and none takes more than twice its size plus 64 MB before it is refused.

#[path = "../../../tests/common/allocator.rs"]
mod allocator;
mod common;
use common::*;
use edge_quantize::input;
use edge_quantize::onnx::*;
use edge_quantize::pipeline::{Options, prepare};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Xorshift: reproducible choices.
struct Rng(u64);

impl Rng {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n.max(1) as u64) as usize
    }
}

const INTS: &[i64] = &[0, -1, 1, 2, 3, 7, 64, 1 << 12, 1 << 20, 1 << 31, 1 << 40, i64::MAX, i64::MIN];
const OPS: &[&str] = &[
    "Conv",
    "Gemm",
    "Add",
    "Relu",
    "Pad",
    "Reshape",
    "Transpose",
    "Squeeze",
    "Expand",
    "Tile",
    "ConstantOfShape",
    "Resize",
    "MaxPool",
    "If",
    "Concat",
    "ReduceMean",
    "BatchNormalization",
    "Softmax",
    "NoSuchOperator",
    "Identity",
    "Dropout",
    "Cast",
];

fn mutate_bytes(bytes: &mut Vec<u8>, rng: &mut Rng) {
    for _ in 0..1 + rng.below(4) {
        match rng.below(4) {
            0 => bytes.truncate(1 + rng.below(bytes.len())),
            1 => {
                let (at, n) = (rng.below(bytes.len()), rng.below(64));
                bytes.drain(at..(at + n).min(bytes.len()));
            }
            _ => {
                let at = rng.below(bytes.len());
                if let Some(b) = bytes.get_mut(at) {
                    *b ^= 1 << rng.below(8);
                }
            }
        }
        if bytes.is_empty() {
            return;
        }
    }
}

fn mutate_model(model: &mut ModelProto, rng: &mut Rng) {
    let g = graph_mut(model).unwrap();
    for _ in 0..1 + rng.below(2) {
        let int = INTS[rng.below(INTS.len())];
        let names: Vec<String> = g.node.iter().flat_map(|n| n.input.iter().chain(&n.output)).cloned().collect();
        let (n, t) = (rng.below(g.node.len()), rng.below(g.initializer.len()));
        let (node, tensor) = (&mut g.node[n], &mut g.initializer[t]);
        match rng.below(8) {
            0 => {
                if let Some(a) = node.attribute.first_mut() {
                    a.i = int;
                    if let Some(v) = a.ints.first_mut() {
                        *v = int;
                    }
                }
            }
            // Cycles and dangling edges.
            1 => node.input[0] = names[rng.below(names.len())].clone(),
            2 => node.input[0] = "nowhere".into(),
            3 => node.op_type = OPS[rng.below(OPS.len())].into(),
            4 => {
                if let Some(d) = tensor.dims.first_mut() {
                    *d = int;
                }
            }
            5 => tensor.data_type = [1, 2, 3, 6, 7, 9, 10, 11, 16, 99][rng.below(10)],
            6 => g.node.swap(n, 0),
            _ => {
                let at = rng.below(tensor.raw_data.len());
                if let Some(b) = tensor.raw_data.get_mut(at) {
                    *b ^= 0x40;
                }
            }
        }
    }
}

#[test]
fn broken_models_neither_panic_nor_take_much_memory() {
    let (mut planned, mut refused) = (0, 0);
    // tract's panics are caught by the library and become errors; their messages would fill the screen.
    std::panic::set_hook(Box::new(|_| {}));
    let whole = [9, 11, 13, 17].map(resnet);
    for seed in 0..1000u64 {
        let mut rng = Rng(seed * 0x9e37_79b9 + 0x1234_5678);
        let mut model = whole[seed as usize % 4].clone();
        let bytes = if seed % 2 == 0 {
            let mut b = bytes(&model);
            mutate_bytes(&mut b, &mut rng);
            b
        } else {
            mutate_model(&mut model, &mut rng);
            bytes(&model)
        };
        let limit = 2 * bytes.len() + (64 << 20);
        let start = std::time::Instant::now();
        let (outcome, used) = allocator::peak(|| {
            catch_unwind(AssertUnwindSafe(|| {
                let model = input::decode(&bytes)?;
                prepare(&model, &[1, 3, 16, 16], &Options::default()).map(|_| ())
            }))
        });
        let fail = |what: String| {
            let _ = std::panic::take_hook();
            panic!("mutation {seed}: {what}");
        };
        match outcome {
            Ok(Ok(())) => planned += 1,
            Ok(Err(e)) if e.to_string().len() < 10 => fail(format!("the message says nothing: {e}")),
            Ok(Err(_)) => refused += 1,
            Err(panic) => fail(format!("panicked: {:?} {:?}", panic.downcast_ref::<String>(), panic.downcast_ref::<&str>())),
        }
        if used > limit {
            fail(format!("took {used} bytes, the limit is {limit}"));
        }
        if start.elapsed().as_secs() > 20 {
            fail(format!("took {:?}", start.elapsed()));
        }
    }
    let _ = std::panic::take_hook();
    println!("1000 mutations: {planned} still planned, {refused} refused");
    assert!(planned > 150 && refused > 300, "{planned} planned, {refused} refused: the mutations test nothing");
}
