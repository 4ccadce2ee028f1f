//! Cross-layer equalization (Nagel et al., 1906.04721, 4.1): a Conv's output channel may be divided by s and the next
//! Conv's input channel multiplied by s, for ReLU commutes with positive factors.
//!
//! Factors are powers of two: no float is rounded, so the network computes bit for bit what it did.

use crate::Result;
use crate::onnx::*;
use std::collections::{HashMap, HashSet};

/// Largest factor: weights stay far from subnormal and infinite values.
const LIMIT: i32 = 12;
/// Sweeps over all pairs: chains of three convolutions settle in a few.
const SWEEPS: usize = 4;

struct Pair {
    /// Weights and bias of the first Conv.
    first: (String, String),
    second: String,
    groups: usize,
}

/// Equalizes every pair Conv → (Relu →) Conv whose tensors nobody else reads. Returns the number of pairs.
pub fn equalize(graph: &mut GraphProto) -> Result<usize> {
    let pairs = pairs(graph);
    let mut weights: HashMap<String, (Vec<usize>, Vec<f32>)> = HashMap::new();
    let named: HashSet<&String> = pairs.iter().flat_map(|p| [&p.first.0, &p.first.1, &p.second]).collect();
    for t in graph.initializer.iter().filter(|t| named.contains(&t.name)) {
        weights.insert(t.name.clone(), (tensor_dims(t)?, f32_data(t)?));
    }
    for _ in 0..SWEEPS {
        pairs.iter().for_each(|p| balance(p, &mut weights));
    }
    for t in &mut graph.initializer {
        if let Some((dims, values)) = weights.remove(&t.name) {
            *t = f32_tensor(&t.name, &dims, &values);
        }
    }
    Ok(pairs.len())
}

fn pairs(graph: &GraphProto) -> Vec<Pair> {
    let used = use_counts(graph);
    let constants: HashMap<&str, &TensorProto> = graph.initializer.iter().map(|t| (t.name.as_str(), t)).collect();
    let producer: HashMap<&str, &NodeProto> = graph.node.iter().flat_map(|n| outputs(n).map(move |o| (o, n))).collect();
    // Weights of rank 4 in float32 that one Conv alone reads.
    let own = |name: &String, rank: usize| {
        used.get(name) == Some(&1) && constants.get(name.as_str()).is_some_and(|t| t.data_type == 1 && t.dims.len() == rank)
    };
    let one_reader = |name: &String| used.get(name) == Some(&1);
    let mut pairs = Vec::new();
    for second in graph.node.iter().filter(|n| is_op(n, "Conv") && n.input.len() >= 2 && own(&n.input[1], 4)) {
        let mut x = &second.input[0];
        let mut before = producer.get(x.as_str());
        if let Some(relu) = before.filter(|n| is_op(n, "Relu") && one_reader(x)) {
            x = &relu.input[0];
            before = producer.get(x.as_str());
        }
        let Some(first) = before.filter(|n| is_op(n, "Conv") && one_reader(x) && own(&n.input[1], 4)) else { continue };
        let bias = first.input.get(2).cloned().unwrap_or_default();
        if !bias.is_empty() && !own(&bias, 1) {
            continue;
        }
        let groups = usize::try_from(attr_int(second, "group", 1)).unwrap_or(0);
        let (a, b) = (constants[first.input[1].as_str()], constants[second.input[1].as_str()]);
        let fits = groups > 0 && b.dims[0] % groups as i64 == 0 && a.dims[0] == b.dims[1] * groups as i64;
        if fits {
            pairs.push(Pair { first: (first.input[1].clone(), bias), second: second.input[1].clone(), groups });
        }
    }
    pairs
}

fn balance(pair: &Pair, weights: &mut HashMap<String, (Vec<usize>, Vec<f32>)>) {
    let absmax = |v: &[f32]| v.iter().fold(0f32, |m, w| m.max(w.abs()));
    let (Some((d1, w1)), Some((d2, w2))) = (weights.get(&pair.first.0), weights.get(&pair.second)) else { return };
    let (channels, row) = (d1[0], w1.len() / d1[0].max(1));
    let (out, per_group, taps) = (d2[0], d2[1], d2[2] * d2[3]);
    let out_per_group = out / pair.groups;
    // Rows of the second Conv's weights that read input channel i, each a range of taps.
    let columns = |i: usize| {
        let (group, within) = (i / per_group, i % per_group);
        (group * out_per_group..(group + 1) * out_per_group).map(move |o| (o * per_group + within) * taps)
    };
    let exponents: Vec<i32> = (0..channels)
        .map(|i| {
            let r1 = absmax(&w1[i * row..(i + 1) * row]);
            let r2 = columns(i).map(|at| absmax(&w2[at..at + taps])).fold(0f32, f32::max);
            if r1 < 1e-12 || r2 < 1e-12 { 0 } else { ((r1 / r2).log2() / 2.0).round().clamp(-LIMIT as f32, LIMIT as f32) as i32 }
        })
        .collect();
    let columns: Vec<Vec<usize>> = (0..channels).map(|i| columns(i).collect()).collect();
    let scale = |v: &mut [f32], e: i32| v.iter_mut().for_each(|w| *w *= 2f32.powi(e));
    if let Some((_, w)) = weights.get_mut(&pair.first.0) {
        (0..channels).for_each(|i| scale(&mut w[i * row..(i + 1) * row], -exponents[i]));
    }
    if let Some((_, b)) = weights.get_mut(&pair.first.1) {
        b.iter_mut().zip(&exponents).for_each(|(b, &e)| *b *= 2f32.powi(-e));
    }
    if let Some((_, w)) = weights.get_mut(&pair.second) {
        for (i, starts) in columns.iter().enumerate() {
            starts.iter().for_each(|&at| scale(&mut w[at..at + taps], exponents[i]));
        }
    }
}
