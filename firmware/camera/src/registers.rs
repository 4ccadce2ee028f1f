//! Registers behind I²C, with a bounded number of tries.

use crate::error::{Access, RegisterError};
use embedded_hal::i2c::{Error as _, I2c};

/// Tries of every transaction: a sensor may be busy, or a line may have been disturbed.
const TRIES: u8 = 3;

/// OmniVision's SCCB: 8-bit registers; reads are two transactions with a stop between them, for the sensors do not know
/// repeated starts ("SCCB Functional Specification", 3.2: 3-phase write, 2-phase write and 2-phase read cycles).
pub(crate) struct Sccb<I> {
    i2c: I,
    address: u8,
    /// The bank that was chosen last, for errors.
    pub bank: Option<u8>,
}

impl<I: I2c> Sccb<I> {
    pub fn new(i2c: I, address: u8) -> Self {
        Sccb { i2c, address, bank: None }
    }

    pub fn write(&mut self, register: u8, value: u8) -> Result<(), RegisterError> {
        self.attempt(register, Access::Write, |i2c, address| i2c.write(address, &[register, value]))
    }

    pub fn write_all(&mut self, table: &[(u8, u8)]) -> Result<(), RegisterError> {
        table.iter().try_for_each(|(register, value)| self.write(*register, *value))
    }

    pub fn read(&mut self, register: u8) -> Result<u8, RegisterError> {
        let mut value = [0];
        self.attempt(register, Access::Read, |i2c, address| {
            i2c.write(address, &[register])?;
            i2c.read(address, &mut value)
        })?;
        Ok(value[0])
    }

    /// Replaces the bits of `mask`.
    pub fn update(&mut self, register: u8, mask: u8, value: u8) -> Result<(), RegisterError> {
        let now = self.read(register)?;
        self.write(register, now & !mask | value & mask)
    }

    fn attempt(
        &mut self,
        register: u8,
        access: Access,
        transaction: impl FnMut(&mut I, u8) -> Result<(), I::Error>,
    ) -> Result<(), RegisterError> {
        attempt(&mut self.i2c, self.address, transaction).map_err(|kind| RegisterError {
            bank: self.bank,
            register: register.into(),
            access,
            tries: TRIES,
            kind,
        })
    }
}

/// 16-bit addresses, 8-bit values, repeated starts (MIPI CCI).
pub(crate) struct Cci<I> {
    i2c: I,
    address: u8,
}

impl<I: I2c> Cci<I> {
    pub fn new(i2c: I, address: u8) -> Self {
        Cci { i2c, address }
    }

    pub fn write(&mut self, register: u16, value: u8) -> Result<(), RegisterError> {
        let [high, low] = register.to_be_bytes();
        self.attempt(register, Access::Write, |i2c, address| i2c.write(address, &[high, low, value]))
    }

    pub fn write_all(&mut self, table: &[(u16, u8)]) -> Result<(), RegisterError> {
        table.iter().try_for_each(|(register, value)| self.write(*register, *value))
    }

    pub fn read(&mut self, register: u16) -> Result<u8, RegisterError> {
        let mut value = [0];
        self.attempt(register, Access::Read, |i2c, address| i2c.write_read(address, &register.to_be_bytes(), &mut value))?;
        Ok(value[0])
    }

    fn attempt(
        &mut self,
        register: u16,
        access: Access,
        transaction: impl FnMut(&mut I, u8) -> Result<(), I::Error>,
    ) -> Result<(), RegisterError> {
        attempt(&mut self.i2c, self.address, transaction).map_err(|kind| RegisterError { bank: None, register, access, tries: TRIES, kind })
    }
}

fn attempt<I: I2c>(
    i2c: &mut I,
    address: u8,
    mut transaction: impl FnMut(&mut I, u8) -> Result<(), I::Error>,
) -> Result<(), embedded_hal::i2c::ErrorKind> {
    for _ in 1..TRIES {
        if transaction(i2c, address).is_ok() {
            return Ok(());
        }
    }
    transaction(i2c, address).map_err(|e| e.kind())
}
