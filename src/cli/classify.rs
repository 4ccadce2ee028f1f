//! The default command: pictures in, labels out.

use super::{ChoiceArgs, RunArgs, camera, label, preprocess, progress};
use clap::Args;
use edge_infer::image::{self, Preprocessor};
use edge_infer::model::Model;
use edge_infer::source::address::Address;
use serde::Serialize;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

// Whether this command is meant is decided by --model: clap cannot see that of groups with others inside.
#[derive(Args)]
#[group(args = ["model"])]
pub struct ClassifyArgs {
    /// ONNX model, int8 QDQ or float.
    #[arg(short, long)]
    pub model: PathBuf,
    #[command(flatten)]
    pub choice: ChoiceArgs,
    /// Pictures, or folders of pictures: PNG, JPEG, BMP, PNM.
    #[arg(short, long, num_args = 1.., value_name = "PATH", required_unless_present_any = ["frames", "camera"])]
    image: Vec<PathBuf>,
    /// A recorded stream of frames, every one of which is classified; `-` is standard input. See `edge-infer record`.
    #[arg(short, long, value_name = "FILE", conflicts_with = "image", value_parser = camera::recorded)]
    frames: Option<Address>,
    /// A camera, of whose frames the newest is classified: v4l2:DEVICE[:WIDTHxHEIGHT[@FPS][:FORMAT]], libcamera:[NUMBER],
    /// http://HOST/PATH, exec:COMMAND; or edge-infer's own firmware at /dev/ttyACM0[:BAUD], tcp:HOST:PORT, unix:PATH, a file, or `-`.
    /// All but files are opened again whenever they go away.
    #[arg(short, long, value_name = "ADDRESS", conflicts_with_all = ["image", "frames"])]
    camera: Option<Address>,
    /// Classify every frame: a sender faster than the network is made to wait.
    #[arg(long, requires = "camera")]
    pub every_frame: bool,
    /// Stop after so many classified frames.
    #[arg(long, value_name = "N", conflicts_with = "image", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
    /// Save every classified frame in this folder, as MILLISECONDS-SEQUENCE-LABEL.jpg or .png (time since 1970).
    #[arg(long, value_name = "DIR", conflicts_with = "image")]
    pub save: Option<PathBuf>,
    /// How many classes to print.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub top: u32,
    /// One JSON object per picture or frame and line.
    #[arg(long)]
    pub json: bool,
    /// Add the raw outputs to the JSON.
    #[arg(long, requires = "json")]
    pub logits: bool,
}

/// One classified picture.
#[derive(Serialize)]
struct Answer<'a> {
    image: String,
    top: Vec<Class>,
    /// Decode, resize, normalise.
    prepare_ms: f64,
    /// Inference alone.
    latency_ms: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    logits: Option<&'a [f32]>,
}

#[derive(Debug, Serialize)]
pub struct Class {
    pub index: usize,
    pub label: String,
    pub probability: f32,
}

pub fn run(args: &ClassifyArgs, camera_options: &camera::CameraArgs, run: &RunArgs) -> anyhow::Result<ExitCode> {
    if args.camera.is_none() {
        camera_options.refuse_without_camera()?;
    }
    let stream = args.camera.as_ref().map(|a| (a, true)).or(args.frames.as_ref().map(|a| (a, false)));
    if let Some((address, live)) = stream {
        return camera::run(address, live, args, camera_options, run);
    }
    let pictures = image::collect(&args.image)?;
    let start = Instant::now();
    let mut model = run.load(&args.model, &args.choice)?;
    let load_ms = milliseconds(start);
    let mut preprocessor = Preprocessor::new(preprocess(&model, &args.model)?)?;
    let labels = model.metadata().labels.clone();

    let bar = progress(pictures.len(), "pictures");
    let mut out = std::io::stdout().lock();
    let (mut done, mut failed, mut total_ms) = (0u32, 0u32, 0.0);
    for path in &pictures {
        bar.inc(1);
        match one(&mut model, &mut preprocessor, path) {
            Ok((prepare_ms, latency_ms, logits)) => {
                done += 1;
                total_ms += latency_ms;
                let answer = Answer {
                    image: path.display().to_string(),
                    top: top(logits, args.top as usize, &labels),
                    prepare_ms,
                    latency_ms,
                    logits: args.logits.then_some(logits),
                };
                bar.suspend(|| print(&mut out, &answer, args.json))?;
            }
            // One bad picture must not lose the answers for the others.
            Err(e) => {
                failed += 1;
                bar.suspend(|| eprintln!("error: {e}"));
            }
        }
    }
    bar.finish_and_clear();
    let mean = if done > 0 { format!("{:.2} ms each", total_ms / f64::from(done)) } else { "none classified".into() };
    eprintln!(
        "{done} of {} pictures, {mean}; model loaded in {load_ms:.0} ms; {} threads, {} kernels",
        pictures.len(),
        model.threads(),
        model.isa()
    );
    Ok(ExitCode::from(u8::from(failed > 0)))
}

pub fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

fn one<'m>(model: &'m mut Model, preprocessor: &mut Preprocessor, path: &Path) -> edge_infer::Result<(f64, f64, &'m [f32])> {
    let start = Instant::now();
    let picture = image::decode(path, preprocessor.record())?;
    let pixels = preprocessor.pixels(&picture).map_err(|reason| edge_infer::Error::image(path, reason))?;
    let prepare_ms = milliseconds(start);
    let start = Instant::now();
    let logits = model.run_pixels(&pixels)?;
    Ok((prepare_ms, milliseconds(start), logits))
}

/// Softmax in f64, then the `count` most probable classes; ties keep the order of the classes.
pub fn top(logits: &[f32], count: usize, labels: &[String]) -> Vec<Class> {
    let max = logits.iter().fold(f32::NEG_INFINITY, |m, &v| m.max(v));
    let exp: Vec<f64> = logits.iter().map(|&v| f64::from(v - max).exp()).collect();
    let sum: f64 = exp.iter().sum();
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
    order.truncate(count);
    order.into_iter().map(|i| Class { index: i, label: label(labels, i), probability: (exp[i] / sum) as f32 }).collect()
}

fn print(out: &mut impl Write, answer: &Answer, json: bool) -> std::io::Result<()> {
    if json {
        serde_json::to_writer(&mut *out, answer)?;
        return writeln!(out);
    }
    writeln!(out, "{}  {:.2} ms", answer.image, answer.latency_ms)?;
    let width = answer.top.iter().map(|c| c.label.chars().count()).max().unwrap_or(0);
    for c in &answer.top {
        writeln!(out, "  {:width$}  {:6.2} %", c.label, 100.0 * c.probability)?;
    }
    Ok(())
}
