//! `tensor`: raw values in, raw values out, for scripts that compare runtimes.

use super::{ChoiceArgs, RunArgs, progress};
use clap::Args;
use edge_infer::{Error, import::onnx::write_atomically};
use std::path::PathBuf;
use std::process::ExitCode;

/// Runs little-endian f32 tensors, already normalised, one after another.
#[derive(Args)]
#[command(after_help = "Example:\n  edge-infer tensor --model r18q.onnx --input batch.f32 --output logits.f32")]
pub struct TensorArgs {
    /// ONNX model, int8 QDQ or float.
    #[arg(short, long)]
    model: PathBuf,
    #[command(flatten)]
    choice: ChoiceArgs,
    /// N·C·H·W values; N follows from the file's length.
    #[arg(short, long)]
    input: PathBuf,
    /// N × classes values.
    #[arg(short, long)]
    output: PathBuf,
}

pub fn run(args: &TensorArgs, run: &RunArgs) -> anyhow::Result<ExitCode> {
    let mut model = run.load(&args.model, &args.choice)?;
    let bytes = std::fs::read(&args.input).map_err(|e| Error::io(&args.input, e))?;
    let size = 4 * model.input_shape().iter().product::<usize>();
    if bytes.is_empty() || !bytes.len().is_multiple_of(size) {
        return Err(Error::Shape(format!(
            "{} has {} bytes; inputs of shape {:?} take {size} each",
            args.input.display(),
            bytes.len(),
            model.input_shape()
        ))
        .into());
    }
    let bar = progress(bytes.len() / size, "tensors");
    let mut out = Vec::with_capacity(bytes.len() / size * model.output_len() * 4);
    let mut input = Vec::with_capacity(size / 4);
    for item in bytes.chunks_exact(size) {
        input.clear();
        input.extend(item.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)));
        out.extend(model.run(&input)?.iter().flat_map(|v| v.to_le_bytes()));
        bar.inc(1);
    }
    bar.finish_and_clear();
    write_atomically(&args.output, &out)?;
    Ok(ExitCode::SUCCESS)
}
