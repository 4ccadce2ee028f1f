//! Picture files → [`Picture`]: PNG, JPEG, BMP and PNM. Sizes are checked from the headers, before memory is taken.

use super::jpeg;
use crate::metadata::{Color, Preprocess};
use crate::{Error, Result};
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader};
use std::io::{BufRead, Read, Seek};
use std::path::Path;

/// Longest side of a picture that is decoded.
pub const MAX_SIDE: u32 = 16_384;
/// Most pixels of a picture that is decoded.
pub const MAX_PIXELS: u64 = 64 << 20;
/// Most bytes of what accompanies the pixels of a PNG file, unpacked: colour profile, text, EXIF.
const MAX_SIDE_DATA: u64 = 16 << 20;
/// Most bytes of a JPEG file.
const MAX_JPEG: u64 = 256 << 20;
/// A progressive JPEG file goes over the pixels several times, usually ten. The pixels of all passes together may be so
/// many times those of the largest picture: that bounds the time.
const MAX_PASSES: u64 = 16;

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

/// How a file becomes a picture. A [`Color`] stands for itself with the other settings at their defaults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecodeOptions {
    /// Three channels (RGB, whatever the order in the tensor) or one.
    pub color: Color,
    /// Leave the picture as it is stored, though its EXIF data asks for a turn.
    pub ignore_exif: bool,
}

impl From<Color> for DecodeOptions {
    fn from(color: Color) -> Self {
        DecodeOptions { color, ignore_exif: false }
    }
}

impl From<&Preprocess> for DecodeOptions {
    fn from(p: &Preprocess) -> Self {
        DecodeOptions { color: p.color, ignore_exif: p.ignore_exif }
    }
}

/// Decodes a file.
pub fn decode(path: &Path, options: impl Into<DecodeOptions>) -> Result<Picture> {
    let io = |e| Error::io(path, e);
    let bad = |reason: String| Error::image(path, reason);
    let reader = ImageReader::open(path).and_then(ImageReader::with_guessed_format).map_err(io)?;
    if reader.format() != Some(ImageFormat::Jpeg) {
        return read(reader, options.into(), MAX_PIXELS).map_err(|e| bad(format!("{e}; PNG, JPEG, BMP and PNM are read")));
    }
    let mut file = Vec::new();
    reader.into_inner().take(MAX_JPEG + 1).read_to_end(&mut file).map_err(io)?;
    decode_jpeg_of(&file, None, options.into(), MAX_PIXELS).map_err(bad)
}

/// Decodes a file in memory, of whatever format it is, of at most `max_pixels`.
pub fn decode_bytes(bytes: &[u8], options: impl Into<DecodeOptions>, max_pixels: u64) -> Result<Picture, String> {
    match image::guess_format(bytes).map_err(|_| "not a picture; PNG, JPEG, BMP and PNM are read".to_string())? {
        ImageFormat::Jpeg => decode_jpeg_of(bytes, None, options.into(), max_pixels),
        format => read(ImageReader::with_format(std::io::Cursor::new(bytes), format), options.into(), max_pixels),
    }
}

/// Decodes a JPEG file in memory, which must be of this width and height as it is stored.
pub fn decode_jpeg(bytes: &[u8], size: (u32, u32), options: impl Into<DecodeOptions>, max_pixels: u64) -> Result<Picture, String> {
    decode_jpeg_of(bytes, Some(size), options.into(), max_pixels)
}

fn decode_jpeg_of(file: &[u8], size: Option<(u32, u32)>, options: DecodeOptions, max_pixels: u64) -> Result<Picture, String> {
    if file.len() as u64 > MAX_JPEG {
        return Err(format!("more than {MAX_JPEG} bytes of JPEG"));
    }
    let layout = jpeg::layout(file)?;
    if let Some((width, height)) = size.filter(|size| *size != (layout.width, layout.height)) {
        return Err(format!("{width}×{height} are announced, the JPEG file has {}×{}", layout.width, layout.height));
    }
    check_pixels(layout.width, layout.height, max_pixels)?;
    let passes = u64::from(layout.scans) * u64::from(layout.width) * u64::from(layout.height);
    if passes > MAX_PASSES * max_pixels {
        return Err(format!("{} passes over {}×{} pixels are too many", layout.scans, layout.width, layout.height));
    }
    let file = jpeg::with_tables(file, &layout);
    read(ImageReader::with_format(std::io::Cursor::new(file.as_ref()), ImageFormat::Jpeg), options, max_pixels)
}

fn read<R: BufRead + Seek>(mut reader: ImageReader<R>, options: DecodeOptions, max_pixels: u64) -> Result<Picture, String> {
    // Of the pixels' memory the size decides, below; this is for the rest, which a small file can ask much for.
    let mut limits = image::Limits::default();
    limits.max_alloc = Some(MAX_SIDE_DATA);
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(|e| e.to_string())?;
    let (width, height) = decoder.dimensions();
    check_pixels(width, height, max_pixels)?;
    // What cannot be read of EXIF asks for nothing.
    let orientation = match options.ignore_exif {
        true => Orientation::NoTransforms,
        false => decoder.orientation().unwrap_or(Orientation::NoTransforms),
    };
    let decoded = DynamicImage::from_decoder(decoder).map_err(|e| e.to_string())?;
    Ok(Picture::new(decoded, options.color).oriented(orientation))
}

/// Refuses sizes that would take too much memory.
pub fn check_size(width: u32, height: u32) -> Result<(), String> {
    check_pixels(width, height, MAX_PIXELS)
}

fn check_pixels(width: u32, height: u32, max_pixels: u64) -> Result<(), String> {
    let max_pixels = max_pixels.min(MAX_PIXELS);
    if width == 0 || height == 0 || width.max(height) > MAX_SIDE || u64::from(width) * u64::from(height) > max_pixels {
        return Err(format!("{width}×{height} pixels; at most {max_pixels} in all and {MAX_SIDE} a side are read: scale it down"));
    }
    Ok(())
}

/// Luma of ITU-R BT.601, as JPEG (ITU-T T.871), Pillow and OpenCV have it: 16-bit fixed point, rounded to nearest.
pub(crate) fn luma([r, g, b]: [u8; 3]) -> u8 {
    ((19_595 * u32::from(r) + 38_470 * u32::from(g) + 7_471 * u32::from(b) + (1 << 15)) >> 16) as u8
}

impl Picture {
    /// A decoded picture, with as many channels as `color` wants.
    fn new(decoded: DynamicImage, color: Color) -> Self {
        let (width, height, channels) = (decoded.width(), decoded.height(), color.channels());
        let data = match channels {
            1 if !decoded.color().has_color() => decoded.into_luma8().into_raw(),
            1 => to_luma(decoded.into_rgb8().into_raw()),
            _ => decoded.into_rgb8().into_raw(),
        };
        Picture { width, height, data, channels }
    }

    /// One channel of luma.
    pub fn into_luma(self) -> Picture {
        if self.channels == 1 { self } else { Picture { data: to_luma(self.data), channels: 1, ..self } }
    }

    /// Turned and mirrored as EXIF asks for.
    fn oriented(self, orientation: Orientation) -> Picture {
        match self.channels {
            _ if orientation == Orientation::NoTransforms => self,
            1 => self.moved::<1>(orientation),
            _ => self.moved::<3>(orientation),
        }
    }

    fn moved<const CHANNELS: usize>(self, orientation: Orientation) -> Picture {
        let exif = orientation.to_exif();
        let (swapped, mirror_x, mirror_y) = (exif > 4, matches!(exif, 2 | 3 | 7 | 8), matches!(exif, 3 | 4 | 6 | 7));
        let (old_width, old_height) = (self.width as usize, self.height as usize);
        let (width, height) = if swapped { (old_height, old_width) } else { (old_width, old_height) };
        let from = self.data.as_chunks::<CHANNELS>().0;
        let mut data = vec![0; self.data.len()];
        for (y, row) in data.as_chunks_mut::<CHANNELS>().0.chunks_exact_mut(width).enumerate() {
            for (x, pixel) in row.iter_mut().enumerate() {
                let (x, y) = if swapped { (y, x) } else { (x, y) };
                let x = if mirror_x { old_width - 1 - x } else { x };
                let y = if mirror_y { old_height - 1 - y } else { y };
                *pixel = from[y * old_width + x];
            }
        }
        Picture { width: width as u32, height: height as u32, data, channels: self.channels }
    }
}

/// Luma of RGB pixels, in the same memory.
fn to_luma(mut rgb: Vec<u8>) -> Vec<u8> {
    let pixels = rgb.len() / 3;
    for i in 0..pixels {
        rgb[i] = luma([rgb[3 * i], rgb[3 * i + 1], rgb[3 * i + 2]]);
    }
    rgb.truncate(pixels);
    rgb
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{ExtendedColorType, ImageEncoder, RgbImage, codecs::jpeg::JpegEncoder, codecs::png::PngEncoder};

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
    }

    #[test]
    fn cut_jpeg_files_are_errors_wherever_they_are_cut() {
        let mut file = Vec::new();
        let pixels: Vec<u8> = (0..64 * 64 * 3).map(|i| (i * 7 % 251) as u8).collect();
        JpegEncoder::new(&mut file).encode(&pixels, 64, 64, ExtendedColorType::Rgb8).unwrap();
        assert_eq!(decode_bytes(&file, Color::Rgb, 4096).unwrap().width, 64);
        assert!(decode_bytes(&file, Color::Rgb, 4095).unwrap_err().contains("at most 4095"));
        for length in 0..file.len() - 1 {
            assert!(decode_bytes(&file[..length], Color::Rgb, 4096).is_err(), "{length} of {} bytes", file.len());
        }
        // Cameras pad their files.
        file.extend([0; 300]);
        decode_bytes(&file, Color::Gray, 4096).unwrap();
    }

    /// EXIF data with one entry, the orientation (tag 0x0112, a short).
    fn exif(orientation: u8) -> Vec<u8> {
        let mut data = b"MM\0\x2A\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0".to_vec();
        data.extend([orientation, 0, 0, 0, 0, 0, 0]);
        data
    }

    fn colours(width: u32, height: u32) -> RgbImage {
        RgbImage::from_fn(width, height, |x, y| image::Rgb([(x * 20) as u8, (y * 30) as u8, 90]))
    }

    /// Against the turns of the `image` crate.
    #[test]
    fn exif_turns_pictures_unless_it_is_ignored() {
        let picture = colours(8, 5);
        for orientation in 1..=8 {
            let mut file = Vec::new();
            let mut encoder = PngEncoder::new(&mut file);
            encoder.set_exif_metadata(exif(orientation)).unwrap();
            encoder.write_image(&picture, 8, 5, ExtendedColorType::Rgb8).unwrap();
            let mut expected = DynamicImage::from(picture.clone());
            expected.apply_orientation(Orientation::from_exif(orientation).unwrap());
            let turned = decode_bytes(&file, Color::Rgb, 40).unwrap();
            assert_eq!(
                (turned.width, turned.height, &turned.data),
                (expected.width(), expected.height(), &expected.into_rgb8().into_raw())
            );
            assert_eq!(decode_bytes(&file, Color::Gray, 40).unwrap(), turned.into_luma());
            let stored = decode_bytes(&file, DecodeOptions { color: Color::Rgb, ignore_exif: true }, 40).unwrap();
            assert_eq!((stored.width, &stored.data), (8, picture.as_raw()));
        }
        // A JPEG file: as it is stored, 32 × 16; turned by a quarter.
        let mut file = Vec::new();
        let mut encoder = JpegEncoder::new(&mut file);
        encoder.set_exif_metadata(exif(6)).unwrap();
        encoder.encode(&colours(32, 16), 32, 16, ExtendedColorType::Rgb8).unwrap();
        let turned = decode_jpeg(&file, (32, 16), Color::Rgb, 512).unwrap();
        assert_eq!((turned.width, turned.height), (16, 32));
        assert!(decode_jpeg(&file, (16, 32), Color::Rgb, 512).unwrap_err().contains("has 32×16"));
    }

    /// Values of Pillow's `convert("L")`.
    #[test]
    fn grey_is_bt_601() {
        let cases = [([0, 255, 0], 150), ([255, 0, 0], 76), ([0, 0, 255], 29), ([255; 3], 255), ([10, 200, 30], 124), ([77; 3], 77)];
        for (rgb, grey) in cases {
            let mut file = Vec::new();
            PngEncoder::new(&mut file).write_image(&rgb, 1, 1, ExtendedColorType::Rgb8).unwrap();
            assert_eq!(decode_bytes(&file, Color::Gray, 1).unwrap().data, [grey], "{rgb:?}");
        }
    }

    /// A progressive file of one component: a first scan, and `scans - 1` times the same again.
    fn progressive(side: u16, scans: usize) -> Vec<u8> {
        let [high, low] = side.to_be_bytes();
        let mut file = vec![0xFF, 0xD8, 0xFF, 0xDB, 0, 67, 0];
        file.extend([1; 64]);
        file.extend([0xFF, 0xC2, 0, 11, 8, high, low, high, low, 1, 1, 0x11, 0]);
        // One code of one bit: the difference 0.
        file.extend([0xFF, 0xC4, 0, 20, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        for _ in 0..scans {
            file.extend([0xFF, 0xDA, 0, 8, 1, 1, 0, 0, 0, 0]);
            file.resize(file.len() + usize::from(side).div_ceil(8).pow(2).div_ceil(8), 0);
        }
        file.extend([0xFF, 0xD9]);
        file
    }

    #[test]
    fn passes_of_progressive_files_are_bounded() {
        let pixels = 64 * 64;
        assert_eq!(decode_bytes(&progressive(64, 16), Color::Gray, pixels).unwrap().data, [128; 64 * 64]);
        assert!(decode_bytes(&progressive(64, 17), Color::Gray, pixels).unwrap_err().contains("17 passes over 64×64"));
        // Small pictures may have as many as they like, up to the decoder's own limit.
        decode_bytes(&progressive(64, 90), Color::Gray, 100 * pixels).unwrap();
    }
}
