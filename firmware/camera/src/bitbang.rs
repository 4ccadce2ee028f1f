//! I²C by two pins, for boards that wire a sensor's SCCB to pins without an I²C controller.

use embedded_hal::delay::DelayNs;
use embedded_hal::digital::{InputPin, OutputPin};
use embedded_hal::i2c::{self, ErrorKind, I2c, NoAcknowledgeSource, Operation};

/// A quarter of a bit at 100 kHz.
const QUARTER_NS: u32 = 2_500;

/// Both lines need pull-ups and open-drain outputs: high is "let go". Nobody may stretch the clock; SCCB sensors do not.
pub struct BitBang<C, A, D> {
    clock: C,
    data: A,
    delay: D,
}

/// Why a transaction failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum BitBangError {
    /// Nobody acknowledged.
    NoAcknowledge(NoAcknowledgeSource),
    /// A pin could not be set or read.
    Pin,
}

impl i2c::Error for BitBangError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::NoAcknowledge(source) => ErrorKind::NoAcknowledge(*source),
            Self::Pin => ErrorKind::Bus,
        }
    }
}

impl<C: OutputPin, A: InputPin + OutputPin, D: DelayNs> BitBang<C, A, D> {
    /// Lets go of both lines.
    pub fn new(clock: C, data: A, delay: D) -> Result<Self, BitBangError> {
        let mut bus = BitBang { clock, data, delay };
        bus.data(true)?;
        bus.clock(true)?;
        Ok(bus)
    }

    fn clock(&mut self, high: bool) -> Result<(), BitBangError> {
        self.clock.set_state(high.into()).map_err(|_| BitBangError::Pin)?;
        self.delay.delay_ns(QUARTER_NS);
        Ok(())
    }

    fn data(&mut self, high: bool) -> Result<(), BitBangError> {
        self.data.set_state(high.into()).map_err(|_| BitBangError::Pin)?;
        self.delay.delay_ns(QUARTER_NS);
        Ok(())
    }

    /// With the clock low: sends a bit, or lets go and takes one.
    fn bit(&mut self, out: bool) -> Result<bool, BitBangError> {
        self.data(out)?;
        self.clock(true)?;
        let bit = self.data.is_high().map_err(|_| BitBangError::Pin)?;
        self.clock(false)?;
        Ok(bit)
    }

    /// A start, or another one.
    fn start(&mut self) -> Result<(), BitBangError> {
        self.data(true)?;
        self.clock(true)?;
        self.data(false)?;
        self.clock(false)
    }

    fn stop(&mut self) -> Result<(), BitBangError> {
        self.data(false)?;
        self.clock(true)?;
        self.data(true)
    }

    fn send(&mut self, byte: u8, source: NoAcknowledgeSource) -> Result<(), BitBangError> {
        for at in (0..8).rev() {
            self.bit(byte >> at & 1 != 0)?;
        }
        if self.bit(true)? { Err(BitBangError::NoAcknowledge(source)) } else { Ok(()) }
    }

    fn take(&mut self, last: bool) -> Result<u8, BitBangError> {
        let mut byte = 0;
        for _ in 0..8 {
            byte = byte << 1 | u8::from(self.bit(true)?);
        }
        self.bit(last)?;
        Ok(byte)
    }

    fn operations(&mut self, address: u8, operations: &mut [Operation]) -> Result<(), BitBangError> {
        let mut reading = None;
        let mut rest = operations.iter_mut().peekable();
        while let Some(operation) = rest.next() {
            let read = matches!(operation, Operation::Read(_));
            // Neighbours of one kind are one transfer.
            if reading != Some(read) {
                self.start()?;
                self.send(address << 1 | u8::from(read), NoAcknowledgeSource::Address)?;
                reading = Some(read);
            }
            match operation {
                Operation::Write(bytes) => bytes.iter().try_for_each(|byte| self.send(*byte, NoAcknowledgeSource::Data))?,
                Operation::Read(bytes) => {
                    let goes_on = matches!(rest.peek(), Some(Operation::Read(_)));
                    let count = bytes.len();
                    for (at, byte) in bytes.iter_mut().enumerate() {
                        *byte = self.take(at + 1 == count && !goes_on)?;
                    }
                }
            }
        }
        Ok(())
    }
}

impl<C, A, D> i2c::ErrorType for BitBang<C, A, D> {
    type Error = BitBangError;
}

impl<C: OutputPin, A: InputPin + OutputPin, D: DelayNs> I2c for BitBang<C, A, D> {
    fn transaction(&mut self, address: u8, operations: &mut [Operation]) -> Result<(), BitBangError> {
        if operations.is_empty() {
            return Ok(());
        }
        let result = self.operations(address, operations);
        // The bus is free afterwards, whatever happened.
        self.stop()?;
        result
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use core::cell::RefCell;
    use core::convert::Infallible;
    use embedded_hal::digital::ErrorType;
    use std::vec;
    use std::vec::Vec;

    /// Both lines and a device on them, bit by bit (NXP UM10204, 3.1): what it heard, and what it answers.
    #[derive(Default)]
    struct Lines {
        clock: bool,
        /// What master and device do: high is let go.
        data: bool,
        pulled: bool,
        heard: Vec<u8>,
        starts: usize,
        stops: usize,
        answers: Vec<u8>,
        refuse_after: Option<usize>,
        state: State,
    }

    #[derive(Default, PartialEq, Clone, Copy)]
    enum State {
        #[default]
        Idle,
        /// Bits of a byte so far, whether the first since a start, and whether the device sends.
        Byte {
            bits: u8,
            count: u8,
            address: bool,
            sends: bool,
        },
        Acknowledge {
            address: bool,
            sends: bool,
        },
    }

    impl Lines {
        fn level(&self) -> bool {
            self.data && !self.pulled
        }

        fn data(&mut self, high: bool) {
            let (was, clock) = (self.level(), self.clock);
            self.data = high;
            match (clock, was, self.level()) {
                (true, true, false) => {
                    self.starts += 1;
                    self.state = State::Byte { bits: 0, count: 0, address: true, sends: false };
                }
                (true, false, true) => {
                    self.stops += 1;
                    self.state = State::Idle;
                }
                _ => {}
            }
        }

        fn clock(&mut self, high: bool) {
            if self.clock == high {
                return;
            }
            self.clock = high;
            let level = self.level();
            self.state = match (self.state, high) {
                (State::Byte { bits, count, address, sends }, true) => {
                    State::Byte { bits: bits << 1 | u8::from(level), count: count + 1, address, sends }
                }
                (State::Byte { bits, count: 8, address, sends }, false) => {
                    let mut sends = sends;
                    if !sends {
                        self.heard.push(bits);
                        sends = address && bits & 1 == 1;
                        self.pulled = self.refuse_after.is_none_or(|most| self.heard.len() <= most);
                    } else {
                        self.pulled = false;
                    }
                    State::Acknowledge { address, sends }
                }
                (State::Acknowledge { address, sends }, false) => {
                    self.pulled = false;
                    let next = State::Byte { bits: 0, count: 0, address: false, sends };
                    if sends && (address || !level) { self.send(next) } else { next }
                }
                (State::Byte { count, sends: true, .. }, false) if count > 0 => self.send(self.state),
                (other, _) => other,
            };
        }

        /// Puts the next bit of its answer on the line.
        fn send(&mut self, state: State) -> State {
            let State::Byte { count, .. } = state else { return state };
            if count == 0 && self.answers.is_empty() {
                return state;
            }
            let byte = self.answers[0];
            self.pulled = byte >> (7 - count) & 1 == 0;
            if count == 7 {
                self.answers.remove(0);
            }
            state
        }
    }

    struct Pin<'l>(&'l RefCell<Lines>, bool);

    impl ErrorType for Pin<'_> {
        type Error = Infallible;
    }
    impl OutputPin for Pin<'_> {
        fn set_low(&mut self) -> Result<(), Infallible> {
            if self.1 {
                self.0.borrow_mut().clock(false)
            } else {
                self.0.borrow_mut().data(false)
            }
            Ok(())
        }
        fn set_high(&mut self) -> Result<(), Infallible> {
            if self.1 {
                self.0.borrow_mut().clock(true)
            } else {
                self.0.borrow_mut().data(true)
            }
            Ok(())
        }
    }
    impl InputPin for Pin<'_> {
        fn is_high(&mut self) -> Result<bool, Infallible> {
            Ok(self.0.borrow().level())
        }
        fn is_low(&mut self) -> Result<bool, Infallible> {
            Ok(!self.0.borrow().level())
        }
    }

    struct NoDelay;
    impl DelayNs for NoDelay {
        fn delay_ns(&mut self, _: u32) {}
    }

    fn bus(lines: &RefCell<Lines>) -> BitBang<Pin<'_>, Pin<'_>, NoDelay> {
        BitBang::new(Pin(lines, true), Pin(lines, false), NoDelay).unwrap()
    }

    fn idle() -> RefCell<Lines> {
        RefCell::new(Lines { clock: true, data: true, ..Lines::default() })
    }

    #[test]
    fn writes_and_reads_are_what_a_device_hears_and_says() {
        let lines = idle();
        bus(&lines).write(0x21, &[0x12, 0x80]).unwrap();
        assert_eq!((lines.borrow().heard.clone(), lines.borrow().starts, lines.borrow().stops), (vec![0x42, 0x12, 0x80], 1, 1));
        lines.borrow_mut().answers = vec![0x76, 0xA5];
        let mut read = [0; 2];
        bus(&lines).read(0x21, &mut read).unwrap();
        assert_eq!((read, lines.borrow().heard.last().copied(), lines.borrow().stops), ([0x76, 0xA5], Some(0x43), 2));
        // A repeated start, and no stop between.
        lines.borrow_mut().answers = vec![0x73];
        let mut read = [0];
        bus(&lines).write_read(0x21, &[0x0B], &mut read).unwrap();
        assert_eq!((read, lines.borrow().starts, lines.borrow().stops), ([0x73], 4, 3));
        assert_eq!(lines.borrow().heard[lines.borrow().heard.len() - 3..], [0x42, 0x0B, 0x43]);
    }

    #[test]
    fn refusals_free_the_bus() {
        for (heard, source) in [(0, NoAcknowledgeSource::Address), (1, NoAcknowledgeSource::Data)] {
            let lines = idle();
            lines.borrow_mut().refuse_after = Some(heard);
            assert_eq!(bus(&lines).write(0x21, &[0x12, 0x80]), Err(BitBangError::NoAcknowledge(source)));
            let lines = lines.borrow();
            assert_eq!((lines.heard.len(), lines.stops, lines.level(), lines.clock), (heard + 1, 1, true, true));
        }
    }
}
