//! A camera's link, read by a thread of its own: whole frames come out, the newest first; the link is opened again
//! whenever it goes away.

use super::address::{Address, Connection};
use super::clock::SenderClock;
use edge_wire::{CHUNK_BUFFER, Counters, Event, Frame, FrameInfo, MAX_FRAME, Parser, Timeline};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Bytes asked for at a time.
const READ: usize = 1 << 16;
/// How often the reading thread looks whether it should stop.
const TICK: Duration = Duration::from_millis(100);
/// After a silence of this length, what is missing of a frame will not come.
const SILENCE: Duration = Duration::from_secs(1);
/// Between attempts to open the link: from, to.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// A whole frame, and when it was captured and received.
#[derive(Debug, Clone)]
pub struct CameraFrame {
    /// What its header says.
    pub info: FrameInfo,
    /// `info.length` bytes.
    pub payload: Vec<u8>,
    /// Capture time on the sender's clock, extended over its wrap-around, µs.
    pub timestamp_us: u64,
    /// Capture time on this machine's clock, at the latest (the link's shortest delay is unknown and taken as 0).
    pub captured: Instant,
    /// When its last byte was read.
    pub received: Instant,
}

impl CameraFrame {
    /// As `edge-wire` has it.
    pub fn as_wire(&self) -> Frame<'_> {
        Frame { info: self.info, payload: &self.payload }
    }
}

/// What a link saw so far.
#[derive(Debug, Clone, Default)]
pub struct Statistics {
    /// Whether it is open now.
    pub connected: bool,
    /// How often it was opened.
    pub connections: u64,
    /// Whole frames that a newer one replaced before anybody took them.
    pub superseded: u64,
    /// The parser's.
    pub link: Counters,
}

/// What the reading thread reports, from that thread.
#[derive(Debug)]
pub enum Notice<'a> {
    /// The link is open.
    Opened,
    /// A frame can be taken.
    Frame,
    /// The link cannot be opened, or went away; it will be tried again.
    Waiting(&'a io::Error),
    /// Nothing more will come.
    Ended,
}

/// What [`Camera::next`] found.
#[derive(Debug)]
pub enum Next {
    /// A frame.
    Frame(CameraFrame),
    /// None within the time.
    Nothing,
    /// The source has ended, and every frame of it was taken; the error that ended it, if one did.
    End(Option<io::Error>),
}

/// A link that is being read. Dropping it stops its thread.
pub struct Camera {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    stop: AtomicBool,
    /// Wait for frames to be taken, rather than replacing them.
    every_frame: bool,
}

#[derive(Default)]
struct State {
    newest: Option<CameraFrame>,
    /// Payload memory to use again.
    spare: Vec<u8>,
    statistics: Statistics,
    ended: bool,
    error: Option<io::Error>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>, time: Duration) -> MutexGuard<'a, State> {
        self.changed.wait_timeout(state, time).unwrap_or_else(PoisonError::into_inner).0
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

impl Camera {
    /// Opens a link and starts reading it. What comes back is waited for, unless it may not be opened; what does not must be there.
    ///
    /// A frame that nobody has taken is replaced by a newer one, so that an answer is never older than it must be.
    /// Regular files are read as slowly as frames are taken instead, as is everything with `every_frame`.
    pub fn open(address: &Address, every_frame: bool, notice: impl Fn(Notice) + Send + 'static) -> io::Result<Camera> {
        let first = match address.open() {
            Ok(connection) => Some(connection),
            Err(e) if address.comes_back() && e.kind() != io::ErrorKind::PermissionDenied => {
                notice(Notice::Waiting(&e));
                None
            }
            Err(e) => return Err(e),
        };
        let every_frame = every_frame || first.as_ref().is_some_and(Connection::is_regular);
        let shared = Arc::new(Shared { state: Mutex::default(), changed: Condvar::new(), stop: AtomicBool::new(false), every_frame });
        let mut reader = Reader::new(address.clone(), shared.clone(), notice)?;
        std::thread::Builder::new().name("edge-camera".into()).spawn(move || reader.run(first))?;
        Ok(Camera { shared })
    }

    /// The newest frame, waiting up to `time` for one.
    pub fn next(&self, time: Duration) -> Next {
        let deadline = Instant::now() + time;
        let mut state = self.shared.lock();
        loop {
            if let Some(frame) = state.newest.take() {
                self.shared.changed.notify_all();
                return Next::Frame(frame);
            }
            if state.ended {
                return Next::End(state.error.take());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Next::Nothing;
            }
            state = self.shared.wait(state, left);
        }
    }

    /// Gives a frame's memory back, for one to come.
    pub fn recycle(&self, payload: Vec<u8>) {
        self.shared.lock().spare = payload;
    }

    /// What the link saw so far.
    pub fn statistics(&self) -> Statistics {
        self.shared.lock().statistics.clone()
    }
}

impl Drop for Camera {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.changed.notify_all();
    }
}

/// The thread that reads.
struct Reader<N> {
    address: Address,
    parser: Parser<Vec<u8>, Vec<u8>>,
    delivery: Delivery<N>,
}

impl<N: Fn(Notice)> Reader<N> {
    fn new(address: Address, shared: Arc<Shared>, notice: N) -> io::Result<Self> {
        // Memory is constant: one frame of the largest size, touched only as far as frames need it.
        let parser = Parser::new(vec![0; 4 * CHUNK_BUFFER], vec![0; MAX_FRAME as usize]).map_err(io::Error::other)?;
        let delivery = Delivery { shared, notice, timeline: Timeline::default(), clock: SenderClock::default(), last: None };
        Ok(Reader { address, parser, delivery })
    }

    fn run(&mut self, mut connection: Option<Connection>) {
        let shared = self.delivery.shared.clone();
        let mut backoff = BACKOFF.0;
        while !shared.stopped() {
            let result = match connection.take().map_or_else(|| self.address.open(), Ok) {
                Ok(connection) => {
                    let mut state = shared.lock();
                    state.statistics.connected = true;
                    state.statistics.connections += 1;
                    drop(state);
                    (self.delivery.notice)(Notice::Opened);
                    let frames = self.parser.counters().frames_ok;
                    let result = self.read(&connection);
                    self.finish();
                    shared.lock().statistics.connected = false;
                    if self.parser.counters().frames_ok > frames {
                        backoff = BACKOFF.0;
                    }
                    result
                }
                Err(e) => Err(e),
            };
            if !self.address.comes_back() {
                return self.delivery.end(result.err());
            }
            let gone = || io::Error::new(io::ErrorKind::UnexpectedEof, "the other end closed it");
            (self.delivery.notice)(Notice::Waiting(&result.err().unwrap_or_else(gone)));
            let until = Instant::now() + backoff;
            while Instant::now() < until && !shared.stopped() {
                std::thread::sleep(TICK.min(backoff));
            }
            backoff = (backoff * 2).min(BACKOFF.1);
        }
    }

    /// Reads to the end.
    fn read(&mut self, connection: &Connection) -> io::Result<()> {
        let mut buffer = vec![0; READ];
        let mut last_byte = Instant::now();
        // When the first byte of the frame being received came.
        let mut begun = None;
        while !self.delivery.shared.stopped() {
            let Some(n) = connection.read(&mut buffer, TICK)? else {
                if last_byte.elapsed() > SILENCE {
                    self.finish();
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
                let frame = self.delivery.frame(event, begun.unwrap_or(last_byte));
                self.delivery.deliver(frame, self.parser.counters());
                begun = Some(last_byte);
            }
            // What is left in the parser, if anything, belongs to the next frame.
            let counters = self.parser.counters();
            let held = counters.bytes - counters.bytes_accepted - counters.bytes_skipped;
            begun = if held == 0 && begun == Some(last_byte) { None } else { begun.or(Some(last_byte)) };
            self.delivery.shared.lock().statistics.link = counters;
        }
        Ok(())
    }

    /// Gives up what is incomplete.
    fn finish(&mut self) {
        while let Some(event) = self.parser.finish() {
            let frame = self.delivery.frame(event, Instant::now());
            self.delivery.deliver(frame, self.parser.counters());
        }
        self.delivery.shared.lock().statistics.link = self.parser.counters();
    }
}

/// From the parser to whoever takes frames.
struct Delivery<N> {
    shared: Arc<Shared>,
    notice: N,
    timeline: Timeline,
    clock: SenderClock,
    last: Option<FrameInfo>,
}

impl<N: Fn(Notice)> Delivery<N> {
    /// A whole frame's copy; `None` for one that did not arrive whole, which is in the counters.
    fn frame(&mut self, event: Event, first_byte: Instant) -> Option<CameraFrame> {
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
        let mut memory = std::mem::take(&mut self.shared.lock().spare);
        memory.clear();
        memory.extend_from_slice(payload);
        Some(CameraFrame { info, payload: memory, timestamp_us, captured, received })
    }

    /// A frame together with the counters that include it: whoever sees the one sees the other.
    fn deliver(&mut self, frame: Option<CameraFrame>, counters: Counters) {
        let mut state = self.shared.lock();
        let Some(frame) = frame else {
            state.statistics.link = counters;
            return;
        };
        while self.shared.every_frame && state.newest.is_some() && !self.shared.stopped() {
            state = self.shared.wait(state, TICK);
        }
        state.statistics.link = counters;
        if let Some(old) = state.newest.replace(frame) {
            state.statistics.superseded += 1;
            state.spare = old.payload;
        }
        drop(state);
        self.shared.changed.notify_all();
        (self.notice)(Notice::Frame);
    }

    fn end(&self, error: Option<io::Error>) {
        let mut state = self.shared.lock();
        (state.ended, state.error) = (true, error);
        drop(state);
        self.shared.changed.notify_all();
        (self.notice)(Notice::Ended);
    }
}
