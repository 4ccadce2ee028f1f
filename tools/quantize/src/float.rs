//! Runs ONNX graphs in float through tract; the only module that names tract's engine.

use crate::Result;
use crate::onnx::{self, ModelProto};
use edge_infer::import::guarded;
use std::sync::Arc;
use tract_onnx::prelude::*;

/// An optimized plan of one graph, batch 1, with chosen tensors as outputs.
pub struct Runner {
    plan: Arc<TypedRunnableModel>,
    shape: Vec<usize>,
}

impl Runner {
    /// Plans the graph for inputs of this shape. Outputs are the graph's own first, then `exposed`.
    pub fn new(model: &ModelProto, input_shape: &[usize], exposed: &[String]) -> Result<Self> {
        let mut model = model.clone();
        let graph = onnx::graph_mut(&mut model)?;
        let (input, _) = onnx::data_input(graph)?;
        onnx::set_input_dims(graph, &input, input_shape);
        graph.value_info.clear(); // may contradict the fixed batch
        let mut names = onnx::all_names(graph);
        for name in exposed {
            if *name == input {
                // tract would forget the type of an input that is an output as well.
                let copy = onnx::fresh_name(&mut names, &format!("{name}.copy"));
                graph.node.push(onnx::make_node("Identity", &[name], &copy, vec![]));
                onnx::expose(graph, &copy);
            } else {
                onnx::expose(graph, name);
            }
        }
        let plan = guarded(|| tract_onnx::onnx().model_for_proto_model(&model)?.into_optimized()?.into_runnable())?;
        Ok(Self { plan, shape: input_shape.to_vec() })
    }

    /// Shape of the input.
    pub fn input_shape(&self) -> &[usize] {
        &self.shape
    }

    /// Runs one input and hands each output (shape, row-major values) to `visit` by its position.
    pub fn run(&self, input: &[f32], mut visit: impl FnMut(usize, &[usize], &[f32])) -> Result<()> {
        let outputs = guarded(|| {
            let input = Tensor::from_shape(&self.shape, input)?;
            self.plan.run(tvec!(input.into_tvalue()))
        })?;
        for (i, t) in outputs.iter().enumerate() {
            // Integer outputs (shape arithmetic) have no range to measure.
            if t.datum_type() == f32::datum_type() {
                let view = guarded(|| t.to_plain_array_view::<f32>())?;
                visit(i, t.shape(), view.as_standard_layout().as_slice().unwrap_or_default());
            }
        }
        Ok(())
    }
}

pub use edge_infer::import::lower::rules::Shapes;

/// Finds all shapes by running the graph once on zeros.
pub fn shapes(model: &ModelProto, input_shape: &[usize]) -> Result<Shapes> {
    let graph = onnx::graph(model)?;
    let (input, _) = onnx::data_input(graph)?;
    let names: Vec<String> = graph.node.iter().flat_map(|n| onnx::outputs(n).map(String::from)).collect();
    let skip = graph.output.len();
    let runner = Runner::new(model, input_shape, &names)?;
    let mut shapes = Shapes::from([(input, input_shape.to_vec())]);
    runner.run(&vec![0.0; input_shape.iter().product()], |i, shape, _| {
        if i >= skip {
            shapes.insert(names[i - skip].clone(), shape.to_vec());
        }
    })?;
    Ok(shapes)
}
