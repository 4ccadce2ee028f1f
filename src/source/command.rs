//! Cameras that a program reads: frames come from its standard output. It is started again whenever it ends.

use super::CameraOptions;
use super::address::Connection;
use super::camera::{Delivery, Source, TICK};
use super::options::{FrameFormat, usage};
use super::raw::{Layout, Matrix, RawFormat};
use super::stream::{Jpegs, Pixels, READ, Tally};
use rustix::process::{Pid, Signal, kill_process_group};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Silence of a camera's program after which it is started again.
const STALL: Duration = Duration::from_secs(10);
/// How long a program may take to end when it is asked to.
const GRACE: Duration = Duration::from_secs(1);
/// Frames a second that are asked of libcamera.
const RATE: u32 = 30;

/// A program and what it writes.
pub(super) struct Program {
    program: PathBuf,
    arguments: Vec<String>,
    format: FrameFormat,
    /// Silence means that it hangs.
    stalls: bool,
    running: Option<Running>,
    tally: Tally,
}

/// A started program, all of whose processes end with this.
struct Running {
    child: Child,
    output: Connection,
}

impl Program {
    /// Any command line, run by the shell.
    pub fn shell(line: &str, options: &CameraOptions) -> io::Result<Self> {
        options.without_controls("say it in the command")?;
        options.without_authorization("say it in the command")?;
        let format = options.frame_format.unwrap_or(FrameFormat::Mjpeg);
        Ok(Program::new("/bin/sh".into(), vec!["-c".into(), line.into()], format, false))
    }

    /// A CSI camera, by Raspberry Pi's program.
    pub fn libcamera(id: &str, options: &CameraOptions) -> io::Result<Self> {
        options.without_format("libcamera's is chosen to fit")?;
        options.without_authorization("libcamera has none")?;
        let program = ["rpicam-vid", "libcamera-vid"].into_iter().find_map(in_path).ok_or_else(|| {
            usage("neither rpicam-vid nor libcamera-vid is installed: apt install rpicam-apps-lite, or libcamera-apps-lite".into())
        })?;
        let (width, height) = size_for(options.least);
        // Of `--codec yuv420` it makes JFIF's colours (get_colourspace_flags in rpicam_vid.cpp).
        let format = RawFormat::new(Layout::Yuv420, width, height, 0, Matrix::JFIF).map_err(usage)?;
        let mut arguments: Vec<String> =
            ["--nopreview", "--timeout=0", "--codec=yuv420", "--flush=1", "--verbose=0", "--output=-"].map(String::from).into();
        arguments.extend([format!("--width={width}"), format!("--height={height}"), format!("--framerate={RATE}")]);
        if !id.is_empty() {
            arguments.push(format!("--camera={id}"));
        }
        arguments.extend(
            options.controls.iter().map(|(name, value)| control(name, value)).collect::<io::Result<Vec<_>>>()?.into_iter().flatten(),
        );
        Ok(Program::new(program, arguments, FrameFormat::Raw(format), true))
    }

    fn new(program: PathBuf, arguments: Vec<String>, format: FrameFormat, stalls: bool) -> Self {
        Program { program, arguments, format, stalls, running: None, tally: Tally::new() }
    }

    fn read_all(&mut self, output: &Connection, delivery: &Delivery) -> io::Result<()> {
        let Program { format, stalls, tally, .. } = self;
        let mut last = Instant::now();
        let mut wait = |got: Option<usize>| match got {
            Some(_) => {
                last = Instant::now();
                Ok(())
            }
            None if *stalls && last.elapsed() > STALL => {
                Err(io::Error::new(io::ErrorKind::TimedOut, format!("no frame for {} seconds", STALL.as_secs())))
            }
            None => Ok(()),
        };
        match format {
            FrameFormat::Mjpeg => {
                let (mut jpegs, mut buffer) = (Jpegs::new(tally), vec![0; READ]);
                let mut result = Ok(());
                while !delivery.stopped() && result.is_ok() {
                    result = output.read(&mut buffer, TICK).and_then(|got| {
                        match got {
                            Some(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                            Some(n) => jpegs.push(&buffer[..n], tally, delivery, &mut |_, first| (first, None)),
                            None => {}
                        }
                        wait(got)
                    });
                }
                jpegs.finish(tally, delivery, &mut |_, first| (first, None));
                result
            }
            FrameFormat::Raw(format) => {
                let mut pixels = Pixels::new(*format);
                let mut result = Ok(());
                while !delivery.stopped() && result.is_ok() {
                    result = output.read(pixels.space(), TICK).and_then(|got| {
                        match got {
                            Some(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                            Some(n) => pixels.filled(n, tally, delivery),
                            None => {}
                        }
                        wait(got)
                    });
                }
                pixels.finish(tally, delivery);
                result
            }
        }
    }
}

impl Source for Program {
    fn open(&mut self) -> io::Result<()> {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).stdin(Stdio::null()).stdout(Stdio::piped()).process_group(0);
        let mut child = command.spawn()?;
        let output = child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
        self.running = Some(Running { child, output: Connection::from_fd(output.into()) });
        Ok(())
    }

    fn read(&mut self, delivery: &mut Delivery) -> io::Result<()> {
        let Some(mut running) = self.running.take() else { return Ok(()) };
        match self.read_all(&running.output, delivery) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
                let status = running.wait(GRACE)?;
                let how = status.map_or("it closed its standard output".into(), |s| format!("it ended ({s})"));
                Err(io::Error::new(io::ErrorKind::UnexpectedEof, how))
            }
            result => result,
        }
    }
}

impl Running {
    /// How it ended, if it does within this time.
    fn wait(&mut self, time: Duration) -> io::Result<Option<std::process::ExitStatus>> {
        let until = Instant::now() + time;
        loop {
            let status = self.child.try_wait()?;
            if status.is_some() || Instant::now() > until {
                return Ok(status);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // The group outlives its leader: a pipeline's other programs are in it.
        let group = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        let signal = |signal| group.map(|group| kill_process_group(group, signal));
        signal(Signal::TERM);
        let ended = self.wait(GRACE);
        signal(Signal::KILL);
        if !matches!(ended, Ok(Some(_))) {
            let _ = self.child.wait();
        }
    }
}

fn in_path(program: &str) -> Option<PathBuf> {
    let folders = std::env::var_os("PATH")?;
    std::env::split_paths(&folders).map(|folder| folder.join(program)).find(|path| path.is_file())
}

/// The smallest picture of 4:3 that feeds the network, and whose rows have no padding: those of the colour planes are
/// padded to 64 bytes (raspberrypi/rpicam-apps issue 857).
fn size_for((width, height): (u32, u32)) -> (u32, u32) {
    let steps = width.div_ceil(128).max(height.div_ceil(96)).clamp(3, 15);
    (128 * steps, 96 * steps)
}

/// What `--set` passes on: options of `rpicam-vid` that change the picture, not the stream (core/options.cpp).
const CONTROLS: [&str; 24] = [
    "analoggain",
    "autofocus-mode",
    "autofocus-range",
    "autofocus-speed",
    "autofocus-window",
    "awb",
    "awbgains",
    "brightness",
    "contrast",
    "denoise",
    "ev",
    "flicker-period",
    "gain",
    "hdr",
    "hflip",
    "lens-position",
    "metering",
    "mode",
    "roi",
    "rotation",
    "saturation",
    "sharpness",
    "shutter",
    "vflip",
];

/// A control as an option of the program.
fn control(name: &str, value: &str) -> io::Result<Option<String>> {
    match (name, value) {
        ("exposure" | "gain", "auto") => Ok(None),
        ("exposure", _) => Ok(Some(format!("--shutter={value}"))),
        _ if CONTROLS.contains(&name) => Ok(Some(format!("--{name}={value}"))),
        _ => Err(usage(format!("--set {name}: libcamera: has exposure (µs, or auto), {}", CONTROLS.join(", ")))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_feed_the_network_and_have_no_padding() {
        assert_eq!(size_for((0, 0)), (384, 288));
        assert_eq!(size_for((224, 224)), (384, 288));
        assert_eq!(size_for((256, 300)), (512, 384));
        assert_eq!(size_for((640, 640)), (896, 672));
        assert_eq!(size_for((100_000, 1)), (1920, 1440));
    }

    #[test]
    fn controls_are_options_but_not_ours() {
        assert_eq!(control("exposure", "10000").unwrap().unwrap(), "--shutter=10000");
        assert_eq!(control("exposure", "auto").unwrap(), None);
        assert_eq!(control("awb", "indoor").unwrap().unwrap(), "--awb=indoor");
        for name in ["output", "", "-o", "codec", "help"] {
            assert_eq!(control(name, "1").unwrap_err().kind(), io::ErrorKind::InvalidInput, "{name}");
        }
    }
}
