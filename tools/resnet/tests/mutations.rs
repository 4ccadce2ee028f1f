//! 1,000 broken weight files: none panics, none that differs in its header is taken, and none takes more than twice its size plus
//! 64 MB before it is refused.

#[path = "../../../tests/common/allocator.rs"]
mod allocator;

use edge_resnet::arch::{Arch, Config, Options};
use edge_resnet::network::Network;
use edge_resnet::weights;
use rand_core::Rng as _;
use rand_xorshift::XorShiftRng;
use serde_json::{Map, Value, json};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

struct Rng(XorShiftRng);

impl Rng {
    fn below(&mut self, n: usize) -> usize {
        (self.0.next_u64() % n.max(1) as u64) as usize
    }
}

fn header_end(bytes: &[u8]) -> usize {
    bytes.first_chunk::<8>().map_or(0, |n| u64::from_le_bytes(*n).saturating_add(8).min(bytes.len() as u64) as usize)
}

/// Flips bits, overwrites, removes, repeats or truncates.
fn mutate_bytes(bytes: &mut Vec<u8>, rng: &mut Rng) {
    let within = if rng.below(2) == 0 { header_end(bytes) } else { bytes.len() };
    for _ in 0..1 + rng.below(3) {
        let at = rng.below(within.min(bytes.len()));
        let end = bytes.len().min(at + 1 + rng.below(16));
        match rng.below(8) {
            0 => bytes.truncate(at),
            1 => drop(bytes.drain(at..end)),
            2 => bytes.extend_from_within(at..end),
            3 => bytes[at..end].fill([0, b'9', b'-', 0xff][rng.below(4)]),
            // Its length.
            4 if bytes.len() >= 8 => bytes[rng.below(8)] ^= 1 << rng.below(8),
            _ => bytes[at] ^= 1 << rng.below(8),
        }
        if bytes.is_empty() {
            return;
        }
    }
}

/// Changes what a valid header says: huge and negative sizes, offsets that overlap, dangle or run backwards, types, names.
fn mutate_header(bytes: &mut Vec<u8>, rng: &mut Rng) {
    let numbers =
        [json!(0), json!(1), json!(-1), json!(255), json!(1u64 << 31), json!(1u64 << 40), json!(u64::MAX), json!(1e300), json!("7")];
    let end = header_end(bytes);
    let mut header: Map<String, Value> = serde_json::from_slice(&bytes[8..end]).unwrap();
    let names: Vec<String> = header.keys().filter(|k| *k != "__metadata__").cloned().collect();
    for _ in 0..1 + rng.below(2) {
        let (name, other) = (&names[rng.below(names.len())], &names[rng.below(names.len())]);
        let number = numbers[rng.below(numbers.len())].clone();
        let stolen = header.get(other).cloned().unwrap_or(Value::Null);
        let Some(tensor) = header.get_mut(name).and_then(Value::as_object_mut) else { continue };
        match rng.below(7) {
            0 => tensor["data_offsets"][rng.below(2)] = number,
            1 => {
                let shape = tensor["shape"].as_array_mut().unwrap();
                let at = rng.below(shape.len());
                if let Some(d) = shape.get_mut(at) {
                    *d = number;
                }
            }
            2 => tensor["shape"].as_array_mut().unwrap().extend(vec![number; 1 + rng.below(40)]),
            3 => tensor["dtype"] = json!(["F64", "I64", "U8", "BOOL", "F16", "", "float"][rng.below(7)]),
            4 => tensor["data_offsets"] = stolen["data_offsets"].clone(),
            5 => drop(header.remove(name)),
            _ => drop(header.insert(format!("{name}.{}", rng.below(3)), stolen)),
        }
    }
    let text = serde_json::to_vec(&header).unwrap();
    let data = bytes.split_off(end);
    *bytes = [&(text.len() as u64).to_le_bytes()[..], &text, &data].concat();
}

#[test]
fn broken_weights_neither_panic_nor_take_much_memory() {
    let options = Options { width: Some(4), size: Some(33), num_classes: Some(5), ..Default::default() };
    let network = Network::new(Config::new(Arch::Resnet18, &options).unwrap()).unwrap();
    let whole = std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/basic.safetensors")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.safetensors");
    let (mut taken, mut refused) = (0, 0);
    for seed in 0..1000u64 {
        let mut rng = Rng(rand_core::SeedableRng::seed_from_u64(seed));
        let mut bytes = whole.clone();
        if seed % 2 == 0 {
            mutate_bytes(&mut bytes, &mut rng)
        } else {
            mutate_header(&mut bytes, &mut rng)
        }
        std::fs::write(&path, &bytes).unwrap();
        let (outcome, used) = allocator::peak(|| catch_unwind(AssertUnwindSafe(|| weights::load(&path, &network, || ()))));
        match outcome {
            Ok(Ok(_)) => {
                taken += 1;
                // The header's order of tensors and its spaces mean nothing; its lengths, names and types do.
                assert!(bytes.len() == whole.len() || seed % 2 == 1, "mutation {seed}: another length, and it was taken");
            }
            Ok(Err(e)) => {
                refused += 1;
                assert!(e.to_string().contains("w.safetensors"), "mutation {seed}: the message does not name the file: {e}");
            }
            Err(_) => panic!("mutation {seed} panicked"),
        }
        let limit = 2 * bytes.len() + (64 << 20);
        assert!(used <= limit, "mutation {seed} took {used} bytes, the limit is {limit}");
    }
    println!("1000 mutations: {taken} still taken, {refused} refused");
    assert!(taken > 40 && refused > 400, "{taken} taken, {refused} refused: the mutations test nothing");
}
