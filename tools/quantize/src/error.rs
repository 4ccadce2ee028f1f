//! What can go wrong, with the node or tensor it concerns.

use std::path::{Path, PathBuf};

/// Result of every fallible call in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a model could not be folded or quantized.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be opened, read or written.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The file is not an ONNX model, or breaks one of ONNX's rules.
    #[error("invalid model: {0}")]
    Model(String),
    /// One tensor of the model is unusable.
    #[error("tensor `{tensor}`: {reason}")]
    Tensor {
        /// Its name.
        tensor: String,
        /// What is wrong with it.
        reason: String,
    },
    /// One node of the model is unusable.
    #[error("node `{node}`: {reason}")]
    Node {
        /// Its name, operator type included.
        node: String,
        /// What is wrong with it, and what to do.
        reason: String,
    },
    /// The calibration data cannot be used.
    #[error("calibration data {path}: {reason}", path = path.display())]
    Data {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// tract failed to analyse or run the model.
    #[error("tract cannot run the model: {0}")]
    Tract(String),
    /// Reading a picture failed.
    #[error(transparent)]
    Picture(#[from] edge_infer::Error),
    /// Arguments contradict each other or the model.
    #[error("{0}")]
    Usage(String),
}

impl Error {
    /// Wraps an I/O error with the path it concerns.
    pub fn io(path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Error::Io { path: path.as_ref().to_owned(), source }
    }
    /// An error about a tensor.
    pub fn tensor(tensor: impl Into<String>, reason: impl Into<String>) -> Self {
        Error::Tensor { tensor: tensor.into(), reason: reason.into() }
    }
    /// An error about calibration data.
    pub fn data(path: impl AsRef<Path>, reason: impl Into<String>) -> Self {
        Error::Data { path: path.as_ref().to_owned(), reason: reason.into() }
    }
}
