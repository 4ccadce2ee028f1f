//! Fast, exact int8 inference of quantized convolutional networks.
#![warn(missing_docs)]
#![deny(unsafe_op_in_unsafe_fn)]
#![deny(unsafe_code)]
// Kernels index several arrays in step: iterators would hide that, and what the compiler vectorizes.
#![allow(clippy::needless_range_loop)]

pub mod answer;
pub mod bench;
pub mod board;
pub mod error;
pub mod exec;
mod files;
pub mod graph;
pub mod image;
pub mod import;
pub mod kernels;
pub mod labels;
pub mod metadata;
pub mod model;
pub mod ops;
pub mod pixels;
pub mod plan;
pub mod program;
pub mod report;
pub mod source;
pub mod task;
pub mod text;
pub mod view;

pub use error::{Error, Result};
