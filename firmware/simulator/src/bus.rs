//! What the buses have in common, and what goes wrong on them.

use core::cell::Cell;
use core::fmt;
use embedded_hal::{i2c, spi};

/// What goes wrong. All zero: nothing.
#[derive(Debug, Default)]
pub struct Faults {
    /// I²C transactions still to be refused.
    pub naks: Cell<u32>,
    /// The capture never ends.
    pub stuck: Cell<bool>,
    /// Bytes that are missing at the end of a picture.
    pub short: Cell<u32>,
    /// What SPI reads as, whatever is there: a line that hangs.
    pub spi_stuck_at: Cell<Option<u8>>,
    /// The product ID reads as this.
    pub product: Cell<Option<u16>>,
    /// The chip is powered down and up again: registers are lost. Read and cleared.
    pub brown_out: Cell<bool>,
}

impl Faults {
    /// Whether this transaction is refused.
    pub(crate) fn nak(&self) -> bool {
        let left = self.naks.get();
        self.naks.set(left.saturating_sub(1));
        left > 0
    }
}

/// Nobody answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BusError;

impl fmt::Display for BusError {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("not acknowledged")
    }
}

impl core::error::Error for BusError {}

impl i2c::Error for BusError {
    fn kind(&self) -> i2c::ErrorKind {
        i2c::ErrorKind::NoAcknowledge(i2c::NoAcknowledgeSource::Unknown)
    }
}

impl spi::Error for BusError {
    fn kind(&self) -> spi::ErrorKind {
        spi::ErrorKind::Other
    }
}
