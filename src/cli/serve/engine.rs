//! The threads that compute: one for the network, which answers the camera before anybody else, and one that decodes
//! posted pictures.

use super::fair::{Peer, Queue};
use super::metrics::Metrics;
use crate::cli::guard;
use edge_infer::answer::{self, Reader, View};
use edge_infer::board::Snapshot;
use edge_infer::image::{self, Preprocessor};
use edge_infer::model::Model;
use edge_infer::source::camera::{Camera, CameraFrame, Next};
use edge_infer::source::pixels;
use edge_wire::FrameInfo;
use hyper::body::Bytes;
use serde::Serialize;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// How often idle threads say that they are alive.
const TICK: Duration = Duration::from_millis(200);
/// Silence of the network's thread that makes it count as stuck: far above any inference.
pub const STUCK: Duration = Duration::from_secs(10);
/// How long a posted picture gives way to frames of the camera that are about to come.
const YIELD: Duration = Duration::from_millis(100);
/// A posted picture that waited so long is not worth computing: its client was told so.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// Times kept for the page's plot.
const HISTORY: usize = 240;
/// Most pixels of a posted picture.
pub const MAX_PIXELS: u64 = 24 << 20;

/// Why a posted picture has no label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// It is no picture, or too large.
    Picture(String),
    /// The network failed.
    Failed(String),
    /// Nobody has time.
    Busy,
}

/// The answer to a posted picture.
#[derive(Debug, Serialize)]
pub struct Answer {
    #[serde(flatten)]
    pub answer: answer::Answer,
    pub width: u32,
    pub height: u32,
    /// Waiting for the threads.
    pub queue_ms: f64,
    /// Decode, resize, normalise.
    pub prepare_ms: f64,
    /// Inference alone.
    pub latency_ms: f64,
}

type Reply = oneshot::Sender<Result<Answer, Refusal>>;

struct Posted {
    bytes: Vec<u8>,
    top: usize,
    since: Instant,
    reply: Reply,
}

/// A posted picture, decoded.
struct Prepared {
    tensor: Vec<f32>,
    view: View,
    top: usize,
    since: Instant,
    prepare: Duration,
    reply: Reply,
}

/// What the camera's newest frame gave.
#[derive(Default)]
pub struct Live {
    /// Shared with the clients that are taking it.
    pub frame: Option<(FrameInfo, Bytes)>,
    /// Changes with the frame.
    pub number: u64,
    pub answer: Option<answer::Answer>,
    pub at: Option<Instant>,
    /// Capture to label and inference, ms, oldest first.
    pub history: VecDeque<(f32, f32)>,
}

/// What the threads and the web share.
pub struct Shared {
    pub metrics: Metrics,
    pub live: Mutex<Live>,
    pub camera: Option<Camera>,
    pub board: Mutex<Snapshot>,
    stop: AtomicBool,
    started: Instant,
    /// ms since `started` when the network's thread last said that it is alive.
    beat: AtomicU64,
    desk: Mutex<Option<Prepared>>,
    bell: Condvar,
}

pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No invariant of ours spans a panic while a lock is held.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub fn new(camera: Option<Camera>) -> Self {
        Shared {
            metrics: Metrics::default(),
            live: Mutex::default(),
            camera,
            board: Mutex::default(),
            stop: AtomicBool::new(false),
            started: Instant::now(),
            beat: AtomicU64::new(0),
            desk: Mutex::new(None),
            bell: Condvar::new(),
        }
    }

    /// Wakes the network's thread.
    pub fn ring(&self) {
        // With the lock, so that it cannot be between looking and waiting.
        drop(lock(&self.desk));
        self.bell.notify_all();
    }

    pub fn stop(&self) {
        self.stop.store(true, Relaxed);
        self.ring();
    }

    pub fn stopped(&self) -> bool {
        self.stop.load(Relaxed)
    }

    /// Whether the network's thread is doing something, or waiting for something to do.
    pub fn alive(&self) -> bool {
        self.started.elapsed().saturating_sub(Duration::from_millis(self.beat.load(Relaxed))) < STUCK
    }

    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    fn beat(&self) {
        self.beat.store(self.started.elapsed().as_millis() as u64, Relaxed);
    }
}

/// Where posted pictures are handed in, and wait to be decoded.
#[derive(Clone)]
pub struct Desk(Arc<(Mutex<Queue<Posted>>, Condvar)>);

impl Desk {
    /// Takes a picture, or says at once that there is no time for it; that can also become the answer of one that waits.
    pub fn submit(&self, peer: Peer, bytes: Vec<u8>, top: usize) -> oneshot::Receiver<Result<Answer, Refusal>> {
        let (reply, answer) = oneshot::channel();
        let (queue, bell) = &*self.0;
        let lost = lock(queue).push(peer, Posted { bytes, top, since: Instant::now(), reply });
        bell.notify_one();
        if let Some(lost) = lost {
            let _ = lost.reply.send(Err(Refusal::Busy));
        }
        answer
    }

    /// The next one, waiting a while for it.
    fn next(&self) -> Option<Posted> {
        let (queue, bell) = &*self.0;
        let mut waiting = lock(queue);
        match waiting.pop() {
            None => bell.wait_timeout(waiting, TICK).unwrap_or_else(PoisonError::into_inner).0.pop(),
            posted => posted,
        }
    }
}

/// Starts the threads; they end after [`Shared::stop`].
pub fn start(
    shared: &Arc<Shared>,
    model: Model,
    reader: Reader,
    camera_input: Preprocessor,
    posted_input: Preprocessor,
    queue: usize,
) -> std::io::Result<(Desk, Vec<std::thread::JoinHandle<()>>)> {
    let desk = Desk(Arc::new((Mutex::new(Queue::new(queue)), Condvar::new())));
    let for_desk = desk.clone();
    let (for_network, for_decoder) = (shared.clone(), shared.clone());
    let network = std::thread::Builder::new().name("edge-network".into()).spawn(move || {
        let rhythm = Rhythm::default();
        Network { shared: for_network, model, reader, input: camera_input, rhythm, camera_had_its_turn: false }.run()
    })?;
    let decoder = std::thread::Builder::new().name("edge-decode".into()).spawn(move || decode(&for_decoder, posted_input, &for_desk))?;
    Ok((desk, vec![network, decoder]))
}

/// When frames come, and how long posted pictures take: what tells whether one fits before the next frame.
#[derive(Default)]
struct Rhythm {
    last_frame: Option<Instant>,
    interval: Duration,
    posted: Duration,
}

impl Rhythm {
    fn frame(&mut self, now: Instant) {
        if let Some(last) = self.last_frame.replace(now) {
            self.interval = (self.interval * 7 + (now - last).min(Duration::from_secs(1))) / 8;
        }
    }

    fn posted(&mut self, time: Duration) {
        self.posted = (self.posted * 7 + time) / 8;
    }

    /// How long a posted picture should wait so as not to delay the camera's next frame.
    fn wait(&self, now: Instant) -> Option<Duration> {
        let expected = self.last_frame? + self.interval;
        // A frame that is late by a quarter is not waited for.
        let until = expected + self.interval / 4;
        (now + self.posted > expected && now < until).then(|| until - now)
    }
}

struct Network {
    shared: Arc<Shared>,
    model: Model,
    reader: Reader,
    input: Preprocessor,
    rhythm: Rhythm,
    camera_had_its_turn: bool,
}

impl Network {
    fn run(mut self) {
        while !self.shared.stopped() {
            self.shared.beat();
            // A camera that is faster than the network takes turns with pictures that have waited long enough.
            if !(self.camera_had_its_turn && self.overdue())
                && let Some(Next::Frame(frame)) = self.shared.camera.as_ref().map(|c| c.next(Duration::ZERO))
            {
                self.camera_had_its_turn = true;
                self.frame(frame);
                continue;
            }
            if let Some(posted) = self.posted() {
                self.camera_had_its_turn = false;
                self.answer(posted);
            }
        }
    }

    fn overdue(&self) -> bool {
        lock(&self.shared.desk).as_ref().is_some_and(|posted| posted.since.elapsed() >= YIELD)
    }

    /// A posted picture whose turn has come; waits for one, or for a frame, a while.
    fn posted(&mut self) -> Option<Prepared> {
        let shared = self.shared.clone();
        let mut desk = lock(&shared.desk);
        let now = Instant::now();
        let wait = match &*desk {
            None => TICK,
            Some(posted) => match self.rhythm.wait(now).filter(|_| now - posted.since < YIELD) {
                None => {
                    let posted = desk.take();
                    drop(desk);
                    shared.bell.notify_all();
                    return posted;
                }
                Some(wait) => wait,
            },
        };
        drop(shared.bell.wait_timeout(desk, wait).unwrap_or_else(PoisonError::into_inner));
        None
    }

    fn frame(&mut self, frame: CameraFrame) {
        let shared = &*self.shared;
        self.rhythm.frame(frame.received);
        let picture = guard(|| pixels::decode(&frame.as_wire(), self.input.record()));
        let prepared = picture.and_then(|picture| {
            let view = self.input.view(picture.width, picture.height);
            guard(|| self.input.pixels(&picture)).map(|pixels| (pixels, view))
        });
        let Ok((prepared, view)) = prepared else {
            shared.metrics.undecodable.fetch_add(1, Relaxed);
            return;
        };
        let start = Instant::now();
        let Ok(outputs) = self.model.run_pixels_all(&prepared) else {
            shared.metrics.undecodable.fetch_add(1, Relaxed);
            return;
        };
        let inference = start.elapsed();
        let Ok(answer) = self.reader.read(outputs, &view, 5) else {
            shared.metrics.undecodable.fetch_add(1, Relaxed);
            return;
        };
        let age = frame.captured.elapsed();
        shared.metrics.camera_inference.add(inference);
        shared.metrics.capture_to_label.add(age);
        let mut live = lock(&shared.live);
        live.answer = Some(answer);
        live.number += 1;
        live.at = Some(Instant::now());
        if live.history.len() == HISTORY {
            live.history.pop_front();
        }
        live.history.push_back((age.as_secs_f32() * 1e3, inference.as_secs_f32() * 1e3));
        let old = live.frame.replace((frame.info, frame.payload.into()));
        drop(live);
        // Unless a client is still taking it.
        if let (Some(camera), Some((_, memory))) = (&shared.camera, old.filter(|(_, memory)| memory.is_unique())) {
            camera.recycle(memory.into());
        }
    }

    fn answer(&mut self, posted: Prepared) {
        let Prepared { tensor, view, top: count, since, prepare, reply } = posted;
        if reply.is_closed() || since.elapsed() > PATIENCE {
            let _ = reply.send(Err(Refusal::Busy));
            return;
        }
        let start = Instant::now();
        let mut latency = Duration::ZERO;
        let answer = self.model.run_all(&tensor).and_then(|outputs| {
            latency = start.elapsed();
            self.reader.read(outputs, &view, count)
        });
        let answer = match answer {
            Ok(answer) => {
                self.rhythm.posted(latency);
                self.shared.metrics.posted_inference.add(latency);
                let queue = (start - since).saturating_sub(prepare);
                let [queue_ms, prepare_ms, latency_ms] = [queue, prepare, latency].map(|t| t.as_secs_f64() * 1e3);
                let [width, height] = view.picture;
                Ok(Answer { answer, width, height, queue_ms, prepare_ms, latency_ms })
            }
            Err(e) => Err(Refusal::Failed(e.to_string())),
        };
        let _ = reply.send(answer);
    }
}

/// Posted bytes → tensors, one at a time: that bounds the memory that pictures take.
fn decode(shared: &Shared, mut input: Preprocessor, desk: &Desk) {
    // The camera goes first.
    let _ = rustix::process::nice(10);
    let mut tensor = Vec::new();
    while !shared.stopped() {
        let Some(Posted { bytes, top, since, reply }) = desk.next() else { continue };
        if reply.is_closed() || since.elapsed() > PATIENCE {
            let _ = reply.send(Err(Refusal::Busy));
            continue;
        }
        let start = Instant::now();
        let view = guard(|| {
            let picture = image::decode_bytes(&bytes, input.record(), MAX_PIXELS)?;
            input.run(&picture, &mut tensor).map(|()| input.view(picture.width, picture.height))
        });
        drop(bytes);
        match view {
            Err(reason) => {
                let _ = reply.send(Err(Refusal::Picture(reason)));
            }
            Ok(view) => {
                let prepared = Prepared { tensor: std::mem::take(&mut tensor), view, top, since, prepare: start.elapsed(), reply };
                let mut desk = lock(&shared.desk);
                while desk.is_some() && !shared.stopped() {
                    desk = shared.bell.wait_timeout(desk, TICK).unwrap_or_else(PoisonError::into_inner).0;
                }
                *desk = Some(prepared);
                drop(desk);
                shared.bell.notify_all();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn posted_pictures_fit_between_frames() {
        let (start, mut rhythm) = (Instant::now(), Rhythm::default());
        let at = |ms| start + Duration::from_millis(ms);
        assert_eq!(rhythm.wait(start), None, "no camera, no wait");
        for frame in 0..100 {
            rhythm.frame(at(frame * 40));
            rhythm.posted(Duration::from_millis(5));
        }
        assert_eq!(rhythm.wait(at(3960 + 10)), None);
        let wait = rhythm.wait(at(3960 + 38)).unwrap();
        assert!((11..=12).contains(&wait.as_millis()), "{wait:?}");
        assert_eq!(rhythm.wait(at(3960 + 51)), None, "the camera has stopped");
    }
}
