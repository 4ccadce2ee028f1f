//! What goes wrong with a sensor.

use crate::parallel::PortError;
use core::fmt;
use embedded_hal::{i2c, spi};

/// What was done to a register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Access {
    /// Reading.
    Read,
    /// Writing.
    Write,
}

/// A register that could not be reached, however often it was tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct RegisterError {
    /// Bank of the register, where the sensor has banks.
    pub bank: Option<u8>,
    /// Its address.
    pub register: u16,
    /// What was tried.
    pub access: Access,
    /// How often.
    pub tries: u8,
    /// What the bus said the last time.
    pub kind: i2c::ErrorKind,
}

/// Why a camera does not do what it should.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum CameraError {
    /// A sensor register could not be reached: wiring, power, clock, or pull-ups of the I²C bus.
    Register(RegisterError),
    /// A register of the ArduCHIP could not be reached.
    Spi {
        /// Its address.
        register: u8,
        /// What the bus said.
        kind: spi::ErrorKind,
    },
    /// Another chip answers, or none: the product ID is not the sensor's.
    WrongChip {
        /// What the sensor would say.
        expected: u16,
        /// What was read.
        found: u16,
    },
    /// The ArduCHIP's test register does not keep what is written: the SPI wiring or its clock.
    TestRegister {
        /// Written.
        wrote: u8,
        /// Read back.
        read: u8,
    },
    /// The sensor makes no such pictures.
    UnsupportedMode,
    /// The sensor has no such control.
    UnsupportedControl,
    /// The control takes no such value.
    OutOfRange,
    /// A capture ended with fewer or more bytes than its picture has.
    Length {
        /// Bytes of the picture, or the most that fit.
        expected: u32,
        /// Bytes there are.
        found: u32,
    },
    /// The bytes captured are no JPEG file.
    NotJpeg,
    /// No picture within the time it can take.
    Timeout,
    /// The parallel port.
    Port(PortError),
}

impl From<RegisterError> for CameraError {
    fn from(error: RegisterError) -> Self {
        Self::Register(error)
    }
}

impl From<PortError> for CameraError {
    fn from(error: PortError) -> Self {
        Self::Port(error)
    }
}

impl fmt::Display for RegisterError {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let access = if self.access == Access::Read { "reading" } else { "writing" };
        write!(f, "{access} register {:#04x}", self.register)?;
        if let Some(bank) = self.bank {
            write!(f, " of bank {bank}")?;
        }
        write!(f, " failed {} times: {}", self.tries, self.kind)
    }
}

impl fmt::Display for CameraError {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Register(e) => write!(f, "{e}; check the sensor's wiring, power and clock"),
            Self::Spi { register, kind } => write!(f, "ArduCHIP register {register:#04x}: {kind}"),
            Self::WrongChip { expected, found } => write!(f, "the sensor's product ID is {found:#06x}, not {expected:#06x}"),
            Self::TestRegister { wrote, read } => {
                write!(f, "the ArduCHIP keeps {read:#04x} where {wrote:#04x} was written; check the SPI wiring and clock")
            }
            Self::UnsupportedMode => f.write_str("the sensor makes no pictures of this format and size"),
            Self::UnsupportedControl => f.write_str("the sensor has no such control"),
            Self::OutOfRange => f.write_str("the value is beyond the sensor's range"),
            Self::Length { expected, found } => write!(f, "a capture of {found} bytes where {expected} are expected"),
            Self::NotJpeg => f.write_str("what was captured is no JPEG file"),
            Self::Timeout => f.write_str("no picture within the time it can take"),
            Self::Port(e) => write!(f, "{e}"),
        }
    }
}

impl core::error::Error for RegisterError {}
impl core::error::Error for CameraError {}
