//! Time by the core's cycle counter (ARMv7-M, C1.8: DWT_CYCCNT).

use core::cell::Cell;
use cortex_m::peripheral::{DCB, DWT};
use embedded_hal::delay::DelayNs;

/// Counts on while it is read more often than the counter wraps: every 44 s at 96 MHz.
pub struct CycleClock {
    per_us: u32,
    last: Cell<u32>,
    cycles: Cell<u64>,
}

impl CycleClock {
    /// Starts the counter of a core that runs at `hz`.
    pub fn start(mut dcb: DCB, mut dwt: DWT, hz: u32) -> Self {
        dcb.enable_trace();
        dwt.enable_cycle_counter();
        CycleClock { per_us: hz / 1_000_000, last: Cell::new(DWT::cycle_count()), cycles: Cell::new(0) }
    }

    /// Microseconds since the start.
    pub fn now_us(&self) -> u64 {
        let count = DWT::cycle_count();
        self.cycles.set(self.cycles.get() + u64::from(count.wrapping_sub(self.last.get())));
        self.last.set(count);
        self.cycles.get() / u64::from(self.per_us)
    }

    /// Waits by the same counter.
    pub fn delay(&self) -> CycleDelay {
        CycleDelay { per_us: self.per_us }
    }
}

/// Waits.
#[derive(Clone, Copy)]
pub struct CycleDelay {
    per_us: u32,
}

impl DelayNs for CycleDelay {
    fn delay_ns(&mut self, ns: u32) {
        let mut rest = (u64::from(ns) * u64::from(self.per_us)).div_ceil(1000);
        let mut last = DWT::cycle_count();
        while rest > 0 {
            let now = DWT::cycle_count();
            rest = rest.saturating_sub(u64::from(now.wrapping_sub(last)));
            last = now;
        }
    }
}
