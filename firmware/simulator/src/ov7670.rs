//! OV7670 on SCCB and a parallel port.

use crate::bus::{BusError, Faults};
use crate::picture::{Picture, View, yuv};
use crate::port::{Output, Port};
use core::cell::RefCell;
use embedded_hal::i2c::{ErrorType, I2c, Operation};

/// The sensor, with one scene in front of it.
pub struct Ov7670Sim<'a> {
    /// What goes wrong.
    pub faults: Faults,
    scene: Picture<'a>,
    state: RefCell<State>,
}

struct State {
    registers: [u8; 256],
    sub_address: u8,
}

impl State {
    fn reset(&mut self) {
        self.registers = [0; 256];
        for (register, value) in
            [(0x0A, 0x76), (0x0B, 0x73), (0x1C, 0x7F), (0x1D, 0xA2), (0x40, 0xC0), (0x3A, 0x0D), (0x70, 0x3A), (0x71, 0x35)]
        {
            self.registers[register] = value;
        }
    }
}

impl<'a> Ov7670Sim<'a> {
    /// A sensor after power-on.
    pub fn new(scene: Picture<'a>) -> Self {
        let sim = Ov7670Sim { faults: Faults::default(), scene, state: RefCell::new(State { registers: [0; 256], sub_address: 0 }) };
        sim.state.borrow_mut().reset();
        sim
    }

    /// Its I²C side.
    pub fn i2c(&self) -> Sccb<'_, 'a> {
        Sccb(self)
    }

    /// Its data lines.
    pub fn port(&self) -> Port<'_, Self> {
        Port::new(self)
    }

    /// A register.
    pub fn register(&self, register: u8) -> u8 {
        self.state.borrow().registers[usize::from(register)]
    }

    /// The view and whether it is RGB565.
    fn view(&self) -> Option<(View, bool)> {
        let r = &self.state.borrow().registers;
        let rgb = r[0x12] & 0x05 == 0x04;
        if rgb && (r[0x40] & 0x30 != 0x10 || r[0x8C] & 2 != 0) {
            return None;
        }
        // Full range; Y U Y V; the pixel clock rests between lines.
        if r[0x40] & 0xC0 != 0xC0 || (!rgb && (r[0x3A] & 0x08 != 0 || r[0x3D] & 1 != 0)) || r[0x15] & 0x20 == 0 {
            return None;
        }
        let scaled = r[0x0C] & 0x04 != 0;
        let halvings = if scaled { r[0x72] & 3 } else { 0 };
        if scaled && (r[0x72] >> 4 & 3 != halvings || r[0x3E] != 0x18 | halvings || r[0x73] & 0x0F != halvings) {
            return None;
        }
        let (mirror, flip) = (r[0x1E] & 0x20 != 0, r[0x1E] & 0x10 != 0);
        let bars = r[0x71] & 0x80 != 0 && r[0x70] & 0x80 == 0;
        Some((View { width: 640 >> halvings, height: 480 >> halvings, mirror, flip, bars }, rgb))
    }
}

impl Output for Ov7670Sim<'_> {
    fn faults(&self) -> &Faults {
        &self.faults
    }

    fn length(&self) -> Option<u32> {
        self.view().map(|(view, _)| 2 * view.width * view.height)
    }

    fn byte(&self, at: u32) -> u8 {
        let Some((view, rgb)) = self.view() else { return 0 };
        let pixel = |at: u32| view.pixel(&self.scene, at % view.width, at / view.width);
        if rgb {
            return pixel(at / 2).to_be_bytes()[(at & 1) as usize];
        }
        match at % 4 {
            0 | 2 => yuv(pixel(at / 2))[0],
            1 => yuv(pixel(at / 2))[1],
            _ => yuv(pixel(at / 2 - 1))[2],
        }
    }
}

/// I²C.
pub struct Sccb<'s, 'a>(&'s Ov7670Sim<'a>);

impl ErrorType for Sccb<'_, '_> {
    type Error = BusError;
}

impl I2c for Sccb<'_, '_> {
    fn transaction(&mut self, address: u8, operations: &mut [Operation]) -> Result<(), BusError> {
        let (state, faults) = (&mut *self.0.state.borrow_mut(), &self.0.faults);
        if address != 0x21 || operations.len() != 1 || faults.nak() {
            return Err(BusError);
        }
        match &mut operations[0] {
            Operation::Write([register]) => state.sub_address = *register,
            Operation::Write([0x12, value]) if *value & 0x80 != 0 => state.reset(),
            Operation::Write([0x0A | 0x0B | 0x1C | 0x1D, _]) => {}
            Operation::Write([register, value]) => state.registers[usize::from(*register)] = *value,
            Operation::Read([value]) => {
                *value = match (state.sub_address, faults.product.get()) {
                    (0x0A, Some(product)) => (product >> 8) as u8,
                    (0x0B, Some(product)) => product as u8,
                    (register, _) => state.registers[usize::from(register)],
                }
            }
            _ => return Err(BusError),
        }
        Ok(())
    }
}
