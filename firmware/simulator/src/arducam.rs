//! ArduCAM Mini 2MP: OV2640 registers on I²C, ArduCHIP registers and FIFO on SPI.

use crate::bus::{BusError, Faults};
use crate::picture::{Picture, View};
use core::cell::RefCell;
use embedded_hal::i2c::{self, I2c};
use embedded_hal::spi::{self, SpiDevice};

const SCCB_ADDRESS: u8 = 0x30;

/// The module, with scenes in front of it that change with every capture.
pub struct ArduCamSim<'a> {
    /// What goes wrong.
    pub faults: Faults,
    state: RefCell<State<'a>>,
}

struct State<'a> {
    scenes: &'a [Picture<'a>],
    /// Captures so far.
    captures: usize,
    /// Status reads before a capture is done.
    exposure: u32,
    /// DSP and sensor banks.
    registers: [[u8; 256]; 2],
    bank: u8,
    sub_address: u8,
    /// ArduCHIP.
    test: u8,
    capturing: bool,
    waited: u32,
    done: bool,
    /// What the FIFO holds: it keeps that whatever happens to the sensor.
    held: Option<(View, bool)>,
    size: u32,
    at: u32,
}

impl<'a> ArduCamSim<'a> {
    /// Scene `n` is seen by capture `n`, modulo their number. A capture is done after `exposure` status reads.
    pub fn new(scenes: &'a [Picture<'a>], exposure: u32) -> Self {
        let state = State {
            scenes,
            captures: 0,
            exposure,
            registers: [[0; 256]; 2],
            bank: 0,
            sub_address: 0,
            test: 0,
            capturing: false,
            waited: 0,
            done: false,
            held: None,
            size: 0,
            at: 0,
        };
        let sim = ArduCamSim { faults: Faults::default(), state: RefCell::new(state) };
        sim.state.borrow_mut().reset();
        sim
    }

    /// Its I²C side.
    pub fn i2c(&self) -> SensorBus<'_, 'a> {
        SensorBus(self)
    }

    /// Its SPI side.
    pub fn spi(&self) -> ChipSelect<'_, 'a> {
        ChipSelect(self)
    }

    /// A sensor register.
    pub fn register(&self, bank: u8, register: u8) -> u8 {
        self.state.borrow().registers[usize::from(bank & 1)][usize::from(register)]
    }
}

impl State<'_> {
    fn reset(&mut self) {
        self.registers = [[0; 256]; 2];
        self.registers[1][0x0A] = 0x26;
        self.registers[1][0x0B] = 0x42;
        self.registers[1][0x1C] = 0x7F;
        self.registers[1][0x1D] = 0xA2;
        self.registers[0][0x05] = 1; // DSP bypassed
        self.registers[0][0xE0] = 0x04; // DVP held in reset
        self.bank = 0;
    }

    fn write(&mut self, register: u8, value: u8) {
        match (register, self.bank & 1) {
            (0xFF, _) => self.bank = value,
            (0x12, 1) if value & 0x80 != 0 => self.reset(),
            // Identification cannot be written.
            (0x0A | 0x0B | 0x1C | 0x1D, 1) => {}
            (register, bank) => self.registers[usize::from(bank)][usize::from(register)] = value,
        }
    }

    /// What the registers make of the scene; `None` if no picture comes out.
    fn view(&self) -> Option<(View, bool)> {
        let [dsp, sensor] = &self.registers;
        let (halvings_v, halvings_h) = (dsp[0x50] >> 3 & 7, dsp[0x50] & 7);
        let width = (u32::from(dsp[0x5A]) | u32::from(dsp[0x5C] & 3) << 8) * 4;
        let height = (u32::from(dsp[0x5B]) | u32::from(dsp[0x5C] >> 2 & 1) << 8) * 4;
        let in_w = ((u32::from(dsp[0x51]) | u32::from(dsp[0x55] >> 3 & 1) << 8 | u32::from(dsp[0x57] >> 7) << 9) * 4) >> halvings_h;
        let in_h = ((u32::from(dsp[0x52]) | u32::from(dsp[0x55] >> 7) << 8) * 4) >> halvings_v;
        // The array at 800×600, the DSP on, nothing in reset, enough pixels to scale down from.
        let svga = sensor[0x12] & 0x70 == 0x40 && (dsp[0xC0], dsp[0xC1]) == (100, 75);
        let on = dsp[0x05] & 1 == 0 && dsp[0xE0] == 0 && dsp[0x86] & 0x20 != 0;
        if !svga || !on || width == 0 || height == 0 || in_w < width || in_h < height {
            return None;
        }
        let jpeg = dsp[0xDA] & 0x10 != 0;
        if !jpeg && dsp[0xDA] & 0x0C != 0x08 {
            return None;
        }
        let (mirror, flip, bars) = (sensor[0x04] & 0x80 != 0, sensor[0x04] & 0x40 != 0, sensor[0x12] & 2 != 0);
        Some((View { width, height, mirror, flip, bars }, jpeg))
    }

    fn scene(&self) -> Picture<'_> {
        self.scenes[self.captures.wrapping_sub(1) % self.scenes.len()]
    }

    fn finish(&mut self, short: u32) {
        let Some((view, jpeg)) = self.view() else { return };
        let scene = self.scene();
        self.size = match jpeg {
            // The encoder knows one size only: another comes out as an empty file.
            true if (u32::from(scene.width), u32::from(scene.height)) != (view.width, view.height) => 0,
            true => (scene.jpeg.len() as u32).next_multiple_of(8),
            // The real module counts a little more than a picture.
            false => 2 * view.width * view.height + 8,
        };
        self.size = self.size.saturating_sub(short);
        (self.done, self.capturing, self.held) = (true, false, Some((view, jpeg)));
    }

    fn fifo(&mut self) -> u8 {
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

    fn chip_write(&mut self, register: u8, value: u8) {
        match register {
            0x00 => self.test = value,
            0x04 => {
                if value & 0x01 != 0 {
                    self.done = false;
                }
                if value & 0x30 != 0 {
                    self.at = 0;
                }
                if value & 0x02 != 0 {
                    (self.capturing, self.waited) = (true, 0);
                    self.captures += 1;
                }
            }
            _ => {}
        }
    }

    fn chip_read(&mut self, register: u8, faults: &Faults) -> u8 {
        match register {
            0x00 => self.test,
            0x40 => 0x71,
            0x41 => {
                if self.capturing && !faults.stuck.get() {
                    self.waited += 1;
                    if self.waited > self.exposure {
                        self.finish(faults.short.get());
                    }
                }
                u8::from(self.done) << 3
            }
            0x42..=0x44 => self.size.to_le_bytes()[usize::from(register - 0x42)],
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
        let (state, faults) = (&mut *self.0.state.borrow_mut(), &self.0.faults);
        if faults.brown_out.take() {
            state.reset();
        }
        // SCCB has no repeated start.
        if address != SCCB_ADDRESS || operations.len() != 1 || faults.nak() {
            return Err(BusError);
        }
        match &mut operations[0] {
            i2c::Operation::Write([register]) => state.sub_address = *register,
            i2c::Operation::Write([register, value]) => state.write(*register, *value),
            i2c::Operation::Read([value]) => {
                *value = match (state.sub_address, faults.product.get()) {
                    (0xFF, _) => state.bank,
                    (0x0A, Some(product)) if state.bank & 1 == 1 => (product >> 8) as u8,
                    (0x0B, Some(product)) if state.bank & 1 == 1 => product as u8,
                    (register, _) => state.registers[usize::from(state.bank & 1)][usize::from(register)],
                }
            }
            _ => return Err(BusError),
        }
        Ok(())
    }
}

/// SPI, with its chip select.
pub struct ChipSelect<'s, 'a>(&'s ArduCamSim<'a>);

impl spi::ErrorType for ChipSelect<'_, '_> {
    type Error = BusError;
}

impl SpiDevice for ChipSelect<'_, '_> {
    fn transaction(&mut self, operations: &mut [spi::Operation<u8>]) -> Result<(), BusError> {
        let (state, faults) = (&mut *self.0.state.borrow_mut(), &self.0.faults);
        // The first byte is a command; what follows is its value, or clocks its answer out.
        let mut command = None;
        let mut clock = |out: u8| {
            let answer = match command {
                None => {
                    command = Some(out);
                    0
                }
                Some(register @ 0x80..) => {
                    state.chip_write(register & 0x7F, out);
                    0
                }
                Some(register) => state.chip_read(register, faults),
            };
            faults.spi_stuck_at.get().unwrap_or(answer)
        };
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
