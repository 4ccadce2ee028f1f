//! Cross-layer equalization: ReLU, leaky or not, max-pooling, means and sums commute with positive factors, so a channel may be multiplied by s in
//! every layer that makes it, and divided by s in every layer that reads it (Nagel et al., 1906.04721, 4.1, for pairs of layers).
//!
//! An 8-bit tensor has one step for all channels: a channel ten times smaller than the largest has three bits less. Channels that are
//! tied by such operators, through whole stages of residual blocks, share a factor; factors are chosen so that the rounding of
//! activations costs the layers that read them least. They are powers of two: no float is rounded, so the network computes bit for
//! bit what it did.

use crate::Result;
use crate::float::Shapes;
use crate::observe::Channel;
use crate::onnx::*;
use edge_infer::import::lower::is_spatial_mean;
use std::collections::{HashMap, HashSet};

/// Largest exponent of two: weights of one row keep bits to differ in.
const LIMIT: i32 = 4;
/// Sweeps over all channels of a class.
const SWEEPS: usize = 16;

/// Tensors whose channels can only be scaled together.
#[derive(Debug, Default)]
struct Class {
    channels: usize,
    tensors: Vec<String>,
    /// Positions of the nodes whose output channels these are.
    makers: Vec<usize>,
    /// Positions of the nodes that read them, and which tensor.
    readers: Vec<(usize, String)>,
    /// An operator, or the outside, needs the values as they are.
    fixed: bool,
}

/// Equalizes the channels of every class of tensors that allows it. `measured` has the channels of tensors that are quantized.
/// Returns the number of classes that changed.
pub fn equalize(graph: &mut GraphProto, shapes: &Shapes, measured: &HashMap<String, Vec<Channel>>) -> Result<usize> {
    let mut weights: HashMap<String, (Vec<usize>, Vec<f32>)> = HashMap::new();
    let classes = classes(graph, shapes);
    for name in classes.iter().flat_map(|c| c.makers.iter().chain(c.readers.iter().map(|r| &r.0))).flat_map(|&i| &graph.node[i].input[1..])
    {
        if let Some(t) = graph.initializer.iter().find(|t| t.name == *name) {
            weights.insert(name.clone(), (tensor_dims(t)?, f32_data(t)?));
        }
    }
    let chosen: Vec<Vec<i32>> = classes.iter().map(|c| exponents(c, graph, &weights, measured)).collect();
    for (class, exponents) in classes.iter().zip(&chosen) {
        for &i in &class.makers {
            for name in graph.node[i].input[1..].iter().filter(|n| !n.is_empty()) {
                if let Some((dims, values)) = weights.get_mut(name) {
                    let row = values.len() / dims[0].max(1);
                    values.iter_mut().enumerate().for_each(|(at, v)| *v *= 2f32.powi(exponents[at / row]));
                }
            }
        }
        for (i, _) in &class.readers {
            let node = &graph.node[*i];
            if let Some((dims, values)) = weights.get_mut(&node.input[1]) {
                let channel = channel_read(node, dims, class.channels);
                values.iter_mut().enumerate().for_each(|(at, v)| *v *= 2f32.powi(-exponents[channel(at)]));
            }
        }
    }
    for t in &mut graph.initializer {
        if let Some((dims, values)) = weights.remove(&t.name) {
            *t = f32_tensor(&t.name, &dims, &values);
        }
    }
    Ok(chosen.iter().filter(|e| e.iter().any(|&e| e != 0)).count())
}

/// The input channel, of `channels`, that each weight of a Conv or Gemm multiplies.
fn channel_read(node: &NodeProto, dims: &[usize], channels: usize) -> impl Fn(usize) -> usize + use<> {
    let groups = if dims.len() == 4 { channels / dims[1].max(1) } else { 1 };
    let (out, row) = (dims[0], dims[1..].iter().product::<usize>().max(1));
    // A Gemm over a flattened picture reads every channel several times.
    let taps = (row * groups / channels).max(1);
    debug_assert!(dims.len() != 4 || attr_int(node, "group", 1) == groups as i64);
    move |at| at / row / (out / groups).max(1) * (channels / groups) + at % row / taps
}

/// Groups tensors by what ties their channels together.
fn classes(graph: &GraphProto, shapes: &Shapes) -> Vec<Class> {
    let used = use_counts(graph);
    let constants = crate::plan::constants(graph);
    let ids: HashMap<&str, usize> = shapes.keys().enumerate().map(|(i, n)| (n.as_str(), i)).collect();
    let mut parent: Vec<usize> = (0..ids.len()).collect();
    fn root(parent: &mut [usize], mut i: usize) -> usize {
        while parent[i] != i {
            parent[i] = parent[parent[i]];
            i = parent[i];
        }
        i
    }
    let own = |name: &String, rank: usize| {
        used.get(name) == Some(&1) && constants.get(name.as_str()).is_some_and(|t| t.data_type == 1 && t.dims.len() == rank)
    };
    let layer = |n: &NodeProto| {
        let rank = if is_op(n, "Conv") { 4 } else { 2 };
        let canonical = is_op(n, "Conv") || is_op(n, "Gemm") && attr_int(n, "transB", 0) == 1 && attr_int(n, "transA", 0) == 0;
        let plain = attr_float(n, "alpha", 1.0) == 1.0 && attr_float(n, "beta", 1.0) == 1.0;
        let bias = n.input.get(2).is_none_or(|b| b.is_empty() || own(b, 1));
        canonical && plain && n.input.len() >= 2 && own(&n.input[1], rank) && bias
    };
    let shape = |name: &String| shapes.get(name).map(Vec::as_slice);
    let mut fixed: HashSet<&str> = graph.input.iter().chain(&graph.output).map(|v| v.name.as_str()).collect();
    let captured = captured_names(graph);
    fixed.extend(captured.iter().map(String::as_str));
    for n in &graph.node {
        let keeps_channels = match n.op_type.as_str() {
            "Relu" | "MaxPool" | "AveragePool" | "GlobalAveragePool" | "GlobalMaxPool" | "LeakyRelu" | "Identity" | "Dropout" => {
                outputs(n).count() == 1
            }
            "Flatten" => attr_int(n, "axis", 1) == 1,
            "ReduceMean" | "ReduceSum" | "ReduceMax" => {
                let axes = n.input.get(1).and_then(|a| constants.get(a.as_str())).copied();
                is_spatial_mean(n, axes, shape(&n.input[0]).map(<[usize]>::len))
            }
            "Add" => n.input.len() == 2 && shape(&n.input[0]) == shape(&n.input[1]),
            _ => false,
        };
        if keeps_channels
            && is_default_domain(&n.domain)
            && inputs(n).chain(outputs(n)).all(|t| ids.contains_key(t) || constants.contains_key(t))
        {
            let tied: Vec<usize> = inputs(n).chain(outputs(n)).filter_map(|t| ids.get(t).copied()).collect();
            for pair in tied.windows(2) {
                let (a, b) = (root(&mut parent, pair[0]), root(&mut parent, pair[1]));
                parent[a] = b;
            }
            // A sum with a constant is none of scaled values.
            if is_op(n, "Add") && inputs(n).any(|t| constants.contains_key(t)) {
                fixed.extend(outputs(n));
            }
        } else if !layer(n) {
            fixed.extend(inputs(n).chain(outputs(n)));
        }
    }
    let mut classes: HashMap<usize, Class> = HashMap::new();
    for (name, &id) in &ids {
        let class = classes.entry(root(&mut parent, id)).or_default();
        let channels = shapes[*name].get(1).copied().unwrap_or(0);
        // Flattened pictures have more values than channels.
        class.channels = if class.tensors.is_empty() { channels } else { class.channels.min(channels) };
        class.fixed |= fixed.contains(name) || ![2, 4].contains(&shapes[*name].len());
        class.tensors.push((*name).to_string());
    }
    for (i, n) in graph.node.iter().enumerate().filter(|(_, n)| layer(n)) {
        let mut class_of = |name: &String| Some(root(&mut parent, *ids.get(name.as_str())?));
        match (class_of(&n.input[0]), class_of(&n.output[0])) {
            (Some(x), Some(y)) => {
                classes.entry(x).or_default().readers.push((i, n.input[0].clone()));
                classes.entry(y).or_default().makers.push(i);
            }
            (Some(lone), None) | (None, Some(lone)) => classes.entry(lone).or_default().fixed = true,
            (None, None) => {}
        }
    }
    let fits = |c: &Class| {
        let dims = |i: usize| constants[graph.node[i].input[1].as_str()].dims.clone();
        c.channels > 1
            && c.makers.iter().all(|&i| dims(i)[0] as usize == c.channels)
            && c.readers.iter().all(|&(i, _)| {
                let groups = attr_int(&graph.node[i], "group", 1).max(1);
                let read = (dims(i)[1] * groups) as usize;
                read.is_multiple_of(c.channels) && (dims(i).len() == 2 || read == c.channels && dims(i)[0] % groups == 0)
            })
    };
    let mut found: Vec<Class> =
        classes.into_values().filter(|c| !c.fixed && !c.makers.is_empty() && !c.readers.is_empty() && fits(c)).collect();
    found.sort_by_key(|c| c.makers.iter().min().copied());
    found
}

/// Exponents of two that make the noise of rounded activations, as the class's readers see it, small.
fn exponents(
    class: &Class,
    graph: &GraphProto,
    weights: &HashMap<String, (Vec<usize>, Vec<f32>)>,
    measured: &HashMap<String, Vec<Channel>>,
) -> Vec<i32> {
    let n = class.channels;
    let mut exponents = vec![0; n];
    // In order of computation, so that noise reaches the readers of later sums as well.
    let position: HashMap<&str, usize> = graph.node.iter().enumerate().flat_map(|(i, node)| outputs(node).map(move |o| (o, i))).collect();
    let tensors = class.tensors.iter().filter(|t| measured.get(*t).is_some_and(|m| m.len() == n));
    let mut tensors: Vec<(usize, &String)> = tensors.map(|t| (position.get(t.as_str()).copied().unwrap_or(0), t)).collect();
    tensors.sort_unstable();
    // Of each reader: its position, and the share of its signal that one unit of noise in each channel is.
    let mut readers: Vec<(usize, Vec<f64>)> = Vec::new();
    for (i, x) in &class.readers {
        let Some((dims, values)) = weights.get(&graph.node[*i].input[1]) else { return exponents };
        let channel = channel_read(&graph.node[*i], dims, n);
        let mut gain = vec![0f64; n];
        values.iter().enumerate().for_each(|(at, &w)| gain[channel(at)] += f64::from(w).powi(2));
        // Views of a measured tensor carry its values; whatever else is read was measured last before.
        let seen = measured.get(x).filter(|m| m.len() == n);
        let seen = seen.or_else(|| tensors.iter().rfind(|t| t.0 < *i).and_then(|t| measured.get(t.1)));
        let Some(seen) = seen else { continue };
        let signal: f64 = gain.iter().zip(seen).map(|(g, c)| g * c.square).sum();
        if signal > 0.0 {
            gain.iter_mut().for_each(|g| *g /= signal);
            readers.push((*i, gain));
        }
    }
    // Of each tensor: the peak and the gain of each channel.
    let tensors: Vec<(Vec<f64>, Vec<f64>)> = tensors
        .into_iter()
        .map(|(at, t)| {
            let mut gain = vec![0f64; n];
            for (_, g) in readers.iter().filter(|r| r.0 > at) {
                gain.iter_mut().zip(g).for_each(|(sum, g)| *sum += g);
            }
            (measured[t].iter().map(|c| c.peak).collect(), gain)
        })
        .collect();
    let scaled = |v: f64, e: i32| v * 2f64.powi(e);
    for _ in 0..SWEEPS {
        let before = exponents.clone();
        for c in 0..n {
            // Peak of the other channels, and their noise per squared step, of each tensor.
            let others: Vec<(f64, f64)> = tensors
                .iter()
                .map(|(peak, gain)| {
                    let rest = (0..n).filter(|&i| i != c);
                    rest.fold((0.0, 0.0), |(top, noise), i| {
                        (f64::max(top, scaled(peak[i], exponents[i])), noise + gain[i] * 4f64.powi(-exponents[i]))
                    })
                })
                .collect();
            let cost = |e: i32| -> f64 {
                let both = tensors.iter().zip(&others);
                both.map(|((peak, gain), (top, noise))| scaled(peak[c], e).max(*top).powi(2) * (noise + gain[c] * 4f64.powi(-e))).sum()
            };
            let best = (-LIMIT..=LIMIT).map(|e| (cost(e), e.abs(), e)).min_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
            exponents[c] = best.map_or(0, |b| b.2);
        }
        if exponents == before {
            break;
        }
    }
    exponents
}
