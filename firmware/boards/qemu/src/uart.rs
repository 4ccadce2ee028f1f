//! CMSDK APB UART 0 (DDI 0479, 4.3).

use core::convert::Infallible;
use embedded_io::{ErrorType, Read, ReadReady, Write, WriteReady};

const BASE: usize = 0x4000_4000;
const DATA: *mut u32 = BASE as *mut u32;
const STATE: *mut u32 = (BASE + 4) as *mut u32;
const CTRL: *mut u32 = (BASE + 8) as *mut u32;
const BAUDDIV: *mut u32 = (BASE + 16) as *mut u32;

const TX_FULL: u32 = 1;
const RX_FULL: u32 = 2;

/// The UART. QEMU keeps no pace: a byte is gone as soon as whatever is connected takes it.
pub struct Uart(());

impl Uart {
    /// Turns it on. There is one.
    pub fn start() -> Self {
        // SAFETY: registers of the UART, which nothing else uses. 16 is the smallest divider it takes.
        unsafe {
            BAUDDIV.write_volatile(16);
            CTRL.write_volatile(3);
        }
        Uart(())
    }

    fn state(&self) -> u32 {
        // SAFETY: a register without side effects.
        unsafe { STATE.read_volatile() }
    }
}

impl ErrorType for Uart {
    type Error = Infallible;
}

impl ReadReady for Uart {
    fn read_ready(&mut self) -> Result<bool, Infallible> {
        Ok(self.state() & RX_FULL != 0)
    }
}

impl WriteReady for Uart {
    fn write_ready(&mut self) -> Result<bool, Infallible> {
        Ok(self.state() & TX_FULL == 0)
    }
}

impl Read for Uart {
    fn read(&mut self, bytes: &mut [u8]) -> Result<usize, Infallible> {
        if bytes.is_empty() {
            return Ok(0);
        }
        while self.state() & RX_FULL == 0 {}
        let mut length = 0;
        for byte in bytes {
            if self.state() & RX_FULL == 0 {
                break;
            }
            // SAFETY: reading takes the byte that has arrived.
            *byte = unsafe { DATA.read_volatile() } as u8;
            length += 1;
        }
        Ok(length)
    }
}

impl Write for Uart {
    fn write(&mut self, bytes: &[u8]) -> Result<usize, Infallible> {
        if bytes.is_empty() {
            return Ok(0);
        }
        while self.state() & TX_FULL != 0 {}
        let mut length = 0;
        for byte in bytes {
            if self.state() & TX_FULL != 0 {
                break;
            }
            // SAFETY: the transmitter has room.
            unsafe { DATA.write_volatile((*byte).into()) };
            length += 1;
        }
        Ok(length)
    }

    fn flush(&mut self) -> Result<(), Infallible> {
        while self.state() & TX_FULL != 0 {}
        Ok(())
    }
}
