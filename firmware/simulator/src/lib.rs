//! Sensors that are not there: their registers behind `embedded-hal` buses, and pictures that follow from what is written
//! to them. A driver that sets the wrong register gets the wrong picture, or none.
//!
//! Addresses and bits are written down here a second time, not taken from the drivers: a slip in one shows against the other.
#![no_std]
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod arducam;
mod bus;
mod hm01b0;
mod ov7670;
mod picture;
mod port;

pub use arducam::{ArduCamSim, ChipSelect, SensorBus};
pub use bus::{BusError, Faults};
pub use hm01b0::Hm01b0Sim;
pub use ov7670::Ov7670Sim;
pub use picture::Picture;
pub use port::Port;
