//! The QEMU board, whole: the ELF file that is built for it runs in QEMU, its UART is a socket, and what comes out of
//! that goes into `edge-infer --frames -` as it comes. Asked of it:
//!
//! 1. JPEG, RGB565 and gray pictures arrive as they are in flash, byte for byte, and get the labels of the same pictures
//!    read from files;
//! 2. every command is obeyed; counters of both sides add up; a host that does not read costs whole frames, which are counted;
//! 3. through bit errors, losses, repeats, reordering, garbage and a broken connection no wrong frame is accepted, and
//!    the link is understood again within one frame;
//! 4. the log is the recorded one.
#![forbid(unsafe_code)]

mod board;
mod labels;
mod log;
mod pictures;

use board::Board;
use edge_faults::Faults;
use edge_wire::{Command, Level, PixelFormat, Status};
use labels::Labels;
use pictures::Pictures;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Every failure ends the run and says what was expected.
pub type Error = Box<dyn std::error::Error>;

#[macro_export]
macro_rules! ensure {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err(format!($($message)+).into());
        }
    };
}

/// What the command line names.
struct Paths<'a> {
    elf: &'a Path,
    edge_infer: &'a Path,
    model: &'a Path,
    pictures: &'a Path,
    golden: &'a Path,
}

const USAGE: &str = "usage: edge-endtoend run BOARD.elf EDGE-INFER MODEL.onnx PICTURES GOLDEN.log
       edge-endtoend log PROGRAM.elf LOG      prints what a program logged with defmt";

fn main() {
    let args: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let result = match args.iter().map(PathBuf::as_path).collect::<Vec<_>>()[..] {
        [mode, elf, edge_infer, model, pictures, golden] if mode == "run" => run(&Paths { elf, edge_infer, model, pictures, golden }),
        [mode, elf, file] if mode == "log" => log::print(elf, file),
        _ => {
            eprintln!("{USAGE}");
            std::process::exit(2);
        }
    };
    if let Err(error) = result {
        eprintln!("failed: {error}");
        std::process::exit(1);
    }
}

fn run(paths: &Paths) -> Result<(), Error> {
    let pictures = Pictures::read(paths.pictures)?;
    let folder = tempfile::tempdir()?;
    let mut labels = Labels::start(paths.edge_infer, paths.model, folder.path())?;
    let mut board = Board::start(paths.elf, folder.path())?;

    board.ok(Command::Ping)?;
    formats(&mut board, &mut labels, &pictures)?;
    settings(&mut board)?;
    let statistics = slow_host(&mut board, &mut labels, &pictures)?;
    println!("the board counts {statistics:?}");
    let before = labels.expected();
    faults(&mut board, &mut labels, &pictures)?;

    let frames = labels.finish(folder.path())?;
    println!(
        "labels: {frames} frames ({} of them through faults) have the labels and logits of the same pictures from files",
        frames - before
    );
    let lines = log::check(paths.elf, &board.stop()?, paths.golden)?;
    println!("log: {lines} lines, as recorded");
    Ok(())
}

/// Every format, at its own pace.
fn formats(board: &mut Board, labels: &mut Labels, pictures: &Pictures) -> Result<(), Error> {
    for (format, (width, height)) in [
        (PixelFormat::Jpeg, (160, 120)),
        (PixelFormat::Rgb565, (160, 120)),
        (PixelFormat::Rgb565, (120, 120)),
        (PixelFormat::Gray8, (120, 120)),
        (PixelFormat::Gray8, (80, 60)),
    ] {
        // The size first, where the new format has no way to the old size.
        let (size, format_) = (Command::SetSize { width, height }, Command::SetFormat(format));
        for command in if format == PixelFormat::Jpeg { [size, format_] } else { [format_, size] } {
            board.ok(command)?;
        }
        board.ok(Command::Start)?;
        let mut seen = vec![false; pictures.len()];
        let mut frames = 0;
        while seen.contains(&false) {
            let frame = board.frame()?;
            frames += 1;
            ensure!(frames < 20 * seen.len(), "{frames} frames of {format}, and some pictures never came");
            let info = frame.info;
            ensure!((info.format, info.width, info.height) == (format, width, height), "asked for {width}×{height} {format}, got {info:?}");
            let which = pictures.identify(&frame)?;
            if !std::mem::replace(&mut seen[which], true) {
                labels.expect(&frame)?;
            } else {
                labels.skip();
            }
            labels.feed(&board.take_raw())?;
        }
        board.ok(Command::Stop)?;
        rest(board, labels, pictures)?;
        println!("{format} {width}×{height}: {frames} frames, all {} pictures among them", seen.len());
    }
    Ok(())
}

/// What is still on its way after a stop.
fn rest(board: &mut Board, labels: &mut Labels, pictures: &Pictures) -> Result<(), Error> {
    for frame in board.quiet(Duration::from_millis(300))? {
        pictures.identify(&frame)?;
        labels.skip();
    }
    labels.feed(&board.take_raw())
}

/// Commands whose effect is not in the picture's layout, and such as cannot be obeyed.
fn settings(board: &mut Board) -> Result<(), Error> {
    board.ok(Command::SetExposure(Level::Manual(300)))?;
    board.ok(Command::SetExposure(Level::Auto))?;
    board.ok(Command::SetGain(Level::Manual(32)))?;
    board.ok(Command::SetGain(Level::Auto))?;
    for (command, status) in [
        (Command::SetExposure(Level::Manual(0)), Status::OutOfRange),
        (Command::SetSize { width: 320, height: 240 }, Status::OutOfRange),
        (Command::SetSize { width: 353, height: 288 }, Status::Unsupported),
        (Command::SetFormat(PixelFormat::Rgb888), Status::Unsupported),
    ] {
        let reply = board.command(command)?;
        ensure!(reply.status == status, "{command:?}: {:?} instead of {status:?}", reply.status);
    }
    board.ok(Command::SetFormat(PixelFormat::Rgb565))?;
    board.ok(Command::SetSize { width: 160, height: 120 })?;
    board.ok(Command::SetTestPattern(true))?;
    board.ok(Command::Start)?;
    let bars = board.frame()?.payload;
    ensure!(bars[..2] == [0xFF, 0xFF] && bars[318..320] == [0, 0], "no colour bars, white first and black last");
    board.ok(Command::Stop)?;
    board.quiet(Duration::from_millis(300))?;
    // Colour bars are nothing to label.
    board.take_raw();
    board.ok(Command::SetTestPattern(false))
}

/// A host that does not read for a while.
fn slow_host(board: &mut Board, labels: &mut Labels, pictures: &Pictures) -> Result<edge_wire::Statistics, Error> {
    board.take_raw();
    board.ok(Command::Start)?;
    std::thread::sleep(Duration::from_secs(2));
    for _ in 0..10 {
        let frame = board.frame()?;
        pictures.identify(&frame)?;
        labels.skip();
    }
    board.ok(Command::Stop)?;
    rest(board, labels, pictures)?;
    let counters = board.counters();
    let reply = board.command(Command::GetStatistics)?;
    let Some(statistics) = reply.statistics else { return Err("a reply to GetStatistics without statistics".into()) };
    ensure!(counters.frames_overrun > 0, "the host did not read for 2 s, and no frame was dropped: {counters:?}");
    ensure!(statistics.captured == statistics.sent + statistics.dropped, "the board's counters do not add up: {statistics:?}");
    ensure!(u64::from(statistics.sent) == counters.frames_ok, "sent {}, received {}", statistics.sent, counters.frames_ok);
    ensure!(statistics.failed == 0 && statistics.bytes_skipped == 0, "{statistics:?}");
    let damaged = counters.frames_incomplete + counters.frames_corrupted + counters.bytes_skipped + counters.headers_corrupted;
    ensure!(damaged == 0, "damage on a clean link: {counters:?}");
    Ok(statistics)
}

/// The same through a link that misbehaves, and a connection that breaks.
fn faults(board: &mut Board, labels: &mut Labels, pictures: &Pictures) -> Result<(), Error> {
    board.ok(Command::SetFormat(PixelFormat::Jpeg))?;
    board.take_raw();
    for (name, faults, frames) in [
        ("bit errors, 1e-5", Faults { bit_error_rate: 1e-5, ..Faults::default() }, 20),
        ("bit errors, 1e-4", Faults { bit_error_rate: 1e-4, ..Faults::default() }, 5),
        ("losses", Faults { drop: 0.03, ..Faults::default() }, 10),
        ("repeats and garbage", Faults { duplicate: 0.05, garbage: 0.05, ..Faults::default() }, 5),
        ("reordering", Faults { reorder: 0.05, reorder_by: 3, ..Faults::default() }, 10),
        ("breaks", Faults { disconnect: 0.03, ..Faults::default() }, 10),
        (
            "all of them",
            Faults { bit_error_rate: 1e-5, drop: 0.005, duplicate: 0.01, reorder: 0.005, reorder_by: 3, disconnect: 0.002, garbage: 0.01 },
            10,
        ),
    ] {
        board.ok(Command::Start)?;
        let before = board.counters();
        board.set_faults(faults);
        for _ in 0..frames {
            let frame = board.frame()?;
            pictures.identify(&frame)?;
            labels.expect(&frame)?;
            labels.feed(&board.take_raw())?;
        }
        let tally = board.clear_faults();
        resynchronises(board, labels, pictures)?;
        let c = board.counters();
        println!(
            "{name}: {} frames of {}, {} bytes skipped; {tally:?}",
            c.frames_ok - before.frames_ok,
            c.frames_ok + c.frames_incomplete + c.frames_missed - before.frames_ok - before.frames_incomplete - before.frames_missed,
            c.bytes_skipped - before.bytes_skipped,
        );
    }
    board.ok(Command::Start)?;
    for _ in 0..3 {
        board.frame()?;
        labels.skip();
        board.reconnect()?;
        resynchronises(board, labels, pictures)?;
        board.ok(Command::Start)?;
    }
    println!("broken connections: 3, each understood again within a frame");
    board.ok(Command::Stop)?;
    rest(board, labels, pictures)
}

/// Over a clean link again, the frame under way may be lost, the one after it is not. Stops the stream.
fn resynchronises(board: &mut Board, labels: &mut Labels, pictures: &Pictures) -> Result<(), Error> {
    for frame in board.queued() {
        pictures.identify(&frame)?;
        labels.skip();
    }
    let before = board.counters();
    pictures.identify(&board.frame()?)?;
    labels.skip();
    let first = board.counters();
    // What is left of one frame, another, and as much as one read brings.
    let (bytes, most) = (first.bytes - before.bytes, 2 * pictures.longest_on_link() + board::READ as u64);
    ensure!(bytes <= most, "the first frame over a clean link came after {bytes} bytes, instead of {most}: {before:?}, then {first:?}");
    for _ in 0..5 {
        pictures.identify(&board.frame()?)?;
        labels.skip();
    }
    let after = board.counters();
    let lost = |c: edge_wire::Counters| c.frames_incomplete + c.frames_corrupted + c.frames_missed;
    ensure!(lost(after) == lost(first), "frames lost over a clean link: {first:?}, then {after:?}");
    ensure!(after.restarts == 0, "taken for a restart of the board: {after:?}");
    board.ok(Command::Stop)?;
    rest(board, labels, pictures)
}
