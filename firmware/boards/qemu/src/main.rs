//! The camera: a simulated ArduCAM Mini with the real driver, streamed over UART 0. Logs go over semihosting.
#![no_std]
#![no_main]

use cortex_m_rt::entry;
use edge_board_qemu::{PICTURES, Timer, TimerDelay, Uart};
use edge_camera::transport::Io;
use edge_camera::{ArduCam, Event, Module, Output, Streamer};
use edge_simulator::ArduCamSim;
use edge_wire::PixelFormat;

/// Status reads of a capture, some 25 ms.
const EXPOSURE: u32 = 2000;
/// Bytes of each frame buffer: QQVGA in RGB565.
const BUFFER: usize = 160 * 120 * 2;
const CHUNK: u16 = 1024;

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
    let mut streamer = match Streamer::new(camera, [[0; BUFFER], [0; BUFFER]], output, CHUNK, 0) {
        Ok(streamer) => streamer,
        Err(error) => defmt::panic!("{}", error),
    };
    defmt::info!("ready: {}", output);
    let mut link = Io(Uart::start());
    loop {
        let Ok(event) = streamer.poll(timer.now_us(), &mut link);
        match event {
            None => {}
            Some(Event::Command(command, status)) => defmt::info!("{}: {}", command, status),
            Some(other) => defmt::warn!("{}", other),
        }
    }
}
