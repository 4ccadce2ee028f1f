//! The parallel port that a simulated sensor drives, edge by edge, and the two kinds of receivers there are.

use crate::bus::Faults;
use edge_camera::{ParallelPort, PixelClock, PortError};

/// What a receiver does with the sensor's lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Receiver {
    /// An STM32's DCMI: samples data and both synchronisation lines at the pixel clock's edges, and nowhere else. Sources: ST
    /// RM0090, 15.5 (all of them are synchronous with the pixel clock); Zephyr #94183: "camera will start but no images".
    Dcmi,
    /// Takes a byte at every edge of the pixel clock while the frame signal is off, and does not look at the line signal.
    /// Source: Zephyr #109393: NXP's SmartDMA "requires the pclk to disable during h-blank to work".
    EdgeCounter,
}

/// A frame as a sensor sends it, in edges of its pixel clock while that runs freely.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timing {
    /// Edges of a row, and those of them with data: the first ones.
    pub row: u32,
    pub active: u32,
    /// Rows of a frame: first those during the frame signal, then empty ones, then `rows` with data, then empty ones.
    pub total: u32,
    pub frame_signal: u32,
    pub first: u32,
    pub rows: u32,
    /// The pixel clock rests while there are no data.
    pub gated: bool,
}

/// What the lines hold at one edge of the pixel clock.
struct Edge {
    frame_signal: bool,
    line: bool,
    /// Of the picture.
    at: u32,
}

/// What is on the data lines between rows (seen with an OV5640: github.com/STMicroelectronics/stm32-ov5640/issues/3).
const BLANK: u8 = 0x80;

impl Timing {
    /// Edge `n` of a frame; `None` where the clock rests.
    fn edge(&self, n: u32) -> Option<Edge> {
        let (row, clock) = (n / self.row, n % self.row);
        let line = (self.first..self.first + self.rows).contains(&row) && clock < self.active;
        let edge = Edge { frame_signal: row < self.frame_signal, line, at: row.saturating_sub(self.first) * self.active + clock };
        (line || !self.gated).then_some(edge)
    }

    fn edges(&self) -> u32 {
        self.total * self.row
    }
}

/// A sensor's output: its frames' timing, and any byte of its picture.
pub(crate) trait Output {
    /// What its registers make of a frame.
    type Frame: Copy;
    fn faults(&self) -> &Faults;
    /// `None`: no pixel clock.
    fn frame(&self) -> Option<(Self::Frame, Timing)>;
    fn byte(&self, frame: &Self::Frame, at: u32) -> u8;
}

/// A port wired to a simulated sensor.
#[allow(private_bounds)]
pub struct Port<'s, S: Output> {
    sensor: &'s S,
    receiver: Receiver,
    begun: Option<u32>,
    polls: u32,
    /// Bytes that it takes of a frame, once they are counted.
    counted: Option<Option<u32>>,
    /// The frame that is read, and the edge that is next.
    frame: Option<(S::Frame, Timing, u32)>,
}

#[allow(private_bounds)]
impl<'s, S: Output> Port<'s, S> {
    pub(crate) fn new(sensor: &'s S, receiver: Receiver) -> Self {
        Port { sensor, receiver, begun: None, polls: 0, counted: None, frame: None }
    }
}

impl Receiver {
    /// Whether it takes a byte at this edge.
    fn takes(self, edge: &Edge) -> bool {
        match self {
            Self::Dcmi => edge.line && !edge.frame_signal,
            Self::EdgeCounter => !edge.frame_signal,
        }
    }

    /// Bytes that it takes of a frame; `None` if it never sees one begin.
    fn counts(self, timing: &Timing) -> Option<u32> {
        let edges = || (0..timing.edges()).filter_map(|n| timing.edge(n));
        // The DCMI must sample the frame signal, on and off; the other is told of it by an interrupt of the line itself.
        let sees_frames = self == Self::EdgeCounter || (edges().any(|e| e.frame_signal) && edges().any(|e| !e.frame_signal));
        sees_frames.then(|| edges().filter(|e| self.takes(e)).count() as u32)
    }
}

#[allow(private_bounds)]
impl<S: Output> ParallelPort for Port<'_, S> {
    fn pixel_clock(&self) -> PixelClock {
        match self.receiver {
            Receiver::Dcmi => PixelClock::FreeRunning,
            Receiver::EdgeCounter => PixelClock::Gated,
        }
    }

    fn begin(&mut self, length: u32) -> Result<(), PortError> {
        (self.begun, self.polls, self.counted, self.frame) = (Some(length), 0, None, None);
        Ok(())
    }

    fn poll(&mut self) -> Result<bool, PortError> {
        self.polls += 1;
        let (Some(asked), Some((frame, timing))) = (self.begun, self.sensor.frame()) else { return Ok(false) };
        let faults = self.sensor.faults();
        if faults.stuck.get() || self.polls < 3 {
            return Ok(false);
        }
        let Some(counted) = *self.counted.get_or_insert_with(|| self.receiver.counts(&timing)) else { return Ok(false) };
        if counted.saturating_sub(faults.short.get()) < asked {
            return Err(PortError::Short);
        }
        self.frame = Some((frame, timing, 0));
        Ok(true)
    }

    fn read(&mut self, out: &mut [u8]) -> Result<(), PortError> {
        let (frame, timing, next) = self.frame.as_mut().ok_or(PortError::Short)?;
        for byte in out {
            loop {
                if *next == timing.edges() {
                    return Err(PortError::Short);
                }
                let edge = timing.edge(*next);
                *next += 1;
                if let Some(edge) = edge.filter(|e| self.receiver.takes(e)) {
                    *byte = if edge.line { self.sensor.byte(frame, edge.at) } else { BLANK };
                    break;
                }
            }
        }
        Ok(())
    }
}
