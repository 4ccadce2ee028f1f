//! nRF52840 DK: ArduCAM Mini 2MP on SPIM3 and TWIM0, USB to the host, logs over RTT. Wiring: firmware/README.md.
#![no_std]
#![no_main]

use cortex_m_rt::entry;
use defmt_rtt as _;
use edge_board::{CycleClock, restart, run, serial_port, usb_device};
use edge_camera::transport::UsbSerial;
use edge_camera::{ArduCam, Module, Output};
use edge_wire::PixelFormat;
use embedded_hal_bus::spi::ExclusiveDevice;
use nrf52840_hal::clocks::Clocks;
use nrf52840_hal::gpio::{Level, p0};
use nrf52840_hal::spim::{self, Spim};
use nrf52840_hal::twim::{self, Twim};
use nrf52840_hal::usbd::{UsbPeripheral, Usbd};
use nrf52840_hal::{Rng, pac};
use panic_probe as _;
use static_cell::ConstStaticCell;
use usb_device::bus::UsbBusAllocator;

/// Of the core.
const HZ: u32 = 64_000_000;
/// 224×224 in RGB565 is 100,352, twice, in 256 KiB of RAM.
const BUFFER: usize = 100 << 10;
static BUFFERS: [ConstStaticCell<[u8; BUFFER]>; 2] = [const { ConstStaticCell::new([0; BUFFER]) }; 2];

#[entry]
fn main() -> ! {
    let (Some(p), Some(core)) = (pac::Peripherals::take(), cortex_m::Peripherals::take()) else { defmt::panic!("started twice") };
    let clocks = Clocks::new(p.CLOCK).enable_ext_hfosc();
    let clock = CycleClock::start(core.DCB, core.DWT, HZ);
    let session = Rng::new(p.RNG).random_u8();
    let pins = p0::Parts::new(p.P0);

    let lines = twim::Pins { scl: pins.p0_27.into_floating_input().degrade(), sda: pins.p0_26.into_floating_input().degrade() };
    let i2c = Twim::new(p.TWIM0, lines, twim::Frequency::K100);
    let lines = spim::Pins {
        sck: Some(pins.p0_31.into_push_pull_output(Level::Low).degrade()),
        mosi: Some(pins.p0_30.into_push_pull_output(Level::Low).degrade()),
        miso: Some(pins.p0_29.into_floating_input().degrade()),
    };
    let bus = Spim::new(p.SPIM3, lines, spim::Frequency::M8, spim::MODE_0, 0);
    let Ok(spi) = ExclusiveDevice::new(bus, pins.p0_28.into_push_pull_output(Level::High), clock.delay());

    let camera = match ArduCam::new(i2c, spi, clock.delay(), Module::Mini2Mp) {
        Ok(camera) => camera,
        Err(error) => restart(error, &mut clock.delay()),
    };
    let bus = UsbBusAllocator::new(Usbd::new(UsbPeripheral::new(p.USBD, &clocks)));
    let port = serial_port::<_, 512>(&bus);
    let mut link = UsbSerial::new(usb_device(&bus, "nrf52840-dk"), port);
    let output = Output { format: PixelFormat::Rgb565, width: 224, height: 224 };
    let error = run(camera, BUFFERS.each_ref().map(|b| b.take()), output, true, session, &mut link, || clock.now_us());
    restart(error, &mut clock.delay())
}
