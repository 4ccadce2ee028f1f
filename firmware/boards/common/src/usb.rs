//! The USB device that the host sees: a serial port named "edge camera".

use usb_device::bus::{UsbBus, UsbBusAllocator};
use usb_device::device::{StringDescriptors, UsbDevice, UsbDeviceBuilder, UsbVidPid};
use usbd_serial::{SerialPort, USB_CLASS_CDC};

/// Shared by all CDC-ACM devices of the V-USB project's terms: told apart by the strings.
const ID: UsbVidPid = UsbVidPid(0x16C0, 0x27E1);

/// A serial port that gathers up to `N` bytes to send, so that packets are full.
pub fn serial_port<B: UsbBus, const N: usize>(bus: &UsbBusAllocator<B>) -> SerialPort<'_, B, [u8; 128], [u8; N]> {
    SerialPort::new_with_store(bus, [0; 128], [0; N])
}

/// The device; made after its port.
pub fn usb_device<'a, B: UsbBus>(bus: &'a UsbBusAllocator<B>, serial_number: &'a str) -> UsbDevice<'a, B> {
    let strings = StringDescriptors::default().manufacturer("edge-infer").product("edge camera").serial_number(serial_number);
    let device = UsbDeviceBuilder::new(bus, ID).device_class(USB_CLASS_CDC);
    // One language is never too many.
    match device.strings(&[strings]) {
        Ok(device) => device.build(),
        Err(_) => UsbDeviceBuilder::new(bus, ID).device_class(USB_CLASS_CDC).build(),
    }
}
