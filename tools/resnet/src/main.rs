//! `edge-resnet`: ResNets as ONNX.
#![forbid(unsafe_code)]

use clap::{Args, Parser, Subcommand};
use edge_infer::image;
use edge_infer::import::onnx;
use edge_infer::metadata::{Color, PREPROCESS_KEY, Preprocess, Resize};
use edge_resnet::arch::{Arch, Config, Options};
use edge_resnet::network::Network;
use edge_resnet::summary::Summary;
use edge_resnet::{Error, Result, calibrate, export, init, weights};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use prost::Message;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

/// Builds ResNets as ONNX, from a PyTorch state_dict or freshly initialised.
#[derive(Parser)]
#[command(
    version,
    after_help = "\
Examples:
  edge-resnet export --arch resnet50 --weights resnet50.safetensors -o r50.onnx
  edge-resnet export --arch resnext50_32x4d --num-classes 10 --seed 1 -o fresh.onnx
  edge-resnet summary --arch plain18
  edge-resnet calibrate-bn fresh.onnx photos/ -o fresh-bn.onnx

Exit codes: 0 done, 1 a file cannot be used, 2 wrong usage. On failure no file is written."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Export(ExportArgs),
    Summary(SummaryArgs),
    CalibrateBn(CalibrateArgs),
}

#[derive(Args)]
struct NetworkArgs {
    /// Architecture: torchvision's by its name there; plainN is the form without BatchNorm (biased convolutions, each
    /// followed by ReLU; the bottleneck's stride in its first 1×1; 1×1 `connect` shortcuts).
    #[arg(long, value_enum)]
    arch: Arch,
    /// Number of classes [default: 1000].
    #[arg(long, value_name = "N")]
    num_classes: Option<usize>,
    /// Groups of the bottlenecks' 3×3 convolutions [default: the architecture's].
    #[arg(long, value_name = "G")]
    groups: Option<usize>,
    /// Channels per group at 64 planes [default: the architecture's].
    #[arg(long, value_name = "W")]
    width_per_group: Option<usize>,
    /// Dilate instead of striding in stages 2, 3 and 4: three of true or false, as in false,true,true.
    #[arg(long, value_name = "A,B,C", value_delimiter = ',', value_parser = clap::builder::BoolishValueParser::new())]
    replace_stride_with_dilation: Option<Vec<bool>>,
    /// Planes of the first stage [default: 64]; smaller ones make thin variants of any architecture, for tests.
    #[arg(long, value_name = "N")]
    width: Option<usize>,
    /// Side of the square input picture [default: 224].
    #[arg(long, value_name = "PIXELS")]
    size: Option<usize>,
}

impl NetworkArgs {
    fn network(&self) -> Result<Network> {
        let options = Options {
            num_classes: self.num_classes,
            groups: self.groups,
            width_per_group: self.width_per_group,
            replace_stride_with_dilation: self.replace_stride_with_dilation.clone(),
            width: self.width,
            size: self.size,
        };
        Network::new(Config::new(self.arch, &options)?)
    }
}

/// Writes a network as ONNX.
#[derive(Args)]
#[command(after_help = format!("\
Examples:
  edge-resnet export --arch resnet18 --weights resnet18.safetensors -o r18.onnx
  edge-resnet export --arch resnet50 --replace-stride-with-dilation false,true,true -o dilated.onnx
  edge-resnet export --arch resnet18 --width 8 --size 64 --num-classes 10 -o thin.onnx

Weights are safetensors with torchvision's names (conv1.weight, bn1.running_var, layer1.0.downsample.0.weight, fc.bias, …),
float32, float16 or bfloat16. From a .pth file:

{}", edge_resnet::error::CONVERT))]
struct ExportArgs {
    #[command(flatten)]
    network: NetworkArgs,
    /// Weights; without them the network is initialised (Kaiming-normal, fan-out).
    #[arg(long, value_name = "SAFETENSORS")]
    weights: Option<PathBuf>,
    /// Start every residual branch as zero: its last BatchNorm's γ is 0.
    #[arg(long, conflicts_with = "weights")]
    zero_init_residual: bool,
    /// Seed of the initialisation: the same seed gives the same file.
    #[arg(long, default_value_t = 0, conflicts_with = "weights")]
    seed: u64,
    /// Operator set, 9 to 21.
    #[arg(long, default_value_t = 17)]
    opset: i64,
    /// Fix the batch size [default: dynamic].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65536))]
    batch: Option<u32>,
    /// Output file.
    #[arg(short, long)]
    output: PathBuf,
}

/// Prints a table of a network's layers: shape, parameters, multiply-accumulates.
#[derive(Args)]
#[command(after_help = "Examples:\n  edge-resnet summary --arch resnet50\n  edge-resnet summary --arch wide_resnet101_2 --json | jq .macs")]
struct SummaryArgs {
    #[command(flatten)]
    network: NetworkArgs,
    /// Print as JSON.
    #[arg(long)]
    json: bool,
}

/// Gives every BatchNorm the mean and variance of real pictures, layer by layer.
#[derive(Args)]
#[command(
    name = "calibrate-bn",
    after_help = "\
Example:
  edge-resnet calibrate-bn fresh.onnx photos/ --images 16 -o fresh-bn.onnx

Pictures are prepared as the model's metadata says, or as ImageNet's customs are; the file written records it."
)]
struct CalibrateArgs {
    /// Float ONNX model with BatchNormalization.
    model: PathBuf,
    /// Pictures or folders of them.
    #[arg(required = true, value_name = "PATH")]
    pictures: Vec<PathBuf>,
    /// Use at most this many, evenly spaced; each takes about 10 MB of memory for a ResNet at 224 pixels.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=1024))]
    images: u32,
    /// Print the statistics as JSON.
    #[arg(long)]
    json: bool,
    /// Output file.
    #[arg(short, long)]
    output: PathBuf,
}

fn progress(stage: &'static str, count: usize) -> ProgressBar {
    let target = if std::io::stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(Some(count as u64), target).with_message(stage);
    if let Ok(style) = ProgressStyle::with_template("{msg:12} {wide_bar} {pos}/{len} {eta}") {
        bar.set_style(style);
    }
    bar
}

fn print(json: bool, report: &impl serde::Serialize, text: impl std::fmt::Display) {
    let json = json.then(|| serde_json::to_string_pretty(report).unwrap_or_default());
    let text = json.unwrap_or_else(|| text.to_string());
    let _ = writeln!(std::io::stdout(), "{text}"); // a closed pipe is the reader's choice
}

fn run_export(args: ExportArgs) -> Result<()> {
    let network = args.network.network()?;
    if args.zero_init_residual && network.config.arch.is_plain() {
        return Err(Error::Usage("--zero-init-residual sets BatchNorm's γ; the plain networks have none".into()));
    }
    if !export::OPSETS.contains(&args.opset) {
        return Err(Error::Usage(format!("--opset {} is outside 9 to 21", args.opset)));
    }
    let bar = progress("weights", network.parameters().count());
    let values = match &args.weights {
        Some(path) => weights::load(path, &network, || bar.inc(1))?,
        None => init::initialise(&network, args.seed, args.zero_init_residual, || bar.inc(1)),
    };
    bar.finish_and_clear();
    let model = export::to_onnx(&network, values, args.opset, args.batch.map(|b| b as usize))?;
    let bytes = model.encode_to_vec();
    drop(model);
    onnx::write_atomically(&args.output, &bytes)?;
    let (parameters, macs) = (network.parameter_count(), network.macs() as f64 / 1e9);
    let (name, mb) = (network.config.arch.name(), bytes.len() as f64 / 1e6);
    eprintln!("{}: {name}, {parameters} parameters, {macs:.3} GMAC, {mb:.1} MB", args.output.display());
    Ok(())
}

fn run_calibrate(args: CalibrateArgs) -> Result<()> {
    let mut model = onnx::load(&args.model)?;
    let recorded: Option<Preprocess> = match onnx::metadata(&model, PREPROCESS_KEY) {
        Some(text) => {
            let bad = |e| edge_infer::Error::InvalidModel(format!("metadata `{PREPROCESS_KEY}`: {e}"));
            Some(serde_json::from_str(text).map_err(bad)?)
        }
        None => None,
    };
    let (input, dims) = onnx::data_input(onnx::graph(&model)?)?;
    let &[_, channels, height, width] = &dims[..] else {
        return Err(edge_infer::Error::UnsupportedModel(format!("input `{input}` has dimensions {dims:?}; N×C×H×W is needed")).into());
    };
    let preprocess = recorded.unwrap_or_else(|| {
        let side = |d: Option<usize>| d.map_or(224, |d| d.min(1 << 16) as u32);
        let gray = channels == Some(1);
        Preprocess {
            width: side(width),
            height: side(height),
            resize: Resize::ShortSide(side(width).max(side(height)) * 256 / 224),
            color: if gray { Color::Gray } else { Color::Rgb },
            mean: if gray { vec![0.449] } else { vec![0.485, 0.456, 0.406] },
            std: if gray { vec![0.226] } else { vec![0.229, 0.224, 0.225] },
            ignore_exif: false,
        }
    });
    image::validate(&preprocess)?;
    let shape = [1, preprocess.color.channels(), preprocess.height as usize, preprocess.width as usize];
    if dims[1..].iter().zip(&shape[1..]).any(|(d, s)| d.is_some_and(|d| d != *s)) {
        return Err(Error::Usage(format!("pictures become {shape:?}, the model wants {dims:?}; correct its metadata `{PREPROCESS_KEY}`")));
    }
    let all = image::collect(&args.pictures)?;
    let count = (args.images as usize).min(all.len());
    let chosen = (0..count).map(|i| &all[i * all.len() / count]);
    let pictures = chosen.map(|p| image::load_tensor(p, &preprocess)).collect::<edge_infer::Result<Vec<_>>>()?;
    let bar = progress("BatchNorm", calibrate::count(&model)?);
    let measured = calibrate::calibrate(&mut model, &shape, pictures, || bar.inc(1))?;
    bar.finish_and_clear();
    let text = serde_json::to_string(&preprocess).map_err(|e| Error::Usage(e.to_string()))?;
    onnx::set_metadata(&mut model, PREPROCESS_KEY, text);
    onnx::write_atomically(&args.output, &model.encode_to_vec())?;
    print(args.json, &measured, format!("{} BatchNorms calibrated on {count} pictures", measured.len()));
    Ok(())
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Export(args) => run_export(args),
        Command::Summary(args) => args.network.network().map(|n| {
            let summary = Summary::new(&n);
            print(args.json, &summary, &summary);
        }),
        Command::CalibrateBn(args) => run_calibrate(args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::from(if matches!(e, Error::Usage(_) | Error::Infer(edge_infer::Error::Usage(_))) { 2 } else { 1 })
        }
    }
}
