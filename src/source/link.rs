//! The frame link of our own camera firmware (`edge-wire`), over whatever carries bytes.

use super::CameraOptions;
use super::address::{Address, Connection};
use super::camera::{CameraFrame, Delivery, Source, TICK};
use super::clock::SenderClock;
use edge_wire::{CHUNK_BUFFER, Event, Frame, FrameInfo, MAX_FRAME, Parser, Timeline};
use std::io;
use std::time::{Duration, Instant};

/// Bytes asked for at a time.
const READ: usize = 1 << 16;
/// After a silence of this length, what is missing of a frame will not come.
const SILENCE: Duration = Duration::from_secs(1);

/// A link and its parser, which outlives connections.
pub(super) struct Link {
    address: Address,
    connection: Option<Connection>,
    parser: Parser<Vec<u8>, Vec<u8>>,
    clocks: Clocks,
}

impl Link {
    pub fn new(address: &Address, options: &CameraOptions) -> io::Result<Self> {
        options.without_format("the frame link says its own")?;
        options.without_controls("a frame link's camera is set by its firmware")?;
        options.without_authorization("a frame link has none")?;
        // Memory is constant: one frame of the largest size, touched only as far as frames need it.
        let parser = Parser::new(vec![0; 4 * CHUNK_BUFFER], vec![0; MAX_FRAME as usize]).map_err(io::Error::other)?;
        Ok(Link { address: address.clone(), connection: None, parser, clocks: Clocks::default() })
    }

    /// Gives up what is incomplete.
    fn finish(&mut self, delivery: &Delivery) {
        while let Some(event) = self.parser.finish() {
            let frame = self.clocks.frame(event, Instant::now(), delivery);
            deliver(frame, &self.parser, delivery);
        }
        delivery.count(self.parser.counters());
    }

    /// Reads to the end.
    fn read_all(&mut self, connection: &Connection, delivery: &Delivery) -> io::Result<()> {
        let mut buffer = vec![0; READ];
        let mut last_byte = Instant::now();
        // When the first byte of the frame being received came.
        let mut begun = None;
        while !delivery.stopped() {
            let Some(n) = connection.read(&mut buffer, TICK)? else {
                if last_byte.elapsed() > SILENCE {
                    self.finish(delivery);
                    begun = None;
                }
                continue;
            };
            if n == 0 {
                return Ok(());
            }
            last_byte = Instant::now();
            let mut bytes = &buffer[..n];
            while let Some(event) = self.parser.push(&mut bytes) {
                let frame = self.clocks.frame(event, begun.unwrap_or(last_byte), delivery);
                deliver(frame, &self.parser, delivery);
                begun = Some(last_byte);
            }
            // What is left in the parser, if anything, belongs to the next frame.
            let counters = self.parser.counters();
            let held = counters.bytes - counters.bytes_accepted - counters.bytes_skipped;
            begun = if held == 0 && begun == Some(last_byte) { None } else { begun.or(Some(last_byte)) };
            delivery.count(counters);
        }
        Ok(())
    }
}

impl Source for Link {
    fn open(&mut self) -> io::Result<()> {
        self.connection = Some(self.address.open()?);
        Ok(())
    }

    fn read(&mut self, delivery: &mut Delivery) -> io::Result<()> {
        let Some(connection) = self.connection.take() else { return Ok(()) };
        let result = self.read_all(&connection, delivery);
        self.finish(delivery);
        result
    }

    fn comes_back(&self) -> bool {
        self.address.comes_back()
    }

    fn is_regular(&self) -> bool {
        self.connection.as_ref().is_some_and(Connection::is_regular)
    }
}

fn deliver(frame: Option<CameraFrame>, parser: &Parser<Vec<u8>, Vec<u8>>, delivery: &Delivery) {
    match frame {
        Some(frame) => delivery.deliver(frame, parser.counters()),
        None => delivery.count(parser.counters()),
    }
}

/// The sender's clock, as far as it is known.
#[derive(Default)]
struct Clocks {
    timeline: Timeline,
    clock: SenderClock,
    last: Option<FrameInfo>,
}

impl Clocks {
    /// A whole frame's copy; `None` for one that did not arrive whole, which is in the counters.
    fn frame(&mut self, event: Event, first_byte: Instant, delivery: &Delivery) -> Option<CameraFrame> {
        let Event::Frame(Frame { info, payload }) = event else { return None };
        let received = Instant::now();
        // A parser gives frames in order, so that anything else is a sender that began anew.
        let follows = |last: FrameInfo| last.session == info.session && info.sequence.wrapping_sub(last.sequence) as i32 > 0;
        if !self.last.replace(info).is_none_or(follows) {
            self.timeline = Timeline::default();
            self.clock.reset();
        }
        let timestamp_us = self.timeline.extend(info.timestamp_us);
        let captured = self.clock.captured(first_byte, timestamp_us);
        let mut memory = delivery.memory();
        memory.extend_from_slice(payload);
        Some(CameraFrame { info, payload: memory, timestamp_us, captured, received })
    }
}
