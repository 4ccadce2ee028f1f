//! The default command with `--camera` or `--frames`: frames in, an answer per frame out.

use super::classify::{ClassifyArgs, milliseconds, reader};
use super::rate::Lines;
use super::{RunArgs, guard, new_file_in, preprocess};
use anyhow::Context;
use clap::Args;
use edge_infer::Error;
use edge_infer::answer::Answer;
use edge_infer::image::Preprocessor;
use edge_infer::metadata::Preprocess;
use edge_infer::source::address::Address;
use edge_infer::source::camera::{Camera, CameraFrame, Next, Notice, Statistics};
use edge_infer::source::{CameraOptions, FrameFormat, pixels};
use serde::Serialize;
use signal_hook::consts::{SIGINT, SIGTERM};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How often signals are looked for.
const TICK: Duration = Duration::from_millis(100);

/// Names a recorded stream.
pub fn recorded(path: &str) -> Result<Address, String> {
    Ok(if path == "-" { Address::Stdin } else { Address::File(path.into()) })
}

/// What can be said of a camera beside its address.
#[derive(Args)]
pub struct CameraArgs {
    /// What exec: writes: mjpeg, or raw frames such as yuv420:640x480 [default: mjpeg].
    #[arg(long, value_name = "FORMAT", requires = "camera")]
    frame_format: Option<FrameFormat>,
    /// A control of a v4l2: or libcamera: camera, such as exposure=120 or exposure=auto; a wrong name shows what there is.
    #[arg(long, value_name = "NAME=VALUE", requires = "camera", value_parser = name_and_value)]
    set: Vec<(String, String)>,
    /// File with USER:PASSWORD or a bearer token for an http: camera.
    #[arg(long, value_name = "FILE", requires = "camera")]
    camera_auth: Option<PathBuf>,
}

fn name_and_value(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').filter(|(name, value)| !name.is_empty() && !value.is_empty()).ok_or("NAME=VALUE")?;
    Ok((name.into(), value.into()))
}

impl CameraArgs {
    /// Refuses options of a camera where there is none. (An argument that conflicts with --camera makes clap forget that they require it.)
    pub fn refuse_without_camera(&self) -> edge_infer::Result<()> {
        let given = self.frame_format.is_some() || !self.set.is_empty() || self.camera_auth.is_some();
        if given { Err(Error::Usage("--frame-format, --set and --camera-auth are for --camera".into())) } else { Ok(()) }
    }

    /// For a network with this preprocessing.
    pub fn options(&self, preprocess: &Preprocess, every_frame: bool) -> anyhow::Result<CameraOptions> {
        let authorization = self.camera_auth.as_ref().map(|path| {
            let secret = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
            CameraOptions::authorization(&secret).map_err(|reason| Error::Usage(format!("{}: {reason}", path.display())))
        });
        Ok(CameraOptions {
            every_frame,
            least: CameraOptions::feeding(preprocess),
            gray: preprocess.color.channels() == 1,
            frame_format: self.frame_format,
            controls: self.set.clone(),
            authorization: authorization.transpose()?,
        })
    }
}

/// Opens a camera; options that do not fit it are wrong usage.
pub fn open(address: &Address, options: &CameraOptions, notice: impl Fn(Notice) + Send + 'static) -> anyhow::Result<Camera> {
    Camera::open(address, options, notice).map_err(|e| match e.kind() {
        std::io::ErrorKind::InvalidInput => Error::Usage(format!("{address}: {e}")).into(),
        _ => anyhow::Error::new(e).context(format!("cannot open {address}")),
    })
}

/// One frame's line of JSON.
#[derive(Serialize)]
struct Line<'a> {
    sequence: u32,
    /// Capture time on the sender's clock, extended over its wrap-around.
    timestamp_us: u64,
    width: u16,
    height: u16,
    format: &'static str,
    #[serde(flatten)]
    answer: Answer,
    /// Decode, resize, normalise.
    prepare_ms: f64,
    /// Inference alone.
    latency_ms: f64,
    /// From capture to label, at least; of live streams.
    #[serde(skip_serializing_if = "Option::is_none")]
    capture_to_label_ms: Option<f64>,
    /// What the link saw so far; of live streams.
    #[serde(skip_serializing_if = "Option::is_none")]
    link: Option<Seen>,
    #[serde(skip_serializing_if = "Option::is_none")]
    saved: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    logits: Option<&'a [f32]>,
}

/// Frames by what became of them.
#[derive(Serialize)]
struct Seen {
    received: u64,
    /// Never arrived whole, or dropped by the sender.
    dropped: u64,
    /// Arrived, and do not match their checksum.
    corrupted: u64,
    /// Received, and replaced by a newer one before the network was free.
    superseded: u64,
    connections: u64,
}

impl Seen {
    fn new(s: &Statistics) -> Self {
        Seen {
            received: s.link.frames_ok,
            dropped: s.link.frames_incomplete + s.link.frames_missed + s.link.frames_overrun,
            corrupted: s.link.frames_corrupted,
            superseded: s.superseded,
            connections: s.connections,
        }
    }
}

pub fn run(address: &Address, live: bool, args: &ClassifyArgs, camera: &CameraArgs, run: &RunArgs) -> anyhow::Result<ExitCode> {
    if let Some(folder) = &args.save {
        std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
    }
    let stop = Arc::new(AtomicBool::new(false));
    if live {
        for signal in [SIGINT, SIGTERM] {
            // The second one ends us at once.
            signal_hook::flag::register_conditional_default(signal, stop.clone()).context("cannot handle signals")?;
            signal_hook::flag::register(signal, stop.clone()).context("cannot handle signals")?;
        }
    }
    let start = Instant::now();
    let mut model = run.load(&args.model, &args.choice)?;
    let load_ms = milliseconds(start);
    let mut preprocessor = Preprocessor::new(preprocess(&model, &args.model)?)?;
    let mut reader = reader(args, &mut model, &mut preprocessor)?;
    let options = camera.options(preprocessor.record(), !live || args.every_frame)?;
    let camera = open(address, &options, say(address, live))?;

    let mut out = std::io::stdout().lock();
    let (mut done, mut undecodable, mut unsaved, mut total_ms) = (0u64, 0u32, 0u32, 0.0);
    let (mut ages, mut complaints) = (Ages::default(), Lines::new(Instant::now()));
    while !stop.load(Ordering::Relaxed) && args.count.is_none_or(|count| done < count) {
        let frame = match camera.next(TICK) {
            Next::Nothing => continue,
            Next::End(None) => break,
            Next::End(Some(e)) => return Err(e).with_context(|| format!("cannot read {address}")),
            Next::Frame(frame) => frame,
        };
        let start = Instant::now();
        let picture = guard(|| pixels::decode(&frame.as_wire(), preprocessor.record()));
        let prepared = match picture.and_then(|picture| {
            let view = preprocessor.view(picture.width, picture.height);
            guard(|| preprocessor.pixels(&picture)).map(|pixels| (pixels, view))
        }) {
            Ok(prepared) => prepared,
            Err(reason) => {
                undecodable += 1;
                if let Some(more) = complaints.next(Instant::now()) {
                    eprintln!("error: {address}: frame {}: {reason}{more}", frame.info.sequence);
                }
                continue;
            }
        };
        let prepare_ms = milliseconds(start);
        let start = Instant::now();
        let (pixels, view) = prepared;
        let outputs = model.run_pixels_all(&pixels)?;
        let latency_ms = milliseconds(start);
        let age_ms = milliseconds(frame.captured);
        done += 1;
        total_ms += latency_ms;
        ages.add(age_ms);
        let answer = reader.read(outputs, &view, args.top as usize)?;
        let saved = args.save.as_ref().and_then(|folder| match save(folder, &frame, &answer) {
            Ok(path) => Some(path.display().to_string()),
            // A full disk must not end a camera's labels.
            Err(e) => {
                unsaved += 1;
                if unsaved == 1 {
                    eprintln!("error: frames are not saved: {e}");
                }
                None
            }
        });
        let line = Line {
            sequence: frame.info.sequence,
            timestamp_us: frame.timestamp_us,
            width: frame.info.width,
            height: frame.info.height,
            format: frame.info.format.name(),
            answer,
            prepare_ms,
            latency_ms,
            capture_to_label_ms: live.then_some(age_ms),
            link: live.then(|| Seen::new(&camera.statistics())),
            saved,
            logits: args.logits.then_some(&outputs[0]),
        };
        print(&mut out, &line, args.json)?;
        camera.recycle(frame.payload);
    }

    let seen = camera.statistics();
    let mean = if done > 0 { format!("{:.2} ms each", total_ms / done as f64) } else { "none classified".into() };
    eprintln!("{done} frames, {mean}; model loaded in {load_ms:.0} ms; {} threads, {} kernels", model.threads(), model.isa());
    if live && done > 0 {
        eprintln!("capture to label: median {:.1} ms, 99 % {:.1} ms, longest {:.1} ms", ages.rank(50), ages.rank(99), ages.rank(100));
    }
    let (link, unsaved) = (&seen.link, if unsaved > 0 { format!(", {unsaved} not saved") } else { String::new() });
    eprintln!(
        "skipped: {} incomplete, {} corrupted, {undecodable} undecodable, {} missing, {} dropped by the sender, {} superseded{unsaved}\n\
         link: {} bytes, {} of them in no intact chunk; {} chunks damaged, {} repeated, {} late; {} restarts; opened {} times",
        link.frames_incomplete,
        link.frames_corrupted,
        link.frames_missed,
        link.frames_overrun,
        seen.superseded,
        link.bytes,
        link.bytes_skipped,
        link.chunks_corrupted + link.headers_corrupted,
        link.chunks_repeated,
        link.chunks_late,
        link.restarts,
        seen.connections,
    );
    if done == 0 {
        eprintln!("error: {address}: no frame could be classified; `edge-infer record` makes streams");
    }
    Ok(ExitCode::from(u8::from(done == 0)))
}

/// Tells of a link that comes and goes, each reason once.
pub fn say(address: &Address, live: bool) -> impl Fn(Notice) + Send + use<> {
    let (name, last) = (address.to_string(), std::cell::RefCell::new(String::new()));
    move |notice| match notice {
        Notice::Waiting(e) => {
            let reason = e.to_string();
            if *last.borrow() != reason {
                eprintln!("{name}: {reason}; waiting for it");
                *last.borrow_mut() = reason;
            }
        }
        Notice::Opened if live => {
            eprintln!("{name}: open");
            last.borrow_mut().clear();
        }
        _ => {}
    }
}

/// Times of the newest frames.
#[derive(Default)]
struct Ages {
    newest: std::collections::VecDeque<f64>,
}

impl Ages {
    const MOST: usize = 100_000;

    fn add(&mut self, ms: f64) {
        if self.newest.len() == Self::MOST {
            self.newest.pop_front();
        }
        self.newest.push_back(ms);
    }

    /// Nearest rank.
    fn rank(&mut self, percent: usize) -> f64 {
        let times = self.newest.make_contiguous();
        times.sort_by(f64::total_cmp);
        times[(times.len() * percent).div_ceil(100).max(1) - 1]
    }
}

/// A label as a part of a file's name, which as a whole has at most 255 bytes, and a letter has up to four.
fn file_name_part(label: &str) -> String {
    let mut part = String::new();
    for c in label.chars() {
        let c = if c.is_alphanumeric() || "-_".contains(c) { c } else { '-' };
        if part.len() + c.len_utf8() > 120 {
            break;
        }
        part.push(c);
    }
    part
}

/// Writes a frame, whole or not at all: a JPEG file as it came, pixels as PNG.
fn save(folder: &Path, frame: &CameraFrame, answer: &Answer) -> anyhow::Result<PathBuf> {
    let label = file_name_part(answer.best().map_or("none", |(label, _)| label));
    let (bytes, extension) = pixels::to_file(&frame.as_wire()).map_err(anyhow::Error::msg)?;
    // The sequence begins anew with the sender; time does not.
    let time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_millis());
    let path = folder.join(format!("{time}-{}-{label}.{extension}", frame.info.sequence));
    let mut file = new_file_in(folder)?;
    file.write_all(&bytes).map_err(|e| Error::io(&path, e))?;
    file.persist(&path).map_err(|e| Error::io(&path, e.error))?;
    Ok(path)
}

fn print(out: &mut impl Write, line: &Line, json: bool) -> std::io::Result<()> {
    if json {
        serde_json::to_writer(&mut *out, line)?;
        return writeln!(out);
    }
    let seconds = line.timestamp_us as f64 / 1e6;
    let best = line.answer.best().map_or(String::new(), |(label, score)| format!("{label} {:.2} %", 100.0 * score));
    let more = match &line.answer {
        Answer::Boxes { boxes } if boxes.len() > 1 => format!(" and {} more", boxes.len() - 1),
        _ => String::new(),
    };
    writeln!(out, "{:6} {seconds:12.6} s  {best}{more}  {:.2} ms", line.sequence, line.latency_ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_fit_file_names() {
        assert_eq!(file_name_part("T-shirt/top"), "T-shirt-top");
        assert_eq!(file_name_part("../\0x\x1b[2J"), "----x--2J");
        let long = file_name_part(&"\u{20000}".repeat(1000));
        assert!(long.len() <= 120 && long.chars().count() == 30);
        let folder = tempfile::tempdir().unwrap();
        let name = format!("{}-{}-{long}.jpg", u64::MAX, u32::MAX);
        std::fs::write(folder.path().join(name), b"").unwrap();
    }
}
