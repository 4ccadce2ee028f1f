//! What can go wrong, and what to do about it.

use std::path::PathBuf;

/// Result of every fallible call in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Turns a `.pth` file into safetensors; printed wherever somebody gives us the former.
pub const CONVERT: &str = r#"import sys, torch                      # pip install torch safetensors
from safetensors.torch import save_file
source, target = sys.argv[1:]          # python convert.py model.pth model.safetensors
state = torch.load(source, map_location="cpu", weights_only=True)
for key in ("state_dict", "model"):
    state = state.get(key, state)
state = {k.removeprefix("module."): v.detach().clone().contiguous() for k, v in state.items()}
save_file(state, target)
print(len(state), "tensors written to", target)
"#;

/// Why a network could not be built, written or calibrated.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Options contradict each other or the architecture.
    #[error("{0}")]
    Usage(String),
    /// The weight file is not safetensors, or broken.
    #[error("{path}: {reason}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        reason: String,
    },
    /// The weight file is a pickle, which runs code when it is read.
    #[error("{path} is a PyTorch pickle, which only Python can read; convert it to safetensors:\n\n{CONVERT}", path = path.display())]
    Pickle {
        /// The file.
        path: PathBuf,
    },
    /// Tensors of a weight file do not suit the network.
    #[error("{path}: {count} problems with its tensors\n  {list}", path = path.display(), count = problems.len(), list = problems.join("\n  "))]
    Tensors {
        /// The file.
        path: PathBuf,
        /// One line per offending tensor.
        problems: Vec<String>,
    },
    /// Reading, writing or running ONNX failed.
    #[error(transparent)]
    Infer(#[from] edge_infer::Error),
}

impl Error {
    /// A broken weight file.
    pub fn file(path: impl Into<PathBuf>, reason: impl ToString) -> Self {
        Error::File { path: path.into(), reason: reason.to_string() }
    }
}
