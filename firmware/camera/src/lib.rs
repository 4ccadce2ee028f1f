//! A camera on a microcontroller: sensor drivers over `embedded-hal` 1.0, and the [`Streamer`] that turns what they see
//! into frames of the link (`edge-wire`) and obeys the host's commands.
//!
//! ```text
//! I²C, SPI, parallel port → Camera (ArduCam, Ov7670, Hm01b0) → Streamer (crop, scale, two buffers, chunks) → Transport
//! ```
//!
//! No heap, no blocking beyond a bus transaction, no unsafe code. What a board adds is its clocks, pins and a loop around
//! [`Streamer::poll`].
#![no_std]
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod arducam;
mod error;
mod hm01b0;
mod jpeg;
mod ov2640;
mod ov7670;
mod parallel;
mod reduce;
mod registers;
mod sender;
mod sensor;
mod streamer;
pub mod transport;

pub use arducam::{ArduCam, Module};
pub use error::{Access, CameraError, RegisterError};
pub use hm01b0::Hm01b0;
pub use ov2640::Ov2640;
pub use ov7670::Ov7670;
pub use parallel::{ParallelPort, PortError};
pub use reduce::{MAX_SOURCE_WIDTH, Reduction};
pub use sensor::{Camera, Control, Mode, Modes};
pub use streamer::{Event, Output, Streamer};
