//! ArduCAM Mini 2MP: an OV2640 whose pictures go into a FIFO that is read over SPI at any pace. Registers: ArduCAM
//! "ArduChip register table" and "ArduCAM-M-2MP hardware application note". SPI mode 0, up to 8 MHz.

use crate::error::CameraError;
use crate::ov2640::{MODES, Ov2640, SMALL_MODES};
use crate::sensor::{Camera, Control, Mode, Modes};
use edge_wire::PixelFormat;
use embedded_hal::delay::DelayNs;
use embedded_hal::i2c::I2c;
use embedded_hal::spi::{Error as _, Operation, SpiDevice};

/// Set in the address of a register that is written.
const WRITE: u8 = 0x80;

/// Keeps what is written.
const TEST: u8 = 0x00;
/// Pictures of a capture, less one.
const FRAMES: u8 = 0x01;
const FIFO: u8 = 0x04;
const BURST_READ: u8 = 0x3C;
const TRIGGER: u8 = 0x41;
/// 24 bits, low byte first.
const SIZE: [u8; 3] = [0x42, 0x43, 0x44];

const FIFO_CLEAR: u8 = 0x01;
const FIFO_START: u8 = 0x02;
const FIFO_RESET_POINTERS: u8 = 0x30;
const TRIGGER_DONE: u8 = 0x08;

/// What the FIFO may hold beyond a raw picture: it rounds up.
const SLACK: u32 = 64;

/// Which module: they differ in the size of the FIFO.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Module {
    /// ArduCAM-M-2MP: 384 KiB. Raw pictures up to CIF, JPEG up to SVGA.
    Mini2Mp,
    /// ArduCAM-M-2MP-Plus: 8 MiB. All modes.
    Mini2MpPlus,
}

impl Module {
    fn capacity(self) -> u32 {
        match self {
            Self::Mini2Mp => 384 << 10,
            Self::Mini2MpPlus => 8 << 20,
        }
    }
}

/// The module.
pub struct ArduCam<I, S, D> {
    sensor: Ov2640<I, D>,
    spi: S,
    module: Module,
    mode: Option<Mode>,
    /// Bytes of the picture that are not read yet.
    unread: u32,
}

impl<I: I2c, S: SpiDevice, D: DelayNs> ArduCam<I, S, D> {
    /// Finds the FIFO by its test register and the sensor by its product ID.
    pub fn new(i2c: I, spi: S, delay: D, module: Module) -> Result<Self, CameraError> {
        let mut camera = ArduCam { sensor: Ov2640::new(i2c, delay), spi, module, mode: None, unread: 0 };
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

    fn write(&mut self, register: u8, value: u8) -> Result<(), CameraError> {
        self.spi.write(&[register | WRITE, value]).map_err(|e| CameraError::Spi { register, kind: e.kind() })
    }

    fn register(&mut self, register: u8) -> Result<u8, CameraError> {
        let mut bytes = [register, 0];
        self.spi.transfer_in_place(&mut bytes).map_err(|e| CameraError::Spi { register, kind: e.kind() })?;
        Ok(bytes[1])
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
        self.sensor.configure(mode)?;
        self.write(FRAMES, 0)?;
        self.mode = Some(mode);
        Ok(())
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
        let pixels = u32::from(mode.width) * u32::from(mode.height);
        let (length, most) = match mode.format.bytes_per_pixel() {
            Some(bytes) => (pixels * bytes, pixels * bytes + SLACK),
            None => (found, self.module.capacity() - 1),
        };
        if found == 0 || found < length || found > most {
            let expected = if mode.format == PixelFormat::Jpeg { most } else { length };
            return Err(CameraError::Length { expected, found });
        }
        self.unread = length;
        Ok(Some(length))
    }

    fn read(&mut self, out: &mut [u8]) -> Result<(), CameraError> {
        let asked = u32::try_from(out.len()).unwrap_or(u32::MAX);
        self.unread = self.unread.checked_sub(asked).ok_or(CameraError::Length { expected: asked, found: self.unread })?;
        self.spi
            .transaction(&mut [Operation::Write(&[BURST_READ]), Operation::Read(out)])
            .map_err(|e| CameraError::Spi { register: BURST_READ, kind: e.kind() })
    }
}

impl<I: I2c, S: SpiDevice, D: DelayNs> ArduCam<I, S, D> {
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
