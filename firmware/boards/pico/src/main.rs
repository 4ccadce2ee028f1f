//! Raspberry Pi Pico: ArduCAM Mini 2MP on SPI0 and I2C0, USB to the host, logs over RTT. Wiring: firmware/README.md.
#![no_std]
#![no_main]

use defmt_rtt as _;
use edge_board::{restart, run, serial_port, usb_device};
use edge_camera::transport::UsbSerial;
use edge_camera::{ArduCam, Module, Output};
use edge_wire::PixelFormat;
use embedded_hal::spi::MODE_0;
use embedded_hal_bus::spi::ExclusiveDevice;
use panic_probe as _;
use rp2040_hal::clocks::{Clock, init_clocks_and_plls};
use rp2040_hal::fugit::RateExtU32;
use rp2040_hal::gpio::{FunctionI2C, FunctionSpi, Pin, Pins, PullUp};
use rp2040_hal::i2c::I2C;
use rp2040_hal::rosc::RingOscillator;
use rp2040_hal::spi::Spi;
use rp2040_hal::usb::UsbBus;
use rp2040_hal::{Sio, Timer, Watchdog, pac};
use static_cell::ConstStaticCell;
use usb_device::bus::UsbBusAllocator;

/// Second stage of the boot ROM: what sets up the flash of the Pico (W25Q080).
#[unsafe(link_section = ".boot2")]
#[unsafe(no_mangle)]
#[used]
pub static BOOT2_FIRMWARE: [u8; 256] = rp2040_boot2::BOOT_LOADER_W25Q080;

const CRYSTAL: u32 = 12_000_000;
/// Half of RAM less what else there is: 224×224 in RGB565 would be 100,352.
const BUFFER: usize = 100 << 10;
static BUFFERS: [ConstStaticCell<[u8; BUFFER]>; 2] = [const { ConstStaticCell::new([0; BUFFER]) }; 2];

#[rp2040_hal::entry]
fn main() -> ! {
    let Some(mut pac) = pac::Peripherals::take() else { defmt::panic!("started twice") };
    let mut watchdog = Watchdog::new(pac.WATCHDOG);
    let clocks = init_clocks_and_plls(CRYSTAL, pac.XOSC, pac.CLOCKS, pac.PLL_SYS, pac.PLL_USB, &mut pac.RESETS, &mut watchdog);
    let Ok(clocks) = clocks else { defmt::panic!("the crystal or a PLL does not start") };
    let mut timer = Timer::new(pac.TIMER, &mut pac.RESETS, &clocks);
    let oscillator = RingOscillator::new(pac.ROSC).initialize();
    let session = (0..8).fold(0, |bits, _| bits << 1 | u8::from(oscillator.get_random_bit()));
    let pins = Pins::new(pac.IO_BANK0, pac.PADS_BANK0, Sio::new(pac.SIO).gpio_bank0, &mut pac.RESETS);

    let sda: Pin<_, FunctionI2C, PullUp> = pins.gpio4.reconfigure();
    let scl: Pin<_, FunctionI2C, PullUp> = pins.gpio5.reconfigure();
    let system = clocks.system_clock.freq();
    let i2c = I2C::i2c0(pac.I2C0, sda, scl, 100.kHz(), &mut pac.RESETS, system);
    let (miso, sck, mosi) = (pins.gpio16, pins.gpio18, pins.gpio19);
    let lines = (mosi.into_function::<FunctionSpi>(), miso.into_function::<FunctionSpi>(), sck.into_function::<FunctionSpi>());
    let bus = Spi::<_, _, _, 8>::new(pac.SPI0, lines).init(&mut pac.RESETS, clocks.peripheral_clock.freq(), 8.MHz(), MODE_0);
    let select = pins.gpio17.into_push_pull_output_in_state(rp2040_hal::gpio::PinState::High);
    let Ok(spi) = ExclusiveDevice::new(bus, select, timer);

    let camera = match ArduCam::new(i2c, spi, timer, Module::Mini2Mp) {
        Ok(camera) => camera,
        Err(error) => restart(error, &mut timer),
    };
    let bus = UsbBusAllocator::new(UsbBus::new(pac.USBCTRL_REGS, pac.USBCTRL_DPRAM, clocks.usb_clock, true, &mut pac.RESETS));
    let port = serial_port::<_, 512>(&bus);
    let mut link = UsbSerial::new(usb_device(&bus, "pico"), port);
    let output = Output { format: PixelFormat::Rgb565, width: 224, height: 224 };
    let error = run(camera, BUFFERS.each_ref().map(|b| b.take()), output, true, session, &mut link, || timer.get_counter().ticks());
    restart(error, &mut timer)
}
