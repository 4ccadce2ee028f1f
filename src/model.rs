//! The library's front door: load a model, run it.

use crate::exec::{self, Pool};
use crate::import::{self, Engine, Imported, Wanted, import};
use crate::kernels::{self, ConvKernel};
use crate::metadata::Metadata;
use crate::pixels::Pixels;
use crate::plan::Policy;
use crate::report::{NodeReport, Report};
use crate::task::{Output, Task};
use crate::{Error, Result};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Environment variable that names the instruction set to use.
pub const ISA_VARIABLE: &str = "EDGE_ISA";

/// How to load a model.
#[derive(Debug, Clone, Default)]
pub struct LoadOptions {
    /// Threads; 0 takes one per core.
    pub threads: usize,
    /// Instruction set by name; `None` reads [`ISA_VARIABLE`], then takes the best.
    pub isa: Option<String>,
    /// Algorithm of 3×3 convolutions.
    pub policy: Policy,
    /// Height and width of the picture, where the file leaves them open; by default those of its metadata, or 224.
    pub size: Option<[usize; 2]>,
    /// Names of the outputs to compute; none: those that the file names, else all of a detector, else the first.
    pub outputs: Vec<String>,
    /// What the network is for; `None`: what the file says.
    pub task: Option<Task>,
}

impl LoadOptions {
    fn wanted(&self) -> Wanted {
        Wanted { size: self.size, outputs: self.outputs.clone(), task: self.task.clone() }
    }
}

/// Threads and kernels.
fn engine(options: &LoadOptions, isa: Option<&str>) -> Result<Engine> {
    let kernel = kernels::select(isa)?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = if options.threads == 0 { cores } else { options.threads };
    if threads > 256 {
        return Err(Error::Usage(format!("{threads} threads: at most 256 are supported")));
    }
    let pool = Arc::new(Pool::new(threads).map_err(|e| Error::Usage(format!("cannot start {threads} threads: {e}")))?);
    Ok(Engine { kernel, policy: options.policy, pool })
}

/// Lowers, plans and packs the ONNX file `model` and writes the result to `output`, which [`Model::load`] opens at once.
/// It serves this version of the program and the instruction set of `options`, and is tuned for its threads.
pub fn compile(model: &Path, output: &Path, options: &LoadOptions) -> Result<()> {
    let variable = std::env::var(ISA_VARIABLE).ok().filter(|v| !v.is_empty());
    let compiled = import::compile(model, &engine(options, options.isa.as_deref().or(variable.as_deref()))?, &options.wanted())?;
    exec::save(output, compiled)
}

/// A model, ready to run one picture at a time.
///
/// ```no_run
/// use edge_infer::model::{LoadOptions, Model};
/// let mut model = Model::load("models/r18q.onnx".as_ref(), &LoadOptions::default())?;
/// let input = vec![0.0; model.input_shape().iter().product()];
/// let logits = model.run(&input)?;
/// # Ok::<(), edge_infer::Error>(())
/// ```
pub struct Model {
    path: PathBuf,
    kernel: &'static ConvKernel,
    pool: Arc<Pool>,
    task: Option<Task>,
    imported: Imported,
}

impl Model {
    /// Reads an ONNX file, lowers its quantized part to integer kernels, and plans memory; or opens what [`compile`] made.
    /// Where `M.edge` lies beside `M.onnx`, and was made from it for these kernels, it is opened instead.
    pub fn load(path: &Path, options: &LoadOptions) -> Result<Model> {
        let isa = options.isa.clone().or_else(|| std::env::var(ISA_VARIABLE).ok().filter(|v| !v.is_empty()));
        let engine = engine(options, isa.as_deref())?;
        let imported = import(path, &engine, &options.wanted())?;
        let kernel = imported.programs.first().map_or(engine.kernel, |p| p.kernel());
        match isa {
            Some(isa) if isa != kernel.isa => {
                Err(Error::Usage(format!("{} is compiled for {}, not for {isa}; give the ONNX file", path.display(), kernel.isa)))
            }
            _ => {
                let task = options.task.clone().or_else(|| imported.metadata.task.clone());
                Ok(Model { path: path.to_owned(), kernel, pool: engine.pool, task, imported })
            }
        }
    }

    /// Preprocessing and labels, where the file has them.
    pub fn metadata(&self) -> &Metadata {
        &self.imported.metadata
    }

    /// `[1, C, H, W]`.
    pub fn input_shape(&self) -> &[usize] {
        &self.imported.input_shape
    }

    /// What the network is for, where [`LoadOptions`] or the file say so; [`answer::guess`](crate::answer::guess) knows more.
    pub fn task(&self) -> Option<&Task> {
        self.task.as_ref()
    }

    /// Number of logits: values of the first output that is computed, 0 where that depends on the picture.
    pub fn output_len(&self) -> usize {
        self.imported.computed[0].shape.iter().product()
    }

    /// The outputs that are computed, and the names of all that the file has; none for a compiled program.
    pub fn outputs(&self) -> (&[Output], &[String]) {
        (&self.imported.computed, &self.imported.outputs)
    }

    /// Threads that run the integer kernels.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// Instruction set of the convolution kernel.
    pub fn isa(&self) -> &'static str {
        self.kernel.isa
    }

    /// One inference: NCHW f32 values in, logits (the first output) out.
    pub fn run(&mut self, input: &[f32]) -> Result<&[f32]> {
        self.run_all(input).map(|outputs| &outputs[0][..])
    }

    /// As [`Model::run`], with the values of every output that is computed, in the order of [`Model::outputs`].
    pub fn run_all(&mut self, input: &[f32]) -> Result<&[Vec<f32>]> {
        self.imported.run(input)
    }

    /// As [`Model::run`], from a prepared picture: the same logits as of its values, without making a tensor of them.
    pub fn run_pixels(&mut self, pixels: &Pixels<'_>) -> Result<&[f32]> {
        self.run_pixels_all(pixels).map(|outputs| &outputs[0][..])
    }

    /// As [`Model::run_pixels`], with the values of every output that is computed.
    pub fn run_pixels_all(&mut self, pixels: &Pixels<'_>) -> Result<&[Vec<f32>]> {
        self.imported.run_pixels(pixels)
    }

    /// As [`Model::run`]; `times` receives the time of each step of the int8 program, in the order of [`Model::report`]'s
    /// int8 nodes. Empty where tract runs a part of the model.
    pub fn run_profiled(&mut self, input: &[f32], times: &mut Vec<Duration>) -> Result<&[f32]> {
        self.imported.run_profiled(input, times).map(|outputs| &outputs[0][..])
    }

    /// What runs where.
    pub fn report(&self) -> Report {
        let programs = &self.imported.programs;
        let regions = programs.iter().flat_map(|p| p.info()).map(|i| NodeReport {
            name: i.name.clone(),
            op: i.op.clone(),
            runs_on: i.kernel.clone(),
            input_shapes: i.inputs.clone(),
            output_shape: i.output.clone(),
            scale: i.quant.map(|q| q.0),
            zero_point: i.quant.map(|q| q.1),
            macs: i.macs,
            weight_bytes: i.weight_bytes,
            why: None,
        });
        let tract = self.imported.fallbacks.iter().map(|f| NodeReport {
            name: f.name.clone(),
            op: f.op.clone(),
            runs_on: "tract".into(),
            input_shapes: vec![],
            output_shape: vec![],
            scale: None,
            zero_point: None,
            macs: 0,
            weight_bytes: 0,
            why: Some(f.why.clone()),
        });
        let nodes: Vec<NodeReport> = regions.chain(tract).collect();
        Report {
            model: self.path.display().to_string(),
            isa: self.kernel.isa.into(),
            threads: self.threads(),
            int8_macs: nodes.iter().map(|n| n.macs).sum(),
            float_macs: self.imported.float_macs,
            weight_bytes: nodes.iter().map(|n| n.weight_bytes).sum(),
            arena_bytes: programs.iter().map(|p| p.arena_bytes() as u64).sum(),
            regions: programs.len(),
            nodes,
        }
    }
}
