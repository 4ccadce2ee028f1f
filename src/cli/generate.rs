//! `generate`: man pages and shell completions, for packages.

use super::Cli;
use clap::{Args, CommandFactory};
use clap_complete::Shell;
use edge_infer::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Writes man pages and shell completions into a folder.
#[derive(Args)]
#[command(hide = true)]
pub struct GenerateArgs {
    /// Gets `man1/`, `bash/`, `zsh/` and `fish/`.
    folder: PathBuf,
}

pub fn run(args: &GenerateArgs) -> anyhow::Result<ExitCode> {
    let folder = |name: &str| -> Result<PathBuf, Error> {
        let path = args.folder.join(name);
        std::fs::create_dir_all(&path).map_err(|e| Error::io(&path, e))?;
        Ok(path)
    };
    let written = |path: &Path, result: std::io::Result<PathBuf>| result.map_err(|e| Error::io(path, e));
    for (name, shell) in [("bash", Shell::Bash), ("zsh", Shell::Zsh), ("fish", Shell::Fish)] {
        let path = folder(name)?;
        let file = clap_complete::generate_to(shell, &mut Cli::command(), "edge-infer", &path);
        written(&path, file)?;
    }
    let path = folder("man1")?;
    clap_mangen::generate_to(Cli::command(), &path).map_err(|e| Error::io(&path, e))?;
    Ok(ExitCode::SUCCESS)
}
