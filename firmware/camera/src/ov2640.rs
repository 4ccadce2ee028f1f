//! OV2640, 2 megapixels. Names are those of OmniVision's "OV2640 Color CMOS UXGA CameraChip", datasheet 1.6 (tables 12, DSP
//! bank, and 13, sensor bank).
//!
//! Values are those of public drivers, by letter: **E** espressif/esp32-camera (`sensors/ov2640.c`,
//! `private_include/ov2640_settings.h`); **A** ArduCAM/Arduino (`ArduCAM/ov2640_regs.h`, `ArduCAM.cpp`); **O** openmv/openmv
//! (`drivers/sensors/ov2640.c`); **L** Linux (`drivers/media/i2c/ov2640.c`, which also says what bits mean); **Z** Zephyr
//! (`drivers/video/ov2640.c`). "Reserved" means that nobody says what a register does. Every row is in two of them at least.

use crate::error::CameraError;
use crate::registers::Sccb;
use crate::sensor::{Mode, Modes, ceiling, step};
use edge_wire::{Banding, Control, Level, PixelFormat, WhiteBalance};
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
const COM2: u8 = 0x09;
const COM3: u8 = 0x0C;
const REG0F: u8 = 0x0F;
const AEC: u8 = 0x10;
const CLKRC: u8 = 0x11;
const COM7: u8 = 0x12;
const COM8: u8 = 0x13;
const COM9: u8 = 0x14;
const HREFST: u8 = 0x17;
const HREFEND: u8 = 0x18;
const VSTRT: u8 = 0x19;
const VEND: u8 = 0x1A;
const AEW: u8 = 0x24;
const AEB: u8 = 0x25;
const VV: u8 = 0x26;
const REG32: u8 = 0x32;
const REG45: u8 = 0x45;
const BD50: u8 = 0x4F;
const BD60: u8 = 0x50;
const REG5A: u8 = 0x5A;

const COM7_RESET: u8 = 0x80;
const COM7_SVGA: u8 = 0x40;
const COM7_COLOR_BAR: u8 = 0x02;
/// L, O: BNDF_EN.
const COM8_BANDING: u8 = 0x20;
const COM8_AGC: u8 = 0x04;
const COM8_AEC: u8 = 0x01;
const REG04_HFLIP: u8 = 0x80;
/// Vertical flip, and the row offset that keeps the colours in place with it (O: set_vflip).
const REG04_VFLIP: u8 = 0x40;
const REG04_VREF: u8 = 0x10;
/// L: COM2_SOFT_SLEEP_MODE; O, Z: standby.
const COM2_STANDBY: u8 = 0x10;
/// L, O, Z: BAND_50H, BAND_AUTO; without either, 60 Hz.
const COM3_BANDING: u8 = 0x06;
const COM3_50_HZ: u8 = 0x04;
const COM3_AUTO: u8 = 0x02;
/// L: COM1_3_DUMMY_FR, three frames' more exposure in the dark; O: its default, with 4B in 0F.
const COM1_DUMMY_FRAMES: u8 = 0xC0;
const COM1_3_DUMMY: u8 = 0x80;
const REG0F_NIGHT: u8 = 0x4B;
/// L: automatic gain ceiling, bits 7 to 5: 2× to 128×.
const COM9_CEILING: u8 = 0xE0;
const MOST_CEILING: u8 = 7;

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
const BPADDR: u8 = 0x7C;
const BPDATA: u8 = 0x7D;
const CTRL2: u8 = 0x86;
const HSIZE8: u8 = 0xC0;
const VSIZE8: u8 = 0xC1;
const CTRL1: u8 = 0xC3;
const AWB_MODE: u8 = 0xC7;
const AWB_GAINS: [u8; 3] = [0xCC, 0xCD, 0xCE];
const R_DVP_SP: u8 = 0xD3;
const IMAGE_MODE: u8 = 0xDA;
const RESET: u8 = 0xE0;

const RESET_JPEG: u8 = 0x10;
const RESET_DVP: u8 = 0x04;
/// A, O, Z: JPEG alone. E adds HREF_VSYNC (02), which suits the ESP32's receiver; Z leaves that to the board.
const IMAGE_MODE_JPEG: u8 = 0x10;
const IMAGE_MODE_RGB565: u8 = 0x08;
const CTRLI_LP_DP: u8 = 0x80;
/// L: AWB_OFF. A, E: set for the fixed gains of a light.
const AWB_MANUAL: u8 = 0x40;

/// Gains of red, green and blue in a light (A: OV2640_set_Light_Mode; E: wb_modes_regs).
fn light(light: WhiteBalance) -> Option<[u8; 3]> {
    Some(match light {
        WhiteBalance::Auto => return None,
        WhiteBalance::Sunny => [0x5E, 0x41, 0x54],
        WhiteBalance::Cloudy => [0x65, 0x41, 0x4F],
        WhiteBalance::Office => [0x52, 0x41, 0x66],
        WhiteBalance::Home => [0x42, 0x3F, 0x71],
    })
}

// The special digital effects, behind BPADDR and BPDATA, which counts up (L: SDE indirect register access).
const SDE_ENABLE: u8 = 0x00;
const SDE_SATURATION: u8 = 0x03;
const SDE_TONE: u8 = 0x07;
/// Bits of SDE_ENABLE by which A, E, O and Z turn them on.
const SDE_USES_SATURATION: u8 = 0x02;
const SDE_USES_TONE: u8 = 0x04;
/// Of both colour differences, −2 to 2 (A, E, O; Z up to 1).
const SATURATIONS: [u8; 5] = [0x28, 0x38, 0x48, 0x58, 0x68];
/// Gain and offset of luma, −2 to 2 (A, E, O, Z: contrast_regs, whose first value is 20 throughout).
const CONTRASTS: [(u8, u8); 5] = [(0x18, 0x34), (0x1C, 0x2A), (0x20, 0x20), (0x24, 0x16), (0x28, 0x0C)];
const TONE_CENTRE: u8 = 0x20;
/// What a step of brightness adds to the offset (A, E, O, Z: brightness_regs, 00 to 40).
const BRIGHTNESS_STEP: i8 = 0x10;
/// The last value of both tables: 06 with contrast, 00 with brightness alone.
const TONE_OF_CONTRAST: u8 = 0x06;

/// AEW, AEB and VV for an exposure bias of −2 to 2 (E: ae_levels_regs; the middle is the default).
const BIASES: [[u8; 3]; 5] = [[0x20, 0x18, 0x60], [0x34, 0x1C, 0x00], [0x40, 0x38, 0x82], [0x48, 0x40, 0x81], [0x58, 0x50, 0x92]];

/// Rows of a frame at SVGA: the 8.3 ms steps that E and A allow there, (3 + 1) · A8. A frame is the longest exposure.
const FRAME_ROWS: u16 = 672;

/// The array is read at 800×600 (COM7), from which the DSP scales down.
const ARRAY: (u16, u16) = (800, 600);
/// JPEG quantization scale (table 12, 44): 12 gives some 2 bits per pixel. E takes 2 to 63.
const JPEG_SCALE: u8 = 12;
const JPEG_SCALES: core::ops::RangeInclusive<u8> = 2..=63;

/// Sizes: QQVGA, QCIF, QVGA, CIF, VGA, SVGA.
const SIZES: [(u16, u16); 6] = [(160, 120), (176, 144), (320, 240), (352, 288), (640, 480), (800, 600)];
/// All modes.
pub(crate) const MODES: Modes = &[(PixelFormat::Rgb565, &SIZES), (PixelFormat::Jpeg, &SIZES)];
/// Those whose raw pictures fit into 384 KiB.
pub(crate) const SMALL_MODES: Modes = &[(PixelFormat::Rgb565, SIZES.split_at(4).0), (PixelFormat::Jpeg, &SIZES)];

/// Clock, automatic controls and analogue part, after reset, for the array at SVGA: E's `ov2640_settings_cif` with its
/// `ov2640_settings_to_svga`; A's `OV2640_JPEG_INIT` with its sizes up to CIF, which read the same array.
const SENSOR_INIT: &[(u8, u8)] = &[
    (0x3C, 0x32),             // reserved: A E L O Z
    (CLKRC, 0x01),            // clock / 2: E
    (COM2, 0x02),             // output drive 3×: A E L O
    (REG04, 0x28),            // no mirror images; HREF: A E L
    (COM3, 0x38 | COM3_AUTO), // banding found out: L O (A for 320×240)
    (COM8, 0xE5),             // fast control, banding filter, AGC, AEC: A E L O
    (COM9, 0x48),             // gain up to 8×: A E L O
    (0x2C, 0x0C),             // reserved, to 43: A E L O Z
    (0x33, 0x78),
    (0x3A, 0x33),
    (0x3B, 0xFB),
    (0x3E, 0x00),
    (0x43, 0x11),
    (0x16, 0x10), // reserved: A E L O Z
    (0x39, 0x92), // reserved, to 37, for SVGA: A E
    (0x35, 0xDA),
    (0x22, 0x1A),
    (0x37, 0xC3),
    (0x23, 0x00), // reserved: A E L O Z
    (0x34, 0xC0), // ARCOM2, zoom's start, for SVGA: A E
    (0x06, 0x88), // reserved, to 07: A E L O Z
    (0x07, 0xC0),
    (0x0D, 0x87), // COM4, for SVGA: A E
    (0x0E, 0x41), // reserved, for SVGA: A E
    (0x4C, 0x00), // reserved, to 21: A E L O Z
    (0x4A, 0x81),
    (0x21, 0x99),
    (AEW, 0x40), // luma's stable range, upper and lower limit: A E L O
    (AEB, 0x38),
    (VV, 0x82),   // limits of the fast range: A E L O
    (0x5C, 0x00), // reserved, to 63: A E L O
    (0x63, 0x00),
    (0x61, 0x70), // HISTO_LOW, HISTO_HIGH: A E L O
    (0x62, 0x80),
    (0x7C, 0x05), // reserved, to 73: A E L O
    (0x20, 0x80),
    (0x28, 0x30),
    (0x6C, 0x00),
    (0x6E, 0x00),
    (0x70, 0x02),
    (0x71, 0x94),
    (0x73, 0xC1),
    (COM7, COM7_SVGA), // A E O
    (COM1, 0x0A),      // window, last bits, for SVGA: E L
    (REG32, 0x09),     // window, for SVGA, to VEND: A E
    (HREFST, 0x11),
    (HREFEND, 0x43),
    (VSTRT, 0x00),
    (VEND, 0x4B),
    (0x37, 0xC0),  // reserved, for SVGA: A E
    (BD50, 0xCA),  // rows of 10 ms: A E
    (BD60, 0xA8),  // rows of 8.3 ms: A E
    (REG5A, 0x23), // most steps of them, less one: 3 · CA and 4 · A8 rows fit a frame: A E (57 is UXGA's, whose frame is longer)
    (0x6D, 0x00),  // reserved, for SVGA: A E
    (0x3D, 0x38),
];

/// Colour processing, after reset: A, E, L, O and Z but where a row says otherwise.
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
    (0x87, 0xD0), // CTRL3: correction of black and white pixels: A (320×240) L O Z
    (0x88, 0x3F),
    (0xD7, 0x03),
    (0xD9, 0x10),
    (R_DVP_SP, 0x82), // automatic pixel clock, divider 2: A E L O Z
    (0xC8, 0x08),
    (0xC9, 0x80),
    (BPADDR, SDE_ENABLE), // no effects
    (BPDATA, 0x00),
    (BPADDR, SDE_SATURATION),
    (BPDATA, 0x48),
    (BPDATA, 0x48),
    (BPADDR, 0x08),
    (BPDATA, 0x20),
    (BPDATA, 0x10),
    (BPDATA, 0x0E),
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
    (0x93, 0x05), // to 04: A (JPEG) E; others 03, 03, 00, 02
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
    (AWB_MODE, 0x10), // white balance: simple (L)
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
    (CTRL1, 0xFD), // all but the lens correction, which L names bit 1: E
    (0x7F, 0x00),
    (0xE5, 0x1F),
    (0xDD, 0x7F),
    (QS, JPEG_SCALE),
];

/// The sensor's registers. With a FIFO behind it, it is an [`ArduCam`](crate::ArduCam).
pub struct Ov2640<I, D> {
    sccb: Sccb<I>,
    delay: D,
    effects: Effects,
}

/// Levels that share registers.
#[derive(Default)]
struct Effects {
    brightness: i8,
    contrast: i8,
    saturation: i8,
}

impl<I: I2c, D: DelayNs> Ov2640<I, D> {
    /// Knows nothing of the sensor yet.
    pub fn new(i2c: I, delay: D) -> Self {
        Ov2640 { sccb: Sccb::new(i2c, ADDRESS), delay, effects: Effects::default() }
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
        self.effects = Effects::default();
        self.sccb.write(COM7, COM7_RESET)?;
        // O waits 5 ms, E 10, A 100; the datasheet asks for 1.
        self.delay.delay_ms(10);
        self.bank(SENSOR)?;
        self.sccb.write_all(SENSOR_INIT)?;
        self.bank(DSP)?;
        self.sccb.write_all(DSP_INIT)?;
        self.window(mode.width, mode.height)?;
        let (held, image) = if jpeg { (RESET_JPEG | RESET_DVP, IMAGE_MODE_JPEG) } else { (RESET_DVP, IMAGE_MODE_RGB565) };
        // E1 is reserved: 77 for JPEG and RGB565 (A E; L and O from the start on), 67 for YUV only.
        self.sccb.write_all(&[(RESET, held), (IMAGE_MODE, image), (0xE1, 0x77), (R_BYPASS, 0), (RESET, 0)])?;
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
        match control {
            Control::WhiteBalance(_) | Control::JpegQuality(_) => self.bank(DSP)?,
            Control::Brightness(level) => return self.effect(level, |e| &mut e.brightness),
            Control::Contrast(level) => return self.effect(level, |e| &mut e.contrast),
            Control::Saturation(level) => return self.effect(level, |e| &mut e.saturation),
            _ => self.bank(SENSOR)?,
        }
        let sccb = &mut self.sccb;
        match control {
            Control::Exposure(Level::Auto) => sccb.update(COM8, COM8_AEC, COM8_AEC)?,
            Control::Exposure(Level::Manual(rows)) => {
                if !(1..=FRAME_ROWS).contains(&rows) {
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
            Control::WhiteBalance(of) => match light(of) {
                Some(gains) => {
                    sccb.update(AWB_MODE, AWB_MANUAL, AWB_MANUAL)?;
                    AWB_GAINS.into_iter().zip(gains).try_for_each(|(register, gain)| sccb.write(register, gain))?;
                }
                None => sccb.update(AWB_MODE, AWB_MANUAL, 0)?,
            },
            Control::GainCeiling(times) => sccb.update(COM9, COM9_CEILING, (ceiling(times, MOST_CEILING)? - 1) << 5)?,
            Control::ExposureBias(level) => {
                let [upper, lower, fast] = BIASES[step(level)?];
                sccb.write_all(&[(AEW, upper), (AEB, lower), (VV, fast)])?;
            }
            Control::JpegQuality(scale) if !JPEG_SCALES.contains(&scale) => return Err(CameraError::OutOfRange),
            Control::JpegQuality(scale) => sccb.write(QS, scale)?,
            Control::Banding(banding) => {
                let mains = match banding {
                    Banding::Off => return Ok(sccb.update(COM8, COM8_BANDING, 0)?),
                    Banding::Hz50 => COM3_50_HZ,
                    Banding::Hz60 => 0,
                    Banding::Auto => COM3_AUTO,
                };
                sccb.update(COM3, COM3_BANDING, mains)?;
                sccb.update(COM8, COM8_BANDING, COM8_BANDING)?;
            }
            Control::NightMode(on) => {
                if on {
                    sccb.write(REG0F, REG0F_NIGHT)?;
                }
                sccb.update(COM1, COM1_DUMMY_FRAMES, if on { COM1_3_DUMMY } else { 0 })?;
            }
            Control::Standby(on) => sccb.update(COM2, COM2_STANDBY, if on { COM2_STANDBY } else { 0 })?,
            Control::Brightness(_) | Control::Contrast(_) | Control::Saturation(_) => {}
        }
        Ok(())
    }

    /// Changes one level of the digital effects and writes them all: in the public tables each turns the others off. Contrast
    /// and brightness share the offset of luma, where both are added.
    fn effect(&mut self, level: i8, of: impl FnOnce(&mut Effects) -> &mut i8) -> Result<(), CameraError> {
        step(level)?;
        *of(&mut self.effects) = level;
        let Effects { brightness, contrast, saturation } = self.effects;
        let enabled =
            if saturation != 0 { SDE_USES_SATURATION } else { 0 } | if brightness != 0 || contrast != 0 { SDE_USES_TONE } else { 0 };
        let (gain, offset) = CONTRASTS[step(contrast)?];
        let offset = offset.saturating_add_signed(brightness * BRIGHTNESS_STEP);
        let colour = SATURATIONS[step(saturation)?];
        self.bank(DSP)?;
        self.sccb.write_all(&[
            (BPADDR, SDE_ENABLE),
            (BPDATA, enabled),
            (BPADDR, SDE_SATURATION),
            (BPDATA, colour),
            (BPDATA, colour),
            (BPADDR, SDE_TONE),
            (BPDATA, TONE_CENTRE),
            (BPDATA, gain),
            (BPDATA, offset),
            (BPDATA, if contrast != 0 { TONE_OF_CONTRAST } else { 0 }),
        ])?;
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
