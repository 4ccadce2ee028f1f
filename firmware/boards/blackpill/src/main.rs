//! WeAct Black Pill (STM32F411CE): ArduCAM Mini 2MP on SPI1 and I2C1, USB to the host, logs over RTT. Wiring: firmware/README.md.
#![no_std]
#![no_main]

use cortex_m_rt::entry;
use defmt_rtt as _;
use edge_board::{CycleClock, restart, run, serial_port, usb_device};
use edge_camera::transport::UsbSerial;
use edge_camera::{ArduCam, Module, Output};
use edge_wire::PixelFormat;
use embedded_hal::spi::MODE_0;
use embedded_hal_bus::spi::ExclusiveDevice;
use panic_probe as _;
use static_cell::ConstStaticCell;
use stm32f4xx_hal::i2c::I2c;
use stm32f4xx_hal::otg_fs::{USB, UsbBus};
use stm32f4xx_hal::pac;
use stm32f4xx_hal::prelude::*;
use stm32f4xx_hal::rcc::Config;
use stm32f4xx_hal::spi::Spi;

/// QQVGA in RGB565, twice, in 128 KiB of RAM.
const BUFFER: usize = 160 * 120 * 2;
static BUFFERS: [ConstStaticCell<[u8; BUFFER]>; 2] = [const { ConstStaticCell::new([0; BUFFER]) }; 2];
static ENDPOINTS: ConstStaticCell<[u32; 1024]> = ConstStaticCell::new([0; 1024]);

#[entry]
fn main() -> ! {
    let (Some(dp), Some(cp)) = (pac::Peripherals::take(), cortex_m::Peripherals::take()) else { defmt::panic!("started twice") };
    let mut rcc = dp.RCC.freeze(Config::hse(25.MHz()).sysclk(96.MHz()).require_pll48clk());
    let clock = CycleClock::start(cp.DCB, cp.DWT, rcc.clocks.sysclk().raw());
    let (gpioa, gpiob) = (dp.GPIOA.split(&mut rcc), dp.GPIOB.split(&mut rcc));

    let i2c = I2c::new(dp.I2C1, (gpiob.pb6, gpiob.pb7), 100.kHz(), &mut rcc);
    let bus = Spi::new(dp.SPI1, (Some(gpioa.pa5), Some(gpioa.pa6), Some(gpioa.pa7)), MODE_0, 8.MHz(), &mut rcc);
    let mut select = gpioa.pa4.into_push_pull_output();
    select.set_high();
    let Ok(spi) = ExclusiveDevice::new(bus, select, clock.delay());

    let camera = match ArduCam::new(i2c, spi, clock.delay(), Module::Mini2Mp) {
        Ok(camera) => camera,
        Err(error) => restart(error, &mut clock.delay()),
    };
    let usb = USB::new((dp.OTG_FS_GLOBAL, dp.OTG_FS_DEVICE, dp.OTG_FS_PWRCLK), (gpioa.pa11, gpioa.pa12), &rcc.clocks);
    let bus = UsbBus::new(usb, ENDPOINTS.take());
    let port = serial_port::<_, 512>(&bus);
    let mut link = UsbSerial::new(usb_device(&bus, "blackpill"), port);
    let output = Output { format: PixelFormat::Rgb565, width: 120, height: 120 };
    // No random numbers in this chip: a restart shows by its sequence.
    let error = run(camera, BUFFERS.each_ref().map(|b| b.take()), output, true, 0, &mut link, || clock.now_us());
    restart(error, &mut clock.delay())
}
