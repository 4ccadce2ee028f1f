//! Cross-layer equalization changes weights, and not one bit of the float network's results.
mod common;
use common::*;
use edge_quantize::equalize::equalize;
use edge_quantize::input::decode;
use edge_quantize::onnx::*;

#[test]
fn equalization_is_exact_in_float() {
    let mut before = decode(&bytes(&resnet(17))).unwrap();
    edge_quantize::fold::fold(&mut before).unwrap();
    // Channels of very different size, as training leaves them.
    let g = graph_mut(&mut before).unwrap();
    let t = g.initializer.iter_mut().find(|t| t.name == "c1.w").unwrap();
    let dims = tensor_dims(t).unwrap();
    let row = dims[1..].iter().product::<usize>();
    let spread: Vec<f32> = f32_data(t).unwrap().iter().enumerate().map(|(i, w)| w * 1.7f32.powi((i / row) as i32 - 8)).collect();
    *t = f32_tensor("c1.w", &dims, &spread);
    let mut after = before.clone();
    assert_eq!(equalize(graph_mut(&mut after).unwrap()).unwrap(), 1); // c1 → ReLU → c2; all else is shared
    let changed = |m: &ModelProto| f32_data(graph(m).unwrap().initializer.iter().find(|t| t.name == "c2.w").unwrap()).unwrap();
    assert_ne!(changed(&before), changed(&after));
    for seed in 0..5 {
        let x = noise(seed, 768);
        assert_eq!(run(&before, &[1, 3, 16, 16], &x), run(&after, &[1, 3, 16, 16], &x));
    }
    // What it is for: channel ranges of the two layers come together.
    let ratio = |m: &ModelProto| {
        let get = |n: &str| f32_data(graph(m).unwrap().initializer.iter().find(|t| t.name == n).unwrap()).unwrap();
        let (w1, w2) = (get("c1.w"), get("c2.w"));
        let max = |v: &mut dyn Iterator<Item = f32>| v.fold(0f32, |m, w| m.max(w.abs()));
        let r1 = |i: usize| max(&mut w1[i * row..(i + 1) * row].iter().copied());
        let r2 = |i: usize| max(&mut (0..16).flat_map(|o| w2[(o * 16 + i) * 9..(o * 16 + i + 1) * 9].to_vec()));
        (0..16).map(|i| (r1(i) / r2(i)).log2().abs()).fold(0f32, f32::max)
    };
    assert!(ratio(&before) > 4.0 && ratio(&after) <= 1.01, "{} {}", ratio(&before), ratio(&after));
}

#[test]
fn grouped_convolutions_equalize_exactly() {
    let mut n = Net::default();
    n.graph.name = "g".into();
    n.graph.input.push(value("x", &[1, 3, 16, 16]));
    n.graph.output.push(value("y", &[1, 6, 16, 16]));
    n.random("a.w", &[8, 3, 1, 1], 3.0, 0.5);
    n.random("a.b", &[8], 0.2, 0.0);
    n.random("b.w", &[4, 4, 3, 3], 0.01, 0.002);
    n.random("c.w", &[6, 4, 1, 1], 0.3, 0.0);
    n.op("Conv", &["x", "a.w", "a.b"], "a", vec![]);
    n.op("Relu", &["a"], "ar", vec![]);
    n.op("Conv", &["ar", "b.w"], "b", vec![int_attribute("group", 2), ints("pads", &[1; 4])]);
    n.op("Conv", &["b", "c.w"], "y", vec![]);
    let before = decode(&bytes(&model(17, n.graph))).unwrap();
    let mut after = before.clone();
    assert_eq!(equalize(graph_mut(&mut after).unwrap()).unwrap(), 2);
    let x = noise(1, 768);
    assert_eq!(run(&before, &[1, 3, 16, 16], &x), run(&after, &[1, 3, 16, 16], &x));
    assert_ne!(bytes(&before), bytes(&after));
}
