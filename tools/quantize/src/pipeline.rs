//! The whole way from a float model to a QDQ model and its report.

use crate::data::Inputs;
use crate::equalize::equalize;
use crate::float::{self, Runner, Shapes};
use crate::fold::FoldReport;
use crate::observe::{Feed, Histogram, Range, calibrate, channels};
use crate::onnx::{self, ModelProto};
use crate::plan::{self, Plan};
use crate::qdq::{self, Written};
use crate::report::{Evaluation, Report, TensorReport, evaluate, evaluate_program};
use crate::rounding::{MAX_BYTES, Moments, Reads, Rounded, Rounding};
use crate::scheme::{self, Affine};
use crate::{Error, Result, fold, shaped};
use edge_infer::model::{LoadOptions, Model};
use ndarray::Array2;
use prost::Message;
use rayon::prelude::*;
use std::collections::HashMap;
use std::io::Write;
use tract_onnx::pb::tensor_shape_proto::dimension::Value as Dim;
use tract_onnx::pb::type_proto::Value as Type;

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
    /// Classes of tensors whose channels were equalized.
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
    /// Rounded weights, by position of their node; empty with rounding to nearest.
    pub rounded: HashMap<usize, Rounded>,
    /// What to add to the bias of the layer at this position.
    pub center: Option<(usize, Vec<f64>)>,
}

/// Folds and plans a model read by [`crate::input`], for inputs of `shape` (1×C×H×W).
pub fn prepare(model: &ModelProto, shape: &[usize], options: &Options) -> Result<Prepared> {
    let mut model = model.clone();
    let fold = fold::fold(&mut model)?;
    // A symbolic size would be lost on whoever runs the file: ranges and paddings belong to this one.
    let (input, _) = onnx::data_input(onnx::graph(&model)?)?;
    fix_size(onnx::graph_mut(&mut model)?, &input, shape);
    let mut shapes = float::shapes(&model, shape)?;
    let graph = onnx::graph_mut(&mut model)?;
    shaped::apply(graph, &mut shapes)?;
    plan::canonicalize_heads(graph, &shapes)?;
    onnx::validate(&model)?;
    let plan = plan::plan(onnx::graph(&model)?, &shapes, options.residual, &options.keep_float)?;
    Ok(Prepared { model, shapes, fold, equalized: 0, plan })
}

/// Writes height, width and channels into the data input; the batch stays as it is.
fn fix_size(graph: &mut onnx::GraphProto, name: &str, shape: &[usize]) {
    let Some(input) = graph.input.iter_mut().find(|i| i.name == name) else { return };
    if let Some(Type::TensorType(t)) = input.r#type.as_mut().and_then(|t| t.value.as_mut()) {
        for (dim, &size) in t.shape.get_or_insert_default().dim.iter_mut().zip(shape).skip(1) {
            dim.value = Some(Dim::DimValue(size as i64));
        }
    }
}

/// Equalizes the channels of a prepared model, as calibration inputs show them.
pub fn balance(p: &mut Prepared, shape: &[usize], inputs: &Inputs, used: &[usize], progress: Progress) -> Result<()> {
    let graph = onnx::graph(&p.model)?;
    let own: Vec<String> = p.plan.tensors.iter().filter(|t| !p.plan.shared.contains_key(*t)).cloned().collect();
    let (tick, load) = (progress("equalizing", used.len()), |i: usize| inputs.load(i));
    let feed = Feed { images: used, load: &load, tick: &tick };
    let found = channels(&Runner::new(&p.model, shape, &own)?, graph.output.len(), own.len(), &feed)?;
    p.equalized = equalize(onnx::graph_mut(&mut p.model)?, &p.shapes, &own.into_iter().zip(found).collect())?;
    Ok(())
}

/// Runs the calibration inputs.
pub fn measure(p: &Prepared, shape: &[usize], inputs: &Inputs, used: &[usize], options: &Options, progress: Progress) -> Result<Measured> {
    let skip = onnx::graph(&p.model)?.output.len();
    let own: Vec<String> = p.plan.tensors.iter().filter(|t| !p.plan.shared.contains_key(*t)).cloned().collect();
    let passes = options.calibrator.passes() + usize::from(options.bias_correction);
    // Rounding may need several passes.
    let passes = passes + if options.rounding == Rounding::Compensated { rounding_batches(p, used.len())?.len() } else { 0 };
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
    join_ranges(&p.plan, &mut params, options);
    // In order of computation, so that a chain of pools finds its source.
    for tensor in p.plan.tensors.iter().filter(|t| p.plan.shared.contains_key(*t)) {
        let source = params.get(&p.plan.shared[tensor]).copied();
        let found = source.ok_or_else(|| Error::tensor(tensor, "the input it shares parameters with is not quantized"))?;
        params.insert(tensor.clone(), found);
    }
    let rounded = if options.rounding == Rounding::Compensated { compensate(p, shape, &params, &feed, options)? } else { HashMap::new() };
    let mut means = HashMap::new();
    if options.bias_correction && rounded.len() < p.plan.weighted.len() {
        let mut read: Vec<String> = p.plan.weighted.values().cloned().collect();
        read.sort_unstable();
        read.dedup();
        let runner = Runner::new(&p.model, shape, &read)?;
        let found = channels(&runner, skip, read.len(), &feed)?;
        means.extend(read.into_iter().zip(found.into_iter().map(|t| t.iter().map(|c| c.mean).collect())));
    }
    Ok(Measured { params, histograms, means, rounded, center: None })
}

/// A tensor joins the common range only if that is at most so many times its own: it loses two bits at most.
const JOINT_SPAN: f64 = 4.0;

/// Gives tensors that are concatenated one range, the union of theirs; those it would cost too much keep their own, and are requantized when
/// they are joined.
fn join_ranges(plan: &Plan, params: &mut HashMap<String, (Affine, Range)>, options: &Options) {
    for group in &plan.joint {
        let members: Vec<(&String, Range)> = group.iter().filter_map(|t| Some((t, params.get(t)?.1))).collect();
        let (lo, hi) = members.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(lo, hi), (_, r)| (lo.min(r.0), hi.max(r.1)));
        let joined = (Affine::from_range(lo, hi, options.activations), (lo, hi));
        for (tensor, (a, b)) in members {
            if hi - lo <= JOINT_SPAN * (b - a) {
                params.insert(tensor.clone(), joined);
            }
        }
    }
}

/// Rounds weights for the inputs that the float network gives their layers, as many layers at a time as memory allows.
fn compensate(
    p: &Prepared,
    shape: &[usize],
    params: &HashMap<String, (Affine, Range)>,
    feed: &Feed,
    options: &Options,
) -> Result<HashMap<usize, Rounded>> {
    let skip = onnx::graph(&p.model)?.output.len();
    let mut rounded = HashMap::new();
    for batch in rounding_batches(p, feed.images.len())? {
        let mut read: Vec<&String> = batch.iter().map(|l| &p.plan.weighted[&l.0]).collect();
        read.sort_unstable();
        read.dedup();
        let runner = Runner::new(&p.model, shape, &read.iter().map(|s| (*s).clone()).collect::<Vec<_>>())?;
        let sources: Vec<usize> = batch.iter().map(|l| read.partition_point(|r| **r < p.plan.weighted[&l.0])).collect();
        let mut moments: Vec<Moments> = batch.iter().map(|l| Moments::new(l.1.clone())).collect();
        let sample = |image: usize, input: Vec<f32>| {
            let mut samples: Vec<Option<Array2<f32>>> = vec![None; batch.len()];
            runner.run(&input, |i, _, x| {
                for (l, _) in sources.iter().enumerate().filter(|(_, s)| i == skip + **s) {
                    samples[l] = Some(batch[l].1.sample(x, image, feed.images.len()));
                }
            })?;
            Ok(samples)
        };
        feed.chunks(SAMPLED, sample, |images| {
            moments.par_iter_mut().enumerate().for_each(|(l, m)| {
                let rows: Vec<_> = images.iter().filter_map(|s| s[l].as_ref().map(|s| s.view())).collect();
                if let Ok(rows) = ndarray::concatenate(ndarray::Axis(0), &rows) {
                    m.add(&rows);
                }
            });
        })?;
        for ((i, _), m) in batch.iter().zip(moments) {
            let layer = p.weights(*i)?;
            let step = params[&p.plan.weighted[i]].0.scale;
            let grid = scheme::grid(&layer.data, &layer.bias, layer.dims[0], step, options.weights);
            rounded.insert(*i, m.round(&layer.data, &grid.scales, step));
        }
    }
    Ok(rounded)
}

/// Images whose samples are held at a time.
const SAMPLED: usize = 8;
/// Covariances and samples that are held at a time, bytes, unless one layer alone needs more.
const ROUNDING_BYTES: usize = 320 << 20;

/// The layers of a plan that can be rounded with compensation, in order, in batches that fit memory.
fn rounding_batches(p: &Prepared, images: usize) -> Result<Vec<Vec<(usize, Reads)>>> {
    let graph = onnx::graph(&p.model)?;
    let mut layers: Vec<(&usize, &String)> = p.plan.weighted.iter().collect();
    layers.sort_unstable();
    let mut batches: Vec<Vec<(usize, Reads)>> = Vec::new();
    let mut left = 0;
    for (&i, x) in layers {
        let dims = p.weights(i)?.dims;
        let Some(reads) = p.shapes.get(x).and_then(|s| Reads::of(&graph.node[i], &dims, s)).filter(|r| r.bytes() <= MAX_BYTES) else {
            continue;
        };
        let needed = reads.bytes() + SAMPLED * reads.sample_bytes(images);
        if batches.is_empty() || needed > left {
            batches.push(Vec::new());
            left = ROUNDING_BYTES;
        }
        left = left.saturating_sub(needed);
        if let Some(batch) = batches.last_mut() {
            batch.push((i, reads));
        }
    }
    Ok(batches)
}

/// Weights of a layer, and its bias, empty without one.
struct LayerWeights {
    dims: Vec<usize>,
    data: Vec<f32>,
    bias: Vec<f32>,
}

impl Prepared {
    /// What a layer of the plan holds.
    fn weights(&self, layer: usize) -> Result<LayerWeights> {
        let graph = onnx::graph(&self.model)?;
        let node = &graph.node[layer];
        let constant = |i: usize| graph.initializer.iter().find(|t| node.input.get(i).is_some_and(|n| *n == t.name));
        let weights = constant(1).ok_or_else(|| onnx::node_error(node, "its weights are not constant"))?;
        let bias = constant(2).map_or(Ok(vec![]), onnx::f32_data)?;
        Ok(LayerWeights { dims: onnx::tensor_dims(weights)?, data: onnx::f32_data(weights)?, bias })
    }
}

/// Most images that show the mean error of the logits.
const CENTERING: usize = 32;

/// Mean change of the logits on calibration inputs, put into the bias of the last layer; nothing where that is no layer of the plan.
fn center(
    p: &Prepared,
    shape: &[usize],
    inputs: &Inputs,
    used: &[usize],
    measured: &mut Measured,
    options: &Options,
    progress: Progress,
) -> Result<()> {
    let graph = onnx::graph(&p.model)?;
    let last = graph
        .node
        .iter()
        .enumerate()
        .find(|(i, n)| p.plan.weighted.contains_key(i) && n.output.first() == graph.output.first().map(|o| &o.name));
    let Some((at, _)) = last else { return Ok(()) };
    let (float, int8) = (Runner::new(&p.model, shape, &[])?, Runner::new(&write(p, &p.plan, measured, options)?.0, shape, &[])?);
    let some: Vec<usize> = used.iter().copied().step_by(used.len().div_ceil(CENTERING).max(1)).collect();
    let (tick, load) = (progress("centering", some.len()), |i: usize| inputs.load(i));
    let difference = |_, input: Vec<f32>| {
        let mut logits: Vec<f32> = Vec::new();
        float.run(&input, |i, _, v| {
            if i == 0 {
                logits = v.to_vec()
            }
        })?;
        int8.run(&input, |i, _, v| {
            if i == 0 {
                logits.iter_mut().zip(v).for_each(|(f, q)| *f -= q)
            }
        })?;
        Ok(logits)
    };
    let mut sums: Vec<f64> = Vec::new();
    Feed { images: &some, load: &load, tick: &tick }.chunks(some.len().max(1), difference, |images| {
        for one in images {
            sums.resize(one.len(), 0.0);
            sums.iter_mut().zip(one).for_each(|(s, d)| *s += f64::from(d) / some.len() as f64);
        }
    })?;
    measured.center = Some((at, sums));
    Ok(())
}

/// Writes the int8 model of a plan.
pub fn write(p: &Prepared, plan: &Plan, measured: &Measured, options: &Options) -> Result<(ModelProto, Written)> {
    let mut int8 = p.model.clone();
    let written = qdq::write(onnx::graph_mut(&mut int8)?, plan, measured, options.weights)?;
    int8.producer_name = "edge-quantize".into();
    int8.producer_version = env!("CARGO_PKG_VERSION").into();
    Ok((int8, written))
}

/// The written file as edge-infer runs it.
fn program(bytes: &[u8]) -> Result<Model> {
    let io = |e| Error::io(std::env::temp_dir(), e);
    let mut file = tempfile::Builder::new().suffix(".onnx").tempfile().map_err(io)?;
    file.write_all(bytes).map_err(io)?;
    Model::load(file.path(), &LoadOptions::default())
}

/// Quantizes a model read by [`crate::input`], for inputs of `shape` (1×C×H×W). Returns the encoded file and the report.
pub fn quantize(model: &ModelProto, shape: &[usize], inputs: &Inputs, options: &Options, progress: Progress) -> Result<(Vec<u8>, Report)> {
    let start = std::time::Instant::now();
    let bytes_before = model.encoded_len();
    let mut p = prepare(model, shape, options)?;
    let (used, held) = split(inputs.len());
    if options.equalize {
        balance(&mut p, shape, inputs, &used, progress)?;
    }
    let mut measured = measure(&p, shape, inputs, &used, options, progress)?;
    if options.bias_correction {
        center(&p, shape, inputs, &used, &mut measured, options, progress)?;
    }
    let (int8, written) = write(&p, &p.plan, &measured, options)?;
    let bytes = int8.encode_to_vec();
    let int8 = onnx::decode(&bytes)?; // measure what a reader of the file gets

    let skip = onnx::graph(&p.model)?.output.len();
    let tensors = &p.plan.tensors;
    let dequantized: Vec<String> = tensors.iter().map(|t| written.dequantized[t].clone()).collect();
    let (float, int8) = (Runner::new(&p.model, shape, tensors)?, Runner::new(&int8, shape, &dequantized)?);
    let tick = progress("measuring", held.len());
    let (simulated, sqnr) = evaluate(&float, &int8, skip, tensors.len(), inputs, &held, &tick)?;
    let evaluation = match program(&bytes) {
        Ok(mut model) => evaluate_program(&float, &mut model, inputs, &held, &*progress("running", held.len()))?,
        Err(why) => Evaluation { simulated: Some(why.to_string()), ..simulated },
    };
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
