//! What every board does once its clocks, pins and buses are there.
#![no_std]
#![forbid(unsafe_code)]
#![warn(missing_docs)]

#[cfg(feature = "dwt")]
mod cycles;
#[cfg(feature = "usb")]
mod usb;

#[cfg(feature = "dwt")]
pub use cycles::{CycleClock, CycleDelay};
#[cfg(feature = "usb")]
pub use usb::{serial_port, usb_device};

use edge_camera::transport::Transport;
use edge_camera::{Camera, CameraError, Event, Output, Streamer};

/// Payload bytes of a chunk: 4 % of the link are headers, a flipped bit costs a kilobyte.
const CHUNK: u16 = 1024;

/// Streams what the host asks for, for ever; at first `output`, from the start or once told to. Returns only if the
/// camera cannot be set up. `session` differs from the last start's, as far as the board can arrange that.
pub fn run<C: Camera, T: Transport, const N: usize>(
    camera: C,
    buffers: [&'static mut [u8; N]; 2],
    output: Output,
    start: bool,
    session: u8,
    link: &mut T,
    now_us: impl Fn() -> u64,
) -> CameraError {
    let mut streamer = match Streamer::new(camera, buffers.map(|b| &mut b[..]), output, CHUNK, session) {
        Ok(streamer) => streamer,
        Err(error) => return error,
    };
    streamer.run(start);
    defmt::info!("ready: {}", output);
    loop {
        // A link that fails is tried again: the host may be away.
        match streamer.poll(now_us(), link) {
            Ok(None) | Err(_) => {}
            Ok(Some(Event::Command(command, status))) => defmt::info!("{}: {}", command, status),
            Ok(Some(other)) => defmt::warn!("{}", other),
        }
    }
}

/// The camera does not answer: says so, and starts the board again a second later.
pub fn restart(error: CameraError, delay: &mut impl embedded_hal::delay::DelayNs) -> ! {
    defmt::error!("{}; starting again", error);
    delay.delay_ms(1000);
    cortex_m::peripheral::SCB::sys_reset()
}
