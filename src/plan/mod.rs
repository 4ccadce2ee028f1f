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

/// A node that no kernel takes, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Obstacle {
    /// The node's name, as in [`Node::name`].
    pub node: String,
    /// The reason.
    pub why: String,
}

/// Why a graph has no program.
#[derive(Debug)]
pub enum Unplanned {
    /// These nodes stand in the way: without them, the rest may do. There is at least one.
    Nodes(Vec<Obstacle>),
    /// The graph as a whole does.
    Whole(Error),
}

impl From<Error> for Unplanned {
    fn from(e: Error) -> Self {
        Unplanned::Whole(e)
    }
}

impl From<Unplanned> for Error {
    fn from(unplanned: Unplanned) -> Self {
        match unplanned {
            Unplanned::Nodes(nodes) => Error::Shape(nodes.into_iter().next().map(|o| o.why).unwrap_or_default()),
            Unplanned::Whole(e) => e,
        }
    }
}

fn site(node: &Node) -> Site<'_> {
    Site { name: &node.name, op: node.op.name(), inputs: &node.inputs, output: node.output }
}

/// ONNX shapes of the region's float targets, in order.
pub fn target_shapes(graph: &Graph, source_shape: impl Fn(&str) -> Result<Vec<usize>>) -> Result<Vec<Vec<usize>>, Unplanned> {
    let shapes = infer_shapes(graph, &source_ports(graph, source_shape)?)?;
    let target = |node: &&Node| node.op.operator().target().is_some();
    Ok(graph.nodes.iter().filter(target).map(|node| Ok(output_shape(node, &shapes)?.onnx())).collect::<Result<_>>()?)
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
) -> Result<Program, Unplanned> {
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
    let mut obstacles = Vec::new();
    for (index, node) in graph.nodes.iter().enumerate() {
        let planned = match pooled.iter().find(|(conv, pool)| *conv == index || *pool == index) {
            None => node.op.operator().plan(&site(node), &mut planner),
            Some(&(conv, pool)) if pool == index => pooled::plan(&graph.nodes[conv], node, &mut planner),
            // It runs with its pool.
            Some(_) => Ok(()),
        };
        if let Err(e) = planned {
            obstacles.push(Obstacle { node: node.name.clone(), why: e.to_string() });
        }
    }
    if !obstacles.is_empty() {
        return Err(Unplanned::Nodes(obstacles));
    }
    let Planner { steps, info, targets, .. } = planner;
    let parts = Parts { kernel, steps, info, arena_bytes: arena_bytes + SLACK, sources, targets };
    // What it refuses are sizes beyond its limits.
    Program::new(parts).map_err(|why| Error::UnsupportedModel(format!("it cannot be planned: {why}")).into())
}

/// Shapes of all tensors; or every node whose shapes do not fit, but not those which only read what such a node makes.
fn infer_shapes(graph: &Graph, sources: &[Port]) -> Result<Vec<Shape>, Unplanned> {
    let mut shapes: Vec<Option<Shape>> = vec![None; graph.tensors.len()];
    let mut obstacles = Vec::new();
    for node in &graph.nodes {
        let operator = node.op.operator();
        let source = operator.source().map(|name| {
            let port = sources.iter().find(|p| p.name == name).ok_or_else(|| "unknown source".to_owned())?;
            let wrong = || format!("`{name}` has shape {:?}; [1, C, H, W] or [1, C] is supported", port.shape);
            Shape::of_onnx(&port.shape).ok_or_else(wrong)
        });
        let inputs = match source {
            Some(source) => source.map(|shape| vec![shape]),
            None => match node.inputs.iter().map(|&t| shapes[t]).collect() {
                Some(inputs) => Ok(inputs),
                // Whatever makes them is an obstacle already.
                None => continue,
            },
        };
        match inputs.and_then(|inputs| operator.shape(&inputs)) {
            Ok(out) => {
                if let Some(t) = node.output {
                    shapes[t] = Some(Shape { flat: out.flat || graph.tensors[t].flat, ..out });
                }
            }
            Err(why) => obstacles.push(Obstacle { node: node.name.clone(), why: site(node).shape_error(why).to_string() }),
        }
    }
    if !obstacles.is_empty() {
        return Err(Unplanned::Nodes(obstacles));
    }
    Ok(shapes.into_iter().map(|s| s.ok_or_else(|| Error::Shape("a tensor is never made".into()))).collect::<Result<_>>()?)
}

/// Shape of what a node makes, which may be a float target.
fn output_shape(node: &Node, shapes: &[Shape]) -> Result<Shape> {
    let inputs: Vec<Shape> = node.inputs.iter().map(|&t| shapes[t]).collect();
    node.op.operator().shape(&inputs).map_err(|why| site(node).shape_error(why))
}
