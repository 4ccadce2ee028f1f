//! OV7670, VGA, behind a parallel port. Names are those of OmniVision's "OV7670/OV7171 CMOS VGA CameraChip Sensor",
//! datasheet 1.4 (table 5).
//!
//! Values are those of public drivers, by letter: **L** Linux (`drivers/media/i2c/ov7670.c`, whose tables come from
//! OmniVision); **O** openmv/openmv (`drivers/sensors/ov7670.c`); **D** adafruit/Adafruit_OV7670 (`src/ov7670.c`); **Z** Zephyr
//! (`drivers/video/ov767x.c`, from NXP's SDK); **K** the `OV7670_Light_Mode` family of functions of many STM32 examples.
//! "Reserved" means that nobody says what a register does. Every row is in two of them at least.

use crate::error::CameraError;
use crate::ov2640::gain_code;
use crate::parallel::{ParallelPort, PixelClock};
use crate::registers::Sccb;
use crate::sensor::{Camera, Mode, Modes, ceiling, step};
use edge_wire::{Banding, Control, Level, PixelFormat, WhiteBalance};
use embedded_hal::delay::DelayNs;
use embedded_hal::i2c::I2c;

/// 7-bit address (L: 42 for writing).
const ADDRESS: u8 = 0x21;

// Table 5.
const GAIN: u8 = 0x00;
const BLUE: u8 = 0x01;
const RED: u8 = 0x02;
const VREF: u8 = 0x03;
const COM1: u8 = 0x04;
const AECHH: u8 = 0x07;
const COM2: u8 = 0x09;
const PID: u8 = 0x0A;
const VER: u8 = 0x0B;
const COM3: u8 = 0x0C;
const AECH: u8 = 0x10;
const CLKRC: u8 = 0x11;
const COM7: u8 = 0x12;
const COM8: u8 = 0x13;
const COM9: u8 = 0x14;
const COM10: u8 = 0x15;
const HSTART: u8 = 0x17;
const HSTOP: u8 = 0x18;
const VSTRT: u8 = 0x19;
const VSTOP: u8 = 0x1A;
const MVFP: u8 = 0x1E;
const AEW: u8 = 0x24;
const AEB: u8 = 0x25;
const VPT: u8 = 0x26;
const HREF: u8 = 0x32;
const TSLB: u8 = 0x3A;
const COM11: u8 = 0x3B;
const COM13: u8 = 0x3D;
const COM14: u8 = 0x3E;
const COM15: u8 = 0x40;
const COM16: u8 = 0x41;
const MATRIX: u8 = 0x4F;
const BRIGHT: u8 = 0x55;
const CONTRAS: u8 = 0x56;
const MTXS: u8 = 0x58;
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
/// L, O, D: FASTAEC and AECSTEP.
const COM8_FAST: u8 = 0xC0;
/// L, O, D: BFILT. Without it COM11 chooses among filters that are off.
const COM8_BANDING: u8 = 0x20;
const COM8_AGC: u8 = 0x04;
const COM8_AWB: u8 = 0x02;
const COM8_AEC: u8 = 0x01;
/// L: PCLK_HB, "suppress PCLK on horiz blank"; Z: 20 where the receiver wants it (`pclk-hb-disable`), else 00.
const COM10_GATED: u8 = 0x20;
/// L: NIGHT, and the frame rate's two bits: a quarter at least.
const COM11_NIGHT: u8 = 0xE0;
const COM11_NIGHT_QUARTER: u8 = 0x80 | 0x40;
/// L: HZAUTO, 50HZ.
const COM11_BANDING: u8 = 0x18;
const COM11_AUTO: u8 = 0x10;
const COM11_50_HZ: u8 = 0x08;
/// L: AEC may go below one step of the banding filter.
const COM11_EXP: u8 = 0x02;
const COM15_FULL_RANGE: u8 = 0xC0;
const COM15_RGB565: u8 = 0x10;
const COM3_DCW: u8 = 0x04;
const MVFP_MIRROR: u8 = 0x20;
const MVFP_FLIP: u8 = 0x10;
const TEST_BIT: u8 = 0x80;
/// L: SSLEEP; O: sleep.
const COM2_SLEEP: u8 = 0x10;
/// L: ceiling in bits 6 to 4, 2× to 128×; bit 3 is reserved and 1.
const COM9_CEILING: u8 = 0x70;
const MOST_CEILING: u8 = 7;

const VGA: (u16, u16) = (640, 480);
const SIZES: &[(u16, u16)] = &[(160, 120), (320, 240), VGA];
const MODES: Modes = &[(PixelFormat::Yuv422, SIZES), (PixelFormat::Rgb565, SIZES)];

/// The first column, for each halving of the size: the pixel clock's divider delays it. VGA: L and O (D: 162). QVGA and QQVGA:
/// O (L: 168 for QVGA; D: 174 and 186).
const FIRST_COLUMN: [u16; 3] = [158, 172, 180];
/// Clocks of a row, after which columns are counted from 0 again (D: hstop; measured: forum.arduino.cc/t/386514).
const ROW_CLOCKS: u16 = 784;
/// HREF's "edge offset", which L keeps and O sets at every size.
const HREF_EDGE: u8 = 0x80;

/// Colour matrices: YUV's, and RGB's (L, O, Z), signs in MTXS.
const YUV_MATRIX: [u8; 6] = [0x80, 0x80, 0x00, 0x22, 0x5E, 0x80];
const RGB_MATRIX: [u8; 6] = [0xB3, 0xB3, 0x00, 0x3D, 0xA7, 0xE4];
/// 128ths of the matrix for a saturation of −2 to 2 (K; L scales it by such a number, too).
const SATURATIONS: [u16; 5] = [0x40, 0x66, 0x80, 0x99, 0xC0];
/// Sign and magnitude (L: abs_to_sm), −2 to 2 (K).
const BRIGHTNESSES: [u8; 5] = [0xB0, 0x98, 0x00, 0x18, 0x30];
/// −2 to 2 (K; 40 is L's, O's and Z's as well).
const CONTRASTS: [u8; 5] = [0x30, 0x38, 0x40, 0x50, 0x60];
/// Upper and lower limit of luma's stable range, and of the fast range in VPT's halves (L O).
const EXPOSURE: [u8; 3] = [0x95, 0x33, 0xE3];
/// What a step of exposure bias moves them all by.
const BIAS_STEP: i16 = 0x10;

/// Gains of blue and red in a light (K); automatic: where L and O begin.
fn light(light: WhiteBalance) -> [u8; 2] {
    match light {
        WhiteBalance::Auto => [0x40, 0x60],
        WhiteBalance::Sunny => [0x5A, 0x5C],
        WhiteBalance::Cloudy => [0x58, 0x60],
        WhiteBalance::Office => [0x84, 0x4C],
        WhiteBalance::Home => [0x96, 0x40],
    }
}

/// What all modes share.
const INIT: &[(u8, u8)] = &[
    (CLKRC, 0x01), // input clock / 2: L
    (TSLB, 0x04),  // with COM13, Y U Y V: L O D
    (VSTRT, 0x02), // 480 rows from 10 on: L O Z
    (VSTOP, 0x7A),
    (VREF, 0x0A),
    (0x7A, 0x20), // SLOP and GAM1 to GAM15, the gamma curve: L O (from 80 on: D Z, too)
    (0x7B, 0x10),
    (0x7C, 0x1E),
    (0x7D, 0x35),
    (0x7E, 0x5A),
    (0x7F, 0x69),
    (0x80, 0x76),
    (0x81, 0x80),
    (0x82, 0x88),
    (0x83, 0x8F),
    (0x84, 0x96),
    (0x85, 0xA3),
    (0x86, 0xAF),
    (0x87, 0xC4),
    (0x88, 0xD7),
    (0x89, 0xE8),
    (0x0D, 0x40), // COM4: L O
    (0xA5, 0x05), // BD50MAX, BD60MAX: most steps of the banding filter: L O D Z
    (0xAB, 0x07),
    (AEW, EXPOSURE[0]), // L O
    (AEB, EXPOSURE[1]),
    (VPT, EXPOSURE[2]),
    (0x9F, 0x78), // HAECC1, HAECC2 and A1, exposure by histogram: L O D Z
    (0xA0, 0x68),
    (0xA1, 0x03),
    (0xA6, 0xD8), // HAECC3, HAECC4: L O
    (0xA7, 0xD8),
    (0xA8, 0xF0), // HAECC5 to HAECC7: L O D Z
    (0xA9, 0x90),
    (0xAA, 0x94),
    (0x0E, 0x61), // COM5, COM6: L O D Z
    (0x0F, 0x4B),
    (0x16, 0x02), // reserved, to 39, the analogue part: L O D Z
    (0x21, 0x02),
    (0x22, 0x91),
    (0x29, 0x07),
    (0x33, 0x0B),
    (0x35, 0x0B),
    (0x37, 0x1D),
    (0x38, 0x71),
    (0x39, 0x2A),
    (0x3C, 0x78), // COM12: L O D
    (0x4D, 0x40), // reserved: L O D
    (0x4E, 0x20),
    (0x69, 0x00), // GFIX: L O Z
    (0x74, 0x10), // L O
    (0x8D, 0x4F), // reserved: L O D
    (0x8E, 0x00),
    (0x8F, 0x00),
    (0x90, 0x00),
    (0x91, 0x00),
    (0xB0, 0x84), // reserved: L O D Z
    (0xB1, 0x0C), // ABLC1, black level: L O D Z
    (0xB2, 0x0E),
    (0xB3, 0x82), // THL_ST, black level's target
    (0xB8, 0x0A),
    (0x43, 0x0A), // AWBC1: L O (D Z: 14)
    (0x44, 0xF0), // AWBC2 to AWBC6, white balance: L O D Z
    (0x45, 0x34),
    (0x46, 0x58),
    (0x47, 0x28),
    (0x48, 0x3A),
    (0x59, 0x88), // white balance, to 5E: L O D Z
    (0x5A, 0x88),
    (0x5B, 0x44),
    (0x5C, 0x67),
    (0x5D, 0x49),
    (0x5E, 0x0E),
    (0x6C, 0x0A), // AWBCTR3 to AWBCTR0: L O D Z
    (0x6D, 0x55),
    (0x6E, 0x11),
    (0x6F, 0x9F), // L D Z (O: 9E, "advanced")
    (0x6A, 0x40), // gain of green: L O
    (BLUE, 0x40), // L O
    (RED, 0x60),
    (MTXS, 0x9E),                                                      // signs of the matrix: L O
    (0x3F, 0x00),                                                      // EDGE: L O
    (0x75, 0x05),                                                      // L O
    (0x76, 0xE1),                                                      // correction of black and white pixels: L O
    (0x4C, 0x00),                                                      // denoise: L O Z
    (0x77, 0x01),                                                      // L O
    (0x4B, 0x09),                                                      // L O
    (0xC9, 0x60),                                                      // L O
    (COM16, 0x38),                                                     // white balance's gain, edges and noise by themselves: L O
    (COM11, COM11_EXP | COM11_AUTO),                                   // banding found out: L O
    (COM8, COM8_FAST | COM8_BANDING | COM8_AGC | COM8_AWB | COM8_AEC), // L O
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

    /// Writes the matrix of the mode's format, scaled.
    fn matrix(&mut self, format: PixelFormat, scale: u16) -> Result<(), CameraError> {
        let matrix = if format == PixelFormat::Rgb565 { RGB_MATRIX } else { YUV_MATRIX };
        for (register, value) in (MATRIX..).zip(matrix) {
            self.sccb.write(register, ((u16::from(value) * scale) >> 7).min(255) as u8)?;
        }
        Ok(())
    }
}

/// HSTART, HSTOP and HREF of as many columns as VGA has, from `first` on (L: set_hw).
fn columns(first: u16) -> [(u8, u8); 3] {
    let end = (first + VGA.0) % ROW_CLOCKS;
    let low = HREF_EDGE | ((end & 7) << 3 | first & 7) as u8;
    [(HSTART, (first >> 3) as u8), (HSTOP, (end >> 3) as u8), (HREF, low)]
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
        // L waits 5 ms, O 2, D 1.
        self.delay.delay_ms(5);
        let rgb = mode.format == PixelFormat::Rgb565;
        // L: COM7 first, then the rest of a format.
        self.sccb.write_all(&[(COM7, if rgb { COM7_RGB } else { 0 }), (RGB444, 0)])?;
        self.sccb.write_all(INIT)?;
        self.sccb.write_all(&[
            (COM10, if self.port.pixel_clock() == PixelClock::Gated { COM10_GATED } else { 0 }),
            (COM1, 0),                                                      // no CCIR 656: L O Z
            (COM15, COM15_FULL_RANGE | if rgb { COM15_RGB565 } else { 0 }), // O D Z
            (COM9, if rgb { 0x38 } else { 0x48 }),                          // gain up to 16× for RGB (L), 32× for YUV (L O Z)
            (COM13, 0xC0),                                                  // gamma, saturation: L (O for the OV7675)
        ])?;
        self.matrix(mode.format, SATURATIONS[2])?;
        // Down-sampling by 2^n in both directions, pixel clock with it (O: qvga_regs, qqvga_regs; D: frame_control).
        let halvings = (VGA.0 / mode.width).ilog2() as u8;
        self.sccb.write_all(&columns(FIRST_COLUMN[usize::from(halvings)]))?;
        self.sccb.write_all(&[
            (COM3, if halvings > 0 { COM3_DCW } else { 0 }),
            (COM14, if halvings > 0 { 0x18 | halvings } else { 0 }),
            (SCALING_XSC, 0x3A), // L O Z
            (SCALING_YSC, 0x35),
            (SCALING_DCWCTR, halvings << 4 | halvings),
            (SCALING_PCLK_DIV, 0xF0 | halvings),
            (SCALING_PCLK_DELAY, 0x02), // L O D Z
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
                // XSC[7], YSC[7] = 0, 1: eight bars (L: test_pattern_menu).
                sccb.update(SCALING_XSC, TEST_BIT, 0)?;
                sccb.update(SCALING_YSC, TEST_BIT, if on { TEST_BIT } else { 0 })?;
            }
            Control::WhiteBalance(of) => {
                let [blue, red] = light(of);
                sccb.update(COM8, COM8_AWB, if of == WhiteBalance::Auto { COM8_AWB } else { 0 })?;
                sccb.write_all(&[(BLUE, blue), (RED, red)])?;
            }
            Control::Brightness(level) => sccb.write(BRIGHT, BRIGHTNESSES[step(level)?])?,
            Control::Contrast(level) => sccb.write(CONTRAS, CONTRASTS[step(level)?])?,
            Control::Saturation(level) => {
                let mode = self.mode.ok_or(CameraError::UnsupportedMode)?;
                return self.matrix(mode.format, SATURATIONS[step(level)?]);
            }
            Control::GainCeiling(times) => sccb.update(COM9, COM9_CEILING, (ceiling(times, MOST_CEILING)? - 1) << 4)?,
            Control::ExposureBias(level) => {
                step(level)?;
                let moved = |limit: u8| (i16::from(limit) + BIAS_STEP * i16::from(level)).clamp(0, 255) as u8;
                let [upper, lower, fast] = EXPOSURE;
                // Both halves are the upper four bits of a limit.
                let fast = moved(fast & 0xF0) & 0xF0 | moved(fast << 4) >> 4;
                sccb.write_all(&[(AEW, moved(upper)), (AEB, moved(lower)), (VPT, fast)])?;
            }
            Control::Banding(Banding::Off) => sccb.update(COM8, COM8_BANDING, 0)?,
            Control::Banding(banding) => {
                let mains = match banding {
                    Banding::Hz50 => COM11_50_HZ,
                    Banding::Auto => COM11_AUTO,
                    _ => 0,
                };
                sccb.update(COM11, COM11_BANDING, mains)?;
                sccb.update(COM8, COM8_BANDING, COM8_BANDING)?;
            }
            Control::NightMode(on) => sccb.update(COM11, COM11_NIGHT, if on { COM11_NIGHT_QUARTER } else { 0 })?,
            Control::Standby(on) => sccb.update(COM2, COM2_SLEEP, if on { COM2_SLEEP } else { 0 })?,
            Control::JpegQuality(_) => return Err(CameraError::UnsupportedControl),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_as_published() {
        // L, O: 13, 01, B6. O: 16, 04, A4 for QQVGA; its 15, 04, A4 for QVGA is 648 columns, which it crops.
        assert_eq!(columns(158), [(0x17, 0x13), (0x18, 0x01), (0x32, 0xB6)]);
        assert_eq!(columns(172), [(0x17, 0x15), (0x18, 0x03), (0x32, 0xA4)]);
        assert_eq!(columns(180), [(0x17, 0x16), (0x18, 0x04), (0x32, 0xA4)]);
    }
}
