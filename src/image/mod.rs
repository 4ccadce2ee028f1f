//! Pictures → network input, as a model's [`Preprocess`] record says: bilinear, antialiased when it shrinks
//! (Pillow's and torchvision's filter), then normalised to f32, NCHW.

use crate::metadata::{Color, Preprocess, Resize};
use crate::pixels::Pixels;
use crate::{Error, Result};
use fast_image_resize::images::{TypedImage, TypedImageRef};
use fast_image_resize::pixels::{U8, U8x3};
use fast_image_resize::{FilterType, PixelTrait, ResizeAlg, ResizeOptions, Resizer};
use std::path::{Path, PathBuf};

/// Longest side of a picture that is decoded.
pub const MAX_SIDE: u32 = 16_384;
/// Most pixels of a picture that is decoded; checked from its header, before memory is taken.
pub const MAX_PIXELS: u64 = 64 << 20;
const EXTENSIONS: [&str; 8] = ["png", "jpg", "jpeg", "bmp", "ppm", "pgm", "pnm", "pbm"];

/// A decoded picture: 8 bits a channel, rows from the top, no padding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
    /// `width · height · channels` bytes; channels are 3 (RGB) or 1 (luma).
    pub data: Vec<u8>,
    /// 3 or 1.
    pub channels: usize,
}

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

/// Decodes a file to as many channels as `color` wants.
pub fn decode(path: &Path, color: Color) -> Result<Picture> {
    let open = || image::ImageReader::open(path).and_then(|r| r.with_guessed_format()).map_err(|e| Error::io(path, e));
    let bad = |e: image::ImageError| Error::image(path, format!("{e}; PNG, JPEG, BMP and PNM are read"));
    let (width, height) = open()?.into_dimensions().map_err(bad)?;
    check_size(width, height).map_err(|reason| Error::image(path, reason))?;
    Ok(Picture::new(limited(open()?).decode().map_err(bad)?, color))
}

/// Decodes a JPEG file in memory.
pub fn decode_jpeg(bytes: &[u8], color: Color) -> Result<Picture, String> {
    decode_as(bytes, image::ImageFormat::Jpeg, color, MAX_PIXELS)
}

/// Decodes a file in memory, of whatever format it is, of at most `max_pixels`.
pub fn decode_bytes(bytes: &[u8], color: Color, max_pixels: u64) -> Result<Picture, String> {
    let format = image::guess_format(bytes).map_err(|_| "not a picture; PNG, JPEG, BMP and PNM are read".to_string())?;
    decode_as(bytes, format, color, max_pixels)
}

fn decode_as(bytes: &[u8], format: image::ImageFormat, color: Color, max_pixels: u64) -> Result<Picture, String> {
    let reader = || image::ImageReader::with_format(std::io::Cursor::new(bytes), format);
    let (width, height) = reader().into_dimensions().map_err(|e| e.to_string())?;
    check_size(width, height)?;
    if u64::from(width) * u64::from(height) > max_pixels {
        return Err(format!("{width}×{height} pixels; at most {max_pixels} in all are read: scale it down"));
    }
    // The decoder paints what is missing of a cut file grey.
    if format == image::ImageFormat::Jpeg && !jpeg_is_whole(bytes) {
        return Err("the JPEG file is cut: it has no end".into());
    }
    Ok(Picture::new(limited(reader()).decode().map_err(|e| e.to_string())?, color))
}

/// Whether an end-of-image marker follows the last start of a scan. Inside a scan FF is followed by 0 or a restart
/// marker (ITU-T T.81, B.1.1.5), so that neither can turn up by chance; thumbnails come before.
fn jpeg_is_whole(bytes: &[u8]) -> bool {
    let last = |marker: u8| bytes.windows(2).rposition(|w| w == [0xFF, marker]);
    last(0xDA).is_some_and(|scan| last(0xD9).is_some_and(|end| end > scan))
}

/// Refuses sizes that would take too much memory.
pub fn check_size(width: u32, height: u32) -> Result<(), String> {
    if width == 0 || height == 0 || width.max(height) > MAX_SIDE || u64::from(width) * u64::from(height) > MAX_PIXELS {
        return Err(format!("{width}×{height} pixels; at most {MAX_SIDE} a side and {MAX_PIXELS} in all are read: scale it down"));
    }
    Ok(())
}

fn limited<R: std::io::BufRead + std::io::Seek>(mut reader: image::ImageReader<R>) -> image::ImageReader<R> {
    let mut limits = image::Limits::default();
    limits.max_alloc = Some(1 << 30);
    reader.limits(limits);
    reader
}

impl Picture {
    /// A decoded picture, with as many channels as `color` wants.
    pub fn new(decoded: image::DynamicImage, color: Color) -> Self {
        let (width, height, channels) = (decoded.width(), decoded.height(), color.channels());
        let data = if channels == 1 { decoded.into_luma8().into_raw() } else { decoded.into_rgb8().into_raw() };
        Picture { width, height, data, channels }
    }

    /// Scaled to exactly this size, filtered as the networks' inputs are.
    pub fn resized(&self, width: u32, height: u32) -> Result<Picture, String> {
        check_size(width, height)?;
        let mut data = Vec::new();
        self.scale(&mut Resizer::new(), width, height, &mut data)?;
        Ok(Picture { width, height, data, channels: self.channels })
    }

    /// Into `out`, which takes the size it needs.
    fn scale(&self, resizer: &mut Resizer, width: u32, height: u32, out: &mut Vec<u8>) -> Result<(), String> {
        out.resize(width as usize * height as usize * self.channels, 0);
        // By type, not by `Resizer::resize`: that would link every pixel format there is, 3 MB of code.
        match self.channels {
            1 => self.scale_typed::<U8>(resizer, width, height, out),
            _ => self.scale_typed::<U8x3>(resizer, width, height, out),
        }
    }

    fn scale_typed<P: PixelTrait>(&self, resizer: &mut Resizer, width: u32, height: u32, out: &mut [u8]) -> Result<(), String> {
        let source = TypedImageRef::<P>::from_buffer(self.width, self.height, &self.data).map_err(|e| e.to_string())?;
        let mut target = TypedImage::<P>::from_buffer(width, height, out).map_err(|e| e.to_string())?;
        let filter = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Bilinear));
        resizer.resize_typed(&source, &mut target, &filter).map_err(|e| e.to_string())
    }
}

/// Prepares pictures; keeps its buffers from one to the next.
pub struct Preprocessor {
    p: Preprocess,
    resizer: Resizer,
    resized: Vec<u8>,
    /// [`Pixels::channels`].
    channels: Vec<(usize, [f32; 256])>,
}

impl Preprocessor {
    /// Checks the record.
    pub fn new(p: Preprocess) -> Result<Self> {
        validate(&p)?;
        let table = |c: usize| std::array::from_fn(|v| (v as f32 / 255.0 - p.mean[c]) / p.std[c]);
        let channels = (0..p.color.channels()).map(|c| (if p.color == Color::Bgr { 2 - c } else { c }, table(c))).collect();
        Ok(Preprocessor { p, resizer: Resizer::new(), resized: Vec::new(), channels })
    }

    /// The record.
    pub fn record(&self) -> &Preprocess {
        &self.p
    }

    /// Size before the crop; the shorter side is exact, the longer one is truncated as torchvision does.
    fn scaled_size(&self, width: u32, height: u32) -> (u32, u32) {
        let long = |s: u32, long: u32, short: u32| (u64::from(s) * u64::from(long) / u64::from(short)) as u32;
        match self.p.resize {
            Resize::Stretch => (self.p.width, self.p.height),
            Resize::ShortSide(s) if width <= height => (s, long(s, height, width)),
            Resize::ShortSide(s) => (long(s, width, height), s),
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
        picture.scale(&mut self.resizer, w, h, &mut self.resized)?;
        // torchvision's CenterCrop rounds half to even.
        let middle = |full: u32, part: u32| (f64::from(full - part) / 2.0).round_ties_even() as usize;
        let (left, top) = (middle(w, self.p.width), middle(h, self.p.height));
        let row_stride = w as usize * channels;
        let size = [self.p.height as usize, self.p.width as usize];
        let bytes = &self.resized[top * row_stride + left * channels..];
        Ok(Pixels { bytes, row_stride, size, channels: &self.channels })
    }
}

/// Decodes one picture to `1·C·H·W` values.
pub fn load_tensor(path: &Path, p: &Preprocess) -> Result<Vec<f32>> {
    let mut out = Vec::new();
    Preprocessor::new(p.clone())?.run(&decode(path, p.color)?, &mut out).map_err(|reason| Error::image(path, reason))?;
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
        Preprocess { width: size, height: size, resize, color: Color::Rgb, mean: vec![0.5; 3], std: vec![0.25; 3] }
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
    fn bad_files_are_errors() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.png");
        std::fs::write(&path, b"").unwrap();
        assert!(matches!(decode(&path, Color::Rgb), Err(Error::Image { .. })));
        // A PNG header that promises 20000×20000 pixels.
        let mut png = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR".to_vec();
        png.extend([0, 0, 0x4e, 0x20, 0, 0, 0x4e, 0x20, 8, 2, 0, 0, 0, 0x8f, 0x3c, 0x7f, 0x5a]);
        std::fs::write(&path, &png).unwrap();
        assert!(decode(&path, Color::Rgb).is_err());
        assert!(collect(&[folder.path().join("none")]).is_err());
    }

    #[test]
    fn cut_jpeg_files_are_errors_wherever_they_are_cut() {
        let mut file = Vec::new();
        let pixels: Vec<u8> = (0..64 * 64 * 3).map(|i| (i * 7 % 251) as u8).collect();
        image::codecs::jpeg::JpegEncoder::new(&mut file).encode(&pixels, 64, 64, image::ExtendedColorType::Rgb8).unwrap();
        assert_eq!(decode_bytes(&file, Color::Rgb, 4096).unwrap().width, 64);
        assert!(decode_bytes(&file, Color::Rgb, 4095).unwrap_err().contains("at most 4095"));
        for length in 0..file.len() - 1 {
            assert!(decode_bytes(&file[..length], Color::Rgb, 4096).is_err(), "{length} of {} bytes", file.len());
        }
        // Cameras pad their files.
        file.extend([0; 300]);
        decode_bytes(&file, Color::Gray, 4096).unwrap();
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
