//! Puts the pieces together: regions to executors, the rest to a tract plan.

use super::canonical::{self, Interface};
use super::lower::{self, Excluded, Fallback, Lowered, REGION_OP};
use super::onnx::{self, ModelProto};
use super::region::{Engine, RegionNode};
use super::softmax;
use crate::exec::{self, Compiled, Executor, Program};
use crate::metadata::{LABELS_KEY, Metadata, OUTPUTS_KEY, PREPROCESS_KEY, TASK_KEY};
use crate::pixels::Pixels;
use crate::plan::{self, Policy, Unplanned};
use crate::task::{Output, Task};
use crate::{Error, Result};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tract_onnx::prelude::*;
use tract_onnx::tract_core::ops::Cost;
use tract_onnx::tract_core::optim::Optimizer;
use tract_onnx::tract_hir::internal::DimLike;
use tract_onnx::tract_hir::ops::expandable::expand;

/// Of compiled programs that lie beside their model.
pub const COMPILED_EXTENSION: &str = "edge";
/// Largest picture side a model may ask for.
const MAX_SIDE: usize = 4096;
/// Most values of an input.
const MAX_INPUT: usize = 1 << 26;
/// Height and width where nothing says them.
const USUAL_SIZE: [usize; 2] = [224, 224];

/// tract improves a graph patch by patch, each in time proportional to its nodes: a hostile chain of thousands takes minutes. Patches times
/// nodes are bounded by this; a graph of a thousand nodes gets six patches for each.
const MOST_PATCHED: usize = 6_000_000;
/// So many patches every graph gets.
const LEAST_PATCHES: usize = 1_500;

/// What of a model is wanted, where its file leaves a choice.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// Height and width of the picture, where the file leaves them open.
    pub size: Option<[usize; 2]>,
    /// Names of the outputs that are computed; none: what the file says, else all of a detector, else the first.
    pub outputs: Vec<String>,
    /// What the network is for; `None`: what the file says.
    pub task: Option<Task>,
}

impl Wanted {
    /// Which of a file's outputs are computed.
    fn choose(&self, metadata: &Metadata, outputs: &[String]) -> Vec<String> {
        let named = |word: &str| outputs.iter().any(|o| o.to_lowercase().contains(word));
        let detector = match self.task.as_ref().or(metadata.task.as_ref()) {
            Some(task) => matches!(task, Task::Detect(_)),
            None => named("boxes") && named("scores"),
        };
        match () {
            () if !self.outputs.is_empty() => self.outputs.clone(),
            () if !metadata.outputs.is_empty() => metadata.outputs.clone(),
            () if detector => outputs.to_vec(),
            () => outputs.iter().take(1).cloned().collect(),
        }
    }
}

enum Runner {
    /// One region from the model's input to its output: tract has nothing to do.
    Region(Box<Executor>),
    /// A tract plan, holding regions as operators.
    Plan { plan: Arc<TypedRunnableModel>, input: Vec<f32>, outputs: Vec<Vec<f32>> },
}

/// A model ready to run.
pub struct Imported {
    /// What the file says of itself.
    pub metadata: Metadata,
    /// ONNX shape of the input, batch 1.
    pub input_shape: Vec<usize>,
    /// Names of the file's outputs; empty for a compiled program.
    pub outputs: Vec<String>,
    /// Those that are computed; one at least.
    pub computed: Vec<Output>,
    /// Planned int8 regions.
    pub programs: Vec<Arc<Program>>,
    /// Nodes that tract runs.
    pub fallbacks: Vec<Fallback>,
    /// Multiply-accumulates of those, as tract counts them.
    pub float_macs: u64,
    runner: Runner,
}

/// Reads, lowers and plans a model file, or opens a compiled one; a fresh one beside `path` spares the import.
pub fn import(path: &Path, engine: &Engine, wanted: &Wanted) -> Result<Imported> {
    if exec::is_compiled(path) {
        if engine.policy == Policy::Tract {
            return Err(Error::Usage(format!("{} is compiled for the integer kernels; tract needs the ONNX file", path.display())));
        }
        if wanted.size.is_some() || !wanted.outputs.is_empty() {
            return Err(Error::Usage(format!("{} is compiled for one size and its outputs; give the ONNX file", path.display())));
        }
        return Ok(compiled(exec::open(path)?, engine));
    }
    let beside = path.with_extension(COMPILED_EXTENSION);
    // One that is stale, damaged or for other kernels does no harm: the model itself is at hand.
    if engine.policy == Policy::Fastest
        && wanted.size.is_none()
        && wanted.outputs.is_empty()
        && wanted.task.is_none()
        && exec::is_compiled(&beside)
        && let Ok(found) = exec::open(&beside)
        && found.program.isa() == engine.kernel.isa
        && found.source == exec::Fingerprint::of(path)?
    {
        return Ok(compiled(found, engine));
    }
    read(path, engine, wanted)
}

/// Plans a model file that is one int8 region from input to output, to be [saved](exec::save).
pub fn compile(path: &Path, engine: &Engine, wanted: &Wanted) -> Result<Compiled> {
    if exec::is_compiled(path) {
        return Err(Error::Usage(format!("{} is compiled already", path.display())));
    }
    let source = exec::Fingerprint::of(path)?;
    let Imported { metadata, input_shape, fallbacks, runner, .. } = read(path, engine, wanted)?;
    let only_int8 =
        |why: String| Error::UnsupportedModel(format!("only a model that runs in int8 from input to output can be compiled: {why}"));
    match (runner, fallbacks.first()) {
        (Runner::Region(executor), _) => {
            let program = Arc::into_inner(executor.into_program()).ok_or_else(|| only_int8("its program is in use".into()))?;
            Ok(Compiled { program, metadata, input_shape, source })
        }
        (_, Some(node)) => Err(only_int8(format!("node `{}` ({}) does not: {}", node.name, node.op, node.why))),
        (_, None) => Err(only_int8("it has several regions or outputs".into())),
    }
}

fn compiled(found: Compiled, engine: &Engine) -> Imported {
    let Compiled { program, metadata, input_shape, .. } = found;
    whole(Arc::new(program), metadata, input_shape, engine)
}

/// A model that is one program.
fn whole(program: Arc<Program>, metadata: Metadata, input_shape: Vec<usize>, engine: &Engine) -> Imported {
    let computed = program.targets().iter().map(|t| Output { name: t.name.clone(), shape: t.shape.clone() }).collect();
    let executor = Executor::new(program.clone(), engine.pool.clone());
    Imported {
        metadata,
        input_shape,
        outputs: vec![],
        computed,
        programs: vec![program],
        fallbacks: vec![],
        float_macs: 0,
        runner: Runner::Region(Box::new(executor)),
    }
}

/// A file in canonical form, with the outputs that are wanted.
struct File {
    proto: ModelProto,
    metadata: Metadata,
    input_name: String,
    input_shape: Vec<usize>,
    outputs: Vec<String>,
    computed: Vec<String>,
}

impl File {
    fn read(path: &Path, wanted: &Wanted) -> Result<File> {
        let mut proto = onnx::load(path)?;
        let metadata = metadata(&proto)?;
        let graph = onnx::graph(&proto)?;
        let outputs: Vec<String> = graph.output.iter().map(|o| o.name.clone()).collect();
        let computed = wanted.choose(&metadata, &outputs);
        let usual = metadata.preprocess.as_ref().map_or(USUAL_SIZE, |p| [p.height as usize, p.width as usize]);
        let size = match wanted.size {
            Some(size) => Some(size),
            None => canonical::open_size(graph, usual)?,
        };
        canonical::canonicalize(&mut proto, &Interface { size, outputs: computed.clone(), real_outputs: true })?;
        let (input_name, dims) = onnx::data_input(onnx::graph(&proto)?)?;
        let input_shape = input_shape(&input_name, &dims)?;
        Ok(File { proto, metadata, input_name, input_shape, outputs, computed })
    }

    /// The model, which may be large, for the last one who needs it.
    fn take(&mut self) -> ModelProto {
        std::mem::take(&mut self.proto)
    }
}

/// Reads, lowers and plans an ONNX file.
///
/// Shapes are known only when regions are planned. A node that no kernel takes then (a sequence, a matrix) is left to tract, and the rest is
/// lowered again without it.
fn read(path: &Path, engine: &Engine, wanted: &Wanted) -> Result<Imported> {
    let mut file = File::read(path, wanted)?;
    if engine.policy == Policy::Tract {
        let lowered = lower::keep(file.take(), "tract was asked for")?;
        return Ok(assemble(lowered, &file, engine)?);
    }
    let mut excluded = Excluded::new();
    loop {
        let lowered = lower::lower(&file.proto, &excluded)?;
        let quantized = !lowered.regions.is_empty();
        match assemble(lowered, &file, engine) {
            Ok(imported) => return Ok(imported),
            Err(Failure::Regions(Unplanned::Nodes(nodes))) => {
                let before = excluded.len();
                let why = nodes.first().map(|o| o.why.clone()).unwrap_or_default();
                excluded.extend(nodes.into_iter().map(|o| (o.node, o.why)));
                // What stands in the way was made by the lowering itself, and cannot be left out alone.
                if excluded.len() == before {
                    let lowered = lower::keep(file.take(), &format!("no int8 region can be planned: {why}"))?;
                    return Ok(assemble(lowered, &file, engine)?);
                }
            }
            // A region that does not fit into memory runs in float, if tract can do that.
            Err(Failure::Regions(Unplanned::Whole(why)) | Failure::Other(why @ (Error::UnsupportedModel(_) | Error::Tract(_))))
                if quantized =>
            {
                let lowered = lower::keep(file.take(), &format!("no int8 region can be planned: {why}"))?;
                return assemble(lowered, &file, engine).map_err(|_| why);
            }
            Err(failure) => return Err(failure.into()),
        }
    }
}

/// Why a lowered model does not run.
enum Failure {
    /// Its regions cannot be planned.
    Regions(Unplanned),
    /// Anything else.
    Other(Error),
}

impl From<Error> for Failure {
    fn from(e: Error) -> Self {
        Failure::Other(e)
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Regions(unplanned) => unplanned.into(),
            Failure::Other(e) => e,
        }
    }
}

/// Plans the regions and the rest of a model.
fn assemble(lowered: Lowered, file: &File, engine: &Engine) -> Result<Imported, Failure> {
    let Lowered { regions, rest, fallbacks } = lowered;
    let File { metadata, input_name, input_shape, outputs, computed, .. } = file;
    let targets: Vec<&str> = onnx::graph(&rest)?.output.iter().map(|o| o.name.as_str()).collect();
    let one_region = regions.len() == 1 && fallbacks.is_empty() && regions[0].sources() == [input_name] && regions[0].targets() == targets;
    if one_region {
        let program = plan::build(&regions[0], engine.kernel, engine.policy, engine.pool.threads(), |_| Ok(input_shape.clone()));
        let program = Arc::new(program.map_err(Failure::Regions)?);
        return Ok(Imported { outputs: outputs.clone(), ..whole(program, metadata.clone(), input_shape.clone(), engine) });
    }

    let mut planned = Vec::new();
    let nodes: Vec<RegionNode> = regions
        .into_iter()
        .map(|graph| {
            let slot = Arc::new(Mutex::new(None));
            planned.push(slot.clone());
            RegionNode { graph: Arc::new(graph), engine: engine.clone(), planned: slot }
        })
        .collect();
    let result = guarded(|| plan_rest(rest, input_name, input_shape, nodes));
    let mut programs = Vec::new();
    for slot in planned {
        match slot.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(Ok(program)) => programs.push(program),
            // The reason behind whatever tract says of it.
            Some(Err(unplanned)) => return Err(Failure::Regions(unplanned)),
            None => {}
        }
    }
    let (plan, shapes, float_macs) = result?;
    let computed: Vec<Output> = computed.iter().zip(shapes).map(|(name, shape)| Output { name: name.clone(), shape }).collect();
    // A classifier's output is known before it runs; boxes after suppression are not.
    if let [Output { shape, .. }] = &computed[..]
        && shape.contains(&0)
    {
        return Err(Error::Tract("the model's output has no fixed shape".into()).into());
    }
    let memory = computed.iter().map(|o| Vec::with_capacity(o.shape.iter().product()));
    let runner = Runner::Plan { plan, input: Vec::new(), outputs: memory.collect() };
    Ok(Imported {
        metadata: metadata.clone(),
        input_shape: input_shape.clone(),
        outputs: outputs.clone(),
        computed,
        programs,
        fallbacks,
        float_macs,
        runner,
    })
}

impl Imported {
    /// One inference: NCHW f32 in, the values of each output out.
    pub fn run(&mut self, input: &[f32]) -> Result<&[Vec<f32>]> {
        self.execute(input, None)
    }

    /// As [`Imported::run`], from a picture.
    pub fn run_pixels(&mut self, pixels: &Pixels<'_>) -> Result<&[Vec<f32>]> {
        pixels.check(&self.input_shape)?;
        if let Runner::Plan { input, .. } = &mut self.runner {
            let mut values = std::mem::take(input);
            pixels.expand(&mut values);
            let result = self.execute(&values, None).map(|_| ());
            if let Runner::Plan { input, .. } = &mut self.runner {
                *input = values;
            }
            result?;
        }
        match &mut self.runner {
            Runner::Region(executor) => executor.run_pixels(pixels),
            Runner::Plan { outputs, .. } => Ok(outputs),
        }
    }

    /// As [`Imported::run`], with the time of each step of a model that is one region.
    pub fn run_profiled(&mut self, input: &[f32], times: &mut Vec<Duration>) -> Result<&[Vec<f32>]> {
        times.clear();
        self.execute(input, Some(times))
    }

    fn execute(&mut self, input: &[f32], times: Option<&mut Vec<Duration>>) -> Result<&[Vec<f32>]> {
        let expected: usize = self.input_shape.iter().product();
        if input.len() != expected {
            return Err(Error::Shape(format!("the input has {} values; the shape {:?} has {expected}", input.len(), self.input_shape)));
        }
        match &mut self.runner {
            Runner::Region(executor) => match times {
                Some(times) => executor.run_profiled(&[input], times),
                None => executor.run(&[input]),
            },
            Runner::Plan { plan, outputs, .. } => {
                let tensor = Tensor::from_shape(&self.input_shape, input).map_err(tract_error)?;
                let results = guarded(|| plan.run(tvec!(tensor.into_tvalue())))?;
                if results.len() != outputs.len() {
                    return Err(Error::Tract(format!("the plan has {} outputs, {} are expected", results.len(), outputs.len())));
                }
                for (output, result) in outputs.iter_mut().zip(&results) {
                    output.clear();
                    output.extend_from_slice(result.try_as_plain_ram().and_then(|v| v.as_slice::<f32>()).map_err(tract_error)?);
                }
                Ok(outputs)
            }
        }
    }
}

fn tract_error(e: TractError) -> Error {
    Error::Tract(format!("{e:#}"))
}

/// Calls tract, which panics on some broken graphs: a user gets an error instead.
pub fn guarded<T>(f: impl FnOnce() -> TractResult<T>) -> Result<T> {
    match catch_unwind(AssertUnwindSafe(f)) {
        Ok(result) => result.map_err(tract_error),
        Err(panic) => {
            let what =
                panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied()).unwrap_or("unknown panic");
            Err(Error::Tract(format!("it failed inside: {what}")))
        }
    }
}

fn plan_rest(
    rest: ModelProto,
    input: &str,
    shape: &[usize],
    regions: Vec<RegionNode>,
) -> TractResult<(Arc<TypedRunnableModel>, Vec<Vec<usize>>, u64)> {
    let mut model = tract_onnx::onnx().with_ignore_output_shapes(true).model_for_proto_model(&rest)?;
    drop(rest);
    let mut regions = regions.into_iter();
    for node in model.nodes_mut() {
        // tract does not know this operator and left a placeholder, in the order of the regions.
        if node.name.starts_with("int8_region_") && format!("{:?}", node.op).contains(REGION_OP) {
            node.op = expand(regions.next().ok_or_else(|| anyhow::anyhow!("more region nodes than regions"))?);
        }
    }
    let index = model.input_outlets()?.iter().position(|o| model.node(o.node).name == input).unwrap_or(0);
    model.set_input_fact(index, f32::fact(shape).into())?;
    let mut typed = model.into_typed()?;
    let patches = (MOST_PATCHED / typed.nodes.len().max(1)).max(LEAST_PATCHES);
    Optimizer::declutter().stopping_at(patches).optimize(&mut typed)?;
    let macs = multiply_accumulates(&typed);
    typed.optimize_with_session(&mut Optimizer::codegen().stopping_at(patches).session())?;
    softmax::replace(&mut typed);
    let plan = typed.into_runnable()?;
    let shape = |i: usize| -> TractResult<Vec<usize>> {
        let dims = plan.model().output_fact(i)?.shape.iter();
        // A dimension that depends on the picture is 0.
        Ok(dims.map(|d| d.to_usize().unwrap_or(0)).collect())
    };
    let shapes = (0..plan.model().output_outlets()?.len()).map(shape).collect::<TractResult<_>>()?;
    Ok((plan, shapes, macs))
}

/// What tract will multiply. An operator that cannot say counts as nothing.
fn multiply_accumulates(model: &TypedModel) -> u64 {
    let of_node = |node: &TypedNode| -> TractResult<u64> {
        let costs = node.op.cost(&model.node_input_facts(node.id)?)?;
        let products = costs.into_iter().filter(|(cost, _)| matches!(cost, Cost::FMA(_)));
        Ok(products.filter_map(|(_, count)| count.to_usize().ok()).map(|n| n as u64).sum())
    };
    model.nodes.iter().filter_map(|node| of_node(node).ok()).sum()
}

fn metadata(proto: &ModelProto) -> Result<Metadata> {
    fn json<T: serde::de::DeserializeOwned>(proto: &ModelProto, key: &str) -> Result<Option<T>> {
        onnx::metadata(proto, key)
            .map(|v| serde_json::from_str(v))
            .transpose()
            .map_err(|e| Error::InvalidModel(format!("metadata `{key}`: {e}; quantize the model again")))
    }
    Ok(Metadata {
        preprocess: json(proto, PREPROCESS_KEY)?,
        labels: json(proto, LABELS_KEY)?.unwrap_or_default(),
        task: json(proto, TASK_KEY)?,
        outputs: json(proto, OUTPUTS_KEY)?.unwrap_or_default(),
    })
}

/// A dynamic batch becomes 1.
fn input_shape(name: &str, dims: &[Option<usize>]) -> Result<Vec<usize>> {
    let shape: Vec<usize> = match *dims {
        [_, Some(c), Some(h), Some(w)] => vec![1, c, h, w],
        _ => return Err(Error::UnsupportedModel(format!("input `{name}` has dimensions {dims:?}; [N, C, H, W] with a fixed C is needed"))),
    };
    if shape.iter().any(|&d| d > MAX_SIDE) {
        return Err(Error::UnsupportedModel(format!("input `{name}` has shape {shape:?}; the limit is {MAX_SIDE} per side")));
    }
    // Four factors of at most 4096 each fit 64 bits.
    if shape.iter().map(|&d| d as u64).product::<u64>() > MAX_INPUT as u64 {
        return Err(Error::UnsupportedModel(format!("input `{name}` has shape {shape:?}; the limit is {MAX_INPUT} values")));
    }
    Ok(shape)
}
