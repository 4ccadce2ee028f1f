//! The error type of the library: what is wrong, where, and what to do about it.

use std::path::{Path, PathBuf};

/// Result of every fallible call in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong between a file on disk and a label.
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
    /// The model file is not valid ONNX, or breaks one of ONNX's own rules.
    #[error("invalid model: {0}")]
    InvalidModel(String),
    /// The model is valid, but uses something this program does not support.
    #[error("unsupported model: {0}")]
    UnsupportedModel(String),
    /// A picture, a frame or a file of input tensors cannot be used.
    #[error("{path}: {reason}", path = path.display())]
    Image {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        reason: String,
    },
    /// A tensor has another shape or length than the model wants.
    #[error("shape mismatch: {0}")]
    Shape(String),
    /// tract failed while it analysed or ran the float part of a model.
    #[error("tract: {0}")]
    Tract(String),
    /// An argument is out of range or contradicts another.
    #[error("{0}")]
    Usage(String),
}

impl Error {
    /// Wraps an I/O error with the path it concerns.
    pub fn io(path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Error::Io { path: path.as_ref().to_owned(), source }
    }

    /// An error about a file of inputs.
    pub fn image(path: impl AsRef<Path>, reason: impl Into<String>) -> Self {
        Error::Image { path: path.as_ref().to_owned(), reason: reason.into() }
    }

    /// An error about a tensor of a model.
    pub fn tensor(tensor: impl std::fmt::Display, reason: impl std::fmt::Display) -> Self {
        Error::InvalidModel(format!("tensor `{tensor}`: {reason}"))
    }
}
