//! BatchNorm statistics: measured behind already calibrated layers, refused where there is no BatchNorm.

use edge_infer::import::onnx::{self, ModelProto, f32_data};
use edge_resnet::arch::{Arch, Config, Options};
use edge_resnet::network::Network;
use edge_resnet::{calibrate::calibrate, export, init};

fn fresh(arch: Arch) -> ModelProto {
    let options = Options { width: Some(4), size: Some(32), num_classes: Some(5), ..Default::default() };
    let n = Network::new(Config::new(arch, &options).unwrap()).unwrap();
    let values = init::initialise(&n, 1, false, || ());
    export::to_onnx(&n, values, 17, None).unwrap()
}

fn pictures() -> Vec<Vec<f32>> {
    (0..3).map(|p| (0..3 * 32 * 32).map(|i| ((i * 7 + p * 13) % 101) as f32 / 50.0 - 1.0).collect()).collect()
}

fn statistics(m: &ModelProto) -> Vec<Vec<f32>> {
    let running = onnx::graph(m).unwrap().initializer.iter().filter(|t| t.name.contains("running"));
    running.map(|t| f32_data(t).unwrap()).collect()
}

/// Were a layer measured before the ones ahead of it were set, a second calibration would change it.
#[test]
fn calibration_is_a_fixed_point() {
    let mut m = fresh(Arch::Resnet50);
    let start = statistics(&m);
    let shape = [1, 3, 32, 32];
    assert_eq!(calibrate(&mut m, &shape, pictures(), || ()).unwrap().len(), 53);
    let once = statistics(&m);
    assert!(start.iter().zip(&once).all(|(a, b)| a != b), "every statistic is set");
    calibrate(&mut m, &shape, pictures(), || ()).unwrap();
    for (a, b) in once.iter().flatten().zip(statistics(&m).iter().flatten()) {
        assert!((a - b).abs() <= 1e-5 * a.abs().max(1e-3), "{a} {b}");
    }
}

#[test]
fn nothing_to_calibrate_is_said() {
    let error = calibrate(&mut fresh(Arch::Plain18), &[1, 3, 32, 32], pictures(), || ()).unwrap_err();
    assert!(error.to_string().contains("no BatchNormalization"), "{error}");
}
