//! Himax HM01B0, 324×324, grey. Register names and sections: Himax "HM01B0 ultra low power CIS", datasheet 03,
//! section 10 (register table).

use crate::error::CameraError;
use crate::parallel::ParallelPort;
use crate::registers::Cci;
use crate::sensor::{Camera, Control, Mode, Modes};
use edge_wire::{Level, PixelFormat};
use embedded_hal::delay::DelayNs;
use embedded_hal::i2c::I2c;

/// 7-bit address.
const ADDRESS: u8 = 0x24;

// Section 10.1 to 10.4: identification, control, exposure, frame timing.
const MODEL_ID_H: u16 = 0x0000;
const MODEL_ID_L: u16 = 0x0001;
const MODE_SELECT: u16 = 0x0100;
const IMAGE_ORIENTATION: u16 = 0x0101;
const SW_RESET: u16 = 0x0103;
const GRP_PARAM_HOLD: u16 = 0x0104;
const INTEGRATION_H: u16 = 0x0202;
const INTEGRATION_L: u16 = 0x0203;
const ANALOG_GAIN: u16 = 0x0205;
const FRAME_LENGTH_H: u16 = 0x0340;
const FRAME_LENGTH_L: u16 = 0x0341;
const LINE_LENGTH_H: u16 = 0x0342;
const LINE_LENGTH_L: u16 = 0x0343;
const READOUT_X: u16 = 0x0383;
const READOUT_Y: u16 = 0x0387;
const BINNING_MODE: u16 = 0x0390;
const TEST_PATTERN_MODE: u16 = 0x0601;
// 10.6, 10.10: automatic exposure, window and port.
const AE_CTRL: u16 = 0x2100;
const QVGA_WIN_EN: u16 = 0x3010;
const BIT_CONTROL: u16 = 0x3059;
const OSC_CLK_DIV: u16 = 0x3060;

const PRODUCT: u16 = 0x01B0;
const STANDBY: u8 = 0;
const STREAMING: u8 = 1;
/// BIT_CONTROL: all eight data lines.
const EIGHT_BITS: u8 = 0x02;
/// OSC_CLK_DIV: the pixel clock rests between lines; clock / 4.
const GATED_CLOCK: u8 = 0x28;
const WALKING_ONES: u8 = 0x11;

/// Rows that the longest exposure leaves free at the end of a frame (section 10.2).
const EXPOSURE_MARGIN: u16 = 2;

/// Width and height; readout of every pixel or of every second one, in both directions; window; rows and clocks of a frame.
struct Window {
    size: (u16, u16),
    binned: bool,
    qvga: bool,
    frame_length: u16,
    line_length: u16,
}

/// Full, QVGA and QQVGA frames (section 9.2: 324×324, 324×244, 162×122).
const WINDOWS: [Window; 3] = [
    Window { size: (324, 324), binned: false, qvga: false, frame_length: 0x158, line_length: 0x178 },
    Window { size: (324, 244), binned: false, qvga: true, frame_length: 0x104, line_length: 0x178 },
    Window { size: (162, 122), binned: true, qvga: true, frame_length: 0x084, line_length: 0x0D7 },
];
const MODES: Modes = &[(PixelFormat::Gray8, &[WINDOWS[0].size, WINDOWS[1].size, WINDOWS[2].size])];

/// The sensor and the port it is wired to.
pub struct Hm01b0<I, P, D> {
    cci: Cci<I>,
    port: P,
    delay: D,
    window: Option<&'static Window>,
}

impl<I: I2c, P: ParallelPort, D: DelayNs> Hm01b0<I, P, D> {
    /// Finds the sensor by its model ID.
    pub fn new(i2c: I, port: P, delay: D) -> Result<Self, CameraError> {
        let mut camera = Hm01b0 { cci: Cci::new(i2c, ADDRESS), port, delay, window: None };
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
        self.cci.write(SW_RESET, 0)?;
        self.delay.delay_ms(1);
        let [frame_high, frame_low] = window.frame_length.to_be_bytes();
        let [line_high, line_low] = window.line_length.to_be_bytes();
        let step = if window.binned { 3 } else { 1 };
        self.cci.write_all(&[
            (MODE_SELECT, STANDBY),
            (BIT_CONTROL, EIGHT_BITS),
            (OSC_CLK_DIV, GATED_CLOCK),
            (READOUT_X, step),
            (READOUT_Y, step),
            (BINNING_MODE, if window.binned { 3 } else { 0 }),
            (QVGA_WIN_EN, u8::from(window.qvga)),
            (FRAME_LENGTH_H, frame_high),
            (FRAME_LENGTH_L, frame_low),
            (LINE_LENGTH_H, line_high),
            (LINE_LENGTH_L, line_low),
            (AE_CTRL, 1),
            (GRP_PARAM_HOLD, 1),
            (MODE_SELECT, STREAMING),
        ])?;
        self.window = Some(window);
        Ok(())
    }

    /// One switch serves exposure and gain: what is set by hand turns the automatic control of both off, and either
    /// `Auto` turns it on again (section 10.6).
    fn control(&mut self, control: Control) -> Result<(), CameraError> {
        let window = self.window.ok_or(CameraError::UnsupportedMode)?;
        let cci = &mut self.cci;
        match control {
            Control::Exposure(Level::Auto) | Control::Gain(Level::Auto) => cci.write(AE_CTRL, 1)?,
            Control::Exposure(Level::Manual(rows)) => {
                if !(2..=window.frame_length - EXPOSURE_MARGIN).contains(&rows) {
                    return Err(CameraError::OutOfRange);
                }
                let [high, low] = rows.to_be_bytes();
                cci.write_all(&[(AE_CTRL, 0), (INTEGRATION_H, high), (INTEGRATION_L, low), (GRP_PARAM_HOLD, 1)])?;
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
                cci.write_all(&[(AE_CTRL, 0), (ANALOG_GAIN, code << 4), (GRP_PARAM_HOLD, 1)])?;
            }
            Control::Flip { horizontal, vertical } => {
                cci.write_all(&[(IMAGE_ORIENTATION, u8::from(horizontal) | u8::from(vertical) << 1), (GRP_PARAM_HOLD, 1)])?;
            }
            Control::TestPattern(on) => cci.write(TEST_PATTERN_MODE, if on { WALKING_ONES } else { 0 })?,
        }
        Ok(())
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
