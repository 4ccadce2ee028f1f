//! The quantized graph of one int8 region: what to compute, with no layouts, addresses or shapes yet.

use super::Op;
use crate::graph::{Tensor, TensorId};

/// One operation.
#[derive(Debug, Clone)]
pub struct Node {
    /// ONNX node name.
    pub name: String,
    /// What to compute.
    pub op: Op,
    /// Quantized inputs.
    pub inputs: Vec<TensorId>,
    /// Quantized output; `None` if the result is float.
    pub output: Option<TensorId>,
}

/// An int8 region: nodes in execution order.
#[derive(Debug, Clone, Default)]
pub struct Graph {
    /// Quantized activations.
    pub tensors: Vec<Tensor>,
    /// Operations, each after those it reads.
    pub nodes: Vec<Node>,
}

impl Graph {
    /// ONNX names of the float values the region reads, in order, each once.
    pub fn sources(&self) -> Vec<&str> {
        let mut names = Vec::new();
        for source in self.nodes.iter().filter_map(|n| n.op.operator().source()) {
            if !names.contains(&source) {
                names.push(source);
            }
        }
        names
    }

    /// ONNX names of the float values the region makes, in order.
    pub fn targets(&self) -> Vec<&str> {
        self.nodes.iter().filter_map(|n| n.op.operator().target()).collect()
    }

    /// Number of times that operations read a tensor.
    pub fn reads(&self, tensor: TensorId) -> usize {
        self.nodes.iter().flat_map(|n| &n.inputs).filter(|t| **t == tensor).count()
    }
}
