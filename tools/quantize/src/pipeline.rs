//! The whole way from a float model to a QDQ model and its report.

use crate::data::Inputs;
use crate::equalize::equalize;
use crate::float::{self, Runner, Shapes};
use crate::fold::FoldReport;
use crate::observe::{Feed, Histogram, Range, calibrate, channel_means};
use crate::onnx::{self, ModelProto};
use crate::plan::{self, Plan};
use crate::qdq::{self, Written};
use crate::report::{Report, TensorReport, evaluate};
use crate::scheme::Affine;
use crate::simplify::{clean, shaped};
use crate::{Error, Result, fold};
use prost::Message;
use std::collections::HashMap;

pub use crate::recipe::{Options, Recipe};

/// Told about each stage: its name and number of inputs; returns what to call after each input.
pub type Progress<'a> = &'a dyn Fn(&'static str, usize) -> Box<dyn Fn() + Sync>;

/// Every fifth input is held back for measuring; a single one serves both purposes.
pub fn split(count: usize) -> (Vec<usize>, Vec<usize>) {
    let (held, used): (Vec<_>, Vec<_>) = (0..count).partition(|i| i % 5 == 4);
    match (count, held.is_empty()) {
        (0 | 1, _) => (used.clone(), used),
        (_, true) => (used[..count - 1].to_vec(), vec![count - 1]),
        _ => (used, held),
    }
}

/// A float model in the form that is quantized.
pub struct Prepared {
    /// Folded, canonical, perhaps equalized.
    pub model: ModelProto,
    /// Shapes of its tensors, batch 1.
    pub shapes: Shapes,
    /// What folding did.
    pub fold: FoldReport,
    /// Pairs of convolutions that were equalized.
    pub equalized: usize,
    /// What becomes int8.
    pub plan: Plan,
}

/// What was measured on calibration inputs.
pub struct Measured {
    /// Parameters and chosen range of every tensor of the plan.
    pub params: HashMap<String, (Affine, Range)>,
    /// Distributions, where the calibrator made them.
    pub histograms: HashMap<String, Histogram>,
    /// Channel means of the inputs of weighted nodes; empty without bias correction.
    pub means: HashMap<String, Vec<f64>>,
}

/// Folds and plans a model read by [`crate::input`], for inputs of `shape` (1×C×H×W).
pub fn prepare(model: &ModelProto, shape: &[usize], options: &Options) -> Result<Prepared> {
    let mut model = model.clone();
    let fold = fold::fold(&mut model)?;
    // A symbolic size would be lost on whoever runs the file: ranges and paddings belong to this one.
    let (input, _) = onnx::data_input(onnx::graph(&model)?)?;
    clean::fix_size(onnx::graph_mut(&mut model)?, &input, shape);
    let mut shapes = float::shapes(&model, shape)?;
    let graph = onnx::graph_mut(&mut model)?;
    shaped::apply(graph, &mut shapes)?;
    plan::canonicalize_heads(graph, &shapes)?;
    let equalized = if options.equalize { equalize(graph)? } else { 0 };
    onnx::validate(&model)?;
    let plan = plan::plan(onnx::graph(&model)?, &shapes, options.residual, &options.keep_float)?;
    Ok(Prepared { model, shapes, fold, equalized, plan })
}

/// Runs the calibration inputs.
pub fn measure(p: &Prepared, shape: &[usize], inputs: &Inputs, used: &[usize], options: &Options, progress: Progress) -> Result<Measured> {
    let skip = onnx::graph(&p.model)?.output.len();
    let own: Vec<String> = p.plan.tensors.iter().filter(|t| !p.plan.shared.contains_key(*t)).cloned().collect();
    let passes = options.calibrator.passes() + usize::from(options.bias_correction);
    let tick = progress("calibrating", used.len() * passes);
    let load = |i: usize| inputs.load(i);
    let feed = Feed { images: used, load: &load, tick: &tick };
    let chosen = calibrate(&Runner::new(&p.model, shape, &own)?, skip, &own, &feed, options.calibrator, options.activations)?;
    let mut params: HashMap<String, (Affine, Range)> = HashMap::new();
    let mut histograms = HashMap::new();
    for (tensor, ((lo, hi), histogram)) in own.iter().zip(chosen) {
        params.insert(tensor.clone(), (Affine::from_range(lo, hi, options.activations), (lo, hi)));
        histograms.extend(histogram.map(|h| (tensor.clone(), h)));
    }
    // In order of computation, so that a chain of pools finds its source.
    for tensor in p.plan.tensors.iter().filter(|t| p.plan.shared.contains_key(*t)) {
        let source = params.get(&p.plan.shared[tensor]).copied();
        let found = source.ok_or_else(|| Error::tensor(tensor, "the input it shares parameters with is not quantized"))?;
        params.insert(tensor.clone(), found);
    }
    let mut means = HashMap::new();
    if options.bias_correction {
        let mut read: Vec<String> = p.plan.weighted.values().cloned().collect();
        read.sort_unstable();
        read.dedup();
        let runner = Runner::new(&p.model, shape, &read)?;
        let found = channel_means(&runner, skip, read.len(), &feed)?;
        means.extend(read.into_iter().zip(found));
    }
    Ok(Measured { params, histograms, means })
}

/// Writes the int8 model of a plan.
pub fn write(p: &Prepared, plan: &Plan, measured: &Measured, options: &Options) -> Result<(ModelProto, Written)> {
    let mut int8 = p.model.clone();
    let written = qdq::write(onnx::graph_mut(&mut int8)?, plan, measured, options.weights)?;
    int8.producer_name = "edge-quantize".into();
    int8.producer_version = env!("CARGO_PKG_VERSION").into();
    Ok((int8, written))
}

/// Quantizes a model read by [`crate::input`], for inputs of `shape` (1×C×H×W). Returns the encoded file and the report.
pub fn quantize(model: &ModelProto, shape: &[usize], inputs: &Inputs, options: &Options, progress: Progress) -> Result<(Vec<u8>, Report)> {
    let start = std::time::Instant::now();
    let bytes_before = model.encoded_len();
    let p = prepare(model, shape, options)?;
    let (used, held) = split(inputs.len());
    let measured = measure(&p, shape, inputs, &used, options, progress)?;
    let (int8, written) = write(&p, &p.plan, &measured, options)?;
    let bytes = int8.encode_to_vec();
    let int8 = onnx::decode(&bytes)?; // measure what a reader of the file gets

    let skip = onnx::graph(&p.model)?.output.len();
    let tensors = &p.plan.tensors;
    let dequantized: Vec<String> = tensors.iter().map(|t| written.dequantized[t].clone()).collect();
    let (float, int8) = (Runner::new(&p.model, shape, tensors)?, Runner::new(&int8, shape, &dequantized)?);
    let tick = progress("measuring", held.len());
    let (evaluation, sqnr) = evaluate(&float, &int8, skip, tensors.len(), inputs, &held, &tick)?;
    let tensors = tensors.iter().zip(sqnr).map(|(t, sqnr_db)| {
        let (parameters, range) = measured.params[t];
        TensorReport { tensor: t.clone(), range, parameters, sqnr_db, histogram: measured.histograms.get(t).map(Into::into) }
    });
    let report = Report {
        options: options.clone(),
        calibration_images: used.len(),
        fold: p.fold,
        equalized: p.equalized,
        layers: written.layers,
        tensors: tensors.collect(),
        float_nodes: p.plan.float,
        bytes_before,
        bytes_after: bytes.len(),
        evaluation,
        sensitivity: Vec::new(),
        seconds: start.elapsed().as_secs_f64(),
    };
    Ok((bytes, report))
}
