//! Cross-layer equalization changes weights, and not one bit of the float network's results.
mod common;
use common::*;
use edge_quantize::data::Inputs;
use edge_quantize::float::Runner;
use edge_quantize::input::decode;
use edge_quantize::observe::{Feed, channels};
use edge_quantize::onnx::*;
use edge_quantize::pipeline::{Options, Prepared, balance, prepare, split};

const SHAPE: [usize; 4] = [1, 3, 16, 16];

/// The model before and after, and the largest of its channels' peaks over the median one, before and after, of `tensors`.
fn equalized(model: &ModelProto, tensors: &[&str]) -> (Prepared, Prepared, Vec<[f64; 2]>) {
    let dir = tempfile::tempdir().unwrap();
    write_npy(&dir.path().join("x.npy"), 20);
    let inputs = Inputs::collect(&[dir.path().join("x.npy")], &SHAPE, None).unwrap();
    let make = || prepare(model, &SHAPE, &Options::default()).unwrap();
    let (before, mut after) = (make(), make());
    let (used, _) = split(inputs.len());
    balance(&mut after, &SHAPE, &inputs, &used, &|_, _| Box::new(|| {})).unwrap();
    let (load, tick) = (|i: usize| inputs.load(i), || ());
    let feed = Feed { images: &used, load: &load, tick: &tick };
    let names: Vec<String> = tensors.iter().map(|t| t.to_string()).collect();
    let spread = |p: &Prepared| -> Vec<f64> {
        let runner = Runner::new(&p.model, &SHAPE, &names).unwrap();
        let all = channels(&runner, graph(&p.model).unwrap().output.len(), names.len(), &feed).unwrap();
        let ratio = |channels: &Vec<_>| {
            let mut peaks: Vec<f64> = channels.iter().map(|c: &edge_quantize::observe::Channel| c.peak).filter(|p| *p > 0.0).collect();
            peaks.sort_by(f64::total_cmp);
            peaks[peaks.len() - 1] / peaks[peaks.len() / 2]
        };
        all.iter().map(ratio).collect()
    };
    let ratios = spread(&before).into_iter().zip(spread(&after)).map(|(b, a)| [b, a]).collect();
    for seed in 0..5 {
        let x = noise(seed, 768);
        assert_eq!(run(&before.model, &SHAPE, &x), run(&after.model, &SHAPE, &x));
    }
    (before, after, ratios)
}

/// Multiplies output channel i of some weights by 1.25^(i − middle): channels of very different size, as training leaves them.
fn skew(model: &mut ModelProto, names: &[&str]) {
    for name in names {
        let t = graph_mut(model).unwrap().initializer.iter_mut().find(|t| t.name == *name).unwrap();
        let (dims, values) = (tensor_dims(t).unwrap(), f32_data(t).unwrap());
        let row = values.len() / dims[0];
        let skewed: Vec<f32> = values.iter().enumerate().map(|(i, v)| v * 1.25f32.powi((i / row) as i32 - dims[0] as i32 / 2)).collect();
        *t = f32_tensor(name, &dims, &skewed);
    }
}

#[test]
fn channels_come_together_through_pools_sums_and_heads() {
    let mut model = decode(&bytes(&resnet(17))).unwrap();
    skew(&mut model, &["stem.g", "stem.be", "c1.g", "c1.be", "c2.g", "c2.be", "down.g", "down.be"]);
    let (before, after, ratios) = equalized(&model, &["stem.relu", "c1.relu", "block"]);
    // The stem with its pool and two readers; within the block; both branches, their sum, the mean and the head.
    assert_eq!(after.equalized, 3);
    for [was, is] in ratios {
        assert!(is < 1.8 && was > 1.3 * is, "{was} became {is}");
    }
    let weights = |p: &Prepared| f32_data(graph(&p.model).unwrap().initializer.iter().find(|t| t.name == "down.w").unwrap()).unwrap();
    assert_ne!(weights(&before), weights(&after));
}

#[test]
fn grouped_convolutions_equalize_and_fixed_tensors_do_not() {
    let mut n = Net::default();
    n.graph.name = "g".into();
    n.graph.input.push(value("x", &[1, 3, 16, 16]));
    n.graph.output.push(value("y", &[1, 6, 16, 16]));
    n.random("a.w", &[8, 3, 1, 1], 3.0, 0.5);
    n.random("a.b", &[8], 0.2, 0.0);
    n.random("b.w", &[4, 4, 3, 3], 0.01, 0.002);
    n.random("c.w", &[6, 4, 1, 1], 0.3, 0.0);
    n.graph.initializer.push(f32_tensor("six", &[], &[6.0]));
    n.graph.initializer.push(f32_tensor("zero", &[], &[0.0]));
    n.op("Conv", &["x", "a.w", "a.b"], "a", vec![]);
    n.op("Relu", &["a"], "ar", vec![]);
    n.op("Conv", &["ar", "b.w"], "b", vec![int_attribute("group", 2), ints("pads", &[1; 4])]);
    // A bound is not scaled: this class stays.
    n.op("Clip", &["b", "zero", "six"], "bc", vec![]);
    n.op("Conv", &["bc", "c.w"], "y", vec![]);
    let mut model = decode(&bytes(&model(17, n.graph))).unwrap();
    skew(&mut model, &["a.w", "a.b", "b.w"]);
    let (_, after, ratios) = equalized(&model, &["ar", "bc"]);
    assert_eq!(after.equalized, 1);
    assert!(ratios[0][1] < 2.0 && ratios[0][0] > 2.0 && ratios[1][0] == ratios[1][1], "{ratios:?}");
}
