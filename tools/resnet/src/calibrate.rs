//! BatchNorm statistics from pictures: a fresh network's ones say nothing about its activations.
//!
//! The graph is run through tract in segments, each from what is known to the next BatchNorm's input, for all pictures
//! at once; that BatchNorm's mean and variance are set before anything behind it runs, so that every layer sees
//! normalised inputs. Each node runs once per picture; tensors live only until their last reader has run.

use crate::export::value_info;
use crate::{Error, Result};
use edge_infer::import::onnx::{self, GraphProto, ModelProto, NodeProto, f32_data, f32_tensor, inputs, outputs};
use rayon::prelude::*;
use serde::Serialize;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use tract_onnx::pb::ValueInfoProto;
use tract_onnx::prelude::*;

/// What one BatchNorm got.
#[derive(Debug, Serialize)]
pub struct Measured {
    /// Node.
    pub node: String,
    /// Channels.
    pub channels: usize,
    /// Smallest and largest mean of a channel.
    pub mean: (f32, f32),
    /// Smallest and largest variance of a channel.
    pub variance: (f32, f32),
}

/// One tensor's values for every picture.
type Column = Vec<Arc<Tensor>>;

/// Number of BatchNorm nodes.
pub fn count(model: &ModelProto) -> Result<usize> {
    Ok(onnx::graph(model)?.node.iter().filter(|n| onnx::is_op(n, "BatchNormalization")).count())
}

/// Sets the statistics of every BatchNorm of a validated model from `pictures` (each the values of `shape`, 1×C×H×W).
/// `tick` is called after each BatchNorm.
pub fn calibrate(model: &mut ModelProto, shape: &[usize], pictures: Vec<Vec<f32>>, mut tick: impl FnMut()) -> Result<Vec<Measured>> {
    if count(model)? == 0 {
        return Err(Error::Usage("the model holds no BatchNormalization; there is nothing to calibrate".into()));
    }
    let opsets = model.opset_import.clone();
    let ir_version = model.ir_version;
    let graph = onnx::graph_mut(model)?;
    if !onnx::captured_names(graph).is_empty() {
        return Err(edge_infer::Error::UnsupportedModel("BatchNorm cannot be calibrated around If, Loop or Scan".into()).into());
    }
    let (input, _) = onnx::data_input(graph)?;
    let column = pictures.iter().map(|p| Tensor::from_shape(shape, p).map(Arc::new)).collect::<TractResult<Column>>();
    let mut known: HashMap<String, Column> = HashMap::from([(input, column.map_err(tract_error)?)]);
    drop(pictures);
    let mut done: HashSet<usize> = HashSet::new();
    let mut measured = Vec::new();
    for at in 0..graph.node.len() {
        if !onnx::is_op(&graph.node[at], "BatchNormalization") {
            continue;
        }
        let source = graph.node[at].input.first().cloned().unwrap_or_default();
        let segment = ancestors(graph, &source, &known);
        done.extend(&segment);
        if !segment.is_empty() {
            let base = ModelProto { ir_version, opset_import: opsets.clone(), ..Default::default() };
            run(graph, base, &segment, &done, &mut known)?;
        }
        let column = known.get(&source).ok_or_else(|| onnx::node_error(&graph.node[at], "its input does not depend on the picture"))?;
        let (mean, variance) = statistics(&graph.node[at], column)?;
        measured.push(set(graph, at, &mean, &variance)?);
        let waiting: HashSet<&str> =
            graph.node.iter().enumerate().filter(|(i, _)| !done.contains(i)).flat_map(|(_, n)| inputs(n)).collect();
        known.retain(|name, _| waiting.contains(name.as_str()));
        tick();
    }
    Ok(measured)
}

fn tract_error(e: TractError) -> Error {
    edge_infer::Error::Tract(format!("{e:#}")).into()
}

/// tract panics on some broken graphs: a user gets an error instead.
fn guarded<T>(f: impl FnOnce() -> TractResult<T>) -> Result<T> {
    match catch_unwind(AssertUnwindSafe(f)) {
        Ok(result) => result.map_err(tract_error),
        Err(_) => Err(edge_infer::Error::Tract("it failed inside while it ran a part of the model".into()).into()),
    }
}

/// Positions of the nodes that make `name` from what is known.
fn ancestors(graph: &GraphProto, name: &str, known: &HashMap<String, Column>) -> BTreeSet<usize> {
    let producer: HashMap<&str, usize> = graph.node.iter().enumerate().flat_map(|(i, n)| outputs(n).map(move |o| (o, i))).collect();
    let mut found = BTreeSet::new();
    let mut todo = vec![name];
    while let Some(name) = todo.pop() {
        if let Some(&i) = producer.get(name).filter(|_| !known.contains_key(name))
            && found.insert(i)
        {
            todo.extend(inputs(&graph.node[i]));
        }
    }
    found
}

/// Runs some nodes for all pictures; adds what later nodes read to `known`.
fn run(
    graph: &GraphProto,
    base: ModelProto,
    segment: &BTreeSet<usize>,
    done: &HashSet<usize>,
    known: &mut HashMap<String, Column>,
) -> Result<()> {
    let nodes: Vec<NodeProto> = segment.iter().map(|&i| graph.node[i].clone()).collect();
    let later: HashSet<&str> = graph.node.iter().enumerate().filter(|(i, _)| !done.contains(i)).flat_map(|(_, n)| inputs(n)).collect();
    let made: Vec<String> = nodes.iter().flat_map(outputs).filter(|o| later.contains(o)).map(String::from).collect();
    let read: HashSet<&str> = nodes.iter().flat_map(inputs).collect();
    let sources: Vec<(&String, &Column)> = known.iter().filter(|(name, _)| read.contains(name.as_str())).collect();
    let declare = |name: &str| ValueInfoProto { name: name.into(), ..Default::default() };
    let part = GraphProto {
        name: "segment".into(),
        initializer: graph.initializer.iter().filter(|t| read.contains(t.name.as_str())).cloned().collect(),
        input: sources.iter().map(|(name, c)| value_info(name, Some(1), c[0].shape().get(1..).unwrap_or_default())).collect(),
        output: made.iter().map(|name| declare(name)).collect(),
        node: nodes,
        ..Default::default()
    };
    let count = sources.first().map_or(0, |(_, c)| c.len());
    let proto = ModelProto { graph: Some(part), ..base };
    let plan = guarded(|| {
        let model = tract_onnx::onnx().model_for_proto_model(&proto)?;
        model.into_optimized()?.into_runnable()
    })?;
    let one = |i: usize| -> Result<Vec<Arc<Tensor>>> {
        guarded(|| {
            let inputs: TVec<TValue> = sources.iter().map(|(_, c)| c[i].clone().into_tvalue()).collect();
            Ok(plan.run(inputs)?.into_iter().map(|t| Arc::new(t.into_tensor())).collect())
        })
    };
    let rows: Vec<Vec<Arc<Tensor>>> = (0..count).into_par_iter().map(one).collect::<Result<_>>()?;
    for (o, name) in made.into_iter().enumerate() {
        known.insert(name, rows.iter().map(|r| r[o].clone()).collect());
    }
    Ok(())
}

/// Mean and unbiased variance per channel of N×C×… values over all pictures, as PyTorch keeps them.
fn statistics(node: &NodeProto, column: &Column) -> Result<(Vec<f32>, Vec<f32>)> {
    let one = |t: &Arc<Tensor>| -> Result<Vec<(f64, f64)>> {
        let view = t.to_plain_array_view::<f32>().map_err(tract_error)?;
        let view = view.as_standard_layout();
        let channels = t.shape().get(1).copied().unwrap_or(0);
        let values = view.as_slice().unwrap_or_default();
        let per_channel = values.len() / channels.max(1);
        let sums = |c: &[f32]| c.iter().fold((0.0, 0.0), |(s, q), &v| (s + f64::from(v), q + f64::from(v).powi(2)));
        Ok(values.chunks(per_channel.max(1)).map(sums).collect())
    };
    let parts: Vec<Vec<(f64, f64)>> = column.par_iter().map(one).collect::<Result<_>>()?;
    let channels = parts.first().map_or(0, Vec::len);
    let n = column.iter().map(|t| t.len()).sum::<usize>() as f64 / channels.max(1) as f64;
    let (mut mean, mut variance) = (Vec::with_capacity(channels), Vec::with_capacity(channels));
    for c in 0..channels {
        let (s, q) = parts.iter().fold((0.0, 0.0), |(s, q), p| (s + p[c].0, q + p[c].1));
        mean.push((s / n) as f32);
        variance.push(((q - s * s / n).max(0.0) / (n - 1.0).max(1.0)) as f32);
    }
    if mean.iter().chain(&variance).all(|v| v.is_finite()) {
        Ok((mean, variance))
    } else {
        Err(onnx::node_error(node, "its input becomes NaN or infinite on these pictures").into())
    }
}

/// Replaces the statistics of the BatchNorm at this position.
fn set(graph: &mut GraphProto, at: usize, mean: &[f32], variance: &[f32]) -> Result<Measured> {
    let node = &graph.node[at];
    let names: Vec<String> = node.input.iter().skip(3).cloned().collect();
    let [mean_name, variance_name] = &names[..] else {
        return Err(onnx::node_error(node, "five inputs are needed").into());
    };
    let shared = |name: &str| graph.node.iter().flat_map(inputs).filter(|n| *n == name).count() != 1;
    for name in [mean_name, variance_name] {
        let Some(t) = graph.initializer.iter().find(|t| t.name == *name) else {
            return Err(onnx::node_error(node, format!("its statistics `{name}` are computed; they must be stored")).into());
        };
        if f32_data(t)?.len() != mean.len() || shared(name) {
            return Err(onnx::node_error(node, format!("its statistics `{name}` are shared, or not one per channel")).into());
        }
    }
    let range = |v: &[f32]| v.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(lo, hi), &x| (lo.min(x), hi.max(x)));
    let measured = Measured { node: onnx::node_name(node), channels: mean.len(), mean: range(mean), variance: range(variance) };
    for (name, values) in [(mean_name, mean), (variance_name, variance)] {
        for t in graph.initializer.iter_mut().filter(|t| t.name == *name) {
            *t = f32_tensor(name, &[values.len()], values);
        }
    }
    Ok(measured)
}
