//! The default command: pictures in, answers out.

use super::answer::{self, AnswerArgs, Drawings};
use super::{ChoiceArgs, RunArgs, camera, preprocess, progress};
use clap::Args;
use edge_infer::Error;
use edge_infer::answer::{Answer, Reader};
use edge_infer::image::{self, Picture, Preprocessor};
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
    #[command(flatten)]
    pub answer: AnswerArgs,
    /// Named pictures to compare vectors with; a folder in it names what it holds. Of networks that embed.
    #[arg(long, value_name = "DIR")]
    pub gallery: Option<PathBuf>,
    /// Write each picture with its boxes or its class map drawn on it to this folder, as NAME.png.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["frames", "camera"])]
    annotate: Option<PathBuf>,
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
    /// How many classes to print, or names of a gallery.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub top: u32,
    /// One JSON object per picture or frame and line.
    #[arg(long)]
    pub json: bool,
    /// Add the raw outputs to the JSON.
    #[arg(long, requires = "json")]
    pub logits: bool,
}

/// One picture's line of JSON.
#[derive(Serialize)]
struct Line<'a> {
    image: String,
    #[serde(flatten)]
    answer: Answer,
    /// Decode, resize, normalise.
    prepare_ms: f64,
    /// Inference alone.
    latency_ms: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    logits: Option<&'a [f32]>,
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
    let mut reader = reader(args, &mut model, &mut preprocessor)?;
    let mut drawings = args.annotate.as_deref().map(Drawings::new).transpose()?;

    let bar = progress(pictures.len(), "pictures");
    let mut out = std::io::stdout().lock();
    let (mut done, mut failed, mut total_ms) = (0u32, 0u32, 0.0);
    for path in &pictures {
        bar.inc(1);
        let answered = one(&mut model, &mut preprocessor, path).and_then(|run| {
            let view = preprocessor.view(run.picture.width, run.picture.height);
            let answer = reader.read(run.outputs, &view, args.top as usize)?;
            drawings.as_mut().map_or(Ok(()), |d| d.save(path, &run.picture, &answer))?;
            Ok((run, answer))
        });
        match answered {
            Ok((run, answer)) => {
                done += 1;
                total_ms += run.latency_ms;
                let line = Line {
                    image: path.display().to_string(),
                    answer,
                    prepare_ms: run.prepare_ms,
                    latency_ms: run.latency_ms,
                    logits: args.logits.then_some(&run.outputs[0]),
                };
                bar.suspend(|| print(&mut out, &line, args.json))?;
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

/// What reads a model's outputs, with its gallery.
pub fn reader(args: &ClassifyArgs, model: &mut Model, preprocessor: &mut Preprocessor) -> edge_infer::Result<Reader> {
    let mut reader = args.answer.reader(model)?;
    if let Some(folder) = &args.gallery {
        if *reader.task() != edge_infer::task::Task::Embed {
            return Err(Error::Usage("--gallery is for networks that embed; see --task embed".into()));
        }
        reader.set_gallery(answer::gallery(folder, model, preprocessor)?);
    }
    Ok(reader)
}

/// A picture that went through the network.
struct Run<'m> {
    picture: Picture,
    prepare_ms: f64,
    latency_ms: f64,
    outputs: &'m [Vec<f32>],
}

fn one<'m>(model: &'m mut Model, preprocessor: &mut Preprocessor, path: &Path) -> edge_infer::Result<Run<'m>> {
    let start = Instant::now();
    let picture = image::decode(path, preprocessor.record())?;
    let pixels = preprocessor.pixels(&picture).map_err(|reason| Error::image(path, reason))?;
    let prepare_ms = milliseconds(start);
    let start = Instant::now();
    let outputs = model.run_pixels_all(&pixels)?;
    Ok(Run { picture, prepare_ms, latency_ms: milliseconds(start), outputs })
}

fn print(out: &mut impl Write, line: &Line, json: bool) -> std::io::Result<()> {
    if json {
        serde_json::to_writer(&mut *out, line)?;
        return writeln!(out);
    }
    writeln!(out, "{}  {:.2} ms", line.image, line.latency_ms)?;
    answer::print(out, &line.answer)
}
