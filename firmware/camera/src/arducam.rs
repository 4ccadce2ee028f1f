//! ArduCAM Mini 2MP: an OV2640 whose pictures go into a FIFO that is read over SPI at any pace. SPI mode 0, up to 8 MHz.
//!
//! Sources: **A** ArduCAM/Arduino, the vendor's library (`ArduCAM/ArduCAM.h`, `ArduCAM.cpp`, its examples and issues);
//! **B** simondlevy/BreezyArduCAM (`src/BreezyArduCAM.cpp`).

use crate::error::CameraError;
use crate::jpeg;
use crate::ov2640::{MODES, Ov2640, SMALL_MODES};
use crate::sensor::{Camera, Mode, Modes};
use edge_wire::{Control, PixelFormat};
use embedded_hal::delay::DelayNs;
use embedded_hal::i2c::I2c;
use embedded_hal::spi::{Error as _, Operation, SpiDevice};

/// Set in the address of a register that is written (A: RWBIT).
const WRITE: u8 = 0x80;

/// Keeps what is written (A, B: TEST1).
const TEST: u8 = 0x00;
/// Pictures of a capture, less one; the small module has no such register (A: FRAMES, not for OV2640_MINI_2MP).
const FRAMES: u8 = 0x01;
/// A, B: FIFO.
const FIFO: u8 = 0x04;
/// Resets the ArduCHIP (A: every example, "Reset the CPLD": 80, then 00, 100 ms after each).
const RESET: u8 = 0x07;
const RESET_ON: u8 = 0x80;
const RESET_MS: u32 = 100;
/// A, B: BURST_FIFO_READ.
const BURST_READ: u8 = 0x3C;
/// A, B: TRIG.
const TRIGGER: u8 = 0x41;
/// Low byte first; 23 bits are the length (A, B: read_fifo_length masks the rest).
const SIZE: [u8; 3] = [0x42, 0x43, 0x44];
const SIZE_MASK: u32 = 0x7F_FFFF;

/// A, B: FIFO_CLEAR_MASK, FIFO_START_MASK.
const FIFO_CLEAR: u8 = 0x01;
const FIFO_START: u8 = 0x02;
/// A: FIFO_RDPTR_RST_MASK and FIFO_WRPTR_RST_MASK.
const FIFO_RESET_POINTERS: u8 = 0x30;
/// A, B: CAP_DONE_MASK.
const TRIGGER_DONE: u8 = 0x08;

/// What the FIFO may hold beyond a raw picture: it rounds up.
const SLACK: u32 = 64;
/// The picture by which the first byte is tried.
const TRIAL: Mode = Mode { format: PixelFormat::Jpeg, width: 160, height: 120 };
/// The slowest frame here is 67 ms; a capture begins with the next one.
const TRIAL_MS: u32 = 500;

/// Which module: they differ in the size of the FIFO.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Module {
    /// ArduCAM-M-2MP: 384 KiB. Raw pictures up to CIF, JPEG up to SVGA.
    Mini2Mp,
    /// ArduCAM-M-2MP-Plus: 8 MiB. All modes.
    Mini2MpPlus,
}

impl Module {
    /// A: MAX_FIFO_SIZE and one.
    fn capacity(self) -> u32 {
        match self {
            Self::Mini2Mp => 384 << 10,
            Self::Mini2MpPlus => 8 << 20,
        }
    }
}

/// Whether the first burst after a capture begins with a byte that is no picture's.
///
/// The vendor says that it does, and later bursts do not (A: issue #53); BreezyArduCAM drops it for all pictures; the
/// vendor's example for the 2MP module says of raw pictures "for old version, enable it else disable" (A:
/// `ArduCAM_Mini_2MP_OV2640_functions`). So both kinds are about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Lead {
    /// Found out by a small JPEG picture, whose beginning is known, before the first raw one.
    #[default]
    Detect,
    /// The picture's first byte comes first.
    None,
    /// One byte comes before it.
    OneByte,
}

/// The module.
pub struct ArduCam<I, S, D> {
    sensor: Ov2640<I, D>,
    spi: S,
    module: Module,
    lead: Lead,
    mode: Option<Mode>,
    /// Bytes of the picture that are not read yet.
    unread: u32,
    /// Nothing of the picture is read yet.
    untouched: bool,
}

impl<I: I2c, S: SpiDevice, D: DelayNs> ArduCam<I, S, D> {
    /// Resets the ArduCHIP, and finds it by its test register and the sensor by its product ID.
    pub fn new(i2c: I, spi: S, delay: D, module: Module) -> Result<Self, CameraError> {
        let sensor = Ov2640::new(i2c, delay);
        let mut camera = ArduCam { sensor, spi, module, lead: Lead::Detect, mode: None, unread: 0, untouched: false };
        for value in [RESET_ON, 0] {
            camera.write(RESET, value)?;
            camera.sensor.delay().delay_ms(RESET_MS);
        }
        for wrote in [0x55, 0xAA] {
            camera.write(TEST, wrote)?;
            let read = camera.register(TEST)?;
            if read != wrote {
                return Err(CameraError::TestRegister { wrote, read });
            }
        }
        camera.sensor.probe()?;
        Ok(camera)
    }

    /// Says what comes before a picture, where that is known; it need not be found out then.
    pub fn with_lead(self, lead: Lead) -> Self {
        ArduCam { lead, ..self }
    }

    /// What comes before a picture, as far as it is known.
    pub fn lead(&self) -> Lead {
        self.lead
    }

    fn write(&mut self, register: u8, value: u8) -> Result<(), CameraError> {
        self.spi.write(&[register | WRITE, value]).map_err(|e| CameraError::Spi { register, kind: e.kind() })
    }

    fn register(&mut self, register: u8) -> Result<u8, CameraError> {
        let mut bytes = [register, 0];
        self.spi.transfer_in_place(&mut bytes).map_err(|e| CameraError::Spi { register, kind: e.kind() })?;
        Ok(bytes[1])
    }

    fn burst(&mut self, out: &mut [u8]) -> Result<(), CameraError> {
        self.spi
            .transaction(&mut [Operation::Write(&[BURST_READ]), Operation::Read(out)])
            .map_err(|e| CameraError::Spi { register: BURST_READ, kind: e.kind() })
    }

    fn choose(&mut self, mode: Mode) -> Result<(), CameraError> {
        self.sensor.configure(mode)?;
        if self.module == Module::Mini2MpPlus {
            self.write(FRAMES, 0)?;
        }
        self.mode = Some(mode);
        Ok(())
    }

    /// Looks where a JPEG picture begins. A module that begins it elsewhere stays undetermined, and is read as it comes.
    fn detect(&mut self) -> Result<(), CameraError> {
        self.choose(TRIAL)?;
        self.capture(TRIAL_MS)?;
        let mut start = [0; 3];
        self.burst(&mut start)?;
        self.lead = match start {
            [first, second, _] if [first, second] == jpeg::SOI => Lead::None,
            [_, first, second] if [first, second] == jpeg::SOI => Lead::OneByte,
            _ => Lead::Detect,
        };
        Ok(())
    }

    /// Waits for the next picture, polling every millisecond; for programs that have nothing else to do.
    pub fn capture(&mut self, timeout_ms: u32) -> Result<u32, CameraError> {
        self.begin()?;
        for _ in 0..timeout_ms {
            if let Some(length) = self.poll()? {
                return Ok(length);
            }
            self.sensor.delay().delay_ms(1);
        }
        Err(CameraError::Timeout)
    }
}

impl<I: I2c, S: SpiDevice, D: DelayNs> Camera for ArduCam<I, S, D> {
    fn modes(&self) -> Modes {
        if self.module == Module::Mini2Mp { SMALL_MODES } else { MODES }
    }

    fn configure(&mut self, mode: Mode) -> Result<(), CameraError> {
        self.mode = None;
        let known = |(format, sizes): &(_, &[_])| *format == mode.format && sizes.contains(&(mode.width, mode.height));
        if !self.modes().iter().any(known) {
            return Err(CameraError::UnsupportedMode);
        }
        if self.lead == Lead::Detect && mode.format != PixelFormat::Jpeg {
            let found = self.detect();
            self.mode = None;
            found?;
        }
        self.choose(mode)
    }

    fn control(&mut self, control: Control) -> Result<(), CameraError> {
        self.sensor.control(control)
    }

    fn begin(&mut self) -> Result<(), CameraError> {
        self.unread = 0;
        self.write(FIFO, FIFO_CLEAR)?;
        self.write(FIFO, FIFO_RESET_POINTERS)?;
        self.write(FIFO, FIFO_START)
    }

    fn poll(&mut self) -> Result<Option<u32>, CameraError> {
        let mode = self.mode.ok_or(CameraError::UnsupportedMode)?;
        if self.register(TRIGGER)? & TRIGGER_DONE == 0 {
            return Ok(None);
        }
        let mut found = 0;
        for (at, register) in SIZE.into_iter().enumerate() {
            found |= u32::from(self.register(register)?) << (8 * at);
        }
        let found = found & SIZE_MASK;
        let pixels = u32::from(mode.width) * u32::from(mode.height);
        let (length, most) = match mode.format.bytes_per_pixel() {
            Some(bytes) => (pixels * bytes, pixels * bytes + SLACK),
            None => (found, self.module.capacity() - 1),
        };
        if found == 0 || found < length || found > most {
            let expected = if mode.format == PixelFormat::Jpeg { most } else { length };
            return Err(CameraError::Length { expected, found });
        }
        (self.unread, self.untouched) = (length, true);
        Ok(Some(length))
    }

    fn read(&mut self, out: &mut [u8]) -> Result<(), CameraError> {
        let asked = u32::try_from(out.len()).unwrap_or(u32::MAX);
        self.unread = self.unread.checked_sub(asked).ok_or(CameraError::Length { expected: asked, found: self.unread })?;
        if core::mem::take(&mut self.untouched) && self.lead == Lead::OneByte {
            self.burst(&mut [0])?;
        }
        self.burst(out)
    }
}
