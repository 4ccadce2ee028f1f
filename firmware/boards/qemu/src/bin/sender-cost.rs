//! Instructions per byte of the sender: with `-icount shift=0` an instruction takes a nanosecond of QEMU's time, a tick
//! of the 25 MHz timer 40 of them. Cycles on a real Cortex-M3 are more: QEMU knows neither wait states nor pipelines.
#![no_std]
#![no_main]

use core::convert::Infallible;
use cortex_m_rt::entry;
use cortex_m_semihosting::debug::EXIT_SUCCESS;
use edge_board_qemu::{PICTURES, Timer, TimerDelay, exit};
use edge_camera::transport::Transport;
use edge_camera::{ArduCam, Module, Output, Streamer};
use edge_simulator::ArduCamSim;
use edge_wire::{Chunks, FrameInfo, HEADER_LEN, PixelFormat};

const INSTRUCTIONS_PER_TICK: u64 = 40;

/// Takes everything at once, as a DMA would.
struct Sink(u64);

impl Transport for Sink {
    type Error = Infallible;
    fn read(&mut self, _: &mut [u8]) -> Result<usize, Infallible> {
        Ok(0)
    }
    fn write(&mut self, bytes: &[u8]) -> Result<usize, Infallible> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }
}

/// Prints whole and hundredth instructions per byte.
fn report(what: &str, ticks: u64, bytes: u64) {
    let hundredths = 100 * ticks * INSTRUCTIONS_PER_TICK / bytes;
    let (whole, rest) = ((hundredths / 100) as u32, (hundredths % 100) as u32);
    defmt::println!("{}: {}.{:02} instructions per byte", what, whole, rest);
}

#[entry]
fn main() -> ! {
    let timer = Timer::start();
    let measure = |work: &mut dyn FnMut() -> u64| {
        let start = timer.ticks();
        let bytes = work();
        (timer.ticks() - start, bytes)
    };
    let picture = &PICTURES[0];
    let Ok(info) = FrameInfo::raw(PixelFormat::Rgb565, 160, 120) else { defmt::panic!("160×120 is a size") };
    for size in [256, 512, 1024, 4096] {
        let (ticks, bytes) = measure(&mut || {
            let mut bytes = 0;
            for _ in 0..8 {
                let Ok(chunks) = Chunks::new(info, picture.rgb565, size) else { return 1 };
                bytes += chunks.map(|c| (HEADER_LEN + c.payload.len()) as u64).sum::<u64>();
            }
            bytes
        });
        defmt::println!("chunks of {}:", size);
        report("  headers and checksums", ticks, bytes);
    }
    // The whole state machine, without the sensor: as soon as a frame is on its way, captures stop.
    let sensor = ArduCamSim::new(&PICTURES, 0);
    let Ok(camera) = ArduCam::new(sensor.i2c(), sensor.spi(), TimerDelay(&timer), Module::Mini2Mp) else { defmt::panic!("no sensor") };
    let output = Output { format: PixelFormat::Rgb565, width: 160, height: 120 };
    let Ok(mut streamer) = Streamer::new(camera, [[0; 38_400], [0; 38_400]], output, 1024, 0) else { defmt::panic!("no mode") };
    let (mut ticks, mut bytes) = (0, 0);
    for frame in 0..8 {
        let mut sink = Sink(0);
        streamer.run(true);
        while sink.0 < 1024 {
            let Ok(_) = streamer.poll(timer.now_us(), &mut sink);
        }
        streamer.run(false);
        let before = sink.0;
        let (spent, sent) = measure(&mut || {
            while streamer.statistics().sent == frame {
                let Ok(_) = streamer.poll(0, &mut sink);
            }
            sink.0 - before
        });
        (ticks, bytes) = (ticks + spent, bytes + sent);
    }
    report("all of the sender", ticks, bytes);
    exit(EXIT_SUCCESS)
}
