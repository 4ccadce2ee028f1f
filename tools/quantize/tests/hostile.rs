//! Broken models give typed errors that name the culprit; none panics.
mod common;
use common::*;
use edge_quantize::input::decode;
use edge_quantize::onnx::*;
use proptest::prelude::*;

fn rejects(change: impl FnOnce(&mut GraphProto), words: &[&str]) {
    let mut m = resnet(17);
    change(graph_mut(&mut m).unwrap());
    let text = decode(&bytes(&m)).unwrap_err().to_string();
    assert!(words.iter().all(|w| text.contains(w)), "{text}");
}

fn tensor<'a>(g: &'a mut GraphProto, name: &str) -> &'a mut TensorProto {
    g.initializer.iter_mut().find(|t| t.name == name).unwrap()
}

#[test]
fn broken_graphs_are_rejected() {
    rejects(|g| g.node[0].input[0] = "sum".into(), &["stem.y", "cycle"]);
    rejects(|g| g.node[0].input[0] = "nowhere".into(), &["stem.y", "nowhere"]);
    rejects(|g| g.node[2].output[0] = "stem".into(), &["stem", "already defined"]);
    rejects(|g| g.output[0].name = "lost".into(), &["lost"]);
    rejects(|g| g.output.clear(), &["no output"]);
    rejects(|g| g.node.clear(), &["no nodes"]);
    rejects(
        |g| {
            let copy = g.initializer[0].clone();
            g.initializer.push(copy);
        },
        &["stem.w", "two initializers"],
    );
}

#[test]
fn broken_tensors_are_rejected() {
    rejects(|g| tensor(g, "c1.w").raw_data[..4].copy_from_slice(&f32::NAN.to_le_bytes()), &["c1.w", "NaN"]);
    rejects(|g| tensor(g, "c1.w").raw_data[..4].copy_from_slice(&f32::INFINITY.to_le_bytes()), &["c1.w", "infinity"]);
    rejects(|g| tensor(g, "fc.w").dims[0] = 6, &["fc.w", "96"]);
    rejects(|g| tensor(g, "fc.w").dims = vec![i64::MAX, i64::MAX], &["fc.w", "dimensions"]);
    rejects(|g| tensor(g, "fc.w").dims[0] = -5, &["fc.w", "dimensions"]);
    rejects(|g| tensor(g, "fc.w").raw_data.truncate(7), &["fc.w", "within an element"]);
    rejects(|g| tensor(g, "fc.w").data_type = 99, &["fc.w", "element type"]);
    rejects(|g| tensor(g, "fc.w").data_location = Some(1), &["fc.w", "another file"]);
}

#[test]
fn files_that_are_no_models_are_rejected() {
    let whole = bytes(&resnet(17));
    for junk in [&b""[..], b"not a model at all", &whole[..whole.len() / 2]] {
        assert!(decode(junk).is_err());
    }
    let mut future = resnet(17);
    set_opset(&mut future, 99);
    assert!(decode(&bytes(&future)).unwrap_err().to_string().contains("operator set 99"));
}

#[test]
fn old_meanings_are_kept_and_the_written_operator_set_is_as_old_as_it_can_be() {
    // Before opset 13, Softmax took all dimensions from axis 1 on.
    let mut m = resnet(11);
    graph_mut(&mut m).unwrap().node.push(make_node("Softmax", &["block"], "p", vec![]));
    expose(graph_mut(&mut m).unwrap(), "p");
    let read = decode(&bytes(&m)).unwrap();
    assert!(graph(&read).unwrap().node.iter().any(|n| n.op_type == "Flatten" && n.output[0].starts_with("p.")));
    let mut m = resnet(12);
    graph_mut(&mut m).unwrap().node.push(make_node("Softmax", &["logits"], "p", vec![]));
    expose(graph_mut(&mut m).unwrap(), "p");
    let read = decode(&bytes(&m)).unwrap();
    assert_eq!(opset(&read), 13);
    assert_eq!(attr_int(graph(&read).unwrap().node.last().unwrap(), "axis", 0), -1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn flipped_bytes_never_panic(at in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)) {
        let mut b = bytes(&resnet(17));
        for (i, v) in at {
            let i = i.index(b.len());
            b[i] = v;
        }
        if let Ok(mut m) = decode(&b) {
            let _ = edge_quantize::fold::fold(&mut m);
        }
    }
}
