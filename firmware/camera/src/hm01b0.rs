//! Himax HM01B0, 324×324, grey. Register names: Himax "HM01B0 ultra low power CIS", datasheet 03, section 10.
//!
//! Values are those of public drivers, by letter: **O** openmv/openmv (`drivers/sensors/hm01b0.c`, `hm01b0.h`); **S**
//! sparkfun/SparkFun_HM01B0_Camera_ArduinoLibrary (`hm01b0_raw8_qvga_8bits_lsb_5fps.h`, `hm01b0_walking1s_01.h`, which are
//! Himax's scripts); **M** ArmDeveloperEcosystem/hm01b0-library-for-pico (`src/hm01b0.c`); **Z** Zephyr (`drivers/video/hm01b0.c`);
//! **A** ArduCAM/RPI-Pico-Cam (`rp2040_hm01b0/arducam/hm01b0_init.h`). Every row is in two of them at least.

use crate::error::{CameraError, RegisterError};
use crate::parallel::{ParallelPort, PixelClock};
use crate::registers::Cci;
use crate::sensor::{Camera, Mode, Modes, ceiling};
use edge_wire::{Control, Level, PixelFormat};
use embedded_hal::delay::DelayNs;
use embedded_hal::i2c::I2c;

/// 7-bit address.
const ADDRESS: u8 = 0x24;

// Section 10: identification, control, exposure, frame timing.
const MODEL_ID_H: u16 = 0x0000;
const MODEL_ID_L: u16 = 0x0001;
const MODE_SELECT: u16 = 0x0100;
const IMAGE_ORIENTATION: u16 = 0x0101;
const SW_RESET: u16 = 0x0103;
const GRP_PARAM_HOLD: u16 = 0x0104;
const INTEGRATION_H: u16 = 0x0202;
const INTEGRATION_L: u16 = 0x0203;
const ANALOG_GAIN: u16 = 0x0205;
const DIGITAL_GAIN_H: u16 = 0x020E;
const DIGITAL_GAIN_L: u16 = 0x020F;
const FRAME_LENGTH_H: u16 = 0x0340;
const FRAME_LENGTH_L: u16 = 0x0341;
const LINE_LENGTH_H: u16 = 0x0342;
const LINE_LENGTH_L: u16 = 0x0343;
const READOUT_X: u16 = 0x0383;
const READOUT_Y: u16 = 0x0387;
const BINNING_MODE: u16 = 0x0390;
const TEST_PATTERN_MODE: u16 = 0x0601;
// Black level and bad pixels.
const BLC_CFG: u16 = 0x1000;
const DPC_CTRL: u16 = 0x1008;
// Automatic exposure, window and port.
const AE_CTRL: u16 = 0x2100;
const AE_TARGET_MEAN: u16 = 0x2101;
const MAX_INTG_H: u16 = 0x2105;
const MAX_INTG_L: u16 = 0x2106;
const MAX_AGAIN_FULL: u16 = 0x2108;
const MAX_AGAIN_BIN2: u16 = 0x2109;
const QVGA_WIN_EN: u16 = 0x3010;
const BIT_CONTROL: u16 = 0x3059;
const OSC_CLK_DIV: u16 = 0x3060;

const PRODUCT: u16 = 0x01B0;
/// O, M, Z write 01 (S 00: any value will do).
const RESET: u8 = 0x01;
const STANDBY: u8 = 0;
const STREAMING: u8 = 1;
/// Reads of MODE_SELECT after a reset, and the time between them (M, Z; O: as many, 10 ms apart, after 1 ms).
const RESET_TRIES: u8 = 10;
const FIRST_WAIT_MS: u32 = 1;
const WAIT_MS: u32 = 100;
/// BIT_CONTROL: all eight data lines (S: bit 6 would be four lines, bit 5 one; O M Z).
const EIGHT_BITS: u8 = 0x02;
/// OSC_CLK_DIV, bits 3 and 2: register clock undivided (O Z M); bits 1 and 0: system clock MCLK / 8 (S: "div by 8/4/2/1"; O:
/// get_vt_pix_clk).
const CLOCK: u8 = 0x08;
/// Bit 5: the pixel clock rests between lines (S).
const GATED_CLOCK: u8 = 0x20;
const WALKING_ONES: u8 = 0x11;
/// Black level and bad pixels as the table below has them.
const BLC_ON: u8 = 0x43;
const DPC_MONO: u8 = 0x01;
/// 1×, in 64ths of the second byte (O S).
const DIGITAL_GAIN: u16 = 0x0100;
/// Largest gain ceiling: 16× (O: set_gainceiling).
const MOST_CEILING: u8 = 4;
/// AE_TARGET_MEAN for an exposure bias of −2 to 1 (O: set_brightness; the middle is its and Z's default).
const TARGETS: [u8; 4] = [60, 80, 100, 127];

/// Rows that the longest exposure leaves free at the end of a frame (O, Z: FRAME_LENGTH − 2; S: 0C78 of 0C7A).
const EXPOSURE_MARGIN: u16 = 2;

/// Analogue part, black level, bad pixels, statistics and automatic exposure, after reset.
const INIT: &[(u16, u8)] = &[
    (0x1003, 0x08), // BLC_TGT, black level's target: O S A Z
    (0x1007, 0x08), // BLC2_TGT: O S A Z
    (0x3044, 0x0A), // more time for sampling to settle: O S A Z
    (0x3045, 0x00), // O S A Z, to 3058
    (0x3047, 0x0A),
    (0x3050, 0xC0), // negative offset up to 4×
    (0x3051, 0x42),
    (0x3052, 0x50),
    (0x3053, 0x00),
    (0x3054, 0x03),       // clamping of the source follower
    (0x3055, 0xF7),       // dark sun
    (0x3056, 0xF8),       // converter's clocks apart
    (0x3057, 0x29),       // converter's power, against missing codes
    (0x3058, 0x1F),       // dark sun on
    (0x3064, 0x00),       // O S A Z
    (0x3065, 0x04),       // pads: O S A Z
    (0x3067, 0x00),       // internal oscillator off: O Z
    (BLC_CFG, BLC_ON),    // O S A Z
    (0x1001, 0x43),       // black level's dithering: O Z
    (0x1002, 0x43),       // dark pixels' threshold: O Z
    (0x0350, 0x7F),       // digital gain's control: O S A Z
    (0x1006, 0x01),       // BLI_EN: O S A Z
    (DPC_CTRL, DPC_MONO), // O Z (S A: off)
    (0x1009, 0xA0),       // thresholds of bad pixels, clusters and single ones, to 100C: O S A Z
    (0x100A, 0x60),
    (0x100B, 0x90),
    (0x100C, 0x40),
    (0x1012, 0x00), // VSYNC and HSYNC where they are: O Z
    (0x2000, 0x07), // statistics, which the automatic exposure needs: O S A Z
    (0x2003, 0x00), // their windows, to 2018: O S A Z
    (0x2004, 0x1C),
    (0x2007, 0x00),
    (0x2008, 0x58),
    (0x200B, 0x00),
    (0x200C, 0x7A),
    (0x200F, 0x00),
    (0x2010, 0xB8),
    (0x2013, 0x00),
    (0x2014, 0x58),
    (0x2017, 0x00),
    (0x2018, 0x9B),
    (AE_TARGET_MEAN, TARGETS[2]), // O Z
    (0x2102, 0x0A),               // AE_MIN_MEAN: O Z A
    (0x2103, 0x03),               // CONVERGE_IN_TH, CONVERGE_OUT_TH: O Z A
    (0x2104, 0x05),
    (MAX_AGAIN_FULL, MOST_CEILING), // O Z
    (MAX_AGAIN_BIN2, MOST_CEILING),
    (0x210B, 0xC0), // MAX_DGAIN: O Z
    (0x210D, 0x20), // DAMPING_FACTOR: O Z A
    (0x210E, 0x00), // FS_CTRL: flicker's steps off: O Z
    (0x2150, 0x00), // MD_CTRL: no motion detection: O Z
    (0x3011, 0x70), // SIX_BIT_MODE_EN off: O S A Z
];

/// Width and height; readout of every pixel or of every second one, in both directions; window; rows and clocks of a frame.
struct Window {
    size: (u16, u16),
    binned: bool,
    qvga: bool,
    frame_length: u16,
    line_length: u16,
}

/// Full, QVGA and QQVGA frames, lengths as M has them (O and Z: 0104 rows for QVGA and 0084 for QQVGA, too).
const WINDOWS: [Window; 3] = [
    Window { size: (324, 324), binned: false, qvga: false, frame_length: 0x158, line_length: 0x178 },
    Window { size: (324, 244), binned: false, qvga: true, frame_length: 0x104, line_length: 0x178 },
    Window { size: (162, 122), binned: true, qvga: true, frame_length: 0x084, line_length: 0x0D7 },
];
const MODES: Modes = &[(PixelFormat::Gray8, &[WINDOWS[0].size, WINDOWS[1].size, WINDOWS[2].size])];

impl Window {
    fn longest_exposure(&self) -> u16 {
        self.frame_length - EXPOSURE_MARGIN
    }
}

/// The sensor and the port it is wired to.
pub struct Hm01b0<I, P, D> {
    cci: Cci<I>,
    port: P,
    delay: D,
    window: Option<&'static Window>,
    /// Exposure and gain are the sensor's.
    automatic: bool,
    /// ANALOG_GAIN, where they are not.
    gain: u8,
}

impl<I: I2c, P: ParallelPort, D: DelayNs> Hm01b0<I, P, D> {
    /// Finds the sensor by its model ID.
    pub fn new(i2c: I, port: P, delay: D) -> Result<Self, CameraError> {
        let mut camera = Hm01b0 { cci: Cci::new(i2c, ADDRESS), port, delay, window: None, automatic: true, gain: 0 };
        camera.probe()?;
        Ok(camera)
    }

    fn probe(&mut self) -> Result<(), CameraError> {
        let found = u16::from_be_bytes([self.cci.read(MODEL_ID_H)?, self.cci.read(MODEL_ID_L)?]);
        if found == PRODUCT { Ok(()) } else { Err(CameraError::WrongChip { expected: PRODUCT, found }) }
    }

    fn length(&self) -> Result<u32, CameraError> {
        let (width, height) = self.window.ok_or(CameraError::UnsupportedMode)?.size;
        Ok(u32::from(width) * u32::from(height))
    }

    /// Resets the sensor, and waits until it says that it stands by.
    fn reset(&mut self) -> Result<(), CameraError> {
        self.cci.write(SW_RESET, RESET)?;
        let mut answer = Ok(STREAMING);
        for wait in (0..RESET_TRIES).map(|n| if n == 0 { FIRST_WAIT_MS } else { WAIT_MS }) {
            self.delay.delay_ms(wait);
            answer = self.cci.read(MODE_SELECT);
            if answer == Ok(STANDBY) {
                return Ok(());
            }
        }
        answer?;
        Err(CameraError::Timeout)
    }

    fn write_pair(&mut self, high: u16, low: u16, value: u16) -> Result<(), RegisterError> {
        let [h, l] = value.to_be_bytes();
        self.cci.write_all(&[(high, h), (low, l)])
    }

    /// Makes what was written take effect with the next frame (O M Z).
    fn apply(&mut self) -> Result<(), CameraError> {
        Ok(self.cci.write(GRP_PARAM_HOLD, 1)?)
    }

    /// Walking ones are what they are only without whatever would correct them (S: all of it; O sets the pattern alone).
    fn test_pattern(&mut self, on: bool) -> Result<(), CameraError> {
        if on {
            self.cci.write_all(&[(AE_CTRL, 0), (BLC_CFG, 0), (DPC_CTRL, 0), (ANALOG_GAIN, 0)])?;
            self.write_pair(DIGITAL_GAIN_H, DIGITAL_GAIN_L, DIGITAL_GAIN)?;
            self.cci.write(TEST_PATTERN_MODE, WALKING_ONES)?;
        } else {
            let (automatic, gain) = (u8::from(self.automatic), self.gain);
            self.cci.write_all(&[
                (TEST_PATTERN_MODE, 0),
                (BLC_CFG, BLC_ON),
                (DPC_CTRL, DPC_MONO),
                (ANALOG_GAIN, gain),
                (AE_CTRL, automatic),
            ])?;
        }
        self.apply()
    }
}

impl<I: I2c, P: ParallelPort, D: DelayNs> Camera for Hm01b0<I, P, D> {
    fn modes(&self) -> Modes {
        MODES
    }

    fn configure(&mut self, mode: Mode) -> Result<(), CameraError> {
        self.window = None;
        let window = WINDOWS.iter().find(|w| mode.format == PixelFormat::Gray8 && w.size == (mode.width, mode.height));
        let window = window.ok_or(CameraError::UnsupportedMode)?;
        self.probe()?;
        self.reset()?;
        (self.automatic, self.gain) = (true, 0);
        self.cci.write_all(INIT)?;
        let step = if window.binned { 3 } else { 1 };
        self.cci.write_all(&[
            (BIT_CONTROL, EIGHT_BITS),
            (OSC_CLK_DIV, if self.port.pixel_clock() == PixelClock::Gated { CLOCK | GATED_CLOCK } else { CLOCK }),
            (READOUT_X, step),
            (READOUT_Y, step),
            (BINNING_MODE, if window.binned { 3 } else { 0 }),
            (QVGA_WIN_EN, u8::from(window.qvga)),
        ])?;
        self.write_pair(FRAME_LENGTH_H, FRAME_LENGTH_L, window.frame_length)?;
        self.write_pair(LINE_LENGTH_H, LINE_LENGTH_L, window.line_length)?;
        // Without it up to 340 rows, more than two of the frames have (O Z S).
        self.write_pair(MAX_INTG_H, MAX_INTG_L, window.longest_exposure())?;
        self.write_pair(INTEGRATION_H, INTEGRATION_L, window.frame_length / 2)?;
        self.cci.write(AE_CTRL, 1)?;
        self.apply()?;
        self.cci.write(MODE_SELECT, STREAMING)?;
        self.window = Some(window);
        Ok(())
    }

    /// One switch serves exposure and gain: what is set by hand turns the automatic control of both off, and either
    /// `Auto` turns it on again.
    fn control(&mut self, control: Control) -> Result<(), CameraError> {
        let window = self.window.ok_or(CameraError::UnsupportedMode)?;
        match control {
            Control::Exposure(Level::Auto) | Control::Gain(Level::Auto) => {
                self.automatic = true;
                self.cci.write(AE_CTRL, 1)?;
                return Ok(());
            }
            Control::Exposure(Level::Manual(rows)) => {
                if !(2..=window.longest_exposure()).contains(&rows) {
                    return Err(CameraError::OutOfRange);
                }
                self.automatic = false;
                self.cci.write(AE_CTRL, 0)?;
                self.write_pair(INTEGRATION_H, INTEGRATION_L, rows)?;
            }
            Control::Gain(Level::Manual(sixteenths)) => {
                // 1×, 2×, 4×, 8× in bits 6 to 4.
                let code = match sixteenths {
                    16..=31 => 0,
                    32..=63 => 1,
                    64..=127 => 2,
                    128..=255 => 3,
                    _ => return Err(CameraError::OutOfRange),
                };
                (self.automatic, self.gain) = (false, code << 4);
                self.cci.write_all(&[(AE_CTRL, 0), (ANALOG_GAIN, code << 4)])?;
            }
            Control::Flip { horizontal, vertical } => {
                self.cci.write(IMAGE_ORIENTATION, u8::from(horizontal) | u8::from(vertical) << 1)?;
            }
            Control::TestPattern(on) => return self.test_pattern(on),
            Control::GainCeiling(times) => {
                let power = ceiling(times, MOST_CEILING)?;
                self.cci.write_all(&[(MAX_AGAIN_FULL, power), (MAX_AGAIN_BIN2, power)])?;
            }
            Control::ExposureBias(level) => {
                let target = usize::try_from(i16::from(level) + 2).ok().and_then(|at| TARGETS.get(at)).ok_or(CameraError::OutOfRange)?;
                self.cci.write(AE_TARGET_MEAN, *target)?;
            }
            Control::Standby(on) => return Ok(self.cci.write(MODE_SELECT, if on { STANDBY } else { STREAMING })?),
            // No colours, no compression; and no public driver uses its flicker control or says what its bits are.
            Control::WhiteBalance(_)
            | Control::Brightness(_)
            | Control::Contrast(_)
            | Control::Saturation(_)
            | Control::JpegQuality(_)
            | Control::Banding(_)
            | Control::NightMode(_) => return Err(CameraError::UnsupportedControl),
        }
        self.apply()
    }

    fn begin(&mut self) -> Result<(), CameraError> {
        Ok(self.port.begin(self.length()?)?)
    }

    fn poll(&mut self) -> Result<Option<u32>, CameraError> {
        let length = self.length()?;
        Ok(self.port.poll()?.then_some(length))
    }

    fn read(&mut self, out: &mut [u8]) -> Result<(), CameraError> {
        Ok(self.port.read(out)?)
    }
}
