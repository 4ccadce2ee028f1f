//! What sources of frames without headers share: counting, numbering, delivering.

use super::camera::{CameraFrame, Delivery};
use super::mjpeg::{Found, Scanner};
use super::raw::{Layout, Memory, RawFormat};
use edge_wire::{Counters, FrameInfo};
use std::time::{Duration, Instant};

/// Bytes asked for at a time.
pub(super) const READ: usize = 1 << 16;

/// Counts and numbers frames.
pub(super) struct Tally {
    pub counters: Counters,
    sequence: u32,
    /// What times are told from, where the sender tells none.
    since: Instant,
}

impl Tally {
    pub fn new() -> Self {
        Tally { counters: Counters::default(), sequence: 0, since: Instant::now() }
    }

    /// The next frame, without its payload. `timestamp` is the sender's.
    pub fn frame(&mut self, info: FrameInfo, captured: Instant, timestamp: Option<Duration>) -> CameraFrame {
        let time = timestamp.unwrap_or_else(|| captured.saturating_duration_since(self.since));
        let timestamp_us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let info = FrameInfo { sequence: self.sequence, timestamp_us: timestamp_us as u32, ..info };
        self.sequence = self.sequence.wrapping_add(1);
        self.counters.frames_ok += 1;
        CameraFrame { info, payload: Vec::new(), timestamp_us, captured, received: Instant::now() }
    }
}

/// When a frame was captured, and its sender's time, from the text before it and when its first byte came.
pub(super) type Stamp<'a> = &'a mut dyn FnMut(&[u8], Instant) -> (Instant, Option<Duration>);

/// A stream of JPEG files.
pub(super) struct Jpegs {
    scanner: Scanner,
    /// When the first byte of the file being received came.
    begun: Option<Instant>,
    /// Bytes that streams before this one skipped.
    skipped_before: u64,
}

impl Jpegs {
    /// A stream that begins after what was counted.
    pub fn new(tally: &Tally) -> Self {
        Jpegs { scanner: Scanner::new(), begun: None, skipped_before: tally.counters.bytes_skipped }
    }

    /// Takes what has come, delivers what became whole.
    pub fn push(&mut self, bytes: &[u8], tally: &mut Tally, delivery: &Delivery, stamp: Stamp) {
        let now = Instant::now();
        tally.counters.bytes += bytes.len() as u64;
        self.scanner.push(bytes);
        while let Some(found) = self.scanner.next() {
            self.take(found, now, tally, delivery, stamp);
        }
        self.begun = self.scanner.has_begun().then(|| self.begun.unwrap_or(now));
        self.count(tally, delivery);
    }

    fn take(&mut self, found: Found, now: Instant, tally: &mut Tally, delivery: &Delivery, stamp: Stamp) {
        match found {
            Found::Incomplete => tally.counters.frames_incomplete += 1,
            Found::Corrupted => tally.counters.frames_corrupted += 1,
            Found::File => self.deliver(now, tally, delivery, stamp),
        }
        self.begun = None;
    }

    fn deliver(&self, now: Instant, tally: &mut Tally, delivery: &Delivery, stamp: Stamp) {
        let (file, (width, height), before) = self.scanner.file();
        tally.counters.bytes_accepted += file.len() as u64;
        let Ok(info) = FrameInfo::jpeg(width, height, u32::try_from(file.len()).unwrap_or(u32::MAX)) else {
            tally.counters.frames_corrupted += 1;
            return;
        };
        let (captured, timestamp) = stamp(before, self.begun.unwrap_or(now));
        let mut frame = tally.frame(info, captured, timestamp);
        frame.payload = delivery.memory();
        frame.payload.extend_from_slice(file);
        tally.counters.bytes_skipped = self.skipped_before + self.scanner.skipped();
        delivery.deliver(frame, tally.counters);
    }

    /// The stream is over.
    pub fn finish(&mut self, tally: &mut Tally, delivery: &Delivery, stamp: Stamp) {
        let now = Instant::now();
        while let Some(found) = self.scanner.finish() {
            self.take(found, now, tally, delivery, stamp);
        }
        self.count(tally, delivery);
    }

    fn count(&self, tally: &mut Tally, delivery: &Delivery) {
        tally.counters.bytes_skipped = self.skipped_before + self.scanner.skipped();
        delivery.count(tally.counters);
    }
}

/// A stream of raw frames, one right after the other.
pub(super) struct Pixels {
    format: RawFormat,
    memory: Vec<u8>,
    filled: usize,
    begun: Option<Instant>,
}

impl Pixels {
    pub fn new(format: RawFormat) -> Self {
        debug_assert!(format.layout != Layout::Jpeg);
        Pixels { format, memory: Vec::new(), filled: 0, begun: None }
    }

    /// Where the next bytes go; never empty.
    pub fn space(&mut self) -> &mut [u8] {
        self.memory.resize(self.format.length(), 0);
        &mut self.memory[self.filled..]
    }

    /// `n` bytes of [`Pixels::space`] have come.
    pub fn filled(&mut self, n: usize, tally: &mut Tally, delivery: &Delivery) {
        let captured = *self.begun.get_or_insert_with(Instant::now);
        self.filled += n;
        tally.counters.bytes += n as u64;
        let length = self.format.length();
        if self.filled < length {
            return;
        }
        (self.filled, self.begun) = (0, None);
        // Checked when the format was made.
        let Ok(info) = self.format.info(length) else { return };
        tally.counters.bytes_accepted += length as u64;
        let frame = tally.frame(info, captured, None);
        let full = std::mem::replace(&mut self.memory, delivery.raw_memory());
        delivery.deliver_raw(frame, (self.format, Memory::Owned(full)), tally.counters);
    }

    /// The stream is over.
    pub fn finish(&mut self, tally: &mut Tally, delivery: &Delivery) {
        tally.counters.frames_incomplete += u64::from(self.filled > 0);
        tally.counters.bytes_skipped += self.filled as u64;
        (self.filled, self.begun) = (0, None);
        delivery.count(tally.counters);
    }
}
