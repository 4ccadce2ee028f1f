//! Scales pictures of one or three bytes a pixel: bilinear, antialiased when they shrink (Pillow's and torchvision's filter).
//!
//! A crate of its own because of what it is made of: 2 MB of code for filters of every precision, a third of the time that the library
//! would take to compile.

#![warn(missing_docs)]
#![forbid(unsafe_code)]

use fast_image_resize::images::{TypedImage, TypedImageRef};
use fast_image_resize::pixels::{U8, U8x3};
use fast_image_resize::{FilterType, PixelTrait, ResizeAlg, ResizeOptions, Resizer};

/// Scales; keeps its buffers from one picture to the next.
#[derive(Debug, Default)]
pub struct Scaler {
    resizer: Resizer,
}

/// A picture: rows of pixels of `channels` bytes, without gaps.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    /// `width · height · channels` bytes.
    pub data: &'a [u8],
    /// Pixels a row.
    pub width: u32,
    /// Rows.
    pub height: u32,
    /// 1 or 3.
    pub channels: usize,
}

impl Scaler {
    /// A scaler without buffers.
    pub fn new() -> Self {
        Self::default()
    }

    /// Scales to `width` × `height` pixels, into `out`, which takes the size it needs.
    ///
    /// # Errors
    /// The picture has other than 1 or 3 channels, or fewer bytes than its size says.
    pub fn scale(&mut self, source: Source<'_>, width: u32, height: u32, out: &mut Vec<u8>) -> Result<(), String> {
        out.resize(width as usize * height as usize * source.channels, 0);
        // By type, not by `Resizer::resize`: that would link every pixel format there is, 3 MB of code.
        match source.channels {
            1 => self.typed::<U8>(source, width, height, out),
            3 => self.typed::<U8x3>(source, width, height, out),
            n => Err(format!("pictures have 1 or 3 channels, not {n}")),
        }
    }

    fn typed<P: PixelTrait>(&mut self, source: Source<'_>, width: u32, height: u32, out: &mut [u8]) -> Result<(), String> {
        let source = TypedImageRef::<P>::from_buffer(source.width, source.height, source.data).map_err(|e| e.to_string())?;
        let mut target = TypedImage::<P>::from_buffer(width, height, out).map_err(|e| e.to_string())?;
        let filter = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Bilinear));
        self.resizer.resize_typed(&source, &mut target, &filter).map_err(|e| e.to_string())
    }
}
