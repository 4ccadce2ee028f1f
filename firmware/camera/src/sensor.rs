//! What every camera can do.

use crate::error::CameraError;
use edge_wire::{Level, PixelFormat};

/// What a sensor puts out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Mode {
    /// Layout of pixels: as in `edge-wire`.
    pub format: PixelFormat,
    /// Pixels.
    pub width: u16,
    /// Pixels.
    pub height: u16,
}

/// Formats, and the sizes of each.
pub type Modes = &'static [(PixelFormat, &'static [(u16, u16)])];

/// A setting that changes pictures, not their layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Control {
    /// Exposure time, in rows of the sensor's readout.
    Exposure(Level),
    /// Analogue gain in sixteenths: 16 is 1×. Rounded down to what the sensor has.
    Gain(Level),
    /// Mirror images.
    Flip {
        /// Left is right.
        horizontal: bool,
        /// Up is down.
        vertical: bool,
    },
    /// Colour bars (or what the sensor has) instead of the scene.
    TestPattern(bool),
}

/// A sensor with whatever holds its picture until it is read.
///
/// [`configure`](Camera::configure), then for every picture [`begin`](Camera::begin), [`poll`](Camera::poll) until it
/// gives the number of bytes, and [`read`](Camera::read) for all of them, in pieces of any length.
pub trait Camera {
    /// What it can put out.
    fn modes(&self) -> Modes;
    /// Resets the sensor and chooses what it puts out. Controls are the sensor's defaults afterwards: all automatic.
    fn configure(&mut self, mode: Mode) -> Result<(), CameraError>;
    /// Changes a control.
    fn control(&mut self, control: Control) -> Result<(), CameraError>;
    /// Captures the next picture; gives up one that is under way.
    fn begin(&mut self) -> Result<(), CameraError>;
    /// Bytes of the picture, once it is there.
    fn poll(&mut self) -> Result<Option<u32>, CameraError>;
    /// The next bytes of the picture.
    fn read(&mut self, out: &mut [u8]) -> Result<(), CameraError>;
}
