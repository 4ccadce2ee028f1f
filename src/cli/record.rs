//! `record`: pictures → a stream of frames, as a camera's link would carry it.

use anyhow::Context;
use clap::Args;
use edge_infer::Error;
use edge_infer::image::{self, Picture};
use edge_infer::import::onnx::write_atomically_with;
use edge_infer::metadata::Color;
use edge_infer::source::pixels;
use edge_wire::{Chunks, FrameInfo, MAX_CHUNK, PixelFormat};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Turns pictures into a stream of frames, as a camera sends it, for --frames.
#[derive(Args)]
#[command(after_help = "\
Examples:
  edge-infer record --format rgb565 --size 160x120 -o cats.frames cats/
  edge-infer record -o - cat.jpg | edge-infer --model r18q.onnx --frames -")]
pub struct RecordArgs {
    /// Pictures or folders of pictures, one frame each.
    #[arg(required = true, value_name = "PATH")]
    pictures: Vec<PathBuf>,
    /// Stream to write; `-` is standard output.
    #[arg(short, long)]
    output: PathBuf,
    /// How pixels are stored: gray8, rgb565, yuv422, rgb888 or jpeg. JPEG files are not compressed again unless they are scaled.
    #[arg(long, default_value = "jpeg", value_parser = format)]
    format: PixelFormat,
    /// Scale to WIDTHxHEIGHT pixels.
    #[arg(long, value_parser = size)]
    size: Option<(u32, u32)>,
    /// Frames per second that the timestamps tell.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    fps: u32,
    /// Most payload bytes of a chunk.
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u16).range(1..=i64::from(MAX_CHUNK)))]
    chunk: u16,
    /// Quality of JPEG.
    #[arg(long, default_value_t = 90, value_parser = clap::value_parser!(u8).range(1..=100))]
    quality: u8,
}

fn format(name: &str) -> Result<PixelFormat, String> {
    let names = PixelFormat::ALL.map(PixelFormat::name).join(", ");
    PixelFormat::ALL.into_iter().find(|f| f.name() == name).ok_or_else(|| format!("one of {names}"))
}

fn size(text: &str) -> Result<(u32, u32), String> {
    let side = |s: &str| s.parse().ok().filter(|v| (1..=image::MAX_SIDE).contains(v));
    text.split_once('x')
        .and_then(|(w, h)| Some((side(w)?, side(h)?)))
        .ok_or_else(|| format!("WIDTHxHEIGHT, each 1 to {}, for example 160x120", image::MAX_SIDE))
}

pub fn run(args: &RecordArgs) -> anyhow::Result<ExitCode> {
    let pictures = image::collect(&args.pictures)?;
    let bytes = if args.output == Path::new("-") {
        let mut out = std::io::BufWriter::new(std::io::stdout().lock());
        let bytes = write(args, &pictures, &mut out)?;
        out.flush()?;
        bytes
    } else {
        let mut bytes = 0;
        write_atomically_with(&args.output, |out| {
            bytes = write(args, &pictures, out)?;
            anyhow::Ok(())
        })?;
        bytes
    };
    eprintln!("{} frames of {}, {bytes} bytes", pictures.len(), args.format);
    Ok(ExitCode::SUCCESS)
}

fn write(args: &RecordArgs, pictures: &[PathBuf], out: &mut dyn Write) -> anyhow::Result<u64> {
    let mut bytes = 0;
    for (sequence, path) in (0u32..).zip(pictures) {
        let (info, payload) = frame(args, path)?;
        // Wraps, as a sender's clock does.
        let timestamp_us = (u64::from(sequence) * 1_000_000 / u64::from(args.fps)) as u32;
        let info = FrameInfo { sequence, timestamp_us, ..info };
        let chunks = Chunks::new(info, &payload, args.chunk).map_err(|e| Error::Usage(format!("{}: {e}", path.display())))?;
        for chunk in chunks {
            out.write_all(&chunk.header).and_then(|()| out.write_all(chunk.payload)).context("cannot write the stream")?;
            bytes += (chunk.header.len() + chunk.payload.len()) as u64;
        }
    }
    Ok(bytes)
}

fn frame(args: &RecordArgs, path: &Path) -> edge_infer::Result<(FrameInfo, Vec<u8>)> {
    let bad = |reason| Error::image(path, reason);
    let color = if args.format == PixelFormat::Gray8 { Color::Gray } else { Color::Rgb };
    let picture: Picture = image::decode(path, color)?;
    if let Some((width, height)) = args.size {
        return pixels::encode(&picture.resized(width, height).map_err(bad)?, args.format, args.quality).map_err(bad);
    }
    if args.format == PixelFormat::Jpeg {
        let file = std::fs::read(path).map_err(|e| Error::io(path, e))?;
        // A frame's size is the stored one; whoever decodes it turns it.
        if let Ok(stored) = image::jpeg::layout(&file) {
            let info = pixels::describe((stored.width, stored.height), args.format, file.len()).map_err(bad)?;
            return Ok((info, file));
        }
    }
    pixels::encode(&picture, args.format, args.quality).map_err(bad)
}
