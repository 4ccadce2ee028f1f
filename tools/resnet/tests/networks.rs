//! Architectures against torchvision: counts without weights, outputs with checked-in thin variants.

use clap::ValueEnum;
use edge_infer::model::{LoadOptions, Model};
use edge_resnet::arch::{Arch, Config, Options};
use edge_resnet::network::Network;
use edge_resnet::{Error, export, init, weights};
use prost::Message;
use safetensors::SafeTensors;
use std::path::{Path, PathBuf};

fn network(arch: Arch, options: Options) -> Result<Network, Error> {
    Network::new(Config::new(arch, &options)?)
}

fn thin(width: usize, size: usize) -> Options {
    Options { width: Some(width), size: Some(size), num_classes: Some(5), ..Default::default() }
}

/// (name, parameters, GMAC to three decimals), as torchvision publishes them (`Weights.meta`).
const PUBLISHED: [(&str, u64, &str); 10] = [
    ("resnet18", 11_689_512, "1.814"),
    ("resnet34", 21_797_672, "3.664"),
    ("resnet50", 25_557_032, "4.089"),
    ("resnet101", 44_549_160, "7.801"),
    ("resnet152", 60_192_808, "11.514"),
    ("resnext50_32x4d", 25_028_904, "4.230"),
    ("resnext101_32x8d", 88_791_336, "16.414"),
    ("resnext101_64x4d", 83_455_272, "15.460"),
    ("wide_resnet50_2", 68_883_240, "11.398"),
    ("wide_resnet101_2", 126_886_696, "22.753"),
];

#[test]
fn counts_are_torchvisions() {
    for (name, parameters, gmacs) in PUBLISHED {
        let n = network(Arch::from_str(name, false).unwrap(), Options::default()).unwrap();
        assert_eq!(n.parameter_count(), parameters, "{name}");
        assert_eq!(format!("{:.3}", n.macs() as f64 / 1e9), gmacs, "{name}");
    }
    assert_eq!(Arch::value_variants().iter().filter(|a| !a.is_plain()).count(), PUBLISHED.len());
}

/// The plain form is a ResNet with each BatchNorm's 2·C parameters replaced by C biases.
#[test]
fn plain_counts_follow_from_the_others() {
    for (plain, kin) in [("plain18", "resnet18"), ("plain34", "resnet34"), ("plain50", "resnet50"), ("plain152", "resnet152")] {
        let of = |name| network(Arch::from_str(name, false).unwrap(), Options::default()).unwrap();
        let (plain, kin) = (of(plain), of(kin));
        let biases: u64 = plain.parameters().filter(|p| p.name.ends_with("bias") && p.name != "fc.bias").map(|p| p.len() as u64).sum();
        assert_eq!(plain.parameter_count() + biases, kin.parameter_count());
        assert!(plain.layers.iter().any(|l| l.name.ends_with("connect")));
    }
}

fn run(n: &Network, values: Vec<Vec<f32>>, input: &[f32], opset: i64) -> Vec<f32> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.onnx");
    std::fs::write(&path, export::to_onnx(n, values, opset, None).unwrap().encode_to_vec()).unwrap();
    Model::load(&path, &LoadOptions::default()).unwrap().run(input).unwrap().to_vec()
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

#[test]
fn outputs_are_torchs() {
    let grouped = Options { groups: Some(2), width_per_group: Some(32), ..thin(2, 33) };
    let dilated = Options { replace_stride_with_dilation: Some(vec![false, true, true]), ..thin(2, 33) };
    let cases = [
        ("basic", Arch::Resnet18, thin(4, 33)),
        ("bottleneck", Arch::Resnet50, thin(2, 33)),
        ("groups", Arch::Resnet50, grouped),
        ("dilation", Arch::Resnet50, dilated),
    ];
    for (name, arch, options) in cases {
        let n = network(arch, options).unwrap();
        let bytes = std::fs::read(fixture(&format!("{name}.io.safetensors"))).unwrap();
        let io = SafeTensors::deserialize(&bytes).unwrap();
        let f32s =
            |t: &str| -> Vec<f32> { io.tensor(t).unwrap().data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect() };
        let (input, want) = (f32s("input"), f32s("output"));
        let largest = want.iter().fold(0f32, |m, v| m.max(v.abs()));
        for opset in [11, 17, 21] {
            let values = weights::load(&fixture(&format!("{name}.safetensors")), &n, || ()).unwrap();
            let got = run(&n, values, &input, opset);
            assert_eq!(got.len(), want.len());
            for (g, w) in got.iter().zip(&want) {
                assert!((g - w).abs() <= 1e-4 * largest, "{name}, opset {opset}: {got:?} {want:?}");
            }
        }
    }
}

#[test]
fn every_architecture_runs() {
    for &arch in Arch::value_variants() {
        let n = network(arch, thin(16, 32)).unwrap();
        let values = init::initialise(&n, 1, false, || ());
        assert!(run(&n, values, &vec![0.5; 3 * 32 * 32], 17).iter().all(|v| v.is_finite()), "{arch:?}");
    }
}

#[test]
fn seeds_reproduce_and_differ() {
    let n = network(Arch::Resnet18, thin(8, 32)).unwrap();
    let made = |seed, zero| init::initialise(&n, seed, zero, || ());
    assert_eq!(made(3, false), made(3, false));
    assert_ne!(made(3, false)[0], made(4, false)[0]);
    let zeros = made(3, true).into_iter().filter(|v| v.iter().all(|&x| x == 0.0)).count();
    let before = made(3, false).into_iter().filter(|v| v.iter().all(|&x| x == 0.0)).count();
    assert_eq!(zeros, before + 8, "one γ in each of eight blocks");
    let conv = &made(3, false)[n.parameters().position(|p| p.name == "layer4.1.conv2.weight").unwrap()];
    let sigma = (conv.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / conv.len() as f64).sqrt();
    assert!((sigma / (2.0 / (64.0 * 9.0f64)).sqrt() - 1.0).abs() < 0.02, "{sigma}");
}

fn refused(arch: Arch, options: Options, words: &str) {
    match network(arch, options) {
        Err(Error::Usage(text)) => assert!(text.contains(words), "{text}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn torchvisions_conditions() {
    let dilate = |v: &[bool]| Options { replace_stride_with_dilation: Some(v.to_vec()), ..Default::default() };
    refused(Arch::Resnet50, dilate(&[true, false]), "3 elements");
    refused(Arch::Resnet18, dilate(&[false, false, true]), "does not support dilation");
    refused(Arch::Resnet34, Options { groups: Some(2), ..Default::default() }, "groups 1");
    refused(Arch::Resnet18, Options { width_per_group: Some(128), ..Default::default() }, "width-per-group 64");
    refused(Arch::Resnext50_32x4d, Options { groups: Some(16), ..Default::default() }, "32");
    refused(Arch::Plain50, dilate(&[false, false, true]), "no groups");
    refused(Arch::Resnext50_32x4d, Options { width: Some(8), ..Default::default() }, "at least 16");
    refused(Arch::WideResnet101_2, Options { width: Some(4096), ..Default::default() }, "ONNX file holds");
    assert!(network(Arch::Resnet50, dilate(&[true, true, true])).is_ok());
    assert!(network(Arch::Resnet18, dilate(&[false; 3])).is_ok());
    assert!(network(Arch::Resnext50_32x4d, Options { groups: Some(32), ..Default::default() }).is_ok());
}
