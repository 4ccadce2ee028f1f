//! AArch64 microkernels: baseline NEON, SDOT (`dotprod`) and SMMLA (`i8mm`). All read signed bytes and make
//! eight output channels; a call walks its pixels in passes of as many as the registers hold.

mod depthwise;
mod dotprod;
mod epilogue;
mod i8mm;
pub mod lanes;
mod neon;
mod winograd;

pub use depthwise::{DOTPROD_DEPTHWISE, I8MM_DEPTHWISE, NEON_DEPTHWISE};
pub use dotprod::DOTPROD;
pub use i8mm::I8MM;
pub use neon::NEON;
