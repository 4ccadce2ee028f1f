//! Weight files: every offender is named.

use edge_resnet::arch::{Arch, Config, Options};
use edge_resnet::network::Network;
use edge_resnet::{Error, weights};
use std::path::Path;

fn basic() -> Network {
    let options = Options { width: Some(4), size: Some(33), num_classes: Some(5), ..Default::default() };
    Network::new(Config::new(Arch::Resnet18, &options).unwrap()).unwrap()
}

fn original() -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/basic.safetensors")).unwrap()
}

fn load(bytes: &[u8], name: &str) -> Result<Vec<Vec<f32>>, Error> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    weights::load(&path, &basic(), || ())
}

/// Replaces text of the header by text of the same length.
fn patched(from: &str, to: &str) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let mut bytes = original();
    let at = bytes.windows(from.len()).position(|w| w == from.as_bytes()).unwrap();
    bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
    bytes
}

#[test]
fn all_offenders_are_listed_at_once() {
    let mut bytes = patched("\"bn1.running_mean\"", "\"bn1.running_meat\"");
    for (from, to) in
        [("\"shape\": [5, 32]", "\"shape\": [32, 5]"), ("\"conv1.weight\": {\"dtype\": \"F16\"", "\"conv1.weight\": {\"dtype\": \"I16\"")]
    {
        let at = bytes.windows(from.len()).position(|w| w == from.as_bytes()).unwrap();
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
    }
    let text = load(&bytes, "w.safetensors").unwrap_err().to_string();
    for words in
        ["4 problems", "running_mean: missing", "running_meat: surplus", "fc.weight: its shape is [32, 5]", "conv1.weight: its type is I16"]
    {
        assert!(text.contains(words), "{words} is not in {text}");
    }
}

#[test]
fn nan_is_refused_by_name() {
    let mut bytes = original();
    let end = bytes.len(); // fc.bias comes last
    bytes[end - 2..].copy_from_slice(&half::f16::NAN.to_le_bytes());
    let text = load(&bytes, "w.safetensors").unwrap_err().to_string();
    assert!(text.contains("fc.bias") && text.contains("NaN"), "{text}");
}

#[test]
fn pickles_get_the_conversion() {
    for (bytes, name) in [(&b"PK\x03\x04zipzip"[..], "w.safetensors"), (b"garbage, in short", "w.pth"), (b"", "w.pt")] {
        let text = load(bytes, name).unwrap_err().to_string();
        assert!(text.contains("save_file") && text.contains("torch.load"), "{text}");
    }
}

#[test]
fn broken_headers_are_refused() {
    let whole = original();
    assert!(load(&whole[..whole.len() - 1], "w.safetensors").unwrap_err().to_string().contains("copy it again"));
    assert!(load(&u64::MAX.to_le_bytes(), "w.safetensors").is_err());
    assert!(load(b"", "w.safetensors").is_err());
    let mut long = whole.clone();
    long.push(0);
    assert!(load(&long, "w.safetensors").is_err());
}
