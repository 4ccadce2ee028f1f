//! From an ONNX file to something that runs: the only code that names tract.

pub mod canonical;
mod external;
pub mod lower;
pub mod onnx;
mod region;
mod runtime;
mod softmax;

pub use region::Engine;
pub use runtime::{COMPILED_EXTENSION, Imported, Wanted, compile, guarded, import};
