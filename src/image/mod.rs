//! Pictures → network input, as a model's [`Preprocess`] record says: bilinear, antialiased when it shrinks
//! (Pillow's and torchvision's filter), then normalised to f32, NCHW.

mod decode;
pub mod jpeg;

use crate::metadata::{Color, Preprocess, Resize};
use crate::pixels::Pixels;
use crate::view::View;
use crate::{Error, Result};
pub(crate) use decode::luma;
pub use decode::{DecodeOptions, MAX_PIXELS, MAX_SIDE, Picture, check_size, decode, decode_bytes, decode_jpeg};
use edge_scale::{Scaler, Source};
use std::path::{Path, PathBuf};

const EXTENSIONS: [&str; 8] = ["png", "jpg", "jpeg", "bmp", "ppm", "pgm", "pnm", "pbm"];

/// Checks what files and flags may set to anything.
pub fn validate(p: &Preprocess) -> Result<()> {
    let channels = p.color.channels();
    let bad = |what: String| Err(Error::Usage(format!("preprocessing: {what}")));
    if p.width == 0 || p.height == 0 || p.width > 4096 || p.height > 4096 {
        return bad(format!("size {}×{} is outside 1..=4096", p.width, p.height));
    }
    if p.mean.len() != channels || p.std.len() != channels {
        return bad(format!("{} means and {} deviations for {channels} channels", p.mean.len(), p.std.len()));
    }
    if p.mean.iter().any(|m| !m.is_finite()) || p.std.iter().any(|s| !(s.is_normal() && *s > 0.0)) {
        return bad("means must be finite and deviations positive".into());
    }
    if let Resize::ShortSide(s) = p.resize
        && !(p.width.max(p.height)..=MAX_SIDE).contains(&s)
    {
        return bad(format!("a short side of {s} pixels does not cover a crop of {}×{}", p.width, p.height));
    }
    Ok(())
}

impl Picture {
    /// Scaled to exactly this size, filtered as the networks' inputs are.
    pub fn resized(&self, width: u32, height: u32) -> Result<Picture, String> {
        check_size(width, height)?;
        let mut data = Vec::new();
        Scaler::new().scale(self.source(), width, height, &mut data)?;
        Ok(Picture { width, height, data, channels: self.channels })
    }

    fn source(&self) -> Source<'_> {
        Source { data: &self.data, width: self.width, height: self.height, channels: self.channels }
    }
}

/// Prepares pictures; keeps its buffers from one to the next.
pub struct Preprocessor {
    p: Preprocess,
    scaler: Scaler,
    resized: Vec<u8>,
    /// The picture with its margin, of a letterbox.
    framed: Vec<u8>,
    /// [`Pixels::channels`].
    channels: Vec<(usize, [f32; 256])>,
}

impl Preprocessor {
    /// Checks the record.
    pub fn new(p: Preprocess) -> Result<Self> {
        validate(&p)?;
        let table = |c: usize| std::array::from_fn(|v| (v as f32 / 255.0 - p.mean[c]) / p.std[c]);
        let channels = (0..p.color.channels()).map(|c| (if p.color == Color::Bgr { 2 - c } else { c }, table(c))).collect();
        Ok(Preprocessor { p, scaler: Scaler::new(), resized: Vec::new(), framed: Vec::new(), channels })
    }

    /// The record.
    pub fn record(&self) -> &Preprocess {
        &self.p
    }

    /// Size before the crop or margin. Of `ShortSide` the shorter side is exact, the longer one is truncated as torchvision does; of `Letterbox`
    /// the longer side is exact, the shorter one is rounded as Ultralytics' LetterBox does.
    fn scaled_size(&self, width: u32, height: u32) -> (u32, u32) {
        let long = |s: u32, long: u32, short: u32| (u64::from(s) * u64::from(long) / u64::from(short)) as u32;
        match self.p.resize {
            Resize::Stretch => (self.p.width, self.p.height),
            Resize::ShortSide(s) if width <= height => (s, long(s, height, width)),
            Resize::ShortSide(s) => (long(s, width, height), s),
            Resize::Letterbox { .. } => {
                let [w, h] = [width, height].map(f64::from);
                let scale = (f64::from(self.p.width) / w).min(f64::from(self.p.height) / h);
                let side = |v: f64, most: u32| ((v * scale).round_ties_even() as u32).clamp(1, most);
                (side(w, self.p.width), side(h, self.p.height))
            }
        }
    }

    /// Left and top of a scaled picture of `width` × `height` in the input; negative where it is cropped.
    fn place(&self, width: u32, height: u32) -> [i64; 2] {
        // torchvision's CenterCrop rounds half to even, Ultralytics' LetterBox down.
        let crop = |full: u32, part: u32| -((f64::from(full - part) / 2.0).round_ties_even() as i64);
        match self.p.resize {
            Resize::Letterbox { corner: true, .. } => [0, 0],
            Resize::Letterbox { .. } => [i64::from((self.p.width - width) / 2), i64::from((self.p.height - height) / 2)],
            _ => [crop(width, self.p.width), crop(height, self.p.height)],
        }
    }

    /// Which part of a picture of this size the network sees.
    pub fn view(&self, width: u32, height: u32) -> View {
        let (w, h) = self.scaled_size(width.max(1), height.max(1));
        View {
            scale: [w as f32 / width.max(1) as f32, h as f32 / height.max(1) as f32],
            offset: self.place(w, h).map(|v| v as f32),
            picture: [width, height],
            input: [self.p.width, self.p.height],
        }
    }

    /// Picture → `1·C·H·W` values, replacing what `out` holds.
    pub fn run(&mut self, picture: &Picture, out: &mut Vec<f32>) -> std::result::Result<(), String> {
        self.pixels(picture)?.expand(out);
        Ok(())
    }

    /// Picture → scaled and cropped pixels, with the values that they stand for; what [`Model::run_pixels`] takes.
    ///
    /// [`Model::run_pixels`]: crate::model::Model::run_pixels
    pub fn pixels(&mut self, picture: &Picture) -> std::result::Result<Pixels<'_>, String> {
        let channels = self.p.color.channels();
        if picture.channels != channels
            || picture.data.len() as u64 != u64::from(picture.width) * u64::from(picture.height) * channels as u64
            || picture.data.is_empty()
        {
            return Err(format!("{} bytes are not {}×{} pixels of {channels} channels", picture.data.len(), picture.width, picture.height));
        }
        let (w, h) = self.scaled_size(picture.width, picture.height);
        if w.max(h) > MAX_SIDE {
            return Err(format!("{}×{} is too long and narrow", picture.width, picture.height));
        }
        self.scaler.scale(picture.source(), w, h, &mut self.resized)?;
        let [left, top] = self.place(w, h).map(|v| v.unsigned_abs() as usize);
        let row_stride = w as usize * channels;
        let size = [self.p.height as usize, self.p.width as usize];
        if let Resize::Letterbox { fill, .. } = self.p.resize {
            let framed_stride = size[1] * channels;
            self.framed.clear();
            self.framed.resize(size[0] * framed_stride, fill);
            let places = self.framed.chunks_exact_mut(framed_stride).skip(top);
            for (place, row) in places.zip(self.resized.chunks_exact(row_stride)) {
                place[left * channels..][..row_stride].copy_from_slice(row);
            }
            return Ok(Pixels { bytes: &self.framed, row_stride: framed_stride, size, channels: &self.channels });
        }
        let bytes = &self.resized[top * row_stride + left * channels..];
        Ok(Pixels { bytes, row_stride, size, channels: &self.channels })
    }
}

/// Decodes one picture to `1·C·H·W` values.
pub fn load_tensor(path: &Path, p: &Preprocess) -> Result<Vec<f32>> {
    let mut out = Vec::new();
    Preprocessor::new(p.clone())?.run(&decode(path, p)?, &mut out).map_err(|reason| Error::image(path, reason))?;
    Ok(out)
}

/// Pictures among files and, recursively, folders, each folder's sorted by path. A named file is always taken.
pub fn collect(paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for path in paths {
        if path.is_dir() {
            walk(path, &mut found)?;
        } else {
            std::fs::metadata(path).map_err(|e| Error::io(path, e))?;
            found.push(path.clone());
        }
    }
    if found.is_empty() {
        return Err(Error::Usage(format!(
            "no pictures in {}; {} are looked for",
            paths.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", "),
            EXTENSIONS.join(", ")
        )));
    }
    Ok(found)
}

fn walk(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    let entries = std::fs::read_dir(folder).map_err(|e| Error::io(folder, e))?;
    let mut entries = entries.collect::<std::io::Result<Vec<_>>>().map_err(|e| Error::io(folder, e))?;
    entries.sort_by_key(|e| e.path());
    for entry in entries {
        let file = entry.path();
        let extension = file.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase);
        // A link to a folder could lead back here: only real folders are entered.
        if entry.file_type().map_err(|e| Error::io(&file, e))?.is_dir() {
            walk(&file, found)?;
        } else if extension.is_some_and(|e| EXTENSIONS.contains(&e.as_str())) {
            found.push(file);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(size: u32, resize: Resize) -> Preprocess {
        Preprocess { width: size, height: size, resize, color: Color::Rgb, mean: vec![0.5; 3], std: vec![0.25; 3], ignore_exif: false }
    }

    #[test]
    fn normalises_and_crops_the_centre() {
        // 4×2, red grows along x; crop 2×2 from the centre.
        let data = (0..8u8).flat_map(|i| [i % 4 * 51, 255, 0]).collect();
        let picture = Picture { width: 4, height: 2, data, channels: 3 };
        let mut out = Vec::new();
        Preprocessor::new(record(2, Resize::ShortSide(2))).unwrap().run(&picture, &mut out).unwrap();
        let red = |v: f32| (v / 255.0 - 0.5) / 0.25;
        assert_eq!(out, [red(51.0), red(102.0), red(51.0), red(102.0), 2.0, 2.0, 2.0, 2.0, -2.0, -2.0, -2.0, -2.0]);
    }

    #[test]
    fn shrinking_averages() {
        let data = (0..64 * 64).flat_map(|i| [if i % 2 == 0 { 0 } else { 254 }; 3]).collect();
        let picture = Picture { width: 64, height: 64, data, channels: 3 };
        let mut out = Vec::new();
        Preprocessor::new(record(8, Resize::Stretch)).unwrap().run(&picture, &mut out).unwrap();
        let middle = (127.0 / 255.0 - 0.5) / 0.25;
        assert!(out.iter().all(|v| (v - middle).abs() < 0.1), "{out:?}");
    }

    #[test]
    fn no_pictures_are_an_error() {
        let folder = tempfile::tempdir().unwrap();
        assert!(collect(&[folder.path().join("none")]).is_err());
        assert!(collect(&[folder.path().to_owned()]).is_err());
    }

    #[test]
    fn bad_records_are_errors() {
        for p in [
            Preprocess { width: 0, ..record(8, Resize::Stretch) },
            Preprocess { std: vec![0.0; 3], ..record(8, Resize::Stretch) },
            Preprocess { mean: vec![f32::NAN; 3], ..record(8, Resize::Stretch) },
            Preprocess { mean: vec![0.0], ..record(8, Resize::Stretch) },
            record(8, Resize::ShortSide(4)),
        ] {
            assert!(matches!(validate(&p), Err(Error::Usage(_))), "{p:?}");
        }
    }
}
