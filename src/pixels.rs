//! A picture as a network's input, without the detour over an f32 tensor.

use crate::{Error, Result};

/// An interleaved 8-bit picture, and the real value of each byte of each channel.
#[derive(Debug, Clone, Copy)]
pub struct Pixels<'a> {
    /// From the first pixel on; rows may have more than the picture's pixels.
    pub bytes: &'a [u8],
    /// Bytes from one row to the next.
    pub row_stride: usize,
    /// Height and width.
    pub size: [usize; 2],
    /// For each channel of the network's input: which byte of a pixel it is, and the value of that byte.
    pub channels: &'a [(usize, [f32; 256])],
}

impl Pixels<'_> {
    /// Refuses pixels that are not all there, or not `[1, C, H, W]` of `shape`.
    pub fn check(&self, shape: &[usize]) -> Result<()> {
        let (c, [h, w]) = (self.channels.len(), self.size);
        if *shape != [1, c, h, w] {
            return Err(Error::Shape(format!("a picture of {w}×{h} pixels and {c} channels is not the input's {shape:?}")));
        }
        let needed = (h - 1).checked_mul(self.row_stride).and_then(|n| n.checked_add(w * c));
        let ordered = self.channels.iter().all(|(byte, _)| *byte < c);
        if !ordered || self.row_stride < w * c || needed.is_none_or(|n| n > self.bytes.len()) {
            return Err(Error::Shape(format!("{} bytes are not {w}×{h} pixels of {c} channels", self.bytes.len())));
        }
        Ok(())
    }

    /// The `C·H·W` values, replacing what `out` holds.
    pub fn expand(&self, out: &mut Vec<f32>) {
        let ([h, w], c) = (self.size, self.channels.len());
        out.clear();
        for (byte, table) in self.channels {
            for row in self.bytes.chunks(self.row_stride).take(h) {
                out.extend(row[..w * c].chunks_exact(c).map(|pixel| table[usize::from(pixel[*byte])]));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{Picture, Preprocessor};
    use crate::metadata::{Color, Preprocess, Resize};
    use crate::model::{LoadOptions, Model};

    #[test]
    fn pictures_give_the_logits_of_their_values() {
        let data = (0..90 * 70 * 3).map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let picture = Picture { width: 90, height: 70, data, channels: 3 };
        // One that is all int8, and one that tract runs.
        for file in ["thinq.onnx", "thin.onnx"] {
            let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("models").join(file);
            for (color, threads, resize) in [(Color::Rgb, 1, Resize::Stretch), (Color::Bgr, 2, Resize::ShortSide(68))] {
                let mut model = Model::load(&path, &LoadOptions { threads, ..Default::default() }).unwrap();
                let p = Preprocess {
                    width: 64,
                    height: 64,
                    resize,
                    color,
                    mean: vec![0.4, 0.5, 0.6],
                    std: vec![0.2, 0.3, 0.25],
                    ignore_exif: false,
                };
                let mut preprocessor = Preprocessor::new(p).unwrap();
                let mut values = Vec::new();
                preprocessor.run(&picture, &mut values).unwrap();
                let expected = model.run(&values).unwrap().to_vec();
                let pixels = preprocessor.pixels(&picture).unwrap();
                // Twice: nothing is left over from the first time.
                for _ in 0..2 {
                    assert_eq!(model.run_pixels(&pixels).unwrap(), expected, "{file} {color:?}");
                }
                let short = &pixels.bytes[..pixels.row_stride * 63];
                for wrong in [
                    Pixels { size: [63, 64], ..pixels },
                    Pixels { bytes: short, ..pixels },
                    Pixels { row_stride: 3, ..pixels },
                    Pixels { channels: &pixels.channels[..1], ..pixels },
                ] {
                    assert!(matches!(model.run_pixels(&wrong), Err(Error::Shape(_))));
                }
            }
        }
    }
}
