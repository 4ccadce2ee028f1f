//! From the sensor to the host's parser and back, over links of any speed and any quality.

mod common;

use common::Scene;
use edge_camera::transport::{Io, SpiBlocks, Transport};
use edge_camera::{ArduCam, CameraError, Event, Module, Output, Streamer};
use edge_faults::{Faults, FaultyLink};
use edge_simulator::{ArduCamSim, ChipSelect, Picture, SensorBus};
use edge_wire::{
    Action, CHUNK_BUFFER, Command, Counters, Event as Link, Level, Message, Parser, PixelFormat, Reply, Request, Statistics, Status,
};
use embedded_hal_mock::eh1::delay::NoopDelay;
use std::collections::VecDeque;

/// A link that takes so many bytes per poll.
#[derive(Default)]
struct Wire {
    to_host: Vec<u8>,
    to_camera: VecDeque<u8>,
    budget: usize,
}

impl Transport for Wire {
    type Error = std::convert::Infallible;

    fn read(&mut self, bytes: &mut [u8]) -> Result<usize, Self::Error> {
        let length = bytes.len().min(self.to_camera.len());
        bytes.iter_mut().zip(self.to_camera.drain(..length)).for_each(|(to, from)| *to = from);
        Ok(length)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<usize, Self::Error> {
        let length = bytes.len().min(self.budget);
        self.budget -= length;
        self.to_host.extend_from_slice(&bytes[..length]);
        Ok(length)
    }
}

/// A picture, as the host got it.
#[derive(Debug, Clone, PartialEq)]
struct Got {
    info: edge_wire::FrameInfo,
    payload: Vec<u8>,
}

type SimCamera<'s> = ArduCam<SensorBus<'s, 's>, ChipSelect<'s, 's>, NoopDelay>;

struct Bench<'s> {
    streamer: Streamer<SimCamera<'s>, Vec<u8>>,
    wire: Wire,
    parser: Parser<Vec<u8>, Vec<u8>>,
    now: u64,
    /// Bytes per millisecond.
    rate: usize,
    frames: Vec<Got>,
    messages: Vec<Message>,
    events: Vec<Event>,
}

impl<'s> Bench<'s> {
    fn new(sim: &'s ArduCamSim<'s>, output: Output, rate: usize) -> Self {
        let camera = ArduCam::new(sim.i2c(), sim.spi(), NoopDelay::new(), Module::Mini2Mp).unwrap();
        let streamer = Streamer::new(camera, [vec![0; 40_000], vec![0; 40_000]], output, 512, 7).unwrap();
        Bench {
            streamer,
            wire: Wire::default(),
            parser: Parser::new(vec![0; CHUNK_BUFFER], vec![0; 1 << 16]).unwrap(),
            now: 0,
            rate,
            frames: Vec::new(),
            messages: Vec::new(),
            events: Vec::new(),
        }
    }

    /// So many milliseconds, of ten polls each.
    fn run(&mut self, milliseconds: u32) {
        for _ in 0..milliseconds {
            self.wire.budget = self.rate;
            for _ in 0..10 {
                self.now += 100;
                self.events.extend(self.streamer.poll(self.now, &mut self.wire).unwrap());
            }
            self.listen();
        }
    }

    fn listen(&mut self) {
        let bytes = std::mem::take(&mut self.wire.to_host);
        let mut rest = &bytes[..];
        while let Some(event) = self.parser.push(&mut rest) {
            match event {
                Link::Frame(f) => self.frames.push(Got { info: f.info, payload: f.payload.to_vec() }),
                Link::Dropped(_) => {}
                Link::Message(m) => self.messages.push(m),
            }
        }
    }

    fn command(&mut self, command: Command) -> Reply {
        let number = self.messages.len() as u32 + 1000;
        let mut request = Request::new(command, number, 500_000, 4);
        loop {
            match request.poll(self.now) {
                Action::Send(bytes) => self.wire.to_camera.extend(bytes),
                Action::WaitUntil(_) => {}
                Action::GiveUp => panic!("no reply to {command:?}"),
            }
            self.run(1);
            if let Some(reply) = self.messages.iter().find_map(|m| request.reply(m)) {
                return reply;
            }
        }
    }

    fn ok(&mut self, command: Command) {
        assert_eq!(self.command(command).status, Status::Ok, "{command:?}");
    }

    /// Until nothing is on its way.
    fn settle(&mut self) -> (Statistics, Counters) {
        self.ok(Command::Stop);
        self.rate = 1 << 20;
        self.run(50);
        (self.streamer.statistics(), self.parser.counters())
    }
}

fn scenes(count: u64) -> Vec<Scene> {
    (0..count).map(|seed| Scene::new(160, 120, seed)).collect()
}

fn pictures(scenes: &[Scene]) -> Vec<Picture<'_>> {
    scenes.iter().map(Scene::picture).collect()
}

const RGB: Output = Output { format: PixelFormat::Rgb565, width: 160, height: 120 };

#[test]
fn a_fast_link_gets_every_picture() {
    let scenes = scenes(5);
    let pictures = pictures(&scenes);
    let sim = ArduCamSim::new(&pictures, 2);
    let mut bench = Bench::new(&sim, RGB, 100_000);
    bench.run(100);
    assert!(bench.frames.is_empty(), "not started");
    bench.ok(Command::Start);
    bench.run(2000);
    let (statistics, counters) = bench.settle();
    assert!(bench.frames.len() > 100, "{}", bench.frames.len());
    for (n, frame) in bench.frames.iter().enumerate() {
        assert_eq!((frame.info.sequence, frame.info.session), (n as u32, 7));
        assert_eq!(frame.payload, scenes[n % 5].rgb565, "{n}");
    }
    // What was begun when the stream was stopped is all that was dropped.
    assert!(statistics.dropped <= 1, "{statistics:?}");
    check(&statistics, &counters, &bench.frames);
}

/// Sender's and receiver's counters say the same.
fn check(statistics: &Statistics, counters: &Counters, frames: &[Got]) {
    assert_eq!(statistics.captured, statistics.sent + statistics.dropped, "{statistics:?}");
    assert_eq!(u64::from(statistics.sent), counters.frames_ok, "{statistics:?} {counters:?}");
    assert_eq!(statistics.bytes_sent, counters.bytes, "{statistics:?} {counters:?}");
    assert_eq!((counters.frames_incomplete, counters.frames_corrupted, counters.frames_missed, counters.restarts), (0, 0, 0, 0));
    assert_eq!(counters.bytes_skipped, 0);
    // Drops before the first frame and after the last are not known to the receiver.
    if let [first, .., last] = frames {
        let span = u64::from(last.info.sequence - first.info.sequence) + 1;
        assert_eq!(counters.frames_ok + counters.frames_overrun, span, "{statistics:?} {counters:?}");
        assert!(last.info.sequence < statistics.captured);
    }
}

#[test]
fn a_slow_link_gets_whole_pictures_and_the_rest_is_counted() {
    let scenes = scenes(7);
    let pictures = pictures(&scenes);
    let sim = ArduCamSim::new(&pictures, 5);
    // 92 bytes per millisecond: a UART of 921,600 baud.
    let mut bench = Bench::new(&sim, RGB, 92);
    bench.ok(Command::Start);
    bench.run(20_000);
    let (statistics, counters) = bench.settle();
    // 20 s · 92,160 bytes/s / 41,478 bytes, less what waits for the sensor.
    assert!((40..=46).contains(&statistics.sent) && statistics.dropped > 300, "{statistics:?}");
    for frame in &bench.frames {
        assert_eq!(frame.payload, scenes[frame.info.sequence as usize % 7].rgb565);
    }
    assert!(bench.frames[1..].iter().all(|f| f.info.flags == edge_wire::flags::OVERRUN));
    check(&statistics, &counters, &bench.frames);
    // Statistics come once a second, without being asked for.
    let reports = bench.messages.iter().filter(|m| m.kind == edge_wire::Kind::Statistics).count();
    assert!((19..=21).contains(&reports), "{reports}");
    // A picture is at most one transmission and one capture old when its transmission begins.
    let transmission = 41_478 * 1000 / 92;
    for two in bench.frames.windows(2) {
        assert!(two[1].info.timestamp_us - two[0].info.timestamp_us < 2 * transmission);
    }
}

#[test]
fn every_output_is_what_the_scene_makes() {
    let scenes = scenes(1);
    let pictures = pictures(&scenes);
    let sim = ArduCamSim::new(&pictures, 1);
    let mut bench = Bench::new(&sim, RGB, 100_000);
    bench.ok(Command::Start);
    let last = |bench: &mut Bench| {
        bench.run(200);
        bench.frames.last().unwrap().clone()
    };
    // The middle of the picture.
    bench.ok(Command::SetSize { width: 120, height: 120 });
    let cut = last(&mut bench);
    assert_eq!((cut.info.width, cut.info.height), (120, 120));
    let rows = scenes[0].rgb565.chunks(320).flat_map(|row| &row[40..280]).copied().collect::<Vec<u8>>();
    assert_eq!(cut.payload, rows);
    // JPEG as the sensor made it, without the FIFO's padding.
    assert_eq!(bench.command(Command::SetFormat(PixelFormat::Jpeg)).status, Status::Unsupported, "no JPEG of 120×120");
    bench.ok(Command::SetSize { width: 160, height: 120 });
    bench.ok(Command::SetFormat(PixelFormat::Jpeg));
    let file = last(&mut bench);
    assert_eq!((file.info.format, file.payload), (PixelFormat::Jpeg, scenes[0].jpeg.clone()));
    // Gray, half of QVGA.
    bench.ok(Command::SetFormat(PixelFormat::Gray8));
    let gray = last(&mut bench);
    assert_eq!((gray.info.format, gray.payload.len()), (PixelFormat::Gray8, 19_200));
    bench.ok(Command::SetFlip { horizontal: true, vertical: false });
    let mirrored = last(&mut bench);
    let rows = gray.payload.chunks(160).flat_map(|row| row.iter().rev().copied()).collect::<Vec<u8>>();
    assert_eq!(mirrored.payload, rows);
    bench.ok(Command::SetTestPattern(true));
    assert_eq!(last(&mut bench).payload[159], 255, "white, mirrored to the right");
    // Controls outlive a change of the mode, which resets the sensor.
    bench.ok(Command::SetFormat(PixelFormat::Rgb565));
    assert_eq!(last(&mut bench).payload[318..320], [0xFF, 0xFF]);
    let (statistics, counters) = bench.settle();
    check(&statistics, &counters, &bench.frames);
}

#[test]
fn commands_that_cannot_be_done_change_nothing() {
    let scenes = scenes(1);
    let pictures = pictures(&scenes);
    let sim = ArduCamSim::new(&pictures, 1);
    let mut bench = Bench::new(&sim, RGB, 100_000);
    for (command, status) in [
        (Command::SetSize { width: 0, height: 120 }, Status::Unsupported),
        (Command::SetSize { width: 8000, height: 6000 }, Status::Unsupported),
        (Command::SetSize { width: 320, height: 240 }, Status::OutOfRange), // 153,600 bytes in buffers of 40,000
        (Command::SetFormat(PixelFormat::Rgb888), Status::Unsupported),
        (Command::SetFormat(PixelFormat::Yuv422), Status::Unsupported),
        (Command::SetExposure(Level::Manual(0)), Status::OutOfRange),
        (Command::SetGain(Level::Manual(1)), Status::OutOfRange),
    ] {
        assert_eq!(bench.command(command).status, status, "{command:?}");
    }
    sim.faults.naks.set(1000);
    assert_eq!(bench.command(Command::SetExposure(Level::Auto)).status, Status::SensorFault);
    sim.faults.naks.set(0);
    let statistics = bench.command(Command::GetStatistics).statistics.unwrap();
    assert_eq!((statistics.commands, statistics.captured, statistics.bytes_skipped), (9, 0, 0));
    bench.ok(Command::Start);
    bench.run(200);
    assert_eq!(bench.frames.last().unwrap().payload, scenes[0].rgb565);
}

#[test]
fn commands_arrive_once_over_a_bad_link() {
    let scenes = scenes(1);
    let pictures = pictures(&scenes);
    let sim = ArduCamSim::new(&pictures, 1);
    let faults = Faults { drop: 0.3, duplicate: 0.2, bit_error_rate: 1e-3, garbage: 0.2, ..Faults::default() };
    let (mut down, mut up) = (FaultyLink::new(faults, 1), FaultyLink::new(faults, 2));
    let mut bench = Bench::new(&sim, RGB, 100_000);
    let (mut given_up, mut sends) = (0, 0);
    for number in 0..300 {
        let level = Level::Manual(number + 1);
        let mut request = Request::new(Command::SetExposure(level), number.into(), 20_000, 20);
        loop {
            match request.poll(bench.now) {
                Action::Send(bytes) => {
                    let mut arrived = Vec::new();
                    down.send(bytes, &mut arrived);
                    bench.wire.to_camera.extend(arrived);
                    sends += 1;
                }
                Action::WaitUntil(_) => {}
                Action::GiveUp => {
                    given_up += 1;
                    break;
                }
            }
            bench.wire.budget = 1 << 20;
            bench.now += 1000;
            bench.events.extend(bench.streamer.poll(bench.now, &mut bench.wire).unwrap());
            let sent = std::mem::take(&mut bench.wire.to_host);
            if !sent.is_empty() {
                up.send(&sent, &mut bench.wire.to_host);
            }
            bench.listen();
            if bench.messages.drain(..).any(|m| request.reply(&m).is_some_and(|r| r.status == Status::Ok)) {
                let exposure = u16::from(sim.register(1, 0x10)) << 2 | u16::from(sim.register(1, 0x04) & 3);
                assert_eq!(exposure, number + 1);
                break;
            }
        }
    }
    assert_eq!(given_up, 0);
    assert!(sends > 350, "the link lost none: {sends}");
    // Repeats are answered, not obeyed; the camera counts them all.
    let obeyed = bench.events.iter().filter(|e| matches!(e, Event::Command(..))).count();
    assert_eq!(obeyed as u32, bench.streamer.statistics().commands);
    assert!(obeyed > 300, "{obeyed}");
}

#[test]
fn a_sensor_that_fails_is_set_up_again() {
    let scenes = scenes(1);
    let pictures = pictures(&scenes);
    let sim = ArduCamSim::new(&pictures, 1);
    let mut bench = Bench::new(&sim, RGB, 100_000);
    bench.ok(Command::SetFlip { horizontal: true, vertical: false });
    bench.ok(Command::Start);
    bench.run(100);
    let mirrored = bench.frames.last().unwrap().payload.clone();
    // Power fails for a moment: the registers are gone, and with them the pictures.
    sim.faults.brown_out.set(true);
    bench.ok(Command::SetExposure(Level::Auto));
    bench.run(7000);
    assert_eq!(bench.events.iter().filter(|e| **e == Event::Failed(CameraError::Timeout)).count(), 2, "{:?}", bench.events);
    assert_eq!(bench.events.iter().filter(|e| **e == Event::Reset).count(), 1);
    assert_eq!(bench.frames.last().unwrap().payload, mirrored, "and the controls are as they were");
    assert!(bench.now - u64::from(bench.frames.last().unwrap().info.timestamp_us) < 100_000);
    // Short captures are never sent.
    let before = bench.frames.len();
    sim.faults.short.set(9);
    bench.run(1000);
    assert!(bench.frames.len() <= before + 2);
    sim.faults.short.set(0);
    bench.run(1000);
    assert!(bench.frames.len() > before + 10);
    let (statistics, counters) = bench.settle();
    assert!(statistics.failed > 10);
    check(&statistics, &counters, &bench.frames);
    assert!(bench.frames.iter().all(|f| f.payload == mirrored));
}

#[test]
fn pictures_that_do_not_fit_are_refused_or_dropped() {
    let scenes = scenes(1);
    let mut pictures = pictures(&scenes);
    let sim = ArduCamSim::new(&pictures, 1);
    let camera = || ArduCam::new(sim.i2c(), sim.spi(), NoopDelay::new(), Module::Mini2Mp).unwrap();
    let small = Streamer::new(camera(), [[0; 38_399], [0; 38_399]], RGB, 512, 0).err();
    assert_eq!(small, Some(CameraError::Length { expected: 38_399, found: 38_400 }));
    // A JPEG file larger than the buffer, and one that is damaged.
    let damaged = vec![0x55; 64];
    pictures[0].jpeg = &damaged;
    let sim = ArduCamSim::new(&pictures, 1);
    let mut bench = Bench::new(&sim, Output { format: PixelFormat::Jpeg, ..RGB }, 100_000);
    bench.ok(Command::Start);
    bench.run(50);
    assert!(bench.events.contains(&Event::Failed(CameraError::NotJpeg)) && bench.frames.is_empty());
    let (statistics, counters) = bench.settle();
    check(&statistics, &counters, &bench.frames);
}

/// `embedded-io`, in pieces as small as a UART's FIFO.
struct Pipe<'w>(&'w mut Wire);

impl embedded_io::ErrorType for Pipe<'_> {
    type Error = core::convert::Infallible;
}
impl embedded_io::ReadReady for Pipe<'_> {
    fn read_ready(&mut self) -> Result<bool, Self::Error> {
        Ok(!self.0.to_camera.is_empty())
    }
}
impl embedded_io::WriteReady for Pipe<'_> {
    fn write_ready(&mut self) -> Result<bool, Self::Error> {
        Ok(self.0.budget > 0)
    }
}
impl embedded_io::Read for Pipe<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> Result<usize, Self::Error> {
        assert!(!self.0.to_camera.is_empty(), "would wait");
        self.0.read(bytes)
    }
}
impl embedded_io::Write for Pipe<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<usize, Self::Error> {
        assert!(self.0.budget > 0, "would wait");
        self.0.write(&bytes[..bytes.len().min(16)])
    }
    fn flush(&mut self) -> Result<(), Self::Error> {
        Ok(())
    }
}

#[test]
fn embedded_io_never_waits() {
    let scenes = scenes(3);
    let pictures = pictures(&scenes);
    let sim = ArduCamSim::new(&pictures, 1);
    let mut bench = Bench::new(&sim, RGB, 0);
    let (start, length) = Command::Start.encode(1).encode();
    bench.wire.to_camera.extend(&start[..length]);
    while bench.frames.len() < 20 {
        bench.now += 100;
        bench.wire.budget = 40;
        bench.streamer.poll(bench.now, &mut Io(Pipe(&mut bench.wire))).unwrap();
        bench.listen();
    }
    assert!(bench.frames.iter().all(|f| f.payload == scenes[f.info.sequence as usize % 3].rgb565));
    assert_eq!(bench.parser.counters().bytes_skipped, 0);
}

#[test]
fn spi_blocks_carry_both_directions() {
    const BLOCK: usize = 256;
    let scenes = scenes(3);
    let pictures = pictures(&scenes);
    let sim = ArduCamSim::new(&pictures, 1);
    let mut bench = Bench::new(&sim, RGB, 0);
    let mut link = SpiBlocks::<BLOCK>::default();
    let (start, length) = Command::Start.encode(1).encode();
    let mut block = [0; BLOCK];
    block[100..100 + length].copy_from_slice(&start[..length]);
    let mut idle = 0;
    for _ in 0..4_000 {
        let had_data = link.has_data();
        link.exchange(&mut block);
        assert!(had_data || block == [0; BLOCK]);
        idle += usize::from(!had_data);
        // What the master clocked in; its next block is empty.
        bench.wire.to_host.extend_from_slice(&std::mem::replace(&mut block, [0; BLOCK]));
        for _ in 0..20 {
            bench.now += 10;
            bench.streamer.poll(bench.now, &mut link).unwrap();
        }
        bench.listen();
    }
    assert!(bench.frames.len() > 15 && idle > 0, "{} {idle}", bench.frames.len());
    assert!(bench.frames.iter().all(|f| f.payload == scenes[f.info.sequence as usize % 3].rgb565));
    let counters = bench.parser.counters();
    assert_eq!((counters.headers_corrupted, counters.chunks_corrupted), (0, 0));
    assert_eq!(bench.messages.iter().filter(|m| Reply::decode(m).is_some()).count(), 1);
}
