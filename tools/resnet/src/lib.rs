//! Builds ResNets as ONNX: torchvision's, and the older hand-written form without BatchNorm.
//!
//! [`arch`] names the architectures and validates options, [`network`] describes one layer by layer without
//! allocating its weights, [`init`] and [`weights`] fill the parameters, [`export`] writes ONNX,
//! [`summary`] prints, [`calibrate`] gives BatchNorm the statistics of real pictures.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod arch;
pub mod calibrate;
pub mod error;
pub mod export;
pub mod init;
pub mod network;
pub mod summary;
pub mod weights;

pub use error::{Error, Result};
