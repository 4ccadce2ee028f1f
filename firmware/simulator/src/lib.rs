//! Sensors that are not there: their registers behind `embedded-hal` buses, and pictures that follow from what is written
//! to them. A driver that sets the wrong register gets the wrong picture, or none.
//!
//! What a sensor does is written down here from public sources, each named beside its rule, and not from this project's
//! drivers: a slip in one shows against the other. Besides pictures, every simulator lists what it would not have been told
//! by any public driver: its [`Refusal`]s.
#![no_std]
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod arducam;
mod bus;
mod hm01b0;
mod ov2640;
mod ov7670;
mod picture;
mod port;
mod rules;

pub use arducam::{ArduCamSim, ChipSelect, Revision, Selected, SensorBus};
pub use bus::{BusError, Faults, Wait};
pub use hm01b0::Hm01b0Sim;
pub use ov7670::Ov7670Sim;
pub use picture::Picture;
pub use port::{Port, Receiver};
pub use rules::Refusal;
