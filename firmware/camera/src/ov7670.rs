//! OV7670, VGA, behind a parallel port. Register names and sections: OmniVision "OV7670/OV7171 CMOS VGA CameraChip
//! Sensor", datasheet 1.4 (table 5), and "OV7670/OV7171 CMOS VGA CameraChip Implementation Guide" 1.0.

use crate::error::CameraError;
use crate::ov2640::gain_code;
use crate::parallel::ParallelPort;
use crate::registers::Sccb;
use crate::sensor::{Camera, Control, Mode, Modes};
use edge_wire::{Level, PixelFormat};
use embedded_hal::delay::DelayNs;
use embedded_hal::i2c::I2c;

/// 7-bit address (datasheet: 42 for writing, 43 for reading).
const ADDRESS: u8 = 0x21;

// Table 5.
const GAIN: u8 = 0x00;
const COM1: u8 = 0x04;
const AECHH: u8 = 0x07;
const PID: u8 = 0x0A;
const VER: u8 = 0x0B;
const COM3: u8 = 0x0C;
const AECH: u8 = 0x10;
const CLKRC: u8 = 0x11;
const COM7: u8 = 0x12;
const COM8: u8 = 0x13;
const COM10: u8 = 0x15;
const MVFP: u8 = 0x1E;
const TSLB: u8 = 0x3A;
const COM13: u8 = 0x3D;
const COM14: u8 = 0x3E;
const COM15: u8 = 0x40;
const SCALING_XSC: u8 = 0x70;
const SCALING_YSC: u8 = 0x71;
const SCALING_DCWCTR: u8 = 0x72;
const SCALING_PCLK_DIV: u8 = 0x73;
const RGB444: u8 = 0x8C;
const SCALING_PCLK_DELAY: u8 = 0xA2;

/// PID and VER.
const PRODUCT: u16 = 0x7673;
const COM7_RESET: u8 = 0x80;
const COM7_RGB: u8 = 0x04;
const COM8_FAST: u8 = 0xC0;
const COM8_AGC: u8 = 0x04;
const COM8_AWB: u8 = 0x02;
const COM8_AEC: u8 = 0x01;
/// The pixel clock rests while there is no line, so that a port counts pixels only.
const COM10_PCLK_HREF: u8 = 0x20;
const COM15_FULL_RANGE: u8 = 0xC0;
const COM15_RGB565: u8 = 0x10;
const COM3_DCW: u8 = 0x04;
const MVFP_MIRROR: u8 = 0x20;
const MVFP_FLIP: u8 = 0x10;
const TEST_BIT: u8 = 0x80;

const VGA: (u16, u16) = (640, 480);
const SIZES: &[(u16, u16)] = &[(160, 120), (320, 240), VGA];
const MODES: Modes = &[(PixelFormat::Yuv422, SIZES), (PixelFormat::Rgb565, SIZES)];

/// Window, exposure targets, colour matrix and gamma (implementation guide, sections 2 to 5 and appendix).
const INIT: &[(u8, u8)] = &[
    (CLKRC, 0x01), // input clock / 2
    (COM10, COM10_PCLK_HREF),
    (0x17, 0x13), // HSTART, HSTOP, HREF: 640 columns
    (0x18, 0x01),
    (0x32, 0xB6),
    (0x19, 0x02), // VSTART, VSTOP, VREF: 480 rows
    (0x1A, 0x7A),
    (0x03, 0x0A),
    (0x14, 0x18), // COM9: gain up to 4×
    (0x24, 0x95), // AEW, AEB, VPT: exposure targets
    (0x25, 0x33),
    (0x26, 0xE3),
    (0x3B, 0x12), // COM11: automatic 50/60 Hz
    (0xB0, 0x84), // without it colours are wrong (implementation guide)
    (0x0E, 0x61), // COM5, COM6: as recommended
    (0x0F, 0x4B),
    (0x4F, 0x80), // colour matrix and its signs
    (0x50, 0x80),
    (0x51, 0x00),
    (0x52, 0x22),
    (0x53, 0x5E),
    (0x54, 0x80),
    (0x58, 0x9E),
    (COM8, COM8_FAST | COM8_AGC | COM8_AWB | COM8_AEC),
];

/// The sensor and the port it is wired to.
pub struct Ov7670<I, P, D> {
    sccb: Sccb<I>,
    port: P,
    delay: D,
    mode: Option<Mode>,
}

impl<I: I2c, P: ParallelPort, D: DelayNs> Ov7670<I, P, D> {
    /// Finds the sensor by its product ID.
    pub fn new(i2c: I, port: P, delay: D) -> Result<Self, CameraError> {
        let mut camera = Ov7670 { sccb: Sccb::new(i2c, ADDRESS), port, delay, mode: None };
        camera.probe()?;
        Ok(camera)
    }

    fn probe(&mut self) -> Result<(), CameraError> {
        let found = u16::from_be_bytes([self.sccb.read(PID)?, self.sccb.read(VER)?]);
        if found == PRODUCT { Ok(()) } else { Err(CameraError::WrongChip { expected: PRODUCT, found }) }
    }
}

impl<I: I2c, P: ParallelPort, D: DelayNs> Camera for Ov7670<I, P, D> {
    fn modes(&self) -> Modes {
        MODES
    }

    fn configure(&mut self, mode: Mode) -> Result<(), CameraError> {
        self.mode = None;
        let known = |(format, sizes): &(_, &[_])| *format == mode.format && sizes.contains(&(mode.width, mode.height));
        if !MODES.iter().any(known) {
            return Err(CameraError::UnsupportedMode);
        }
        self.probe()?;
        self.sccb.write(COM7, COM7_RESET)?;
        // Datasheet, "Register Set": at least 1 ms after a reset.
        self.delay.delay_ms(2);
        self.sccb.write_all(INIT)?;
        let rgb = mode.format == PixelFormat::Rgb565;
        self.sccb.write_all(&[
            (COM7, if rgb { COM7_RGB } else { 0 }),
            (RGB444, 0),
            (COM15, COM15_FULL_RANGE | if rgb { COM15_RGB565 } else { 0 }),
            // Y U Y V: TSLB[3] and COM13[0] are 0 (table 5, 3A and 3D). COM13: gamma, saturation.
            (TSLB, 0x04),
            (COM13, 0xC0),
        ])?;
        // Down-sampling by 2^n in both directions, pixel clock with it (implementation guide, 6: "DCW").
        let halvings = (VGA.0 / mode.width).ilog2() as u8;
        self.sccb.write_all(&[
            (COM3, if halvings > 0 { COM3_DCW } else { 0 }),
            (COM14, if halvings > 0 { 0x18 | halvings } else { 0 }),
            (SCALING_XSC, 0x3A),
            (SCALING_YSC, 0x35),
            (SCALING_DCWCTR, halvings << 4 | halvings),
            (SCALING_PCLK_DIV, 0xF0 | halvings),
            (SCALING_PCLK_DELAY, 0x02),
        ])?;
        self.delay.delay_ms(100);
        self.mode = Some(mode);
        Ok(())
    }

    fn control(&mut self, control: Control) -> Result<(), CameraError> {
        let sccb = &mut self.sccb;
        match control {
            Control::Exposure(Level::Auto) => sccb.update(COM8, COM8_AEC, COM8_AEC)?,
            Control::Exposure(Level::Manual(rows)) => {
                if rows == 0 {
                    return Err(CameraError::OutOfRange);
                }
                sccb.update(COM8, COM8_AEC, 0)?;
                // AEC[15:10], [9:2], [1:0]
                sccb.update(AECHH, 0x3F, (rows >> 10) as u8)?;
                sccb.write(AECH, (rows >> 2) as u8)?;
                sccb.update(COM1, 0x03, rows as u8)?;
            }
            Control::Gain(Level::Auto) => sccb.update(COM8, COM8_AGC, COM8_AGC)?,
            Control::Gain(Level::Manual(sixteenths)) => {
                let gain = gain_code(sixteenths)?;
                sccb.update(COM8, COM8_AGC, 0)?;
                sccb.write(GAIN, gain)?;
            }
            Control::Flip { horizontal, vertical } => {
                let flip = if horizontal { MVFP_MIRROR } else { 0 } | if vertical { MVFP_FLIP } else { 0 };
                sccb.update(MVFP, MVFP_MIRROR | MVFP_FLIP, flip)?;
            }
            Control::TestPattern(on) => {
                // XSC[7], YSC[7] = 0, 1: eight bars.
                sccb.update(SCALING_XSC, TEST_BIT, 0)?;
                sccb.update(SCALING_YSC, TEST_BIT, if on { TEST_BIT } else { 0 })?;
            }
        }
        Ok(())
    }

    fn begin(&mut self) -> Result<(), CameraError> {
        let mode = self.mode.ok_or(CameraError::UnsupportedMode)?;
        Ok(self.port.begin(2 * u32::from(mode.width) * u32::from(mode.height))?)
    }

    fn poll(&mut self) -> Result<Option<u32>, CameraError> {
        let mode = self.mode.ok_or(CameraError::UnsupportedMode)?;
        Ok(self.port.poll()?.then_some(2 * u32::from(mode.width) * u32::from(mode.height)))
    }

    fn read(&mut self, out: &mut [u8]) -> Result<(), CameraError> {
        Ok(self.port.read(out)?)
    }
}
