//! What QEMU's mps2-an385 has: a UART and a timer of Arm's Cortex-M System Design Kit (CMSDK, DDI 0479), both at the
//! system clock of 25 MHz, and semihosting for logs.
#![no_std]

mod timer;
mod uart;

pub use timer::{Timer, TimerDelay};
pub use uart::Uart;

include!(concat!(env!("OUT_DIR"), "/pictures.rs"));

/// Hz.
pub const CLOCK: u32 = 25_000_000;

use cortex_m_semihosting::debug;
use defmt_semihosting as _;

/// Ends QEMU.
pub fn exit(result: debug::ExitStatus) -> ! {
    debug::exit(result);
    loop {
        cortex_m::asm::wfi();
    }
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo) -> ! {
    defmt::error!("{}", defmt::Display2Format(info));
    exit(debug::EXIT_FAILURE)
}

#[defmt::panic_handler]
fn defmt_panic() -> ! {
    exit(debug::EXIT_FAILURE)
}
