//! What the board has in its flash, read from the same files.

use crate::board::Frame;
use crate::{Error, ensure};
use edge_wire::{HEADER_LEN, MESSAGE_BUFFER, PixelFormat};
use std::path::Path;
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

/// Payload bytes of the board's chunks.
const CHUNK: usize = 1024;

struct Picture {
    jpeg: Vec<u8>,
    width: usize,
    height: usize,
    /// What a sensor has: 5, 6 and 5 bits.
    pixels: Vec<[u8; 3]>,
}

pub struct Pictures(Vec<Picture>);

impl Pictures {
    pub fn read(folder: &Path) -> Result<Self, Error> {
        let mut files: Vec<_> = std::fs::read_dir(folder)?.map(|e| e.map(|e| e.path())).collect::<Result<_, _>>()?;
        files.sort();
        let pictures = files.iter().map(|file| picture(std::fs::read(file)?).map_err(|e| format!("{}: {e}", file.display()).into()));
        let pictures = pictures.collect::<Result<Vec<_>, Error>>()?;
        ensure!(!pictures.is_empty(), "no pictures in {}", folder.display());
        Ok(Pictures(pictures))
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Bytes of the longest JPEG frame, with its headers and a message or two.
    pub fn longest_on_link(&self) -> u64 {
        let longest = self.0.iter().map(|p| p.jpeg.len()).max().unwrap_or(0);
        (longest + HEADER_LEN * longest.div_ceil(CHUNK) + 2 * MESSAGE_BUFFER) as u64
    }

    /// Which picture a frame shows: all of it, or it is an error.
    pub fn identify(&self, frame: &Frame) -> Result<usize, Error> {
        let found = self.0.iter().position(|p| match frame.info.format {
            PixelFormat::Jpeg => p.jpeg == frame.payload,
            PixelFormat::Rgb565 => p.middle(frame, 1).eq(frame
                .payload
                .chunks(2)
                .map(|b| u16::from_be_bytes([b[0], b[1]]))
                .map(|v| [(v >> 11) as f64, (v >> 5 & 63) as f64, (v & 31) as f64])),
            _ => {
                // Luma in floating point, of 8-bit channels; the board computes in integers, so one level of difference is allowed.
                let wide = |[r, g, b]: [f64; 3]| 0.299 * r * 255.0 / 31.0 + 0.587 * g * 255.0 / 63.0 + 0.114 * b * 255.0 / 31.0;
                let factor = (p.width / usize::from(frame.info.width)).min(p.height / usize::from(frame.info.height)).max(1);
                p.middle(frame, factor).map(wide).zip(&frame.payload).all(|(y, v)| (y - f64::from(*v)).abs() <= 1.75)
            }
        });
        found.ok_or_else(|| format!("a frame that shows none of the pictures was accepted: {:?}", frame.info).into())
    }
}

impl Picture {
    /// The middle of the picture, of the frame's size, `factor` × `factor` pixels averaged; levels of 5, 6 and 5 bits.
    fn middle(&self, frame: &Frame, factor: usize) -> impl Iterator<Item = [f64; 3]> + '_ {
        let (w, h) = (usize::from(frame.info.width), usize::from(frame.info.height));
        let (left, top) = ((self.width - w * factor) / 2, (self.height - h * factor) / 2);
        (0..w * h).map(move |i| {
            let (x, y) = (left + i % w * factor, top + i / w * factor);
            let block = (0..factor * factor).map(|j| self.pixels[(y + j / factor) * self.width + x + j % factor]);
            let sums = block.fold([0.0; 3], |s: [f64; 3], p| [s[0] + f64::from(p[0]), s[1] + f64::from(p[1]), s[2] + f64::from(p[2])]);
            sums.map(|s| s / (factor * factor) as f64)
        })
    }
}

fn picture(jpeg: Vec<u8>) -> Result<Picture, Error> {
    let options = DecoderOptions::default().jpeg_set_out_colorspace(ColorSpace::RGB);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(&jpeg), options);
    let rgb = decoder.decode().map_err(|e| format!("{e:?}"))?;
    let (width, height) = decoder.dimensions().ok_or("no size")?;
    let level = |v: u8, most: u16| ((u16::from(v) * most + 127) / 255) as u8;
    let pixels = rgb.chunks_exact(3).map(|p| [level(p[0], 31), level(p[1], 63), level(p[2], 31)]).collect();
    Ok(Picture { jpeg, width, height, pixels })
}
