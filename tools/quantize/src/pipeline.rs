//! The whole way from a float model to a QDQ model and its report.

use crate::data::Inputs;
use crate::float::{self, Runner};
use crate::observe::{Calibrator, Feed, calibrate};
use crate::onnx::{self, ModelProto};
use crate::plan::{self, Residual};
use crate::report::{Report, TensorReport, evaluate};
use crate::scheme::{ActivationType, Affine};
use crate::{Error, Result, fold, opset, qdq};
use prost::Message;
use std::collections::HashMap;

/// What can be chosen.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// How ranges are chosen.
    pub calibrator: Calibrator,
    /// Integer type of activations.
    pub activations: ActivationType,
    /// Form of residual sums.
    pub residual: Residual,
}

/// Told about each stage: its name and number of inputs; returns what to call after each input.
pub type Progress<'a> = &'a dyn Fn(&'static str, usize) -> Box<dyn Fn() + Sync>;

/// Every fifth input is held back for measuring; a single one serves both purposes.
fn split(count: usize) -> (Vec<usize>, Vec<usize>) {
    let (held, used): (Vec<_>, Vec<_>) = (0..count).partition(|i| i % 5 == 4);
    match (count, held.is_empty()) {
        (0 | 1, _) => (used.clone(), used),
        (_, true) => (used[..count - 1].to_vec(), vec![count - 1]),
        _ => (used, held),
    }
}

/// Quantizes a validated model for inputs of `shape` (1×C×H×W). Returns the encoded file and the report.
pub fn quantize(model: &ModelProto, shape: &[usize], inputs: &Inputs, options: Options, progress: Progress) -> Result<(Vec<u8>, Report)> {
    let start = std::time::Instant::now();
    let bytes_before = model.encoded_len();
    let mut model = model.clone();
    let fold = fold::fold(&mut model)?;
    opset::raise(&mut model)?;
    let shapes = float::shapes(&model, shape)?;
    plan::canonicalize_heads(onnx::graph_mut(&mut model)?, &shapes)?;
    onnx::validate(&model)?;
    let plan = plan::plan(onnx::graph(&model)?, &shapes, options.residual)?;
    let (used, held) = split(inputs.len());

    let skip = onnx::graph(&model)?.output.len();
    let own: Vec<String> = plan.tensors.iter().filter(|t| !plan.shared.contains_key(*t)).cloned().collect();
    let ranges = {
        let runner = Runner::new(&model, shape, &own)?;
        let passes = if options.calibrator == Calibrator::Mse { 2 } else { 1 };
        let tick = progress("calibrating", used.len() * passes);
        let load = |i: usize| inputs.load(i);
        let feed = Feed { images: &used, load: &load, tick: &tick };
        calibrate(&runner, skip, &own, &feed, options.calibrator, options.activations)?
    };
    let mut params: HashMap<String, (Affine, (f64, f64))> = HashMap::new();
    for (tensor, &(lo, hi)) in own.iter().zip(&ranges) {
        params.insert(tensor.clone(), (Affine::from_range(lo, hi, options.activations), (lo, hi)));
    }
    // In order of computation, so that a chain of pools finds its source.
    for tensor in plan.tensors.iter().filter(|t| plan.shared.contains_key(*t)) {
        let source = params.get(&plan.shared[tensor]).copied();
        let p = source.ok_or_else(|| Error::tensor(tensor, "the input it shares parameters with is not quantized"))?;
        params.insert(tensor.clone(), p);
    }
    let affine: HashMap<String, Affine> = params.iter().map(|(t, p)| (t.clone(), p.0)).collect();
    let mut int8 = model.clone();
    let written = qdq::write(onnx::graph_mut(&mut int8)?, &plan, &affine)?;
    int8.producer_name = "edge-quantize".into();
    int8.producer_version = env!("CARGO_PKG_VERSION").into();
    let bytes = int8.encode_to_vec();
    let int8 = onnx::decode(&bytes)?; // measure what a reader of the file gets

    let dequantized: Vec<String> = plan.tensors.iter().map(|t| written.dequantized[t].clone()).collect();
    let float_runner = Runner::new(&model, shape, &plan.tensors)?;
    let int8_runner = Runner::new(&int8, shape, &dequantized)?;
    let tick = progress("measuring", held.len());
    let (evaluation, sqnr) = evaluate(&float_runner, &int8_runner, skip, plan.tensors.len(), inputs, &held, &tick)?;
    let tensors = plan.tensors.iter().zip(sqnr).map(|(t, sqnr_db)| {
        let (parameters, range) = params[t];
        TensorReport { tensor: t.clone(), range, parameters, sqnr_db }
    });
    let report = Report {
        calibrator: options.calibrator,
        residual: options.residual,
        calibration_images: used.len(),
        fold,
        layers: written.layers,
        tensors: tensors.collect(),
        float_nodes: plan.float,
        bytes_before,
        bytes_after: bytes.len(),
        evaluation,
        seconds: start.elapsed().as_secs_f64(),
    };
    Ok((bytes, report))
}
