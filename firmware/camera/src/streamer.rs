//! Capture → link, and the host's commands.

use crate::error::CameraError;
use crate::jpeg;
use crate::reduce::{MAX_SOURCE_WIDTH, Reducer, Reduction};
use crate::sender::Sender;
use crate::sensor::{Camera, Control, Mode};
use crate::transport::Transport;
use edge_wire::{Command, Event as Link, FrameInfo, MESSAGE_BUFFER, Message, Parser, PixelFormat, Reply, Statistics, Status, flags};

/// Bytes of a JPEG file read at a time.
const PIECE: u32 = 1024;
/// A capture that takes longer has failed: the slowest sensor here makes two pictures a second.
const CAPTURE_TIMEOUT_US: u64 = 2_000_000;
/// Failures in a row after which the sensor is set up anew.
const FAILURES_BEFORE_RESET: u8 = 3;
/// Between two messages of statistics.
const STATISTICS_EVERY_US: u64 = 1_000_000;

/// What is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Output {
    /// Pixels.
    pub format: PixelFormat,
    /// Pixels.
    pub width: u16,
    /// Pixels.
    pub height: u16,
}

/// What happened, for the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Event {
    /// A command and how it went.
    Command(Command, Status),
    /// A command that could not be read.
    Rejected(Status),
    /// A picture was given up.
    Failed(CameraError),
    /// The sensor was set up anew after failures.
    Reset,
}

enum Capture {
    /// Nothing under way.
    Idle,
    /// Since when.
    Exposing(u64),
    /// The picture is being read; its capture time, and for JPEG its bytes and those read.
    Reading { time: u64, length: u32, read: u32 },
}

/// The state machine of a camera. [`poll`](Streamer::poll) does a bounded piece of each of its three duties: obey, capture, send.
///
/// Two buffers `B` hold a picture each: one is sent while the other is filled. A picture that is whole while the link is
/// still busy waits; the next one from the sensor replaces it, which is counted and announced by
/// [`flags::OVERRUN`]. What is sent is therefore always whole, and at most one transmission and one capture old.
pub struct Streamer<C, B> {
    camera: C,
    buffers: [B; 2],
    /// Which buffer is sent; the other is filled.
    front: usize,
    chunk_size: u16,
    session: u8,
    output: Output,
    plan: Reduction,
    reducer: Reducer,
    row: [u8; 2 * MAX_SOURCE_WIDTH],
    /// What the host set, to be set again after the sensor is reset.
    controls: [Option<Control>; 4],
    running: bool,
    capture: Capture,
    failures: u8,
    /// Of the next picture.
    sequence: u32,
    /// Pictures dropped since the last that was sent.
    overrun: bool,
    /// A whole picture in the back buffer.
    waiting: Option<FrameInfo>,
    sending: Option<Sender>,
    parser: Parser<[u8; 2 * MESSAGE_BUFFER], [u8; 0]>,
    /// A message on its way: bytes, length, written.
    message: ([u8; MESSAGE_BUFFER], usize, usize),
    /// The last command's number and its reply, for repeats.
    answered: Option<(u32, Reply)>,
    statistics: Statistics,
    statistics_due: u64,
    reports: u32,
}

impl<C: Camera, B: AsRef<[u8]> + AsMut<[u8]>> Streamer<C, B> {
    /// Sets the camera up; it streams once told to. `session` differs from the last start's, as far as a board can
    /// arrange that. `chunk_size` bytes of payload share a header of 40.
    pub fn new(mut camera: C, buffers: [B; 2], output: Output, chunk_size: u16, session: u8) -> Result<Self, CameraError> {
        let plan = plan(&camera, &buffers, output)?;
        camera.configure(plan.source)?;
        // A parser's only error is a buffer too small for a header.
        let parser = Parser::new([0; 2 * MESSAGE_BUFFER], []).map_err(|_| CameraError::OutOfRange)?;
        Ok(Streamer {
            camera,
            buffers,
            front: 0,
            chunk_size,
            session,
            output,
            plan,
            reducer: Reducer::new(plan),
            row: [0; _],
            controls: [None; 4],
            running: false,
            capture: Capture::Idle,
            failures: 0,
            sequence: 0,
            overrun: false,
            waiting: None,
            sending: None,
            parser,
            message: ([0; _], 0, 0),
            answered: None,
            statistics: Statistics::default(),
            statistics_due: 0,
            reports: 0,
        })
    }

    /// What it did so far.
    pub fn statistics(&self) -> Statistics {
        self.statistics
    }

    /// The camera.
    pub fn camera(&mut self) -> &mut C {
        &mut self.camera
    }

    /// Streams, or stops, as the host's commands do.
    pub fn run(&mut self, running: bool) {
        self.running = running;
        if !running {
            self.abandon();
        }
    }

    /// Does what can be done now. `now_us` counts from any moment and does not step back.
    pub fn poll<T: Transport>(&mut self, now_us: u64, transport: &mut T) -> Result<Option<Event>, T::Error> {
        self.statistics.uptime_ms = (now_us / 1000) as u32;
        if let Some(event) = self.obey(now_us, transport)? {
            return Ok(Some(event));
        }
        let event = self.capture(now_us);
        self.send(now_us, transport)?;
        Ok(event)
    }

    /// Takes one command, if there is room for its reply.
    fn obey<T: Transport>(&mut self, now: u64, transport: &mut T) -> Result<Option<Event>, T::Error> {
        if self.message.2 < self.message.1 {
            return Ok(None);
        }
        let mut bytes = [0; 16];
        let length = transport.read(&mut bytes)?;
        let mut rest = &bytes[..length];
        let mut event = None;
        while let Some(link) = self.parser.push(&mut rest) {
            // 16 bytes end at most one message: 41 is the shortest.
            if let Link::Message(message) = link {
                event = Some(self.command(&message, now));
            }
        }
        self.statistics.bytes_skipped = self.parser.counters().bytes_skipped as u32;
        Ok(event)
    }

    fn command(&mut self, message: &Message, now: u64) -> Event {
        self.statistics.commands += 1;
        let command = Command::decode(message);
        let opcode = message.payload().first().copied().unwrap_or_default();
        // A command that is repeated because its reply was lost is not obeyed twice.
        let repeated = self.answered.filter(|(number, reply)| *number == message.number && reply.opcode == opcode);
        let reply = match (repeated, command) {
            (Some((_, reply)), _) => reply,
            (None, Ok(command)) => {
                let status = self.execute(command);
                let statistics = (command == Command::GetStatistics).then_some(self.statistics);
                Reply { opcode, status, statistics }
            }
            (None, Err(status)) => Reply { opcode, status, statistics: None },
        };
        self.answered = Some((message.number, reply));
        self.post(reply.encode(message.number), now);
        match command {
            Ok(command) => Event::Command(command, reply.status),
            Err(status) => Event::Rejected(status),
        }
    }

    fn execute(&mut self, command: Command) -> Status {
        let control = match command {
            Command::Ping | Command::GetStatistics => return Status::Ok,
            Command::Start => {
                self.run(true);
                return Status::Ok;
            }
            Command::Stop => {
                self.run(false);
                return Status::Ok;
            }
            Command::SetFormat(format) => return self.change(Output { format, ..self.output }),
            Command::SetSize { width, height } => return self.change(Output { width, height, ..self.output }),
            Command::SetExposure(level) => Control::Exposure(level),
            Command::SetGain(level) => Control::Gain(level),
            Command::SetFlip { horizontal, vertical } => Control::Flip { horizontal, vertical },
            Command::SetTestPattern(on) => Control::TestPattern(on),
        };
        let result = self.camera.control(control);
        if result.is_ok() {
            let slot = match control {
                Control::Exposure(_) => 0,
                Control::Gain(_) => 1,
                Control::Flip { .. } => 2,
                Control::TestPattern(_) => 3,
            };
            self.controls[slot] = Some(control);
        }
        status(result)
    }

    /// Changes what is sent; on failure everything stays as it is, as far as the sensor permits.
    fn change(&mut self, output: Output) -> Status {
        let plan = match plan(&self.camera, &self.buffers, output) {
            Ok(plan) => plan,
            Err(error) => return status(Err(error)),
        };
        self.abandon();
        let result = self.setup(plan.source);
        if result.is_ok() {
            (self.output, self.plan) = (output, plan);
        } else if self.setup(self.plan.source).is_err() {
            // The next failed captures try that again.
            self.failures = FAILURES_BEFORE_RESET - 1;
        }
        status(result)
    }

    /// Sets the sensor up, and what the host set before.
    fn setup(&mut self, mode: Mode) -> Result<(), CameraError> {
        self.camera.configure(mode)?;
        self.controls.into_iter().flatten().try_for_each(|control| self.camera.control(control))
    }

    /// Gives up what is not on the link yet.
    fn abandon(&mut self) {
        let begun = matches!(self.capture, Capture::Reading { .. });
        let lost = u32::from(begun) + u32::from(self.waiting.take().is_some());
        self.statistics.dropped += lost;
        self.overrun |= lost > 0;
        self.capture = Capture::Idle;
    }

    fn capture(&mut self, now: u64) -> Option<Event> {
        match self.capture_step(now) {
            Ok(()) => None,
            Err(error) => {
                self.statistics.failed += 1;
                if matches!(self.capture, Capture::Reading { .. }) {
                    // It had a number; now it is missing.
                    self.statistics.dropped += 1;
                    self.overrun = true;
                }
                self.capture = Capture::Idle;
                self.failures += 1;
                if self.failures >= FAILURES_BEFORE_RESET {
                    self.failures = 0;
                    if self.setup(self.plan.source).is_ok() {
                        return Some(Event::Reset);
                    }
                }
                Some(Event::Failed(error))
            }
        }
    }

    fn capture_step(&mut self, now: u64) -> Result<(), CameraError> {
        match self.capture {
            Capture::Idle if !self.running => Ok(()),
            Capture::Idle => {
                self.camera.begin()?;
                self.capture = Capture::Exposing(now);
                Ok(())
            }
            Capture::Exposing(since) => match self.camera.poll()? {
                Some(length) => {
                    self.statistics.captured += 1;
                    self.sequence = self.sequence.wrapping_add(1);
                    if self.waiting.take().is_some() {
                        self.statistics.dropped += 1;
                        self.overrun = true;
                    }
                    self.capture = Capture::Reading { time: now, length, read: 0 };
                    self.reducer = Reducer::new(self.plan);
                    let room = self.buffers[0].as_ref().len().min(self.buffers[1].as_ref().len()) as u32;
                    if self.plan.format == PixelFormat::Jpeg && length > room {
                        return Err(CameraError::Length { expected: room, found: length });
                    }
                    Ok(())
                }
                None if now.saturating_sub(since) > CAPTURE_TIMEOUT_US => Err(CameraError::Timeout),
                None => Ok(()),
            },
            Capture::Reading { time, length, read } => self.read(time, length, read),
        }
    }

    /// Reads one row, or one piece of a JPEG file, into the back buffer.
    fn read(&mut self, time: u64, length: u32, read: u32) -> Result<(), CameraError> {
        let buffer = self.buffers[1 - self.front].as_mut();
        let info = if let Some(row_len) = self.plan.row_len() {
            let row = self.row.get_mut(..row_len).ok_or(CameraError::UnsupportedMode)?;
            self.camera.read(row)?;
            self.reducer.push(row, buffer);
            if self.reducer.rows() < usize::from(self.plan.source.height) {
                return Ok(());
            }
            FrameInfo::raw(self.plan.format, self.plan.width, self.plan.height)
        } else {
            let next = (read + PIECE).min(length);
            let piece = buffer.get_mut(read as usize..next as usize).ok_or(CameraError::NotJpeg)?;
            self.camera.read(piece)?;
            if next < length {
                self.capture = Capture::Reading { time, length, read: next };
                return Ok(());
            }
            let file = jpeg::find(&buffer[..length as usize]).ok_or(CameraError::NotJpeg)?;
            buffer.copy_within(file.clone(), 0);
            FrameInfo::jpeg(self.plan.width, self.plan.height, file.len() as u32)
        };
        let info = info.map_err(|_| CameraError::UnsupportedMode)?;
        let (session, sequence, timestamp_us) = (self.session, self.sequence.wrapping_sub(1), time as u32);
        self.waiting = Some(FrameInfo { session, sequence, timestamp_us, ..info });
        self.capture = Capture::Idle;
        self.failures = 0;
        Ok(())
    }

    fn send<T: Transport>(&mut self, now: u64, transport: &mut T) -> Result<(), T::Error> {
        if now >= self.statistics_due && self.running && self.message.2 == self.message.1 {
            self.report(now);
        }
        loop {
            // A message, once begun, is finished before anything else.
            if self.message.2 < self.message.1 && self.sending.as_ref().is_none_or(Sender::between_chunks) {
                let written = transport.write(&self.message.0[self.message.2..self.message.1])?;
                self.message.2 += written;
                self.statistics.bytes_sent += written as u64;
                if self.message.2 < self.message.1 {
                    return Ok(());
                }
            }
            let Some(sender) = &mut self.sending else {
                if !self.next_frame() {
                    return Ok(());
                }
                continue;
            };
            let payload = self.buffers[self.front].as_ref();
            if sender.between_chunks() && !sender.next(payload) {
                self.sending = None;
                self.statistics.sent += 1;
                // One frame per call: the loop around has other duties.
                return Ok(());
            }
            self.statistics.bytes_sent += sender.write(payload, transport)? as u64;
            // Full for now, or a chunk done: next time more, after the sensor had its turn.
            return Ok(());
        }
    }

    /// Takes the waiting frame to the front.
    fn next_frame(&mut self) -> bool {
        let Some(mut info) = self.waiting.take() else { return false };
        if self.overrun {
            info.flags |= flags::OVERRUN;
        }
        match Sender::new(info, self.chunk_size) {
            Ok(sender) => {
                self.overrun = false;
                self.front = 1 - self.front;
                self.sending = Some(sender);
                true
            }
            Err(_) => {
                // More chunks than a frame may have: the chunk size does not suit the picture.
                self.statistics.dropped += 1;
                self.overrun = true;
                false
            }
        }
    }

    fn report(&mut self, now: u64) {
        self.statistics_due = now + STATISTICS_EVERY_US;
        self.reports = self.reports.wrapping_add(1);
        self.post(self.statistics.encode(self.reports), now);
    }

    fn post(&mut self, mut message: Message, now: u64) {
        (message.session, message.timestamp_us) = (self.session, now as u32);
        let (bytes, length) = message.encode();
        self.message = (bytes, length, 0);
    }
}

/// The way to a picture, if there is one and it fits the buffers.
fn plan<C: Camera, B: AsRef<[u8]>>(camera: &C, buffers: &[B; 2], output: Output) -> Result<Reduction, CameraError> {
    let Output { format, width, height } = output;
    let plan = Reduction::plan(camera.modes(), format, width, height).ok_or(CameraError::UnsupportedMode)?;
    let needed = format.bytes_per_pixel().map_or(0, |b| b * u32::from(width) * u32::from(height));
    let room = buffers.iter().map(|b| b.as_ref().len()).min().unwrap_or(0);
    if needed as usize > room {
        return Err(CameraError::Length { expected: room as u32, found: needed });
    }
    Ok(plan)
}

fn status(result: Result<(), CameraError>) -> Status {
    match result {
        Ok(()) => Status::Ok,
        Err(CameraError::UnsupportedMode | CameraError::UnsupportedControl) => Status::Unsupported,
        Err(CameraError::OutOfRange | CameraError::Length { .. }) => Status::OutOfRange,
        Err(_) => Status::SensorFault,
    }
}
