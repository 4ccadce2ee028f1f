//! Where tensors lie: views of what they are concatenated to, halos from what consumers pad, slots from lifetimes.

use super::arena::{self, Request};
use crate::graph::{Shape, TensorId};
use crate::kernels::{ConvKernel, SLACK};
use crate::ops::{Graph, Op, domain_shift};
use crate::program::{Buffer, MAX_ARENA};
use crate::{Error, Result};

/// For each tensor that lies between another one's channels: that one, and its own first channel there.
type Views = Vec<Option<(TensorId, usize)>>;

/// The tensor in whose slot another lies, and its first channel there.
fn root(views: &Views, mut t: TensorId) -> (TensorId, usize) {
    let mut first = 0;
    while let Some((whole, channel)) = views[t] {
        (t, first) = (whole, first + channel);
    }
    (t, first)
}

/// How many channels of `x` the first of these tensors are, if they follow each other in it.
fn parts(views: &Views, x: TensorId, tensors: &[(TensorId, usize)], shapes: &[Shape]) -> usize {
    let mut channels = 0;
    for &(t, _) in tensors {
        if views[t] != Some((x, channels)) {
            break;
        }
        channels += shapes[t].channels();
    }
    channels
}

/// Which tensors are made in place: parts of another one; inputs of a concatenation that has their quantization, and concatenations that are a
/// part of a larger one.
fn views(graph: &Graph, shapes: &[Shape], zero_points: &[i32], unplaced: &dyn Fn(TensorId) -> bool) -> Views {
    let alike = |a: TensorId, b: TensorId| graph.tensors[a].quant.scale == graph.tensors[b].quant.scale && zero_points[a] == zero_points[b];
    let mut views: Views = vec![None; shapes.len()];
    for node in &graph.nodes {
        if let (&[x], Some(out)) = (&node.inputs[..], node.output)
            && let Some(first) = node.op.operator().view(&shapes[x])
            && alike(x, out)
            && !unplaced(x)
        {
            views[out] = Some((x, first));
        }
    }
    // Backwards: a tensor that several concatenations read, as in a DenseNet, lies in the last and largest one.
    for node in graph.nodes.iter().rev() {
        let (Op::Concat(_), Some(out)) = (&node.op, node.output) else { continue };
        let firsts = node.inputs.iter().scan(0, |at, &t| {
            let first = *at;
            *at += shapes[t].channels();
            Some((t, first))
        });
        let firsts: Vec<(TensorId, usize)> = firsts.collect();
        // All inputs lie together elsewhere, in order: so does their concatenation.
        if let Some((whole, base)) = views[firsts[0].0]
            && views[out].is_none()
            && whole != out
            && firsts.iter().all(|&(t, first)| views[t] == Some((whole, base + first)) && alike(t, out))
        {
            views[out] = Some((whole, base));
            continue;
        }
        for (i, &(t, first)) in firsts.iter().enumerate() {
            // All parts of a tensor, in order: it lies here as a whole.
            if let Some((x, 0)) = views[t]
                && parts(&views, x, &firsts[i..], shapes) == shapes[x].channels()
                && views[x].is_none()
                && alike(x, out)
                && !unplaced(x)
                && root(&views, out).0 != x
            {
                views[x] = Some((out, first));
                continue;
            }
            let once = firsts.iter().filter(|(other, _)| *other == t).count() == 1;
            if views[t].is_none() && once && alike(t, out) && !unplaced(t) && root(&views, out).0 != t {
                views[t] = Some((out, first));
            }
        }
    }
    // A layer's kernels read a little beyond their pixels, or all of a slot: they cannot write between their own input's channels.
    while let Some(t) = graph.nodes.iter().find_map(|node| {
        let out = node.output.filter(|_| matches!(node.op, Op::Conv(_) | Op::Gemm(_)))?;
        (root(&views, node.inputs[0]).0 == root(&views, out).0).then(|| [out, node.inputs[0]].into_iter().find(|&t| views[t].is_some()))?
    }) {
        views[t] = None;
    }
    views
}

/// A place for every tensor, and the arena's size. Of the pairs of nodes in `pooled`, the first one's output lies nowhere, and its input lives
/// until the second one.
pub(super) fn place(graph: &Graph, shapes: &[Shape], kernel: &ConvKernel, pooled: &[(usize, usize)]) -> Result<(Vec<Buffer>, usize)> {
    let unplaced = |t: TensorId| pooled.iter().any(|&(conv, _)| graph.nodes[conv].output == Some(t));
    let zero_point = |t: &crate::graph::Tensor| t.quant.zero_point + domain_shift(t.quant.dtype, kernel.domain);
    let zero_points: Vec<i32> = graph.tensors.iter().map(zero_point).collect();
    let views = views(graph, shapes, &zero_points, &unplaced);
    let roots: Vec<(TensorId, usize)> = (0..shapes.len()).map(|t| root(&views, t)).collect();

    let mut halos = vec![[0usize; 4]; shapes.len()];
    let mut lives = vec![(usize::MAX, 0usize); shapes.len()];
    for (step, node) in graph.nodes.iter().enumerate() {
        if let Some(&input) = node.inputs.first() {
            for (h, pad) in halos[roots[input].0].iter_mut().zip(node.op.operator().padding()) {
                *h = (*h).max(pad);
            }
        }
        for &t in node.inputs.iter().chain(&node.output) {
            let life = &mut lives[roots[t].0];
            *life = (life.0.min(step), life.1.max(step));
        }
    }
    for &(conv, pool) in pooled {
        let life = &mut lives[roots[graph.nodes[conv].inputs[0]].0];
        life.1 = life.1.max(pool);
    }
    let mut requests = Vec::with_capacity(shapes.len());
    for (t, shape) in shapes.iter().enumerate() {
        let [h, w, c] = shape.hwc;
        let bytes = (h + halos[t][0] + halos[t][2])
            .checked_mul(w + halos[t][1] + halos[t][3])
            .and_then(|p| p.checked_mul(c))
            .filter(|&b| b <= MAX_ARENA)
            .ok_or_else(|| Error::Shape(format!("tensor `{}` of {:?} is too large", graph.tensors[t].name, shape.onnx())))?;
        // Slack belongs to the slot, so that a kernel's over-read never meets another thread's write.
        let bytes = if unplaced(t) || views[t].is_some() { 0 } else { bytes + SLACK };
        requests.push(Request { bytes, first: lives[t].0, last: lives[t].1 });
    }
    let (offsets, total) = arena::assign(&requests);
    if total > MAX_ARENA {
        return Err(Error::Shape(format!("activations need {total} bytes, more than the limit of {MAX_ARENA}")));
    }
    let buffer = |t: TensorId| {
        let (whole, first) = roots[t];
        Buffer {
            base: offsets[whole] + first,
            shape: shapes[t].hwc,
            halo: halos[whole],
            pixel: shapes[whole].channels(),
            zero_point: zero_points[t],
        }
    };
    Ok(((0..shapes.len()).map(buffer).collect(), total))
}
