//! A camera, read by a thread of its own: whole frames come out, the newest first; the camera is opened again whenever
//! it goes away. What kind of camera it is, a `Source` knows.

use super::address::Address;
use super::raw::{self, Memory, RawFormat};
use super::{CameraOptions, command, http, link, v4l2};
use edge_wire::{Counters, Frame, FrameInfo};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How often the reading thread looks whether it should stop.
pub(super) const TICK: Duration = Duration::from_millis(100);
/// Between attempts to open the camera: from, to.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// How long closing may take: a program has a second to end.
const CLOSE: Duration = Duration::from_secs(2);

/// One kind of camera.
pub(super) trait Source: Send {
    /// Opens it. An error of kind `PermissionDenied` or `InvalidInput` will not go away by itself.
    fn open(&mut self) -> io::Result<()>;

    /// Reads what was opened and delivers its frames until it ends, fails, or nobody wants more; then closes it.
    fn read(&mut self, delivery: &mut Delivery) -> io::Result<()>;

    /// Whether it is waited for when it goes away.
    fn comes_back(&self) -> bool {
        true
    }

    /// Whether what was opened is a file on a disk: nothing is lost by reading it slowly.
    fn is_regular(&self) -> bool {
        false
    }
}

/// Makes the source that an address names.
fn source(address: &Address, options: &CameraOptions) -> io::Result<Box<dyn Source>> {
    Ok(match address {
        Address::V4l2(device) => Box::new(v4l2::Device::new(device.clone(), options)?),
        Address::Libcamera(id) => Box::new(command::Program::libcamera(id, options)?),
        Address::Exec(line) => Box::new(command::Program::shell(line, options)?),
        Address::Http(url) => Box::new(http::Stream::new(url, options)?),
        _ => Box::new(link::Link::new(address, options)?),
    })
}

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

/// What was seen of a camera so far.
#[derive(Debug, Clone, Default)]
pub struct Statistics {
    /// Whether it is open now.
    pub connected: bool,
    /// How often it was opened.
    pub connections: u64,
    /// Whole frames that a newer one replaced before anybody took them.
    pub superseded: u64,
    /// Of the link. A camera without chunks counts bytes and frames only: `bytes_accepted` are those of whole frames.
    pub link: Counters,
}

/// What the reading thread reports, from that thread.
#[derive(Debug)]
pub enum Notice<'a> {
    /// The camera is open.
    Opened,
    /// A frame can be taken.
    Frame,
    /// The camera cannot be opened, or went away; it will be tried again.
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

/// A camera that is being read. Dropping it stops its thread.
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

/// A frame that nobody has taken yet.
pub(super) struct Pending {
    /// `info` and `payload` are the raw format's, until the frame is taken.
    pub frame: CameraFrame,
    /// Pixels that are converted when the frame is taken, so that superseded frames cost no conversion.
    pub raw: Option<(RawFormat, Memory)>,
}

#[derive(Default)]
struct State {
    newest: Option<Pending>,
    /// Payload memory to use again.
    spare: Vec<u8>,
    /// Memory of raw pixels to use again.
    spare_raw: Vec<u8>,
    statistics: Statistics,
    /// Nothing more will come.
    ended: bool,
    /// The thread has let go of the camera.
    closed: bool,
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

    /// The frame as its taker wants it.
    fn convert(&self, pending: Pending) -> CameraFrame {
        let Pending { mut frame, raw } = pending;
        if let Some((format, memory)) = raw {
            frame.payload = std::mem::take(&mut self.lock().spare);
            raw::convert(&format, &memory, &mut frame.payload);
            if let Memory::Owned(memory) = memory {
                self.lock().spare_raw = memory;
            }
        }
        frame
    }
}

impl Camera {
    /// Opens a camera and starts reading it. What comes back is waited for, unless it may not be opened; what does not
    /// come back must be there.
    ///
    /// A frame that nobody has taken is replaced by a newer one, so that an answer is never older than it must be.
    /// Regular files are read as slowly as frames are taken instead, as is everything with `every_frame`.
    pub fn open(address: &Address, options: &CameraOptions, notice: impl Fn(Notice) + Send + 'static) -> io::Result<Camera> {
        let mut source = source(address, options)?;
        let opened = match source.open() {
            Ok(()) => true,
            Err(e) if source.comes_back() && !matches!(e.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::InvalidInput) => {
                notice(Notice::Waiting(&e));
                false
            }
            Err(e) => return Err(e),
        };
        let every_frame = options.every_frame || (opened && source.is_regular());
        let shared = Arc::new(Shared { state: Mutex::default(), changed: Condvar::new(), stop: AtomicBool::new(false), every_frame });
        let delivery = Delivery { shared: shared.clone(), notice: Box::new(notice) };
        std::thread::Builder::new().name("edge-camera".into()).spawn(move || {
            let shared = delivery.shared.clone();
            run(source, opened, delivery);
            shared.lock().closed = true;
            shared.changed.notify_all();
        })?;
        Ok(Camera { shared })
    }

    /// The newest frame, waiting up to `time` for one.
    pub fn next(&self, time: Duration) -> Next {
        let deadline = Instant::now() + time;
        let mut state = self.shared.lock();
        loop {
            if let Some(pending) = state.newest.take() {
                drop(state);
                self.shared.changed.notify_all();
                return Next::Frame(self.shared.convert(pending));
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

    /// What was seen so far.
    pub fn statistics(&self) -> Statistics {
        self.shared.lock().statistics.clone()
    }

    /// Stops reading, and waits for programs to end and devices to be free; not for long.
    pub fn close(&self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.changed.notify_all();
        let deadline = Instant::now() + CLOSE;
        let mut state = self.shared.lock();
        while !state.closed && Instant::now() < deadline {
            state = self.shared.wait(state, TICK);
        }
    }
}

impl Drop for Camera {
    fn drop(&mut self) {
        self.close();
    }
}

/// The reading thread.
fn run(mut source: Box<dyn Source>, mut opened: bool, mut delivery: Delivery) {
    let shared = delivery.shared.clone();
    let mut backoff = BACKOFF.0;
    while !shared.stopped() {
        let result = if std::mem::take(&mut opened) { Ok(()) } else { source.open() }.and_then(|()| {
            let mut state = shared.lock();
            state.statistics.connected = true;
            state.statistics.connections += 1;
            let frames = state.statistics.link.frames_ok;
            drop(state);
            (delivery.notice)(Notice::Opened);
            let result = source.read(&mut delivery);
            delivery.detach();
            let mut state = shared.lock();
            state.statistics.connected = false;
            if state.statistics.link.frames_ok > frames {
                backoff = BACKOFF.0;
            }
            result
        });
        if !source.comes_back() {
            return delivery.end(result.err());
        }
        if shared.stopped() {
            return;
        }
        let gone = || io::Error::new(io::ErrorKind::UnexpectedEof, "the other end closed it");
        (delivery.notice)(Notice::Waiting(&result.err().unwrap_or_else(gone)));
        let until = Instant::now() + backoff;
        while Instant::now() < until && !shared.stopped() {
            std::thread::sleep(TICK.min(backoff));
        }
        backoff = (backoff * 2).min(BACKOFF.1);
    }
}

/// From a source to whoever takes frames.
pub(super) struct Delivery {
    shared: Arc<Shared>,
    notice: Box<dyn Fn(Notice) + Send>,
}

impl Delivery {
    /// Whether nobody wants more frames.
    pub fn stopped(&self) -> bool {
        self.shared.stopped()
    }

    /// Memory for a payload; empty.
    pub fn memory(&self) -> Vec<u8> {
        let mut memory = std::mem::take(&mut self.shared.lock().spare);
        memory.clear();
        memory
    }

    /// Memory for raw pixels.
    pub fn raw_memory(&self) -> Vec<u8> {
        std::mem::take(&mut self.shared.lock().spare_raw)
    }

    /// The counters without a frame.
    pub fn count(&self, counters: Counters) {
        self.shared.lock().statistics.link = counters;
    }

    /// A frame together with the counters that include it: whoever sees the one sees the other.
    pub fn deliver(&self, frame: CameraFrame, counters: Counters) {
        self.put(Pending { frame, raw: None }, counters);
    }

    /// As [`Delivery::deliver`], of pixels that are converted when they are taken.
    pub fn deliver_raw(&self, frame: CameraFrame, raw: (RawFormat, Memory), counters: Counters) {
        self.put(Pending { frame, raw: Some(raw) }, counters);
    }

    fn put(&self, pending: Pending, counters: Counters) {
        let mut state = self.shared.lock();
        while self.shared.every_frame && state.newest.is_some() && !self.shared.stopped() {
            state = self.shared.wait(state, TICK);
        }
        state.statistics.link = counters;
        let mut mapped = None;
        if let Some(Pending { frame, raw }) = state.newest.replace(pending) {
            state.statistics.superseded += 1;
            match raw {
                None => state.spare = frame.payload,
                Some((_, Memory::Owned(memory))) => state.spare_raw = memory,
                Some((_, memory)) => mapped = Some(memory),
            }
        }
        drop(state);
        // The driver gets its buffer back without anybody waiting for it.
        drop(mapped);
        self.shared.changed.notify_all();
        (self.notice)(Notice::Frame);
    }

    /// Lets go of the device's memory, if a frame that nobody has taken is in it: while that is held, the device's
    /// name cannot be used again.
    fn detach(&self) {
        let mut state = self.shared.lock();
        if let Some(Pending { raw: Some((_, memory @ Memory::Mapped(_))), .. }) = &mut state.newest {
            *memory = Memory::Owned(memory.to_vec());
        }
    }

    fn end(&self, error: Option<io::Error>) {
        let mut state = self.shared.lock();
        (state.ended, state.error) = (true, error);
        drop(state);
        self.shared.changed.notify_all();
        (self.notice)(Notice::Ended);
    }
}
