//! The one custom tract operator: an int8 region inside a float graph.

use crate::exec::{Executor, Pool, Program};
use crate::kernels::ConvKernel;
use crate::ops::Graph;
use crate::plan::{self, Policy, Unplanned};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use tract_onnx::tract_hir::internal::*;
use tract_onnx::tract_hir::ops::expandable::Expansion;

/// What int8 regions run on.
#[derive(Clone)]
pub struct Engine {
    /// Kernels.
    pub kernel: &'static ConvKernel,
    /// Algorithms.
    pub policy: Policy,
    /// Threads.
    pub pool: Arc<Pool>,
}

/// A program that may be planned later, or not at all.
pub type Planned = Arc<Mutex<Option<Result<Arc<Program>, Unplanned>>>>;

/// A region whose shapes are not known yet: becomes a [`RegionOp`] when tract knows them.
#[derive(Clone)]
pub struct RegionNode {
    pub graph: Arc<Graph>,
    pub engine: Engine,
    /// Where the planned program is left, or why there is none.
    pub planned: Planned,
}

impl fmt::Debug for RegionNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RegionNode({} nodes)", self.graph.nodes.len())
    }
}

impl RegionNode {
    /// Leaves the reason behind; tract gets its text.
    fn refuse(&self, why: Unplanned) -> TractError {
        let text = match &why {
            Unplanned::Nodes(nodes) => nodes.first().map(|o| o.why.clone()).unwrap_or_default(),
            Unplanned::Whole(e) => e.to_string(),
        };
        *self.planned.lock().unwrap_or_else(PoisonError::into_inner) = Some(Err(why));
        TractError::msg(text)
    }

    fn shape_of<'a>(&'a self, shapes: &'a [Vec<usize>]) -> impl Fn(&str) -> crate::Result<Vec<usize>> + 'a {
        let sources = self.graph.sources();
        move |name| {
            sources
                .iter()
                .position(|s| *s == name)
                .and_then(|i| shapes.get(i).cloned())
                .ok_or_else(|| crate::Error::Shape(format!("`{name}` does not reach the region")))
        }
    }
}

impl Expansion for RegionNode {
    fn name(&self) -> StaticName {
        "EdgeInt8Region".into()
    }

    fn nboutputs(&self) -> TractResult<usize> {
        Ok(self.graph.targets().len())
    }

    fn rules<'r, 'p: 'r, 's: 'r>(&'s self, s: &mut Solver<'r>, inputs: &'p [TensorProxy], outputs: &'p [TensorProxy]) -> InferenceResult {
        for tensor in inputs.iter().chain(outputs) {
            s.equals(&tensor.datum_type, f32::datum_type())?;
        }
        s.given_all(inputs.iter().map(|i| &i.shape), move |s, shapes: Vec<TVec<TDim>>| {
            let shapes: Vec<Vec<usize>> =
                shapes.iter().map(|dims| dims.iter().map(|d| Ok(d.to_usize()?)).collect()).collect::<TractResult<_>>()?;
            for (output, shape) in
                outputs.iter().zip(plan::target_shapes(&self.graph, self.shape_of(&shapes)).map_err(|why| self.refuse(why))?)
            {
                s.equals(&output.shape, shape.iter().map(|d| d.to_dim()).collect::<TVec<TDim>>())?;
            }
            Ok(())
        })
    }

    fn wire(&self, prefix: &str, model: &mut TypedModel, inputs: &[OutletId]) -> TractResult<TVec<OutletId>> {
        let shapes: Vec<Vec<usize>> = inputs
            .iter()
            .map(|&i| Ok(model.outlet_fact(i)?.shape.as_concrete().context("an int8 region needs fixed shapes")?.to_vec()))
            .collect::<TractResult<_>>()?;
        let Engine { kernel, policy, pool } = &self.engine;
        let program = plan::build(&self.graph, kernel, *policy, pool.threads(), self.shape_of(&shapes)).map_err(|why| self.refuse(why))?;
        let program = Arc::new(program);
        *self.planned.lock().unwrap_or_else(PoisonError::into_inner) = Some(Ok(program.clone()));
        let executor = Executor::new(program.clone(), self.engine.pool.clone());
        model.wire_node(prefix, RegionOp { program, executor: Arc::new(Mutex::new(executor)) }, inputs)
    }
}

/// A planned region with its memory.
#[derive(Clone)]
struct RegionOp {
    program: Arc<Program>,
    executor: Arc<Mutex<Executor>>,
}

impl fmt::Debug for RegionOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RegionOp({} steps)", self.program.step_count())
    }
}

impl PartialEq for RegionOp {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.program, &other.program)
    }
}
impl Eq for RegionOp {}

impl Op for RegionOp {
    fn name(&self) -> StaticName {
        "EdgeInt8Region".into()
    }
    op_as_typed_op!();
}

impl EvalOp for RegionOp {
    op_out_of_plan!();

    fn eval(&self, _: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let views = inputs.iter().map(|t| t.try_as_plain_ram()).collect::<TractResult<Vec<_>>>()?;
        let slices = views.iter().map(|v| v.as_slice::<f32>()).collect::<TractResult<Vec<_>>>()?;
        let mut executor = self.executor.lock().unwrap_or_else(PoisonError::into_inner);
        let outputs = executor.run(&slices)?;
        outputs.iter().zip(self.program.targets()).map(|(data, port)| Ok(Tensor::from_shape(&port.shape, data)?.into_tvalue())).collect()
    }
}

impl TypedOp for RegionOp {
    as_op!();

    fn output_facts(&self, _: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        Ok(self.program.targets().iter().map(|p| f32::fact(&p.shape)).collect())
    }
}
