//! CMSDK APB timer 0 (DDI 0479, 4.2): counts down from 2³² − 1 at the system clock.

use crate::CLOCK;
use core::cell::Cell;
use embedded_hal::delay::DelayNs;

const BASE: usize = 0x4000_0000;
const CTRL: *mut u32 = BASE as *mut u32;
const VALUE: *mut u32 = (BASE + 4) as *mut u32;
const RELOAD: *mut u32 = (BASE + 8) as *mut u32;

/// The timer, extended to 64 bits by being read more often than every 171 seconds.
pub struct Timer {
    last: Cell<u32>,
    ticks: Cell<u64>,
}

impl Timer {
    /// Starts it. There is one.
    pub fn start() -> Self {
        // SAFETY: registers of the timer, which nothing else uses.
        unsafe {
            RELOAD.write_volatile(u32::MAX);
            VALUE.write_volatile(u32::MAX);
            CTRL.write_volatile(1);
        }
        Timer { last: Cell::new(u32::MAX), ticks: Cell::new(0) }
    }

    /// Ticks of the system clock since the start.
    pub fn ticks(&self) -> u64 {
        // SAFETY: a register without side effects.
        let value = unsafe { VALUE.read_volatile() };
        self.ticks.set(self.ticks.get() + u64::from(self.last.get().wrapping_sub(value)));
        self.last.set(value);
        self.ticks.get()
    }

    /// Microseconds since the start.
    pub fn now_us(&self) -> u64 {
        self.ticks() / u64::from(CLOCK / 1_000_000)
    }
}

/// Waits.
pub struct TimerDelay<'t>(pub &'t Timer);

impl DelayNs for TimerDelay<'_> {
    fn delay_ns(&mut self, ns: u32) {
        let until = self.0.ticks() + u64::from(ns) * u64::from(CLOCK / 1_000_000) / 1000;
        while self.0.ticks() < until {}
    }
}
