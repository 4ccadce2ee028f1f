//! The command line. Results go to standard output, everything else to standard error.

mod answer;
mod bench;
mod camera;
mod classify;
mod compare;
mod compile;
mod generate;
mod inspect;
mod rate;
mod record;
mod serve;
mod tensor;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use edge_infer::Error;
use edge_infer::board::{self, Board, Pinned};
use edge_infer::metadata::{Color, Preprocess, Resize};
use edge_infer::model::{LoadOptions, Model};
use edge_infer::task::Task;
use edge_infer::text::{one_line, printable};
use std::io::{ErrorKind, IsTerminal};
use std::os::unix::fs::PermissionsExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::ExitCode;

/// Fast, exact int8 inference of ResNets on small computers.
#[derive(Parser)]
#[command(
    version,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "\
Examples:
  edge-infer --model r18q.onnx --image cat.jpg photos/      label pictures and folders of pictures
  edge-infer --model r18q.onnx --image cat.jpg --json       one JSON object per picture
  edge-infer record -o photos.frames photos/                a stream of frames, as a camera sends it
  edge-infer --model r18q.onnx --frames photos.frames       label every frame of a stream
  edge-infer --model r18q.onnx --camera v4l2:/dev/video0    the newest frame of a camera, again and again
  edge-infer inspect r18q.onnx                              what runs where, shapes, scales, memory
  edge-infer serve --model r18q.onnx --camera /dev/ttyACM0  a page, metrics, and POST of pictures
  edge-infer bench --model r18q.onnx --layers               latency, per layer too
  edge-infer compile r18q.onnx                              a program that starts without importing the model
  edge-infer compare r18.onnx r18q.onnx photos/             agreement and speed of two models

Environment: EDGE_ISA chooses the kernels (scalar, portable, avx2, avx512vnni, …); by default the best the processor has.
Exit codes: 0 done, 1 a model or picture cannot be used, 2 wrong usage."
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    classify: Option<classify::ClassifyArgs>,
    // Not inside of the ones above: clap does not see an optional group whose members are in a group of their own.
    #[command(flatten)]
    camera: camera::CameraArgs,
    #[command(flatten)]
    run: RunArgs,
}

#[derive(Subcommand)]
enum Command {
    Bench(bench::BenchArgs),
    Inspect(inspect::InspectArgs),
    Compare(compare::CompareArgs),
    Compile(compile::CompileArgs),
    Tensor(tensor::TensorArgs),
    Record(record::RecordArgs),
    Serve(serve::ServeArgs),
    Generate(generate::GenerateArgs),
}

/// Flags of every command that runs a model.
#[derive(Args)]
struct RunArgs {
    /// Threads of the integer kernels [default: all cores].
    #[arg(long, global = true, value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: Option<u16>,
    /// Processors to keep to, such as 0-3,6 [default: the fastest kind where there are several].
    #[arg(long, global = true, value_name = "LIST", value_parser = parse_cpus)]
    cpus: Option<Cpus>,
    /// Fail where less than this share of the multiply-accumulates runs in int8.
    #[arg(long, global = true, value_name = "PERCENT", value_parser = parse_percent)]
    require_int8: Option<f64>,
}

fn parse_percent(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|p| (0.0..=100.0).contains(p)).ok_or_else(|| "a number from 0 to 100".into())
}

/// From this share of int8 on, nothing is said about the rest.
const NEARLY_ALL: f64 = 99.0;

/// What of a model is run, where its file leaves a choice.
#[derive(Args)]
struct ChoiceArgs {
    /// Height and width of the picture, HxW, where the file leaves them open [default: its own record, or 224x224].
    #[arg(long, value_name = "HxW", value_parser = parse_size)]
    size: Option<Size>,
    /// Names of the outputs to compute, of a model with several; repeat or separate by commas [default: those that its file names, all of a
    /// detector, else the first].
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    head: Vec<String>,
    /// What the model is for: classify, multi-label, embed, segment, detect, or detect:HEAD with HEAD yolov5, yolov7, yolov8, yolo11, yolox,
    /// boxes or final; or its JSON [default: what its file says, or its outputs suggest].
    #[arg(long, value_name = "TASK")]
    task: Option<Task>,
}

/// Height and width.
#[derive(Debug, Clone, Copy)]
struct Size([usize; 2]);

fn parse_size(text: &str) -> Result<Size, String> {
    let side = |s: &str| s.parse().ok().filter(|v| (1..=4096).contains(v));
    let (h, w) = text.split_once(['x', '×']).unwrap_or((text, text));
    side(h).zip(side(w)).map(|(h, w)| Size([h, w])).ok_or_else(|| "HEIGHTxWIDTH, each 1 to 4096, for example 480x640".into())
}

/// Numbers of processors.
#[derive(Debug, Clone)]
struct Cpus(Vec<usize>);

fn parse_cpus(text: &str) -> edge_infer::Result<Cpus> {
    board::parse_cpus(text).map(Cpus)
}

impl RunArgs {
    /// Keeps this program to the processors it was given, or to the fastest ones.
    fn place(&self) -> edge_infer::Result<()> {
        match &self.cpus {
            Some(Cpus(cpus)) => Pinned::to(cpus).map(Pinned::keep),
            None => {
                let board = Board::new();
                let processors: usize = board.machine().clusters.iter().map(|c| c.cpus.len()).sum();
                // Somebody who restricted us (taskset, a container) has chosen already.
                let free = std::thread::available_parallelism().is_ok_and(|n| n.get() == processors);
                if let Some(Ok(pinned)) = board.big_cluster().filter(|_| free).map(|cpus| Pinned::to(&cpus)) {
                    pinned.keep();
                }
                Ok(())
            }
        }
    }

    fn options(&self, choice: &ChoiceArgs) -> LoadOptions {
        LoadOptions {
            threads: self.threads.map_or(0, usize::from),
            size: choice.size.map(|s| s.0),
            outputs: choice.head.clone(),
            task: choice.task.clone(),
            ..Default::default()
        }
    }

    fn load(&self, path: &Path, choice: &ChoiceArgs) -> anyhow::Result<Model> {
        let model = Model::load(path, &self.options(choice)).with_context(|| format!("cannot load {}", path.display()))?;
        let (computed, all) = model.outputs();
        // Who has chosen, here or in the file, need not be told.
        let chosen = !choice.head.is_empty() || !model.metadata().outputs.is_empty();
        if let [only] = computed
            && all.len() > 1
            && !chosen
        {
            let line = format!("{}: output `{}` of `{}`; choose another with --head NAME", path.display(), only.name, all.join("`, `"));
            eprintln!("{line}");
        }
        self.tell_share(path, &model)?;
        Ok(model)
    }

    /// Says how much of the model misses the integer kernels: nothing may be slow without a word.
    fn tell_share(&self, path: &Path, model: &Model) -> anyhow::Result<()> {
        let report = model.report();
        let Some((node, why)) = report.first_in_float() else { return Ok(()) };
        let percent = report.int8_percent();
        let line = format!(
            "{percent:.1} % of the multiply-accumulates run in int8; the first node in float is `{}` ({}): {why}",
            node.name, node.op
        );
        match self.require_int8 {
            Some(least) if percent < least => {
                Err(Error::UnsupportedModel(format!("{}: {line}; {least} % are required", path.display())).into())
            }
            _ => {
                if percent < NEARLY_ALL {
                    eprintln!("{}", one_line(&format!("{}: {line} (edge-infer inspect lists all)", path.display())));
                }
                Ok(())
            }
        }
    }
}

/// Parses, runs, and turns errors into messages and exit codes.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let placed = cli.run.place().map_err(anyhow::Error::from);
    let result = placed.and_then(|()| match (cli.command, cli.classify) {
        (Some(Command::Bench(args)), _) => bench::run(&args, &cli.run),
        (Some(Command::Inspect(args)), _) => inspect::run(&args, &cli.run),
        (Some(Command::Compare(args)), _) => compare::run(&args, &cli.run),
        (Some(Command::Compile(args)), _) => compile::run(&args, &cli.run),
        (Some(Command::Tensor(args)), _) => tensor::run(&args, &cli.run),
        (Some(Command::Record(args)), _) => record::run(&args),
        (Some(Command::Serve(args)), _) => serve::run(&args, &cli.run),
        (Some(Command::Generate(args)), _) => generate::run(&args),
        (None, Some(args)) => classify::run(&args, &cli.camera, &cli.run),
        (None, None) => Err(Error::Usage("nothing to do; see --help".into()).into()),
    });
    match result {
        Ok(code) => code,
        // The reader of our output has seen enough (`| head`).
        Err(e) if e.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == ErrorKind::BrokenPipe) => ExitCode::SUCCESS,
        Err(e) => {
            // It may quote names out of a model.
            eprintln!("error: {}", printable(&format!("{e:#}")));
            let usage = e.chain().any(|c| matches!(c.downcast_ref::<Error>(), Some(Error::Usage(_))));
            ExitCode::from(if usage { 2 } else { 1 })
        }
    }
}

/// The model's own preprocessing, or ImageNet's customs for a file that records none.
fn preprocess(model: &Model, path: &Path) -> anyhow::Result<Preprocess> {
    let &[_, channels, height, width] = model.input_shape() else {
        return Err(Error::UnsupportedModel(format!("input shape {:?} is not a picture's", model.input_shape())).into());
    };
    let record = match &model.metadata().preprocess {
        Some(p) => resized(p, height, width),
        None => {
            eprintln!("warning: {} records no preprocessing: ImageNet's is used (edge-quantize writes the right one)", path.display());
            let gray = channels == 1;
            Preprocess {
                width: width as u32,
                height: height as u32,
                resize: Resize::ShortSide((width.max(height) * 256 / 224) as u32),
                color: if gray { Color::Gray } else { Color::Rgb },
                mean: if gray { vec![0.449] } else { vec![0.485, 0.456, 0.406] },
                std: if gray { vec![0.226] } else { vec![0.229, 0.224, 0.225] },
                ignore_exif: false,
            }
        }
    };
    if record.color.channels() != channels {
        return Err(Error::InvalidModel(format!(
            "its preprocessing makes pictures of {} channels, its input has {channels}; quantize it again",
            record.color.channels()
        ))
        .into());
    }
    Ok(record)
}

/// The record for a picture of another size: resizing keeps its share of what is cropped.
fn resized(p: &Preprocess, height: usize, width: usize) -> Preprocess {
    let (was, is) = (p.height.max(p.width).max(1), height.max(width) as u32);
    let resize = match p.resize {
        Resize::ShortSide(n) if was != is => Resize::ShortSide((u64::from(n) * u64::from(is) / u64::from(was)).max(u64::from(is)) as u32),
        same => same,
    };
    Preprocess { height: height as u32, width: width as u32, resize, ..p.clone() }
}

/// A progress bar on standard error, hidden where nobody would see it.
fn progress(count: usize, what: &'static str) -> indicatif::ProgressBar {
    use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
    let target = if std::io::stderr().is_terminal() && count > 20 { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(Some(count as u64), target).with_message(what);
    if let Ok(style) = ProgressStyle::with_template("{msg:10} {wide_bar} {pos}/{len} {eta}") {
        bar.set_style(style);
    }
    bar
}

/// A file that appears whole or not at all (`persist`), with the permissions that any new file gets.
fn new_file_in(folder: &Path) -> edge_infer::Result<tempfile::NamedTempFile> {
    // As for `open`, the umask takes away what the user wants nobody to have.
    let permissions = PermissionsExt::from_mode(0o666);
    tempfile::Builder::new().permissions(permissions).tempfile_in(folder).map_err(|e| Error::io(folder, e))
}

/// A decoder that panics costs its picture, and no more.
fn guard<T>(f: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|_| Err("the decoder failed on it".into()))
}

/// Index of the largest value, the first of equals (as numpy's argmax).
fn argmax(values: &[f32]) -> usize {
    (0..values.len()).fold(0, |best, i| if values[i] > values[best] { i } else { best })
}
