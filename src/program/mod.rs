//! The words in which programs are written: buffers, arrays, the memory of an inference, and the contract of a step.
//!
//! [`crate::ops`] writes steps in them, [`crate::plan`] puts steps together, [`crate::exec`] runs them.

mod blob;
mod buffer;
mod memory;
mod step;

pub use blob::{AnyBlob, Blob, Plain};
pub use buffer::{Buffer, Spans};
pub(crate) use memory::{Context, Memory};
pub(crate) use step::{Check, Checker, MAX_ARENA, MAX_DIM, StepOp, ensure};
