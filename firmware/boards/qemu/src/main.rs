//! The camera: a simulated ArduCAM Mini with the real driver, streamed over UART 0. Logs go over semihosting.
#![no_std]
#![no_main]

use cortex_m_rt::entry;
use edge_board_qemu::{PICTURES, Timer, TimerDelay, Uart};
use edge_camera::transport::Io;
use edge_camera::{ArduCam, Module, Output};
use edge_simulator::ArduCamSim;
use edge_wire::PixelFormat;
use static_cell::ConstStaticCell;

/// Status reads of a capture, some 25 ms.
const EXPOSURE: u32 = 2000;
/// QQVGA in RGB565.
const BUFFER: usize = 160 * 120 * 2;
static BUFFERS: [ConstStaticCell<[u8; BUFFER]>; 2] = [const { ConstStaticCell::new([0; BUFFER]) }; 2];

#[entry]
fn main() -> ! {
    let timer = Timer::start();
    let sensor = ArduCamSim::new(&PICTURES, EXPOSURE);
    defmt::info!("edge camera on QEMU mps2-an385, {} pictures", PICTURES.len());
    let camera = match ArduCam::new(sensor.i2c(), sensor.spi(), TimerDelay(&timer), Module::Mini2Mp) {
        Ok(camera) => camera,
        Err(error) => defmt::panic!("{}", error),
    };
    defmt::info!("OV2640 found");
    let output = Output { format: PixelFormat::Jpeg, width: 160, height: 120 };
    let buffers = BUFFERS.each_ref().map(|b| b.take());
    let error = edge_board::run(camera, buffers, output, false, 0, &mut Io(Uart::start()), || timer.now_us());
    defmt::panic!("{}", error)
}
