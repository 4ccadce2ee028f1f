//! The eight data lines, pixel clock, line and frame signals of a sensor without a FIFO.

use core::fmt;

/// Why a port has no picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum PortError {
    /// Pixels came faster than they were taken.
    Overrun,
    /// The frame signal ended the picture before it was whole.
    Short,
    /// The picture is larger than the port's memory.
    TooLarge,
}

impl fmt::Display for PortError {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Overrun => "the camera port lost pixels: lower the pixel clock",
            Self::Short => "the camera port saw a short picture: check HREF, VSYNC and PCLK",
            Self::TooLarge => "the picture is larger than the camera port's memory",
        })
    }
}

impl core::error::Error for PortError {}

/// A DCMI, a PIO program with DMA, or a port and interrupts.
pub trait ParallelPort {
    /// From the next start of a frame on, take `length` bytes; whatever was under way is given up.
    fn begin(&mut self, length: u32) -> Result<(), PortError>;
    /// Whether all of them are there.
    fn poll(&mut self) -> Result<bool, PortError>;
    /// The next of them.
    fn read(&mut self, out: &mut [u8]) -> Result<(), PortError>;
}
