//! Post-training quantization of float ONNX ResNets to standard int8 QDQ ONNX.
//!
//! The stages, one module each: [`input`] reads, validates and brings exporters' many forms to one
//! ([`edge_infer::import::canonical`]), [`shaped`] does what needs shapes, [`fold`] removes BatchNorm, [`observe`] measures activation ranges through tract ([`float`]),
//! [`recipe`] says what can be chosen, [`equalize`] balances channels, [`rounding`] makes rounding errors cancel, [`scheme`] turns ranges and weights into integers, [`plan`] decides which tensors are quantized,
//! [`qdq`] writes them down, [`report`] measures what was lost and [`html`] draws it.
//! [`eval`] measures accuracy on labelled pictures ([`dataset`]), [`sensitivity`] what each layer costs, [`pipeline`] joins them.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod data;
pub mod dataset;
pub mod equalize;
pub mod eval;
pub mod float;
pub mod fold;
pub mod html;
pub mod input;
pub mod observe;
pub mod pipeline;
pub mod plan;
pub mod qdq;
pub mod recipe;
pub mod report;
pub mod rounding;
pub mod rows;
pub mod scheme;
pub mod sensitivity;
pub mod sequences;
pub mod shaped;

pub use edge_infer::import::onnx;
pub use edge_infer::{Error, Result};
