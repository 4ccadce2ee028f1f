//! BatchNorm folding: same function, and nothing folded that must not be.
mod common;
use common::*;
use edge_quantize::fold::fold;
use edge_quantize::onnx::*;

const SHAPE: [usize; 4] = [1, 3, 16, 16];

fn count(m: &ModelProto, op: &str) -> usize {
    graph(m).unwrap().node.iter().filter(|n| n.op_type == op).count()
}

fn assert_same(a: &ModelProto, b: &ModelProto) {
    let x = noise(7, 768);
    let (want, got) = (run(a, &SHAPE, &x), run(b, &SHAPE, &x));
    let scale = want.iter().fold(0f32, |m, v| m.max(v.abs()));
    assert!(scale > 0.01 && want.len() == got.len());
    for (w, g) in want.iter().zip(&got) {
        assert!((w - g).abs() <= 1e-5 * scale, "{want:?}\n{got:?}");
    }
}

#[test]
fn folding_keeps_the_function() {
    for opset in [9, 11, 13, 17, 18] {
        let before = resnet(opset);
        let mut after = before.clone();
        let report = fold(&mut after).unwrap();
        assert_eq!((report.folded, report.kept.len()), (4, 0));
        assert_eq!(count(&after, "BatchNormalization"), 0);
        assert_same(&before, &after);
    }
}

#[test]
fn parameters_through_constant_and_identity_nodes_fold() {
    let before = resnet(17);
    let mut odd = before.clone();
    let g = graph_mut(&mut odd).unwrap();
    let at = g.initializer.iter().position(|t| t.name == "stem.g").unwrap();
    let t = g.initializer.remove(at);
    let a = AttributeProto { name: "value".into(), r#type: 4, t: Some(t), ..Default::default() };
    g.node.insert(0, make_node("Constant", &[], "stem.g0", vec![a]));
    g.node.insert(1, make_node("Identity", &["stem.g0"], "stem.g", vec![]));
    validate(&odd).unwrap();
    let mut odd = edge_quantize::input::decode(&bytes(&odd)).unwrap();
    assert_eq!(fold(&mut odd).unwrap().folded, 4);
    assert_eq!(count(&odd, "Identity") + count(&odd, "Constant"), 0);
    assert_same(&before, &odd);
}

#[test]
fn weights_shared_by_two_convolutions_keep_both_values() {
    let mut before = resnet(17);
    let g = graph_mut(&mut before).unwrap();
    // Give c2's weights a second reader by making another 16→16 conv after the block.
    g.node.iter_mut().find(|n| n.output[0] == "mean").unwrap().input[0] = "again".into();
    let at = g.node.iter().position(|n| n.output[0] == "mean").unwrap();
    g.node.insert(at, make_node("Conv", &["block", "c2.w"], "again", vec![ints("pads", &[1; 4])]));
    validate(&before).unwrap();
    let mut after = before.clone();
    assert_eq!(fold(&mut after).unwrap().folded, 4);
    assert_same(&before, &after);
}

#[test]
fn what_cannot_fold_is_kept_and_named() {
    let keeps = |change: fn(&mut GraphProto), reason: &str| {
        let mut m = resnet(17);
        change(graph_mut(&mut m).unwrap());
        let report = fold(&mut m).unwrap();
        assert_eq!(report.kept.len(), 1, "{report:?}");
        assert!(report.kept[0].reason.contains(reason), "{report:?}");
        assert_eq!(count(&m, "BatchNormalization"), 1);
    };
    keeps(|g| g.node[1].attribute.push(int_attribute("training_mode", 1)), "training");
    keeps(|g| g.output.push(value("stem.y", &[-1, 8, 16, 16])), "other readers");
    keeps(
        |g| {
            for (p, base) in ["g", "be", "m", "v"].iter().zip([1.0, 0.0, 0.0, 1.0]) {
                g.initializer.push(f32_tensor(&format!("in.{p}"), &[3], &[base; 3]));
            }
            g.node.insert(0, make_node("BatchNormalization", &["x", "in.g", "in.be", "in.m", "in.v"], "in", vec![]));
            g.node[1].input[0] = "in".into();
        },
        "graph input",
    );
}

#[test]
fn an_impossible_variance_is_an_error() {
    let mut m = resnet(17);
    let g = graph_mut(&mut m).unwrap();
    let at = g.initializer.iter().position(|t| t.name == "c1.v").unwrap();
    g.initializer[at] = f32_tensor("c1.v", &[16], &[-1.0; 16]);
    let text = fold(&mut m).unwrap_err().to_string();
    assert!(text.contains("c1") && text.contains("variance"), "{text}");
}
