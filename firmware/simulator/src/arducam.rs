//! ArduCAM Mini 2MP: an OV2640 on I²C, ArduCHIP registers and FIFO on SPI.
//!
//! Sources: ArduCAM/Arduino (`ArduCAM/ArduCAM.h`: registers and masks; `ArduCAM.cpp`: read_fifo_length; its examples; issues #52
//! and #53) and simondlevy/BreezyArduCAM (`src/BreezyArduCAM.cpp`).

use crate::bus::{BusError, Clock, Faults, Wait};
use crate::ov2640::Ov2640;
use crate::picture::{Picture, View};
use crate::rules::Refusal;
use core::cell::RefCell;
use embedded_hal::i2c::{self, I2c};
use embedded_hal::spi::{self, SpiDevice};

/// ArduCAM.cpp: 60 for writing.
const SCCB_ADDRESS: u8 = 0x30;
/// What every example waits after each write to register 07.
const RESET_NS: u64 = 100_000_000;
/// A capture takes no longer than a frame after the next one begins, however seldom its status is read.
const CAPTURE_NS: u64 = 100_000_000;
/// The first byte of the first burst, where that is none of the picture.
const STALE: u8 = 0x5A;
/// JPEG pictures are padded to so many bytes (issue #52: "returns 1024 or 2048").
const JPEG_PADDING: u32 = 1024;
/// Above the 23 bits of the length, which the vendor and BreezyArduCAM mask: it may be anything.
const UNDEFINED: u8 = 0x80;

/// The two kinds of modules that are about: see issue #53 and "for old version, enable it else disable" in the vendor's
/// `ArduCAM_Mini_2MP_OV2640_functions`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Revision {
    /// The first burst after a capture begins with a byte that is no picture's.
    Old,
    /// It does not.
    New,
}

/// The module, with scenes in front of it that change with every capture.
pub struct ArduCamSim<'a> {
    /// What goes wrong.
    pub faults: Faults,
    clock: Clock,
    state: RefCell<State<'a>>,
}

struct State<'a> {
    scenes: &'a [Picture<'a>],
    revision: Revision,
    /// Captures so far.
    captures: usize,
    /// Status reads before a capture is done.
    exposure: u32,
    sensor: Ov2640,
    /// ArduCHIP: the test register; held in reset; ready again from then on.
    test: u8,
    in_reset: bool,
    ready_ns: u64,
    capturing: bool,
    waited: u32,
    begun_ns: u64,
    done: bool,
    /// What the FIFO holds: it keeps that whatever happens to the sensor.
    held: Option<(View, bool)>,
    size: u32,
    at: u32,
    /// No burst yet since the pointer was reset.
    fresh: bool,
}

impl<'a> ArduCamSim<'a> {
    /// A new module. Scene `n` is seen by capture `n`, modulo their number. A capture is done after `exposure` status reads.
    pub fn new(scenes: &'a [Picture<'a>], exposure: u32) -> Self {
        Self::with_revision(scenes, exposure, Revision::New)
    }

    /// A module of either kind.
    pub fn with_revision(scenes: &'a [Picture<'a>], exposure: u32, revision: Revision) -> Self {
        let state = State {
            scenes,
            revision,
            captures: 0,
            exposure,
            sensor: Ov2640::new(),
            test: 0,
            in_reset: false,
            ready_ns: 0,
            capturing: false,
            waited: 0,
            begun_ns: 0,
            done: false,
            held: None,
            size: 0,
            at: 0,
            fresh: false,
        };
        ArduCamSim { faults: Faults::default(), clock: Clock::default(), state: RefCell::new(state) }
    }

    /// Its I²C side.
    pub fn i2c(&self) -> SensorBus<'_, 'a> {
        SensorBus(self)
    }

    /// Its SPI side.
    pub fn spi(&self) -> ChipSelect<'_, 'a> {
        ChipSelect(self)
    }

    /// Its SPI side, for who has no more than bytes and a pin.
    pub fn select(&self) -> Selected<'_, 'a> {
        Selected::new(self)
    }

    /// Waiting, by which its time passes, and by `also` as well.
    pub fn delay<D>(&self, also: D) -> Wait<'_, D> {
        Wait::new(&self.clock, also)
    }

    /// A sensor register.
    pub fn register(&self, bank: u8, register: u8) -> u8 {
        self.state.borrow().sensor.register(bank, register)
    }

    /// The sensor's registers behind BPADDR.
    pub fn effects(&self) -> [u8; 16] {
        self.state.borrow().sensor.effects()
    }

    /// Calls `f` with each register of the sensor that holds what no public driver writes there.
    pub fn refusals(&self, f: impl FnMut(Refusal)) {
        self.state.borrow().sensor.refusals().for_each(f);
    }
}

impl State<'_> {
    fn brown_out(&mut self, faults: &Faults) {
        if faults.brown_out.take() {
            self.sensor = Ov2640::new();
        }
    }

    fn scene(&self) -> Picture<'_> {
        self.scenes[self.captures.wrapping_sub(1) % self.scenes.len()]
    }

    fn finish(&mut self, short: u32) {
        let Some((view, jpeg)) = self.sensor.view() else { return };
        let scene = self.scene();
        self.size = match jpeg {
            // The encoder knows one size only: another comes out as an empty file.
            true if (u32::from(scene.width), u32::from(scene.height)) != (view.width, view.height) => 0,
            true => (scene.jpeg.len() as u32).next_multiple_of(JPEG_PADDING),
            // The real module counts a little more than a picture.
            false => 2 * view.width * view.height + 8,
        };
        self.size = self.size.saturating_sub(short);
        (self.done, self.capturing, self.held) = (true, false, Some((view, jpeg)));
    }

    fn fifo(&mut self) -> u8 {
        if core::mem::take(&mut self.fresh) && self.revision == Revision::Old {
            return STALE;
        }
        let at = self.at;
        self.at += 1;
        if !self.done || at >= self.size {
            return 0;
        }
        match self.held {
            Some((_, true)) => self.scene().jpeg.get(at as usize).copied().unwrap_or(0),
            Some((view, false)) => {
                let (x, y) = (at / 2 % view.width, at / 2 / view.width);
                if y >= view.height { 0 } else { view.pixel(&self.scene(), x, y).to_be_bytes()[(at & 1) as usize] }
            }
            None => 0,
        }
    }

    fn responds(&self, faults: &Faults, now_ns: u64) -> bool {
        !self.in_reset && !faults.hung.get() && now_ns >= self.ready_ns
    }

    fn chip_write(&mut self, register: u8, value: u8, faults: &Faults, now_ns: u64) {
        if register == 0x07 {
            // In reset since long enough, and out of it.
            if self.in_reset && value & 0x80 == 0 && now_ns >= self.ready_ns {
                faults.hung.set(false);
                (self.test, self.capturing, self.done) = (0, false, false);
            }
            (self.in_reset, self.ready_ns) = (value & 0x80 != 0, now_ns + RESET_NS);
        }
        if !self.responds(faults, now_ns) {
            return;
        }
        match register {
            0x00 => self.test = value,
            0x04 => {
                if value & 0x01 != 0 {
                    self.done = false;
                }
                if value & 0x10 != 0 {
                    (self.at, self.fresh) = (0, true);
                }
                if value & 0x02 != 0 {
                    (self.capturing, self.waited, self.begun_ns) = (true, 0, now_ns);
                    (self.at, self.fresh) = (0, true);
                    self.captures += 1;
                }
            }
            _ => {}
        }
    }

    fn chip_read(&mut self, register: u8, faults: &Faults, now_ns: u64) -> u8 {
        if !self.responds(faults, now_ns) {
            return 0;
        }
        match register {
            0x00 => self.test,
            0x40 => 0x71,
            0x41 => {
                if self.capturing && !faults.stuck.get() {
                    self.waited += 1;
                    if self.waited > self.exposure || now_ns - self.begun_ns > CAPTURE_NS {
                        self.finish(faults.short.get());
                    }
                }
                u8::from(self.done) << 3
            }
            0x42 | 0x43 => self.size.to_le_bytes()[usize::from(register - 0x42)],
            0x44 => self.size.to_le_bytes()[2] | UNDEFINED,
            0x3C | 0x3D => self.fifo(),
            _ => 0,
        }
    }
}

/// I²C.
pub struct SensorBus<'s, 'a>(&'s ArduCamSim<'a>);

impl i2c::ErrorType for SensorBus<'_, '_> {
    type Error = BusError;
}

impl I2c for SensorBus<'_, '_> {
    fn transaction(&mut self, address: u8, operations: &mut [i2c::Operation]) -> Result<(), BusError> {
        let (state, faults, now_ns) = (&mut *self.0.state.borrow_mut(), &self.0.faults, self.0.clock.now_ns());
        state.brown_out(faults);
        let sensor = &mut state.sensor;
        // SCCB has no repeated start.
        if address != SCCB_ADDRESS || operations.len() != 1 || faults.nak() {
            return Err(BusError);
        }
        match &mut operations[0] {
            i2c::Operation::Write([register]) => sensor.select(*register),
            i2c::Operation::Write([register, value]) => sensor.write(*register, *value, now_ns),
            i2c::Operation::Read([value]) => *value = sensor.read(faults.product.get()),
            _ => return Err(BusError),
        }
        Ok(())
    }
}

/// SPI, with its chip select.
pub struct ChipSelect<'s, 'a>(&'s ArduCamSim<'a>);

/// SPI while the module is selected, byte by byte. The next one begins when it is selected again.
pub struct Selected<'s, 'a> {
    module: &'s ArduCamSim<'a>,
    /// The first byte.
    command: Option<u8>,
}

impl<'s, 'a> Selected<'s, 'a> {
    pub(crate) fn new(module: &'s ArduCamSim<'a>) -> Self {
        module.state.borrow_mut().brown_out(&module.faults);
        Selected { module, command: None }
    }

    /// What comes in while `out` goes out.
    pub fn clock(&mut self, out: u8) -> u8 {
        let (state, faults, now_ns) = (&mut *self.module.state.borrow_mut(), &self.module.faults, self.module.clock.now_ns());
        // The first byte is a command; what follows is its value, or clocks its answer out.
        let answer = match self.command {
            None => {
                self.command = Some(out);
                0
            }
            Some(register @ 0x80..) => {
                state.chip_write(register & 0x7F, out, faults, now_ns);
                0
            }
            Some(register) => state.chip_read(register, faults, now_ns),
        };
        faults.spi_stuck_at.get().unwrap_or(answer)
    }
}

impl spi::ErrorType for ChipSelect<'_, '_> {
    type Error = BusError;
}

impl SpiDevice for ChipSelect<'_, '_> {
    fn transaction(&mut self, operations: &mut [spi::Operation<u8>]) -> Result<(), BusError> {
        let mut selected = self.0.select();
        let mut clock = |out| selected.clock(out);
        for operation in operations {
            match operation {
                spi::Operation::Write(bytes) => bytes.iter().for_each(|b| {
                    clock(*b);
                }),
                spi::Operation::Read(bytes) => bytes.iter_mut().for_each(|b| *b = clock(0)),
                spi::Operation::TransferInPlace(bytes) => bytes.iter_mut().for_each(|b| *b = clock(*b)),
                spi::Operation::Transfer(read, write) => {
                    let length = read.len().max(write.len());
                    for at in 0..length {
                        let answer = clock(write.get(at).copied().unwrap_or(0));
                        if let Some(byte) = read.get_mut(at) {
                            *byte = answer;
                        }
                    }
                }
                spi::Operation::DelayNs(_) => {}
            }
        }
        Ok(())
    }
}
