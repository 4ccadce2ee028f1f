//! Pictures → network input, per [`Preprocess`]: bilinear, antialiased when it shrinks.

use crate::{Error, Result};
use edge_infer::metadata::{Color, Preprocess, Resize};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer, images::Image, images::ImageRef};
use std::path::{Path, PathBuf};

/// Longest side of a picture that is decoded.
const MAX_SIDE: u32 = 16_384;
const EXTENSIONS: [&str; 8] = ["png", "jpg", "jpeg", "bmp", "ppm", "pgm", "pnm", "pbm"];

fn bad(path: &Path, reason: impl ToString) -> Error {
    Error::data(path, reason.to_string())
}

/// Decodes one picture to 1×C×H×W f32 values.
pub fn load_tensor(path: &Path, p: &Preprocess) -> Result<Vec<f32>> {
    let mut reader = image::ImageReader::open(path).and_then(|r| r.with_guessed_format()).map_err(|e| Error::io(path, e))?;
    let mut limits = image::Limits::default();
    limits.max_image_width = Some(MAX_SIDE);
    limits.max_image_height = Some(MAX_SIDE);
    reader.limits(limits);
    let decoded = reader.decode().map_err(|e| bad(path, e))?;
    let (width, height) = (decoded.width(), decoded.height());
    let channels = p.color.channels();
    let (pixels, kind) = match channels {
        1 => (decoded.into_luma8().into_raw(), PixelType::U8),
        _ => (decoded.into_rgb8().into_raw(), PixelType::U8x3),
    };
    let (w, h) = match p.resize {
        Resize::Stretch => (p.width, p.height),
        // torchvision truncates the longer side.
        Resize::ShortSide(s) if width <= height => (s, (u64::from(s) * u64::from(height) / u64::from(width)) as u32),
        Resize::ShortSide(s) => ((u64::from(s) * u64::from(width) / u64::from(height)) as u32, s),
    };
    if w < p.width || h < p.height || w.max(h) > MAX_SIDE {
        return Err(bad(path, format!("{width}×{height} becomes {w}×{h}, which does not suit the network's input")));
    }
    let source = ImageRef::new(width, height, &pixels, kind).map_err(|e| bad(path, e))?;
    let mut resized = Image::new(w, h, kind);
    let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Bilinear));
    Resizer::new().resize(&source, &mut resized, &options).map_err(|e| bad(path, e))?;
    let (left, top) = (((w - p.width) / 2) as usize, ((h - p.height) / 2) as usize);
    let mut out = Vec::with_capacity(channels * (p.width * p.height) as usize);
    for c in 0..channels {
        let source = if p.color == Color::Bgr { 2 - c } else { c };
        for y in top..top + p.height as usize {
            for x in left..left + p.width as usize {
                let v = resized.buffer()[(y * w as usize + x) * channels + source];
                out.push((f32::from(v) / 255.0 - p.mean[c]) / p.std[c]);
            }
        }
    }
    Ok(out)
}

/// Pictures among files and, recursively, folders, each folder's sorted by path.
pub fn collect(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        std::fs::metadata(path).map_err(|e| Error::io(path, e))?;
        return Ok(vec![path.to_owned()]);
    }
    let mut entries = Vec::new();
    for entry in std::fs::read_dir(path).map_err(|e| Error::io(path, e))? {
        entries.push(entry.map_err(|e| Error::io(path, e))?);
    }
    entries.sort_by_key(|e| e.path());
    let mut found = Vec::new();
    for entry in entries {
        let file = entry.path();
        let extension = file.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase);
        // A link to a folder could lead back here: only real folders are entered.
        if entry.file_type().map_err(|e| Error::io(&file, e))?.is_dir() {
            found.extend(collect(&file)?);
        } else if extension.is_some_and(|e| EXTENSIONS.contains(&e.as_str())) {
            found.push(file);
        }
    }
    Ok(found)
}
