//! Fast, exact int8 inference of quantized ResNets.
#![warn(missing_docs)]
#![deny(unsafe_op_in_unsafe_fn)]
#![deny(unsafe_code)]

pub mod error;
pub mod kernels;
pub mod metadata;

pub use error::{Error, Result};
