//! The USB serial port on a controller that is not there: packets of 64 bytes, taken when the host asks for them.

use edge_camera::transport::{Transport, UsbSerial};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use usb_device::bus::{PollResult, UsbBus, UsbBusAllocator};
use usb_device::device::{UsbDeviceBuilder, UsbVidPid};
use usb_device::endpoint::{EndpointAddress, EndpointType};
use usb_device::{Result, UsbDirection, UsbError};
use usbd_serial::{SerialPort, USB_CLASS_CDC};

const PACKET: usize = 64;

#[derive(Default)]
struct State {
    /// Bulk endpoints, in and out.
    data_in: Option<EndpointAddress>,
    data_out: Option<EndpointAddress>,
    /// The packet that waits for the host's next IN token.
    waiting: Option<Vec<u8>>,
    to_host: Vec<u8>,
    packets: Vec<usize>,
    from_host: VecDeque<Vec<u8>>,
}

#[derive(Clone, Default)]
struct Controller(Arc<Mutex<State>>);

impl Controller {
    /// An IN token: the host takes the waiting packet.
    fn token(&self) {
        let mut state = self.0.lock().unwrap();
        if let Some(packet) = state.waiting.take() {
            state.packets.push(packet.len());
            state.to_host.extend(packet);
        }
    }
}

impl UsbBus for Controller {
    fn alloc_ep(
        &mut self,
        direction: UsbDirection,
        _: Option<EndpointAddress>,
        kind: EndpointType,
        size: u16,
        _: u8,
    ) -> Result<EndpointAddress> {
        let state = &mut self.0.lock().unwrap();
        if kind != EndpointType::Bulk {
            return Ok(EndpointAddress::from_parts(if kind == EndpointType::Control { 0 } else { 1 }, direction));
        }
        assert_eq!(usize::from(size), PACKET);
        let address = EndpointAddress::from_parts(2, direction);
        *(if direction == UsbDirection::In { &mut state.data_in } else { &mut state.data_out }) = Some(address);
        Ok(address)
    }

    fn write(&self, address: EndpointAddress, packet: &[u8]) -> Result<usize> {
        let mut state = self.0.lock().unwrap();
        assert_eq!(Some(address), state.data_in);
        if state.waiting.is_some() {
            return Err(UsbError::WouldBlock);
        }
        assert!(packet.len() <= PACKET);
        state.waiting = Some(packet.to_vec());
        Ok(packet.len())
    }

    fn read(&self, address: EndpointAddress, buffer: &mut [u8]) -> Result<usize> {
        let mut state = self.0.lock().unwrap();
        assert_eq!(Some(address), state.data_out);
        let packet = state.from_host.pop_front().ok_or(UsbError::WouldBlock)?;
        buffer[..packet.len()].copy_from_slice(&packet);
        Ok(packet.len())
    }

    fn poll(&self) -> PollResult {
        PollResult::None
    }

    fn enable(&mut self) {}
    fn reset(&self) {}
    fn set_device_address(&self, _: u8) {}
    fn set_stalled(&self, _: EndpointAddress, _: bool) {}
    fn is_stalled(&self, _: EndpointAddress) -> bool {
        false
    }
    fn suspend(&self) {}
    fn resume(&self) {}
}

#[test]
fn bytes_pass_in_both_directions_and_never_wait() {
    let controller = Controller::default();
    let bus = UsbBusAllocator::new(controller.clone());
    let port = SerialPort::new_with_store(&bus, [0; 128], [0; 512]);
    let device = UsbDeviceBuilder::new(&bus, UsbVidPid(0x16C0, 0x27E1)).device_class(USB_CLASS_CDC).build();
    let mut link = UsbSerial::new(device, port);

    let mut bytes = [0; 100];
    assert_eq!(link.read(&mut bytes).unwrap(), 0);
    controller.0.lock().unwrap().from_host.extend([vec![1, 2, 3], vec![4]]);
    let length = link.read(&mut bytes).unwrap();
    let more = link.read(&mut bytes[length..]).unwrap();
    assert_eq!(bytes[..length + more], [1, 2, 3, 4]);

    // A host that does not listen: the port takes what it has room for, then nothing.
    let sent: Vec<u8> = (0..5000u32).map(|i| (i * 7) as u8).collect();
    let mut at = 0;
    loop {
        let written = link.write(&sent[at..]).unwrap();
        at += written;
        if written == 0 {
            break;
        }
    }
    assert!((PACKET..=512 + PACKET).contains(&at), "{at}");
    // It listens again, and gets everything, in order.
    while controller.0.lock().unwrap().to_host.len() < sent.len() {
        controller.token();
        // Reading alone moves the rest.
        at += if at < sent.len() { link.write(&sent[at..]).unwrap() } else { link.read(&mut bytes).unwrap() };
    }
    let state = controller.0.lock().unwrap();
    assert_eq!(state.to_host, sent);
    assert!(state.packets.iter().filter(|length| **length == PACKET).count() >= sent.len() / PACKET - 8, "{:?}", state.packets);
}
