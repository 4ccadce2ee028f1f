//! `edge-infer compile`: a model becomes a program that is mapped instead of imported.

use super::{ChoiceArgs, RunArgs, new_file_in};
use anyhow::Context;
use clap::Args;
use edge_infer::Error;
use edge_infer::import::COMPILED_EXTENSION;
use edge_infer::model::{LoadOptions, compile};
use edge_infer::plan::Policy;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Write a model as a program for this processor: it starts at once, and needs less memory
///
/// The program holds packed weights, addresses and kernels, and serves one instruction set and one version of edge-infer.
/// Where it lies beside the model under the same name (M.edge beside M.onnx), `--model M.onnx` uses it as long as it is
/// fresh; it can also be given itself. Only models that run in int8 from input to output can be compiled.
#[derive(Args)]
#[command(after_help = "\
Examples:
  edge-infer compile r18q.onnx                        writes r18q.edge
  edge-infer compile r18q.onnx -o /var/lib/r18q.edge
  edge-infer compile --low-memory r18q.onnx           a ResNet-18 in about 20 MB, for less speed
  EDGE_ISA=neon edge-infer compile r18q.onnx          for other kernels than this processor's best")]
pub struct CompileArgs {
    /// Quantized ONNX file.
    model: PathBuf,
    #[command(flatten)]
    choice: ChoiceArgs,
    /// File to write [default: the model's name with .edge].
    #[arg(short, long)]
    output: Option<PathBuf>,
    /// Keep every weight in one byte. Otherwise some 3×3 convolutions keep theirs in eight, to multiply less often (Winograd).
    #[arg(long)]
    low_memory: bool,
}

pub fn run(args: &CompileArgs, run: &RunArgs) -> anyhow::Result<ExitCode> {
    let output = args.output.clone().unwrap_or_else(|| args.model.with_extension(COMPILED_EXTENSION));
    if output == args.model {
        return Err(Error::Usage(format!("{} would overwrite the model; choose another --output", output.display())).into());
    }
    let policy = if args.low_memory { Policy::Direct } else { Policy::default() };
    compile(&args.model, &output, &LoadOptions { policy, ..run.options(&args.choice) })
        .with_context(|| format!("cannot compile {}", args.model.display()))?;
    // Others may read it as far as the umask lets them: a service runs as another user.
    let folder = output.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let like_any_new_file = new_file_in(folder)?.as_file().metadata().map_err(|e| Error::io(folder, e))?.permissions();
    std::fs::set_permissions(&output, like_any_new_file).map_err(|e| Error::io(&output, e))?;
    let bytes = std::fs::metadata(&output).map_err(|e| Error::io(&output, e))?.len();
    println!("{}: {:.1} MB", output.display(), bytes as f64 / 1e6);
    Ok(ExitCode::SUCCESS)
}
