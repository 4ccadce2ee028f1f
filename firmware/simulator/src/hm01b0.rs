//! HM01B0 on I²C and a parallel port.

use crate::bus::{BusError, Faults};
use crate::picture::{Picture, View, yuv};
use crate::port::{Output, Port};
use core::cell::RefCell;
use embedded_hal::i2c::{ErrorType, I2c, Operation};

/// Most registers that are ever written.
const REGISTERS: usize = 64;

/// The sensor, with one scene in front of it.
pub struct Hm01b0Sim<'a> {
    /// What goes wrong.
    pub faults: Faults,
    scene: Picture<'a>,
    /// Address and value of what was written; all else reads 0.
    state: RefCell<[Option<(u16, u8)>; REGISTERS]>,
}

impl<'a> Hm01b0Sim<'a> {
    /// A sensor after power-on.
    pub fn new(scene: Picture<'a>) -> Self {
        Hm01b0Sim { faults: Faults::default(), scene, state: RefCell::new([None; REGISTERS]) }
    }

    /// Its I²C side.
    pub fn i2c(&self) -> Cci<'_, 'a> {
        Cci(self)
    }

    /// Its data lines.
    pub fn port(&self) -> Port<'_, Self> {
        Port::new(self)
    }

    /// A register.
    pub fn register(&self, register: u16) -> u8 {
        let product = self.faults.product.get().unwrap_or(0x01B0).to_be_bytes();
        match register {
            0 | 1 => product[usize::from(register)],
            _ => self.state.borrow().iter().flatten().find(|(r, _)| *r == register).map_or(0, |(_, value)| *value),
        }
    }

    fn write(&self, register: u16, value: u8) {
        let mut registers = self.state.borrow_mut();
        if register == 0x0103 {
            *registers = [None; REGISTERS];
            return;
        }
        let slot = registers.iter_mut().find(|r| r.is_none_or(|(r, _)| r == register));
        *slot.expect("a driver writes fewer registers") = Some((register, value));
    }

    fn view(&self) -> Option<View> {
        let r = |register| self.register(register);
        // Streaming, on eight lines.
        if r(0x0100) & 1 == 0 || r(0x3059) & 0x42 != 0x02 {
            return None;
        }
        let (mut width, mut height) = (324, if r(0x3010) & 1 != 0 { 244 } else { 324 });
        if r(0x0383) == 3 && r(0x0387) == 3 && r(0x0390) & 3 == 3 {
            (width, height) = (width / 2, height / 2);
        }
        let frame = u32::from(r(0x0340)) << 8 | u32::from(r(0x0341));
        // A frame has more rows than its picture.
        (frame > height).then_some(View { width, height, mirror: r(0x0101) & 1 != 0, flip: r(0x0101) & 2 != 0, bars: r(0x0601) & 1 != 0 })
    }
}

impl Output for Hm01b0Sim<'_> {
    fn faults(&self) -> &Faults {
        &self.faults
    }

    fn length(&self) -> Option<u32> {
        self.view().map(|view| view.width * view.height)
    }

    fn byte(&self, at: u32) -> u8 {
        self.view().map_or(0, |view| yuv(view.pixel(&self.scene, at % view.width, at / view.width))[0])
    }
}

/// I²C.
pub struct Cci<'s, 'a>(&'s Hm01b0Sim<'a>);

impl ErrorType for Cci<'_, '_> {
    type Error = BusError;
}

impl I2c for Cci<'_, '_> {
    fn transaction(&mut self, address: u8, operations: &mut [Operation]) -> Result<(), BusError> {
        if address != 0x24 || self.0.faults.nak() {
            return Err(BusError);
        }
        match operations {
            [Operation::Write([high, low, value])] => self.0.write(u16::from_be_bytes([*high, *low]), *value),
            [Operation::Write([high, low]), Operation::Read([value])] => *value = self.0.register(u16::from_be_bytes([*high, *low])),
            _ => return Err(BusError),
        }
        Ok(())
    }
}
