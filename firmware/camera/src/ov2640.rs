//! OV2640, 2 megapixels. Register names and sections: OmniVision "OV2640 Color CMOS UXGA CameraChip", datasheet 1.6
//! (tables 12, DSP bank, and 13, sensor bank). Values marked "as recommended" have no public meaning; they are those of
//! OmniVision's "OV2640 Camera Module Software Application Notes" 1.03.

use crate::error::CameraError;
use crate::registers::Sccb;
use crate::sensor::{Control, Mode, Modes};
use edge_wire::{Level, PixelFormat};
use embedded_hal::delay::DelayNs;
use embedded_hal::i2c::I2c;

/// 7-bit address (datasheet: 60 for writing, 61 for reading).
const ADDRESS: u8 = 0x30;

/// Chooses the bank (table 12, FF).
const BANK: u8 = 0xFF;
const DSP: u8 = 0;
const SENSOR: u8 = 1;

/// Product ID, high and low byte (table 13, 0A, 0B). The low byte's last bits are the revision.
const PIDH: u8 = 0x0A;
const PIDL: u8 = 0x0B;
const PRODUCT: u16 = 0x2640;
const PRODUCT_MASK: u16 = 0xFFF0;

// Sensor bank (table 13).
const GAIN: u8 = 0x00;
const COM1: u8 = 0x03;
const REG04: u8 = 0x04;
const AEC: u8 = 0x10;
const CLKRC: u8 = 0x11;
const COM7: u8 = 0x12;
const COM8: u8 = 0x13;
const HREFST: u8 = 0x17;
const HREFEND: u8 = 0x18;
const VSTRT: u8 = 0x19;
const VEND: u8 = 0x1A;
const REG32: u8 = 0x32;
const REG45: u8 = 0x45;

const COM7_RESET: u8 = 0x80;
const COM7_SVGA: u8 = 0x40;
const COM7_COLOR_BAR: u8 = 0x02;
const COM8_AGC: u8 = 0x04;
const COM8_AEC: u8 = 0x01;
const REG04_HFLIP: u8 = 0x80;
/// Vertical flip, and the row offset that keeps the colours in place with it.
const REG04_VFLIP: u8 = 0x40;
const REG04_VREF: u8 = 0x10;

// DSP bank (table 12).
const R_BYPASS: u8 = 0x05;
const QS: u8 = 0x44;
const CTRLI: u8 = 0x50;
const HSIZE: u8 = 0x51;
const VSIZE: u8 = 0x52;
const XOFFL: u8 = 0x53;
const YOFFL: u8 = 0x54;
const VHYX: u8 = 0x55;
const TEST: u8 = 0x57;
const ZMOW: u8 = 0x5A;
const ZMOH: u8 = 0x5B;
const ZMHH: u8 = 0x5C;
const CTRL2: u8 = 0x86;
const HSIZE8: u8 = 0xC0;
const VSIZE8: u8 = 0xC1;
const CTRL1: u8 = 0xC3;
const R_DVP_SP: u8 = 0xD3;
const IMAGE_MODE: u8 = 0xDA;
const RESET: u8 = 0xE0;

const RESET_JPEG: u8 = 0x10;
const RESET_DVP: u8 = 0x04;
const IMAGE_MODE_JPEG: u8 = 0x10;
const IMAGE_MODE_HREF_VSYNC: u8 = 0x02;
const IMAGE_MODE_RGB565: u8 = 0x08;
const CTRLI_LP_DP: u8 = 0x80;

/// The array is read at 800×600 (COM7), from which the DSP scales down.
const ARRAY: (u16, u16) = (800, 600);
/// JPEG quantization scale (table 12, 44): 12 gives some 2 bits per pixel.
const JPEG_SCALE: u8 = 12;

/// Sizes: QQVGA, QCIF, QVGA, CIF, VGA, SVGA.
const SIZES: [(u16, u16); 6] = [(160, 120), (176, 144), (320, 240), (352, 288), (640, 480), (800, 600)];
/// All modes.
pub(crate) const MODES: Modes = &[(PixelFormat::Rgb565, &SIZES), (PixelFormat::Jpeg, &SIZES)];
/// Those whose raw pictures fit into 384 KiB.
pub(crate) const SMALL_MODES: Modes = &[(PixelFormat::Rgb565, SIZES.split_at(4).0), (PixelFormat::Jpeg, &SIZES)];

/// Clock, automatic controls and analogue part, after reset.
const SENSOR_INIT: &[(u8, u8)] = &[
    (0x3C, 0x32), // as recommended
    (CLKRC, 0x01),
    (0x09, 0x02), // COM2: output drive 3×
    (REG04, 0x28),
    (COM8, 0xE5), // banding filter, AGC, AEC
    (0x14, 0x48), // COM9: gain up to 8×
    (0x2C, 0x0C), // as recommended, to 0x34
    (0x33, 0x78),
    (0x3A, 0x33),
    (0x3B, 0xFB),
    (0x3E, 0x00),
    (0x43, 0x11),
    (0x16, 0x10),
    (0x39, 0x92),
    (0x35, 0xDA),
    (0x22, 0x1A),
    (0x37, 0xC3),
    (0x23, 0x00),
    (0x34, 0xC0), // ARCOM2: zoom window
    (0x06, 0x88), // as recommended, to 0x21
    (0x07, 0xC0),
    (0x0D, 0x87), // COM4
    (0x0E, 0x41),
    (0x4C, 0x00),
    (0x4A, 0x81),
    (0x21, 0x99),
    (0x24, 0x40), // AEW: upper limit of the stable range
    (0x25, 0x38), // AEB: lower limit
    (0x26, 0x82), // VV: limits of the fast range
    (0x5C, 0x00), // as recommended, to 0x63
    (0x63, 0x00),
    (0x61, 0x70), // HISTO_LOW
    (0x62, 0x80), // HISTO_HIGH
    (0x7C, 0x05), // as recommended, to 0x3D
    (0x20, 0x80),
    (0x28, 0x30),
    (0x6C, 0x00),
    (0x6E, 0x00),
    (0x70, 0x02),
    (0x71, 0x94),
    (0x73, 0xC1),
    (0x5A, 0x57), // longest exposure under the banding filter
    (COM7, COM7_SVGA),
    (COM1, 0x0A),
    (REG32, 0x09),
    (HREFST, 0x11),
    (HREFEND, 0x43),
    (VSTRT, 0x00),
    (VEND, 0x4B),
    (0x37, 0xC0), // as recommended for SVGA, to 0x3D
    (0x4F, 0xCA), // BD50
    (0x50, 0xA8), // BD60
    (0x6D, 0x00),
    (0x3D, 0x38),
];

/// Colour processing, after reset: gamma, matrix, lens and white balance as recommended.
const DSP_INIT: &[(u8, u8)] = &[
    (0x2C, 0xFF),
    (0x2E, 0xDF),
    (0xE5, 0x7F),
    (0xF9, 0xC0), // MC_BIST: microcontroller off
    (0x41, 0x24),
    (RESET, RESET_JPEG | RESET_DVP),
    (0x76, 0xFF),
    (0x33, 0xA0),
    (0x42, 0x20),
    (0x43, 0x18),
    (0x4C, 0x00),
    (0x87, 0xD0), // CTRL3: correction of black and white pixels
    (0x88, 0x3F),
    (0xD7, 0x03),
    (0xD9, 0x10),
    (R_DVP_SP, 0x82), // automatic pixel clock, divider 2
    (0xC8, 0x08),
    (0xC9, 0x80),
    (0x7C, 0x00), // BPADDR, BPDATA: saturation and contrast off
    (0x7D, 0x00),
    (0x7C, 0x03),
    (0x7D, 0x48),
    (0x7D, 0x48),
    (0x7C, 0x08),
    (0x7D, 0x20),
    (0x7D, 0x10),
    (0x7D, 0x0E),
    (0x90, 0x00), // gamma: 16 points, through 91
    (0x91, 0x0E),
    (0x91, 0x1A),
    (0x91, 0x31),
    (0x91, 0x5A),
    (0x91, 0x69),
    (0x91, 0x75),
    (0x91, 0x7E),
    (0x91, 0x88),
    (0x91, 0x8F),
    (0x91, 0x96),
    (0x91, 0xA3),
    (0x91, 0xAF),
    (0x91, 0xC4),
    (0x91, 0xD7),
    (0x91, 0xE8),
    (0x91, 0x20),
    (0x92, 0x00), // sharpness and noise, through 93
    (0x93, 0x06),
    (0x93, 0xE3),
    (0x93, 0x05),
    (0x93, 0x05),
    (0x93, 0x00),
    (0x93, 0x04),
    (0x93, 0x00),
    (0x93, 0x00),
    (0x93, 0x00),
    (0x93, 0x00),
    (0x93, 0x00),
    (0x93, 0x00),
    (0x93, 0x00),
    (0x96, 0x00), // colour matrix, through 97
    (0x97, 0x08),
    (0x97, 0x19),
    (0x97, 0x02),
    (0x97, 0x0C),
    (0x97, 0x24),
    (0x97, 0x30),
    (0x97, 0x28),
    (0x97, 0x26),
    (0x97, 0x02),
    (0x97, 0x98),
    (0x97, 0x80),
    (0x97, 0x00),
    (0x97, 0x00),
    (0xA4, 0x00), // lens correction, through C4
    (0xA8, 0x00),
    (0xC5, 0x11),
    (0xC6, 0x51),
    (0xBF, 0x80),
    (0xC7, 0x10), // white balance: simple
    (0xB6, 0x66),
    (0xB8, 0xA5),
    (0xB7, 0x64),
    (0xB9, 0x7C),
    (0xB3, 0xAF),
    (0xB4, 0x97),
    (0xB5, 0xFF),
    (0xB0, 0xC5),
    (0xB1, 0x94),
    (0xB2, 0x0F),
    (0xC4, 0x5C),
    (CTRL1, 0xFD), // all but the external lens correction
    (0x7F, 0x00),
    (0xE5, 0x1F),
    (0xE1, 0x67),
    (0xDD, 0x7F),
    (QS, JPEG_SCALE),
];

/// The sensor's registers. With a FIFO behind it, it is an [`ArduCam`](crate::ArduCam).
pub struct Ov2640<I, D> {
    sccb: Sccb<I>,
    delay: D,
}

impl<I: I2c, D: DelayNs> Ov2640<I, D> {
    /// Knows nothing of the sensor yet.
    pub fn new(i2c: I, delay: D) -> Self {
        Ov2640 { sccb: Sccb::new(i2c, ADDRESS), delay }
    }

    pub(crate) fn delay(&mut self) -> &mut D {
        &mut self.delay
    }

    /// Reads the product ID.
    pub fn probe(&mut self) -> Result<(), CameraError> {
        self.bank(SENSOR)?;
        let found = u16::from_be_bytes([self.sccb.read(PIDH)?, self.sccb.read(PIDL)?]);
        if found & PRODUCT_MASK == PRODUCT { Ok(()) } else { Err(CameraError::WrongChip { expected: PRODUCT, found }) }
    }

    /// Resets the sensor and sets a mode: one of QQVGA (160×120), QCIF, QVGA, CIF, VGA and SVGA (800×600), RGB565 or JPEG.
    pub fn configure(&mut self, mode: Mode) -> Result<(), CameraError> {
        let jpeg = match mode.format {
            PixelFormat::Jpeg => true,
            PixelFormat::Rgb565 => false,
            _ => return Err(CameraError::UnsupportedMode),
        };
        if !SIZES.contains(&(mode.width, mode.height)) {
            return Err(CameraError::UnsupportedMode);
        }
        self.probe()?;
        self.sccb.write(COM7, COM7_RESET)?;
        // Datasheet, 5.2: registers are not to be written for 1 ms after a reset.
        self.delay.delay_ms(5);
        self.bank(SENSOR)?;
        self.sccb.write_all(SENSOR_INIT)?;
        self.bank(DSP)?;
        self.sccb.write_all(DSP_INIT)?;
        self.window(mode.width, mode.height)?;
        let (held, image) =
            if jpeg { (RESET_JPEG | RESET_DVP, IMAGE_MODE_JPEG | IMAGE_MODE_HREF_VSYNC) } else { (RESET_DVP, IMAGE_MODE_RGB565) };
        self.sccb.write_all(&[(RESET, held), (IMAGE_MODE, image), (0xE1, if jpeg { 0x77 } else { 0x67 }), (R_BYPASS, 0), (RESET, 0)])?;
        // The automatic controls settle within a few pictures.
        self.delay.delay_ms(100);
        Ok(())
    }

    /// Scales the array's 800×600 to the size: first halved by CTRLI as often as possible, then zoomed (table 12, 50 to 5C).
    fn window(&mut self, width: u16, height: u16) -> Result<(), CameraError> {
        let halvings = (ARRAY.0 / width).min(ARRAY.1 / height).ilog2() as u8;
        let quarters = |v: u16| v / 4;
        let (array_w, array_h) = (quarters(ARRAY.0), quarters(ARRAY.1));
        let (out_w, out_h) = (quarters(width), quarters(height));
        self.sccb.write_all(&[
            (RESET, RESET_DVP),
            (HSIZE8, (ARRAY.0 / 8) as u8),
            (VSIZE8, (ARRAY.1 / 8) as u8),
            (CTRL2, 0x3D), // scaling on
            (CTRLI, CTRLI_LP_DP | halvings << 3 | halvings),
            (HSIZE, array_w as u8),
            (VSIZE, array_h as u8),
            (XOFFL, 0),
            (YOFFL, 0),
            (VHYX, ((array_h >> 8) as u8) << 7 | ((array_w >> 8) as u8) << 3),
            (TEST, ((array_w >> 9) as u8) << 7),
            (ZMOW, out_w as u8),
            (ZMOH, out_h as u8),
            (ZMHH, ((out_h >> 8) as u8) << 2 | (out_w >> 8) as u8),
        ])?;
        Ok(())
    }

    /// Changes a control.
    pub fn control(&mut self, control: Control) -> Result<(), CameraError> {
        self.bank(SENSOR)?;
        let sccb = &mut self.sccb;
        match control {
            Control::Exposure(Level::Auto) => sccb.update(COM8, COM8_AEC, COM8_AEC)?,
            Control::Exposure(Level::Manual(rows)) => {
                if rows == 0 {
                    return Err(CameraError::OutOfRange);
                }
                sccb.update(COM8, COM8_AEC, 0)?;
                // AEC[15:10], [9:2], [1:0]
                sccb.update(REG45, 0x3F, (rows >> 10) as u8)?;
                sccb.write(AEC, (rows >> 2) as u8)?;
                sccb.update(REG04, 0x03, rows as u8)?;
            }
            Control::Gain(Level::Auto) => sccb.update(COM8, COM8_AGC, COM8_AGC)?,
            Control::Gain(Level::Manual(sixteenths)) => {
                let gain = gain_code(sixteenths)?;
                sccb.update(COM8, COM8_AGC, 0)?;
                sccb.write(GAIN, gain)?;
            }
            Control::Flip { horizontal, vertical } => {
                let flip = if horizontal { REG04_HFLIP } else { 0 } | if vertical { REG04_VFLIP | REG04_VREF } else { 0 };
                sccb.update(REG04, REG04_HFLIP | REG04_VFLIP | REG04_VREF, flip)?;
            }
            Control::TestPattern(on) => sccb.update(COM7, COM7_COLOR_BAR, if on { COM7_COLOR_BAR } else { 0 })?,
        }
        Ok(())
    }

    fn bank(&mut self, bank: u8) -> Result<(), CameraError> {
        self.sccb.bank = Some(bank);
        Ok(self.sccb.write(BANK, bank)?)
    }
}

/// The code of a gain, for OV2640 and OV7670: (1 + bits 3 to 0 / 16), doubled for every bit set above them
/// (OV2640 table 13, 00; OV7670 table 5, 00). 1× to 31×, that is 16 to 496 sixteenths.
pub(crate) fn gain_code(sixteenths: u16) -> Result<u8, CameraError> {
    if !(16..512).contains(&sixteenths) {
        return Err(CameraError::OutOfRange);
    }
    let doublings = (sixteenths / 16).ilog2();
    let fine = (sixteenths >> doublings) - 16;
    Ok(((1 << doublings) - 1) << 4 | fine as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gain_codes_are_the_largest_gain_within() {
        let gain = |code: u8| (16 + u32::from(code & 15)) << (code >> 4).count_ones();
        for sixteenths in 16..512 {
            let code = gain_code(sixteenths).unwrap();
            assert!(gain(code) <= sixteenths.into(), "{sixteenths}");
            let above = (0..=255).filter(|c| [0, 1, 3, 7, 15].contains(&(c >> 4))).map(gain).filter(|g| *g > gain(code)).min();
            assert!(above.is_none_or(|g| g > sixteenths.into()), "{sixteenths}");
        }
        assert_eq!((gain_code(15), gain_code(512)), (Err(CameraError::OutOfRange), Err(CameraError::OutOfRange)));
    }

    #[test]
    fn every_size_is_scaled_by_at_most_two_after_halving() {
        for (width, height) in SIZES {
            let halvings = (ARRAY.0 / width).min(ARRAY.1 / height).ilog2();
            let (w, h) = (ARRAY.0 >> halvings, ARRAY.1 >> halvings);
            assert!(w >= width && h >= height && w <= 2 * width + 48 && h <= 2 * height + 48, "{width}×{height} from {w}×{h}");
        }
    }
}
