//! From a [`Graph`] to a [`Program`]: shapes, places, packed weights, all decided at load.

mod arena;
mod place;

pub use crate::ops::Policy;

use crate::exec::{Parts, Program};
use crate::graph::{Port, Shape};
use crate::kernels::{ConvKernel, SLACK};
use crate::ops::conv::pooled;
use crate::ops::{Graph, Node, Planner, Site};
use crate::{Error, Result};

fn site(node: &Node) -> Site<'_> {
    Site { name: &node.name, op: node.op.name(), inputs: &node.inputs, output: node.output }
}

/// ONNX shapes of the region's float targets, in order.
pub fn target_shapes(graph: &Graph, source_shape: impl Fn(&str) -> Result<Vec<usize>>) -> Result<Vec<Vec<usize>>> {
    let shapes = infer_shapes(graph, &source_ports(graph, source_shape)?)?;
    let target = |node: &&Node| node.op.operator().target().is_some();
    graph.nodes.iter().filter(target).map(|node| Ok(output_shape(node, &shapes)?.onnx())).collect()
}

fn source_ports(graph: &Graph, source_shape: impl Fn(&str) -> Result<Vec<usize>>) -> Result<Vec<Port>> {
    graph.sources().into_iter().map(|name| Ok(Port { name: name.to_owned(), shape: source_shape(name)? })).collect()
}

/// Plans `graph` for one image whose float sources have the ONNX shapes that `source_shape` gives, to be run by `threads`.
pub fn build(
    graph: &Graph,
    kernel: &'static ConvKernel,
    policy: Policy,
    threads: usize,
    source_shape: impl Fn(&str) -> Result<Vec<usize>>,
) -> Result<Program> {
    let sources = source_ports(graph, source_shape)?;
    let shapes = infer_shapes(graph, &sources)?;
    let pooled = pooled::pairs(graph, &shapes);
    let (buffers, arena_bytes) = place::place(graph, &shapes, kernel, &pooled)?;
    let mut planner = Planner {
        kernel,
        policy,
        threads,
        tensors: &graph.tensors,
        shapes: &shapes,
        buffers: &buffers,
        sources: &sources,
        targets: Vec::new(),
        steps: Vec::new(),
        info: Vec::new(),
    };
    for (index, node) in graph.nodes.iter().enumerate() {
        match pooled.iter().find(|(conv, pool)| *conv == index || *pool == index) {
            None => node.op.operator().plan(&site(node), &mut planner)?,
            Some(&(conv, pool)) if pool == index => pooled::plan(&graph.nodes[conv], node, &mut planner)?,
            // It runs with its pool.
            Some(_) => {}
        }
    }
    let Planner { steps, info, targets, .. } = planner;
    let parts = Parts { kernel, steps, info, arena_bytes: arena_bytes + SLACK, sources, targets };
    // What it refuses are sizes beyond its limits.
    Program::new(parts).map_err(|why| Error::UnsupportedModel(format!("it cannot be planned: {why}")))
}

fn infer_shapes(graph: &Graph, sources: &[Port]) -> Result<Vec<Shape>> {
    let mut shapes: Vec<Option<Shape>> = vec![None; graph.tensors.len()];
    for node in &graph.nodes {
        let site = site(node);
        let operator = node.op.operator();
        let inputs: Vec<Shape> = match operator.source() {
            Some(name) => {
                let port = sources.iter().find(|p| p.name == name).ok_or_else(|| site.shape_error("unknown source"))?;
                let wrong = || site.shape_error(format!("`{name}` has shape {:?}; [1, C, H, W] or [1, C] is supported", port.shape));
                vec![Shape::of_onnx(&port.shape).ok_or_else(wrong)?]
            }
            None => {
                let known = |&t: &usize| shapes[t].ok_or_else(|| site.shape_error("an input is used before it is made"));
                node.inputs.iter().map(known).collect::<Result<_>>()?
            }
        };
        let out = operator.shape(&inputs).map_err(|why| site.shape_error(why))?;
        if let Some(t) = node.output {
            shapes[t] = Some(Shape { flat: out.flat || graph.tensors[t].flat, ..out });
        }
    }
    shapes.into_iter().map(|s| s.ok_or_else(|| Error::Shape("a tensor is never made".into()))).collect()
}

/// Shape of what a node makes, which may be a float target.
fn output_shape(node: &Node, shapes: &[Shape]) -> Result<Shape> {
    let inputs: Vec<Shape> = node.inputs.iter().map(|&t| shapes[t]).collect();
    node.op.operator().shape(&inputs).map_err(|why| site(node).shape_error(why))
}
