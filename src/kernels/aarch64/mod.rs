//! AArch64 microkernels: baseline NEON, SDOT (`dotprod`) and SMMLA (`i8mm`). All read signed bytes and make
//! eight output channels; a call walks its pixels in passes of as many as the registers hold.

mod dotprod;
mod epilogue;

pub use dotprod::DOTPROD;
