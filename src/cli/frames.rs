//! The default command with `--frames`: a recorded stream in, a label per frame out.

use super::classify::{Class, ClassifyArgs, milliseconds, top};
use super::{RunArgs, preprocess};
use anyhow::Context;
use edge_infer::Error;
use edge_infer::image::Preprocessor;
use edge_infer::source::{frames, pixels};
use edge_wire::{Event, Timeline};
use serde::Serialize;
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

/// One classified frame.
#[derive(Serialize)]
struct Answer<'a> {
    sequence: u32,
    /// Capture time on the sender's clock, extended over its wrap-around.
    timestamp_us: u64,
    width: u16,
    height: u16,
    format: &'static str,
    top: Vec<Class>,
    /// Decode, resize, normalise.
    prepare_ms: f64,
    /// Inference alone.
    latency_ms: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    logits: Option<&'a [f32]>,
}

pub fn run(path: &Path, args: &ClassifyArgs, run: &RunArgs) -> anyhow::Result<ExitCode> {
    let stdin = path == Path::new("-");
    let name = if stdin { Path::new("standard input") } else { path };
    let input: Box<dyn Read> =
        if stdin { Box::new(std::io::stdin().lock()) } else { Box::new(File::open(path).map_err(|e| Error::io(path, e))?) };
    let start = Instant::now();
    let mut model = run.load(&args.model)?;
    let load_ms = milliseconds(start);
    let mut preprocessor = Preprocessor::new(preprocess(&model, &args.model)?)?;
    let labels = model.metadata().labels.clone();

    let mut out = std::io::stdout().lock();
    let (mut tensor, mut timeline) = (Vec::new(), Timeline::default());
    let (mut done, mut undecodable, mut total_ms) = (0u32, 0u32, 0.0);
    let seen = frames::read(input, |event| -> anyhow::Result<()> {
        // Frames that did not arrive whole are in the counters.
        let Event::Frame(frame) = event else { return Ok(()) };
        let info = frame.info;
        let timestamp_us = timeline.extend(info.timestamp_us);
        let start = Instant::now();
        let color = preprocessor.record().color;
        if let Err(reason) = pixels::decode(&frame, color).and_then(|picture| preprocessor.run(&picture, &mut tensor)) {
            undecodable += 1;
            eprintln!("error: {}: frame {}: {reason}", name.display(), info.sequence);
            return Ok(());
        }
        let prepare_ms = milliseconds(start);
        let start = Instant::now();
        let logits = model.run(&tensor)?;
        let latency_ms = milliseconds(start);
        done += 1;
        total_ms += latency_ms;
        let answer = Answer {
            sequence: info.sequence,
            timestamp_us,
            width: info.width,
            height: info.height,
            format: info.format.name(),
            top: top(logits, args.top as usize, &labels),
            prepare_ms,
            latency_ms,
            logits: args.logits.then_some(logits),
        };
        Ok(print(&mut out, &answer, args.json)?)
    })
    .with_context(|| format!("cannot classify the frames of {}", name.display()))?;

    let mean = if done > 0 { format!("{:.2} ms each", total_ms / f64::from(done)) } else { "none classified".into() };
    eprintln!(
        "{done} frames, {mean}; model loaded in {load_ms:.0} ms; {} threads, {} kernels\n\
         skipped: {} incomplete, {} corrupted, {undecodable} undecodable, {} missing, {} dropped by the sender\n\
         link: {} bytes, {} of them in no intact chunk; {} chunks damaged, {} repeated, {} late; {} restarts",
        model.threads(),
        model.isa(),
        seen.frames_incomplete,
        seen.frames_corrupted,
        seen.frames_missed,
        seen.frames_overrun,
        seen.bytes,
        seen.bytes_skipped,
        seen.chunks_corrupted + seen.headers_corrupted,
        seen.chunks_repeated,
        seen.chunks_late,
        seen.restarts,
    );
    if done == 0 {
        eprintln!("error: {}: no frame could be classified; `edge-infer record` makes streams", name.display());
    }
    Ok(ExitCode::from(u8::from(done == 0)))
}

fn print(out: &mut impl Write, answer: &Answer, json: bool) -> std::io::Result<()> {
    if json {
        serde_json::to_writer(&mut *out, answer)?;
        return writeln!(out);
    }
    let seconds = answer.timestamp_us as f64 / 1e6;
    let best = answer.top.first().map_or(String::new(), |c| format!("{} {:.2} %", c.label, 100.0 * c.probability));
    writeln!(out, "{:6} {seconds:12.6} s  {best}  {:.2} ms", answer.sequence, answer.latency_ms)
}
