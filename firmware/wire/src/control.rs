//! Settings of the sensor that change pictures, not their layout.

use crate::message::Status;
use byteorder::{ByteOrder, LittleEndian as LE};

/// A setting that the sensor finds itself, or is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Level {
    /// The sensor's own control loop.
    Auto,
    /// A fixed value. Exposure: rows of the sensor's readout. Gain: sixteenths (16 is 1×).
    Manual(u16),
}

/// The light that a scene is seen in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[repr(u8)]
pub enum WhiteBalance {
    /// The sensor finds it.
    Auto = 0,
    /// The sun.
    Sunny = 1,
    /// A clouded sky.
    Cloudy = 2,
    /// Fluorescent lamps.
    Office = 3,
    /// Incandescent lamps.
    Home = 4,
}

impl WhiteBalance {
    /// All of them; the position is the code on the link.
    pub const ALL: [Self; 5] = [Self::Auto, Self::Sunny, Self::Cloudy, Self::Office, Self::Home];
}

/// Exposure in steps of the mains' period, so that lamps do not flicker or draw bands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[repr(u8)]
pub enum Banding {
    /// Any exposure.
    Off = 0,
    /// Steps of 10 ms.
    Hz50 = 1,
    /// Steps of 8.3 ms.
    Hz60 = 2,
    /// The sensor finds out which.
    Auto = 3,
}

impl Banding {
    /// All of them; the position is the code on the link.
    pub const ALL: [Self; 4] = [Self::Off, Self::Hz50, Self::Hz60, Self::Auto];
}

/// A setting that changes pictures, not their layout. After a reset of the sensor each is at its default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Control {
    /// Exposure time, in rows of the sensor's readout. Default: automatic.
    Exposure(Level),
    /// Analogue gain in sixteenths: 16 is 1×. Rounded down to what the sensor has. Default: automatic.
    Gain(Level),
    /// Mirror images. Default: none.
    Flip {
        /// Left is right.
        horizontal: bool,
        /// Up is down.
        vertical: bool,
    },
    /// Colour bars (or what the sensor has) instead of the scene.
    TestPattern(bool),
    /// Default: automatic.
    WhiteBalance(WhiteBalance),
    /// −2 to 2. Default: 0.
    Brightness(i8),
    /// −2 to 2. Default: 0.
    Contrast(i8),
    /// −2 to 2. Default: 0.
    Saturation(i8),
    /// The most that the automatic gain may reach: 2, 4, 8 and so on up to 128 times, as far as the sensor goes.
    GainCeiling(u8),
    /// What the automatic exposure aims at: −2 (dark) to 2 (bright). Default: 0.
    ExposureBias(i8),
    /// JPEG quantization scale: 2 (large files, good pictures) to 63.
    JpegQuality(u8),
    /// Default: automatic, where the sensor has it.
    Banding(Banding),
    /// Longer frames in the dark. Default: off.
    NightMode(bool),
    /// The sensor sleeps and makes no pictures; it keeps its settings. Default: off.
    Standby(bool),
}

impl Control {
    /// How many there are.
    pub const COUNT: usize = 14;
    /// Opcode of the first.
    const FIRST: u8 = 6;

    /// A number for each, below [`Control::COUNT`]; standby is the last.
    pub fn index(&self) -> usize {
        match self {
            Self::Exposure(_) => 0,
            Self::Gain(_) => 1,
            Self::Flip { .. } => 2,
            Self::TestPattern(_) => 3,
            Self::WhiteBalance(_) => 4,
            Self::Brightness(_) => 5,
            Self::Contrast(_) => 6,
            Self::Saturation(_) => 7,
            Self::GainCeiling(_) => 8,
            Self::ExposureBias(_) => 9,
            Self::JpegQuality(_) => 10,
            Self::Banding(_) => 11,
            Self::NightMode(_) => 12,
            Self::Standby(_) => 13,
        }
    }

    /// The first byte of the command that sets it.
    pub(crate) fn opcode(&self) -> u8 {
        Self::FIRST + self.index() as u8
    }

    /// What follows the opcode, and its length.
    pub(crate) fn encode(&self) -> ([u8; 3], usize) {
        let mut b = [0; 3];
        let length = match *self {
            Self::Exposure(level) | Self::Gain(level) => {
                if let Level::Manual(value) = level {
                    b[0] = 1;
                    LE::write_u16(&mut b[1..], value);
                }
                3
            }
            Self::Flip { horizontal, vertical } => {
                b[0] = u8::from(horizontal) | u8::from(vertical) << 1;
                1
            }
            Self::TestPattern(on) | Self::NightMode(on) | Self::Standby(on) => {
                b[0] = u8::from(on);
                1
            }
            Self::WhiteBalance(light) => {
                b[0] = light as u8;
                1
            }
            Self::Banding(banding) => {
                b[0] = banding as u8;
                1
            }
            Self::Brightness(level) | Self::Contrast(level) | Self::Saturation(level) | Self::ExposureBias(level) => {
                b[0] = level as u8;
                1
            }
            Self::GainCeiling(value) | Self::JpegQuality(value) => {
                b[0] = value;
                1
            }
        };
        (b, length)
    }

    /// Reads what follows an opcode; [`Status::Unsupported`] where that is no control's.
    pub(crate) fn decode(opcode: u8, rest: &[u8]) -> Result<Self, Status> {
        let level = || match rest {
            [0, 0, 0] => Ok(Level::Auto),
            [1, low, high] => Ok(Level::Manual(u16::from_le_bytes([*low, *high]))),
            _ => Err(Status::Malformed),
        };
        let byte = || if let [v] = rest { Ok(*v) } else { Err(Status::Malformed) };
        let signed = || byte().map(|v| v as i8);
        let on = || byte().and_then(|v| if v <= 1 { Ok(v == 1) } else { Err(Status::Malformed) });
        Ok(match opcode.checked_sub(Self::FIRST).ok_or(Status::Unsupported)? {
            0 => Self::Exposure(level()?),
            1 => Self::Gain(level()?),
            2 => match byte()? {
                v @ 0..=3 => Self::Flip { horizontal: v & 1 != 0, vertical: v & 2 != 0 },
                _ => return Err(Status::Malformed),
            },
            3 => Self::TestPattern(on()?),
            4 => Self::WhiteBalance(*WhiteBalance::ALL.get(usize::from(byte()?)).ok_or(Status::Unsupported)?),
            5 => Self::Brightness(signed()?),
            6 => Self::Contrast(signed()?),
            7 => Self::Saturation(signed()?),
            8 => Self::GainCeiling(byte()?),
            9 => Self::ExposureBias(signed()?),
            10 => Self::JpegQuality(byte()?),
            11 => Self::Banding(*Banding::ALL.get(usize::from(byte()?)).ok_or(Status::Unsupported)?),
            12 => Self::NightMode(on()?),
            13 => Self::Standby(on()?),
            _ => return Err(Status::Unsupported),
        })
    }
}
