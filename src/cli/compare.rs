//! `compare`: how far two models agree, and which is faster.

use super::{ChoiceArgs, RunArgs, argmax, preprocess, progress};
use clap::Args;
use edge_infer::Error;
use edge_infer::answer::label;
use edge_infer::bench::stats::median;
use edge_infer::image::{self, Preprocessor};
use edge_infer::metadata::Preprocess;
use edge_infer::model::Model;
use serde::Serialize;
use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

/// Runs two models on the same pictures in turn: top-1 agreement, logit SQNR, latency; accuracy where folders name the classes.
#[derive(Args)]
#[command(after_help = "Example:\n  edge-infer compare r18.onnx r18q.onnx test/    the first model is the reference")]
pub struct CompareArgs {
    /// The reference.
    a: PathBuf,
    /// The model measured against it.
    b: PathBuf,
    #[command(flatten)]
    choice: ChoiceArgs,
    /// Pictures or folders; a folder named as a label says the class of what it holds.
    #[arg(required = true, value_name = "PATH")]
    pictures: Vec<PathBuf>,
    /// Print as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Comparison {
    pictures: usize,
    /// Share of pictures on which both put the same class first.
    top1_agreement: f64,
    /// 10·log10 of the reference logits' energy over that of the differences; absent where they are equal.
    logit_sqnr_db: Option<f64>,
    max_logit_difference: f32,
    a: Side,
    b: Side,
    /// Median latency of `a` over that of `b`.
    speedup: f64,
    disagreements: Vec<Disagreement>,
}

#[derive(Serialize)]
struct Side {
    model: String,
    median_ms: f64,
    /// Share of labelled pictures classified rightly.
    top1_accuracy: Option<f64>,
}

#[derive(Serialize)]
struct Disagreement {
    image: String,
    a: String,
    b: String,
}

struct Subject {
    model: Model,
    path: PathBuf,
    preprocessor: Preprocessor,
    input: Vec<f32>,
    logits: Vec<f32>,
    times: Vec<f64>,
    right: usize,
}

impl Subject {
    /// Takes the preprocessing from `other` where the file itself records none: a float model rarely does.
    fn new(model: Model, path: &Path, other: Option<&Preprocess>) -> anyhow::Result<Self> {
        let record = match (&model.metadata().preprocess, other) {
            (None, Some(record)) => record.clone(),
            _ => preprocess(&model, path)?,
        };
        let preprocessor = Preprocessor::new(record)?;
        Ok(Subject { model, path: path.into(), preprocessor, input: vec![], logits: vec![], times: vec![], right: 0 })
    }

    fn run(&mut self, path: &Path) -> edge_infer::Result<()> {
        let picture = image::decode(path, self.preprocessor.record())?;
        self.preprocessor.run(&picture, &mut self.input).map_err(|reason| Error::image(path, reason))?;
        let start = Instant::now();
        let logits = self.model.run(&self.input)?;
        self.times.push(start.elapsed().as_secs_f64() * 1e3);
        self.logits.clear();
        self.logits.extend_from_slice(logits);
        Ok(())
    }

    fn side(&mut self, labelled: usize) -> Side {
        Side {
            model: self.path.display().to_string(),
            median_ms: median(&mut self.times),
            top1_accuracy: (labelled > 0).then(|| self.right as f64 / labelled as f64),
        }
    }
}

/// Letters and digits only: folder names cannot hold every label.
fn key(name: &str) -> String {
    name.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
}

pub fn run(args: &CompareArgs, run: &RunArgs) -> anyhow::Result<ExitCode> {
    let pictures = image::collect(&args.pictures)?;
    let (a, b) = (run.load(&args.a, &args.choice)?, run.load(&args.b, &args.choice)?);
    let [of_a, of_b] = [&a, &b].map(|m| m.metadata().preprocess.clone());
    let (mut a, mut b) = (Subject::new(a, &args.a, of_b.as_ref())?, Subject::new(b, &args.b, of_a.as_ref())?);
    if a.model.output_len() != b.model.output_len() {
        return Err(Error::Usage(format!("{} and {} classes cannot be compared", a.model.output_len(), b.model.output_len())).into());
    }
    let labels = if a.model.metadata().labels.is_empty() { b.model.metadata() } else { a.model.metadata() }.labels.clone();
    let classes: HashMap<String, usize> = labels.iter().enumerate().map(|(i, l)| (key(l), i)).collect();

    let (mut agree, mut labelled, mut max) = (0usize, 0usize, 0f32);
    let (mut signal, mut noise) = (0f64, 0f64);
    let mut disagreements = Vec::new();
    let bar = progress(pictures.len(), "pictures");
    for (i, path) in pictures.iter().enumerate() {
        // Whoever runs second finds warmer caches: take turns.
        let order = if i % 2 == 0 { [&mut a, &mut b] } else { [&mut b, &mut a] };
        for subject in order {
            subject.run(path)?;
        }
        for (&x, &y) in a.logits.iter().zip(&b.logits) {
            signal += f64::from(x).powi(2);
            noise += (f64::from(x) - f64::from(y)).powi(2);
            max = max.max((x - y).abs());
        }
        let (top_a, top_b) = (argmax(&a.logits), argmax(&b.logits));
        if top_a == top_b {
            agree += 1;
        } else {
            disagreements.push(Disagreement { image: path.display().to_string(), a: label(&labels, top_a), b: label(&labels, top_b) });
        }
        let folder = path.parent().and_then(Path::file_name).map(|n| key(&n.to_string_lossy()));
        if let Some(&class) = folder.and_then(|f| classes.get(&f)) {
            labelled += 1;
            a.right += usize::from(top_a == class);
            b.right += usize::from(top_b == class);
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    let (a, b) = (a.side(labelled), b.side(labelled));
    let result = Comparison {
        pictures: pictures.len(),
        top1_agreement: agree as f64 / pictures.len() as f64,
        logit_sqnr_db: (noise > 0.0).then(|| 10.0 * (signal / noise).log10()),
        max_logit_difference: max,
        speedup: a.median_ms / b.median_ms,
        a,
        b,
        disagreements,
    };
    print(&result, args.json)?;
    Ok(ExitCode::SUCCESS)
}

fn print(r: &Comparison, json: bool) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    if json {
        serde_json::to_writer_pretty(&mut out, r)?;
        writeln!(out)?;
        return Ok(());
    }
    for d in &r.disagreements {
        writeln!(out, "{}: {} → {}", d.image, d.a, d.b)?;
    }
    writeln!(out, "pictures              {}", r.pictures)?;
    writeln!(out, "top-1 agreement       {:.2} %", 100.0 * r.top1_agreement)?;
    match r.logit_sqnr_db {
        Some(db) => writeln!(out, "logit SQNR            {db:.2} dB")?,
        None => writeln!(out, "logit SQNR            equal")?,
    }
    writeln!(out, "max logit difference  {:.6}", r.max_logit_difference)?;
    for side in [&r.a, &r.b] {
        let accuracy = side.top1_accuracy.map_or(String::new(), |t| format!(", top-1 {:.2} %", 100.0 * t));
        writeln!(out, "{:20}  {:.3} ms median{accuracy}", side.model, side.median_ms)?;
    }
    writeln!(out, "speed-up              {:.2}×", r.speedup)?;
    Ok(())
}
