//! Video4Linux2: USB webcams, capture cards and whatever else has a `/dev/video*` with pixels or JPEG files in it.
//!
//! Frames stay in the driver's memory until they are converted. Devices with several planes of memory (`MPLANE`) and
//! raw sensors are not read; `libcamera:` and `exec:` are for those.

mod abi;
mod controls;
mod negotiate;

use super::CameraOptions;
use super::address::VideoDevice;
use super::camera::{Delivery, Source, TICK};
use super::options::usage;
use super::raw::{Layout, Matrix, Memory, RawFormat};
use super::stream::Tally;
use abi::{buffer_flag, cap};
use edge_wire::FrameInfo;
use memmap2::Mmap;
use negotiate::{Choice, KNOWN, Offer, Sizes, Wish};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use std::io;
use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Buffers: one to be filled, one that waits to be taken, one that is converted, and one to spare.
const BUFFERS: u32 = 4;
/// Most formats, sizes and rates that a device is asked for.
const MOST: u32 = 256;
/// Silence after which the device is opened again.
const STALL: Duration = Duration::from_secs(10);
/// A driver's time further away than this is not this machine's.
const FAR: Duration = Duration::from_secs(60);

/// Whether a format has this name in addresses.
pub(super) fn format_name(text: &str) -> Option<&'static str> {
    KNOWN.iter().map(|k| k.name).find(|name| name.eq_ignore_ascii_case(text))
}

/// A device, which may come and go.
pub(super) struct Device {
    address: VideoDevice,
    wish: Wish,
    controls: Vec<(String, String)>,
    stream: Option<(Arc<Stream>, RawFormat)>,
    tally: Tally,
}

/// A device that sends frames, and its memory.
struct Stream {
    fd: OwnedFd,
    maps: Vec<Mmap>,
}

/// A filled buffer; the driver gets it back when this is dropped.
pub(super) struct Buffer {
    stream: Arc<Stream>,
    index: u32,
    length: usize,
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.stream.maps[self.index as usize][..self.length]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // Fails where the device is gone, which reading will tell.
        let _ = self.stream.queue(self.index);
    }
}

impl Device {
    pub fn new(address: VideoDevice, options: &CameraOptions) -> io::Result<Self> {
        options.without_format("v4l2: has it in the address")?;
        options.without_authorization("a device has none")?;
        let wish = Wish { size: address.size, rate: address.rate, format: address.format, least: options.least, gray: options.gray };
        Ok(Device { address, wish, controls: options.controls.clone(), stream: None, tally: Tally::new() })
    }

    fn read_all(&mut self, stream: &Arc<Stream>, format: &RawFormat, delivery: &Delivery) -> io::Result<()> {
        let mut last_sequence = None;
        let mut last_frame = Instant::now();
        let tick = Timespec { tv_sec: 0, tv_nsec: TICK.subsec_nanos().into() };
        while !delivery.stopped() {
            let buffer = match stream.dequeue() {
                Ok(buffer) => buffer,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    if last_frame.elapsed() > STALL {
                        return Err(io::Error::new(io::ErrorKind::TimedOut, format!("no frame for {} seconds", STALL.as_secs())));
                    }
                    let mut waiting = [PollFd::new(&stream.fd, PollFlags::IN)];
                    let ready = rustix::io::retry_on_intr(|| poll(&mut waiting, Some(&tick)))?;
                    // An error that taking a buffer does not tell would make this loop spin.
                    if ready > 0 && !waiting[0].revents().contains(PollFlags::IN) {
                        std::thread::sleep(TICK / 10);
                    }
                    continue;
                }
                Err(e) => return Err(e),
            };
            last_frame = Instant::now();
            let Some(map) = stream.maps.get(buffer.index as usize) else {
                return Err(io::Error::other(format!("the driver gave buffer {}, which there is not", buffer.index)));
            };
            let length = (buffer.bytesused as usize).min(map.len());
            let mut taken = Buffer { stream: stream.clone(), index: buffer.index, length };
            let counters = &mut self.tally.counters;
            counters.frames_missed += missed(last_sequence.replace(buffer.sequence), buffer.sequence);
            counters.bytes += length as u64;
            let damaged = buffer.flags & buffer_flag::ERROR != 0;
            match format.info(length).ok().filter(|_| !damaged && is_whole(format, &mut taken)) {
                Some(info) => {
                    counters.bytes_accepted += taken.length as u64;
                    counters.bytes_skipped += (length - taken.length) as u64;
                    // A JPEG file's padding is not its.
                    let info = if format.layout == Layout::Jpeg { FrameInfo { length: taken.length as u32, ..info } } else { info };
                    let (captured, timestamp) = captured(&buffer, last_frame);
                    let frame = self.tally.frame(info, captured, timestamp);
                    delivery.deliver_raw(frame, (*format, Memory::Mapped(taken)), self.tally.counters);
                }
                None => {
                    *(if damaged { &mut counters.frames_corrupted } else { &mut counters.frames_incomplete }) += 1;
                    counters.bytes_skipped += length as u64;
                    delivery.count(*counters);
                }
            }
        }
        Ok(())
    }

    /// Opens the device, agrees with it on a format, and starts it.
    fn start(&self) -> io::Result<(Arc<Stream>, RawFormat)> {
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = rustix::fs::open(&self.address.path, flags, Mode::empty())?;
        check(fd.as_fd())?;
        let offers = offers(fd.as_fd());
        let choice = negotiate::choose(&offers, &self.wish, |code, size| intervals(fd.as_fd(), code, size)).map_err(usage)?;
        // Before the format, which may depend on them.
        controls::set(fd.as_fd(), &self.controls)?;
        let format = agree(fd.as_fd(), &choice)?;
        if let Some(interval) = choice.interval {
            set_interval(fd.as_fd(), interval);
        }
        Ok((Arc::new(Stream::start(fd)?), format))
    }
}

impl Source for Device {
    fn open(&mut self) -> io::Result<()> {
        self.stream = Some(self.start()?);
        Ok(())
    }

    fn read(&mut self, delivery: &mut Delivery) -> io::Result<()> {
        let Some((stream, format)) = self.stream.take() else { return Ok(()) };
        let result = self.read_all(&stream, &format, delivery);
        // Frames that nobody has taken keep their memory; the device itself is free for the next to open it.
        let _ = abi::stream(stream.fd.as_fd(), false);
        result
    }
}

impl Stream {
    /// Asks for memory, maps it, gives it to the driver, and starts.
    fn start(fd: OwnedFd) -> io::Result<Stream> {
        let mut request = abi::RequestBuffers { count: BUFFERS, kind: abi::CAPTURE, memory: abi::MMAP, ..Default::default() };
        abi::request_buffers(fd.as_fd(), &mut request)?;
        if request.count < 2 {
            return Err(io::Error::new(io::ErrorKind::OutOfMemory, format!("the driver has memory for {} frames only", request.count)));
        }
        let mut stream = Stream { fd, maps: Vec::new() };
        for index in 0..request.count {
            let mut buffer = abi::Buffer { index, kind: abi::CAPTURE, memory: abi::MMAP, ..Default::default() };
            abi::query_buffer(stream.fd.as_fd(), &mut buffer)?;
            stream.maps.push(abi::map(stream.fd.as_fd(), &buffer)?);
        }
        (0..request.count).try_for_each(|index| stream.queue(index))?;
        abi::stream(stream.fd.as_fd(), true)?;
        Ok(stream)
    }

    fn queue(&self, index: u32) -> io::Result<()> {
        let mut buffer = abi::Buffer { index, kind: abi::CAPTURE, memory: abi::MMAP, ..Default::default() };
        abi::queue_buffer(self.fd.as_fd(), &mut buffer)
    }

    fn dequeue(&self) -> io::Result<abi::Buffer> {
        let mut buffer = abi::Buffer { kind: abi::CAPTURE, memory: abi::MMAP, ..Default::default() };
        abi::dequeue_buffer(self.fd.as_fd(), &mut buffer)?;
        Ok(buffer)
    }
}

/// Frames that the driver dropped between two that it gave.
fn missed(last: Option<u32>, sequence: u32) -> u64 {
    let gap = last.map_or(0, |last| sequence.wrapping_sub(last).wrapping_sub(1));
    // A driver that counts from the beginning again has dropped none.
    if gap > u32::MAX / 2 { 0 } else { gap.into() }
}

/// Whether all of a frame is there; of a JPEG file, what follows its end is cut off.
fn is_whole(format: &RawFormat, buffer: &mut Buffer) -> bool {
    if format.layout != Layout::Jpeg {
        return buffer.length >= format.length();
    }
    let end = buffer.windows(2).rposition(|w| w == [0xFF, 0xD9]);
    buffer.length = end.map_or(0, |end| end + 2);
    buffer.starts_with(&[0xFF, 0xD8, 0xFF])
}

/// When a frame was captured: the driver's time, if its clock is ours, else when the frame came.
fn captured(buffer: &abi::Buffer, now: Instant) -> (Instant, Option<Duration>) {
    if buffer.flags & buffer_flag::TIMESTAMP_MASK != buffer_flag::TIMESTAMP_MONOTONIC {
        return (now, None);
    }
    let [seconds, micros] = buffer.timestamp;
    let theirs = u64::try_from(seconds).ok().zip(u32::try_from(micros).ok().filter(|micros| *micros < 1_000_000));
    let theirs = theirs.map(|(seconds, micros)| Duration::new(seconds, micros * 1000));
    let age = abi::monotonic().zip(theirs);
    match age.and_then(|(ours, theirs)| Some((ours.checked_sub(theirs)?, theirs))) {
        Some((age, theirs)) if age < FAR => (Instant::now().checked_sub(age).unwrap_or(now), Some(theirs)),
        _ => (now, None),
    }
}

/// Refuses what is no camera of our kind.
fn check(fd: BorrowedFd) -> io::Result<()> {
    let mut capability = abi::Capability::default();
    abi::query_capability(fd, &mut capability).map_err(|e| match e.raw_os_error() {
        Some(code) if code == rustix::io::Errno::NOTTY.raw_os_error() => usage("it is no video device".into()),
        _ => e,
    })?;
    let all = capability.capabilities;
    let caps = if all & cap::DEVICE_CAPS != 0 { capability.device_caps } else { all };
    let card = String::from_utf8_lossy(capability.card.split(|b| *b == 0).next().unwrap_or_default()).into_owned();
    if caps & cap::VIDEO_CAPTURE == 0 {
        let why = if caps & cap::VIDEO_CAPTURE_MPLANE != 0 {
            "has several planes of memory, which exec: with ffmpeg reads"
        } else {
            "gives no pictures"
        };
        return Err(usage(format!("this device of “{card}” {why}; others are: ls /dev/v4l/by-id")));
    }
    if caps & cap::STREAMING == 0 {
        return Err(usage(format!("this device of “{card}” cannot stream")));
    }
    Ok(())
}

/// The device's formats and their sizes.
fn offers(fd: BorrowedFd) -> Vec<Offer> {
    let mut offers = Vec::new();
    for index in 0..MOST {
        let mut format = abi::FmtDesc { index, kind: abi::CAPTURE, ..Default::default() };
        if abi::enumerate_formats(fd, &mut format).is_err() {
            break;
        }
        let code = format.pixelformat;
        if KNOWN.iter().any(|k| k.code == code) {
            offers.push(Offer { code, sizes: sizes(fd, code) });
        } else {
            offers.push(Offer { code, sizes: Sizes::Unknown });
        }
    }
    offers
}

fn sizes(fd: BorrowedFd, code: u32) -> Sizes {
    let mut listed = Vec::new();
    for index in 0..MOST {
        let mut size = abi::FrameSize { index, pixelformat: code, ..Default::default() };
        if abi::enumerate_sizes(fd, &mut size).is_err() {
            break;
        }
        let [a, b, c, d, e, f] = size.values;
        if size.kind != abi::DISCRETE {
            return Sizes::Range([(a, b, c), (d, e, f)]);
        }
        listed.push((a, b));
    }
    if listed.is_empty() { Sizes::Unknown } else { Sizes::Listed(listed) }
}

/// Frame times of a format and size, fractions of a second; of a range, both its ends and what is asked for most.
fn intervals(fd: BorrowedFd, code: u32, (width, height): (u32, u32)) -> Vec<[u32; 2]> {
    let mut found = Vec::new();
    for index in 0..MOST {
        let mut interval = abi::FrameInterval { index, pixelformat: code, width, height, ..Default::default() };
        if abi::enumerate_intervals(fd, &mut interval).is_err() {
            break;
        }
        let [n, d, n2, d2, ..] = interval.values;
        if interval.kind != abi::DISCRETE {
            let time = |n: u32, d: u32| f64::from(n) / f64::from(d.max(1));
            let within = |rate: u32| (time(n, d)..=time(n2, d2)).contains(&time(1, rate));
            let rates = (1..=240).filter(|rate| within(*rate)).map(|rate| [1, rate]);
            return [[n, d], [n2, d2]].into_iter().chain(rates).collect();
        }
        found.push([n, d]);
    }
    found
}

/// Sets a format; what the driver makes of it counts.
fn agree(fd: BorrowedFd, choice: &Choice) -> io::Result<RawFormat> {
    let (width, height) = choice.size;
    let pix = abi::PixFormat { width, height, pixelformat: choice.code, field: abi::PROGRESSIVE, ..Default::default() };
    let mut format = abi::Format { kind: abi::CAPTURE, pix, ..Default::default() };
    abi::set_format(fd, &mut format)?;
    let pix = format.pix;
    let Some(known) = KNOWN.iter().find(|k| k.code == pix.pixelformat) else {
        return Err(usage(format!("it gives {} instead of {}", negotiate::name(pix.pixelformat), negotiate::name(choice.code))));
    };
    let stride = if known.layout == Layout::Jpeg { 0 } else { pix.bytesperline as usize };
    RawFormat::new(known.layout, pix.width, pix.height, stride, matrix(&pix)).map_err(usage)
}

/// Of the colours that a driver names; what it leaves open is as the kernel's `V4L2_MAP_YCBCR_ENC_DEFAULT` and
/// `V4L2_MAP_QUANTIZATION_DEFAULT` say. Wide gamuts are taken for BT.709.
fn matrix(pix: &abi::PixFormat) -> Matrix {
    const JPEG: u32 = 7;
    const REC709: u32 = 3;
    const BT2020: u32 = 10;
    const DCI_P3: u32 = 12;
    let is_709 = match pix.ycbcr_enc {
        0 => matches!(pix.colorspace, REC709 | BT2020 | DCI_P3),
        encoding => encoding != 1 && encoding != 3,
    };
    let full = pix.quantization == 1 || (pix.quantization == 0 && pix.colorspace == JPEG);
    match (is_709, full) {
        (false, true) => Matrix::JFIF,
        (false, false) => Matrix::BT601,
        (true, true) => Matrix::BT709_FULL,
        (true, false) => Matrix::BT709,
    }
}

/// Sets the rate, where there is one to set: a device without it sends as it likes.
fn set_interval(fd: BorrowedFd, interval: [u32; 2]) {
    let mut parameters = abi::StreamParm { kind: abi::CAPTURE, ..Default::default() };
    if abi::get_parameters(fd, &mut parameters).is_ok() && parameters.capability & cap::TIME_PER_FRAME != 0 {
        parameters.time_per_frame = interval;
        let _ = abi::set_parameters(fd, &mut parameters);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_in_the_drivers_numbers_are_frames() {
        assert_eq!(missed(None, 7), 0);
        assert_eq!(missed(Some(7), 8), 0);
        assert_eq!(missed(Some(7), 11), 3);
        assert_eq!(missed(Some(u32::MAX), 1), 1);
        assert_eq!(missed(Some(100), 0), 0);
    }

    #[test]
    fn times_of_our_clock_are_taken_and_others_are_not() {
        let buffer = |time: Duration, flags| abi::Buffer {
            timestamp: [time.as_secs() as _, time.subsec_micros().into()],
            flags,
            ..Default::default()
        };
        let (now, ours, monotonic) = (Instant::now(), abi::monotonic().unwrap(), buffer_flag::TIMESTAMP_MONOTONIC);
        let (at, time) = captured(&buffer(ours - Duration::from_secs(2), monotonic), now);
        assert!((1900..=2000).contains(&(now - at).as_millis()) && time.is_some());
        let since_1970 = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        for (time, flags) in [(ours, 0), (since_1970, monotonic), (ours + Duration::from_secs(5), monotonic), (Duration::ZERO, monotonic)] {
            assert_eq!(captured(&buffer(time, flags), now), (now, None));
        }
    }

    #[test]
    fn colours_are_as_the_kernel_defines_them() {
        let of =
            |colorspace, ycbcr_enc, quantization| matrix(&abi::PixFormat { colorspace, ycbcr_enc, quantization, ..Default::default() });
        // sRGB, which webcams say; SMPTE 170M; JPEG; Rec. 709; and what is said in so many words.
        assert_eq!(of(8, 0, 0), Matrix::BT601);
        assert_eq!(of(1, 0, 0), Matrix::BT601);
        assert_eq!(of(7, 0, 0), Matrix::JFIF);
        assert_eq!(of(3, 0, 0), Matrix::BT709);
        assert_eq!(of(8, 2, 1), Matrix::BT709_FULL);
        assert_eq!(of(3, 1, 2), Matrix::BT601);
    }
}
