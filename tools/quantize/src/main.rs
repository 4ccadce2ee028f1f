//! `edge-quantize`: float ONNX in, int8 QDQ ONNX out.
#![forbid(unsafe_code)]

use clap::{Args, Parser, Subcommand};
use edge_infer::answer::Reader;
use edge_infer::labels;
use edge_infer::metadata::{Color, LABELS_KEY, OUTPUTS_KEY, PREPROCESS_KEY, Preprocess, Resize, TASK_KEY};
use edge_infer::model::Model;
use edge_infer::task::{Head, Output, Task};
use edge_infer::text::printable;
use edge_quantize::data::Inputs;
use edge_quantize::eval::Evaluation;
use edge_quantize::observe::Calibrator;
use edge_quantize::onnx::{self, ModelProto};
use edge_quantize::pipeline::{self, Options, Recipe, quantize};
use edge_quantize::plan::Residual;
use edge_quantize::rounding::Rounding;
use edge_quantize::scheme::{ActivationType, WeightRange};
use edge_quantize::sensitivity::{choose_float, sensitivity};
use edge_quantize::{Error, Result, dataset, fold, html, input};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use prost::Message;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Quantizes a float ONNX ResNet to standard int8 QDQ ONNX.
#[derive(Parser)]
#[command(
    version,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "\
Examples:
  edge-quantize resnet18.onnx -o r18q.onnx --calib photos/
  edge-quantize net.onnx -o netq.onnx --calib digits/ --size 28 --resize stretch --color gray --mean 0.13 --std 0.31 --labels digits.txt
  edge-quantize net.onnx -o netq.onnx --calib batch.npy --json > report.json
  edge-quantize net.onnx -o netq.onnx --calib photos/ --recipe best --html report.html
  edge-quantize net.onnx -o netq.onnx --calib photos/ --auto-mixed 5
  edge-quantize eval netq.onnx val/ --float net.onnx
  edge-quantize fold net.onnx -o folded.onnx

Exit codes: 0 done, 1 the model or data cannot be used, 2 wrong usage. On failure no file is written."
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    quantize: Option<QuantizeArgs>,
}

#[derive(Subcommand)]
enum Command {
    /// Only fold BatchNorm into convolutions; the result stays float.
    Fold {
        /// Float model.
        model: PathBuf,
        /// Output file.
        #[arg(short, long)]
        output: PathBuf,
        /// Print the report as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Accuracy on labelled pictures, of one model or of an int8 model beside its float one.
    Eval(EvalArgs),
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  edge-quantize eval r50q.onnx imagenet/val --float r50.onnx --state eval.jsonl
  edge-quantize eval r18q.onnx test/ --labels classes.txt --json

A class comes from --labels, from a folder named as one of the model's labels, or from the folder's place in sorted order,
if there are as many folders as classes (ImageNet's val/n01440764/*.JPEG).")]
struct EvalArgs {
    /// Model, usually int8.
    model: PathBuf,
    /// Folders of pictures.
    #[arg(required = true, value_name = "DATASET")]
    dataset: Vec<PathBuf>,
    /// Float model to compare with.
    #[arg(long, value_name = "MODEL")]
    float: Option<PathBuf>,
    /// Lines `file-or-folder number`, or one class name a line.
    #[arg(long, value_name = "FILE")]
    labels: Option<PathBuf>,
    /// Use this many pictures, evenly spaced.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    images: Option<u32>,
    /// Keeps results, so that the same command goes on where it was cut off.
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,
    /// Pictures at a time [default: one per core].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=256))]
    jobs: Option<u32>,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct QuantizeArgs {
    /// Float model, of any operator set.
    model: PathBuf,
    /// Output file.
    #[arg(short, long)]
    output: PathBuf,
    /// Folders of pictures, pictures, or .npy/.npz tensors (N×C×H×W float32, already normalized).
    #[arg(long, required = true, num_args = 1.., value_name = "PATH")]
    calib: Vec<PathBuf>,
    /// Use this many of them, evenly spaced; every fifth is held back to measure the result.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    images: Option<u32>,
    /// Sets calibrator, weight ranges and corrections at once; the options below override it.
    #[arg(long, value_enum, default_value = "balanced")]
    recipe: Recipe,
    /// How activation ranges are chosen.
    #[arg(long, value_enum)]
    calibrator: Option<Calibrator>,
    /// How weight ranges are chosen, per output channel.
    #[arg(long, value_enum)]
    weights: Option<WeightRange>,
    /// How weights become integers.
    #[arg(long, value_enum)]
    rounding: Option<Rounding>,
    /// Biases take up the mean errors of rounded weights and of the logits.
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    bias_correction: Option<bool>,
    /// Brings the channels of each tensor to like ranges first (exact in float).
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    equalize: Option<bool>,
    /// Layers that stay float, by node name; repeat or separate by commas.
    #[arg(long, value_delimiter = ',', value_name = "LAYER")]
    keep_float: Vec<String>,
    /// Measures what quantizing each layer alone costs.
    #[arg(long)]
    sensitivity: bool,
    /// Keeps the layers that cost most in float, up to this percentage of all multiply-accumulates.
    #[arg(long, value_name = "PERCENT", value_parser = parse_percent, conflicts_with = "keep_float")]
    auto_mixed: Option<f64>,
    /// Integer type of activations.
    #[arg(long, value_enum, default_value = "uint8")]
    activations: ActivationType,
    /// What stands between a residual branch's last Conv and its Add: nothing, or Q/DQ.
    #[arg(long, value_enum, default_value = "fused")]
    residual: Residual,
    /// Height and width of the network input, HxW, or one number for both [default: the model's, else 224].
    #[arg(long, value_name = "HxW", value_parser = parse_size)]
    size: Option<Size>,
    /// What the network is for; the model file records it: classify, multi-label, embed, segment, detect, or detect:HEAD with HEAD yolov5,
    /// yolov7, yolov8, yolo11, yolox, boxes or final; or its JSON. The YOLO heads bring their own defaults for pictures.
    #[arg(long, value_name = "TASK")]
    task: Option<Task>,
    /// Names of the outputs that are computed, of a network with several; the model file records them. Repeat or separate by commas.
    #[arg(long, value_delimiter = ',', value_name = "NAME")]
    heads: Vec<String>,
    /// `stretch`; `short:N`: shorter side to N pixels, then centre crop; `letterbox`: whole, with a margin; or `letterbox:corner`, with
    /// the margin on the right and below [default: short:256 for 224].
    #[arg(long, value_parser = parse_resize)]
    resize: Option<Resize>,
    /// Per-channel mean of values in 0 … 1 [default: ImageNet's].
    #[arg(long, value_delimiter = ',', allow_hyphen_values = true)]
    mean: Option<Vec<f32>>,
    /// Per-channel standard deviation [default: ImageNet's].
    #[arg(long, value_delimiter = ',')]
    std: Option<Vec<f32>>,
    /// `rgb`, `bgr` or `gray`.
    #[arg(long, value_parser = parse_color)]
    color: Option<Color>,
    /// Take pictures as they are stored, whatever turn their EXIF data asks for (as torchvision's ImageFolder does). The model
    /// file records it.
    #[arg(long)]
    ignore_exif: bool,
    /// Class names: a file (one per line, or JSON: an array, or an object with numbers for keys) or a comma-separated list.
    #[arg(long)]
    labels: Option<String>,
    /// Threads [default: all cores].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1024))]
    jobs: Option<u32>,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
    /// Also write the report as a web page, with drawings.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

fn parse_percent(s: &str) -> Result<f64, String> {
    s.parse().ok().filter(|p| (0.0..=100.0).contains(p)).ok_or_else(|| "a percentage expected, 0 to 100".into())
}

/// Height and width.
#[derive(Debug, Clone, Copy)]
struct Size([u32; 2]);

fn parse_size(text: &str) -> Result<Size, String> {
    let side = |s: &str| s.parse().ok().filter(|v| (1..=8192).contains(v));
    let (h, w) = text.split_once(['x', '×']).unwrap_or((text, text));
    side(h).zip(side(w)).map(|(h, w)| Size([h, w])).ok_or_else(|| "HEIGHTxWIDTH, each 1 to 8192, for example 480x640".into())
}

/// The margin of YOLO's letterboxes.
const YOLO_GREY: u8 = 114;

fn parse_resize(s: &str) -> Result<Resize, String> {
    match s.strip_prefix("short:").map(str::parse) {
        Some(Ok(n)) if (1..=8192).contains(&n) => Ok(Resize::ShortSide(n)),
        None if s == "stretch" => Ok(Resize::Stretch),
        None if s == "letterbox" => Ok(Resize::Letterbox { fill: YOLO_GREY, corner: false }),
        None if s == "letterbox:corner" => Ok(Resize::Letterbox { fill: YOLO_GREY, corner: true }),
        _ => Err("`stretch`, `short:N` with N in 1..=8192, `letterbox` or `letterbox:corner` expected".into()),
    }
}

fn parse_color(s: &str) -> Result<Color, String> {
    match s {
        "rgb" => Ok(Color::Rgb),
        "bgr" => Ok(Color::Bgr),
        "gray" => Ok(Color::Gray),
        _ => Err("`rgb`, `bgr` or `gray` expected".into()),
    }
}

fn usage(text: impl Into<String>) -> Error {
    Error::Usage(text.into())
}

/// How the tools that train a network prepare its pictures.
struct Customs {
    resize: Resize,
    color: Color,
    mean: [f32; 3],
    std: [f32; 3],
}

/// ImageNet's, or those of a YOLO.
fn customs(task: Option<&Task>, width: u32, height: u32) -> Customs {
    let short = u64::from(width.max(height)) * 256 / 224;
    let imagenet =
        Customs { resize: Resize::ShortSide(short as u32), color: Color::Rgb, mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225] };
    let letterbox = |corner| Resize::Letterbox { fill: YOLO_GREY, corner };
    match task {
        Some(Task::Detect(d)) => match d.head {
            Some(Head::Yolov5 { .. } | Head::Yolov8) => Customs { resize: letterbox(false), mean: [0.0; 3], std: [1.0; 3], ..imagenet },
            // Bytes as they are, as OpenCV orders them.
            Some(Head::Yolox) => Customs { resize: letterbox(true), color: Color::Bgr, mean: [0.0; 3], std: [1.0 / 255.0; 3] },
            _ => imagenet,
        },
        _ => imagenet,
    }
}

/// Flags over the model's own record over what is customary.
fn preprocess(args: &QuantizeArgs, model: &ModelProto, dims: &[Option<usize>]) -> Result<Preprocess> {
    let recorded: Option<Preprocess> = match onnx::metadata(model, PREPROCESS_KEY) {
        Some(text) => Some(serde_json::from_str(text).map_err(|e| Error::InvalidModel(format!("metadata `{PREPROCESS_KEY}`: {e}")))?),
        None => None,
    };
    let known = |i: usize| dims.get(i).copied().flatten().and_then(|d| u32::try_from(d).ok());
    let width = args.size.map(|s| s.0[1]).or(known(3)).or(recorded.as_ref().map(|p| p.width)).unwrap_or(224);
    let height = args.size.map(|s| s.0[0]).or(known(2)).or(recorded.as_ref().map(|p| p.height)).unwrap_or(224);
    let usual = customs(args.task.as_ref(), width, height);
    let color = args.color.or(recorded.as_ref().map(|p| p.color));
    let color = color.unwrap_or(if known(1) == Some(1) { Color::Gray } else { usual.color });
    let channels = color.channels();
    let per_channel = |flag: &Option<Vec<f32>>, recorded: Option<Vec<f32>>, usual: [f32; 3], name: &str| {
        let mut values = flag.clone().or(recorded).unwrap_or_else(|| match channels {
            1 => vec![usual.iter().sum::<f32>() / 3.0],
            _ => usual.to_vec(),
        });
        if values.len() == 1 {
            values.resize(channels, values[0]);
        }
        let finite = values.iter().all(|v| v.is_finite());
        (values.len() == channels && finite)
            .then_some(values)
            .ok_or_else(|| usage(format!("--{name}: 1 or {channels} finite values expected")))
    };
    let p = Preprocess {
        width,
        height,
        resize: args.resize.or(recorded.as_ref().map(|p| p.resize)).unwrap_or(usual.resize),
        color,
        mean: per_channel(&args.mean, recorded.as_ref().map(|p| p.mean.clone()), usual.mean, "mean")?,
        std: per_channel(&args.std, recorded.as_ref().map(|p| p.std.clone()), usual.std, "std")?,
        ignore_exif: args.ignore_exif || recorded.is_some_and(|p| p.ignore_exif),
    };
    if p.std.iter().any(|&s| s <= 0.0) {
        return Err(usage("--std: values above 0 expected"));
    }
    if matches!(p.resize, Resize::ShortSide(n) if n < p.width.max(p.height)) {
        return Err(usage("--resize short:N must not be smaller than the network input"));
    }
    Ok(p)
}

fn read_labels(arg: &str) -> Result<Vec<String>> {
    let path = Path::new(arg);
    let labels: Vec<String> = if path.is_file() {
        labels::read_names(path)?
    } else if arg.contains(',') {
        arg.split(',').map(|l| l.trim().to_string()).collect()
    } else {
        return Err(usage(format!("--labels: `{arg}` is neither a file nor a comma-separated list")));
    };
    Ok(labels)
}

fn print(json: bool, report: &impl serde::Serialize, text: impl std::fmt::Display) {
    use std::io::Write;
    let json = json.then(|| serde_json::to_string_pretty(report).unwrap_or_default());
    let text = json.unwrap_or_else(|| text.to_string());
    let _ = writeln!(std::io::stdout(), "{}", printable(&text)); // a closed pipe is the reader's choice
}

/// A bar with the estimated time, on a terminal.
fn progress(stage: &'static str, count: usize) -> Box<dyn Fn() + Sync> {
    let terminal = std::io::stderr().is_terminal();
    let target = if terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(Some(count as u64), target).with_message(stage);
    if let Ok(style) = ProgressStyle::with_template("{msg:12} {wide_bar} {pos}/{len} {eta}") {
        bar.set_style(style);
    }
    Box::new(move || bar.inc(1))
}

fn run_eval(args: &EvalArgs) -> Result<()> {
    let options = edge_infer::model::LoadOptions { threads: 1, ..Default::default() };
    let model = Model::load(&args.model, &options)?;
    let float = args.float.as_ref().map(|f| Model::load(f, &options)).transpose()?;
    if let Some(f) = float.as_ref().filter(|f| f.output_len() != model.output_len() || f.input_shape() != model.input_shape()) {
        return Err(usage(format!(
            "{:?} → {} and {:?} → {} cannot be compared",
            f.input_shape(),
            f.output_len(),
            model.input_shape(),
            model.output_len()
        )));
    }
    let sides = || std::iter::once(&model).chain(&float);
    let preprocess = sides()
        .find_map(|m| m.metadata().preprocess.clone())
        .ok_or_else(|| usage("neither model says how pictures are prepared; quantize with --size, --resize, --mean and --std"))?;
    let names = sides().map(|m| &m.metadata().labels).find(|l| !l.is_empty()).cloned().unwrap_or_default();
    let mut pictures = dataset::collect(&args.dataset, args.labels.as_deref(), &names, model.output_len())?;
    if let Some(n) = args.images {
        let (all, n) = (pictures.len(), n as usize);
        let mut i = 0;
        pictures.retain(|_| {
            i += 1;
            i * n / all > (i - 1) * n / all || n >= all
        });
    }
    drop((model, float));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let evaluation = Evaluation {
        model: &args.model,
        float: args.float.as_deref(),
        preprocess,
        pictures: &pictures,
        state: args.state.as_deref(),
        jobs: args.jobs.map_or(cores, |j| j as usize),
    };
    let report = evaluation.run(&progress("evaluating", pictures.len()))?;
    print(args.json, &report, &report);
    Ok(())
}

/// Writes task and outputs into the model, once they are known to fit it.
fn record_task(args: &QuantizeArgs, model: &mut ModelProto, shape: &[usize]) -> Result<()> {
    let json = |e: serde_json::Error| usage(e.to_string());
    let names: Vec<String> = onnx::graph(model)?.output.iter().map(|o| o.name.clone()).collect();
    if let Some(missing) = args.heads.iter().find(|h| !names.contains(h)) {
        return Err(usage(format!("--heads: the model has no output `{missing}`; it has `{}`", names.join("`, `"))));
    }
    if let Some(task) = &args.task {
        let computed = match task {
            _ if !args.heads.is_empty() => &args.heads[..],
            Task::Detect(_) => &names[..],
            _ => &names[..1],
        };
        let shapes = edge_quantize::float::shapes(model, shape)?;
        let outputs: Option<Vec<Output>> =
            computed.iter().map(|name| Some(Output { name: name.clone(), shape: shapes.get(name)?.clone() })).collect();
        // A shape that depends on the picture is only known when the model runs.
        if let Some(outputs) = outputs {
            Reader::new(Some(task), &outputs, [shape[2], shape[3]], &[]).map_err(|e| usage(format!("--task: {e}")))?;
        }
        onnx::set_metadata(model, TASK_KEY, serde_json::to_string(task).map_err(json)?);
    }
    if !args.heads.is_empty() {
        onnx::set_metadata(model, OUTPUTS_KEY, serde_json::to_string(&args.heads).map_err(json)?);
    }
    Ok(())
}

fn run_quantize(args: &QuantizeArgs) -> Result<()> {
    let mut model = input::load_sized(&args.model, args.size.map(|s| s.0.map(|v| v as usize)))?;
    let (input, dims) = onnx::data_input(onnx::graph(&model)?)?;
    if dims.len() != 4 {
        return Err(Error::InvalidModel(format!("input `{input}` has {} dimensions, N×C×H×W expected", dims.len())));
    }
    let tensors_only = args.calib.iter().all(|p| p.extension().and_then(|e| e.to_str()).is_some_and(|e| matches!(e, "npy" | "npz")));
    let preprocess = preprocess(args, &model, &dims)?;
    let side = |i: usize, chosen: u32| match dims[i] {
        Some(d) if d != chosen as usize => Err(usage(format!("the model's input is {d} pixels, not {chosen}"))),
        _ => Ok(chosen as usize),
    };
    let channels = dims[1].unwrap_or(preprocess.color.channels());
    let shape = [1, channels, side(2, preprocess.height)?, side(3, preprocess.width)?];
    if let Some(jobs) = args.jobs {
        let built = rayon::ThreadPoolBuilder::new().num_threads(jobs as usize).build_global();
        built.map_err(|e| usage(format!("--jobs: {e}")))?;
    }
    let mut inputs = Inputs::collect(&args.calib, &shape, Some(preprocess.clone()))?;
    if let Some(n) = args.images {
        inputs.thin(n as usize);
    }
    let flags = args.size.is_some() || args.resize.is_some() || args.mean.is_some() || args.std.is_some() || args.ignore_exif;
    // Tensors say nothing about how they were made.
    if !tensors_only || flags || args.color.is_some() {
        let text = serde_json::to_string(&preprocess).map_err(|e| usage(e.to_string()))?;
        onnx::set_metadata(&mut model, PREPROCESS_KEY, text);
    }
    if args.task.is_some() || !args.heads.is_empty() {
        record_task(args, &mut model, &shape)?;
    }
    if let Some(labels) = &args.labels {
        let labels = read_labels(labels)?;
        let logits = edge_quantize::float::shapes(&model, &shape)?;
        let output = &onnx::graph(&model)?.output[0].name;
        let classes = logits.get(output).and_then(|s| match args.task {
            None | Some(Task::Classify | Task::MultiLabel(_)) if args.heads.len() < 2 => s.last(),
            Some(Task::Segment) => s.get(1),
            // How many classes a head has, its decoding knows.
            _ => None,
        });
        if let Some(classes) = classes.filter(|&&n| n != labels.len()) {
            return Err(usage(format!("--labels: {} names for {classes} classes", labels.len())));
        }
        let text = serde_json::to_string(&labels).map_err(|e| usage(e.to_string()))?;
        onnx::set_metadata(&mut model, LABELS_KEY, text);
    }
    let mut options = args.recipe.options();
    options = Options {
        calibrator: args.calibrator.unwrap_or(options.calibrator),
        weights: args.weights.unwrap_or(options.weights),
        rounding: args.rounding.unwrap_or(options.rounding),
        bias_correction: args.bias_correction.unwrap_or(options.bias_correction),
        equalize: args.equalize.unwrap_or(options.equalize),
        activations: args.activations,
        residual: args.residual,
        keep_float: args.keep_float.clone(),
    };
    let mut costs = Vec::new();
    if args.sensitivity || args.auto_mixed.is_some() {
        let mut prepared = pipeline::prepare(&model, &shape, &options)?;
        let (used, held) = pipeline::split(inputs.len());
        if options.equalize {
            pipeline::balance(&mut prepared, &shape, &inputs, &used, &progress)?;
        }
        let measured = pipeline::measure(&prepared, &shape, &inputs, &used, &options, &progress)?;
        costs = sensitivity(&prepared, &measured, &shape, &inputs, &held, &options, &progress)?;
    }
    if let Some(percent) = args.auto_mixed {
        options.keep_float = choose_float(&costs, percent / 100.0)?;
    }
    let (bytes, mut report) = quantize(&model, &shape, &inputs, &options, &progress)?;
    report.sensitivity = costs;
    if let Some(path) = &args.html {
        let labels: Vec<String> = onnx::metadata(&model, LABELS_KEY).and_then(|t| serde_json::from_str(t).ok()).unwrap_or_default();
        onnx::write_atomically(path, html::page(&args.model, &report, &labels).as_bytes())?;
    }
    onnx::write_atomically(&args.output, &bytes)?;
    print(args.json, &report, &report);
    Ok(())
}

fn run_fold(model: &Path, output: &Path, json: bool) -> Result<()> {
    let mut model = input::load(model)?;
    let report = fold::fold(&mut model)?;
    onnx::write_atomically(output, &model.encode_to_vec())?;
    let mut text = format!("BatchNorm folded {}, kept {}; other scalings folded {}", report.folded, report.kept.len(), report.affine);
    for k in &report.kept {
        text += &format!("\n  {}: {}", k.node, k.reason);
    }
    print(json, &report, text);
    Ok(())
}

fn main() -> ExitCode {
    let cli = Cli::parse(); // exits with 2 on wrong usage
    let result = match (&cli.command, &cli.quantize) {
        (Some(Command::Fold { model, output, json }), _) => run_fold(model, output, *json),
        (Some(Command::Eval(args)), _) => run_eval(args),
        (None, Some(args)) => run_quantize(args),
        (None, None) => Err(usage("a model is needed; see --help")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("edge-quantize: {}", printable(&e.to_string()));
            ExitCode::from(match e {
                Error::Usage(_) => 2,
                _ => 1,
            })
        }
    }
}
