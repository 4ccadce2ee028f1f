//! The parallel port that a simulated sensor drives.

use crate::bus::Faults;
use edge_camera::{ParallelPort, PortError};

/// A sensor's output: its frame's length, and any byte of it.
pub(crate) trait Output {
    fn faults(&self) -> &Faults;
    /// `None`: no pixel clock.
    fn length(&self) -> Option<u32>;
    fn byte(&self, at: u32) -> u8;
}

/// A port wired to a simulated sensor.
pub struct Port<'s, S> {
    sensor: &'s S,
    begun: Option<u32>,
    polls: u32,
    at: u32,
}

impl<'s, S> Port<'s, S> {
    pub(crate) fn new(sensor: &'s S) -> Self {
        Port { sensor, begun: None, polls: 0, at: 0 }
    }
}

#[allow(private_bounds)]
impl<S: Output> ParallelPort for Port<'_, S> {
    fn begin(&mut self, length: u32) -> Result<(), PortError> {
        (self.begun, self.polls, self.at) = (Some(length), 0, 0);
        Ok(())
    }

    fn poll(&mut self) -> Result<bool, PortError> {
        self.polls += 1;
        let (Some(asked), Some(length)) = (self.begun, self.sensor.length()) else { return Ok(false) };
        let faults = self.sensor.faults();
        if faults.stuck.get() || self.polls < 3 {
            return Ok(false);
        }
        if length.saturating_sub(faults.short.get()) < asked { Err(PortError::Short) } else { Ok(true) }
    }

    fn read(&mut self, out: &mut [u8]) -> Result<(), PortError> {
        for byte in out {
            *byte = self.sensor.byte(self.at);
            self.at += 1;
        }
        Ok(())
    }
}
