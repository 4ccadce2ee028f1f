//! USB CDC-ACM: `/dev/ttyACM0` on the host.

use super::Transport;
use core::borrow::BorrowMut;
use usb_device::UsbError;
use usb_device::bus::UsbBus;
use usb_device::device::UsbDevice;
use usbd_serial::SerialPort;

/// A serial port and its device. The device must be polled often; reading and writing does.
pub struct UsbSerial<'a, B: UsbBus, R: BorrowMut<[u8]>, W: BorrowMut<[u8]>> {
    device: UsbDevice<'a, B>,
    port: SerialPort<'a, B, R, W>,
}

impl<'a, B: UsbBus, R: BorrowMut<[u8]>, W: BorrowMut<[u8]>> UsbSerial<'a, B, R, W> {
    /// Joins what the board has made.
    pub fn new(device: UsbDevice<'a, B>, port: SerialPort<'a, B, R, W>) -> Self {
        UsbSerial { device, port }
    }
}

impl<B: UsbBus, R: BorrowMut<[u8]>, W: BorrowMut<[u8]>> Transport for UsbSerial<'_, B, R, W> {
    type Error = UsbError;

    fn read(&mut self, bytes: &mut [u8]) -> Result<usize, UsbError> {
        self.device.poll(&mut [&mut self.port]);
        // What was written last may still wait for the host; nothing need be written after it.
        none_is_zero(self.port.flush().map(|()| 0))?;
        none_is_zero(self.port.read(bytes))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<usize, UsbError> {
        self.device.poll(&mut [&mut self.port]);
        let written = none_is_zero(self.port.write(bytes))?;
        none_is_zero(self.port.flush().map(|()| 0))?;
        Ok(written)
    }
}

fn none_is_zero(result: Result<usize, UsbError>) -> Result<usize, UsbError> {
    match result {
        Err(UsbError::WouldBlock) => Ok(0),
        other => other,
    }
}
