//! What quantization cost: measured on held-back inputs, printed as a table or JSON.

use crate::data::Inputs;
use crate::float::Runner;
use crate::fold::FoldReport;
use crate::observe::Histogram;
use crate::pipeline::Options;
use crate::plan::FloatNode;
use crate::qdq::LayerReport;
use crate::scheme::{Affine, sqnr_db};
use crate::sensitivity::LayerCost;
use crate::{Error, Result};
use edge_infer::model::Model;
use rayon::prelude::*;
use serde::Serialize;
use std::fmt;

/// One quantized tensor.
#[derive(Debug, Clone, Serialize)]
pub struct TensorReport {
    /// Its name in the float model.
    pub tensor: String,
    /// Calibrated range, real values.
    pub range: (f64, f64),
    /// Scale, zero point and type.
    pub parameters: Affine,
    /// Float against dequantized value on the held-back inputs, errors of earlier layers included, dB; null where exact.
    pub sqnr_db: f64,
    /// Distribution on the calibration inputs, where the calibrator needed one.
    pub histogram: Option<Bars>,
}

/// A coarse histogram; exact zeros are left out.
#[derive(Debug, Clone, Serialize)]
pub struct Bars {
    /// Smallest and largest value.
    pub range: (f64, f64),
    /// Counts in equal bins.
    pub counts: Vec<u64>,
}

impl From<&Histogram> for Bars {
    fn from(h: &Histogram) -> Self {
        Bars { range: h.range(), counts: h.coarse(64) }
    }
}

/// An input whose top-1 class changed.
#[derive(Debug, Clone, Serialize)]
pub struct Change {
    /// Its file, or file and row.
    pub input: String,
    /// Class of the float model.
    pub float: usize,
    /// Class of the int8 model.
    pub int8: usize,
}

/// Float against int8 on the held-back inputs.
#[derive(Debug, Clone, Serialize)]
pub struct Evaluation {
    /// Number of inputs.
    pub images: usize,
    /// Share with the same top-1 class.
    pub top1_agreement: f64,
    /// Signal to quantization noise of the first output, dB.
    pub logit_sqnr_db: f64,
    /// Inputs whose class changed.
    pub changes: Vec<Change>,
    /// Why these are figures of a float simulation: edge-infer does not run the model. Otherwise they are of its integers.
    pub simulated: Option<String>,
}

/// Everything `edge-quantize` did.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// What was chosen.
    pub options: Options,
    /// Inputs that set the ranges.
    pub calibration_images: usize,
    /// BatchNorm folding.
    pub fold: FoldReport,
    /// Classes of tensors whose channels were equalized.
    pub equalized: usize,
    /// Weights, one entry per Conv and Gemm.
    pub layers: Vec<LayerReport>,
    /// Activations.
    pub tensors: Vec<TensorReport>,
    /// Nodes left in float.
    pub float_nodes: Vec<FloatNode>,
    /// Bytes of the float file.
    pub bytes_before: usize,
    /// Bytes of the int8 file.
    pub bytes_after: usize,
    /// Accuracy against the float model.
    pub evaluation: Evaluation,
    /// What each layer costs alone; empty unless asked for.
    pub sensitivity: Vec<LayerCost>,
    /// Wall time, seconds.
    pub seconds: f64,
}

/// Energy of the signal and of the error, per tensor.
type Sums = Vec<(f64, f64)>;

/// Compares two runners: output 0 is the logits, outputs from `skip` on correspond.
/// Returns the evaluation and one SQNR per compared tensor.
pub fn evaluate(
    float: &Runner,
    int8: &Runner,
    skip: usize,
    tensors: usize,
    inputs: &Inputs,
    images: &[usize],
    tick: &(dyn Fn() + Sync),
) -> Result<(Evaluation, Vec<f64>)> {
    let one = |&i: &usize| -> Result<(Option<Change>, Sums)> {
        let input = inputs.load(i)?;
        let mut want: Vec<Vec<f32>> = vec![Vec::new(); skip + tensors];
        float.run(&input, |t, _, v| want[t] = v.to_vec())?;
        let mut sums = vec![(0.0, 0.0); skip + tensors];
        let mut change = None;
        let mut odd = false;
        int8.run(&input, |t, _, got| {
            odd |= got.len() != want[t].len();
            if t == 0 {
                let (a, b) = (argmax(&want[0]), argmax(got));
                change = (a != b).then(|| Change { input: inputs.name(i), float: a, int8: b });
            }
            if t > 0 && t < skip || t >= want.len() {
                return;
            }
            for (&w, &g) in want[t].iter().zip(got) {
                sums[t].0 += f64::from(w).powi(2);
                sums[t].1 += (f64::from(w) - f64::from(g)).powi(2);
            }
            want[t] = Vec::new();
        })?;
        tick();
        if odd { Err(Error::Tract("float and int8 outputs differ in size".into())) } else { Ok((change, sums)) }
    };
    let (mut changes, mut total) = (Vec::new(), vec![(0.0, 0.0); skip + tensors]);
    for chunk in images.chunks(16) {
        let done: Vec<_> = chunk.par_iter().map(one).collect::<Result<_>>()?;
        for (change, sums) in done {
            changes.extend(change);
            total.iter_mut().zip(sums).for_each(|(t, s)| *t = (t.0 + s.0, t.1 + s.1));
        }
    }
    let db = |&(signal, noise): &(f64, f64)| sqnr_db(signal, noise);
    let agreed = images.len() - changes.len();
    let evaluation = Evaluation {
        images: images.len(),
        top1_agreement: agreed as f64 / images.len().max(1) as f64,
        logit_sqnr_db: db(&total[0]),
        changes,
        simulated: None,
    };
    Ok((evaluation, total[skip..].iter().map(db).collect()))
}

/// Compares the first output of the float network with what edge-infer makes of the int8 file.
pub fn evaluate_program(float: &Runner, int8: &mut Model, inputs: &Inputs, images: &[usize], tick: &dyn Fn()) -> Result<Evaluation> {
    let (mut changes, mut signal, mut noise) = (Vec::new(), 0.0, 0.0);
    for &i in images {
        let input = inputs.load(i)?;
        let mut want = Vec::new();
        float.run(&input, |t, _, v| {
            if t == 0 {
                want = v.to_vec();
            }
        })?;
        let got = int8.run(&input)?;
        if got.len() != want.len() {
            return Err(Error::Tract("float and int8 outputs differ in size".into()));
        }
        for (&w, &g) in want.iter().zip(got) {
            signal += f64::from(w).powi(2);
            noise += (f64::from(w) - f64::from(g)).powi(2);
        }
        let (a, b) = (argmax(&want), argmax(got));
        changes.extend((a != b).then(|| Change { input: inputs.name(i), float: a, int8: b }));
        tick();
    }
    let agreed = images.len() - changes.len();
    let top1_agreement = agreed as f64 / images.len().max(1) as f64;
    Ok(Evaluation { images: images.len(), top1_agreement, logit_sqnr_db: sqnr_db(signal, noise), changes, simulated: None })
}

/// Position of the largest value, the first of equals.
pub fn argmax(values: &[f32]) -> usize {
    let first_max = |best: usize, i: usize| if values[i] > values[best] { i } else { best };
    (0..values.len()).fold(0, first_max)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let megabytes = |b: usize| b as f64 / 1e6;
        writeln!(f, "{:<44} {:>20} {:>12} {:>10}", "weights", "dimensions", "max scale", "SQNR dB")?;
        for l in &self.layers {
            let dims = l.weight_dims.iter().map(usize::to_string).collect::<Vec<_>>().join("×");
            write!(f, "{:<44} {dims:>20} {:>12.6} {:>10.1}", l.node, l.weight_scales.1, l.weight_sqnr_db)?;
            match l.enlarged_channels {
                0 => writeln!(f)?,
                n => writeln!(f, "  {n} channels widened for their bias")?,
            }
        }
        writeln!(f, "\n{:<44} {:>20} {:>12} {:>10} {:>10}", "activations", "range", "scale", "zero", "SQNR dB")?;
        for t in &self.tensors {
            let range = format!("{:.3} … {:.3}", t.range.0, t.range.1);
            let (scale, zero) = (t.parameters.scale, t.parameters.zero_point);
            writeln!(f, "{:<44} {range:>20} {scale:>12.6} {zero:>10} {:>10.1}", t.tensor, t.sqnr_db)?;
        }
        writeln!(f, "\nBatchNorm folded   {}", self.fold.folded)?;
        if self.fold.affine > 0 {
            writeln!(f, "scalings folded    {}", self.fold.affine)?;
        }
        if self.options.equalize {
            writeln!(f, "classes equalized  {}", self.equalized)?;
        }
        for c in &self.sensitivity {
            let (db, same) = (c.logit_sqnr_db, c.top1_agreement * 100.0);
            writeln!(f, "alone in int8      {:<44} {db:>8.1} dB {same:>8.2} % {:>10.1} MMAC", c.node, c.macs as f64 / 1e6)?;
        }
        for k in &self.fold.kept {
            writeln!(f, "BatchNorm kept     {}: {}", k.node, k.reason)?;
        }
        for n in &self.float_nodes {
            writeln!(f, "left in float      {}: {}", n.node, n.reason)?;
        }
        writeln!(f, "size               {:.2} MB → {:.2} MB", megabytes(self.bytes_before), megabytes(self.bytes_after))?;
        let e = &self.evaluation;
        writeln!(f, "top-1 agreement    {:.2} % on {} held-back images", e.top1_agreement * 100.0, e.images)?;
        writeln!(f, "logit SQNR         {:.1} dB", e.logit_sqnr_db)?;
        if let Some(why) = &e.simulated {
            writeln!(f, "                   both simulated in float: edge-infer does not run the model: {why}")?;
        }
        write!(f, "time               {:.1} s, {} calibration images", self.seconds, self.calibration_images)
    }
}
