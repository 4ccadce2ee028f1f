//! STM32F407 boards with a camera header: OV7670 on DCMI and I2C2, USB to the host, logs over RTT. Wiring: firmware/README.md.
#![no_std]
#![no_main]

mod dcmi;

use cortex_m_rt::entry;
use dcmi::{PICTURE, Port};
use defmt_rtt as _;
use edge_board::{CycleClock, restart, run, serial_port, usb_device};
use edge_camera::transport::UsbSerial;
use edge_camera::{Output, Ov7670};
use edge_wire::PixelFormat;
use panic_probe as _;
use static_cell::ConstStaticCell;
use stm32f4xx_hal::i2c::I2c;
use stm32f4xx_hal::otg_fs::{USB, UsbBus};
use stm32f4xx_hal::pac;
use stm32f4xx_hal::prelude::*;
use stm32f4xx_hal::rcc::Config;

/// 120×120 pixels in RGB565, twice, beside the picture that the camera port fills.
const BUFFER: usize = 120 * 120 * 2;
static BUFFERS: [ConstStaticCell<[u8; BUFFER]>; 2] = [const { ConstStaticCell::new([0; BUFFER]) }; 2];
static PORT: ConstStaticCell<[u32; PICTURE / 4]> = ConstStaticCell::new([0; PICTURE / 4]);
static ENDPOINTS: ConstStaticCell<[u32; 1024]> = ConstStaticCell::new([0; 1024]);

#[entry]
fn main() -> ! {
    let (Some(dp), Some(cp)) = (pac::Peripherals::take(), cortex_m::Peripherals::take()) else { defmt::panic!("started twice") };
    let mut rcc = dp.RCC.freeze(Config::hse(8.MHz()).sysclk(96.MHz()).require_pll48clk());
    let clock = CycleClock::start(cp.DCB, cp.DWT, rcc.clocks.sysclk().raw());
    let (gpioa, gpiob) = (dp.GPIOA.split(&mut rcc), dp.GPIOB.split(&mut rcc));
    let (gpioc, gpioe) = (dp.GPIOC.split(&mut rcc), dp.GPIOE.split(&mut rcc));

    // The sensor's clock: the system's by five, 19.2 MHz (RM0090, 7.3.3); it takes 10 to 48.
    // SAFETY: fields that nobody else writes.
    unsafe { &*pac::RCC::ptr() }.cfgr().modify(|_, w| w.mco1().pll().mco1pre().div5());
    let _clock_out = gpioa.pa8.into_alternate::<0>().speed(stm32f4xx_hal::gpio::Speed::High);
    // HREF, PCLK, VSYNC; D0 to D7 (STM32F407's datasheet, table 9).
    let _signals = (gpioa.pa4.into_alternate::<13>(), gpioa.pa6.into_alternate::<13>(), gpiob.pb7.into_alternate::<13>());
    let _low = (gpioc.pc6.into_alternate::<13>(), gpioc.pc7.into_alternate::<13>(), gpioc.pc8.into_alternate::<13>());
    let _middle = (gpioc.pc9.into_alternate::<13>(), gpioc.pc11.into_alternate::<13>(), gpiob.pb6.into_alternate::<13>());
    let _high = (gpioe.pe5.into_alternate::<13>(), gpioe.pe6.into_alternate::<13>());
    let i2c = I2c::new(dp.I2C2, (gpiob.pb10, gpiob.pb11), 100.kHz(), &mut rcc);

    let camera = match Ov7670::new(i2c, Port::new(dp.DCMI, dp.DMA2, PORT.take()), clock.delay()) {
        Ok(camera) => camera,
        Err(error) => restart(error, &mut clock.delay()),
    };
    let usb = USB::new((dp.OTG_FS_GLOBAL, dp.OTG_FS_DEVICE, dp.OTG_FS_PWRCLK), (gpioa.pa11, gpioa.pa12), &rcc.clocks);
    let bus = UsbBus::new(usb, ENDPOINTS.take());
    let port = serial_port::<_, 512>(&bus);
    let mut link = UsbSerial::new(usb_device(&bus, "f407"), port);
    let output = Output { format: PixelFormat::Rgb565, width: 120, height: 120 };
    // As on the Black Pill, a restart shows by its sequence.
    let error = run(camera, BUFFERS.each_ref().map(|b| b.take()), output, true, 0, &mut link, || clock.now_us());
    restart(error, &mut clock.delay())
}
