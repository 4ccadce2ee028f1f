//! What every camera can do.

use crate::error::CameraError;
use edge_wire::{Control, PixelFormat};

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

/// A sensor with whatever holds its picture until it is read.
///
/// [`configure`](Camera::configure), then for every picture [`begin`](Camera::begin), [`poll`](Camera::poll) until it
/// gives the number of bytes, and [`read`](Camera::read) for all of them, in pieces of any length.
pub trait Camera {
    /// What it can put out.
    fn modes(&self) -> Modes;
    /// Resets the sensor and chooses what it puts out. Controls are at their defaults afterwards.
    fn configure(&mut self, mode: Mode) -> Result<(), CameraError>;
    /// Changes a control; [`CameraError::UnsupportedControl`] where the sensor has none.
    fn control(&mut self, control: Control) -> Result<(), CameraError>;
    /// Captures the next picture; gives up one that is under way.
    fn begin(&mut self) -> Result<(), CameraError>;
    /// Bytes of the picture, once it is there.
    fn poll(&mut self) -> Result<Option<u32>, CameraError>;
    /// The next bytes of the picture.
    fn read(&mut self, out: &mut [u8]) -> Result<(), CameraError>;
}

/// Where in a table of five a level of −2 to 2 is.
pub(crate) fn step(level: i8) -> Result<usize, CameraError> {
    if (-2..=2).contains(&level) { Ok((level + 2) as usize) } else { Err(CameraError::OutOfRange) }
}

/// The power of two that a gain ceiling is, from 1 up; `most` is the largest ceiling's.
pub(crate) fn ceiling(times: u8, most: u8) -> Result<u8, CameraError> {
    let power = times.trailing_zeros() as u8;
    if times.is_power_of_two() && (1..=most).contains(&power) { Ok(power) } else { Err(CameraError::OutOfRange) }
}
